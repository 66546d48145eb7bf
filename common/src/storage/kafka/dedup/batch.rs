//! Questions to Redis, many in one round trip: what gathers while one is under way goes with the next, and where many ask at
//! once that one waits a moment for more. Asked by a thread of their own, where a question and its answer are two looks at one
//! socket, and no way between several workers.
//!
//! A batch gets 50 ms. When Redis is slow, gone or out of memory, it is left alone for a second, so that it costs
//! one batch in a while and not each its 50 ms; who asks meanwhile is told at once that nobody answers. One server gets a
//! batch as one pipeline. A cluster takes no pipeline across slots: there each question goes to the node that has its
//! key, all of a batch at once, and those that are answered count even where a node is missing.
//!
//! What is durable and could not be said is said when Redis answers again; otherwise an event of an outage would be new to
//! the other edges for as long as its sender repeats it.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use prometheus::IntGauge;
use redis::{Cmd, Pipeline, RedisResult, RedisWrite, ToRedisArgs, Value};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::address::{Address, Connection};
use super::link::Link;
use crate::event::{EventId, Fingerprint};
use crate::post::together;
use crate::storage::StorageError;

/// What one batch may take.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_millis(50);
/// How long Redis is left alone after it failed.
const ALONE: Duration = Duration::from_secs(1);
/// How long an id stays reserved for somebody who does not come back: longer than an append takes.
const LEASE: Duration = Duration::from_secs(10);
/// Questions of one batch, and those that may wait for the next.
const BATCH_MAX: usize = 256;
const WAITING_MAX: usize = 16 * 1024;
/// Questions of one batch that make the next one wait for [`LINGER`].
const CROWD_MIN: usize = 4;
/// How long it waits, and what the system's timer adds (50 µs on Linux): a round trip is dear to either side, and the same
/// for ten questions as for fifty.
const LINGER: Duration = Duration::from_micros(150);
/// Room for a command.
const ARGUMENTS_MAX: usize = 7;
const ARGUMENT_BYTES: usize = 160;
/// What the fingerprint of a durable event stands behind.
const DONE: &str = "d:";
/// Deletes a reservation that is ours.
pub(super) const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// What the keys of ids begin with.
pub(super) fn keys_of(topic_prefix: &str) -> String {
    format!("{topic_prefix}:dedup:")
}

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
    pub(super) address: Address,
    /// What keys begin with.
    pub(super) prefix: String,
    /// This process; with a number behind it it is the token of one reservation.
    pub(super) process: String,
    pub(super) window_seconds: u64,
    pub(super) degraded: IntGauge,
}

impl Asker {
    /// Begins to connect, and answers until nobody can ask any more.
    pub(super) fn start(self) -> Result<mpsc::Sender<Ask>, StorageError> {
        let failed = |error: io::Error| StorageError::Engine {
            doing: "starting to ask redis",
            cause: Arc::new(error),
        };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (asks, waiting) = mpsc::channel(WAITING_MAX);
        // A task, since what wakes a runtime's own future is a write to its eventfd, from the same thread, too.
        let asking = move || runtime.block_on(async { tokio::spawn(self.run(waiting)).await });
        thread::Builder::new().name("chaski-redis".to_owned()).spawn(asking).map_err(failed)?;
        Ok(asks)
    }

