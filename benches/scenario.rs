//! What is measured, how much of it, and in which order.
//!
//! Every case of a round stands between two runs of its baseline. Each run has processes and a store of its
//! own, and a warm-up that is not counted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::ValueEnum;
use serde::Serialize;
use tempfile::TempDir;

use crate::callback::{Callbacks, Signature};
use crate::gateway::Gateway;
use crate::load::{Expected, Senders};
use crate::null::Manner;
use crate::process::{self, LOOK, Null, Process};
use crate::report::{Memory, Report, Round, Sample};
use crate::say;
use crate::tally::Tally;

/// Deliveries under way at once, here and in the bare client; chaski's default.
const CONCURRENCY: usize = 32;
/// How long deliveries may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// A lane settles every 200 ms; that belongs to the cost of delivering.
const SETTLED: Duration = Duration::from_millis(250);
/// Before memory is called idle.
const IDLE: Duration = Duration::from_secs(1);
/// Connections while memory is watched, and callbacks rendered at once for it.
const MEMORY_CONNECTIONS: usize = 64;
const MEMORY_BATCH: usize = 50_000;
/// Callbacks that are repeated in the scenario of duplicates.
const REPEATED: usize = 5_000;

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
}

impl Size {
    const fn counts(self) -> Counts {
        match self {
            Self::Full => {
                Counts { rounds: 5, requests: 150_000, deliveries: 60_000, through_memory: 1_000_000 }
            }
            Self::Quick => {
                Counts { rounds: 2, requests: 40_000, deliveries: 20_000, through_memory: 100_000 }
            }
            Self::Tiny => Counts { rounds: 1, requests: 400, deliveries: 400, through_memory: 500 },
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
}

/// One kind of request at the edge.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Edge {
    scenario: Scenario,
    connections: usize,
}

const EDGES: [Edge; 4] = [
    Edge { scenario: Scenario::Accept, connections: 64 },
    Edge { scenario: Scenario::Accept, connections: 256 },
    Edge { scenario: Scenario::Duplicate, connections: 256 },
    Edge { scenario: Scenario::Forge, connections: 64 },
];

impl Edge {
    /// A forgery costs its sender the connection; a bare server that closes is measured beside it.
    const fn manner(self) -> Manner {
        if matches!(self.scenario, Scenario::Forge) { Manner::Refuse } else { Manner::Take }
    }

    /// Connections take longer than requests.
    const fn count(self, requests: usize) -> usize {
        if matches!(self.scenario, Scenario::Forge) { requests / 8 } else { requests }
    }
}

impl Bench {
    pub(crate) fn new(size: Size, rounds: Option<u32>, folder: Option<PathBuf>) -> anyhow::Result<Self> {
        let beside = || std::env::current_exe().map(|program| program.with_file_name(""));
        let folder = folder.map_or_else(beside, Ok)?;
        let scratch = tempfile::Builder::new().prefix("chaski-bench-").tempdir_in(folder)?;
        let counts = size.counts();
        Ok(Self { counts: Counts { rounds: rounds.unwrap_or(counts.rounds), ..counts }, scratch })
    }

    /// Where the stores are.
    pub(crate) fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Measures these scenarios, or all.
    pub(crate) async fn run(&self, only: &[Scenario], report: &mut Report) -> anyhow::Result<()> {
        let wanted = |scenario| only.is_empty() || only.contains(&scenario);
        let edges: Vec<Edge> = EDGES.into_iter().filter(|edge| wanted(edge.scenario)).collect();
        let callbacks = Callbacks::render(0, self.counts.requests, Signature::Right)?;
        let before = self.counts.requests;
        let warm_up = Callbacks::render(before, Counts::warm_up(before), Signature::Right)?;
        let load = Loads { callbacks: Arc::new(callbacks), warm_up: Arc::new(warm_up) };
        for round in 1..=self.counts.rounds {
            say(format_args!("round {round} of {}", self.counts.rounds));
            self.edges(&edges, &load, report).await?;
            if wanted(Scenario::Deliver) {
                self.deliver(report).await?;
            }
        }
        if wanted(Scenario::Memory) {
            report.memory = Some(self.memory().await?);
        }
        Ok(())
    }

