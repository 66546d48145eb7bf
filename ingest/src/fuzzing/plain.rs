//! The slow versions: no sharing, no single pass, nothing that is clever.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Deserializer as _;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A document as `serde_json` understands it, numbers as they were spelled.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Json {
    Null,
    Bool,
    Number(String),
    Text(String),
    Array(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

/// Why there is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoJson {
    Syntax,
    NameTwice,
}

/// Reads with `serde_json`, one level at a time.
pub(super) fn json(text: &str) -> Result<Json, NoJson> {
    let whole: &RawValue = serde_json::from_str(text).map_err(|_| NoJson::Syntax)?;
    value(whole.get())
}

fn value(text: &str) -> Result<Json, NoJson> {
    Ok(match text.as_bytes()[0] {
        b'n' => Json::Null,
        b't' | b'f' => Json::Bool,
        b'"' => Json::Text(serde_json::from_str(text).map_err(|_| NoJson::Syntax)?),
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(|_| NoJson::Syntax)?;
            Json::Array(items.iter().map(|item| value(item.get())).collect::<Result<_, _>>()?)
        }
        b'{' => {
            let mut reader = serde_json::Deserializer::from_str(text);
            let members = reader.deserialize_map(Members).map_err(|_| NoJson::Syntax)?;
            let names: BTreeSet<&String> = members.iter().map(|(name, _)| name).collect();
            // What is wrong in a member comes before what is wrong with its name.
            let is_twice = names.len() < members.len();
            let members = members.iter().map(|(name, member)| Ok((name.clone(), value(member.get())?)));
            let members = members.collect::<Result<BTreeMap<_, _>, _>>();
            if is_twice && members != Err(NoJson::Syntax) {
                return Err(NoJson::NameTwice);
            }
            Json::Object(members?)
        }
        _ => Json::Number(text.to_owned()),
    })
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(String, Box<RawValue>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut members: M) -> Result<Self::Value, M::Error> {
        let mut all = Vec::new();
        while let Some(name) = members.next_key().map_err(M::Error::custom)? {
            all.push((name, members.next_value()?));
        }
        Ok(all)
    }
}

impl Json {
    /// What stands at a pointer.
    pub(super) fn at(&self, steps: &[String]) -> Option<&Self> {
        let Some((first, rest)) = steps.split_first() else { return Some(self) };
        match self {
            Self::Object(members) => members.get(first)?.at(rest),
            Self::Array(items) => items.get(first.parse::<usize>().ok()?)?.at(rest),
            _ => None,
        }
    }

