//! Deliveries of one subject wait for each other, and for nobody else (I5).

use super::*;
use crate::destination::Ordering;

fn about(n: u64, subject: &str) -> Event {
    let mut event = event(n);
    event.subject = Some(subject.into());
    event
}

#[tokio::test]
async fn first_successes_of_one_subject_follow_log_order() {
    // Everything fails now and then: by its id and attempt, so that a run can be repeated.
    let receiver = Receiver::start(|got| {
        let dice = got
            .id()
            .bytes()
            .chain(got.attempt().to_string().bytes())
            .fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        Answer::Status(if dice % 3 == 0 { 500 } else { 200 })
    })
    .await;
    let mut spec = spec("erp", &receiver.url());
    spec.ordering = Ordering::Key;
    spec.concurrency = 8;
    // The second failure is parked: the wait inside the window is over after one.
    spec.retry =
        Schedule::listed(vec![Duration::from_millis(5), Duration::from_secs(11)], Duration::from_hours(1))
            .unwrap();
    let bench = Bench::start(vec![spec]).await;
    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for n in 0..120 {
        let event = about(n, &format!("CIP-{}", n % 7));
        expected.entry(event.subject.as_deref().unwrap().to_owned()).or_default().push(event.id.to_string());
        bench.append(event).await;
    }
    until("all delivered", async || {
        for parked in bench.parked().await {
            bench.storage.deliveries.hurry(parked.event.id, None, Clock::system().now()).await.unwrap();
        }
        bench.mark("erp").await >= Position(120) && bench.parked().await.is_empty()
    })
    .await;
    let mut taken: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let got = receiver.got();
    for (index, one) in got.iter().enumerate() {
        // The last attempt of an event is the one that succeeded.
        if !got[index + 1..].iter().any(|later| later.id() == one.id()) {
            taken.entry(one.headers["ce-subject"].clone()).or_default().push(one.id().to_owned());
        }
    }
    assert_eq!(taken, expected);
}

#[tokio::test]
async fn a_failing_head_holds_back_its_own_subject_even_over_a_restart() {
    let sick = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (is_sick, head) = (sick.clone(), event(0).id.to_string());
    let receiver = Receiver::start(move |got| {
        Answer::Status(if got.id() == head && is_sick.load(std::sync::atomic::Ordering::Relaxed) {
            500
        } else {
            200
        })
    })
    .await;
    let mut spec = spec("erp", &receiver.url());
    spec.ordering = Ordering::Key;
    spec.retry = Schedule::listed(vec![Duration::from_hours(1)], Duration::from_hours(72)).unwrap();
    let specs = vec![spec];
    let bench = Bench::start(specs.clone()).await;
    for n in 0..6 {
        bench.append(about(n, if n % 2 == 0 { "held" } else { "free" })).await;
    }
    bench.settled("erp", Position(6)).await;
    let parked: Vec<_> = bench.parked().await.iter().map(|parked| parked.attempts).collect();
    assert_eq!(parked.len(), 3, "the head, and two behind it");
    assert_eq!(parked.iter().sum::<u32>(), 1, "those behind it were not tried");
    let bench = bench.restart(specs).await;
    bench.append(about(6, "held")).await;
    bench.settled("erp", bench.append(about(7, "free")).await).await;
    assert_eq!(receiver.got().len(), 1 + 3 + 1);
    sick.store(false, std::sync::atomic::Ordering::Relaxed);
    bench.storage.deliveries.hurry(event(0).id, None, Clock::system().now()).await.unwrap();
    until("all delivered", async || bench.parked().await.is_empty()).await;
    let ids: Vec<_> = receiver.got()[5..].iter().map(|got| got.id().to_owned()).collect();
    assert_eq!(ids, [0, 2, 4, 6].map(|n| event(n).id.to_string()));
}

#[tokio::test]
async fn an_event_that_a_reload_bars_while_it_has_its_subjects_turn_gives_it_up() {
    let receiver = Receiver::start(|_| Answer::Late(200, Duration::from_millis(500))).await;
    let mut spec = spec("erp", &receiver.url());
    (spec.ordering, spec.concurrency) = (Ordering::Key, 1);
    let mut play = spec.clone();
    play.known_sources = vec![("pe".into(), Environment::Sandbox)];
    let bench = Bench::start(vec![spec.clone()]).await;
    bench.append(about(1, "a")).await;
    receiver.has(1).await;
    // It does not say what it is, and is ready, with its turn, when its source becomes play money.
    bench.append(about(2, "b")).await;
    until("ready", async || bench.status().queued == 1).await;
    bench.dispatcher.reload(vec![play]).await.unwrap();
    until("barred", async || bench.dead().await.len() == 1).await;
    bench.dispatcher.reload(vec![spec]).await.unwrap();
    bench.settled("erp", bench.append(about(3, "b")).await).await;
    let got: Vec<_> = receiver.got().iter().map(|got| got.id().to_owned()).collect();
    assert_eq!(got, [1, 3].map(|n| event(n).id.to_string()));
}
