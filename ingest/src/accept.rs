//! From a request's head to its outcome: the order of the steps is decided here and nowhere else.
//!
//! Route, method, declared length, peer, its budget of failures, load, the form of the signature, its time, the body, the signature
//! itself, the content, and only then the storage, which deduplicates and stores in one step. Up to there
//! nothing outside the process is touched. When the sender hangs up, the future is dropped wherever it stands:
//! before the append nothing has happened, and during it the event is stored or not, as after any failed
//! request; its resend has the same id, and its bytes stay charged until the storage lets go of them. A
//! storage with several steps behind its append finishes them by itself.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chaski_common::clock::Clock;
use chaski_common::event::{CONTENT_TYPE_BYTES_MAX, Event, EventId, Fingerprint, TYPE_UNKNOWN};
use chaski_common::post::by_post;
use chaski_common::storage::{Appended, Storage, StorageError};
use chaski_common::trace::{TRACEPARENT_BYTES, TraceContext, Tracer};
use http::Version;
use http::header::{CONTENT_TYPE, EXPECT, HeaderMap, HeaderName};
use http::request::Parts;
use hyper::body::{Body as _, Incoming};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::task::yield_now;
use tokio::time::timeout;
use tracing::{debug, error, info, warn};

use crate::budget::{Attempt, Budget, Standing};
use crate::content::{Unusable, Usable};
use crate::in_flight::{Charge, InFlight};
use crate::metrics::{Dedup, EdgeMetrics};
use crate::peer::Sender;
use crate::request::{Head, Received, check_framing, read_body};
use crate::respond::{Outcome, Quarantine, Refusal, Unavailable};
use crate::server::Limits;
use crate::server::wire::Phase;
use crate::source::Source;
use crate::span::Trail;
use crate::verify::Verified;
use crate::verify::scheme::Claim;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What deciding needs: the storage, the time, and the bounds on what is in flight.
pub(crate) struct Acceptor {
    storage: Storage,
    clock: Clock,
    /// May change while requests are under way.
    pub(crate) body_bytes_max: AtomicUsize,
    in_flight: InFlight,
    budget: Budget,
    body_timeout: Duration,
    tracer: Tracer,
    /// Whether the storage refused what it was asked the last time.
    failing: AtomicBool,
}

impl Acceptor {
    pub(crate) fn new(
        storage: Storage,
        clock: Clock,
        limits: &Limits,
        body_bytes_max: usize,
        metrics: &EdgeMetrics,
        tracer: Tracer,
    ) -> Self {
        Self {
            storage,
            clock,
            body_bytes_max: AtomicUsize::new(body_bytes_max),
            in_flight: InFlight::new(limits, metrics),
            budget: Budget::new(limits.failures_per_minute),
            body_timeout: limits.body_timeout,
            tracer,
            failing: AtomicBool::new(false),
        }
    }

    /// Whether a request that comes now might find no place.
    pub(crate) fn is_tight(&self) -> bool {
        self.in_flight.is_tight()
    }

    /// As [`InFlight::place_given_back`].
    pub(crate) async fn place_given_back(&self, until: tokio::time::Instant) {
        self.in_flight.place_given_back(until).await;
    }

    /// The whole way of a request whose source is known, begun at `begun`. What it takes out of `parts` does not come
    /// back; the room for headers does, once the body is read.
    pub(crate) async fn accept(
        &self,
        source: &Source,
        peer: &Sender,
        begun: Instant,
        parts: &mut Parts,
        body: Incoming,
        phase: &Phase,
    ) -> Outcome {
        let address = peer.address;
        let body_bytes_max = self.body_bytes_max.load(Ordering::Relaxed);
        let declared = match check_framing(parts, body_bytes_max) {
            Ok(declared) => declared,
            Err(why) => return refused(source, why),
        };
        if !source.allows(address) {
            debug!(source = %source.name, peer = %address, "the peer is not in allow_ips");
            return refused(source, Refusal::IpNotAllowed);
        }
        let standing = self.standing(peer, begun);
        let is_known = standing.is_genuine || peer.is_shared || !source.allow_ips.is_empty();
        if standing.is_over && !is_known {
            debug!(source = %source.name, peer = %address, "the peer is over its budget of wrong signatures");
            return Outcome::Refused(Refusal::RateLimited);
        }
        let body_bytes_max = declared.unwrap_or(body_bytes_max);
        // Pinned, it is made where it stays.
        let attempt = self.budget.attempt((!is_known).then_some(address), begun);
        let body = (body, body_bytes_max);
        let outcome = pin!(self.admitted(source, address, attempt, parts, body, phase)).await;
        match outcome {
            Outcome::Refused(why) if why.is_of_signature() && !peer.is_shared => {
                self.budget.failed(address, begun);
                if standing.is_over { Outcome::Refused(Refusal::RateLimited) } else { outcome }
            }
            outcome => {
                // Who repeats what it has recorded has shown nothing.
                if matches!(outcome, Outcome::Accepted(_)) && !peer.is_shared {
                    self.budget.succeeded(address, begun);
                }
                outcome
            }
        }
    }

