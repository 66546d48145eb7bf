//! Arrivals at equal distances, which wait for nobody.

use crate::machine;

/// The time there is to make ready, and for rendering each callback.
const LEAD_US: u64 = 500_000;
const RENDERED_IN_US: u64 = 10;

/// When each of so many callbacks is due.
#[derive(Clone, Copy)]
pub(super) struct Schedule {
    begin_us: u64,
    per_second: usize,
    pub(super) count: usize,
}

impl Schedule {
    /// Begins when its callbacks can have been rendered.
    pub(super) fn of(per_second: usize, count: usize) -> Self {
        let begin_us = machine::now_us() + LEAD_US + RENDERED_IN_US * count as u64;
        Self { begin_us, per_second, count }
    }

    /// In microseconds since 1970.
    pub(super) const fn due_us(self, index: usize) -> u64 {
        self.begin_us + (index * 1_000_000 / self.per_second) as u64
    }

    /// How many have been due by then.
    pub(super) fn due_by(self, now_us: u64) -> usize {
        let since_us = usize::try_from(now_us.saturating_sub(self.begin_us)).unwrap_or(usize::MAX);
        (since_us.saturating_mul(self.per_second) / 1_000_000).min(self.count)
    }

    pub(super) const fn per_second(self) -> usize {
        self.per_second
    }
}
