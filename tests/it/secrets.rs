//! A secret is never shown: not in the log, at whatever level, not by a command, not by the admin address, not in the
//! store. A body is shown where somebody asks for that very event, and nowhere else.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use crate::harness::{
    Answer, Destination, Gateway, Layout, PE_PATH, Receiver, Reply, Site, eventually, exchange, get,
    hex_hmac, paid, post,
};

/// In every secret here, and in nothing else.
const MARK: &str = "K4naryQx";
/// In every body here.
const BODY_MARK: &str = "C0ntentWj";

fn secret(name: &str) -> String {
    format!("{MARK}-{name}-7fT2mXbR9sLwYd4H")
}

/// The variables that hold them.
const NAMES: [&str; 9] = [
    "PE_SECRET",
    "PREVIOUS",
    "DESTINATION_SECRET",
    "ADMIN_TOKEN",
    "BEARER",
    "PASSWORD",
    "API_KEY",
    "ALERTS_URL",
    "ALERTS_SECRET",
];

/// What was said, and by whom.
struct Said(Vec<(String, String)>);

impl Said {
    fn add(&mut self, who: impl Into<String>, text: impl Into<String>) {
        self.0.push((who.into(), text.into()));
    }

    fn command(&mut self, site: &Site, arguments: &[&str]) {
        let told = site.command(arguments);
        self.add(arguments.join(" "), format!("{}{}", told.stdout, told.stderr));
    }

    #[track_caller]
    fn holds_none_of(&self, marks: &[&str]) {
        for (who, text) in &self.0 {
            for mark in marks {
                let at = text.find(mark);
                assert!(at.is_none(), "{who} shows {mark}: {}", &text[at.unwrap()..].lines().next().unwrap());
            }
        }
    }
}

fn send(gateway: &Gateway, secret: &str, body: &str) -> Answer {
    let signature = hex_hmac(secret, body.as_bytes());
    let authorization = format!("Bearer {MARK}-of-the-sender");
    let headers = [
        ("pe-signature", signature.as_str()),
        ("authorization", &authorization),
        ("cookie", &authorization),
        ("content-type", "application/json"),
    ];
    post(gateway.edge, PE_PATH, &headers, body.as_bytes()).unwrap()
}

/// A payment whose content has the mark of bodies in it.
fn payment(number: u64) -> String {
    paid(50_000_000 + number, &number.to_string(), "1001.00").replacen(
        '{',
        &format!("{{\"name\":\"{BODY_MARK}\","),
        1,
    )
}