    async fn edges(&self, edges: &[Edge], load: &Loads, report: &mut Report) -> anyhow::Result<()> {
        let mut last: Option<(Edge, Sample)> = None;
        for edge in edges {
            // The baseline behind one case is the one before the next, if that has the same.
            let before = match last {
                Some((other, sample))
                    if (other.connections, other.manner()) == (edge.connections, edge.manner()) =>
                {
                    sample
                }
                _ => null(*edge, load).await?,
            };
            let measured = self.edge(*edge, load).await?;
            let after = null(*edge, load).await?;
            last = Some((*edge, after));
            let round = Round { measured, baseline: Sample::mean(before, after) };
            say(format_args!("{:?} at {} connections: {round}", edge.scenario, edge.connections));
            report.add(edge.scenario, edge.connections, edge.count(load.callbacks.count()), round);
        }
        Ok(())
    }

    async fn edge(&self, edge: Edge, load: &Loads) -> anyhow::Result<Sample> {
        let site = self.site()?;
        let gateway = Gateway::start(site.path(), None, CONCURRENCY).await?;
        let mut senders = Senders::connect(gateway.edge, edge.connections).await?;
        senders.post(&load.warm_up, load.warm_up.count(), Expected::Accepted).await?;
        let count = edge.count(load.callbacks.count());
        let (callbacks, expected, stored) = match edge.scenario {
            Scenario::Duplicate => {
                let repeated = REPEATED.min(load.callbacks.count());
                let callbacks = Arc::new(Callbacks::render(0, repeated, Signature::Right)?);
                senders.post(&callbacks, repeated, Expected::Accepted).await?;
                let stored = callbacks.tally();
                (callbacks, Expected::Duplicate, stored)
            }
            Scenario::Forge => {
                let forged = Callbacks::render(0, count, Signature::Forged)?;
                (Arc::new(forged), Expected::Refused, Tally::default())
            }
            _ => (Arc::clone(&load.callbacks), Expected::Accepted, load.callbacks.tally()),
        };
        let sample = measure(&gateway.process, &mut senders, &callbacks, count, expected).await?;
        drop(senders);
        gateway.stop().await?.must_be(load.warm_up.tally().and(stored))?;
        Ok(sample)
    }

    async fn deliver(&self, report: &mut Report) -> anyhow::Result<()> {
        let count = self.counts.deliveries;
        let before = self.bare(count).await?;
        let measured = self.dispatch(count).await?;
        let after = self.bare(count).await?;
        let round = Round { measured, baseline: Sample::mean(before, after) };
        say(format_args!("Deliver, {CONCURRENCY} at once: {round}"));
        report.add(Scenario::Deliver, CONCURRENCY, count, round);
        Ok(())
    }

    async fn bare(&self, count: usize) -> anyhow::Result<Sample> {
        let receiver = Null::start(Manner::Tally)?;
        let warm_up = Counts::warm_up(count);
        let sample = process::bare_client(receiver.address, count, warm_up, CONCURRENCY).await?;
        let expected = Callbacks::render(0, warm_up + count, Signature::Right)?.tally();
        ensure!(receiver.tally().await? == expected, "the bare client did not deliver what it had");
        Ok(sample)
    }

