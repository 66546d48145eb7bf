//! One event on its way to one destination, with all it has been through.

use std::sync::Arc;

use chaski_common::event::Event;
use chaski_common::storage::{DeadLetter, Delivered, Failure, Parked, Position, Record, remember};
use chaski_common::trace::SpanId;
use jiff::Timestamp;

use crate::attempt::{Attempted, Reason};

/// An event on its way to a destination. Wherever it is (ready, in line, waiting, in flight, being written),
/// it is in one place only.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Delivery {
    pub(crate) origin: Origin,
    pub(crate) position: Position,
    pub(crate) event: Event,
    /// It comes from a replay: what is parked of the same event, with attempts of its own behind it, stays as it is.
    pub(crate) replayed: bool,
    /// Whether it has its subject's turn, or stands in line for it. What is read and does not go never asks for it.
    pub(crate) has_turn: bool,
    /// Attempts begun that count.
    pub(crate) attempts: u32,
    /// How often it has waited inside the window.
    pub(crate) waits: u8,
    pub(crate) first_attempt: Option<Timestamp>,
    pub(crate) history: Vec<Failure>,
    /// The span of its latest attempt, counted or not, if that was told.
    pub(crate) span: Option<SpanId>,
    /// It failed while nothing else was taken, which is the destination's fault as far as anybody knows: after so many
    /// recoveries. Once the destination has been up since, it is the event's.
    pub(crate) set_back: Option<u32>,
}

/// Where a delivery came from, which is where its end must be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The lane with this number: the position is open in its window.
    Lane(u64),
    /// The parked deliveries: the storage has it until it is told otherwise.
    Parked,
}

impl Delivery {
    pub(crate) fn read(lane: u64, replayed: bool, record: Record) -> Self {
        let Record { position, event } = record;
        Self {
            origin: Origin::Lane(lane),
            position,
            event,
            replayed,
            has_turn: false,
            attempts: 0,
            waits: 0,
            first_attempt: None,
            history: Vec::new(),
            span: None,
            set_back: None,
        }
    }

    pub(crate) fn released(parked: Parked) -> Self {
        let Parked { position, event, attempts, first_attempt, history, .. } = parked;
        let span = history.last().and_then(|failure| failure.span);
        Self {
            origin: Origin::Parked,
            position,
            event,
            replayed: false,
            has_turn: true,
            attempts,
            waits: 0,
            first_attempt,
            history,
            span,
            set_back: None,
        }
    }

    /// An attempt begins.
    pub(crate) fn begin(&mut self, now: Timestamp) {
        self.attempts = self.attempts.saturating_add(1);
        self.first_attempt.get_or_insert(now);
    }

    /// The attempt that has just ended told of the destination only: as if it had not been made.
    pub(crate) fn uncount(&mut self) {
        self.attempts = self.attempts.saturating_sub(1);
        if self.attempts == 0 {
            self.first_attempt = None;
        }
    }

    /// Takes back a failure for which it waits: see [`Delivery::uncount`].
    pub(crate) fn forget_wait(&mut self) {
        self.uncount();
        self.waits = self.waits.saturating_sub(1);
        self.history.pop();
    }

    pub(crate) fn failed(&mut self, failure: Failure) {
        remember(&mut self.history, failure);
    }

    /// What the decision about it needs to know.
    pub(crate) fn attempted<'a>(&'a self, destination: &'a str, now: Timestamp) -> Attempted<'a> {
        Attempted {
            event: self.event.id,
            destination,
            attempts: self.attempts,
            first_attempt: self.first_attempt.unwrap_or(now),
            history: &self.history,
            waits: matches!(self.origin, Origin::Lane(_)).then_some(self.waits),
        }
    }

    pub(crate) fn parked(&self, destination: &Arc<str>, due: Timestamp) -> Parked {
        Parked {
            destination: destination.clone(),
            position: self.position,
            event: self.event.clone(),
            due,
            attempts: self.attempts,
            first_attempt: self.first_attempt,
            history: self.history.clone(),
        }
    }

    pub(crate) fn letter(&self, destination: &Arc<str>, reason: Reason, at: Timestamp) -> DeadLetter {
        let failure = self.history.last().filter(|_| !reason.is_configured());
        DeadLetter {
            number: 0,
            destination: Some(destination.clone()),
            position: Some(self.position),
            event: self.event.clone(),
            reason: reason.label().into(),
            detail: failure.map_or(reason.detail(), |failure| &failure.detail).into(),
            at,
            attempts: self.attempts,
            history: self.history.clone(),
        }
    }

    pub(crate) const fn delivered(&self, at: Timestamp) -> Delivered {
        Delivered { position: self.position, at, attempts: self.attempts }
    }
}
