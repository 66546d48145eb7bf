//! The ids that were made durable last, for those who ask beside the writer.
//!
//! A resend mostly comes soon after its first. When that is found here, it is durable, and the resend can be
//! answered without a place in the writer's queue. What is not found here may be known all the same: then the
//! writer decides, as it does about everything new.
//!
//! Ids come in when their group has been committed, and go before the group that prunes them is. Bounded by two
//! generations of [`GENERATION_MAX`] ids: when the newer one is full, the older one is forgotten.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ids::ById;
use crate::event::{EventId, Fingerprint};

/// Ids in one generation: 1 MiB of them. Few in tests, which cannot wait for many.
const GENERATION_MAX: usize = if cfg!(test) { 64 } else { 32 * 1024 };
/// Parts with a lock of their own, so that two who ask seldom meet.
const PARTS: usize = 16;

/// See the module.
#[derive(Default)]
pub(super) struct Durable([Mutex<Generations>; PARTS]);

#[derive(Default)]
struct Generations {
    newer: ById<Fingerprint>,
    older: ById<Fingerprint>,
}

impl Durable {
    /// The fingerprint of the event that has this id, if it is one of the last.
    pub(super) fn find(&self, id: EventId) -> Option<Fingerprint> {
        let part = self.part(id);
        part.newer.get(&id).or_else(|| part.older.get(&id)).copied()
    }

    /// An event is durable now.
    pub(super) fn add(&self, id: EventId, fingerprint: Fingerprint) {
        let part = &mut *self.part(id);
        if part.newer.len() >= GENERATION_MAX / PARTS {
            std::mem::swap(&mut part.newer, &mut part.older);
            part.newer.clear();
        }
        part.newer.insert(id, fingerprint);
    }

    /// An event will be durable no more.
    pub(super) fn remove(&self, id: EventId) {
        let mut part = self.part(id);
        part.newer.remove(&id);
        part.older.remove(&id);
    }

    fn part(&self, id: EventId) -> MutexGuard<'_, Generations> {
        // An id is a digest: any of its bytes does.
        let part = usize::from(id.as_bytes()[0]) % PARTS;
        self.0[part].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINT: Fingerprint = Fingerprint::from_bytes([7; 16]);

    fn id(key: u64) -> EventId {
        EventId::derive("durable", [key.to_be_bytes().as_slice()])
    }

    #[test]
    fn the_last_ids_are_known_and_no_more_than_two_generations_are_kept() {
        let durable = Durable::default();
        for key in 0..10 * GENERATION_MAX as u64 {
            durable.add(id(key), PRINT);
            assert_eq!(durable.find(id(key)), Some(PRINT));
        }
        let kept = (0..PARTS).map(|part| durable.0[part].lock().unwrap());
        assert!(kept.map(|part| part.newer.len() + part.older.len()).sum::<usize>() <= 2 * GENERATION_MAX);
        assert_eq!(durable.find(id(0)), None);
    }

    #[test]
    fn what_is_removed_is_not_known_in_either_generation() {
        let durable = Durable::default();
        for key in 0..GENERATION_MAX as u64 {
            durable.add(id(key), PRINT);
        }
        for key in 0..GENERATION_MAX as u64 {
            durable.remove(id(key));
            assert_eq!(durable.find(id(key)), None);
        }
    }
}
