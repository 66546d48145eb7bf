//! Edges and dispatchers as processes of their own: one event however many doors it comes through.

use std::collections::BTreeSet;

use super::Fleet;
use crate::harness::{Answer, Destination, Layout, Receiver, Topics, eventually, payment};

#[test]
fn a_callback_that_comes_to_two_edges_at_once_is_one_event() {
    const PAYMENTS: u64 = 40;
    let names = ["orders", "erp", "notifications"];
    let receivers = [Receiver::start(), Receiver::start(), Receiver::start()];
    let layout =
        Layout::to(names.iter().zip(&receivers).map(|(name, receiver)| Destination::new(name, receiver)));
    let fleet = Fleet::start(&Topics::shared(), &layout);
    let mut ids = BTreeSet::new();
    for number in 0..PAYMENTS {
        let callback = payment(number);
        let answers: Vec<_> = std::thread::scope(|scope| {
            let posts: Vec<_> =
                fleet.edges.iter().map(|edge| scope.spawn(|| edge.gateway.send(&callback))).collect();
            posts.into_iter().map(|post| post.join().unwrap()).collect()
        });
        let mut outcomes: Vec<String> = answers.iter().map(Answer::outcome).collect();
        outcomes.sort();
        assert_eq!(outcomes, ["accepted", "duplicate"], "payment {number}: {answers:?}");
        assert_eq!(answers[0].id(), answers[1].id());
        ids.insert(answers[0].id());
    }
    assert_eq!(ids.len() as u64, PAYMENTS);
    for receiver in &receivers {
        receiver.wait_for_count(ids.len());
    }
    eventually("everything settled", || {
        let told = fleet.destinations();
        told.as_array().unwrap().iter().all(|destination| destination["lag"] == 0).then_some(())
    });
    fleet.stop();
    for receiver in &receivers {
        assert_eq!(receiver.receipts().len(), ids.len(), "once each");
    }
}
