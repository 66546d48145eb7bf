//! The dispatcher's metrics: names and labels of the published list, handles looked up once per destination.

use std::time::Duration;

use chaski_common::metrics::{Metrics as Register, SLOW_SECONDS};
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use crate::attempt::Reason;
use crate::outcome::AttemptResult;

/// What became of an event in a replay: the label `result` of `chaski_replay_events_total`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Replayed {
    Delivered,
    Parked,
    Dead,
}

/// The tasks whose panics are counted: the label `task` of `chaski_panics_total`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Task {
    Courier,
    Attempt,
}

/// All families, registered once.
pub(crate) struct Metrics {
    attempts: IntCounterVec,
    attempt_seconds: HistogramVec,
    end_to_end_seconds: HistogramVec,
    money_latency_seconds: HistogramVec,
    consecutive_failures: IntGaugeVec,
    pending: IntGaugeVec,
    circuit_open: IntGaugeVec,
    disabled: IntGaugeVec,
    header_dropped: IntCounterVec,
    dead: IntCounterVec,
    replayed: IntCounterVec,
    panics: [IntCounter; 2],
}

/// The series of one destination.
pub(crate) struct DestinationMetrics {
    attempts: [IntCounter; AttemptResult::ALL.len()],
    attempt_seconds: Histogram,
    pub(crate) end_to_end_seconds: Histogram,
    pub(crate) money_latency_seconds: Histogram,
    pub(crate) consecutive_failures: IntGauge,
    pub(crate) queued: IntGauge,
    pub(crate) in_flight: IntGauge,
    pub(crate) parked: IntGauge,
    pub(crate) circuit_open: IntGauge,
    pub(crate) disabled: IntGauge,
    pub(crate) header_dropped: IntCounter,
    dead: [IntCounter; Reason::ALL.len()],
    replayed: [IntCounter; 3],
    panics: [IntCounter; 2],
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let register = Register(registry);
        let each = &["destination"][..];
        let panics = register.counters("chaski_panics_total", "Panics that were caught.", &["task"]);
        Self {
            attempts: register.counters(
                "chaski_dispatch_attempts_total",
                "Attempts ended.",
                &["destination", "result"],
            ),
            attempt_seconds: register.histograms(
                "chaski_dispatch_attempt_seconds",
                "One attempt.",
                each,
                SLOW_SECONDS,
            ),
            end_to_end_seconds: register.histograms(
                "chaski_dispatch_end_to_end_seconds",
                "From the edge's taking an event to the destination's.",
                each,
                SLOW_SECONDS,
            ),
            money_latency_seconds: register.histograms(
                "chaski_dispatch_money_latency_seconds",
                "From the provider's time of an event to the destination's taking it.",
                each,
                SLOW_SECONDS,
            ),
            consecutive_failures: register.gauges(
                "chaski_dispatch_consecutive_failures",
                "Failed attempts since the last success.",
                each,
            ),
            pending: register.gauges(
                "chaski_dispatch_pending_events",
                "Deliveries under way.",
                &["destination", "state"],
            ),
            circuit_open: register.gauges(
                "chaski_dispatch_circuit_open",
                "1 while the breaker is open.",
                each,
            ),
            disabled: register.gauges(
                "chaski_dispatch_disabled",
                "1 while the destination's last word was 410 Gone.",
                each,
            ),
            header_dropped: register.counters(
                "chaski_dispatch_header_dropped_total",
                "Headers left out because their value may not be sent.",
                each,
            ),
            dead: register.counters(
                "chaski_dlq_added_total",
                "Dead letters added.",
                &["destination", "reason"],
            ),
            replayed: register.counters(
                "chaski_replay_events_total",
                "Events replayed.",
                &["destination", "result"],
            ),
            panics: ["courier", "attempt"].map(|task| panics.with_label_values(&[task])),
        }
    }

    /// The series of one destination, all of them present from here on.
    pub(crate) fn of(&self, destination: &str) -> DestinationMetrics {
        let each = &[destination][..];
        DestinationMetrics {
            attempts: AttemptResult::ALL
                .map(|result| self.attempts.with_label_values(&[destination, result.label()])),
            attempt_seconds: self.attempt_seconds.with_label_values(each),
            end_to_end_seconds: self.end_to_end_seconds.with_label_values(each),
            money_latency_seconds: self.money_latency_seconds.with_label_values(each),
            consecutive_failures: self.consecutive_failures.with_label_values(each),
            queued: self.pending.with_label_values(&[destination, "queued"]),
            in_flight: self.pending.with_label_values(&[destination, "in_flight"]),
            parked: self.pending.with_label_values(&[destination, "parked"]),
            circuit_open: self.circuit_open.with_label_values(each),
            disabled: self.disabled.with_label_values(each),
            header_dropped: self.header_dropped.with_label_values(each),
            dead: Reason::ALL.map(|reason| self.dead.with_label_values(&[destination, reason.label()])),
            replayed: ["delivered", "parked", "dead"]
                .map(|result| self.replayed.with_label_values(&[destination, result])),
            panics: self.panics.clone(),
        }
    }
}

impl DestinationMetrics {
    pub(crate) fn attempt(&self, result: AttemptResult, took: Duration) {
        self.attempts[result as usize].inc();
        self.attempt_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn dead(&self, reason: Reason) {
        self.dead[reason as usize].inc();
    }

    pub(crate) fn replayed(&self, what: Replayed) {
        self.replayed[what as usize].inc();
    }

    pub(crate) fn panicked(&self, task: Task) {
        self.panics[task as usize].inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_series_is_there_at_zero_and_counts_under_its_own_label() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).of("erp");
        let series = |name: &str| {
            registry
                .gather()
                .iter()
                .find(|family| family.name() == name)
                .map_or(0, |family| family.get_metric().len())
        };
        assert_eq!(series("chaski_dispatch_attempts_total"), AttemptResult::ALL.len());
        assert_eq!(series("chaski_dispatch_pending_events"), 3);
        assert_eq!(series("chaski_dlq_added_total"), Reason::ALL.len());
        for result in AttemptResult::ALL {
            metrics.attempt(result, Duration::ZERO);
        }
        for reason in Reason::ALL {
            metrics.dead(reason);
        }
        for task in [Task::Courier, Task::Attempt] {
            metrics.panicked(task);
        }
        for family in registry.gather().iter().filter(|family| {
            family.name().ends_with("_total")
                && !family.name().contains("replay")
                && !family.name().contains("header")
        }) {
            assert!(
                family.get_metric().iter().all(|metric| metric.get_counter().get_value() > 0.5),
                "{}",
                family.name()
            );
        }
    }
}
