//! What the edge counts. Every known series exists from the start at 0, and a request touches only handles that
//! were looked up when its source was compiled.

mod key_use;
mod tally;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use chaski_common::metrics::{BODY_BYTES, FAST_SECONDS, Metrics};
use chaski_common::storage::Labels;
use jiff::Timestamp;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

pub(crate) use self::key_use::KeyUse;
use self::key_use::KeysInForce;
use self::tally::{Count, Distribution, Series, Tallies};
use crate::content::Unusable;
use crate::respond::{Outcome, Quarantine, Refusal, Unavailable, labelled};
use crate::source::Secrets;
use crate::verify::{BodyForm, KeyUsed, Verified};

/// Event types counted by name per source; further ones are `other`.
const TYPES_MAX: usize = 16;
/// The label of a refusal because we are full.
const OVERLOADED: &str = "overloaded";
/// What the storage said, as [`Dedup`] counts it.
const DEDUP: [&str; 4] = ["new", "duplicate", "conflict", "error"];
/// Seconds a sender's clock may differ, or a request may have travelled.
const SKEW_SECONDS: &[f64] = &[-300.0, -60.0, -5.0, -1.0, 0.0, 1.0, 5.0, 60.0, 120.0, 240.0, 300.0, 3600.0];

labelled! {
    /// How a connection ended before or outside any request.
    pub(crate) ConnectionError {
        /// The listener could not take it.
        Accept = "accept",
        /// There are as many as may be.
        Full = "full",
        /// No PROXY header in time, or a broken one, where one is due.
        ProxyHeader = "proxy_header",
        /// Its peer has too many already.
        PeerLimit = "peer_limit",
        /// No TLS in time, or none that fits.
        TlsHandshake = "tls_handshake",
        /// Not HTTP as we speak it.
        HttpParse = "http_parse",
        /// A head longer than the bounds.
        HttpHeadTooLarge = "http_head_too_large",
        /// A head that did not arrive in time.
        HeaderTimeout = "header_timeout",
        /// Closed in the middle of a request.
        BodyIncomplete = "body_incomplete",
        /// HTTP/2 that is broken, or costs much and asks for nothing.
        H2Abuse = "h2_abuse",
        /// The peer did not read its answer in time.
        WriteTimeout = "write_timeout",
        /// The transport broke.
        Io = "io",
    }
}

/// The collectors, and the handles that belong to no source.
pub(crate) struct EdgeMetrics {
    pub(crate) connections_open: IntGauge,
    pub(crate) connections: IntCounter,
    connection_errors: Vec<IntCounter>,
    unrouted: Vec<(Refusal, IntCounter)>,
    pub(crate) inflight_requests: IntGauge,
    pub(crate) inflight_bytes: IntGauge,
    capacity: IntGaugeVec,
    durable_ack: DurableAck,
    dedup_duration: Series<Distribution>,
    dedup: Tallies<Count>,
    backend: &'static str,
    requests: Tallies<Count>,
    refused: Tallies<Count>,
    duration: Tallies<Distribution>,
    body_bytes: Tallies<Distribution>,
    signature_verified: Tallies<Count>,
    signature_form: Tallies<Count>,
    skew: Tallies<Distribution>,
    last_accepted: IntGaugeVec,
    consecutive_non_200: IntGaugeVec,
    events: Tallies<Count>,
    quarantined: IntCounterVec,
    conflicts: IntCounterVec,
    keys: KeysInForce,
    /// By the name of their source.
    types: Mutex<HashMap<String, Arc<Named>>>,
    label_overflow: IntCounter,
}

