//! One attempt: build the request, sign it, send it under one deadline, say what came of it.
//!
//! Promise: the body sent is the body received; every attempt of an event carries the same idempotency key;
//! the deadline covers all from the connection to the last byte that is read. What this does not do: decide
//! what follows, count, or retry. One exception: a pooled connection that turns out to have been closed while
//! it was idle is replaced at once, because nobody has failed.

pub(crate) mod client;
pub(crate) mod egress;
mod links;
pub(crate) mod notice;
pub(crate) mod reach;
pub(crate) mod sign;

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use chaski_common::clock::Clock;
use chaski_common::cloudevents;
use chaski_common::event::Event;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use hyper::body::Body as _;
use prometheus::IntCounter;
use rustls::pki_types::CertificateDer;
use tokio::time::{Instant, timeout_at};

use self::client::{ConnectError, Connector, Dialer, Seen, TooMuch};
use self::links::{Links, NoAnswer};
use self::sign::Signer;
use crate::destination::{Auth, DestinationSpec};
use crate::outcome::{AttemptResult, Outcome};

/// Most of an answer's body that is read, so that its connection can be used again.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// Longest time spent on that: the status is known by then, nothing depends on the rest.
const BODY_TIME_MAX: Duration = Duration::from_secs(5);

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const CHASKI_ATTEMPT: HeaderName = HeaderName::from_static("chaski-attempt");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Makes attempts at one destination.
pub(crate) struct Sender {
    links: Links,
    /// What stands in a request's first line: path and query.
    target: Uri,
    /// The headers that every request carries.
    fixed: Vec<(HeaderName, HeaderValue)>,
    signer: Signer,
    timeout: Duration,
    clock: Clock,
    header_dropped: IntCounter,
}

impl Sender {
    pub(crate) fn new(
        spec: &DestinationSpec,
        dialer: &Dialer,
        clock: Clock,
        header_dropped: IntCounter,
    ) -> Self {
        let mut fixed =
            vec![(USER_AGENT, HeaderValue::from_static(concat!("chaski/", env!("CARGO_PKG_VERSION"))))];
        let host = host(&spec.url);
        for (name, value) in
            [(HOST, HeaderValue::from_str(&host).ok())].into_iter().chain(spec.auth.as_ref().map(credential))
        {
            match value {
                Some(value) => fixed.push((name, value)),
                None => header_dropped.inc(),
            }
        }
        Self {
            links: Links::new(Connector::new(dialer, spec.allow_private), spec.url.clone(), spec.concurrency),
            target: target(&spec.url),
            fixed,
            signer: Signer::new(&spec.signing),
            timeout: spec.timeout,
            clock,
            header_dropped,
        }
    }

    /// What the receiver has shown last; none in clear text.
    pub(crate) fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.links.certificate()
    }

    /// Attempt number `attempt` at delivering this event. It has the trace context that is given, or else the event's.
    pub(crate) async fn attempt(&self, event: &Event, attempt: u32, traceparent: Option<&str>) -> Outcome {
        let deadline = Instant::now() + self.timeout;
        let exchange = self.links.exchange(|| self.request(event, attempt, traceparent));
        let (mut link, answer) = match timeout_at(deadline, exchange).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => return of_no_answer(&error),
            Err(_) => {
                let detail = format!("no answer within {} ms", self.timeout.as_millis());
                return Outcome::failure(AttemptResult::Timeout, detail);
            }
        };
        let (head, body) = answer.into_parts();
        let outcome = Outcome::of_answer(head.status, &head.headers, self.clock.now());
        if !body.is_end_stream() {
            // Slow or endless, the status stands; a connection whose answer was not read to its end is closed.
            let _ = timeout_at(deadline.min(Instant::now() + BODY_TIME_MAX), link.drain(body)).await;
        }
        self.links.keep(link);
        outcome
    }

    /// Closes connections that have been idle for long, or were closed from the other side. Whether any are left;
    /// then it is to be asked again.
    pub(crate) fn tidy(&self) -> bool {
        self.links.tidy()
    }

    fn request(&self, event: &Event, attempt: u32, traceparent: Option<&str>) -> Request<Full<Bytes>> {
        let mut headers = HeaderMap::with_capacity(24);
        headers.extend(self.fixed.iter().cloned());
        let mut put = |name: HeaderName, value: Option<HeaderValue>| match value {
            Some(value) => _ = headers.insert(name, value),
            None => self.header_dropped.inc(),
        };
        let id = event.id.to_string();
        let timestamp = self.clock.now().as_second().to_string();
        let signature = self.signer.sign(id.as_bytes(), timestamp.as_bytes(), &event.body);
        let id = owned(id);
        for (name, value) in cloudevents::attributes(event) {
            let value = match value {
                _ if name == "id" => id.clone(),
                std::borrow::Cow::Borrowed(text) => HeaderValue::from_str(text).ok(),
                std::borrow::Cow::Owned(text) => owned(text),
            };
            put(attribute(name), value);
        }
        put(WEBHOOK_ID, id.clone());
        put(IDEMPOTENCY_KEY, id);
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
}

