//! The seam between the two halves: what a storage promises, whichever one it is.
//!
//! Two traits. [`EventLog`] takes events in, deduplicates them and hands them out in log order, one
//! cursor per reader. [`Deliveries`] keeps what a reader could not finish: deliveries that wait for their
//! next attempt (parked) and those that ended without success (dead). [`Storage`] carries one of each.
//! Every implementation runs the suite in `conformance`.
//!
//! Words used below. *Durable*: survives kill -9 of this process, and a power cut as far as the disk or
//! the brokers tell the truth. *Settled* at a destination: delivered, parked, dead or not routed there.

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod tables;
mod thread;
pub mod embedded;
pub mod kafka;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinError;

use crate::event::{Event, EventId};
use crate::trace::SpanId;

/// Most entries one page of a list holds; a longer list is read page by page.
pub const PAGE_MAX: usize = 1000;
/// How far the clocks of two edges may be apart.
const SKEW_MAX: Duration = Duration::from_mins(10);
/// What came while a clock was wrong is passed over in search of something to judge it by: so much of it, in rows or records.
const PASSED_MAX: u64 = if cfg!(test) { 8 } else { 10_000 };
/// The reason of a letter whose id was stored with other content, and what a person reads beside it.
const CONFLICT: &str = "dedup_conflict";
const CONFLICT_DETAIL: &str = "the id is stored with other content";

/// A place in the log. Of one partition, later events have greater positions; gaps are allowed. The number
/// of the partition is in the upper bits, so that a position names its partition: a storage with a single
/// one counts 1, 2, 3 and never shows it. Every position is a whole number for JSON, too (below 2^53).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub u64);

impl Position {
    /// Bits of the place within its partition: ten thousand events a second for 27 years.
    const PLACE_BITS: u32 = 43;
    /// Partitions that positions can tell apart.
    pub const PARTITIONS_MAX: u32 = 1 << (53 - Self::PLACE_BITS);

    /// The place behind `before` others in a partition; 0 is in front of its first event.
    #[must_use]
    pub const fn new(partition: u32, before: u64) -> Self {
        Self(((partition as u64) << Self::PLACE_BITS) | before)
    }

    /// Its partition.
    #[must_use]
    pub const fn partition(self) -> u32 {
        (self.0 >> Self::PLACE_BITS) as u32
    }

    /// Its place within the partition.
    #[must_use]
    pub const fn place(self) -> u64 {
        self.0 & ((1 << Self::PLACE_BITS) - 1)
    }
}

/// A storage that is open: both sides of the seam.
#[derive(Clone)]
pub struct Storage {
    /// Events, their deduplication, and how far each reader is.
    pub events: Arc<dyn EventLog>,
    /// Parked and dead deliveries.
    pub deliveries: Arc<dyn Deliveries>,
}

/// Why a storage did not do what it was asked.
///
/// After any of these nothing may be assumed to be durable, and nothing that was durable before is lost.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    /// More is waiting to be written than the bound allows.
    #[error("the queue of writes is full")]
    Busy,
    /// No room on the device. Heals by itself when there is room again.
    #[error("no space left for {path}")]
    Full {
        /// What could not grow.
        path: String,
    },
    /// A sync failed, so it is unknown what the disk holds. Writing stays refused until the store is opened
    /// anew, because a second sync would report a success that never was.
    #[error("a sync of {path} failed; restart to recover what is on disk")]
    Poisoned {
        /// The file whose sync failed.
        path: String,
    },
    /// Another process has the store open.
    #[error("{path} is in use by another process")]
    Locked {
        /// The folder.
        path: String,
    },
    /// The store was written by a newer chaski.
    #[error("{path} has schema version {found}, this chaski knows versions up to {known}")]
    Newer {
        /// The file.
        path: String,
        /// Its version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// The partition has gone to another reader, who settles it from now on.
    #[error("partition {partition} has gone to another reader")]
    Revoked {
        /// Which.
        partition: u32,
    },
    /// What the storage rests on is missing or breaks a promise.
    #[error("the brokers are not set up for chaski: {what}")]
    Unfit {
        /// What is wrong and what would be right.
        what: String,
    },
    /// No acknowledgement in time. Unlike after other errors it may still come.
    #[error("no answer within {within:?} while {doing}")]
    Late {
        /// What was being done.
        doing: &'static str,
        /// How long was waited.
        within: Duration,
    },
    /// The brokers could not be reached since the storage was opened. It goes on trying, and keeps events meanwhile.
    #[error("the brokers have not been reached yet")]
    Away,
    /// What was asked panicked, and was not done.
    #[error("the storage panicked")]
    Panicked,
    /// The storage is closing.
    #[error("the storage is closed")]
    Closed,
    /// Anything else the engine reports.
    #[error("storage failed while {doing}: {cause}")]
    Engine {
        /// What was being done.
        doing: &'static str,
        /// What the engine says; part of the text, so that a log line has it.
        cause: Arc<dyn std::error::Error + Send + Sync>,
    },
}

