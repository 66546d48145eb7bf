//! What comes over the wire: the answer, what becomes of the connection, and under which reason it is counted.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chaski_common::clock::Clock;
use jiff::SignedDuration;

use super::case::Case;
use super::request::{self, MAX_AGE, NEXT_SECRET, OTHER_SECRET, PREVIOUS_SECRET, WEBHOOKS_SECRET, Wire};
use crate::harness::{
    Answer, Destination, Gateway, Layout, Receiver, Site, certificate, connect, eventually, get, pause,
    payment, read_answer,
};

pub(super) const GROUPS: &[&str] = &["http_framing", "headers", "body_json", "signature_timestamp"];

/// How long a machine may stand still between the dating of a request and its arrival.
const STANDSTILL: Duration = Duration::from_millis(900);
/// Tries of a dated request that found the machine standing still.
const TRIES_MAX: usize = 10;

/// The sources that the profiles of the corpus are.
fn sources() -> String {
    // All of one sender, as far as the corpus knows.
    let shared = "weak_secret = \"allow\"\nsecrets = [\"env:PE_SECRET\"]";
    let dated = format!("provider = \"pagoefectivo-xdate\"\n{shared}");
    let pe = format!("provider = \"pagoefectivo\"\n{shared}");
    let age = MAX_AGE.as_hours();
    format!(
        "[sources.other]\nprovider = \"pagoefectivo\"\nsecrets = [\"env:OTHER_SECRET\"]\n\
         [sources.dated]\n{dated}\n[sources.dated.signature]\ntemplate = \"{{ts}}.{{body}}\"\n\
         [sources.dated.signature.timestamp]\nformat = \"unix\"\n\
         [sources.dated-rfc3339]\n{dated}\n[sources.dated-rfc3339.signature]\ntemplate = \"{{ts}}.{{body}}\"\n\
         [sources.dated-body-only]\n{dated}\n\
         [sources.standard-webhooks]\nprovider = \"standard-webhooks\"\nsecrets = [\"env:WEBHOOKS_SECRET\"]\n\
         [sources.verify-minified]\n{pe}\n\
         [sources.key-id]\nprovider = \"pagoefectivo\"\nweak_secret = \"allow\"\nsecrets = {{ \"k1\" = \"env:PE_SECRET\" }}\n\
         [sources.key-id.signature.key]\nselect = \"header:x-key-id\"\n\
         [sources.ip-allow-list]\n{pe}\nallow_ips = [\"203.0.113.0/24\"]\n\
         [sources.aged]\n{pe}\n[sources.aged.event]\nmax_age = \"{age}h\"\n"
    )
}

/// A gateway with a source for every profile.
pub(super) fn site(ingest: &str, receiver: &Receiver, more: &str) -> Site {
    let layout = Layout {
        ingest: ingest.to_owned(),
        more: sources() + more,
        ..Layout::to([Destination::new("orders", receiver)])
    };
    let site = Site::new(&layout)
        .with_env("PE_SECRET_PREVIOUS", PREVIOUS_SECRET)
        .with_env("PE_SECRET_NEXT", NEXT_SECRET)
        .with_env("OTHER_SECRET", OTHER_SECRET)
        .with_env("WEBHOOKS_SECRET", WEBHOOKS_SECRET);
    let tomorrow = Clock::system().now() + SignedDuration::from_hours(24);
    let all = format!(
        "provider = \"pagoefectivo\"\nsecrets = [\"env:PE_SECRET\", \"env:PE_SECRET_PREVIOUS\", \
         {{ secret = \"env:PE_SECRET_NEXT\", not_before = \"{tomorrow:.0}\" }}]"
    );
    let toml = site.toml(&layout);
    site.write(&toml.replacen("provider = \"pagoefectivo\"\nsecrets = [\"env:PE_SECRET\"]", &all, 1));
    site
}

/// How often each reason was counted.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counted {
    /// Of requests: counted before the answer is written.
    requests: BTreeMap<String, u64>,
    /// Of connections: counted when they are gone.
    connections: BTreeMap<String, u64>,
    duplicates: u64,
}

