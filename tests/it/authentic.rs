//! Promise 3: nothing unsigned is stored or forwarded, and the bytes delivered are the bytes received. The input is
//! real: PagoEfectivo's callback, signed by programs that are not ours and posted with curl.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Destination, Gateway, Layout, PE_PATH, PE_SECRET, Receiver, Site, text, tool};

/// As the guide shows it; an amount that printing anew would change; an operation number that is empty.
const COMPACT: &str = r#"{"eventType":"cip.paid","operationNumber":"","data":{"cip":"11546901","currency":"PEN","amount":1001.00}}"#;
const INDENTED: &str = "{\n  \"eventType\": \"cip.paid\",\n  \"operationNumber\": \"\",\n  \"data\": {\n    \"cip\": \"11546902\",\n    \"currency\": \"PEN\",\n    \"amount\": 1001.00\n  }\n}";
/// What the guide signs of the indented one.
const INDENTED_MINIFIED: &str = r#"{"eventType":"cip.paid","operationNumber":"","data":{"cip":"11546902","currency":"PEN","amount":1001.00}}"#;

fn sign_with_python(body: &str) -> String {
    let program = "import hmac,hashlib,sys;print(hmac.new(sys.argv[1].encode(),sys.argv[2].encode(),hashlib.sha256).hexdigest())";
    String::from_utf8(tool("python3", &["-c", program, PE_SECRET, body])).unwrap().trim().to_owned()
}

fn sign_with_openssl(body: &str) -> String {
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-hmac", PE_SECRET])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("this test needs openssl: {error}"));
    openssl.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    let printed = String::from_utf8(openssl.wait_with_output().unwrap().stdout).unwrap();
    printed.trim().rsplit(' ').next().unwrap().to_owned()
}

/// Status, head and body of the answer, as curl saw them.
fn curl(gateway: &Gateway, folder: &Path, body: &str, signature: Option<&str>) -> (u16, String, String) {
    let file = folder.join("callback.json");
    std::fs::write(&file, body).unwrap();
    let (url, data) = (format!("http://{}{PE_PATH}", gateway.edge), format!("@{}", text(&file)));
    let signature = signature.map(|signature| format!("PE-Signature: {signature}"));
    let mut arguments = vec!["--silent", "--show-error", "--max-time", "20", "--include", "-X", "POST"];
    arguments.extend(["-H", "Content-Type: application/json", "--data-binary", &data]);
    if let Some(signature) = &signature {
        arguments.extend(["-H", signature]);
    }
    arguments.push(&url);
    let printed = String::from_utf8(tool("curl", &arguments)).unwrap();
    let (head, body) = printed.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let dateless: Vec<&str> = head.lines().filter(|line| !line.to_lowercase().starts_with("date:")).collect();
    (status, dateless.join("\n"), body.to_owned())
}

