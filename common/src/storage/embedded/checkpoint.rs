//! Moves committed pages from the write-ahead log into the database file, off the writer's path.
//!
//! The writer never checkpoints. This thread copies what is committed whenever enough has gathered, without
//! holding anybody up (PASSIVE). Under unbroken load a passive checkpoint never catches the log's end, so
//! the log would grow for ever: past [`LOG_BYTES_MAX`] one RESTART holds the writer for the short remainder.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rusqlite::Connection;

use super::telemetry::Telemetry;

/// Event bytes written between two checkpoints.
const STEP_BYTES: u64 = 8 << 20;
/// Length of the write-ahead log at which the writer is held until it can begin anew.
const LOG_BYTES_MAX: u64 = 128 << 20;
/// How often to look.
const PERIOD: Duration = Duration::from_millis(100);
/// Looks after which a small rest is checkpointed too, so that an idle store is a short file.
const IDLE_LOOKS: u32 = 50;

pub(super) struct Checkpointer {
    pub(super) connection: Connection,
    pub(super) database: PathBuf,
    pub(super) log: PathBuf,
    pub(super) written_bytes: Arc<AtomicU64>,
    pub(super) telemetry: Arc<Telemetry>,
}

impl Checkpointer {
    /// Runs until the other end of `stop` is dropped.
    pub(super) fn run(self, stop: &Receiver<()>) {
        let mut done_bytes = 0;
        let mut looks = 0;
        while stop.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
            looks += 1;
            let written = self.written_bytes.load(Ordering::Relaxed);
            if written - done_bytes >= STEP_BYTES || (looks >= IDLE_LOOKS && written > done_bytes) {
                self.checkpoint();
                done_bytes = written;
                looks = 0;
            }
            self.measure();
        }
    }

    fn checkpoint(&self) {
        let mode = if length(&self.log) > LOG_BYTES_MAX { "RESTART" } else { "PASSIVE" };
        let passed = self.run_pragma("PASSIVE");
        let outcome =
            if mode == "RESTART" { passed.and_then(|()| self.run_pragma("RESTART")) } else { passed };
        if let Err(error) = outcome {
            self.telemetry.checkpoint_failed();
            tracing::warn!(%error, mode, "a checkpoint of the store failed and will be tried again");
        }
    }

    fn run_pragma(&self, mode: &str) -> rusqlite::Result<()> {
        self.connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
    }

    fn measure(&self) {
        let bytes = length(&self.database) + length(&self.log);
        self.telemetry.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

pub(super) fn length(file: &std::path::Path) -> u64 {
    std::fs::metadata(file).map_or(0, |metadata| metadata.len())
}
