//! The ids that this process stored or saw lately.
//!
//! Bounded: two generations, of which the older one is forgotten when the younger is full. What is forgotten
//! can be stored a second time, under the same id; nothing is ever kept from being stored.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{Claim, Dedup};
use crate::event::{EventId, Fingerprint};

/// Ids of one generation, about 60 bytes each.
pub(in crate::storage::kafka) const GENERATION_MAX: usize = 500_000;

#[derive(Default)]
pub(in crate::storage::kafka) struct Recent(Mutex<Generations>);

/// Ids are digests already.
type ById<T> = HashMap<EventId, T, foldhash::fast::RandomState>;

#[derive(Default)]
struct Generations {
    /// What is being stored, with the number of its reservation.
    pending: ById<u64>,
    /// Reservations so far.
    reservations: u64,
    young: ById<Fingerprint>,
    old: ById<Fingerprint>,
}

impl Recent {
    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    /// Reserves an id; `Ok` has the number of the reservation, which no other one of this process has.
    pub(super) fn claim(&self, id: EventId) -> Result<u64, Claim> {
        let mut known = self.lock();
        let known = &mut *known;
        if let Some(fingerprint) = known.young.get(&id).or_else(|| known.old.get(&id)) {
            return Err(Claim::Known(*fingerprint));
        }
        match known.pending.entry(id) {
            Entry::Vacant(free) => {
                known.reservations += 1;
                Ok(*free.insert(known.reservations))
            }
            Entry::Occupied(_) => Err(Claim::Pending),
        }
    }

    /// Frees an id; tells the number of its reservation.
    pub(super) fn free(&self, id: EventId) -> Option<u64> {
        self.lock().pending.remove(&id)
    }
}

#[async_trait]
impl Dedup for Recent {
    async fn reserve(&self, id: EventId) -> Claim {
        self.claim(id).map_or_else(|known| known, |_| Claim::Mine)
    }

    fn confirm(&self, id: EventId, fingerprint: Fingerprint) {
        self.remember(id, fingerprint);
    }

    fn release(&self, id: EventId) {
        self.free(id);
    }

    fn remember(&self, id: EventId, fingerprint: Fingerprint) {
        let mut known = self.lock();
        known.pending.remove(&id);
        if known.young.len() >= GENERATION_MAX {
            known.old = std::mem::take(&mut known.young);
        }
        known.young.insert(id, fingerprint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> EventId {
        EventId::derive("recent", [number.to_be_bytes().as_slice()])
    }

    #[tokio::test]
    async fn one_reserves_the_others_wait_and_know_when_it_is_done() {
        let (recent, print) = (Recent::default(), Fingerprint::of(b"x"));
        assert_eq!(recent.reserve(id(1)).await, Claim::Mine);
        assert_eq!(recent.reserve(id(1)).await, Claim::Pending);
        recent.release(id(1));
        assert_eq!(recent.reserve(id(1)).await, Claim::Mine);
        assert_eq!((recent.free(id(1)), recent.free(id(1))), (Some(2), None));
        assert_eq!(recent.claim(id(1)), Ok(3), "no number is given twice");
        recent.confirm(id(1), print);
        assert_eq!(recent.reserve(id(1)).await, Claim::Known(print));
    }

    #[tokio::test]
    async fn memory_is_bounded_and_the_latest_are_remembered() {
        let (recent, print) = (Recent::default(), Fingerprint::of(b"x"));
        for number in 0..2 * GENERATION_MAX + 2 {
            recent.remember(id(number), print);
        }
        let kept = |known: &Generations| known.young.len() + known.old.len();
        assert!(kept(&recent.lock()) <= 2 * GENERATION_MAX);
        assert_eq!(recent.reserve(id(GENERATION_MAX + 1)).await, Claim::Known(print));
        assert_eq!(recent.reserve(id(0)).await, Claim::Mine);
    }
}
