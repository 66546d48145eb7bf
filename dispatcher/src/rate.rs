//! A token bucket: how many attempts may begin per second. Pure; `now` is handed in.

use std::time::{Duration, Instant};

/// Attempts that may begin at once after a pause, as a share of a second's worth; at least one.
const BURST_SECONDS: f64 = 0.1;

/// The bucket.
#[derive(Clone, Debug)]
pub(crate) struct Rate {
    per_second: f64,
    tokens: f64,
    filled_at: Instant,
}

impl Rate {
    /// Full at first. The rate is positive and finite.
    pub(crate) fn new(per_second: f64, now: Instant) -> Self {
        let per_second = per_second.clamp(1e-6, 1e9);
        Self { per_second, tokens: (per_second * BURST_SECONDS).max(1.0), filled_at: now }
    }

    /// When the next attempt may begin; none means now.
    pub(crate) fn ready_at(&mut self, now: Instant) -> Option<Instant> {
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.filled_at = now.max(self.filled_at);
        self.tokens =
            (self.tokens + passed * self.per_second).min((self.per_second * BURST_SECONDS).max(1.0));
        // A hair less than one is one, and a wait is a nanosecond at least: rounding must not make a loop of it.
        let missing = (self.tokens < 1.0 - 1e-9).then_some(1.0 - self.tokens)?;
        Some(now + Duration::from_secs_f64(missing / self.per_second).max(Duration::from_nanos(1)))
    }

    /// An attempt begins.
    pub(crate) fn take(&mut self) {
        self.tokens -= 1.0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_second_holds_more_starts_than_the_rate_and_its_burst(rate in 0.5_f64..500.0) {
            let begin = Instant::now();
            let mut bucket = Rate::new(rate, begin);
            let (mut now, mut starts) = (begin, 0_u32);
            while now < begin + Duration::from_secs(3) {
                match bucket.ready_at(now) {
                    None => { bucket.take(); starts += 1; }
                    Some(at) => { prop_assert!(at > now); now = at; }
                }
            }
            let most = rate * 3.0 + (rate * BURST_SECONDS).max(1.0) + 1.0;
            prop_assert!(f64::from(starts) <= most, "{starts} starts, {most} allowed");
            prop_assert!(f64::from(starts) >= rate * 3.0 - 1.0, "{starts} starts are too few");
        }
    }
}
