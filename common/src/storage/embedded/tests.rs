mod earlier;

use std::fs::File;
use std::sync::mpsc;
use std::thread::{self, ThreadId};
use std::time::Duration;

use bytes::Bytes;
use prometheus::Registry;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::time::timeout;

use super::schema::VERSION;
use super::{FILE, LOCK_FILE, LOCK_RETRY, Options, lock, open};
use crate::event::{Event, Fingerprint};
use crate::storage::conformance::{Backend, event};
use crate::storage::{
    Appended, BatchLimit, Change, Cursor, EventFilter, OnConflict, Position, Start, Storage, StorageError,
};

struct InFolder(TempDir);

impl InFolder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn options(&self) -> Options {
        Options { path: self.0.path().to_owned() }
    }

    fn database(&self) -> Connection {
        Connection::open(self.0.path().join(FILE)).unwrap()
    }
}

impl Backend for InFolder {
    async fn open(&self) -> Storage {
        open(&self.options(), &Registry::new()).unwrap()
    }
}

crate::storage_conformance!(InFolder::new());

#[tokio::test]
async fn a_second_process_on_the_same_folder_is_refused() {
    let folder = InFolder::new();
    let storage = folder.open().await;
    assert!(matches!(open(&folder.options(), &Registry::new()), Err(StorageError::Locked { .. })));
    storage.events.close().await;
    folder.open().await.events.close().await;
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "nothing else runs here")]
async fn a_folder_whose_process_is_about_to_be_gone_is_waited_for() {
    let folder = InFolder::new();
    folder.open().await.events.close().await;
    let left_behind = File::open(folder.0.path().join(LOCK_FILE)).unwrap();
    left_behind.lock().unwrap();
    thread::scope(|scope| {
        let opened = scope.spawn(|| lock(folder.0.path()));
        thread::sleep(10 * LOCK_RETRY);
        assert!(!opened.is_finished());
        drop(left_behind);
        opened.join().unwrap().unwrap();
    });
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_left_alone() {
    let folder = InFolder::new();
    folder.open().await.events.close().await;
    folder.database().pragma_update(None, "user_version", VERSION + 1).unwrap();
    let refused = open(&folder.options(), &Registry::new());
    assert!(
        matches!(refused, Err(StorageError::Newer { found, known: VERSION, .. }) if found == VERSION + 1)
    );
}

#[tokio::test]
async fn a_file_that_is_no_database_is_an_error_and_stays_as_it_is() {
    let folder = InFolder::new();
    let noise = vec![0x5a; 8192];
    std::fs::write(folder.0.path().join(FILE), &noise).unwrap();
    assert!(matches!(open(&folder.options(), &Registry::new()), Err(StorageError::Engine { .. })));
    assert_eq!(std::fs::read(folder.0.path().join(FILE)).unwrap(), noise);
}

#[tokio::test]
async fn a_write_that_is_undone_leaves_no_gap_that_swallows_the_next_event() {
    let folder = InFolder::new();
    let storage = folder.open().await;
    let mut track = match storage
        .events
        .subscribe(&Cursor::of("orders"), Start::Now, BatchLimit { records: 10, bytes: 1 << 20 })
        .await
        .unwrap()
        .changes
        .recv()
        .await
    {
        Some(Change::Gained(track)) => track,
        other => panic!("the only partition comes at once, not {other:?}"),
    };
    for key in [1, 2] {
        storage.events.quarantine(event(key), "schema_amount", "").await.unwrap();
    }
    // The second letter cannot be read, so the redrive of both is undone after the first was admitted.
    folder.database().execute("UPDATE dead SET history = 'no JSON' WHERE number = 2", []).unwrap();
    let refused = storage.deliveries.redrive(&[1, 2], event(1).received_at).await;
    assert!(matches!(refused, Err(StorageError::Engine { .. })));
    assert_eq!(*storage.events.head().borrow(), Position(0));
    storage.events.append(event(3), OnConflict::Quarantine).await.unwrap();
    let records = track.batches.recv().await.unwrap().unwrap();
    assert_eq!(records.iter().map(|record| record.event.clone()).collect::<Vec<_>>(), [event(3)]);
    storage.events.close().await;
}

#[tokio::test]
async fn payloads_are_for_this_user_only_and_the_lock_tells_processes_apart() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = InFolder::new();
    let path = folder.0.path().join("made");
    let storage = open(&Options { path: path.clone() }, &Registry::new()).unwrap();
    let holder = || super::holder(&path).unwrap();
    let first = holder();
    storage.events.append(event(1), OnConflict::Quarantine).await.unwrap();
    for file in [path.clone(), path.join(FILE), path.join(format!("{FILE}-wal"))] {
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} is open to others", file.display());
    }
    assert!(super::is_held(&path).unwrap());
    storage.events.close().await;
    assert!(!super::is_held(&path).unwrap() && !super::is_held(&path.join("nowhere")).unwrap());
    open(&Options { path: path.clone() }, &Registry::new()).unwrap().events.close().await;
    assert!(first.is_some() && holder() != first);
    assert_eq!(super::holder(&path.join("nowhere")).unwrap(), None);
    assert!(super::holder(&path.join(FILE)).is_err(), "a file is no folder");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_is_known_wherever_it_is_and_after_reopening() {
    const EVENTS: u64 = 1000;
    let folder = InFolder::new();
    let storage = folder.open().await;
    // Several groups: a sweep goes around once in one at most.
    for first in (0..EVENTS).step_by(50) {
        let mut appends = tokio::task::JoinSet::new();
        for key in first..first + 50 {
            let storage = storage.clone();
            appends.spawn(
                async move { storage.events.append(event(key), OnConflict::Quarantine).await.unwrap() },
            );
        }
        assert!(appends.join_all().await.iter().all(|appended| matches!(appended, Appended::Stored(_))));
    }
    let all_are_known = async |storage: &Storage| {
        for key in 0..EVENTS {
            let again = storage.events.append(event(key), OnConflict::Quarantine).await.unwrap();
            assert_eq!(again, Appended::Duplicate, "event {key}");
            let filter = EventFilter { id: Some(event(key).id), ..EventFilter::default() };
            assert_eq!(storage.events.find(filter).await.unwrap().len(), 1, "event {key}");
        }
    };
    all_are_known(&storage).await;
    storage.events.close().await;
    let (written, indexed): (i64, i64) = folder
        .database()
        .query_row("SELECT (SELECT COUNT(*) FROM id_bucket), seq FROM indexed", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert!(written > 0 && indexed > 0, "the test has written no ids");
    let storage = folder.open().await;
    all_are_known(&storage).await;
    storage.events.close().await;
}

#[tokio::test]
async fn a_resend_is_a_duplicate_for_as_long_as_its_first_is_kept_and_the_store_is_open() {
    let folder = InFolder::new();
    let storage = folder.open().await;
    let append = async |event| storage.events.append(event, OnConflict::Quarantine).await;
    append(event(1)).await.unwrap();
    append(event(2)).await.unwrap();
    assert_eq!(append(event(1)).await.unwrap(), Appended::Duplicate);
    let other = Event { fingerprint: Fingerprint::of(b"other content"), ..event(1) };
    assert_eq!(append(other.clone()).await.unwrap(), Appended::Conflict { is_new: true });
    let resend = storage.events.append(other, OnConflict::Duplicate).await;
    assert_eq!(resend.unwrap(), Appended::Duplicate);
    let later = event(2).received_at + Duration::from_secs(1);
    assert_eq!(
        storage.events.prune(later, Duration::ZERO, &[]).await.unwrap().events,
        1,
        "all but the newest"
    );
    assert!(matches!(append(event(1)).await.unwrap(), Appended::Stored(_)));
    storage.events.close().await;
    assert!(matches!(append(event(2)).await, Err(StorageError::Closed)));
}

#[tokio::test]
async fn an_event_that_would_be_at_another_position_than_the_next_is_not_stored() {
    let folder = InFolder::new();
    let storage = folder.open().await;
    storage.events.append(event(1), OnConflict::Quarantine).await.unwrap();
    let sql = "INSERT INTO batch SELECT 100, 100, earliest, latest, events FROM batch";
    folder.database().execute(sql, []).unwrap();
    // Nobody is answered before all of a group are written: neither of these may be told that it is stored.
    let append = |key| storage.events.append(event(key), OnConflict::Quarantine);
    let (second, third) = tokio::join!(append(2), append(3));
    for refused in [second, third] {
        assert!(matches!(refused, Err(StorageError::Engine { .. })), "{refused:?}");
    }
    folder.database().execute("DELETE FROM batch WHERE last = 100", []).unwrap();
    for key in [2, 3] {
        assert_eq!(append(key).await.unwrap(), Appended::Stored(Position(key)));
    }
    storage.events.close().await;
}

/// The bytes of somebody who wants to know when they are let go, and by which thread.
struct Owned(mpsc::Sender<ThreadId>);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        b"{}"
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.send(thread::current().id());
    }
}

#[tokio::test]
async fn a_body_is_held_while_its_event_waits_and_let_go_by_whoever_waits_for_it() {
    let folder = InFolder::new();
    let storage = folder.open().await;
    let (tell, let_go) = mpsc::channel();
    let owned = |key| Event { body: Bytes::from_owner(Owned(tell.clone())), ..event(key) };
    let append = |key| storage.events.append(owned(key), OnConflict::Quarantine);

    append(1).await.unwrap();
    assert_eq!(let_go.try_recv(), Ok(thread::current().id()));

    let database = folder.database();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(timeout(Duration::ZERO, append(2)).await.is_err());
    assert!(let_go.try_recv().is_err(), "nobody waits for it, but it will be written");
    database.execute_batch("COMMIT").unwrap();
    assert!(
        let_go.recv_timeout(Duration::from_secs(60)).is_ok_and(|writer| writer != thread::current().id())
    );
    assert_eq!(append(2).await.unwrap(), Appended::Duplicate);
    storage.events.close().await;
}
