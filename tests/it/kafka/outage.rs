//! No broker at all for a while, under load: 200 from the spool, nothing refused, and drained in order afterwards.
//!
//! `CHASKI_TEST_OUTAGE=180s` makes it as long as one likes.

use std::time::Duration;

use chaski_common::storage::kafka::testing::{Broker, RedisServer};

use super::destinations;
use crate::harness::{
    Callback, Destination, Layout, Receiver, Reply, Site, Storage, Topics, paid, pause, within,
};
use crate::town::{Faults, Town, seed};

const OUTAGE: Duration = Duration::from_secs(20);

fn outage() -> Duration {
    let Ok(text) = std::env::var("CHASKI_TEST_OUTAGE") else { return OUTAGE };
    let seconds = text.strip_suffix('s').and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or_else(|| panic!("CHASKI_TEST_OUTAGE is like 180s, not {text}")))
}

#[test]
fn without_brokers_every_callback_is_answered_200_and_arrives_when_they_are_back() {
    let town = Town::at_leisure("outage", seed());
    let (mut broker, redis) = (Broker::start(), RedisServer::start());
    let site = Site::on(Storage::Topics(Topics::on(vec![broker.address()], &redis)), &town.layout());
    let gateway = site.start();
    town.busy(&[site.edge], || {
        pause(Duration::from_secs(2));
        broker.kill();
        town.goes_on("without brokers", outage());
        assert_eq!(gateway.count("chaski_spool_mode", &[]), 2, "Kafka is away");
        broker.run();
        within(Duration::from_secs(120), "the spool to be drained", || {
            (gateway.count("chaski_spool_mode", &[]) == 0).then_some(())
        });
    });
    // What was with the producer and in the spool when Kafka went: as much as a second and a half holds.
    town.judge(Faults::kills(3), || destinations(&gateway));
    town.was_served();
    gateway.stop();
}

#[test]
fn a_process_that_starts_and_dies_without_brokers_keeps_what_it_was_given_in_order() {
    const SUBJECTS: u64 = 4;
    let receiver = Receiver::scripted(|asked| Reply::status(if asked.times % 3 == 1 { 503 } else { 200 }));
    let layout = Layout::to([Destination::new("orders", &receiver).with("ordering = \"key\"")]);
    let (mut broker, redis) = (Broker::start(), RedisServer::start());
    let site = Site::on(Storage::Topics(Topics::on(vec![broker.address()], &redis)), &layout);
    let step = |subject: u64, step: u64| Callback::of(paid(50_000_000 + subject, &step.to_string(), "1.00"));
    let mut steps = 0;
    let mut gateway = site.start();
    let mut pay = |gateway: &crate::harness::Gateway| {
        for _ in 0..4 {
            (0..SUBJECTS).for_each(|subject| _ = gateway.accept(&step(subject, steps)));
            steps += 1;
        }
        steps
    };
    pay(&gateway);
    broker.kill();
    pay(&gateway);
    for _ in 0..2 {
        gateway.kill();
        drop(gateway);
        gateway = site.start();
        pay(&gateway);
    }
    broker.run();
    let steps = pay(&gateway);
    within(Duration::from_secs(60), "every step of every subject, in order", || {
        let order = crate::ordered::order(&receiver);
        let all = (0..steps).collect::<Vec<_>>();
        (order.len() as u64 == SUBJECTS && order.values().all(|steps| *steps == all)).then_some(())
    });
    gateway.stop();
}
