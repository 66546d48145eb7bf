//! Overload: first what the gateway bears, then three times as much by a schedule that waits for nobody, from a crowd of
//! senders and from a larger one, then whether it is as fast again as before.
//!
//! Where the machine has more than one processor, the gateway has the first of them for itself and the load the
//! others: what it bears is what it bears on one, and the load takes nothing from it.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Plan, Target, goal};
use crate::callback::{Callbacks, Signature};
use crate::crowd::{Crowd, Pressed, Schedule};
use crate::machine;
use crate::say;
use crate::tally::Tally;

/// Of the peak.
const OVERLOAD: f64 = 3.0;
/// Places of the gateway, and the connections of the load at its peak: as many.
const REQUESTS_MAX: usize = 256;
/// How long full speed may take to come back, and what counts as such.
const RECOVERY: Duration = Duration::from_secs(5);
const FULL_SPEED: f64 = 0.9;

/// Callbacks that differ from all before, and what was taken of them.
struct Supply {
    next: usize,
    tally: Tally,
}

impl Supply {
    /// Sends at most so many, which are made before.
    fn press(&mut self, crowd: &mut Crowd, count: usize, schedule: &Schedule) -> anyhow::Result<Pressed> {
        let callbacks = Callbacks::render(self.next, count, Signature::Right)?;
        self.next += count;
        let seen = crowd.press(&callbacks, schedule)?;
        self.tally = self.tally.and(seen.tally);
        Ok(seen)
    }

    /// So many as fast as it goes; the rate.
    fn peak(&mut self, crowd: &mut Crowd, count: usize) -> anyhow::Result<f64> {
        let at_once = Schedule { per_second: f64::INFINITY, lasts: RECOVERY, count_max: count };
        Ok(rate(&self.press(crowd, count, &at_once)?))
    }
}

fn rate(seen: &Pressed) -> f64 {
    seen.taken.count() as f64 / seen.taken.elapsed.as_secs_f64()
}

pub(super) async fn run(plan: &Plan) -> anyhow::Result<Value> {
    let (burst, seconds, per_second_max) = plan.pick((200_000, 5, f64::INFINITY), (400, 1, 2000.0));
    // More than there are places. Goals are held against the first.
    let crowd_sizes = plan.pick([1024, 4096], [300, 600]);
    let processors = machine::processors()?;
    let (own, rest) = processors.split_at(1);
    let is_apart = !rest.is_empty();
    if is_apart {
        machine::keep_to(own)?;
    }
    let target = Target::start(plan, &format!("requests_max = {REQUESTS_MAX}")).await?;
    if is_apart {
        machine::keep_to(rest)?;
    }
    let (gateway, mut supply) = (&target.gateway, Supply { next: 0, tally: Tally::default() });
    let mut senders = Crowd::connect(gateway.edge, REQUESTS_MAX)?;
    supply.peak(&mut senders, burst / 10)?;
    let peak = supply.peak(&mut senders, burst)?;
    let before = gateway.process.memory()?;
    say(format_args!("{peak:.0}/s at the peak"));

    let (mut crowds, mut recovered) = (Vec::new(), Some(Duration::ZERO));
    for connections in crowd_sizes {
        let per_second = (peak * OVERLOAD).min(per_second_max);
        let lasts = Duration::from_secs(seconds);
        let count = (per_second * lasts.as_secs_f64()) as usize + 1;
        let mut crowd = Crowd::connect(gateway.edge, connections)?;
        let cpu = gateway.process.cpu()?;
        let schedule = Schedule { per_second, lasts, count_max: count };
        let seen = supply.press(&mut crowd, count, &schedule)?;
        say(format_args!("{connections} connections: {:.0}/s", rate(&seen)));
        let cpu = gateway.process.cpu()? - cpu;
        drop(crowd);
        let ended = Instant::now();
        let mut again = None;
        while again.is_none() && ended.elapsed() < 2 * RECOVERY {
            let rate = supply.peak(&mut senders, (peak / 2.0) as usize + 1)?;
            again = (rate >= FULL_SPEED * peak).then(|| ended.elapsed());
        }
        recovered = recovered.zip(again).map(|(one, other)| one.max(other));
        crowds.push((connections, seen, cpu));
    }
    drop(senders);
    let over = target.gateway.process.memory()?;
    target.gateway.stop().await?.must_be(supply.tally)?;
    let (_, first, _) = crowds.first().context("there are crowds")?;
    let goals = [
        goal("three times the peak was sent", sent_per_second(first) >= 0.95 * OVERLOAD * peak),
        goal("the load had time to spare", first.busy < 0.95),
        goal("goodput is at least 85 % of the peak", rate(first) >= 0.85 * peak),
        goal("a refusal takes at most 50 ms at p99", first.refused.quantile_ms(0.99) <= 50.0),
        goal("full speed is back within 5 s", recovered.is_some_and(|after| after <= RECOVERY)),
    ];
    let crowds: Vec<Value> =
        crowds.iter().map(|(connections, seen, cpu)| shown(*connections, seen, *cpu, peak)).collect();
    Ok(json!({
        "requests_max": REQUESTS_MAX,
        "processors": { "gateway": if is_apart { own } else { &processors }, "load": if is_apart { rest } else { &processors } },
        "peak_per_second": peak,
        "crowds": crowds,
        "resident_mib": { "before": before.now_mib, "peak": over.peak_mib },
        "full_speed_again_seconds": recovered.map(|after| after.as_secs_f64()),
        "goals": goals,
    }))
}

fn sent_per_second(seen: &Pressed) -> f64 {
    seen.sent as f64 / seen.taken.elapsed.as_secs_f64()
}

/// What a crowd saw, as one object.
fn shown(connections: usize, seen: &Pressed, cpu: Duration, peak: f64) -> Value {
    let elapsed = seen.taken.elapsed.as_secs_f64();
    json!({
        "connections": connections,
        "due_per_second": seen.due as f64 / elapsed,
        "due_to_peak": seen.due as f64 / elapsed / peak,
        "sent_per_second": sent_per_second(seen),
        "found_no_free_connection": seen.due - seen.sent,
        "load_busy": seen.busy,
        "gateway_busy": cpu.as_secs_f64() / elapsed,
        "goodput_per_second": rate(seen),
        "goodput_to_peak": rate(seen) / peak,
        "taken_ms": { "p50": seen.taken.quantile_ms(0.5), "p99": seen.taken.quantile_ms(0.99) },
        "refused": seen.refused.count(),
        "refused_ms": { "p50": seen.refused.quantile_ms(0.5), "p99": seen.refused.quantile_ms(0.99) },
    })
}
