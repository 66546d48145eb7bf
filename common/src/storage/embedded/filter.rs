//! Which ids a generation cannot have: a Bloom filter in blocks of a cache line.
//!
//! Promise: what was added may be there. Of what was not, about one in seven hundred may be there as well when a
//! generation is full; in a filter that was folded once one in 45, twice one in 6.
//!
//! It hashes nothing: a [`Tag`] is part of a digest already.

use super::ids::{GENERATION_MAX, Tag};

/// Bits for each id of a full generation.
const BITS_PER_ID: usize = 16;
/// Bits that are set for an id, all in one block.
const PROBES: u32 = 5;
/// A cache line, which on most processors is one wait for memory.
type Block = [u64; 8];
const BLOCK_BYTES: usize = size_of::<Block>();
/// Blocks of a new filter.
const BLOCKS: usize = GENERATION_MAX * BITS_PER_ID / (8 * BLOCK_BYTES);
/// Bits of a tag that name a block; each probe takes nine more.
const BLOCK_BITS: u32 = 64 - 9 * PROBES;
const _: () = assert!(BLOCKS.is_power_of_two() && BLOCKS <= 1 << BLOCK_BITS);

/// See the module.
pub(super) struct Filter(Vec<Block>);

impl Filter {
    /// One that has nothing. It takes memory as it is filled.
    pub(super) fn new() -> Self {
        Self(vec![[0; 8]; BLOCKS])
    }

    pub(super) fn add(&mut self, tag: Tag) {
        let block = self.block(tag);
        for (word, bit) in probes(tag) {
            self.0[block][word] |= bit;
        }
    }

    pub(super) fn may_have(&self, tag: Tag) -> bool {
        let block = &self.0[self.block(tag)];
        probes(tag).all(|(word, bit)| block[word] & bit != 0)
    }

    /// Halves it: what was added may still be there, and more of what was not.
    pub(super) fn fold(&mut self) {
        let upper = self.0.split_off(self.0.len().div_ceil(2));
        for (lower, upper) in self.0.iter_mut().flatten().zip(upper.iter().flatten()) {
            *lower |= upper;
        }
        self.0.shrink_to_fit();
    }

    /// What it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.0.len() * BLOCK_BYTES
    }

    /// As it is kept in the file.
    pub(super) fn to_blob(&self) -> Vec<u8> {
        self.0.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// As it was kept in the file; none if that cannot be one.
    pub(super) fn from_blob(blob: &[u8]) -> Option<Self> {
        let (words, rest) = blob.as_chunks();
        let (blocks, left) = words.as_chunks();
        let fits = rest.is_empty() && left.is_empty() && blocks.len().is_power_of_two();
        fits.then(|| Self(blocks.iter().map(|block| block.map(u64::from_le_bytes)).collect()))
    }

    fn block(&self, tag: Tag) -> usize {
        // The lower bits, so that folding brings two blocks together that differ in the highest.
        (tag & ((1 << BLOCK_BITS) - 1)) as usize & (self.0.len() - 1)
    }
}

/// Words of a block, and a bit in each.
fn probes(tag: Tag) -> impl Iterator<Item = (usize, u64)> {
    (0..PROBES).map(move |probe| {
        let nine = tag >> (BLOCK_BITS + 9 * probe);
        ((nine & 7) as usize, 1 << (nine >> 3 & 63))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;
    use crate::storage::embedded::ids::tag_of;

    fn tag(key: usize) -> Tag {
        tag_of(EventId::derive("filter", [key.to_be_bytes().as_slice()]))
    }

    /// A full one.
    fn filled() -> Filter {
        let mut filter = Filter::new();
        (0..GENERATION_MAX).for_each(|key| filter.add(tag(key)));
        filter
    }

    /// Of so many strangers those that may be there.
    fn mistaken(filter: &Filter) -> usize {
        (GENERATION_MAX..GENERATION_MAX + 10_000).filter(|key| filter.may_have(tag(*key))).count()
    }

    #[test]
    fn what_was_added_may_be_there_however_often_it_is_folded_and_few_others_may() {
        let mut filter = filled();
        let mut bytes = GENERATION_MAX * BITS_PER_ID / 8;
        for mistaken_max in [60, 600, 3000, 10_000, 10_000, 10_000] {
            assert!((0..GENERATION_MAX).all(|key| filter.may_have(tag(key))));
            assert!(mistaken(&filter) <= mistaken_max, "{} of 10,000", mistaken(&filter));
            assert_eq!(filter.bytes(), bytes);
            filter.fold();
            bytes = (bytes / 2).max(BLOCK_BYTES);
        }
        assert_eq!(mistaken(&Filter::new()), 0);
    }

    #[test]
    fn it_comes_back_from_the_file_as_it_was_and_not_from_what_is_none() {
        let filter = filled();
        let blob = filter.to_blob();
        assert_eq!(Filter::from_blob(&blob).unwrap().0, filter.0);
        for none in [&blob[..0], &blob[1..], &blob[..3 * BLOCK_BYTES]] {
            assert!(Filter::from_blob(none).is_none());
        }
    }
}
