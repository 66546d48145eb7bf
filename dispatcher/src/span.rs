//! The span of one attempt: part of the span of the edge that took the event, and following the attempt before it.

use std::time::SystemTime;

use chaski_common::trace::{Span, SpanId, SpanKind, TraceContext, Tracer, Value};

use crate::delivery::Delivery;
use crate::outcome::Outcome;

/// An attempt under way that is told of.
pub(crate) struct AttemptSpan {
    context: TraceContext,
    parent: SpanId,
    follows: Option<SpanId>,
    began: SystemTime,
}

impl AttemptSpan {
    /// None where nobody is told, or the event's trace is not recorded. An event that was accepted where nobody was
    /// told has a trace all the same; then the attempts are all that is told of it.
    pub(crate) fn begin(tracer: &Tracer, delivery: &mut Delivery) -> Option<Self> {
        let began = tracer.now()?;
        let sent: TraceContext = delivery.event.traceparent.as_deref()?.parse().ok()?;
        if !sent.is_sampled() {
            return None;
        }
        let span = tracer.draw()?;
        let follows = delivery.span.replace(span);
        Some(Self { context: sent.recorded(span), parent: sent.span, follows, began })
    }

    /// What the receiver is told.
    pub(crate) fn traceparent(&self) -> String {
        self.context.to_string()
    }

    /// Tells what came of it.
    pub(crate) fn end(self, tracer: &Tracer, destination: Value, delivery: &Delivery, outcome: &Outcome) {
        let Self { context, parent, follows, began } = self;
        let label = outcome.result.label();
        let mut attributes = vec![
            ("chaski.source", Value::from(&delivery.event.source)),
            ("chaski.destination", destination),
            ("chaski.event.id", Value::Text(delivery.event.id.to_string().into())),
            ("chaski.event.type", Value::from(&delivery.event.kind)),
            ("chaski.attempt", delivery.attempts.into()),
            ("chaski.outcome", label.into()),
        ];
        if let Some(status) = outcome.status {
            attributes.push(("http.response.status_code", u32::from(status).into()));
        }
        tracer.tell(Span {
            context,
            parent: Some(parent),
            follows,
            name: "deliver",
            kind: SpanKind::Client,
            began,
            ended: tracer.now().unwrap_or(began),
            attributes,
            failure: (!outcome.is_success()).then_some(label),
        });
    }
}
