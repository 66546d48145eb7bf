//! The suite every storage runs: each case is one promise of the seam's documentation.
//!
//! A backend brings a [`Backend`]: something that opens the same store again and again. The macro
//! [`storage_conformance!`](crate::storage_conformance) turns each case into a test of the backend's crate.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    missing_docs,
    reason = "a test suite: a panic is a red test, the names say it all"
)]

use std::collections::BTreeSet;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::watch;

use super::{
    Appended, BatchLimit, Change, Control, Controls, Cursor, DeadFilter, DeadLetter, Delivered, EventFilter,
    Failure, Fate, FateState, KeptLetters, Left, OnConflict, PASSED_MAX, Parked, ParkedFilter, Position,
    Progress, Pruned, Quarantined, Record, Start, Storage, StorageError, Subscription, Track,
};
use crate::event::{Environment, Event, EventId, Fingerprint};

/// Opens one store, as often as it is asked to. A store is closed before it is opened again.
pub trait Backend: Send + Sync {
    fn open(&self) -> impl Future<Output = Storage> + Send;
}

/// Makes a `#[tokio::test]` of each case; `$fresh` is an expression that gives a backend with an empty store.
#[macro_export]
macro_rules! storage_conformance {
    ($fresh:expr) => {
        $crate::storage_conformance! { $fresh;
            an_event_is_read_back_as_it_was_appended,
            one_id_is_stored_once_however_many_append_it_at_once,
            other_content_under_a_known_id_is_quarantined_once,
            a_sender_whose_resends_differ_is_not_in_conflict,
            a_quarantined_event_is_kept_once_and_never_handed_to_a_reader,
            what_was_acknowledged_is_there_after_reopening,
            a_new_cursor_begins_where_it_was_told_to_and_stays_there,
            a_mark_never_moves_back,
            what_was_settled_past_the_mark_is_known_after_reopening,
            a_batch_keeps_to_its_limits,
            a_reader_is_woken_by_an_append,
            parked_deliveries_come_out_when_due_the_longest_waiting_first,
            in_order_nothing_overtakes_an_earlier_delivery_of_its_subject,
            parking_again_replaces_what_was_parked,
            what_is_parked_no_more_is_not_parked_again,
            a_completed_delivery_is_no_longer_parked,
            a_hurried_delivery_is_due_now_and_a_dropped_one_is_dead,
            burying_ends_what_was_parked_and_keeps_the_letter_whole,
            dead_letters_are_found_by_what_they_are,
            a_redriven_letter_is_parked_and_due,
            a_redriven_quarantined_event_enters_the_log,
            what_was_redriven_from_quarantine_is_no_new_letter_when_it_comes_again,
            a_replay_covers_its_span_and_leaves_the_cursor_alone,
            pruning_spares_what_anybody_still_needs,
            what_came_while_a_clock_was_wrong_holds_back_nothing,
            what_is_held_back_all_the_same_is_told,
            a_position_is_never_given_twice,
            a_pause_outlives_the_process,
            what_an_operator_says_is_told_and_outlives_the_process,
            events_are_found_by_what_they_are,
            the_fate_of_an_event_is_told_for_each_destination,
            a_closed_storage_says_so,
        }
    };
    ($fresh:expr; $($case:ident,)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let backend = $fresh;
                $crate::storage::conformance::$case(&backend).await;
            }
        )+
    };
}

const EVERYTHING: BatchLimit = BatchLimit { records: 1000, bytes: 1 << 20 };

