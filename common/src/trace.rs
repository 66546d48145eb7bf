//! Traces (W3C Trace Context): where an event stands in somebody's trace, and the spans told of its way.
//!
//! Promise: telling a span neither waits nor fails; what the bounded queue does not take is dropped and counted.
//! A tracer that is off measures, draws and keeps nothing. Spans name ids, sources, destinations and outcomes,
//! never a payload and never a secret. Who takes them from the queue and where they go is not decided here.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use prometheus::IntCounter;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::event::{EventId, hexadecimal};

/// Length of a `traceparent` of version 00; those of later versions begin like one.
pub const TRACEPARENT_BYTES: usize = 55;
/// Whoever is called further on should record, too.
const SAMPLED: u8 = 0b01;
/// The flags that are defined; others must be sent on as zero.
const FLAGS: u8 = 0b11;

/// The number of a trace, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

impl TraceId {
    /// The 16 bytes themselves.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

/// The number of a span within its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpanId(NonZeroU64);

impl SpanId {
    /// The 8 bytes themselves.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<SpanId> for String {
    fn from(id: SpanId) -> Self {
        id.to_string()
    }
}

/// Not the 16 lower-case hexadecimal digits of a span, or all of them zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the number of a span")]
pub struct NoSpanId;

impl TryFrom<String> for SpanId {
    type Error = NoSpanId;

    fn try_from(text: String) -> Result<Self, NoSpanId> {
        let number = digits(&text, 16).and_then(|number| u64::try_from(number).ok());
        number.and_then(NonZeroU64::new).map(Self).ok_or(NoSpanId)
    }
}

/// What a `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The span that calls.
    pub span: SpanId,
    flags: u8,
}

impl TraceContext {
    /// A trace begun here: its number is the event's id, its first span the two halves of that in one, so that
    /// all copies of an event share one trace. Not sampled.
    #[must_use]
    pub fn begun(id: EventId) -> Self {
        let number = u128::from_be_bytes(*id.as_bytes()).max(1);
        let span = NonZeroU64::new((number >> 64) as u64 ^ number as u64).unwrap_or(NonZeroU64::MIN);
        Self { trace: TraceId(number), span: SpanId(span), flags: 0 }
    }

    /// Whether the caller records.
    #[must_use]
    pub const fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The same trace, seen from a span that is recorded.
    #[must_use]
    pub const fn recorded(self, span: SpanId) -> Self {
        Self { span, flags: self.flags | SAMPLED, ..self }
    }

    /// The text, into a buffer of the caller's: what `Display` prints, where that is asked for often.
    #[must_use]
    pub fn encode(self, buffer: &mut [u8; TRACEPARENT_BYTES]) -> &str {
        *buffer = *b"00-00000000000000000000000000000000-0000000000000000-00";
        buffer[3..35].copy_from_slice(hexadecimal(self.trace.to_bytes()).as_flattened());
        buffer[36..52].copy_from_slice(hexadecimal(self.span.to_bytes()).as_flattened());
        buffer[53..55].copy_from_slice(hexadecimal([self.flags]).as_flattened());
        // The digits are ASCII.
        std::str::from_utf8(buffer).unwrap_or_default()
    }
}

/// Not a `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct Malformed;

impl FromStr for TraceContext {
    type Err = Malformed;

    /// A `traceparent` of version 00, or of a later one as far as its beginning is that of version 00.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let head = text.get(..TRACEPARENT_BYTES).ok_or(Malformed)?;
        let rest = &text[TRACEPARENT_BYTES..];
        let mut parts = head.split('-');
        let mut part = |count| parts.next().and_then(|part| digits(part, count)).ok_or(Malformed);
        let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let goes_on = version > 0 && rest.starts_with('-');
        if version == 0xff || trace == 0 || !(rest.is_empty() || goes_on) {
            return Err(Malformed);
        }
        let span = u64::try_from(span).ok().and_then(NonZeroU64::new).ok_or(Malformed)?;
        Ok(Self { trace: TraceId(trace), span: SpanId(span), flags: flags as u8 & FLAGS })
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.encode(&mut [0; TRACEPARENT_BYTES]))
    }
}

