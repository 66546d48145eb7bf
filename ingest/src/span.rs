//! The spans of one request that became an event: `accept`, and in it `verify` and `store`.
//!
//! Only what its source has signed is told: what anybody may post at any rate is counted, not traced. The event goes
//! on with `accept` as its trace context, so that whatever becomes of it is part of the same trace.

use std::time::SystemTime;

use chaski_common::event::Event;
use chaski_common::trace::{Span, SpanId, SpanKind, TRACEPARENT_BYTES, TraceContext, Tracer, Value};

use crate::respond::Outcome;

/// A request on its way; remembers nothing when nobody is told.
pub(crate) struct Trail<'a> {
    tracer: &'a Tracer,
    arrived: Option<SystemTime>,
    read: Option<SystemTime>,
    /// In a place of its own: most events are not recorded, and every request waits with room for this.
    joined: Option<Box<Joined>>,
}

/// What is known once the event has its id.
struct Joined {
    context: TraceContext,
    parent: Option<SpanId>,
    arrived: SystemTime,
    read: SystemTime,
    verified: SystemTime,
    attributes: Vec<(&'static str, Value)>,
}

impl<'a> Trail<'a> {
    /// The head has arrived.
    pub(crate) fn begin(tracer: &'a Tracer) -> Self {
        Self { tracer, arrived: tracer.now(), read: None, joined: None }
    }

    /// The body has arrived.
    pub(crate) fn read(&mut self) {
        self.read = self.tracer.now();
    }

    /// The event is signed and has its id: from here on it carries this request's span, if that is recorded.
    pub(crate) fn join(&mut self, event: &mut Event) {
        let (Some(arrived), Some(read), Some(verified), Some(span)) =
            (self.arrived, self.read, self.tracer.now(), self.tracer.draw())
        else {
            return;
        };
        let begun = TraceContext::begun(event.id);
        let sent = event.traceparent.as_deref().and_then(|text| text.parse::<TraceContext>().ok());
        let sent = sent.filter(|sent| *sent != begun);
        if !sent.map_or_else(|| self.tracer.samples(begun.trace), TraceContext::is_sampled) {
            return;
        }
        let context = sent.unwrap_or(begun).recorded(span);
        event.traceparent = Some(context.encode(&mut [0; TRACEPARENT_BYTES]).into());
        let attributes = vec![
            ("chaski.source", Value::from(&event.source)),
            ("chaski.event.id", Value::Text(event.id.to_string().into())),
            ("chaski.event.type", Value::from(&event.kind)),
        ];
        let parent = sent.map(|sent| sent.span);
        self.joined = Some(Box::new(Joined { context, parent, arrived, read, verified, attributes }));
    }

    /// The request is decided; the event is durable, unless its outcome says otherwise.
    pub(crate) fn end(self, outcome: Outcome) {
        let (Some(joined), Some(ended)) = (self.joined, self.tracer.now()) else { return };
        let Joined { context, parent, arrived, read, verified, mut attributes } = *joined;
        let label = Outcome::LABELS[outcome.index()];
        attributes.push(("chaski.outcome", label.into()));
        let failure = matches!(outcome, Outcome::Unavailable(_)).then_some(label);
        let step = |name, began, ended, failure| Span {
            context: self.tracer.draw().map_or(context, |span| context.recorded(span)),
            parent: Some(context.span),
            follows: None,
            name,
            kind: SpanKind::Internal,
            began,
            ended,
            attributes: Vec::new(),
            failure,
        };
        self.tracer.tell(step("verify", read, verified, None));
        self.tracer.tell(step("store", verified, ended, failure));
        let kind = SpanKind::Server;
        self.tracer.tell(Span {
            context,
            parent,
            follows: None,
            name: "accept",
            kind,
            began: arrived,
            ended,
            attributes,
            failure,
        });
    }
}