impl StorageError {
    /// Whether the same call may succeed later without anybody doing anything.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Busy
                | Self::Full { .. }
                | Self::Late { .. }
                | Self::Away
                | Self::Panicked
                | Self::Engine { .. }
        )
    }

    /// Of a task that did not come to its end: it panicked, or the runtime is.
    fn unfinished(error: JoinError) -> Self {
        if error.is_panic() { Self::Panicked } else { Self::Closed }
    }
}

/// What to do with an event whose id is stored already, with other content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// Keep the bytes as a dead letter: the same payment with another amount is fraud or a fault.
    Quarantine,
    /// A resend: this sender's retries differ by design.
    Duplicate,
}

/// What became of an appended event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// New, and durable at this position.
    Stored(Position),
    /// New, and durable on a disk of this machine; it gets its position when the log takes it, before later
    /// events of its subject.
    Spooled,
    /// The same event was durable before.
    Duplicate,
    /// The id was durable before with other content; these bytes are durable as a dead letter.
    Conflict {
        /// Whether they were not before.
        is_new: bool,
    },
}

impl Appended {
    /// Whether the event was not known before.
    #[must_use]
    pub const fn is_new(self) -> bool {
        matches!(self, Self::Stored(_) | Self::Spooled)
    }
}

/// An event and where it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where.
    pub position: Position,
    /// What.
    pub event: Event,
}

/// Who reads: a destination on its way through the log, or a replay for one.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Cursor {
    /// The destination's configured name.
    pub destination: Arc<str>,
    /// The number of the replay; 0 is the destination's own way through the log.
    pub replay: u64,
}

impl Cursor {
    /// The destination's own cursor.
    #[must_use]
    pub fn of(destination: impl Into<Arc<str>>) -> Self {
        Self { destination: destination.into(), replay: 0 }
    }
}

/// Where a cursor begins that has never been there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Start {
    /// Behind the last event stored now.
    #[default]
    Now,
    /// At the oldest event that is kept.
    Beginning,
    /// At the first event received at this time or later.
    At(Timestamp),
}

/// How much one batch may hold. At least one record is always handed out.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimit {
    /// Records.
    pub records: usize,
    /// Bytes, as [`Event::weight_bytes`] counts them.
    pub bytes: usize,
}

/// A cursor that has been opened. Its partitions are shared among all that read the same cursor, wherever
/// they run: they come and go. Dropping it ends the reading.
#[derive(Debug)]
pub struct Subscription {
    /// Each partition that comes or goes. Closed when no more will come: at once where there is only one
    /// reader, for a replay when all of it is settled, or when the storage closes.
    pub changes: mpsc::Receiver<Change>,
}

/// A partition comes or goes.
#[derive(Debug)]
pub enum Change {
    /// This reader has the partition, and nobody else.
    Gained(Track),
    /// Another reader is to have it, in good order: nothing of it may begin any more, be it read or parked. What is
    /// under way may end and be settled: [`Change::Lost`] follows when `ended` is dropped, half a minute later at
    /// the latest.
    Leaving {
        /// Which.
        partition: u32,
        /// Dropped by the reader once nothing of it is under way and all that ended is settled.
        ended: oneshot::Sender<()>,
    },
    /// Another reader may have it: nothing of it may begin any more, and what is not settled by now begins
    /// anew over there.
    Lost {
        /// Which.
        partition: u32,
    },
}

