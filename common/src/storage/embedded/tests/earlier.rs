//! Stores of earlier versions, as files, and that nothing in them is lost.
//!
//! `schema-N.db` was made by the chaski whose schema was version N, before the step to N + 1 was written:
//! `CHASKI_KEEP_STORE=FOLDER cargo test -p chaski-common --lib -- --ignored keep_a_store`, which calls [`fill`], and
//! `FOLDER/chaski.db` copied here. Nobody changes one afterwards.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use prometheus::Registry;
use rusqlite::Connection;
use tempfile::TempDir;

use crate::event::{Environment, Event, EventId, Fingerprint, TYPE_UNKNOWN};
use crate::storage::embedded::schema::VERSION;
use crate::storage::embedded::{FILE, Options, open};
use crate::storage::{
    Appended, BatchLimit, Change, Cursor, DeadFilter, DeadLetter, Delivered, EventFilter, Failure,
    OnConflict, Parked, ParkedFilter, Position, Record, Start, Storage, Track,
};

/// One file of each version before this one.
const FILES: &[&[u8]] =
    &[include_bytes!("schema-1.db"), include_bytes!("schema-2.db"), include_bytes!("schema-3.db")];

/// The moment from which the files count.
fn at(seconds: u64) -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

/// The n-th event of the files.
fn kept(n: u64) -> Event {
    let body = format!(
        r#"{{"eventType":"cip.paid","operationNumber":"{n}","data":{{"cip":"{}","currency":"PEN","amount":10.00}}}}"#,
        20_000_000 + n
    );
    Event {
        id: EventId::derive("pagoefectivo", [n.to_be_bytes().as_slice()]),
        source: "pagoefectivo".into(),
        kind: "cip.paid".into(),
        subject: Some((20_000_000 + n).to_string().into()),
        time: Some(at(n)),
        received_at: at(n),
        content_type: Some("application/json".into()),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        fingerprint: Fingerprint::of(body.as_bytes()),
        body: body.into(),
        environment: None,
    }
}

/// Event 1 with another amount.
fn conflicting() -> Event {
    let body = Bytes::from_static(br#"{"eventType":"cip.paid","data":{"amount":99.00}}"#);
    Event { fingerprint: Fingerprint::of(&body), body, ..kept(1) }
}

fn failures() -> Vec<Failure> {
    vec![Failure {
        at: at(20),
        attempt: 1,
        result: "http_5xx".to_owned(),
        status: None,
        detail: "503 Service Unavailable".to_owned(),
        span: None,
    }]
}

fn parked() -> Parked {
    Parked {
        destination: "erp".into(),
        position: Position(2),
        event: kept(2),
        due: at(30),
        attempts: 1,
        first_attempt: Some(at(19)),
        history: failures(),
    }
}

fn letter() -> DeadLetter {
    DeadLetter {
        number: 0,
        destination: Some("erp".into()),
        position: Some(Position(3)),
        event: kept(3),
        reason: "gone".into(),
        detail: "410 Gone".into(),
        at: at(40),
        attempts: 1,
        history: failures(),
    }
}

/// Puts one of everything into a new store: six events; `orders` with two settled and one delivered past them, and a
/// replay of the first two; `erp` with one settled, one parked and one dead; `audit`, paused; two letters in quarantine.
async fn fill(storage: &Storage) {
    let events = &storage.events;
    for name in ["orders", "erp", "audit"] {
        let limit = BatchLimit { records: 1, bytes: 1 };
        events.subscribe(&Cursor::of(name), Start::Now, limit).await.unwrap();
    }
    for n in 1..=6 {
        assert!(events.append(kept(n), OnConflict::Quarantine).await.unwrap().is_new());
    }
    let delivered = |n| Delivered { position: Position(n), at: at(10 + n), attempts: 1 };
    let settled = vec![delivered(1), delivered(2), delivered(4)];
    events.settle(&Cursor::of("orders"), Position(2), settled).await.unwrap();
    events.settle(&Cursor::of("erp"), Position(1), vec![delivered(1)]).await.unwrap();
    storage.deliveries.park(parked()).await.unwrap();
    storage.deliveries.bury(letter()).await.unwrap();
    events.begin_replay("orders", at(1), at(3)).await.unwrap();
    events.set_paused("audit", true).await.unwrap();
    events.append(conflicting(), OnConflict::Quarantine).await.unwrap();
    let unusable = Event { kind: TYPE_UNKNOWN.into(), subject: None, time: None, ..kept(7) };
    assert!(events.quarantine(unusable, "schema_amount", "data.amount is not positive").await.unwrap());
}

/// Makes the file of the version this code writes, for the tests of the versions that come after it.
#[tokio::test]
#[ignore = "makes a file: CHASKI_KEEP_STORE names the folder"]
async fn keep_a_store_of_this_version() {
    let folder = std::env::var("CHASKI_KEEP_STORE").unwrap();
    let storage = open(&Options { path: Path::new(&folder).to_owned() }, &Registry::new()).unwrap();
    fill(&storage).await;
    storage.events.close().await;
    // The next opening copies the log into the file.
    open(&Options { path: folder.into() }, &Registry::new()).unwrap().events.close().await;
}

fn lay(file: &[u8]) -> TempDir {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join(FILE), file).unwrap();
    folder
}

