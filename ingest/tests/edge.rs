//! A real edge on a real socket over a real store: the published vectors, the answers, and the end in order.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "edge/gates.rs"]
mod gates;
#[path = "edge/http2.rs"]
mod http2;
#[path = "edge/in_flight.rs"]
mod in_flight;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chaski_common::clock::Clock;
use chaski_common::event::Environment;
use chaski_common::secret::Secret;
use chaski_common::storage::embedded::{self, Options};
use chaski_common::storage::{DeadFilter, EventFilter, OnConflict, Storage};
use chaski_ingest::presets;
use chaski_ingest::source::{SchemeSpec, Secrets, SourceSpec};
use chaski_ingest::verify::sign::{Signer, sign};
use chaski_ingest::{Edge, EdgeConfig, EdgeHandle, TlsConfig};
use jiff::Timestamp;
use prometheus::Registry;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const SECRET: &str = "chaski-test-secret/not+real";
const NOW: i64 = 1_772_031_600;

struct Rig {
    address: SocketAddr,
    handle: EdgeHandle,
    storage: Storage,
    registry: Registry,
    clock: Clock,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn source(name: &str, scheme: SchemeSpec, secrets: Secrets) -> SourceSpec {
    SourceSpec {
        name: name.into(),
        provider: None,
        path: format!("/in/{name}").into(),
        environment: Environment::Production,
        secrets,
        on_conflict: scheme.event.on_conflict.unwrap_or(OnConflict::Quarantine),
        scheme,
        allow_ips: Vec::new(),
    }
}

fn preset(name: &str) -> SourceSpec {
    source(name, presets::load(name).unwrap(), Secrets::Any(vec![Secret::new(SECRET).into()]))
}

async fn rig(sources: Vec<SourceSpec>, change: impl FnOnce(&mut EdgeConfig)) -> Rig {
    rig_over(|storage| storage, sources, change).await
}

/// With something between the edge and the storage.
async fn rig_over(
    between: impl FnOnce(Storage) -> Storage,
    sources: Vec<SourceSpec>,
    change: impl FnOnce(&mut EdgeConfig),
) -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::new();
    let clock = Clock::manual(at(NOW));
    let storage = between(embedded::open(&Options { path: folder.path().join("data") }, &registry).unwrap());
    let mut config = EdgeConfig { listen: ([127, 0, 0, 1], 0).into(), ..EdgeConfig::default() };
    change(&mut config);
    let edge = Edge::bind(config, sources, storage.clone(), &registry, clock.clone()).unwrap();
    let (address, handle, shutdown) = (edge.local_addr(), edge.handle(), CancellationToken::new());
    let running = tokio::spawn(edge.run(shutdown.clone(), Duration::from_secs(5)));
    Rig { address, handle, storage, registry, clock, shutdown, running, _folder: folder }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Rig {
    async fn raw(&self, wire: &[u8]) -> (TcpStream, Option<Answer>) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(wire).await.unwrap();
        let answer = read_answer(&mut stream).await;
        (stream, answer)
    }

    async fn post(&self, target: &str, headers: &[(String, String)], body: &[u8]) -> Answer {
        let mut wire = format!("POST {target} HTTP/1.1\r\nhost: edge\r\ncontent-length: {}\r\n", body.len());
        headers.iter().for_each(|(name, value)| wire.push_str(&format!("{name}: {value}\r\n")));
        let wire = [wire.as_bytes(), b"\r\n", body].concat();
        self.raw(&wire).await.1.unwrap()
    }

    async fn events(&self) -> usize {
        self.storage.events.find(EventFilter { limit: 1000, ..EventFilter::default() }).await.unwrap().len()
    }

    async fn quarantined(&self) -> Vec<String> {
        let letters =
            self.storage.deliveries.dead(DeadFilter { limit: 1000, ..DeadFilter::default() }).await.unwrap();
        letters.iter().map(|letter| letter.reason.to_string()).collect()
    }