/// A partition's records from where its cursor stands.
#[derive(Debug)]
pub struct Track {
    /// Its number, as its positions name it.
    pub partition: u32,
    /// All positions up to here are settled.
    pub mark: Position,
    /// Positions past the mark that are known to be settled: skip them.
    pub settled: Vec<Position>,
    /// The last position to read, for a replay.
    pub until: Option<Position>,
    /// Batches in log order, beginning behind the mark; closed when `until` is reached, the partition is lost
    /// or the store closes. An error is followed by another try, so a reader need only report it. Dropping the
    /// receiver ends the reading of this partition.
    pub batches: mpsc::Receiver<Result<Vec<Record>, StorageError>>,
}

/// One event that a destination has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Its place in the log.
    pub position: Position,
    /// When the 2xx came.
    pub at: Timestamp,
    /// Which attempt it was, counted from 1.
    pub attempts: u32,
}

/// Takes events in and hands them out.
#[async_trait]
pub trait EventLog: Send + Sync {
    /// Makes the event durable, unless its id is known. Deduplication and storing are one step: of any
    /// number of concurrent calls with one id exactly one is told that it is new.
    ///
    /// `Ok` means durable. After an error the event may or may not be stored; a retry is then a duplicate,
    /// never a loss. A dropped future leaves the same uncertainty and nothing else.
    async fn append(&self, event: Event, on_conflict: OnConflict) -> Result<Appended, StorageError>;

    /// Keeps an event that was signed but cannot be used, as a dead letter without destination.
    ///
    /// `Ok` means durable. Twice the same bytes under the same id are one letter, and none once they are in the log, as
    /// after a redrive: the second call is answered `false`. After an error or in a dropped future it may be kept all the same.
    async fn quarantine(&self, event: Event, reason: &str, detail: &str) -> Result<bool, StorageError>;

    /// The position of the last event that was made durable here; changes when there is something to read.
    fn head(&self) -> watch::Receiver<Position>;

    /// Opens a cursor: where it was left, or at `start` if it is new. The choice of a new cursor's start is
    /// durable before this returns. One subscription per cursor at a time.
    async fn subscribe(
        &self,
        cursor: &Cursor,
        start: Start,
        limit: BatchLimit,
    ) -> Result<Subscription, StorageError>;

    /// Records that everything up to `mark` is settled in its partition, and that these, of the same
    /// partition, were delivered. A mark behind the stored one moves nothing back. `Ok` means durable.
    async fn settle(
        &self,
        cursor: &Cursor,
        mark: Position,
        delivered: Vec<Delivered>,
    ) -> Result<(), StorageError>;

    /// Begins a replay of the events received in `[from, to)` for a destination; the new cursor reads them
    /// in log order. Returns it with the number of events it covers.
    async fn begin_replay(
        &self,
        destination: &str,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<(Cursor, u64), StorageError>;

    /// The replays that are not finished.
    async fn replays(&self) -> Result<Vec<Replay>, StorageError>;

    /// Removes a finished replay's cursor.
    async fn end_replay(&self, cursor: &Cursor) -> Result<(), StorageError>;

    /// Keeps a destination from being delivered to, until it is resumed; survives restarts.
    async fn set_paused(&self, destination: &str, paused: bool) -> Result<(), StorageError>;

    /// What operators have said, whoever of all that have the storage open they said it to: what was said here
    /// shows when the call returns, what was said elsewhere a moment later. Whatever happens in between, the
    /// last of it is seen. What a reader does to its own parked deliveries is not in it.
    fn controls(&self) -> watch::Receiver<Controls>;

    /// How far each destination is, by name; those that have no cursor yet are missing.
    async fn progress(&self) -> Result<Vec<Progress>, StorageError>;

    /// Events, newest first.
    async fn find(&self, filter: EventFilter) -> Result<Vec<Record>, StorageError>;

    /// What became of one event at each destination that has something to say about it.
    async fn fates(&self, id: EventId) -> Result<Vec<Fate>, StorageError>;

    /// Deletes events that were received longer than `retention` before `now` and are settled at each of `destinations`,
    /// replays of theirs included; not the newest, if the storage needs it to remember its position. One step: as many
    /// as the storage takes at once without holding up those who append.
    ///
    /// An event that claims to have been received more than ten minutes after `now` came while a clock was wrong. It is
    /// taken for as old as the next one of its partition that does not, and stays while there is none.
    async fn prune(
        &self,
        now: Timestamp,
        retention: Duration,
        destinations: &[Arc<str>],
    ) -> Result<Pruned, StorageError>;

    /// What the store holds.
    async fn census(&self) -> Result<Census, StorageError>;

    /// False in a state that only a restart cures.
    fn is_writable(&self) -> bool;

    /// How metrics name what is behind it.
    fn labels(&self) -> Labels {
        Labels { path: Labels::SPOOL, dedup: "embedded" }
    }

    /// Writes what is queued, closes the files and stops the threads. Later calls get [`StorageError::Closed`].
    async fn close(&self);
}

/// How metrics name what is behind an [`EventLog`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Where an event is durable that is [`Appended::Stored`].
    pub path: &'static str,
    /// What deduplicates.
    pub dedup: &'static str,
}