#[test]
fn no_secret_is_shown_by_anything_that_speaks() {
    let [good, echo, refusing, alerts] = [(); 4].map(|()| Receiver::start());
    echo.becomes(|_| {
        Reply::status(500).with("www-authenticate", format!("Bearer {MARK}-asked-for")).saying(MARK)
    });
    refusing.becomes(|_| Reply::status(410));
    let layout = Layout {
        source: "[sources.previous]\nprovider = \"pagoefectivo\"\nweak_secret = \"allow\"\nsecrets = [\"env:PE_SECRET\", \"env:PREVIOUS\"]".to_owned(),
        more: "[alerts]\nevery = \"100ms\"\ngroup = \"100ms\"\n[alerts.receivers.team]\nkind = \"webhook\"\nurl = \"env:ALERTS_URL\"\n\
               secret = \"env:ALERTS_SECRET\"\n"
            .to_owned(),
        ..Layout::to([
            Destination::new("good", &good).with("auth = { bearer = \"env:BEARER\" }"),
            Destination::new("echo", &echo)
                .with("auth = { basic = { user = \"chaski\", password = \"env:PASSWORD\" } }"),
            Destination::new("refusing", &refusing)
                .with("auth = { header = { name = \"x-api-key\", value = \"env:API_KEY\" } }"),
        ])
    };
    let mut site = Site::new(&layout).with_env("RUST_LOG", "trace");
    for name in NAMES {
        let value = match name {
            "DESTINATION_SECRET" => format!("whsec_{}", BASE64.encode(secret(name))),
            "ALERTS_URL" => format!("http://{}/hooks?token={}", alerts.address, secret(name)),
            _ => secret(name),
        };
        site = site.with_env(name, &value);
    }
    let admin = format!("listen = \"{}\"", site.admin);
    let toml = site.toml(&layout).replace(&admin, &format!("{admin}\ntoken = \"env:ADMIN_TOKEN\""));
    site.write(&toml);
    let gateway = site.start();
    let mut said = Said(Vec::new());

    // Accepted, delivered, failing, gone; refused; kept although it cannot be used; not HTTP at all.
    let key = secret("PE_SECRET");
    let accepted = send(&gateway, &key, &payment(1));
    assert_eq!(accepted.outcome(), "accepted", "{accepted:?}");
    good.wait_for(&accepted.id());
    eventually("failures", || (echo.arrivals() > 1 && refusing.arrivals() > 0).then_some(()));
    eventually("the alert", || (alerts.arrivals() > 0).then_some(()));
    let unusable = payment(2).replace("1001.00", "-1");
    assert_eq!(send(&gateway, &key, &unusable).outcome(), "quarantined");
    assert_eq!(send(&gateway, &key, &payment(1).replace("1001.00", "1002.00")).outcome(), "quarantined");
    let refused = send(&gateway, &secret("nobody's"), &payment(3));
    assert_eq!(refused.status, 401);
    said.add("a refusal", format!("{:?} {}", refused.headers, String::from_utf8_lossy(&refused.body)));
    let not_http = format!("POST {PE_PATH} HTTP/9.9\r\nauthorization: {MARK}\r\n\r\n{BODY_MARK}");
    let _ = exchange(site.edge, not_http.as_bytes());

    // What the admin address says, with the token, with a wrong one, with none.
    for path in ["/metrics", "/healthz", "/readyz", "/nothing"] {
        let answer = get(site.admin, path).unwrap();
        said.add(path, format!("{:?} {}", answer.headers, String::from_utf8_lossy(&answer.body)));
    }
    for token in [secret("ADMIN_TOKEN"), format!("{MARK}-wrong")] {
        let authorization = format!("Bearer {token}");
        let headers = [("content-type", "application/json"), ("authorization", &*authorization)];
        for (call, question) in
            [("destinations", json!({})), ("nothing", json!({})), ("dead", json!(BODY_MARK))]
        {
            let path = format!("/api/{call}");
            let answer = post(site.admin, &path, &headers, question.to_string().as_bytes()).unwrap();
            if call == "destinations" {
                said.add(path, format!("{:?} {}", answer.headers, String::from_utf8_lossy(&answer.body)));
            }
        }
    }
    for arguments in [
        &["check"][..],
        &["check", "--json"],
        &["doctor"],
        &["doctor", "--json"],
        &["events"],
        &["events", "--json"],
        &["parked", "--json"],
        &["dead", "--json"],
        &["destinations", "--json"],
        &["alerts", "test"],
        &["config", "reference"],
        &["reload", "--json"],
        &["send", "pagoefectivo", "--json"],
        &["send", "pagoefectivo", "--forge"],
    ] {
        said.command(&site, arguments);
    }

    // Files with slips, of which one has a secret where the name of one belongs.
    for bad in [
        toml.replace("env:BEARER", &secret("BEARER")),
        toml.replace("env:ADMIN_TOKEN", &format!("{MARK}\\nx")),
        toml.replace("[alerts]\n", &format!("[alerts]\n{MARK} = {MARK}\n")).replace("K4", "k4"),
        toml.replace("env:ALERTS_URL", "env:PE_SECRET"),
        format!("{toml}\n[destinations.more]\nurl = \"https://u:{MARK}@erp.test/x\"\n"),
    ] {
        site.write(&bad);
        gateway.signal("HUP");
        for arguments in [&["check"][..], &["check", "--json"], &["run"], &["doctor"]] {
            said.command(&site, arguments);
        }
    }
    eventually("a reload that fails", || {
        gateway.log().iter().any(|line| line.contains("was not reloaded")).then_some(())
    });
    site.write(&toml);
    said.command(&site, &["reload"]);
    gateway.end();
    said.add("the log", gateway.log().join("\n"));
    assert!(gateway.log().iter().any(|line| line.contains("\"TRACE\"")), "it was not told to say everything");

    let encoded = [
        BASE64.encode(format!("chaski:{}", secret("PASSWORD"))),
        BASE64.encode(secret("DESTINATION_SECRET")),
        hex::encode(MARK),
    ];
    let mut marks = vec![MARK, BODY_MARK];
    marks.extend(encoded.iter().map(String::as_str));
    said.holds_none_of(&marks);

    // The store has the bodies and nothing else of all this.
    let files = fs::read_dir(site.store()).unwrap().map(|file| file.unwrap().path());
    for file in files.filter(|file| file.is_file()) {
        let bytes = fs::read(&file).unwrap();
        for mark in marks.iter().filter(|mark| **mark != BODY_MARK) {
            let is_there = bytes.windows(mark.len()).any(|window| window == mark.as_bytes());
            assert!(!is_there, "{} holds {mark}", file.display());
        }
    }
    // Whoever asks for the event is shown it.
    let shown = site.command(&["events", "show", &accepted.id()]);
    assert!(shown.ok().stdout.contains(BODY_MARK) && !shown.stdout.contains(MARK), "{shown:?}");
}
