//! The load: a fixed number of connections, each sending its next request when its last one is answered, until
//! a count is reached; or requests by a schedule that waits for no answer. Every answer is looked at; one that was not expected ends the run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::task::JoinSet;

use crate::callback::Callbacks;
use crate::machine;
use crate::wire::{Answer, Connection};

/// The longest a load may take; beyond it something stands still.
const PATIENCE: Duration = Duration::from_secs(180);

/// The status of a callback that was taken.
const TAKEN: u16 = 200;

/// What every answer must be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expected {
    Ok,
    Accepted,
    Duplicate,
    Refused,
    /// Refused, or not even looked at any more.
    Rejected,
}

impl Expected {
    fn is(self, answer: &Answer<'_>) -> bool {
        let (status, end): (&[u8], &[u8]) = match self {
            Self::Rejected => return [b"401", b"429"].iter().any(|status| answer.status == *status),
            Self::Ok => (b"200", b""),
            Self::Accepted => (b"200", b"\"accepted\"}"),
            Self::Duplicate => (b"200", b"\"duplicate\"}"),
            Self::Refused => (b"401", b""),
        };
        answer.status == status && answer.body.ends_with(end)
    }
}

/// What a load saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) elapsed: Duration,
    /// From the first byte sent to the last byte read, in microseconds, ascending.
    latencies_us: Vec<u32>,
}

impl Seen {
    pub(crate) fn new(elapsed: Duration, mut latencies_us: Vec<u32>) -> Self {
        latencies_us.sort_unstable();
        Self { elapsed, latencies_us }
    }

    pub(crate) fn count(&self) -> usize {
        self.latencies_us.len()
    }

    /// Both, one after the other.
    pub(crate) fn and(mut self, later: Self) -> Self {
        self.latencies_us.extend(later.latencies_us);
        Self::new(self.elapsed + later.elapsed, self.latencies_us)
    }

    /// The latency that this share of all requests did not exceed, in milliseconds.
    pub(crate) fn quantile_ms(&self, share: f64) -> f64 {
        let index = (self.count() as f64 * share) as usize;
        self.latencies_us.get(index).or(self.latencies_us.last()).map_or(0.0, |us| f64::from(*us) / 1000.0)
    }
}

/// What a load saw that may be refused in part.
pub(crate) struct Offered {
    pub(crate) taken: Seen,
    /// Latencies from when a request was sent.
    pub(crate) refused: Seen,
    /// How many answers had each status.
    pub(crate) statuses: BTreeMap<u16, usize>,
}

/// Open connections to one server.
pub(crate) struct Senders(Vec<Connection>);

impl Senders {
    pub(crate) async fn connect(to: SocketAddr, connections: usize) -> anyhow::Result<Self> {
        Self::connect_with(to, connections, |_| Vec::new()).await
    }

    /// Connections of which each begins with bytes of its own.
    pub(crate) async fn connect_with(
        to: SocketAddr,
        connections: usize,
        hello: impl Fn(usize) -> Vec<u8>,
    ) -> anyhow::Result<Self> {
        let mut open = Vec::with_capacity(connections);
        for number in 0..connections {
            open.push(Connection::open_with(to, hello(number)).await?);
        }
        Ok(Self(open))
    }

    /// Posts `count` callbacks, from the first on.
    pub(crate) async fn post(
        &mut self,
        callbacks: &Arc<Callbacks>,
        count: usize,
        expected: Expected,
    ) -> anyhow::Result<Seen> {
        self.post_these(callbacks, 0..count, expected).await
    }

    /// Posts the callbacks with these numbers.
    pub(crate) async fn post_these(
        &mut self,
        callbacks: &Arc<Callbacks>,
        numbers: Range<usize>,
        expected: Expected,
    ) -> anyhow::Result<Seen> {
        let (count, end) = (numbers.len(), numbers.end);
        let next = Arc::new(AtomicUsize::new(numbers.start));
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for connection in self.0.drain(..) {
            let (callbacks, next) = (Arc::clone(callbacks), Arc::clone(&next));
            tasks.spawn(send(connection, callbacks, next, end, expected));
        }
        let mut latencies_us = Vec::with_capacity(count);
        let finished = async {
            while let Some(sent) = tasks.join_next().await {
                let (connection, latencies) = sent??;
                latencies_us.extend(latencies);
                self.0.push(connection);
            }
            anyhow::Ok(begun.elapsed())
        };
        let elapsed = tokio::time::timeout(PATIENCE, finished)
            .await
            .with_context(|| format!("{count} requests were not answered within {PATIENCE:?}"))??;
        Ok(Seen::new(elapsed, latencies_us))
    }

