//! From a request's head to its outcome: the order of the steps is decided here and nowhere else.
//!
//! Route, method, declared length, peer, load, the form of the signature, its time, the body, the signature
//! itself, the content, and only then the storage, which deduplicates and stores in one step. Up to there
//! nothing outside the process is touched. When the sender hangs up, the future is dropped wherever it stands:
//! before the append nothing has happened, and during it the event is stored or not, as after any failed
//! request; its resend has the same id. A storage with separate steps (reserve, append, confirm) would run
//! [`store`] in a task of its own.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use chaski_common::clock::Clock;
use chaski_common::event::{CONTENT_TYPE_BYTES_MAX, Event, EventId, Fingerprint, TYPE_UNKNOWN};
use chaski_common::storage::{Appended, Storage, StorageError};
use http::header::CONTENT_TYPE;
use hyper::body::Incoming;
use jiff::Timestamp;
use prometheus::IntGauge;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::{debug, error, info, warn};

use crate::content::{Unusable, Usable};
use crate::metrics::{Dedup, EdgeMetrics};
use crate::request::{Head, Received, check_framing, read_body};
use crate::respond::{Outcome, Quarantine, Refusal, Unavailable};
use crate::server::Limits;
use crate::source::Source;
use crate::verify::{Verified, scheme::Claim};

/// What deciding needs: the storage, the time, and the bounds on what is in flight.
pub(crate) struct Acceptor {
    storage: Storage,
    clock: Clock,
    limits: Limits,
    /// May change while requests are under way.
    pub(crate) body_bytes_max: AtomicUsize,
    in_flight: InFlight,
    /// Whether the storage refused what it was asked the last time.
    failing: AtomicBool,
}

impl Acceptor {
    pub(crate) fn new(
        storage: Storage,
        clock: Clock,
        limits: Limits,
        body_bytes_max: usize,
        metrics: &EdgeMetrics,
    ) -> Self {
        Self {
            storage,
            clock,
            body_bytes_max: AtomicUsize::new(body_bytes_max),
            in_flight: InFlight::new(&limits, metrics),
            limits,
            failing: AtomicBool::new(false),
        }
    }

    /// The whole way of a request whose source is known.
    pub(crate) async fn accept(
        &self,
        source: &Source,
        peer: IpAddr,
        parts: http::request::Parts,
        body: Incoming,
    ) -> Outcome {
        let body_bytes_max = self.body_bytes_max.load(Ordering::Relaxed);
        let declared = match check_framing(&parts, body_bytes_max) {
            Ok(declared) => declared,
            Err(why) => return refused(source, why),
        };
        if !source.allows(peer) {
            return refused(source, Refusal::IpNotAllowed);
        }
        let Some(_place) = self.in_flight.enter(declared.unwrap_or(body_bytes_max)) else {
            return Outcome::Unavailable(Unavailable::Overloaded);
        };
        let now = self.clock.now();
        let head = Head { headers: parts.headers, query: parts.uri.query().map(str::to_owned), peer };
        let claim = match source.scheme.claim_of_head(&head, now) {
            Ok(claim) => claim,
            Err(why) => return refused(source, why),
        };
        let deadline = tokio::time::Instant::now() + self.limits.body_timeout;
        let body = match read_body(body, declared, body_bytes_max, deadline).await {
            Ok(body) => body,
            Err(why) => return refused(source, why),
        };
        self.accept_received(source, claim, &Received { head, body }, now).await
    }

    /// From a request that has been read. `claim` is what its head has shown, `now` when that was judged.
    async fn accept_received(
        &self,
        source: &Source,
        claim: Option<Claim>,
        received: &Received,
        now: Timestamp,
    ) -> Outcome {
        source.metrics.body(received.body.len());
        let verified = match claim {
            Some(claim) => source.scheme.hold(claim, received),
            None => source.scheme.verify(received, now),
        };
        let verified = match verified {
            Ok(verified) => verified,
            Err(why) => return refused(source, why),
        };
        source.metrics.verified(&verified, now);
        let outcome = match source.rules.read(&verified, &source.name, now) {
            Ok(usable) => self.store(source, event(source, &verified, usable, now), now).await,
            Err(why) => self.quarantine(source, unusable(source, &verified, now), why).await,
        };
        let (outcome, error) = match outcome {
            Ok(outcome) => (outcome, None),
            Err(error) => (Outcome::Unavailable(Unavailable::Storage), Some(error)),
        };
        self.watch(error.as_ref());
        outcome
    }

    /// Ends in `Ok` only with what the storage calls durable.
    async fn store(&self, source: &Source, event: Event, now: Timestamp) -> Result<Outcome, StorageError> {
        let (id, kind, fingerprint) = (event.id, event.kind.clone(), event.fingerprint);
        let begun = Instant::now();
        let appended = self.storage.events.append(event, source.on_conflict).await;
        let (dedup, outcome) = match appended {
            Ok(Appended::Stored(_)) => (Dedup::New, Ok(Outcome::Accepted(id))),
            Ok(Appended::Duplicate) => (Dedup::Duplicate, Ok(Outcome::Duplicate(id))),
            Ok(Appended::Conflict) => (Dedup::Conflict, Ok(Outcome::Quarantined(id, Quarantine::Conflict))),
            Err(error) => (Dedup::Error, Err(error)),
        };
        source.metrics.stored(dedup, begun.elapsed());
        match &outcome {
            Ok(Outcome::Accepted(_)) => {
                source.metrics.accepted(&kind, now);
                debug!(%id, source = %source.name, digest = %hex::encode(fingerprint.as_bytes()), "event stored");
            }
            Ok(Outcome::Quarantined(..)) => {
                warn!(%id, source = %source.name, "known id with other content, quarantined");
            }
            Ok(_) => debug!(%id, source = %source.name, "duplicate"),
            Err(_) => {}
        }
        outcome
    }

