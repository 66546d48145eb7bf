//! The ids of recent events, so that one id is stored once: reserve, publish, then confirm or release.
//!
//! Bounded: two generations, of which the older one is forgotten when the younger is full. What is forgotten
//! can be stored a second time, under the same id; nothing is ever kept from being stored.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::event::{EventId, Fingerprint};

/// Ids of one generation, about 60 bytes each.
pub(super) const GENERATION_MAX: usize = 500_000;

/// What is known of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// New; whoever asked has to confirm or release it.
    Mine,
    /// Somebody else is storing it.
    Pending,
    /// Durable, with this content.
    Known(Fingerprint),
}

#[derive(Default)]
pub(super) struct Recent(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    pending: HashSet<EventId>,
    young: HashMap<EventId, Fingerprint>,
    old: HashMap<EventId, Fingerprint>,
}

impl Recent {
    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn reserve(&self, id: EventId) -> Claim {
        let mut known = self.lock();
        match known.young.get(&id).or_else(|| known.old.get(&id)).copied() {
            Some(fingerprint) => Claim::Known(fingerprint),
            None if known.pending.insert(id) => Claim::Mine,
            None => Claim::Pending,
        }
    }

    /// What is durable under an id, as far as it is remembered.
    pub(super) fn known(&self, id: EventId) -> Option<Fingerprint> {
        let known = self.lock();
        known.young.get(&id).or_else(|| known.old.get(&id)).copied()
    }

    /// The event is durable.
    pub(super) fn confirm(&self, id: EventId, fingerprint: Fingerprint) {
        let mut known = self.lock();
        known.pending.remove(&id);
        if known.young.len() >= GENERATION_MAX {
            known.old = std::mem::take(&mut known.young);
        }
        known.young.insert(id, fingerprint);
    }

    /// The event may not be durable: whoever sends it again is welcome.
    pub(super) fn release(&self, id: EventId) {
        self.lock().pending.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> EventId {
        EventId::derive("recent", [number.to_be_bytes().as_slice()])
    }

    #[test]
    fn one_reserves_the_others_wait_and_know_when_it_is_done() {
        let (recent, print) = (Recent::default(), Fingerprint::of(b"x"));
        assert_eq!(recent.reserve(id(1)), Claim::Mine);
        assert_eq!(recent.reserve(id(1)), Claim::Pending);
        recent.release(id(1));
        assert_eq!(recent.reserve(id(1)), Claim::Mine);
        recent.confirm(id(1), print);
        assert_eq!(recent.reserve(id(1)), Claim::Known(print));
    }

    #[test]
    fn memory_is_bounded_and_the_latest_are_remembered() {
        let (recent, print) = (Recent::default(), Fingerprint::of(b"x"));
        for number in 0..2 * GENERATION_MAX + 2 {
            recent.confirm(id(number), print);
        }
        let known = recent.lock();
        assert!(known.young.len() + known.old.len() <= 2 * GENERATION_MAX);
        drop(known);
        assert_eq!(recent.reserve(id(GENERATION_MAX + 1)), Claim::Known(print));
        assert_eq!(recent.reserve(id(0)), Claim::Mine);
    }
}
