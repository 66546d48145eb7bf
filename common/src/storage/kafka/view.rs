//! The parked and dead topics as tables: read from their beginning into a scratch file when the storage opens,
//! and followed from then on. The topics are the truth; the file is thrown away at the end.
//!
//! One thread applies the records, each topic's in its order. A writer appends to the topic and then waits
//! until its record has been applied here, so that it sees what it wrote, and so does every other process
//! a moment later.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use rusqlite::{Connection, params};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};

use super::client::{ANSWER_WITHIN, Connect, Spoken, failed};
use super::controls::{Control, Controls};
use super::record::{self, ControlKey, ParkedKey};
use crate::storage::tables::SCHEMA;
use crate::storage::tables::deliveries::{forget, keep_letter, number_of, park, record_deliveries};
use crate::storage::tables::readers::{Readers, engine};
use crate::storage::{self, Delivered, StorageError, thread};

/// The topics that are followed.
pub(super) const PARKED: usize = 0;
pub(super) const DEAD: usize = 1;
/// Records applied in one transaction.
const GROUP_MAX: usize = 1000;
/// How often the thread looks around when nothing wakes it.
const TICK: Duration = Duration::from_millis(100);
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How long a writer waits to see its own record.
const APPLIED_WITHIN: Duration = Duration::from_secs(10);
/// Deliveries of this process that are remembered for `fates`, and [`PRUNE_EVERY`] more. Few in tests, which cannot wait for many.
const DELIVERED_MAX: u64 = if cfg!(test) { 200 } else { 200_000 };
/// Deliveries after which the oldest are forgotten: for that, all of them are looked through.
const PRUNE_EVERY: u64 = DELIVERED_MAX / 8;

type Job = Box<dyn FnOnce(&Connection) + Send>;

enum Wake {
    /// Records have come.
    Records,
    /// Something local is to be written.
    Write(Job),
    Stop,
}

pub(super) struct View {
    pub(super) readers: Readers,
    controls: Arc<Mutex<Controls>>,
    /// Of each topic the offset up to which all is applied.
    applied: watch::Receiver<[u64; 2]>,
    wake: SyncSender<Wake>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Deliveries so far.
    noted: Arc<AtomicU64>,
}

impl View {
    /// Begins to follow the topics; `ends` is where they end now, `told` hears what operators have said. Blocks.
    pub(super) fn start(
        connect: &Connect,
        group: &str,
        topics: [Arc<str>; 2],
        ends: [u64; 2],
        told: watch::Sender<storage::Controls>,
        is_sound: &Arc<AtomicBool>,
    ) -> Result<Self, StorageError> {
        let folder = TempDir::with_prefix("chaski-view-").map_err(|error| StorageError::Engine {
            doing: "making a folder for the view",
            cause: Arc::new(error),
        })?;
        let file = folder.path().join("view.db");
        let connection = open(&file).map_err(|error| engine("making the view", error))?;
        let failures = IntCounter::new("view_read_failures", "Failed reads of the view.")
            .map_err(|error| StorageError::Engine { doing: "making the view", cause: Arc::new(error) })?;
        let readers = Readers::open(&file, failures).map_err(|error| engine("opening readers", error))?;

        let consumer = Arc::new(connect.consumer(group, true, Spoken)?);
        let (wake, woken) = sync_channel(1024);
        let queues =
            follow(&consumer, &topics, &wake).map_err(|error| failed("following the parked topic", error))?;
        let (applied, watched) = watch::channel([0; 2]);
        let controls = Arc::new(Mutex::default());
        let follower = Follower {
            connection,
            consumer,
            queues,
            topics,
            ends,
            woken,
            applied,
            controls: Arc::clone(&controls),
            told,
            _folder: folder,
        };
        let thread = thread::start("chaski-view", is_sound, move || follower.run())?;
        let (thread, noted) = (Mutex::new(Some(thread)), Arc::default());
        Ok(Self { readers, controls, applied: watched, wake, thread, noted })
    }

