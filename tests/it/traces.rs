//! One trace from post to delivery, for a collector that speaks OTLP; and nothing but that: a collector that is away
//! costs spans and no event, and a span holds no payload and no secret.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

use crate::harness::{
    Callback, DESTINATION_SECRET, Destination, Gateway, Layout, PE_PATH, PE_SECRET, Receiver, Reply, Site,
    eventually, payment, post,
};

const SENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TOKEN: &str = "tk-5up3r-Qx81";

/// What a collector was told.
fn told(collector: &Receiver) -> Vec<Span> {
    let taken = collector.taken();
    assert!(taken.iter().all(|receipt| receipt.target == "/v1/traces"
        && receipt.header("content-type") == "application/x-protobuf"));
    let requests =
        taken.iter().map(|receipt| ExportTraceServiceRequest::decode(receipt.body.clone()).unwrap());
    let resources = requests.flat_map(|request| request.resource_spans);
    resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
}

fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

fn site(collector: &Receiver, destination: Destination) -> Site {
    let more = format!("[telemetry]\notlp = \"http://{}\"\n", collector.address);
    let layout = Layout { more, ..Layout::to([destination]) };
    Site::new(&layout).with_env("ORDERS_TOKEN", TOKEN)
}

/// Posts with trace contexts; the event's id.
fn send(gateway: &Gateway, callback: &Callback, traceparents: &[&str]) -> String {
    let mut headers = vec![("content-type", "application/json"), ("pe-signature", &callback.signature)];
    headers.extend(traceparents.iter().map(|traceparent| ("traceparent", *traceparent)));
    let answer = post(gateway.edge, PE_PATH, &headers, callback.body.as_bytes()).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.id()
}

#[test]
fn an_event_is_one_trace_from_post_to_delivery_and_each_retry_names_the_attempt_before() {
    let collector = Receiver::start();
    // Three waits inside the window, then it is parked: a link must outlast both.
    let receiver = Receiver::scripted(|asked| Reply::status(if asked.times < 6 { 503 } else { 204 }));
    let destination = Destination::new("orders", &receiver).with("auth = { bearer = \"env:ORDERS_TOKEN\" }");
    let site = site(&collector, destination);
    let gateway = site.start();
    let callback = payment(1);
    let id = send(&gateway, &callback, &[SENT]);
    receiver.wait_for(&id);
    let forged = Callback { signature: "0".repeat(64), ..payment(2) };
    assert_eq!(gateway.try_send(&forged).unwrap().status, 401);
    gateway.stop();

    let spans = told(&collector);
    let trace = hex::decode(&SENT[3..35]).unwrap();
    assert!(spans.iter().all(|span| span.trace_id == trace && span.flags == 1), "{spans:#?}");
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let [accept] = named("accept")[..] else { panic!("{spans:#?}") };
    assert_eq!(hex::encode(&accept.parent_span_id), SENT[36..52]);
    for (key, value) in [
        ("chaski.source", "pagoefectivo"),
        ("chaski.event.id", &*id),
        ("chaski.event.type", "cip.paid"),
        ("chaski.outcome", "accepted"),
    ] {
        assert_eq!(attribute(accept, key), value, "{key}");
    }
    for step in ["verify", "store"] {
        let [step] = named(step)[..] else { panic!("{spans:#?}") };
        assert_eq!(step.parent_span_id, accept.span_id);
        assert!(accept.start_time_unix_nano <= step.start_time_unix_nano);
        assert!(step.start_time_unix_nano <= step.end_time_unix_nano);
        assert!(step.end_time_unix_nano <= accept.end_time_unix_nano);
    }

    // Attempts into an open breaker do not count, so their numbers need not be all there.
    let mut attempts = named("deliver");
    attempts.sort_by_key(|span| span.start_time_unix_nano);
    let receipts = receiver.receipts_of(&id);
    assert_eq!((attempts.len(), receipts.len()), (6, 6), "{spans:#?}");
    let mut before: Option<&Span> = None;
    for (attempt, receipt) in attempts.iter().zip(&receipts) {
        assert_eq!(attempt.parent_span_id, accept.span_id);
        let context = format!("00-{}-{}-01", hex::encode(&trace), hex::encode(&attempt.span_id));
        assert_eq!(receipt.header("traceparent"), context, "the receiver goes on from the attempt's span");
        let links: Vec<_> = attempt.links.iter().map(|link| (&link.trace_id, &link.span_id)).collect();
        let expected: Vec<_> = before.iter().map(|span| (&trace, &span.span_id)).collect();
        assert_eq!(links, expected, "{attempts:#?}");
        for (key, value) in [
            ("chaski.source", "pagoefectivo"),
            ("chaski.destination", "orders"),
            ("chaski.event.id", &id),
            ("chaski.attempt", receipt.header("chaski-attempt")),
            ("chaski.outcome", if receipt.is_taken() { "success" } else { "http_5xx" }),
            ("http.response.status_code", &receipt.status.to_string()),
        ] {
            assert_eq!(attribute(attempt, key), value, "{key}");
        }
        assert_eq!(attempt.status.as_ref().is_some_and(|status| status.code == 2), !receipt.is_taken());
        before = Some(attempt);
    }

    let bytes: Vec<u8> = collector.taken().iter().flat_map(|receipt| receipt.body.to_vec()).collect();
    for private in [PE_SECRET, DESTINATION_SECRET, TOKEN, &callback.signature, "operationNumber", "10000001"]
    {
        let is_there = bytes.windows(private.len()).any(|window| window == private.as_bytes());
        assert!(!is_there, "{private} is in a span");
    }
}