fn outcome(answer: &(u16, String, String)) -> (u16, String) {
    let said: serde_json::Value = serde_json::from_str(&answer.2).unwrap_or_default();
    (answer.0, said["status"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_real_callback_reaches_three_destinations_once_with_the_bytes_received() {
    let receivers = [Receiver::start(), Receiver::start(), Receiver::start()];
    let names = ["orders", "erp", "notifications"];
    let site = Site::new(&Layout::to(
        names.iter().zip(&receivers).map(|(name, receiver)| Destination::new(name, receiver)),
    ));
    let gateway = site.start();
    let folder = site.path("");

    // (body sent, signed text): the indented body is signed as sent by some, and without indentation by the guide.
    let cases = [(COMPACT, sign_with_python(COMPACT)), (INDENTED, sign_with_openssl(INDENTED_MINIFIED))];
    assert_eq!(sign_with_python(COMPACT), sign_with_openssl(COMPACT), "two programs, one signature");
    for (body, signature) in &cases {
        let first = curl(&gateway, &folder, body, Some(signature));
        assert_eq!(outcome(&first), (200, "accepted".to_owned()), "{first:?}");
        let second = curl(&gateway, &folder, body, Some(signature));
        assert_eq!(outcome(&second), (200, "duplicate".to_owned()), "{second:?}");
        let id =
            serde_json::from_str::<serde_json::Value>(&first.2).unwrap()["id"].as_str().unwrap().to_owned();
        for receiver in &receivers {
            assert_eq!(receiver.wait_for(&id).body, body.as_bytes(), "byte for byte");
        }
    }
    // The guide's other reading: the indented body signed as it stands. The same payment, so a duplicate.
    let as_it_stands = curl(&gateway, &folder, INDENTED, Some(&sign_with_python(INDENTED)));
    assert_eq!(outcome(&as_it_stands), (200, "duplicate".to_owned()), "{as_it_stands:?}");
    gateway.stop();
    for receiver in &receivers {
        assert_eq!(receiver.receipts().len(), cases.len(), "once each");
    }
}

#[test]
fn every_401_is_the_same_answer_and_leaves_nothing_behind() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let folder = site.path("");
    let right = sign_with_python(COMPACT);
    let flipped = COMPACT.replace("1001.00", "1001.01");
    let upside_down: String = right.chars().rev().collect();
    let cases: [(&str, &str, Option<&str>); 7] = [
        ("no signature", COMPACT, None),
        ("a flipped byte in the body", &flipped, Some(&right)),
        ("another signature", COMPACT, Some(&upside_down)),
        ("half a signature", COMPACT, Some(&right[..32])),
        ("not hexadecimal", COMPACT, Some("zz")),
        ("a list of signatures", COMPACT, Some("00,11")),
        ("an empty body", "", Some(&right)),
    ];
    let answers: Vec<_> = cases
        .iter()
        .map(|(name, body, signature)| (name, curl(&gateway, &folder, body, *signature)))
        .collect();
    let (_, reference) = &answers[0];
    assert_eq!((reference.0, reference.2.as_str()), (401, ""), "{reference:?}");
    for (name, answer) in &answers {
        assert_eq!(answer, reference, "{name}");
    }
    assert_eq!(gateway.count("chaski_edge_refused_total", &["source=\"pagoefectivo\""]), cases.len() as u64);
    // One that is right overtakes none of them: what was to be forwarded would have been forwarded before it.
    let accepted = curl(&gateway, &folder, COMPACT, Some(&right));
    assert_eq!(outcome(&accepted), (200, "accepted".to_owned()));
    receiver.wait_for_count(1);
    gateway.stop();
    assert_eq!(site.command(&["events", "--json"]).json().as_array().unwrap().len(), 1);
    assert_eq!(site.command(&["dead", "--json"]).json(), serde_json::json!([]));
    assert_eq!(receiver.receipts().len(), 1);
}

#[test]
fn the_same_payment_with_another_amount_is_quarantined_and_shown() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let folder = site.path("");
    let body = |amount: &str| {
        format!(
            r#"{{"eventType":"cip.paid","operationNumber":"1253","data":{{"cip":"11546903","currency":"PEN","amount":{amount}}}}}"#
        )
    };
    let (paid, raised) = (body("22.05"), body("2205.00"));
    let first = curl(&gateway, &folder, &paid, Some(&sign_with_openssl(&paid)));
    assert_eq!(outcome(&first), (200, "accepted".to_owned()), "{first:?}");
    let second = curl(&gateway, &folder, &raised, Some(&sign_with_openssl(&raised)));
    assert_eq!(outcome(&second), (200, "quarantined".to_owned()), "{second:?}");
    receiver.wait_for_count(1);

    let shown = site.command(&["dead", "--quarantined", "--json"]).json();
    let letters = shown.as_array().unwrap();
    assert_eq!(letters.len(), 1, "{shown}");
    assert_eq!(letters[0]["reason"], "dedup_conflict", "{shown}");
    let id = letters[0]["id"].as_str().unwrap();
    let detail = site.command(&["dead", "show", id, "--json"]).json();
    assert_eq!(
        detail[0]["body"]["text"],
        raised.as_str(),
        "the bytes of a signed payment are kept: {detail}"
    );
    assert_eq!(gateway.count("chaski_dedup_conflicts_total", &[]), 1);
    assert_eq!(gateway.count("chaski_quarantine_events", &[]), 1);
    gateway.stop();
    assert_eq!(receiver.receipts().len(), 1, "only the first was forwarded");
}

#[test]
fn what_is_signed_and_cannot_be_used_is_kept_and_shown() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let folder = site.path("");
    let bodies = [
        "not JSON",
        "{}",
        "[]",
        r#"{"eventType":"cip.paid","operationNumber":"1","data":{"cip":"1","currency":"PEN","amount":-22.05}}"#,
        r#"{"eventType":"cip.paid","operationNumber":"1","data":{"cip":"1","currency":"EUR","amount":22.05}}"#,
        r#"{"eventType":"cip.paid","operationNumber":"1","operationNumber":"2","data":{"cip":"1","currency":"PEN","amount":22.05}}"#,
    ];
    for body in bodies {
        for round in 0..2 {
            let answer = curl(&gateway, &folder, body, Some(&sign_with_openssl(body)));
            assert_eq!(
                outcome(&answer),
                (200, "quarantined".to_owned()),
                "{body}, round {round}: {answer:?}"
            );
        }
    }
    let letters = site.command(&["dead", "--quarantined", "--json"]).json();
    assert_eq!(
        letters.as_array().unwrap().len(),
        bodies.len(),
        "the same bytes twice are one letter: {letters}"
    );
    let kept: Vec<String> = letters
        .as_array()
        .unwrap()
        .iter()
        .map(|letter| site.command(&["dead", "show", letter["id"].as_str().unwrap(), "--json"]).json()[0]["body"]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kept, bodies, "byte for byte, in the order they came");
    gateway.stop();
    assert_eq!(receiver.receipts().len(), 0);
}
