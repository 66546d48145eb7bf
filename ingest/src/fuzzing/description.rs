//! Templates and whole schemes, beside plain readings of the same description.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use chaski_common::event::EventId;
use chaski_common::mac::{Hash, MacKey};
use chaski_common::secret::Secret;
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;

use super::plain::{self, Json};
use crate::content::Rules;
use crate::location::Location;
use crate::presets;
use crate::request::{Head, Received};
use crate::source::{EventSpec, SchemeSpec, Secrets, SignatureSpec};
use crate::verify::sign::{Signed, Signer, sign};
use crate::verify::template::{Template, Variable};
use crate::verify::{Cover, Scheme, Verified};

pub(super) const NOW: i64 = 1_772_031_600;

/// The first line is a template, the others are `variable=value`.
pub(super) fn template(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut lines = text.split('\n');
    let written = lines.next().unwrap_or_default();
    let known: BTreeMap<&str, &str> = lines.filter_map(|line| line.split_once('=')).collect();
    let constants = BTreeMap::from([("login".to_owned(), "Me\\/".to_owned())]);
    let value = |name: &str| known.get(name).map(|value| value.as_bytes().to_vec());
    let compiled = Template::compile(written, &constants).ok();
    let ours = compiled.as_ref().map(|template| {
        let parts = template.render(|variable| {
            let name = match variable {
                Variable::Body => "body".to_owned(),
                Variable::Timestamp => "ts".to_owned(),
                Variable::At(place) => place.to_string(),
            };
            Ok::<_, Infallible>(value(&name).map(Into::into))
        });
        parts.unwrap_or_default().map(|parts| parts.concat())
    });
    assert_eq!(ours, rendered(written, &constants, &value), "{written:?} with {known:?}");
}

/// None: this is no template. Some of none: a variable is missing that may not be.
fn rendered(
    text: &str,
    constants: &BTreeMap<String, String>,
    value: &dyn Fn(&str) -> Option<Vec<u8>>,
) -> Option<Option<Vec<u8>>> {
    let (mut whole, mut part): (Vec<u8>, Option<Option<Vec<u8>>>) = (Vec::new(), None);
    let (mut variables, mut is_missing) = (0, false);
    let mut rest = text;
    while !rest.is_empty() {
        let length = match rest.as_bytes()[0] {
            b'[' if part.is_some() => return None,
            b'[' => {
                part = Some(Some(Vec::new()));
                1
            }
            b']' => {
                whole.extend(part.take()?.unwrap_or_default());
                1
            }
            b'}' => return None,
            first => {
                let (length, found) = if first == b'{' {
                    let end = rest.find('}')?;
                    let (is_variable, found) = variable(&rest[1..end], constants, value)?;
                    variables += usize::from(is_variable);
                    (end + 1, found)
                } else {
                    (1, Some(vec![first]))
                };
                if first == b'{' && part.is_some() && !rest.starts_with("{const:") {
                    // Up to where the next one begins, or the value of a constant.
                    let behind = &rest[length..];
                    let end = match behind.strip_prefix("{const:").and_then(|_| behind.find('}')) {
                        Some(end) => variable(&behind[1..end], constants, value)?.1.unwrap_or_default(),
                        None => behind.split(['{', '[', ']', '}']).next().unwrap_or_default().into(),
                    };
                    let mut places = 0..found.as_ref().map_or(0, Vec::len);
                    is_missing |= !end.is_empty()
                        && places.any(|at| found.as_ref().is_some_and(|found| found[at..].starts_with(&end)));
                }
                match (&mut part, found) {
                    (Some(Some(part)), Some(found)) => part.extend(found),
                    (Some(part), _) => *part = None,
                    (None, Some(found)) => whole.extend(found),
                    (None, None) => is_missing = true,
                }
                length
            }
        };
        // Characters of several bytes are copied byte by byte, so they are looked at as bytes, too.
        if !rest.is_char_boundary(length) {
            let character = rest.chars().next().map_or(1, char::len_utf8);
            match &mut part {
                Some(Some(part)) => part.extend(&rest.as_bytes()[1..character]),
                Some(None) => {}
                None => whole.extend(&rest.as_bytes()[1..character]),
            }
            rest = &rest[character..];
        } else {
            rest = &rest[length..];
        }
    }
    (part.is_none() && variables > 0).then(|| (!is_missing).then_some(whole))
}

