use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use prometheus::Registry;
use tokio_util::sync::CancellationToken;

use super::append::HEDGE_AFTER;
use super::events::Events;
use super::{Options, Step, apply, connect, open, plan, testing};
use crate::event::{Event, Fingerprint};
use crate::storage::conformance::{Backend, event};
use crate::storage::{
    Appended, BatchLimit, Change, Cursor, DeadFilter, DeadLetter, Delivered, EventFilter, EventLog as _,
    Left, OnConflict, Parked, ParkedFilter, Position, Pruned, Start, Storage, StorageError, Subscription,
    Track,
};

mod redis;
mod secured;
mod spool;

struct OnBroker(Options);

impl OnBroker {
    async fn new() -> Self {
        Self::with_partitions(1).await
    }

    async fn with_partitions(partitions: i32) -> Self {
        let mut options = tokio::task::spawn_blocking(testing::options).await.unwrap();
        options.partitions = partitions;
        make_topics(&options).await;
        Self(options)
    }
}

async fn make_topics(options: &Options) {
    let left = apply(options, plan(options).await.unwrap()).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

impl Backend for OnBroker {
    async fn open(&self) -> Storage {
        open(&self.0, &Registry::new()).await.unwrap()
    }
}

crate::storage_conformance!(OnBroker::new().await);

/// An event with a subject of its own, so that events spread over the partitions.
fn spread(key: u64) -> Event {
    Event { subject: Some(format!("order-{key}").into()), ..event(key) }
}

async fn post(storage: &Storage, event: Event) -> Appended {
    storage.events.append(event, OnConflict::Quarantine).await.unwrap()
}

async fn append(storage: &Storage, keys: std::ops::Range<u64>) -> Vec<Position> {
    let mut positions = Vec::new();
    for key in keys {
        match storage.events.append(spread(key), OnConflict::Quarantine).await.unwrap() {
            Appended::Stored(position) => positions.push(position),
            other => panic!("event {key} is new and yet {other:?}"),
        }
    }
    positions
}

/// One of several readers of a cursor: what it has and what it has read.
struct Member {
    storage: Storage,
    subscription: Subscription,
    tracks: BTreeMap<u32, Track>,
    read: BTreeSet<Position>,
    joined: Instant,
}

impl Member {
    async fn join(options: &Options) -> Self {
        Self::join_at(options, Start::Beginning).await
    }

    async fn join_at(options: &Options, start: Start) -> Self {
        let storage = open(options, &Registry::new()).await.unwrap();
        let limit = BatchLimit { records: 10, bytes: 1 << 20 };
        let subscription = storage.events.subscribe(&Cursor::of("erp"), start, limit).await.unwrap();
        Self { storage, subscription, tracks: BTreeMap::new(), read: BTreeSet::new(), joined: Instant::now() }
    }

    /// Takes changes and batches for a moment. A test that waits in vain ends here.
    async fn work(&mut self) {
        assert!(self.joined.elapsed() < Duration::from_secs(60), "not reached: {:?}", self.tracks.keys());
        let pause = Duration::from_millis(20);
        while let Ok(Some(change)) = tokio::time::timeout(pause, self.subscription.changes.recv()).await {
            match change {
                Change::Gained(track) => assert!(self.tracks.insert(track.partition, track).is_none()),
                Change::Leaving { partition, ended: _ } => assert!(self.tracks.contains_key(&partition)),
                Change::Lost { partition } => assert!(self.tracks.remove(&partition).is_some()),
            }
        }
        for track in self.tracks.values_mut() {
            while let Ok(batch) = track.batches.try_recv() {
                self.read.extend(batch.unwrap().iter().map(|record| record.position));
            }
        }
    }

    async fn settle_all(&self) {
        for partition in self.tracks.keys() {
            let mine = self.read.iter().filter(|position| position.partition() == *partition);
            if let Some(last) = mine.max() {
                self.storage.events.settle(&Cursor::of("erp"), *last, vec![]).await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_panics_is_one_and_a_thread_that_does_asks_for_a_restart() {
    let backend = OnBroker::new().await;
    let kafka = connect(&backend.0, &Registry::new(), HEDGE_AFTER).await.unwrap();
    let events = Events(Arc::clone(&kafka));
    let asked = kafka.query().unwrap().ask(|_| -> Result<(), _> { panic!("on purpose") }).await;
    assert!(matches!(asked, Err(StorageError::Panicked)), "{asked:?}");
    kafka.extents().await.unwrap();
    assert!(events.is_writable());

    kafka.view().unwrap().panic();
    let told = async {
        while events.is_writable() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), told).await.unwrap();
    events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_are_past_their_time_go_in_one_step() {
    let backend = OnBroker::with_partitions(2).await;
    let storage = backend.open().await;
    futures_util::future::join_all((0..1200).map(|key| post(&storage, spread(key)))).await;
    let later = spread(1200).received_at;
    let all = Pruned { events: 1200, left: Left::Nothing };
    assert_eq!(storage.events.prune(later, Duration::ZERO, &[]).await.unwrap(), all);
    assert_eq!(storage.events.census().await.unwrap().events, 0);
    storage.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_share_the_partitions_and_what_is_parked_goes_with_them() {
    let backend = OnBroker::with_partitions(4).await;
    let mut first = Member::join(&backend.0).await;
    let mut expected: BTreeSet<Position> = append(&first.storage, 0..60).await.into_iter().collect();
    assert!(expected.iter().map(|position| position.partition()).collect::<BTreeSet<_>>().len() > 2);
    while first.tracks.len() < 4 || first.read != expected {
        first.work().await;
    }
    for position in expected.iter().take(40) {
        let key = position.place() + 1000 * u64::from(position.partition());
        let parked = Parked {
            destination: "erp".into(),
            position: *position,
            event: spread(key),
            due: event(0).received_at,
            attempts: 1,
            first_attempt: None,
            history: vec![],
        };
        first.storage.deliveries.park(parked).await.unwrap();
    }
    first.settle_all().await;

    let mut second = Member::join(&backend.0).await;
    while first.tracks.len() != 2 || second.tracks.len() != 2 {
        first.work().await;
        second.work().await;
    }
    let gone = *second.tracks.keys().next().unwrap();
    let late = first.storage.events.settle(&Cursor::of("erp"), Position::new(gone, 1), vec![]).await;
    assert!(matches!(late, Err(StorageError::Revoked { partition }) if partition == gone), "{late:?}");
    assert!(second.read.is_empty(), "what was settled is not read again: {:?}", second.read);

    let mut parked = 0;
    for member in [&first, &second] {
        let now = event(1).received_at;
        let due = member.storage.deliveries.due("erp", now, false, 100).await.unwrap();
        assert!(due.iter().all(|parked| member.tracks.contains_key(&parked.position.partition())));
        parked += due.len();
    }
    assert_eq!(parked, 40, "each parked delivery is one reader's");

    expected.extend(append(&second.storage, 100..160).await);
    while first.read.union(&second.read).count() < expected.len() {
        first.work().await;
        second.work().await;
    }
    assert!(first.read.is_disjoint(&second.read));
    second.settle_all().await;
    second.storage.events.close().await;
    while first.tracks.len() < 4 {
        first.work().await;
    }
    first.settle_all().await;
    let progress = first.storage.events.progress().await.unwrap();
    assert_eq!((progress.len(), progress[0].lag), (1, 0));
    first.storage.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_for_longer_than_the_brokers_remember_gets_copies_and_loses_nothing() {
    let backend = OnBroker::new().await;
    let limit = BatchLimit { records: 10, bytes: 1 << 20 };
    let begun = async |storage: &Storage| {
        let subscribed = storage.events.subscribe(&Cursor::of("erp"), Start::Now, limit).await;
        drop(subscribed.unwrap());
        storage.events.close().await;
    };
    let storage = backend.open().await;
    let before: BTreeSet<Position> = append(&storage, 0..3).await.into_iter().collect();
    begun(&storage).await;
    let storage = backend.open().await;
    let after: BTreeSet<Position> = append(&storage, 3..6).await.into_iter().collect();
    storage.events.close().await;

    let mut member = Member::join_at(&backend.0, Start::Now).await;
    while !member.read.is_superset(&after) {
        member.work().await;
    }
    assert!(member.read.is_disjoint(&before), "what came before it did is not for it");
    member.storage.events.close().await;

    testing::forget_group(&backend.0, &format!("{}.erp", backend.0.topic_prefix)).await;
    let mut member = Member::join_at(&backend.0, Start::Now).await;
    while !member.read.is_superset(&after) {
        member.work().await;
    }
    assert!(member.read.is_superset(&before), "whatever is kept");
    member.storage.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_the_topic_gains_is_read_from_its_beginning() {
    let mut backend = OnBroker::with_partitions(1).await;
    let member = Member::join(&backend.0).await;
    member.storage.events.close().await;
    backend.0.partitions = 3;
    let steps = plan(&backend.0).await.unwrap();
    assert!(matches!(&steps[..], [Step::Grow { from: 1, to: 3, .. }]), "{steps:?}");
    assert!(apply(&backend.0, steps).await.unwrap().is_empty());
    let storage = backend.open().await;
    let expected: BTreeSet<Position> = append(&storage, 0..30).await.into_iter().collect();
    storage.events.close().await;
    let mut member = Member::join(&backend.0).await;
    while member.read != expected {
        member.work().await;
    }
    member.storage.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_several_partitions_are_listed_by_time_page_by_page() {
    let backend = OnBroker::with_partitions(3).await;
    let storage = backend.open().await;
    append(&storage, 0..30).await;
    let mut seen = Vec::new();
    let mut before = None;
    loop {
        let filter = EventFilter { limit: 7, before, ..EventFilter::default() };
        let page = storage.events.find(filter).await.unwrap();
        let Some(last) = page.last() else { break };
        before = Some(last.position);
        seen.extend(page.into_iter().map(|record| record.event.received_at));
    }
    let expected: Vec<_> = (0..30).rev().map(|key| event(key).received_at).collect();
    assert_eq!(seen, expected);
    let (replay, count) =
        storage.events.begin_replay("erp", event(5).received_at, event(9).received_at).await.unwrap();
    assert_eq!(count, 4);
    storage.events.end_replay(&replay).await.unwrap();
    storage.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replays_that_several_processes_begin_at_once_are_several() {
    let backend = OnBroker::new().await;
    let storages = [backend.open().await, backend.open().await];
    append(&storages[0], 0..3).await;
    let begin = async |storage: &Storage| {
        let began = storage.events.begin_replay("erp", event(0).received_at, event(3).received_at).await;
        began.unwrap().0.replay
    };
    let mut numbers = BTreeSet::new();
    for _ in 0..5 {
        let (one, other) = tokio::join!(begin(&storages[0]), begin(&storages[1]));
        numbers.extend([one, other]);
    }
    assert_eq!(numbers.len(), 10, "{numbers:?}");
    assert!(!numbers.contains(&0), "that is no replay");
    let began = Instant::now();
    while storages[0].events.replays().await.unwrap().len() < 10 {
        assert!(began.elapsed() < Duration::from_secs(60), "one has taken the place of another");
    }
    for storage in storages {
        storage.events.close().await;
    }
}

/// A letter of `event(1)` for `erp`, and its number.
async fn bury(storage: &Storage) -> u64 {
    let letter = DeadLetter {
        number: 0,
        destination: Some("erp".into()),
        position: Some(Position(0)),
        event: event(1),
        reason: "gone".into(),
        detail: "410 Gone".into(),
        at: Timestamp::from_second(100).unwrap(),
        attempts: 1,
        history: Vec::new(),
    };
    storage.deliveries.bury(letter).await.unwrap();
    storage.deliveries.dead(DeadFilter::default()).await.unwrap()[0].number
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_of_what_is_parked_stays_a_letter_and_what_is_not_due_stays_parked() {
    let storage = OnBroker::new().await.open().await;
    let deliveries = &storage.deliveries;
    let later = Timestamp::from_second(200).unwrap();
    let parked = Parked {
        destination: "erp".into(),
        position: Position(0),
        event: event(1),
        due: later,
        attempts: 0,
        first_attempt: None,
        history: Vec::new(),
    };
    deliveries.park(parked.clone()).await.unwrap();
    let number = bury(&storage).await;
    let kept = async || deliveries.parked(ParkedFilter::default()).await.unwrap();
    assert_eq!(kept().await, [parked], "a burial ends what was attempted, which this was not");
    assert_eq!(deliveries.redrive(&[number], later).await.unwrap(), 0);
    assert_eq!(deliveries.dead(DeadFilter::default()).await.unwrap()[0].number, number);
    let delivered = Delivered { position: Position(0), at: later, attempts: 1 };
    deliveries.complete("erp", event(1).id, delivered).await.unwrap();
    assert_eq!(deliveries.redrive(&[number], later).await.unwrap(), 1);
    assert_eq!(kept().await[0].due, later);
    assert!(deliveries.dead(DeadFilter::default()).await.unwrap().is_empty());
    storage.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_that_two_redrive_at_once_goes_on_its_way_once() {
    let storage = OnBroker::new().await.open().await;
    let numbers = [bury(&storage).await];
    let now = Timestamp::from_second(200).unwrap();
    let (deliveries, end) = (&storage.deliveries, CancellationToken::new());
    // Whatever is due is taken at once, as a dispatcher would.
    let taking = async {
        let mut taken = 0;
        while !end.is_cancelled() {
            for parked in deliveries.due("erp", now, false, 10).await.unwrap() {
                taken += 1;
                let delivered = Delivered { position: parked.position, at: now, attempts: 1 };
                deliveries.complete("erp", parked.event.id, delivered).await.unwrap();
            }
        }
        taken
    };
    let redriving = async {
        let (one, other) = tokio::join!(deliveries.redrive(&numbers, now), deliveries.redrive(&numbers, now));
        while !deliveries.parked(ParkedFilter::default()).await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        end.cancel();
        one.unwrap() + other.unwrap()
    };
    assert_eq!(tokio::join!(redriving, taking), (1, 1));
    assert!(deliveries.dead(DeadFilter::default()).await.unwrap().is_empty());
    storage.events.close().await;
}

/// What another Kafka tool reads of the events, each written by this format.
fn kcat(options: &Options, format: &str, more: &[&str]) -> String {
    let topic = format!("{}.events", options.topic_prefix);
    let read = std::process::Command::new("kcat")
        .args(["-C", "-q", "-b", &options.brokers[0], "-t", &topic, "-o", "beginning", "-f", format])
        .args(more)
        .output()
        .expect("kcat is missing: apt-get install kcat");
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    String::from_utf8(read.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_kafka_tool_reads_an_event_with_its_headers() {
    let backend = OnBroker::with_partitions(1).await;
    let storage = backend.open().await;
    storage.events.append(event(1), OnConflict::Quarantine).await.unwrap();
    let text = kcat(&backend.0, "%k|%h|%s", &["-c", "1"]);
    let (key, rest) = text.split_once('|').unwrap();
    let (headers, body) = rest.split_once('|').unwrap();
    assert_eq!((key, body.as_bytes()), ("subject-1", &*event(1).body));
    let id = format!("ce_id={}", event(1).id);
    for header in [
        "content-type=application/json",
        "ce_specversion=1.0",
        &id,
        "ce_source=/sources/suite",
        "ce_type=cip.paid",
        "ce_subject=subject-1",
    ] {
        assert!(headers.split(',').any(|found| found == header), "{header} is missing in {headers}");
    }
    storage.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_are_missing_or_break_a_promise_are_refused() {
    let mut options = tokio::task::spawn_blocking(testing::options).await.unwrap();
    let refused = open(&options, &Registry::new()).await.map(|_| ()).unwrap_err();
    assert!(matches!(&refused, StorageError::Unfit { what } if what.contains("is missing")), "{refused}");
    let steps = plan(&options).await.unwrap();
    assert_eq!(steps.len(), 3);
    apply(&options, steps).await.unwrap();
    assert_eq!(plan(&options).await.unwrap(), []);
    options.partitions = 2;
    options.replication = 2;
    let steps = plan(&options).await.unwrap();
    assert!(
        steps.iter().any(|step| step.to_string().contains("min.insync.replicas is \"1\"; it must be 2")),
        "{steps:?}"
    );
    let few = steps.iter().filter(|step| step.to_string().contains("has 1 copies; it must have 2"));
    assert_eq!(few.count(), 3, "{steps:?}");

    // What an outage kept in the spool would be refused.
    let mut other = tokio::task::spawn_blocking(testing::options).await.unwrap();
    other.topic_prefix.push_str("-young");
    let mut steps = plan(&other).await.unwrap();
    for step in &mut steps {
        let Step::Create { settings, .. } = step else { panic!("{step}") };
        let bound = settings.iter_mut().find(|(name, _)| *name == "message.timestamp.before.max.ms").unwrap();
        bound.1 = "3600000".to_owned();
    }
    let left = apply(&other, steps).await.unwrap();
    let young = left.iter().filter(|step| step.to_string().contains("before.max.ms is \"3600000\""));
    assert_eq!(young.count(), 3, "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_brokers_a_settle_fails_in_time_and_with_them_back_it_is_done() {
    let broker = tokio::task::spawn_blocking(testing::Broker::start).await.unwrap();
    let options = broker.options();
    assert!(apply(&options, plan(&options).await.unwrap()).await.unwrap().is_empty());
    let mut member = Member::join(&options).await;
    let expected: BTreeSet<Position> = append(&member.storage, 0..3).await.into_iter().collect();
    while member.read != expected {
        member.work().await;
    }
    broker.signal("STOP");
    let last = *expected.last().unwrap();
    let settle = async || member.storage.events.settle(&Cursor::of("erp"), last, vec![]).await;
    // The second waits for the first, which waits for the brokers.
    for _ in 0..2 {
        let failed = settle().await.unwrap_err();
        assert!(failed.is_transient(), "{failed}");
    }
    broker.signal("CONT");
    while settle().await.is_err() {
        assert!(member.joined.elapsed() < Duration::from_secs(120), "never settled");
    }
    let progress = member.storage.events.progress().await.unwrap();
    assert_eq!(progress[0].lag, 0);
    member.storage.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_may_be_a_static_member_of_all_its_groups() {
    let mut backend = OnBroker::with_partitions(2).await;
    backend.0.settings.push(("group.instance.id".to_owned(), "one".to_owned()));
    assert!(!super::is_reserved("group.instance.id"));
    assert!(super::is_reserved("max.poll.interval.ms"));
    let storage = backend.open().await;
    let limit = BatchLimit { records: 10, bytes: 1 << 20 };
    append(&storage, 0..10).await;
    for _ in 0..2 {
        // Several groups in one process, and each again after its reader has gone.
        for name in ["erp", "orders"] {
            let cursor = Cursor::of(name);
            let mut subscription = storage.events.subscribe(&cursor, Start::Beginning, limit).await.unwrap();
            let mut gained = 0;
            while gained < 2 {
                let change = tokio::time::timeout(Duration::from_secs(60), subscription.changes.recv()).await;
                gained += usize::from(matches!(change, Ok(Some(Change::Gained(_)))));
            }
        }
    }
    storage.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_while_it_is_read_is_counted_and_the_reader_goes_on() {
    let backend = OnBroker::with_partitions(1).await;
    let registry = Registry::new();
    let storage = open(&backend.0, &registry).await.unwrap();
    let limit = BatchLimit { records: 10, bytes: 1 << 20 };
    let mut subscription =
        storage.events.subscribe(&Cursor::of("erp"), Start::Beginning, limit).await.unwrap();
    let Some(Change::Gained(mut track)) = subscription.changes.recv().await else {
        panic!("the only reader")
    };
    // More than the client fetches ahead.
    for key in 0..300 {
        let body = vec![b'x'; 32 * 1024];
        storage
            .events
            .append(Event { body: body.into(), ..spread(key) }, OnConflict::Quarantine)
            .await
            .unwrap();
    }
    testing::delete_events(&backend.0, 0, 290).await;
    let (mut read, mut last) = (0, 0);
    while last < 300 {
        let batch = tokio::time::timeout(Duration::from_secs(60), track.batches.recv()).await.unwrap();
        for record in batch.unwrap().unwrap_or_default() {
            (read, last) = (read + 1, record.position.place());
        }
    }
    let families = registry.gather();
    let lost = families.iter().find(|family| family.name() == "chaski_events_lost_to_retention_total");
    let lost = lost.unwrap().get_metric()[0].get_counter().get_value();
    assert!((lost - f64::from(300 - read)).abs() < 0.5 && read < 290, "{lost} lost and {read} read");
    storage.events.close().await;
}
