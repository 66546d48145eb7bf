//! Requests and bytes that are being worked on, within their bounds.
//!
//! A request has its place until it is answered, or its sender has said that it has gone: HTTP/2 resets a stream, and
//! what looks like an end over HTTP/1.1 may be the end of the request only. Its body is charged as it arrives, so
//! that a promise of bytes takes no room from those that do come, and it stays charged until nobody holds
//! the bytes any more: an event that waits to be written counts, whether or not anybody waits for its answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::metrics::EdgeMetrics;
use crate::server::Limits;
use crate::unfinished::{Part, Unfinished};

/// Charged before the first byte of a longer body is there; then twice as much whenever it is used up.
const CHARGE_FIRST_BYTES: usize = 16 * 1024;

/// The bounds and what is taken of them.
pub(crate) struct InFlight(Arc<Bounds>);

struct Bounds {
    requests: Bound,
    bytes: Bound,
    unfinished: Unfinished,
    /// Who waits for a place, in the order they came; and how many, so that nobody is told where nobody waits.
    given_back: Notify,
    waiting: AtomicUsize,
}

/// So many of something and no more. The gauge is the count: what is shown is what is held to.
struct Bound {
    taken: IntGauge,
    max: i64,
}

/// A request's place; given back when dropped.
pub(crate) struct Place<'a>(&'a Bounds);

/// One that waits, and counts for as long as it does.
struct Waiting<'a>(&'a AtomicUsize);

/// The bytes charged for a body; given back when dropped.
pub(crate) struct Charge {
    of: Arc<Bounds>,
    bytes: usize,
    bytes_max: usize,
    /// While it is not all there; none where it must be.
    unfinished: Option<Part>,
}

impl Bound {
    fn new(max: usize, taken: &IntGauge) -> Self {
        Self { taken: taken.clone(), max: i64::try_from(max).unwrap_or(i64::MAX) }
    }

    /// Takes so many, unless that would be too much; two that meet at the bound may both be turned away.
    fn take(&self, count: usize) -> bool {
        self.taken.add(count as i64);
        let is_within = self.taken.get() <= self.max;
        if !is_within {
            self.give_back(count);
        }
        is_within
    }

    fn give_back(&self, count: usize) {
        self.taken.sub(count as i64);
    }

    fn is_half_taken(&self) -> bool {
        self.taken.get() > self.max / 2
    }
}

impl InFlight {
    pub(crate) fn new(limits: &Limits, metrics: &EdgeMetrics) -> Self {
        metrics.capacity("requests", limits.inflight_requests_max);
        metrics.capacity("bytes", limits.inflight_bytes_max);
        Self(Arc::new(Bounds {
            requests: Bound::new(limits.inflight_requests_max, &metrics.inflight_requests),
            bytes: Bound::new(limits.inflight_bytes_max, &metrics.inflight_bytes),
            unfinished: Unfinished::new(limits.inflight_requests_max, limits.inflight_bytes_max),
            given_back: Notify::new(),
            waiting: AtomicUsize::new(0),
        }))
    }

    /// Whether more is taken than free, or somebody waits.
    pub(crate) fn is_tight(&self) -> bool {
        let Bounds { requests, bytes, waiting, .. } = &*self.0;
        requests.is_half_taken() || bytes.is_half_taken() || waiting.load(Ordering::Relaxed) > 0
    }

    /// Waits until a place is given back and nobody has waited longer, or `until`. That is when to look and no promise:
    /// somebody new may be there first. Cancel safe; of who is told and gone, the next is told.
    pub(crate) async fn place_given_back(&self, until: Instant) {
        let _waiting = Waiting::begin(&self.0.waiting);
        _ = timeout_at(until, self.0.given_back.notified()).await;
    }