    fn metric(&self, series: &str) -> f64 {
        let text = prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap();
        let line =
            text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("no series {series} in\n{text}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    async fn close(self) {
        self.shutdown.cancel();
        self.running.await.unwrap();
        self.storage.events.close().await;
    }
}

/// One answer, whole; none when the connection ends before it.
async fn read_answer(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<Answer> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |text| text.parse().unwrap());
            let mut body = bytes[end + 4..].to_vec();
            while body.len() < length {
                assert_ne!(stream.read_buf(&mut body).await.unwrap(), 0, "cut answer");
            }
            let status = head[9..12].parse().unwrap();
            return Some(Answer { status, head, body: String::from_utf8(body).unwrap() });
        }
        match stream.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

async fn is_closed(mut stream: TcpStream) -> bool {
    matches!(stream.read(&mut [0]).await, Ok(0) | Err(_))
}

fn callback(cip: &str, operation: &str, amount: &str) -> String {
    format!(
        r#"{{"eventType":"cip.paid","operationNumber":{operation},"data":{{"cip":{cip},"currency":"PEN","amount":{amount}}}}}"#
    )
}

/// A signed request of a source with a preset: headers and body.
fn signed(source: &SourceSpec, body: &str) -> (Vec<(String, String)>, Vec<u8>) {
    let secret = Secret::new(SECRET);
    let request = sign(
        &source.scheme,
        Signer { key_id: None, secret: &secret, forge: false },
        body.as_bytes(),
        at(NOW),
    )
    .unwrap();
    let headers = request
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    (headers, request.body.to_vec())
}

/// Schemes of the vectors that no description can say, and why.
const NOT_EXPRESSIBLE: &[(&str, &str)] = &[
    ("payu-md5", "an unkeyed digest with the key inside the text"),
    ("payu-hmac", "the amount loses a trailing zero before it is signed"),
    ("(none: per-item adapter)", "each item of a batch is signed by itself"),
];

fn vector_source(index: usize, vector: &Value) -> Option<SourceSpec> {
    let scheme = vector["scheme"].as_str().unwrap();
    if NOT_EXPRESSIBLE.iter().any(|(name, _)| *name == scheme) {
        return None;
    }
    let name = match scheme {
        "standard-webhooks-ed25519" => "standard-webhooks",
        "lyra-izipay" => "izipay",
        "seed-claim" => "pagoefectivo-xdate",
        "adyen-header" => "adyen",
        name => name,
    };
    let mut spec = presets::load(name).unwrap_or_else(|| panic!("no preset for {scheme}"));
    spec.signature.constants.insert("x_login".into(), "example-login".into());
    if scheme == "standard-webhooks-ed25519" {
        spec.signature.algorithm = "ed25519".into();
        spec.signature.tags = vec!["v1a".into()];
        spec.signature.key.strip_prefix = "whpk_".into();
    }
    let secret = |value: &Value| Secret::new(value.as_str().unwrap()).into();
    let secrets = match &vector["secret"] {
        Value::Array(secrets) => Secrets::Any(secrets.iter().map(secret).collect()),
        Value::Object(secrets) => {
            Secrets::ById(secrets.iter().map(|(id, value)| (id.clone(), secret(value))).collect())
        }
        one => Secrets::Any(vec![secret(one)]),
    };
    Some(source(&format!("v{index}"), spec, secrets))
}