    async fn run(self, mut waiting: mpsc::Receiver<Ask>) {
        let mut link = Link::start(self.address.clone());
        let mut asks = Vec::with_capacity(2 * BATCH_MAX);
        let mut unsaid = Unsaid::default();
        let mut failed_at: Option<Instant> = None;
        let mut is_crowd = false;
        loop {
            if is_crowd {
                linger();
            }
            let gathered = waiting.recv_many(&mut asks, BATCH_MAX);
            // What is to be said does not wait for somebody to ask.
            let gathered = if unsaid.0.is_empty() {
                Ok(gathered.await)
            } else {
                let pause = if failed_at.is_some() { ALONE } else { Duration::ZERO };
                timeout(pause, gathered).await
            };
            if gathered == Ok(0) {
                return;
            }
            let is_last = asks.iter().any(|ask| matches!(ask, Ask::Flush(_)));
            if !is_last && failed_at.is_some_and(|since| since.elapsed() < ALONE) {
                asks.drain(..).for_each(|ask| unsaid.keep(ask));
                continue;
            }
            unsaid.join(&mut asks);
            let (answers, failed) = self.ask_all(&mut link, &asks).await;
            is_crowd = failed.is_none() && asks.len() >= CROWD_MIN;
            together(|| {
                for (ask, answer) in asks.drain(..).zip(answers) {
                    match answer {
                        Some(value) => ask.answer(&value),
                        None => unsaid.keep(ask),
                    }
                }
            });
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
                    link.doubt();
                }
            }
        }
    }

    /// What was answered to each question, in their order, and what failed, if anything did.
    async fn ask_all(&self, link: &mut Link, asks: &[Ask]) -> (Vec<Option<Value>>, Option<String>) {
        let deadline = tokio::time::Instant::now() + ANSWER_WITHIN;
        let late = || format!("no answer within {ANSWER_WITHIN:?}");
        let nothing = |error: String| (vec![None; asks.len()], Some(error));
        let connection = match tokio::time::timeout_at(deadline, link.ready()).await {
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
        let (digits, content) = (&mut [0; 32], &mut [0; 32]);
        let mut command = Cmd::with_capacity(ARGUMENTS_MAX, ARGUMENT_BYTES);
        match ask {
            Ask::Reserve { id, token, .. } => {
                let lease = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
                let token = token.to_string();
                command
                    .arg("SET")
                    .arg(Joined(&self.prefix, id.encode(digits)))
                    .arg(Joined(&self.process, &token));
                command.arg("NX").arg("GET").arg("PX").arg(lease);
            }
            Ask::Confirm { id, fingerprint } => {
                let done = Joined(DONE, fingerprint.encode(content));
                command
                    .arg("SET")
                    .arg(Joined(&self.prefix, id.encode(digits)))
                    .arg(done)
                    .arg("EX")
                    .arg(self.window_seconds);
            }
            Ask::Release { id, token } => {
                let token = token.to_string();
                command
                    .arg("EVAL")
                    .arg(RELEASE)
                    .arg(1)
                    .arg(Joined(&self.prefix, id.encode(digits)))
                    .arg(Joined(&self.process, &token));
            }
            Ask::Flush(_) => {
                command.arg("PING");
            }
        }
        command
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "nothing else is on this thread, and who asks meanwhile need not wake it"
)]
fn linger() {
    thread::sleep(LINGER);
}

/// One argument of two parts, without a text of its own.
struct Joined<'a>(&'a str, &'a str);

impl ToRedisArgs for Joined<'_> {
    fn write_redis_args<W: RedisWrite + ?Sized>(&self, out: &mut W) {
        let mut argument = out.writer_for_next_arg();
        for part in [self.0, self.1] {
            // Into memory, which cannot fail.
            let _ = argument.write_all(part.as_bytes());
        }
    }
}

/// Confirmations that Redis has not heard, and who waits for them; the rest of what it did not answer nobody waits for.
#[derive(Default)]
struct Unsaid(VecDeque<Ask>);

impl Unsaid {
    /// Of more than there is room for the oldest go: they are repeated least.
    fn keep(&mut self, ask: Ask) {
        if !matches!(ask, Ask::Confirm { .. } | Ask::Flush(_)) {
            return;
        }
        if self.0.len() >= WAITING_MAX {
            self.0.pop_front();
        }
        self.0.push_back(ask);
    }

    /// Some of them go with a batch, ahead of what is asked in it; who waits for all of them waits behind the others.
    fn join(&mut self, asks: &mut Vec<Ask>) {
        let some = self.0.len().min(BATCH_MAX);
        let others = self.0.split_off(some);
        asks.splice(..0, std::mem::replace(&mut self.0, others));
        if !self.0.is_empty() {
            self.0.extend(asks.extract_if(.., |ask| matches!(ask, Ask::Flush(_))));
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
        let is_done = |digits| hex::decode_to_slice(digits, &mut bytes).is_ok();
        if found.strip_prefix(DONE.as_bytes()).is_some_and(is_done) {
            Self::Done(Fingerprint::from_bytes(bytes))
        } else {
            Self::Pending
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_flush(ask: &Ask) -> bool {
        matches!(ask, Ask::Flush(_))
    }

    #[test]
    fn who_waits_for_everything_to_be_said_waits_behind_it() {
        let mut unsaid = Unsaid::default();
        let confirmation = || Ask::Confirm {
            id: EventId::from_bytes([1; 16]),
            fingerprint: Fingerprint::from_bytes([2; 16]),
        };
        (0..BATCH_MAX + 1).for_each(|_| unsaid.keep(confirmation()));
        let mut asks = vec![Ask::Flush(oneshot::channel().0), confirmation()];
        unsaid.join(&mut asks);
        assert_eq!((asks.len(), asks.iter().any(is_flush)), (BATCH_MAX + 1, false));
        let mut asks = Vec::new();
        unsaid.join(&mut asks);
        assert_eq!((asks.len(), asks.last().is_some_and(is_flush)), (2, true));
        assert!(unsaid.0.is_empty());
    }
}
