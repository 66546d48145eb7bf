//! The two storages under measurement: the embedded one in the folder of a run, or topics of its own on an Apache
//! Kafka that this program starts, with a Redis beside it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, anyhow, ensure};
use chaski_common::storage::kafka::{self, testing};
use chaski_common::storage::{EventFilter, PAGE_MAX, Storage, embedded};
use clap::ValueEnum;
use prometheus::Registry;
use serde::{Deserialize, Serialize};

use crate::load::Seen;
use crate::tally::Tally;
use crate::topic;

/// Which storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum On {
    /// One SQLite file.
    Embedded,
    /// Kafka and Redis.
    Kafka,
}

impl On {
    pub(crate) const BOTH: [Self; 2] = [Self::Embedded, Self::Kafka];

    /// For people.
    pub(crate) const fn shown(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Kafka => "Kafka and Redis",
        }
    }
}

/// Kafka and Redis; they end with this program.
pub(crate) struct Servers {
    brokers: String,
    redis: testing::RedisServer,
}

/// Bytes of a record as chaski publishes it: the body, and its headers.
pub(crate) const RECORD_BYTES: usize = 725;
/// Above the default, whose last places a destination does not fill: it stops before.
const PARKED_MAX: usize = 200_000;
/// Records that are produced one after the other.
const PRODUCES: usize = 500;
/// Partitions of the events topic: what chaski has if nobody says otherwise.
pub(crate) const PARTITIONS: i32 = 12;

impl Servers {
    pub(crate) fn start() -> Self {
        Self { brokers: testing::address().to_owned(), redis: testing::RedisServer::start() }
    }

    /// Publishes records of this size as fast as Kafka's own program does, with the same durability; per second.
    pub(crate) fn perf_test(&self, records: usize) -> anyhow::Result<f64> {
        let options = self.options("bench-perf");
        on_a_runtime(async move { Ok(kafka::apply(&options, kafka::plan(&options).await?).await?) })?;
        let output = Command::new("java")
            .args(["-Xmx512m", "-cp", &format!("{}/*", testing::libraries().display())])
            .args(["org.apache.kafka.tools.ProducerPerformance", "--topic", "bench-perf.events"])
            .args(["--num-records", &records.to_string(), "--record-size", &RECORD_BYTES.to_string()])
            .args(["--throughput", "-1", "--producer-props", "acks=all", "linger.ms=1"])
            .arg(format!("bootstrap.servers={}", self.brokers))
            .stdin(Stdio::null())
            .output()
            .context("java is missing: apt-get install openjdk-17-jre-headless")?;
        let told = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "the perf test failed: {}", String::from_utf8_lossy(&output.stderr));
        let last = told.lines().last().unwrap_or_default();
        let rate = last.split(", ").find_map(|part| part.split(" records/sec").next()?.parse().ok());
        rate.with_context(|| format!("the perf test said: {last}"))
    }

    /// What one record after the other takes until it is acknowledged as chaski's are, with nothing else under way.
    pub(crate) fn produce_times(&self) -> anyhow::Result<Seen> {
        let options = self.options("bench-produce");
        on_a_runtime(async move { Ok(kafka::apply(&options, kafka::plan(&options).await?).await?) })?;
        topic::produce(std::slice::from_ref(&self.brokers), "bench-produce.events", PRODUCES, RECORD_BYTES)
    }

    fn options(&self, prefix: &str) -> kafka::Options {
        let mut options = kafka::Options::new(vec![self.brokers.clone()]);
        prefix.clone_into(&mut options.topic_prefix);
        options.partitions = PARTITIONS;
        options.replication = 1;
        options
    }
}

/// Where one run keeps its events.
#[derive(Clone)]
pub(crate) struct Store {
    folder: PathBuf,
    servers: Option<Arc<Servers>>,
}

impl Store {
    /// In a folder, or in topics that are named after it.
    pub(crate) fn new(folder: &Path, servers: Option<Arc<Servers>>) -> Self {
        Self { folder: folder.to_owned(), servers }
    }

    fn prefix(&self) -> String {
        let name = self.folder.file_name().unwrap_or_default().to_string_lossy();
        format!("bench-{}", name.trim_start_matches('.'))
    }

    fn options(&self) -> Option<kafka::Options> {
        self.servers.as_ref().map(|servers| servers.options(&self.prefix()))
    }