#[tokio::test]
async fn published_and_computed_vectors_are_taken_or_refused_as_marked() {
    let vectors: Vec<Value> = serde_json::from_str(include_str!("vectors.json")).unwrap();
    let mut checked = 0;
    for (index, vector) in vectors.iter().enumerate().filter(|(_, vector)| vector["verified"] == true) {
        let Some(source) = vector_source(index, vector) else { continue };
        let rig = rig(vec![source], |_| {}).await;
        rig.clock.set(at(vector["now"].as_i64().unwrap_or(NOW)));
        let headers: Vec<_> = vector["headers"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned()))
            .collect();
        let query: Vec<_> = vector["query"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| format!("{k}={}", v.as_str().unwrap()))
            .collect();
        let target = if query.is_empty() {
            format!("/in/v{index}")
        } else {
            format!("/in/v{index}?{}", query.join("&"))
        };
        let answer = rig.post(&target, &headers, vector["body"].as_str().unwrap().as_bytes()).await;
        let expected = if vector["expect"] == "accept" { 200 } else { 401 };
        assert_eq!(
            answer.status, expected,
            "vector {index}: {} {}: {answer:?}",
            vector["scheme"], vector["note"]
        );
        rig.close().await;
        checked += 1;
    }
    assert!(checked >= 30, "only {checked} vectors were run");
    eprintln!("{checked} of {} vectors run; not expressible: {NOT_EXPRESSIBLE:?}", vectors.len());
}

#[tokio::test]
async fn an_event_is_accepted_once_and_other_content_is_quarantined() {
    let pe = preset("pagoefectivo");
    let rig = rig(vec![pe.clone()], |_| {}).await;
    let post = async |body: &str| {
        let (headers, bytes) = signed(&pe, body);
        rig.post("/in/pagoefectivo", &headers, &bytes).await
    };
    let first = post(&callback("\"11546901\"", "\"1253\"", "22.05")).await;
    assert_eq!((first.status, first.body.contains("\"accepted\"")), (200, true), "{first:?}");
    let number = post(&callback("11546901", "\"1253\"", "22.05")).await;
    assert!(number.body.contains("\"duplicate\""), "{number:?}");
    assert_eq!(number.body.split('"').nth(3), first.body.split('"').nth(3), "one event, one id");
    for _ in 0..2 {
        let conflict = post(&callback("\"11546901\"", "\"1253\"", "99.00")).await;
        assert!(conflict.body.contains("\"quarantined\""), "{conflict:?}");
    }
    let empty_operation = post(&callback("\"1\"", "\"\"", "1.00")).await;
    assert!(empty_operation.body.contains("\"accepted\""));
    let spaced = callback("\"1\"", "\"\"", "1.00").replace(',', " ,\r\n\t");
    assert!(post(&spaced).await.body.contains("\"duplicate\""));
    let absurd = post(&callback("\"2\"", "\"3\"", "22.005")).await;
    assert!(absurd.body.contains("\"quarantined\""));
    assert!(post(&callback("\"2\"", "\"3\"", "22.005")).await.body.contains("\"quarantined\""));
    assert_eq!(rig.metric("chaski_edge_durable_ack_seconds_count{path=\"spool\"}"), 6.0);
    assert_eq!(rig.metric("chaski_dedup_duration_seconds_count{backend=\"embedded\"}"), 6.0);
    assert_eq!(rig.events().await, 2);
    assert_eq!(rig.quarantined().await, ["dedup_conflict", "schema_amount"]);
    let source = "source=\"pagoefectivo\"";
    assert_eq!(rig.metric(&format!("chaski_edge_requests_total{{outcome=\"accepted\",{source}}}")), 2.0);
    assert_eq!(rig.metric(&format!("chaski_edge_requests_total{{outcome=\"duplicate\",{source}}}")), 2.0);
    for letter in ["schema_amount", "dedup_conflict"] {
        let added = format!("chaski_quarantine_added_total{{reason=\"{letter}\",{source}}}");
        assert_eq!(rig.metric(&added), 1.0, "{letter} came twice, and is one letter");
    }
    assert_eq!(rig.metric(&format!("chaski_dedup_conflicts_total{{{source}}}")), 2.0);
    assert_eq!(rig.metric("chaski_edge_inflight_requests"), 0.0);
    assert_eq!(rig.metric("chaski_edge_inflight_bytes"), 0.0);
    rig.close().await;
}

