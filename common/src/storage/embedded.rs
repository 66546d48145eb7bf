//! The embedded storage: one SQLite file in one folder, one writer thread, group commit.
//!
//! Promises: `Ok` from a write means committed with `synchronous=FULL`, that is, the write-ahead log has been
//! synced. A full disk refuses writes and heals by itself. A failed sync ends all writing until the store is
//! opened anew; opening first copies the whole log into the database file and syncs *that*, so that
//! nothing is built on pages of which nobody knows whether the disk has them. A second process is refused.
//!
//! The schema, with what each table is for, is in `tables/schema.sql`.

mod checkpoint;
mod deliveries;
mod durable;
mod events;
mod filter;
mod ids;
mod log;
mod schema;
mod subscription;
mod telemetry;
mod writer;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prometheus::Registry;
use rusqlite::Connection;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::checkpoint::Checkpointer;
use self::durable::Durable;
use self::ids::Ids;
#[cfg(any(test, feature = "testing"))]
pub use self::log::fuzzing::FUZZED;
use self::telemetry::Telemetry;
use self::writer::Writer;
use super::tables::readers::{Readers, engine};
use super::{Position, Storage, StorageError, thread};

/// The database file inside the store's folder.
pub const FILE: &str = "chaski.db";
/// The file whose lock says that a process has the store.
const LOCK_FILE: &str = "chaski.lock";
/// How long the folder of another process is waited for: a process that was killed while it started a program leaves
/// the lock to that program until it runs, which takes a busy machine a moment.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// How often the lock is tried in that time.
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// How long the writer waits for a checkpoint that holds it.
const WRITER_WAIT: Duration = Duration::from_secs(10);
/// How long a checkpoint that holds the writer waits for readers before it lets it go on.
const CHECKPOINT_WAIT: Duration = Duration::from_millis(200);
/// After what time each of them looks again, and what the system's timer adds. The engine's own pauses grow from 1 ms to
/// 100, and everybody who posts meanwhile waits with the writer.
const LOOK: Duration = Duration::from_micros(150);

/// How to open the embedded storage.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder; made if it is missing.
    pub path: PathBuf,
}

/// Opens the store, or says why not. Blocks on the disk; must be called inside a tokio runtime.
///
/// # Errors
/// [`StorageError::Locked`] when another process has it and keeps it for two seconds, [`StorageError::Newer`] when a newer chaski wrote it,
/// [`StorageError::Engine`] for what else the disk or the file can come up with.
pub fn open(options: &Options, registry: &Registry) -> Result<Storage, StorageError> {
    let telemetry = Arc::new(Telemetry::new(registry));
    // Who goes on without it is told by that: whatever is in it, only a restart brings it back.
    open_measured(options, Arc::clone(&telemetry)).inspect_err(|_| telemetry.note_unopened())
}

fn open_measured(options: &Options, telemetry: Arc<Telemetry>) -> Result<Storage, StorageError> {
    let lock = lock(&options.path)?;
    let database = options.path.join(FILE);
    let log = options.path.join(format!("{FILE}-wal"));

    let connection = prepare(&database)?;
    let last = log::head(&connection).map_err(|error| engine("finding the end of the log", error))?;
    let head = watch::Sender::new(last);
    let path = options.path.display().to_string();
    let durable = Arc::new(Durable::default());
    let ids = Ids::load(&connection, last, Arc::clone(&durable))
        .map_err(|error| engine("reading the newest ids", error))?;
    let controls =
        events::controls(&connection).map_err(|error| engine("reading what operators have said", error))?;
    let (writer, writer_thread) =
        Writer::start(connection, ids, head.clone(), controls, path, Arc::clone(&telemetry))?;
    let readers = Readers::open(&database, telemetry.read_failures())
        .map_err(|error| engine("opening readers", error))?;

    let (stop_checkpoints, stopped) = std::sync::mpsc::channel();
    let checkpointer = Checkpointer {
        connection: connect(&database, |looks| look_again(looks, CHECKPOINT_WAIT))
            .map_err(|error| engine("opening the checkpointer", error))?,
        file: File::open(&database).map_err(|error| StorageError::Engine {
            doing: "opening the checkpointer",
            cause: Arc::new(error),
        })?,
        database: database.clone(),
        log: log.clone(),
        written_bytes: Arc::clone(&writer.written_bytes),
        writable: Arc::clone(&writer.writable),
        telemetry,
    };
    let run = move || checkpointer.run(&stopped);
    let checkpoint_thread = thread::start("chaski-checkpoint", &writer.writable, run)?;

    let store = Arc::new(Embedded {
        writer,
        readers,
        durable,
        head,
        files: [database, log],
        closing: CancellationToken::new(),
        threads: Mutex::new(Some(Threads {
            writer: writer_thread,
            checkpointer: checkpoint_thread,
            stop_checkpoints,
            _lock: lock,
        })),
    });
    Ok(Storage { events: Arc::clone(&store) as _, deliveries: store })
}