    /// Containers inside one another.
    pub(super) fn depth(&self) -> usize {
        match self {
            Self::Array(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            Self::Object(members) => 1 + members.values().map(Self::depth).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// Values, containers and scalars together.
    pub(super) fn nodes(&self) -> usize {
        1 + match self {
            Self::Array(items) => items.iter().map(Self::nodes).sum(),
            Self::Object(members) => members.values().map(Self::nodes).sum(),
            _ => 0,
        }
    }

    /// Whether every number is within its bounds: 128 bytes, and an exponent up to 308.
    pub(super) fn has_sane_numbers(&self) -> bool {
        match self {
            Self::Number(text) => {
                let exponent = text.to_ascii_lowercase();
                let exponent = exponent.split_once('e').map_or("0", |(_, digits)| digits);
                text.len() <= 128
                    && exponent.trim_start_matches(['+', '-']).parse().is_ok_and(|e: u128| e <= 308)
            }
            Self::Array(items) => items.iter().all(Self::has_sane_numbers),
            Self::Object(members) => members.values().all(Self::has_sane_numbers),
            _ => true,
        }
    }
}

/// The text without the white space between its tokens.
pub(super) fn minified(text: &[u8]) -> Vec<u8> {
    let mut whole: Vec<u8> = Vec::new();
    let mut was_word = false;
    let mut rest = text;
    while let [first, ..] = rest {
        let is_word = !b" \t\r\n{}[]:,\"".contains(first);
        let length = match first {
            b'"' => string_bytes(rest),
            _ if is_word => rest.iter().take_while(|byte| !b" \t\r\n{}[]:,\"".contains(byte)).count(),
            _ => 1,
        };
        if !b" \t\r\n".contains(first) {
            whole.extend(if is_word && was_word { &b" "[..] } else { b"" });
            whole.extend(&rest[..length]);
            was_word = is_word;
        }
        rest = &rest[length..];
    }
    whole
}

/// From a quote to behind the one that ends it, or to the end of all.
fn string_bytes(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

/// Nanoseconds since 1970 of a time in one of the four spellings; none where the text is none.
pub(super) fn nanoseconds(format: &str, text: &str) -> Option<i128> {
    const SECONDS_MAX: i128 = 100_000_000_000;
    // The last second of the last year that every zone has.
    const MILLIS_MAX: i128 = 253_402_207_200_000;
    let number = || {
        let is_plain = (1..=18).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_digit())
            && (text == "0" || !text.starts_with('0'));
        is_plain.then(|| text.parse::<i128>().ok()).flatten()
    };
    let nanos = match format {
        "unix" => number().filter(|seconds| *seconds <= SECONDS_MAX)? * SECOND,
        "unix_ms" => number().filter(|millis| *millis <= MILLIS_MAX)? * SECOND / 1000,
        "unix_auto" => match number()? {
            millis if millis > MILLIS_MAX => return None,
            millis if millis > SECONDS_MAX => millis * SECOND / 1000,
            seconds => seconds * SECOND,
        },
        _ => rfc3339(text)?,
    };
    // The years that there are: -9999 to 9999, less a day at either end for the zones.
    (-377_705_023_201 * SECOND..253_402_207_201 * SECOND).contains(&nanos).then_some(nanos)
}

const SECOND: i128 = 1_000_000_000;

fn rfc3339(text: &str) -> Option<i128> {
    let digits = |from: usize, count: usize| -> Option<i128> {
        let part = text.get(from..from + count)?;
        part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok()).flatten()
    };
    let is = |at: usize, one_of: &str| text.get(at..at + 1).is_some_and(|found| one_of.contains(found));
    if text.len() > 40 || !is(4, "-") || !is(7, "-") || !is(10, "Tt") || !is(13, ":") || !is(16, ":") {
        return None;
    }
    let (year, month, day) = (digits(0, 4)?, digits(5, 2)?, digits(8, 2)?);
    let (hour, minute, second) = (digits(11, 2)?, digits(14, 2)?, digits(17, 2)?);
    let leaps = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let months = [31, 28 + i128::from(leaps), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month_days = *months.get(usize::try_from(month).ok()?.checked_sub(1)?)?;
    if !(1..=month_days).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (mut at, mut nanos) = (19, 0);
    if is(at, ".") {
        let count = text[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=9).contains(&count) {
            return None;
        }
        nanos = format!("{:0<9}", &text[at + 1..=at + count]).parse::<i128>().ok()?;
        at += 1 + count;
    }
    let zone = &text[at..];
    let ahead = if matches!(zone, "Z" | "z") {
        0
    } else {
        let sign = if is(at, "+") { 1 } else { is(at, "-").then_some(-1)? };
        let (hours, minutes) = match zone.len() {
            6 if is(at + 3, ":") => (digits(at + 1, 2)?, digits(at + 4, 2)?),
            5 => (digits(at + 1, 2)?, digits(at + 3, 2)?),
            _ => return None,
        };
        // RFC 3339 has the hours of a zone like those of a day.
        if hours > 23 || minutes > 59 {
            return None;
        }
        sign * (hours * 3600 + minutes * 60)
    };
    let days = (0..year).map(|year| 365 + i128::from((year % 4 == 0 && year % 100 != 0) || year % 400 == 0));
    let days = days.sum::<i128>() + months[..month as usize - 1].iter().sum::<i128>() + day - 1 - 719_528;
    Some((days * 86_400 + hour * 3600 + minute * 60 + second - ahead) * SECOND + nanos)
}

/// Whose connection a PROXY header in front says it is, none when the proxy's own, and how long that header is. None
/// where there is none, as the protocol's documentation has it, or where it is longer than we take.
pub(super) fn proxied(bytes: &[u8]) -> Option<(Option<IpAddr>, usize)> {
    if bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n") { proxied_v2(bytes) } else { proxied_v1(bytes) }
}

fn proxied_v1(bytes: &[u8]) -> Option<(Option<IpAddr>, usize)> {
    let end = bytes.iter().position(|byte| *byte == b'\n')? + 1;
    let line = bytes[..end].strip_suffix(b"\r\n")?;
    if end > 107 || line.contains(&b'\r') {
        return None;
    }
    if line == b"PROXY UNKNOWN" || line.starts_with(b"PROXY UNKNOWN ") {
        return Some((None, end));
    }
    let words: Vec<&str> = std::str::from_utf8(line).ok()?.split(' ').collect();
    let ["PROXY", family, from, to, from_port, to_port] = words[..] else { return None };
    decimal(from_port, 65_535)?;
    decimal(to_port, 65_535)?;
    let address = match family {
        "TCP4" => [from, to].map(|text| ipv4(text).map(IpAddr::from)),
        "TCP6" => [from, to].map(|text| ipv6(text).map(IpAddr::from)),
        _ => return None,
    };
    let [Some(from), Some(_)] = address else { return None };
    Some((Some(from.to_canonical()), end))
}

fn proxied_v2(bytes: &[u8]) -> Option<(Option<IpAddr>, usize)> {
    let rest = usize::from(*bytes.get(14)?) * 256 + usize::from(*bytes.get(15)?);
    let end = 16 + rest;
    if end > 4096 || bytes.len() < end {
        return None;
    }
    let from = match (bytes[12], bytes[13]) {
        (0x20, _) | (0x21, 0x00) => None,
        (0x21, 0x11 | 0x12) if rest >= 12 => {
            Some(Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[16..20]).ok()?).into())
        }
        (0x21, 0x21 | 0x22) if rest >= 36 => {
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[16..32]).ok()?).into())
        }
        (0x21, 0x31 | 0x32) if rest >= 216 => None,
        _ => return None,
    };
    Some((from.map(|from: IpAddr| from.to_canonical()), end))
}

