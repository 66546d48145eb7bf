//! Forgeries against every preset: whoever has not the key gets nothing accepted, whatever he has seen of what was
//! signed with it.
//!
//! Requests that were really signed are changed in every way there is a reason to try. What is accepted all the same
//! must carry a text that the key has signed, say by it what was said with it, and carry its whole tag (in capitals,
//! with white space where the minified form counts, beside a header that nothing covers), at a time inside of the
//! window: anything else is a forgery. What a request's text and tag are says the plain reading, not the code under test.
//!
//! `CHASKI_FORGERIES` is the number of requests (`make forgery`: ten million), `CHASKI_TEST_SEED` repeats a run.

use std::collections::{BTreeMap, HashMap};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chaski_common::fuzzing::Random;
use chaski_common::secret::Secret;
use http::HeaderValue;
use jiff::Timestamp;
use serde_json::json;

use super::description::{Meaning, NOW, accepts, key_id, merchant, received, respelled, signed_texts};
use crate::presets;
use crate::source::{SchemeSpec, Secrets};
use crate::verify::sign::{Signed, Signer, sign};
use crate::verify::{Freshness, Scheme};

/// Of an ordinary test run.
const REQUESTS: u64 = 100_000;
const KINDS: [&str; 10] =
    ["bit", "byte", "respelled", "cut", "stuffed", "repeated", "other key", "spliced", "replayed", "several"];

const BODIES: [&[u8]; 4] = [
    br#"{"id":"1","data":{"id":"ORD-1","amount":22.05},"eventType":"cip.paid","url":"a\/b"}"#,
    br#"{ "id" : "2", "data" : { "id" : "ord-2" , "amount" : 1001.00 } }"#,
    br#"{"id":"3","data":{"id":"ORD-3"},"note":"se\u00f1al"}"#,
    b"{}",
];

/// A preset as a merchant has it, and all that an attacker may have seen of it.
struct Target {
    name: &'static str,
    spec: SchemeSpec,
    secret: Secret,
    scheme: Scheme,
    seen: Vec<Signed>,
    /// Signed with keys that are like the right one and are not it.
    others: Vec<Signed>,
    /// What the key has signed, and what is said by it.
    texts: HashMap<Vec<u8>, Vec<Meaning>>,
}

#[derive(Default)]
struct Tally {
    by_kind: BTreeMap<&'static str, u64>,
    equivalent: u64,
}

impl Target {
    fn of(name: &'static str) -> Self {
        let (spec, secret) = merchant(name);
        let now = Timestamp::from_second(NOW).unwrap();
        let signed_with = |secret: &Secret, body: &[u8]| {
            let signer = Signer { key_id: key_id(&spec), secret, forge: false };
            sign(&spec, signer, body, now).ok()
        };
        let seen: Vec<Signed> = BODIES.iter().filter_map(|body| signed_with(&secret, body)).collect();
        assert!(!seen.is_empty(), "{name} signs none of the bodies");
        let others = like(&secret);
        let others = others.iter().flat_map(|key| BODIES.iter().filter_map(|body| signed_with(key, body)));
        let secrets = match key_id(&spec) {
            Some(id) => Secrets::ById([(id.to_owned(), secret.clone().into())].into()),
            None => Secrets::Any(vec![secret.clone().into()]),
        };
        let scheme = Scheme::compile(&spec, &secrets).unwrap();
        let mut texts = HashMap::<_, Vec<_>>::new();
        for request in seen.iter().cloned().map(received) {
            let verified = scheme.verify(&request, now).expect("what is signed is accepted");
            let meaning = Meaning::of(&spec.event, &scheme, &verified, now);
            for text in signed_texts(&spec.signature, &request, &secret) {
                texts.entry(text).or_default().extend(meaning.clone());
            }
        }
        Self { name, scheme, texts, others: others.collect(), seen, spec, secret }
    }