/// Whether it is one, and its value.
fn variable(
    text: &str,
    constants: &BTreeMap<String, String>,
    value: &dyn Fn(&str) -> Option<Vec<u8>>,
) -> Option<(bool, Option<Vec<u8>>)> {
    let words: Vec<&str> = text.split('|').collect();
    let (is_variable, mut found) = match (words[0], words[0].strip_prefix("const:")) {
        (_, Some(name)) => (false, Some(constants.get(name)?.clone().into_bytes())),
        (name @ ("body" | "ts"), None) => (true, value(name)),
        (place, None) => (true, value(&Location::parse(place).ok()?.to_string())),
    };
    if words[1..].iter().any(|filter| !["lower", "unslash"].contains(filter)) {
        return None;
    }
    if words[1..].contains(&"unslash") {
        found = found.map(|text| {
            let drops = |at: usize| text[at..].starts_with(b"\\/");
            text.iter().enumerate().filter(|(at, _)| !drops(*at)).map(|(_, byte)| *byte).collect()
        });
    }
    if words[1..].contains(&"lower") {
        found = found.map(|text| text.iter().map(u8::to_ascii_lowercase).collect());
    }
    Some((is_variable, found))
}

/// A preset, signed, changed at up to three places, and verified: byte 0 is the preset, byte 1 how many changes of
/// four bytes each there are, the rest is the body.
pub(super) fn scheme(input: &[u8]) {
    let [preset, changes, rest @ ..] = input else { return };
    let name = presets::names()[usize::from(*preset) % presets::names().len()];
    let (changes, body) = rest.split_at((usize::from(*changes) % 4 * 4).min(rest.len()));
    let (spec, secret) = merchant(name);
    let now = Timestamp::from_second(NOW).expect("a time");
    let signer = Signer { key_id: key_id(&spec), secret: &secret, forge: false };
    let Ok(mut signed) = sign(&spec, signer, body, now) else { return };
    let original = received(signed.clone());
    let mut late = 0;
    for change in changes.chunks_exact(4) {
        late += apply(change, &mut signed);
    }
    let signed_at = now;
    let Some(now) = now.checked_add(Duration::from_millis(late)).ok() else { return };
    let received = received(signed);
    let secrets = match key_id(&spec) {
        Some(id) => Secrets::ById([(id.to_owned(), secret.clone().into())].into()),
        None => Secrets::Any(vec![secret.clone().into()]),
    };
    let scheme = Scheme::compile(&spec, &secrets).expect("a preset compiles");
    let ours = scheme.verify(&received, now);
    let theirs = accepts(&spec.signature, &secret, &received, now);
    assert_eq!(
        ours.is_ok(),
        theirs.is_some(),
        "{name}: {:?}, plain {theirs:?}: {received:?}",
        ours.as_ref().err()
    );
    if let Ok(ours) = ours
        && let Some(meaning) = Meaning::of(&spec.event, &scheme, &ours, now)
    {
        let original = scheme.verify(&original, signed_at).expect("what is signed is accepted");
        let said = Meaning::of(&spec.event, &scheme, &original, signed_at);
        assert!(
            meaning.is_among(said.as_slice(), &scheme),
            "{name} is made to say something else: {received:?}"
        );
    }
    if changes.is_empty() {
        assert!(theirs.is_some(), "{name}: what is signed is accepted");
    }
}

/// What an accepted request says, as far as the signature covers where it says so: nobody without the key may have it
/// say anything else. None if it goes to quarantine, or a credential covers nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Meaning {
    id: Option<EventId>,
    kind: Option<String>,
    subject: Option<Option<String>>,
}

impl Meaning {
    pub(super) fn of(
        spec: &EventSpec,
        scheme: &Scheme,
        verified: &Verified<'_>,
        now: Timestamp,
    ) -> Option<Self> {
        let is_signed = |place: &String| Location::parse(place).is_ok_and(|place| scheme.covers(&place));
        let all_is = |place: &Option<String>| place.iter().all(is_signed);
        let fallback_is =
            spec.fallback.as_deref() != Some(EventSpec::BODY_SHA256) || scheme.cover() == Cover::Body;
        let usable = Rules::compile(spec).expect("a preset").read(verified, "source", now).ok()?;
        let covers = spec.id.iter().chain(&spec.kind).any(is_signed) || scheme.cover() != Cover::Nothing;
        covers.then(|| Self {
            id: (fallback_is && spec.id.iter().all(is_signed)).then_some(usable.id),
            kind: all_is(&spec.kind).then(|| usable.kind.into_owned()),
            subject: all_is(&spec.subject).then(|| usable.subject.map(Cow::into_owned)),
        })
    }

