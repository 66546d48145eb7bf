//! What follows a report: an attempt has ended, a write is durable, a look has found something.

use chaski_common::storage::{Delivered, Failure, StorageError};
use jiff::Timestamp;
use tokio::time::Instant;

use super::{Courier, Report, after};
use crate::attempt::{self, Next};
use crate::breaker::Change;
use crate::delivery::{Delivery, Origin};
use crate::lane::Lane;
use crate::metrics::Replayed;
use crate::outcome::{AttemptResult, Outcome};
use crate::store::{Keep, Kept};
use crate::subjects::Turn;

impl Courier {
    /// `now` and `time` are the same moment on both clocks.
    pub(super) fn report(&mut self, report: Report, now: Instant, time: Timestamp) {
        let closed = match report {
            Report::Attempted { delivery, outcome, openings } => {
                self.in_flight -= 1;
                self.parked_in_flight -= usize::from(delivery.origin == Origin::Parked);
                self.judge(&delivery, &outcome, openings, now, time);
                self.follow(delivery, &outcome, now, time);
                Ok(())
            }
            Report::Kept { delivery, what, result } => {
                self.writing -= 1;
                result.map(|kept| self.kept(&delivery, what, kept))
            }
            Report::Looked(Ok(look)) => {
                let lanes = &self.lanes;
                let is_here = |partition| {
                    lanes
                        .iter()
                        .any(|lane| lane.partition == partition && lane.is_own() && !lane.is_leaving())
                };
                self.book.found(look, is_here, &mut self.subjects, self.writing > 0, now, time);
                Ok(())
            }
            Report::Looked(Err(error)) => {
                self.book.not_found(now);
                tracing::warn!(destination = %self.fixed.spec.name, %error, "parked deliveries could not be read; trying again");
                if matches!(error, StorageError::Closed) { Err(error) } else { Ok(()) }
            }
            Report::Opened { lane, held } => held.map(|held| {
                self.subjects.learn_parked(held);
                if let Some(lane) = self.lane(lane) {
                    lane.begin();
                }
            }),
            // The lane goes as soon as the courier hears of its loss.
            Report::Saved { result: Err(StorageError::Revoked { .. }), .. } => Ok(()),
            Report::Saved { lane, mark, result } => result.map(|()| {
                if let Some(lane) = self.lane(lane) {
                    lane.saved(mark);
                }
            }),
            Report::Joined { replay, reading } => self.joined(replay, reading),
            Report::Ended { cursor, result } => result.map(|()| {
                self.readings.retain(|known| known.cursor != cursor);
                self.lanes.retain(|known| known.cursor != cursor);
            }),
        };
        self.closed |= closed.is_err();
    }

    /// What an outcome says of the destination.
    fn judge(
        &mut self,
        delivery: &Delivery,
        outcome: &Outcome,
        openings: u32,
        now: Instant,
        time: Timestamp,
    ) {
        let name = &self.fixed.spec.name;
        self.fixed.view.attempted(name, outcome, time);
        let change = if outcome.is_outage() {
            self.breaker.outage(delivery.event.id, openings, now.into_std())
        } else if outcome.result == AttemptResult::Internal {
            self.breaker.unknown(openings, now.into_std())
        } else {
            self.breaker.up(self.fixed.spec.concurrency)
        };
        match change {
            Change::None => {}
            Change::Closed => self.say_closed(),
            Change::Opened => {
                tracing::warn!(destination = %name, result = outcome.result.label(), detail = %outcome.detail, "breaker opened");
                let recoveries = self.breaker.recoveries();
                self.lanes.iter_mut().for_each(|lane| lane.forgive(recoveries));
            }
        }
    }

    /// Closes the breaker behind an outage of which nothing is left to be delivered.
    pub(super) fn rest(&mut self) {
        let is_done = self.in_flight == 0
            && self.book.count() == 0
            && self.lanes.iter().all(|lane| lane.unsettled() == 0);
        if is_done && self.breaker.rest() == Change::Closed {
            self.say_closed();
        }
    }

    fn say_closed(&self) {
        tracing::info!(destination = %self.fixed.spec.name, "breaker closed");
    }

