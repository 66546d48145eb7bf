//! How many wrong signatures an address may send, and what becomes of its requests when it has sent more. What a
//! stranger announces and does not send counts as well.
//!
//! An address that is over its budget is refused before its body is read, unless a genuine sender may be behind it,
//! too: one that has shown a right signature of late. There each request is verified as ever, so that a right one is
//! always taken; only wrong ones are told 429 instead of 401. About one request a second is looked at all the
//! same (the budget fills again), so nobody is shut out for good.
//!
//! The table has a fixed size and no lock. Whoever is not in it is within its budget: a flood from many addresses
//! makes it forget the least of the offenders first, and genuine senders last. Counting is approximate where two
//! threads meet at one slot, by a failure more or less.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::peer::site;

/// Addresses that are remembered at once: half a MiB of them.
const SLOTS: usize = SETS * WAYS;
const SETS: usize = 1 << 13;
/// Places an address may have; one line of the processor's cache.
const WAYS: usize = 4;
/// A budget is for this long.
const WINDOW_MS: u64 = 60_000;
/// How long a right signature speaks for its address.
const GENUINE_MINUTES: u64 = 24 * 60;
/// A right signature is noted again when it would speak for less than this.
const NOTED_AGAIN_MINUTES: u64 = GENUINE_MINUTES - 60;

/// Where an address stands; within its budget and of nobody in particular, if nothing is known of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) is_over: bool,
    /// Whether a genuine sender was seen there.
    pub(crate) is_genuine: bool,
}

/// The budgets of all addresses.
pub(crate) struct Budget {
    slots: Box<[Slot]>,
    hasher: RandomState,
    /// What one failure takes of the budget.
    failure_ms: u64,
    epoch: Instant,
}

/// An address by its hash, and what is known of it; no address has the hash 0.
#[derive(Default)]
struct Slot {
    key: AtomicU64,
    known: AtomicU64,
}

/// What is known of an address, as it stands in a slot: 40 bits and 24.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// When the budget will be full again, in milliseconds since the epoch.
    full_ms: u64,
    /// Until when it counts as a genuine sender's, in minutes since the epoch.
    genuine_until: u64,
}

impl Known {
    const GENUINE_BITS: u32 = 24;

    const fn read(word: u64) -> Self {
        Self { full_ms: word >> Self::GENUINE_BITS, genuine_until: word & ((1 << Self::GENUINE_BITS) - 1) }
    }

    const fn write(self) -> u64 {
        self.full_ms << Self::GENUINE_BITS | self.genuine_until
    }

    /// With room for one more failure it is within.
    const fn standing(self, now_ms: u64, failure_ms: u64) -> Standing {
        let is_over = self.full_ms + failure_ms > now_ms + WINDOW_MS;
        Standing { is_over, is_genuine: self.is_genuine(now_ms) }
    }

    const fn is_genuine(self, now_ms: u64) -> bool {
        self.genuine_until > now_ms / 60_000
    }

    /// What is forgotten first is the smallest.
    const fn worth(self, now_ms: u64) -> (bool, u64) {
        if self.is_genuine(now_ms) { (true, self.genuine_until) } else { (false, self.full_ms) }
    }
}

impl Budget {
    /// So many failures a minute for each address; at least one.
    pub(crate) fn new(failures_per_minute: usize) -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            hasher: RandomState::new(),
            failure_ms: (WINDOW_MS / (failures_per_minute as u64).max(1)).max(1),
            epoch: Instant::now(),
        }
    }

    pub(crate) fn standing(&self, address: IpAddr, now: Instant) -> Standing {
        let standing = |slot: &Slot| Known::read(slot.load()).standing(self.ms(now), self.failure_ms);
        self.look(address).map_or_else(Standing::default, standing)
    }

    /// A request of a stranger, if it is one.
    pub(crate) const fn attempt(&self, stranger: Option<IpAddr>, begun: Instant) -> Attempt<'_> {
        Attempt { budget: self, stranger, begun, is_awaited: false }
    }

    /// Notes a wrong signature, or a body that did not come.
    pub(crate) fn failed(&self, address: IpAddr, now: Instant) {
        let now_ms = self.ms(now);
        self.change(address, now_ms, |known| {
            // An address far over its budget is as far as it can be: within a minute it may try again.
            let full_ms = known.full_ms.max(now_ms) + self.failure_ms;
            Some(Known { full_ms: full_ms.min(now_ms + WINDOW_MS), ..known })
        });
    }

    /// Notes a right one.
    pub(crate) fn succeeded(&self, address: IpAddr, now: Instant) {
        let now_ms = self.ms(now);
        self.change(address, now_ms, |known| {
            let minute = now_ms / 60_000;
            (known.genuine_until < minute + NOTED_AGAIN_MINUTES)
                .then_some(Known { genuine_until: minute + GENUINE_MINUTES, ..known })
        });
    }

    fn ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }

    /// Where this address may be.
    fn set(&self, address: IpAddr) -> (u64, &[Slot]) {
        let hash = self.hasher.hash_one(site(address)).max(1);
        let first = (hash as usize % SETS) * WAYS;
        (hash, &self.slots[first..first + WAYS])
    }

    fn look(&self, address: IpAddr) -> Option<&Slot> {
        let (hash, set) = self.set(address);
        set.iter().find(|slot| slot.key.load(Ordering::Relaxed) == hash)
    }

    /// Writes what is known anew, in this address's slot or in the one that is worth the least.
    fn change(&self, address: IpAddr, now_ms: u64, change: impl Fn(Known) -> Option<Known>) {
        let (hash, set) = self.set(address);
        if let Some(slot) = set.iter().find(|slot| slot.key.load(Ordering::Relaxed) == hash) {
            let changed = |word| change(Known::read(word)).map(Known::write);
            // Nothing to change is no failure.
            let _ = slot.known.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed);
            return;
        }
        let Some(known) = change(Known::default()) else { return };
        let worth = |slot: &&Slot| Known::read(slot.load()).worth(now_ms);
        let Some(slot) = set.iter().min_by_key(worth) else { return };
        if worth(&slot) <= known.worth(now_ms) {
            slot.key.store(hash, Ordering::Relaxed);
            slot.known.store(known.write(), Ordering::Relaxed);
        }
    }
}

