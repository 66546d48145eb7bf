//! The one thread that writes, and group commit.
//!
//! A write is a closure over the connection. The thread takes the first one that waits, opens a
//! transaction, runs it and all that have queued up meanwhile, commits once with a sync, and only then
//! answers each of them. While one sync runs the next group gathers, so the group's size follows the load
//! by itself. Where many write at once, the next group is given a moment longer: what a commit costs is the same
//! for ten writes and for fifty, and so is what it keeps the processor from. A writer that is alone never waits.
//!
//! A write that fails by itself is rolled back by itself; a commit that fails fails its whole group. After
//! a failed *sync* nothing is written any more, see [`StorageError::Poisoned`].

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, ffi};
use tokio::sync::{mpsc, oneshot, watch};

use super::events::append;
use super::ids::Ids;
use super::log::{Batch, Entry};
use super::telemetry::Telemetry;
use crate::event::{EventId, Fingerprint};
use crate::post::together;
use crate::storage::tables::readers::engine;
use crate::storage::tables::rows::seq;
use crate::storage::{Appended, Controls, OnConflict, Position, StorageError, thread};

/// Writes that may wait. At the bound [`Writer::write_or_refuse`] answers [`StorageError::Busy`] and
/// [`Writer::write`] waits.
const QUEUE_MAX: usize = 8192;
/// Writes in one transaction. More would make the first of them wait too long.
const GROUP_MAX: usize = 1024;
/// Writes in one group that make the next one wait for [`LINGER`].
const CROWD_MIN: usize = 8;
/// How long it waits, and what the system's timer adds (50 µs on Linux): less than most disks take for a sync.
const LINGER: Duration = Duration::from_micros(100);
/// What a small write is taken to add to the file.
const ROW_BYTES: usize = 512;

/// Runs inside the group's transaction, or not at all if that did not begin, and returns how to answer once
/// the group's outcome is known.
type Job = Box<dyn FnOnce(Option<&Session>) -> Answer + Send>;

enum Order {
    /// Most are this one.
    Append { entry: Box<Entry>, on_conflict: OnConflict, reply: oneshot::Sender<Told> },
    Run {
        job: Job,
        /// What it will add to the file, about.
        weight_bytes: usize,
    },
    /// The last one that is sure to be looked at.
    Stop,
}

/// What became of an event, and the event: it is dropped by whoever brought it. This thread would have to take from
/// another processor what counts its body, and blocks of memory that were made there and go back there.
type Told = (Result<Appended, StorageError>, Box<Entry>);

enum Answer {
    Append { told: Told, reply: oneshot::Sender<Told> },
    Other(Box<dyn FnOnce(Result<(), StorageError>) + Send>),
}

/// What a write sees: the connection inside the group's transaction.
pub(super) struct Session {
    pub(super) connection: Connection,
    path: String,
    head: Cell<u64>,
    pub(super) ids: Ids,
    /// What the group has stored and not written yet.
    batch: RefCell<Batch>,
    /// The last failure of a single write: the reason, should the engine undo the whole group for it.
    failure: RefCell<Option<StorageError>>,
}

impl Session {
    /// The fingerprint of the event that has this id; none if the id is new.
    pub(super) fn known(&self, id: EventId) -> rusqlite::Result<Option<Fingerprint>> {
        self.ids.find(&self.connection, id)
    }

    /// Puts an event behind all others. It is written with those that come next: at the latest when the group is.
    pub(super) fn store(&self, event: &Entry) -> rusqlite::Result<Position> {
        let is_full = {
            let mut batch = self.batch.borrow_mut();
            batch.add(event);
            batch.is_full()
        };
        let position = Position(self.head() + 1);
        self.head.set(position.0);
        self.ids.add(event.id, position, event.fingerprint);
        if is_full {
            self.write_batch()?;
        }
        Ok(position)
    }

    /// Writes what is stored so far. If that fails, the whole group is undone: some of it may have been promised a position.
    fn write_batch(&self) -> rusqlite::Result<()> {
        let head = Position(self.head());
        let written = match self.batch.borrow_mut().write(&self.connection, head) {
            Ok(true) => return Ok(()),
            // Somebody else has written to the log. Nothing that is in a wrong place may be committed.
            Ok(false) => Err(rusqlite::Error::IntegralValueOutOfRange(0, seq(head))),
            Err(error) => Err(error),
        };
        // The engine may have undone it already.
        let _ = self.connection.execute_batch("ROLLBACK");
        written
    }

