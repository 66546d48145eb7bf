//! What an operator asks for: pause, replay, reload. It holds, even if the caller does not wait for the end.

use std::sync::atomic::Ordering::Relaxed;

use futures_util::FutureExt as _;
use tokio::time::timeout;

use super::*;
use crate::{Error, REPLAYS_MAX};

#[tokio::test]
async fn a_paused_destination_gets_nothing_until_it_is_resumed_even_after_a_restart() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let specs = vec![spec("erp", &receiver.url())];
    let bench = Bench::start(specs.clone()).await;
    assert!(bench.dispatcher.pause("erp").await.unwrap());
    assert!(!bench.dispatcher.pause("erp").await.unwrap());
    assert!(bench.dispatcher.pause("nobody").await.is_err());
    let bench = bench.restart(specs).await;
    assert!(bench.status().paused);
    let position = bench.append(event(1)).await;
    // Another destination tells that time has passed: it has taken the event.
    let other = Receiver::start(|_| Answer::Status(200)).await;
    bench.dispatcher.reload(vec![spec("erp", &receiver.url()), spec("orders", &other.url())]).await.unwrap();
    bench.settled("orders", position).await;
    assert!(receiver.got().is_empty());
    assert!(bench.dispatcher.resume("erp").await.unwrap());
    bench.settled("erp", position).await;
    assert_eq!(receiver.got().len(), 1);
}

#[tokio::test]
async fn a_replay_delivers_a_span_once_more_and_ends() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let bench = Bench::start(vec![spec("erp", &receiver.url())]).await;
    let begin: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    for n in 0..10 {
        let mut event = event(n);
        event.received_at = begin + Duration::from_secs(n);
        bench.append(event).await;
    }
    bench.settled("erp", Position(10)).await;
    let started = bench
        .dispatcher
        .replay("erp", begin + Duration::from_secs(2), begin + Duration::from_secs(6))
        .await
        .unwrap();
    assert_eq!(started.events, 4);
    let got = receiver.has(14).await;
    let mut again: Vec<_> = got[10..].iter().map(|got| got.id().to_owned()).collect();
    again.sort();
    let mut expected: Vec<_> = (2..6).map(|n| event(n).id.to_string()).collect();
    expected.sort();
    assert_eq!(again, expected);
    until("ended", async || bench.storage.events.replays().await.unwrap().is_empty()).await;
    assert!((bench.metric("chaski_replay_events_total", "delivered") - 4.0).abs() < 0.1);
}

#[tokio::test]
async fn a_reload_leaves_what_is_as_before_alone_and_swaps_what_changed() {
    let (old, new) =
        (Receiver::start(|_| Answer::Status(200)).await, Receiver::start(|_| Answer::Status(200)).await);
    let bench = Bench::start(vec![spec("a", &old.url()), spec("b", &old.url()), spec("c", &old.url())]).await;
    bench.append(event(1)).await;
    old.has(3).await;
    bench.dispatcher.reload(vec![spec("a", &old.url()), spec("b", &new.url())]).await.unwrap();
    let names: Vec<_> = bench.dispatcher.status().iter().map(|status| status.name.to_string()).collect();
    assert_eq!(names, ["a", "b"]);
    let position = bench.append(event(2)).await;
    bench.settled("a", position).await;
    bench.settled("b", position).await;
    assert_eq!((old.got().len(), new.got().len()), (4, 1));
}

#[tokio::test]
async fn a_pause_that_nobody_waits_for_holds_in_the_storage_and_at_the_courier() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let bench = Bench::start(vec![spec("erp", &receiver.url())]).await;
    assert!(bench.dispatcher.pause("erp").now_or_never().is_none(), "dropped in the middle");
    until("paused", async || {
        let progress = bench.storage.events.progress().await.unwrap();
        progress.iter().any(|at| at.paused) && bench.status().paused
    })
    .await;
}

