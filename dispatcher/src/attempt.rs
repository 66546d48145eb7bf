//! What follows an attempt. Pure: the same attempt, outcome and time always give the same answer.

use std::time::Duration;

use chaski_common::backoff::{RETRY_AFTER_MAX, Schedule};
use chaski_common::event::EventId;
use chaski_common::storage::Failure;
use jiff::Timestamp;

use crate::outcome::{self, AttemptResult, Outcome};

/// Longest delay that is waited out inside the window; a longer one is parked.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(10);
/// Most waits of one delivery inside the window.
pub(crate) const WAITS_MAX: u8 = 3;
/// Tries after which an event that the receiver calls wrong is believed to be wrong.
pub(crate) const REJECTIONS_MAX: usize = 3;

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Delivered.
    Done,
    /// Try again after this delay, without leaving the window.
    Wait(Duration),
    /// Try again after this delay; the storage keeps it until then.
    Park(Duration),
    /// Never again by itself.
    Bury(Reason),
}

/// Why a delivery ended without success: the metric label `reason`, closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// The receiver answered 410.
    Gone,
    /// The receiver called it wrong three times.
    Rejected,
    /// The schedule came to its end.
    GaveUp,
    /// No configured source has its source's name, so nobody has said whether it goes there.
    Unrouted,
    /// It is of another environment than the destination, or than its source is by now.
    Environment,
}

impl Reason {
    pub(crate) const ALL: [Self; 5] =
        [Self::Gone, Self::Rejected, Self::GaveUp, Self::Unrouted, Self::Environment];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Rejected => "rejected",
            Self::GaveUp => "gave_up",
            Self::Unrouted => "unrouted",
            Self::Environment => "environment",
        }
    }

    /// Whether it is the configuration that keeps the delivery from going, and not an attempt that failed.
    pub(crate) const fn is_configured(self) -> bool {
        matches!(self, Self::Unrouted | Self::Environment)
    }

    /// What a person reads where no failed attempt says more.
    pub(crate) const fn detail(self) -> &'static str {
        match self {
            Self::Unrouted => "no configured source has this name",
            Self::Environment => {
                "the event is of another environment than the destination, or than its source is now"
            }
            Self::Gone | Self::Rejected | Self::GaveUp => "",
        }
    }
}

/// A delivery as far as the decision needs to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempted<'a> {
    pub(crate) event: EventId,
    pub(crate) destination: &'a str,
    /// Attempts made, this one included.
    pub(crate) attempts: u32,
    /// When the first of them began.
    pub(crate) first_attempt: Timestamp,
    /// The failures before this one.
    pub(crate) history: &'a [Failure],
    /// How often it has waited inside the window; none if it came from the parked ones.
    pub(crate) waits: Option<u8>,
}

/// Decides what follows.
///
/// The delay is the schedule's, raised by `Retry-After` (24 h at most). The last attempt begins no later than
/// the schedule's end: a longer delay is cut to it, unless the receiver asked for more, which ends the delivery.
pub(crate) fn next(attempt: &Attempted<'_>, outcome: &Outcome, now: Timestamp, schedule: &Schedule) -> Next {
    match outcome.result {
        AttemptResult::Success => return Next::Done,
        AttemptResult::Gone => return Next::Bury(Reason::Gone),
        _ => {}
    }
    if outcome.is_rejection() && rejections(attempt.history) + 1 >= REJECTIONS_MAX {
        return Next::Bury(Reason::Rejected);
    }
    let asked = outcome.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
    let since_first = Duration::try_from(now.duration_since(attempt.first_attempt)).unwrap_or_default();
    let left = schedule.give_up_after().saturating_sub(since_first);
    if left.is_zero() || asked > left {
        return Next::Bury(Reason::GaveUp);
    }
    let delay = schedule.delay(attempt.event, attempt.destination, attempt.attempts).max(asked).min(left);
    match attempt.waits {
        Some(waits) if waits < WAITS_MAX && delay <= WAIT_MAX => Next::Wait(delay),
        _ => Next::Park(delay),
    }
}