    /// Goes on with writing the ids, for a group of so many writes. Half a sweep is none: if it fails, the group is undone.
    fn sweep(&self, writes: usize) -> rusqlite::Result<()> {
        self.ids.sweep(&self.connection, writes, Position(self.head())).inspect_err(|_| {
            let _ = self.connection.execute_batch("ROLLBACK");
        })
    }

    /// The position of the last event stored, including this group's.
    pub(super) fn head(&self) -> u64 {
        self.head.get()
    }

    /// The failure of a single write, noted.
    fn failed(&self, doing: &'static str, error: rusqlite::Error) -> StorageError {
        let failure = self.classify(doing, error);
        self.failure.replace(Some(failure.clone()));
        failure
    }

    fn execute(&self, statement: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(statement)?.execute([]).map(drop)
    }

    fn classify(&self, doing: &'static str, error: rusqlite::Error) -> StorageError {
        match &error {
            _ if is_failed_sync(&error) => StorageError::Poisoned { path: self.path.clone() },
            rusqlite::Error::SqliteFailure(code, _) if code.code == ErrorCode::DiskFull => {
                StorageError::Full { path: self.path.clone() }
            }
            _ => engine(doing, error),
        }
    }
}

/// Whether the system could not bring to the disk what it had taken.
pub(super) fn is_failed_sync(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|code| code.extended_code);
    matches!(code, Some(ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC))
}

/// A hand on the writing thread. Cloning gives another.
#[derive(Clone)]
pub(super) struct Writer {
    queue: mpsc::Sender<Order>,
    /// Bytes handed to the engine since the start, so that the checkpointer knows whether there is work.
    pub(super) written_bytes: Arc<AtomicU64>,
    /// What operators have said, durably.
    controls: watch::Sender<Controls>,
    pub(super) writable: Arc<AtomicBool>,
}

impl Writer {
    /// Starts the thread. It ends when it is told to, or when the last hand is gone.
    pub(super) fn start(
        connection: Connection,
        ids: Ids,
        head: watch::Sender<Position>,
        controls: Controls,
        path: String,
        telemetry: Arc<Telemetry>,
    ) -> Result<(Self, JoinHandle<()>), StorageError> {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        let written_bytes = Arc::new(AtomicU64::new(0));
        let session = Session {
            connection,
            path,
            head: Cell::new(head.borrow().0),
            ids,
            batch: RefCell::default(),
            failure: RefCell::new(None),
        };
        let writable = Arc::new(AtomicBool::new(true));
        let writes = Thread {
            session,
            queue: receiver,
            head,
            telemetry,
            poisoned: None,
            last_group: 0,
            writable: Arc::clone(&writable),
            written_bytes: Arc::clone(&written_bytes),
        };
        let handle = thread::start("chaski-writer", &writable, move || writes.run())?;
        let controls = watch::Sender::new(controls);
        Ok((Self { queue, written_bytes, controls, writable }, handle))
    }

