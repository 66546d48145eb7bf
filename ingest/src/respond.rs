//! What became of a request, and how that is answered: one exhaustive match from an outcome to a status, a
//! reason label and a log level.
//!
//! Every 401 is the same bytes, so that an answer tells a forger nothing. A fault of ours is a 503 with
//! `Retry-After`, never a 4xx. Reason labels are the closed set shared with the published list of bad inputs.

use bytes::Bytes;
use chaski_common::event::EventId;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::Full;

use crate::budget;
use crate::content::Unusable;
use crate::location::Repeated;
use crate::source::Reply;

/// Seconds a sender is asked to wait when the edge is full or cannot store.
const RETRY_AFTER_SECONDS: &str = "5";

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Durable now.
    Accepted(EventId),
    /// Durable before.
    Duplicate(EventId),
    /// Signed, unusable, and durable as a dead letter.
    Quarantined(EventId, Quarantine),
    /// Not taken, and the sender is told why as far as it may know.
    Refused(Refusal),
    /// Not taken, and the fault is ours.
    Unavailable(Unavailable),
}

/// Why a signed event went to quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quarantine {
    /// Its content cannot be used.
    Unusable(Unusable),
    /// Its id is known with other content.
    Conflict,
}

impl Quarantine {
    /// The metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unusable(why) => why.label(),
            Self::Conflict => "dedup_conflict",
        }
    }
}

/// Why we could not take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Unavailable {
    /// More is in flight than the bounds allow.
    Overloaded,
    /// The storage did not make it durable.
    Storage,
    /// Its source is about to come into force.
    Changing,
}