    /// Waits until a topic is applied up to an offset, that one excluded.
    pub(super) async fn reached(&self, topic: usize, end: u64) -> Result<(), StorageError> {
        let mut applied = self.applied.clone();
        let reached = tokio::time::timeout(APPLIED_WITHIN, applied.wait_for(|applied| applied[topic] >= end));
        match reached.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(StorageError::Closed),
            Err(_) => {
                Err(StorageError::Late { doing: "reading back what was written", within: APPLIED_WITHIN })
            }
        }
    }

    /// As [`View::reached`], for as long as it takes: when the storage opens.
    pub(super) async fn caught_up(&self, ends: [u64; 2]) -> Result<(), StorageError> {
        let mut applied = self.applied.clone();
        let caught_up =
            applied.wait_for(|applied| applied[PARKED] >= ends[PARKED] && applied[DEAD] >= ends[DEAD]);
        caught_up.await.map(|_| ()).map_err(|_| StorageError::Closed)
    }

    /// What the control records say.
    pub(super) fn controls(&self) -> MutexGuard<'_, Controls> {
        self.controls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers deliveries that this process saw, so that it can tell of them.
    pub(super) async fn note_delivered(
        &self,
        destination: &str,
        delivered: Vec<Delivered>,
    ) -> Result<(), StorageError> {
        if delivered.is_empty() {
            return Ok(());
        }
        let (answer, done) = oneshot::channel();
        let (name, noted) = (destination.to_owned(), Arc::clone(&self.noted));
        let job: Job = Box::new(move |connection| {
            let _ = answer.send(note(connection, &name, &delivered, &noted));
        });
        self.wake.try_send(Wake::Write(job)).map_err(|_| StorageError::Busy)?;
        let noted = done.await.map_err(|_| StorageError::Closed)?;
        noted.map_err(|error| engine("remembering deliveries", error))
    }

    /// Has the thread panic.
    #[cfg(test)]
    pub(super) fn panic(&self) {
        let _ = self.wake.send(Wake::Write(Box::new(|_| panic!("on purpose"))));
    }

    /// Ends the thread and removes the file. Blocks.
    pub(super) fn close(&self) {
        self.readers.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = self.wake.send(Wake::Stop);
            let _ = thread.join();
        }
    }
}

/// One that was never closed: its opening failed half-way.
impl Drop for View {
    fn drop(&mut self) {
        let _ = self.wake.try_send(Wake::Stop);
    }
}

fn open(file: &std::path::Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(file)?;
    connection.set_prepared_statement_cache_capacity(32);
    connection.pragma_update(None, "journal_mode", "wal")?;
    // Scratch: what a crash takes is read from the topics again.
    connection.pragma_update(None, "synchronous", "off")?;
    connection.execute_batch(SCHEMA)?;
    Ok(connection)
}

fn note(
    connection: &Connection,
    name: &str,
    delivered: &[Delivered],
    noted: &AtomicU64,
) -> rusqlite::Result<()> {
    let count = delivered.len() as u64;
    let before = noted.fetch_add(count, Ordering::Relaxed);
    let transaction = connection.unchecked_transaction()?;
    let destination = number_of(&transaction, name)?;
    record_deliveries(&transaction, destination, delivered)?;
    if before / PRUNE_EVERY < (before + count) / PRUNE_EVERY {
        transaction.execute(
            "DELETE FROM delivered WHERE at < (SELECT at FROM delivered ORDER BY at DESC LIMIT 1 OFFSET ?)",
            [DELIVERED_MAX.cast_signed()],
        )?;
    }
    transaction.commit()
}

type Queue = PartitionQueue<Spoken>;

