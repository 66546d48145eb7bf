use prometheus::Registry;
use rusqlite::Connection;
use tempfile::TempDir;

use super::{FILE, Options, SCHEMA_VERSION, open};
use crate::storage::conformance::Backend;
use crate::storage::{Storage, StorageError};

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
async fn a_store_of_a_newer_version_is_left_alone() {
    let folder = InFolder::new();
    folder.open().await.events.close().await;
    folder.database().pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
    let refused = open(&folder.options(), &Registry::new());
    assert!(
        matches!(refused, Err(StorageError::Newer { found, known: SCHEMA_VERSION, .. }) if found == SCHEMA_VERSION + 1)
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