    /// Whether it is one of those that were said. Where nothing was, because what was signed is quarantined, only a
    /// body that is signed must stay there: of another one what was wrong can have been taken out.
    pub(super) fn is_among(&self, said: &[Self], scheme: &Scheme) -> bool {
        said.contains(self) || (said.is_empty() && scheme.cover() != Cover::Body)
    }
}

/// A preset with what only a merchant can fill in.
pub(super) fn merchant(name: &str) -> (SchemeSpec, Secret) {
    let mut spec = presets::load(name).expect("a preset");
    spec.signature.constants.insert("x_login".to_owned(), "login".to_owned());
    let secret = match (spec.signature.algorithm.as_str(), spec.signature.key.encoding.as_str()) {
        ("http-basic", _) => "user:password",
        (_, "hex") => "00112233445566778899aabbccddeeff",
        (_, "base64") => "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        _ => "chaski-test-secret/not+real",
    };
    (spec, Secret::new(secret))
}

/// How the request names its key, where it does.
pub(super) fn key_id(spec: &SchemeSpec) -> Option<&'static str> {
    spec.signature.key.select.is_some().then_some("k1")
}

/// One change; says by how many milliseconds later it is looked at.
fn apply(change: &[u8], signed: &mut Signed) -> u64 {
    let [kind, which, place, byte] = change else { return 0 };
    let index = usize::from(*which) % signed.headers.len();
    let at = |length: usize| usize::from(*place) % length.max(1);
    let repeat = |form: &str| {
        let names: Vec<&str> = form.split('&').filter_map(|pair| Some(pair.split_once('=')?.0)).collect();
        let name = names.get(at(names.len())).copied().unwrap_or_default();
        respelled(name, usize::from(*byte)) + "=1"
    };
    let edited = |bytes: &[u8]| {
        let (mut bytes, at) = (bytes.to_vec(), at(bytes.len()));
        match kind % 4 {
            0 if at < bytes.len() => bytes[at] ^= byte,
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.insert(at, *byte),
            _ => bytes.make_ascii_uppercase(),
        }
        bytes
    };
    match kind / 4 % 8 {
        0..=2 => {
            if let Ok(value) = HeaderValue::from_bytes(&edited(signed.headers[index].1.as_bytes())) {
                signed.headers[index].1 = value;
            }
        }
        3 => drop(signed.headers.remove(index)),
        // A field of the query or of a form once more, with another value, its name perhaps in other words.
        5 if *kind >= 128 => {
            signed.query = signed.query.take().map(|query| format!("{query}&{}", repeat(&query)));
        }
        7 if *kind >= 128 => {
            let form = String::from_utf8_lossy(&signed.body);
            signed.body = Bytes::from(format!("{form}&{}", repeat(&form)));
        }
        4 => {
            let (name, value) = signed.headers[index].clone();
            let value = HeaderValue::from_bytes(&edited(value.as_bytes())).unwrap_or(value);
            signed.headers.push((name, value));
        }
        5 => {
            let query = edited(signed.query.as_deref().unwrap_or_default().as_bytes());
            signed.query = String::from_utf8(query).ok();
        }
        6 => return u64::from(*which) << (place % 16),
        _ => signed.body = Bytes::from(edited(&signed.body)),
    }
    if signed.headers.is_empty() {
        signed.headers.push((HeaderName::from_static("x-left"), HeaderValue::from_static("1")));
    }
    0
}

/// The name of a field with one letter written as its number, where there are so many.
pub(super) fn respelled(name: &str, at: usize) -> String {
    match name.as_bytes().get(at) {
        Some(letter) if letter.is_ascii_alphanumeric() => {
            format!("{}%{letter:02x}{}", &name[..at], &name[at + 1..])
        }
        _ => name.to_owned(),
    }
}

pub(super) fn received(signed: Signed) -> Received {
    let mut headers = HeaderMap::new();
    for (name, value) in signed.headers {
        headers.append(name, value);
    }
    Received { head: Head { headers, query: signed.query, peer: [127, 0, 0, 1].into() }, body: signed.body }
}

