//! Reading beside the writer: a few read-only connections, each used by one query at a time.
//!
//! In WAL mode a reader sees the last commit before it began and never waits for the writer, nor the
//! writer for it. Queries run on tokio's blocking threads.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::IntCounter;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::storage::StorageError;

/// Queries under way at once; more wait their turn.
const CONNECTIONS: usize = 4;

#[derive(Clone)]
pub(in crate::storage) struct Readers(Arc<Pool>);

struct Pool {
    idle: Mutex<Vec<Connection>>,
    turns: Arc<Semaphore>,
    failures: IntCounter,
}

impl Readers {
    /// `failures` counts queries that failed.
    pub(in crate::storage) fn open(file: &Path, failures: IntCounter) -> rusqlite::Result<Self> {
        let idle = (0..CONNECTIONS)
            .map(|_| {
                let connection = Connection::open_with_flags(
                    file,
                    OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
                )?;
                connection.busy_timeout(std::time::Duration::from_secs(5))?;
                connection.set_prepared_statement_cache_capacity(32);
                Ok(connection)
            })
            .collect::<rusqlite::Result<Vec<_>>>()?;
        Ok(Self(Arc::new(Pool {
            idle: Mutex::new(idle),
            turns: Arc::new(Semaphore::new(CONNECTIONS)),
            failures,
        })))
    }

    /// Runs a query. A dropped future lets the query finish and throws its answer away.
    pub(in crate::storage) async fn read<T: Send + 'static>(
        &self,
        doing: &'static str,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StorageError> {
        let pool = self.0.clone();
        let turn = Arc::clone(&pool.turns).acquire_owned().await.map_err(|_| StorageError::Closed)?;
        let ran = tokio::task::spawn_blocking(move || {
            let lent = Lent::take(&pool, turn);
            let connection = lent.connection.as_ref().ok_or(StorageError::Closed)?;
            query(connection).map_err(|source| {
                pool.failures.inc();
                engine(doing, source)
            })
        });
        ran.await.map_err(StorageError::unfinished)?
    }

    /// No further query begins, and the connections close once the running ones are done.
    pub(in crate::storage) fn close(&self) {
        self.0.turns.close();
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A connection on loan, and the turn to use it; both go back even if the query panics.
struct Lent<'a> {
    pool: &'a Pool,
    /// There until it goes back.
    connection: Option<Connection>,
    _turn: OwnedSemaphorePermit,
}

impl<'a> Lent<'a> {
    fn take(pool: &'a Pool, turn: OwnedSemaphorePermit) -> Self {
        let connection = pool.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self { pool, connection, _turn: turn }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(self.connection.take());
    }
}

/// An error of the engine, as the seam reports it.
pub(in crate::storage) fn engine(doing: &'static str, source: rusqlite::Error) -> StorageError {
    StorageError::Engine { doing, cause: Arc::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_query_that_panics_may_be_asked_again() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("store.db");
        Connection::open(&file).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
        let readers = Readers::open(&file, IntCounter::new("failures", "x").unwrap()).unwrap();
        for _ in 0..2 * CONNECTIONS {
            let panicked =
                readers.read("panicking", |_| -> rusqlite::Result<()> { panic!("on purpose") }).await;
            let error = panicked.unwrap_err();
            assert!(matches!(error, StorageError::Panicked) && error.is_transient(), "{error}");
        }
        let count =
            |connection: &Connection| connection.query_row("SELECT COUNT(*) FROM t", [], |row| row.get(0));
        assert_eq!(readers.read::<i64>("counting", count).await.unwrap(), 0);
        readers.close();
        let closed = readers.read::<i64>("counting", count).await;
        assert!(matches!(closed, Err(StorageError::Closed)));
    }
}
