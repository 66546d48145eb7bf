//! What this process measures, reduced to the numbers that alerts are about.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chaski_common::storage::KeptLetters;
use jiff::Timestamp;
use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};
use tokio::time::Instant;

/// Why an event is quarantined whose id is known with other content.
const CONFLICT: &str = "dedup_conflict";

/// Between two snapshots that are kept, to say what a window of time added.
const KEEP_PERIOD: Duration = Duration::from_secs(15);

/// A number that a condition asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Measure {
    SourceFailures,
    Requests,
    RefusedSignatures,
    LastAccepted,
    Quarantined,
    /// What was kept when this process began, see [`Found`].
    QuarantineFound,
    Conflicts,
    /// As [`Measure::QuarantineFound`].
    ConflictsFound,
    DestinationFailures,
    DeadLetters,
    /// As [`Measure::QuarantineFound`].
    DeadLettersFound,
    CircuitOpen,
    OldestUnsettled,
    LostToRetention,
    StoragePoisoned,
    StorageFree,
    SpoolMode,
    DedupDegraded,
    ClockOffset,
    ClockSynchronized,
}

/// Where a number is found: its metric, and the label that says what it is about; series of one subject add up.
const MEASURES: &[(Measure, &str, &str)] = &[
    (Measure::SourceFailures, "chaski_edge_consecutive_non_200", "source"),
    (Measure::Requests, "chaski_edge_requests_total", "source"),
    (Measure::RefusedSignatures, "chaski_edge_refused_total", "source"),
    (Measure::LastAccepted, "chaski_edge_last_accepted_timestamp_seconds", "source"),
    (Measure::Quarantined, "chaski_quarantine_added_total", "source"),
    (Measure::Conflicts, "chaski_dedup_conflicts_total", "source"),
    (Measure::DestinationFailures, "chaski_dispatch_consecutive_failures", "destination"),
    (Measure::DeadLetters, "chaski_dlq_added_total", "destination"),
    (Measure::CircuitOpen, "chaski_dispatch_circuit_open", "destination"),
    (Measure::OldestUnsettled, "chaski_kafka_oldest_unsettled_timestamp_seconds", "destination"),
    (Measure::LostToRetention, "chaski_events_lost_to_retention_total", "destination"),
    (Measure::StoragePoisoned, "chaski_spool_poisoned", ""),
    (Measure::StorageFree, "chaski_storage_free_bytes", ""),
    (Measure::SpoolMode, "chaski_spool_mode", ""),
    (Measure::DedupDegraded, "chaski_dedup_degraded", ""),
    (Measure::ClockOffset, "chaski_clock_offset_seconds", ""),
    (Measure::ClockSynchronized, "chaski_clock_synchronized", ""),
];

impl Measure {
    /// Whether a series of the metric counts.
    fn takes(self, labels: &[LabelPair]) -> bool {
        let reason = || value(labels, "reason").unwrap_or_default();
        match self {
            Self::RefusedSignatures => {
                reason().contains("signature")
                    || ["unknown_key", "duplicate_header", "rate_limited"].contains(&reason())
            }
            // A conflict has an alert of its own.
            Self::Quarantined => reason() != CONFLICT,
            _ => true,
        }
    }
}

/// The numbers at one moment.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) at: Timestamp,
    /// By measure and subject; the subject of what concerns the whole process is empty.
    values: BTreeMap<(Measure, Arc<str>), f64>,
}

impl Snapshot {
    /// A process that has done nothing yet.
    pub(super) const fn empty(at: Timestamp) -> Self {
        Self { at, values: BTreeMap::new() }
    }

    pub(super) fn read(at: Timestamp, families: &[MetricFamily]) -> Self {
        let mut snapshot = Self::empty(at);
        for family in families {
            for (measure, name, label) in MEASURES {
                if family.name() == *name {
                    snapshot.add(*measure, label, family);
                }
            }
        }
        snapshot
    }

