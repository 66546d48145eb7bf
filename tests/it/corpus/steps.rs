//! What is posted twice, or by whom it should not be: sequences against one running gateway.

use std::collections::BTreeMap;
use std::io::{BufReader, Write as _};

use serde_json::{Value, json};

use super::case::Case;
use crate::harness::{
    Answer, Destination, Gateway, Layout, PE_SECRET, Receiver, Site, connect, hex_hmac, post, read_answer,
};

pub(super) const GROUP: &str = "dedup_abuse";

/// What an edge may grow by under load.
const GROWTH_MAX: u64 = 64 << 20;
/// Of the events that are looked at.
const EVENTS_MAX: u64 = 1000;

/// Whether the sequence has faults of the brokers or of Redis in it, or kills.
pub(super) fn is_about_servers(case: &Case) -> bool {
    const ABOUT_SERVERS: [&str; 6] = ["kill", "redis", "redis_stub", "restart", "failpoint", "action"];
    let steps = case.build["steps"].as_array().unwrap();
    steps.iter().any(|step| ABOUT_SERVERS.iter().any(|key| !step[key].is_null()))
}

/// What a gateway holds and has counted.
#[derive(Debug)]
pub(super) struct Held {
    published: usize,
    quarantined: u64,
    conflicts: u64,
}

impl Held {
    pub(super) fn of(gateway: &Gateway) -> Self {
        let events = gateway.call("events", &json!({ "limit": EVENTS_MAX }));
        Self {
            published: events.as_array().unwrap().len(),
            quarantined: gateway.count("chaski_quarantine_added_total", &[]),
            conflicts: gateway.count("chaski_dedup_conflicts_total", &[]),
        }
    }

    /// What a case says must hold afterwards.
    pub(super) fn check(&self, gateway: &Gateway, then: &Value) -> Result<(), String> {
        let later = Self::of(gateway);
        let published = later.published - self.published;
        let is_right = then["published"].as_u64().is_none_or(|right| published as u64 == right)
            && then["published_max"].as_u64().is_none_or(|most| (1..=most).contains(&(published as u64)))
            && then["quarantined"].as_u64().is_none_or(|right| later.quarantined - self.quarantined == right)
            && (then["alert"] != "ChaskiDedupConflict" || later.conflicts == self.conflicts + 1);
        if is_right { Ok(()) } else { Err(format!("{then}, but {self:?}, then {later:?}")) }
    }
}

/// A callback as a step writes it; what it leaves out is the case's own.
pub(super) fn callback(step: &Value, number: usize) -> (String, Vec<(String, String)>, String) {
    let text = |name: &str, other: &str| step[name].as_str().unwrap_or(other).to_owned();
    let symbol = |name: &str| match step[name].as_str() {
        // As it is written, or a name for one of the case's own.
        Some(token) if token.starts_with(['"', '1']) => token.to_owned(),
        Some(_) | None => format!("\"{}\"", 30_000_000 + number),
    };
    let body = format!(
        r#"{{"eventType":"{}","operationNumber":"{}","data":{{"cip":{},"currency":"PEN","amount":{}}}}}"#,
        text("type", "cip.paid"),
        text("op", "1253"),
        symbol("cip"),
        text("amount", "22.05")
    );
    let secret = if step["send"] == "forged" { "nobody's" } else { PE_SECRET };
    let headers = vec![
        ("content-type".to_owned(), "application/json".to_owned()),
        ("pe-signature".to_owned(), hex_hmac(secret, body.as_bytes())),
    ];
    let path = match step["source"].as_str() {
        Some(name) => format!("/in/{name}"),
        None => crate::harness::PE_PATH.to_owned(),
    };
    (path, headers, body)
}

pub(super) fn send(gateway: &Gateway, step: &Value, number: usize) -> Answer {
    let (path, headers, body) = callback(step, number);
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
    let answer = post(gateway.edge, &path, &headers, body.as_bytes()).unwrap();
    if answer.status == 503 {
        answer.is_unavailable();
    }
    answer
}

/// Sends what a step says; the last answer, and how often each outcome came.
fn run(gateway: &Gateway, step: &Value, number: usize) -> (Answer, BTreeMap<String, usize>) {
    let count = |name: &str| usize::try_from(step[name].as_u64().unwrap_or(1)).unwrap();
    let mut answers: Vec<Answer> = if step["unique"].is_u64() {
        unique(gateway, count("unique"))
    } else if step["parallel"].is_u64() {
        std::thread::scope(|scope| {
            let posts: Vec<_> =
                (0..count("parallel")).map(|_| scope.spawn(|| send(gateway, step, number))).collect();
            posts.into_iter().map(|post| post.join().unwrap()).collect()
        })
    } else {
        (0..count("times")).map(|_| send(gateway, step, number)).collect()
    };
    let mut outcomes = BTreeMap::new();
    for answer in &answers {
        *outcomes.entry(format!("{} {}", answer.status, answer.outcome())).or_default() += 1;
    }
    // Of copies that came at once, the one that was first is not the one that is asked about.
    answers.sort_by_key(|answer| answer.outcome() != "accepted");
    (answers.pop().unwrap(), outcomes)
}