/// The moment from which the suite counts; whole milliseconds, as everywhere.
fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// A complete event; `key` is its id, its body and, by its remainder of three, its subject.
#[must_use]
pub fn event(key: u64) -> Event {
    let body = format!(r#"{{"key":{key}}}"#);
    Event {
        id: EventId::derive("suite", [key.to_be_bytes().as_slice()]),
        source: "suite".into(),
        kind: "cip.paid".into(),
        subject: Some(format!("subject-{}", key % 3).into()),
        time: Some(at(-5)),
        received_at: at(i64::try_from(key).unwrap()),
        content_type: Some("application/json".into()),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        fingerprint: Fingerprint::of(body.as_bytes()),
        body: body.into(),
        environment: Some(if key.is_multiple_of(2) { Environment::Sandbox } else { Environment::Production }),
    }
}

async fn fill(storage: &Storage, keys: std::ops::Range<u64>) -> Vec<Position> {
    let mut positions = Vec::new();
    for key in keys {
        match storage.events.append(event(key), OnConflict::Quarantine).await.unwrap() {
            Appended::Stored(position) => positions.push(position),
            Appended::Spooled => positions.push(in_log(storage, event(key).id).await),
            other => panic!("event {key} is new and yet {other:?}"),
        }
    }
    positions
}

/// The position of an event that is durable; waits until the log has it.
async fn in_log(storage: &Storage, id: EventId) -> Position {
    let filter = EventFilter { id: Some(id), ..EventFilter::default() };
    loop {
        if let Some(record) = storage.events.find(filter.clone()).await.unwrap().first() {
            return record.position;
        }
    }
}

/// How many events the log has; waits until there are so many.
async fn logged(storage: &Storage, count: usize) -> usize {
    loop {
        let found = storage.events.find(EventFilter::default()).await.unwrap().len();
        if found >= count {
            return found;
        }
    }
}

/// All letters; waits until there are so many.
async fn letters(storage: &Storage, count: usize) -> Vec<DeadLetter> {
    loop {
        let letters = storage.deliveries.dead(DeadFilter::default()).await.unwrap();
        if letters.len() >= count {
            return letters;
        }
    }
}

/// A subscription and its only partition.
struct Reader {
    _subscription: Subscription,
    track: Track,
}

impl Deref for Reader {
    type Target = Track;

    fn deref(&self) -> &Track {
        &self.track
    }
}

impl DerefMut for Reader {
    fn deref_mut(&mut self) -> &mut Track {
        &mut self.track
    }
}

async fn subscribe(storage: &Storage, destination: &str, start: Start) -> Reader {
    read(storage, &Cursor::of(destination), start, EVERYTHING).await
}

async fn read(storage: &Storage, cursor: &Cursor, start: Start, limit: BatchLimit) -> Reader {
    let mut subscription = storage.events.subscribe(cursor, start, limit).await.unwrap();
    match subscription.changes.recv().await {
        Some(Change::Gained(track)) => Reader { _subscription: subscription, track },
        other => panic!("a reader on its own has every partition, not {other:?}"),
    }
}

/// The next `count` records of a subscription.
async fn take(subscription: &mut Reader, count: usize) -> Vec<Record> {
    let mut records = Vec::new();
    while records.len() < count {
        records.extend(subscription.batches.recv().await.unwrap().unwrap());
    }
    assert_eq!(records.len(), count);
    records
}

fn parked(position: Position, key: u64, due: Timestamp) -> Parked {
    Parked {
        destination: "erp".into(),
        position,
        event: event(key),
        due,
        attempts: 4,
        first_attempt: Some(at(1)),
        history: vec![failure()],
    }
}

fn failure() -> Failure {
    Failure {
        at: at(1),
        attempt: 1,
        result: "http_5xx".to_owned(),
        status: Some(503),
        detail: "503 Service Unavailable".to_owned(),
        span: "00f067aa0ba902b7".to_owned().try_into().ok(),
    }
}

fn letter(position: Position, key: u64, reason: &str) -> DeadLetter {
    DeadLetter {
        number: 0,
        destination: Some("erp".into()),
        position: Some(position),
        event: event(key),
        reason: reason.into(),
        detail: "410 Gone".into(),
        at: at(100),
        attempts: 1,
        history: vec![failure()],
    }
}

fn keys(parked: &[Parked]) -> Vec<Bytes> {
    parked.iter().map(|parked| parked.event.body.clone()).collect()
}

fn bodies(keys: &[u64]) -> Vec<Bytes> {
    keys.iter().map(|key| event(*key).body).collect()
}

async fn progress_of(storage: &Storage, destination: &str) -> Progress {
    let all = storage.events.progress().await.unwrap();
    all.into_iter().find(|progress| &*progress.destination == destination).unwrap()
}

pub async fn an_event_is_read_back_as_it_was_appended(backend: &impl Backend) {
    let storage = backend.open().await;
    let full = event(1);
    let bare = Event {
        id: EventId::derive("suite", [b"bare".as_slice()]),
        subject: None,
        time: None,
        content_type: None,
        traceparent: None,
        body: Bytes::from_static(b"\x00\xff not text"),
        environment: None,
        ..event(2)
    };
    let mut subscription = subscribe(&storage, "orders", Start::Now).await;
    for event in [&full, &bare] {
        let appended = storage.events.append(event.clone(), OnConflict::Quarantine).await.unwrap();
        assert!(appended.is_new());
    }
    let records = take(&mut subscription, 2).await;
    assert_eq!(records.iter().map(|record| record.event.clone()).collect::<Vec<_>>(), [full, bare]);
    assert!(records[0].position < records[1].position);
    storage.events.head().wait_for(|head| *head == records[1].position).await.unwrap();
    storage.events.close().await;
}

pub async fn one_id_is_stored_once_however_many_append_it_at_once(backend: &impl Backend) {
    let storage = backend.open().await;
    let mut appends = tokio::task::JoinSet::new();
    for attempt in 0_u64..400 {
        let storage = storage.clone();
        appends.spawn(async move {
            storage.events.append(event(attempt % 8), OnConflict::Quarantine).await.unwrap()
        });
    }
    let outcomes = appends.join_all().await;
    let stored = outcomes.iter().filter(|outcome| outcome.is_new()).count();
    let duplicates = outcomes.iter().filter(|outcome| **outcome == Appended::Duplicate).count();
    assert_eq!((stored, duplicates), (8, 392));
    assert_eq!(logged(&storage, 8).await, 8);
    storage.events.close().await;
}

pub async fn other_content_under_a_known_id_is_quarantined_once(backend: &impl Backend) {
    let storage = backend.open().await;
    fill(&storage, 1..2).await;
    let other = Event { body: Bytes::from_static(b"{}"), fingerprint: Fingerprint::of(b"{}"), ..event(1) };
    for is_new in [true, false] {
        let appended = storage.events.append(other.clone(), OnConflict::Quarantine).await.unwrap();
        assert_eq!(appended, Appended::Conflict { is_new });
    }
    let letters = letters(&storage, 1).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(
        (&letters[0].event, &*letters[0].reason, &letters[0].destination),
        (&other, "dedup_conflict", &None)
    );
    assert_eq!(logged(&storage, 1).await, 1);
    storage.events.close().await;
}

pub async fn a_sender_whose_resends_differ_is_not_in_conflict(backend: &impl Backend) {
    let storage = backend.open().await;
    fill(&storage, 1..2).await;
    let resend = Event { body: Bytes::from_static(b"{}"), fingerprint: Fingerprint::of(b"{}"), ..event(1) };
    assert_eq!(storage.events.append(resend, OnConflict::Duplicate).await.unwrap(), Appended::Duplicate);
    assert!(storage.deliveries.dead(DeadFilter::default()).await.unwrap().is_empty());
    storage.events.close().await;
}

pub async fn a_quarantined_event_is_kept_once_and_never_handed_to_a_reader(backend: &impl Backend) {
    let storage = backend.open().await;
    let mut subscription = subscribe(&storage, "orders", Start::Now).await;
    assert!(storage.events.quarantine(event(1), "json_syntax", "unexpected end").await.unwrap());
    letters(&storage, 1).await;
    assert!(!storage.events.quarantine(event(1), "json_syntax", "unexpected end").await.unwrap());
    fill(&storage, 2..3).await;
    assert_eq!(take(&mut subscription, 1).await[0].event, event(2));
    let letters = letters(&storage, 1).await;
    assert_eq!(letters.len(), 1);
    assert_eq!((&letters[0].event, &*letters[0].detail), (&event(1), "unexpected end"));
    let summary = Quarantined { source: "suite".into(), events: 1, oldest: at(1) };
    assert_eq!(storage.deliveries.quarantined().await.unwrap(), [summary]);
    storage.events.close().await;
}

pub async fn what_was_acknowledged_is_there_after_reopening(backend: &impl Backend) {
    let storage = backend.open().await;
    fill(&storage, 0..50).await;
    storage.events.close().await;
    let storage = backend.open().await;
    assert_eq!(logged(&storage, 50).await, 50);
    assert_eq!(storage.events.append(event(7), OnConflict::Quarantine).await.unwrap(), Appended::Duplicate);
    storage.events.close().await;
}

pub async fn a_new_cursor_begins_where_it_was_told_to_and_stays_there(backend: &impl Backend) {
    let storage = backend.open().await;
    let positions = fill(&storage, 1..5).await;
    let mut beginning = subscribe(&storage, "all", Start::Beginning).await;
    let mut later = subscribe(&storage, "some", Start::At(at(3))).await;
    let mut now = subscribe(&storage, "new", Start::Now).await;
    assert_eq!(take(&mut beginning, 4).await[0].position, positions[0]);
    assert_eq!(take(&mut later, 2).await[0].position, positions[2]);
    assert_eq!(now.batches.try_recv().unwrap_err(), TryRecvError::Empty);
    drop((beginning, later, now));
    storage.events.close().await;

    let storage = backend.open().await;
    let mut now = subscribe(&storage, "new", Start::Beginning).await;
    fill(&storage, 5..6).await;
    assert_eq!(take(&mut now, 1).await[0].event, event(5));
    storage.events.close().await;
}

pub async fn a_mark_never_moves_back(backend: &impl Backend) {
    let storage = backend.open().await;
    let cursor = Cursor::of("orders");
    drop(subscribe(&storage, "orders", Start::Beginning).await);
    let positions = fill(&storage, 1..4).await;
    storage.events.settle(&cursor, positions[1], vec![]).await.unwrap();
    storage.events.settle(&cursor, positions[0], vec![]).await.unwrap();
    assert_eq!(progress_of(&storage, "orders").await.mark, positions[1]);
    storage.events.close().await;
    let storage = backend.open().await;
    let mut subscription = subscribe(&storage, "orders", Start::Now).await;
    assert_eq!(subscription.mark, positions[1]);
    assert_eq!(take(&mut subscription, 1).await[0].position, positions[2]);
    storage.events.close().await;
}

pub async fn what_was_settled_past_the_mark_is_known_after_reopening(backend: &impl Backend) {
    let storage = backend.open().await;
    drop(subscribe(&storage, "erp", Start::Beginning).await);
    let positions = fill(&storage, 1..7).await;
    let delivered = Delivered { position: positions[1], at: at(9), attempts: 1 };
    storage.events.settle(&Cursor::of("erp"), positions[0], vec![delivered]).await.unwrap();
    storage.deliveries.park(parked(positions[2], 3, at(50))).await.unwrap();
    storage.deliveries.bury(letter(positions[3], 4, "gone")).await.unwrap();
    storage.deliveries.park(parked(positions[4], 5, at(10))).await.unwrap();
    let delivered = Delivered { position: positions[4], at: at(20), attempts: 5 };
    storage.deliveries.complete("erp", event(5).id, delivered).await.unwrap();
    storage.events.close().await;
    let storage = backend.open().await;
    let subscription = subscribe(&storage, "erp", Start::Now).await;
    assert_eq!((subscription.mark, &*subscription.settled), (positions[0], &positions[1..5]));
    storage.events.close().await;
}

pub async fn a_batch_keeps_to_its_limits(backend: &impl Backend) {
    let storage = backend.open().await;
    fill(&storage, 1..8).await;
    let weight = event(1).weight_bytes();
    for (limit, expected) in [
        (BatchLimit { records: 3, bytes: 1 << 20 }, 3),
        (BatchLimit { records: 100, bytes: 2 * weight }, 2),
        (BatchLimit { records: 100, bytes: 0 }, 1),
    ] {
        let cursor = Cursor::of(format!("limit-{expected}"));
        let mut subscription = read(&storage, &cursor, Start::Beginning, limit).await;
        let mut seen = 0;
        while seen < 7 {
            let batch = subscription.batches.recv().await.unwrap().unwrap();
            assert!(batch.len() <= expected && !batch.is_empty(), "{} records under {limit:?}", batch.len());
            seen += batch.len();
        }
    }
    storage.events.close().await;
}

pub async fn a_reader_is_woken_by_an_append(backend: &impl Backend) {
    let storage = backend.open().await;
    let mut subscription = subscribe(&storage, "orders", Start::Now).await;
    let waiting = tokio::spawn(async move { take(&mut subscription, 1).await });
    tokio::task::yield_now().await;
    fill(&storage, 1..2).await;
    assert_eq!(waiting.await.unwrap()[0].event, event(1));
    storage.events.close().await;
}

pub async fn parked_deliveries_come_out_when_due_the_longest_waiting_first(backend: &impl Backend) {
    let storage = backend.open().await;
    let deliveries = &storage.deliveries;
    for (position, due) in [(1, 30), (2, 10), (3, 20), (4, 90)] {
        deliveries.park(parked(Position(position), position, at(due))).await.unwrap();
    }
    assert!(deliveries.due("erp", at(9), false, 10).await.unwrap().is_empty());
    assert_eq!(keys(&deliveries.due("erp", at(30), false, 10).await.unwrap()), bodies(&[2, 3, 1]));
    assert_eq!(keys(&deliveries.due("erp", at(99), false, 2).await.unwrap()), bodies(&[2, 3]));
    assert!(deliveries.due("orders", at(99), false, 10).await.unwrap().is_empty());
    assert_eq!(deliveries.next_due("erp", false).await.unwrap(), Some(at(10)));
    assert_eq!(deliveries.next_due("orders", false).await.unwrap(), None);
    assert_eq!(deliveries.parked_count("erp").await.unwrap(), 4);
    storage.events.close().await;
    let storage = backend.open().await;
    assert_eq!(
        storage.deliveries.due("erp", at(10), false, 10).await.unwrap(),
        [parked(Position(2), 2, at(10))]
    );
    storage.events.close().await;
}

pub async fn in_order_nothing_overtakes_an_earlier_delivery_of_its_subject(backend: &impl Backend) {
    let storage = backend.open().await;
    let deliveries = &storage.deliveries;
    // 1, 4 and 7 share a subject, 2 has its own; 4 and 7 are due before 1.
    for (position, due) in [(7, 10), (4, 20), (1, 90), (2, 30)] {
        deliveries.park(parked(Position(position), position, at(due))).await.unwrap();
    }
    assert_eq!(keys(&deliveries.due("erp", at(50), true, 10).await.unwrap()), bodies(&[2]));
    assert_eq!(keys(&deliveries.due("erp", at(99), true, 10).await.unwrap()), bodies(&[2, 1]));
    assert_eq!(deliveries.next_due("erp", true).await.unwrap(), Some(at(30)));
    let mut held = deliveries.held_subjects("erp").await.unwrap();
    held.sort();
    assert_eq!(held, [("subject-1".into(), 3), ("subject-2".into(), 1)]);
    let done = Delivered { position: Position(1), at: at(91), attempts: 5 };
    deliveries.complete("erp", event(1).id, done).await.unwrap();
    assert_eq!(keys(&deliveries.due("erp", at(99), true, 10).await.unwrap()), bodies(&[4, 2]));
    storage.events.close().await;
}

pub async fn parking_again_replaces_what_was_parked(backend: &impl Backend) {
    let storage = backend.open().await;
    storage.deliveries.park(parked(Position(1), 1, at(10))).await.unwrap();
    let again = Parked { attempts: 5, ..parked(Position(1), 1, at(60)) };
    storage.deliveries.park(again.clone()).await.unwrap();
    assert_eq!(storage.deliveries.parked(ParkedFilter::default()).await.unwrap(), [again]);
    storage.events.close().await;
}

pub async fn what_is_parked_no_more_is_not_parked_again(backend: &impl Backend) {
    let storage = backend.open().await;
    let deliveries = &storage.deliveries;
    let first = parked(Position(1), 1, at(10));
    let again = Parked { attempts: 5, ..first.clone() };
    assert!(!deliveries.park_again(first.clone()).await.unwrap(), "nothing is there");
    assert_eq!(deliveries.parked(ParkedFilter::default()).await.unwrap(), []);
    deliveries.park(first.clone()).await.unwrap();
    let elsewhere = Parked { destination: "orders".into(), ..first };
    assert!(!deliveries.park_again(elsewhere).await.unwrap(), "not of this destination");
    assert!(deliveries.park_again(again.clone()).await.unwrap());
    assert_eq!(deliveries.parked(ParkedFilter::default()).await.unwrap(), [again]);
    storage.events.close().await;
}

pub async fn a_completed_delivery_is_no_longer_parked(backend: &impl Backend) {
    let storage = backend.open().await;
    drop(subscribe(&storage, "erp", Start::Beginning).await);
    let position = fill(&storage, 1..2).await[0];
    storage.deliveries.park(parked(position, 1, at(10))).await.unwrap();
    storage
        .deliveries
        .complete("erp", event(1).id, Delivered { position, at: at(20), attempts: 5 })
        .await
        .unwrap();
    assert_eq!(storage.deliveries.parked_count("erp").await.unwrap(), 0);
    let fate = Fate { destination: "erp".into(), state: FateState::Delivered { at: at(20), attempts: 5 } };
    assert_eq!(storage.events.fates(event(1).id).await.unwrap(), [fate]);
    storage.events.close().await;
}

pub async fn a_hurried_delivery_is_due_now_and_a_dropped_one_is_dead(backend: &impl Backend) {
    let storage = backend.open().await;
    let deliveries = &storage.deliveries;
    deliveries.park(parked(Position(1), 1, at(500))).await.unwrap();
    deliveries.park(parked(Position(2), 2, at(500))).await.unwrap();
    assert_eq!(deliveries.hurry(event(1).id, Some("orders"), at(5)).await.unwrap(), 0);
    assert_eq!(deliveries.hurry(event(1).id, Some("erp"), at(5)).await.unwrap(), 1);
    assert_eq!(keys(&deliveries.due("erp", at(5), false, 10).await.unwrap()), bodies(&[1]));
    assert_eq!(deliveries.drop_parked(event(2).id, None, at(6)).await.unwrap(), 1);
    assert_eq!(deliveries.parked_count("erp").await.unwrap(), 1);
    let dead = deliveries.dead(DeadFilter::default()).await.unwrap();
    assert_eq!((dead.len(), &*dead[0].reason, dead[0].at, dead[0].attempts), (1, "dropped", at(6), 4));
    storage.events.close().await;
}

pub async fn burying_ends_what_was_parked_and_keeps_the_letter_whole(backend: &impl Backend) {
    let storage = backend.open().await;
    storage.deliveries.park(parked(Position(1), 1, at(10))).await.unwrap();
    for _ in 0..2 {
        storage.deliveries.bury(letter(Position(1), 1, "gone")).await.unwrap();
    }
    assert_eq!(storage.deliveries.parked_count("erp").await.unwrap(), 0);
    storage.events.close().await;
    let storage = backend.open().await;
    let dead = storage.deliveries.dead(DeadFilter::default()).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0], DeadLetter { number: dead[0].number, ..letter(Position(1), 1, "gone") });
    storage.events.close().await;
}