    /// What follows an attempt for its delivery.
    fn follow(&mut self, mut delivery: Box<Delivery>, outcome: &Outcome, now: Instant, time: Timestamp) {
        let name = &self.fixed.spec.name;
        let result = outcome.result.label();
        tracing::debug!(destination = %name, event = %delivery.event.id, attempt = delivery.attempts, result, "attempted");
        if let Origin::Lane(number) = delivery.origin
            && !self.lanes.iter().any(|lane| lane.number == number)
            && !outcome.is_success()
        {
            // Its partition has been lost meanwhile.
            return self.release(&delivery);
        }
        // It told of the destination only, and the receiver did not ask for a time of its own. Of an event that was set
        // back, and fails again though the destination has been up meanwhile, nobody can say so.
        let recoveries = self.breaker.recoveries();
        let had_its_chance = delivery.set_back.is_some_and(|before| before != recoveries);
        let forgivable = outcome.is_outage() && outcome.retry_after.is_none() && !had_its_chance;
        if forgivable
            && self.breaker.is_open()
            && let Origin::Lane(number) = delivery.origin
        {
            delivery.uncount();
            // To the end, so that the next probe is another event.
            if let Some(lane) = self.lane(number) {
                lane.set_back(delivery, recoveries);
            }
            return;
        }
        let next = attempt::next(&delivery.attempted(name, time), outcome, time, &self.fixed.spec.retry);
        if next != Next::Done {
            let detail = outcome.detail.clone();
            delivery.failed(Failure {
                at: time,
                attempt: delivery.attempts,
                result: result.to_owned(),
                status: outcome.status,
                detail,
                span: delivery.span,
            });
        }
        match (next, delivery.origin) {
            // How long an old event took to be replayed says nothing about anybody's speed.
            (Next::Done, Origin::Lane(_)) if delivery.replayed => {
                self.keep(delivery, Keep::Delivered { at: time });
            }
            (Next::Done, Origin::Lane(number)) => {
                self.fixed.view.delivered(&delivery.event, time);
                self.settled(number, &delivery, Some(delivery.delivered(time)), Replayed::Delivered);
                self.release(&delivery);
            }
            (Next::Done, Origin::Parked) => {
                self.fixed.view.delivered(&delivery.event, time);
                self.keep(delivery, Keep::Delivered { at: time });
            }
            (Next::Wait(delay), Origin::Lane(number)) if self.may_wait(number) => {
                if let Some(lane) = self.lane(number) {
                    lane.wait(delivery, now + delay, forgivable);
                }
            }
            (Next::Wait(delay) | Next::Park(delay), _) => {
                let due = after(time, delay);
                self.keep(delivery, Keep::Parked { due });
            }
            (Next::Bury(reason), _) => self.keep(delivery, Keep::Dead { reason, at: time }),
        }
    }

    /// Whether a delivery of this lane may wait in the window; if not, it is parked, so that its time is kept.
    fn may_wait(&self, lane: u64) -> bool {
        let goes = |known: &Lane| known.number == lane && known.is_leaving();
        !self.stopping && !self.lanes.iter().any(goes)
    }

    /// Has the end of a delivery's stay here written.
    pub(super) fn keep(&mut self, delivery: Box<Delivery>, what: Keep) {
        self.writing += 1;
        let fixed = self.fixed.clone();
        self.spawn(async move {
            let result = fixed.store.keep(&delivery, what).await;
            Report::Kept { delivery, what, result }
        });
    }

    /// The end of a delivery's stay here is durable.
    fn kept(&mut self, delivery: &Delivery, what: Keep, kept: Kept) {
        let (name, event) = (&self.fixed.spec.name, &delivery.event);
        if let Keep::Dead { reason, .. } = what
            && kept == Kept::Written
        {
            self.fixed.view.metrics.dead(reason);
            let last = delivery.history.last().filter(|_| !reason.is_configured());
            let (result, detail) =
                last.map_or(("", reason.detail()), |failure| (&failure.result, &failure.detail));
            tracing::error!(destination = %name, event = %event.id, source = %event.source, attempts = delivery.attempts, reason = reason.label(), result, detail, "dead letter");
        }
        match (delivery.origin, what) {
            (Origin::Lane(number), Keep::Parked { due }) => {
                if kept == Kept::Written {
                    self.book.added(due);
                    self.subjects.parked(event);
                }
                self.settled(number, delivery, None, Replayed::Parked);
            }
            (Origin::Lane(number), Keep::Delivered { at }) => {
                if kept == Kept::Written {
                    // It may be at hand.
                    self.look_again();
                }
                self.settled(number, delivery, Some(delivery.delivered(at)), Replayed::Delivered);
            }
            (Origin::Lane(number), Keep::Dead { .. }) => {
                let what = if kept == Kept::Written { Replayed::Dead } else { Replayed::Parked };
                self.settled(number, delivery, None, what);
            }
            (Origin::Parked, Keep::Parked { due }) if kept == Kept::Written => {
                self.book.give_back(event.id, false, due);
            }
            (Origin::Parked, _) => {
                self.book.give_back(event.id, true, self.fixed.clock.now());
                self.subjects.unparked(event);
            }
        }
        if delivery.has_turn {
            self.release(delivery);
        }
    }

    /// A lane's position is settled.
    fn settled(&mut self, number: u64, delivery: &Delivery, delivered: Option<Delivered>, what: Replayed) {
        if let Some(lane) = self.lane(number) {
            lane.settle(delivery.position, delivered);
            if !lane.is_own() {
                self.fixed.view.metrics.replayed(what);
            }
        }
    }

    /// A delivery gives up its subject's turn.
    pub(super) fn release(&mut self, delivery: &Delivery) {
        if self.stopping {
            // What stands in line is read again by the next courier.
            return;
        }
        if self.subjects.has_parked(&delivery.event) {
            self.book.freed(self.fixed.clock.now());
        }
        let next = self.subjects.release(&delivery.event);
        self.take_turn(next);
    }

    pub(super) fn take_turn(&mut self, turn: Option<Turn>) {
        match turn {
            None => {}
            Some(Turn::Go(delivery)) => {
                if let Origin::Lane(number) = delivery.origin
                    && let Some(lane) = self.lane(number)
                {
                    lane.make_ready(delivery);
                }
            }
            Some(Turn::ParkBehind(delivery)) => {
                let due = self.fixed.clock.now();
                self.keep(delivery, Keep::Parked { due });
            }
        }
    }
}