    /// Runs `work` in the next group; waits for a place in the queue. `Ok` means durable.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Session) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StorageError> {
        self.write_and(doing, work, |_| {}).await
    }

    /// As [`Writer::write`], for what an operator says: once it is durable, and before the answer, `say` tells all
    /// who listen. In the order of the writes, and whether or not the caller still waits.
    pub(super) async fn control<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Session) -> rusqlite::Result<T> + Send + 'static,
        say: impl FnOnce(&mut Controls, &T) + Send + 'static,
    ) -> Result<T, StorageError> {
        let controls = self.controls.clone();
        let tell = move |written: &T| controls.send_modify(|controls| say(controls, written));
        self.write_and(doing, work, tell).await
    }

    /// What operators have said.
    pub(super) fn controls(&self) -> watch::Receiver<Controls> {
        self.controls.subscribe()
    }

    async fn write_and<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Session) -> rusqlite::Result<T> + Send + 'static,
        then: impl FnOnce(&T) + Send + 'static,
    ) -> Result<T, StorageError> {
        let (job, answer) = job(doing, Isolation::Savepoint, work, then);
        let order = Order::Run { job, weight_bytes: ROW_BYTES };
        self.queue.send(order).await.map_err(|_| StorageError::Closed)?;
        answer.await.map_err(|_| StorageError::Closed)?
    }

    /// False after a failed sync, once the thread has ended, or after the checkpointer has panicked.
    pub(super) fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed) && !self.queue.is_closed()
    }

    /// Ends the thread once everything ordered before is done. Later writes get [`StorageError::Closed`].
    pub(super) async fn stop(&self) {
        // A queue that is closed already has been stopped.
        let _ = self.queue.send(Order::Stop).await;
    }

    /// As [`Writer::write`], for work that changes something with its last statement only, which undoes itself
    /// when it fails; refuses at once when the queue is full. `weight_bytes` is what it will add to the file.
    pub(super) async fn write_or_refuse<T: Send + 'static>(
        &self,
        doing: &'static str,
        weight_bytes: usize,
        work: impl FnOnce(&Session) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StorageError> {
        let (job, answer) = job(doing, Isolation::Statement, work, |_| {});
        self.order_or_refuse(Order::Run { job, weight_bytes })?;
        answer.await.map_err(|_| StorageError::Closed)?
    }

    /// Puts an event into the log, unless its id is there; refuses at once when the queue is full.
    pub(super) async fn append(
        &self,
        entry: Box<Entry>,
        on_conflict: OnConflict,
    ) -> Result<Appended, StorageError> {
        let (reply, answer) = oneshot::channel();
        self.order_or_refuse(Order::Append { entry, on_conflict, reply })?;
        let (appended, _) = answer.await.map_err(|_| StorageError::Closed)?;
        appended
    }

    fn order_or_refuse(&self, order: Order) -> Result<(), StorageError> {
        self.queue.try_send(order).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => StorageError::Busy,
            mpsc::error::TrySendError::Closed(_) => StorageError::Closed,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Isolation {
    Statement,
    Savepoint,
}

fn job<T: Send + 'static>(
    doing: &'static str,
    isolation: Isolation,
    work: impl FnOnce(&Session) -> rusqlite::Result<T> + Send + 'static,
    then: impl FnOnce(&T) + Send + 'static,
) -> (Job, oneshot::Receiver<Result<T, StorageError>>) {
    let (reply, answer) = oneshot::channel();
    let job: Job = Box::new(move |session| {
        let result = session.map(|session| {
            let result = match isolation {
                Isolation::Statement => work(session),
                Isolation::Savepoint => in_savepoint(session, work),
            };
            result.map_err(|error| session.failed(doing, error))
        });
        Answer::Other(Box::new(move |group: Result<(), StorageError>| {
            let answer = group.and(result.unwrap_or(Err(StorageError::Closed)));
            if let Ok(written) = &answer {
                then(written);
            }
            // A receiver that is gone has lost interest in the answer, not in the write.
            let _ = reply.send(answer);
        }))
    });
    (job, answer)
}

fn in_savepoint<T>(
    session: &Session,
    work: impl FnOnce(&Session) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let (head, changes) = (session.head.get(), session.ids.changes());
    session.connection.execute_batch("SAVEPOINT job")?;
    let result = work(session).and_then(|done| session.write_batch().map(|()| done));
    if result.is_err() {
        session.head.set(head);
        session.ids.undo(changes);
        session.batch.borrow_mut().clear();
        if session.connection.execute_batch("ROLLBACK TO job").is_err() {
            // Either the engine has undone the whole transaction already, or it has to: half a write must not
            // be committed with its group. The error to tell is the first one.
            let _ = session.connection.execute_batch("ROLLBACK");
            return result;
        }
    }
    session.connection.execute_batch("RELEASE job")?;
    result
}

impl Order {
    fn weight_bytes(&self) -> usize {
        match self {
            Self::Append { entry, .. } => entry.len_bytes(),
            Self::Run { weight_bytes, .. } => *weight_bytes,
            Self::Stop => 0,
        }
    }

    /// Does it, inside the group's transaction; without a session that has not begun. None if nobody asks.
    fn run(self, session: Option<&Session>) -> Option<Answer> {
        match self {
            Self::Append { entry, on_conflict, reply } => {
                let result = match session {
                    None => Err(StorageError::Closed),
                    Some(session) => append(session, &entry, on_conflict)
                        .map_err(|error| session.failed("storing an event", error)),
                };
                Some(Answer::Append { told: (result, entry), reply })
            }
            // It sees what came before it.
            Self::Run { job, .. } => Some(job(session.filter(|session| {
                session.write_batch().map_err(|error| session.failed("storing events", error)).is_ok()
            }))),
            Self::Stop => None,
        }
    }
}

/// Waits for orders and takes at most so many. Whatever becomes of them, nothing is queued up behind a stop; none
/// at all is the end.
fn receive(queue: &mut mpsc::Receiver<Order>, orders: &mut Vec<Order>, count_max: usize) -> usize {
    let count = queue.blocking_recv_many(orders, count_max);
    if orders.iter().any(|order| matches!(order, Order::Stop)) {
        queue.close();
    }
    count
}

