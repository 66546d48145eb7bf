//! What the fuzzers run: a receiver's answer, as bytes on a connection.

use std::time::Duration;

use chaski_common::fuzzing::Target;
use http::StatusCode;
use http::header::RETRY_AFTER;
use hyper::Request;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use tokio::io::AsyncWriteExt as _;

use crate::outcome::{AttemptResult, Outcome};

/// Every target of this crate.
pub const TARGETS: &[Target] = &[Target { name: "answer", run: answer }];

const NOW: i64 = 1_772_031_600;

/// Through hyper's client, then into an outcome; beside a reading of `Retry-After` that knows one form of a date.
fn answer(input: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let Some((status, headers)) = runtime.block_on(read(input)) else { return };
    let now = Timestamp::from_second(NOW).expect("a time");
    let outcome = Outcome::of_answer(status, &headers, now);
    assert_eq!(outcome.status, Some(status.as_u16()));
    assert_eq!(outcome.is_success(), status.is_success());
    assert!(!(outcome.is_outage() && outcome.is_rejection()));
    assert!(outcome.result != AttemptResult::Success || outcome.retry_after.is_none());
    let first = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::trim);
    let Some(written) = first.filter(|_| !outcome.is_success()) else {
        assert_eq!(outcome.retry_after, None);
        return;
    };
    if !written.is_empty() && written.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds = written
            .bytes()
            .fold(0_u64, |all, digit| all.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
        assert_eq!(outcome.retry_after, Some(Duration::from_secs(seconds)), "{written}");
    } else if let Some(seconds) = imf_fixdate(written) {
        let expected = Duration::from_secs(u64::try_from(seconds - NOW).unwrap_or(0));
        assert_eq!(outcome.retry_after, Some(expected), "{written}");
    }
}

async fn read(input: &[u8]) -> Option<(StatusCode, http::HeaderMap)> {
    let (mut receiver, ours) = tokio::io::duplex(16 * 1024);
    let connecting = hyper::client::conn::http1::handshake(TokioIo::new(ours));
    let (mut client, connection) = connecting.await.expect("a handshake sends nothing");
    let request = Request::post("/").header("host", "a").body(String::new()).expect("a request");
    let asking = async move {
        let answer = client.send_request(request).await.ok()?;
        // Nobody waits for the body.
        Some((answer.status(), answer.headers().clone()))
    };
    let answering = async {
        let _ = receiver.write_all(input).await;
        let _ = receiver.shutdown().await;
    };
    let all = async { tokio::join!(asking, connection, answering).0 };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("the connection ends")
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, by its columns.
fn imf_fixdate(text: &str) -> Option<i64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    let part = |from: usize, to: usize| text.get(from..to);
    let number =
        |from, to| part(from, to).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?.parse().ok();
    let is_there = |at: usize, expected: &str| part(at, at + expected.len()) == Some(expected);
    let shape = [(3, ", "), (7, " "), (11, " "), (16, " "), (19, ":"), (22, ":"), (25, " GMT")];
    if text.len() != 29 || !shape.iter().all(|(at, expected)| is_there(*at, expected)) {
        return None;
    }
    let month =
        MONTHS.as_bytes().chunks(3).position(|name| Some(name) == part(8, 11).map(str::as_bytes))? + 1;
    let [day, year, hour, minute, second] =
        [number(5, 7)?, number(12, 16)?, number(17, 19)?, number(20, 22)?, number(23, 25)?];
    let small = |number: i16| i8::try_from(number).ok();
    let (day, hour, minute) = (small(day)?, small(hour)?, small(minute)?);
    let time = DateTime::new(year, i8::try_from(month).ok()?, day, hour, minute, small(second)?, 0).ok()?;
    let weekday = DAYS[usize::try_from(time.date().weekday().to_monday_zero_offset()).ok()?];
    let time = time.to_zoned(TimeZone::UTC).ok()?;
    is_there(0, weekday).then(|| time.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_one_outcome() {
        chaski_common::fuzzing::brief(TARGETS[0]);
    }
}
