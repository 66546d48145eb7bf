//! The edge: callbacks posted as fast as answers come, each case between two runs of a bare server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, ensure};

use super::{Bench, Counts, Loads, Scenario};
use crate::callback::{Callbacks, Signature};
use crate::gateway::{Extra, Gateway};
use crate::load::{Expected, Seen, Senders};
use crate::null::Manner;
use crate::process::{LOOK, Null, Process};
use crate::report::{CPU, Figure, Goal, RATE, RESIDENT, Report, Sample, Unit};
use crate::store::On;
use crate::tally::Tally;

/// Makes each sync take a millisecond more; see there.
const SLOW_SYNC: &str = include_str!("../slowsync.c");
/// Callbacks that are repeated in the scenario of duplicates.
const REPEATED: usize = 5_000;

/// One kind of request at the edge.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) scenario: Scenario,
    pub(super) on: On,
    pub(super) connections: usize,
}

pub(super) const EDGES: [Edge; 8] = [
    Edge { scenario: Scenario::Accept, on: On::Embedded, connections: 64 },
    Edge { scenario: Scenario::Accept, on: On::Kafka, connections: 64 },
    Edge { scenario: Scenario::Accept, on: On::Embedded, connections: 256 },
    Edge { scenario: Scenario::Accept, on: On::Kafka, connections: 256 },
    Edge { scenario: Scenario::SlowSync, on: On::Embedded, connections: 64 },
    Edge { scenario: Scenario::SlowSync, on: On::Embedded, connections: 256 },
    Edge { scenario: Scenario::Duplicate, on: On::Embedded, connections: 256 },
    Edge { scenario: Scenario::Forge, on: On::Embedded, connections: 64 },
];

impl Edge {
    /// A forgery costs its sender the connection; a bare server that closes is measured beside it.
    const fn manner(self) -> Manner {
        if matches!(self.scenario, Scenario::Forge) { Manner::Refuse } else { Manner::Take }
    }

    /// What it wants to cost the server at most, as many times the CPU of its baseline.
    const fn goal(self) -> Option<Goal> {
        match self.scenario {
            Scenario::Accept if matches!(self.on, On::Embedded) => Some(Goal::TimesAtMost(1.6)),
            Scenario::Accept if self.connections == 256 => Some(Goal::TimesAtMost(2.0)),
            Scenario::Duplicate => Some(Goal::TimesAtMost(1.5)),
            Scenario::Forge => Some(Goal::TimesAtMost(1.2)),
            _ => None,
        }
    }

    const fn baseline(self) -> &'static str {
        if matches!(self.manner(), Manner::Refuse) {
            "an empty hyper server that answers 401 and closes"
        } else {
            "an empty hyper server: reads, answers 200"
        }
    }

    /// Connections take longer than requests.
    const fn count(self, requests: usize) -> usize {
        if matches!(self.scenario, Scenario::Forge) { requests / 8 } else { requests }
    }
}

/// What one side of a case did.
#[derive(Clone, Copy)]
struct Run {
    sample: Sample,
    p50_ms: f64,
    p99_ms: f64,
    resident_mib: f64,
}

impl Run {
    fn new(count: usize, seen: &Seen, sample: Sample, server: &Process) -> anyhow::Result<Self> {
        ensure!(seen.count() == count, "{} of {count} requests were answered", seen.count());
        let [p50_ms, p99_ms] = [0.5, 0.99].map(|share| seen.quantile_ms(share));
        Ok(Self { sample, p50_ms, p99_ms, resident_mib: server.memory()?.now_mib })
    }
}

impl Bench {
    pub(super) async fn edges(
        &self,
        edges: &[Edge],
        load: &Loads,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let mut last: Option<(Edge, Run)> = None;
        for edge in edges {
            // The baseline behind one case is the one before the next, if that has the same.
            let before = match last {
                Some((other, run))
                    if (other.connections, other.manner()) == (edge.connections, edge.manner()) =>
                {
                    run
                }
                _ => null(*edge, load).await?,
            };
            let measured = self.edge(*edge, load).await?;
            let after = null(*edge, load).await?;
            last = Some((*edge, after));
            if matches!(edge.scenario, Scenario::Accept) && edge.connections == 64 {
                self.sync(edge.scenario, edge.on, report).await?;
            }
            edge.report(measured, before, after, report);
        }
        Ok(())
    }

