//! Brokers behind a network that is slow, swallows what it is given, or resets connections: callbacks are answered 200 all
//! the while.

use std::time::Duration;

use chaski_common::storage::kafka::testing::{Broker, RedisServer};

use super::destinations;
use crate::harness::{Network, Site, Storage, Topics, Weather};
use crate::town::{Faults, Town, seed};

#[test]
fn whatever_the_network_does_callbacks_are_taken_and_none_is_lost() {
    let town = Town::at_leisure("network", seed());
    let (network, redis) = (Network::open(), RedisServer::start());
    let (_broker, inside) = Broker::start_behind(network.address.port());
    network.leads_to(inside);
    let site =
        Site::on(Storage::Topics(Topics::on(vec![network.address.to_string()], &redis)), &town.layout());
    let gateway = site.start();
    town.busy(&[site.edge], || {
        // Slower than the time after which an event goes to the spool as well, and within what an answer may take.
        for weather in [Weather::Slow(Duration::from_millis(300)), Weather::BlackHole, Weather::Reset] {
            for (weather, seconds) in [(weather, 6), (Weather::Fair, 3)] {
                network.becomes(weather);
                town.goes_on(&format!("{weather:?}"), Duration::from_secs(seconds));
            }
        }
    });
    town.judge(Faults::kills(4), || destinations(&gateway));
    town.was_served();
    gateway.stop();
}
