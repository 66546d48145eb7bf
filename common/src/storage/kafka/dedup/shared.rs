//! The ids that all edges share, in Redis; beside it the memory of this process.
//!
//! An id is *pending* for as long as its lease, under a token of whoever stores it, and *done* for the window
//! once it is durable. Redis gets 50 ms; when it is slow, gone or out of memory, events go on without it, and
//! it is left alone for a second, so that it costs one event in a while and not each its 50 ms.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use prometheus::{IntGauge, Registry};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, RedisError, RedisResult, Script};

use super::recent::Recent;
use super::{Claim, Dedup};
use crate::event::{EventId, Fingerprint};
use crate::metrics::Metrics;
use crate::storage::StorageError;
use crate::storage::kafka::Redis;

/// What one question may take.
const ANSWER_WITHIN: Duration = Duration::from_millis(50);
/// How long Redis is left alone after it failed.
const ALONE: Duration = Duration::from_secs(1);
/// How long an id stays reserved for somebody who does not come back: longer than an append takes.
const LEASE: Duration = Duration::from_secs(10);
/// Deletes a reservation that is ours.
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

pub(in crate::storage::kafka) struct Shared {
    local: Recent,
    connection: ConnectionManager,
    prefix: String,
    window_seconds: u64,
    /// This process; with a number it is the token of one reservation.
    process: String,
    reservations: AtomicU64,
    tokens: Mutex<HashMap<EventId, String>>,
    release: Script,
    failed_at: Mutex<Option<Instant>>,
    told: AtomicBool,
    degraded: IntGauge,
}

impl Shared {
    /// Connects when there is something to ask, and again whenever it has to.
    pub(in crate::storage::kafka) fn new(
        settings: &Redis,
        prefix: &str,
        registry: &Registry,
    ) -> Result<Arc<Self>, StorageError> {
        let doing = "connecting to redis";
        let failed = |error: RedisError| StorageError::Engine { doing, source: Arc::new(error) };
        let url = std::str::from_utf8(settings.url.expose()).unwrap_or_default();
        let client = Client::open(url).map_err(failed)?;
        let config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(ANSWER_WITHIN))
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_max_delay(ALONE);
        let connection = ConnectionManager::new_lazy_with_config(client, config).map_err(failed)?;
        let metrics = Metrics(registry);
        Ok(Arc::new(Self {
            local: Recent::default(),
            connection,
            prefix: format!("{prefix}:dedup:"),
            window_seconds: settings.window.as_secs().max(1),
            process: format!("p:{:016x}", RandomState::new().build_hasher().finish()),
            reservations: AtomicU64::new(0),
            tokens: Mutex::default(),
            release: Script::new(RELEASE),
            failed_at: Mutex::new(None),
            told: AtomicBool::new(false),
            degraded: metrics.gauge("chaski_dedup_degraded", "1 while events go on without Redis."),
        }))
    }

    /// Runs a question to Redis; none if it did not answer, or is left alone.
    async fn ask<T>(&self, question: impl Future<Output = RedisResult<T>>) -> Option<T> {
        let alone = *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        if alone.is_some_and(|since| since.elapsed() < ALONE) {
            return None;
        }
        let why = match tokio::time::timeout(ANSWER_WITHIN, question).await {
            Ok(Ok(answer)) => {
                if alone.is_some() {
                    self.failed_at.lock().unwrap_or_else(PoisonError::into_inner).take();
                    self.degraded.set(0);
                    if self.told.swap(false, Ordering::Relaxed) {
                        tracing::info!("redis answers again");
                    }
                }
                return Some(answer);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.degraded.set(1);
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                error = why,
                "redis does not do its part; duplicates of other edges may come through"
            );
        }
        None
    }

    fn key(&self, id: EventId) -> String {
        format!("{}{id}", self.prefix)
    }

    fn tokens(&self) -> MutexGuard<'_, HashMap<EventId, String>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Dedup for Shared {
    async fn reserve(&self, id: EventId) -> Claim {
        match self.local.reserve(id).await {
            Claim::Mine => self.reserve_there(id).await,
            claim => claim,
        }
    }

    async fn confirm(&self, id: EventId, fingerprint: Fingerprint) {
        self.local.confirm(id, fingerprint).await;
        self.tokens().remove(&id);
        let mut connection = self.connection.clone();
        let mut set = redis::cmd("SET");
        set.arg(self.key(id)).arg(format!("d:{}", hex::encode(fingerprint.as_bytes())));
        set.arg("EX").arg(self.window_seconds);
        self.ask(async { set.query_async::<()>(&mut connection).await }).await;
    }

    async fn release(&self, id: EventId) {
        self.local.release(id).await;
        let Some(token) = self.tokens().remove(&id) else { return };
        let mut connection = self.connection.clone();
        let mut release = self.release.key(self.key(id));
        release.arg(token);
        self.ask(async { release.invoke_async::<i64>(&mut connection).await }).await;
    }

    fn remember(&self, id: EventId, fingerprint: Fingerprint) {
        self.local.remember(id, fingerprint);
    }
}

impl Shared {
    /// Asks the others for an id that is new here.
    async fn reserve_there(&self, id: EventId) -> Claim {
        let token = format!("{}:{}", self.process, self.reservations.fetch_add(1, Ordering::Relaxed));
        let mut connection = self.connection.clone();
        let mut set = redis::cmd("SET");
        set.arg(self.key(id)).arg(&token).arg("NX").arg("GET");
        set.arg("PX").arg(u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX));
        let Some(found) = self.ask(async { set.query_async::<Option<String>>(&mut connection).await }).await
        else {
            // It may have been reserved all the same; the lease ends that.
            return Claim::Mine;
        };
        let Some(found) = found else {
            self.tokens().insert(id, token);
            return Claim::Mine;
        };
        let mut bytes = [0; 16];
        let done =
            found.strip_prefix("d:").is_some_and(|digits| hex::decode_to_slice(digits, &mut bytes).is_ok());
        if done {
            let fingerprint = Fingerprint::from_bytes(bytes);
            self.local.confirm(id, fingerprint).await;
            return Claim::Known(fingerprint);
        }
        self.local.release(id).await;
        Claim::Pending
    }
}
