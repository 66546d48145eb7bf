//! When to try again: a pure function of the attempt's number, with jitter that a test can repeat.
//!
//! Either `first × factor^(n−1)` up to `cap`, or a list of delays of the operator's own. The jitter is
//! full (anything from zero to the ceiling), which spreads a herd best, and is seeded by event and
//! destination, so that the same delivery draws the same delays in a test, a replay and a second process.

use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::event::EventId;

/// The longest delay a receiver may ask for with `Retry-After`.
pub const RETRY_AFTER_MAX: Duration = Duration::from_hours(24);

/// The delays between attempts of one delivery.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    delays: Delays,
    give_up_after: Duration,
}

#[derive(Clone, Debug, PartialEq)]
enum Delays {
    Growing { first: Duration, factor: f64, cap: Duration },
    Listed(Vec<Duration>),
}

/// A schedule that cannot be meant.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum InvalidSchedule {
    /// A first delay of nothing would hammer the receiver.
    #[error("the first delay must be longer than zero")]
    FirstIsZero,
    /// A factor below one would hurry with every failure.
    #[error("the factor must be a number from 1 to 100")]
    FactorOutOfRange,
    /// The cap is there to end the growth, not to undercut its start.
    #[error("the cap must not be shorter than the first delay")]
    CapBelowFirst,
    /// An empty list says nothing.
    #[error("the schedule must list at least one delay, each longer than zero")]
    EmptyList,
    /// Giving up before the second attempt is not retrying.
    #[error("giving up must come later than the first delay")]
    GiveUpTooSoon,
}

impl Schedule {
    /// `first`, then `factor` times longer with each failure, never longer than `cap`.
    ///
    /// # Errors
    /// When the numbers contradict each other.
    pub fn growing(
        first: Duration,
        factor: f64,
        cap: Duration,
        give_up_after: Duration,
    ) -> Result<Self, InvalidSchedule> {
        if first.is_zero() {
            return Err(InvalidSchedule::FirstIsZero);
        }
        if !(1.0..=100.0).contains(&factor) {
            return Err(InvalidSchedule::FactorOutOfRange);
        }
        if cap < first {
            return Err(InvalidSchedule::CapBelowFirst);
        }
        Self::new(Delays::Growing { first, factor, cap }, give_up_after)
    }

    /// The delays one by one; the last one repeats until `give_up_after`.
    ///
    /// # Errors
    /// When the list is empty or holds a zero.
    pub fn listed(delays: Vec<Duration>, give_up_after: Duration) -> Result<Self, InvalidSchedule> {
        if delays.is_empty() || delays.iter().any(Duration::is_zero) {
            return Err(InvalidSchedule::EmptyList);
        }
        Self::new(Delays::Listed(delays), give_up_after)
    }

    fn new(delays: Delays, give_up_after: Duration) -> Result<Self, InvalidSchedule> {
        let schedule = Self { delays, give_up_after };
        if give_up_after <= schedule.ceiling(1) {
            return Err(InvalidSchedule::GiveUpTooSoon);
        }
        Ok(schedule)
    }

    /// How long after the first attempt the last one may begin.
    #[must_use]
    pub const fn give_up_after(&self) -> Duration {
        self.give_up_after
    }

    /// The longest delay after failed attempt `n`, counted from 1.
    #[must_use]
    pub fn ceiling(&self, attempt: u32) -> Duration {
        let step = attempt.saturating_sub(1);
        match &self.delays {
            Delays::Growing { first, factor, cap } => {
                let grown = first.as_secs_f64() * factor.powi(i32::try_from(step).unwrap_or(i32::MAX));
                if grown < cap.as_secs_f64() { Duration::from_secs_f64(grown) } else { *cap }
            }
            Delays::Listed(delays) => delays[(step as usize).min(delays.len() - 1)],
        }
    }

    /// The delay after failed attempt `n`: full jitter below the ceiling, always the same for the same
    /// delivery, and never shorter than a millisecond.
    #[must_use]
    pub fn delay(&self, event: EventId, destination: &str, attempt: u32) -> Duration {
        let ceiling = self.ceiling(attempt);
        ceiling.mul_f64(fraction(event, destination, attempt)).max(Duration::from_millis(1)).min(ceiling)
    }

    /// The ceilings of all attempts until giving up, as an operator wants to read them: the sum of all
    /// delays so far, if each were as long as it can be. At most `limit` entries.
    #[must_use]
    pub fn latest_times(&self, limit: usize) -> Vec<Duration> {
        let mut at = Duration::ZERO;
        let mut times = Vec::new();
        for attempt in 1_u32.. {
            at = at.saturating_add(self.ceiling(attempt));
            if at > self.give_up_after || times.len() == limit {
                break;
            }
            times.push(at);
        }
        times
    }

