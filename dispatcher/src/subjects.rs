//! Which deliveries of one subject wait for each other (`ordering = "key"`). No I/O, no time.
//!
//! A subject's *turn* is held by one delivery at a time, from the moment it is ready until it is delivered,
//! parked or dead. What comes meanwhile stands in line. While anything of the subject is parked, what has its
//! turn is parked behind it, one after the other in log order, so that the storage always holds a beginning
//! of the subject's history and its earliest is the right one to go next.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use chaski_common::event::Event;

use crate::delivery::{Delivery, Origin};
use crate::destination::Ordering;

/// The subjects that have something under way at a destination.
#[derive(Debug, Default)]
pub(crate) struct Subjects {
    /// Without, every delivery is free.
    ordered: bool,
    holds: HashMap<Arc<str>, Hold>,
    /// Deliveries in all the lines.
    in_line: usize,
}

#[derive(Debug, Default)]
struct Hold {
    turn_taken: bool,
    parked: u64,
    line: VecDeque<Box<Delivery>>,
}

/// What a delivery that has its turn is to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Turn {
    /// It may be attempted.
    Go(Box<Delivery>),
    /// Another of its subject is parked: behind it.
    ParkBehind(Box<Delivery>),
}

impl Subjects {
    pub(crate) fn new(ordering: Ordering) -> Self {
        Self { ordered: ordering == Ordering::Key, ..Self::default() }
    }

    /// The subject, if its deliveries wait for each other.
    fn key<'a>(&self, event: &'a Event) -> Option<&'a Arc<str>> {
        event.subject.as_ref().filter(|_| self.ordered)
    }

    /// What is parked, as the storage says.
    pub(crate) fn set_parked(&mut self, held: Vec<(Arc<str>, u64)>) {
        for hold in self.holds.values_mut() {
            hold.parked = 0;
        }
        for (subject, parked) in held {
            self.holds.entry(subject).or_default().parked = parked;
        }
        self.holds.retain(|_, hold| hold.parked > 0 || hold.turn_taken || !hold.line.is_empty());
    }

    /// Whether deliveries of one subject wait for each other.
    pub(crate) const fn are_ordered(&self) -> bool {
        self.ordered
    }

    /// What the storage has parked of subjects that nothing is known of yet; of the others more is known here.
    pub(crate) fn learn_parked(&mut self, held: Vec<(Arc<str>, u64)>) {
        for (subject, parked) in held {
            self.holds.entry(subject).or_insert_with(|| Hold { parked, ..Hold::default() });
        }
    }

    /// Deliveries that stand in line.
    pub(crate) const fn in_line(&self) -> usize {
        self.in_line
    }

    /// Those of them that a lane has read.
    pub(crate) fn in_line_of(&self, lane: u64) -> usize {
        let lines = self.holds.values().flat_map(|hold| &hold.line);
        lines.filter(|delivery| delivery.origin == Origin::Lane(lane)).count()
    }

    /// A delivery fresh from the log; none if it stands in line now.
    pub(crate) fn admit(&mut self, mut delivery: Box<Delivery>) -> Option<Turn> {
        delivery.has_turn = true;
        let Some(subject) = self.key(&delivery.event) else {
            return Some(Turn::Go(delivery));
        };
        let hold = self.holds.entry(subject.clone()).or_default();
        if hold.turn_taken {
            hold.line.push_back(delivery);
            self.in_line += 1;
            return None;
        }
        Some(hold.next(delivery))
    }

    /// A parked delivery asks for its turn.
    pub(crate) fn claim(&mut self, event: &Event) -> bool {
        self.key(event).is_none_or(|subject| {
            !std::mem::replace(&mut self.holds.entry(subject.clone()).or_default().turn_taken, true)
        })
    }

    /// The delivery that had the turn is parked, durably, and was not before.
    pub(crate) fn parked(&mut self, event: &Event) {
        if let Some(subject) = self.key(event) {
            self.holds.entry(subject.clone()).or_default().parked += 1;
        }
    }

    /// A parked delivery is not parked any more.
    pub(crate) fn unparked(&mut self, event: &Event) {
        if let Some(hold) = self.key(event).and_then(|subject| self.holds.get_mut(subject)) {
            hold.parked = hold.parked.saturating_sub(1);
        }
    }

    /// Whether others of its subject are parked.
    pub(crate) fn has_parked(&self, event: &Event) -> bool {
        self.key(event).and_then(|subject| self.holds.get(subject)).is_some_and(|hold| hold.parked > 0)
    }

    /// What stands in line from a lane that is gone stands there no more.
    pub(crate) fn forget(&mut self, lane: u64) {
        for hold in self.holds.values_mut() {
            let before = hold.line.len();
            hold.line.retain(|delivery| delivery.origin != Origin::Lane(lane));
            self.in_line -= before - hold.line.len();
        }
    }

    /// The turn is over: who is next.
    pub(crate) fn release(&mut self, event: &Event) -> Option<Turn> {
        let subject = self.key(event)?;
        let hold = self.holds.get_mut(subject)?;
        hold.turn_taken = false;
        if let Some(delivery) = hold.line.pop_front() {
            self.in_line -= 1;
            return Some(hold.next(delivery));
        }
        if hold.parked == 0 {
            self.holds.remove(subject);
        }
        None
    }
}