    /// One request; panics when it is accepted and should not be. Says whether it was a forgery: what the key has signed
    /// in other words is none.
    fn attack(&self, random: &mut Random, tally: &mut Tally) -> bool {
        let kind = KINDS[random.below(KINDS.len())];
        let mut request = random.pick(&self.seen).clone();
        let mut later = Duration::ZERO;
        match kind {
            "other key" => request = random.pick(&self.others).clone(),
            "spliced" => {
                let other = random.pick(&self.seen).clone();
                match random.below(3) {
                    0 => request.body = other.body,
                    1 => request.query = other.query,
                    _ => {
                        let at = random.below(request.headers.len());
                        request.headers[at] = random.pick(&other.headers).clone();
                    }
                }
            }
            "replayed" => later = Duration::from_secs(301 + random.below(1 << 24) as u64),
            "several" => {
                (0..=random.below(4)).for_each(|_| change(KINDS[random.below(6)], &mut request, random));
            }
            single => change(single, &mut request, random),
        }
        let now = Timestamp::from_second(NOW).unwrap().checked_add(later).unwrap();
        let request = received(request);
        let Ok(verified) = self.scheme.verify(&request, now) else {
            *tally.by_kind.entry(kind).or_default() += 1;
            return true;
        };
        let meaning = Meaning::of(&self.spec.event, &self.scheme, &verified, now);
        let texts = signed_texts(&self.spec.signature, &request, &self.secret);
        let is_signed = texts.iter().filter_map(|text| self.texts.get(text)).any(|said| {
            // What cannot be used is quarantined, and does not speak.
            meaning.as_ref().is_none_or(|meaning| meaning.is_among(said, &self.scheme))
        });
        let is_fresh = !matches!(self.scheme.freshness(), Freshness::Signed { past, .. } if later > past);
        let is_whole = accepts(&self.spec.signature, &self.secret, &request, now).is_some();
        assert!(
            is_signed && is_fresh && is_whole,
            "{} accepts a forgery ({kind}): {request:?} at {now}",
            self.name
        );
        tally.equivalent += 1;
        false
    }
}

/// Keys that somebody might try, or that a careless comparison might take for the right one.
fn like(secret: &Secret) -> Vec<Secret> {
    let right = String::from_utf8(secret.expose().to_vec()).unwrap();
    let reversed: String = right.chars().rev().collect();
    let (half, less) = (&right[..right.len() / 2], &right[..right.len() - 1]);
    let more = [format!("{right}x"), format!(" {right}"), format!("{right}\n"), format!("{right}{right}")];
    let mut keys = vec![right.to_uppercase(), right.to_lowercase(), reversed, hex::encode(&right)];
    keys.extend([half, less, "secret", "x:y", "user:", "00", "AA==", "undefined", "null"].map(str::to_owned));
    keys.extend(more);
    keys.extend((0..right.len()).map(|at| {
        let mut bytes = right.clone().into_bytes();
        bytes[at] ^= 1;
        String::from_utf8_lossy(&bytes).into_owned()
    }));
    let is_hex = right.bytes().all(|byte| byte.is_ascii_hexdigit());
    keys.retain(|key| *key != right && !(is_hex && key.eq_ignore_ascii_case(&right)));
    keys.into_iter().map(Secret::new).collect()
}

/// Changes one part: a header, the query or the body.
fn change(kind: &str, request: &mut Signed, random: &mut Random) {
    let part = random.below(request.headers.len() + 2);
    if let Some((_, value)) = request.headers.get_mut(part) {
        if let Ok(changed) = HeaderValue::from_bytes(&changed(kind, value.as_bytes(), random)) {
            *value = changed;
        }
    } else if part == request.headers.len() {
        request.body = Bytes::from(changed(kind, &request.body, random));
    } else if let Some(query) = &request.query {
        request.query = String::from_utf8(changed(kind, query.as_bytes(), random)).ok();
    }
}

