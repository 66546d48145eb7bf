//! One courier after another: should one panic, the next takes over from what the storage holds.
//!
//! Promise: a destination is without a courier for half a minute at most, whatever happens to one, unless it
//! was told to stop or the storage has been closed; the latter is said at error. What a courier that fell had
//! under way is cut with it: nothing of it was settled, so its successor begins it anew.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use chaski_common::storage::{Cursor, StorageError};
use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{Courier, Fixed};
use crate::metrics::Task;
use crate::reading::Reading;
use crate::store::Look;

/// First and longest time between a courier's fall and its successor.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_LAST: Duration = Duration::from_secs(30);
/// A courier that lasted so long leaves its successor without a debt of waits.
const STEADY_AFTER: Duration = Duration::from_secs(60);

/// What a courier must know before its first step, as the storage has it.
pub(crate) struct Opening {
    pub(super) reading: Reading,
    pub(super) parked: Look,
}

impl Fixed {
    /// Opens the destination's cursor. The look comes last: opening a cursor is a write, so what a courier
    /// before this one had left in the queue of writes is done by then, and seen.
    pub(crate) async fn open(&self) -> Result<Opening, StorageError> {
        let reading = self.store.read(Cursor::of(self.spec.name.clone()), self.start).await?;
        let parked = self.store.look(self.clock.now(), 0).await?;
        Ok(Opening { reading, parked })
    }
}

/// The couriers of one destination.
pub(super) struct Relay {
    pub(super) fixed: Arc<Fixed>,
    pub(super) stop: watch::Receiver<Option<Instant>>,
}

impl Relay {
    /// Runs until it is told to stop, or nobody can tell it any more.
    pub(super) async fn run(mut self, first: Option<Opening>) {
        let name = self.fixed.spec.name.clone();
        let (mut opening, mut waits, mut told) = (first, waits(), false);
        loop {
            let began = Instant::now();
            match AssertUnwindSafe(Box::pin(self.leg(opening.take()))).catch_unwind().await {
                Ok(Ok(())) => return,
                Ok(Err(error @ StorageError::Closed)) => {
                    tracing::error!(destination = %name, %error, "nothing is delivered there until a restart");
                    return;
                }
                Ok(Err(error)) => {
                    if !std::mem::replace(&mut told, true) {
                        if error.is_transient() {
                            tracing::warn!(destination = %name, %error, "the destination cannot be opened; trying on");
                        } else {
                            tracing::error!(destination = %name, %error, "the destination cannot be opened; trying on");
                        }
                    }
                }
                Err(_) => {
                    self.fixed.view.metrics.panicked(Task::Courier);
                    tracing::error!(destination = %name, "the courier panicked; another one takes over");
                }
            }
            if began.elapsed() >= STEADY_AFTER {
                (waits, told) = (self::waits(), false);
            }
            tokio::select! {
                _ = told_to_stop(&mut self.stop) => return,
                () = sleep(waits.next().unwrap_or(AGAIN_LAST)) => {}
            }
        }
    }

    /// One courier, from its opening to its end.
    async fn leg(&mut self, opening: Option<Opening>) -> Result<(), StorageError> {
        let opening = match opening {
            Some(opening) => opening,
            None => tokio::select! {
                biased;
                _ = told_to_stop(&mut self.stop) => return Ok(()),
                opening = self.fixed.open() => opening?,
            },
        };
        Courier::new(self.fixed.clone(), opening).run(&mut self.stop).await
    }
}

/// Waits for the word to stop, and returns until when. Nobody left to say it is the word as well.
pub(super) async fn told_to_stop(stop: &mut watch::Receiver<Option<Instant>>) -> Instant {
    stop.wait_for(Option::is_some).await.ok().and_then(|deadline| *deadline).unwrap_or_else(Instant::now)
}

fn waits() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(AGAIN_FIRST)
        .with_max_delay(AGAIN_LAST)
        .without_max_times()
        .build()
}