/// The description, read word by word. None is a refusal, whatever for.
pub(super) fn accepts(
    spec: &SignatureSpec,
    secret: &Secret,
    received: &Received,
    now: Timestamp,
) -> Option<()> {
    let value = at(&spec.from, received)??;
    let value = String::from_utf8(value).ok()?;
    let entries: Vec<&str> = match &spec.list {
        Some(list) => value.split(list.as_str()).map(str::trim).filter(|entry| !entry.is_empty()).collect(),
        None => [value.trim()].into_iter().filter(|entry| !entry.is_empty()).collect(),
    };
    let time_tag = spec.timestamp.as_ref().and_then(|time| time.from.strip_prefix("tag:"));
    let (mut signatures, mut times) = (Vec::new(), Vec::new());
    for entry in entries {
        match &spec.pair {
            None if spec.algorithm == "http-basic" => {
                let lower = entry.to_ascii_lowercase();
                let rest = lower.strip_prefix(&spec.prefix.to_ascii_lowercase());
                signatures.push(rest.map(|rest| &entry[entry.len() - rest.len()..]));
            }
            None => signatures.push(entry.strip_prefix(&spec.prefix)),
            Some(pair) => match entry.split_once(pair.as_str()) {
                Some((tag, value)) if spec.tags.iter().any(|counts| counts == tag) => {
                    signatures.push(Some(value));
                }
                Some((tag, value)) if Some(tag) == time_tag => times.push(value),
                Some(_) => {}
                None => signatures.push(None),
            },
        }
    }
    let all_same = times.windows(2).all(|pair| pair[0] == pair[1]);
    if signatures.len() > 16 || !all_same {
        return None;
    }
    if let Some(select) = &spec.key.select
        && at(select, received)?? != b"k1"
    {
        return None;
    }
    let ts = match &spec.timestamp {
        None => None,
        Some(rule) => match time_tag {
            Some(_) => Some(times.first()?.as_bytes().to_vec()),
            None => Some(at(&rule.from, received)??),
        },
    };
    if let (Some(rule), Some(text)) = (&spec.timestamp, &ts) {
        let time = plain::nanoseconds(&rule.format, std::str::from_utf8(text).ok()?)? / 1_000_000;
        let age = i128::from(now.as_millisecond()) - time;
        if age > rule.past.as_millis() as i128 || -age > rule.future.as_millis() as i128 {
            return None;
        }
    }
    let key = secret.expose();
    let key = key.strip_prefix(spec.key.strip_prefix.as_bytes()).unwrap_or(key);
    let decode = |encoding: &str, text: &[u8]| match encoding {
        "hex" => hex::decode(text).ok(),
        "base64" => BASE64.decode(text).ok(),
        _ => Some(text.to_vec()),
    };
    let key = decode(&spec.key.encoding, key)?;
    let mut signatures =
        signatures.into_iter().flatten().filter_map(|text| decode(&spec.encoding, text.as_bytes()));
    if spec.algorithm == "http-basic" {
        return signatures.any(|signature| signature == key).then_some(());
    }
    let hash = match &*spec.algorithm {
        "hmac-sha1" => Hash::Sha1,
        "hmac-sha256" => Hash::Sha256,
        _ => Hash::Sha512,
    };
    let signatures: Vec<Vec<u8>> = signatures.collect();
    texts(spec, ts.as_deref(), received)?
        .iter()
        .any(|text| {
            let tag = MacKey::new(hash, &key).tag(&[text]);
            signatures.iter().any(|signature| tag.as_bytes() == signature)
        })
        .then_some(())
}

/// What was signed if this request was, whichever form of the body counts; of credentials themselves.
#[cfg(test)]
pub(super) fn signed_texts(spec: &SignatureSpec, received: &Received, secret: &Secret) -> Vec<Vec<u8>> {
    if spec.algorithm == "http-basic" {
        return vec![secret.expose().to_vec()];
    }
    let ts = spec.timestamp.as_ref().and_then(|rule| match rule.from.strip_prefix("tag:") {
        None => at(&rule.from, received)?,
        Some(tag) => {
            let value = String::from_utf8(at(&spec.from, received)??).ok()?;
            let entries = value.split(spec.list.as_deref()?).map(str::trim);
            let mut pairs = entries.filter_map(|entry| entry.split_once(spec.pair.as_deref()?));
            pairs.find(|(found, _)| *found == tag).map(|(_, text)| text.as_bytes().to_vec())
        }
    });
    texts(spec, ts.as_deref(), received).unwrap_or_default()
}

/// One for each form of the body; none where a part is missing or ambiguous.
fn texts(spec: &SignatureSpec, ts: Option<&[u8]>, received: &Received) -> Option<Vec<Vec<u8>>> {
    let ambiguous = Cell::new(false);
    let mut texts = Vec::new();
    for form in &spec.body {
        let body = if form == "raw" { received.body.to_vec() } else { plain::minified(&received.body) };
        let text = rendered(&spec.template, &spec.constants, &|name| match name {
            "body" => Some(body.clone()),
            "ts" => ts.map(<[u8]>::to_vec),
            place => at(place, received).unwrap_or_else(|| {
                ambiguous.set(true);
                None
            }),
        });
        texts.push(text??);
    }
    (!ambiguous.get()).then_some(texts)
}