impl EdgeMetrics {
    /// For so many threads.
    pub(crate) fn new(registry: &Registry, labels: Labels, threads: usize) -> Self {
        let make = Metrics(registry);
        let counts = |name, help, labels: &[&str]| {
            Tallies::<Count>::register(&make, threads, (name, help), labels, ())
        };
        let distributions = |name, help, labels: &[&str], bounds| {
            Tallies::<Distribution>::register(&make, threads, (name, help), labels, bounds)
        };
        let backend = labels.dedup;
        let listener = "edge";
        let errors = make.counters(
            "chaski_edge_connection_errors_total",
            "Connections that ended badly.",
            &["listener", "reason"],
        );
        let unrouted = make.counters(
            "chaski_edge_unrouted_total",
            "Requests refused before a source was known.",
            &["reason"],
        );
        let durable_ack = distributions(
            "chaski_edge_durable_ack_seconds",
            "Time until the storage called an event durable.",
            &["path"],
            FAST_SECONDS,
        );
        let dedup = counts("chaski_dedup_lookups_total", "Deduplication decisions.", &["backend", "result"]);
        for result in DEDUP {
            let _ = dedup.with(&[backend, result]);
        }
        Self {
            connections_open: make
                .gauges("chaski_edge_connections_open", "Connections that are open.", &["listener"])
                .with_label_values(&[listener]),
            connections: make
                .counters("chaski_edge_connections_total", "Connections taken.", &["listener"])
                .with_label_values(&[listener]),
            connection_errors: ConnectionError::ALL
                .iter()
                .map(|reason| errors.with_label_values(&[listener, reason.label()]))
                .collect(),
            unrouted: [
                Refusal::UnknownRoute,
                Refusal::BadHost,
                Refusal::HostNotAllowed,
                Refusal::UriTooLong,
                Refusal::HeadTooLarge,
            ]
            .map(|reason| (reason, unrouted.with_label_values(&[reason.label()])))
            .into(),
            inflight_requests: make.gauge("chaski_edge_inflight_requests", "Requests being worked on."),
            inflight_bytes: make.gauge("chaski_edge_inflight_bytes", "Bytes of bodies being read or stored."),
            capacity: make.gauges("chaski_edge_capacity", "The bounds that are in force.", &["resource"]),
            durable_ack: DurableAck {
                stored: durable_ack.with(&[labels.path]),
                spooled: durable_ack.with(&[Labels::SPOOL]),
            },
            backend,
            dedup_duration: distributions(
                "chaski_dedup_duration_seconds",
                "Time until a deduplication decision; it is one step with storing.",
                &["backend"],
                FAST_SECONDS,
            )
            .with(&[backend]),
            dedup,
            requests: counts("chaski_edge_requests_total", "Requests answered.", &["source", "outcome"]),
            refused: counts("chaski_edge_refused_total", "Requests refused.", &["source", "reason"]),
            duration: distributions(
                "chaski_edge_request_duration_seconds",
                "Time from the head of a request to its answer.",
                &["source"],
                FAST_SECONDS,
            ),
            body_bytes: distributions(
                "chaski_edge_body_bytes",
                "Length of bodies that were read.",
                &["source"],
                BODY_BYTES,
            ),
            signature_verified: counts(
                "chaski_edge_signature_verified_total",
                "Signatures found right.",
                &["source", "key"],
            ),
            signature_form: counts(
                "chaski_edge_signature_form_total",
                "Which form of the body was signed.",
                &["source", "form"],
            ),
            skew: distributions(
                "chaski_edge_timestamp_skew_seconds",
                "Our clock minus the time a sender says it signed.",
                &["source"],
                SKEW_SECONDS,
            ),
            last_accepted: make.gauges(
                "chaski_edge_last_accepted_timestamp_seconds",
                "When an event was last accepted.",
                &["source"],
            ),
            consecutive_non_200: make.gauges(
                "chaski_edge_consecutive_non_200",
                "Authenticated requests not answered 200 since the last that was.",
                &["source"],
            ),
            events: counts("chaski_edge_events_total", "Events accepted.", &["source", "event_type"]),
            label_overflow: make
                .counters(
                    "chaski_metric_label_overflow_total",
                    "Events counted as other, because their label has as many values as it may.",
                    &["label"],
                )
                .with_label_values(&["event_type"]),
            quarantined: make.counters(
                "chaski_quarantine_added_total",
                "Events put into quarantine.",
                &["source", "reason"],
            ),
            conflicts: make.counters(
                "chaski_dedup_conflicts_total",
                "Ids that came again with other content.",
                &["source"],
            ),
            keys: KeysInForce::new(registry),
            types: Mutex::default(),
        }
    }

    /// The secrets of one source and when each was last used, as far as this process knows them from before.
    pub(crate) fn key_uses(&self, source: &Arc<str>, secrets: &Secrets) -> Vec<KeyUse> {
        self.keys.known(source, secrets)
    }

    /// These are in force now, and no others.
    pub(crate) fn in_force(&self, keys: Vec<Vec<KeyUse>>) {
        self.keys.replace(keys.into_iter().flatten().collect());
    }

    pub(crate) fn connection_error(&self, reason: ConnectionError) {
        self.connection_errors[reason as usize].inc();
    }

    pub(crate) fn unrouted(&self, reason: Refusal) {
        if let Some((_, counter)) = self.unrouted.iter().find(|(known, _)| *known == reason) {
            counter.inc();
        }
    }