#[tokio::test]
async fn white_space_makes_no_other_event_of_a_signed_one() {
    let pe = preset("pagoefectivo");
    let rig = rig(vec![pe.clone()], |_| {}).await;
    let post = async |signed: &[(String, String)], body: &str| {
        rig.post("/in/pagoefectivo", signed, body.as_bytes()).await
    };
    let good = callback("\"1\"", "\"2\"", "22.05");
    let (headers, _) = signed(&pe, &good);
    for split in ["22 .05", "2 2.05", "22.0 5", "22.\n05"] {
        let answer = post(&headers, &good.replace("22.05", split)).await;
        assert_eq!(answer.status, 401, "{split}: {answer:?}");
    }
    let unusable = callback("\"1\"", "\"2\"", "-1");
    let (headers, _) = signed(&pe, &unusable);
    for gap in ["", " ", "\n\t", "   "] {
        let answer = post(&headers, &unusable.replace(',', &format!(",{gap}"))).await;
        assert!(answer.body.contains("\"quarantined\""), "{answer:?}");
    }
    assert_eq!(rig.quarantined().await, ["schema_amount"], "one letter");
    rig.close().await;
}

#[tokio::test]
async fn a_signed_answer_of_izipay_that_cannot_be_read_is_quarantined() {
    let spec = presets::load("izipay").unwrap();
    let secret = Secret::new(SECRET);
    let keys = Secrets::ById([("password".to_owned(), secret.clone().into())].into());
    let rig = rig(vec![source("izipay", spec.clone(), keys)], |_| {}).await;
    for (answer, reason) in [
        ("not json", Some("json_syntax")),
        (r#"{"orderStatus":"PAID","orderStatus":"UNPAID"}"#, Some("json_duplicate_key")),
        (r#"{"orderStatus":["PAID"]}"#, Some("schema_key")),
        (r#"{"orderStatus":"PAID"}"#, None),
    ] {
        let signer = Signer { key_id: Some("password"), secret: &secret, forge: false };
        let request = sign(&spec, signer, answer.as_bytes(), at(NOW)).unwrap();
        let before = rig.quarantined().await;
        let said = rig.post("/in/izipay", &[], &request.body).await;
        let mut after = rig.quarantined().await;
        after.retain(|letter| !before.contains(letter));
        assert_eq!((said.status, after), (200, reason.into_iter().map(str::to_owned).collect()), "{answer}");
    }
    assert_eq!(rig.events().await, 1);
    rig.close().await;
}

#[tokio::test]
async fn an_event_whose_id_type_subject_or_time_is_in_the_query_twice_is_quarantined() {
    let mut acme = preset("github");
    acme.scheme.event = toml::from_str(
        "id = ['query:id', 'query:part']\ntype = 'query:type'\nsubject = 'query:of'\ntime = 'query:at'\nfallback = 'body-sha256'",
    )
    .unwrap();
    let rig = rig(vec![acme.clone()], |_| {}).await;
    let mut repeated = 0;
    for query in [
        "id=1&type=a&of=b&at=1772031600",
        "type=a&x=1&x=2",
        "id=2&id=3",
        "part=1&%70art=1",
        "of=1&of=2",
        "type=1&type=2",
        "at=1&at=2",
    ] {
        let (headers, body) = signed(&acme, &format!("{{\"of\":\"{query}\"}}"));
        let answer = rig.post(&format!("/in/github?{query}"), &headers, &body).await;
        let is_once = query.contains("type=a");
        let expected = if is_once { "\"accepted\"" } else { "\"quarantined\"" };
        assert_eq!((answer.status, answer.body.contains(expected)), (200, true), "{query}: {answer:?}");
        repeated += usize::from(!is_once);
    }
    assert_eq!((rig.events().await, rig.quarantined().await), (2, vec!["schema_key".to_owned(); repeated]));
    rig.close().await;
}

#[tokio::test]
async fn a_form_with_a_second_answer_beside_the_signed_one_is_not_let_in() {
    let secret = Secret::new(SECRET);
    let spec = presets::load("izipay").unwrap();
    let signer = Signer { key_id: Some("password"), secret: &secret, forge: false };
    let genuine = sign(&spec, signer, br#"{"orderStatus":"UNPAID"}"#, at(NOW)).unwrap();
    let secrets = Secrets::ById([("password".to_owned(), secret.clone().into())].into());
    let rig = rig(vec![source("izipay", spec, secrets)], |_| {}).await;
    let body = std::str::from_utf8(&genuine.body).unwrap();
    for name in ["kr-answer", "kr%2Danswer"] {
        let forged = format!("{body}&{name}=%7B%22orderStatus%22%3A%22PAID%22%7D");
        assert_eq!(rig.post("/in/izipay", &[], forged.as_bytes()).await.status, 401);
    }
    assert_eq!(rig.metric("chaski_edge_refused_total{reason=\"duplicate_header\",source=\"izipay\"}"), 2.0);
    assert_eq!((rig.events().await, rig.quarantined().await.len()), (0, 0));
    // Without a transaction the id is made of what is signed: more beside it, or a slash in other words, is no other event.
    for form in [body.to_owned(), format!("{body}&x=1"), format!("x=2&{body}&kr-answer-type=V4%5C%2FPayment")]
    {
        assert_eq!(rig.post("/in/izipay", &[], form.as_bytes()).await.status, 200);
    }
    assert_eq!((rig.events().await, rig.quarantined().await.len()), (1, 0));
    rig.close().await;
}

#[tokio::test]
async fn hundred_copies_at_once_are_one_event() {
    let pe = preset("pagoefectivo");
    let rig = Arc::new(rig(vec![pe.clone()], |_| {}).await);
    let (headers, body) = signed(&pe, &callback("\"1\"", "\"2\"", "3.00"));
    let mut posts = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (rig, headers, body) = (rig.clone(), headers.clone(), body.clone());
        posts.spawn(async move { rig.post("/in/pagoefectivo", &headers, &body).await });
    }
    let answers = posts.join_all().await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(answers.iter().filter(|answer| answer.body.contains("accepted")).count(), 1);
    assert_eq!(rig.events().await, 1);
    Arc::into_inner(rig).unwrap().close().await;
}

#[tokio::test]
async fn a_reload_swaps_all_sources_or_none() {
    let rig = rig(vec![preset("pagoefectivo")], |_| {}).await;
    let github = preset("github");
    let (headers, body) = signed(&github, "{}");
    assert_eq!(rig.post("/in/github", &headers, &body).await.status, 404);
    let mut broken = github.clone();
    broken.scheme.signature.template = "{nothing}".into();
    let error = rig.handle.reload(&[preset("pagoefectivo"), broken], &[]).unwrap_err();
    assert_eq!(error.field, "sources.github.signature.template");
    assert_eq!(rig.post("/in/github", &headers, &body).await.status, 404);
    rig.handle.reload(&[preset("pagoefectivo")], std::slice::from_ref(&github.path)).unwrap();
    let answer = rig.post("/in/github", &headers, &body).await;
    assert!(
        answer.status == 503 && answer.head.contains("retry-after: "),
        "its source is about to come: {answer:?}"
    );
    rig.handle.reload(&[github], &[]).unwrap();
    assert_eq!(rig.post("/in/github", &headers, &body).await.status, 200);
    rig.handle.set_max_body(1);
    assert_eq!(rig.post("/in/github", &headers, &body).await.status, 413);
    rig.close().await;
}

#[tokio::test]
async fn closing_lets_what_is_in_flight_finish_and_takes_nothing_new() {
    let pe = preset("pagoefectivo");
    let rig = rig(vec![pe.clone()], |_| {}).await;
    let (headers, body) = signed(&pe, &callback("\"1\"", "\"2\"", "3.00"));
    let mut head = format!(
        "POST /in/pagoefectivo HTTP/1.1\r\nhost: edge\r\nexpect: 100-continue\r\ncontent-length: {}\r\n",
        body.len()
    );
    headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    // The edge has the request in hand when it asks for the body.
    assert_eq!(read_answer(&mut stream).await.unwrap().status, 100);
    let idle = TcpStream::connect(rig.address).await.unwrap();
    rig.shutdown.cancel();
    stream.write_all(&body).await.unwrap();
    assert_eq!(read_answer(&mut stream).await.unwrap().status, 200);
    assert!(is_closed(idle).await);
    rig.running.await.unwrap();
    assert!(TcpStream::connect(rig.address).await.is_err());
    rig.storage.events.close().await;
}

#[tokio::test]
async fn a_store_that_cannot_store_is_answered_503_with_retry_after() {
    let pe = preset("pagoefectivo");
    let rig = rig(vec![pe.clone()], |_| {}).await;
    rig.storage.events.close().await;
    let (headers, body) = signed(&pe, &callback("\"1\"", "\"2\"", "3.00"));
    let answer = rig.post("/in/pagoefectivo", &headers, &body).await;
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("retry-after: "), "{answer:?}");
    assert_eq!(rig.metric("chaski_edge_consecutive_non_200{source=\"pagoefectivo\"}"), 1.0);
    rig.close().await;
}

#[tokio::test]
async fn the_source_chooses_the_answer_and_the_peers() {
    let mut pagsmile = preset("pagsmile");
    let mut closed = preset("pagoefectivo");
    closed.allow_ips =
        vec![chaski_ingest::source::IpNet { address: [203, 0, 113, 0].into(), prefix_bits: 24 }];
    pagsmile.scheme.reply.status = 202;
    let rig = rig(vec![pagsmile.clone(), closed.clone()], |_| {}).await;
    let (headers, body) = signed(&pagsmile, r#"{"trade_no":"1","trade_status":"SUCCESS"}"#);
    let answer = rig.post("/in/pagsmile", &headers, &body).await;
    assert_eq!((answer.status, answer.body.as_str()), (202, "success"));
    let (headers, body) = signed(&closed, &callback("\"1\"", "\"2\"", "3.00"));
    assert_eq!(rig.post("/in/pagoefectivo", &headers, &body).await.status, 403);
    rig.close().await;
}

#[tokio::test]
async fn too_much_in_flight_is_503_and_a_late_head_is_closed_unanswered() {
    let pe = preset("pagoefectivo");
    let rig = rig(vec![pe.clone()], |config| {
        config.limits.inflight_bytes_max = 50;
        config.limits.head_timeout = Duration::from_millis(50);
    })
    .await;
    let (headers, body) = signed(&pe, &callback("\"1\"", "\"2\"", "3.00"));
    let answer = rig.post("/in/pagoefectivo", &headers, &body).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.head.contains("retry-after: "), "{answer:?}");
    let (stream, answer) = rig.raw(b"POST /in/pagoefectivo HTTP/1.1\r\nhost:").await;
    assert!(answer.is_none() && is_closed(stream).await);
    assert_eq!(
        rig.metric("chaski_edge_connection_errors_total{listener=\"edge\",reason=\"header_timeout\"}"),
        1.0
    );
    rig.close().await;
}

#[tokio::test]
async fn every_body_has_the_whole_time_and_silence_afterwards_ends_the_connection() {
    let pe = preset("pagoefectivo");
    let rig = rig(vec![pe.clone()], |config| {
        config.limits.head_timeout = Duration::from_millis(100);
        config.limits.body_timeout = Duration::from_millis(600);
        config.limits.idle_timeout = Duration::from_millis(600);
    })
    .await;
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    for number in ["1", "2", "3"] {
        let (headers, body) = signed(&pe, &callback(number, number, "3.00"));
        let mut head =
            format!("POST /in/pagoefectivo HTTP/1.1\r\nhost: edge\r\ncontent-length: {}\r\n", body.len());
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
        // Longer than a head may take, and three times longer than one body may.
        tokio::time::sleep(Duration::from_millis(300)).await;
        stream.write_all(&body).await.unwrap();
        assert_eq!(read_answer(&mut stream).await.unwrap().status, 200, "{number}");
    }
    let silent = std::time::Instant::now();
    assert!(is_closed(stream).await);
    assert!(silent.elapsed() > Duration::from_millis(300));
    for reason in ["header_timeout", "body_incomplete", "io"] {
        let series = format!("chaski_edge_connection_errors_total{{listener=\"edge\",reason=\"{reason}\"}}");
        assert_eq!(rig.metric(&series), 0.0, "{reason}");
    }
    rig.close().await;
}

#[tokio::test]
async fn tls_is_spoken_to_clients_whose_certificate_is_known_and_to_no_others() {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};

    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls");
    let (ca, cert, key) = (folder.join("ca.pem"), folder.join("leaf.pem"), folder.join("leaf.key"));
    let pe = preset("pagoefectivo");
    let rig = rig(vec![pe.clone()], |config| {
        config.tls = Some(TlsConfig { cert: cert.clone(), key: key.clone(), client_ca: Some(ca.clone()) });
        config.limits.handshake_timeout = Duration::from_millis(300);
    })
    .await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&ca).unwrap()).unwrap();
    let client = || {
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots.clone())
    };
    let chain = vec![CertificateDer::from_pem_file(&cert).unwrap()];
    let known = client().with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&key).unwrap()).unwrap();
    let connect = async |config: rustls::ClientConfig| {
        let stream = TcpStream::connect(rig.address).await.unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect("localhost".try_into().unwrap(), stream)
            .await
    };
    let (headers, body) = signed(&pe, &callback("\"1\"", "\"2\"", "3.00"));
    let mut wire =
        format!("POST /in/pagoefectivo HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| wire.push_str(&format!("{name}: {value}\r\n")));
    let mut stream = connect(known).await.unwrap();
    stream.write_all(&[wire.as_bytes(), b"\r\n", &body].concat()).await.unwrap();
    assert_eq!(read_answer(&mut stream).await.unwrap().status, 200);
    assert!(connect(client().with_no_client_auth()).await.is_err());
    // A handshake that stalls ends too.
    let stalled = TcpStream::connect(rig.address).await.unwrap();
    assert!(is_closed(stalled).await);
    let errors = "chaski_edge_connection_errors_total{listener=\"edge\",reason=\"tls_handshake\"}";
    while rig.metric(errors) < 2.0 {
        tokio::task::yield_now().await;
    }
    rig.close().await;
}

