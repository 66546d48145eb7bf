//! The Kafka storage: three topics, and one consumer group per cursor.
//!
//! | what | where |
//! |---|---|
//! | events | `PREFIX.events`, keyed by subject: one subject is in one partition |
//! | how far a destination is | the committed offsets of group `PREFIX.DESTINATION`; what is delivered past them in the commit's metadata |
//! | parked deliveries, pauses, replays | `PREFIX.parked`, compacted, one partition; every process keeps a view of it |
//! | dead letters, quarantined events | `PREFIX.dead`, compacted, one partition, kept until dropped or redriven |
//!
//! Promises: `Ok` from a write means acknowledged by all in-sync replicas. A position is the partition and the
//! offset plus one, so that a mark is the offset that Kafka commits: every tool shows a destination's backlog
//! as its group's lag.
//!
//! What differs from the embedded storage, and how: several processes may open the same topics; a reader
//! gets a share of the partitions, and of the parked deliveries those of its partitions. Deduplication
//! remembers the latest ids of this process and what it finds at the end of the log when it opens; what other
//! edges store it knows from Redis, if there is one. When
//! an event was delivered is known to the process that delivered it; afterwards it is
//! [`Settled`](super::FateState::Settled). Ending a parked delivery in a dead letter is two appends, the letter
//! first: a crash between them leaves both, and the delivery is attempted once more. Deliveries changed by hand are
//! written as they were seen: one that is hurried at the very moment of its success may be delivered once more.
//!
//! Cost of questions: `census` and what a cursor has left are O(partitions); a time is looked up in O(log n); an
//! event by its id, and a filter that few match, are searched for backwards through the whole log. A search ends
//! with [`StorageError::Late`] before an operator's command gives up. What another process's group has committed
//! is asked for once in ten seconds.
//!
//! `group.instance.id` is the operator's to set: with a value of its own, the same after each restart, a process
//! is a static member of each destination's group (ids are per group, so one value serves all) and takes its
//! partitions up again without the others noticing. The price: when it stops for good they wait for
//! `session.timeout.ms` before they share its partitions. Two processes with one value shut each other out.

mod client;
mod telemetry;
mod written;
mod topics;
mod record;
mod producer;
mod dedup;
mod append;
mod spool;
mod drain;
mod query;
mod progress;
mod controls;
mod view;
mod opening;
mod reader;
mod events;
mod fates;
mod deliveries;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(any(test, feature = "testing"))]
#[allow(clippy::expect_used, reason = "a panic is what a fuzzer looks for")]
mod fuzzing;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use prometheus::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::append::{HEDGE_AFTER, QUARANTINING_MAX};
use self::client::Connect;
pub use self::client::{BODY_BYTES_MAX, is_reserved};
use self::dedup::Dedup;
use self::dedup::recent::Recent;
pub use self::dedup::server::{RedisState, redis_refusal, redis_state};
use self::dedup::shared::Shared;
#[cfg(any(test, feature = "testing"))]
pub use self::fuzzing::FUZZED;
use self::opening::Opened;
use self::producer::Producer;
use self::progress::{Committed, Group};
use self::query::{Extent, Query};
use self::reader::Reader;
use self::spool::Spool;
use self::telemetry::Telemetry;
use self::topics::Topics;
pub use self::topics::{Cluster, Step, apply, brokers, delete, inspect, plan};
use self::view::{DEAD, PARKED, View};
pub use self::written::{RedisAddress, check_setting, redis_address};
use super::tables::deliveries::settled_elsewhere;
use super::{Controls, Cursor, Position, Storage, StorageError};
use crate::secret::Secret;

/// Bytes that Redis 7 needs for one id, measured as resident memory with a million of them and the default prefix.
pub const REDIS_BYTES_PER_ID: f64 = 240.0;

/// How long closing waits for what goes on in the background.
const CLOSE_WITHIN: Duration = Duration::from_secs(15);
/// How long an answer about a group that others read is told again: figures of it are for people and graphs.
const ANSWER_FRESH: Duration = Duration::from_secs(10);
/// What a group had committed, and when it was asked.
type Answer = (Instant, BTreeMap<u32, Committed>);
/// The marks last asked for, and when the oldest event past them was received.
type Oldest = (Vec<u64>, Option<Timestamp>);