impl Hold {
    fn next(&mut self, delivery: Box<Delivery>) -> Turn {
        self.turn_taken = true;
        if self.parked > 0 { Turn::ParkBehind(delivery) } else { Turn::Go(delivery) }
    }
}

#[cfg(test)]
mod tests {
    use chaski_common::storage::{Position, Record};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::event;

    fn delivery(position: u64, subject: Option<&str>) -> Box<Delivery> {
        let mut event = event(position);
        event.subject = subject.map(Arc::from);
        let read = Delivery::read(0, false, Record { position: Position(position), event });
        Box::new(Delivery { has_turn: true, ..read })
    }

    #[test]
    fn events_without_a_subject_are_free() {
        let mut subjects = Subjects::new(Ordering::Key);
        assert!(matches!(subjects.admit(delivery(1, None)), Some(Turn::Go(_))));
        assert!(matches!(subjects.admit(delivery(2, None)), Some(Turn::Go(_))));
        assert_eq!(subjects.release(&delivery(1, None).event), None);
        assert!(subjects.claim(&delivery(3, None).event));
    }

    #[test]
    fn a_failing_head_holds_back_its_own_subject_only() {
        let mut subjects = Subjects::new(Ordering::Key);
        let a = delivery(1, Some("a")).event;
        assert!(matches!(subjects.admit(delivery(1, Some("a"))), Some(Turn::Go(_))));
        assert_eq!(subjects.admit(delivery(2, Some("a"))), None);
        assert!(matches!(subjects.admit(delivery(3, Some("b"))), Some(Turn::Go(_))));
        subjects.parked(&a);
        assert_eq!(subjects.release(&a), Some(Turn::ParkBehind(delivery(2, Some("a")))));
        assert!(!subjects.claim(&a), "the parked head waits until those behind it are parked");
        subjects.parked(&a);
        assert_eq!(subjects.release(&a), None);
        assert!(subjects.claim(&a));
    }

    #[test]
    fn what_a_lost_lane_had_in_line_is_forgotten_and_nothing_else() {
        let from = |lane, position| {
            let mut delivery = delivery(position, Some("s"));
            delivery.origin = Origin::Lane(lane);
            delivery
        };
        let mut subjects = Subjects::new(Ordering::Key);
        assert!(matches!(subjects.admit(from(1, 1)), Some(Turn::Go(_))));
        assert_eq!(subjects.admit(from(1, 2)), None);
        assert_eq!(subjects.admit(from(2, 3)), None);
        subjects.forget(1);
        assert_eq!(subjects.in_line(), 1);
        assert_eq!(subjects.release(&from(1, 1).event), Some(Turn::Go(from(2, 3))));
    }

    proptest! {
        /// I5: whatever fails, is parked and comes back, one subject's events go in log order.
        #[test]
        fn one_subject_is_delivered_in_log_order(fates in proptest::collection::vec(0_u8..4, 1..200)) {
            let of_s = delivery(1, Some("s")).event;
            let mut subjects = Subjects::new(Ordering::Key);
            let (mut next, mut parked, mut done) = (1, std::collections::BTreeMap::new(), Vec::new());
            let mut turn: Option<(Turn, bool)> = None;
            let mut fates = fates.into_iter();
            loop {
                // A new event arrives, or the turn's holder comes to an end, as the case's bytes say.
                let fate = fates.next();
                match (fate, turn.take()) {
                    (Some(0), held) => {
                        let admitted = subjects.admit(delivery(next, Some("s")));
                        next += 1;
                        prop_assert!(held.is_none() || admitted.is_none(), "one at a time");
                        turn = held.or(admitted.map(|turn| (turn, false)));
                    }
                    (Some(1), Some((Turn::Go(delivery), was_parked))) => {
                        parked.insert(delivery.position, delivery);
                        if !was_parked { subjects.parked(&of_s); }
                        turn = subjects.release(&of_s).map(|turn| (turn, false));
                    }
                    (_, Some((Turn::Go(delivery), was_parked))) => {
                        done.push(delivery.position.0);
                        if was_parked { subjects.unparked(&of_s); }
                        turn = subjects.release(&of_s).map(|turn| (turn, false));
                    }
                    (_, Some((Turn::ParkBehind(delivery), _))) => {
                        parked.insert(delivery.position, delivery);
                        subjects.parked(&of_s);
                        turn = subjects.release(&of_s).map(|turn| (turn, false));
                    }
                    (fate, None) => match parked.pop_first() {
                        Some((_, delivery)) => {
                            prop_assert!(subjects.claim(&of_s));
                            turn = Some((Turn::Go(delivery), true));
                        }
                        None if fate.is_none() => break,
                        None => {}
                    },
                }
            }
            prop_assert_eq!(done, (1..next).collect::<Vec<_>>());
            prop_assert!(subjects.holds.is_empty(), "nothing is kept for what is over");
        }
    }
}
