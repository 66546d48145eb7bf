//! The dispatcher: from a full store to 1, 3 and 8 destinations, beside a bare client that makes as many posts
//! to the same receiver, as many at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{Bench, CONNECTIONS, Counts, PATIENCE, Scenario};
use crate::callback::{Callbacks, Signature};
use crate::gateway::{CONCURRENCY, Destination, Gateway};
use crate::load::{Expected, Senders};
use crate::null::Manner;
use crate::process::{self, Null};
use crate::report::{CPU, Figure, Goal, RATE, Report, Sample, Unit};
use crate::store::On;

/// A lane settles every 200 ms; that belongs to the cost of delivering.
const SETTLED: Duration = Duration::from_millis(250);

impl Bench {
    pub(super) async fn deliver(&self, on: On, report: &mut Report) -> anyhow::Result<()> {
        for &destinations in self.counts.destinations {
            // The work is the same whatever their number.
            let events = self.counts.deliveries / destinations;
            let before = self.bare(events, destinations).await?;
            let measured = self.dispatch(on, events, destinations).await?;
            let after = self.bare(events, destinations).await?;
            let baseline = Sample::mean(before, after);
            let case = if destinations == 1 {
                "1 destination".to_owned()
            } else {
                format!("{destinations} destinations")
            };
            let goal = (destinations == 1 && on == On::Embedded).then_some(Goal::TimesAtMost(1.3));
            let figure = |what: &str, unit| {
                Figure::of(Scenario::Deliver, on, &case, what, unit)
                    .beside("hyper-util's pooled client, as many posts at once")
            };
            report.add(figure(CPU, Unit::Microseconds).wants(goal), measured.cpu_us, Some(baseline.cpu_us));
            report.add(figure(RATE, Unit::PerSecond), measured.per_second, Some(baseline.per_second));
        }
        Ok(())
    }

    async fn bare(&self, events: usize, destinations: usize) -> anyhow::Result<Sample> {
        let receiver = Null::start(Manner::Tally)?;
        let (count, warm_up) = (events * destinations, Counts::warm_up(events) * destinations);
        let sample =
            process::bare_client(receiver.address, count, warm_up, CONCURRENCY * destinations).await?;
        let expected = Callbacks::render(0, warm_up + count, Signature::Right)?.tally();
        ensure!(receiver.tally().await? == expected, "the bare client did not deliver what it had");
        Ok(sample)
    }

    /// Fills a store with nobody to deliver to, starts again with a receiver, and watches it fill.
    async fn dispatch(&self, on: On, events: usize, destinations: usize) -> anyhow::Result<Sample> {
        let warm_up = Counts::warm_up(events);
        let callbacks = Arc::new(Callbacks::render(0, warm_up + events, Signature::Right)?);
        let site = self.site()?;
        let store = self.store(&site, on);
        let gateway = Gateway::start(site.path(), &store, &[]).await?;
        let mut senders = Senders::connect(gateway.edge, CONNECTIONS).await?;
        senders.post(&callbacks, callbacks.count(), Expected::Accepted).await?;
        drop(senders);
        gateway.end().await?;

        let receiver = Null::start(Manner::Tally)?;
        let all = vec![Destination::to(receiver.address); destinations];
        let expected = callbacks.tally().times(destinations as u64);
        let gateway = Gateway::start(site.path(), &store, &all).await?;
        let warm = receiver.wait_for((warm_up * destinations) as u64, PATIENCE).await?;
        let (begun, cpu) = (Instant::now(), gateway.process.cpu()?);
        receiver.wait_for(expected.count, PATIENCE).await?;
        let elapsed = begun.elapsed();
        tokio::time::sleep(SETTLED).await;
        let cpu = gateway.process.cpu()? - cpu;
        gateway.stop().await?.must_be(callbacks.tally())?;
        let received = receiver.tally().await?;
        ensure!(received == expected, "the receiver has {received:?} instead of {expected:?}");
        // What came before the first look is warm-up; in the tiny size that may be all.
        Ok(Sample::new(usize::try_from(expected.count - warm.count)?, elapsed, cpu))
    }
}