/// Opens the two topics at their beginning, each in a queue of its own.
fn follow(
    consumer: &Arc<BaseConsumer<Spoken>>,
    topics: &[Arc<str>; 2],
    wake: &SyncSender<Wake>,
) -> Result<[Queue; 2], KafkaError> {
    let mut places = TopicPartitionList::new();
    for topic in topics {
        places.add_partition_offset(topic, 0, Offset::Beginning)?;
    }
    consumer.assign(&places)?;
    // Paused while the queues are made: what was fetched before goes nowhere and is fetched again.
    consumer.pause(&places)?;
    let queue = |topic: &str| {
        let mut queue =
            consumer.split_partition_queue(topic, 0).ok_or(KafkaError::Subscription(topic.to_owned()))?;
        let wake = wake.clone();
        // With a full channel the thread is awake anyway.
        queue.set_nonempty_callback(move || drop(wake.try_send(Wake::Records)));
        Ok::<_, KafkaError>(queue)
    };
    let queues = [queue(&topics[PARKED])?, queue(&topics[DEAD])?];
    consumer.resume(&places)?;
    Ok(queues)
}

struct Follower {
    connection: Connection,
    queues: [Queue; 2],
    consumer: Arc<BaseConsumer<Spoken>>,
    topics: [Arc<str>; 2],
    ends: [u64; 2],
    woken: Receiver<Wake>,
    applied: watch::Sender<[u64; 2]>,
    controls: Arc<Mutex<Controls>>,
    told: watch::Sender<storage::Controls>,
    _folder: TempDir,
}

impl Follower {
    fn run(mut self) {
        let mut told = Instant::now();
        loop {
            let mut idle = true;
            for topic in [PARKED, DEAD] {
                match self.apply(topic) {
                    Ok(more) => idle &= !more,
                    // The scratch file's disk is full, say: the same records are tried again.
                    Err(error) => tracing::warn!(%error, "the view of the parked deliveries falls behind"),
                }
            }
            self.consumer.poll(Duration::ZERO);
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                self.tell();
            }
            let wake =
                if idle { self.woken.recv_timeout(TICK) } else { self.woken.recv_timeout(Duration::ZERO) };
            match wake {
                Ok(Wake::Write(job)) => job(&self.connection),
                Ok(Wake::Records) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Applies what has come of a topic; whether there may be more.
    fn apply(&mut self, topic: usize) -> rusqlite::Result<bool> {
        let mut next = self.applied.borrow()[topic];
        let before = next;
        let mut count = 0;
        let mut controls = Vec::new();
        let transaction = self.connection.unchecked_transaction()?;
        while count < GROUP_MAX {
            match self.queues[topic].poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => {
                    count += 1;
                    next = next.max(message.offset().unsigned_abs() + 1);
                    let outcome = if topic == PARKED {
                        apply_parked(&transaction, &message, &mut controls)
                    } else {
                        apply_dead(&transaction, &message)
                    };
                    match outcome {
                        Ok(()) => {}
                        Err(Failed::Unreadable(error)) => {
                            tracing::error!(%error, topic = %self.topics[topic], offset = message.offset(), "a record cannot be read and is passed over");
                        }
                        // What was taken from the queue is lost to this view, so it begins anew.
                        Err(Failed::Table(error)) => {
                            self.rewind(topic, before);
                            return Err(error);
                        }
                    }
                }
                // Behind the last record there may be none of the offsets that were counted.
                Some(Err(KafkaError::PartitionEOF(_))) => next = next.max(self.ends[topic]),
                Some(Err(error)) => {
                    tracing::warn!(%error, topic = %self.topics[topic], "a topic could not be read; trying on");
                    break;
                }
            }
        }
        if let Err(error) = transaction.commit() {
            self.rewind(topic, before);
            return Err(error);
        }
        if !controls.is_empty() {
            let mut held = self.controls.lock().unwrap_or_else(PoisonError::into_inner);
            for control in controls {
                held.apply(control);
            }
            // Told before it counts as applied, so that it shows when a write of it returns.
            let told = held.told();
            drop(held);
            self.told.send_if_modified(|last| {
                *last != told && {
                    *last = told;
                    true
                }
            });
        }
        self.applied.send_if_modified(|applied| std::mem::replace(&mut applied[topic], next) != next);
        Ok(count == GROUP_MAX)
    }

    fn rewind(&self, topic: usize, offset: u64) {
        let offset = Offset::Offset(offset.cast_signed());
        if let Err(error) = self.consumer.seek(&self.topics[topic], 0, offset, ANSWER_WITHIN) {
            tracing::error!(%error, topic = %self.topics[topic], "the view could not begin anew and may miss records until a restart");
        }
    }

    fn tell(&self) {
        let applied = *self.applied.borrow();
        for topic in [PARKED, DEAD] {
            if applied[topic] < self.ends[topic] {
                tracing::info!(topic = %self.topics[topic], read = applied[topic], of = self.ends[topic], "reading what is parked and dead");
            }
        }
    }
}

enum Failed {
    Unreadable(record::Unreadable),
    Table(rusqlite::Error),
}

impl From<record::Unreadable> for Failed {
    fn from(error: record::Unreadable) -> Self {
        Self::Unreadable(error)
    }
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        Self::Table(error)
    }
}

