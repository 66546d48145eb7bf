//! How many bodies, and which: a count and a sum of digests, which does not depend on their order. Two tallies
//! are equal only if the same bodies came equally often, up to a chance of 2⁻⁶⁴; this finds faults, not fraud.

use std::hash::{DefaultHasher, Hasher as _};

use anyhow::Context as _;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) count: u64,
    pub(crate) sum: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, body: &[u8]) {
        self.add_digest(digest(body));
    }

    pub(crate) const fn add_digest(&mut self, digest: u64) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(digest);
    }

    /// What two receivers have together.
    pub(crate) const fn and(self, other: Self) -> Self {
        Self { count: self.count + other.count, sum: self.sum.wrapping_add(other.sum) }
    }

    /// What a receiver has who gets each body so many times.
    pub(crate) const fn times(self, times: u64) -> Self {
        Self { count: self.count * times, sum: self.sum.wrapping_mul(times) }
    }

    /// As [`Tally::write`] wrote it.
    pub(crate) fn read(text: &str) -> anyhow::Result<Self> {
        let (count, sum) = text.split_once(' ').context("a tally has two numbers")?;
        Ok(Self { count: count.parse()?, sum: sum.parse()? })
    }

    pub(crate) fn write(self) -> String {
        format!("{} {}", self.count, self.sum)
    }
}

/// The digest of one body; the same in every process.
pub(crate) fn digest(body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(body);
    hasher.finish()
}
