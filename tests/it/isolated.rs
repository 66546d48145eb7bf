//! Promise 6 and I7: one sick destination does not touch the others, and no failing event stands in front of
//! healthy ones.

use std::time::{Duration, Instant};

use crate::harness::{Destination, Layout, Receiver, Reply, Site, eventually, payment};

/// Until a healthy destination has what was accepted: far above what it takes, far below any retry or timeout of the
/// sick one added up.
const PROMPT: Duration = Duration::from_secs(5);

#[test]
fn while_one_destination_is_sick_all_events_reach_the_others() {
    type Sickness = fn() -> Reply;
    let sicknesses: [(&str, Sickness); 4] = [
        ("it hangs", Reply::hang),
        ("it closes", Reply::close),
        ("it answers 503", || Reply::status(503)),
        ("it answers 500", || Reply::status(500)),
    ];
    std::thread::scope(|scope| {
        for (name, sickness) in sicknesses {
            scope.spawn(move || others_are_well_while(name, sickness));
        }
    });
}

fn others_are_well_while(name: &str, sickness: fn() -> Reply) {
    const EVENTS: usize = 150;
    let (orders, notifications) = (Receiver::start(), Receiver::start());
    let sick = Receiver::scripted(move |_| sickness());
    let site = Site::new(&Layout::to([
        Destination::new("erp", &sick).with("concurrency = 4"),
        Destination::new("orders", &orders),
        Destination::new("notifications", &notifications),
    ]));
    let gateway = site.start();
    for number in 0..EVENTS as u64 {
        gateway.accept(&payment(number));
    }
    let accepted = Instant::now();
    for receiver in [&orders, &notifications] {
        let taken = receiver.wait_for_count(EVENTS);
        assert_eq!(taken.len(), EVENTS, "{name}: each once");
        let last = taken.iter().map(|receipt| receipt.answered).max().unwrap();
        let late = last.saturating_duration_since(accepted);
        assert!(late < PROMPT, "{name}: the last one {late:?} after its acceptance");
    }
    assert!(sick.taken().is_empty(), "{name}");
    // It recovers: what waited for it, parked or in the log, arrives without anybody doing anything.
    sick.becomes(|_| Reply::status(200));
    let taken =
        crate::harness::within(Duration::from_secs(60), "the recovered destination to have all", || {
            let mut ids: Vec<String> = sick.taken().into_iter().map(|receipt| receipt.id).collect();
            ids.sort();
            ids.dedup();
            Some(ids).filter(|ids| ids.len() == EVENTS)
        });
    assert_eq!(taken.len(), EVENTS, "{name}");
    gateway.stop();
}

#[test]
fn a_poison_event_waits_aside_while_the_others_pass() {
    const POISON: &[u8] = br#""cip":"10000003""#;
    let receiver = Receiver::scripted(|asked| {
        let is_poison = asked.body.windows(POISON.len()).any(|window| window == POISON);
        Reply::status(if is_poison { 500 } else { 200 })
    });
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver).with("concurrency = 1")]));
    let gateway = site.start();
    let ids: Vec<String> = (0..60).map(|number| gateway.accept(&payment(number))).collect();
    receiver.wait_for_count(59);
    let parked = eventually("the poison event to be parked", || {
        let parked = site.command(&["parked", "--json"]).json();
        (parked.as_array().unwrap().len() == 1).then_some(parked)
    });
    assert_eq!(parked[0]["id"], ids[3].as_str(), "{parked}");
    assert_eq!(parked[0]["history"][0]["result"], "http_5xx", "{parked}");
    // The mark is past it: it stands in front of nobody.
    eventually("an empty backlog", || {
        (gateway.count("chaski_kafka_consumer_lag_records", &[]) == 0).then_some(())
    });
    assert_eq!(gateway.count("chaski_dispatch_circuit_open", &[]), 0, "one event is no outage");
    receiver.becomes(|_| Reply::status(200));
    receiver.wait_for(&ids[3]);
    gateway.stop();
}