/// The open store.
struct Embedded {
    writer: Writer,
    readers: Readers,
    durable: Arc<Durable>,
    head: watch::Sender<Position>,
    files: [PathBuf; 2],
    closing: CancellationToken,
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    writer: JoinHandle<()>,
    checkpointer: JoinHandle<()>,
    stop_checkpoints: std::sync::mpsc::Sender<()>,
    _lock: File,
}

impl Embedded {
    async fn shut(&self) {
        self.closing.cancel();
        self.writer.stop().await;
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(threads) = threads else { return };
        self.readers.close();
        let joined = tokio::task::spawn_blocking(move || {
            let _ = threads.writer.join();
            // Last, see `Checkpointer::file`.
            drop(threads.stop_checkpoints);
            let _ = threads.checkpointer.join();
        });
        if joined.await.is_err() {
            tracing::warn!("the store's threads did not end in order");
        }
    }
}

/// Takes the folder for this process and writes into the lock's file who has it. The folder and what is made
/// in it is for this user only: it holds payloads.
fn lock(folder: &Path) -> Result<File, StorageError> {
    let failed =
        |error: std::io::Error| StorageError::Engine { doing: "locking the folder", cause: Arc::new(error) };
    make_folder(folder).map_err(failed)?;
    private().open(folder.join(FILE)).map_err(failed)?;
    let mut file = private().open(folder.join(LOCK_FILE)).map_err(failed)?;
    let asked = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            #[allow(clippy::disallowed_methods, reason = "opening blocks, and says so")]
            Err(TryLockError::WouldBlock) if asked.elapsed() < LOCK_WAIT => std::thread::sleep(LOCK_RETRY),
            Err(TryLockError::WouldBlock) => {
                return Err(StorageError::Locked { path: folder.display().to_string() });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    file.set_len(0)
        .and_then(|()| write!(file, "{}-{}", std::process::id(), since.as_nanos()))
        .map_err(failed)?;
    Ok(file)
}

/// What the process that has, or last had, the store in this folder has written into its lock's file: differs
/// from process to process. None if there is no store.
///
/// # Errors
/// What stands in the way of a look, a file in the folder's place for one.
pub fn holder(folder: &Path) -> std::io::Result<Option<String>> {
    match std::fs::read_to_string(folder.join(LOCK_FILE)) {
        Ok(holder) => Ok(Some(holder)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a process has the store in this folder now. One that is starting just then waits for the moment of the look.
///
/// # Errors
/// As [`holder`].
pub fn is_held(folder: &Path) -> std::io::Result<bool> {
    let file = match File::open(folder.join(LOCK_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn private() -> OpenOptions {
    let mut options = File::options();
    options.create(true).truncate(false).write(true).mode(0o600);
    options
}

/// Makes the folder if it is missing, and its name durable.
fn make_folder(folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

fn connect(database: &Path, wait: fn(i32) -> bool) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open(database)?;
    connection.busy_handler(Some(wait))?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "cache_size", -8 * 1024)?;
    Ok(connection)
}

/// Waits a moment for whoever has the lock; false after so many looks as take `wait`.
#[allow(
    clippy::disallowed_methods,
    reason = "the engine has no other way to wait, and its threads are its own"
)]
fn look_again(looks: i32, wait: Duration) -> bool {
    std::thread::sleep(LOOK);
    LOOK * looks.unsigned_abs() < wait
}

/// The writer's connection on a file that is known to be whole, on disk, and of our version by now.
fn prepare(database: &Path) -> Result<Connection, StorageError> {
    let failed = |error| engine("opening the database", error);
    let mut connection = connect(database, |looks| look_again(looks, WRITER_WAIT)).map_err(failed)?;
    // What an earlier process could not sync is synced here, or opening fails.
    let busy: i64 =
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).map_err(failed)?;
    if busy != 0 {
        return Err(StorageError::Locked { path: database.display().to_string() });
    }
    schema::bring_up_to_date(&mut connection, database)?;
    Ok(connection)
}

#[cfg(test)]
mod tests;
