//! What the producer tells about itself.

use std::collections::HashMap;
use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use serde::Deserialize;

use super::Report;
use crate::metrics::{FAST_SECONDS, Metrics};

#[derive(Clone)]
pub(super) struct Telemetry {
    results: IntCounterVec,
    /// The one of them that is looked up for every record.
    acknowledged: IntCounter,
    seconds: Histogram,
    brokers_up: IntGauge,
}

/// What is of interest in the client's statistics.
#[derive(Deserialize)]
struct Statistics {
    brokers: HashMap<String, BrokerState>,
}

#[derive(Deserialize)]
struct BrokerState {
    /// Negative for an address that is only known from the configuration.
    nodeid: i64,
    state: String,
}

impl Telemetry {
    pub(super) fn new(registry: &Registry) -> Self {
        let metrics = Metrics(registry);
        let results = metrics.counters(
            "chaski_kafka_produce_total",
            "Records handed to the producer, by what became of them.",
            &["result"],
        );
        for result in ["acknowledged", "timed_out", "queue_full", "fatal", "failed"] {
            results.with_label_values(&[result]);
        }
        Self {
            acknowledged: results.with_label_values(&["acknowledged"]),
            results,
            seconds: metrics.histogram(
                "chaski_kafka_produce_seconds",
                "Time until the brokers acknowledged a record.",
                FAST_SECONDS,
            ),
            brokers_up: metrics
                .gauge("chaski_kafka_brokers_up", "Brokers that the producer is connected to."),
        }
    }

    pub(super) fn reported(&self, report: &Report, took: Duration) {
        match report {
            Ok(_) => {
                self.acknowledged.inc();
                self.seconds.observe(took.as_secs_f64());
            }
            Err(error) => self.refused(error),
        }
    }

    pub(super) fn refused(&self, error: &KafkaError) {
        let result = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageTimedOut) => "timed_out",
            Some(RDKafkaErrorCode::QueueFull) => "queue_full",
            Some(RDKafkaErrorCode::Fatal) => "fatal",
            _ => "failed",
        };
        self.results.with_label_values(&[result]).inc();
    }

    pub(super) fn connected(&self, statistics: &[u8]) {
        let Ok(statistics) = serde_json::from_slice::<Statistics>(statistics) else { return };
        let up = statistics.brokers.values().filter(|broker| broker.nodeid >= 0 && broker.state == "UP");
        self.brokers_up.set(i64::try_from(up.count()).unwrap_or(i64::MAX));
    }
}