    /// A place for a request with a body of at most so many bytes; none when that would be too much. `stranger` is its
    /// sender, if what it does can be laid at its door and it has never shown who it is.
    pub(crate) fn enter(&self, bytes_max: usize, stranger: Option<IpAddr>) -> Option<(Place<'_>, Charge)> {
        let mut charge = Charge { of: self.0.clone(), bytes: 0, bytes_max, unfinished: None };
        // The place last: one that was never anybody's wakes nobody.
        let has_place = charge.covers(bytes_max.min(CHARGE_FIRST_BYTES)) && self.0.requests.take(1);
        has_place.then(|| {
            charge.unfinished = self.0.unfinished.begin(stranger, charge.bytes);
            (Place(&self.0), charge)
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Self(bounds) = self;
        bounds.requests.give_back(1);
        // One that begins to wait in this moment may be passed over; each wait has an end of its own.
        if bounds.waiting.load(Ordering::Relaxed) > 0 {
            bounds.given_back.notify_one();
        }
    }
}

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Charge {
    /// Bytes charged now.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the rest of the body may be waited for.
    pub(crate) const fn may_wait(&self) -> bool {
        self.unfinished.is_some()
    }

    /// Whether so many bytes are charged, or can be.
    pub(crate) fn covers(&mut self, bytes: usize) -> bool {
        if bytes <= self.bytes {
            return true;
        }
        let all = (self.bytes * 2).clamp(bytes, self.bytes_max.max(bytes));
        if !self.of.bytes.take(all - self.bytes) {
            return false;
        }
        // Given back with the rest if there is no room for it beside others that are not all there.
        self.bytes = all;
        self.unfinished.as_mut().is_none_or(|part| self.of.unfinished.grow(part, all))
    }

    fn finish(&mut self) {
        if let Some(part) = self.unfinished.take() {
            self.of.unfinished.end(&part);
        }
    }

    /// The body, charged exactly for as long as anybody has it.
    pub(crate) fn hold(mut self, body: Vec<u8>) -> Bytes {
        self.finish();
        let rest = self.bytes.saturating_sub(body.len());
        if rest > 0 {
            self.of.bytes.give_back(rest);
            self.bytes -= rest;
        }
        Bytes::from_owner(Held { body: body.into(), _charge: self })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.finish();
        self.of.bytes.give_back(self.bytes);
    }
}

/// A body and its charge.
struct Held {
    body: Box<[u8]>,
    _charge: Charge,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::{Context, Waker};
    use std::time::Duration;

    use chaski_common::storage::Labels;
    use prometheus::Registry;

    use super::*;

    #[test]
    fn a_body_is_charged_as_it_arrives_and_for_as_long_as_anybody_has_it() {
        let metrics =
            EdgeMetrics::new(&Registry::new(), Labels { path: Labels::SPOOL, dedup: "embedded" }, 1);
        let limits = Limits { inflight_bytes_max: 100_000, inflight_requests_max: 2, ..Limits::default() };
        let in_flight = InFlight::new(&limits, &metrics);
        let now = || (metrics.inflight_requests.get(), metrics.inflight_bytes.get());
        let (place, mut charge) = in_flight.enter(262_144, None).unwrap();
        assert_eq!(now(), (1, 16_384), "however much may come");
        assert!(charge.covers(16_384) && charge.covers(20_000));
        assert_eq!(now(), (1, 32_768));
        assert!(!charge.covers(120_000), "more than the bound");
        let body = charge.hold(vec![0; 20_000]);
        assert_eq!(now(), (1, 20_000));
        let (other, short) = in_flight.enter(10, None).unwrap();
        assert_eq!(now(), (2, 20_010));
        assert!(in_flight.enter(0, None).is_none(), "no place");
        assert!(in_flight.is_tight());
        drop((place, other, short));
        let kept = body.clone();
        drop(body);
        assert_eq!(now(), (0, 20_000));
        assert!(!in_flight.is_tight(), "a fifth of the bytes, and no request");
        drop(kept);
        assert_eq!(now(), (0, 0));
        assert!(in_flight.enter(100_000, None).is_some_and(|(_, mut charge)| charge.covers(100_000)));
        assert_eq!(now(), (0, 0));
    }

    #[tokio::test]
    async fn who_waits_is_told_of_one_place_each_in_the_order_they_came() {
        let metrics =
            EdgeMetrics::new(&Registry::new(), Labels { path: Labels::SPOOL, dedup: "embedded" }, 1);
        let limits = Limits { inflight_bytes_max: 100, inflight_requests_max: 2, ..Limits::default() };
        let in_flight = InFlight::new(&limits, &metrics);
        let mut taken = vec![in_flight.enter(0, None).unwrap(), in_flight.enter(0, None).unwrap()];
        let until = Instant::now() + Duration::from_hours(1);
        let waits = |wait: Pin<&mut dyn Future<Output = ()>>| {
            wait.poll(&mut Context::from_waker(Waker::noop())).is_pending()
        };
        let mut first = Box::pin(in_flight.place_given_back(until));
        let mut second = pin!(in_flight.place_given_back(until));
        let mut third = pin!(in_flight.place_given_back(until));
        assert!(waits(first.as_mut()) && waits(second.as_mut()) && waits(third.as_mut()));
        taken.pop();
        drop(first);
        assert!(waits(third.as_mut()), "the one who is gone was told, and then the next");
        assert!(!waits(second.as_mut()));
        assert!(in_flight.is_tight(), "one place is taken and one is free, but somebody waits");
        in_flight.place_given_back(Instant::now()).await;
        assert!(in_flight.enter(101, None).is_none(), "too many bytes");
        assert!(waits(third.as_mut()), "who was refused gave nothing back");
        drop(taken);
        third.await;
        assert!(!in_flight.is_tight());
    }
}
