//! What the spool promises, with brokers of its own that are stopped, killed and started again.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::join_all;
use prometheus::proto::MetricFamily;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::storage::kafka::append::HEDGE_AFTER;
use crate::storage::kafka::client::RECORD_BYTES_MAX;
use crate::storage::kafka::open_with;
use crate::storage::kafka::testing::Broker;
use crate::storage::{DeadFilter, DeadLetter};

/// An answer that took longer than this was not one within the deadline; generous, for a busy machine.
const ANSWERED: Duration = Duration::from_secs(6);
const LONG: Duration = Duration::from_secs(120);

/// On the shared broker with a spool, in which *every* event is hedged: it goes both ways, whichever is first.
struct Hedging {
    options: Options,
    _folder: TempDir,
}

impl Hedging {
    async fn new() -> Self {
        let OnBroker(mut options) = OnBroker::new().await;
        let folder = TempDir::new().unwrap();
        options.spool = Some(folder.path().join("spool"));
        Self { options, _folder: folder }
    }
}

impl Backend for Hedging {
    async fn open(&self) -> Storage {
        let storage = open_with(&self.options, &Registry::new(), Duration::ZERO).await.unwrap();
        reached(&storage).await;
        storage
    }
}

crate::storage_conformance!(Hedging::new().await);

/// A broker of one's own, topics on it, and a folder for a spool. The broker can be lent to blocking threads.
struct Rig {
    broker: Arc<Mutex<Broker>>,
    options: Options,
    registry: Registry,
    _folder: TempDir,
}

impl Rig {
    async fn start() -> Self {
        let broker = tokio::task::spawn_blocking(Broker::start).await.unwrap();
        let folder = TempDir::new().unwrap();
        let mut options = broker.options();
        options.spool = Some(folder.path().join("spool"));
        make_topics(&options).await;
        let broker = Arc::new(Mutex::new(broker));
        Self { broker, options, registry: Registry::new(), _folder: folder }
    }

    async fn broker(&self, act: impl FnOnce(&mut Broker) + Send + 'static) {
        let broker = Arc::clone(&self.broker);
        let acted = tokio::task::spawn_blocking(move || {
            act(&mut broker.lock().unwrap_or_else(PoisonError::into_inner));
        });
        acted.await.unwrap();
    }

    async fn open(&mut self) -> Storage {
        self.registry = Registry::new();
        open(&self.options, &self.registry).await.unwrap()
    }

    fn gauge(&self, name: &str) -> Option<i64> {
        value(&self.registry, name)
    }

    /// Waits until a gauge says so.
    async fn gauge_is(&self, name: &str, value: i64) {
        until(name, async || self.gauge(name) == Some(value)).await;
    }

    fn spool(&self) -> &Path {
        self.options.spool.as_deref().unwrap()
    }
}

/// What a gauge says.
fn value(registry: &Registry, name: &str) -> Option<i64> {
    let families = registry.gather();
    let family = families.iter().find(|family: &&MetricFamily| family.name() == name)?;
    #[allow(clippy::cast_possible_truncation, reason = "whole and small")]
    family.get_metric().first().map(|metric| metric.get_gauge().get_value() as i64)
}

