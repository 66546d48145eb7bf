//! Since when something is wrong, and what has to be told of it. Pure; time is an argument, twice: how long something lasts
//! is no question to a clock that may be put back, and since when is shown to people.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::conditions::{Finding, Key};
use super::message::{Notice, State};

/// What is wrong, by what it is about; as many as there are conditions and configured names.
#[derive(Debug, Default)]
pub(super) struct Tracker(BTreeMap<Key, Tracked>);

#[derive(Debug)]
struct Tracked {
    summary: String,
    since: Timestamp,
    began: Instant,
    /// When it was last told, if it has lasted long enough for that.
    told: Option<Instant>,
    /// What was told is older than this process.
    is_old: bool,
}

impl Tracker {
    /// Takes what is wrong now and returns what has to be told.
    pub(super) fn step(
        &mut self,
        findings: Vec<Finding>,
        now: Instant,
        time: Timestamp,
        repeat: Duration,
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        let mut before = std::mem::take(&mut self.0);
        for Finding { key, summary, hold, is_old } in findings {
            let known = before.remove(&key);
            let was_old = known.as_ref().is_none_or(|known| known.is_old);
            let (since, began, told) =
                known.map_or((time, now, None), |known| (known.since, known.began, known.told));
            let is_due = match told {
                None => now.duration_since(began) >= hold,
                Some(told) => now.duration_since(told) >= repeat || (was_old && !is_old),
            };
            if is_due {
                notices.push(Notice::new(&key, State::Firing, since, summary.clone()));
            }
            let told = if is_due { Some(now) } else { told };
            self.0.insert(key, Tracked { summary, since, began, told, is_old: was_old && is_old });
        }
        let over = before.into_iter().filter(|(_, tracked)| tracked.told.is_some());
        notices.extend(over.map(|(key, tracked)| {
            let summary = key.0.resolved(&key.1);
            Notice::new(&key, State::Resolved, tracked.since, summary)
        }));
        notices
    }

    /// What has been told and is not over.
    pub(super) fn firing(&self) -> Vec<Notice> {
        let told = self.0.iter().filter(|(_, tracked)| tracked.told.is_some());
        told.map(|(key, tracked)| Notice::new(key, State::Firing, tracked.since, tracked.summary.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::Condition;

    fn finding(hold: u64) -> Finding {
        let key = (Condition::DestinationFailing, "erp".into());
        Finding { key, summary: "erp: failing".to_owned(), hold: Duration::from_secs(hold), is_old: false }
    }

    #[test]
    fn what_happens_is_told_though_something_older_was() {
        let (mut tracker, now) = (Tracker::default(), Instant::now());
        let told = [true, true, false, true, false].map(|is_old| {
            let findings = vec![Finding { is_old, ..finding(0) }];
            tracker.step(findings, now, Timestamp::UNIX_EPOCH, Duration::from_secs(100)).len()
        });
        assert_eq!(told, [1, 0, 1, 0, 0]);
    }

    #[test]
    fn an_alert_is_told_once_repeated_while_it_lasts_and_resolved() {
        // Seconds, what is wrong (and how long it must last), what is told.
        use State::{Firing, Resolved};
        let cases: &[(u64, Option<u64>, Option<State>)] = &[
            (0, Some(0), Some(Firing)),
            (1, Some(0), None),
            (99, Some(0), None),
            (100, Some(0), Some(Firing)),
            (101, Some(0), None),
            (102, None, Some(Resolved)),
            (103, None, None),
            // What must last is not told before it has, and not resolved if nobody was told.
            (200, Some(10), None),
            (209, Some(10), None),
            (209, None, None),
            (210, Some(10), None),
            (219, Some(10), None),
            (220, Some(10), Some(Firing)),
            (221, None, Some(Resolved)),
        ];
        // Whatever the clock on the wall does meanwhile.
        for pace in [1, -1, 86_400] {
            let (mut tracker, start) = (Tracker::default(), Instant::now());
            for (second, wrong, told) in cases {
                let now = start + Duration::from_secs(*second);
                let time = Timestamp::from_second(pace * second.cast_signed()).unwrap();
                let findings = wrong.map(finding).into_iter().collect();
                let notices = tracker.step(findings, now, time, Duration::from_secs(100));
                let states: Vec<State> = notices.iter().map(|notice| notice.state).collect();
                assert_eq!(states, told.iter().copied().collect::<Vec<_>>(), "at {second}");
                let is_told = tracker.firing().len();
                let expected = usize::from(wrong.is_some() && !matches!(*second, 200..=219));
                assert_eq!(is_told, expected, "at {second}");
            }
        }
    }

    #[test]
    fn what_is_told_says_since_when() {
        let (mut tracker, start) = (Tracker::default(), Instant::now());
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut step = |findings, second: u64| {
            let now = start + Duration::from_secs(second);
            tracker.step(findings, now, at(second.cast_signed()), Duration::from_secs(10))
        };
        step(vec![finding(0)], 5);
        let again = step(vec![finding(0)], 15);
        let over = step(Vec::new(), 20);
        assert_eq!([again[0].since, over[0].since], [at(5), at(5)]);
        assert_eq!(over[0].summary, "erp takes deliveries again");
    }
}