pub async fn dead_letters_are_found_by_what_they_are(backend: &impl Backend) {
    let storage = backend.open().await;
    let deliveries = &storage.deliveries;
    deliveries.bury(letter(Position(1), 1, "gone")).await.unwrap();
    deliveries.bury(letter(Position(2), 2, "exhausted")).await.unwrap();
    deliveries
        .bury(DeadLetter {
            destination: Some("orders".into()),
            at: at(200),
            ..letter(Position(2), 2, "gone")
        })
        .await
        .unwrap();
    storage.events.quarantine(event(3), "json_syntax", "").await.unwrap();
    letters(&storage, 4).await;
    let found = async |filter: DeadFilter| deliveries.dead(filter).await.unwrap().len();
    assert_eq!(found(DeadFilter::default()).await, 4);
    assert_eq!(found(DeadFilter { destination: Some("erp".to_owned()), ..DeadFilter::default() }).await, 2);
    assert_eq!(found(DeadFilter { destination: Some(String::new()), ..DeadFilter::default() }).await, 1);
    assert_eq!(found(DeadFilter { reason: Some("gone".to_owned()), ..DeadFilter::default() }).await, 2);
    assert_eq!(found(DeadFilter { id: Some(event(2).id), ..DeadFilter::default() }).await, 2);
    assert_eq!(found(DeadFilter { since: Some(at(150)), ..DeadFilter::default() }).await, 1);
    assert_eq!(
        found(DeadFilter { until: Some(at(150)), since: Some(at(50)), ..DeadFilter::default() }).await,
        2
    );
    let before = async |time: Timestamp| {
        let mut kept = deliveries.letters_before(time).await.unwrap();
        kept.sort_by(|one, other| (&one.destination, &one.reason).cmp(&(&other.destination, &other.reason)));
        kept
    };
    let kept = |destination: Option<&str>, reason: &str| KeptLetters {
        destination: destination.map(Arc::from),
        source: "suite".into(),
        reason: reason.into(),
        letters: 1,
    };
    let [quarantined, at_once, late] =
        [kept(None, "json_syntax"), kept(Some("erp"), "exhausted"), kept(Some("erp"), "gone")];
    let of_orders = kept(Some("orders"), "gone");
    assert_eq!(before(at(200)).await, [&quarantined, &at_once, &late].map(Clone::clone));
    let a_moment_later = at(200) + Duration::from_millis(1);
    assert_eq!(before(a_moment_later).await, [quarantined, at_once, late, of_orders]);
    let first = deliveries.dead(DeadFilter { limit: 1, ..DeadFilter::default() }).await.unwrap()[0].number;
    assert_eq!(found(DeadFilter { after: Some(first), ..DeadFilter::default() }).await, 3);
    let numbers: Vec<u64> =
        deliveries.dead(DeadFilter::default()).await.unwrap().iter().map(|letter| letter.number).collect();
    assert_eq!(deliveries.drop_dead(&numbers[..2]).await.unwrap(), 2);
    assert_eq!(deliveries.drop_dead(&numbers[..2]).await.unwrap(), 0);
    assert_eq!(found(DeadFilter::default()).await, 2);
    storage.events.close().await;
}