/// What stands at a place; none when that cannot be said.
fn at(place: &str, received: &Received) -> Option<Option<Vec<u8>>> {
    if let Some((outer, inner)) = place.split_once("/!/") {
        return Some(at(outer, received)?.and_then(|text| in_json(&text, inner)));
    }
    let (kind, name) = place.split_once(':')?;
    Some(match kind {
        "header" => {
            let values: Vec<&[u8]> =
                received.head.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
            if values.windows(2).any(|pair| pair[0] != pair[1]) {
                return None;
            }
            values.first().map(|value| value.to_vec())
        }
        "query" => in_form(received.head.query.as_deref().unwrap_or_default().as_bytes(), name)?,
        "form" => {
            let kinds = received.head.headers.get_all("content-type");
            let is_other = |kind: &HeaderValue| {
                let Ok(kind) = kind.to_str().map(str::to_lowercase) else { return true };
                let sets = ["utf-8", "utf8", "us-ascii", "iso-8859-1", "windows-1252"];
                let mut named = kind.match_indices("charset").map(|(at, _)| {
                    let behind = kind[at + 7..].trim_start_matches([' ', '\t', '*', '=', '"']);
                    let end = behind.find([';', ',', ' ', '\t', '"', '\'']).unwrap_or(behind.len());
                    &behind[..end]
                });
                kind.contains("multipart/") || named.any(|name| !sets.contains(&name))
            };
            if kinds.iter().any(is_other) {
                return None;
            }
            in_form(&received.body, name)?
        }
        _ => in_json(&received.body, &name[1..]),
    })
}

fn in_json(text: &[u8], pointer: &str) -> Option<Vec<u8>> {
    let steps: Vec<String> =
        pointer.split('/').map(|step| step.replace("~1", "/").replace("~0", "~")).collect();
    let document = plain::json(std::str::from_utf8(text).ok()?).ok()?;
    if document.depth() > 32 || document.nodes() > 10_000 || !document.has_sane_numbers() {
        return None;
    }
    match document.at(&steps)? {
        Json::Text(text) | Json::Number(text) => Some(text.clone().into_bytes()),
        _ => None,
    }
}

/// The one field of that name; none where there are several.
fn in_form(text: &[u8], name: &str) -> Option<Option<Vec<u8>>> {
    let decoded = |part: &[u8]| {
        let (mut bytes, mut rest) = (Vec::new(), part);
        while let Some((first, behind)) = rest.split_first() {
            let escaped = behind.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
            match (first, escaped) {
                (b'%', Some(digits)) => {
                    bytes.extend(hex::decode(digits).unwrap_or_default());
                    rest = &behind[2..];
                }
                (b'+', _) => {
                    bytes.push(b' ');
                    rest = behind;
                }
                (byte, _) => {
                    bytes.push(*byte);
                    rest = behind;
                }
            }
        }
        bytes
    };
    let mut values = Vec::new();
    for pair in text.split(|byte| *byte == b'&') {
        for (index, piece) in pair.split(|byte| *byte == b';').enumerate() {
            let name_in = |text: &[u8]| decoded(text.split(|byte| *byte == b'=').next().unwrap_or_default());
            let spelled = name_in(piece);
            let is_first = index == 0 && spelled == name_in(pair);
            let value = pair.splitn(2, |byte| *byte == b'=').nth(1).unwrap_or_default();
            // As PHP, Rack, qs and ASP.NET have it, each in its own way.
            let read_as = |ends: &[u8]| {
                let text: String = spelled.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect();
                let text = text.trim_start_matches(|first: char| " \t\n\r\x0c[]".contains(first));
                let end = text.bytes().position(|byte| ends.contains(&byte)).unwrap_or(text.len());
                let same = |text: &str| text.replace([' ', '.', '['], "_");
                same(&text[..end]) == same(&name.to_ascii_lowercase())
            };
            if spelled == name.as_bytes() && is_first {
                values.push(Some(decoded(value)));
            } else if spelled == name.as_bytes() || read_as(b"\0") || read_as(b"\0[]") {
                values.push(None);
            }
        }
    }
    match values.pop() {
        None => Some(None),
        Some(Some(value)) if values.is_empty() => Some(Some(value)),
        Some(_) => None,
    }
}
