//! What is measured, how much of it, and in which order.
//!
//! Every case of a round stands between two runs of its baseline. Each run has processes and a store of its
//! own, and a warm-up that is not counted.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::ValueEnum;
use serde::Serialize;
use tempfile::TempDir;

use crate::callback::{Callbacks, Signature};
use crate::gateway::Gateway;
use crate::load::{Expected, Senders};
use crate::machine;
use crate::null::Manner;
use crate::process::{self, LOOK, Null, Process};
use crate::report::{Latency, Memory, Published, Report, Round, Sample, Seat};
use crate::say;
use crate::store::{On, Servers, Store};
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
/// Connections of the load that keeps to a schedule, and the time it gets to make ready.
const STEADY_CONNECTIONS: usize = 64;
const STEADY_LEAD: Duration = Duration::from_secs(2);
/// Destinations of a process on Kafka whose memory is watched.
const FANS: [usize; 2] = [5, 50];
/// Bytes of a record as chaski publishes it: the body, and its headers.
const RECORD_BYTES: usize = 760;

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

/// One kind of request at the edge.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Edge {
    scenario: Scenario,
    on: On,
    connections: usize,
}

const EDGES: [Edge; 6] = [
    Edge { scenario: Scenario::Accept, on: On::Embedded, connections: 64 },
    Edge { scenario: Scenario::Accept, on: On::Kafka, connections: 64 },
    Edge { scenario: Scenario::Accept, on: On::Embedded, connections: 256 },
    Edge { scenario: Scenario::Accept, on: On::Kafka, connections: 256 },
    Edge { scenario: Scenario::Duplicate, on: On::Embedded, connections: 256 },
    Edge { scenario: Scenario::Forge, on: On::Embedded, connections: 64 },
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
            say(format_args!(
                "{:?} on {:?} at {} connections: {round}",
                edge.scenario, edge.on, edge.connections
            ));
            report.add(edge.scenario, edge.on, edge.connections, edge.count(load.callbacks.count()), round);
        }
        Ok(())
    }

    async fn edge(&self, edge: Edge, load: &Loads) -> anyhow::Result<Sample> {
        let site = self.site()?;
        let store = self.store(&site, edge.on);
        let gateway = Gateway::start(site.path(), &store, &[], CONCURRENCY).await?;
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

    async fn deliver(&self, on: On, report: &mut Report) -> anyhow::Result<()> {
        let count = self.counts.deliveries;
        let before = self.bare(count).await?;
        let measured = self.dispatch(on, count).await?;
        let after = self.bare(count).await?;
        let round = Round { measured, baseline: Sample::mean(before, after) };
        say(format_args!("Deliver on {on:?}, {CONCURRENCY} at once: {round}"));
        report.add(Scenario::Deliver, on, CONCURRENCY, count, round);
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
    async fn dispatch(&self, on: On, count: usize) -> anyhow::Result<Sample> {
        let warm_up = Counts::warm_up(count);
        let callbacks = Arc::new(Callbacks::render(0, warm_up + count, Signature::Right)?);
        let site = self.site()?;
        let store = self.store(&site, on);
        let gateway = Gateway::start(site.path(), &store, &[], CONCURRENCY).await?;
        let mut senders = Senders::connect(gateway.edge, MEMORY_CONNECTIONS).await?;
        senders.post(&callbacks, callbacks.count(), Expected::Accepted).await?;
        drop(senders);
        gateway.stop().await?;

        let receiver = Null::start(Manner::Tally)?;
        let gateway = Gateway::start(site.path(), &store, &[receiver.address], CONCURRENCY).await?;
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
        let store = self.store(&site, On::Embedded);
        let receiver = Null::start(Manner::Tally)?;
        let gateway = Gateway::start(site.path(), &store, &[receiver.address], CONCURRENCY).await?;
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

    /// The rate at which callbacks become records, and at which Kafka's own program makes records of that size.
    async fn publish(&self, load: &Loads, report: &mut Report) -> anyhow::Result<()> {
        let records = self.counts.requests;
        let perf = self.servers().perf_test(records, RECORD_BYTES)?;
        let edge = Edge { scenario: Scenario::Publish, on: On::Kafka, connections: 256 };
        let edge = self.edge(edge, load).await?.per_second;
        say(format_args!("Publish: {edge:.0}/s through the edge, {perf:.0}/s by kafka-producer-perf-test"));
        report.published.push(Published { edge_per_second: edge, perf_per_second: perf });
        Ok(())
    }

    /// Callbacks by a schedule that does not wait for answers.
    async fn latency(&self, on: On) -> anyhow::Result<Latency> {
        let (per_second, seconds) = self.counts.steady;
        let site = self.site()?;
        let receiver = Null::start(Manner::Tally)?;
        let store = self.store(&site, on);
        let gateway = Gateway::start(site.path(), &store, &[receiver.address], CONCURRENCY).await?;
        let mut senders = Senders::connect(gateway.edge, STEADY_CONNECTIONS).await?;
        let warm_up = Arc::new(Callbacks::render(0, per_second, Signature::Right)?);
        senders.post(&warm_up, warm_up.count(), Expected::Accepted).await?;
        receiver.wait_for(warm_up.count() as u64, PATIENCE).await?;

        let count = per_second * seconds;
        let begin_us = machine::now_us() + u64::try_from(STEADY_LEAD.as_micros())?;
        let due_us = |index: usize| begin_us + (index * 1_000_000 / per_second) as u64;
        let callbacks = Callbacks::timed(per_second, count, Signature::Right, due_us)?;
        let answered = senders.keep_to(&Arc::new(callbacks), due_us, Expected::Accepted).await?;
        receiver.wait_for((warm_up.count() + count) as u64, PATIENCE).await?;
        let delivered = receiver.latencies().await?;
        ensure!(
            delivered.count() == count,
            "{} of {count} deliveries say when they were sent",
            delivered.count()
        );
        drop(senders);
        gateway.stop().await?;
        let [answered, delivered] =
            [answered, delivered].map(|seen| [0.5, 0.99].map(|share| seen.quantile_ms(share)));
        say(format_args!(
            "Latency on {on:?} at {per_second}/s: answered {answered:?}, delivered {delivered:?} ms"
        ));
        Ok(Latency { on, per_second, events: count, answered_ms: answered, delivered_ms: delivered })
    }

    /// A process on Kafka with many destinations.
    async fn seat(&self, destinations: usize) -> anyhow::Result<Seat> {
        let site = self.site()?;
        let receiver = Null::start(Manner::Tally)?;
        let store = self.store(&site, On::Kafka);
        let addresses = vec![receiver.address; destinations];
        let gateway = Gateway::start(site.path(), &store, &addresses, CONCURRENCY).await?;
        // The work is the same whatever their number.
        let events = self.counts.deliveries / destinations;
        let callbacks = Arc::new(Callbacks::render(0, events, Signature::Right)?);
        let mut senders = Senders::connect(gateway.edge, MEMORY_CONNECTIONS).await?;
        senders.post(&callbacks, events, Expected::Accepted).await?;
        receiver.wait_for((events * destinations) as u64, PATIENCE).await?;
        let (resident, threads) = (gateway.process.memory()?, gateway.process.threads()?);
        drop(senders);
        gateway.stop().await?.must_be(callbacks.tally())?;
        say(format_args!(
            "Memory on Kafka, {destinations} destinations: {:.0} MiB, {threads} threads",
            resident.now_mib
        ));
        Ok(Seat { destinations, events, after_mib: resident.now_mib, peak_mib: resident.peak_mib, threads })
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