    /// What stands in `[storage]`.
    pub(crate) fn section(&self) -> anyhow::Result<String> {
        let Some(servers) = &self.servers else {
            return Ok(format!("kind = \"embedded\"\npath = \"store\"\nparked_max = {PARKED_MAX}\n"));
        };
        let redis = servers.redis.options();
        Ok(format!(
            "kind = \"kafka\"\nbrokers = [{:?}]\ntopic_prefix = {:?}\npartitions = {PARTITIONS}\nreplication = 1\n\
             path = \"spool\"\n[storage.dedup]\nredis = {:?}\n",
            servers.brokers,
            self.prefix(),
            std::str::from_utf8(redis.url.expose())?
        ))
    }

    /// Makes the topics, if there are to be any.
    pub(crate) fn prepare(&self) -> anyhow::Result<()> {
        let Some(options) = self.options() else { return Ok(()) };
        let left =
            on_a_runtime(async move { Ok(kafka::apply(&options, kafka::plan(&options).await?).await?) })?;
        ensure!(left.is_empty(), "the topics could not be made: {left:?}");
        Ok(())
    }

    /// How many events it holds, when nobody has it open any more.
    pub(crate) fn events(&self) -> anyhow::Result<u64> {
        let path = self.folder.join("store");
        ensure!(self.servers.is_none(), "only the embedded store is counted");
        on_a_runtime(async move {
            let storage = embedded::open(&embedded::Options { path }, &Registry::new())?;
            let census = storage.events.census().await?;
            storage.events.close().await;
            Ok(census.events)
        })
    }

    /// Bytes of its files; nobody has it open.
    pub(crate) fn bytes(&self) -> anyhow::Result<u64> {
        let mut bytes = 0;
        for file in std::fs::read_dir(self.folder.join("store"))? {
            bytes += file?.metadata()?.len();
        }
        Ok(bytes)
    }

    /// Reads it, when nobody has it open any more.
    pub(crate) fn books(&self) -> anyhow::Result<Books> {
        let (options, path) = (self.options(), self.folder.join("store"));
        on_a_runtime(async move {
            let registry = Registry::new();
            let (storage, stored) = match options {
                None => {
                    let storage = embedded::open(&embedded::Options { path }, &registry)?;
                    let stored = all_pages(&storage).await?;
                    (storage, stored)
                }
                Some(options) => {
                    let topic = format!("{}.events", options.topic_prefix);
                    let stored = topic::read(&options.brokers, &topic)?;
                    (kafka::open(&options, &registry).await?, stored)
                }
            };
            let progress = storage.events.progress().await?;
            let quarantined: u64 = storage.deliveries.quarantined().await?.iter().map(|of| of.events).sum();
            let books = Books {
                stored,
                unsettled: progress.iter().map(|progress| progress.lag).sum(),
                failed: quarantined
                    + progress.iter().map(|progress| progress.parked + progress.dead).sum::<u64>(),
            };
            storage.events.close().await;
            Ok(books)
        })
    }
}

async fn all_pages(storage: &Storage) -> anyhow::Result<Tally> {
    let (mut stored, mut before) = (Tally::default(), None);
    loop {
        let filter = EventFilter { before, limit: PAGE_MAX, ..EventFilter::default() };
        let page = storage.events.find(filter).await?;
        let Some(last) = page.last() else { return Ok(stored) };
        before = Some(last.position);
        page.iter().for_each(|record| stored.add(&record.event.body));
    }
}

/// What a store holds.
#[derive(Debug)]
pub(crate) struct Books {
    pub(crate) stored: Tally,
    /// Events the destinations have not settled, and those that ended dead or wait there.
    pub(crate) unsettled: u64,
    pub(crate) failed: u64,
}

impl Books {
    /// Everything was stored, each once, and nothing went wrong on its way.
    pub(crate) fn must_be(&self, stored: Tally) -> anyhow::Result<()> {
        ensure!(self.stored == stored, "the store holds {:?} instead of {stored:?}", self.stored);
        ensure!(self.unsettled == 0 && self.failed == 0, "not everything was delivered: {self:?}");
        Ok(())
    }
}

/// The storage wants a runtime with several threads; the load has one with a single thread.
fn on_a_runtime<T: Send>(work: impl Future<Output = anyhow::Result<T>> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let worked = scope.spawn(|| {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(work)
        });
        worked.join().map_err(|_| anyhow!("a look at the storage panicked"))?
    })
}
