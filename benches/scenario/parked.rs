//! Very many parked deliveries: what a failing receiver costs in memory, and how soon all of them are delivered when
//! they are due and it is well again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::time::sleep;

use super::{Bench, CONNECTIONS, PATIENCE, Scenario};
use crate::callback::{Callbacks, Signature};
use crate::gateway::{Destination, Gateway};
use crate::load::{Expected, Senders};
use crate::null::Manner;
use crate::process::{LOOK, Null};
use crate::report::{Figure, RATE, RESIDENT, Report, Unit};
use crate::store::On;

const PARKED: &str = "chaski_dispatch_pending_events";

impl Bench {
    pub(super) async fn parked(&self, report: &mut Report) -> anyhow::Result<()> {
        let (count, seconds) = self.counts.parked;
        let site = self.site()?;
        let store = self.store(&site, On::Embedded);
        let receiver = Null::start(Manner::Tally)?;
        // Not an answer of an outage: those open the breaker, and the backlog stays in the log.
        receiver.refuse_for(seconds).await?;
        let gateway = Gateway::start(site.path(), &store, &[Destination::to(receiver.address)]).await?;
        let idle = gateway.process.memory()?;
        let callbacks = Arc::new(Callbacks::render(0, count, Signature::Right)?);
        let mut senders = Senders::connect(gateway.edge, CONNECTIONS).await?;
        let begun = Instant::now();
        senders.post(&callbacks, count, Expected::Accepted).await?;
        drop(senders);
        loop {
            let parked = gateway.metric(PARKED, &["state=\"parked\""]).await?;
            if parked >= count as f64 {
                break;
            }
            ensure!(begun.elapsed() < PATIENCE, "{parked} of {count} were parked within {PATIENCE:?}");
            sleep(LOOK).await;
        }
        let parked_in = begun.elapsed();
        let resident = gateway.process.memory()?;
        gateway.end().await?;

        // All are due before it starts again.
        let tally = receiver.take().await?;
        ensure!(tally.count == 0, "what is refused is not taken");
        sleep(Duration::from_secs(seconds.into()).saturating_sub(begun.elapsed().saturating_sub(parked_in)))
            .await;
        let gateway = Gateway::start(site.path(), &store, &[Destination::to(receiver.address)]).await?;
        let begun = Instant::now();
        let received = receiver.wait_for(count as u64, PATIENCE).await?;
        let recovered_in = begun.elapsed();
        let peak = gateway.process.memory()?;
        gateway.stop().await?.must_be(callbacks.tally())?;
        ensure!(received == callbacks.tally(), "the receiver has {received:?}");

        let case = format!("{count} parked");
        let figure = |what: &str, unit| Figure::of(Scenario::Parked, On::Embedded, &case, what, unit);
        let rate = |within: Duration| count as f64 / within.as_secs_f64();
        report.add(figure("accepted, attempted and parked", Unit::PerSecond), rate(parked_in), None);
        let memory = figure(RESIDENT, Unit::Mebibytes).beside("the same process at rest");
        report.add(memory, resident.now_mib, Some(idle.now_mib));
        report.add(figure("recovery, all due at once", Unit::Seconds), recovered_in.as_secs_f64(), None);
        report.add(figure(&format!("recovery, {RATE}"), Unit::PerSecond), rate(recovered_in), None);
        report.add(figure("peak memory in recovery", Unit::Mebibytes), peak.peak_mib, None);
        Ok(())
    }
}