    /// The rate of new callbacks at this many connections.
    pub(super) async fn edge_rate(&self, on: On, connections: usize, load: &Loads) -> anyhow::Result<f64> {
        let edge = Edge { scenario: Scenario::Accept, on, connections };
        Ok(self.edge(edge, load).await?.sample.per_second)
    }

    async fn edge(&self, edge: Edge, load: &Loads) -> anyhow::Result<Run> {
        let site = self.site()?;
        let store = self.store(&site, edge.on);
        let slow = matches!(edge.scenario, Scenario::SlowSync);
        let shim = if slow { Some(slow_sync(site.path())?) } else { None };
        let extra = Extra { preload: shim.as_deref(), ..Extra::default() };
        let gateway = Gateway::start_with(site.path(), &store, &[], extra).await?;
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
        let run = measure(&gateway.process, &mut senders, &callbacks, count, expected).await?;
        drop(senders);
        gateway.stop().await?.must_be(load.warm_up.tally().and(stored))?;
        Ok(run)
    }
}

impl Edge {
    fn report(self, measured: Run, before: Run, after: Run, report: &mut Report) {
        let case = format!("{} connections", self.connections);
        let baseline = Sample::mean(before.sample, after.sample);
        let figure =
            |what, unit| Figure::of(self.scenario, self.on, &case, what, unit).beside(self.baseline());
        let cpu = figure(CPU, Unit::Microseconds).wants(self.goal());
        report.add(cpu, measured.sample.cpu_us, Some(baseline.cpu_us));
        let rate = figure(RATE, Unit::PerSecond);
        report.add(rate, measured.sample.per_second, Some(baseline.per_second));
        for (what, of) in
            [("answered, p50", (|run| run.p50_ms) as fn(&Run) -> f64), ("answered, p99", |run| run.p99_ms)]
        {
            let baseline = f64::midpoint(of(&before), of(&after));
            report.add(figure(what, Unit::Milliseconds), of(&measured), Some(baseline));
        }
        report.add(figure(RESIDENT, Unit::Mebibytes), measured.resident_mib, Some(after.resident_mib));
    }
}

/// Builds the library that makes syncs slow.
fn slow_sync(site: &Path) -> anyhow::Result<PathBuf> {
    let (source, library) = (site.join("slowsync.c"), site.join("slowsync.so"));
    std::fs::write(&source, SLOW_SYNC)?;
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).arg("-ldl");
    let built =
        command.stdin(Stdio::null()).status().context("a C compiler is missing: apt-get install gcc")?;
    ensure!(built.success(), "slowsync.c does not compile");
    Ok(library)
}

/// The baseline of a case at the edge.
async fn null(edge: Edge, load: &Loads) -> anyhow::Result<Run> {
    let null = Null::start(edge.manner())?;
    let expected = if edge.manner() == Manner::Refuse { Expected::Refused } else { Expected::Ok };
    let mut senders = Senders::connect(null.address, edge.connections).await?;
    let count = edge.count(load.callbacks.count());
    senders.post(&load.warm_up, Counts::warm_up(count), expected).await?;
    measure(&null.process, &mut senders, &load.callbacks, count, expected).await
}

/// Load on a server that is warm.
pub(super) async fn measured(
    server: &Process,
    senders: &mut Senders,
    callbacks: &Arc<Callbacks>,
    count: usize,
    expected: Expected,
) -> anyhow::Result<(Seen, Sample)> {
    // What the warm-up left behind (a commit, a checkpoint) ends first.
    tokio::time::sleep(LOOK).await;
    let cpu = server.cpu()?;
    let seen = senders.post(callbacks, count, expected).await?;
    let sample = Sample::new(count, seen.elapsed, server.cpu()? - cpu);
    Ok((seen, sample))
}

async fn measure(
    server: &Process,
    senders: &mut Senders,
    callbacks: &Arc<Callbacks>,
    count: usize,
    expected: Expected,
) -> anyhow::Result<Run> {
    let (seen, sample) = measured(server, senders, callbacks, count, expected).await?;
    Run::new(count, &seen, sample, server)
}