/// A request, which has failed if it ends while its body is awaited; also where nobody waits for it any more.
pub(crate) struct Attempt<'a> {
    budget: &'a Budget,
    /// Its sender, if what it does can be laid at its door and it has not shown who it is.
    pub(crate) stranger: Option<IpAddr>,
    begun: Instant,
    pub(crate) is_awaited: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.is_awaited
            && let Some(address) = self.stranger
        {
            self.budget.failed(address, self.begun);
        }
    }
}

impl Slot {
    fn load(&self) -> u64 {
        self.known.load(Ordering::Relaxed)
    }
}

/// How long a sender that is over its budget is asked to wait: then it has all of it again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(WINDOW_MS);

#[cfg(test)]
mod tests {
    use super::*;

    const PER_MINUTE: usize = 60;
    const WITHIN: Standing = Standing { is_over: false, is_genuine: false };
    const OVER: Standing = Standing { is_over: true, is_genuine: false };
    const GENUINE: Standing = Standing { is_over: true, is_genuine: true };

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0b00_0000 + n).into()
    }

    /// A budget and a clock that is moved by hand.
    fn budget() -> (Budget, impl Fn(u64) -> Instant) {
        let budget = Budget::new(PER_MINUTE);
        let epoch = budget.epoch;
        (budget, move |ms| epoch + Duration::from_millis(ms))
    }

    #[test]
    fn a_minutes_worth_of_failures_is_free_and_then_one_a_second() {
        let (budget, at) = budget();
        for _ in 0..PER_MINUTE {
            assert_eq!(budget.standing(address(1), at(0)), WITHIN);
            budget.failed(address(1), at(0));
        }
        assert_eq!(budget.standing(address(1), at(999)), OVER);
        assert_eq!(budget.standing(address(1), at(1000)), WITHIN);
        assert_eq!(budget.standing(address(2), at(0)), WITHIN, "nobody else's affair");
        for _ in 0..100_000 {
            budget.failed(address(1), at(1000));
        }
        assert_eq!(budget.standing(address(1), at(1999)), OVER);
        assert_eq!(budget.standing(address(1), at(2000)), WITHIN, "however many they were");
    }

    #[test]
    fn a_right_signature_speaks_for_its_address_for_a_day() {
        let (budget, at) = budget();
        let fail = |ms| (0..=PER_MINUTE).for_each(|_| budget.failed(address(1), at(ms)));
        budget.succeeded(address(1), at(0));
        fail(0);
        assert_eq!(budget.standing(address(1), at(0)), GENUINE);
        let almost = (GENUINE_MINUTES - 1) * 60_000;
        fail(almost);
        assert_eq!(budget.standing(address(1), at(almost)), GENUINE);
        fail(almost + 60_000);
        assert_eq!(budget.standing(address(1), at(almost + 60_000)), OVER);
        budget.succeeded(address(1), at(almost + 60_000));
        assert_eq!(budget.standing(address(1), at(almost + 60_000)), GENUINE);
    }

    #[test]
    fn all_of_an_ipv6_network_is_one_address() {
        let (budget, at) = budget();
        for n in 0..=PER_MINUTE as u128 {
            budget.failed(std::net::Ipv6Addr::from_bits((0x2001_0db8 << 96) + n).into(), at(0));
        }
        assert_eq!(budget.standing("2001:db8::ffff:0:1".parse().unwrap(), at(0)), OVER);
        assert_eq!(budget.standing("2001:db8:0:1::1".parse().unwrap(), at(0)), WITHIN);
    }

    #[test]
    fn a_million_addresses_take_no_more_room_and_forget_no_genuine_sender() {
        let (budget, at) = budget();
        let genuine: Vec<_> = (0..1000).map(|n| address(10_000_000 + n)).collect();
        genuine.iter().for_each(|address| budget.succeeded(*address, at(0)));
        for n in 0..1_000_000 {
            budget.failed(address(n), at(u64::from(n) / 100));
        }
        // Those that shared a set with more genuine senders than it has places are not in the table.
        let now = 10_000;
        let known = genuine.iter().filter(|address| {
            (0..=PER_MINUTE).for_each(|_| budget.failed(**address, at(now)));
            budget.standing(**address, at(now)) == GENUINE
        });
        assert!(known.count() >= 999);
        // An offender is not forgotten for those who fail once.
        (0..=PER_MINUTE).for_each(|_| budget.failed(address(5), at(now)));
        (0..100_000).for_each(|n| budget.failed(address(2_000_000 + n), at(now)));
        assert_eq!(budget.standing(address(5), at(now)), OVER);
        assert_eq!(budget.slots.len(), SLOTS);
    }
}
