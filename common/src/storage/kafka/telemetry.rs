//! What the readers count.

use prometheus::{IntCounter, IntCounterVec, Registry};

use crate::metrics::Metrics;

pub(super) struct Telemetry {
    rebalances: IntCounterVec,
    lost: IntCounterVec,
}

/// The series of one destination.
#[derive(Clone)]
pub(super) struct ReaderTelemetry {
    /// Times that the group shared its partitions out anew.
    pub(super) rebalances: IntCounter,
    /// Events that were deleted before this destination had settled them.
    pub(super) lost: IntCounter,
}

impl Telemetry {
    pub(super) fn new(registry: &Registry) -> Self {
        let metrics = Metrics(registry);
        let each = &["destination"];
        Self {
            rebalances: metrics.counters(
                "chaski_kafka_rebalances_total",
                "Times that a destination's readers shared its partitions out anew, as this process saw it.",
                each,
            ),
            lost: metrics.counters(
                "chaski_events_lost_to_retention_total",
                "Events that the brokers deleted before the destination had settled them.",
                each,
            ),
        }
    }

    /// The series of one destination, present from here on.
    pub(super) fn of(&self, destination: &str) -> ReaderTelemetry {
        ReaderTelemetry {
            rebalances: self.rebalances.with_label_values(&[destination]),
            lost: self.lost.with_label_values(&[destination]),
        }
    }
}
