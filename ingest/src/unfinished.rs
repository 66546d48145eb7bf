//! What requests that are not all there may take, together and from one stranger.
//!
//! A head costs its sender nothing, and keeps a place for as long as its body may take. So what is not all there may
//! have half of the places and bytes, and of those a stranger an eighth: whoever sends a request whole finds room
//! beside any number of peers who do not, and who sends it in pieces does beside a few of them.
//!
//! The sums of strangers stand in a table of a fixed size, without a lock. Those who meet in one of its places
//! share what one may have; where they meet nobody outside can foresee.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::peer::site;

/// Places of the table: 128 KiB.
const SITES: usize = 1 << 14;
/// Of everything that requests may take, what those may that are not all there.
const ALL: usize = 2;
/// The same for those of one stranger.
const ONE: usize = 16;

/// The bounds, and what is taken of them.
pub(crate) struct Unfinished {
    all: Share,
    sites: Box<[Share]>,
    hasher: RandomState,
    /// What one place is worth: a request counts for that much at least.
    place_bytes: usize,
    all_max: usize,
    site_max: usize,
}

/// What one request takes.
pub(crate) struct Part {
    /// Where its sender's sum stands; none if nothing can be laid at the sender's door.
    site: Option<usize>,
    bytes: usize,
}

/// A sum of bytes.
#[derive(Default)]
struct Share(AtomicUsize);

impl Share {
    /// Adds so many to what somebody has of it, unless that would be too much. Who is alone may have anything.
    fn add(&self, own: usize, more: usize, max: usize) -> bool {
        let before = self.0.fetch_add(more, Ordering::Relaxed);
        let is_within = before + more <= max || before == own;
        if !is_within {
            self.sub(more);
        }
        is_within
    }

    fn sub(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Unfinished {
    /// Of so many requests with so many bytes of bodies.
    pub(crate) fn new(requests_max: usize, bytes_max: usize) -> Self {
        Self {
            all: Share::default(),
            sites: (0..SITES).map(|_| Share::default()).collect(),
            hasher: RandomState::new(),
            place_bytes: bytes_max / requests_max.max(1),
            all_max: bytes_max / ALL,
            site_max: bytes_max / ONE,
        }
    }

    /// Room for a request of which so many bytes are charged; none where that would be too much.
    pub(crate) fn begin(&self, stranger: Option<IpAddr>, bytes: usize) -> Option<Part> {
        let site = stranger.map(|address| self.hasher.hash_one(site(address)) as usize % SITES);
        let mut part = Part { site, bytes: 0 };
        self.grow(&mut part, bytes).then_some(part)
    }

    /// As [`Unfinished::begin`], for more bytes of the same request.
    pub(crate) fn grow(&self, part: &mut Part, bytes: usize) -> bool {
        let more = bytes.max(self.place_bytes).saturating_sub(part.bytes);
        let site = part.site.map(|site| &self.sites[site]);
        if site.is_some_and(|site| !site.add(part.bytes, more, self.site_max)) {
            return false;
        }
        let is_taken = self.all.add(part.bytes, more, self.all_max);
        if is_taken {
            part.bytes += more;
        } else if let Some(site) = site {
            site.sub(more);
        }
        is_taken
    }

    /// The request is all there, or will never be.
    pub(crate) fn end(&self, part: &Part) {
        self.all.sub(part.bytes);
        part.site.inspect(|site| self.sites[*site].sub(part.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRANGER: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7)));
    /// Sixteen bytes for each place.
    const REQUESTS: usize = 64;
    const BYTES: usize = 1024;

    #[test]
    fn half_is_for_what_is_not_all_there_and_a_sixteenth_for_a_stranger() {
        let unfinished = Unfinished::new(REQUESTS, BYTES);
        let of_one: Vec<_> = (0..4).map(|_| unfinished.begin(STRANGER, 1).unwrap()).collect();
        assert!(unfinished.begin(STRANGER, 1).is_none(), "four places are a sixteenth");
        let mut rest: Vec<_> = (0..28).map(|_| unfinished.begin(None, 0).unwrap()).collect();
        assert!(unfinished.begin(None, 1).is_none(), "thirty-two are half");
        assert!(!unfinished.grow(&mut rest[0], 17), "nor more bytes of one that has begun");
        assert!(unfinished.grow(&mut rest[0], 16), "which it has");
        of_one.iter().for_each(|part| unfinished.end(part));
        assert!(unfinished.grow(&mut rest[0], 32));
        assert!(unfinished.begin(STRANGER, 1).is_some());
    }

    #[test]
    fn one_alone_may_be_as_large_as_it_likes() {
        let unfinished = Unfinished::new(REQUESTS, BYTES);
        let mut large = unfinished.begin(STRANGER, 1).unwrap();
        assert!(unfinished.grow(&mut large, BYTES));
        assert!(unfinished.begin(STRANGER, 1).is_none() && unfinished.begin(None, 1).is_none());
        unfinished.end(&large);
        assert_eq!(unfinished.all.0.load(Ordering::Relaxed), 0);
        let small = unfinished.begin(STRANGER, 1).unwrap();
        let mut large = unfinished.begin(STRANGER, 1).unwrap();
        assert!(!unfinished.grow(&mut large, BYTES), "not beside another of the same site");
        [small, large].iter().for_each(|part| unfinished.end(part));
        assert!(unfinished.sites.iter().all(|site| site.0.load(Ordering::Relaxed) == 0));
    }
}
