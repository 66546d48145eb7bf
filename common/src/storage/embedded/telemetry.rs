//! What the store tells about itself.

use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry};

use crate::metrics::{FAST_SECONDS, Metrics};
use crate::storage::StorageError;

pub(super) struct Telemetry {
    fsync_seconds: Histogram,
    group_records: Histogram,
    errors: IntCounterVec,
    poisoned: IntGauge,
    pub(super) bytes: IntGauge,
}

impl Telemetry {
    pub(super) fn new(registry: &Registry) -> Self {
        let metrics = Metrics(registry);
        let errors = metrics.counters(
            "chaski_spool_errors_total",
            "Failed operations of the local store, by operation.",
            &["op"],
        );
        for op in ["full", "sync", "write", "refused", "read", "checkpoint"] {
            errors.with_label_values(&[op]);
        }
        Self {
            fsync_seconds: metrics.histogram(
                "chaski_spool_fsync_seconds",
                "Time of one commit of the local store, sync included.",
                FAST_SECONDS,
            ),
            group_records: metrics.histogram(
                "chaski_spool_group_records",
                "Writes that shared one commit.",
                &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0],
            ),
            errors,
            poisoned: metrics.gauge(
                "chaski_spool_poisoned",
                "1 until a restart: after a failed sync of the log, then nothing is written; of the database, then the log grows; where the spool could not be opened.",
            ),
            bytes: metrics.gauge("chaski_spool_bytes", "Bytes of the local store on disk, log included."),
        }
    }

    /// The store could not be opened.
    pub(super) fn note_unopened(&self) {
        self.poisoned.set(1);
    }

    #[allow(clippy::cast_precision_loss, reason = "a group has at most a thousand writes")]
    pub(super) fn synced(&self, took: Duration, writes: usize) {
        self.fsync_seconds.observe(took.as_secs_f64());
        self.group_records.observe(writes as f64);
    }

    pub(super) fn failed(&self, failure: &StorageError) {
        let op = match failure {
            StorageError::Full { .. } => "full",
            StorageError::Poisoned { .. } => "sync",
            _ => "write",
        };
        self.errors.with_label_values(&[op]).inc();
        self.note_poisoned(failure);
    }

    pub(super) fn refused_while_poisoned(&self) {
        self.errors.with_label_values(&["refused"]).inc();
    }

    /// Counts reads that failed.
    pub(super) fn read_failures(&self) -> IntCounter {
        self.errors.with_label_values(&["read"])
    }

    pub(super) fn checkpoint_failed(&self, failure: &StorageError) {
        self.errors.with_label_values(&["checkpoint"]).inc();
        self.note_poisoned(failure);
    }

    /// Only a restart takes it back, whatever fails after it.
    fn note_poisoned(&self, failure: &StorageError) {
        if matches!(failure, StorageError::Poisoned { .. }) {
            self.poisoned.set(1);
        }
    }
}
