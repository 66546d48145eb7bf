//! Eight destinations; one of them takes requests and never answers. What the other seven feel of it, beside the
//! same with eight that are well.

use std::sync::Arc;

use anyhow::ensure;

use super::schedule::Schedule;
use super::{Bench, CONNECTIONS, PATIENCE, Scenario};
use crate::callback::{Callbacks, Signature};
use crate::gateway::{Destination, Gateway};
use crate::load::{Expected, Seen, Senders};
use crate::null::Manner;
use crate::process::Null;
use crate::report::{Figure, Goal, RESIDENT, Report, Unit};
use crate::store::On;

const HEALTHY: usize = 7;
/// What the p99 of the healthy ones may become, as many times what it is without a sick one.
const TIMES_MAX: f64 = 1.1;
/// Short, so that attempts end, are parked and open the breaker while it is measured.
const TIMEOUT: &str = "timeout = \"1s\"\n";

struct Felt {
    answered: Seen,
    delivered: Seen,
    resident_mib: f64,
}

impl Bench {
    pub(super) async fn sick(&self, report: &mut Report) -> anyhow::Result<()> {
        let (per_second, _) = self.counts.sick;
        let without = self.beside_an_eighth(Manner::Tally).await?;
        let with = self.beside_an_eighth(Manner::Hang).await?;
        let case = format!("{per_second}/s to {} destinations", HEALTHY + 1);
        let figure = |what: &str, unit| {
            Figure::of(Scenario::Sick, On::Embedded, &case, what, unit)
                .beside("the same with all eight healthy")
        };
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
            let goal = (name == "p99").then_some(Goal::TimesAtMost(TIMES_MAX));
            let delivered =
                figure(&format!("delivered to the healthy, {name}"), Unit::Milliseconds).wants(goal);
            let (measured, baseline) = (&with.delivered, &without.delivered);
            report.add(delivered, measured.quantile_ms(quantile), Some(baseline.quantile_ms(quantile)));
        }
        let answered = figure("answered, p99", Unit::Milliseconds);
        report.add(answered, with.answered.quantile_ms(0.99), Some(without.answered.quantile_ms(0.99)));
        report.add(figure(RESIDENT, Unit::Mebibytes), with.resident_mib, Some(without.resident_mib));
        Ok(())
    }

    async fn beside_an_eighth(&self, manner: Manner) -> anyhow::Result<Felt> {
        let (per_second, seconds) = self.counts.sick;
        let site = self.site()?;
        let store = self.store(&site, On::Embedded);
        let (healthy, eighth) = (Null::start(Manner::Tally)?, Null::start(manner)?);
        let mut destinations = vec![Destination::to(healthy.address); HEALTHY];
        destinations.push(Destination::with(eighth.address, TIMEOUT));
        let gateway = Gateway::start(site.path(), &store, &destinations).await?;
        let mut senders = Senders::connect(gateway.edge, CONNECTIONS).await?;

        // The first second is warm-up; by its end the sick one is known to be sick.
        let warm_up = Arc::new(Callbacks::render(0, per_second, Signature::Right)?);
        let count = per_second * seconds;
        let schedule = Schedule::of(per_second, per_second);
        let due_us = |index| schedule.due_us(index);
        senders.keep_to(&warm_up, due_us, Expected::Accepted).await?;
        healthy.wait_for((per_second * HEALTHY) as u64, PATIENCE).await?;

        let schedule = Schedule::of(per_second, count);
        let due_us = |index| schedule.due_us(index);
        let callbacks = Arc::new(Callbacks::timed(per_second, count, Signature::Right, due_us)?);
        let answered = senders.keep_to(&callbacks, due_us, Expected::Accepted).await?;
        let stored = warm_up.tally().and(callbacks.tally());
        let received = healthy.wait_for(stored.count * HEALTHY as u64, PATIENCE).await?;
        let expected = stored.times(HEALTHY as u64);
        ensure!(received == expected, "the healthy receivers have {received:?} instead of {expected:?}");
        let (delivered, resident) = (healthy.latencies().await?, gateway.process.memory()?);
        drop(senders);
        // What the sick one has not taken stays in the store.
        let books = gateway.stop().await?;
        ensure!(books.stored == stored, "the store holds {:?} instead of {stored:?}", books.stored);
        Ok(Felt { answered, delivered, resident_mib: resident.now_mib })
    }
}
