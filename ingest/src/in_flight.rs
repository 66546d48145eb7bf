//! Requests and bytes that are being worked on, within their bounds.
//!
//! A request has its place until it is answered or its sender has gone. Its body is charged as it arrives, so
//! that a promise of bytes takes no room from those that do come, and it stays charged until nobody holds
//! the bytes any more: an event that waits to be written counts, whether or not anybody waits for its answer.

use std::sync::Arc;

use bytes::Bytes;
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::metrics::EdgeMetrics;
use crate::server::Limits;

/// Charged before the first byte of a longer body is there; then twice as much whenever it is used up.
const CHARGE_FIRST_BYTES: usize = 16 * 1024;

/// The bounds and what is taken of them.
pub(crate) struct InFlight {
    requests: Semaphore,
    bytes: Arc<Semaphore>,
    requests_now: IntGauge,
    bytes_now: IntGauge,
}

/// A request's place; given back when dropped.
pub(crate) struct Place<'a> {
    now: &'a IntGauge,
    _permit: SemaphorePermit<'a>,
}

/// The bytes charged for a body; given back when dropped.
pub(crate) struct Charge {
    of: Arc<Semaphore>,
    now: IntGauge,
    permit: OwnedSemaphorePermit,
    bytes_max: usize,
}

impl InFlight {
    pub(crate) fn new(limits: &Limits, metrics: &EdgeMetrics) -> Self {
        metrics.capacity("requests", limits.inflight_requests_max);
        metrics.capacity("bytes", limits.inflight_bytes_max);
        Self {
            requests: Semaphore::new(limits.inflight_requests_max),
            bytes: Arc::new(Semaphore::new(limits.inflight_bytes_max.min(Semaphore::MAX_PERMITS))),
            requests_now: metrics.inflight_requests.clone(),
            bytes_now: metrics.inflight_bytes.clone(),
        }
    }

    /// A place for a request with a body of at most so many bytes; none when that would be too much.
    pub(crate) fn enter(&self, bytes_max: usize) -> Option<(Place<'_>, Charge)> {
        let request = self.requests.try_acquire().ok()?;
        let permit = self.bytes.clone().try_acquire_many_owned(0).ok()?;
        let mut charge = Charge { of: self.bytes.clone(), now: self.bytes_now.clone(), permit, bytes_max };
        self.requests_now.inc();
        let place = Place { now: &self.requests_now, _permit: request };
        charge.covers(bytes_max.min(CHARGE_FIRST_BYTES)).then_some((place, charge))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.now.dec();
    }
}

impl Charge {
    /// Bytes charged now.
    pub(crate) fn bytes(&self) -> usize {
        self.permit.num_permits()
    }

    /// Whether so many bytes are charged, or can be.
    pub(crate) fn covers(&mut self, bytes: usize) -> bool {
        let charged = self.bytes();
        if bytes <= charged {
            return true;
        }
        let more = (charged * 2).clamp(bytes, self.bytes_max.max(bytes)) - charged;
        let Some(permit) =
            u32::try_from(more).ok().and_then(|more| self.of.clone().try_acquire_many_owned(more).ok())
        else {
            return false;
        };
        self.permit.merge(permit);
        self.now.add(more as i64);
        true
    }

    /// The body, charged exactly for as long as anybody has it.
    pub(crate) fn hold(mut self, body: Bytes) -> Bytes {
        if let Some(rest) = self.permit.split(self.bytes().saturating_sub(body.len())) {
            self.now.sub(rest.num_permits() as i64);
        }
        Bytes::from_owner(Held { body, _charge: self })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.now.sub(self.bytes() as i64);
    }
}

/// A body and its charge.
struct Held {
    body: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use chaski_common::storage::Labels;
    use prometheus::Registry;

    use super::*;

    #[test]
    fn a_body_is_charged_as_it_arrives_and_for_as_long_as_anybody_has_it() {
        let metrics = EdgeMetrics::new(&Registry::new(), Labels { path: Labels::SPOOL, dedup: "embedded" });
        let limits = Limits { inflight_bytes_max: 100_000, inflight_requests_max: 2, ..Limits::default() };
        let in_flight = InFlight::new(&limits, &metrics);
        let now = || (metrics.inflight_requests.get(), metrics.inflight_bytes.get());
        let (place, mut charge) = in_flight.enter(262_144).unwrap();
        assert_eq!(now(), (1, 16_384), "however much may come");
        assert!(charge.covers(16_384) && charge.covers(20_000));
        assert_eq!(now(), (1, 32_768));
        assert!(!charge.covers(120_000), "more than the bound");
        let body = charge.hold(Bytes::from(vec![0; 20_000]));
        assert_eq!(now(), (1, 20_000));
        let (other, short) = in_flight.enter(10).unwrap();
        assert_eq!(now(), (2, 20_010));
        assert!(in_flight.enter(0).is_none(), "no place");
        drop((place, other, short));
        let kept = body.clone();
        drop(body);
        assert_eq!(now(), (0, 20_000));
        drop(kept);
        assert_eq!(now(), (0, 0));
        assert_eq!(in_flight.bytes.available_permits(), 100_000);
    }
}