fn apply_parked(
    connection: &Connection,
    message: &BorrowedMessage<'_>,
    controls: &mut Vec<Control>,
) -> Result<(), Failed> {
    let key = record::read_parked_key(message)?;
    if let ParkedKey::Delivery(destination, _) = &key
        && record::is_by_hand(message)
    {
        controls.push(Control::ByHand(destination.clone()));
    }
    match key {
        ParkedKey::Delivery(destination, _) if message.payload().is_some() => {
            park(connection, &record::read_parked(message, &destination)?)?;
        }
        ParkedKey::Delivery(destination, id) => {
            let number = number_of(connection, &destination)?;
            forget(connection, number, id)?;
            if let Some(delivered) = record::read_delivered(message) {
                record_deliveries(connection, number, &[delivered])?;
            }
        }
        ParkedKey::Control(ControlKey::Destination(name)) => {
            controls.push(Control::Destination(name, state(message)));
        }
        ParkedKey::Control(ControlKey::Probe) => {}
        ParkedKey::Control(ControlKey::Replay(number)) => {
            controls.push(Control::Replay(number, state(message)));
        }
    }
    Ok(())
}

fn state<T: for<'a> Deserialize<'a>>(message: &BorrowedMessage<'_>) -> Option<T> {
    message.payload().and_then(|payload| serde_json::from_slice(payload).ok())
}

/// A letter says nothing of what is parked: the two topics have no order between them, and a redriven letter
/// is parked again.
fn apply_dead(connection: &Connection, message: &BorrowedMessage<'_>) -> Result<(), Failed> {
    let (destination, id, fingerprint) = record::read_dead_key(message)?;
    if message.payload().is_some() {
        keep_letter(connection, &record::read_letter(message, destination)?)?;
        return Ok(());
    }
    let destination = destination.map(|name| number_of(connection, &name)).transpose()?;
    connection
        .prepare_cached("DELETE FROM dead WHERE destination IS ? AND id = ? AND fingerprint = ?")?
        .execute(params![destination, id.as_bytes(), fingerprint.as_bytes()])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::storage::Position;

    #[test]
    fn the_last_deliveries_are_remembered_and_an_eighth_more_at_most() {
        let folder = TempDir::new().unwrap();
        let connection = open(&folder.path().join("view")).unwrap();
        let noted = AtomicU64::new(0);
        let mut delivered = (0..10 * DELIVERED_MAX).map(|number| Delivered {
            position: Position(number),
            at: Timestamp::from_millisecond(number as i64).unwrap(),
            attempts: 1,
        });
        let is_kept = |count, last: u64| {
            (last + 1).min(DELIVERED_MAX) <= count && count < DELIVERED_MAX + PRUNE_EVERY + 40
        };
        for settled in (1..=40).cycle() {
            let some: Vec<_> = delivered.by_ref().take(settled).collect();
            let Some(last) = some.last().map(|delivered| delivered.position.0) else { break };
            note(&connection, "erp", &some, &noted).unwrap();
            let kept = "SELECT COUNT(*), MIN(seq), MAX(seq) FROM delivered";
            let kept: [i64; 3] =
                connection.query_row(kept, [], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?])).unwrap();
            let [count, first, newest] = kept.map(i64::cast_unsigned);
            assert!(is_kept(count, last), "{count} of {last}");
            assert_eq!((first, newest), (last + 1 - count, last), "those that came last");
        }
    }
}