fn changed(kind: &str, text: &[u8], random: &mut Random) -> Vec<u8> {
    let mut text = text.to_vec();
    let at = random.below(text.len());
    match kind {
        _ if text.is_empty() => text.push(random.number() as u8),
        "bit" => text[at] ^= 1 << random.below(8),
        "byte" => text[at] = random.number() as u8,
        "respelled" => match random.below(6) {
            0 => text.make_ascii_uppercase(),
            1 => text.make_ascii_lowercase(),
            2 => text.insert(at, *random.pick(b" \t\r\n")),
            3 => text = String::from_utf8_lossy(&text).replace("\\/", "/").into_bytes(),
            4 => text = String::from_utf8_lossy(&text).replace('+', "-").replace('/', "_").into_bytes(),
            _ => {
                text =
                    String::from_utf8_lossy(&text).replace("22.05", "22.050").replace('=', "").into_bytes();
            }
        },
        "cut" => match random.below(3) {
            0 => text.truncate(at),
            1 => drop(text.drain(..at)),
            _ => drop(text.remove(at)),
        },
        "repeated" => text = repeated(&String::from_utf8_lossy(&text), random).into_bytes(),
        _ => {
            let piece = text[at..(at + 1 + random.below(64)).min(text.len())].to_vec();
            let separator = *random.pick(&[&b""[..], b",", b" ", b";", b"=", b"\0", b"v1="]);
            let place = random.below(text.len() + 1);
            text.splice(place..place, [separator, &piece].concat());
        }
    }
    text
}

/// A form with one of its fields twice: behind the one that is signed or in front of it, its name perhaps in other words.
fn repeated(form: &str, random: &mut Random) -> String {
    let mut pairs: Vec<String> = form.split('&').map(str::to_owned).collect();
    let (name, value) = random.pick(&pairs).split_once('=').map_or(("", "1"), |(name, value)| (name, value));
    let name = match random.below(8) {
        0 => format!("+{name}"),
        1 => format!("{name}[]"),
        2 => format!("{name}%00x"),
        3 => format!("x;{name}"),
        _ => respelled(name, random.below(2 * name.len() + 1)),
    };
    let value = if random.below(2) == 0 { value } else { "1" };
    let another = format!("{name}={value}");
    pairs.insert(random.below(pairs.len() + 1), another);
    pairs.join("&")
}

#[test]
fn nothing_is_accepted_that_the_key_has_not_signed() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let requests = number("CHASKI_FORGERIES").unwrap_or(REQUESTS);
    let seed = number("CHASKI_TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("forgeries: CHASKI_TEST_SEED={seed}");
    let targets: Vec<Target> = presets::names().iter().map(|name| Target::of(name)).collect();
    let (threads, began) =
        (thread::available_parallelism().map_or(1, |count| count.get() as u64), Instant::now());
    let attack = |first: u64| {
        let (mut random, mut tally) = (Random(seed.wrapping_add(first << 32)), Tally::default());
        for request in (first..requests).step_by(threads as usize) {
            let target = &targets[request as usize % targets.len()];
            while !target.attack(&mut random, &mut tally) {}
        }
        tally
    };
    let tallies: Vec<Tally> = thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|first| scope.spawn(move || attack(first))).collect();
        all.into_iter().map(|thread| thread.join().expect("no forgery is accepted")).collect()
    });
    let mut by_kind = BTreeMap::<&str, u64>::new();
    for (kind, count) in tallies.iter().flat_map(|tally| &tally.by_kind) {
        *by_kind.entry(kind).or_default() += count;
    }
    let equivalent: u64 = tallies.iter().map(|tally| tally.equivalent).sum();
    assert_eq!(by_kind.values().sum::<u64>(), requests);
    assert!(KINDS.iter().all(|kind| by_kind.contains_key(kind)), "{by_kind:?}");
    assert!(equivalent > 0, "nothing right is accepted: these are no requests");
    let figures = json!({
        "campaign": "forgery", "requests": requests, "accepted": 0, "signed_text_in_other_words": equivalent,
        "presets": targets.len(), "kinds": by_kind, "seed": seed, "seconds": began.elapsed().as_secs_f64(),
    });
    println!("{figures}");
}