impl Counted {
    fn now(gateway: &Gateway) -> Self {
        let text = String::from_utf8(get(gateway.admin, "/metrics").unwrap().body).unwrap();
        let mut counted = Self::default();
        for line in text.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let value = value.parse::<f64>().unwrap_or_default() as u64;
            let reason = || series.split("reason=\"").nth(1).and_then(|rest| rest.split('"').next());
            let counts = match series.split('{').next().unwrap_or_default() {
                "chaski_edge_refused_total"
                | "chaski_edge_unrouted_total"
                | "chaski_quarantine_added_total" => &mut counted.requests,
                "chaski_edge_connection_errors_total" => &mut counted.connections,
                "chaski_edge_requests_total" if series.contains("outcome=\"duplicate\"") => {
                    counted.duplicates += value;
                    continue;
                }
                _ => continue,
            };
            if let Some(reason) = reason() {
                *counts.entry(reason.to_owned()).or_default() += value;
            }
        }
        counted
    }

    fn of(&self, reason: &str) -> u64 {
        let counts = [&self.requests, &self.connections];
        counts.iter().filter_map(|counts| counts.get(reason)).sum::<u64>()
            + if reason == "duplicate" { self.duplicates } else { 0 }
    }

    /// Of requests, what `later` has more.
    fn refused_until(&self, later: &Self) -> BTreeMap<String, u64> {
        let more = later.requests.iter().map(|(reason, count)| {
            (reason.clone(), count - self.requests.get(reason).copied().unwrap_or_default())
        });
        more.filter(|(_, count)| *count > 0).collect()
    }
}

/// What came back for one write.
#[derive(Debug)]
struct Played {
    answers: Vec<Answer>,
    /// Whether the connection ended behind them; only asked where the case is about it.
    closed: bool,
    /// Interim answers, too.
    heads: usize,
}

/// Counts the heads of answers that pass.
struct Heads<R> {
    inner: R,
    seen: Vec<u8>,
}

impl<R: Read> Read for Heads<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.seen.extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

/// Writes while it reads: a refusal may come, and the connection go, before all is written.
fn play(edge: SocketAddr, wire: &Wire, write: &[u8], to_the_end: bool) -> Played {
    let mut stream = connect(edge).unwrap();
    let (reading, done) = (stream.try_clone().unwrap(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (at_once, pause_between) = wire.drip.unwrap_or((write.len(), Duration::ZERO));
            let (whole, drops) = write.split_at(at_once);
            let mut written = stream.write_all(whole);
            for drop in drops.chunks(1) {
                if written.is_err() || done.load(Ordering::Relaxed) {
                    break;
                }
                pause(pause_between);
                written = stream.write_all(drop);
            }
            if wire.half_closes {
                let _ = stream.shutdown(Shutdown::Write);
            }
        });
        let mut reader = BufReader::new(Heads { inner: &reading, seen: Vec::new() });
        let mut played = Played { answers: Vec::new(), closed: false, heads: 0 };
        while to_the_end || played.answers.len() < wire.answers {
            match read_answer(&mut reader) {
                Ok(answer) => played.answers.push(answer),
                // Silence is not an end.
                Err(error) => {
                    played.closed =
                        !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                    break;
                }
            }
        }
        let seen = &reader.get_ref().seen;
        played.heads = seen.windows(7).filter(|window| window == b"HTTP/1.").count();
        done.store(true, Ordering::Relaxed);
        let _ = reading.shutdown(Shutdown::Both);
        played
    })
}

/// What stands behind the head, its chunks put together.
fn body(write: &[u8]) -> Vec<u8> {
    let end = |bytes: &[u8], mark: &[u8]| bytes.windows(mark.len()).position(|window| window == mark);
    let (head, mut rest) = match (end(write, b"\r\n\r\n"), end(write, b"\n\n")) {
        (Some(at), _) => (&write[..at], &write[at + 4..]),
        (None, Some(at)) => (&write[..at], &write[at + 2..]),
        (None, None) => return Vec::new(),
    };
    if end(&head.to_ascii_lowercase(), b"chunked").is_none() {
        return rest.to_vec();
    }
    let mut body = Vec::new();
    while let Some(at) = end(rest, b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap(), 16).unwrap();
        if length == 0 {
            break;
        }
        body.extend_from_slice(&rest[at + 2..][..length]);
        rest = &rest[at + 2 + length + 2..];
    }
    body
}

/// A gateway on which cases are played one after the other.
struct Stage<'a> {
    gateway: &'a Gateway,
    counted: Counted,
    /// What was accepted, under its id.
    accepted: BTreeMap<String, Vec<u8>>,
    /// The 401 that all others are like.
    unauthorized: Option<String>,
}

impl<'a> Stage<'a> {
    fn on(gateway: &'a Gateway) -> Self {
        Self { gateway, counted: Counted::now(gateway), accepted: BTreeMap::new(), unauthorized: None }
    }

    fn judge(&mut self, case: &Case, number: usize) -> Result<(), String> {
        for _ in 0..TRIES_MAX {
            let dated = Instant::now();
            let judged = self.try_judge(case, number);
            if judged.is_ok() || dated.elapsed() < STANDSTILL || !case.profile.starts_with("dated") {
                return judged;
            }
        }
        Err("the machine stands still too often to tell".to_owned())
    }