impl Answer {
    /// Tells whoever asked, if anybody still waits, now that the group's outcome is known.
    fn give(self, group: Result<(), StorageError>) {
        match self {
            Self::Append { told: (result, entry), reply } => {
                let _ = reply.send((group.and(result), entry));
            }
            Self::Other(answer) => answer(group),
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the writer's thread is its own, and a group has no last write to wait for"
)]
fn linger() {
    std::thread::sleep(LINGER);
}

struct Thread {
    session: Session,
    queue: mpsc::Receiver<Order>,
    head: watch::Sender<Position>,
    telemetry: Arc<Telemetry>,
    poisoned: Option<StorageError>,
    /// Writes in the last group.
    last_group: usize,
    /// Told to whoever asks whether the store can be written to.
    writable: Arc<AtomicBool>,
    written_bytes: Arc<AtomicU64>,
}

impl Thread {
    fn run(mut self) {
        let mut orders = Vec::with_capacity(GROUP_MAX);
        let mut answers = Vec::with_capacity(GROUP_MAX);
        while receive(&mut self.queue, &mut orders, GROUP_MAX) > 0 {
            if self.last_group >= CROWD_MIN {
                linger();
            }
            let outcome = if let Some(failure) = &self.poisoned {
                answers.extend(orders.drain(..).filter_map(|order| order.run(None)));
                answers.iter().for_each(|_| self.telemetry.refused_while_poisoned());
                Err(failure.clone())
            } else {
                self.group(&mut orders, &mut answers).inspect_err(|failure| self.telemetry.failed(failure))
            };
            self.conclude(&outcome);
            self.last_group = answers.len();
            together(|| answers.drain(..).for_each(|answer| answer.give(outcome.clone())));
        }
    }

    /// Runs one group inside one transaction: these orders and what is queued up meanwhile. `Ok` means that all
    /// of it is durable.
    fn group(&mut self, orders: &mut Vec<Order>, answers: &mut Vec<Answer>) -> Result<(), StorageError> {
        let session = &self.session;
        session.failure.replace(None);
        if let Err(error) = session.execute("BEGIN IMMEDIATE") {
            answers.extend(orders.drain(..).filter_map(|order| order.run(None)));
            return Err(session.classify("beginning a group", error));
        }
        let mut weight_bytes = 0;
        loop {
            for order in orders.drain(..) {
                weight_bytes += order.weight_bytes();
                // The engine undoes the whole transaction by itself after some errors; what came next would then
                // run outside of any.
                let inside = (!session.connection.is_autocommit()).then_some(session);
                answers.extend(order.run(inside));
            }
            if session.connection.is_autocommit() || answers.len() >= GROUP_MAX || self.queue.is_empty() {
                break;
            }
            receive(&mut self.queue, orders, GROUP_MAX - answers.len());
        }
        self.written_bytes.fetch_add(weight_bytes as u64, Ordering::Relaxed);
        if !session.connection.is_autocommit()
            && let Err(error) = session.write_batch().and_then(|()| session.sweep(answers.len()))
        {
            session.failure.replace(Some(session.classify("storing events", error)));
        }
        if session.connection.is_autocommit() {
            return Err(session.failure.take().unwrap_or(StorageError::Closed));
        }
        let started = Instant::now();
        let committed = session.execute("COMMIT");
        self.telemetry.synced(started.elapsed(), answers.len());
        committed.map_err(|error| {
            if !session.connection.is_autocommit() {
                let _ = session.connection.execute_batch("ROLLBACK");
            }
            session.classify("committing a group", error)
        })
    }

    /// Publishes the new head, or goes back to the last durable one.
    fn conclude(&mut self, outcome: &Result<(), StorageError>) {
        match outcome {
            Ok(()) => {
                self.session.ids.committed();
                let head = Position(self.session.head());
                self.head.send_if_modified(|last| std::mem::replace(last, head) != head);
            }
            Err(failure) => {
                self.session.head.set(self.head.borrow().0);
                self.session.ids.undo(0);
                self.session.batch.borrow_mut().clear();
                if matches!(failure, StorageError::Poisoned { .. }) && self.poisoned.is_none() {
                    tracing::error!(path = %self.session.path, "a sync failed: nothing is accepted until a restart");
                    self.poisoned = Some(failure.clone());
                    self.writable.store(false, Ordering::Relaxed);
                } else {
                    tracing::warn!(error = %failure, "a group of writes was refused as a whole");
                }
            }
        }
    }
}