/// A header value that takes the text over instead of copying it.
fn owned(text: String) -> Option<HeaderValue> {
    HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
}

/// The header of a CloudEvents attribute.
fn attribute(name: &'static str) -> HeaderName {
    match name {
        "specversion" => HeaderName::from_static("ce-specversion"),
        "id" => HeaderName::from_static("ce-id"),
        "source" => HeaderName::from_static("ce-source"),
        "type" => HeaderName::from_static("ce-type"),
        "subject" => HeaderName::from_static("ce-subject"),
        "time" => HeaderName::from_static("ce-time"),
        other => HeaderName::try_from(format!("ce-{other}")).unwrap_or(HeaderName::from_static("ce-unknown")),
    }
}

fn target(uri: &Uri) -> Uri {
    uri.path_and_query().cloned().map(Uri::from).unwrap_or_default()
}

fn host(uri: &Uri) -> String {
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

fn seen(error: &hyper_util::client::legacy::Error) -> Option<Seen> {
    let mut extensions = http::Extensions::new();
    error.connect_info()?.get_extras(&mut extensions);
    extensions.remove()
}

/// The causes of an error, itself first.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

fn is_too_much(error: &(dyn StdError + 'static)) -> bool {
    causes(error)
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.get_ref().and_then(|inner| inner.downcast_ref::<TooMuch>()).is_some())
}

/// What a failed exchange of the pooled client says.
fn of_error(error: &hyper_util::client::legacy::Error) -> Outcome {
    match causes(error).find_map(|cause| cause.downcast_ref::<ConnectError>()) {
        Some(error) => of_no_connection(error),
        None => of_broken(error, seen(error).is_some_and(|seen| seen.answered())),
    }
}

/// What a failed exchange with a destination says.
fn of_no_answer(error: &NoAnswer) -> Outcome {
    match error {
        NoAnswer::Connect(error) => of_no_connection(error),
        NoAnswer::Http { error, answered } => of_broken(error, *answered),
    }
}

fn of_no_connection(error: &ConnectError) -> Outcome {
    let result = match error {
        ConnectError::Dns(_) => AttemptResult::Dns,
        ConnectError::Blocked { .. } => AttemptResult::SsrfBlocked,
        ConnectError::Connect(_) => AttemptResult::Connect,
        ConnectError::Tls(_) => AttemptResult::Tls,
    };
    Outcome::failure(result, error.to_string())
}

/// A connection broke, with or without something of an answer.
fn of_broken(error: &(dyn StdError + 'static), answered: bool) -> Outcome {
    let http = causes(error).find_map(|cause| cause.downcast_ref::<hyper::Error>());
    let detail = causes(error).last().map(ToString::to_string).unwrap_or_default();
    let is_answer = is_too_much(error)
        || http.is_some_and(|error| error.is_parse() || (error.is_incomplete_message() && answered));
    Outcome::failure(if is_answer { AttemptResult::BadResponse } else { AttemptResult::Connect }, detail)
}