    /// How many wrong signatures have come from there; an address of many senders has no budget.
    fn standing(&self, peer: &Sender, now: Instant) -> Standing {
        if peer.is_shared { Standing::default() } else { self.budget.standing(peer.address, now) }
    }

    /// From a place in flight on.
    async fn admitted(
        &self,
        source: &Source,
        peer: IpAddr,
        mut attempt: Attempt<'_>,
        parts: &mut Parts,
        (body, body_bytes_max): (Incoming, usize),
        phase: &Phase,
    ) -> Outcome {
        let Some((_place, charge)) = self.in_flight.enter(body_bytes_max, attempt.stranger) else {
            return Outcome::Unavailable(Unavailable::Overloaded);
        };
        if !charge.may_wait() && parts.headers.contains_key(EXPECT) {
            // It would send its body only when asked.
            return Outcome::Unavailable(Unavailable::Overloaded);
        }
        let mut trail = Trail::begin(&self.tracer);
        let now = self.clock.now();
        let head = Head::take(parts, peer);
        let claim = match source.scheme.claim_of_head(&head, now) {
            Ok(claim) => claim,
            Err(why) => return refused(source, why),
        };
        attempt.is_awaited = true;
        let read = self.read(parts.version, body, body_bytes_max, charge).await;
        attempt.is_awaited = matches!(read, Err(Outcome::Refused(_)));
        phase.end_body(read.is_ok());
        let body = match read {
            Ok(body) => body,
            Err(Outcome::Refused(why)) => return refused(source, why),
            Err(ours) => return ours,
        };
        let received = Received { head, body };
        let (event, unusable) = match event_of(source, claim, received, now, &mut trail, &mut parts.headers) {
            Ok(read) => read,
            Err(why) => return refused(source, why),
        };
        let kept = match unusable {
            None => self.store(source, event, now).await,
            Some(why) => self.quarantine(source, event, why).await,
        };
        let (outcome, error) = match kept {
            Ok(outcome) => (outcome, None),
            Err(error) => (Outcome::Unavailable(Unavailable::Storage), Some(error)),
        };
        self.watch(error.as_ref());
        trail.end(outcome);
        outcome
    }

    /// The body, if it may be waited for; else what is there of it must be all.
    async fn read(
        &self,
        version: Version,
        body: Incoming,
        bytes_max: usize,
        charge: Charge,
    ) -> Result<Bytes, Outcome> {
        let may_wait = charge.may_wait();
        let read = async {
            match version {
                Version::HTTP_2 => self.read_stream(body, bytes_max, charge).await,
                _ => read_body(body, bytes_max, charge).await,
            }
        };
        tokio::select! {
            biased;
            read = read => read,
            // Once round, and the connection has handed over what it has.
            () = yield_now(), if !may_wait => Err(Outcome::Unavailable(Unavailable::Overloaded)),
        }
    }

    /// The body of a request that shares its connection, which therefore has no wait that is this body's.
    async fn read_stream(
        &self,
        mut body: Incoming,
        bytes_max: usize,
        charge: Charge,
    ) -> Result<Bytes, Outcome> {
        let read = timeout(self.body_timeout, read_body(&mut body, bytes_max, charge)).await;
        let read = read.unwrap_or(Err(Outcome::Refused(Refusal::BodyTimeout)))?;
        // hyper takes a request that is cancelled for one that has ended.
        if body.is_end_stream() { Ok(read) } else { Err(Outcome::Refused(Refusal::BodyIncomplete)) }
    }

