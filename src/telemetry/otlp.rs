//! Spans as OTLP spells them. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use chaski_common::trace::{Span, SpanId, SpanKind, Value};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind as Kind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as Told, Status};
use prost::Message as _;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A request to a collector.
pub(super) fn request(spans: &[Span]) -> Bytes {
    let spans = spans.iter().map(told).collect();
    let scope = InstrumentationScope {
        name: "chaski".to_owned(),
        version: VERSION.to_owned(),
        ..InstrumentationScope::default()
    };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
    let resource = Some(resource());
    let resource_spans = vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
}

fn resource() -> Resource {
    let uname = rustix::system::uname();
    let attributes = vec![
        attribute("service.name", text("chaski")),
        attribute("service.version", text(VERSION)),
        attribute("host.name", text(&uname.nodename().to_string_lossy())),
        attribute("process.pid", any_value::Value::IntValue(std::process::id().into())),
    ];
    Resource { attributes, ..Resource::default() }
}

fn told(span: &Span) -> Told {
    let trace_id = span.context.trace.to_bytes().to_vec();
    let number = |id: SpanId| id.to_bytes().to_vec();
    let link = |id| Link { trace_id: trace_id.clone(), span_id: number(id), ..Link::default() };
    let value = |value: &Value| match value {
        Value::Text(value) => text(value),
        Value::Number(number) => any_value::Value::IntValue(*number),
    };
    let kind = match span.kind {
        SpanKind::Internal => Kind::Internal,
        SpanKind::Server => Kind::Server,
        SpanKind::Client => Kind::Client,
    };
    Told {
        span_id: number(span.context.span),
        parent_span_id: span.parent.map(number).unwrap_or_default(),
        flags: span.context.is_sampled().into(),
        name: span.name.to_owned(),
        kind: kind.into(),
        start_time_unix_nano: nanos(span.began),
        end_time_unix_nano: nanos(span.ended),
        attributes: span.attributes.iter().map(|(key, of)| attribute(key, value(of))).collect(),
        links: span.follows.map(link).into_iter().collect(),
        status: span.failure.map(|why| Status { message: why.to_owned(), code: StatusCode::Error.into() }),
        trace_id,
        ..Told::default()
    }
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn text(value: &str) -> any_value::Value {
    any_value::Value::StringValue(value.to_owned())
}

fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