    async fn quarantine(
        &self,
        source: &Source,
        event: Event,
        why: Unusable,
    ) -> Result<Outcome, StorageError> {
        let id = event.id;
        if self.storage.events.quarantine(event, why.label(), why.detail()).await? {
            source.metrics.quarantined(why);
            warn!(%id, source = %source.name, reason = why.label(), "signed event cannot be used, quarantined");
        }
        Ok(Outcome::Quarantined(id, Quarantine::Unusable(why)))
    }

    /// Says once that the storage fails, and once that it works again.
    fn watch(&self, error: Option<&StorageError>) {
        let failing = error.is_some();
        if self.failing.load(Ordering::Relaxed) == failing
            || self.failing.swap(failing, Ordering::Relaxed) == failing
        {
            return;
        }
        match error {
            Some(error) if error.is_transient() => warn!(%error, "cannot store events now, answering 503"),
            Some(error) => error!(%error, "cannot store events, answering 503"),
            None => info!("storing events again"),
        }
    }
}

/// Requests and bytes that are being worked on, within their bounds.
struct InFlight {
    requests: Semaphore,
    bytes: Semaphore,
    requests_now: IntGauge,
    bytes_now: IntGauge,
}

/// A request's place in flight; given back when dropped.
struct Place<'a> {
    of: &'a InFlight,
    bytes: i64,
    _request: SemaphorePermit<'a>,
    _bytes: SemaphorePermit<'a>,
}

impl InFlight {
    fn new(limits: &Limits, metrics: &EdgeMetrics) -> Self {
        metrics.capacity("requests", limits.inflight_requests_max);
        metrics.capacity("bytes", limits.inflight_bytes_max);
        Self {
            requests: Semaphore::new(limits.inflight_requests_max),
            bytes: Semaphore::new(limits.inflight_bytes_max.min(Semaphore::MAX_PERMITS)),
            requests_now: metrics.inflight_requests.clone(),
            bytes_now: metrics.inflight_bytes.clone(),
        }
    }

    /// A place for a request of at most so many bytes; none when that would be too much.
    fn enter(&self, bytes: usize) -> Option<Place<'_>> {
        let request = self.requests.try_acquire().ok()?;
        let permit = self.bytes.try_acquire_many(u32::try_from(bytes).ok()?).ok()?;
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.requests_now.inc();
        self.bytes_now.add(bytes);
        Some(Place { of: self, bytes, _request: request, _bytes: permit })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.of.requests_now.dec();
        self.of.bytes_now.sub(self.bytes);
    }
}

/// Notes a refusal; at debug, because anybody can cause any number of them.
fn refused(source: &Source, why: Refusal) -> Outcome {
    debug!(source = %source.name, reason = why.label(), "request refused");
    Outcome::Refused(why)
}

fn event(source: &Source, verified: &Verified<'_>, usable: Usable<'_>, now: Timestamp) -> Event {
    Event {
        id: usable.id,
        kind: source.metrics.event_type(&usable.kind),
        subject: usable.subject.as_deref().map(Arc::from),
        time: usable.time,
        fingerprint: usable.fingerprint,
        ..bare(source, verified.received(), now)
    }
}

/// An event of which nothing is known but its bytes.
fn unusable(source: &Source, verified: &Verified<'_>, now: Timestamp) -> Event {
    let received = verified.received();
    let digest = Sha256::digest(&received.body);
    Event {
        id: EventId::derive(&source.name, [b"unusable".as_slice(), digest.as_slice()]),
        fingerprint: Fingerprint::of(&received.body),
        ..bare(source, received, now)
    }
}

fn bare(source: &Source, received: &Received, now: Timestamp) -> Event {
    Event {
        id: EventId::from_bytes([0; 16]),
        source: source.name.clone(),
        kind: TYPE_UNKNOWN.into(),
        subject: None,
        time: None,
        received_at: now,
        content_type: content_type(received),
        traceparent: traceparent(received),
        fingerprint: Fingerprint::from_bytes([0; 16]),
        body: received.body.clone(),
    }
}

fn content_type(received: &Received) -> Option<Arc<str>> {
    let text = received.head.headers.get(CONTENT_TYPE)?.to_str().ok()?;
    (!text.is_empty() && text.len() <= CONTENT_TYPE_BYTES_MAX).then(|| text.into())
}

/// A trace context of version 00 that is one; none is begun here.
fn traceparent(received: &Received) -> Option<Arc<str>> {
    let text = received.head.headers.get("traceparent")?.to_str().ok()?;
    let mut parts = text.split('-');
    let mut hex = |length: usize| {
        parts.next().filter(|part| {
            part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
    };
    let (version, trace, span, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    (version == "00" && !is_zero(trace) && !is_zero(span) && !flags.is_empty() && parts.next().is_none())
        .then(|| text.into())
}