/// The rejections at the end of a history. Of one that an earlier version wrote, without statuses, any client error counts.
fn rejections(history: &[Failure]) -> usize {
    let label = AttemptResult::Http4xx.label();
    let is_one = |failure: &&Failure| failure.status.map_or(failure.result == label, outcome::is_rejection);
    history.iter().rev().take_while(is_one).count()
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};
    use proptest::prelude::*;

    use super::*;

    fn id() -> EventId {
        EventId::derive("s", [b"k".as_slice()])
    }

    fn schedule() -> Schedule {
        let hours = Duration::from_hours;
        Schedule::growing(Duration::from_secs(5), 3.0, hours(6), hours(72)).unwrap()
    }

    fn answer(status: u16, retry_after: Option<u64>) -> Outcome {
        let mut headers = HeaderMap::new();
        if let Some(seconds) = retry_after {
            headers.insert("retry-after", seconds.into());
        }
        Outcome::of_answer(StatusCode::from_u16(status).unwrap(), &headers, Timestamp::UNIX_EPOCH)
    }

    fn failure(result: &str, status: Option<u16>) -> Failure {
        Failure {
            at: Timestamp::UNIX_EPOCH,
            attempt: 1,
            result: result.to_owned(),
            status,
            detail: String::new(),
            span: None,
        }
    }

    /// As earlier versions wrote them.
    fn failures(labels: &[&str]) -> Vec<Failure> {
        labels.iter().map(|result| failure(result, None)).collect()
    }

    fn refusals(statuses: &[u16]) -> Vec<Failure> {
        statuses.iter().map(|status| failure("http_4xx", Some(*status))).collect()
    }

    fn decide(
        attempts: u32,
        history: &[Failure],
        waits: Option<u8>,
        outcome: &Outcome,
        after: Duration,
    ) -> Next {
        let attempt = Attempted {
            event: id(),
            destination: "erp",
            attempts,
            first_attempt: Timestamp::UNIX_EPOCH,
            history,
            waits,
        };
        next(&attempt, outcome, Timestamp::UNIX_EPOCH + after, &schedule())
    }

    #[test]
    fn what_cannot_heal_is_buried_and_what_may_heal_is_not() {
        let second = Duration::from_secs(1);
        assert_eq!(decide(1, &[], Some(0), &answer(200, None), second), Next::Done);
        assert_eq!(decide(1, &[], Some(0), &answer(410, None), second), Next::Bury(Reason::Gone));
        // One wrong answer of a resolver is no reason to give an event up.
        let blocked = Outcome::failure(AttemptResult::SsrfBlocked, "");
        assert!(matches!(decide(9, &[], None, &blocked, second), Next::Park(_)));
        for status in [400, 413, 415, 422] {
            let outcome = answer(status, None);
            assert!(!matches!(decide(1, &[], Some(0), &outcome, second), Next::Bury(_)));
            assert!(!matches!(
                decide(3, &failures(&["connect", "http_5xx"]), Some(0), &outcome, second),
                Next::Bury(_)
            ));
            assert_eq!(
                decide(3, &failures(&["http_4xx", "http_4xx"]), Some(0), &outcome, second),
                Next::Bury(Reason::Rejected)
            );
            let after = |statuses: &[u16]| decide(3, &refusals(statuses), Some(0), &outcome, second);
            assert_eq!(after(&[404, 400, 422]), Next::Bury(Reason::Rejected));
            // A receiver that is being deployed has said nothing of the event yet.
            assert!(!matches!(after(&[404, 404]), Next::Bury(_)));
            assert!(!matches!(after(&[400, 401, 400]), Next::Bury(_)));
        }
        for status in [301, 401, 403, 404, 408, 429, 500, 503] {
            let history = failures(&["http_4xx"; 10]);
            assert!(
                matches!(decide(11, &history, None, &answer(status, None), second), Next::Park(_)),
                "{status}"
            );
        }
    }

    #[test]
    fn short_delays_wait_three_times_and_only_inside_the_window() {
        let second = Duration::from_secs(1);
        for waits in 0..WAITS_MAX {
            assert!(matches!(decide(1, &[], Some(waits), &answer(500, None), second), Next::Wait(_)));
        }
        assert!(matches!(decide(1, &[], Some(WAITS_MAX), &answer(500, None), second), Next::Park(_)));
        assert!(matches!(decide(1, &[], None, &answer(500, None), second), Next::Park(_)));
        assert!(matches!(decide(1, &[], Some(0), &answer(503, Some(11)), second), Next::Park(_)));
    }

    #[test]
    fn retry_after_raises_the_delay_up_to_a_day() {
        let second = Duration::from_secs(1);
        assert_eq!(
            decide(1, &[], None, &answer(503, Some(3600)), second),
            Next::Park(Duration::from_hours(1))
        );
        assert_eq!(
            decide(1, &[], None, &answer(503, Some(99_999_999)), second),
            Next::Park(Duration::from_hours(24))
        );
        assert_eq!(
            decide(9, &[], None, &answer(503, Some(0)), second),
            Next::Park(schedule().delay(id(), "erp", 9))
        );
    }

    proptest! {
        #[test]
        fn no_attempt_is_due_before_retry_after_nor_behind_the_end(
            attempts in 1_u32..40, asked in proptest::option::of(0_u64..200_000), after in 0_u64..300_000, waits in proptest::option::of(0_u8..5),
        ) {
            let after = Duration::from_secs(after);
            let end = schedule().give_up_after();
            match decide(attempts, &[], waits, &answer(503, asked), after) {
                Next::Wait(delay) | Next::Park(delay) => {
                    prop_assert!(after + delay <= end);
                    prop_assert!(delay >= Duration::from_secs(asked.unwrap_or(0)).min(RETRY_AFTER_MAX));
                    prop_assert!(!delay.is_zero());
                }
                Next::Bury(reason) => {
                    prop_assert_eq!(reason, Reason::GaveUp);
                    prop_assert!(after + Duration::from_secs(asked.unwrap_or(0)) >= end);
                }
                Next::Done => prop_assert!(false, "a failure is not done"),
            }
        }
    }
}
