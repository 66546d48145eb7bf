//! Questions to Redis, many in one round trip: what gathers while one is under way goes with the next.
//!
//! A batch gets 50 ms. When Redis is slow, gone or out of memory, it is left alone for a second, so that it costs
//! one batch in a while and not each its 50 ms; who asks meanwhile is told at once that nobody answers. One server gets a
//! batch as one pipeline. A cluster takes no pipeline across slots: there each question goes to the node that has its
//! key, all of a batch at once, and those that are answered count even where a node is missing.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use prometheus::IntGauge;
use redis::{Cmd, Pipeline, RedisResult, Value};
use tokio::sync::{mpsc, oneshot};

use super::address::Connection;
use super::link::Link;
use crate::event::{EventId, Fingerprint};

/// What one batch may take.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_millis(50);
/// How long Redis is left alone after it failed.
const ALONE: Duration = Duration::from_secs(1);
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
    pub(super) link: Link,
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
            let (answers, failed) = self.ask_all(&asks).await;
            for (ask, answer) in asks.drain(..).zip(answers) {
                if let Some(value) = answer {
                    ask.answer(&value);
                }
            }
            match failed {
                None => {
                    if failed_at.take().is_some() {
                        self.degraded.set(0);
                        tracing::info!("redis answers again");
                    }
                }
                Some(error) => {
                    if failed_at.replace(Instant::now()).is_none() {
                        let why = "redis does not do its part; duplicates of other edges may come through";
                        tracing::warn!(error, "{why}");
                    }
                    self.degraded.set(1);
                    self.link.doubt();
                }
            }
        }
    }

    /// What was answered to each question, in their order, and what failed, if anything did.
    async fn ask_all(&mut self, asks: &[Ask]) -> (Vec<Option<Value>>, Option<String>) {
        let deadline = tokio::time::Instant::now() + ANSWER_WITHIN;
        let late = || format!("no answer within {ANSWER_WITHIN:?}");
        let nothing = |error: String| (vec![None; asks.len()], Some(error));
        let connection = match tokio::time::timeout_at(deadline, self.link.ready()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return nothing(error.to_string()),
            Err(_) => return nothing(late()),
        };
        let commands = asks.iter().map(|ask| self.command(ask));
        match connection {
            Connection::Server(mut server) => {
                let mut batch = Pipeline::with_capacity(asks.len());
                for command in commands {
                    batch.add_command(command);
                }
                let answers = tokio::time::timeout_at(deadline, batch.query_async(&mut server)).await;
                let answered: Result<RedisResult<Vec<Value>>, _> = answers;
                match answered {
                    Ok(Ok(values)) => (values.into_iter().map(Some).collect(), None),
                    Ok(Err(error)) => nothing(error.to_string()),
                    Err(_) => nothing(late()),
                }
            }
            Connection::Cluster(cluster) => {
                let answers = commands.map(|command| {
                    let mut cluster = cluster.clone();
                    async move { tokio::time::timeout_at(deadline, command.query_async(&mut cluster)).await }
                });
                let mut failed = None;
                let answers = join_all(answers).await.into_iter().map(|answer| match answer {
                    Ok(Ok(value)) => Some(value),
                    Ok(Err(error)) => {
                        failed = Some(error.to_string());
                        None
                    }
                    Err(_) => {
                        failed.get_or_insert_with(late);
                        None
                    }
                });
                (answers.collect(), failed)
            }
        }
    }

    fn command(&self, ask: &Ask) -> Cmd {
        let key = |id: &EventId| format!("{}{id}", self.prefix);
        let token = |number: &u64| format!("{}:{number}", self.process);
        match ask {
            Ask::Reserve { id, token: number, .. } => {
                let mut command = redis::cmd("SET");
                command.arg(key(id)).arg(token(number)).arg("NX").arg("GET");
                command.arg("PX").arg(u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX)).take()
            }
            Ask::Confirm { id, fingerprint } => {
                let mut command = redis::cmd("SET");
                command.arg(key(id)).arg(format!("d:{}", hex::encode(fingerprint.as_bytes())));
                command.arg("EX").arg(self.window_seconds).take()
            }
            Ask::Release { id, token: number } => {
                redis::cmd("EVAL").arg(RELEASE).arg(1).arg(key(id)).arg(token(number)).take()
            }
            Ask::Flush(_) => redis::cmd("PING"),
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
