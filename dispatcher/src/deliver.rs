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
mod request;
pub(crate) mod sign;

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use chaski_common::clock::Clock;
use chaski_common::event::Event;
use hyper::body::Body as _;
use prometheus::IntCounter;
use rustls::pki_types::CertificateDer;
use tokio::time::{Instant, timeout_at};

use self::client::{ConnectError, Connector, Dialer, Seen, TooMuch};
use self::links::{Links, NoAnswer};
use self::request::Requests;
use crate::destination::DestinationSpec;
use crate::outcome::{AttemptResult, Outcome};

/// Most of an answer's body that is read, so that its connection can be used again.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// Longest time spent on that: the status is known by then, nothing depends on the rest.
const BODY_TIME_MAX: Duration = Duration::from_secs(5);

/// Makes attempts at one destination.
pub(crate) struct Sender {
    links: Links,
    requests: Requests,
    timeout: Duration,
    clock: Clock,
}

impl Sender {
    pub(crate) fn new(
        spec: &DestinationSpec,
        dialer: &Dialer,
        clock: Clock,
        header_dropped: IntCounter,
    ) -> Self {
        Self {
            links: Links::new(Connector::new(dialer, spec.allow_private), spec.url.clone(), spec.concurrency),
            requests: Requests::new(spec, header_dropped),
            timeout: spec.timeout,
            clock,
        }
    }

    /// What the receiver has shown last; none in clear text.
    pub(crate) fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.links.certificate()
    }

    /// Attempt number `attempt` at delivering this event. It has the trace context that is given, or else the event's.
    pub(crate) async fn attempt(&self, event: &Event, attempt: u32, traceparent: Option<&str>) -> Outcome {
        let deadline = Instant::now() + self.timeout;
        let exchange =
            self.links.exchange(|| self.requests.make(event, attempt, traceparent, self.clock.now()));
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
