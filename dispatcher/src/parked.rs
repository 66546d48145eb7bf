//! What a courier knows of its parked deliveries, and when to look for those that are due. No I/O.
//!
//! The storage has them; the book has their number, when the next is due, and a few that are due and about
//! to go. Nothing goes before it is due, and nothing that is under way is taken a second time: a look that
//! began before a delivery was given back may show it as it was, so it is passed over.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use chaski_common::event::EventId;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::delivery::Delivery;
use crate::store::Look;
use crate::subjects::Subjects;

/// Due deliveries kept at hand.
const AT_HAND_MAX: usize = 32;
/// How long to wait when all that is due is under way.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A look from time to time, in case the parked deliveries were changed by somebody who did not say so.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);
/// Changes from outside are looked up together when they come one after another.
const CHANGES_APART: Duration = Duration::from_millis(100);
/// Due times are times of day: the clock is read this often at least, because it can be set.
const CLOCK_TICK: Duration = Duration::from_secs(1);

/// The parked deliveries of one destination.
pub(crate) struct Book {
    max: u64,
    count: u64,
    next_due: Option<Timestamp>,
    ready: VecDeque<Box<Delivery>>,
    /// At hand, in flight, or being written; and of which partition.
    under_way: HashMap<EventId, u32>,
    /// Given back since the look under way began.
    given_back: HashSet<EventId>,
    looking: bool,
    /// Something of ours was written since the look under way began, so its totals may be old.
    written: bool,
    /// Not before this, though something is due.
    not_before: Option<Instant>,
    look_anyway: Instant,
    /// Not before this for another change from outside.
    changes_from: Option<Instant>,
}

impl Book {
    pub(crate) fn new(first: &Look, max: u64) -> Self {
        Self {
            max,
            count: first.count,
            next_due: first.next_due,
            ready: VecDeque::new(),
            under_way: HashMap::new(),
            given_back: HashSet::new(),
            looking: false,
            written: false,
            not_before: None,
            look_anyway: Instant::now() + LOOK_ANYWAY,
            changes_from: None,
        }
    }

    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// Whether so many more could be parked.
    pub(crate) fn has_room(&self, more: usize) -> bool {
        self.count.saturating_add(more as u64) <= self.max
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// One that is due and has its turn.
    pub(crate) fn take(&mut self) -> Option<Box<Delivery>> {
        self.ready.pop_front()
    }

    /// How many to look for now; none if there is no reason to.
    pub(crate) fn look(&mut self, now: Instant, time: Timestamp) -> Option<usize> {
        let due = self.next_due.is_some_and(|due| due <= time) && self.not_before.is_none_or(|at| at <= now);
        if self.looking || self.has_ready() || !(due || self.look_anyway <= now) {
            return None;
        }
        (self.looking, self.written) = (true, false);
        self.look_anyway = now + LOOK_ANYWAY;
        Some(AT_HAND_MAX + self.under_way.len())
    }

    /// When to think of looking next; none while a look is under way or there is enough at hand.
    pub(crate) fn wake_at(&self, now: Instant, time: Timestamp) -> Option<Instant> {
        if self.looking || self.has_ready() {
            return None;
        }
        let until_due = |due: Timestamp| {
            now + Duration::try_from(due.duration_since(time)).unwrap_or_default().min(CLOCK_TICK)
        };
        let due = self.next_due.map(until_due).map(|at| self.not_before.map_or(at, |floor| at.max(floor)));
        Some(due.map_or(self.look_anyway, |due| due.min(self.look_anyway)))
    }

    /// Whether something of a partition is at hand, in flight or being written.
    pub(crate) fn is_under_way(&self, partition: u32) -> bool {
        self.under_way.values().any(|of| *of == partition)
    }

    /// What a look has found; what is of a partition that is not here, or no longer, is another's. Subjects whose turn
    /// is taken keep their delivery where it is. The totals hold only if no write of ours overlapped with the look: none
    /// ended since it began, none is under way.
    pub(crate) fn found(
        &mut self,
        look: Look,
        is_here: impl Fn(u32) -> bool,
        subjects: &mut Subjects,
        writing: bool,
        now: Instant,
        time: Timestamp,
    ) {
        self.looking = false;
        for parked in look.due {
            let (id, partition) = (parked.event.id, parked.position.partition());
            let is_out = self.under_way.contains_key(&id) || self.given_back.contains(&id);
            let free = parked.due <= time && !is_out && is_here(partition);
            if free && subjects.claim(&parked.event) {
                self.under_way.insert(id, partition);
                self.ready.push_back(Box::new(Delivery::released(parked)));
            }
        }
        self.given_back.clear();
        if self.written || writing {
            self.next_due = earlier(self.next_due, look.next_due);
        } else {
            (self.count, self.next_due) = (look.count, look.next_due);
            subjects.set_parked(look.held);
        }
        let nothing_new = self.ready.is_empty() && self.next_due.is_some_and(|due| due <= time);
        self.not_before = nothing_new.then(|| now + LOOK_AGAIN);
    }

    /// The look failed; another one comes.
    pub(crate) fn not_found(&mut self, now: Instant) {
        self.looking = false;
        self.given_back.clear();
        self.not_before = Some(now + LOOK_AGAIN);
        self.look_anyway = now + LOOK_AGAIN;
    }

    /// A delivery from a lane is parked, durably.
    pub(crate) fn added(&mut self, due: Timestamp) {
        self.written = true;
        self.count += 1;
        self.next_due = earlier(self.next_due, Some(due));
    }

    /// A delivery that was parked has been attempted and what became of it is durable: it is parked anew, or
    /// (`gone`) not parked any more.
    pub(crate) fn give_back(&mut self, id: EventId, gone: bool, due: Timestamp) {
        self.written = true;
        self.count -= u64::from(gone && self.count > 0);
        self.under_way.remove(&id);
        if self.looking {
            self.given_back.insert(id);
        }
        // What is next is the storage's to say; until it has said so, nothing is later than this.
        self.next_due = earlier(self.next_due, Some(due));
        self.not_before = None;
    }

    /// The parked deliveries were changed from outside: those at hand are put back, the rest looked up.
    /// Returns those put back, whose turns are free again.
    pub(crate) fn changed(&mut self, now: Instant, time: Timestamp) -> VecDeque<Box<Delivery>> {
        let back = std::mem::take(&mut self.ready);
        for delivery in &back {
            self.under_way.remove(&delivery.event.id);
        }
        self.next_due = earlier(self.next_due, Some(time));
        self.not_before = self.changes_from.filter(|from| *from > now);
        self.changes_from = Some(self.not_before.unwrap_or(now + CHANGES_APART));
        if self.looking {
            self.given_back.extend(back.iter().map(|delivery| delivery.event.id));
            self.written = true;
        }
        back
    }

    /// A subject's turn is free, and others of it are parked.
    pub(crate) fn freed(&mut self, time: Timestamp) {
        self.next_due = earlier(self.next_due, Some(time));
        self.not_before = None;
    }
}

fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    a.into_iter().chain(b).min()
}
