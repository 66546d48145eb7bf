//! Resident memory: at rest, after many events, with many destinations.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{BATCH, Bench, CONNECTIONS, PATIENCE, Scenario};
use crate::callback::{Callbacks, Signature};
use crate::gateway::{Destination, Gateway};
use crate::load::{Expected, Senders};
use crate::null::Manner;
use crate::process::Null;
use crate::report::{Figure, Goal, RATE, RESIDENT, Report, Unit};
use crate::store::On;
use crate::tally::Tally;

/// Before memory is called idle.
const IDLE: Duration = Duration::from_secs(1);
/// What chaski wants to have in memory at most.
const IDLE_MIB_MAX: f64 = 40.0;
const AFTER_MIB_MAX: f64 = 128.0;
/// And with this many destinations on Kafka.
const SEATS: [(usize, Option<Goal>); 2] = [(5, Some(Goal::AtMost(300.0))), (50, None)];

impl Bench {
    pub(super) async fn memory(&self, on: On, report: &mut Report) -> anyhow::Result<()> {
        match on {
            On::Embedded => self.through(report).await,
            On::Kafka => {
                for (destinations, goal) in SEATS {
                    self.seat(destinations, goal, report).await?;
                }
                Ok(())
            }
        }
    }

    /// One gateway, first at rest, then with everything going through it, edge to receiver.
    async fn through(&self, report: &mut Report) -> anyhow::Result<()> {
        let site = self.site()?;
        let store = self.store(&site, On::Embedded);
        let receiver = Null::start(Manner::Tally)?;
        let gateway = Gateway::start(site.path(), &store, &[Destination::to(receiver.address)]).await?;
        tokio::time::sleep(IDLE).await;
        let idle = gateway.process.memory()?;
        let mut senders = Senders::connect(gateway.edge, CONNECTIONS).await?;
        let (mut sent, mut tally) = (0, Tally::default());
        let begun = Instant::now();
        while sent < self.counts.through_memory {
            let batch = BATCH.min(self.counts.through_memory - sent);
            let callbacks = Arc::new(Callbacks::render(sent, batch, Signature::Right)?);
            senders.post(&callbacks, batch, Expected::Accepted).await?;
            (sent, tally) = (sent + batch, tally.and(callbacks.tally()));
        }
        let received = receiver.wait_for(sent as u64, PATIENCE).await?;
        let elapsed = begun.elapsed();
        ensure!(received == tally, "the receiver has {received:?} instead of {tally:?}");
        let after = gateway.process.memory()?;
        drop(senders);
        gateway.stop().await?.must_be(tally)?;

        let figure =
            |case: &str, what: &str, unit| Figure::of(Scenario::Memory, On::Embedded, case, what, unit);
        let at_rest = figure("at rest", RESIDENT, Unit::Mebibytes).wants(Goal::AtMost(IDLE_MIB_MAX));
        report.add(at_rest, idle.now_mib, None);
        let case = format!("{sent} events from edge to receiver");
        let full = figure(&case, RESIDENT, Unit::Mebibytes).wants(Goal::AtMost(AFTER_MIB_MAX));
        report.add(full, after.now_mib, None);
        report.add(figure(&case, "peak memory", Unit::Mebibytes), after.peak_mib, None);
        report.add(figure(&case, RATE, Unit::PerSecond), sent as f64 / elapsed.as_secs_f64(), None);
        Ok(())
    }

    /// A process on Kafka with many destinations.
    async fn seat(&self, destinations: usize, goal: Option<Goal>, report: &mut Report) -> anyhow::Result<()> {
        let site = self.site()?;
        let receiver = Null::start(Manner::Tally)?;
        let store = self.store(&site, On::Kafka);
        let all = vec![Destination::to(receiver.address); destinations];
        let gateway = Gateway::start(site.path(), &store, &all).await?;
        // The work is the same whatever their number.
        let events = self.counts.deliveries / destinations;
        let callbacks = Arc::new(Callbacks::render(0, events, Signature::Right)?);
        let mut senders = Senders::connect(gateway.edge, CONNECTIONS).await?;
        senders.post(&callbacks, events, Expected::Accepted).await?;
        let received = receiver.wait_for((events * destinations) as u64, PATIENCE).await?;
        let expected = callbacks.tally().times(destinations as u64);
        ensure!(received == expected, "the receiver has {received:?} instead of {expected:?}");
        let (resident, threads) = (gateway.process.memory()?, gateway.process.threads()?);
        drop(senders);
        gateway.stop().await?.must_be(callbacks.tally())?;

        let case = format!("{destinations} destinations, {events} events to each");
        let figure = |what: &str, unit| Figure::of(Scenario::Memory, On::Kafka, &case, what, unit);
        report.add(figure(RESIDENT, Unit::Mebibytes).wants(goal), resident.now_mib, None);
        report.add(figure("peak memory", Unit::Mebibytes), resident.peak_mib, None);
        report.add(figure("threads", Unit::Threads), threads as f64, None);
        Ok(())
    }
}
