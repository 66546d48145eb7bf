//! The requests to one destination. What does not change from one to the next is made once.

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use chaski_common::cloudevents;
use chaski_common::event::Event;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use jiff::Timestamp;
use prometheus::IntCounter;

use super::sign::Signer;
use crate::destination::{Auth, DestinationSpec};

const CE_SPECVERSION: HeaderName = HeaderName::from_static("ce-specversion");
const CE_ID: HeaderName = HeaderName::from_static("ce-id");
const CE_SOURCE: HeaderName = HeaderName::from_static("ce-source");
const CE_TYPE: HeaderName = HeaderName::from_static("ce-type");
const CE_SUBJECT: HeaderName = HeaderName::from_static("ce-subject");
const CE_TIME: HeaderName = HeaderName::from_static("ce-time");
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const CHASKI_ATTEMPT: HeaderName = HeaderName::from_static("chaski-attempt");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Room for every header that there may be, so that none makes the map grow.
const HEADERS_MAX: usize = 18;

/// Makes requests.
pub(super) struct Requests {
    /// What stands in the first line: path and query.
    target: Uri,
    /// The headers that every request carries.
    fixed: Vec<(HeaderName, HeaderValue)>,
    /// `ce-source` of each configured source; of any other it is made on the way.
    sources: Vec<(Arc<str>, HeaderValue)>,
    signer: Signer,
    header_dropped: IntCounter,
}

impl Requests {
    pub(super) fn new(spec: &DestinationSpec, header_dropped: IntCounter) -> Self {
        let mut fixed = vec![
            (USER_AGENT, HeaderValue::from_static(concat!("chaski/", env!("CARGO_PKG_VERSION")))),
            (CE_SPECVERSION, HeaderValue::from_static(cloudevents::SPEC_VERSION)),
        ];
        let host = host(&spec.url);
        for (name, value) in
            [(HOST, HeaderValue::from_str(&host).ok())].into_iter().chain(spec.auth.as_ref().map(credential))
        {
            match value {
                Some(value) => fixed.push((name, value)),
                None => header_dropped.inc(),
            }
        }
        let source = |name: &Arc<str>| Some((name.clone(), owned(cloudevents::source(name))?));
        Self {
            target: spec.url.path_and_query().cloned().map(Uri::from).unwrap_or_default(),
            fixed,
            sources: spec.sources.iter().filter_map(source).collect(),
            signer: Signer::new(&spec.signing),
            header_dropped,
        }
    }

    /// The request of this attempt, signed as of `now`. A header whose value may not be sent is left out and counted.
    pub(super) fn make(
        &self,
        event: &Event,
        attempt: u32,
        traceparent: Option<&str>,
        now: Timestamp,
    ) -> Request<Full<Bytes>> {
        let mut headers = HeaderMap::with_capacity(HEADERS_MAX);
        for (name, value) in &self.fixed {
            headers.insert(name, value.clone());
        }
        let mut put = |name: HeaderName, value: Option<HeaderValue>| match value {
            Some(value) => _ = headers.insert(name, value),
            None => self.header_dropped.inc(),
        };
        let mut id = [0; 32];
        let id = event.id.encode(&mut id);
        let timestamp = now.as_second().to_string();
        let signature = self.signer.sign(id.as_bytes(), timestamp.as_bytes(), &event.body);
        let id = HeaderValue::from_str(id).ok();
        put(CE_ID, id.clone());
        put(WEBHOOK_ID, id.clone());
        put(IDEMPOTENCY_KEY, id);
        put(CE_SOURCE, self.source(&event.source));
        put(CE_TYPE, HeaderValue::from_str(&cloudevents::escape(&event.kind)).ok());
        if let Some(subject) = &event.subject {
            put(CE_SUBJECT, HeaderValue::from_str(&cloudevents::escape(subject)).ok());
        }
        put(CE_TIME, owned(cloudevents::time(event)));
        put(WEBHOOK_TIMESTAMP, owned(timestamp));
        put(CHASKI_ATTEMPT, Some(attempt.into()));
        if let Some(signature) = signature {
            put(WEBHOOK_SIGNATURE, Some(signature));
        }
        if let Some(content_type) = &event.content_type {
            put(CONTENT_TYPE, HeaderValue::from_str(content_type).ok());
        }
        if let Some(traceparent) = traceparent.or(event.traceparent.as_deref()) {
            put(TRACEPARENT, HeaderValue::from_str(traceparent).ok());
        }
        let mut request = Request::new(Full::new(event.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = headers;
        request
    }

    fn source(&self, name: &str) -> Option<HeaderValue> {
        let known = self.sources.iter().find(|(known, _)| **known == *name).map(|(_, value)| value.clone());
        known.or_else(|| owned(cloudevents::source(name)))
    }
}

/// A header value that takes the text over instead of copying it.
fn owned(text: String) -> Option<HeaderValue> {
    HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
}

/// The value of `host`: the port is said where it is not the scheme's own.
pub(super) fn host(uri: &Uri) -> String {
    let name = uri.host().unwrap_or_default();
    match (uri.port_u16(), uri.scheme_str()) {
        (None, _) | (Some(80), Some("http")) | (Some(443), Some("https")) => name.to_owned(),
        (Some(port), _) => format!("{name}:{port}"),
    }
}

fn credential(auth: &Auth) -> (HeaderName, Option<HeaderValue>) {
    let (name, text) = match auth {
        Auth::Bearer(token) => (AUTHORIZATION, [b"Bearer ", token.expose()].concat()),
        Auth::Basic { user, password } => {
            let pair = [user.as_bytes(), b":", password.expose()].concat();
            (
                AUTHORIZATION,
                format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)).into_bytes(),
            )
        }
        Auth::Header { name, value } => (name.clone(), value.expose().to_vec()),
    };
    let value = HeaderValue::from_bytes(&text).ok().map(|mut value| {
        value.set_sensitive(true);
        value
    });
    (name, value)
}