pub async fn a_redriven_letter_is_parked_and_due(backend: &impl Backend) {
    let storage = backend.open().await;
    storage.deliveries.bury(letter(Position(1), 1, "gone")).await.unwrap();
    let number = storage.deliveries.dead(DeadFilter::default()).await.unwrap()[0].number;
    assert_eq!(storage.deliveries.redrive(&[number, 999], at(300)).await.unwrap(), 1);
    assert!(storage.deliveries.dead(DeadFilter::default()).await.unwrap().is_empty());
    let due = storage.deliveries.due("erp", at(300), false, 10).await.unwrap();
    assert_eq!(due, [Parked { attempts: 0, first_attempt: None, ..parked(Position(1), 1, at(300)) }]);
    storage.events.close().await;
}

pub async fn a_redriven_quarantined_event_enters_the_log(backend: &impl Backend) {
    let storage = backend.open().await;
    let mut subscription = subscribe(&storage, "orders", Start::Now).await;
    fill(&storage, 1..2).await;
    let other = Event { body: Bytes::from_static(b"{}"), fingerprint: Fingerprint::of(b"{}"), ..event(1) };
    storage.events.append(other.clone(), OnConflict::Quarantine).await.unwrap();
    storage.events.quarantine(event(2), "schema_amount", "").await.unwrap();
    let numbers: Vec<u64> = letters(&storage, 2).await.iter().map(|letter| letter.number).collect();
    assert_eq!(storage.deliveries.redrive(&numbers, at(300)).await.unwrap(), 2);
    let records = take(&mut subscription, 3).await;
    assert_eq!(records[0].event, event(1));
    assert_eq!(records[1].event.body, other.body);
    assert_ne!(records[1].event.id, other.id);
    assert_eq!(records[2].event.id, event(2).id);
    assert!(storage.deliveries.dead(DeadFilter::default()).await.unwrap().is_empty());
    storage.events.close().await;
}