    fn add(&mut self, measure: Measure, label: &str, family: &MetricFamily) {
        for metric in family.get_metric() {
            let labels = metric.get_label();
            if measure.takes(labels) {
                let subject = value(labels, label).unwrap_or_default().into();
                *self.values.entry((measure, subject)).or_default() += number(family, metric);
            }
        }
    }

    /// The number, if this process has it.
    pub(super) fn get(&self, measure: Measure, subject: &str) -> Option<f64> {
        self.values.get(&(measure, subject.into())).copied()
    }

    /// What the number grew by since an earlier snapshot of this process; counters begin at zero.
    pub(super) fn added(&self, measure: Measure, subject: &str, before: &Self) -> f64 {
        let [now, then] = [self, before].map(|snapshot| snapshot.get(measure, subject).unwrap_or_default());
        (now - then).max(0.0)
    }

    /// Adds what the store kept before.
    pub(super) fn add_found(&mut self, found: &Found) {
        self.values.extend(found.0.iter().map(|(key, value)| (key.clone(), *value)));
    }

    /// Makes a number that is there no smaller than this.
    pub(super) fn raise(&mut self, measure: Measure, subject: &Arc<str>, least: f64) {
        if let Some(value) = self.values.get_mut(&(measure, Arc::clone(subject))) {
            *value = value.max(least);
        }
    }

    #[cfg(test)]
    pub(super) fn with(mut self, measure: Measure, subject: &str, value: f64) -> Self {
        self.values.insert((measure, subject.into()), value);
        self
    }
}

/// Letters that are older than this process: nobody knows whether the one before has told them.
pub(super) struct Found(BTreeMap<(Measure, Arc<str>), f64>);

impl Found {
    pub(super) fn new(kept: Vec<KeptLetters>) -> Self {
        let mut found = BTreeMap::new();
        for KeptLetters { destination, source, reason, letters } in kept {
            let key = match destination {
                Some(destination) => (Measure::DeadLettersFound, destination),
                None if *reason == *CONFLICT => (Measure::ConflictsFound, source),
                None => (Measure::QuarantineFound, source),
            };
            *found.entry(key).or_default() += letters as f64;
        }
        Self(found)
    }
}

/// Snapshots of a window of time, the oldest first, and when they were taken: the clock on the wall, which may be put back,
/// has no say in how many there are. The first one is empty: counters begin at zero.
pub(super) struct Kept(VecDeque<(Instant, Snapshot)>);

impl Kept {
    pub(super) fn since(now: Instant, time: Timestamp) -> Self {
        Self(VecDeque::from([(now, Snapshot::empty(time))]))
    }

    /// The newest snapshot that is as old as the window, or the oldest there is.
    pub(super) fn before(&mut self, now: Instant, window: Duration) -> Option<&Snapshot> {
        while self.0.get(1).is_some_and(|(taken, _)| now.duration_since(*taken) >= window) {
            self.0.pop_front();
        }
        self.0.front().map(|(_, snapshot)| snapshot)
    }

    /// Keeps it, unless the last one is still fresh.
    pub(super) fn keep(&mut self, now: Instant, snapshot: Snapshot) {
        if self.0.back().is_none_or(|(taken, _)| now.duration_since(*taken) >= KEEP_PERIOD) {
            self.0.push_back((now, snapshot));
        }
    }
}

fn value<'a>(labels: &'a [LabelPair], name: &str) -> Option<&'a str> {
    labels.iter().find(|label| label.name() == name).map(LabelPair::value)
}

fn number(family: &MetricFamily, metric: &Metric) -> f64 {
    match family.get_field_type() {
        MetricType::COUNTER => metric.get_counter().get_value(),
        _ => metric.get_gauge().get_value(),
    }
}

#[cfg(test)]
mod tests {
    use chaski_common::metrics::Metrics;
    use prometheus::Registry;

    use super::*;

