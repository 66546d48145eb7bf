//! A courier's end in order: what is under way may finish, what cannot is cut, what is settled is written.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, timeout_at};

use super::{Courier, told_to_stop};
use crate::lane::Lane;

/// Time kept for the last settle when the deadline of a stop has passed.
pub(crate) const LAST_SETTLE: Duration = Duration::from_secs(2);

impl Courier {
    /// Lets attempts and writes under way end, parks what waits so that its time is kept, and settles. When
    /// this returns nothing of this courier is under way any more, so that another one may begin.
    /// A word that comes meanwhile may set an earlier deadline.
    pub(super) async fn stop(&mut self, mut deadline: Instant, stop: &mut watch::Receiver<Option<Instant>>) {
        self.stopping = true;
        // The subscriptions are kept, so that the partitions are still ours to settle.
        let now = Instant::now();
        for index in 0..self.lanes.len() {
            self.lanes[index].stop_reading();
            self.park_waits(index, now);
        }
        loop {
            tokio::select! {
                biased;
                Ok(()) = stop.changed() => deadline = told_to_stop(stop).await,
                () = self.until(deadline, |courier| courier.in_flight + courier.writing == 0) => break,
            }
        }
        let last = deadline.max(Instant::now() + LAST_SETTLE);
        self.until(last, |courier| !courier.lanes.iter().any(Lane::is_saving)).await;
        self.cut().await;
        self.save();
        self.until(last, |courier| !courier.lanes.iter().any(Lane::is_saving)).await;
        self.cut().await;
        self.show();
    }

    /// Takes reports until the state is reached, the deadline has passed, or the storage is closed.
    async fn until(&mut self, deadline: Instant, reached: impl Fn(&Self) -> bool) {
        while !self.closed && !reached(self) {
            match timeout_at(deadline, self.next_end()).await {
                Ok(Some(ended)) => self.ended(ended),
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Ends what has not ended by itself; what had ended just now is still heard of.
    async fn cut(&mut self) {
        while let Some(Some(report)) = unconstrained(self.attempts.next()).now_or_never() {
            self.ended(Ok(report));
        }
        self.attempts.clear();
        loop {
            // Again and again: a report may begin a write.
            self.tasks.abort_all();
            match self.tasks.join_next().await {
                Some(ended) => self.ended(ended),
                None => break,
            }
        }
        (self.in_flight, self.parked_in_flight, self.writing) = (0, 0, 0);
    }
}
