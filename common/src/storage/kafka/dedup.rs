//! Whether an id is new: reserve, publish, then confirm or release.
//!
//! Contract: of any number of concurrent reservations of one id exactly one is [`Claim::Mine`], as far as the
//! memory reaches. Confirmed is only what is durable, so that a memory that fails, forgets or is emptied can
//! let a duplicate through and never swallows a first. No call fails: in doubt an id is new.

pub(super) mod address;
mod batch;
mod link;
pub(super) mod recent;
mod room;
pub(super) mod server;
pub(super) mod shared;

use async_trait::async_trait;

use crate::event::{EventId, Fingerprint};

/// What is known of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// New; whoever asked has to confirm or release it.
    Mine,
    /// The same, as far as this process knows: who else may have it could not be asked.
    Alone,
    /// Somebody else is storing it.
    Pending,
    /// Durable, with this content.
    Known(Fingerprint),
}

/// See the module. Implemented by the memory of this process and by Redis on top of it.
#[async_trait]
pub(super) trait Dedup: Send + Sync {
    async fn reserve(&self, id: EventId) -> Claim;

    /// The event is durable. Nobody waits for what others are told of it.
    fn confirm(&self, id: EventId, fingerprint: Fingerprint);

    /// The event may not be durable: whoever sends it again is welcome.
    fn release(&self, id: EventId);

    /// What was found in the log when the storage opened.
    fn remember(&self, id: EventId, fingerprint: Fingerprint);

    /// Tells the others what they have not been told yet, before the storage closes.
    async fn flush(&self) {}
}
