//! Promise 2 without crashes: every event ends delivered or dead at each destination it is routed to (I1), and is
//! delivered once (I4).

use serde_json::Value;

use crate::harness::{Destination, Layout, Receiver, Reply, Site, eventually, payment};

#[test]
fn an_event_ends_delivered_or_dead_at_each_destination_it_is_routed_to() {
    let orders = Receiver::start();
    let gone = Receiver::scripted(|_| Reply::status(410));
    let picky = Receiver::scripted(|_| Reply::status(422));
    let tired = Receiver::scripted(|_| Reply::status(500));
    let unasked = Receiver::start();
    let site = Site::new(&Layout::to([
        Destination::new("orders", &orders),
        Destination::new("gone", &gone),
        Destination::new("picky", &picky),
        Destination::new("tired", &tired)
            .retrying("first = \"100ms\"\nfactor = 1\ncap = \"100ms\"\ngive_up_after = \"1s\""),
        Destination::new("unasked", &unasked).with("events = [\"cip.refunded\"]"),
    ]));
    let gateway = site.start();
    let ids: Vec<String> = (0..10).map(|number| gateway.accept(&payment(number))).collect();
    for id in &ids {
        let ended = |state: &Value, at: &str| {
            state
                .as_array()
                .unwrap()
                .iter()
                .find(|fate| fate["destination"] == at)
                .cloned()
                .unwrap_or_default()
        };
        let fates = eventually(&format!("the end of {id}"), || {
            let fates = gateway.call("events/show", &serde_json::json!({ "id": id }))["destinations"].take();
            let is_over =
                |at: &&str| matches!(ended(&fates, at)["state"].as_str(), Some("delivered" | "dead"));
            ["orders", "gone", "picky", "tired"].iter().all(is_over).then_some(fates)
        });
        assert_eq!(ended(&fates, "orders")["state"], "delivered", "{fates}");
        for (at, reason) in [("gone", "gone"), ("picky", "rejected"), ("tired", "gave_up")] {
            assert_eq!(
                (&ended(&fates, at)["state"], &ended(&fates, at)["reason"]),
                (&"dead".into(), &reason.into()),
                "{at}: {fates}"
            );
        }
        assert!(
            !matches!(ended(&fates, "unasked")["state"].as_str(), Some("delivered" | "dead" | "parked")),
            "{fates}"
        );
        assert_eq!(orders.receipts_of(id).len(), 1, "one delivery without faults");
        assert_eq!(gone.receipts_of(id).len(), 1, "410 is believed at once");
        assert_eq!(picky.receipts_of(id).len(), 3, "422 is believed after three tries");
        assert!(tired.receipts_of(id).len() > 1, "500 is tried again");
    }
    assert_eq!(unasked.arrivals(), 0);
    assert_eq!(gateway.count("chaski_dlq_events", &[]), 30);
    eventually("everything settled", || {
        let destinations = gateway.call("destinations", &serde_json::json!({}));
        let settled = |destination: &Value| destination["lag"] == 0 && destination["parked"] == 0;
        destinations.as_array().unwrap().iter().all(settled).then_some(())
    });
    gateway.stop();
}

#[test]
fn what_was_delivered_before_an_orderly_restart_is_not_delivered_again() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    for round in 0..3 {
        let gateway = site.start();
        for number in 0..30 {
            gateway.accept(&payment(round * 100 + number));
        }
        gateway.stop();
    }
    let gateway = site.start();
    let taken = receiver.wait_for_count(90);
    let last = gateway.accept(&payment(999));
    receiver.wait_for(&last);
    assert_eq!(taken.len(), 90);
    assert_eq!(receiver.receipts().len(), 91, "k = 0 crashes add no copies");
    gateway.stop();
}
