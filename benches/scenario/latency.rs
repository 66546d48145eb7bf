//! Capacity from edge to receiver; then, at 20, 50 and 80 % of it, the time from when a callback was due to its answer
//! and to its delivery.

use std::sync::Arc;
use std::time::Instant;

use anyhow::ensure;

use super::schedule::Schedule;
use super::{Bench, CONNECTIONS, Counts, PATIENCE, Scenario};
use crate::callback::{Callbacks, Signature};
use crate::gateway::{Destination, Gateway};
use crate::load::{Expected, Seen, Senders};
use crate::null::Manner;
use crate::process::Null;
use crate::report::{Figure, Goal, RATE, RESIDENT, Report, Unit};
use crate::store::On;

/// Percent of capacity.
pub(crate) const SHARES: [usize; 3] = [20, 50, 80];
/// The share that has goals.
const GOAL_AT: usize = 50;
pub(crate) const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];
pub(crate) const CLOSED_LOOP: &str = "as fast as it goes";
/// From when a callback was due to its delivery at half of the capacity; the receiver here takes no time of its own.
const DELIVERED_MS_MAX: f64 = 10.0;

/// Under which circumstances a figure stands.
pub(crate) fn case(share: usize) -> String {
    format!("{share} % of capacity")
}

impl On {
    /// What the process wants to have in memory at most at its capacity.
    const fn resident_mib_max(self) -> f64 {
        match self {
            Self::Embedded => 128.0,
            Self::Kafka => 256.0,
        }
    }

    /// How many times the p99 of making one record durable the p99 of an answer wants to be at most.
    const fn answer_times_max(self) -> f64 {
        match self {
            Self::Embedded => 2.0,
            Self::Kafka => 3.0,
        }
    }
}

/// What one share of the capacity felt like.
struct Felt {
    on: On,
    share: usize,
    per_second: usize,
    answered: Seen,
    delivered: Seen,
    /// The p99 of making one record durable.
    durable_ms: f64,
}

impl Felt {
    fn report(&self, report: &mut Report) {
        let on = self.on;
        let figure = |what: &str, unit| Figure::of(Scenario::Latency, on, &case(self.share), what, unit);
        report.add(figure(RATE, Unit::PerSecond), self.per_second as f64, None);
        for (name, quantile) in QUANTILES {
            let mut answer = figure(&format!("answered, {name}"), Unit::Milliseconds);
            let mut baseline = None;
            if name == "p99" {
                let goal = Goal::TimesAtMost(on.answer_times_max());
                answer = answer.beside(durable_record(on)).wants((self.share == GOAL_AT).then_some(goal));
                baseline = Some(self.durable_ms);
            }
            report.add(answer, self.answered.quantile_ms(quantile), baseline);
        }
        for (name, quantile) in QUANTILES {
            let has_goal = self.share == GOAL_AT && name == "p99" && on == On::Embedded;
            let goal = has_goal.then_some(Goal::AtMost(DELIVERED_MS_MAX));
            let delivery = figure(&format!("delivered, {name}"), Unit::Milliseconds).wants(goal);
            report.add(delivery, self.delivered.quantile_ms(quantile), None);
        }
    }
}

impl Bench {
    pub(super) async fn latency(&self, on: On, report: &mut Report) -> anyhow::Result<()> {
        let (seconds, most) = self.counts.steady;
        let site = self.site()?;
        let receiver = Null::start(Manner::Tally)?;
        let store = self.store(&site, on);
        let gateway = Gateway::start(site.path(), &store, &[Destination::to(receiver.address)]).await?;
        let mut senders = Senders::connect(gateway.edge, CONNECTIONS).await?;
        let events = self.counts.deliveries;
        let warm_up = Arc::new(Callbacks::render(0, Counts::warm_up(events), Signature::Right)?);
        senders.post(&warm_up, warm_up.count(), Expected::Accepted).await?;
        let mut expected = receiver.wait_for(warm_up.count() as u64, PATIENCE).await?;
        let callbacks = Arc::new(Callbacks::render(warm_up.count(), events, Signature::Right)?);
        let begun = Instant::now();
        senders.post(&callbacks, events, Expected::Accepted).await?;
        expected = expected.and(callbacks.tally());
        receiver.wait_for(expected.count, PATIENCE).await?;
        let capacity = events as f64 / begun.elapsed().as_secs_f64();
        let figure = |case: &str, what: &str, unit| Figure::of(Scenario::Latency, on, case, what, unit);
        report.add(figure(CLOSED_LOOP, RATE, Unit::PerSecond), capacity, None);
        let resident =
            figure(CLOSED_LOOP, RESIDENT, Unit::Mebibytes).wants(Goal::AtMost(on.resident_mib_max()));
        report.add(resident, gateway.process.memory()?.peak_mib, None);

        for share in SHARES {
            let durable_ms = self.one_record(on, report).await?;
            let per_second = ((capacity * share as f64 / 100.0) as usize).clamp(1, most);
            let count = per_second * seconds;
            let schedule = Schedule::of(per_second, count);
            let due_us = |index| schedule.due_us(index);
            let from = usize::try_from(expected.count)?;
            let callbacks = Arc::new(Callbacks::timed(from, count, Signature::Right, due_us)?);
            let answered = senders.keep_to(&callbacks, due_us, Expected::Accepted).await?;
            expected = expected.and(callbacks.tally());
            receiver.wait_for(expected.count, PATIENCE).await?;
            let delivered = receiver.latencies().await?;
            let found = delivered.count();
            ensure!(found == count, "{found} of {count} deliveries say when they were sent");
            let felt = Felt { on, share, per_second, answered, delivered, durable_ms };
            felt.report(report);
        }
        drop(senders);
        gateway.stop().await?.must_be(expected)?;
        let received = receiver.tally().await?;
        ensure!(received == expected, "the receiver has {received:?} instead of {expected:?}");
        Ok(())
    }

    /// The p99 of making one record durable when nothing else is under way, in milliseconds.
    async fn one_record(&self, on: On, report: &mut Report) -> anyhow::Result<f64> {
        match on {
            On::Embedded => self.sync(Scenario::Latency, on, report).await,
            On::Kafka => Ok(self.servers().produce_times()?.quantile_ms(0.99)),
        }
    }
}

/// What an answer is compared with.
const fn durable_record(on: On) -> &'static str {
    match on {
        On::Embedded => "the p99 of one append of 4 KiB with fdatasync",
        On::Kafka => "the p99 of one produce with acks=all, nothing else under way",
    }
}
