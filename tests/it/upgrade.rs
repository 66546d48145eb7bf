//! A store that an earlier chaski left is taken over: nothing of it is lost, and it goes on where it stood. What is in
//! the file is written in `common/src/storage/embedded/tests/earlier.rs`.

use serde_json::json;

use crate::harness::{Destination, Layout, Receiver, Site, Storage, eventually, payment};

const VERSION_1: &[u8] = include_bytes!("../../common/src/storage/embedded/tests/schema-1.db");

#[test]
fn what_an_earlier_version_had_not_delivered_is_delivered() {
    let (orders, erp, audit) = (Receiver::start(), Receiver::start(), Receiver::start());
    let site = Site::on(
        Storage::File,
        &Layout::to([
            Destination::new("orders", &orders),
            Destination::new("erp", &erp),
            Destination::new("audit", &audit),
        ]),
    );
    std::fs::create_dir(site.store()).unwrap();
    std::fs::write(site.store().join("chaski.db"), VERSION_1).unwrap();
    let gateway = site.start();
    let told = gateway.logged("the store's schema was brought up to date").unwrap();
    assert_eq!((&told["from"], &told["to"]), (&1.into(), &4.into()), "{told}");

    let numbers = |receiver: &Receiver, count| -> Vec<u64> {
        let taken = receiver.wait_for_count(count);
        let number = |body: &[u8]| {
            let body: serde_json::Value = serde_json::from_slice(body).unwrap();
            body["operationNumber"].as_str().unwrap().parse().unwrap()
        };
        let mut numbers: Vec<u64> = taken.iter().map(|receipt| number(&receipt.body)).collect();
        numbers.sort_unstable();
        numbers
    };
    // 1 and 2 by the replay; 4 had been delivered past the mark.
    assert_eq!(numbers(&orders, 5), [1, 2, 3, 5, 6]);
    // 2 was parked, 3 is dead.
    assert_eq!(numbers(&erp, 4), [2, 4, 5, 6]);
    let letters = gateway.call("dead", &json!({}));
    assert_eq!(letters.as_array().unwrap().len(), 3, "{letters}");
    let last = gateway.accept(&payment(1));
    orders.wait_for(&last);
    site.command(&["dead", "redrive", "--destination", "erp", "--yes"]).ok();
    eventually("the letter's delivery", || (erp.receipts().len() == 6).then_some(()));
    assert_eq!(audit.arrivals(), 0, "it was paused");
    gateway.stop();
}