fn opened(folder: &TempDir) -> Storage {
    open(&Options { path: folder.path().to_owned() }, &Registry::new()).unwrap()
}

async fn track(storage: &Storage, cursor: &Cursor) -> Track {
    let limit = BatchLimit { records: 100, bytes: 1 << 20 };
    match storage.events.subscribe(cursor, Start::Now, limit).await.unwrap().changes.recv().await {
        Some(Change::Gained(track)) => track,
        other => panic!("the only partition comes at once, not {other:?}"),
    }
}

async fn next(track: &mut Track) -> Vec<Record> {
    track.batches.recv().await.unwrap().unwrap()
}

fn records(numbers: &[u64]) -> Vec<Record> {
    numbers.iter().map(|&n| Record { position: Position(n), event: kept(n) }).collect()
}

#[test]
fn there_is_a_file_of_every_earlier_version() {
    assert_eq!(i64::try_from(FILES.len()).unwrap() + 1, VERSION);
}

#[tokio::test]
async fn everything_in_an_earlier_file_is_there_and_where_it_was() {
    for file in FILES {
        let folder = lay(file);
        // The first opening brings it up to date, the second finds it so.
        opened(&folder).events.close().await;
        let storage = opened(&folder);
        let (events, deliveries) = (&storage.events, &storage.deliveries);

        let mut found = events.find(EventFilter::default()).await.unwrap();
        found.reverse();
        assert_eq!(found, records(&[1, 2, 3, 4, 5, 6]));
        assert_eq!(deliveries.parked(ParkedFilter::default()).await.unwrap(), [parked()]);
        let dead = deliveries.dead(DeadFilter::default()).await.unwrap();
        assert_eq!(dead[0], DeadLetter { number: dead[0].number, ..letter() });
        let quarantined: Vec<_> =
            dead[1..].iter().map(|letter| (&*letter.reason, &letter.event.body)).collect();
        assert_eq!(quarantined, [("dedup_conflict", &conflicting().body), ("schema_amount", &kept(7).body)]);

        let mut orders = track(&storage, &Cursor::of("orders")).await;
        assert_eq!((orders.mark, &*orders.settled), (Position(2), &[Position(4)][..]));
        assert_eq!(next(&mut orders).await, records(&[3, 4, 5, 6]));
        let mut erp = track(&storage, &Cursor::of("erp")).await;
        assert_eq!((erp.mark, &*erp.settled), (Position(1), &[Position(2), Position(3)][..]));
        assert_eq!(next(&mut erp).await, records(&[2, 3, 4, 5, 6]));
        let replays = events.replays().await.unwrap();
        assert_eq!(next(&mut track(&storage, &replays[0].cursor).await).await, records(&[1, 2]));
        assert!(events.controls().borrow()["audit"].paused);

        // Its ids are known, and what comes now goes behind it, with what is known of it now.
        assert_eq!(events.append(kept(6), OnConflict::Quarantine).await.unwrap(), Appended::Duplicate);
        let new = Event { environment: Some(Environment::Sandbox), ..kept(8) };
        events.append(new.clone(), OnConflict::Quarantine).await.unwrap();
        assert_eq!(next(&mut orders).await, [Record { position: Position(7), event: new }]);
        storage.events.close().await;
    }
}

/// Of every table its columns, and every index, view and trigger as it was written.
fn shape(folder: &TempDir) -> Vec<String> {
    let database = Connection::open(folder.path().join(FILE)).unwrap();
    let texts = |sql: &str| -> Vec<String> {
        let mut statement = database.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let columns = "SELECT printf('%s %s %s %s %s', t.name, c.cid, c.name, c.type, c.\"notnull\") \
                   FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c WHERE t.type = 'table' ORDER BY 1";
    let others = "SELECT sql FROM sqlite_schema WHERE type <> 'table' AND sql IS NOT NULL ORDER BY name";
    [texts(columns), texts(others)].concat()
}

#[tokio::test]
async fn an_earlier_file_becomes_what_a_new_one_is() {
    let new = TempDir::new().unwrap();
    opened(&new).events.close().await;
    for file in FILES {
        let folder = lay(file);
        opened(&folder).events.close().await;
        assert_eq!(shape(&folder), shape(&new));
    }
}