/// No sign, no zeros in front.
fn decimal(text: &str, max: u32) -> Option<u32> {
    let is_plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    text.parse().ok().filter(|number| is_plain && *number <= max)
}

fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let parts: Option<Vec<u32>> = text.split('.').map(|part| decimal(part, 255)).collect();
    let [a, b, c, d] = parts?[..] else { return None };
    Some((a << 24 | b << 16 | c << 8 | d).into())
}

fn ipv6(text: &str) -> Option<Ipv6Addr> {
    let (front, back) = text.split_once("::").map_or((text, None), |(front, back)| (front, Some(back)));
    let mut all = groups(front, back.is_none())?;
    if let Some(back) = back {
        let back = groups(back, true)?;
        let zeros = 8_usize.checked_sub(all.len() + back.len()).filter(|zeros| *zeros > 0)?;
        all.extend(vec![0; zeros]);
        all.extend(back);
    }
    Some(Ipv6Addr::from(<[u16; 8]>::try_from(all).ok()?))
}

/// Groups of hexadecimal digits; where they are the last of the text, an IPv4 address may stand for the last two.
fn groups(text: &str, may_end_in_ipv4: bool) -> Option<Vec<u16>> {
    let mut all = Vec::new();
    let mut parts = text.split(':').peekable();
    while let Some(part) = parts.next().filter(|_| !text.is_empty()) {
        if may_end_in_ipv4 && parts.peek().is_none() && part.contains('.') {
            let [a, b, c, d] = ipv4(part)?.octets();
            all.extend([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]);
        } else {
            let is_hex = (1..=4).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            all.push(u16::from_str_radix(part, 16).ok().filter(|_| is_hex)?);
        }
    }
    Some(all)
}