    /// Sends each callback when it is due (microseconds since 1970), whether or not others are still unanswered: on
    /// a connection that is free, else on the first that becomes so. Latencies count from when it was due.
    pub(crate) async fn keep_to(
        &mut self,
        callbacks: &Arc<Callbacks>,
        due_us: impl Fn(usize) -> u64,
        expected: Expected,
    ) -> anyhow::Result<Seen> {
        Ok(self.offer(callbacks, callbacks.count(), due_us, expected).await?.taken)
    }

    /// The same with so many requests, of which some may be refused.
    pub(crate) async fn offer(
        &mut self,
        callbacks: &Arc<Callbacks>,
        count: usize,
        due_us: impl Fn(usize) -> u64,
        expected: Expected,
    ) -> anyhow::Result<Offered> {
        let connections = self.0.len();
        let (give_back, mut free) = tokio::sync::mpsc::channel(connections);
        for connection in self.0.drain(..) {
            give_back.try_send(connection).context("there is room for each")?;
        }
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        let schedule: Vec<u64> = (0..count).map(due_us).collect();
        let mut due = pace(schedule);
        let mut index = 0;
        while let Some(due_us) = due.recv().await {
            let mut connection = free.recv().await.context("connections come back")?;
            let (callbacks, give_back) = (Arc::clone(callbacks), give_back.clone());
            let request = index;
            index += 1;
            tasks.spawn(async move {
                let sent_us = machine::now_us();
                let status = exchange(&mut connection, callbacks.request(request), expected).await?;
                let since_us = if status == TAKEN { due_us } else { sent_us };
                let took = machine::now_us().saturating_sub(since_us);
                give_back.send(connection).await.context("somebody takes it back")?;
                anyhow::Ok((status, u32::try_from(took).unwrap_or(u32::MAX)))
            });
        }
        let (mut taken, mut refused) = (Vec::with_capacity(count), Vec::new());
        let mut statuses = BTreeMap::new();
        let finished = async {
            while let Some(answered) = tasks.join_next().await {
                let (status, us) = answered??;
                if status == TAKEN {
                    taken.push(us);
                } else {
                    refused.push(us);
                }
                *statuses.entry(status).or_default() += 1;
            }
            anyhow::Ok(begun.elapsed())
        };
        let elapsed = tokio::time::timeout(PATIENCE, finished).await.context("answers are missing")??;
        for _ in 0..connections {
            self.0.push(free.recv().await.context("connections come back")?);
        }
        let (taken, refused) = (Seen::new(elapsed, taken), Seen::new(elapsed, refused));
        Ok(Offered { taken, refused, statuses })
    }
}

/// Tells each time when it has come. A thread of its own: the runtime's timer counts whole milliseconds.
fn pace(schedule: Vec<u64>) -> tokio::sync::mpsc::Receiver<u64> {
    let (tell, due) = tokio::sync::mpsc::channel(schedule.len().max(1));
    std::thread::spawn(move || {
        for due_us in schedule {
            #[allow(clippy::disallowed_methods, reason = "a thread that only waits")]
            std::thread::sleep(Duration::from_micros(due_us.saturating_sub(machine::now_us())));
            if tell.blocking_send(due_us).is_err() {
                return;
            }
        }
    });
    due
}

/// The status of the answer, if it is one that was expected.
async fn exchange(connection: &mut Connection, request: &[u8], expected: Expected) -> anyhow::Result<u16> {
    let answer = connection.exchange(request).await?;
    if !expected.is(&answer) {
        let (status, body) = (answer.status.escape_ascii(), answer.body.escape_ascii());
        bail!("{expected:?} was expected, {status} {body} came");
    }
    Ok(std::str::from_utf8(answer.status)?.parse()?)
}

async fn send(
    mut connection: Connection,
    callbacks: Arc<Callbacks>,
    next: Arc<AtomicUsize>,
    end: usize,
    expected: Expected,
) -> anyhow::Result<(Connection, Vec<u32>)> {
    let mut latencies_us = Vec::new();
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= end {
            return Ok((connection, latencies_us));
        }
        let begun = Instant::now();
        exchange(&mut connection, callbacks.request(index), expected).await?;
        latencies_us.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
}
