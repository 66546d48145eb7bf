//! Moves committed pages from the write-ahead log into the database file, off the writer's path.
//!
//! The writer never checkpoints. This thread copies what is committed whenever enough has gathered, without
//! holding anybody up (PASSIVE). Under unbroken load a passive checkpoint never catches the log's end, so
//! the log would grow for ever: past [`LOG_PAGES_MAX`] one RESTART holds the writer for the short remainder, and the
//! log is written from its beginning again. Its file stays as long as it was, so its length says nothing.
//!
//! The engine syncs the database file with the last page of the log only, which is with a RESTART and while the writer
//! is held. So what is copied is synced here, and there is next to nothing left for it to sync. After a sync that failed
//! nothing is copied any more: the next one would succeed, and the log begin anew over what is not in the database. The
//! next start copies all of it, and syncs that. Until then the writer goes on, since each commit is synced in the log by
//! itself; what bounds the log is the disk, so that an alert asks for the restart at once.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::telemetry::Telemetry;
use super::writer::is_failed_sync;
use crate::storage::StorageError;
use crate::storage::tables::readers::engine;

/// Event bytes written between two checkpoints.
const STEP_BYTES: u64 = 8 << 20;
/// Pages in the write-ahead log at which the writer is held until it can begin anew: 128 MiB of them. Few in tests.
const LOG_PAGES_MAX: i64 = if cfg!(test) { 64 } else { 32 << 10 };
/// How often to look.
const PERIOD: Duration = Duration::from_millis(100);
/// Looks after which a small rest is checkpointed too, so that an idle store is a short file.
const IDLE_LOOKS: u32 = 50;

pub(super) struct Checkpointer {
    pub(super) connection: Connection,
    pub(super) database: PathBuf,
    /// The database, to be synced. The system forgets this process' locks on a file with the first of its handles that
    /// is closed, so this one stays until nobody writes any more.
    pub(super) file: File,
    pub(super) log: PathBuf,
    pub(super) written_bytes: Arc<AtomicU64>,
    pub(super) writable: Arc<AtomicBool>,
    pub(super) telemetry: Arc<Telemetry>,
}