#[tokio::test]
async fn type_and_subject_are_found_in_json_inside_a_text() {
    let mut culqi = preset("culqi");
    culqi.secrets = Secrets::Any(vec![Secret::new("user:password").into()]);
    culqi.scheme.event.kind = Some("json:/data/!/state".into());
    culqi.scheme.event.subject = Some("json:/data/!/amount".into());
    let rig = rig(vec![culqi], |_| {}).await;
    let headers = [("authorization".to_owned(), "Basic dXNlcjpwYXNzd29yZA==".to_owned())];
    let body =
        br#"{"id":"evt_1","type":"order.status.changed","data":"{\"state\":\"paid\",\"amount\":2205}"}"#;
    assert!(rig.post("/in/culqi", &headers, body).await.body.contains("accepted"));
    let event = rig
        .storage
        .events
        .find(EventFilter { limit: 1, ..EventFilter::default() })
        .await
        .unwrap()
        .remove(0)
        .event;
    assert_eq!((event.kind.as_ref(), event.subject.as_deref()), ("paid", Some("2205")));
    assert_eq!(event.body.as_ref(), body, "the bytes kept are the bytes received");
    let trace = event.traceparent.unwrap();
    assert!(trace.starts_with(&format!("00-{}-", event.id)), "begun here, since none was sent: {trace}");
    rig.close().await;
}
