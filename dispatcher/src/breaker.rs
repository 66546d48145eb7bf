//! Whether a destination is up: closed, open, half-open. Pure core with one owner; `now` is handed in.
//!
//! It opens when the destination fails, not when an event does: [`OPENS_AFTER`] outage-class failures in a
//! row, of [`OPENS_FOR`] different events at least. Open, it lets one probe through at a time, a second after
//! opening and then at twice the distance each time, up to a minute. A probe that succeeds begins a ramp: one
//! at a time, two, four, until the destination's own concurrency is reached or nothing is left to deliver. Each
//! step of the ramp takes back one doubling, so that a destination that takes most is not left alone for long.
//!
//! Attempts that began before it opened tell of what it knows already: that they fail opens nothing. Between its
//! opening and the ramp only probes begin: an attempt that began since is one.

use std::time::{Duration, Instant};

use chaski_common::event::EventId;

use crate::status::BreakerState;

/// Outage-class failures in a row that open it.
pub(crate) const OPENS_AFTER: u32 = 5;
/// Different events among them, at least.
pub(crate) const OPENS_FOR: usize = 3;
/// The same during the ramp, where one poison event must not shut it again either.
const REOPENS_AFTER: u32 = 2;
const REOPENS_FOR: usize = 2;
/// First and longest time to the next probe.
const PROBE_FIRST: Duration = Duration::from_secs(1);
const PROBE_LAST: Duration = Duration::from_secs(60);

/// The breaker of one destination.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    /// Outage-class failures since something else came back.
    failures: u32,
    /// The different events among them, as many as matter.
    events: Vec<EventId>,
    /// How often it has opened, and how often it has been left by an answer since.
    openings: u32,
    recoveries: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Closed,
    /// Nothing goes before `probe_at`.
    Open {
        probe_at: Instant,
        wait: Duration,
    },
    /// One is on its way.
    Probing {
        wait: Duration,
    },
    /// `limit` at once; grows when as many have succeeded.
    Ramp {
        limit: usize,
        successes: usize,
        wait: Duration,
    },
}

/// What may begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// So many attempts at once.
    Limit(usize),
    /// One attempt, a probe.
    Probe,
    /// Nothing before then; none means not before the probe under way has ended.
    Shut(Option<Instant>),
}

/// What a result changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    Opened,
    Closed,
}