    fn try_judge(&mut self, case: &Case, number: usize) -> Result<(), String> {
        let (wire, expect) = (request::wire(case, number), &case.expect);
        if let Some(captured) = &wire.captured {
            let first = play(self.gateway.edge, &Wire { answers: 1, ..Wire::default() }, captured, false);
            match first.answers.first() {
                Some(answer) if answer.outcome() == "accepted" => self.keep(answer, captured),
                _ => return Err(format!("what is captured is not accepted: {first:?}")),
            }
        }
        // What became of an earlier case's connection is no concern of this one.
        self.counted = Counted::now(self.gateway);
        let mut reasons = BTreeMap::<&str, u64>::new();
        let to_the_end = expect.conn == "close" || expect.responses_max.is_some_and(|max| max == 1);
        for (index, write) in wire.writes.iter().enumerate() {
            let played = play(self.gateway.edge, &wire, write, to_the_end);
            let is_first_choice = self
                .check(case, &wire, write, &played)
                .map_err(|what| format!("{what} (write {index}: {played:?})"))?;
            let then = expect.then["reason"].as_str();
            // Where another answer is as safe, the reason is that answer's.
            for reason in is_first_choice.then_some(expect.reason.as_str()).into_iter().chain(then) {
                *reasons.entry(reason).or_default() += 1;
            }
        }
        self.check_reasons(&reasons)
    }

    /// Whether the answer is the first choice, or what is wrong.
    fn check(&mut self, case: &Case, wire: &Wire, write: &[u8], played: &Played) -> Result<bool, String> {
        let expect = &case.expect;
        let status = played.answers.first().map_or(0, |answer| answer.status);
        if !expect.allows(status) {
            return Err(format!("status {status}, expected {expect:?}"));
        }
        for answer in played.answers.iter().take(wire.answers) {
            let (status, outcome) = (answer.status, answer.outcome());
            if status == 200 && outcome != expect.outcome {
                return Err(format!("{outcome}, expected {}", expect.outcome));
            }
            if status == 200 && outcome == "accepted" && wire.answers == 1 {
                self.keep(answer, write);
            }
            if status == 401 {
                let dateless = answer.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("date"));
                let bytes = format!("{:?} {:?}", dateless.collect::<Vec<_>>(), answer.body);
                if self.unauthorized.get_or_insert_with(|| bytes.clone()) != &bytes {
                    return Err(format!("unlike the other 401: {bytes}"));
                }
            }
        }
        if let Some(then) = expect.then["status"].as_u64()
            && played.answers.get(1).map(|answer| u64::from(answer.status)) != Some(then)
        {
            return Err(format!("then expected {then}"));
        }
        let more = usize::from(expect.then["status"].is_u64());
        let answers_max = expect.responses_max.unwrap_or(wire.answers) + more;
        if played.heads > answers_max {
            return Err(format!("{} answers, at most {answers_max} are right", played.heads));
        }
        if expect.conn == "close" && !played.closed {
            return Err("the connection stays open".to_owned());
        }
        Ok(status == expect.status)
    }

    fn keep(&mut self, answer: &Answer, write: &[u8]) {
        self.accepted.insert(answer.id(), body(write));
    }

    /// What is expected is counted, and no request under another reason.
    fn check_reasons(&self, reasons: &BTreeMap<&str, u64>) -> Result<(), String> {
        let mut later = Counted::now(self.gateway);
        for (reason, count) in reasons.iter().filter(|(reason, _)| **reason != "none") {
            let deadline = Instant::now() + crate::harness::PATIENCE;
            while later.of(reason) < self.counted.of(reason) + count {
                if Instant::now() > deadline {
                    return Err(format!("not counted as {reason}: {:?} until {later:?}", self.counted));
                }
                pause(crate::harness::LOOK);
                later = Counted::now(self.gateway);
            }
        }
        match self.counted.refused_until(&later).into_iter().find(|(reason, count)| {
            reasons.get(reason.as_str()).is_none_or(|expected| count > expected) && !reasons.is_empty()
        }) {
            Some((reason, count)) => Err(format!("counted as {reason}, {count} times")),
            None => Ok(()),
        }
    }
}

