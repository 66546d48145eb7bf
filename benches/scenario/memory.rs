//! Resident memory: at rest, after many events, with many destinations.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{Bench, CONCURRENCY, MEMORY_CONNECTIONS, PATIENCE};
use crate::callback::{Callbacks, Signature};
use crate::gateway::Gateway;
use crate::load::{Expected, Senders};
use crate::null::Manner;
use crate::process::Null;
use crate::report::{Memory, Seat};
use crate::say;
use crate::store::On;
use crate::tally::Tally;

/// Before memory is called idle.
const IDLE: Duration = Duration::from_secs(1);
/// Callbacks rendered at once.
const MEMORY_BATCH: usize = 50_000;

impl Bench {
    /// One gateway, first at rest, then with everything going through it, edge to receiver.
    pub(super) async fn memory(&self) -> anyhow::Result<Memory> {
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

    /// A process on Kafka with many destinations.
    pub(super) async fn seat(&self, destinations: usize) -> anyhow::Result<Seat> {
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
}