/// So many payments on connections that are kept, each with many under way.
fn unique(gateway: &Gateway, count: usize) -> Vec<Answer> {
    const CONNECTIONS: usize = 4;
    const AT_ONCE: usize = 50;
    let wire = |number: usize| {
        let (path, headers, body) = callback(&json!({}), 1_000_000 + number);
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!(
            "POST {path} HTTP/1.1\r\nhost: pay.test\r\n{lines}content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    std::thread::scope(|scope| {
        let (wire, edge) = (&wire, gateway.edge);
        let senders: Vec<_> = (0..CONNECTIONS)
            .map(|sender| {
                scope.spawn(move || {
                    let mut stream = connect(edge).unwrap();
                    let mut answers = BufReader::new(stream.try_clone().unwrap());
                    let numbers: Vec<usize> = (sender..count).step_by(CONNECTIONS).collect();
                    let mut got = Vec::new();
                    for some in numbers.chunks(AT_ONCE) {
                        let all: String = some.iter().map(|number| wire(*number)).collect();
                        stream.write_all(all.as_bytes()).unwrap();
                        got.extend(some.iter().map(|_| read_answer(&mut answers).unwrap()));
                    }
                    got
                })
            })
            .collect();
        senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect()
    })
}

fn judge(gateway: &Gateway, case: &Case, number: usize) -> Result<(), String> {
    let (before, memory) = (Held::of(gateway), gateway.count("process_resident_memory_bytes", &[]));
    let steps = case.build["steps"].as_array().unwrap();
    let (last, earlier) = steps.split_last().unwrap();
    for step in earlier {
        let (answer, _) = run(gateway, step, number);
        // The first of a kind is taken, unless it is not the sender's, or a case says what else it is.
        let expected = match &step["send"] {
            forged if forged == "forged" => "401 ",
            _ if case.expect.reason == "schema_key" => "200 quarantined",
            _ => "200 accepted",
        };
        let said = format!("{} {}", answer.status, answer.outcome());
        if said != expected {
            return Err(format!("{step}: {said}"));
        }
    }
    let (answer, outcomes) = run(gateway, last, number);
    let expect = &case.expect;
    let is_right = expect.allows(answer.status)
        && (answer.status != 200 || expect.status != 200 || answer.outcome() == expect.outcome);
    let accepted = outcomes.get("200 accepted").copied().unwrap_or_default();
    if !is_right || (last["parallel"].is_u64() && accepted != 1) {
        return Err(format!("{outcomes:?}"));
    }
    if let Some(unique) = last["unique"].as_u64() {
        let known =
            ["200 accepted", "503 "].iter().filter_map(|outcome| outcomes.get(*outcome)).sum::<usize>();
        let grown = gateway.count("process_resident_memory_bytes", &[]).saturating_sub(memory);
        if known as u64 != unique || grown > GROWTH_MAX {
            return Err(format!("{outcomes:?}, {grown} bytes more"));
        }
        // Every id is remembered: the first and the last again.
        for payment in [0, unique as usize - 1] {
            let again = send(gateway, &json!({}), 1_000_000 + payment);
            if again.outcome() != "duplicate" {
                return Err(format!("forgotten: {again:?}"));
            }
        }
        return Ok(());
    }
    before.check(gateway, &expect.then)
}

#[test]
fn what_is_posted_again_is_told_from_what_is_new() {
    let receiver = Receiver::start();
    let pe = "provider = \"pagoefectivo\"\nweak_secret = \"allow\"\nsecrets = [\"env:PE_SECRET\"]\n";
    let more = format!("[sources.a]\n{pe}[sources.b]\n{pe}");
    let site = Site::new(&Layout { more, ..Layout::to([Destination::new("orders", &receiver)]) });
    let gateway = site.start();
    let cases = super::played(GROUP).filter(|case| !is_about_servers(case));
    let wrong: Vec<String> = cases
        .enumerate()
        .filter_map(|(number, case)| {
            let judged = judge(&gateway, &case, number);
            judged.err().map(|what| format!("{} {}: {what}", case.id, case.description))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    gateway.stop();
}