macro_rules! labelled {
    ($(#[$doc:meta])* $vis:vis $name:ident { $($(#[$case_doc:meta])* $case:ident = $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        // As wide as a word: a result with a byte in it is copied in pieces that begin within words just written, for
        // which a processor has to wait.
        #[repr(u64)]
        $vis enum $name { $($(#[$case_doc])* $case,)* }

        impl $name {
            /// Every case, in the order of declaration.
            $vis const ALL: &'static [Self] = &[$(Self::$case,)*];

            /// The metric label.
            #[must_use]
            $vis const fn label(self) -> &'static str {
                match self { $(Self::$case => $label,)* }
            }
        }
    };
}
pub(crate) use labelled;

labelled! {
    /// Why a request is refused.
    pub Refusal {
        /// The target is longer than the bound.
        UriTooLong = "uri_too_long",
        /// More header fields than the bound.
        HeadTooLarge = "http_head_too_large",
        /// No `Host`, two of them, one that is no authority, or another than the target's.
        BadHost = "bad_host",
        /// A `Host` that is not one of ours.
        HostNotAllowed = "host_not_allowed",
        /// No source has this path.
        UnknownRoute = "unknown_route",
        /// Not POST.
        MethodNotAllowed = "method_not_allowed",
        /// Two `Transfer-Encoding` lines, or a length not in its canonical form.
        BadFraming = "bad_framing",
        /// Neither a length nor a transfer coding.
        LengthRequired = "length_required",
        /// An expectation other than `100-continue`.
        ExpectationFailed = "expectation_failed",
        /// Longer than the bound, declared or sent.
        BodyTooLarge = "body_too_large",
        /// The peer is not in `allow_ips`.
        IpNotAllowed = "ip_not_allowed",
        /// The address has sent too many wrong signatures, and this one was wrong, too, or not looked at.
        RateLimited = "rate_limited",
        /// No signature, or a part of the signed text is not there.
        MissingSignature = "missing_signature",
        /// A signature that cannot be read, also because the body is not the form that it is said to stand in.
        SignatureFormat = "signature_format",
        /// More signatures than any rotation needs.
        TooManySignatures = "too_many_signatures",
        /// A header that decides something is there twice, with different values; or a field of a form or query is.
        DuplicateHeader = "duplicate_header",
        /// The key id names no secret, or the secret that signed is not good now: not yet, or no more.
        UnknownKey = "unknown_key",
        /// A timestamp is asked for and is not there.
        MissingTimestamp = "missing_timestamp",
        /// Not a timestamp of the configured form.
        TimestampFormat = "timestamp_format",
        /// Older than the window.
        TimestampStale = "timestamp_stale",
        /// Further ahead than the window.
        TimestampFuture = "timestamp_future",
        /// The body did not arrive in time.
        BodyTimeout = "body_timeout",
        /// The peer closed before the end of the body.
        BodyIncomplete = "body_incomplete",
        /// Broken chunks.
        BodyFraming = "body_framing",
        /// No secret gives this signature.
        BadSignature = "bad_signature",
    }
}

impl Refusal {
    /// The HTTP status; 400 also stands for a peer that is not there any more to read it.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::HostNotAllowed => StatusCode::MISDIRECTED_REQUEST,
            Self::UnknownRoute => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::LengthRequired => StatusCode::LENGTH_REQUIRED,
            Self::ExpectationFailed => StatusCode::EXPECTATION_FAILED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::IpNotAllowed => StatusCode::FORBIDDEN,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::BadHost | Self::BadFraming | Self::BodyIncomplete | Self::BodyFraming => {
                StatusCode::BAD_REQUEST
            }
            Self::MissingSignature
            | Self::SignatureFormat
            | Self::TooManySignatures
            | Self::DuplicateHeader
            | Self::UnknownKey
            | Self::MissingTimestamp
            | Self::TimestampFormat
            | Self::TimestampStale
            | Self::TimestampFuture
            | Self::BadSignature => StatusCode::UNAUTHORIZED,
        }
    }
}

impl From<Repeated> for Refusal {
    fn from(Repeated: Repeated) -> Self {
        Self::DuplicateHeader
    }
}

impl Refusal {
    /// Whether it is the signature's fault.
    pub(crate) fn is_of_signature(self) -> bool {
        self.status() == StatusCode::UNAUTHORIZED
    }
}

impl Outcome {
    /// The values of the metric label `outcome`, as [`Outcome::index`] counts them.
    pub const LABELS: [&'static str; 5] = ["accepted", "duplicate", "quarantined", "refused", "unavailable"];

    /// Its place in [`Outcome::LABELS`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Accepted(_) => 0,
            Self::Duplicate(_) => 1,
            Self::Quarantined(..) => 2,
            Self::Refused(_) => 3,
            Self::Unavailable(_) => 4,
        }
    }

    /// Whether the sender has proved who it is.
    #[must_use]
    pub const fn is_authenticated(self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Unavailable(Unavailable::Overloaded))
    }

    /// The answer; `reply` is how the source wants to be told that its event is safe. Its headers take the room of
    /// `headers`, of which nothing stays.
    pub(crate) fn response(self, reply: &Reply, mut headers: HeaderMap) -> Response<Full<Bytes>> {
        headers.clear();
        let mut response = Response::new(Full::default());
        *response.headers_mut() = headers;
        self.write(reply, &mut response);
        response
    }

    fn write(self, reply: &Reply, response: &mut Response<Full<Bytes>>) {
        match self {
            Self::Accepted(id) | Self::Duplicate(id) | Self::Quarantined(id, _) => {
                let (body, content_type) = match &reply.body {
                    Some(body) => (body.clone(), reply.content_type.clone()),
                    None => {
                        let (mut digits, status) = ([0; 32], Self::LABELS[self.index()]);
                        let json = [r#"{"id":""#, id.encode(&mut digits), r#"","status":""#, status, r#""}"#];
                        (Bytes::from(json.concat()), HeaderValue::from_static("application/json"))
                    }
                };
                *response.status_mut() = reply.status;
                if !body.is_empty() {
                    response.headers_mut().insert(CONTENT_TYPE, content_type);
                    *response.body_mut() = Full::new(body);
                }
            }
            Self::Refused(why) => {
                *response.status_mut() = why.status();
                let headers = response.headers_mut();
                // Whatever of the request is unread is never parsed.
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
                match why {
                    Refusal::MethodNotAllowed => _ = headers.insert(ALLOW, HeaderValue::from_static("POST")),
                    Refusal::RateLimited => {
                        headers.insert(RETRY_AFTER, HeaderValue::from(budget::RETRY_AFTER.as_secs()));
                    }
                    _ => {}
                }
            }
            Self::Unavailable(_) => {
                // When there is too much to do, another connection would be more of it. If a body is not there yet,
                // hyper closes instead of waiting for it.
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                let seconds = HeaderValue::from_static(RETRY_AFTER_SECONDS);
                response.headers_mut().insert(RETRY_AFTER, seconds);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_401_is_the_same_answer() {
        let reply = Reply::default();
        let answers: Vec<String> = Refusal::ALL
            .iter()
            .filter(|why| why.status() == StatusCode::UNAUTHORIZED)
            .map(|why| format!("{:?}", Outcome::Refused(*why).response(&reply, HeaderMap::new())))
            .collect();
        assert!(answers.len() > 5);
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn labels_are_of_the_published_closed_set() {
        let published: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/it/corpus/bad_inputs.json")).unwrap();
        let published: Vec<&str> =
            published["reasons"].as_array().unwrap().iter().map(|label| label.as_str().unwrap()).collect();
        for label in
            Refusal::ALL.iter().map(|why| why.label()).chain(Unusable::ALL.iter().map(|why| why.label()))
        {
            assert!(published.contains(&label), "{label}");
        }
    }
}
