//! Reading beside the writer: a few read-only connections, each used by one query at a time.
//!
//! In WAL mode a reader sees the last commit before it began and never waits for the writer, nor the
//! writer for it. Queries run on tokio's blocking threads.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::IntCounter;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use crate::storage::StorageError;

/// Queries under way at once; more wait their turn.
const CONNECTIONS: usize = 4;

#[derive(Clone)]
pub(in crate::storage) struct Readers(Arc<Pool>);

struct Pool {
    idle: Mutex<Vec<Connection>>,
    turns: Semaphore,
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
        Ok(Self(Arc::new(Pool { idle: Mutex::new(idle), turns: Semaphore::new(CONNECTIONS), failures })))
    }

    /// Runs a query. A dropped future lets the query finish and throws its answer away.
    pub(in crate::storage) async fn read<T: Send + 'static>(
        &self,
        doing: &'static str,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StorageError> {
        let pool = self.0.clone();
        let turn = pool.turns.acquire().await.map_err(|_| StorageError::Closed)?;
        turn.forget();
        let ran = tokio::task::spawn_blocking(move || {
            let connection = pool.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(connection) = connection else { return Err(StorageError::Closed) };
            let result = query(&connection);
            pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            pool.turns.add_permits(1);
            result.map_err(|source| {
                pool.failures.inc();
                engine(doing, source)
            })
        });
        ran.await.map_err(|_| StorageError::Closed)?
    }

    /// No further query begins, and the connections close once the running ones are done.
    pub(in crate::storage) fn close(&self) {
        self.0.turns.close();
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// An error of the engine, as the seam reports it.
pub(in crate::storage) fn engine(doing: &'static str, source: rusqlite::Error) -> StorageError {
    StorageError::Engine { doing, source: Arc::new(source) }
}
