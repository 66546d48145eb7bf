//! When a sender says it signed: four spellings, one window.

use std::time::Duration;

use jiff::Timestamp;

use crate::respond::Refusal;

/// Above this a number of seconds would be past the year 5138, so it is milliseconds.
const UNIX_SECONDS_MAX: i64 = 100_000_000_000;

/// How a timestamp is spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Unix,
    UnixMs,
    UnixAuto,
    Rfc3339,
}

impl Format {
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "unix" => Self::Unix,
            "unix_ms" => Self::UnixMs,
            "unix_auto" => Self::UnixAuto,
            "rfc3339" => Self::Rfc3339,
            _ => return None,
        })
    }

    /// The time, if the text is spelled this way and no other.
    pub(crate) fn parse(self, text: &str) -> Option<Timestamp> {
        match self {
            Self::Unix => digits(text).filter(|number| *number <= UNIX_SECONDS_MAX).and_then(seconds),
            Self::UnixMs => digits(text).and_then(|number| Timestamp::from_millisecond(number).ok()),
            Self::UnixAuto => parse_unix_auto(text),
            Self::Rfc3339 => parse_rfc3339(text),
        }
    }

    /// The spelling of a time, for signing.
    pub(crate) fn print(self, time: Timestamp) -> String {
        match self {
            Self::Unix | Self::UnixAuto => time.as_second().to_string(),
            Self::UnixMs => time.as_millisecond().to_string(),
            Self::Rfc3339 => format!("{time:.3}"),
        }
    }
}

/// Whether `time` is near enough to `now`; both ends belong to the window.
pub(crate) fn check_window(
    time: Timestamp,
    now: Timestamp,
    past: Duration,
    future: Duration,
) -> Result<(), Refusal> {
    let age = now.as_millisecond() - time.as_millisecond();
    if age > millis(past) {
        Err(Refusal::TimestampStale)
    } else if -age > millis(future) {
        Err(Refusal::TimestampFuture)
    } else {
        Ok(())
    }
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

fn digits(text: &str) -> Option<i64> {
    let plain = !text.is_empty()
        && text.len() <= 18
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && (text.len() == 1 || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

fn seconds(number: i64) -> Option<Timestamp> {
    Timestamp::from_second(number).ok()
}

/// Seconds, or milliseconds where seconds would be absurd.
pub(crate) fn parse_unix_auto(text: &str) -> Option<Timestamp> {
    let number = digits(text)?;
    if number > UNIX_SECONDS_MAX { Timestamp::from_millisecond(number).ok() } else { seconds(number) }
}

/// `2026-02-25T10:00:00-05:00`, also with a fraction, `Z` or `+0000`. An offset must be there, a leap second
/// must not.
pub(crate) fn parse_rfc3339(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let shape = b"0000-00-00T00:00:00";
    let matches = |(byte, shape): (&u8, &u8)| {
        if *shape == b'0' { byte.is_ascii_digit() } else { byte.eq_ignore_ascii_case(shape) }
    };
    if bytes.len() > 40
        || bytes.len() <= shape.len()
        || !bytes.iter().zip(shape).all(matches)
        || &bytes[17..19] == b"60"
    {
        return None;
    }
    let rest = &text[19..];
    let offset = rest
        .strip_prefix('.')
        .map_or(rest, |fraction| fraction.trim_start_matches(|c: char| c.is_ascii_digit()));
    let offset_bytes = offset.as_bytes();
    let numeric = match offset_bytes {
        [b'+' | b'-', a, b, b':', c, d] | [b'+' | b'-', a, b, c, d] => {
            [a, b, c, d].iter().all(|byte| byte.is_ascii_digit()) && [*a, *b] < *b"24" && *c < b'6'
        }
        _ => false,
    };
    if !numeric && !offset.eq_ignore_ascii_case("z") {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_configured_spelling_is_a_timestamp() {
        for wrong in
            ["", "abc", "-1", "1.5", "99999999999999999999", "1772031600000", "1 1", "+1", "٢", "01772031600"]
        {
            assert_eq!(Format::Unix.parse(wrong), None, "{wrong}");
        }
        for wrong in [
            "2026-02-25T10:00:00",
            "2026-02-25 10:00:00Z",
            "2016-12-31T23:59:60Z",
            "2026-02-30T00:00:00Z",
            "+010000-01-01T00:00:00Z",
            "2026-02-25T10:00:00-05",
            "2026-02-25T10:00:00+24:00",
            "2026-02-25T10:00:00-05:60",
            "2026-02-25T10:00:00[America/Lima]",
            "2026-02-25T10:00:00-05:00[America/Lima]",
            "1772031600",
        ] {
            assert_eq!(Format::Rfc3339.parse(wrong), None, "{wrong}");
        }
        let expected = Timestamp::from_second(1_772_031_600).ok();
        for (format, text) in [
            (Format::Unix, "1772031600"),
            (Format::UnixMs, "1772031600000"),
            (Format::UnixAuto, "1772031600"),
            (Format::UnixAuto, "1772031600000"),
            (Format::Rfc3339, "2026-02-25T10:00:00-05:00"),
            (Format::Rfc3339, "2026-02-25T15:00:00.000Z"),
            (Format::Rfc3339, "2026-02-25T15:00:00.000+0000"),
        ] {
            assert_eq!(format.parse(text), expected, "{text}");
        }
    }

    #[test]
    fn both_ends_of_the_window_belong_to_it() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let check =
            |time| check_window(at(time), at(1000), Duration::from_secs(300), Duration::from_secs(60));
        assert_eq!(check(699), Err(Refusal::TimestampStale));
        assert_eq!(check(700), Ok(()));
        assert_eq!(check(1060), Ok(()));
        assert_eq!(check(1061), Err(Refusal::TimestampFuture));
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(second in 1_000_000_000_i64..4_000_000_000) {
            let time = Timestamp::from_second(second).unwrap();
            for format in [Format::Unix, Format::UnixMs, Format::UnixAuto, Format::Rfc3339] {
                prop_assert_eq!(format.parse(&format.print(time)), Some(time));
            }
        }

        #[test]
        fn no_text_is_a_panic(text in "\\PC{0,50}") {
            for format in [Format::Unix, Format::UnixMs, Format::UnixAuto, Format::Rfc3339] {
                let _ = format.parse(&text);
            }
        }
    }
}
