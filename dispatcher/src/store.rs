//! The storage as a courier uses it: each write is tried until it is acknowledged or the storage is closed.
//!
//! Promise: `Ok` means durable. Nothing is settled on anything else.

use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use chaski_common::storage::{
    Control, Controls, Cursor, Delivered, Parked, ParkedFilter, Position, Start, Storage, StorageError,
};
use jiff::Timestamp;
use tokio::sync::watch;

use crate::attempt::Reason;
use crate::delivery::{Delivery, Origin};
use crate::destination::{DestinationSpec, Ordering};
use crate::lane::Limits;
use crate::reading::Reading;

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// The storage, for one destination.
#[derive(Clone)]
pub(crate) struct Store {
    storage: Storage,
    destination: Arc<str>,
    ordered: bool,
    limits: Limits,
}

/// A write that ends a delivery's stay with its courier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Until it is due.
    Parked { due: Timestamp },
    /// As a dead letter.
    Dead { reason: Reason, at: Timestamp },
    /// As delivered; for one that was parked, or may be while a replay has delivered it.
    Delivered { at: Timestamp },
}

/// What a write of [`Keep`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// What was to be written is.
    Written,
    /// There was nothing to write. Of what a replay delivered nothing was parked, or of what it did not deliver
    /// something is, and stays as it is; or an operator has dropped in the meantime what was to be parked once more.
    Nothing,
}

/// What the storage has parked for a destination.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Due, the longest waiting first.
    pub(crate) due: Vec<Parked>,
    /// When the first of all is due.
    pub(crate) next_due: Option<Timestamp>,
    /// All of them.
    pub(crate) count: u64,
    /// Subjects that have parked deliveries, and how many; only where deliveries are ordered.
    pub(crate) held: Vec<(Arc<str>, u64)>,
}

impl Store {
    pub(crate) fn new(storage: Storage, spec: &DestinationSpec, parked_max: u64) -> Self {
        Self {
            storage,
            destination: spec.name.clone(),
            ordered: spec.ordering == Ordering::Key,
            limits: Limits::within(parked_max),
        }
    }

    /// Opens one of the destination's cursors.
    pub(crate) async fn read(&self, cursor: Cursor, start: Start) -> Result<Reading, StorageError> {
        let subscription = self.storage.events.subscribe(&cursor, start, self.limits.batch).await?;
        Ok(Reading::new(cursor, subscription, self.limits))
    }

    /// Opens the cursor of a replay. Fails only when the storage is closed.
    pub(crate) async fn join(&self, replay: Cursor) -> Result<Reading, StorageError> {
        self.insist(|| self.read(replay.clone(), Start::Beginning)).await
    }

    /// What operators say, of all destinations.
    pub(crate) fn controls(&self) -> watch::Receiver<Controls> {
        self.storage.events.controls()
    }

    /// What operators say of this destination.
    pub(crate) fn control(&self) -> Control {
        self.controls().borrow().get(&self.destination).cloned().unwrap_or_default()
    }

    /// Reads what is parked, and at most `limit` of those that are due.
    pub(crate) async fn look(&self, now: Timestamp, limit: usize) -> Result<Look, StorageError> {
        let (deliveries, name) = (&self.storage.deliveries, &*self.destination);
        let count = deliveries.parked_count(name).await?;
        if count == 0 {
            return Ok(Look::default());
        }
        Ok(Look {
            due: if limit == 0 { Vec::new() } else { deliveries.due(name, now, self.ordered, limit).await? },
            next_due: deliveries.next_due(name, self.ordered).await?,
            count,
            held: if self.ordered { deliveries.held_subjects(name).await? } else { Vec::new() },
        })
    }

    /// The subjects that have something parked, and how much. Fails only when the storage is closed.
    pub(crate) async fn held(&self) -> Result<Vec<(Arc<str>, u64)>, StorageError> {
        self.insist(|| self.storage.deliveries.held_subjects(&self.destination)).await
    }

    /// Makes the end of a delivery's stay durable. Fails only when the storage is closed.
    pub(crate) async fn keep(&self, delivery: &Delivery, what: Keep) -> Result<Kept, StorageError> {
        let deliveries = &self.storage.deliveries;
        self.insist(|| async {
            if delivery.replayed {
                // What is parked of the same event has attempts of its own behind it: a replay ends it by delivering.
                let is_delivered = matches!(what, Keep::Delivered { .. });
                if self.is_parked(delivery).await? != is_delivered {
                    return Ok(Kept::Nothing);
                }
            }
            match what {
                Keep::Parked { due } if delivery.origin == Origin::Parked => {
                    let again = deliveries.park_again(delivery.parked(&self.destination, due));
                    return Ok(if again.await? { Kept::Written } else { Kept::Nothing });
                }
                Keep::Parked { due } => deliveries.park(delivery.parked(&self.destination, due)).await?,
                Keep::Dead { reason, at } => {
                    deliveries.bury(delivery.letter(&self.destination, reason, at)).await?;
                }
                Keep::Delivered { at } => {
                    let delivered = delivery.delivered(at);
                    deliveries.complete(&self.destination, delivery.event.id, delivered).await?;
                }
            }
            Ok(Kept::Written)
        })
        .await
    }

    async fn is_parked(&self, delivery: &Delivery) -> Result<bool, StorageError> {
        let of_it = ParkedFilter {
            destination: Some(self.destination.to_string()),
            id: Some(delivery.event.id),
            limit: 1,
            ..ParkedFilter::default()
        };
        Ok(!self.storage.deliveries.parked(of_it).await?.is_empty())
    }

    /// Makes a lane's progress durable. Fails only when the storage is closed or the partition is lost.
    pub(crate) async fn settle(
        &self,
        cursor: &Cursor,
        mark: Position,
        delivered: &[Delivered],
    ) -> Result<(), StorageError> {
        self.insist(|| self.storage.events.settle(cursor, mark, delivered.to_vec())).await
    }

    /// Ends a replay. Fails only when the storage is closed.
    pub(crate) async fn end_replay(&self, cursor: &Cursor) -> Result<(), StorageError> {
        self.insist(|| self.storage.events.end_replay(cursor)).await
    }

    /// A poisoned store is asked again, too: it heals by a restart, which ends this wait, and until then
    /// nothing may be taken for settled.
    async fn insist<T, F: Future<Output = Result<T, StorageError>>>(
        &self,
        write: impl FnMut() -> F,
    ) -> Result<T, StorageError> {
        let backoff = ExponentialBuilder::new()
            .with_min_delay(RETRY_FIRST)
            .with_max_delay(RETRY_LAST)
            .with_jitter()
            .without_max_times();
        let mut told = false;
        write
            .retry(backoff)
            .sleep(tokio::time::sleep)
            .when(|error| !matches!(error, StorageError::Closed | StorageError::Revoked { .. }))
            .notify(|error, _| {
                if std::mem::replace(&mut told, true) {
                } else if error.is_transient() {
                    tracing::warn!(destination = %self.destination, %error, "storage does not do its part; trying on");
                } else {
                    tracing::error!(destination = %self.destination, %error, "storage does not do its part; trying on until a restart");
                }
            })
            .await
    }
}
