//! The published list of hostile and faulty inputs, against a real edge: status, outcome, reason label and the
//! state of the connection, as the list says.

use std::time::Duration;

use base64::Engine as _;
use chaski_common::mac::{Hash, MacKey};
use chaski_common::secret::Secret;
use chaski_ingest::presets;
use chaski_ingest::source::{IpNet, Secrets, SourceSpec};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{NOW, Rig, SECRET, callback, is_closed, read_answer, rig, source};

const PREVIOUS: &str = "chaski-test-secret/previous";
const BODY: &str = r#"{"eventType":"cip.paid","operationNumber":"1253","data":{"cip":"11546901","currency":"PEN","amount":22.05}}"#;

/// Cases that need something this edge does not have or this runner does not make, and why.
const NOT_RUN: &[(&str, &str)] = &[
    ("FR-083", "a stalled handshake has a test of its own"),
    ("FR-089", "floods over HTTP/2 have tests of their own"),
    ("FR-090", "floods over HTTP/2 have tests of their own"),
    ("FR-091", "floods over HTTP/2 have tests of their own"),
    ("FR-092", "floods over HTTP/2 have tests of their own"),
    ("FR-033", "pipelining has a test of its own"),
    ("SG-024", "white space and an empty operation number have a test of their own"),
    ("SG-032", "secrets have no start"),
    ("SG-046", "budgets have tests of their own; this machine's own address has none"),
    ("SG-047", "budgets have tests of their own"),
    ("SG-069", "replays have a test of their own"),
    ("SG-072", "max_age has a test of its own"),
];

fn tag(secret: &[u8], parts: &[&[u8]]) -> String {
    hex::encode(MacKey::new(Hash::Sha256, secret).tag(parts).as_bytes())
}

fn profile(name: &str) -> SourceSpec {
    let mut spec = presets::load(match name {
        "standard_webhooks" => "standard-webhooks",
        "dated" | "dated_rfc3339" => "pagoefectivo-xdate",
        _ => "pagoefectivo",
    })
    .unwrap();
    let mut secrets = Secrets::Any(vec![Secret::new(SECRET).into(), Secret::new(PREVIOUS).into()]);
    match name {
        "dated" | "dated_rfc3339" => {
            spec.signature.template = "{ts}.{body}".into();
            spec.signature.timestamp.as_mut().unwrap().format =
                if name == "dated" { "unix" } else { "rfc3339" }.into();
        }
        "standard_webhooks" => {
            secrets = Secrets::Any(vec![Secret::new("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").into()]);
        }
        "key_id" => {
            spec.signature.key.select = Some("header:x-key-id".into());
            secrets = Secrets::ById([("k1".into(), Secret::new(SECRET).into())].into());
        }
        _ => {}
    }
    let mut source = source("pagoefectivo", spec, secrets);
    if name == "ip_allow_list" {
        source.allow_ips = vec![IpNet { address: [203, 0, 113, 0].into(), prefix_bits: 24 }];
    }
    source
}

/// Text as the list has it: one character is one byte.
fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or_else(|_| panic!("{c:?} is no byte"))).collect()
}

/// `{x*N}`, `{HEADERS*N}` and the names of the conventions.
fn expand(text: &str, sig: &str) -> String {
    let mut text = text.to_owned();
    let base64 = base64::engine::general_purpose::STANDARD.encode(hex::decode(sig).unwrap_or_default());
    let spaced = sig
        .as_bytes()
        .chunks(8)
        .map(|digits| std::str::from_utf8(digits).unwrap())
        .collect::<Vec<_>>()
        .join(" ");
    for (name, value) in [
        ("{PATH}", "/in/pagoefectivo"),
        ("{HOST}", "edge"),
        ("{LEN}", &BODY.len().to_string()),
        ("{LENHEX}", &format!("{:x}", BODY.len())),
        ("{SIG}", sig),
        ("{SIG:B64}", &base64),
        ("{SIG:SPACED}", &spaced),
        ("{TS}", &NOW.to_string()),
        ("{TS_MS}", &(NOW * 1000).to_string()),
        ("{CIP}", "11546901"),
        ("{OP}", "1253"),
        ("{ZERO64}", &"0".repeat(64)),
        ("{BODY}", BODY),
    ] {
        text = text.replace(name, value);
    }
    while let Some((start, end, unit, count)) = repetition(&text) {
        let many = if unit == "HEADERS" {
            (0..count).map(|n| format!("x-{n}: 1\r\n")).collect::<String>()
        } else if unit.starts_with("v1,ZERO64") {
            format!("v1,{} ", base64::engine::general_purpose::STANDARD.encode([0; 32])).repeat(count)
        } else {
            unit.trim_start_matches('{').repeat(count)
        };
        text.replace_range(start..end, &many);
    }
    text
}

