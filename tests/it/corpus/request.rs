//! From a case to the bytes that are written.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chaski_common::clock::Clock;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::case::Case;
use crate::harness::{PE_SECRET, tool};

/// On its way out, and still good.
pub(super) const PREVIOUS_SECRET: &str = "Zc4rB8nWq1TyGk6PvE3sJm9XuLd2HoAf5iKxQwVe";
/// Good from tomorrow on.
pub(super) const NEXT_SECRET: &str = "Bx6tJ2mWfK9zQv4RsY7eN1cHpL5gDuA8oXiTkMrV";
/// Of another source.
pub(super) const OTHER_SECRET: &str = "Ht7wN3kQz9RbVx5MyF1uJc8LpD6SgEa2oXiTrKqB";
/// As Standard Webhooks shows it.
pub(super) const WEBHOOKS_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
/// The age from which on an event of the profile `aged` is too old.
pub(super) const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);

const OPERATION: &str = "1253";

/// The bytes of a case, and how they are written.
#[derive(Debug, Default)]
pub(super) struct Wire {
    /// Written first, on a connection of its own, and accepted.
    pub(super) captured: Option<Vec<u8>>,
    /// Each on a connection of its own, each with the same answer.
    pub(super) writes: Vec<Vec<u8>>,
    /// How many answers to one of them.
    pub(super) answers: usize,
    /// Writing ends when all is written, and the connection stays.
    pub(super) half_closes: bool,
    /// From this byte on one at a time, with this pause.
    pub(super) drip: Option<(usize, Duration)>,
}

/// A second that is still to come: what is dated with it is no older than planned when it arrives.
fn now() -> Timestamp {
    Timestamp::from_second(Clock::system().now().as_second() + 1).unwrap()
}

/// The canonical body of a case; each case has a payment of its own.
fn canonical(number: usize) -> String {
    format!(
        r#"{{"eventType":"cip.paid","operationNumber":"{OPERATION}","data":{{"cip":"{}","currency":"PEN","amount":22.05}}}}"#,
        cip(number)
    )
}

fn cip(number: usize) -> String {
    format!("{}", 20_000_000 + number)
}

pub(super) fn path(profile: &str) -> String {
    match profile {
        // These are about the listener, not about a source.
        "default" | "host_list" | "h2" => crate::harness::PE_PATH.to_owned(),
        other => format!("/in/{}", other.replace('_', "-")),
    }
}

fn mac(secret: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

/// Latin-1, unless the case says otherwise.
fn bytes(text: &str, encoding: &str) -> Vec<u8> {
    if encoding == "utf-8" {
        return text.as_bytes().to_vec();
    }
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or_else(|_| panic!("{c:?} is no byte"))).collect()
}

/// What stands for what in a text.
struct Names<'a> {
    number: usize,
    profile: &'a str,
    body: &'a str,
    sig: &'a [u8],
    now: Timestamp,
}

impl Names<'_> {
    /// Puts in the names, then the repetitions `{x*N}`.
    fn expand(&self, text: &str) -> String {
        let hex = hex::encode(self.sig);
        let spaced: Vec<&str> =
            (0..hex.len()).step_by(8).map(|at| &hex[at..(at + 8).min(hex.len())]).collect();
        let (seconds, millis) = (self.now.as_second().to_string(), self.now.as_millisecond().to_string());
        let (length, length_hex) = (self.body.len().to_string(), format!("{:x}", self.body.len()));
        let names: [(&str, &str); 13] = [
            ("{PATH}", &path(self.profile)),
            ("{HOST}", "pay.test"),
            ("{BODY}", self.body),
            ("{LEN}", &length),
            ("{LENHEX}", &length_hex),
            ("{SIG}", &hex),
            ("{SIG:B64}", &BASE64.encode(self.sig)),
            ("{SIG:SPACED}", &spaced.join(" ")),
            ("{TS}", &seconds),
            ("{TS_MS}", &millis),
            ("{CIP}", &cip(self.number)),
            ("{OP}", OPERATION),
            ("{ZERO64}", &"0".repeat(64)),
        ];
        let mut text = text.to_owned();
        for (name, value) in names {
            text = text.replace(name, value);
        }
        while let Some((start, end, unit, count)) = repetition(&text) {
            let many = match unit.as_str() {
                "HEADERS" => (0..count).map(|n| format!("x-{n}: 1\r\n")).collect(),
                "v1,ZERO64 " => format!("v1,{} ", BASE64.encode([0; 32])).repeat(count),
                unit => unit.repeat(count),
            };
            text.replace_range(start..end, &many);
        }
        text
    }
}

/// The first `{x*N}` of a text.
fn repetition(text: &str) -> Option<(usize, usize, String, usize)> {
    text.match_indices('{').find_map(|(start, _)| {
        let end = start + text[start..].find('}')?;
        let (unit, count) = text[start + 1..end].rsplit_once('*')?;
        Some((start, end + 1, unit.to_owned(), count.parse().ok()?))
    })
}