#[tokio::test]
async fn a_reload_that_nobody_waits_for_comes_to_its_end() {
    let old = Receiver::start(|_| Answer::Silence).await;
    let new = Receiver::start(|_| Answer::Status(200)).await;
    let folder = TempDir::new().unwrap();
    let storage = embedded::open(&Options { path: folder.path().into() }, &Registry::new()).unwrap();
    let config = DispatcherConfig { drain: Duration::from_millis(200), ..DispatcherConfig::default() };
    let bench = Bench::on(folder, storage, config, vec![spec("erp", &old.url())]).await;
    let position = bench.append(event(1)).await;
    old.has(1).await;
    let reload = bench.dispatcher.reload(vec![spec("erp", &new.url())]);
    assert!(timeout(Duration::from_millis(20), reload).await.is_err(), "dropped while the old one drains");
    bench.settled("erp", position).await;
    assert_eq!(new.has(1).await.len(), 1);
}

#[tokio::test]
async fn replays_under_way_are_bounded() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let bench = Bench::start(vec![spec("erp", &receiver.url())]).await;
    bench.settled("erp", bench.append(event(1)).await).await;
    bench.dispatcher.pause("erp").await.unwrap();
    for _ in 0..REPLAYS_MAX {
        bench.dispatcher.replay("erp", Timestamp::UNIX_EPOCH, Timestamp::MAX).await.unwrap();
    }
    let one_more = bench.dispatcher.replay("erp", Timestamp::UNIX_EPOCH, Timestamp::MAX).await;
    assert!(matches!(one_more, Err(Error::TooManyReplays { max: REPLAYS_MAX, .. })), "{one_more:?}");
    bench.dispatcher.resume("erp").await.unwrap();
    until("all ended", async || bench.storage.events.replays().await.unwrap().is_empty()).await;
    bench.dispatcher.replay("erp", Timestamp::UNIX_EPOCH, Timestamp::MAX).await.unwrap();
}

#[tokio::test]
async fn a_replay_ends_what_is_parked_of_the_same_event_and_its_failures_change_nothing_there() {
    let (receiver, status) = Receiver::answering(500).await;
    let mut spec = spec("erp", &receiver.url());
    spec.retry = patient(Duration::from_hours(1));
    let bench = Bench::start(vec![spec]).await;
    let position = bench.append(event(1)).await;
    bench.settled("erp", position).await;
    for _ in 0..2 {
        let tried = receiver.got().len();
        bench.storage.deliveries.hurry(event(1).id, None, Clock::system().now()).await.unwrap();
        receiver.has(tried + 1).await;
        until("parked again", async || bench.parked().await[0].attempts as usize == tried + 1).await;
    }
    let replay = async || {
        bench.dispatcher.replay("erp", Timestamp::UNIX_EPOCH, Timestamp::MAX).await.unwrap();
        until("ended", async || bench.storage.events.replays().await.unwrap().is_empty()).await;
    };
    let before = bench.parked().await;
    for (tries, failure) in [(4, 500), (5, 410)] {
        status.store(failure, Relaxed);
        replay().await;
        assert_eq!((receiver.got().len(), bench.parked().await), (tries, before.clone()), "by the replay");
    }
    assert_eq!(bench.dead().await, []);
    status.store(200, Relaxed);
    replay().await;
    assert_eq!(bench.parked().await, [], "it is delivered");
    let fates = bench.storage.events.fates(event(1).id).await.unwrap();
    assert!(matches!(fates[0].state, FateState::Delivered { .. }), "{fates:?}");
    assert_eq!(receiver.got().len(), 6);
}

