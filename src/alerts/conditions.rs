//! What is wrong, as a pure function of two snapshots: the newest, and one from a window of time before it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::snapshot::{Measure, Snapshot};
use crate::config::{spell_duration, spell_size};

/// How far back "was added" and "of the last minutes" look.
pub(super) const WINDOW: Duration = Duration::from_mins(5);

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Money is at risk: somebody should look now.
    Critical,
    /// Nothing is lost, and somebody should look today.
    Warning,
}

/// From here on something is wrong. What is not named here is not an alert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// The sources, each with the longest time it may go without an accepted event.
    pub sources: BTreeMap<Arc<str>, Option<Duration>>,
    /// The destinations.
    pub destinations: Vec<Arc<str>>,
    /// Alerts that nobody wants.
    pub ignored: Vec<Condition>,
    /// Failures one after the other, at a source or a destination.
    pub failures_in_a_row: u64,
    /// Refused signatures of a source in five minutes.
    pub refused_signatures: u64,
    /// And their share of its requests.
    pub refused_share: f64,
    /// Age of the oldest event that a destination has not settled.
    pub oldest_unsettled: Duration,
    /// How long a breaker may be open.
    pub breaker_open: Duration,
    /// How long the spool may be in use, or deduplication go on without Redis.
    pub degraded: Duration,
    /// Bytes that must be free where the store is.
    pub disk_free_bytes: u64,
    /// How far the clock may be off.
    pub clock_offset: Duration,
}

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// A source's genuine callbacks are not answered 200.
    SourceFailing,
    /// A source has sent nothing that was accepted for too long.
    SourceSilent,
    /// Many of a source's requests bear no right signature.
    SignatureAnomaly,
    /// A signed event could not be used and is kept.
    Quarantine,
    /// A known event came again with other content.
    Conflict,
    /// Deliveries to a destination fail one after the other.
    DestinationFailing,
    /// A destination's breaker stays open.
    BreakerOpen,
    /// A destination is far behind.
    BacklogOld,
    /// A delivery ended without success.
    DeadLetter,
    /// The brokers deleted events that a destination had not read.
    EventsLost,
    /// A sync of the store failed, or the spool could not be opened: only a restart helps.
    StorePoisoned,
    /// The disk of the store is filling up.
    DiskLow,
    /// Kafka does not take events; they are on the local disk.
    SpoolInUse,
    /// Redis does not answer; duplicates may come through.
    DedupDegraded,
    /// The clock of this machine is off.
    ClockOff,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::SourceFailing,
        Self::SourceSilent,
        Self::SignatureAnomaly,
        Self::Quarantine,
        Self::Conflict,
        Self::DestinationFailing,
        Self::BreakerOpen,
        Self::BacklogOld,
        Self::DeadLetter,
        Self::EventsLost,
        Self::StorePoisoned,
        Self::DiskLow,
        Self::SpoolInUse,
        Self::DedupDegraded,
        Self::ClockOff,
    ];

    /// As messages and the configuration write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SourceFailing => "source-failing",
            Self::SourceSilent => "source-silent",
            Self::SignatureAnomaly => "signature-anomaly",
            Self::Quarantine => "quarantine",
            Self::Conflict => "conflict",
            Self::DestinationFailing => "destination-failing",
            Self::BreakerOpen => "breaker-open",
            Self::BacklogOld => "backlog-old",
            Self::DeadLetter => "dead-letter",
            Self::EventsLost => "events-lost",
            Self::StorePoisoned => "store-poisoned",
            Self::DiskLow => "disk-low",
            Self::SpoolInUse => "spool-in-use",
            Self::DedupDegraded => "dedup-degraded",
            Self::ClockOff => "clock-off",
        }
    }

    /// How bad it is.
    #[must_use]
    pub const fn severity(self) -> Severity {
        match self {
            Self::DedupDegraded | Self::SpoolInUse => Severity::Warning,
            _ => Severity::Critical,
        }
    }

    /// The label that its subject goes under; none where it concerns the whole process.
    pub(super) const fn label(self) -> Option<&'static str> {
        match self {
            Self::SourceFailing
            | Self::SourceSilent
            | Self::SignatureAnomaly
            | Self::Quarantine
            | Self::Conflict => Some("source"),
            Self::DestinationFailing
            | Self::BreakerOpen
            | Self::BacklogOld
            | Self::DeadLetter
            | Self::EventsLost => Some("destination"),
            _ => None,
        }
    }

    /// What to run to see what is behind it.
    pub(super) fn command(self, subject: &str) -> String {
        match self {
            Self::SourceFailing | Self::SourceSilent => format!("chaski events --source {subject}"),
            Self::SignatureAnomaly | Self::ClockOff => "chaski check".to_owned(),
            Self::Quarantine | Self::Conflict => "chaski dead --quarantined".to_owned(),
            Self::DeadLetter => format!("chaski dead --destination {subject}"),
            Self::DestinationFailing | Self::BreakerOpen | Self::BacklogOld | Self::EventsLost => {
                "chaski destinations".to_owned()
            }
            Self::StorePoisoned | Self::DiskLow => "df -h".to_owned(),
            Self::SpoolInUse | Self::DedupDegraded => "chaski topics plan".to_owned(),
        }
    }

    /// What holds when it is over.
    pub(super) fn resolved(self, subject: &str) -> String {
        match self {
            Self::SourceFailing => format!("{subject} is answered 200 again"),
            Self::SourceSilent => format!("{subject} sends again"),
            Self::SignatureAnomaly => format!("{subject}: refused signatures are back to normal"),
            Self::Quarantine => format!("{subject}: nothing more was quarantined for 5 minutes"),
            Self::Conflict => format!("{subject}: no further conflict for 5 minutes"),
            Self::DestinationFailing => format!("{subject} takes deliveries again"),
            Self::BreakerOpen => format!("{subject}: the breaker is not open any more"),
            Self::BacklogOld => format!("{subject} has caught up"),
            Self::DeadLetter => format!("{subject}: no further dead letter for 5 minutes"),
            Self::EventsLost => format!("{subject}: nothing more was lost for 5 minutes"),
            Self::StorePoisoned => "the store takes events again".to_owned(),
            Self::DiskLow => "the store's disk has room again".to_owned(),
            Self::SpoolInUse => "Kafka takes events again".to_owned(),
            Self::DedupDegraded => "Redis answers again".to_owned(),
            Self::ClockOff => "the clock is right again".to_owned(),
        }
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What an alert is about: one at a time per condition and subject.
pub(super) type Key = (Condition, Arc<str>);

/// Something is wrong now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) key: Key,
    pub(super) summary: String,
    /// How long it must last before anybody is told.
    pub(super) hold: Duration,
    /// Nothing of it has happened in the life of this process.
    pub(super) is_old: bool,
}

