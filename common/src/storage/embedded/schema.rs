//! The versions of the schema: a new file gets the newest one, an older file is brought up to it when it is opened.
//!
//! Promise: all steps that a file lacks and its new version number are one transaction. A process that dies in
//! between leaves the file as it was, and the version it came from still opens it. There is no way back: an older
//! chaski refuses the file, and says so.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::storage::StorageError;
use crate::storage::tables::SCHEMA;
use crate::storage::tables::readers::engine;

/// Written into the file's header, so that `file` and a SQLite shell can tell what it is: "CHSK".
const APPLICATION_ID: i32 = 0x4348_534b;

/// What makes each version out of the one before it, from version 2 on. `tables/schema.sql` is where they lead.
/// The edge does not answer while they run, so a step must not take longer the more events there are.
const STEPS: &[&str] = &[
    // 2: an event keeps the environment it came from. Of those that are there nobody knows: NULL.
    "ALTER TABLE event ADD COLUMN environment TEXT;
     ALTER TABLE parked ADD COLUMN environment TEXT;
     ALTER TABLE dead ADD COLUMN environment TEXT;",
    // 3: ids are written in generations. Those that are in `event_id` stay there until they are pruned.
    "DROP VIEW position;
     CREATE TABLE generation (number INTEGER PRIMARY KEY, sweeps INTEGER NOT NULL DEFAULT 0, upto INTEGER, filter BLOB);
     INSERT INTO generation (number) VALUES (0);
     CREATE TABLE id_bucket (number INTEGER PRIMARY KEY, entries BLOB NOT NULL);",
    // 4: events are written together, and ids behind all that are there. Those that are in `event`, and in generations of
    // another order, stay there until they are pruned.
    "ALTER TABLE generation ADD COLUMN by_bucket INTEGER NOT NULL DEFAULT 0;
     UPDATE generation SET by_bucket = 1, upto = IFNULL(upto, IFNULL((SELECT MAX(seq) FROM event), 0));
     INSERT INTO generation (number) SELECT MAX(number) + 1 FROM generation;
     CREATE TABLE batch (last INTEGER PRIMARY KEY, first INTEGER NOT NULL, earliest INTEGER NOT NULL, latest INTEGER NOT NULL, events BLOB NOT NULL);
     CREATE INDEX batch_received_at ON batch (latest, earliest, first);
     CREATE VIEW log AS SELECT seq AS last, seq AS first, received_at AS earliest, received_at AS latest, CAST(NULL AS BLOB) AS events, id, source, type, subject, time, received_at, content_type, traceparent, fingerprint, body, environment FROM event UNION ALL SELECT last, first, earliest, latest, events, CAST(NULL AS BLOB), CAST(NULL AS TEXT), CAST(NULL AS TEXT), CAST(NULL AS TEXT), CAST(NULL AS INTEGER), CAST(NULL AS INTEGER), CAST(NULL AS TEXT), CAST(NULL AS TEXT), CAST(NULL AS BLOB), CAST(NULL AS BLOB), CAST(NULL AS TEXT) FROM batch;",
];

/// The version this code reads and writes.
pub(super) const VERSION: i64 = 1 + STEPS.len() as i64;

/// Makes the file's schema the one of [`VERSION`].
pub(super) fn bring_up_to_date(connection: &mut Connection, database: &Path) -> Result<(), StorageError> {
    let found: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(|error| engine("reading the schema's version", error))?;
    let path = || database.display().to_string();
    if found > VERSION {
        return Err(StorageError::Newer { path: path(), found, known: VERSION });
    }
    match usize::try_from(found) {
        Ok(0) => take(connection, &[SCHEMA]).map_err(|error| engine("creating the schema", error)),
        Ok(version) if found < VERSION => {
            take(connection, &STEPS[version - 1..])
                .map_err(|error| engine("bringing the schema up to date", error))?;
            tracing::info!(
                path = path(),
                from = found,
                to = VERSION,
                "the store's schema was brought up to date"
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Takes all of the steps, or none.
fn take(connection: &mut Connection, steps: &[&str]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    steps.iter().try_for_each(|step| transaction.execute_batch(step))?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(connection: &Connection) -> i64 {
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_step_that_fails_undoes_those_before_it() {
        let mut connection = Connection::open_in_memory().unwrap();
        take(&mut connection, &["CREATE TABLE t (a)"]).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        let failed =
            take(&mut connection, &["ALTER TABLE t ADD COLUMN b", "ALTER TABLE nobody ADD COLUMN c"]);
        assert!(failed.is_err());
        assert_eq!(version(&connection), 1);
        assert!(connection.prepare("SELECT b FROM t").is_err());
        take(&mut connection, &["ALTER TABLE t ADD COLUMN b"]).unwrap();
        assert_eq!(version(&connection), VERSION);
    }
}