fn repetition(text: &str) -> Option<(usize, usize, String, usize)> {
    text.match_indices('{').find_map(|(start, _)| {
        let end = start + text[start..].find('}')?;
        let (unit, count) = text[start + 1..end].rsplit_once('*')?;
        Some((start, end + 1, unit.to_owned(), count.parse().ok()?))
    })
}

fn generated(build: &Value) -> Vec<u8> {
    let number = |name: &str| usize::try_from(build[name].as_u64().unwrap()).unwrap();
    let text = |name: &str| build[name].as_str().unwrap();
    let extended = |extra: &str| format!("{},\"n\":{extra}}}", &BODY[..BODY.len() - 1]);
    match text("gen") {
        "json_pad_to" => extended(&format!("\"{}\"", "x".repeat(number("bytes") - extended("\"\"").len()))),
        "nest" => text("open").repeat(number("depth")) + &text("close").repeat(number("depth")),
        "array" => format!("[{}]", vec![text("item"); number("count")].join(",")),
        "digits" => extended(&"1".repeat(number("count"))),
        "exponent_digits" => extended(&format!("1e{}", "1".repeat(number("count")))),
        "unicode_escapes" => extended(&format!("\"{}\"", "\\u0041".repeat(number("count")))),
        other => panic!("no generator {other}"),
    }
    .into_bytes()
}

/// A request that operations change.
struct Draft {
    profile: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    ts: String,
}

impl Draft {
    fn new(profile: &str, body: Vec<u8>) -> Self {
        let ts = if profile == "dated_rfc3339" { super::at(NOW).to_string() } else { NOW.to_string() };
        let headers = vec![("Content-Type".into(), b"application/json".to_vec())];
        let mut draft = Self { profile: profile.into(), headers, body, ts };
        draft.sign(SECRET.as_bytes());
        draft
    }

