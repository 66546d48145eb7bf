//! The dispatcher: from a full store to 1, 3 and 8 destinations, in turns with a bare client that makes as many posts,
//! as many at once. Both have all their work from the beginning: whoever's turn it is not is paused.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use super::turns::by_turns;
use super::{Bench, CONNECTIONS, Counts, PATIENCE, Scenario};
use crate::callback::{Callbacks, Signature};
use crate::gateway::{Destination, Gateway};
use crate::load::{Expected, Senders};
use crate::null::Manner;
use crate::process::{self, LOOK, Null, Process};
use crate::report::{CPU, Figure, Goal, RATE, Report, Sample, Unit};
use crate::store::On;

/// A lane settles every 200 ms; that belongs to the cost of delivering.
const SETTLED: Duration = Duration::from_millis(250);

/// Who delivers all that it has to a receiver, in turns.
struct Side<'s> {
    process: &'s mut Process,
    receiver: &'s Null,
    /// What was delivered before the first turn, and the CPU time until then.
    warm_up: u64,
    cpu: Duration,
    /// Time of its turns.
    elapsed: Duration,
}

impl<'s> Side<'s> {
    /// Pauses it when so many are delivered. What has come by the first look is warm-up; in the tiny size that may be all.
    async fn warm(process: &'s mut Process, receiver: &'s Null, warm_up: usize) -> anyhow::Result<Self> {
        let mut side = Self { process, receiver, warm_up: 0, cpu: Duration::ZERO, elapsed: Duration::ZERO };
        side.run_until(warm_up).await?;
        // What it posted last is taken by then.
        tokio::time::sleep(LOOK).await;
        (side.warm_up, side.cpu) = (receiver.tally().await?.count, side.process.cpu()?);
        side.elapsed = Duration::ZERO;
        Ok(side)
    }

    /// Lets it run until so many have been delivered in all.
    async fn run_until(&mut self, count: usize) -> anyhow::Result<()> {
        let begun = Instant::now();
        self.process.resume()?;
        tokio::select! {
            delivered = self.receiver.wait_for(count as u64, PATIENCE) => delivered?,
            status = self.process.ended() => bail!("who delivers has ended with {}", status?),
        };
        self.elapsed += begun.elapsed();
        self.process.pause()
    }

    /// What it did in its turns. It runs again.
    async fn sample(self) -> anyhow::Result<Sample> {
        self.process.resume()?;
        tokio::time::sleep(SETTLED).await;
        let cpu = self.process.cpu()? - self.cpu;
        let delivered = self.receiver.tally().await?.count - self.warm_up;
        Ok(Sample::new(usize::try_from(delivered)?, self.elapsed, cpu))
    }
}

impl Bench {
    pub(super) async fn deliver(&self, on: On, report: &mut Report) -> anyhow::Result<()> {
        for &destinations in self.counts.destinations {
            // The work is the same whatever their number.
            let events = self.counts.deliveries / destinations;
            let [baseline, measured] = self.dispatch(on, events, destinations).await?;
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

    /// The bare client, and the gateway on a store that was filled with nobody to deliver to.
    async fn dispatch(&self, on: On, events: usize, destinations: usize) -> anyhow::Result<[Sample; 2]> {
        let (warm_up, measured) = (Counts::warm_up(events) * destinations, events * destinations);
        let callbacks = Arc::new(Callbacks::render(0, Counts::warm_up(events) + events, Signature::Right)?);
        let site = self.site()?;
        let store = self.store(&site, on);
        let gateway = Gateway::start(site.path(), &store, &[]).await?;
        let mut senders = Senders::connect(gateway.edge, CONNECTIONS).await?;
        senders.post(&callbacks, callbacks.count(), Expected::Accepted).await?;
        drop(senders);
        gateway.end().await?;

        let receivers = [Null::start(Manner::Tally)?, Null::start(Manner::Tally)?];
        let [from_bare, from_chaski] = &receivers;
        let mut bare = process::bare_client(from_bare.address, callbacks.count(), destinations)?;
        let baseline = Side::warm(&mut bare, from_bare, warm_up).await?;
        let all = vec![Destination::to(from_chaski.address); destinations];
        let mut gateway = Gateway::start(site.path(), &store, &all).await?;
        let mut sides = [baseline, Side::warm(&mut gateway.process, from_chaski, warm_up).await?];
        let turn =
            async |side: &mut Side<'_>, numbers: Range<usize>| side.run_until(warm_up + numbers.end).await;
        by_turns(&mut sides, measured, turn).await?;
        let [baseline, measured] = sides;
        let samples = [baseline.sample().await?, measured.sample().await?];
        gateway.stop().await?.must_be(callbacks.tally())?;
        let expected = callbacks.tally().times(destinations as u64);
        for receiver in &receivers {
            let received = receiver.tally().await?;
            ensure!(received == expected, "a receiver has {received:?} instead of {expected:?}");
        }
        Ok(samples)
    }
}
