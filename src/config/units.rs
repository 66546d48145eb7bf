//! Durations, sizes and rates as the file writes them: with their unit.

use std::time::Duration;

/// `500ms`, `5s`, `5m`, `72h`, `30d`, or several, as in `1h30m`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() || text.is_empty() {
        let (count, after) = leading_number(rest)?;
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let part = match unit {
            "ms" => Duration::from_millis(count),
            "s" => Duration::from_secs(count),
            "m" => Duration::from_secs(count.checked_mul(60)?),
            "h" => Duration::from_secs(count.checked_mul(3600)?),
            "d" => Duration::from_secs(count.checked_mul(86_400)?),
            _ => return None,
        };
        total = total.checked_add(part)?;
        rest = after;
    }
    Some(total)
}

/// `512B`, `256KiB`, `1MiB` or `2GiB`, in bytes.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let (count, unit) = leading_number(text)?;
    let factor = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    count.checked_mul(factor)
}

/// `100/s`, `30/m` or `5/h`, as so many per second.
pub(super) fn rate(text: &str) -> Option<f64> {
    let (count, unit) = text.split_once('/')?;
    let seconds = match unit {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let (count, rest) = leading_number(count)?;
    let count =
        u32::try_from(count).ok().filter(|count| (1..=1_000_000).contains(count) && rest.is_empty())?;
    Some(f64::from(count) / seconds)
}

/// A rate as the file writes it, in the shortest unit of which it is a whole number.
#[must_use]
pub fn spell_rate(per_second: f64) -> String {
    // The file has whole numbers per hour at the least: what is nearer to one than this is one, but for rounding.
    const NEAR: f64 = 1e-6;
    let units = [("s", 1.0), ("m", 60.0), ("h", 3600.0)].into_iter();
    let mut counts = units.map(|(unit, seconds)| (unit, per_second * seconds));
    match counts.find(|(_, count)| count.round() >= 1.0 && (count - count.round()).abs() < NEAR) {
        Some((unit, count)) => format!("{}/{unit}", count.round()),
        None => format!("{per_second}/s"),
    }
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

/// A duration as the file writes it, in at most two units.
#[must_use]
pub fn spell_duration(duration: Duration) -> String {
    const UNITS: [(&str, u128); 5] =
        [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let millis = duration.as_millis();
    // Hours read better than days until they are many: "72h", as everywhere in the papers.
    let skip = usize::from(millis < 7 * UNITS[0].1 || !millis.is_multiple_of(UNITS[0].1));
    let Some(first) = UNITS.iter().skip(skip).position(|(_, unit)| millis >= *unit) else {
        return "0s".to_owned();
    };
    let mut rest = millis;
    let mut text = String::new();
    for (name, unit) in UNITS.iter().skip(skip + first).take(2) {
        if rest >= *unit {
            text.push_str(&format!("{}{name}", rest / unit));
            rest %= unit;
        }
    }
    text
}

/// A size as the file writes it.
#[must_use]
pub fn spell_size(bytes: u64) -> String {
    match bytes {
        0 => "0B".to_owned(),
        _ if bytes.is_multiple_of(1 << 30) => format!("{}GiB", bytes >> 30),
        _ if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        _ => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_need_units() {
        for (text, millis) in [
            ("500ms", 500),
            ("5s", 5000),
            ("5m", 300_000),
            ("72h", 259_200_000),
            ("30d", 2_592_000_000),
            ("1h30m", 5_400_000),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "5", "s", "5 s", "-5s", "5x", "1.5h", "5s5", "99999999999999999999s", "99999999999999999d"]
        {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        for (text, bytes) in [("1B", 1), ("256KiB", 262_144), ("1MiB", 1_048_576)] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "1", "1kb", "1KB", "KiB", "1 MiB", "99999999999GiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn a_spelt_size_reads_back() {
        for text in ["0B", "100B", "256KiB", "1025KiB", "16MiB", "1GiB", "1025MiB"] {
            assert_eq!(spell_size(parse_size(text).unwrap()), text);
        }
    }

    #[test]
    fn a_rate_is_per_second_minute_or_hour() {
        assert_eq!(rate("100/s"), Some(100.0));
        assert_eq!(rate("30/m"), Some(0.5));
        for text in ["", "100", "/s", "0/s", "1/d", "1.5/s", "1x/s", "9999999/s"] {
            assert_eq!(rate(text), None, "{text}");
        }
    }

    #[test]
    fn a_spelt_rate_is_the_one_that_was_read() {
        for text in ["100/s", "1000000/s", "1/m", "30/m", "90/m", "1/h", "7/h", "59/h", "999999/h"] {
            assert_eq!(spell_rate(rate(text).unwrap()), text);
        }
        for (text, shorter) in [("60/m", "1/s"), ("120/h", "2/m"), ("3600/h", "1/s")] {
            assert_eq!(spell_rate(rate(text).unwrap()), shorter);
        }
    }

    #[test]
    fn a_spelt_duration_reads_back() {
        for text in ["0s", "500ms", "5s", "1s500ms", "5m", "72h", "30d", "1h30m"] {
            assert_eq!(spell_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(spell_duration(Duration::from_secs(86_400)), "24h");
    }
}
