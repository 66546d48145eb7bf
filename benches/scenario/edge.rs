//! The edge: callbacks posted as fast as answers come, each case between two runs of a bare server.

use std::sync::Arc;

use anyhow::ensure;

use super::{Bench, CONCURRENCY, Counts, Loads, Scenario};
use crate::callback::{Callbacks, Signature};
use crate::gateway::Gateway;
use crate::load::{Expected, Senders};
use crate::null::Manner;
use crate::process::{LOOK, Null, Process};
use crate::report::{Report, Round, Sample};
use crate::say;
use crate::store::On;
use crate::tally::Tally;

/// Callbacks that are repeated in the scenario of duplicates.
const REPEATED: usize = 5_000;

/// One kind of request at the edge.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) scenario: Scenario,
    pub(super) on: On,
    pub(super) connections: usize,
}

pub(super) const EDGES: [Edge; 6] = [
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
    pub(super) async fn edges(
        &self,
        edges: &[Edge],
        load: &Loads,
        report: &mut Report,
    ) -> anyhow::Result<()> {
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

    pub(super) async fn edge(&self, edge: Edge, load: &Loads) -> anyhow::Result<Sample> {
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