impl Labels {
    /// A local disk.
    pub const SPOOL: &str = "spool";
    /// The brokers.
    pub const KAFKA: &str = "kafka";
}

/// What operators have said, by destination; those that never had a cursor may be missing.
pub type Controls = BTreeMap<Arc<str>, Control>;

/// What operators have said about a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Not to be delivered to.
    pub paused: bool,
    /// The numbers of its replays that are not finished.
    pub replays: BTreeSet<u64>,
    /// Counts the times that parked deliveries were changed by hand: hurried, dropped, redriven.
    pub by_hand: u64,
}

/// A replay that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Its cursor.
    pub cursor: Cursor,
    /// Settled up to here; with several partitions, in the one that is furthest behind.
    pub mark: Position,
    /// Ends here.
    pub until: Position,
}

/// How far a destination is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The destination's name.
    pub destination: Arc<str>,
    /// Settled up to here; with several partitions, in the one that is furthest behind.
    pub mark: Position,
    /// Events past the mark, in all partitions.
    pub lag: u64,
    /// When the oldest event past the mark was received.
    pub oldest_unsettled: Option<Timestamp>,
    /// Whether an operator has paused it.
    pub paused: bool,
    /// Deliveries that wait for their next attempt.
    pub parked: u64,
    /// Dead letters.
    pub dead: u64,
    /// When the oldest of them died.
    pub oldest_dead: Option<Timestamp>,
}

/// What a step of [`EventLog::prune`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// Events that it deleted.
    pub events: u64,
    /// What it left.
    pub left: Left,
}

/// What is left of what is settled and past its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// Something that no step gets at: it stands behind too much that came while a clock was wrong.
    HeldBack,
    /// Something, perhaps: another step is due.
    More,
}

/// Which events are past their time.
#[derive(Clone, Copy)]
struct Ages {
    /// Those received before this.
    before: Timestamp,
    /// Those received after this came while a clock was wrong.
    horizon: Timestamp,
}

impl Ages {
    fn at(now: Timestamp, retention: Duration) -> Self {
        Self {
            before: now.saturating_sub(retention).unwrap_or(Timestamp::MIN),
            horizon: now.saturating_add(SKEW_MAX).unwrap_or(Timestamp::MAX),
        }
    }
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// Events kept.
    pub events: u64,
    /// When the oldest of them was received.
    pub oldest: Option<Timestamp>,
    /// Bytes on disk.
    pub bytes: u64,
}

/// Which events; all conditions must hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventFilter {
    /// This very event.
    pub id: Option<EventId>,
    /// Of this source.
    pub source: Option<String>,
    /// Of this type.
    pub kind: Option<String>,
    /// About this subject.
    pub subject: Option<String>,
    /// Received at this time or later.
    pub since: Option<Timestamp>,
    /// Received before this time.
    pub until: Option<Timestamp>,
    /// Older than this position, for the next page.
    pub before: Option<Position>,
    /// At most so many; [`PAGE_MAX`] is the bound.
    pub limit: usize,
}

/// What became of an event at a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fate {
    /// The destination's name.
    pub destination: Arc<str>,
    /// What became of it there.
    #[serde(flatten)]
    pub state: FateState,
}