    fn signature_header(&self) -> &'static str {
        match self.profile.as_str() {
            "dated" | "dated_rfc3339" => "X-Signature",
            "standard_webhooks" => "webhook-signature",
            _ => "PE-Signature",
        }
    }

    fn set(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.into(), value.into()));
    }

    fn sign(&mut self, secret: &[u8]) {
        let ts = self.ts.clone();
        let sig = match self.profile.as_str() {
            "dated" | "dated_rfc3339" => {
                self.set("X-Date", ts.clone());
                tag(secret, &[ts.as_bytes(), b".", &self.body])
            }
            "standard_webhooks" => {
                self.set("webhook-id", "msg_1");
                self.set("webhook-timestamp", ts);
                tag(secret, &[&self.body])
            }
            "key_id" => {
                self.set("X-Key-Id", "k1");
                tag(secret, &[&self.body])
            }
            _ => tag(secret, &[&self.body]),
        };
        self.set(self.signature_header(), sig);
    }

    fn signature(&self) -> String {
        let name = self.signature_header();
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map_or_else(String::new, |(_, value)| String::from_utf8_lossy(value).into_owned())
    }

    /// One operation of the list; `false` when this runner cannot do it.
    fn apply(&mut self, op: &Value, sig: &str) -> bool {
        let text = |name: &str| op[name].as_str().unwrap_or_default();
        let value = || {
            latin1(&expand(
                &text("value")
                    .replace("{1.1.1.1,*200}", &"1.1.1.1,".repeat(200))
                    .replace("{;a=b*300}", &";a=b".repeat(300)),
                sig,
            ))
        };
        match text("op") {
            "set_header" => self.set(text("name"), value()),
            "append_header" => self.headers.push((text("name").into(), value())),
            "del_header" => self.headers.retain(|(name, _)| name != text("name")),
            "rename_header" => self
                .headers
                .iter_mut()
                .filter(|(name, _)| name == text("from"))
                .for_each(|(name, _)| *name = text("to").into()),
            "sign" => self.sign(SECRET.as_bytes()),
            "body_gen" if text("gen") == "gzip" => {
                self.body = b"\x1f\x8b\x08\0not inflated by anybody".to_vec();
            }
            "body_gen" if text("gen") == "gzip_bomb" => self.body = vec![0x1f; 10 * 1024 * 1024],
            "indent_body" => self.body = BODY.replace(',', " ,\r\n\t").into_bytes(),
            "flip_sig_bit" => {
                let mut bytes = hex::decode(sig).unwrap();
                bytes[7] ^= 1;
                self.set("PE-Signature", hex::encode(bytes));
            }
            "flip_body_bit" => self.body[20] ^= 1,
            "sign_over" => {
                let body = self.body.clone();
                let over = match text("expr") {
                    "json_reprinted" => {
                        String::from_utf8(body).unwrap().replace("1001.00", "1001.0").into_bytes()
                    }
                    "empty" => Vec::new(),
                    "path+body" => [b"/in/pagoefectivo", body.as_slice()].concat(),
                    "hex(body)" => hex::encode(body).into_bytes(),
                    other => panic!("no expression {other}"),
                };
                self.set("PE-Signature", tag(SECRET.as_bytes(), &[&over]));
            }
            "sign_with" => match text("key") {
                "empty" => self.sign(b""),
                "other_source" => self.sign(b"chaski-test-secret/of another"),
                "key_minus_last_byte" => self.sign(&SECRET.as_bytes()[..SECRET.len() - 1]),
                "key_plus_lf" => self.sign(format!("{SECRET}\n").as_bytes()),
                "key_base64_decoded" => self.sign(b"decoded"),
                "previous" => self.sign(PREVIOUS.as_bytes()),
                _ => return false,
            },
            "sign_alg" | "length_extension" => self.set("PE-Signature", "ab".repeat(32)),
            "set_ts" => {
                let moved = NOW + op["offset_s"].as_i64().unwrap_or(0);
                match (text("fmt"), self.profile.as_str()) {
                    ("rfc3339_no_offset", _) => self.ts = "2026-02-25T10:00:00".into(),
                    (_, "dated_rfc3339") => self.ts = super::at(moved).to_string(),
                    _ => self.ts = moved.to_string(),
                }
                self.sign(SECRET.as_bytes());
            }
            "replay_with_ts" => self.set("X-Date", (NOW + 1).to_string()),
            "replay_after" => {
                self.ts = (NOW - op["seconds"].as_i64().unwrap_or(0)).to_string();
                self.sign(SECRET.as_bytes());
            }
            _ => return false,
        }
        true
    }

    fn wire(&self, declared: Option<u64>) -> Vec<u8> {
        let length = declared.unwrap_or(self.body.len() as u64);
        let mut wire =
            format!("POST /in/pagoefectivo HTTP/1.1\r\nHost: edge\r\nContent-Length: {length}\r\n")
                .into_bytes();
        for (name, value) in &self.headers {
            wire.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        [wire.as_slice(), b"\r\n", &self.body].concat()
    }
}

