//! Overload: first what the gateway bears, then three times as much by a schedule that waits for nobody, from a crowd of
//! senders and from a larger one, then whether it is as fast again as before.
//!
//! Twice over: on a disk whose syncs take 20 ms more, which is then what bounds the gateway; and on the disk that is
//! there, where its processor is. Only the first can be sent three times what it bears: whoever is refused has to be
//! told, and where the processor is short there is none to tell two for each that is taken. There the gateway lets the refused wait for their turn, and what they were to send stays unsent.
//!
//! Where the machine has more than one processor, the gateway has the first of them for itself and the load the
//! others: what it bears is what it bears on one, and the load takes nothing from it.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Plan, Target, goal};
use crate::callback::{Callbacks, Signature};
use crate::crowd::{Crowd, Pressed, Schedule};
use crate::gateway::{Extra, slow_sync};
use crate::machine::{self, Resident};
use crate::say;
use crate::tally::Tally;

/// Of the peak.
const OVERLOAD: f64 = 3.0;
/// Places of the gateway, and the connections of the load at its peak: as many.
const REQUESTS_MAX: usize = 256;
/// Of memory, for each connection.
const KIB_MAX: f64 = 64.0;
/// How long full speed may take to come back, and what counts as such.
const RECOVERY: Duration = Duration::from_secs(5);
const FULL_SPEED: f64 = 0.9;

/// What bounds a gateway.
#[derive(Clone, Copy, Debug)]
enum Bound {
    /// A slow one.
    Disk,
    Processor,
}

impl Bound {
    /// What a sync takes more.
    const fn slower(self) -> Duration {
        match self {
            Self::Disk => Duration::from_millis(20),
            Self::Processor => Duration::ZERO,
        }
    }
}

/// What one gateway bore.
struct Borne {
    bound: Bound,
    peak: f64,
    crowds: Vec<Overload>,
    before: Resident,
    over: Resident,
    full_speed_again: Option<Duration>,
}

/// What one crowd saw of it, and the processor's time that it took meanwhile.
struct Overload {
    connections: usize,
    seen: Pressed,
    cpu: Duration,
}

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
    let processors = machine::processors()?;
    let (own, rest) = match processors.split_at(1) {
        (_, []) => (&*processors, &*processors),
        apart => apart,
    };
    let on_disk = bear(plan, Bound::Disk, own, rest).await?;
    let borne = bear(plan, Bound::Processor, own, rest).await?;
    let mut seen = borne.shown();
    seen["processors"] = json!({ "gateway": own, "load": rest });
    seen["goals"] = borne.goals()?.into();
    seen["slow_disk"] = on_disk.shown();
    seen["slow_disk"]["sync_takes_more_ms"] = json!(on_disk.bound.slower().as_secs_f64() * 1000.0);
    seen["slow_disk"]["goals"] = on_disk.goals()?.into();
    Ok(seen)
}

/// A gateway on its processors, and the load on its own.
async fn bear(plan: &Plan, bound: Bound, own: &[usize], rest: &[usize]) -> anyhow::Result<Borne> {
    let (burst, seconds, per_second_max) = plan.pick((200_000, 5, f64::INFINITY), (400, 1, 2000.0));
    let patience = plan.pick(2 * RECOVERY, Duration::from_secs(1));
    // More than there are places.
    let crowd_sizes = plan.pick([1024, 4096], [300, 600]);
    let library = tempfile::tempdir_in(&plan.folder)?;
    let preload = match bound {
        Bound::Disk => Some(slow_sync(library.path(), bound.slower())?),
        Bound::Processor => None,
    };
    let places = format!("requests_max = {REQUESTS_MAX}");
    let extra = Extra { ingest: &places, preload: preload.as_deref(), ..Extra::default() };
    machine::keep_to(own)?;
    let target = Target::start_with(plan, extra).await?;
    machine::keep_to(rest)?;
    let (gateway, mut supply) = (&target.gateway, Supply { next: 0, tally: Tally::default() });
    let mut senders = Crowd::connect(gateway.edge, REQUESTS_MAX)?;
    supply.peak(&mut senders, burst / 10)?;
    let peak = supply.peak(&mut senders, burst)?;
    let before = gateway.process.memory()?;
    say(format_args!("{bound:?}: {peak:.0}/s at the peak"));

    let (mut crowds, mut full_speed_again) = (Vec::new(), Some(Duration::ZERO));
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
        while again.is_none() && ended.elapsed() < patience {
            let rate = supply.peak(&mut senders, (peak / 2.0) as usize + 1)?;
            again = (rate >= FULL_SPEED * peak).then(|| ended.elapsed());
        }
        full_speed_again = full_speed_again.zip(again).map(|(one, other)| one.max(other));
        crowds.push(Overload { connections, seen, cpu });
    }
    drop(senders);
    let over = target.gateway.process.memory()?;
    target.gateway.stop().await?.must_be(supply.tally)?;
    Ok(Borne { bound, peak, crowds, before, over, full_speed_again })
}

