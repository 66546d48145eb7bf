//! What only several processes on Kafka and Redis can show, and what breaks there: always on Kafka, whatever the
//! storage of the run.
//!
//! Every fault is held against the ledger of `town.rs`: nothing lost, every copy under its one id and with its own bytes,
//! no more copies than the faults explain.

mod cluster;
mod halves;
mod kills;
mod network;
mod outage;
mod readers;
mod redis;
mod upgrade;

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::harness::{Gateway, Layout, Site, Storage, Topics};

/// One process of several on one log.
struct Half {
    site: Site,
    role: Vec<&'static str>,
    gateway: Gateway,
}

impl Half {
    fn spawn(topics: &Topics, layout: &Layout, role: &[&'static str]) -> Self {
        let site = Site::on(Storage::Topics(topics.clone()), layout);
        let gateway = site.spawn_as(role);
        Self { site, role: role.to_vec(), gateway }
    }

    /// SIGKILL, and up again at once.
    fn kill(&mut self) {
        assert!(self.gateway.exited().is_none(), "it ended by itself: {:#?}", self.gateway.log());
        self.gateway.kill();
        self.spawn_again();
    }

    /// SIGTERM, an end in order, and up again.
    fn restart(&mut self) {
        self.gateway.end();
        self.spawn_again();
        self.gateway.wait_until_running();
    }

    fn spawn_again(&mut self) {
        self.gateway = self.site.spawn_as(&self.role);
    }
}

/// Two edges and three dispatchers, of which two are there for some destinations only.
struct Fleet {
    edges: Vec<Half>,
    dispatchers: Vec<Half>,
}

impl Fleet {
    /// All of them up.
    fn start(topics: &Topics, layout: &Layout) -> Self {
        let spawn = |role: &[&'static str]| Half::spawn(topics, layout, role);
        let fleet = Self {
            edges: vec![spawn(&["ingest"]), spawn(&["ingest"])],
            dispatchers: vec![
                spawn(&["dispatch"]),
                spawn(&["dispatch", "--only", "orders"]),
                spawn(&["dispatch", "--only", "erp,notifications"]),
            ],
        };
        fleet.wait_until_running();
        fleet
    }

    #[track_caller]
    fn wait_until_running(&self) {
        self.edges.iter().chain(&self.dispatchers).for_each(|half| half.gateway.wait_until_running());
    }

    fn doors(&self) -> Vec<SocketAddr> {
        self.edges.iter().map(|edge| edge.site.edge).collect()
    }

    /// How the destinations stand, as the first dispatcher sees it.
    fn destinations(&self) -> Value {
        destinations(&self.dispatchers[0].gateway)
    }

    fn stop(self) {
        self.edges.into_iter().chain(self.dispatchers).for_each(|half| half.gateway.stop());
    }
}

/// How the destinations stand; null while the brokers do not tell.
fn destinations(gateway: &Gateway) -> Value {
    gateway.try_call("destinations", &json!({})).unwrap_or_default()
}
