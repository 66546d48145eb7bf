//! Promise 4 and I9: dedup never swallows a first, ends the rest, and every copy carries the same id.

use std::collections::BTreeMap;

use crate::harness::{Callback, Destination, Layout, Receiver, Site, paid, payment};

#[test]
fn of_many_posts_of_one_event_at_once_exactly_one_is_accepted_and_delivered() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    for round in 0..5 {
        let callback = payment(round);
        let mut outcomes = BTreeMap::<String, usize>::new();
        let answers: Vec<_> = std::thread::scope(|scope| {
            let posts: Vec<_> = (0..16).map(|_| scope.spawn(|| gateway.send(&callback))).collect();
            posts.into_iter().map(|post| post.join().unwrap()).collect()
        });
        for answer in &answers {
            assert_eq!((answer.status, answer.id()), (200, answers[0].id()));
            *outcomes.entry(answer.outcome()).or_default() += 1;
        }
        assert_eq!(
            outcomes,
            BTreeMap::from([("accepted".to_owned(), 1), ("duplicate".to_owned(), 15)]),
            "round {round}"
        );
    }
    receiver.wait_for_count(5);
    gateway.stop();
    assert_eq!(receiver.receipts().len(), 5);
    assert_eq!(site.command(&["events", "--json"]).json().as_array().unwrap().len(), 5);
}

#[test]
fn of_different_contents_under_one_id_at_once_one_is_stored_and_each_other_is_kept() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let amounts: Vec<String> = (1..=8).map(|amount| format!("{amount}.00")).collect();
    let callbacks: Vec<Callback> =
        amounts.iter().map(|amount| Callback::of(paid(20_000_000, "7", amount))).collect();
    let mut outcomes: Vec<String> = std::thread::scope(|scope| {
        let posts: Vec<_> =
            callbacks.iter().map(|callback| scope.spawn(|| gateway.send(callback).outcome())).collect();
        posts.into_iter().map(|post| post.join().unwrap()).collect()
    });
    outcomes.sort();
    assert_eq!(outcomes, [vec!["accepted"], vec!["quarantined"; 7]].concat());
    // Each of them once more: known by now, all of them.
    for callback in &callbacks {
        assert!(matches!(gateway.send(callback).outcome().as_str(), "duplicate" | "quarantined"));
    }
    receiver.wait_for_count(1);
    gateway.stop();
    assert_eq!(site.command(&["events", "--json"]).json().as_array().unwrap().len(), 1);
    assert_eq!(site.command(&["dead", "--quarantined", "--json"]).json().as_array().unwrap().len(), 7);
    assert_eq!(receiver.receipts().len(), 1);
}

#[test]
fn an_id_is_the_same_after_a_restart_after_a_crash_and_on_another_edge() {
    let receiver = Receiver::start();
    let layout = Layout::to([Destination::new("orders", &receiver)]);
    let (site, other_site) = (Site::new(&layout), Site::new(&layout));
    let gateway = site.start();
    let id = gateway.accept(&payment(1));
    gateway.stop();
    let gateway = site.start();
    let again = gateway.send(&payment(1));
    assert_eq!((again.outcome().as_str(), again.id()), ("duplicate", id.clone()));
    gateway.kill();
    drop(gateway);
    let gateway = site.start();
    let again = gateway.send(&payment(1));
    assert_eq!((again.outcome().as_str(), again.id()), ("duplicate", id.clone()));
    let other = other_site.start();
    assert_eq!(other.accept(&payment(1)), id, "an edge that has never heard of it");
    let copies = receiver.wait_for_count(2);
    assert!(copies.iter().all(|copy| copy.id == id), "the receiver can tell that it is one payment");
    other.stop();
    gateway.stop();
}

#[test]
fn payments_that_differ_in_anything_that_tells_them_apart_are_all_accepted() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let bodies = [
        paid(30_000_001, "1", "10.00"),
        paid(30_000_001, "2", "10.00"),
        paid(30_000_002, "1", "10.00"),
        // Without an operation number the content is the key.
        paid(30_000_003, "", "10.00"),
        paid(30_000_003, "", "11.00"),
        paid(30_000_001, "1", "10.00").replace("cip.paid", "cip.refunded"),
    ];
    let mut ids: Vec<String> =
        bodies.iter().map(|body| gateway.accept(&Callback::of(body.as_str()))).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), bodies.len());
    receiver.wait_for_count(bodies.len());
    gateway.stop();
}

#[test]
fn a_duplicate_before_a_restart_is_no_backlog_and_hides_nothing_that_comes_after() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    for round in 0..5 {
        let gateway = site.start();
        let id = gateway.accept(&payment(round));
        receiver.wait_for(&id);
        assert_eq!(gateway.send(&payment(round)).outcome(), "duplicate");
        gateway.stop();
        let lag = site.command(&["destinations", "--json"]).json()[0]["lag"].clone();
        assert_eq!(lag, 0, "round {round}: everything is delivered");
    }
}
