//! What is about the file of the embedded storage: promise 1 where the disk does not keep its own, promise 5 (a fault
//! of ours is a 503 with `Retry-After`, never a 4xx and never a 200), and a file that has one owner.

use crate::harness::{Destination, Gateway, Layout, Receiver, Site, eventually, payment};

/// A site on a disk that fails when it is told to, and its one receiver.
fn faulty() -> (Site, Receiver) {
    let receiver = Receiver::start();
    (Site::new(&Layout::to([Destination::new("orders", &receiver)])).on_faulty_disk(), receiver)
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
        gateway.send(&payment(number)).is_unavailable();
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
    gateway.send(&payment(5)).is_unavailable();
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
    gateway.send(&payment(20)).is_unavailable();
    site.disk_fails("sync", false);

    // The next sync would succeed and prove nothing.
    for number in 20..30 {
        gateway.send(&payment(number)).is_unavailable();
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
fn what_is_written_of_an_event_is_synced_before_its_answer() {
    // Nobody else writes: there is no destination.
    let site = Site::new(&Layout::default()).on_faulty_disk();
    let gateway = site.start();
    site.disk_fails("trace", true);
    let trace = || std::fs::read_to_string(site.path("fault.trace")).unwrap();
    let mut read = 0;
    for number in 0..20 {
        gateway.accept(&payment(number));
        let all = trace();
        let calls: Vec<&str> = all[read..].lines().collect();
        assert!(calls.contains(&"W"), "payment {number}: nothing was written");
        assert_eq!(calls.last(), Some(&"S"), "payment {number} was answered after {calls:?}");
        read = all.len();
    }
    gateway.stop();
}

#[test]
fn a_file_that_is_not_there_is_not_made_by_a_question_and_has_one_process() {
    let site = Site::new(&Layout::default());
    let cases: [(&[&str], i32, &str); 3] =
        [(&["events"], 1, "no store"), (&["ingest"], 78, "embedded"), (&["dispatch"], 78, "embedded")];
    for (arguments, code, says) in cases {
        let told = site.command(arguments);
        assert!(told.exits(code).stderr.contains(says), "{arguments:?}: {told:?}");
        assert!(told.stdout.is_empty(), "talk goes to stderr: {told:?}");
    }
    assert!(!site.store().exists());
}