/// The bytes to write; none when this runner cannot make them.
fn wire(case: &Value) -> Option<Vec<u8>> {
    let (build, profile) = (&case["build"], case["profile"].as_str().unwrap_or("default"));
    let body = || case["build"]["body"].as_str().map_or(BODY.into(), |body| latin1(&expand(body, "")));
    match build["kind"].as_str()? {
        "raw" => {
            let text = build["wire"].as_str()?;
            if build["gen"] == "json_pad_to" {
                let body = generated(build);
                let sig = tag(SECRET.as_bytes(), &[&body]);
                let head = expand(text.split("{BYTECHUNKS").next()?, &sig);
                let mut wire = latin1(&head);
                body.iter()
                    .for_each(|byte| wire.extend_from_slice(&[b'1', b'\r', b'\n', *byte, b'\r', b'\n']));
                wire.extend_from_slice(b"0\r\n\r\n");
                return Some(wire);
            }
            let mut bytes = latin1(&expand(text, &tag(SECRET.as_bytes(), &[BODY.as_bytes()])));
            if build["drip_body_ms"].is_number() {
                // A drip slower than the deadline is, to the edge, a body that does not end.
                bytes.truncate(bytes.len() - BODY.len() / 2);
            }
            Some(bytes)
        }
        "signed_body" => {
            let body = if build["gen"].is_string() {
                generated(build)
            } else {
                utf8_or_latin1(build["body"].as_str()?)
            };
            let mut draft = Draft::new(profile, body);
            if build["sign"] == "none" {
                draft.headers.retain(|(name, _)| name != "PE-Signature");
            }
            Some(draft.wire(build["declared_length"].as_u64()))
        }
        "valid" => {
            let mut draft = Draft::new(profile, body());
            let sig = draft.signature();
            build["ops"].as_array()?.iter().all(|op| draft.apply(op, &sig)).then(|| draft.wire(None))
        }
        _ => None,
    }
}

fn utf8_or_latin1(body: &str) -> Vec<u8> {
    let body = expand(body, "");
    if body.chars().any(|c| u32::from(c) > 0xff) { body.into_bytes() } else { latin1(&body) }
}