/// How to open the Kafka storage.
#[derive(Clone, PartialEq, Eq)]
pub struct Options {
    /// Where to find the cluster, as `host:port`.
    pub brokers: Vec<String>,
    /// What the names of topics and groups begin with.
    pub topic_prefix: String,
    /// Partitions of the events topic: how many readers can share a destination.
    pub partitions: i32,
    /// Copies of everything.
    pub replication: i32,
    /// Settings of the client that are the operator's to make; see [`is_reserved`].
    pub settings: Vec<(String, String)>,
    /// The deduplication that several edges share; none: each has its own.
    pub redis: Option<Redis>,
    /// A folder on a local disk for what Kafka does not take in time; none: such an event is refused.
    pub spool: Option<PathBuf>,
    /// Whether events are to be appended here. Who only reads or delivers need not know the ids at the end of the
    /// log, and opens sooner; what it appends all the same is deduplicated by what it has seen since.
    pub appends: bool,
}

/// The deduplication that several edges share. Redis 7 or later.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Redis {
    /// Of a server, of Sentinels or of a cluster: see `dedup/address.rs`. May carry a password.
    pub url: Secret,
    /// How long an id is remembered.
    pub window: Duration,
}

/// Settings may carry passwords: only their names are shown.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings: Vec<_> = self.settings.iter().map(|(name, _)| name).collect();
        f.debug_struct("Options")
            .field("brokers", &self.brokers)
            .field("topic_prefix", &self.topic_prefix)
            .field("partitions", &self.partitions)
            .field("replication", &self.replication)
            .field("settings", &settings)
            .field("redis", &self.redis)
            .field("spool", &self.spool)
            .field("appends", &self.appends)
            .finish()
    }
}

impl Options {
    /// What holds unless it is said otherwise.
    #[must_use]
    pub fn new(brokers: Vec<String>) -> Self {
        Self {
            brokers,
            topic_prefix: "chaski".to_owned(),
            partitions: 12,
            replication: 3,
            settings: Vec::new(),
            redis: None,
            spool: None,
            appends: true,
        }
    }
}

/// Opens the storage, or says why not: checks the topics, reads what is parked and dead, and the ids at the
/// end of the log. Must be called inside a multi-threaded tokio runtime.
///
/// With a spool it also succeeds while the brokers cannot be reached: see `opening.rs`.
///
/// # Errors
/// [`StorageError::Unfit`] when the topics are missing or break a promise, [`StorageError::Locked`] when another
/// process has the spool, [`StorageError::Engine`] for what else the brokers can come up with.
pub async fn open(options: &Options, registry: &Registry) -> Result<Storage, StorageError> {
    open_with(options, registry, HEDGE_AFTER).await
}

/// Also says after how long an event that waits for its report goes to the spool as well.
async fn open_with(
    options: &Options,
    registry: &Registry,
    hedge_after: Duration,
) -> Result<Storage, StorageError> {
    let kafka = connect(options, registry, hedge_after).await?;
    let events = Arc::new(events::Events(Arc::clone(&kafka)));
    Ok(Storage { events, deliveries: Arc::new(deliveries::Ends(kafka)) })
}

async fn connect(
    options: &Options,
    registry: &Registry,
    hedge_after: Duration,
) -> Result<Arc<Kafka>, StorageError> {
    let connect = Connect::new(options);
    let dedup: Arc<dyn Dedup> = match &options.redis {
        Some(redis) => Shared::new(redis, &options.topic_prefix, registry)?,
        None => Arc::new(Recent::default()),
    };
    let spool = match &options.spool {
        Some(folder) => Spool::open(folder, registry).await?,
        None => None,
    };
    if let Some(spool) = &spool {
        spool.remember_ids(&*dedup).await?;
    }
    let topics = Topics::new(&options.topic_prefix);
    let is_sound = Arc::new(AtomicBool::new(true));
    let kafka = Arc::new(Kafka {
        producer: Producer::new(connect.clone(), &topics.events, registry, &is_sound)?,
        connect,
        prefix: options.topic_prefix.clone(),
        topics,
        opened: OnceLock::new(),
        dedup,
        has_redis: options.redis.is_some(),
        spool,
        hedge_after,
        head: watch::Sender::new(Position::default()),
        head_noted: AtomicU64::new(0),
        told: watch::Sender::new(Controls::new()),
        telemetry: Telemetry::new(registry),
        readers: Mutex::default(),
        answers: Mutex::default(),
        oldest: Mutex::default(),
        seen: Mutex::default(),
        quarantining: Default::default(),
        redriving: tokio::sync::Mutex::default(),
        reached: CancellationToken::new(),
        is_sound,
        closing: CancellationToken::new(),
        tasks: TaskTracker::new(),
    });
    if let Err(error) = opening::open(&kafka, options.clone()).await {
        kafka.shut().await;
        return Err(error);
    }
    drain::start(&kafka);
    Ok(kafka)
}