pub async fn what_was_redriven_from_quarantine_is_no_new_letter_when_it_comes_again(backend: &impl Backend) {
    let storage = backend.open().await;
    let other = Event { body: Bytes::from_static(b"{}"), fingerprint: Fingerprint::of(b"{}"), ..event(1) };
    fill(&storage, 1..2).await;
    for is_new in [true, false] {
        let kept = storage.events.quarantine(event(2), "schema_amount", "").await.unwrap();
        assert_eq!(kept, is_new);
        let conflict = storage.events.append(other.clone(), OnConflict::Quarantine).await.unwrap();
        assert_eq!(conflict, Appended::Conflict { is_new });
        let letters = letters(&storage, if is_new { 2 } else { 0 }).await;
        let numbers: Vec<u64> = letters.iter().map(|letter| letter.number).collect();
        assert_eq!(storage.deliveries.redrive(&numbers, at(300)).await.unwrap(), numbers.len());
    }
    assert_eq!(logged(&storage, 3).await, 3);
    storage.events.close().await;
}

pub async fn a_replay_covers_its_span_and_leaves_the_cursor_alone(backend: &impl Backend) {
    let storage = backend.open().await;
    drop(subscribe(&storage, "erp", Start::Beginning).await);
    let positions = fill(&storage, 1..7).await;
    storage.events.settle(&Cursor::of("erp"), positions[5], vec![]).await.unwrap();
    let (cursor, count) = storage.events.begin_replay("erp", at(2), at(5)).await.unwrap();
    assert_eq!((count, &*cursor.destination), (3, "erp"));
    storage.events.close().await;

    let storage = backend.open().await;
    let replays = storage.events.replays().await.unwrap();
    assert_eq!(replays.len(), 1);
    assert_eq!((&replays[0].cursor, replays[0].until), (&cursor, positions[3]));
    let mut subscription = read(&storage, &cursor, Start::Now, EVERYTHING).await;
    assert_eq!(subscription.until, Some(positions[3]));
    let seen: Vec<Event> = take(&mut subscription, 3).await.into_iter().map(|record| record.event).collect();
    assert_eq!(seen, [event(2), event(3), event(4)]);
    assert!(subscription.batches.recv().await.is_none(), "a replay ends");
    storage.events.settle(&cursor, positions[3], vec![]).await.unwrap();
    storage.events.end_replay(&cursor).await.unwrap();
    assert!(storage.events.replays().await.unwrap().is_empty());
    assert_eq!(progress_of(&storage, "erp").await.mark, positions[5]);

    let (empty, count) = storage.events.begin_replay("erp", at(900), at(901)).await.unwrap();
    assert_eq!(count, 0);
    let mut nothing = storage.events.subscribe(&empty, Start::Now, EVERYTHING).await.unwrap();
    while let Some(change) = nothing.changes.recv().await {
        let Change::Gained(mut track) = change else { panic!("nobody else reads: {change:?}") };
        assert!(track.batches.recv().await.is_none());
    }
    storage.events.close().await;
}

