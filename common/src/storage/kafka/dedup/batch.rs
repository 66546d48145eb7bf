//! Questions to Redis, many in one round trip: what gathers while one is under way goes with the next.
//!
//! A batch gets 50 ms. When Redis is slow, gone or out of memory, it is left alone for a second, so that it costs
//! one batch in a while and not each its 50 ms; who asks meanwhile is told at once that nobody answers.

use std::time::{Duration, Instant};

use prometheus::IntGauge;
use redis::aio::ConnectionManager;
use redis::{Pipeline, RedisResult, Value};
use tokio::sync::{mpsc, oneshot};

use crate::event::{EventId, Fingerprint};

/// What one batch may take.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_millis(50);
/// How long Redis is left alone after it failed.
pub(super) const ALONE: Duration = Duration::from_secs(1);
/// How long an id stays reserved for somebody who does not come back: longer than an append takes.
const LEASE: Duration = Duration::from_secs(10);
/// Questions of one batch, and those that may wait for the next.
const BATCH_MAX: usize = 256;
const WAITING_MAX: usize = 16 * 1024;
/// Deletes a reservation that is ours.
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// A question.
pub(super) enum Ask {
    /// Reserves an id under a token, unless something is there.
    Reserve { id: EventId, token: u64, found: oneshot::Sender<Found> },
    /// Says that an event is durable. Nobody waits: until it is said, others find the reservation.
    Confirm { id: EventId, fingerprint: Fingerprint },
    /// Gives a reservation back.
    Release { id: EventId, token: u64 },
    /// Answers when all that was asked before has been.
    Flush(oneshot::Sender<()>),
}

/// What was found under an id. Dropped instead of sent: Redis did not answer.
pub(super) enum Found {
    Nothing,
    Pending,
    Done(Fingerprint),
}

/// What the questions are asked with.
pub(super) struct Asker {
    pub(super) connection: ConnectionManager,
    /// What keys begin with.
    pub(super) prefix: String,
    /// This process; with a number it is the token of one reservation.
    pub(super) process: String,
    pub(super) window_seconds: u64,
    pub(super) degraded: IntGauge,
}

impl Asker {
    /// Answers until nobody can ask any more.
    pub(super) fn start(self) -> mpsc::Sender<Ask> {
        let (asks, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(self.run(waiting));
        asks
    }

    async fn run(mut self, mut waiting: mpsc::Receiver<Ask>) {
        let mut asks = Vec::with_capacity(BATCH_MAX);
        let mut failed_at: Option<Instant> = None;
        while waiting.recv_many(&mut asks, BATCH_MAX).await > 0 {
            if failed_at.is_some_and(|since| since.elapsed() < ALONE) {
                asks.clear();
                continue;
            }
            match self.ask_all(&asks).await {
                Ok(values) => {
                    if failed_at.take().is_some() {
                        self.degraded.set(0);
                        tracing::info!("redis answers again");
                    }
                    asks.drain(..).zip(values).for_each(|(ask, value)| ask.answer(&value));
                }
                Err(error) => {
                    if failed_at.replace(Instant::now()).is_none() {
                        let why = "redis does not do its part; duplicates of other edges may come through";
                        tracing::warn!(error, "{why}");
                    }
                    self.degraded.set(1);
                    asks.clear();
                }
            }
        }
    }

    /// A value for each question, in their order.
    async fn ask_all(&mut self, asks: &[Ask]) -> Result<Vec<Value>, String> {
        let mut batch = Pipeline::with_capacity(asks.len());
        for ask in asks {
            self.add(&mut batch, ask);
        }
        let answers = batch.query_async(&mut self.connection);
        let answered: RedisResult<Vec<Value>> = tokio::time::timeout(ANSWER_WITHIN, answers)
            .await
            .map_err(|_| format!("no answer within {ANSWER_WITHIN:?}"))?;
        answered.map_err(|error| error.to_string())
    }

    fn add(&self, batch: &mut Pipeline, ask: &Ask) {
        let key = |id: &EventId| format!("{}{id}", self.prefix);
        let token = |number: &u64| format!("{}:{number}", self.process);
        match ask {
            Ask::Reserve { id, token: number, .. } => {
                batch.cmd("SET").arg(key(id)).arg(token(number)).arg("NX").arg("GET");
                batch.arg("PX").arg(u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX));
            }
            Ask::Confirm { id, fingerprint } => {
                batch.cmd("SET").arg(key(id)).arg(format!("d:{}", hex::encode(fingerprint.as_bytes())));
                batch.arg("EX").arg(self.window_seconds);
            }
            Ask::Release { id, token: number } => {
                batch.cmd("EVAL").arg(RELEASE).arg(1).arg(key(id)).arg(token(number));
            }
            Ask::Flush(_) => {
                batch.cmd("PING");
            }
        }
    }
}

impl Ask {
    fn answer(self, value: &Value) {
        // Who does not wait any more has gone on without it.
        match self {
            Self::Reserve { found, .. } => drop(found.send(Found::read(value))),
            Self::Flush(done) => drop(done.send(())),
            Self::Confirm { .. } | Self::Release { .. } => {}
        }
    }
}

impl Found {
    fn read(value: &Value) -> Self {
        let Value::BulkString(found) = value else { return Self::Nothing };
        let mut bytes = [0; 16];
        let is_done =
            found.strip_prefix(b"d:").is_some_and(|digits| hex::decode_to_slice(digits, &mut bytes).is_ok());
        if is_done { Self::Done(Fingerprint::from_bytes(bytes)) } else { Self::Pending }
    }
}