impl Breaker {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Closed,
            failures: 0,
            events: Vec::with_capacity(OPENS_FOR),
            openings: 0,
            recoveries: 0,
        }
    }

    pub(crate) fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::Probing { .. } | State::Ramp { .. } => BreakerState::HalfOpen,
        }
    }

    /// Whether deliveries stay where they are until a probe succeeds.
    pub(crate) const fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. } | State::Probing { .. })
    }

    /// Whether all is as if there had never been an outage.
    pub(crate) const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// How often it has opened, which an attempt that begins now is told by when it ends.
    pub(crate) const fn openings(&self) -> u32 {
        self.openings
    }

    /// How often the destination has been up again after an opening.
    pub(crate) const fn recoveries(&self) -> u32 {
        self.recoveries
    }

    pub(crate) fn gate(&self, now: Instant, concurrency: usize) -> Gate {
        match self.state {
            State::Closed => Gate::Limit(concurrency),
            State::Ramp { limit, .. } => Gate::Limit(limit.min(concurrency)),
            State::Open { probe_at, .. } if probe_at <= now => Gate::Probe,
            State::Open { probe_at, .. } => Gate::Shut(Some(probe_at)),
            State::Probing { .. } => Gate::Shut(None),
        }
    }

    /// The probe that [`Gate::Probe`] allowed has begun.
    pub(crate) fn probe(&mut self) {
        if let State::Open { wait, .. } = self.state {
            self.state = State::Probing { wait };
        }
    }

    /// An attempt was answered by something that is up: a success, or a failure of the event alone.
    pub(crate) fn up(&mut self, concurrency: usize) -> Change {
        self.failures = 0;
        self.events.clear();
        match &mut self.state {
            State::Closed => Change::None,
            // Also one that began before the breaker opened: up is up.
            State::Open { wait, .. } | State::Probing { wait } => {
                self.state = State::Ramp { limit: 1, successes: 0, wait: *wait };
                self.recoveries = self.recoveries.wrapping_add(1);
                Change::None
            }
            State::Ramp { limit, successes, wait } => {
                *successes += 1;
                if *successes < *limit {
                    return Change::None;
                }
                (*limit, *successes, *wait) = (*limit * 2, 0, (*wait / 2).max(PROBE_FIRST / 2));
                if *limit < concurrency {
                    return Change::None;
                }
                self.state = State::Closed;
                Change::Closed
            }
        }
    }

    /// Nothing is left that waits for the ramp to end: what comes next comes as it does to a destination that is up.
    pub(crate) const fn rest(&mut self) -> Change {
        if let State::Ramp { .. } = self.state {
            self.state = State::Closed;
            return Change::Closed;
        }
        Change::None
    }

    /// An attempt that began after so many openings told nothing of the destination. If it was the probe, another follows
    /// after the same wait.
    pub(crate) fn unknown(&mut self, openings: u32, now: Instant) -> Change {
        if let State::Probing { wait } = self.state
            && openings == self.openings
        {
            self.state = State::Open { probe_at: now + wait, wait };
        }
        Change::None
    }

    /// An attempt failed as all attempts fail while the destination is down; it began after so many openings.
    pub(crate) fn outage(&mut self, event: EventId, openings: u32, now: Instant) -> Change {
        if openings != self.openings {
            return Change::None;
        }
        self.failures = self.failures.saturating_add(1);
        if self.events.len() < OPENS_FOR && !self.events.contains(&event) {
            self.events.push(event);
        }
        let (after, different, wait) = match self.state {
            State::Probing { wait } => {
                let wait = (wait * 2).min(PROBE_LAST);
                self.state = State::Open { probe_at: now + wait, wait };
                return Change::None;
            }
            State::Open { .. } => return Change::None,
            State::Closed => (OPENS_AFTER, OPENS_FOR, PROBE_FIRST),
            State::Ramp { wait, .. } => (REOPENS_AFTER, REOPENS_FOR, (wait * 2).min(PROBE_LAST)),
        };
        if self.failures < after || self.events.len() < different {
            return Change::None;
        }
        self.state = State::Open { probe_at: now + wait, wait };
        self.openings = self.openings.wrapping_add(1);
        Change::Opened
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u64) -> EventId {
        EventId::derive("s", [n.to_be_bytes().as_slice()])
    }

    /// An attempt that began just now.
    fn fails(breaker: &mut Breaker, event: EventId, now: Instant) -> Change {
        breaker.outage(event, breaker.openings(), now)
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new();
        for n in 0..u64::from(OPENS_AFTER) {
            fails(&mut breaker, id(n), now);
        }
        assert!(breaker.is_open());
        breaker
    }

    #[test]
    fn one_poison_event_cannot_open_it() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        for n in 0..1000 {
            assert_eq!(fails(&mut breaker, id(n % 2), now), Change::None);
        }
        assert_eq!(fails(&mut breaker, id(2), now), Change::Opened);
    }

    #[test]
    fn an_answer_in_between_starts_the_count_anew() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        for n in 0..1000 {
            assert_eq!(fails(&mut breaker, id(n), now), Change::None);
            if n % 4 == 3 {
                breaker.up(8);
            }
        }
    }

    #[test]
    fn probes_come_one_at_a_time_and_ever_further_apart_up_to_a_minute() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        let mut waits = Vec::new();
        for n in 0..9 {
            let Gate::Shut(Some(at)) = breaker.gate(now, 8) else { panic!("open") };
            waits.push((at - now).as_secs());
            now = at;
            assert_eq!(breaker.gate(now, 8), Gate::Probe);
            breaker.probe();
            assert_eq!(breaker.gate(now + PROBE_LAST, 8), Gate::Shut(None));
            // A straggler that began before the opening says nothing about the probe.
            breaker.outage(id(99), 0, now);
            assert_eq!(breaker.gate(now + PROBE_LAST, 8), Gate::Shut(None));
            fails(&mut breaker, id(n), now);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn a_fault_of_ours_says_neither_that_it_is_up_nor_that_it_is_down() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.probe();
        breaker.unknown(0, now);
        assert_eq!(breaker.gate(now, 8), Gate::Shut(None), "the probe is under way");
        breaker.unknown(breaker.openings(), now);
        assert_eq!(breaker.gate(now, 8), Gate::Shut(Some(now + PROBE_FIRST)), "another probe follows");
        let mut breaker = Breaker::new();
        for n in 0..u64::from(OPENS_AFTER) - 1 {
            fails(&mut breaker, id(n), now);
            breaker.unknown(0, now);
        }
        assert_eq!(fails(&mut breaker, id(99), now), Change::Opened, "the failures around it still count");
    }

    #[test]
    fn after_a_probe_it_ramps_up_and_closes() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.probe();
        breaker.up(8);
        let mut limits = Vec::new();
        while let Gate::Limit(limit) = breaker.gate(now, 8) {
            limits.push(limit);
            if breaker.up(8) == Change::Closed {
                break;
            }
        }
        assert_eq!(limits, [1, 2, 2, 4, 4, 4, 4]);
        assert_eq!(breaker.gate(now, 8), Gate::Limit(8));
    }

    #[test]
    fn with_nothing_left_the_ramp_ends_and_nothing_else_does() {
        let now = Instant::now();
        assert_eq!(Breaker::new().rest(), Change::None);
        let mut breaker = opened(now);
        assert_eq!(breaker.rest(), Change::None);
        breaker.probe();
        assert_eq!(breaker.rest(), Change::None);
        assert!(breaker.is_open());
        breaker.up(8);
        assert_eq!((breaker.rest(), breaker.state()), (Change::Closed, BreakerState::Closed));
    }

    #[test]
    fn the_ramp_is_shut_by_two_events_and_not_by_one() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.probe();
        breaker.up(8);
        assert_eq!(fails(&mut breaker, id(1), now), Change::None);
        assert_eq!(fails(&mut breaker, id(1), now), Change::None);
        assert_eq!(fails(&mut breaker, id(2), now), Change::Opened);
        assert_eq!(breaker.gate(now, 8), Gate::Shut(Some(now + PROBE_FIRST * 2)));
    }

    #[test]
    fn what_began_before_the_opening_does_not_shut_the_ramp() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.probe();
        breaker.up(8);
        for n in 0..100 {
            assert_eq!(breaker.outage(id(n), 0, now), Change::None);
        }
        assert_eq!(breaker.gate(now, 8), Gate::Limit(1));
        assert_eq!((breaker.openings(), breaker.recoveries()), (1, 1));
    }

    #[test]
    fn each_step_of_the_ramp_takes_back_a_doubling() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        let mut wait = |successes: usize| {
            now += PROBE_LAST;
            breaker.probe();
            (0..=successes).for_each(|_| _ = breaker.up(64));
            for event in [id(1), id(2)] {
                fails(&mut breaker, event, now);
            }
            let Gate::Shut(Some(at)) = breaker.gate(now, 64) else { panic!("open") };
            (at - now).as_secs()
        };
        // None, one, one and two more, as many again.
        assert_eq!([0, 0, 0, 1, 3, 7, 7].map(&mut wait), [2, 4, 8, 8, 4, 1, 1]);
    }

    proptest! {
        #[test]
        fn there_is_always_a_way_out(results in proptest::collection::vec((any::<bool>(), 0_u64..6), 0..200), concurrency in 1_usize..64) {
            let mut now = Instant::now();
            let mut breaker = Breaker::new();
            for (up, n) in results {
                match breaker.gate(now, concurrency) {
                    Gate::Limit(limit) => prop_assert!(limit >= 1 && limit <= concurrency),
                    Gate::Probe => breaker.probe(),
                    Gate::Shut(at) => {
                        prop_assert!(at.is_some_and(|at| at <= now + PROBE_LAST), "no probe is under way here");
                        now += PROBE_LAST;
                        breaker.probe();
                    }
                }
                if up { breaker.up(concurrency); } else { fails(&mut breaker, id(n), now); }
            }
        }
    }
}