pub async fn pruning_spares_what_anybody_still_needs(backend: &impl Backend) {
    let storage = backend.open().await;
    let both: [Arc<str>; 2] = ["erp".into(), "orders".into()];
    for destination in &both {
        drop(subscribe(&storage, destination, Start::Beginning).await);
    }
    let positions = fill(&storage, 1..11).await;
    let left = async || storage.events.find(EventFilter::default()).await.unwrap().len();
    let prune = async |before, destinations: &[Arc<str>]| {
        let pruned = storage.events.prune(before, Duration::ZERO, destinations).await.unwrap();
        assert_eq!(pruned.left, Left::Nothing, "so few go in one step");
        pruned.events
    };
    storage.events.settle(&Cursor::of("erp"), positions[9], vec![]).await.unwrap();
    assert_eq!(prune(at(99), &both).await, 0, "orders has settled nothing");
    storage.events.settle(&Cursor::of("orders"), positions[5], vec![]).await.unwrap();
    assert_eq!(prune(at(3), &both).await, 2, "older than the third second");
    let (replay, _) = storage.events.begin_replay("erp", at(5), at(99)).await.unwrap();
    assert_eq!(prune(at(99), &both).await, 2, "the replay needs the fifth");
    storage.events.end_replay(&replay).await.unwrap();
    assert_eq!(prune(at(99), &both).await, 2);
    assert_eq!(left().await, 4);
    let unknown: [Arc<str>; 1] = ["never-seen".into()];
    assert_eq!(prune(at(99), &unknown).await, 0);
    storage.events.close().await;
}

