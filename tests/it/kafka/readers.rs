//! Others on the same topics: any Kafka tool reads an event as it came, and a group in another language reads beside the
//! dispatchers without disturbing them; a destination that comes later reads history; partitions that a topic gains are read.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;

use super::{Half, destinations};
use crate::harness::{
    Callback, Destination, Layout, Receiver, Site, Storage, Topics, eventually, paid, pause, payment, tool,
};
use crate::town::{Faults, Town, seed};

#[test]
fn kcat_reads_an_event_with_its_headers_and_its_bytes() {
    let receiver = Receiver::start();
    let topics = Topics::shared();
    let site =
        Site::on(Storage::Topics(topics.clone()), &Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let id = gateway.accept(&payment(1));
    let topic = format!("{}.events", topics.prefix);
    let brokers = topics.brokers.join(",");
    let read = tool(
        "kcat",
        &["-C", "-q", "-e", "-b", &brokers, "-t", &topic, "-o", "beginning", "-f", "%k\n%h\n%s\n"],
    );
    let read = String::from_utf8(read).unwrap();
    let lines: Vec<&str> = read.lines().collect();
    let [key, headers, body] = lines[..] else { panic!("one event: {read}") };
    assert_eq!(key, "10000001");
    assert_eq!(body, payment(1).body);
    for header in [
        format!("ce_id={id}"),
        "ce_specversion=1.0".to_owned(),
        "ce_source=/sources/pagoefectivo".to_owned(),
        "ce_type=cip.paid".to_owned(),
        "ce_subject=10000001".to_owned(),
        "content-type=application/json".to_owned(),
    ] {
        assert!(headers.split(',').any(|found| found == header), "{header}: {headers}");
    }
    receiver.wait_for(&id);
    gateway.stop();
}

#[test]
fn a_group_of_somebody_else_in_python_reads_everything_and_disturbs_nobody() {
    const EVENTS: u64 = 60;
    let receiver = Receiver::start();
    let topics = Topics::shared();
    let site =
        Site::on(Storage::Topics(topics.clone()), &Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let sent: Vec<Callback> = (0..EVENTS).map(as_a_provider_spells).collect();
    let first = analyst(&topics, EVENTS / 2);
    let ids: Vec<String> = sent.iter().map(|callback| gateway.accept(callback)).collect();
    let rebalances = || gateway.count("chaski_kafka_rebalances_total", &[]);
    receiver.wait_for(&ids[0]);
    let before = rebalances();
    let mut read = events_of(first);
    // Another member goes on where the first has committed.
    read.extend(events_of(analyst(&topics, EVENTS / 2)));

    let read: BTreeMap<&str, &Value> =
        read.iter().map(|event| (event["headers"]["ce_id"].as_str().unwrap(), event)).collect();
    for (number, (id, callback)) in ids.iter().zip(&sent).enumerate() {
        let event = read[&**id];
        let cip = (10_000_000 + number).to_string();
        assert_eq!(event["body"], BASE64_STANDARD.encode(&callback.body), "byte for byte: {event}");
        assert_eq!(event["key"], cip);
        let headers = &event["headers"];
        for (name, expected) in [
            ("ce_specversion", "1.0"),
            ("ce_source", "/sources/pagoefectivo"),
            ("ce_type", "cip.paid"),
            ("ce_subject", &cip),
            ("content-type", "application/json"),
        ] {
            assert_eq!(headers[name], expected, "{name}: {headers}");
        }
    }
    assert_eq!(read.len(), ids.len());

    for id in &ids {
        receiver.wait_for(id);
    }
    eventually("all of it settled", || (destinations(&gateway)[0]["lag"] == 0).then_some(()));
    assert_eq!(rebalances(), before, "members came and went elsewhere");
    gateway.stop();
    assert_eq!(receiver.receipts().len(), ids.len(), "once each");
}

/// A payment whose bytes no printer of JSON would make again.
fn as_a_provider_spells(number: u64) -> Callback {
    let body = paid(10_000_000 + number, &number.to_string(), "  1001.00\r\n");
    Callback::of(body.replacen('{', "{\"note\": \"se\u{f1}al \\u00f1 \\/\",\t", 1))
}

/// A member of a group of its own that leaves when it has read so many events.
fn analyst(topics: &Topics, events: u64) -> Child {
    Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kafka/read_events.py"))
        .args([topics.brokers.join(","), format!("{}.events", topics.prefix)])
        .args([format!("{}-analytics", topics.prefix), events.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("this test needs python3: {error}"))
}

/// What it printed, once it has left.
#[track_caller]
fn events_of(analyst: Child) -> Vec<Value> {
    let output = analyst.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
        .stdout
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

#[test]
fn partitions_that_the_topic_gains_under_traffic_are_read() {
    let town = Town::at_leisure("partitions", seed());
    let topics = Topics { partitions: 1, ..Topics::shared() };
    let edge = Half::spawn(&topics, &town.layout(), &["ingest"]);
    let dispatcher = Half::spawn(&topics, &town.layout(), &["dispatch"]);
    edge.gateway.wait_until_running();
    dispatcher.gateway.wait_until_running();
    let other = town.busy(&[edge.site.edge], || {
        pause(Duration::from_secs(1));
        // What that means for an order is told before it is done.
        let wider = edge.site.toml(&town.layout()).replace("partitions = 1", "partitions = 6");
        edge.site.write(&wider);
        let planned = edge.site.command(&["topics", "plan"]);
        assert!(planned.ok().stdout.contains("from 1 to 6 partitions"), "{}", planned.stdout);
        assert!(planned.stderr.contains("let the backlog get empty"), "{}", planned.stderr);
        // Applied by an edge that knows of them from its beginning.
        let other = Half::spawn(&Topics { partitions: 6, ..topics.clone() }, &town.layout(), &["ingest"]);
        other.gateway.wait_until_running();
        other
    });
    town.busy(&[edge.site.edge, other.site.edge], || pause(Duration::from_secs(3)));
    town.judge_edges(Faults::kills(2), &topics, || destinations(&dispatcher.gateway));
    for half in [edge, other, dispatcher] {
        half.gateway.stop();
    }
}