/// A body that is too long to be written out.
fn generated(build: &Value, number: usize) -> String {
    let count = |name: &str| usize::try_from(build[name].as_u64().unwrap()).unwrap();
    let text = |name: &str| build[name].as_str().unwrap();
    let canonical = canonical(number);
    let with = |more: &str| format!("{},\"n\":{more}}}", &canonical[..canonical.len() - 1]);
    match text("gen") {
        "json_pad_to" => with(&format!("\"{}\"", "x".repeat(count("bytes") - with("\"\"").len()))),
        "nest" => text("open").repeat(count("depth")) + &text("close").repeat(count("depth")),
        "array" => format!("[{}]", vec![text("item"); count("count")].join(",")),
        "digits" => with(&"1".repeat(count("count"))),
        "exponent_digits" => with(&format!("1e{}", "1".repeat(count("count")))),
        "unicode_escapes" => with(&format!("\"{}\"", "\\u0041".repeat(count("count")))),
        other => panic!("nothing makes {other}"),
    }
}

/// A request that a case changes.
#[derive(Clone, Debug)]
struct Draft {
    profile: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    /// As it is spelled.
    ts: String,
    sig: Vec<u8>,
}

impl Draft {
    fn new(profile: &str, body: Vec<u8>) -> Self {
        let headers = vec![("Content-Type".to_owned(), b"application/json".to_vec())];
        let mut draft =
            Self { profile: profile.to_owned(), headers, body, ts: String::new(), sig: Vec::new() };
        draft.date(now());
        draft.sign(PE_SECRET.as_bytes());
        draft
    }

    fn is_dated(&self) -> bool {
        self.profile.starts_with("dated")
    }