/// So many lower-case hexadecimal digits and nothing else.
fn digits(text: &str, count: usize) -> Option<u128> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_plain = text.len() == count && text.bytes().all(is_digit);
    is_plain.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// Who stands at the other end of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// Nobody: a step within the process.
    Internal,
    /// Somebody who asked.
    Server,
    /// Somebody who was asked.
    Client,
}

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A name, an id, an outcome.
    Text(Arc<str>),
    /// A count, a status.
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<&Arc<str>> for Value {
    fn from(text: &Arc<str>) -> Self {
        Self::Text(Arc::clone(text))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

/// A step on an event's way that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Its trace and its own number.
    pub context: TraceContext,
    /// The span it is part of.
    pub parent: Option<SpanId>,
    /// An earlier span of the same trace that it follows without being part of it.
    pub follows: Option<SpanId>,
    /// One of a closed set.
    pub name: &'static str,
    /// Who stands at its other end.
    pub kind: SpanKind,
    /// When it began.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// What it was about.
    pub attributes: Vec<(&'static str, Value)>,
    /// Why it failed, as one of a closed set; none if it did not.
    pub failure: Option<&'static str>,
}

/// Where spans are told. Cloning gives another hand on the same queue; the default is off.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Queue>>);

#[derive(Debug)]
struct Queue {
    spans: mpsc::Sender<Span>,
    /// Traces begun here are recorded while the lower half of their number is at most this.
    sampled_max: u64,
    dropped: IntCounter,
    /// What span numbers are drawn with: keyed at random, so that no two processes draw the same.
    keys: RandomState,
    drawn: AtomicU64,
}

impl Tracer {
    /// A tracer and what it is told, at most `spans_max` at once; what does not fit is counted as dropped. Of the
    /// traces that begin here it records the share `sampling`, from 0 to 1, and the same ones in every process; of
    /// others those whose sender does.
    #[must_use]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of the numbers there are"
    )]
    pub fn new(spans_max: usize, sampling: f64, dropped: IntCounter) -> (Self, mpsc::Receiver<Span>) {
        let (spans, told) = mpsc::channel(spans_max);
        let sampled_max =
            if sampling >= 1.0 { u64::MAX } else { (sampling.max(0.0) * u64::MAX as f64) as u64 };
        let (keys, drawn) = (RandomState::new(), AtomicU64::new(0));
        (Self(Some(Arc::new(Queue { spans, sampled_max, dropped, keys, drawn }))), told)
    }

    /// Now, if anybody wants to know.
    #[must_use]
    pub fn now(&self) -> Option<SystemTime> {
        self.0.as_ref().map(|_| SystemTime::now())
    }

    /// Whether a trace that begins here is recorded.
    #[must_use]
    pub fn samples(&self, trace: TraceId) -> bool {
        self.0.as_ref().is_some_and(|queue| trace.0 as u64 <= queue.sampled_max && queue.sampled_max > 0)
    }

    /// A number for a new span; none when off.
    #[must_use]
    pub fn draw(&self) -> Option<SpanId> {
        let queue = self.0.as_ref()?;
        let number = queue.keys.hash_one(queue.drawn.fetch_add(1, Ordering::Relaxed));
        Some(SpanId(NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN)))
    }

    /// Hands a span over, or drops it where there is no room.
    pub fn tell(&self, span: Span) {
        if let Some(queue) = &self.0
            && queue.spans.try_send(span).is_err()
        {
            queue.dropped.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn id(n: u64) -> EventId {
        EventId::derive("pe", [n.to_be_bytes().as_slice()])
    }

    fn dropped() -> IntCounter {
        IntCounter::new("dropped", "dropped").unwrap()
    }

    #[test]
    fn a_trace_is_begun_the_same_for_every_copy_of_an_event() {
        for n in 0..100 {
            let begun = TraceContext::begun(id(n));
            assert_eq!(begun.to_string().parse(), Ok(begun));
            assert!(begun.to_string().starts_with(&format!("00-{}-", id(n))) && !begun.is_sampled());
            assert_eq!(begun, TraceContext::begun(id(n)));
            assert_ne!(begun, TraceContext::begun(id(n + 1)));
        }
        let equal_halves = TraceContext::begun(EventId::from_bytes([7; 16]));
        assert_eq!(equal_halves.to_string().parse(), Ok(equal_halves));
    }

    #[test]
    fn a_context_is_taken_as_the_recommendation_says_or_not_at_all() {
        let context: TraceContext = SENT.parse().unwrap();
        assert_eq!(context.to_string(), SENT);
        assert!(context.is_sampled());
        // A later version may say more; what version 00 does not define goes no further.
        let later = [SENT.replacen("00", "01", 1), format!("{}-more", SENT.replacen("00", "cc", 1))];
        for text in later {
            assert_eq!(text.parse(), Ok(context), "{text}");
        }
        assert_eq!(
            SENT.replace("-01", "-ff").parse::<TraceContext>().unwrap().to_string(),
            SENT.replace("-01", "-03")
        );
        let no_trace = SENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32));
        let no_span = SENT.replace("00f067aa0ba902b7", &"0".repeat(16));
        let bad = [
            "",
            "00-zz-zz-zz",
            &SENT[1..],
            &SENT[..54],
            &SENT.to_uppercase(),
            &format!("{SENT}-00"),
            &format!("{SENT} "),
            &format!("{}x", SENT.replacen("00", "01", 1)),
            &SENT.replacen("00", "ff", 1),
            &SENT.replace("4bf9", "+bf9"),
            &SENT.replace("4bf9", "é9"),
            &no_trace,
            &no_span,
        ];
        for bad in bad {
            assert_eq!(bad.parse::<TraceContext>(), Err(Malformed), "{bad}");
        }
    }

    #[test]
    fn a_share_of_the_traces_is_sampled_and_the_same_ones_everywhere() {
        let tracer = |sampling| Tracer::new(1, sampling, dropped()).0;
        let (none, half, again, all) = (tracer(0.0), tracer(0.5), tracer(0.5), tracer(1.0));
        let traces: Vec<_> = (0..1000).map(|n| TraceContext::begun(id(n)).trace).collect();
        assert!(traces.iter().all(|&trace| all.samples(trace) && !none.samples(trace)));
        assert!(traces.iter().all(|&trace| half.samples(trace) == again.samples(trace)));
        let sampled = traces.iter().filter(|&&trace| half.samples(trace)).count();
        assert!((400..600).contains(&sampled), "{sampled}");
        assert!(!Tracer::default().samples(traces[0]));
    }

    #[test]
    fn what_has_no_room_is_dropped_and_counted() {
        let dropped = dropped();
        let (tracer, mut told) = Tracer::new(2, 1.0, dropped.clone());
        let (context, now) = (SENT.parse::<TraceContext>().unwrap(), tracer.now().unwrap());
        let drawn: Vec<_> = (0..3).map(|_| tracer.draw().unwrap()).collect();
        for &span in &drawn {
            tracer.tell(Span {
                context: context.recorded(span),
                parent: None,
                follows: None,
                name: "deliver",
                kind: SpanKind::Client,
                began: now,
                ended: now,
                attributes: Vec::new(),
                failure: None,
            });
        }
        assert_eq!(dropped.get(), 1);
        let kept: Vec<_> =
            std::iter::from_fn(|| told.try_recv().ok()).map(|span| span.context.span).collect();
        assert_eq!(kept, drawn[..2]);
        assert_ne!(drawn[0], drawn[1]);
    }

    #[test]
    fn a_span_number_is_text_where_it_is_kept() {
        let span = SENT.parse::<TraceContext>().unwrap().span;
        let text = serde_json::to_string(&span).unwrap();
        assert_eq!(text, "\"00f067aa0ba902b7\"");
        assert_eq!(serde_json::from_str::<SpanId>(&text).unwrap(), span);
        for bad in ["\"\"", "\"0000000000000000\"", "\"00F067AA0BA902B7\"", "7"] {
            assert!(serde_json::from_str::<SpanId>(bad).is_err(), "{bad}");
        }
    }
}