    pub(crate) fn capacity(&self, resource: &str, bound: usize) {
        self.capacity.with_label_values(&[resource]).set(i64::try_from(bound).unwrap_or(i64::MAX));
    }

    /// The handles of one source; the same series after a reload.
    pub(crate) fn source(&self, name: &str, keys: &[KeyUse]) -> SourceMetrics {
        let each = |counts: &Tallies<Count>, labels: &[&'static str]| -> Vec<_> {
            labels.iter().map(|label| counts.with(&[name, label])).collect()
        };
        let refusals: Vec<&str> = Refusal::ALL.iter().map(|why| why.label()).collect();
        let unusable = Unusable::ALL.iter();
        SourceMetrics {
            requests: each(&self.requests, &Outcome::LABELS),
            refused: each(&self.refused, &refusals),
            overloaded: self.refused.with(&[name, OVERLOADED]),
            unusable: unusable.map(|why| self.quarantined.with_label_values(&[name, why.label()])).collect(),
            conflicting: self.quarantined.with_label_values(&[name, Quarantine::Conflict.label()]),
            conflicts: self.conflicts.with_label_values(&[name]),
            verified: each(
                &self.signature_verified,
                &KeyUsed::ALL.iter().map(|key| key.label()).collect::<Vec<_>>(),
            ),
            form: each(
                &self.signature_form,
                &BodyForm::ALL.iter().map(|form| form.label()).collect::<Vec<_>>(),
            ),
            duration: self.duration.with(&[name]),
            body_bytes: self.body_bytes.with(&[name]),
            skew: self.skew.with(&[name]),
            last_accepted: self.last_accepted.with_label_values(&[name]),
            consecutive_non_200: self.consecutive_non_200.with_label_values(&[name]),
            durable_ack: self.durable_ack.clone(),
            dedup_duration: self.dedup_duration.clone(),
            dedup: DEDUP.map(|result| self.dedup.with(&[self.backend, result])),
            types: Types {
                named: self.types(name),
                known: Default::default(),
                other: self.events.with(&[name, "other"]),
                of: self.events.clone(),
                overflow: self.label_overflow.clone(),
            },
            name: name.to_owned(),
            keys: keys.iter().map(KeyUse::last).collect(),
        }
    }

    /// The event types of a source that are counted by name, on all threads and before and after a reload.
    fn types(&self, source: &str) -> Arc<Named> {
        let mut types = self.types.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(types.entry(source.to_owned()).or_default())
    }
}

/// Time until an event was durable, by where it was.
#[derive(Clone)]
struct DurableAck {
    stored: Series<Distribution>,
    spooled: Series<Distribution>,
}

/// The handles of one source.
pub(crate) struct SourceMetrics {
    name: String,
    requests: Vec<Series<Count>>,
    refused: Vec<Series<Count>>,
    overloaded: Series<Count>,
    unusable: Vec<IntCounter>,
    conflicting: IntCounter,
    conflicts: IntCounter,
    verified: Vec<Series<Count>>,
    form: Vec<Series<Count>>,
    duration: Series<Distribution>,
    body_bytes: Series<Distribution>,
    skew: Series<Distribution>,
    last_accepted: IntGauge,
    consecutive_non_200: IntGauge,
    durable_ack: DurableAck,
    dedup_duration: Series<Distribution>,
    dedup: [Series<Count>; DEDUP.len()],
    types: Types,
    /// When each of its secrets was last used, in Unix seconds.
    keys: Vec<Arc<AtomicI64>>,
}

/// The event types of a source that are counted by name: the first it sends.
type Named = [OnceLock<Box<str>>; TYPES_MAX];

/// Counters per event type, which also keep one copy of each type's text, in the places that they are named in. What is known
/// stays where it is, so that nobody locks anything to look.
struct Types {
    named: Arc<Named>,
    known: [OnceLock<(Arc<str>, Series<Count>)>; TYPES_MAX],
    other: Series<Count>,
    of: Tallies<Count>,
    overflow: IntCounter,
}

impl Types {
    fn known(&self, kind: &str) -> Option<&(Arc<str>, Series<Count>)> {
        self.known.iter().filter_map(OnceLock::get).find(|(known, _)| **known == *kind)
    }

    /// The counter of one that was not known; none if it is not named, and will not be.
    fn name(&self, source: &str, kind: &Arc<str>) -> Option<&Series<Count>> {
        let place = self.named.iter().position(|named| **named.get_or_init(|| (**kind).into()) == **kind)?;
        let (_, count) = self.known[place].get_or_init(|| (kind.clone(), self.of.with(&[source, kind])));
        Some(count)
    }
}

