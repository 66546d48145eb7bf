//! What a destination answers, and what becomes of the event there: one event, a destination for every case.

use std::fs;
use std::time::{Duration, Instant};

use chaski_common::clock::Clock;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::case::Case;
use super::stub::{Request, Stub};
use crate::harness::{
    Destination, Gateway, LOOK, Layout, PE_SECRET, Receiver, Site, Storage, eventually, hex_hmac, paid,
    pause, payment, post, text,
};

pub(super) const GROUP: &str = "destination_response";

/// What is sent along as a credential, and shown nowhere.
const CANARY: &str = "canary-Qm4vZ8tB1xLw7KcY2nRs";
/// Beyond this nothing of an answer is of interest, whatever the kernel keeps.
const TAKEN_MAX: usize = 64 << 20;
/// Until each case has come to its end.
const ALL: Duration = Duration::from_secs(60);

struct Rig {
    site: Site,
    gateway: Gateway,
    cases: Vec<(Case, Stub)>,
}

fn is_named(case: &Case) -> bool {
    ["dns", "dns_answers", "dns_rebind"].iter().any(|key| !case.build["stub"][key].is_null())
}

fn name(case: &Case) -> String {
    case.id.to_lowercase()
}

/// The answers of the name server, as the preloaded library reads them.
fn answers(script: &Value) -> String {
    let one = |answer: &Value| answer.as_str().unwrap().to_owned();
    let each = |list: &Value| list.as_array().unwrap().iter().map(one).collect::<Vec<_>>();
    match script["dns"].as_str() {
        Some("timeout") => "silence".to_owned(),
        // A resolver that finds a loop fails.
        Some("cname_loop") => "failure".to_owned(),
        Some(other) => other.to_owned(),
        None if script["dns_rebind"].is_array() => each(&script["dns_rebind"]).join("\n"),
        None => each(&script["dns_answers"]).join(" "),
    }
}

impl Rig {
    fn start() -> Self {
        let cases: Vec<(Case, Stub)> = super::played(GROUP)
            .map(|case| {
                let stub = Stub::start(&case.build["stub"]);
                (case, stub)
            })
            .collect();
        let layout = Layout {
            more: "[sources.again]\nprovider = \"pagoefectivo\"\nweak_secret = \"allow\"\nsecrets = [\"env:PE_SECRET\"]\n".to_owned(),
            ..Layout::to(cases.iter().map(|(case, stub)| Self::destination(case, stub)))
        };
        let site = Site::on(Storage::File, &layout).with_env("CANARY", CANARY);
        let folder = site.path("names");
        fs::create_dir(&folder).unwrap();
        for (case, _) in cases.iter().filter(|(case, _)| is_named(case)) {
            fs::write(folder.join(format!("{}.test", name(case))), answers(&case.build["stub"])).unwrap();
        }
        let site = site.in_front_of_the_system("corpus/names.c").with_env("NAMES_FOLDER", text(&folder));
        let gateway = site.start();
        Self { site, gateway, cases }
    }

    fn destination(case: &Case, stub: &Stub) -> Destination {
        let (script, port) = (&case.build["stub"], stub.address.port());
        let host = if is_named(case) { format!("{}.test", name(case)) } else { "127.0.0.1".to_owned() };
        let scheme = if script["tls"].is_string() { "https" } else { "http" };
        // Only for what the harness makes of a destination; it is posted to the stub.
        let receiver = Receiver::start();
        let mut destination = Destination::new(Box::leak(name(case).into_boxed_str()), &receiver)
            .with("auth = { bearer = \"env:CANARY\" }")
            .with("allow_http = true");
        destination.url = format!("{scheme}://{host}:{port}/hooks");
        if !script["hang"].is_string() {
            // A machine that stands still for a while makes no attempt fail.
            destination.settings = destination.settings.replace("\"2s\"", "\"15s\"");
        }
        if !takes_again(case) {
            destination = destination.with("sources = [\"pagoefectivo\"]");
        }
        let retry =
            |give_up| format!("first = \"100ms\"\nfactor = 2\ncap = \"1s\"\ngive_up_after = \"{give_up}\"");
        destination.retrying(&retry(match case.expect.outcome.as_str() {
            "blocked" => "2s",
            _ if script["retry_after"].is_string() => "48h",
            _ => "10m",
        }))
    }

    /// What became of the event at each destination, by the commands' own words.
    fn fate(&self, id: &str, case: &Case) -> Value {
        let detail = self.gateway.call("events/show", &serde_json::json!({ "id": id }));
        let fates = detail["destinations"].as_array().unwrap();
        fates.iter().find(|fate| fate["destination"] == name(case).as_str()).unwrap().clone()
    }

    fn attempts(&self, case: &Case, result: &str) -> u64 {
        let labels = [format!("destination=\"{}\"", name(case)), format!("result=\"{result}\"")];
        self.gateway.count("chaski_dispatch_attempts_total", &labels.each_ref().map(String::as_str))
    }
}

/// Cases that are about the connection, and so about two events.
fn takes_again(case: &Case) -> bool {
    case.build["stub"]["net"] == "close_idle" || case.description.starts_with("Two responses")
}

/// What a case may still have to wait for, or what is wrong with it.
enum Verdict {
    Wait(String),
    Wrong(String),
    Right,
}