#[tokio::test]
async fn every_listed_input_gets_its_one_answer() {
    let list: Value = serde_json::from_str(include_str!("../bad_inputs.json")).unwrap();
    let (mut run, mut wrong) = (0, Vec::new());
    for case in list["cases"].as_array().unwrap() {
        let id = case["id"].as_str().unwrap();
        if NOT_RUN.iter().any(|(name, _)| *name == id) {
            continue;
        }
        let bytes = wire(case).unwrap_or_else(|| panic!("{id} cannot be made and is not listed"));
        let rig = rig(vec![profile(case["profile"].as_str().unwrap_or("default"))], |config| {
            if case["profile"] == "host_list" {
                config.hosts = vec!["edge".into()];
            }
            config.limits.head_timeout = Duration::from_millis(300);
            config.limits.body_timeout = Duration::from_millis(if id == "FR-099" { 30_000 } else { 300 });
        })
        .await;
        if let Err(what) = check(case, &bytes, &rig).await {
            wrong.push(format!("{id} {}: {what}", case["description"]));
        }
        run += 1;
        rig.close().await;
    }
    assert!(wrong.is_empty(), "{} of {run} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(run > 160, "only {run} were run");
}

async fn check(case: &Value, bytes: &[u8], rig: &Rig) -> Result<(), String> {
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    let (mut read, mut write) = stream.split();
    let (half_close, bytes) = (case["build"]["after"] == "shutdown_write", bytes.to_vec());
    let writing = async {
        // A refusal may come, and the connection go, before everything is written.
        let _ = write.write_all(&bytes).await;
        if half_close {
            let _ = write.shutdown().await;
        }
        std::future::pending::<()>().await;
    };
    let answer = tokio::select! {
        answer = read_answer(&mut read) => answer,
        () = writing => None,
    };
    let expect = &case["expect"];
    let status = answer.as_ref().map_or(0, |answer| answer.status);
    let also = expect["status_any"].as_array().into_iter().flatten();
    if !std::iter::once(&expect["status"]).chain(also).any(|one| one.as_u64() == Some(status.into())) {
        return Err(format!("status {status}, expected {} {}", expect["status"], expect["status_any"]));
    }
    let (outcome, reason) = (expect["outcome"].as_str().unwrap(), expect["reason"].as_str().unwrap());
    if outcome != "refused" {
        let body = answer.as_ref().map_or("", |answer| answer.body.as_str());
        if !body.contains(outcome) && status == 200 {
            return Err(format!("answered {body}, expected {outcome}"));
        }
    }
    // An accepted request may keep its connection; a broken one behind it ends it.
    if expect["conn"] == "close" && outcome == "refused" {
        let closed = tokio::time::timeout(Duration::from_secs(5), is_closed(stream)).await;
        if closed != Ok(true) {
            return Err("the connection stays open".into());
        }
    }
    // Where other answers are as safe, the label is that of the answer given.
    let is_first_choice = expect["status"].as_u64() == Some(status.into());
    // A broken connection is counted when it is gone, which is after its answer.
    let counted = async {
        while rig.reasons().iter().all(|label| label != reason) {
            tokio::task::yield_now().await;
        }
    };
    if reason != "none"
        && is_first_choice
        && tokio::time::timeout(Duration::from_secs(5), counted).await.is_err()
    {
        return Err(format!("counted as {:?}, expected {reason}", rig.reasons()));
    }
    Ok(())
}

impl Rig {
    /// The labels `reason` that were counted.
    pub(super) fn reasons(&self) -> Vec<String> {
        let families = self.registry.gather();
        let counted = families
            .iter()
            .flat_map(prometheus::proto::MetricFamily::get_metric)
            .filter(|metric| metric.get_counter().get_value() > 0.0);
        counted
            .flat_map(|metric| metric.get_label().to_vec())
            .filter(|label| label.name() == "reason")
            .map(|label| label.value().to_owned())
            .collect()
    }
}

#[tokio::test]
async fn hundred_pipelined_requests_get_hundred_answers() {
    let rig = rig(vec![profile("default")], |_| {}).await;
    let wires = (0..100).map(|n| {
        Draft::new("default", callback("\"1\"", &format!("\"{n}\""), "1.00").into_bytes()).wire(None)
    });
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(&wires.collect::<Vec<_>>().concat()).await.unwrap();
    let mut answers = Vec::new();
    while answers.windows(10).filter(|window| window == b"\"accepted\"").count() < 100 {
        assert_ne!(tokio::io::AsyncReadExt::read_buf(&mut stream, &mut answers).await.unwrap(), 0);
    }
    assert_eq!(rig.events().await, 100);
    rig.close().await;
}

#[tokio::test]
async fn an_undated_replay_is_a_duplicate_and_past_max_age_quarantined() {
    let dated = super::preset("pagoefectivo-xdate");
    let mut aged = super::preset("pagoefectivo");
    aged.scheme.event.max_age = Some(Duration::from_secs(86_400));
    let rig = rig(vec![dated.clone(), aged.clone()], |_| {}).await;
    let (mut headers, body) = super::signed(&dated, BODY);
    assert!(rig.post("/in/pagoefectivo-xdate", &headers, &body).await.body.contains("accepted"));
    rig.clock.set(super::at(NOW + 4000));
    assert_eq!(rig.post("/in/pagoefectivo-xdate", &headers, &body).await.status, 401);
    let fresh = super::at(NOW + 4000).to_string();
    headers.iter_mut().filter(|(name, _)| name == "x-date").for_each(|(_, value)| *value = fresh.clone());
    assert!(rig.post("/in/pagoefectivo-xdate", &headers, &body).await.body.contains("duplicate"));
    let old = BODY.replace("22.05", "22.05,\"paymentDate\":\"2026-02-20T10:00:00-05:00\"");
    let (headers, body) = super::signed(&aged, &old);
    assert!(rig.post("/in/pagoefectivo", &headers, &body).await.body.contains("quarantined"));
    assert_eq!(rig.quarantined().await, ["event_too_old"]);
    rig.close().await;
}
