//! Others on the same topics: any Kafka tool reads an event as it came, beside the dispatchers and without disturbing
//! them; a destination that comes later reads history; partitions that a topic gains are read.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Half, destinations};
use crate::harness::{Destination, Layout, Receiver, Site, Storage, Topics, pause, payment, tool};
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
fn a_group_of_somebody_else_reads_everything_and_disturbs_nobody() {
    const EVENTS: u64 = 60;
    let receiver = Receiver::start();
    let topics = Topics::shared();
    let site =
        Site::on(Storage::Topics(topics.clone()), &Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let (topic, group) = (format!("{}.events", topics.prefix), format!("{}-analytics", topics.prefix));
    let reader = || {
        Command::new("kcat")
            .args(["-b", &topics.brokers.join(","), "-q", "-u", "-X", "auto.offset.reset=earliest"])
            // Together they read no more than there is, and end.
            .args(["-c", &(EVENTS / 2).to_string(), "-f", "%s\n", "-G", &group, &topic])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("this test needs kcat: {error}"))
    };
    let first = reader();
    let ids: Vec<String> = (0..EVENTS).map(|number| gateway.accept(&payment(number))).collect();
    let mut read = String::from_utf8(first.wait_with_output().unwrap().stdout).unwrap();
    // Another member goes on where the first has committed.
    read += &String::from_utf8(reader().wait_with_output().unwrap().stdout).unwrap();
    let mut bodies: Vec<&str> = read.lines().collect();
    bodies.sort_unstable();
    bodies.dedup();
    let mut sent: Vec<String> = (0..EVENTS).map(|number| payment(number).body).collect();
    sent.sort();
    assert_eq!(bodies, sent);
    for id in &ids {
        receiver.wait_for(id);
    }
    gateway.stop();
    assert_eq!(receiver.receipts().len(), ids.len(), "once each");
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
        // Applied by an edge that knows of them from its beginning.
        let other = Half::spawn(&Topics { partitions: 6, ..topics }, &town.layout(), &["ingest"]);
        other.gateway.wait_until_running();
        other
    });
    town.busy(&[edge.site.edge, other.site.edge], || pause(Duration::from_secs(3)));
    town.judge(Faults::kills(2).forgetful_if(edge.went_on_alone() || other.went_on_alone()), || {
        destinations(&dispatcher.gateway)
    });
    for half in [edge, other, dispatcher] {
        half.gateway.stop();
    }
}
