//! I6: no attempt before its due time or `Retry-After`; what cannot heal ends at once; redirects are not followed.

use std::time::Duration;

use crate::harness::{Destination, Layout, Receiver, Reply, Site, eventually, payment};

/// Of the two clocks in play, one is a time of day in whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(5);

#[test]
fn no_attempt_is_made_before_retry_after_has_passed() {
    // Status, seconds asked for, and the answer after that.
    let cases = [(503, 2_u64), (429, 3), (500, 1)];
    std::thread::scope(|scope| {
        for (status, seconds) in cases {
            scope.spawn(move || {
                let receiver = Receiver::scripted(move |asked| match asked.times {
                    1 | 2 => Reply::status(status).with("retry-after", seconds.to_string()),
                    _ => Reply::status(200),
                });
                let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
                let gateway = site.start();
                let ids: Vec<String> = (0..3).map(|number| gateway.accept(&payment(number))).collect();
                for id in &ids {
                    receiver.wait_for(id);
                    let receipts = receiver.receipts_of(id);
                    assert_eq!(receipts.len(), 3, "{status}");
                    for pair in receipts.windows(2) {
                        let rest = pair[1].arrived.duration_since(pair[0].answered);
                        assert!(
                            rest + ROUNDING >= Duration::from_secs(seconds),
                            "{status}: again after {rest:?}, asked for {seconds} s"
                        );
                    }
                    let attempts: Vec<&str> =
                        receipts.iter().map(|receipt| receipt.header("chaski-attempt")).collect();
                    assert_eq!(attempts, ["1", "2", "3"]);
                }
                gateway.stop();
            });
        }
    });
}

#[test]
fn retry_after_outlives_a_crash() {
    let receiver = Receiver::scripted(|asked| match asked.times {
        // Longer than a delivery waits in memory: parked.
        1 => Reply::status(503).with("retry-after", "12"),
        _ => Reply::status(200),
    });
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let id = gateway.accept(&payment(1));
    eventually("the delivery to be parked", || {
        (gateway.count("chaski_dispatch_pending_events", &["state=\"parked\""]) == 1).then_some(())
    });
    gateway.kill();
    drop(gateway);
    let gateway = site.start();
    receiver.wait_for(&id);
    let receipts = receiver.receipts_of(&id);
    let rest = receipts[1].arrived.duration_since(receipts[0].answered);
    assert!(rest + ROUNDING >= Duration::from_secs(12), "again after {rest:?}");
    assert_eq!(receipts.len(), 2);
    gateway.stop();
}

#[test]
fn a_redirect_is_a_failure_and_is_not_followed() {
    let elsewhere = Receiver::start();
    let target = elsewhere.url();
    let receiver = Receiver::scripted(move |asked| match asked.times {
        1 => Reply::status(307).with("location", target.clone()),
        2 => Reply::status(308).with("location", target.clone()),
        _ => Reply::status(200),
    });
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let id = gateway.accept(&payment(1));
    receiver.wait_for(&id);
    assert_eq!(receiver.receipts_of(&id).len(), 3);
    assert_eq!(elsewhere.arrivals(), 0);
    gateway.stop();
}

#[test]
fn gone_is_a_dead_letter_at_once() {
    let receiver = Receiver::scripted(|_| Reply::status(410));
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let id = gateway.accept(&payment(1));
    let letter = eventually("the dead letter", || {
        let letters = site.command(&["dead", "--destination", "orders", "--json"]).json();
        letters.get(0).cloned()
    });
    assert_eq!((&letter["id"], &letter["reason"]), (&id.as_str().into(), &"gone".into()), "{letter}");
    assert_eq!(letter["attempts"], 1);
    assert_eq!(receiver.arrivals(), 1);
    gateway.stop();
}

#[test]
fn a_connection_that_cannot_be_made_is_tried_again_until_it_can() {
    let receiver = Receiver::start();
    let address = receiver.address;
    drop(receiver);
    let stand_in = Receiver::start();
    let destination =
        Destination { url: format!("http://{address}/hooks"), ..Destination::new("orders", &stand_in) };
    let site = Site::new(&Layout::to([destination.clone()]));
    let gateway = site.start();
    let id = gateway.accept(&payment(1));
    eventually("failed attempts", || {
        (gateway.count("chaski_dispatch_attempts_total", &["destination=\"orders\"", "result=\"connect\""])
            >= 2)
            .then_some(())
    });
    // The receiver comes back at another address, and the operator says so.
    site.rewrite(&Layout::to([Destination { url: stand_in.url(), ..destination }]));
    site.command(&["reload"]).ok();
    stand_in.wait_for(&id);
    gateway.stop();
}
