//! From the time a callback was due to its answer, and to its delivery.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;

use super::{Bench, CONCURRENCY, PATIENCE};
use crate::callback::{Callbacks, Signature};
use crate::gateway::Gateway;
use crate::load::{Expected, Senders};
use crate::machine;
use crate::null::Manner;
use crate::process::Null;
use crate::report::Latency;
use crate::say;
use crate::store::On;

/// Connections of the load that keeps to a schedule, and the time it gets to make ready.
const STEADY_CONNECTIONS: usize = 64;
const STEADY_LEAD: Duration = Duration::from_secs(2);

impl Bench {
    /// Callbacks by a schedule that does not wait for answers.
    pub(super) async fn latency(&self, on: On) -> anyhow::Result<Latency> {
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
}
