//! The receiver goes away and comes back, and callbacks arrive by a schedule all the while: how fast the backlog
//! is worked off, and what senders feel of it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use tokio::time::sleep;

use super::schedule::Schedule;
use super::{Bench, CONNECTIONS, PATIENCE, Scenario};
use crate::callback::{Callbacks, Signature};
use crate::gateway::{Destination, Gateway};
use crate::load::{Expected, Senders};
use crate::machine;
use crate::null::Manner;
use crate::process::Null;
use crate::report::{Figure, Goal, RATE, Report, Unit};
use crate::store::On;

/// As many times the rate of arrivals, at least.
const DRAIN_TIMES_MIN: f64 = 3.0;
/// Between two looks at the receiver.
const LOOK: Duration = Duration::from_millis(20);
/// The backlog is gone when no more is missing than arrives in such a part of a second.
const UNDER_WAY: usize = 10;

/// How a backlog went: when, and how many events the receiver had.
struct Drain {
    seen: Vec<(u64, usize)>,
    /// When the first event came.
    first_us: u64,
}

impl Bench {
    pub(super) async fn outage(&self, report: &mut Report) -> anyhow::Result<()> {
        let (per_second, [before, away, after]) = self.counts.outage;
        let site = self.site()?;
        let store = self.store(&site, On::Embedded);
        let receiver = Null::start(Manner::Tally)?;
        let gateway = Gateway::start(site.path(), &store, &[Destination::to(receiver.address)]).await?;
        let mut senders = Senders::connect(gateway.edge, CONNECTIONS).await?;

        let count = per_second * (before + away + after);
        let schedule = Schedule::of(per_second, count);
        let span = |from: usize, seconds: usize| -> anyhow::Result<Arc<Callbacks>> {
            let (from, count) = (from * per_second, seconds * per_second);
            Ok(Arc::new(Callbacks::timed(from, count, Signature::Right, |index| {
                schedule.due_us(from + index)
            })?))
        };
        let (first, second) = (span(0, before)?, span(before, away)?);
        let third = span(before + away, after)?;
        let due_from = |from: usize| move |index: usize| schedule.due_us(from * per_second + index);
        let well = senders.keep_to(&first, due_from(0), Expected::Accepted).await?;
        receiver.be_away_for(Duration::from_secs(away as u64)).await?;
        let alone = senders.keep_to(&second, due_from(before), Expected::Accepted).await?;
        let back_us = schedule.due_us((before + away) * per_second);
        let (catching_up, drain) = tokio::join!(
            senders.keep_to(&third, due_from(before + away), Expected::Accepted),
            drain(&receiver, schedule)
        );
        let (catching_up, drain) = (catching_up?, drain?);

        let expected = first.tally().and(second.tally()).and(third.tally());
        let received = receiver.wait_for(expected.count, PATIENCE).await?;
        ensure!(received == expected, "the receiver has {received:?} instead of {expected:?}");
        drop(senders);
        gateway.stop().await?.must_be(expected)?;

        let case = format!("{per_second}/s, {away} s away");
        let figure = |what: &str, unit| Figure::of(Scenario::Outage, On::Embedded, &case, what, unit);
        let drained = figure(&format!("drain, {RATE}"), Unit::PerSecond)
            .beside("arrivals, which go on")
            .wants(Goal::TimesAtLeast(DRAIN_TIMES_MIN));
        report.add(drained, drain.per_second(), Some(per_second as f64));
        let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
        let probed = figure("from their return to the first delivery", Unit::Seconds);
        report.add(probed, seconds(back_us, drain.first_us), None);
        let emptied = figure("from the first delivery until the backlog is gone", Unit::Seconds);
        report.add(emptied, seconds(drain.first_us, drain.end_us()), None);
        for (what, seen) in
            [("answered while away, p99", alone), ("answered while draining, p99", catching_up)]
        {
            let figure = figure(what, Unit::Milliseconds).beside("the same before the outage");
            report.add(figure, seen.quantile_ms(0.99), Some(well.quantile_ms(0.99)));
        }
        report.outage(drain.backlog(schedule, first.count()));
        Ok(())
    }
}

/// Watches a receiver come back and catch up.
async fn drain(receiver: &Null, schedule: Schedule) -> anyhow::Result<Drain> {
    let deadline = machine::now_us() + u64::try_from(PATIENCE.as_micros())?;
    let (mut seen, mut first_us) = (Vec::new(), None);
    loop {
        let now_us = machine::now_us();
        ensure!(now_us < deadline, "the backlog was not gone within {PATIENCE:?}");
        // It may not have come back yet.
        if let Ok(tally) = receiver.tally().await {
            let count = usize::try_from(tally.count)?;
            seen.push((now_us, count));
            let has_more = seen.first().is_some_and(|(_, had)| count > *had);
            if has_more || count == schedule.count {
                first_us = first_us.or(Some(now_us));
            }
            let missing = schedule.due_by(now_us).saturating_sub(count);
            if let Some(first_us) = first_us
                && missing <= schedule.per_second() / UNDER_WAY
            {
                return Ok(Drain { seen, first_us });
            }
        }
        sleep(LOOK).await;
    }
}

impl Drain {
    fn end_us(&self) -> u64 {
        self.seen.last().map_or(self.first_us, |(when, _)| *when)
    }

    /// Deliveries while there was a backlog.
    fn per_second(&self) -> f64 {
        let began = self.seen.iter().rev().find(|(when, _)| *when < self.first_us).or(self.seen.first());
        let ((began, had), (ended, has)) =
            (began.copied().unwrap_or_default(), self.seen.last().copied().unwrap_or_default());
        (has - had) as f64 / ((ended - began).max(1) as f64 / 1e6)
    }

    /// Seconds since the outage began, and events not delivered.
    fn backlog(&self, schedule: Schedule, gone_at: usize) -> Vec<(f64, f64)> {
        let gone_us = schedule.due_us(gone_at);
        let point = |(when, count): &(u64, usize)| {
            let seconds = when.saturating_sub(gone_us) as f64 / 1e6;
            (seconds, schedule.due_by(*when).saturating_sub(*count) as f64)
        };
        std::iter::once((0.0, 0.0)).chain(self.seen.iter().map(point)).collect()
    }
}