impl Checkpointer {
    /// Runs until the other end of `stop` is dropped.
    pub(super) fn run(self, stop: &Receiver<()>) {
        let mut is_sound = true;
        let mut done_bytes = 0;
        let mut looks = 0;
        while stop.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
            looks += 1;
            let written = self.written_bytes.load(Ordering::Relaxed);
            let is_due = written - done_bytes >= STEP_BYTES || (looks >= IDLE_LOOKS && written > done_bytes);
            if is_sound && is_due {
                is_sound = self.checkpoint();
                done_bytes = written;
                looks = 0;
            }
            self.measure();
        }
    }

    /// False after a sync that failed: there may be no other checkpoint.
    fn checkpoint(&self) -> bool {
        let Err(error) = self.try_checkpoint() else { return true };
        self.telemetry.checkpoint_failed(&error);
        if matches!(error, StorageError::Poisoned { .. }) {
            // Only a restart helps, and whoever asks for the process' health is told so.
            self.writable.store(false, Ordering::Relaxed);
            // Nor does this connection, which is the last to be closed, end with one.
            let _ = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
            tracing::error!(%error, "a sync of the store failed: its log grows until a restart");
            return false;
        }
        tracing::warn!(%error, "a checkpoint of the store failed and will be tried again");
        true
    }

    fn try_checkpoint(&self) -> Result<(), StorageError> {
        if self.copy()? > LOG_PAGES_MAX {
            // What has come meanwhile, so that little is left for which the writer is held.
            self.copy()?;
            self.run_pragma("RESTART")?;
        }
        Ok(())
    }

    /// Returns how many pages there were in the log.
    fn copy(&self) -> Result<i64, StorageError> {
        let pages = self.run_pragma("PASSIVE")?;
        self.file.sync_data().map_err(|_| self.poisoned())?;
        Ok(pages)
    }

    /// Returns how many pages there were in the log.
    fn run_pragma(&self, mode: &str) -> Result<i64, StorageError> {
        self.connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get(1)).map_err(
            |error| {
                if is_failed_sync(&error) {
                    self.poisoned()
                } else {
                    engine("moving the log into the database", error)
                }
            },
        )
    }

    fn poisoned(&self) -> StorageError {
        StorageError::Poisoned { path: self.database.display().to_string() }
    }

    fn measure(&self) {
        let bytes = length(&self.database) + length(&self.log);
        self.telemetry.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

pub(super) fn length(file: &std::path::Path) -> u64 {
    std::fs::metadata(file).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use prometheus::Registry;
    use tempfile::TempDir;

    use super::*;
    use crate::storage::embedded::connect;

    #[test]
    fn the_writer_is_held_for_a_long_log_and_not_for_a_long_file() {
        static WAITS: AtomicUsize = AtomicUsize::new(0);
        let folder = TempDir::new().unwrap();
        let database = folder.path().join("store.db");
        let writer = connect(&database, |_| false).unwrap();
        let checkpointer = Checkpointer {
            connection: connect(&database, |_| {
                WAITS.fetch_add(1, Ordering::Relaxed);
                false
            })
            .unwrap(),
            log: folder.path().join("store.db-wal"),
            file: File::open(&database).unwrap(),
            database,
            written_bytes: Arc::default(),
            writable: Arc::new(AtomicBool::new(true)),
            telemetry: Arc::new(Telemetry::new(&Registry::new())),
        };
        // How often it has waited for a writer that is in the middle of something.
        let waits = || {
            writer.execute_batch("BEGIN IMMEDIATE").unwrap();
            WAITS.store(0, Ordering::Relaxed);
            checkpointer.checkpoint();
            writer.execute_batch("COMMIT").unwrap();
            WAITS.load(Ordering::Relaxed)
        };
        writer.execute_batch("CREATE TABLE t (b)").unwrap();
        assert_eq!(waits(), 0);
        let bytes = (LOG_PAGES_MAX + 1) * 4096;
        writer.execute("INSERT INTO t VALUES (zeroblob(?))", [bytes]).unwrap();
        assert!(waits() > 0, "the log is long");
        checkpointer.checkpoint();
        writer.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        assert!(length(&checkpointer.log) > bytes.unsigned_abs(), "the file is long");
        assert_eq!(waits(), 0, "the log is not");
    }

    #[test]
    fn after_a_failed_sync_nothing_is_copied_and_the_store_asks_for_a_restart() {
        let folder = TempDir::new().unwrap();
        let database = folder.path().join("store.db");
        let registry = Registry::new();
        let checkpointer = Checkpointer {
            connection: connect(&database, |_| false).unwrap(),
            log: folder.path().join("store.db-wal"),
            // It cannot be synced.
            file: File::open("/dev/null").unwrap(),
            database,
            written_bytes: Arc::default(),
            writable: Arc::new(AtomicBool::new(true)),
            telemetry: Arc::new(Telemetry::new(&registry)),
        };
        let is_poisoned = || {
            let families = registry.gather();
            let gauge = families.iter().find(|family| family.name() == "chaski_spool_poisoned").unwrap();
            gauge.get_metric()[0].get_gauge().get_value() == 1.0
        };
        checkpointer.connection.execute_batch("CREATE TABLE t (b)").unwrap();
        assert!(!is_poisoned());
        assert!(!checkpointer.checkpoint(), "there is no other");
        assert!(!checkpointer.writable.load(Ordering::Relaxed));
        assert!(is_poisoned(), "what alerts look at");
        checkpointer.telemetry.failed(&StorageError::Full { path: String::new() });
        assert!(is_poisoned(), "what comes later does not mend it");
        let log = checkpointer.log.clone();
        drop(checkpointer);
        assert!(length(&log) > 0, "the log is there for the next start");
    }
}