    fn signature_header(&self) -> &'static str {
        match self.profile.as_str() {
            "standard_webhooks" => "webhook-signature",
            _ if self.is_dated() => "X-Signature",
            _ => "PE-Signature",
        }
    }

    fn date(&mut self, time: Timestamp) {
        self.ts = match self.profile.as_str() {
            "dated_rfc3339" | "dated_body_only" => time.to_string(),
            _ => time.as_second().to_string(),
        };
    }

    fn set(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.into()));
    }

    fn sign(&mut self, secret: &[u8]) {
        let (ts, body) = (self.ts.clone(), self.body.clone());
        match self.profile.as_str() {
            "standard_webhooks" => {
                let key = BASE64.decode(WEBHOOKS_SECRET.trim_start_matches("whsec_")).unwrap();
                self.set("webhook-id", format!("msg_{}", hex::encode(&Sha256::digest(&body)[..8])));
                self.set("webhook-timestamp", ts.clone());
                let id = self.header("webhook-id").to_vec();
                self.sig = mac(&key, &[&id, b".", ts.as_bytes(), b".", &body]);
                let value = format!("v1,{}", BASE64.encode(&self.sig));
                self.set("webhook-signature", value);
                return;
            }
            "dated" | "dated_rfc3339" => self.sig = mac(secret, &[ts.as_bytes(), b".", &body]),
            _ => self.sig = mac(secret, &[&body]),
        }
        if self.is_dated() {
            self.set("X-Date", ts);
        }
        if self.profile == "key_id" {
            self.set("X-Key-Id", "k1");
        }
        self.put_signature();
    }

    fn put_signature(&mut self) {
        self.set(self.signature_header(), hex::encode(&self.sig));
    }

    fn header(&self, name: &str) -> &[u8] {
        self.headers.iter().find(|(known, _)| known == name).map_or(&[], |(_, value)| value)
    }

    /// One operation; the names stand for what the request was before the first.
    fn apply(&mut self, op: &Value, names: &Names<'_>, bit: usize) {
        let text = |name: &str| op[name].as_str().unwrap_or_default();
        let value = || bytes(&names.expand(text("value")), "");
        match text("op") {
            "set_header" => self.set(text("name"), value()),
            "append_header" => self.headers.push((text("name").to_owned(), value())),
            "del_header" => self.headers.retain(|(name, _)| name != text("name")),
            "rename_header" => {
                let renamed = self.headers.iter_mut().filter(|(name, _)| name == text("from"));
                renamed.for_each(|(name, _)| text("to").clone_into(name));
            }
            "sign" => self.sign(PE_SECRET.as_bytes()),
            "body_gen" => self.body = compressed(text("gen"), &self.body),
            "indent_body" | "replay_with_whitespace" => {
                let other = if text("op") == "indent_body" { " ,\r\n\t" } else { "\n , " };
                self.body = String::from_utf8(self.body.clone()).unwrap().replace(',', other).into_bytes();
            }
            "flip_sig_bit" => {
                self.sig[bit / 8] ^= 1 << (bit % 8);
                self.put_signature();
            }
            "flip_body_bit" => self.body[bit / 8] ^= 1 << (bit % 8),
            "sign_over" => {
                let over = match text("expr") {
                    "json_reprinted" => names.body.replace("1001.00", "1001.0").into_bytes(),
                    "empty" => Vec::new(),
                    "path+body" => [path(&self.profile).as_bytes(), &self.body].concat(),
                    "hex(body)" => hex::encode(&self.body).into_bytes(),
                    other => panic!("nothing signs over {other}"),
                };
                self.sig = mac(PE_SECRET.as_bytes(), &[&over]);
                self.put_signature();
            }
            "sign_with" => {
                let key = match text("key") {
                    "empty" => Vec::new(),
                    "other_source" => OTHER_SECRET.into(),
                    "previous" => PREVIOUS_SECRET.into(),
                    "key_not_yet_valid" => NEXT_SECRET.into(),
                    "key_minus_last_byte" => PE_SECRET.as_bytes()[..PE_SECRET.len() - 1].to_vec(),
                    "key_plus_lf" => format!("{PE_SECRET}\n").into_bytes(),
                    "key_base64_decoded" => BASE64.decode(PE_SECRET).unwrap(),
                    other => panic!("no key is called {other}"),
                };
                self.sign(&key);
            }
            "sign_alg" => {
                self.sig = match text("alg") {
                    "sha256(key||body)" => plain_digest(&self.body),
                    "sha256(body)" => Sha256::digest(&self.body).to_vec(),
                    other => panic!("no algorithm is called {other}"),
                };
                self.put_signature();
            }
            "length_extension" => {
                let captured = plain_digest(&self.body);
                (self.sig, self.body) = extended(&captured, &self.body, b" ");
                self.put_signature();
            }
            "set_ts" if text("fmt") == "rfc3339_no_offset" => {
                let lima = now() - SignedDuration::from_hours(5);
                self.ts = lima.to_string().trim_end_matches('Z').to_owned();
                self.sign(PE_SECRET.as_bytes());
            }
            "set_ts" => {
                self.date(names.now + SignedDuration::from_secs(op["offset_s"].as_i64().unwrap()));
                self.sign(PE_SECRET.as_bytes());
            }
            "replay_with_ts" => {
                // Two seconds on: another spelling than the captured one's.
                self.date(names.now + SignedDuration::from_secs(2));
                self.set("X-Date", self.ts.clone());
            }
            "replay_after" => match op["seconds"].as_i64() {
                // What was captured so long ago is, byte for byte, what was signed then.
                Some(seconds) => {
                    self.date(now() - SignedDuration::from_secs(seconds + 1));
                    self.sign(PE_SECRET.as_bytes());
                }
                None => {
                    let paid = names.now - MAX_AGE - SignedDuration::from_secs(1);
                    let dated = names.body.replace("22.05", &format!("22.05,\"paymentDate\":\"{paid}\""));
                    self.body = dated.into_bytes();
                    self.sign(PE_SECRET.as_bytes());
                }
            },
            other => panic!("no operation is called {other}"),
        }
    }

    fn wire(&self, declared: Option<u64>) -> Vec<u8> {
        let (path, length) = (path(&self.profile), declared.unwrap_or(self.body.len() as u64));
        let mut wire =
            format!("POST {path} HTTP/1.1\r\nHost: pay.test\r\nContent-Length: {length}\r\n").into_bytes();
        for (name, value) in &self.headers {
            wire.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        [wire.as_slice(), b"\r\n", &self.body].concat()
    }
}

/// The digest that a length extension breaks.
fn plain_digest(body: &[u8]) -> Vec<u8> {
    Sha256::digest([PE_SECRET.as_bytes(), body].concat()).to_vec()
}

/// A plain digest and its text, made longer without the key: what HMAC is there to prevent.
fn extended(digest: &[u8], body: &[u8], suffix: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let padding = |bytes: usize| {
        let zeros = (119 - bytes % 64) % 64;
        [&[0x80][..], &vec![0; zeros], &(bytes as u64 * 8).to_be_bytes()].concat()
    };
    let glue = padding(PE_SECRET.len() + body.len());
    let longer = [body, &glue, suffix].concat();
    let tail = [suffix, &padding(PE_SECRET.len() + longer.len())].concat();
    let mut state: [u32; 8] =
        std::array::from_fn(|at| u32::from_be_bytes(digest[at * 4..at * 4 + 4].try_into().unwrap()));
    let (blocks, rest) = tail.as_chunks::<64>();
    assert!(rest.is_empty());
    sha2::block_api::compress256(&mut state, blocks);
    (state.iter().flat_map(|word| word.to_be_bytes()).collect(), longer)
}