    /// Fills a store with nobody to deliver to, starts again with a receiver, and watches it fill.
    async fn dispatch(&self, count: usize) -> anyhow::Result<Sample> {
        let warm_up = Counts::warm_up(count);
        let callbacks = Arc::new(Callbacks::render(0, warm_up + count, Signature::Right)?);
        let site = self.site()?;
        let gateway = Gateway::start(site.path(), None, CONCURRENCY).await?;
        let mut senders = Senders::connect(gateway.edge, MEMORY_CONNECTIONS).await?;
        senders.post(&callbacks, callbacks.count(), Expected::Accepted).await?;
        drop(senders);
        gateway.stop().await?;

        let receiver = Null::start(Manner::Tally)?;
        let gateway = Gateway::start(site.path(), Some(receiver.address), CONCURRENCY).await?;
        let warm = receiver.wait_for(warm_up as u64, PATIENCE).await?;
        let (begun, cpu) = (Instant::now(), gateway.process.cpu()?);
        receiver.wait_for(callbacks.count() as u64, PATIENCE).await?;
        let elapsed = begun.elapsed();
        tokio::time::sleep(SETTLED).await;
        let cpu = gateway.process.cpu()? - cpu;
        let resident = gateway.process.memory()?;
        gateway.stop().await?.must_be(callbacks.tally())?;
        let received = receiver.tally().await?;
        ensure!(received == callbacks.tally(), "the receiver has {received:?}");
        // What came before the first look is warm-up; in the tiny size that may be all.
        let delivered = callbacks.count() - usize::try_from(warm.count)?;
        Ok(Sample { resident_mib: Some(resident.now_mib), ..Sample::new(delivered, elapsed, cpu) })
    }

    /// One gateway, first at rest, then with everything going through it, edge to receiver.
    async fn memory(&self) -> anyhow::Result<Memory> {
        let site = self.site()?;
        let receiver = Null::start(Manner::Tally)?;
        let gateway = Gateway::start(site.path(), Some(receiver.address), CONCURRENCY).await?;
        tokio::time::sleep(IDLE).await;
        let idle = gateway.process.memory()?;
        let mut senders = Senders::connect(gateway.edge, MEMORY_CONNECTIONS).await?;
        let (mut sent, mut tally) = (0, Tally::default());
        let begun = Instant::now();
        while sent < self.counts.through_memory {
            let batch = MEMORY_BATCH.min(self.counts.through_memory - sent);
            let callbacks = Arc::new(Callbacks::render(sent, batch, Signature::Right)?);
            senders.post(&callbacks, batch, Expected::Accepted).await?;
            (sent, tally) = (sent + batch, tally.and(callbacks.tally()));
        }
        say(format_args!("{sent} events accepted in {:.1} s", begun.elapsed().as_secs_f64()));
        let received = receiver.wait_for(sent as u64, PATIENCE).await?;
        let elapsed = begun.elapsed();
        ensure!(received == tally, "the receiver has {received:?} instead of {tally:?}");
        let after = gateway.process.memory()?;
        drop(senders);
        gateway.stop().await?.must_be(tally)?;
        say(format_args!("and delivered after {:.1} s", elapsed.as_secs_f64()));
        Ok(Memory {
            events: sent,
            idle_mib: idle.now_mib,
            after_mib: after.now_mib,
            peak_mib: after.peak_mib,
            seconds: elapsed.as_secs_f64(),
        })
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

/// The baseline of a case at the edge.
async fn null(edge: Edge, load: &Loads) -> anyhow::Result<Sample> {
    let null = Null::start(edge.manner())?;
    let expected = if edge.manner() == Manner::Refuse { Expected::Refused } else { Expected::Ok };
    let mut senders = Senders::connect(null.address, edge.connections).await?;
    let warm_up = Counts::warm_up(edge.count(load.callbacks.count()));
    senders.post(&load.warm_up, warm_up, expected).await?;
    measure(&null.process, &mut senders, &load.callbacks, edge.count(load.callbacks.count()), expected).await
}

async fn measure(
    server: &Process,
    senders: &mut Senders,
    callbacks: &Arc<Callbacks>,
    count: usize,
    expected: Expected,
) -> anyhow::Result<Sample> {
    // What the warm-up left behind (a commit, a checkpoint) ends first.
    tokio::time::sleep(LOOK).await;
    let cpu = server.cpu()?;
    let seen = senders.post(callbacks, count, expected).await?;
    let cpu = server.cpu()? - cpu;
    ensure!(seen.count() == count, "{} of {count} requests were answered", seen.count());
    Ok(Sample {
        p50_ms: Some(seen.quantile_ms(0.5)),
        p99_ms: Some(seen.quantile_ms(0.99)),
        resident_mib: Some(server.memory()?.now_mib),
        ..Sample::new(count, seen.elapsed, cpu)
    })
}