    /// How many attempts after the first there are until giving up, if each delay is as long as it can be.
    #[must_use]
    pub fn retries(&self) -> u64 {
        let mut at = Duration::ZERO;
        for attempt in 1_u32.. {
            let ceiling = self.ceiling(attempt);
            let is_last_step = match &self.delays {
                Delays::Growing { cap, factor, .. } => ceiling == *cap || *factor <= 1.0,
                Delays::Listed(delays) => attempt as usize >= delays.len(),
            };
            if is_last_step {
                // From here on all are the same.
                let left = self.give_up_after.saturating_sub(at).as_nanos() / ceiling.as_nanos();
                return u64::from(attempt - 1) + u64::try_from(left).unwrap_or(u64::MAX);
            }
            at = at.saturating_add(ceiling);
            if at > self.give_up_after {
                return u64::from(attempt - 1);
            }
        }
        u64::from(u32::MAX)
    }
}

/// A number in `[0, 1)` that depends on the delivery and the attempt alone.
fn fraction(event: EventId, destination: &str, attempt: u32) -> f64 {
    let mut hash = Sha256::new();
    hash.update(event.as_bytes());
    hash.update(attempt.to_be_bytes());
    hash.update(destination.as_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    let mut word = [0; 8];
    word.copy_from_slice(&digest[..8]);
    // 53 bits are what a double holds exactly.
    #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
    let numerator = (u64::from_be_bytes(word) >> 11) as f64;
    numerator / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn default_schedule() -> Schedule {
        let hours = Duration::from_hours;
        Schedule::growing(Duration::from_secs(5), 3.0, hours(6), hours(72)).unwrap()
    }

    #[test]
    fn the_default_grows_threefold_from_five_seconds_to_six_hours() {
        let schedule = default_schedule();
        let seconds: Vec<u64> = (1..=10).map(|attempt| schedule.ceiling(attempt).as_secs()).collect();
        assert_eq!(seconds, [5, 15, 45, 135, 405, 1215, 3645, 10935, 21600, 21600]);
        assert_eq!(schedule.ceiling(u32::MAX).as_secs(), 21600);
    }

    #[test]
    fn a_list_is_followed_and_its_last_entry_repeats() {
        let seconds = Duration::from_secs;
        let schedule = Schedule::listed(vec![seconds(5), seconds(300)], seconds(1000)).unwrap();
        assert_eq!([1, 2, 3].map(|attempt| schedule.ceiling(attempt).as_secs()), [5, 300, 300]);
        assert_eq!(schedule.latest_times(10), [5, 305, 605, 905].map(seconds));
    }

    #[test]
    fn numbers_that_contradict_each_other_are_refused() {
        let seconds = Duration::from_secs;
        let growing = |first, factor, cap, give_up| {
            Schedule::growing(seconds(first), factor, seconds(cap), seconds(give_up))
        };
        assert_eq!(growing(0, 3.0, 10, 100), Err(InvalidSchedule::FirstIsZero));
        assert_eq!(growing(5, 0.5, 10, 100), Err(InvalidSchedule::FactorOutOfRange));
        assert_eq!(growing(5, f64::NAN, 10, 100), Err(InvalidSchedule::FactorOutOfRange));
        assert_eq!(growing(5, 3.0, 4, 100), Err(InvalidSchedule::CapBelowFirst));
        assert_eq!(growing(5, 3.0, 10, 5), Err(InvalidSchedule::GiveUpTooSoon));
        assert_eq!(Schedule::listed(vec![], seconds(10)), Err(InvalidSchedule::EmptyList));
    }

    proptest! {
        #[test]
        fn a_delay_stays_below_its_ceiling_and_repeats(key in any::<u64>(), attempt in 1_u32..60) {
            let schedule = default_schedule();
            let event = EventId::derive("s", [key.to_be_bytes().as_slice()]);
            let delay = schedule.delay(event, "erp", attempt);
            prop_assert!(delay <= schedule.ceiling(attempt));
            prop_assert!(delay >= Duration::from_millis(1));
            prop_assert_eq!(delay, schedule.delay(event, "erp", attempt));
        }
    }

    #[test]
    fn the_jitter_fills_the_whole_range() {
        let schedule = default_schedule();
        let mean = (0_u64..2000)
            .map(|key| {
                schedule.delay(EventId::derive("s", [key.to_be_bytes().as_slice()]), "erp", 1).as_secs_f64()
            })
            .sum::<f64>()
            / 2000.0;
        assert!((2.3..2.7).contains(&mean), "uniform below 5 s has its mean at 2.5 s, not {mean}");
    }

    #[test]
    fn retries_are_counted_as_they_are_listed() {
        let [ms, s] = [Duration::from_millis, Duration::from_secs];
        for schedule in [
            Schedule::growing(s(5), 3.0, s(6 * 3600), s(72 * 3600)).unwrap(),
            Schedule::growing(ms(100), 1.0, s(60), s(600)).unwrap(),
            Schedule::growing(ms(100), 1.5, s(7), ms(600_050)).unwrap(),
            Schedule::growing(s(5), 3.0, s(6 * 3600), s(30)).unwrap(),
            Schedule::listed(vec![s(5), s(1), s(30)], s(3600)).unwrap(),
            Schedule::listed(vec![s(5), s(10), s(30)], s(12)).unwrap(),
        ] {
            assert_eq!(schedule.retries(), schedule.latest_times(usize::MAX).len() as u64, "{schedule:?}");
        }
    }
}