#[test]
fn a_trace_is_begun_where_none_was_sent_and_left_alone_where_its_sender_does_not_record() {
    let collector = Receiver::start();
    let receiver = Receiver::start();
    let site = site(&collector, Destination::new("orders", &receiver));
    let gateway = site.start();
    let unsampled = SENT.replace("-01", "-00");
    let other = SENT.replace("0af7", "1af7");
    let cases: [(&str, &[&str]); 5] = [
        ("none", &[]),
        ("malformed", &["00-0af7-b7ad-01"]),
        ("two", &[SENT, &other]),
        ("later version", &["cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-more"]),
        ("not recorded", &[&unsampled]),
    ];
    let ids: BTreeMap<&str, String> = cases
        .iter()
        .zip(0..)
        .map(|((case, sent), number)| (*case, send(&gateway, &payment(number), sent)))
        .collect();
    let header = |case: &str| receiver.wait_for(&ids[case]).header("traceparent").to_owned();
    for begun in ["none", "malformed", "two"] {
        assert!(header(begun).starts_with(&format!("00-{}-", ids[begun])), "{begun}: {}", header(begun));
        assert!(header(begun).ends_with("-01"), "{begun}: {}", header(begun));
    }
    assert!(header("later version").starts_with(&SENT[..36]), "{}", header("later version"));
    assert_eq!(header("not recorded"), unsampled);
    // A resend is another request, and the same event: one trace.
    assert_eq!(send(&gateway, &payment(0), &[]), ids["none"]);
    gateway.stop();

    let accepted: Vec<_> = told(&collector).into_iter().filter(|span| span.name == "accept").collect();
    let of = |case: &str| {
        accepted.iter().filter(|span| attribute(span, "chaski.event.id") == ids[case]).collect::<Vec<_>>()
    };
    let outcomes: Vec<_> = of("none").iter().map(|span| attribute(span, "chaski.outcome")).collect();
    assert_eq!(outcomes, ["accepted", "duplicate"]);
    assert!(of("none").iter().all(|span| hex::encode(&span.trace_id) == ids["none"]));
    assert!(of("none").iter().all(|span| span.parent_span_id.is_empty()));
    assert_eq!(of("later version").len(), 1);
    assert!(of("not recorded").is_empty());
}

#[test]
fn a_collector_that_is_away_costs_no_event_and_is_told_of_once() {
    let collector = Receiver::scripted(|_| Reply::status(503));
    let receiver = Receiver::start();
    let site = site(&collector, Destination::new("orders", &receiver));
    let gateway = site.start();
    let ids: Vec<String> = (0..50).map(|number| gateway.accept(&payment(number))).collect();
    ids.iter().for_each(|id| _ = receiver.wait_for(id));
    let twice = || (collector.arrivals() >= 2).then_some(());
    eventually("a second try at the collector", twice);
    assert_eq!(receiver.receipts().len(), ids.len(), "nothing is delivered twice for it");
    collector.becomes(|_| Reply::status(200));
    eventually("the collector has it all", || {
        let spans = told(&collector);
        let has = |id: &String| {
            ["accept", "deliver"].iter().all(|name| {
                spans.iter().any(|span| span.name == *name && attribute(span, "chaski.event.id") == *id)
            })
        };
        ids.iter().all(has).then_some(())
    });
    eventually("and is said to", || gateway.logged("the collector takes traces again"));
    let counted = |result| gateway.count("chaski_telemetry_spans_total", &[&format!("result=\"{result}\"")]);
    eventually("and is counted", || (counted("exported") >= 4 * ids.len() as u64).then_some(()));
    assert_eq!((counted("dropped"), counted("refused")), (0, 0));
    let about: Vec<_> = gateway.log().into_iter().filter(|line| line.contains("collector")).collect();
    assert_eq!(about.len(), 2, "{about:#?}");
    gateway.stop();
}
