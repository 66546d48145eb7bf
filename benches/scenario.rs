//! What is measured, how much of it, and in which order.
//!
//! Every case of a round stands between two runs of its baseline. Each run has processes and a store of its
//! own, and a warm-up that is not counted.

mod edge;
mod deliver;
mod publish;
mod latency;
mod memory;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;
use tempfile::TempDir;

use self::edge::{EDGES, Edge};
use crate::callback::{Callbacks, Signature};
use crate::report::Report;
use crate::say;
use crate::store::{On, Servers, Store};

/// Deliveries under way at once, here and in the bare client; chaski's default.
const CONCURRENCY: usize = 32;
/// How long deliveries may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Connections of the load where only what becomes of it matters.
const MEMORY_CONNECTIONS: usize = 64;
/// Destinations of a process on Kafka whose memory is watched.
const FANS: [usize; 2] = [5, 50];

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scenario {
    /// New callbacks: signature, dedup, synced commit, 200.
    Accept,
    /// Callbacks that were stored before.
    Duplicate,
    /// Callbacks whose signature is wrong.
    Forge,
    /// From the store to a receiver.
    Deliver,
    /// Callbacks through the edge onto Kafka, beside Kafka's own load generator.
    Publish,
    /// From the time a callback was to be sent to its answer, and to its delivery, at a fixed rate.
    Latency,
    /// Resident memory, idle and after many events.
    Memory,
}

/// How much of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Size {
    Full,
    Quick,
    Tiny,
}

/// Counts of one size.
struct Counts {
    rounds: u32,
    requests: usize,
    deliveries: usize,
    through_memory: usize,
    /// Per second, and for how long.
    steady: (usize, usize),
}

impl Size {
    const fn counts(self) -> Counts {
        match self {
            Self::Full => Counts {
                rounds: 5,
                requests: 150_000,
                deliveries: 60_000,
                through_memory: 1_000_000,
                steady: (2_000, 20),
            },
            Self::Quick => Counts {
                rounds: 2,
                requests: 40_000,
                deliveries: 20_000,
                through_memory: 100_000,
                steady: (1_000, 5),
            },
            Self::Tiny => {
                Counts { rounds: 1, requests: 400, deliveries: 400, through_memory: 500, steady: (100, 2) }
            }
        }
    }
}

impl Counts {
    const fn warm_up(count: usize) -> usize {
        count / 10
    }
}

/// A run of `chaski-bench`.
pub(crate) struct Bench {
    counts: Counts,
    scratch: TempDir,
    /// Started when something is to be measured on them.
    servers: OnceLock<Arc<Servers>>,
}

impl Bench {
    pub(crate) fn new(size: Size, rounds: Option<u32>, folder: Option<PathBuf>) -> anyhow::Result<Self> {
        let beside = || std::env::current_exe().map(|program| program.with_file_name(""));
        let folder = folder.map_or_else(beside, Ok)?;
        let scratch = tempfile::Builder::new().prefix("chaski-bench-").tempdir_in(folder)?;
        let counts = size.counts();
        let counts = Counts { rounds: rounds.unwrap_or(counts.rounds), ..counts };
        Ok(Self { counts, scratch, servers: OnceLock::new() })
    }

    /// Where the stores are.
    pub(crate) fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Measures these scenarios, or all, on this storage, or on both.
    pub(crate) async fn run(
        &self,
        only: &[Scenario],
        on: Option<On>,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let wanted = |scenario| only.is_empty() || only.contains(&scenario);
        let stores =
            || [On::Embedded, On::Kafka].into_iter().filter(move |store| on.is_none_or(|on| on == *store));
        let is_there = |edge: &Edge| wanted(edge.scenario) && on.is_none_or(|on| on == edge.on);
        let edges: Vec<Edge> = EDGES.into_iter().filter(is_there).collect();
        let callbacks = Callbacks::render(0, self.counts.requests, Signature::Right)?;
        let before = self.counts.requests;
        let warm_up = Callbacks::render(before, Counts::warm_up(before), Signature::Right)?;
        let load = Loads { callbacks: Arc::new(callbacks), warm_up: Arc::new(warm_up) };
        for round in 1..=self.counts.rounds {
            say(format_args!("round {round} of {}", self.counts.rounds));
            self.edges(&edges, &load, report).await?;
            if wanted(Scenario::Deliver) {
                for on in stores() {
                    self.deliver(on, report).await?;
                }
            }
            if wanted(Scenario::Publish) && on != Some(On::Embedded) {
                self.publish(&load, report).await?;
            }
        }
        for on in stores() {
            if wanted(Scenario::Latency) {
                report.latencies.push(self.latency(on).await?);
            }
            if wanted(Scenario::Memory) && on == On::Embedded {
                report.memory = Some(self.memory().await?);
            }
            if wanted(Scenario::Memory) && on == On::Kafka {
                for destinations in FANS {
                    report.seats.push(self.seat(destinations).await?);
                }
            }
        }
        Ok(())
    }

    fn servers(&self) -> &Arc<Servers> {
        self.servers.get_or_init(|| {
            say("starting Kafka and Redis");
            Arc::new(Servers::start())
        })
    }

    fn store(&self, site: &TempDir, on: On) -> Store {
        let servers = (on == On::Kafka).then(|| Arc::clone(self.servers()));
        Store::new(site.path(), servers)
    }

    fn site(&self) -> anyhow::Result<TempDir> {
        Ok(tempfile::tempdir_in(self.folder())?)
    }
}

/// Callbacks that every edge and its baseline are sent.
struct Loads {
    callbacks: Arc<Callbacks>,
    warm_up: Arc<Callbacks>,
}
