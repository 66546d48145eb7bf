//! What came of one attempt: a status, headers or a transport's error, as one of a closed set of results.
//! Pure; what follows from it is decided in [`crate::attempt`].

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

/// The metric label `result`: closed, one series each per destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AttemptResult {
    Success,
    Http3xx,
    Http4xx,
    Http5xx,
    Gone,
    RateLimited,
    BadResponse,
    Timeout,
    Connect,
    Tls,
    Dns,
    SsrfBlocked,
    /// A fault of ours: the attempt's code panicked.
    Internal,
}

impl AttemptResult {
    pub(crate) const ALL: [Self; 13] = [
        Self::Success,
        Self::Http3xx,
        Self::Http4xx,
        Self::Http5xx,
        Self::Gone,
        Self::RateLimited,
        Self::BadResponse,
        Self::Timeout,
        Self::Connect,
        Self::Tls,
        Self::Dns,
        Self::SsrfBlocked,
        Self::Internal,
    ];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Http3xx => "http_3xx",
            Self::Http4xx => "http_4xx",
            Self::Http5xx => "http_5xx",
            Self::Gone => "gone",
            Self::RateLimited => "rate_limited",
            Self::BadResponse => "bad_response",
            Self::Timeout => "timeout",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Dns => "dns",
            Self::SsrfBlocked => "ssrf_blocked",
            Self::Internal => "internal",
        }
    }
}

/// What came of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) result: AttemptResult,
    /// The answer's status, where there was an answer.
    pub(crate) status: Option<u16>,
    /// How long the receiver asks to be left alone.
    pub(crate) retry_after: Option<Duration>,
    /// For a person. Never a payload, never a secret.
    pub(crate) detail: String,
}

impl Outcome {
    /// An answer with this head.
    pub(crate) fn of_answer(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Self {
        let result = match status.as_u16() {
            200..=299 => {
                return Self {
                    result: AttemptResult::Success,
                    status: Some(status.as_u16()),
                    retry_after: None,
                    detail: String::new(),
                };
            }
            300..=399 => AttemptResult::Http3xx,
            410 => AttemptResult::Gone,
            429 => AttemptResult::RateLimited,
            400..=499 => AttemptResult::Http4xx,
            500..=599 => AttemptResult::Http5xx,
            _ => AttemptResult::BadResponse,
        };
        let retry_after =
            headers.get(header::RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?, now));
        Self { result, status: Some(status.as_u16()), retry_after, detail: status.to_string() }
    }

    /// No usable answer.
    pub(crate) fn failure(result: AttemptResult, detail: impl Into<String>) -> Self {
        Self { result, status: None, retry_after: None, detail: detail.into() }
    }

    pub(crate) fn is_success(&self) -> bool {
        self.result == AttemptResult::Success
    }

    /// Whether this tells of the destination rather than of the event: only such failures open a breaker.
    pub(crate) fn is_outage(&self) -> bool {
        match self.status {
            Some(status) => matches!(status, 408 | 429 | 502 | 503 | 504),
            None => matches!(
                self.result,
                AttemptResult::Connect
                    | AttemptResult::Tls
                    | AttemptResult::Dns
                    | AttemptResult::SsrfBlocked
                    | AttemptResult::Timeout
            ),
        }
    }

    /// Whether the receiver says that this request is wrong and another try will be, too.
    pub(crate) fn is_rejection(&self) -> bool {
        self.status.is_some_and(is_rejection)
    }
}

/// Whether an answer with this status says that the request is wrong, whoever it comes from.
pub(crate) const fn is_rejection(status: u16) -> bool {
    matches!(status, 400 | 413 | 415 | 422)
}

/// The value of a `Retry-After`: seconds, or an HTTP date (RFC 9110, 10.2.3). Nonsense is as if it were not
/// there; a date gone by is zero.
fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    static HTTP_DATE: DateTimeParser = DateTimeParser::new();
    let date = HTTP_DATE.parse_timestamp(value).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_the_result_the_metric_names() {
        let cases = [
            (200, "success"),
            (201, "success"),
            (204, "success"),
            (299, "success"),
            (301, "http_3xx"),
            (302, "http_3xx"),
            (308, "http_3xx"),
            (400, "http_4xx"),
            (401, "http_4xx"),
            (404, "http_4xx"),
            (408, "http_4xx"),
            (410, "gone"),
            (429, "rate_limited"),
            (500, "http_5xx"),
            (503, "http_5xx"),
            (100, "bad_response"),
            (600, "bad_response"),
            (999, "bad_response"),
        ];
        for (status, label) in cases {
            let outcome = Outcome::of_answer(
                StatusCode::from_u16(status).unwrap(),
                &HeaderMap::new(),
                Timestamp::UNIX_EPOCH,
            );
            assert_eq!(outcome.result.label(), label, "{status}");
        }
    }

    #[test]
    fn only_failures_of_the_whole_destination_are_outages() {
        let of = |status: u16| {
            Outcome::of_answer(
                StatusCode::from_u16(status).unwrap(),
                &HeaderMap::new(),
                Timestamp::UNIX_EPOCH,
            )
        };
        for status in [408, 429, 502, 503, 504] {
            assert!(of(status).is_outage(), "{status}");
        }
        for status in [200, 302, 400, 401, 404, 410, 413, 422, 500, 501] {
            assert!(!of(status).is_outage(), "{status}");
        }
        for result in AttemptResult::ALL {
            let expected = ["connect", "tls", "dns", "ssrf_blocked", "timeout"].contains(&result.label());
            assert_eq!(Outcome::failure(result, "").is_outage(), expected, "{result:?}");
        }
    }

    #[test]
    fn retry_after_is_read_in_both_of_its_forms() {
        let now: Timestamp = "1994-11-06T08:49:00Z".parse().unwrap();
        let seconds = |value| retry_after(value, now).map(|delay| delay.as_secs());
        let cases = [
            ("30", Some(30)),
            (" 120 ", Some(120)),
            ("0", Some(0)),
            ("99999999", Some(99_999_999)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            ("Sun, 06 Nov 1994 08:48:00 GMT", Some(0)),
            ("-5", None),
            ("", None),
            ("soon", None),
            ("1.5", None),
            ("1e3", None),
        ];
        for (value, expected) in cases {
            assert_eq!(seconds(value), expected, "{value:?}");
        }
    }

    #[test]
    fn labels_differ() {
        let labels: std::collections::HashSet<_> =
            AttemptResult::ALL.map(AttemptResult::label).into_iter().collect();
        assert_eq!(labels.len(), AttemptResult::ALL.len());
    }
}
