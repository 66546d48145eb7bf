//! When a connection that was refused for want of a place may be refused again.
//!
//! A refusal costs less than an event, but it costs: a read, a head, a write. Who is refused and comes again at once,
//! a thousand times over, takes the processors from what has a place. So those connections queue for the places that
//! are given back, and only so many in a second are refused once more: who has queued until its turn to be, and for
//! long enough that a place may well have come. Who comes later, as `Retry-After` asks for, finds one or waits for
//! as long as the others.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// From one turn to the next of one thread: 20,000 refusals a second, a tenth to a fifth of its processor
/// (ARCHITECTURE.md).
const BETWEEN: Duration = Duration::from_micros(50);
/// The shortest wait for a turn where places are rare. In it hundreds are given back, and who is refused instead of
/// having one of them comes once more for it.
const WAIT_MIN: Duration = Duration::from_millis(20);
/// The longest wait for a turn, however many there are.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// Turns of all threads together.
pub(super) struct Turns {
    between: Duration,
    /// The last that was given.
    last: Mutex<Instant>,
}

impl Turns {
    pub(super) fn new(threads: usize, now: Instant) -> Self {
        let threads = u32::try_from(threads).unwrap_or(u32::MAX);
        Self { between: BETWEEN / threads.max(1), last: Mutex::new(now) }
    }

    /// The next free turn, [`WAIT_MIN`] from now or later.
    pub(super) fn next(&self, now: Instant) -> Instant {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = (*last + self.between).clamp(now, now + WAIT_MAX);
        (*last).max(now + WAIT_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_spread_and_one_alone_waits_a_moment() {
        let now = Instant::now();
        let turns = Turns::new(1, now);
        let later = now + Duration::from_secs(1);
        assert_eq!(turns.next(later), later + WAIT_MIN);
        let crowd: Vec<Instant> = (0..1000).map(|_| turns.next(later)).collect();
        assert_eq!(crowd[0], later + WAIT_MIN);
        assert_eq!(crowd[999], later + 1000 * BETWEEN);
        let at_most = (0..100_000).map(|_| turns.next(later)).max();
        assert_eq!(at_most, Some(later + WAIT_MAX));
        let afterwards = later + 2 * WAIT_MAX;
        assert_eq!(turns.next(afterwards), afterwards + WAIT_MIN);
    }

    #[test]
    fn each_thread_adds_its_turns() {
        let now = Instant::now();
        let turns = Turns::new(4, now);
        let last = (0..4000).map(|_| turns.next(now)).last();
        assert_eq!(last, Some(now + 4000 * BETWEEN / 4));
    }
}
