//! The edge: callbacks posted as fast as answers come, in turns with a bare server.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;

use super::turns::by_turns;
use super::{Bench, Counts, Loads, Scenario};
use crate::callback::{Callbacks, Signature};
use crate::gateway::{Extra, Gateway, slow_sync};
use crate::load::{Expected, Seen, Senders};
use crate::null::Manner;
use crate::process::{LOOK, Null, Process};
use crate::report::{CPU, Figure, Goal, RATE, RESIDENT, Report, Sample, Unit};
use crate::store::On;
use crate::tally::Tally;

/// What a sync takes more on a slow disk.
const SLOWER: Duration = Duration::from_millis(1);
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

/// A warm server that takes turns with others.
pub(super) struct Side<'s> {
    server: &'s Process,
    senders: Senders,
    expected: Expected,
    seen: Seen,
    /// What it had used before its first turn.
    cpu: Duration,
}

impl<'s> Side<'s> {
    pub(super) fn new(server: &'s Process, senders: Senders, expected: Expected) -> Self {
        Self { server, senders, expected, seen: Seen::default(), cpu: Duration::ZERO }
    }

    async fn turn(&mut self, callbacks: &Arc<Callbacks>, numbers: Range<usize>) -> anyhow::Result<()> {
        let seen = self.senders.post_these(callbacks, numbers, self.expected).await?;
        self.seen = std::mem::take(&mut self.seen).and(seen);
        Ok(())
    }

    /// What it did in its turns. What a server does in those of others is counted, too: what is left to be done when all
    /// has been answered.
    pub(super) fn sample(&self) -> anyhow::Result<Sample> {
        Ok(Sample::new(self.seen.count(), self.seen.elapsed, self.server.cpu()? - self.cpu))
    }

    fn run(&self) -> anyhow::Result<Run> {
        let [p50_ms, p99_ms] = [0.5, 0.99].map(|share| self.seen.quantile_ms(share));
        Ok(Run { sample: self.sample()?, p50_ms, p99_ms, resident_mib: self.server.memory()?.now_mib })
    }
}

/// Posts so many of these to each side, by turns.
pub(super) async fn post_by_turns(
    sides: &mut [Side<'_>],
    callbacks: &Arc<Callbacks>,
    count: usize,
) -> anyhow::Result<()> {
    // What the warm-up left behind (a commit, a checkpoint) ends first.
    tokio::time::sleep(LOOK).await;
    for side in &mut *sides {
        (side.seen, side.cpu) = (Seen::default(), side.server.cpu()?);
    }
    by_turns(sides, count, async |side, numbers| side.turn(callbacks, numbers).await).await?;
    for side in sides {
        let answered = side.seen.count();
        ensure!(answered == count, "{answered} of {count} requests were answered");
    }
    Ok(())
}

impl Bench {
    pub(super) async fn edges(
        &self,
        edges: &[Edge],
        load: &Loads,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        for edge in edges {
            let [baseline, measured] = self.edge(*edge, load).await?;
            if matches!(edge.scenario, Scenario::Accept) && edge.connections == 64 {
                self.sync(edge.scenario, edge.on, report).await?;
            }
            edge.report(measured, baseline, report);
        }
        Ok(())
    }

    /// The rate of new callbacks at this many connections.
    pub(super) async fn edge_rate(&self, on: On, connections: usize, load: &Loads) -> anyhow::Result<f64> {
        let edge = Edge { scenario: Scenario::Accept, on, connections };
        let [_, measured] = self.edge(edge, load).await?;
        Ok(measured.sample.per_second)
    }

    /// The bare server and the gateway.
    async fn edge(&self, edge: Edge, load: &Loads) -> anyhow::Result<[Run; 2]> {
        let count = edge.count(load.callbacks.count());
        let null = Null::start(edge.manner())?;
        let to_null = if edge.manner() == Manner::Refuse { Expected::Refused } else { Expected::Ok };
        let mut null_senders = Senders::connect(null.address, edge.connections).await?;
        null_senders.post(&load.warm_up, Counts::warm_up(count), to_null).await?;
        let site = self.site()?;
        let store = self.store(&site, edge.on);
        let slow = matches!(edge.scenario, Scenario::SlowSync);
        let shim = if slow { Some(slow_sync(site.path(), SLOWER)?) } else { None };
        let extra = Extra { preload: shim.as_deref(), ..Extra::default() };
        let gateway = Gateway::start_with(site.path(), &store, &[], extra).await?;
        let mut senders = Senders::connect(gateway.edge, edge.connections).await?;
        senders.post(&load.warm_up, load.warm_up.count(), Expected::Accepted).await?;
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
        let baseline = Side::new(&null.process, null_senders, to_null);
        let mut sides = [baseline, Side::new(&gateway.process, senders, expected)];
        post_by_turns(&mut sides, &callbacks, count).await?;
        let [baseline, measured] = &sides;
        let runs = [baseline.run()?, measured.run()?];
        drop(sides);
        gateway.stop().await?.must_be(load.warm_up.tally().and(stored))?;
        Ok(runs)
    }
}

impl Edge {
    fn report(self, measured: Run, baseline: Run, report: &mut Report) {
        let case = format!("{} connections", self.connections);
        let figure =
            |what, unit| Figure::of(self.scenario, self.on, &case, what, unit).beside(self.baseline());
        let mut add = |figure, of: fn(&Run) -> f64| report.add(figure, of(&measured), Some(of(&baseline)));
        add(figure(CPU, Unit::Microseconds).wants(self.goal()), |run| run.sample.cpu_us);
        add(figure(RATE, Unit::PerSecond), |run| run.sample.per_second);
        add(figure("answered, p50", Unit::Milliseconds), |run| run.p50_ms);
        add(figure("answered, p99", Unit::Milliseconds), |run| run.p99_ms);
        add(figure(RESIDENT, Unit::Mebibytes), |run| run.resident_mib);
    }
}
