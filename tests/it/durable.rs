//! Promise 1: 200 means durable. I10: after a crash, every acknowledged event is there.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::harness::{Destination, Layout, Receiver, Reply, Site, eventually, payment};

#[test]
fn every_event_answered_200_is_in_the_store_of_a_process_killed_in_that_moment() {
    // Nobody takes anything: what is found later was kept by the store alone.
    let receiver = Receiver::scripted(|_| Reply::hang());
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let (answered, count) = (Mutex::new(BTreeSet::new()), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (gateway, answered, count) = (&gateway, &answered, &count);
        for sender in 0..16 {
            scope.spawn(move || {
                for number in sender * 100..(sender + 1) * 100 {
                    let Ok(answer) = gateway.try_send(&payment(number)) else { return };
                    assert_eq!(answer.outcome(), "accepted", "{answer:?}");
                    answered.lock().unwrap().insert(answer.id());
                    count.fetch_add(1, Ordering::Release);
                }
            });
        }
        eventually("answers", || (count.load(Ordering::Acquire) >= 200).then_some(()));
        gateway.kill();
    });
    let answered = answered.into_inner().unwrap();
    let kept = site.command(&["events", "--limit", "1000", "--json"]).json();
    let mut kept: BTreeSet<String> =
        kept.as_array().unwrap().iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect();
    if kept.len() == 1000 {
        // The oldest ones are on another page.
        kept.extend(
            answered.iter().filter(|id| site.command(&["events", "show", id]).code == Some(0)).cloned(),
        );
    }
    let lost: Vec<&String> = answered.difference(&kept).collect();
    assert!(lost.is_empty(), "{} of {} answered 200 are lost: {lost:?}", lost.len(), answered.len());
}