    #[test]
    fn series_of_one_subject_add_up_and_others_are_passed_over() {
        let registry = Registry::new();
        let metrics = Metrics(&registry);
        let refused = metrics.counters("chaski_edge_refused_total", "x", &["source", "reason"]);
        for (source, reason, count) in [
            ("pe", "bad_signature", 3),
            ("pe", "signature_format", 2),
            ("pe", "unknown_key", 1),
            ("pe", "overloaded", 100),
            ("culqi", "missing_signature", 7),
        ] {
            refused.with_label_values(&[source, reason]).inc_by(count);
        }
        metrics.gauge("chaski_spool_poisoned", "x").set(1);
        let snapshot = Snapshot::read(Timestamp::UNIX_EPOCH, &registry.gather());
        assert_eq!(snapshot.get(Measure::RefusedSignatures, "pe"), Some(6.0));
        assert_eq!(snapshot.get(Measure::RefusedSignatures, "culqi"), Some(7.0));
        assert_eq!(snapshot.get(Measure::StoragePoisoned, ""), Some(1.0));
        assert_eq!(snapshot.get(Measure::SpoolMode, ""), None);
        let before = Snapshot::empty(Timestamp::UNIX_EPOCH).with(Measure::RefusedSignatures, "pe", 4.0);
        assert_eq!(snapshot.added(Measure::RefusedSignatures, "pe", &before), 2.0);
        assert_eq!(snapshot.added(Measure::RefusedSignatures, "culqi", &before), 7.0);
    }

    #[test]
    fn a_clock_that_is_put_back_does_not_make_the_window_longer() {
        let (start, window) = (Instant::now(), Duration::from_secs(300));
        let time = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        let mut kept = Kept::since(start, time(0));
        for second in 0..2000 {
            let now = start + Duration::from_secs(second);
            let put_back = if second < 100 { 0 } else { 86_400 };
            let letters = second as f64;
            let before = kept.before(now, window).unwrap().get(Measure::DeadLetters, "erp");
            let age = letters - before.unwrap_or_default();
            assert!(age <= 315.0 && (second < 315 || age >= 300.0), "at {second}: {age}");
            let snapshot = Snapshot::empty(time(second.cast_signed() - put_back));
            kept.keep(now, snapshot.with(Measure::DeadLetters, "erp", letters));
            assert!(kept.0.len() <= 22, "at {second}");
        }
    }

    #[test]
    fn what_was_kept_before_is_counted_where_it_is_told() {
        let kept = |destination: Option<&str>, source: &str, reason: &str, letters| KeptLetters {
            destination: destination.map(Arc::from),
            source: source.into(),
            reason: reason.into(),
            letters,
        };
        let mut snapshot = Snapshot::empty(Timestamp::UNIX_EPOCH);
        snapshot.add_found(&Found::new(vec![
            kept(Some("erp"), "pe", "gone", 1),
            kept(Some("erp"), "culqi", "exhausted", 2),
            kept(None, "pe", "json_syntax", 4),
            kept(None, "pe", "schema_amount", 8),
            kept(None, "pe", "dedup_conflict", 16),
        ]));
        let found = |measure, subject: &str| snapshot.get(measure, subject);
        assert_eq!(found(Measure::DeadLettersFound, "erp"), Some(3.0));
        assert_eq!(found(Measure::QuarantineFound, "pe"), Some(12.0));
        assert_eq!(found(Measure::ConflictsFound, "pe"), Some(16.0));
        assert_eq!(found(Measure::QuarantineFound, "culqi"), None);
    }

    #[test]
    fn only_a_number_that_is_there_is_raised() {
        let mut snapshot = Snapshot::empty(Timestamp::UNIX_EPOCH).with(Measure::LastAccepted, "pe", 5.0);
        for (subject, least) in [("pe", 9.0), ("pe", 7.0), ("of another process", 9.0)] {
            snapshot.raise(Measure::LastAccepted, &subject.into(), least);
        }
        assert_eq!(snapshot.get(Measure::LastAccepted, "pe"), Some(9.0));
        assert_eq!(snapshot.get(Measure::LastAccepted, "of another process"), None);
    }
}