pub async fn what_came_while_a_clock_was_wrong_holds_back_nothing(backend: &impl Backend) {
    let storage = backend.open().await;
    let append = async |key: u64, received_at: Timestamp| {
        let event = Event { received_at, ..event(key) };
        storage.events.append(event.clone(), OnConflict::Quarantine).await.unwrap();
        in_log(&storage, event.id).await;
    };
    let day = |number: i64| at(number * 86_400);
    // Each is as old as its number of days, but for those that came from the future; the last is there because the newest
    // may have to stay.
    let (future, retention) = (day(900), Duration::from_hours(30 * 24));
    for (key, received_at) in
        [future, day(1), future, day(2), future, day(30), day(31)].into_iter().enumerate()
    {
        append(key as u64, received_at).await;
    }
    let prune = async |now| {
        let mut events = 0;
        loop {
            let pruned = storage.events.prune(now, retention, &[]).await.unwrap();
            events += pruned.events;
            if pruned.left != Left::More {
                return (events, pruned.left);
            }
        }
    };
    assert_eq!(prune(day(25)).await, (0, Left::Nothing));
    assert_eq!(prune(day(40)).await, (4, Left::Nothing), "the third is as young as the one behind it");
    assert_eq!(prune(day(40)).await, (0, Left::Nothing));
    let left: Vec<Timestamp> = storage
        .events
        .find(EventFilter::default())
        .await
        .unwrap()
        .into_iter()
        .map(|record| record.event.received_at)
        .collect();
    let mut expected = [future, day(30), day(31)];
    expected.reverse();
    assert_eq!(BTreeSet::from_iter(left), BTreeSet::from(expected));
    storage.events.close().await;
}

pub async fn what_is_held_back_all_the_same_is_told(backend: &impl Backend) {
    let storage = backend.open().await;
    let future = at(900 * 86_400);
    for key in 0..PASSED_MAX + 5 {
        let received_at = if key <= PASSED_MAX { future } else { at(1) };
        let event = Event { received_at, ..event(key) };
        storage.events.append(event.clone(), OnConflict::Quarantine).await.unwrap();
        in_log(&storage, event.id).await;
    }
    let pruned = storage.events.prune(at(99), Duration::ZERO, &[]).await.unwrap();
    assert_eq!(pruned, Pruned { events: 0, left: Left::HeldBack });
    storage.events.close().await;
}

pub async fn a_position_is_never_given_twice(backend: &impl Backend) {
    let storage = backend.open().await;
    let positions = fill(&storage, 1..4).await;
    // A storage may have to keep the newest to remember its position.
    assert!(storage.events.prune(at(99), Duration::ZERO, &[]).await.unwrap().events >= 2);
    storage.events.close().await;
    let storage = backend.open().await;
    storage.events.head().wait_for(|head| *head == positions[2]).await.unwrap();
    assert!(fill(&storage, 4..5).await[0] > positions[2]);
    storage.events.close().await;
}

pub async fn a_pause_outlives_the_process(backend: &impl Backend) {
    let storage = backend.open().await;
    drop(subscribe(&storage, "erp", Start::Now).await);
    storage.events.set_paused("erp", true).await.unwrap();
    storage.events.close().await;
    let storage = backend.open().await;
    assert!(progress_of(&storage, "erp").await.paused);
    storage.events.set_paused("erp", false).await.unwrap();
    assert!(!progress_of(&storage, "erp").await.paused);
    storage.events.close().await;
}

pub async fn what_an_operator_says_is_told_and_outlives_the_process(backend: &impl Backend) {
    let storage = backend.open().await;
    drop(subscribe(&storage, "erp", Start::Now).await);
    let position = fill(&storage, 1..2).await[0];
    let mut controls = storage.events.controls();
    let said = |controls: &mut watch::Receiver<Controls>| controls.borrow_and_update()["erp"].clone();
    assert_eq!(said(&mut controls), Control::default());

    // What readers do to their own is not worth telling.
    storage.deliveries.park(parked(position, 1, at(900))).await.unwrap();
    storage.events.settle(&Cursor::of("erp"), position, vec![]).await.unwrap();
    assert!(!controls.has_changed().unwrap());

    storage.events.set_paused("erp", true).await.unwrap();
    assert!(said(&mut controls).paused);
    let (replay, _) = storage.events.begin_replay("erp", at(0), at(9)).await.unwrap();
    assert_eq!(said(&mut controls).replays, [replay.replay].into());
    assert_eq!(storage.deliveries.hurry(event(1).id, None, at(100)).await.unwrap(), 1);
    let hurried = said(&mut controls).by_hand;
    assert!(hurried > 0);
    assert_eq!(storage.deliveries.drop_parked(event(1).id, Some("erp"), at(100)).await.unwrap(), 1);
    let dropped = said(&mut controls).by_hand;
    assert!(dropped > hurried);
    let letters = storage.deliveries.dead(DeadFilter::default()).await.unwrap();
    assert_eq!(storage.deliveries.redrive(&[letters[0].number], at(100)).await.unwrap(), 1);
    assert!(said(&mut controls).by_hand > dropped);
    storage.events.close().await;

    let storage = backend.open().await;
    let mut controls = storage.events.controls();
    let known = said(&mut controls);
    assert_eq!((known.paused, known.replays), (true, [replay.replay].into()));
    storage.events.end_replay(&replay).await.unwrap();
    storage.events.set_paused("erp", false).await.unwrap();
    let ended = said(&mut controls);
    assert_eq!((ended.paused, ended.replays), (false, [].into()));
    storage.events.close().await;
}