#[tokio::test]
async fn what_is_dropped_while_it_is_in_an_attempt_stays_dropped() {
    let receiver = Receiver::start(|got| {
        Answer::Late(500, Duration::from_millis(if got.attempt() == 1 { 0 } else { 500 }))
    })
    .await;
    let mut spec = spec("erp", &receiver.url());
    spec.retry = patient(Duration::from_hours(1));
    let bench = Bench::start(vec![spec]).await;
    let position = bench.append(event(1)).await;
    bench.settled("erp", position).await;
    let (id, now) = (event(1).id, Clock::system().now());
    bench.storage.deliveries.hurry(id, None, now).await.unwrap();
    receiver.has(2).await;
    assert_eq!(bench.storage.deliveries.drop_parked(id, None, now).await.unwrap(), 1);
    // With all that is under way.
    bench.dispatcher.shutdown(LONG).await;
    assert_eq!(bench.parked().await, []);
    assert_eq!(&*bench.dead().await[0].reason, "dropped");
}

#[tokio::test]
async fn a_changed_destination_that_drains_keeps_no_other_one_waiting() {
    let silent = Receiver::start(|_| Answer::Silence).await;
    let (old, new) =
        (Receiver::start(|_| Answer::Status(200)).await, Receiver::start(|_| Answer::Status(200)).await);
    let long = |url: &str| DestinationSpec { timeout: LONG, ..spec("slow", url) };
    let bench = Bench::start(vec![spec("a", &old.url()), long(&silent.url())]).await;
    bench.append(event(1)).await;
    old.has(1).await;
    silent.has(1).await;
    let dispatcher = bench.dispatcher.clone();
    let specs = vec![spec("a", &new.url()), long(&new.url())];
    let reload = tokio::spawn(async move { dispatcher.reload(specs).await });
    bench.settled("a", bench.append(event(2)).await).await;
    assert_eq!((old.got().len(), new.got().len()), (1, 1));
    let (from, to) = (Timestamp::UNIX_EPOCH, Clock::system().now());
    bench.dispatcher.replay("a", from, to).await.unwrap();
    assert!(!reload.is_finished(), "the slow one drains");
    bench.dispatcher.shutdown(Duration::ZERO).await;
    assert!(reload.await.unwrap().is_err());
}

#[tokio::test]
async fn a_reload_of_routes_stops_nobody() {
    let receiver = Receiver::start(|got| {
        if got.attempt() == 1 { Answer::Late(200, Duration::from_secs(1)) } else { Answer::Status(200) }
    })
    .await;
    let mut spec = spec("erp", &receiver.url());
    let bench = Bench::start(vec![spec.clone()]).await;
    bench.append(event(1)).await;
    receiver.has(1).await;
    spec.sources.push("other".into());
    spec.known_sources.push(("other".into(), Environment::Production));
    bench.dispatcher.reload(vec![spec]).await.unwrap();
    assert_eq!(bench.status().in_flight, 1, "its attempt goes on");
    let last = bench.append(Event { source: "other".into(), ..event(2) }).await;
    bench.settled("erp", last).await;
    assert_eq!((receiver.got().len(), bench.dead().await.len()), (2, 0));
}

#[tokio::test]
async fn a_reload_under_way_ends_with_the_process_in_the_time_that_this_has() {
    let silent = Receiver::start(|_| Answer::Silence).await;
    let url = silent.url();
    let slow = |concurrency| DestinationSpec { timeout: LONG, concurrency, ..spec("erp", &url) };
    let bench = Bench::start(vec![slow(1)]).await;
    bench.append(event(1)).await;
    silent.has(1).await;
    let (dispatcher, specs) = (bench.dispatcher.clone(), vec![slow(2)]);
    let reload = tokio::spawn(async move { dispatcher.reload(specs).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let began = tokio::time::Instant::now();
    bench.dispatcher.shutdown(Duration::from_millis(500)).await;
    assert!(began.elapsed() < Duration::from_secs(15), "the drain is cut short: {:?}", began.elapsed());
    assert!(matches!(reload.await.unwrap(), Err(Error::Ending)));
    assert!(matches!(bench.dispatcher.reload(vec![slow(3)]).await, Err(Error::Ending)));
    assert!(bench.dispatcher.status().is_empty(), "nothing is set off any more");
    assert_eq!(silent.got().len(), 1);
}
