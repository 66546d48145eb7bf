//! I5: with `ordering = "key"`, the first successes of one subject follow log order, and one subject's failure holds
//! back that subject only.

use std::collections::BTreeMap;

use crate::harness::{Callback, Destination, Layout, Random, Receiver, Reply, Site, eventually, paid};

const SUBJECTS: u64 = 5;
const EACH: u64 = 12;

fn step(subject: u64, step: u64) -> Callback {
    Callback::of(paid(40_000_000 + subject, &step.to_string(), "1.00"))
}

fn place(body: &[u8]) -> (String, u64) {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    (
        body["data"]["cip"].as_str().unwrap().to_owned(),
        body["operationNumber"].as_str().unwrap().parse().unwrap(),
    )
}

/// The steps of each subject in the order of their first success.
pub(crate) fn order(receiver: &Receiver) -> BTreeMap<String, Vec<u64>> {
    let mut taken = receiver.taken();
    taken.sort_by_key(|receipt| receipt.answered);
    let mut order = BTreeMap::<String, Vec<u64>>::new();
    for receipt in taken {
        let (subject, step) = place(&receipt.body);
        let steps = order.entry(subject).or_default();
        if !steps.contains(&step) {
            steps.push(step);
        }
    }
    order
}

fn wait_until_complete(receiver: &Receiver) {
    eventually("every step of every subject", || {
        let order = order(receiver);
        (order.len() as u64 == SUBJECTS && order.values().all(|steps| steps.len() as u64 == EACH))
            .then_some(())
    });
}

fn assert_in_order(receiver: &Receiver) {
    for (subject, steps) in order(receiver) {
        assert_eq!(steps, (0..EACH).collect::<Vec<_>>(), "{subject}");
    }
}

#[test]
fn the_first_successes_of_a_subject_follow_the_log_though_attempts_fail() {
    let seed = 5;
    let random = std::sync::Mutex::new(Random::new(seed));
    let receiver = Receiver::scripted(move |_| {
        Reply::status(if random.lock().unwrap().percent(30) { 500 } else { 200 })
    });
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver).with("ordering = \"key\"")]));
    let gateway = site.start();
    for number in 0..EACH {
        for subject in 0..SUBJECTS {
            gateway.accept(&step(subject, number));
        }
    }
    wait_until_complete(&receiver);
    assert_in_order(&receiver);
    gateway.stop();
}

#[test]
fn the_order_of_a_subject_outlives_crashes() {
    let receiver = Receiver::scripted(|asked| {
        // Every third step fails the first two times.
        let (_, step) = place(asked.body);
        Reply::status(if step % 3 == 1 && asked.times <= 2 { 500 } else { 200 })
            .after(std::time::Duration::from_millis(10))
    });
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver).with("ordering = \"key\"")]));
    let mut gateway = site.start();
    for number in 0..EACH {
        for subject in 0..SUBJECTS {
            gateway.accept(&step(subject, number));
        }
        if number % 4 == 3 {
            gateway.kill();
            drop(gateway);
            gateway = site.start();
        }
    }
    wait_until_complete(&receiver);
    assert_in_order(&receiver);
    gateway.stop();
}

#[test]
fn a_failing_subject_holds_back_itself_only() {
    let receiver = Receiver::scripted(|asked| {
        let (subject, step) = place(asked.body);
        if subject == "40000000" && step == 0 {
            Reply::status(503).with("retry-after", "3600")
        } else {
            Reply::status(200)
        }
    });
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)
        .with("ordering = \"key\"")
        .retrying("give_up_after = \"72h\"")]));
    let gateway = site.start();
    let mut held = String::new();
    for number in 0..EACH {
        for subject in 0..SUBJECTS {
            let id = gateway.accept(&step(subject, number));
            if (subject, number) == (0, 0) {
                held = id;
            }
        }
    }
    receiver.wait_for_count(((SUBJECTS - 1) * EACH) as usize);
    assert!(!order(&receiver).contains_key("40000000"), "nothing overtakes it");
    receiver.becomes(|_| Reply::status(200));
    eventually("the held delivery to be parked", || {
        (site.command(&["parked", "now", &held]).code == Some(0)).then_some(())
    });
    wait_until_complete(&receiver);
    assert_in_order(&receiver);
    gateway.stop();
}