fn judge(rig: &Rig, id: &str, case: &Case, stub: &Stub) -> Verdict {
    use Verdict::{Right, Wait, Wrong};
    let (expect, script) = (&case.expect, &case.build["stub"]);
    let (fate, requests) = (rig.fate(id, case), stub.requests());
    let state = fate["state"].as_str().unwrap_or_default();
    let counted = rig.attempts(case, &expect.reason);
    let said = || format!("{fate}, {} times {}, {requests:?}", counted, expect.reason);
    let attempts = fate["attempts"].as_u64().unwrap_or_default();
    if let Some(first) = requests.first()
        && requests.iter().any(|request| request.idempotency_key != first.idempotency_key)
    {
        return Wrong(format!("another key: {}", said()));
    }
    if stub.taken() > TAKEN_MAX {
        return Wrong(format!("{} bytes of the answer were taken", stub.taken()));
    }
    match expect.outcome.as_str() {
        "delivered" => match state {
            "delivered" if attempts == 1 && counted == 1 && requests.len() == 1 => Right,
            "delivered" | "dead" | "parked" => Wrong(said()),
            _ => Wait(said()),
        },
        "disabled" => match state {
            "dead" if fate["reason"] == expect.reason.as_str() && counted == 1 && requests.len() == 1 => {
                let destination = format!("destination=\"{}\"", name(case));
                match rig.gateway.count("chaski_dispatch_disabled", &[&destination]) {
                    1 => Right,
                    _ => Wrong("not shown as disabled".to_owned()),
                }
            }
            "dead" | "delivered" | "parked" => Wrong(said()),
            _ => Wait(said()),
        },
        "blocked" if stub.connections() > 0 => Wrong(said()),
        "blocked" => match state {
            "dead" if counted > 0 => Right,
            "dead" | "delivered" => Wrong(said()),
            _ => Wait(said()),
        },
        "retry" if state == "dead" => Wrong(said()),
        "retry" if script["retry_after"].as_str().is_some_and(|value| !value.starts_with('-')) => {
            let asked = script["retry_after"].as_str().unwrap().parse::<i64>().unwrap().min(24 * 3600);
            if state != "parked" {
                return if state == "delivered" { Wrong(said()) } else { Wait(said()) };
            }
            let due: Timestamp = fate["due"].as_str().unwrap().parse().unwrap();
            let rest = due.duration_since(Clock::system().now());
            let (shortest, longest) = (asked - ALL.as_secs() as i64, asked + 60);
            let is_obeyed =
                rest > SignedDuration::from_secs(shortest) && rest < SignedDuration::from_secs(longest);
            if is_obeyed && counted == 1 { Right } else { Wrong(format!("due in {rest:#}: {}", said())) }
        }
        // These do not heal.
        "retry" if script["net"] == "refused" || script["tls"].is_string() || script["dns"].is_string() => {
            if !requests.is_empty() || stub.taken() > 0 || state == "delivered" {
                return Wrong(said());
            }
            if counted >= 2 { Right } else { Wait(said()) }
        }
        "retry" => {
            let failures = script["status_each"].as_array().map_or(1, Vec::len);
            let in_order = |requests: &[Request]| {
                requests.iter().zip(1..).all(|(request, attempt)| request.attempt == attempt)
            };
            match state {
                "delivered"
                    if counted == failures as u64
                        && requests.len() == failures + 1
                        && in_order(&requests) =>
                {
                    Right
                }
                "delivered" => Wrong(said()),
                _ => Wait(said()),
            }
        }
        other => Wrong(format!("nothing is called {other}")),
    }
}

#[test]
fn whatever_a_destination_answers_the_event_has_the_fate_it_should() {
    let rig = Rig::start();
    let id = rig.gateway.accept(&payment(1));
    let (begun, mut wrong) = (Instant::now(), Vec::new());
    for (case, stub) in &rig.cases {
        let what = loop {
            match judge(&rig, &id, case, stub) {
                Verdict::Right => break None,
                Verdict::Wrong(what) => break Some(what),
                Verdict::Wait(what) if begun.elapsed() > ALL => break Some(what),
                Verdict::Wait(_) => pause(LOOK),
            }
        };
        wrong.extend(what.map(|what| format!("{} {}: {what}", case.id, case.description)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // Once more where the connection was at stake: it is not used again, and nobody has failed.
    let body = paid(10_000_001, "2", "1001.00");
    let signature = hex_hmac(PE_SECRET, body.as_bytes());
    let answer =
        post(rig.gateway.edge, "/in/again", &[("pe-signature", &signature)], body.as_bytes()).unwrap();
    assert_eq!(answer.outcome(), "accepted");
    for (case, stub) in rig.cases.iter().filter(|(case, _)| takes_again(case)) {
        eventually(&format!("{}: the second event", case.id), || {
            (rig.fate(&answer.id(), case)["state"] == "delivered").then_some(())
        });
        let requests = stub.requests();
        assert_ne!(requests[0].connection, requests.last().unwrap().connection, "{}", case.id);
        assert_eq!(requests.last().unwrap().attempt, 1, "{}", case.id);
        assert_eq!(rig.attempts(case, "success"), 2, "{}", case.id);
    }
    for (case, _) in rig.cases.iter().filter(|(case, _)| case.build["stub"]["dns_rebind"].is_array()) {
        let asked = fs::read(rig.site.path("names").join(format!("{}.test.asked", name(case)))).unwrap();
        assert_eq!(asked.len(), 1, "{}: what was vetted is what was dialled", case.id);
    }
    let letters = rig.site.command(&["dead", "--json"]).stdout;
    let shown = [rig.gateway.log().join("\n"), letters];
    assert!(shown.iter().all(|text| !text.contains(CANARY)), "a credential is shown");
}