/// What is wrong now, by `new` and by what was added since `old`.
pub(super) fn evaluate(rules: &Rules, old: &Snapshot, new: &Snapshot) -> Vec<Finding> {
    let mut look = Look { rules, old, new, found: Vec::new() };
    for (source, silence) in &rules.sources {
        look.source(source, *silence);
    }
    for destination in &rules.destinations {
        look.destination(destination);
    }
    look.process();
    look.found
}

struct Look<'a> {
    rules: &'a Rules,
    old: &'a Snapshot,
    new: &'a Snapshot,
    found: Vec<Finding>,
}

impl Look<'_> {
    fn found(&mut self, condition: Condition, subject: &Arc<str>, hold: Duration, summary: String) {
        if !self.rules.ignored.contains(&condition) {
            let key = (condition, Arc::clone(subject));
            self.found.push(Finding { key, summary, hold, is_old: false });
        }
    }

    fn now(&self, measure: Measure, subject: &str) -> f64 {
        self.new.get(measure, subject).unwrap_or_default()
    }

    fn added(&self, measure: Measure, subject: &str) -> f64 {
        self.new.added(measure, subject, self.old)
    }

    /// How long ago the time is that a measure tells; nothing where it tells none, which is zero.
    fn age(&self, measure: Measure, subject: &str) -> Option<Duration> {
        let at = self.new.get(measure, subject).filter(|at| *at > 0.0)?;
        let seconds = self.new.at.as_second().saturating_sub(at as i64);
        Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    }

    fn source(&mut self, name: &Arc<str>, silence: Option<Duration>) {
        const AT_ONCE: Duration = Duration::ZERO;
        let failures = self.now(Measure::SourceFailures, name);
        if failures >= self.rules.failures_in_a_row as f64 {
            let summary = format!("{name}: {failures} genuine callbacks in a row were not answered 200");
            self.found(Condition::SourceFailing, name, AT_ONCE, summary);
        }
        if let (Some(silence), Some(age)) = (silence, self.age(Measure::LastAccepted, name))
            && age >= silence
        {
            let summary = format!("{name}: no event was accepted for {}", spell_duration(silence));
            self.found(Condition::SourceSilent, name, AT_ONCE, summary);
        }
        let refused = self.added(Measure::RefusedSignatures, name);
        let requests = self.added(Measure::Requests, name).max(refused);
        if refused >= self.rules.refused_signatures as f64 && refused >= self.rules.refused_share * requests {
            let summary = format!(
                "{name}: {refused} of {requests} requests in 5 minutes had no right signature; a wrong or rotated \
                 secret, or somebody is trying"
            );
            self.found(Condition::SignatureAnomaly, name, AT_ONCE, summary);
        }
        let measures = [Measure::Quarantined, Measure::QuarantineFound];
        self.letters(Condition::Quarantine, name, measures, "quarantined");
        let measures = [Measure::Conflicts, Measure::ConflictsFound];
        self.letters(Condition::Conflict, name, measures, "known events with other content");
    }

    fn destination(&mut self, name: &Arc<str>) {
        const AT_ONCE: Duration = Duration::ZERO;
        let failures = self.now(Measure::DestinationFailures, name);
        if failures >= self.rules.failures_in_a_row as f64 {
            // Without the number: it grows with every look, and who reads it is late anyhow.
            let least = self.rules.failures_in_a_row;
            let summary = format!("{name}: {least} attempts in a row failed, or more");
            self.found(Condition::DestinationFailing, name, AT_ONCE, summary);
        }
        let is_open = self.now(Measure::CircuitOpen, name) > 0.0;
        if is_open {
            let hold = self.rules.breaker_open;
            let summary = format!("{name} is down: its breaker is open for {}", spell_duration(hold));
            self.found(Condition::BreakerOpen, name, hold, summary);
        }
        let late = self.age(Measure::OldestUnsettled, name).filter(|age| *age >= self.rules.oldest_unsettled);
        // With an open breaker a backlog is what is to be expected, and the breaker is told.
        if late.is_some() && !is_open {
            let bound = spell_duration(self.rules.oldest_unsettled);
            let summary = format!("{name}: its oldest unsettled event is older than {bound}");
            self.found(Condition::BacklogOld, name, AT_ONCE, summary);
        }
        let measures = [Measure::DeadLetters, Measure::DeadLettersFound];
        self.letters(Condition::DeadLetter, name, measures, "dead letters");
        let lost = self.added(Measure::LostToRetention, name);
        if lost > 0.0 {
            let summary = format!("{name}: {lost} events were deleted by the brokers before they were read");
            self.found(Condition::EventsLost, name, AT_ONCE, summary);
        }
    }

    /// What was added, and what was there already when this process began: the one before may not have told it.
    fn letters(&mut self, condition: Condition, name: &Arc<str>, measures: [Measure; 2], what: &str) {
        let [added, found] = measures.map(|measure| self.added(measure, name));
        let mut parts = Vec::new();
        if added > 0.0 {
            parts.push(format!("{added} {what} in 5 minutes"));
        }
        if found > 0.0 {
            parts.push(format!("{found} {what}, kept since before this start"));
        }
        if !parts.is_empty() {
            let summary = format!("{name}: {}", parts.join("; "));
            let told = self.found.len();
            self.found(condition, name, Duration::ZERO, summary);
            self.found[told..].iter_mut().for_each(|finding| finding.is_old = added == 0.0);
        }
    }

    fn process(&mut self) {
        let whole: Arc<str> = "".into();
        let (rules, degraded) = (self.rules, self.rules.degraded);
        if self.now(Measure::StoragePoisoned, "") > 0.0 {
            let summary = "a sync to disk failed, or the spool could not be opened: look after the disk and restart chaski".to_owned();
            self.found(Condition::StorePoisoned, &whole, Duration::ZERO, summary);
        }
        let free = self.new.get(Measure::StorageFree, "");
        if free.is_some_and(|free| free < rules.disk_free_bytes as f64) {
            let bound = spell_size(rules.disk_free_bytes);
            let summary = format!("less than {bound} is free where the store is");
            self.found(Condition::DiskLow, &whole, Duration::ZERO, summary);
        }
        if self.now(Measure::SpoolMode, "") > 0.0 {
            let summary = "Kafka does not take events in time: they go to the local disk".to_owned();
            self.found(Condition::SpoolInUse, &whole, degraded, summary);
        }
        if self.now(Measure::DedupDegraded, "") > 0.0 {
            let summary = "Redis does not answer: duplicates of other edges may come through".to_owned();
            self.found(Condition::DedupDegraded, &whole, degraded, summary);
        }
        let is_off = self.now(Measure::ClockOffset, "").abs() > rules.clock_offset.as_secs_f64();
        if is_off || self.new.get(Measure::ClockSynchronized, "") == Some(0.0) {
            let summary =
                "the clock of this machine is off or not synchronised: timestamps of senders will be refused";
            self.found(Condition::ClockOff, &whole, Duration::ZERO, summary.to_owned());
        }
    }
}

#[cfg(test)]
mod tests;
