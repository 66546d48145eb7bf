//! What begins: attempts, as the breaker, the concurrency and the rate let them, each lane in its turn.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{Courier, Report, TIDY_EVERY};
use crate::attempt::Reason;
use crate::breaker::Gate;
use crate::delivery::{Delivery, Origin};
use crate::lane::Lane;
use crate::metrics::Task;
use crate::outcome::{AttemptResult, Outcome};
use crate::span::AttemptSpan;
use crate::store::Keep;

impl Courier {
    /// Begins attempts while the breaker, the concurrency and the rate let them.
    pub(super) fn launch(&mut self, now: Instant) {
        self.rate_at = None;
        let time = self.fixed.clock.now();
        while !self.control.paused {
            let (limit, probe) = match self.breaker.gate(now.into_std(), self.fixed.spec.concurrency) {
                Gate::Limit(limit) if self.in_flight < limit => (limit, false),
                Gate::Probe => (1, true),
                Gate::Limit(_) | Gate::Shut(_) => return,
            };
            if let Some(rate) = &mut self.rate
                && let Some(at) = rate.ready_at(now.into_std())
            {
                self.rate_at = Some(at.into());
                return;
            }
            let Some(delivery) = self.pick(limit, probe) else {
                return;
            };
            // What was parked or redriven has not been asked about since, and the file may have changed.
            if self.fixed.route().is_barred(&delivery.event) {
                self.keep(delivery, Keep::Dead { reason: Reason::Environment, at: time });
                continue;
            }
            if let Some(rate) = &mut self.rate {
                rate.take();
            }
            if probe {
                self.breaker.probe();
            }
            self.attempt(delivery, now, time);
        }
    }

    /// The next delivery: while a lane has work, a parked one at every second turn and in at most half of the places, so
    /// that no poison takes all of what there is little of, be it places or the rate's tokens. Probes are taken from both
    /// in turn as well: neither side's poison can keep the breaker open.
    fn pick(&mut self, limit: usize, probe: bool) -> Option<Box<Delivery>> {
        self.parked_turn = !self.parked_turn;
        let has_room = probe || self.parked_in_flight < (limit / 2).max(1);
        let is_alone = !probe && self.lanes.iter().all(|lane| lane.ready() == 0);
        let parked_first = is_alone || (self.parked_turn && has_room);
        if parked_first && let Some(delivery) = self.book.take() {
            return Some(delivery);
        }
        // After an outage those that failed in it come last: some may be what it was taken for an outage by.
        let fresh_first = !self.breaker.is_closed();
        let takes: [fn(&mut Lane) -> _; 2] = [Lane::take_fresh, Lane::take];
        for take in &takes[usize::from(!fresh_first)..] {
            for _ in 0..self.lanes.len() {
                self.turn = (self.turn + 1) % self.lanes.len();
                if let Some(delivery) = take(&mut self.lanes[self.turn]) {
                    return Some(delivery);
                }
            }
        }
        if probe { self.book.take() } else { None }
    }

    fn attempt(&mut self, mut delivery: Box<Delivery>, now: Instant, time: Timestamp) {
        delivery.begin(time);
        self.in_flight += 1;
        self.parked_in_flight += usize::from(delivery.origin == Origin::Parked);
        self.tidy_at.get_or_insert(now + TIDY_EVERY);
        let (fixed, openings) = (self.fixed.clone(), self.breaker.openings());
        self.attempts.push(Box::pin(async move {
            let began = Instant::now();
            let span = AttemptSpan::begin(&fixed.tracer, &mut delivery);
            let traceparent = span.as_ref().map(AttemptSpan::traceparent);
            let attempt = fixed.sender.attempt(&delivery.event, delivery.attempts, traceparent.as_deref());
            let outcome = AssertUnwindSafe(attempt).catch_unwind().await.unwrap_or_else(|_| {
                fixed.view.metrics.panicked(Task::Attempt);
                Outcome::failure(AttemptResult::Internal, "the attempt panicked")
            });
            fixed.view.metrics.attempt(outcome.result, began.elapsed());
            if let Some(span) = span {
                span.end(&fixed.tracer, (&fixed.spec.name).into(), &delivery, &outcome);
            }
            Report::Attempted { delivery, outcome, openings }
        }));
    }
}