/// What the storage said.
#[derive(Clone, Copy)]
pub(crate) enum Dedup {
    New,
    Duplicate,
    Conflict,
    Error,
}

/// The counter of an event type; of one that has none yet, its name.
pub(crate) struct Kind<'s>(Result<&'s Series<Count>, Arc<str>>);

impl SourceMetrics {
    pub(crate) fn verified(&self, verified: &Verified<'_>, now: Timestamp) {
        self.verified[verified.key as usize].here().inc();
        if let Some(last) = self.keys.get(verified.place)
            && last.load(Ordering::Relaxed) != now.as_second()
        {
            last.store(now.as_second(), Ordering::Relaxed);
        }
        self.form[verified.form as usize].here().inc();
        if let Some(signed_at) = verified.signed_at {
            self.skew.here().observe(now.duration_since(signed_at).as_secs_f64());
        }
    }

    pub(crate) fn body(&self, bytes: usize) {
        self.body_bytes.here().observe(bytes as f64);
    }

    pub(crate) fn stored(&self, result: Dedup, is_spooled: bool, took: Duration) {
        self.dedup[result as usize].here().inc();
        let path = if is_spooled { &self.durable_ack.spooled } else { &self.durable_ack.stored };
        path.here().observe(took.as_secs_f64());
        self.dedup_duration.here().observe(took.as_secs_f64());
    }

    /// Counts what is new in quarantine; the same bytes again are not.
    pub(crate) fn quarantined(&self, why: Unusable) {
        self.unusable[why as usize].inc();
    }

    /// As [`SourceMetrics::quarantined`], of a known id with other content.
    pub(crate) fn conflicting(&self) {
        self.conflicting.inc();
    }

    /// The shared text of an event type, so that an event need not carry its own copy.
    pub(crate) fn event_type(&self, kind: &str) -> Arc<str> {
        self.types.known(kind).map_or_else(|| kind.into(), |(known, _)| known.clone())
    }

    /// Where an event of this type is counted once it is accepted.
    pub(crate) fn kind(&self, kind: &Arc<str>) -> Kind<'_> {
        Kind(self.types.known(kind).map(|(_, count)| count).ok_or_else(|| kind.clone()))
    }

    pub(crate) fn accepted(&self, kind: Kind<'_>, now: Timestamp) {
        set(&self.last_accepted, now.as_second());
        let count = kind.0.unwrap_or_else(|new| {
            self.types.name(&self.name, &new).unwrap_or_else(|| {
                self.types.overflow.inc();
                &self.types.other
            })
        });
        count.here().inc();
    }

    pub(crate) fn ended(&self, outcome: Outcome, took: Duration) {
        self.requests[outcome.index()].here().inc();
        self.duration.here().observe(took.as_secs_f64());
        match outcome {
            Outcome::Accepted(_)
            | Outcome::Duplicate(_)
            | Outcome::Quarantined(_, Quarantine::Unusable(_)) => {}
            Outcome::Quarantined(_, Quarantine::Conflict) => self.conflicts.inc(),
            Outcome::Refused(why) => self.refused[why as usize].here().inc(),
            Outcome::Unavailable(Unavailable::Overloaded) => self.overloaded.here().inc(),
            Outcome::Unavailable(Unavailable::Storage | Unavailable::Changing) => {}
        }
        match outcome {
            Outcome::Unavailable(Unavailable::Storage) => self.consecutive_non_200.inc(),
            outcome if outcome.is_authenticated() => set(&self.consecutive_non_200, 0),
            _ => {}
        }
    }
}

/// Sets a gauge that mostly has this value: to write it again would only take it from the other threads' caches.
fn set(gauge: &IntGauge, value: i64) {
    if gauge.get() != value {
        gauge.set(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_beyond_the_bound_are_counted_as_other_and_as_overflow() {
        let registry = Registry::new();
        let metrics = EdgeMetrics::new(&registry, Labels { path: Labels::SPOOL, dedup: "local" }, 2);
        let source = metrics.source("pe", &[]);
        for number in 0..TYPES_MAX + 3 {
            for _ in 0..2 {
                let kind = source.kind(&format!("type-{number}").into());
                source.accepted(kind, Timestamp::UNIX_EPOCH);
            }
        }
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            "chaski_edge_events_total{event_type=\"type-15\",source=\"pe\"} 2",
            "chaski_edge_events_total{event_type=\"other\",source=\"pe\"} 6",
            "chaski_metric_label_overflow_total{label=\"event_type\"} 6",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(!text.contains("type-16"));
    }
}