/// `gzip` of this, or 10 GiB of nothing in 10 MiB.
fn compressed(what: &str, body: &[u8]) -> Vec<u8> {
    let gzip = |expression: &str| {
        let program = format!("import gzip,sys;sys.stdout.buffer.write(gzip.compress({expression}))");
        tool("python3", &["-c", &program, &hex::encode(body)])
    };
    match what {
        "gzip" => gzip("bytes.fromhex(sys.argv[1])"),
        "gzip_bomb" => gzip("bytes(1<<20)").repeat(10 * 1024),
        other => panic!("nothing compresses as {other}"),
    }
}

/// The bytes of a case; `number` tells its payment from the others'.
pub(super) fn wire(case: &Case, number: usize) -> Wire {
    let build = &case.build;
    match build["kind"].as_str().unwrap() {
        "raw" => raw(case, number),
        "signed_body" => {
            let body = if build["gen"].is_string() {
                generated(build, number).into_bytes()
            } else {
                let names = names(case, "", &[], number);
                bytes(&names.expand(build["body"].as_str().unwrap()), &case.encoding)
            };
            let mut draft = Draft::new(&case.profile, body);
            if build["sign"] == "none" {
                let header = draft.signature_header();
                draft.headers.retain(|(name, _)| name != header);
            }
            one(draft.wire(build["declared_length"].as_u64()))
        }
        "valid" => valid(case, number),
        other => panic!("{}: nothing writes {other}", case.id),
    }
}

fn one(write: Vec<u8>) -> Wire {
    Wire { writes: vec![write], answers: 1, ..Wire::default() }
}

fn names<'a>(case: &'a Case, body: &'a str, sig: &'a [u8], number: usize) -> Names<'a> {
    Names { number, profile: &case.profile, body, sig, now: now() }
}

fn valid(case: &Case, number: usize) -> Wire {
    let (build, ops) = (&case.build, case.build["ops"].as_array().unwrap());
    let body = match build["body"].as_str() {
        Some(body) => names(case, "", &[], number).expand(body),
        None => canonical(number),
    };
    // Without an operation number the content is the key.
    let is_replayed = |name: &str| ops.iter().any(|op| op["op"] == name);
    let body = if is_replayed("replay_with_whitespace") {
        body.replace(&format!("\"{OPERATION}\""), "\"\"")
    } else {
        body
    };
    let draft = Draft::new(&case.profile, body.clone().into_bytes());
    let sig = draft.sig.clone();
    let names = names(case, &body, &sig, number);
    let count = match &build["repeat"] {
        Value::String(what) if what == "body_bits" => body.len() * 8,
        count => count.as_u64().map_or(1, |count| usize::try_from(count).unwrap()),
    };
    let changed = |bit| {
        let mut draft = draft.clone();
        ops.iter().for_each(|op| draft.apply(op, &names, bit));
        draft.wire(None)
    };
    let captured = is_replayed("replay_with_ts") || is_replayed("replay_with_whitespace");
    Wire {
        captured: captured.then(|| draft.wire(None)),
        writes: (0..count).map(changed).collect(),
        answers: 1,
        ..Wire::default()
    }
}

fn raw(case: &Case, number: usize) -> Wire {
    let build = &case.build;
    if build["template"] == "valid" {
        let count = usize::try_from(build["repeat"].as_u64().unwrap()).unwrap();
        // Far from the numbers of other cases.
        let payment = |n: usize| Draft::new(&case.profile, canonical(1_000_000 + n).into_bytes()).wire(None);
        return Wire { answers: count, ..one((0..count).flat_map(payment).collect()) };
    }
    let (text, chunks) = match build["wire"].as_str().unwrap().split_once("{BYTECHUNKS*") {
        Some((head, _)) => (head, true),
        None => (build["wire"].as_str().unwrap(), false),
    };
    let body = if build["gen"] == "json_pad_to" { generated(build, number) } else { canonical(number) };
    let sig = mac(PE_SECRET.as_bytes(), &[body.as_bytes()]);
    let mut write = bytes(&names(case, &body, &sig, number).expand(text), &case.encoding);
    if chunks {
        body.bytes().for_each(|byte| write.extend_from_slice(&[b'1', b'\r', b'\n', byte, b'\r', b'\n']));
        write.extend_from_slice(b"0\r\n\r\n");
    }
    let head = write.windows(4).position(|window| window == b"\r\n\r\n").map_or(0, |end| end + 4);
    let pause = |name: &str| build[name].as_u64().map(Duration::from_millis);
    let drip = pause("drip_ms").map(|pause| (0, pause));
    Wire {
        half_closes: build["after"] == "shutdown_write",
        drip: drip.or(pause("drip_body_ms").map(|pause| (head, pause))),
        ..one(write)
    }
}