/// The states of a delivery that leave a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum FateState {
    /// The destination took it.
    Delivered {
        /// When.
        at: Timestamp,
        /// At which attempt.
        attempts: u32,
    },
    /// Waits for its next attempt.
    Parked {
        /// When that is due.
        due: Timestamp,
        /// Attempts so far.
        attempts: u32,
        /// Why the last one failed.
        reason: String,
    },
    /// Ended without success.
    Dead {
        /// When.
        at: Timestamp,
        /// Attempts made.
        attempts: u32,
        /// Why.
        reason: String,
    },
    /// Not settled yet: in the backlog or in flight.
    Waiting,
    /// Settled without a delivery: the destination does not take this event.
    Skipped,
    /// Settled before this process could see how: delivered, or not for this destination.
    Settled,
}

/// One failed attempt, as a parked or dead delivery remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When it ended.
    pub at: Timestamp,
    /// Which attempt, counted from 1.
    pub attempt: u32,
    /// The closed set of the metric label `result`.
    pub result: String,
    /// The answer's status, where there was an answer; failures of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What a person needs beside that: a status line, an error. Never a payload, never a secret.
    pub detail: String,
    /// The span that was told of it, so that the next attempt's can name the one it follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<SpanId>,
}

/// Failures remembered per delivery; of a longer history the first and the latest are kept.
pub const HISTORY_MAX: usize = 20;

/// A delivery that waits for its next attempt, whole: it does not need the log any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// The destination's name.
    pub destination: Arc<str>,
    /// Where the event stood in the log; orders deliveries of one subject.
    pub position: Position,
    /// What is to be delivered.
    pub event: Event,
    /// When the next attempt is due.
    pub due: Timestamp,
    /// Attempts made so far; 0 for one that waits behind another of its subject.
    pub attempts: u32,
    /// When the first attempt began; giving up counts from here.
    pub first_attempt: Option<Timestamp>,
    /// What went wrong so far, oldest first, at most [`HISTORY_MAX`].
    pub history: Vec<Failure>,
}

/// A delivery that ended without success, or an event that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its number, given by the store; greater is later. 0 in a letter that is not stored yet.
    pub number: u64,
    /// The destination; none for a quarantined event.
    pub destination: Option<Arc<str>>,
    /// Where the event stood in the log; none for a quarantined event.
    pub position: Option<Position>,
    /// What was to be delivered.
    pub event: Event,
    /// Why it ended: the closed set of the metric label `reason`.
    pub reason: Arc<str>,
    /// What a person needs beside that.
    pub detail: Arc<str>,
    /// When it ended.
    pub at: Timestamp,
    /// Attempts made.
    pub attempts: u32,
    /// What went wrong, oldest first, at most [`HISTORY_MAX`].
    pub history: Vec<Failure>,
}

/// Which parked deliveries; all conditions must hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ParkedFilter {
    /// For this destination.
    pub destination: Option<String>,
    /// Of this event.
    pub id: Option<EventId>,
    /// Entries to pass over, for the next page.
    pub offset: usize,
    /// At most so many; [`PAGE_MAX`] is the bound.
    pub limit: usize,
}

/// Which dead letters; all conditions must hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeadFilter {
    /// For this destination; the empty text means quarantined events.
    pub destination: Option<String>,
    /// Of this event.
    pub id: Option<EventId>,
    /// With this reason.
    pub reason: Option<String>,
    /// Dead at this time or later.
    pub since: Option<Timestamp>,
    /// Dead before this time.
    pub until: Option<Timestamp>,
    /// With a greater number, for the next page.
    pub after: Option<u64>,
    /// At most so many; [`PAGE_MAX`] is the bound.
    pub limit: usize,
}

/// What is quarantined of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The source's name.
    pub source: Arc<str>,
    /// Letters kept.
    pub events: u64,
    /// When the oldest of them was received.
    pub oldest: Timestamp,
}

/// Letters of one destination, or quarantined events of one source, that were kept at a time and have one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptLetters {
    /// Where they could not be delivered; nothing of quarantined events.
    pub destination: Option<Arc<str>>,
    /// The source's name.
    pub source: Arc<str>,
    /// Why they are letters.
    pub reason: Arc<str>,
    /// How many.
    pub letters: u64,
}

