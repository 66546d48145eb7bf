//! Overload: first what the gateway bears, then three times as much by a schedule that waits for nobody, then whether
//! it is as fast again as before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Plan, Target, goal};
use crate::callback::{Callbacks, Signature};
use crate::load::{Expected, Senders};
use crate::machine;
use crate::tally::Tally;

/// Of the peak.
const OVERLOAD: f64 = 3.0;
/// Places of the gateway, and the connections of the load at its peak: as many.
const REQUESTS_MAX: usize = 256;
/// Connections of the load that waits for nobody: more than there are places.
const CONNECTIONS: usize = 1024;
/// How long full speed may take to come back, and what counts as such.
const RECOVERY: Duration = Duration::from_secs(5);
const FULL_SPEED: f64 = 0.9;

/// Callbacks that differ from all before.
struct Supply {
    next: usize,
    tally: Tally,
}

impl Supply {
    fn render(&mut self, count: usize) -> anyhow::Result<Arc<Callbacks>> {
        let callbacks = Callbacks::render(self.next, count, Signature::Right)?;
        self.next += count;
        Ok(Arc::new(callbacks))
    }
}

pub(super) async fn run(plan: &Plan) -> anyhow::Result<Value> {
    let (burst, seconds, offered_max) = plan.pick((60_000, 5, usize::MAX), (400, 1, 2000));
    let target = Target::start(plan, &format!("requests_max = {REQUESTS_MAX}")).await?;
    let (gateway, mut supply) = (&target.gateway, Supply { next: 0, tally: Tally::default() });
    let mut senders = Senders::connect(gateway.edge, REQUESTS_MAX).await?;
    let mut at_peak = async |count: usize| {
        let callbacks = supply.render(count)?;
        let seen = senders.post(&callbacks, count, Expected::Accepted).await?;
        supply.tally = supply.tally.and(callbacks.tally());
        anyhow::Ok(count as f64 / seen.elapsed.as_secs_f64())
    };
    at_peak(burst / 10).await?;
    let peak = at_peak(burst).await?;
    let before = gateway.process.memory()?;

    let per_second = ((peak * OVERLOAD) as usize).min(offered_max);
    let count = per_second * seconds;
    let callbacks = Arc::new(Callbacks::render(usize::pow(10, 9), count, Signature::Right)?);
    let mut crowd = Senders::connect(gateway.edge, CONNECTIONS).await?;
    let begin_us = machine::now_us() + 100_000;
    let due_us = |index: usize| begin_us + (index as f64 * 1e6 / per_second as f64) as u64;
    let offered = crowd.offer(&callbacks, count, due_us, Expected::AcceptedOrFull).await?;
    let over = gateway.process.memory()?;
    drop(crowd);

    let ended = Instant::now();
    let mut recovered = None;
    while recovered.is_none() && ended.elapsed() < 2 * RECOVERY {
        let rate = at_peak((peak / 2.0) as usize + 1).await?;
        recovered = (rate >= FULL_SPEED * peak).then(|| ended.elapsed());
    }
    let (taken, elapsed) = (offered.taken.count(), offered.taken.elapsed.as_secs_f64());
    let goodput = taken as f64 / elapsed;
    let (sent, refused_p99) = (count as f64 / elapsed, offered.refused.quantile_ms(0.99));
    drop(senders);
    target.gateway.stop().await?.must_be(supply.tally.and(offered.tally))?;
    Ok(json!({
        "requests_max": REQUESTS_MAX,
        "peak_per_second": peak,
        "offered_per_second": sent,
        "offered_to_peak": sent / peak,
        "goodput_per_second": goodput,
        "goodput_to_peak": goodput / peak,
        "taken_ms": { "p50": offered.taken.quantile_ms(0.5), "p99": offered.taken.quantile_ms(0.99) },
        "refused": offered.refused.count(),
        "refused_ms": { "p50": offered.refused.quantile_ms(0.5), "p99": refused_p99 },
        "resident_mib": { "before": before.now_mib, "peak": over.peak_mib },
        "full_speed_again_seconds": recovered.map(|after| after.as_secs_f64()),
        "goals": [
            goal("three times the peak was offered", sent >= 0.95 * OVERLOAD * peak),
            goal("goodput is at least 85 % of the peak", goodput >= 0.85 * peak),
            goal("a refusal takes at most 50 ms at p99", refused_p99 <= 50.0),
            goal("full speed is back within 5 s", recovered.is_some_and(|after| after <= RECOVERY)),
        ],
    }))
}
