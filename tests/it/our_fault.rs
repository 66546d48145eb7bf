//! Promise 5: a fault of ours is a 503 with `Retry-After`, never a 4xx and never a 200; and promise 1 where the disk
//! does not keep its own.

use std::time::Duration;

use crate::harness::{Answer, Destination, Gateway, Layout, Receiver, Site, eventually, payment, within};

/// A site on a disk that fails when it is told to, and its one receiver.
fn faulty() -> (Site, Receiver) {
    let receiver = Receiver::start();
    (Site::new(&Layout::to([Destination::new("orders", &receiver)])).on_faulty_disk(), receiver)
}

#[track_caller]
fn is_unavailable(answer: &Answer) {
    assert_eq!(answer.status, 503, "{answer:?}");
    let seconds = answer.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
    assert!(seconds.is_some_and(|seconds| (1..=3600).contains(&seconds)), "{answer:?}");
}

/// What was answered 200 is at the receiver, whole, and under one id each.
fn all_arrive(receiver: &Receiver, ids: &[String]) {
    for id in ids {
        receiver.wait_for(id);
    }
}

fn accept_range(gateway: &Gateway, numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|number| gateway.accept(&payment(number))).collect()
}

#[test]
fn a_full_disk_refuses_loses_nothing_and_heals_without_a_restart() {
    let (site, receiver) = faulty();
    let gateway = site.start();
    let mut ids = accept_range(&gateway, 0..20);
    all_arrive(&receiver, &ids);

    site.disk_fails("full", true);
    for number in 20..40 {
        is_unavailable(&gateway.send(&payment(number)));
    }
    assert!(gateway.count("chaski_spool_errors_total", &["op=\"full\""]) > 0);
    assert_eq!(gateway.count("chaski_spool_poisoned", &[]), 0);
    site.disk_fails("full", false);

    // The same callbacks come again, and are taken as if nothing had been.
    let heals = || {
        let answer = gateway.send(&payment(20));
        (answer.status == 200).then(|| answer.id())
    };
    ids.push(eventually("the store heals", heals));
    ids.extend(accept_range(&gateway, 21..40));
    all_arrive(&receiver, &ids);
    for id in &ids {
        assert_eq!(receiver.receipts_of(id).len(), 1, "{id}: nobody crashed, so nobody gets a copy");
    }
    gateway.stop();
}

#[test]
fn a_failed_write_refuses_and_heals_without_a_restart() {
    let (site, receiver) = faulty();
    let gateway = site.start();
    let mut ids = accept_range(&gateway, 0..5);
    site.disk_fails("write", true);
    is_unavailable(&gateway.send(&payment(5)));
    site.disk_fails("write", false);
    let heals = || {
        let answer = gateway.send(&payment(5));
        (answer.status == 200).then(|| answer.id())
    };
    ids.push(eventually("the store heals", heals));
    ids.extend(accept_range(&gateway, 6..10));
    all_arrive(&receiver, &ids);
    gateway.stop();
}

#[test]
fn after_a_failed_sync_nothing_is_accepted_until_a_restart() {
    let (site, receiver) = faulty();
    let gateway = site.start();
    let mut ids = accept_range(&gateway, 0..20);
    // Deliveries go on writing: the fault meets one of them or a post, whichever is first.
    site.disk_fails("sync", true);
    is_unavailable(&gateway.send(&payment(20)));
    site.disk_fails("sync", false);

    // The next sync would succeed and prove nothing.
    for number in 20..30 {
        is_unavailable(&gateway.send(&payment(number)));
    }
    assert_eq!(gateway.count("chaski_spool_poisoned", &[]), 1);
    gateway.signal("TERM");
    // It has something to complain about; it must end all the same.
    gateway.wait_for_exit();
    drop(gateway);

    let gateway = site.start();
    assert_eq!(gateway.count("chaski_spool_poisoned", &[]), 0);
    for number in 0..20 {
        assert_eq!(
            gateway.send(&payment(number)).outcome(),
            "duplicate",
            "payment {number} was answered 200 before"
        );
    }
    // Whether payment 20 reached the disk is what nobody could know; a resend settles it.
    let answer = gateway.send(&payment(20));
    assert_eq!(answer.status, 200, "{answer:?}");
    ids.push(answer.id());
    ids.extend(accept_range(&gateway, 21..30));
    all_arrive(&receiver, &ids);
    gateway.stop();
}

#[test]
fn a_store_that_cannot_be_synced_when_it_is_opened_is_not_opened() {
    let (site, receiver) = faulty();
    let gateway = site.start();
    let ids = accept_range(&gateway, 0..5);
    gateway.kill();
    drop(gateway);

    site.disk_fails("sync", true);
    let told = site.command(&["run"]);
    told.exits(1);
    assert!(told.stderr.contains("store"), "{told:?}");
    site.disk_fails("sync", false);
    let gateway = site.start();
    all_arrive(&receiver, &ids);
    gateway.stop();
}

#[test]
fn more_requests_than_the_bound_are_refused_as_our_fault_and_the_others_are_served() {
    let receiver = Receiver::start();
    let ingest = "requests_max = 1\nbody_timeout = \"20s\"".to_owned();
    let site = Site::new(&Layout { ingest, ..Layout::to([Destination::new("orders", &receiver)]) });
    let gateway = site.start();
    let callback = payment(1);
    let wire = callback.wire();
    let mut slow = std::net::TcpStream::connect(site.edge).unwrap();
    std::io::Write::write_all(&mut slow, &wire[..wire.len() - 10]).unwrap();
    within(Duration::from_secs(5), "the slow request to be under way", || {
        (gateway.count("chaski_edge_inflight_requests", &[]) > 0).then_some(())
    });
    is_unavailable(&gateway.send(&payment(2)));
    std::io::Write::write_all(&mut slow, &wire[wire.len() - 10..]).unwrap();
    let answer = crate::harness::read_answer(&mut std::io::BufReader::new(slow)).unwrap();
    assert_eq!(answer.outcome(), "accepted");
    let id = gateway.accept(&payment(2));
    all_arrive(&receiver, &[answer.id(), id]);
    gateway.stop();
}