pub async fn events_are_found_by_what_they_are(backend: &impl Backend) {
    let storage = backend.open().await;
    let positions = fill(&storage, 1..7).await;
    let found = async |filter: EventFilter| -> Vec<Position> {
        storage.events.find(filter).await.unwrap().iter().map(|record| record.position).collect()
    };
    let newest_first: Vec<Position> = positions.iter().rev().copied().collect();
    assert_eq!(found(EventFilter::default()).await, newest_first);
    assert_eq!(found(EventFilter { limit: 2, ..EventFilter::default() }).await, newest_first[..2]);
    assert_eq!(
        found(EventFilter { before: Some(positions[2]), ..EventFilter::default() }).await,
        newest_first[4..]
    );
    assert_eq!(found(EventFilter { id: Some(event(3).id), ..EventFilter::default() }).await, [positions[2]]);
    let about =
        EventFilter { subject: Some("subject-1".to_owned()), since: Some(at(2)), ..EventFilter::default() };
    assert_eq!(found(about).await, [positions[3]]);
    assert_eq!(found(EventFilter { until: Some(at(4)), ..EventFilter::default() }).await, newest_first[3..]);
    let span = EventFilter { since: Some(at(2)), until: Some(at(4)), ..EventFilter::default() };
    assert_eq!(found(span).await, newest_first[3..5]);
    assert!(found(EventFilter { until: Some(at(1)), ..EventFilter::default() }).await.is_empty());
    assert!(
        found(EventFilter { source: Some("other".to_owned()), ..EventFilter::default() }).await.is_empty()
    );
    assert!(found(EventFilter { kind: Some("other".to_owned()), ..EventFilter::default() }).await.is_empty());
    let census = storage.events.census().await.unwrap();
    assert_eq!((census.events, census.oldest), (6, Some(at(1))));
    storage.events.close().await;
}

pub async fn the_fate_of_an_event_is_told_for_each_destination(backend: &impl Backend) {
    let storage = backend.open().await;
    for destination in ["a-delivered", "b-skipped", "c-waiting", "erp", "y-replayed", "z-dead"] {
        drop(subscribe(&storage, destination, Start::Beginning).await);
    }
    let position = fill(&storage, 1..2).await[0];
    let delivered = Delivered { position, at: at(20), attempts: 2 };
    storage.events.settle(&Cursor::of("a-delivered"), position, vec![delivered]).await.unwrap();
    storage.events.settle(&Cursor::of("b-skipped"), position, vec![]).await.unwrap();
    storage.deliveries.park(parked(position, 1, at(60))).await.unwrap();
    storage
        .deliveries
        .bury(DeadLetter { destination: Some("z-dead".into()), ..letter(position, 1, "gone") })
        .await
        .unwrap();
    // A replay has delivered it after all.
    let given_up = DeadLetter { destination: Some("y-replayed".into()), ..letter(position, 1, "gave_up") };
    storage.deliveries.bury(given_up).await.unwrap();
    let delivered = Delivered { position, at: at(200), attempts: 1 };
    storage.events.settle(&Cursor::of("y-replayed"), position, vec![delivered]).await.unwrap();
    let states: Vec<FateState> =
        storage.events.fates(event(1).id).await.unwrap().into_iter().map(|fate| fate.state).collect();
    assert_eq!(
        states,
        [
            FateState::Delivered { at: at(20), attempts: 2 },
            FateState::Skipped,
            FateState::Waiting,
            FateState::Parked { due: at(60), attempts: 4, reason: "http_5xx".to_owned() },
            FateState::Delivered { at: at(200), attempts: 1 },
            FateState::Dead { at: at(100), attempts: 1, reason: "gone".to_owned() },
        ]
    );
    assert!(storage.events.fates(event(9).id).await.unwrap().is_empty());
    let waiting = progress_of(&storage, "c-waiting").await;
    assert_eq!((waiting.lag, waiting.oldest_unsettled), (1, Some(at(1))));
    let erp = progress_of(&storage, "erp").await;
    assert_eq!((erp.parked, erp.dead), (1, 0));
    storage.events.close().await;
}

pub async fn a_closed_storage_says_so(backend: &impl Backend) {
    let storage = backend.open().await;
    let mut subscription = subscribe(&storage, "orders", Start::Now).await;
    storage.events.close().await;
    assert!(subscription.batches.recv().await.is_none());
    let refused = storage.events.append(event(1), OnConflict::Quarantine).await;
    assert!(matches!(refused, Err(StorageError::Closed)));
    assert!(matches!(storage.deliveries.parked_count("erp").await, Err(StorageError::Closed)));
    storage.events.close().await;
}