    /// Ends in `Ok` only with what the storage calls durable. The event is the storage's at once: a future that also had
    /// room for it would be that much longer, and is moved.
    fn store<'a>(
        &'a self,
        source: &'a Source,
        event: Event,
        now: Timestamp,
    ) -> impl Future<Output = Result<Outcome, StorageError>> + 'a {
        let (id, kind, fingerprint) = (event.id, source.metrics.kind(&event.kind), event.fingerprint);
        let appending = self.storage.events.append(event, source.on_conflict);
        async move {
            let begun = Instant::now();
            let appended = by_post(appending).await;
            let is_spooled = matches!(appended, Ok(Appended::Spooled));
            let (dedup, outcome) = match appended {
                Ok(Appended::Stored(_) | Appended::Spooled) => (Dedup::New, Ok(Outcome::Accepted(id))),
                Ok(Appended::Duplicate) => (Dedup::Duplicate, Ok(Outcome::Duplicate(id))),
                Ok(Appended::Conflict { is_new }) => {
                    if is_new {
                        source.metrics.conflicting();
                    }
                    (Dedup::Conflict, Ok(Outcome::Quarantined(id, Quarantine::Conflict)))
                }
                Err(error) => (Dedup::Error, Err(error)),
            };
            source.metrics.stored(dedup, is_spooled, begun.elapsed());
            match &outcome {
                Ok(Outcome::Accepted(_)) => {
                    source.metrics.accepted(kind, now);
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
    }

    /// As [`Acceptor::store`], with an event that cannot be used.
    fn quarantine<'a>(
        &'a self,
        source: &'a Source,
        event: Event,
        why: Unusable,
    ) -> impl Future<Output = Result<Outcome, StorageError>> + 'a {
        let id = event.id;
        let keeping = self.storage.events.quarantine(event, why.label(), why.detail());
        async move {
            if by_post(keeping).await? {
                source.metrics.quarantined(why);
                warn!(%id, source = %source.name, reason = why.label(), "signed event cannot be used, quarantined");
            }
            Ok(Outcome::Quarantined(id, Quarantine::Unusable(why)))
        }
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

/// Notes a refusal; at debug, because anybody can cause any number of them.
fn refused(source: &Source, why: Refusal) -> Outcome {
    debug!(source = %source.name, reason = why.label(), "request refused");
    Outcome::Refused(why)
}

/// The event of a request that has been read, and why it cannot be used, if so. `claim` is what its head has shown,
/// `now` when that was judged. Nothing stays of what the connection reads into but the room for header fields, which
/// goes to `room`: whoever waits for the storage keeps nothing else.
fn event_of(
    source: &Source,
    claim: Option<Claim>,
    received: Received,
    now: Timestamp,
    trail: &mut Trail<'_>,
    room: &mut HeaderMap,
) -> Result<(Event, Option<Unusable>), Refusal> {
    trail.read();
    source.metrics.body(received.body.len());
    let mut read = judge(source, claim, &received, now, trail);
    let body;
    (*room, body) = received.into_room_and_body();
    if let Ok((event, _)) = &mut read {
        event.body = body;
    }
    read
}

/// As [`event_of`]; what is read still borrows the body, which the event therefore gets later.
fn judge(
    source: &Source,
    claim: Option<Claim>,
    received: &Received,
    now: Timestamp,
    trail: &mut Trail<'_>,
) -> Result<(Event, Option<Unusable>), Refusal> {
    let verified = match claim {
        Some(claim) => source.scheme.hold(claim, received, now),
        None => source.scheme.verify(received, now),
    }?;
    source.metrics.verified(&verified, now);
    let (mut event, unusable) = match source.rules.read(&verified, &source.name, now) {
        Ok(usable) => (event(source, received, usable, now), None),
        Err(why) => (unusable(source, &verified, now), Some(why)),
    };
    trail.join(&mut event);
    Ok((event, unusable))
}

fn event(source: &Source, received: &Received, usable: Usable<'_>, now: Timestamp) -> Event {
    let kind = source.metrics.event_type(&usable.kind);
    Event {
        subject: usable.subject.as_deref().map(Arc::from),
        time: usable.time,
        ..bare(source, received, kind, usable.id, usable.fingerprint, now)
    }
}

/// An event of which nothing is known but its bytes, in the form that is signed: white space that is not adds no letter.
fn unusable(source: &Source, verified: &Verified<'_>, now: Timestamp) -> Event {
    let body = verified.form.of(&verified.received.body);
    let digest = Sha256::digest(&body);
    let id = EventId::derive(&source.name, [b"unusable".as_slice(), digest.as_slice()]);
    bare(source, verified.received, TYPE_UNKNOWN.into(), id, Fingerprint::of(&body), now)
}

fn bare(
    source: &Source,
    received: &Received,
    kind: Arc<str>,
    id: EventId,
    fingerprint: Fingerprint,
    now: Timestamp,
) -> Event {
    Event {
        id,
        source: source.name.clone(),
        kind,
        subject: None,
        time: None,
        received_at: now,
        content_type: content_type(source, received),
        traceparent: Some(trace_context(received, id).encode(&mut [0; TRACEPARENT_BYTES]).into()),
        fingerprint,
        body: Bytes::new(),
        environment: Some(source.environment),
    }
}

fn content_type(source: &Source, received: &Received) -> Option<Arc<str>> {
    let text = received.head.headers.get(CONTENT_TYPE)?.to_str().ok()?;
    (!text.is_empty() && text.len() <= CONTENT_TYPE_BYTES_MAX).then(|| source.content_type(text))
}

/// The sender's trace context if it sent one, and only one, that can be read; else one is begun. What comes with it as
/// `tracestate` concerns the sender's own tracing only and goes no further.
fn trace_context(received: &Received, id: EventId) -> TraceContext {
    let mut sent = received.head.headers.get_all(&TRACEPARENT).iter();
    let only = sent.next().filter(|_| sent.next().is_none());
    let context = only.and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    context.unwrap_or_else(|| TraceContext::begun(id))
}