impl Borne {
    /// Of crowds they are held against all where the disk is slow, and against the first where the processor is short:
    /// how long the turns of a larger one take follows from its size.
    fn goals(&self) -> anyhow::Result<Vec<Value>> {
        let crowds = match self.bound {
            Bound::Disk => &*self.crowds,
            Bound::Processor => self.crowds.get(..1).context("there are crowds")?,
        };
        let all = |holds: &dyn Fn(&Pressed) -> bool| crowds.iter().all(|crowd| holds(&crowd.seen));
        let mut goals = vec![
            goal("the load had time to spare", all(&|seen| seen.busy < 0.95)),
            goal("goodput is at least 85 % of the peak", all(&|seen| rate(seen) >= 0.85 * self.peak)),
            goal("a refusal takes at most 50 ms at p99", all(&|seen| seen.refused.quantile_ms(0.99) <= 50.0)),
            goal("a connection takes at most 64 KiB of memory", self.kib_per_connection() <= KIB_MAX),
            goal(
                "full speed is back within 5 s",
                self.full_speed_again.is_some_and(|after| after <= RECOVERY),
            ),
        ];
        if matches!(self.bound, Bound::Disk) {
            let sent = all(&|seen| sent_per_second(seen) >= 0.95 * OVERLOAD * self.peak);
            goals.insert(0, goal("three times the peak was sent", sent));
        }
        Ok(goals)
    }

    /// Of the largest crowd.
    fn kib_per_connection(&self) -> f64 {
        let connections = self.crowds.iter().map(|crowd| crowd.connections).max().unwrap_or(1);
        (self.over.peak_mib - self.before.now_mib) * 1024.0 / connections as f64
    }

    fn shown(&self) -> Value {
        let crowds: Vec<Value> = self.crowds.iter().map(|crowd| crowd.shown(self.peak)).collect();
        json!({
            "requests_max": REQUESTS_MAX,
            "peak_per_second": self.peak,
            "crowds": crowds,
            "resident_mib": { "before": self.before.now_mib, "peak": self.over.peak_mib },
            "full_speed_again_seconds": self.full_speed_again.map(|after| after.as_secs_f64()),
        })
    }
}

impl Overload {
    fn shown(&self, peak: f64) -> Value {
        let (seen, elapsed) = (&self.seen, self.seen.taken.elapsed.as_secs_f64());
        json!({
            "connections": self.connections,
            "due_per_second": seen.due as f64 / elapsed,
            "due_to_peak": seen.due as f64 / elapsed / peak,
            "sent_per_second": sent_per_second(seen),
            "sent_to_peak": sent_per_second(seen) / peak,
            "found_no_free_connection": seen.due - seen.sent,
            "load_busy": seen.busy,
            "gateway_busy": self.cpu.as_secs_f64() / elapsed,
            "goodput_per_second": rate(seen),
            "goodput_to_peak": rate(seen) / peak,
            "sent": seen.sent,
            "taken": seen.taken.count(),
            "taken_ms": { "p50": seen.taken.quantile_ms(0.5), "p99": seen.taken.quantile_ms(0.99) },
            "refused": seen.refused.count(),
            "refused_ms": { "p50": seen.refused.quantile_ms(0.5), "p99": seen.refused.quantile_ms(0.99) },
            "answered_after_the_end": seen.late,
        })
    }
}

fn sent_per_second(seen: &Pressed) -> f64 {
    seen.sent as f64 / seen.taken.elapsed.as_secs_f64()
}
