//! One store that is filled further and further: what a callback costs at each fill, what an event takes on disk, and
//! how long a start takes in the end.

use std::sync::Arc;

use anyhow::ensure;
use tempfile::TempDir;

use super::edge::measured;
use super::{BATCH, Bench, CONNECTIONS, Counts, Scenario};
use crate::callback::{Callbacks, Signature};
use crate::gateway::Gateway;
use crate::load::{Expected, Senders};
use crate::null::Manner;
use crate::process::Null;
use crate::report::{CPU, Figure, Goal, Report, Unit};
use crate::store::{On, Store};

/// How much more an event may cost at the last fill than at the first.
const FLAT: f64 = 1.2;
pub(crate) const STORED: &str = "bytes on disk per event";
pub(crate) const NORMALISED: &str = "server CPU each, as many times an empty server's";
const START: &str = "from start to \"chaski is running\", files in the page cache";
const EMPTY: &str = "an empty hyper server in the same minute";
/// The part of the requests of a round that is sent at once: the store is not to grow much while it is measured.
const SLICES: usize = 4;

/// Under which circumstances a figure stands.
fn case(fill: usize) -> String {
    format!("{fill} events stored")
}

/// What one callback costs at a store, and an empty server beside it.
struct Costs {
    chaski_us: f64,
    empty_us: f64,
}

impl Bench {
    pub(super) async fn growth(&self, report: &mut Report) -> anyhow::Result<()> {
        let site = self.site()?;
        let store = self.store(&site, On::Embedded);
        let mut numbers = 0;
        let mut first: Option<Vec<Costs>> = None;
        for fill in self.counts.fills {
            let costs = self.at_fill(fill, &site, &store, &mut numbers).await?;
            let figure =
                |what: &str, unit| Figure::of(Scenario::Growth, On::Embedded, &case(fill), what, unit);
            for (round, cost) in costs.iter().enumerate() {
                let cpu = figure(CPU, Unit::Microseconds).beside(EMPTY);
                report.add(cpu, cost.chaski_us, Some(cost.empty_us));
                let flat = figure(NORMALISED, Unit::Times);
                let before = first.as_ref().map(|first| first[round].times());
                let flat = if before.is_some() {
                    flat.beside("the same at the first fill").wants(Goal::TimesAtMost(FLAT))
                } else {
                    flat
                };
                report.add(flat, cost.times(), before);
            }
            first.get_or_insert(costs);
            report.add(figure(STORED, Unit::Bytes), store.bytes()? as f64 / numbers as f64, None);
        }
        let found = store.events()?;
        ensure!(found == numbers as u64, "the store holds {found} instead of {numbers} events");
        let gateway = Gateway::start(site.path(), &store, &[]).await?;
        let case = format!("{numbers} events stored");
        let started = Figure::of(Scenario::Growth, On::Embedded, &case, START, Unit::Seconds);
        report.add(started, gateway.started_in.as_secs_f64(), None);
        gateway.end().await
    }

    /// Fills a store until it has so many events, and measures then; `numbers` have been used so far.
    async fn at_fill(
        &self,
        fill: usize,
        site: &TempDir,
        store: &Store,
        numbers: &mut usize,
    ) -> anyhow::Result<Vec<Costs>> {
        let gateway = Gateway::start(site.path(), store, &[]).await?;
        let mut senders = Senders::connect(gateway.edge, CONNECTIONS).await?;
        while *numbers < fill {
            let batch = BATCH.min(fill - *numbers);
            let callbacks = Arc::new(Callbacks::render(*numbers, batch, Signature::Right)?);
            senders.post(&callbacks, batch, Expected::Accepted).await?;
            *numbers += batch;
        }
        let slice = self.counts.requests / SLICES;
        let mut costs = Vec::new();
        for _ in 0..self.counts.rounds {
            let callbacks = Arc::new(Callbacks::render(*numbers, slice, Signature::Right)?);
            let new = Expected::Accepted;
            let (_, sample) = measured(&gateway.process, &mut senders, &callbacks, slice, new).await?;
            *numbers += slice;
            let null = Null::start(Manner::Take)?;
            let mut to_null = Senders::connect(null.address, CONNECTIONS).await?;
            to_null.post(&callbacks, Counts::warm_up(slice), Expected::Ok).await?;
            let (_, empty) = measured(&null.process, &mut to_null, &callbacks, slice, Expected::Ok).await?;
            costs.push(Costs { chaski_us: sample.cpu_us, empty_us: empty.cpu_us });
        }
        drop(senders);
        gateway.end().await?;
        Ok(costs)
    }
}

impl Costs {
    /// As many times the empty server's: the machine may be a faster or slower one at the next fill.
    fn times(&self) -> f64 {
        self.chaski_us / self.empty_us
    }
}
