//! The ids that were made durable last, for those who ask beside the writer.
//!
//! A resend mostly comes soon after its first. When that is found here, it is durable, and the resend can be
//! answered without a place in the writer's queue. What is not found here may be known all the same: then the
//! writer decides, as it does about everything new.
//!
//! Ids come in when their group has been committed, and go before the group that prunes them is. One thread does that,
//! and any may ask. Every new event asks in vain, so that nobody takes a lock for it or writes to what others read.
//!
//! Bounded by [`SETS`] sets, chosen by the beginning of the id, with the last [`WAYS`] ids of each: 2 MiB. When as many have
//! come as there are sets, one in fifty is forgotten; when twice as many, one in seven.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::event::{EventId, Fingerprint};

/// Few in tests, which cannot wait for many.
const SETS: usize = if cfg!(test) { 16 } else { 16 * 1024 };
const _: () = assert!(SETS.is_power_of_two() && SETS <= 1 << 16);
const WAYS: usize = 4;

/// See the module.
pub(super) struct Durable(Box<[Set]>);

/// The newest first. Two lines of a cache, which most processors fetch together.
#[derive(Default)]
#[repr(align(128))]
struct Set([Place; WAYS]);

/// An id, each half of it XORed with that half of the fingerprint, and the fingerprint.
///
/// It is written word by word, and whoever reads meanwhile may see some of the old and some of the new. These give
/// no id that anybody asks for: for that, fingerprints or halves of ids would have to be equal that are digests.
/// As little is an empty place an id: its words are zero.
#[derive(Default)]
struct Place([AtomicU64; 4]);

impl Default for Durable {
    fn default() -> Self {
        Self((0..SETS).map(|_| Set::default()).collect())
    }
}

impl Durable {
    /// The fingerprint of the event that has this id, if it is one of the last.
    pub(super) fn find(&self, id: EventId) -> Option<Fingerprint> {
        self.set(id).iter().find_map(|place| place.fingerprint_of(id))
    }

    /// An event is durable now. By one thread only, as [`Durable::remove`] is.
    pub(super) fn add(&self, id: EventId, fingerprint: Fingerprint) {
        let set = self.set(id);
        for way in (1..WAYS).rev() {
            set[way].put(set[way - 1].words());
        }
        let ([a, b], [c, d]) = (halves(id.as_bytes()), halves(fingerprint.as_bytes()));
        set[0].put([a ^ c, b ^ d, c, d]);
    }

    /// An event will be durable no more.
    pub(super) fn remove(&self, id: EventId) {
        let places = self.set(id).iter().filter(|place| place.fingerprint_of(id).is_some());
        places.for_each(|place| place.put([0; 4]));
    }

    fn set(&self, id: EventId) -> &[Place; WAYS] {
        // An id is a digest: any of its bytes do.
        let [first, second, ..] = *id.as_bytes();
        &self.0[usize::from(u16::from_be_bytes([first, second])) % SETS].0
    }
}

impl Place {
    fn fingerprint_of(&self, id: EventId) -> Option<Fingerprint> {
        let [a, b, c, d] = self.words();
        ([a ^ c, b ^ d] == halves(id.as_bytes())).then(|| {
            let bytes = u128::from(c) << 64 | u128::from(d);
            Fingerprint::from_bytes(bytes.to_be_bytes())
        })
    }

    fn words(&self) -> [u64; 4] {
        // Nothing else is read because of what is found here: in which order it is seen makes no difference.
        array::from_fn(|word| self.0[word].load(Ordering::Relaxed))
    }

    fn put(&self, words: [u64; 4]) {
        self.0.iter().zip(words).for_each(|(place, word)| place.store(word, Ordering::Relaxed));
    }
}

fn halves(bytes: &[u8; 16]) -> [u64; 2] {
    let both = u128::from_be_bytes(*bytes);
    [(both >> 64) as u64, both as u64]
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    fn id(key: u64) -> EventId {
        EventId::derive("durable", [key.to_be_bytes().as_slice()])
    }

    fn print(key: u64) -> Fingerprint {
        Fingerprint::of(&key.to_be_bytes())
    }

    #[test]
    fn the_last_ids_are_known_and_no_more_than_there_are_places_for() {
        let durable = Durable::default();
        let keys = 0..10 * (SETS * WAYS) as u64;
        for key in keys.clone() {
            durable.add(id(key), print(key));
            assert_eq!(durable.find(id(key)), Some(print(key)));
        }
        let known = |key: &u64| durable.find(id(*key)).is_some();
        assert_eq!(keys.clone().filter(known).count(), SETS * WAYS);
        assert!(keys.rev().take(SETS).filter(known).count() >= SETS * 7 / 8);
        assert_eq!(durable.find(id(0)), None);
    }

    #[test]
    fn what_is_removed_is_not_known_and_the_others_are() {
        let durable = Durable::default();
        let keys = 0..SETS as u64 / 2;
        for key in keys.clone() {
            durable.add(id(key), print(key));
        }
        for removed in keys.clone() {
            durable.remove(id(removed));
            let known = keys.clone().filter(|key| durable.find(id(*key)).is_some());
            assert!(known.eq(removed + 1..keys.end));
        }
    }

    #[test]
    fn whoever_asks_while_others_come_in_is_told_the_right_fingerprint_or_none() {
        let (durable, is_done) = (Durable::default(), AtomicBool::new(false));
        let keys = 0..16 * (SETS * WAYS) as u64;
        let known: Vec<_> = keys.map(|key| (id(key), print(key))).collect();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_done.load(Ordering::Relaxed) {
                        for (id, print) in &known {
                            assert!(durable.find(*id).is_none_or(|found| found == *print));
                        }
                    }
                });
            }
            for _ in 0..200 {
                known.iter().for_each(|(id, print)| durable.add(*id, *print));
            }
            is_done.store(true, Ordering::Relaxed);
        });
    }
}
