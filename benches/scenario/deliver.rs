//! The dispatcher: from a full store to a receiver, beside a bare client that posts the same bodies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{Bench, CONCURRENCY, Counts, MEMORY_CONNECTIONS, PATIENCE, Scenario};
use crate::callback::{Callbacks, Signature};
use crate::gateway::Gateway;
use crate::load::{Expected, Senders};
use crate::null::Manner;
use crate::process::{self, Null};
use crate::report::{Report, Round, Sample};
use crate::say;
use crate::store::On;

/// A lane settles every 200 ms; that belongs to the cost of delivering.
const SETTLED: Duration = Duration::from_millis(250);

impl Bench {
    pub(super) async fn deliver(&self, on: On, report: &mut Report) -> anyhow::Result<()> {
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
}