/// The open storage.
struct Kafka {
    connect: Connect,
    prefix: String,
    topics: Topics,
    producer: Producer,
    /// Empty until the brokers have been reached.
    opened: OnceLock<Opened>,
    dedup: Arc<dyn Dedup>,
    has_redis: bool,
    spool: Option<Arc<Spool>>,
    hedge_after: Duration,
    head: watch::Sender<Position>,
    /// The same, for those who have nothing newer to say.
    head_noted: AtomicU64,
    /// What operators have said.
    told: watch::Sender<Controls>,
    telemetry: Telemetry,
    readers: Mutex<HashMap<Cursor, Reader>>,
    /// What groups that nobody here reads had committed, for a moment.
    answers: Mutex<HashMap<Cursor, Answer>>,
    /// Of each destination what was found past its marks.
    oldest: Mutex<HashMap<Arc<str>, Oldest>>,
    /// Of each destination and partition the place from which on this process saw what became of everything.
    seen: Mutex<HashMap<(Arc<str>, u32), u64>>,
    /// The turns of quarantined events, by their content: the same bytes wait for each other and are kept once.
    quarantining: [Arc<tokio::sync::Mutex<()>>; QUARANTINING_MAX],
    /// Letters are redriven by one call at a time, or two would send the same on its way.
    redriving: tokio::sync::Mutex<()>,
    /// Cancelled when `opened` is there: then the spool is drained.
    reached: CancellationToken,
    /// False once a thread has panicked.
    is_sound: Arc<AtomicBool>,
    closing: CancellationToken,
    /// What goes on in the background, to be waited for when the storage closes.
    tasks: TaskTracker,
}

impl Kafka {
    /// The consumer group of a cursor.
    fn group(&self, cursor: &Cursor) -> String {
        match cursor.replay {
            0 => format!("{}.{}", self.prefix, cursor.destination),
            number => format!("{}.{}.replay-{number}", self.prefix, cursor.destination),
        }
    }

    fn check_open(&self) -> Result<(), StorageError> {
        if self.closing.is_cancelled() { Err(StorageError::Closed) } else { Ok(()) }
    }

    /// What needs the brokers, once they have been reached.
    fn opened(&self) -> Result<&Opened, StorageError> {
        self.check_open()?;
        self.opened.get().ok_or(StorageError::Away)
    }

    fn view(&self) -> Result<&View, StorageError> {
        self.opened().map(|opened| &opened.view)
    }

    fn query(&self) -> Result<&Query, StorageError> {
        self.opened().map(|opened| &opened.query)
    }

    /// For what may take long, so that it holds up no other question.
    fn search(&self) -> Result<&Query, StorageError> {
        self.opened().map(|opened| &opened.search)
    }

    /// The log has grown up to here, at least.
    fn note_head(&self, position: Position) {
        // Almost always another partition's: that is seen without a lock that all threads want.
        if self.head_noted.load(Ordering::Relaxed) >= position.0 {
            return;
        }
        self.head_noted.fetch_max(position.0, Ordering::Relaxed);
        self.head.send_if_modified(|head| {
            let newer = position > *head;
            *head = position.max(*head);
            newer
        });
    }

    fn readers(&self) -> MutexGuard<'_, HashMap<Cursor, Reader>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<(Arc<str>, u32), u64>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reader of a cursor in this process; one whose subscriber is gone has left its group when this returns.
    async fn reader(&self, cursor: &Cursor) -> Option<Reader> {
        let mut reader = self.readers().get(cursor).cloned()?;
        if !reader.is_over() {
            return Some(reader);
        }
        reader.stop().await;
        let mut readers = self.readers();
        if readers.get(cursor).is_some_and(Reader::is_over) {
            readers.remove(cursor);
        }
        None
    }

    /// The partitions whose parked deliveries are this process's: all, where it does not read.
    fn share(&self, destination: &str) -> Option<Vec<u32>> {
        let readers = self.readers();
        let reader = readers.get(&Cursor::of(destination))?;
        (!reader.is_over()).then(|| reader.partitions())
    }

