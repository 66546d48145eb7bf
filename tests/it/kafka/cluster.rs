//! Three brokers with three copies, of which two must be in sync: one is killed, one is frozen, two are gone. One
//! cluster for all of these, so they go one after the other.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use chaski_common::storage::kafka::testing::{Broker, Cluster, RedisServer};
use serde_json::Value;

use super::destinations;
use crate::harness::{Gateway, Site, Storage, Topics, pause, tool, within};
use crate::town::{Faults, Town, seed};

/// How long brokers may take to agree on who leads.
const AGREED: Duration = Duration::from_secs(90);

struct Servers {
    cluster: Cluster,
    redis: RedisServer,
}

/// All brokers up; nobody else has them until this is dropped.
fn servers() -> MutexGuard<'static, Servers> {
    static SERVERS: OnceLock<Mutex<Servers>> = OnceLock::new();
    let servers = SERVERS
        .get_or_init(|| Mutex::new(Servers { cluster: Cluster::start(3), redis: RedisServer::start() }));
    servers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Servers {
    fn topics(&self) -> Topics {
        let brokers = self.cluster.brokers.iter().map(Broker::address).collect();
        Topics::on(brokers, &self.redis)
    }

    /// The partitions of the events as the brokers that are up see them.
    fn partitions(&self, topics: &Topics) -> Vec<Value> {
        let topic = format!("{}.events", topics.prefix);
        let told = tool("kcat", &["-b", &topics.brokers.join(","), "-L", "-J", "-t", &topic]);
        let told: Value = serde_json::from_slice(&told).unwrap();
        told["topics"][0]["partitions"].as_array().unwrap().clone()
    }

    /// The broker that leads the first partition, as an index.
    fn leader(&self, topics: &Topics) -> usize {
        let first = &self.partitions(topics)[0];
        usize::try_from(first["leader"].as_i64().unwrap()).unwrap() - 1
    }

    fn wait_until_in_sync(&self, topics: &Topics) {
        within(AGREED, "all copies in sync", || {
            let is_whole = |partition: &Value| partition["isrs"].as_array().unwrap().len() == 3;
            self.partitions(topics).iter().all(is_whole).then_some(())
        });
    }
}

/// A gateway under load on the cluster while something is broken; people are served and nothing is lost.
fn survives(name: &'static str, breaks: impl FnOnce(&mut Servers, &Topics, &Town, &Gateway)) {
    let town = Town::at_leisure(name, seed());
    let mut servers = servers();
    let topics = servers.topics();
    let site = Site::on(Storage::Topics(topics.clone()), &town.layout());
    servers.wait_until_in_sync(&topics);
    let gateway = site.start();
    town.busy(&[site.edge], || {
        pause(Duration::from_secs(2));
        breaks(&mut servers, &topics, &town, &gateway);
        servers.wait_until_in_sync(&topics);
    });
    town.judge(Faults::kills(4), || destinations(&gateway));
    town.was_served();
    gateway.stop();
}

#[test]
fn the_leader_is_killed() {
    survives("leader", |servers, topics, town, _| {
        let leader = servers.leader(topics);
        servers.cluster.brokers[leader].kill();
        town.goes_on("without its leader", Duration::from_secs(6));
        servers.cluster.brokers[leader].run();
    });
}

#[test]
fn the_leader_is_frozen() {
    survives("frozen", |servers, topics, town, _| {
        let leader = servers.leader(topics);
        servers.cluster.brokers[leader].signal("STOP");
        town.goes_on("with a leader that says nothing", Duration::from_secs(15));
        servers.cluster.brokers[leader].signal("CONT");
    });
}

#[test]
fn two_of_three_are_gone_and_come_back() {
    survives("min-isr", |servers, _, town, gateway| {
        servers.cluster.brokers[1].kill();
        servers.cluster.brokers[2].kill();
        town.goes_on("with one of three", Duration::from_secs(10));
        assert_eq!(gateway.count("chaski_spool_mode", &[]), 2, "one copy is not durable");
        // Neither has a quorum before the other is there.
        let [_, second, third] = &mut servers.cluster.brokers[..] else { panic!("three brokers") };
        std::thread::scope(|scope| {
            scope.spawn(|| second.run());
            scope.spawn(|| third.run());
        });
    });
}