fn judge_all(stage: &mut Stage<'_>, cases: impl Iterator<Item = (usize, Case)>) -> usize {
    let (mut played, mut wrong) = (0, Vec::new());
    for (number, case) in cases {
        if let Err(what) = stage.judge(&case, number) {
            wrong.push(format!("{} {}: {what:.2000}", case.id, case.description));
        }
        played += 1;
    }
    assert!(wrong.is_empty(), "{} of {played} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(stage.gateway.exited().is_none());
    played
}

fn cases() -> impl Iterator<Item = (usize, Case)> {
    GROUPS.iter().flat_map(|group| super::played(group)).enumerate()
}

/// Whether the answer comes because time has passed.
fn is_timed(case: &Case) -> bool {
    case.expect.reason.ends_with("_timeout")
}

/// Whether the listener is to know its own names.
fn is_about_hosts(case: &Case) -> bool {
    case.profile == "host_list"
}

fn is_tls(case: &Case) -> bool {
    case.build["listener"] == "tls"
}

#[test]
fn every_input_gets_its_one_answer() {
    let receiver = Receiver::start();
    let site = site("", &receiver, "");
    let gateway = site.start();
    let mut stage = Stage::on(&gateway);
    let is_elsewhere = |case: &Case| is_timed(case) || is_tls(case) || is_about_hosts(case);
    let played = judge_all(&mut stage, cases().filter(|(_, case)| !is_elsewhere(case)));
    assert!(played > 170, "only {played} were played");

    // Afterwards a callback is taken as before, and what was accepted arrives with the bytes it came with.
    gateway.accept(&payment(1));
    receiver.wait_for_count(stage.accepted.len() + 101);
    for (id, body) in &stage.accepted {
        let receipt = receiver.wait_for(id);
        assert!(body.starts_with(&receipt.body), "{id}: {receipt:?}");
    }
    gateway.end();
    assert_eq!(
        receiver.receipts().len(),
        stage.accepted.len() + 101,
        "nothing that was not accepted, nothing twice"
    );
    for receipt in receiver.receipts() {
        let text = format!("{:?}", receipt.headers);
        assert!(!text.contains("canary-7f3") && !text.contains("unverified"), "{text}");
        assert_eq!(receipt.header("chaski-attempt"), "1");
    }
    let log = gateway.log();
    let is_control = |byte: u8| byte < 0x20 || byte == 0x7f;
    for line in &log {
        assert!(!line.contains("canary-7f3") && !line.contains("panicked"), "{line}");
        assert!(!line.bytes().any(is_control) && !line.contains('\u{202e}'), "{line:?}");
    }
}

#[test]
fn an_edge_that_knows_its_names_serves_no_other() {
    let receiver = Receiver::start();
    let site = site("hosts = [\"pay.test\", \"127.0.0.1\"]", &receiver, "");
    let gateway = site.start();
    let mut stage = Stage::on(&gateway);
    let played = judge_all(&mut stage, cases().filter(|(_, case)| is_about_hosts(case)));
    assert!(played > 0);
    gateway.accept(&payment(1));
    gateway.stop();
}

#[test]
fn what_does_not_come_to_an_end_is_ended() {
    let receiver = Receiver::start();
    let site = site("header_timeout = \"1s\"\nbody_timeout = \"1s\"", &receiver, "");
    let gateway = site.start();
    let mut stage = Stage::on(&gateway);
    // The corpus has bounds of five seconds in mind.
    let hurried = |(number, mut case): (usize, Case)| {
        for drip in ["drip_ms", "drip_body_ms"] {
            if let Some(pause) = case.build[drip].as_u64() {
                case.build[drip] = (pause / 5).into();
            }
        }
        (number, case)
    };
    judge_all(&mut stage, cases().filter(|(_, case)| is_timed(case)).map(hurried));
    gateway.accept(&payment(1));
    gateway.stop();
}

#[test]
fn a_handshake_that_does_not_go_on_is_ended() {
    let receiver = Receiver::start();
    let site = site("", &receiver, "[ingest.tls]\ncert = \"server.pem\"\nkey = \"server.key\"\n");
    certificate(&site, "server", None, &["subjectAltName=IP:127.0.0.1"]);
    let gateway = site.start();
    for (_, case) in cases().filter(|(_, case)| is_tls(case)) {
        assert_eq!(case.build["gen"], "stalled_client_hello");
        // A record of a client's hello that says there is more of it.
        let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
        let wire = Wire { answers: 1, ..Wire::default() };
        let played = play(gateway.edge, &wire, &hello, true);
        assert!(played.closed && played.answers.is_empty(), "{}: {played:?}", case.id);
        eventually("the handshake to be counted", || {
            let reason = format!("reason=\"{}\"", case.expect.reason);
            (gateway.count("chaski_edge_connection_errors_total", &[&reason]) == 1).then_some(())
        });
    }
    gateway.stop();
}
