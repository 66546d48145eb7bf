//! The ids that all edges share, in Redis; beside it the memory of this process.
//!
//! An id is *pending* for as long as its lease, under a token of whoever stores it, and *done* for the window
//! once it is durable. Where Redis does not answer, events go on without it and say so: what two edges store
//! meanwhile is stored twice, under one id.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use prometheus::Registry;
use tokio::sync::{mpsc, oneshot};

use super::address::Address;
use super::batch::{Ask, Asker, Found, keys_of};
use super::recent::Recent;
use super::room::Room;
use super::{Claim, Dedup};
use crate::event::{EventId, Fingerprint};
use crate::metrics::Metrics;
use crate::storage::StorageError;
use crate::storage::kafka::Redis;

/// How long the last questions may take when the storage closes.
const FLUSH_WITHIN: Duration = Duration::from_millis(200);

pub(in crate::storage::kafka) struct Shared {
    local: Recent,
    asks: mpsc::Sender<Ask>,
}

impl Shared {
    /// Begins to connect, and does it again whenever it has to.
    pub(in crate::storage::kafka) fn new(
        settings: &Redis,
        prefix: &str,
        registry: &Registry,
    ) -> Result<Arc<Self>, StorageError> {
        let asker = Asker {
            address: Address::of(settings)?,
            prefix: keys_of(prefix),
            process: format!("p:{:016x}:", RandomState::new().build_hasher().finish()),
            window_seconds: settings.window.as_secs().max(1),
            degraded: Metrics(registry).gauge("chaski_dedup_degraded", "1 while events go on without Redis."),
        };
        let asks = asker.start()?;
        Room::new(settings.clone(), registry).start(&asks);
        Ok(Arc::new(Self { local: Recent::default(), asks }))
    }

    /// Asks the others for an id that is new here, and reserved under this number.
    async fn reserve_there(&self, id: EventId, token: u64) -> Claim {
        let (found, answer) = oneshot::channel();
        if self.asks.try_send(Ask::Reserve { id, token, found }).is_err() {
            return Claim::Alone;
        }
        match answer.await {
            Ok(Found::Nothing) => Claim::Mine,
            Ok(Found::Pending) => {
                self.local.free(id);
                Claim::Pending
            }
            Ok(Found::Done(fingerprint)) => {
                self.local.remember(id, fingerprint);
                Claim::Known(fingerprint)
            }
            // It may have been reserved all the same; what is released, or the lease, ends that.
            Err(_) => Claim::Alone,
        }
    }
}

#[async_trait]
impl Dedup for Shared {
    async fn reserve(&self, id: EventId) -> Claim {
        match self.local.claim(id) {
            Ok(token) => self.reserve_there(id, token).await,
            Err(claim) => claim,
        }
    }

    fn confirm(&self, id: EventId, fingerprint: Fingerprint) {
        self.local.remember(id, fingerprint);
        // Where there is no room the lease ends, and an other edge may store it once more.
        let _ = self.asks.try_send(Ask::Confirm { id, fingerprint });
    }

    fn release(&self, id: EventId) {
        let Some(token) = self.local.free(id) else { return };
        let _ = self.asks.try_send(Ask::Release { id, token });
    }

    fn remember(&self, id: EventId, fingerprint: Fingerprint) {
        self.local.remember(id, fingerprint);
    }

    async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.asks.try_send(Ask::Flush(done)).is_ok() {
            let _ = tokio::time::timeout(FLUSH_WITHIN, flushed).await;
        }
    }
}