    fn answers(&self) -> MutexGuard<'_, HashMap<Cursor, Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_seen(&self, cursor: &Cursor, partition: u32, from: u64) {
        if cursor.replay == 0 {
            self.seen().insert((Arc::clone(&cursor.destination), partition), from);
        }
    }

    fn forget_seen(&self, cursor: &Cursor, partition: u32) {
        if cursor.replay == 0 {
            self.seen().remove(&(Arc::clone(&cursor.destination), partition));
        }
    }

    #[allow(clippy::redundant_closure_for_method_calls, reason = "the method itself is not general enough")]
    async fn extents(&self) -> Result<Vec<Extent>, StorageError> {
        self.query()?.ask(|asked| asked.extents()).await
    }

    /// Asks or commits for a group that nobody here reads with.
    async fn with_group<T: Send + 'static>(
        &self,
        cursor: &Cursor,
        work: impl FnOnce(&Group) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        // It may commit.
        self.answers().remove(cursor);
        let (connect, group, topic) =
            (self.connect.clone(), self.group(cursor), Arc::clone(&self.topics.events));
        let worked = tokio::task::spawn_blocking(move || work(&Group::new(&connect, &group, &topic)?));
        worked.await.map_err(StorageError::unfinished)?
    }

    /// As [`Kafka::progress_now`], but of a group that nobody here reads it may be as old as [`ANSWER_FRESH`]: each
    /// time costs a client.
    async fn progress_of(
        &self,
        cursor: &Cursor,
        extents: &[Extent],
    ) -> Result<BTreeMap<u32, Committed>, StorageError> {
        let is_fresh = |(asked, _): &mut (Instant, _)| asked.elapsed() < ANSWER_FRESH;
        let known = {
            let mut answers = self.answers();
            answers.retain(|_, answer| is_fresh(answer));
            answers.get(cursor).map(|(_, progress)| progress.clone())
        };
        match known {
            Some(progress) if self.reader(cursor).await.is_none() => Ok(progress),
            _ => self.progress_now(cursor, extents).await,
        }
    }

    /// A cursor's progress in every partition where it has any.
    async fn progress_now(
        &self,
        cursor: &Cursor,
        extents: &[Extent],
    ) -> Result<BTreeMap<u32, Committed>, StorageError> {
        let partitions: Vec<u32> = extents.iter().map(|extent| extent.partition).collect();
        match self.reader(cursor).await {
            Some(reader) => reader.committed(partitions).await,
            None => {
                let asked = Instant::now();
                let progress = self.with_group(cursor, move |group| group.committed(partitions)).await?;
                self.answers().insert(cursor.clone(), (asked, progress.clone()));
                Ok(progress)
            }
        }
    }

    /// What is settled past a partition's mark: delivered, parked or dead. Waits until the view has read what
    /// the topics hold, up to these ends.
    async fn settled_past(
        &self,
        destination: &Arc<str>,
        partition: u32,
        progress: &Committed,
        ends: [u64; 2],
    ) -> Result<Vec<Position>, StorageError> {
        self.view()?.reached(PARKED, ends[PARKED]).await?;
        self.view()?.reached(DEAD, ends[DEAD]).await?;
        let name = Arc::clone(destination);
        let mark = Position::new(partition, progress.mark);
        let mut settled = self
            .view()?
            .readers
            .read("reading what is settled past the mark", move |connection| {
                settled_elsewhere(connection, &name, mark, Position::new(partition + 1, 0))
            })
            .await?;
        settled.extend(progress.delivered.iter().map(|place| Position::new(partition, *place)));
        settled.sort_unstable();
        settled.dedup();
        Ok(settled)
    }

    /// The producer first: then every report is in, and what has none is still in the spool when that closes.
    async fn shut(self: &Arc<Self>) {
        self.closing.cancel();
        let readers: Vec<Reader> = self.readers().drain().map(|(_, reader)| reader).collect();
        for mut reader in readers {
            reader.stop().await;
        }
        let kafka = Arc::clone(self);
        let closed = tokio::task::spawn_blocking(move || kafka.producer.close());
        if closed.await.is_err() {
            tracing::warn!("the producer did not close in order");
        }
        self.tasks.close();
        if tokio::time::timeout(CLOSE_WITHIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("the spool was not left in order; what it holds is published by the next process");
        }
        if let Some(spool) = &self.spool {
            spool.close().await;
        }
        self.dedup.flush().await;
        let kafka = Arc::clone(self);
        let closed = tokio::task::spawn_blocking(move || {
            if let Some(opened) = kafka.opened.get() {
                opened.close();
            }
        });
        if closed.await.is_err() {
            tracing::warn!("the storage did not close in order");
        }
    }
}

#[cfg(test)]
mod tests;
