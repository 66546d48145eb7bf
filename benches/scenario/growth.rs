//! Stores of different sizes: what a callback costs at each, what an event takes on disk, and how long a start on the
//! largest takes.

use std::sync::Arc;

use anyhow::ensure;
use tempfile::TempDir;

use super::edge::{Side, post_by_turns};
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
const EMPTY: &str = "an empty hyper server";
/// The part of the requests of a round that is sent at once: a store is not to grow much while it is measured.
const SLICES: usize = 4;

/// Under which circumstances a figure stands.
fn case(fill: usize) -> String {
    format!("{fill} events stored")
}

/// A store, in its folder.
struct Stored {
    site: TempDir,
    store: Store,
    events: usize,
}

/// What a callback cost in one round, in microseconds.
struct Costs {
    empty_us: f64,
    /// At each store.
    at_us: Vec<f64>,
}

impl Bench {
    pub(super) async fn growth(&self, report: &mut Report) -> anyhow::Result<()> {
        let (stores, rounds) = self.stores_and_costs().await?;
        let figure =
            |events, what: &str, unit| Figure::of(Scenario::Growth, On::Embedded, &case(events), what, unit);
        for (index, (fill, Stored { store, events, .. })) in self.counts.fills.iter().zip(&stores).enumerate()
        {
            for Costs { empty_us, at_us } in &rounds {
                let cpu = figure(*fill, CPU, Unit::Microseconds).beside(EMPTY);
                report.add(cpu, at_us[index], Some(*empty_us));
                let flat = figure(*fill, NORMALISED, Unit::Times);
                if index == 0 {
                    report.add(flat, at_us[index] / empty_us, None);
                } else {
                    let flat = flat.beside("the same at the first fill").wants(Goal::TimesAtMost(FLAT));
                    report.add(flat, at_us[index] / empty_us, Some(at_us[0] / empty_us));
                }
            }
            let stored = figure(*fill, STORED, Unit::Bytes);
            report.add(stored, store.bytes()? as f64 / *events as f64, None);
        }
        let Some(Stored { site, store, events }) = stores.last() else { return Ok(()) };
        let gateway = Gateway::start(site.path(), store, &[]).await?;
        let started = figure(*events, START, Unit::Seconds);
        report.add(started, gateway.started_in.as_secs_f64(), None);
        gateway.end().await
    }

    /// Fills stores, and measures then in each round. Nobody has them open any more.
    async fn stores_and_costs(&self) -> anyhow::Result<(Vec<Stored>, Vec<Costs>)> {
        let slice = self.counts.requests / SLICES;
        let warm_up = Arc::new(Callbacks::render(0, Counts::warm_up(slice), Signature::Right)?);
        let (mut stores, mut gateways) = (Vec::new(), Vec::new());
        for fill in self.counts.fills {
            let (site, store, gateway) = self.filled(warm_up.count(), fill).await?;
            gateways.push(gateway);
            stores.push(Stored { site, store, events: fill });
        }
        let null = Null::start(Manner::Take)?;
        let mut sides =
            vec![Side::new(&null.process, Senders::connect(null.address, CONNECTIONS).await?, Expected::Ok)];
        for gateway in &gateways {
            let senders = Senders::connect(gateway.edge, CONNECTIONS).await?;
            sides.push(Side::new(&gateway.process, senders, Expected::Accepted));
        }
        post_by_turns(&mut sides, &warm_up, warm_up.count()).await?;
        let (mut rounds, mut next) = (Vec::new(), self.counts.fills.into_iter().max().unwrap_or_default());
        for _ in 0..self.counts.rounds {
            let callbacks = Arc::new(Callbacks::render(next, slice, Signature::Right)?);
            post_by_turns(&mut sides, &callbacks, slice).await?;
            next += slice;
            stores.iter_mut().for_each(|stored| stored.events += slice);
            let cpu_us = |side: &Side<'_>| Ok(side.sample()?.cpu_us);
            let at_us = sides[1..].iter().map(cpu_us).collect::<anyhow::Result<_>>()?;
            rounds.push(Costs { empty_us: cpu_us(&sides[0])?, at_us });
        }
        drop(sides);
        for (gateway, Stored { store, events, .. }) in gateways.into_iter().zip(&stores) {
            gateway.end().await?;
            let found = store.events()?;
            ensure!(found == *events as u64, "a store holds {found} instead of {events} events");
        }
        Ok((stores, rounds))
    }

    /// A store with so many events, but for the first ones: they are its warm-up.
    async fn filled(&self, warm_up: usize, fill: usize) -> anyhow::Result<(TempDir, Store, Gateway)> {
        let site = self.site()?;
        let store = self.store(&site, On::Embedded);
        let gateway = Gateway::start(site.path(), &store, &[]).await?;
        let mut senders = Senders::connect(gateway.edge, CONNECTIONS).await?;
        let mut from = warm_up;
        while from < fill {
            let batch = BATCH.min(fill - from);
            let callbacks = Arc::new(Callbacks::render(from, batch, Signature::Right)?);
            senders.post(&callbacks, batch, Expected::Accepted).await?;
            from += batch;
        }
        Ok((site, store, gateway))
    }
}
