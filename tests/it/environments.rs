//! Play money stays play money: what came from a sandbox source never reaches a production destination, whatever the
//! file says later, from the log, from a replay, parked or redriven.

use serde_json::{Value, json};

use crate::harness::{Destination, Layout, Receiver, Reply, Site, eventually, payment};

const SANDBOX: &str = "environment = \"sandbox\"";

#[test]
fn what_came_as_play_money_is_never_delivered_as_real_whatever_the_file_says_later() {
    let [taken, parked, dead] = [1, 2, 3].map(payment);
    let (waits, dies) = (parked.body.clone(), dead.body.clone());
    let play = Receiver::scripted(move |asked| match asked.body {
        body if body == waits.as_bytes() => Reply::status(503).with("retry-after", "3600"),
        body if body == dies.as_bytes() => Reply::status(410),
        _ => Reply::status(200),
    });
    let site = Site::new(&Layout {
        source: SANDBOX.to_owned(),
        ..Layout::to([Destination::new("orders", &play).with(SANDBOX).retrying("give_up_after = \"72h\"")])
    });
    let gateway = site.start();
    let [taken, parked, dead] = [taken, parked, dead].map(|callback| gateway.accept(&callback));
    play.wait_for(&taken);
    let reasons = || -> Vec<(String, String)> {
        let letters = site.command(&["dead", "--json"]).json();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mut found: Vec<_> = letters
            .as_array()
            .unwrap()
            .iter()
            .map(|letter| (text(&letter["id"]), text(&letter["reason"])))
            .collect();
        found.sort();
        found
    };
    eventually("one parked, one dead", || {
        let waiting = site.command(&["parked", "--json"]).json();
        (waiting.as_array().unwrap().len() == 1 && reasons().len() == 1).then_some(())
    });
    let shown = gateway.call("events/show", &json!({ "id": parked }));
    assert_eq!(shown["environment"], "sandbox", "{shown}");
    gateway.stop();

    // The shop goes live, in the same file and under the same names.
    let real = Receiver::start();
    site.rewrite(&Layout::to([Destination::new("orders", &real)]));
    let gateway = site.start();
    let paid = gateway.accept(&payment(4));
    real.wait_for(&paid);
    site.command(&["parked", "now", &parked]).ok();
    site.command(&["dead", "redrive", "--destination", "orders", "--yes"]).ok();
    site.command(&[
        "replay",
        "--destination",
        "orders",
        "--from",
        "1h",
        "--to",
        "2100-01-01T00:00:00Z",
        "--yes",
    ])
    .ok();
    let mut barred = [parked, dead].map(|id| (id, "environment".to_owned()));
    barred.sort();
    eventually("both buried for good", || (reasons() == barred).then_some(()));
    eventually("the replay", || (real.receipts_of(&paid).len() == 2).then_some(()));
    gateway.stop();
    assert!(real.receipts().iter().all(|receipt| receipt.id == paid), "{:#?}", real.receipts());
}