async fn until(what: &str, reached: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !reached().await {
        assert!(began.elapsed() < LONG, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn reached(storage: &Storage) {
    let began = Instant::now();
    while storage.events.find(EventFilter::default()).await.is_err() {
        assert!(began.elapsed() < LONG, "the brokers are never reached");
    }
}

/// The keys of the suite's events in the log, oldest first; waits until there are so many.
async fn logged(storage: &Storage, count: usize) -> Vec<u64> {
    let read = async || {
        let records = storage.events.find(EventFilter::default()).await.unwrap_or_default();
        records.iter().rev().map(|record| key(&record.event)).collect::<Vec<_>>()
    };
    until("events in the log", async || read().await.len() >= count).await;
    read().await
}

fn key(event: &Event) -> u64 {
    let body: serde_json::Value = serde_json::from_slice(&event.body).unwrap();
    body["key"].as_u64().unwrap()
}

async fn letters(storage: &Storage, count: usize) -> Vec<DeadLetter> {
    let read = async || storage.deliveries.dead(DeadFilter::default()).await.unwrap_or_default();
    until("letters", async || read().await.len() >= count).await;
    read().await
}

/// Appends one after the other, as a sender does that waits for its answer.
async fn post_all(storage: &Storage, keys: std::ops::Range<u64>) -> Vec<Appended> {
    let mut outcomes = Vec::new();
    for key in keys {
        let began = Instant::now();
        outcomes.push(post(storage, event(key)).await);
        assert!(began.elapsed() < ANSWERED, "{:?} for event {key}", began.elapsed());
    }
    outcomes
}

fn other(key: u64) -> Event {
    let body = format!(r#"{{"key":{key},"amount":"1.00"}}"#);
    Event { fingerprint: Fingerprint::of(body.as_bytes()), body: body.into(), ..event(key) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_broker_stands_still_events_are_taken_and_then_they_are_in_the_log_once_and_in_order() {
    let mut rig = Rig::start().await;
    let storage = rig.open().await;
    assert!(post_all(&storage, 0..10).await.iter().all(|appended| appended.is_new()));
    rig.gauge_is("chaski_spool_mode", 0).await;

    rig.broker(|broker| broker.signal("STOP")).await;
    // The first ones are hedged, those after the deadline go to the spool only.
    assert_eq!(post(&storage, event(10)).await, Appended::Spooled);
    assert_eq!(post_all(&storage, 11..40).await, [Appended::Spooled; 29]);
    rig.gauge_is("chaski_spool_mode", 2).await;
    assert_eq!(post_all(&storage, 40..60).await, [Appended::Spooled; 20]);
    assert_eq!(post(&storage, event(45)).await, Appended::Duplicate);
    assert!(storage.events.is_writable());
    rig.gauge_is("chaski_spool_records", 50).await;
    assert!(rig.gauge("chaski_spool_oldest_timestamp_seconds") > Some(0));

    rig.broker(|broker| broker.signal("CONT")).await;
    rig.gauge_is("chaski_spool_mode", 0).await;
    assert!(matches!(post(&storage, event(60)).await, Appended::Stored(_) | Appended::Spooled));
    rig.gauge_is("chaski_spool_records", 0).await;
    assert_eq!(rig.gauge("chaski_spool_oldest_timestamp_seconds"), Some(0));
    assert_eq!(logged(&storage, 61).await, (0..61).collect::<Vec<_>>(), "once each, in order");
    storage.events.close().await;
    drop(storage);
    let storage = rig.open().await;
    reached(&storage).await;
    rig.gauge_is("chaski_spool_mode", 0).await;
    assert_eq!(logged(&storage, 61).await.len(), 61, "what was drained is not drained again");
    storage.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_broker_the_storage_opens_keeps_events_and_letters_and_brings_them_when_it_comes() {
    let mut rig = Rig::start().await;
    rig.broker(Broker::kill).await;
    let storage = rig.open().await;
    assert_eq!(post_all(&storage, 0..30).await, [Appended::Spooled; 30]);
    assert!(storage.events.quarantine(event(100), "json_syntax", "unexpected end").await.unwrap());
    assert!(!storage.events.quarantine(event(100), "json_syntax", "unexpected end").await.unwrap());
    for is_new in [true, false] {
        assert_eq!(post(&storage, other(7)).await, Appended::Conflict { is_new });
    }
    let limit = BatchLimit { records: 10, bytes: 1 << 20 };
    let cursor = Cursor::of("erp");
    let refused = storage.events.subscribe(&cursor, Start::Beginning, limit).await.unwrap_err();
    assert!(matches!(refused, StorageError::Away) && refused.is_transient(), "{refused}");
    assert!(matches!(storage.events.progress().await, Err(StorageError::Away)));
    assert!(matches!(storage.deliveries.parked_count("erp").await, Err(StorageError::Away)));
    assert!(matches!(storage.events.set_paused("erp", true).await, Err(StorageError::Away)));
    assert!(storage.events.is_writable());

    // Closed in order, and opened without a broker again: nothing is lost, and a resend is known.
    storage.events.close().await;
    drop(storage);
    let storage = rig.open().await;
    assert_eq!(post(&storage, event(7)).await, Appended::Duplicate);
    assert_eq!(post(&storage, other(8)).await, Appended::Conflict { is_new: true });
    assert_eq!(post_all(&storage, 30..40).await, [Appended::Spooled; 10]);

    rig.broker(Broker::run).await;
    assert_eq!(logged(&storage, 40).await, (0..40).collect::<Vec<_>>());
    let found: BTreeSet<Vec<u8>> =
        letters(&storage, 3).await.iter().map(|letter| letter.event.body.to_vec()).collect();
    let expected = [event(100), other(7), other(8)].map(|event| event.body.to_vec());
    assert_eq!(found, BTreeSet::from(expected));
    rig.gauge_is("chaski_spool_records", 0).await;
    rig.gauge_is("chaski_spool_mode", 0).await;
    let mut subscription = storage.events.subscribe(&cursor, Start::Beginning, limit).await.unwrap();
    assert!(matches!(subscription.changes.recv().await, Some(Change::Gained(_))));
    assert_eq!(post(&storage, event(7)).await, Appended::Duplicate);
    storage.events.close().await;
}

#[test]
fn a_process_that_ends_without_a_word_leaves_its_spool_to_the_next() {
    let mine = Runtime::new().unwrap();
    let mut rig = mine.block_on(Rig::start());
    let crashing = Runtime::new().unwrap();
    crashing.block_on(async {
        let storage = rig.open().await;
        assert!(post_all(&storage, 0..5).await.iter().all(|appended| appended.is_new()));
        rig.broker(|broker| broker.signal("STOP")).await;
        // Hedged, and spooled only.
        rig_posts_while_stopped(&rig, &storage).await;
    });
    // All its tasks are dropped where they stand, and with them what it held in memory.
    crashing.shutdown_timeout(ANSWERED);
    mine.block_on(async {
        rig.broker(|broker| broker.signal("CONT")).await;
        let storage = rig.open().await;
        assert_eq!(post(&storage, event(20)).await, Appended::Duplicate);
        let mut found = logged(&storage, 50).await;
        rig.gauge_is("chaski_spool_mode", 0).await;
        found.extend(logged(&storage, 50).await);
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), (0..50).collect());
        storage.events.close().await;
    });
}

async fn rig_posts_while_stopped(rig: &Rig, storage: &Storage) {
    assert_eq!(post_all(storage, 5..20).await, [Appended::Spooled; 15]);
    rig.gauge_is("chaski_spool_mode", 2).await;
    assert_eq!(post_all(storage, 20..50).await, [Appended::Spooled; 30]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_spool_a_late_broker_is_an_error_and_the_id_is_free_when_its_fate_is_known() {
    let mut rig = Rig::start().await;
    rig.options.spool = None;
    let storage = rig.open().await;
    assert!(post(&storage, event(0)).await.is_new());
    rig.broker(|broker| broker.signal("STOP")).await;
    let began = Instant::now();
    let late = storage.events.append(event(1), OnConflict::Quarantine).await;
    assert!(matches!(late, Err(StorageError::Late { .. })), "{late:?}");
    assert!(began.elapsed() < ANSWERED);
    rig.broker(|broker| broker.signal("CONT")).await;
    // It arrived late: the resend is a duplicate, as soon as that is known.
    until("the resend is answered", async || {
        storage.events.append(event(1), OnConflict::Quarantine).await.is_ok()
    })
    .await;
    assert_eq!(logged(&storage, 2).await, [0, 1]);
    // What the producer will not take at all is an error, and leaves its id free.
    let huge = Event { body: vec![b'x'; 3 << 20].into(), ..event(2) };
    let refused = storage.events.append(huge, OnConflict::Quarantine).await;
    assert!(refused.is_err(), "{refused:?}");
    assert!(post(&storage, event(2)).await.is_new());
    storage.events.close().await;
    rig.broker(Broker::kill).await;
    assert!(open(&rig.options, &Registry::new()).await.is_err(), "without a spool there is nothing to open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_spool_a_quarantined_event_is_late_in_time_and_one_letter_at_last() {
    let mut rig = Rig::start().await;
    rig.options.spool = None;
    let storage = rig.open().await;
    assert!(post(&storage, event(100)).await.is_new());
    rig.broker(|broker| broker.signal("STOP")).await;
    let quarantine = async |key| storage.events.quarantine(event(key), "schema_amount", "").await;
    let began = Instant::now();
    let answers = tokio::time::timeout(ANSWERED, join_all((0..40).map(quarantine))).await.unwrap();
    assert!(answers.iter().all(|answer| matches!(answer, Err(StorageError::Late { .. }))), "{answers:?}");
    let conflict = storage.events.append(other(100), OnConflict::Quarantine).await;
    assert!(matches!(conflict, Err(StorageError::Late { .. })), "{conflict:?}");
    assert!(began.elapsed() < ANSWERED, "{:?}", began.elapsed());

    rig.broker(|broker| broker.signal("CONT")).await;
    until("the letter that was on its way is found", async || matches!(quarantine(0).await, Ok(false))).await;
    for key in 1..40 {
        until("a resend is answered", async || quarantine(key).await.is_ok()).await;
    }
    until("a resend is in conflict", async || {
        let appended = storage.events.append(other(100), OnConflict::Quarantine).await;
        matches!(appended, Ok(Appended::Conflict { .. }))
    })
    .await;
    assert_eq!(letters(&storage, 41).await.len(), 41, "one each");
    storage.events.close().await;
}

/// A body that shows how many of its kind are still held.
struct Body {
    bytes: Vec<u8>,
    _held: Arc<()>,
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quarantined_events_that_kafka_does_not_take_go_to_the_spool_and_none_waits_behind_them() {
    let mut rig = Rig::start().await;
    let storage = rig.open().await;
    assert!(post(&storage, event(100)).await.is_new());
    rig.gauge_is("chaski_spool_mode", 0).await;
    rig.broker(|broker| broker.signal("STOP")).await;
    let held = Arc::new(());
    let quarantine = async |key| {
        let body = Bytes::from_owner(Body { bytes: event(key).body.to_vec(), _held: Arc::clone(&held) });
        storage.events.quarantine(Event { body, ..event(key) }, "schema_amount", "").await
    };
    let began = Instant::now();
    let answers = join_all((0..40).map(quarantine)).await;
    assert!(answers.iter().all(|answer| matches!(answer, Ok(true))), "{answers:?}");
    assert!(began.elapsed() < ANSWERED, "{:?}", began.elapsed());
    until("no body is held", async || Arc::strong_count(&held) == 1).await;

    rig.broker(|broker| broker.signal("CONT")).await;
    assert_eq!(letters(&storage, 40).await.len(), 40);
    rig.gauge_is("chaski_spool_records", 0).await;
    rig.gauge_is("chaski_spool_mode", 0).await;
    assert_eq!(letters(&storage, 40).await.len(), 40, "one each");
    storage.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gives_a_redrive_up_leaves_no_id_behind_that_nobody_can_store() {
    let mut rig = Rig::start().await;
    rig.options.spool = None;
    let storage = rig.open().await;
    assert!(storage.events.quarantine(event(1), "schema_amount", "").await.unwrap());
    let numbers = [letters(&storage, 1).await[0].number];
    rig.broker(|broker| broker.signal("STOP")).await;
    let redriving = storage.deliveries.redrive(&numbers, event(2).received_at);
    assert!(tokio::time::timeout(Duration::from_millis(300), redriving).await.is_err(), "given up");
    rig.broker(|broker| broker.signal("CONT")).await;
    until("a resend is answered", async || {
        storage.events.append(event(1), OnConflict::Quarantine).await.is_ok()
    })
    .await;
    assert_eq!(storage.deliveries.redrive(&numbers, event(2).received_at).await.unwrap(), 1);
    assert_eq!(logged(&storage, 1).await, [1]);
    assert!(storage.deliveries.dead(DeadFilter::default()).await.unwrap().is_empty());
    storage.events.close().await;
}

/// Breaks the spool's disk, as far as the store can tell: no event can be written any more.
fn break_disk(spool: &Path) {
    let connection = rusqlite::Connection::open(spool.join("chaski.db")).unwrap();
    connection.busy_timeout(LONG).unwrap();
    connection
        .execute_batch("ALTER TABLE event RENAME TO gone; ALTER TABLE dead RENAME TO gone_too;")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_spool_keeps_nothing_from_going_to_kafka_and_both_broken_are_an_error() {
    let mut rig = Rig::start().await;
    let storage = rig.open().await;
    assert!(post(&storage, event(0)).await.is_new());
    rig.gauge_is("chaski_spool_mode", 0).await;
    break_disk(rig.spool());
    assert!(matches!(post(&storage, event(1)).await, Appended::Stored(_)));
    assert!(storage.events.quarantine(event(100), "json_syntax", "").await.unwrap());

    rig.broker(|broker| broker.signal("STOP")).await;
    for key in 2..5 {
        let refused = storage.events.append(event(key), OnConflict::Quarantine).await;
        assert!(refused.is_err(), "{refused:?}");
    }
    let refused = storage.events.quarantine(event(101), "json_syntax", "").await;
    assert!(refused.is_err(), "{refused:?}");
    rig.broker(|broker| broker.signal("CONT")).await;
    until("the resends are answered", async || {
        storage.events.append(event(4), OnConflict::Quarantine).await.is_ok()
    })
    .await;
    assert!(matches!(post(&storage, event(5)).await, Appended::Stored(_)));
    assert_eq!(logged(&storage, 6).await, (0..6).collect::<Vec<_>>());
    rig.gauge_is("chaski_spool_mode", 0).await;
    storage.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_that_cannot_be_opened_is_told_and_one_that_somebody_has_is_refused() {
    let OnBroker(mut options) = OnBroker::new().await;
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    options.spool = Some(folder.path().join("file"));
    let registry = Registry::new();
    let storage = open(&options, &registry).await.unwrap();
    assert_eq!(value(&registry, "chaski_spool_poisoned"), Some(1));
    assert!(matches!(post(&storage, event(0)).await, Appended::Stored(_)));
    storage.events.close().await;

    options.spool = Some(folder.path().join("spool"));
    let storage = open(&options, &Registry::new()).await.unwrap();
    let second = open(&options, &Registry::new()).await.map(|_| ()).unwrap_err();
    assert!(matches!(second, StorageError::Locked { .. }), "{second}");
    storage.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_are_missing_fail_at_once_when_a_broker_answers() {
    let mut options = tokio::task::spawn_blocking(testing::options).await.unwrap();
    let folder = TempDir::new().unwrap();
    options.spool = Some(folder.path().join("spool"));
    let refused = open(&options, &Registry::new()).await.map(|_| ()).unwrap_err();
    assert!(matches!(refused, StorageError::Unfit { .. }), "{refused}");
    make_topics(&options).await;
    let storage = open_with(&options, &Registry::new(), HEDGE_AFTER).await.unwrap();
    storage.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kafka_never_takes_is_refused_and_kafka_keeps_the_word() {
    let OnBroker(mut options) = OnBroker::new().await;
    let folder = TempDir::new().unwrap();
    options.spool = Some(folder.path().join("spool"));
    let storage = open_with(&options, &Registry::new(), LONG).await.unwrap();
    reached(&storage).await;
    let append = async |event| storage.events.append(event, OnConflict::Quarantine).await;
    let began = Instant::now();
    let mut key = 0;
    while !matches!(append(event(key)).await, Ok(Appended::Stored(_))) {
        assert!(began.elapsed() < LONG, "kafka never has the word");
        key += 1;
    }
    let huge = Event { body: vec![b'x'; RECORD_BYTES_MAX].into(), ..event(key + 1) };
    let refused = append(huge).await;
    assert!(matches!(refused, Err(StorageError::Engine { .. })), "{refused:?}");
    assert!(matches!(append(event(key + 2)).await, Ok(Appended::Stored(_))));
    storage.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_three_brokers_one_may_be_gone_and_with_two_gone_the_spool_takes_events() {
    let cluster = tokio::task::spawn_blocking(|| testing::Cluster::start(3)).await.unwrap();
    let folder = TempDir::new().unwrap();
    let mut options = cluster.options();
    options.spool = Some(folder.path().join("spool"));
    make_topics(&options).await;
    let storage = open(&options, &Registry::new()).await.unwrap();
    let cluster = Arc::new(Mutex::new(cluster));
    let act = async |node: usize, act: fn(&mut Broker)| {
        let cluster = Arc::clone(&cluster);
        let acted = tokio::task::spawn_blocking(move || {
            act(&mut cluster.lock().unwrap_or_else(PoisonError::into_inner).brokers[node]);
        });
        acted.await.unwrap();
    };
    let mut keys = 0..u64::MAX;
    let mut one = async || {
        let appended = post(&storage, spread(keys.next().unwrap())).await;
        assert!(appended.is_new(), "{appended:?}");
        appended
    };
    for _ in 0..10 {
        one().await;
    }
    act(2, Broker::kill).await;
    // The spool may bridge the election; then it is the log's turn again.
    let began = Instant::now();
    while !matches!(one().await, Appended::Stored(_)) {
        assert!(began.elapsed() < LONG, "with one broker gone the log takes nothing any more");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    act(1, Broker::kill).await;
    for _ in 0..10 {
        one().await;
    }
    assert_eq!(one().await, Appended::Spooled);
    act(1, Broker::run).await;
    let expected: Vec<u64> = (0..keys.start).collect();
    let mut found = logged(&storage, expected.len()).await;
    found.sort_unstable();
    assert_eq!(found, expected, "once each");
    storage.events.close().await;
}
