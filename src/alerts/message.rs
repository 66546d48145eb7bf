//! What is said: one message holds everything a receiver has to hear at a time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::conditions::{Condition, Key, Severity};

/// Whether it has begun or is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// It is wrong.
    Firing,
    /// It was.
    Resolved,
}

/// One alert, as it is told. The fields are what a webhook gets: they are added to and never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Notice {
    pub(crate) name: Condition,
    pub(crate) severity: Severity,
    pub(crate) state: State,
    pub(crate) since: Timestamp,
    /// `source` or `destination` with its name; empty where it concerns the whole process.
    pub(crate) labels: BTreeMap<&'static str, Arc<str>>,
    pub(crate) summary: String,
    /// What to run to see what is behind it.
    pub(crate) command: String,
}

impl Notice {
    pub(super) fn new((condition, subject): &Key, state: State, since: Timestamp, summary: String) -> Self {
        Self {
            name: *condition,
            severity: condition.severity(),
            state,
            since,
            labels: condition.label().map(|label| (label, Arc::clone(subject))).into_iter().collect(),
            summary,
            command: condition.command(subject),
        }
    }

    pub(super) fn key(&self) -> Key {
        (self.name, self.labels.values().next().cloned().unwrap_or_default())
    }
}

/// Everything that one receiver is told at once.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Message {
    /// Of this document; a field that goes or changes its meaning makes it 2.
    version: u8,
    /// Whether this is `chaski alerts test`.
    test: bool,
    /// The machine that says so.
    host: String,
    pub(crate) sent_at: Timestamp,
    alerts: Vec<Notice>,
}

impl Message {
    pub(crate) fn new(mut alerts: Vec<Notice>, sent_at: Timestamp) -> Self {
        // What is wrong before what is over, the worst first.
        alerts.sort_by_key(|notice| (notice.state == State::Resolved, notice.severity));
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { version: 1, test: false, host, sent_at, alerts }
    }

    /// Says that the way is clear.
    pub(crate) fn test(sent_at: Timestamp) -> Self {
        Self { test: true, ..Self::new(Vec::new(), sent_at) }
    }

    pub(crate) fn alerts(&self) -> usize {
        self.alerts.len()
    }

    /// A line: how many of what, and where. It begins with `chaski`, which chats that filter by keyword can ask for.
    pub(crate) fn title(&self) -> String {
        if self.test {
            return format!("chaski on {}: test", self.host);
        }
        let firing = self.alerts.iter().filter(|notice| notice.state == State::Firing).count();
        let resolved = self.alerts.len() - firing;
        match (firing, resolved) {
            (_, 0) => format!("chaski on {}: {firing} firing", self.host),
            (0, _) => format!("chaski on {}: {resolved} resolved", self.host),
            _ => format!("chaski on {}: {firing} firing, {resolved} resolved", self.host),
        }
    }

    /// The title and a paragraph for each alert, as many as fit.
    pub(crate) fn text(&self, bytes_max: usize) -> String {
        /// Room for the line that says how many were left out.
        const REST_BYTES: usize = 64;
        let mut text = self.title();
        if self.test {
            text.push_str("\nThis is a test. Alerts will come this way.");
            return text;
        }
        for (index, notice) in self.alerts.iter().enumerate() {
            let paragraph = paragraph(notice);
            if text.len() + paragraph.len() + REST_BYTES > bytes_max {
                let _ = write!(text, "\n\nand {} more: chaski destinations", self.alerts.len() - index);
                break;
            }
            text.push_str(&paragraph);
        }
        text
    }
}

fn paragraph(notice: &Notice) -> String {
    let Notice { name, severity, state, since, summary, command, .. } = notice;
    let state = match (state, severity) {
        (State::Resolved, _) => "RESOLVED",
        (State::Firing, Severity::Critical) => "CRITICAL",
        (State::Firing, Severity::Warning) => "WARNING",
    };
    let since = since.strftime("%Y-%m-%d %H:%M:%S UTC");
    format!("\n\n[{state}] {}\n{summary}\nsince {since}; look: {command}", name.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(state: State, subject: &str) -> Notice {
        let key = (Condition::DestinationFailing, subject.into());
        Notice::new(
            &key,
            state,
            Timestamp::from_second(1_800_000_000).unwrap(),
            format!("{subject}: failing"),
        )
    }

    #[test]
    fn a_text_puts_what_is_wrong_first_and_fits_its_bound() {
        let all = vec![notice(State::Resolved, "erp"), notice(State::Firing, "orders")];
        let message = Message::new(all, Timestamp::UNIX_EPOCH);
        let text = message.text(4096);
        assert!(
            text.starts_with("chaski on ") && text.contains(": 1 firing, 1 resolved\n\n[CRITICAL]"),
            "{text}"
        );
        assert!(text.contains(
            "orders: failing\nsince 2027-01-15 08:00:00 UTC; look: chaski destinations\n\n[RESOLVED]"
        ));
        let many = (0..100).map(|number| notice(State::Firing, &format!("destination-{number}"))).collect();
        let text = Message::new(many, Timestamp::UNIX_EPOCH).text(2000);
        assert!(text.len() <= 2000, "{}", text.len());
        assert!(text.lines().last().unwrap().ends_with("more: chaski destinations"), "{text}");
    }

    #[test]
    fn the_document_has_its_stable_fields() {
        let message = Message::new(vec![notice(State::Firing, "erp")], Timestamp::UNIX_EPOCH);
        let document = serde_json::to_value(&message).unwrap();
        assert_eq!(
            document["alerts"][0],
            serde_json::json!({
                "name": "destination-failing", "severity": "critical", "state": "firing",
                "since": "2027-01-15T08:00:00Z", "labels": { "destination": "erp" },
                "summary": "erp: failing", "command": "chaski destinations",
            })
        );
        assert_eq!((&document["version"], &document["test"]), (&1.into(), &false.into()));
    }
}
