//! Where a site keeps its events: in a file of its own, or in topics of its own on servers that the tests share.
//!
//! `CHASKI_TEST_STORAGE=kafka` runs every journey on Kafka and Redis that does not choose for itself.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use chaski_common::storage::kafka::testing::{self, RedisServer};

/// `[storage]` of a site, but for what a test adds.
#[derive(Clone)]
pub(crate) enum Storage {
    File,
    Topics(Topics),
}

/// A prefix of its own on some brokers. Sites with the same one are processes on one log.
#[derive(Clone)]
pub(crate) struct Topics {
    pub(crate) prefix: String,
    pub(crate) brokers: Vec<String>,
    pub(crate) replication: u32,
    pub(crate) partitions: u32,
    pub(crate) redis: String,
    /// Whether edges have a local disk to fall back on.
    pub(crate) spool: bool,
}

impl Storage {
    /// What this run is about.
    pub(crate) fn of_this_run() -> Self {
        match std::env::var("CHASKI_TEST_STORAGE").as_deref() {
            Err(_) | Ok("embedded") => Self::File,
            Ok("kafka") => Self::Topics(Topics::shared()),
            Ok(other) => panic!("CHASKI_TEST_STORAGE is embedded or kafka, not {other}"),
        }
    }

    /// As the configuration names it.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::File => "embedded",
            Self::Topics(_) => "kafka",
        }
    }

    /// Its lines in `[storage]`.
    pub(super) fn lines(&self) -> String {
        match self {
            Self::File => "kind = \"embedded\"\npath = \"store\"".to_owned(),
            Self::Topics(Topics { prefix, brokers, replication, partitions, spool, .. }) => {
                let path = if *spool { "path = \"store\"" } else { "" };
                format!(
                    "kind = \"kafka\"\nbrokers = {brokers:?}\ntopic_prefix = \"{prefix}\"\npartitions = {partitions}\n\
                     replication = {replication}\n{path}"
                )
            }
        }
    }

    /// The sections behind it. A process that was killed is missed as soon as the brokers allow it.
    pub(super) fn sections(&self) -> String {
        match self {
            Self::File => String::new(),
            Self::Topics(Topics { redis, .. }) => {
                format!(
                    "[storage.kafka]\n\"session.timeout.ms\" = 6000\n[storage.dedup]\nredis = \"{redis}\""
                )
            }
        }
    }
}

impl Topics {
    /// On the broker and the Redis that all tests share.
    pub(crate) fn shared() -> Self {
        static REDIS: OnceLock<RedisServer> = OnceLock::new();
        let redis = REDIS.get_or_init(RedisServer::start);
        Self::on(vec![testing::address().to_owned()], redis)
    }

    /// The ids in the log of which a record says that it was stored without asking Redis, and how many records each has.
    #[track_caller]
    pub(crate) fn stored_alone(&self) -> HashMap<String, u64> {
        let (brokers, topic) = (self.brokers.join(","), format!("{}.events", self.prefix));
        let read = ["-C", "-q", "-e", "-b", &brokers, "-t", &topic, "-o", "beginning", "-f", "%h\n"];
        let (mut records, mut alone) = (HashMap::new(), HashSet::new());
        for headers in String::from_utf8(super::tool("kcat", &read)).unwrap().lines() {
            // A record of no event has no id.
            let Some(id) = headers.split(',').find_map(|header| header.strip_prefix("ce_id=")) else {
                continue;
            };
            *records.entry(id.to_owned()).or_insert(0) += 1;
            if headers.split(',').any(|header| header == "ce_chaskidedup=local") {
                alone.insert(id.to_owned());
            }
        }
        assert!(!records.is_empty(), "nothing is in {topic}");
        records.retain(|id, _| alone.contains(id));
        records
    }

    /// On servers of the test's own.
    pub(crate) fn on(brokers: Vec<String>, redis: &RedisServer) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let url = redis.options().url;
        Self {
            prefix: format!("it-{}-{number}", std::process::id()),
            replication: brokers.len().min(3) as u32,
            brokers,
            partitions: 3,
            redis: String::from_utf8(url.expose().to_vec()).unwrap(),
            spool: true,
        }
    }
}