/// Keeps deliveries that are not finished, and those that ended badly. Every `Ok` means durable.
#[async_trait]
pub trait Deliveries: Send + Sync {
    /// Parks a delivery, or replaces what was parked for the same destination and event.
    async fn park(&self, parked: Parked) -> Result<(), StorageError>;

    /// Parks a delivery in place of what is parked for the same destination and event; not if nothing is, because an
    /// operator has dropped it. Returns whether it did. With several processes, what another one has done a moment ago
    /// may not count yet.
    async fn park_again(&self, parked: Parked) -> Result<bool, StorageError>;

    /// The deliveries of a destination that are due, the longest waiting first. With `ordered`, of each
    /// subject only the earliest in the log, due or not: nothing overtakes it.
    async fn due(
        &self,
        destination: &str,
        now: Timestamp,
        ordered: bool,
        limit: usize,
    ) -> Result<Vec<Parked>, StorageError>;

    /// When the next delivery of a destination is due; none if nothing is parked. With `ordered`, as in
    /// [`Deliveries::due`].
    async fn next_due(&self, destination: &str, ordered: bool) -> Result<Option<Timestamp>, StorageError>;

    /// A parked delivery has been taken: forgets it and records the delivery.
    async fn complete(
        &self,
        destination: &str,
        id: EventId,
        delivered: Delivered,
    ) -> Result<(), StorageError>;

    /// Keeps a dead letter and forgets the parked delivery it may have come from, in one step. A second
    /// letter for the same destination, event and content replaces the first.
    async fn bury(&self, letter: DeadLetter) -> Result<(), StorageError>;

    /// The subjects with parked deliveries at a destination, and how many each has.
    async fn held_subjects(&self, destination: &str) -> Result<Vec<(Arc<str>, u64)>, StorageError>;

    /// How many deliveries are parked at a destination.
    async fn parked_count(&self, destination: &str) -> Result<u64, StorageError>;

    /// Parked deliveries, the next due first.
    async fn parked(&self, filter: ParkedFilter) -> Result<Vec<Parked>, StorageError>;

    /// Makes parked deliveries of an event due now, at one destination or at all. Returns how many.
    async fn hurry(
        &self,
        id: EventId,
        destination: Option<&str>,
        now: Timestamp,
    ) -> Result<usize, StorageError>;

    /// Ends parked deliveries of an event by hand: each becomes a dead letter with reason `dropped`, so that
    /// it stays accounted for. Returns how many.
    async fn drop_parked(
        &self,
        id: EventId,
        destination: Option<&str>,
        now: Timestamp,
    ) -> Result<usize, StorageError>;

    /// Dead letters, oldest first.
    async fn dead(&self, filter: DeadFilter) -> Result<Vec<DeadLetter>, StorageError>;

    /// How much is quarantined, by source; sources without are missing.
    async fn quarantined(&self) -> Result<Vec<Quarantined>, StorageError>;

    /// How many letters there are that died, or were quarantined, before `at`, to the millisecond.
    async fn letters_before(&self, at: Timestamp) -> Result<Vec<KeptLetters>, StorageError>;

    /// Sends dead letters on their way again: a delivery is parked, due now, with its attempts counted from
    /// the start; a quarantined event enters the log as if it had been accepted (under an id of its own if
    /// its id is taken). Each letter is gone when its new state is durable. Returns how many that were: one that
    /// somebody else was faster with is none any more, and one of an event that is parked at its destination may stay.
    async fn redrive(&self, numbers: &[u64], now: Timestamp) -> Result<usize, StorageError>;

    /// Deletes dead letters for good. Returns how many were found.
    async fn drop_dead(&self, numbers: &[u64]) -> Result<usize, StorageError>;
}

/// How long a reader waits before it tries again after the storage failed to read.
pub const READ_RETRY: Duration = Duration::from_millis(200);

/// Puts a failure at the end of a history and keeps its length within [`HISTORY_MAX`]: the first failure
/// tells how it began, the latest how it stands; the second oldest makes room.
pub fn remember(history: &mut Vec<Failure>, failure: Failure) {
    if history.len() >= HISTORY_MAX {
        history.remove(1);
    }
    history.push(failure);
}
