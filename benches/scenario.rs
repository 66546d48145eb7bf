//! What is measured, how much of it, and in which order.
//!
//! What has a baseline takes turns with it, or stands beside it in the same round. Each run has processes and a
//! store of its own, and a warm-up that is not counted.

mod schedule;
mod turns;
mod edge;
mod deliver;
mod publish;
mod latency;
mod sick;
mod outage;
mod parked;
mod growth;
mod memory;

pub(crate) use self::growth::{NORMALISED, STORED};
pub(crate) use self::latency::{CLOSED_LOOP, QUANTILES, SHARES, case as at_share};

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::ensure;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use self::edge::{EDGES, Edge};
use crate::callback::{Callbacks, Signature};
use crate::machine;
use crate::report::{Figure, Report, SYNC, Unit};
use crate::say;
use crate::store::{On, Servers, Store};

/// How long deliveries may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Connections of a load that keeps to a schedule, or of which only the result matters.
const CONNECTIONS: usize = 256;
/// Callbacks rendered at once where there are very many.
const BATCH: usize = 50_000;

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    /// New callbacks: signature, dedup, synced commit, 200.
    Accept,
    /// The same on a disk whose syncs take a millisecond more.
    SlowSync,
    /// Callbacks that were stored before.
    Duplicate,
    /// Callbacks whose signature is wrong.
    Forge,
    /// From the store to 1, 3 and 8 destinations.
    Deliver,
    /// Callbacks through the edge onto Kafka, beside Kafka's own load generator.
    Publish,
    /// Capacity from edge to receiver; answers and deliveries by a schedule at 20, 50 and 80 % of it.
    Latency,
    /// Seven healthy destinations beside one that never answers.
    Sick,
    /// Receivers go away and come back while callbacks arrive.
    Outage,
    /// Very many parked deliveries.
    Parked,
    /// Stores of growing size, and a start on the largest.
    Growth,
    /// Resident memory, idle, after many events, with many destinations.
    Memory,
}

impl Scenario {
    pub(crate) const ALL: [Self; 12] = [
        Self::Accept,
        Self::SlowSync,
        Self::Duplicate,
        Self::Forge,
        Self::Deliver,
        Self::Publish,
        Self::Latency,
        Self::Sick,
        Self::Outage,
        Self::Parked,
        Self::Growth,
        Self::Memory,
    ];

    /// For people.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Accept => "Callbacks at the edge: verified, deduplicated, made durable, answered",
            Self::SlowSync => "The same on a disk whose syncs take 1 ms more",
            Self::Duplicate => "Duplicates, recognised",
            Self::Forge => "Forged callbacks, refused",
            Self::Deliver => "Deliveries to 1, 3 and 8 destinations",
            Self::Publish => "Onto Kafka",
            Self::Latency => "Latency at 20, 50 and 80 % of capacity",
            Self::Sick => "One of eight destinations never answers",
            Self::Outage => "Receivers are away and come back",
            Self::Parked => "Parked deliveries",
            Self::Growth => "A store that grows",
            Self::Memory => "Memory",
        }
    }

    /// What is done, for the page.
    pub(crate) const fn explained(self) -> &'static str {
        match self {
            Self::Accept => {
                "New callbacks of 350 bytes, PagoEfectivo's scheme, as fast as answers come. The 200 comes after the sync, or after acks=all."
            }
            Self::SlowSync => {
                "A library in front of the system's adds 1 ms to each fdatasync and fsync (`slowsync.c`): about what a disk in a cloud takes."
            }
            Self::Duplicate => {
                "Callbacks that were stored before, again and again: answered 200, stored once."
            }
            Self::Forge => {
                "Signatures that are wrong by one bit. A forgery costs its sender the connection, which is why connections are counted in."
            }
            Self::Deliver => {
                "A store is filled with nobody to deliver to; then chaski starts with its destinations and works it off, in turns with the bare client. As many deliveries in all, whatever their number."
            }
            Self::Publish => {
                "Callbacks through the edge, and Kafka's own load generator into the same broker."
            }
            Self::Latency => {
                "Capacity is found in each round: closed loop, from the edge until the receiver has everything. Then callbacks come by a schedule at a share of it."
            }
            Self::Sick => {
                "Callbacks by a schedule to eight destinations. One takes requests and never answers; its attempts end after a second. The others are measured."
            }
            Self::Outage => {
                "Nobody listens at the receiver's address for a while, and then again. Callbacks arrive by the same schedule before, meanwhile and afterwards."
            }
            Self::Parked => {
                "The receiver answers every delivery with 500 and `Retry-After`, until all are parked. Then it is well again, all are due, and chaski starts anew."
            }
            Self::Growth => {
                "Three stores, each filled further than the one before, and a gateway on each. Callbacks are measured in turns with each other and an empty server; in the end chaski is started on the fullest."
            }
            Self::Memory => {
                "Resident memory of the process: at rest, after many events from edge to receiver, and on Kafka with many destinations."
            }
        }
    }

    /// Whether it is measured on Kafka and Redis, too.
    const fn is_on(self, on: On) -> bool {
        match self {
            Self::Accept | Self::Deliver | Self::Latency | Self::Memory => true,
            Self::Publish => matches!(on, On::Kafka),
            _ => matches!(on, On::Embedded),
        }
    }
}

