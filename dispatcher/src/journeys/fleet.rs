//! Edges and dispatchers as processes of their own, on one Kafka: what is said at one holds on all, and who comes,
//! goes or cannot reach the brokers costs nothing but time.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use chaski_common::storage::kafka::{self, testing};
use chaski_common::storage::{DeadFilter, Start};

use super::shared::{Process, topics};
use super::*;

/// A process without a dispatcher.
async fn edge(options: &kafka::Options) -> Storage {
    kafka::open(options, &Registry::new()).await.unwrap()
}

async fn append(storage: &Storage, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let mut event = event(n);
        event.subject = Some(format!("CIP-{n}").into());
        let appended = storage.events.append(event, OnConflict::Duplicate).await.unwrap();
        assert!(matches!(appended, Appended::Stored(_)), "{appended:?}");
    }
}

async fn until_settled(storage: &Storage) {
    until("all settled", async || {
        storage.events.progress().await.unwrap().iter().all(|progress| progress.lag == 0)
    })
    .await;
}

/// A member that could not say good-bye is missed by its group after 45 s.
const MEMBER_GONE: Duration = Duration::from_secs(90);

async fn until_members(options: &kafka::Options, group: &str, count: usize) {
    let group = format!("{}.{group}", options.topic_prefix);
    let reached = tokio::time::timeout(MEMBER_GONE, async {
        loop {
            let (options, group) = (options.clone(), group.clone());
            let members = tokio::task::spawn_blocking(move || testing::members(&options, &group));
            if members.await.unwrap() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(reached.await.is_ok(), "not reached: {count} members");
}

fn paused(process: &Process, name: &str) -> bool {
    process.dispatcher.status().iter().any(|status| &*status.name == name && status.paused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_that_an_edge_was_asked_for_holds_on_every_dispatcher() {
    let erp = Receiver::start(|_| Answer::Status(200)).await;
    let orders = Receiver::start(|_| Answer::Status(200)).await;
    let options = topics().await;
    let specs = vec![spec("erp", &erp.url()), spec("orders", &orders.url())];
    let edge = edge(&options).await;
    let first = Process::serving(&options, specs.clone()).await;
    let second = Process::serving(&options, specs).await;
    edge.events.set_paused("erp", true).await.unwrap();
    until("paused", async || paused(&first, "erp") && paused(&second, "erp")).await;
    // The other destination tells that time has passed.
    append(&edge, 0..40).await;
    orders.has(40).await;
    assert!(erp.got().is_empty());
    assert!(!paused(&first, "orders"));
    assert!(first.dispatcher.resume("erp").await.unwrap(), "another dispatcher is asked");
    erp.has(40).await;
    assert!(!paused(&second, "erp"));
    first.stop().await;
    second.stop().await;
    edge.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_begun_elsewhere_is_shared_by_all_dispatchers_and_ends_on_all() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let options = topics().await;
    let edge = edge(&options).await;
    let first = Process::start(&options, &spec("erp", &receiver.url())).await;
    let second = Process::start(&options, &spec("erp", &receiver.url())).await;
    append(&edge, 0..60).await;
    until_settled(&edge).await;
    let before = receiver.has(60).await.len();

    // Both are there before it goes on, so that no partition changes hands meanwhile.
    edge.events.set_paused("erp", true).await.unwrap();
    until("paused", async || paused(&first, "erp") && paused(&second, "erp")).await;
    let (cursor, count) =
        edge.events.begin_replay("erp", Timestamp::UNIX_EPOCH, Timestamp::MAX).await.unwrap();
    assert_eq!(count, 60);
    let group = format!("erp.replay-{}", cursor.replay);
    until_members(&options, &group, 2).await;
    edge.events.set_paused("erp", false).await.unwrap();
    until("ended", async || edge.events.replays().await.unwrap().is_empty()).await;
    until_members(&options, &group, 0).await;

    let again: Vec<String> = receiver.got()[before..].iter().map(|got| got.id().to_owned()).collect();
    let distinct: BTreeSet<_> = again.iter().collect();
    assert_eq!((again.len(), distinct.len()), (60, 60), "each once");
    assert!(first.storage.events.controls().borrow()["erp"].replays.is_empty());
    first.stop().await;
    second.stop().await;
    edge.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parked_and_dead_deliveries_are_steered_from_elsewhere() {
    let (receiver, status) = Receiver::answering(500).await;
    let mut spec = spec("erp", &receiver.url());
    spec.retry = patient(Duration::from_hours(1));
    let options = topics().await;
    let edge = edge(&options).await;
    let first = Process::start(&options, &spec).await;
    let second = Process::start(&options, &spec).await;
    append(&edge, 0..8).await;
    let parked = async || edge.deliveries.parked(ParkedFilter::default()).await.unwrap().len();
    until("all parked", async || parked().await == 8).await;
    status.store(200, Relaxed);
    let now = || Clock::system().now();
    for n in 0..5 {
        assert_eq!(edge.deliveries.hurry(event(n).id, Some("erp"), now()).await.unwrap(), 1);
    }
    receiver.has(13).await;
    for n in 5..8 {
        assert_eq!(edge.deliveries.drop_parked(event(n).id, None, now()).await.unwrap(), 1);
    }
    let waiting = |process: &Process| process.dispatcher.status()[0].waiting;
    until("nothing waits", async || waiting(&first) + waiting(&second) == 0).await;
    let dead = edge.deliveries.dead(DeadFilter::default()).await.unwrap();
    let numbers: Vec<u64> = dead.iter().map(|letter| letter.number).collect();
    assert_eq!(edge.deliveries.redrive(&numbers, now()).await.unwrap(), 3);
    let got = receiver.has(16).await;
    let taken: BTreeSet<&str> = got[8..].iter().map(receiver::Got::id).collect();
    assert_eq!(taken.len(), 8);
    until("none left", async || parked().await == 0).await;
    first.stop().await;
    second.stop().await;
    edge.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redriven_letter_that_dies_anew_at_once_is_a_letter_again() {
    let (receiver, _) = Receiver::answering(410).await;
    let options = topics().await;
    let edge = edge(&options).await;
    let process = Process::start(&options, &spec("erp", &receiver.url())).await;
    append(&edge, 0..1).await;
    let letters = async || edge.deliveries.dead(DeadFilter::default()).await.unwrap();
    for times in 1..=20 {
        receiver.has(times).await;
        until("a letter", async || letters().await.len() == 1).await;
        let number = letters().await[0].number;
        assert_eq!(edge.deliveries.redrive(&[number], Clock::system().now()).await.unwrap(), 1);
    }
    receiver.has(21).await;
    let parked = async || edge.deliveries.parked(ParkedFilter::default()).await.unwrap();
    until("a letter in the end", async || letters().await.len() == 1 && parked().await.is_empty()).await;
    process.stop().await;
    edge.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_traffic_dispatchers_come_and_go_one_after_another() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let spec = spec("erp", &receiver.url());
    let options = topics().await;
    let edge = edge(&options).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, storage) = (stop.clone(), edge.clone());
    let mut processes = vec![Process::start(&options, &spec).await];
    let traffic = tokio::spawn(async move {
        let mut appended = 0;
        while !stopped.load(Relaxed) {
            append(&storage, appended..appended + 10).await;
            appended += 10;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        appended
    });
    let share = async |count: usize| {
        until_members(&options, "erp", count).await;
        // Something has been delivered since.
        let got = receiver.got().len();
        receiver.has(got + 100).await;
    };
    for count in 2..=3 {
        processes.push(Process::start(&options, &spec).await);
        share(count).await;
    }
    for count in [2, 1] {
        processes.remove(0).stop().await;
        share(count).await;
    }
    stop.store(true, Relaxed);
    let appended = traffic.await.unwrap();
    until_settled(&edge).await;
    let got = receiver.got();
    let taken: BTreeSet<&str> = got.iter().map(receiver::Got::id).collect();
    let all: BTreeSet<String> = (0..appended).map(|n| event(n).id.to_string()).collect();
    assert_eq!(taken, all.iter().map(String::as_str).collect());
    assert_eq!(
        got.len(),
        taken.len(),
        "of {appended}, each once: whoever gives a partition up has settled it"
    );
    processes.remove(0).stop().await;
    edge.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_patient_dispatcher_starts_without_the_brokers_and_delivers_when_they_come() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let broker = tokio::task::spawn_blocking(testing::Broker::start).await.unwrap();
    let options = broker.options();
    kafka::apply(&options, kafka::plan(&options).await.unwrap()).await.unwrap();
    let storage = edge(&options).await;
    append(&storage, 0..5).await;
    let hours_ago = |hours| Clock::system().now() - Duration::from_hours(hours);
    // For the dispatcher's clock these come after its start.
    for n in 5..8 {
        let early = Event { received_at: hours_ago(1), ..event(n) };
        storage.events.append(early, OnConflict::Duplicate).await.unwrap();
    }
    broker.signal("STOP");
    let config = DispatcherConfig { patient: true, ..DispatcherConfig::default() };
    let new = |name| DestinationSpec { start: Start::Now, ..spec(name, &receiver.url()) };
    let specs = vec![new("erp"), new("orders")];
    let registry = Registry::new();
    let clock = Clock::manual(hours_ago(2));
    let dispatcher =
        Dispatcher::start(config, specs, storage.clone(), &registry, clock.clone()).await.unwrap();
    assert_eq!(dispatcher.status().len(), 2);
    clock.set(hours_ago(0));
    // The successor of one that was never opened begins where that one would have.
    let slower = DestinationSpec { timeout: Duration::from_secs(7), ..new("erp") };
    dispatcher.reload(vec![slower, new("orders")]).await.unwrap();
    broker.signal("CONT");
    // Stored before the cursors were opened or after.
    for n in 8..10 {
        let late = Event { received_at: clock.now(), ..event(n) };
        until("stored", async || storage.events.append(late.clone(), OnConflict::Duplicate).await.is_ok())
            .await;
    }
    let got = receiver.has(10).await;
    let taken: BTreeSet<&str> = got.iter().map(receiver::Got::id).collect();
    let expected: BTreeSet<String> = (5..10).map(|n| event(n).id.to_string()).collect();
    assert_eq!(taken, expected.iter().map(String::as_str).collect());
    dispatcher.shutdown(LONG).await;
    storage.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_retention_took_is_counted_and_delivery_goes_on() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let mut options = topics().await;
    options.partitions = 1;
    options.topic_prefix.push_str("-1");
    kafka::apply(&options, kafka::plan(&options).await.unwrap()).await.unwrap();
    let first = Process::start(&options, &spec("erp", &receiver.url())).await;
    append(&first.storage, 0..5).await;
    until_settled(&first.storage).await;
    first.stop().await;
    let storage = edge(&options).await;
    append(&storage, 5..20).await;
    testing::delete_events(&options, 0, 12).await;
    storage.events.close().await;

    // The second one finds nothing missing any more.
    for (next, expected) in [(20, 7), (21, 0)] {
        let registry = Registry::new();
        let storage = kafka::open(&options, &registry).await.unwrap();
        let config = DispatcherConfig::default();
        let specs = vec![spec("erp", &receiver.url())];
        let dispatcher = Dispatcher::start(config, specs, storage.clone(), &Registry::new(), Clock::system())
            .await
            .unwrap();
        append(&storage, next..next + 1).await;
        until_settled(&storage).await;
        assert_eq!(counter(&registry, "chaski_events_lost_to_retention_total"), expected);
        assert!(counter(&registry, "chaski_kafka_rebalances_total") > 0);
        dispatcher.shutdown(LONG).await;
        storage.events.close().await;
    }
    let ids: Vec<String> = receiver.got().iter().map(|got| got.id().to_owned()).collect();
    let expected: Vec<String> = (0..5).chain(12..22).map(|n| event(n).id.to_string()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>(), expected.iter().collect());
}

fn counter(registry: &Registry, name: &str) -> u64 {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == name);
    family.map_or(0, |family| {
        family.get_metric().iter().map(|metric| metric.get_counter().get_value() as u64).sum()
    })
}