/// How much of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ValueEnum)]
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
    /// To how many destinations.
    destinations: &'static [usize],
    through_memory: usize,
    /// Seconds at each share of the capacity, and the greatest rate there.
    steady: (usize, usize),
    /// Callbacks per second, and for how many seconds, beside a sick destination.
    sick: (usize, usize),
    /// Callbacks per second, and the seconds before, during and after an outage.
    outage: (usize, [usize; 3]),
    /// Deliveries that are parked, and for how many seconds.
    parked: (usize, u32),
    /// Events a store is filled to.
    fills: [usize; 3],
}

impl Size {
    const fn counts(self) -> Counts {
        match self {
            Self::Full => Counts {
                rounds: 5,
                requests: 100_000,
                deliveries: 60_000,
                destinations: &[1, 3, 8],
                through_memory: 1_000_000,
                steady: (4, 50_000),
                sick: (1_000, 6),
                outage: (4_000, [4, 6, 8]),
                parked: (100_000, 60),
                fills: [100_000, 1_000_000, 10_000_000],
            },
            Self::Quick => Counts {
                rounds: 2,
                requests: 40_000,
                deliveries: 16_000,
                destinations: &[1, 3, 8],
                through_memory: 100_000,
                steady: (2, 50_000),
                sick: (400, 4),
                outage: (1_000, [2, 4, 5]),
                parked: (10_000, 20),
                fills: [10_000, 50_000, 250_000],
            },
            Self::Tiny => Counts {
                rounds: 1,
                requests: 400,
                deliveries: 400,
                destinations: &[1, 8],
                through_memory: 500,
                steady: (1, 100),
                sick: (50, 1),
                outage: (100, [1, 1, 1]),
                // Longer than what an attempt waits for in its lane.
                parked: (100, 11),
                fills: [100, 200, 400],
            },
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
        ensure!(counts.rounds > 0, "--rounds: at least one");
        Ok(Self { counts, scratch, servers: OnceLock::new() })
    }

    /// Where the stores are.
    pub(crate) fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Measures these scenarios, or all, on this storage, or on both. What is measured is saved as it comes: a run
    /// that fails after half an hour has half an hour's figures.
    pub(crate) async fn run(
        &self,
        only: &[Scenario],
        on: Option<On>,
        report: &mut Report,
        save: &dyn Fn(&mut Report) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let is_there = |scenario: Scenario, store| {
            (only.is_empty() || only.contains(&scenario))
                && scenario.is_on(store)
                && on.is_none_or(|on| on == store)
        };
        let edges: Vec<Edge> = EDGES.into_iter().filter(|edge| is_there(edge.scenario, edge.on)).collect();
        let load = Loads::render(self.counts.requests)?;
        for round in 1..=self.counts.rounds {
            say(format_args!("round {round} of {}", self.counts.rounds));
            self.edges(&edges, &load, report).await?;
            for on in On::BOTH {
                if is_there(Scenario::Deliver, on) {
                    self.deliver(on, report).await?;
                }
                if is_there(Scenario::Publish, on) {
                    self.publish(&load, report).await?;
                }
                if is_there(Scenario::Latency, on) {
                    self.latency(on, report).await?;
                }
                if is_there(Scenario::Sick, on) {
                    self.sick(report).await?;
                }
                if is_there(Scenario::Outage, on) {
                    self.outage(report).await?;
                }
            }
            save(report)?;
        }
        // What takes minutes or does not vary is done once.
        for on in On::BOTH {
            if is_there(Scenario::Parked, on) {
                self.parked(report).await?;
            }
            if is_there(Scenario::Growth, on) {
                self.growth(report).await?;
            }
            if is_there(Scenario::Memory, on) {
                self.memory(on, report).await?;
            }
            save(report)?;
        }
        Ok(())
    }

    /// One sync of this disk, beside figures that rest on it; the p99 in milliseconds.
    async fn sync(&self, scenario: Scenario, on: On, report: &mut Report) -> anyhow::Result<f64> {
        let p99_ms = machine::sync_times(self.folder()).await?.quantile_ms(0.99);
        report.add(Figure::of(scenario, on, "this disk", SYNC, Unit::Milliseconds), p99_ms, None);
        Ok(p99_ms)
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

impl Loads {
    fn render(count: usize) -> anyhow::Result<Self> {
        let callbacks = Callbacks::render(0, count, Signature::Right)?;
        let warm_up = Callbacks::render(count, Counts::warm_up(count), Signature::Right)?;
        Ok(Self { callbacks: Arc::new(callbacks), warm_up: Arc::new(warm_up) })
    }
}
