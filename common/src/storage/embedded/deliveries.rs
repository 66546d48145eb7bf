//! The side of the seam for deliveries that are not finished, or ended badly.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, ToSql, params};
use sha2::{Digest as _, Sha256};

use super::Embedded;
use super::events::{Conditions, append, number_of, record_delivery};
use super::rows::{self, event_columns, event_values, history_text, millis, seq};
use super::writer::Session;
use crate::event::EventId;
use crate::storage::{
    Appended, DeadFilter, DeadLetter, Delivered, Deliveries, OnConflict, Parked, ParkedFilter, Position,
    Quarantined, StorageError,
};

/// The reason of a delivery that an operator ended.
const DROPPED: &str = "dropped";

const SELECT_PARKED: &str = concat!(
    "SELECT name, seq, due, attempts, first_attempt, history, ",
    event_columns!(),
    " FROM parked JOIN destination ON destination.number = destination"
);
const SELECT_DEAD: &str = concat!(
    "SELECT dead.number, name, seq, reason, detail, at, attempts, history, ",
    event_columns!(),
    " FROM dead LEFT JOIN destination ON destination.number = destination"
);
/// Of each subject only the earliest in the log.
const NOTHING_BEFORE: &str = "(subject IS NULL OR NOT EXISTS (SELECT 1 FROM parked AS earlier \
    WHERE earlier.destination = parked.destination AND earlier.subject = parked.subject AND earlier.seq < parked.seq))";

#[async_trait]
impl Deliveries for Embedded {
    async fn park(&self, parked: Parked) -> Result<(), StorageError> {
        self.writer.write("parking a delivery", move |session| park(&session.connection, &parked)).await
    }

    async fn due(
        &self,
        destination: &str,
        now: Timestamp,
        ordered: bool,
        limit: usize,
    ) -> Result<Vec<Parked>, StorageError> {
        let mut query = waiting(destination, ordered);
        query.and("due <= ?", Some(millis(now)));
        self.readers
            .read("reading due deliveries", move |connection| {
                query.run(connection, "ORDER BY due, seq LIMIT ?", limit, rows::parked)
            })
            .await
    }

    async fn next_due(&self, destination: &str, ordered: bool) -> Result<Option<Timestamp>, StorageError> {
        let query = waiting(destination, ordered);
        self.readers
            .read("reading the next due time", move |connection| {
                let first = query.run(connection, "ORDER BY due, seq LIMIT ?", 1, rows::parked)?;
                Ok(first.first().map(|parked| parked.due))
            })
            .await
    }

    async fn complete(
        &self,
        destination: &str,
        id: EventId,
        delivered: Delivered,
    ) -> Result<(), StorageError> {
        let name = destination.to_owned();
        self.writer
            .write("completing a parked delivery", move |session| {
                let destination = number_of(&session.connection, &name)?;
                forget(&session.connection, destination, id)?;
                record_delivery(&session.connection, destination, &delivered)
            })
            .await
    }

    async fn bury(&self, letter: DeadLetter) -> Result<(), StorageError> {
        self.writer.write("keeping a dead letter", move |session| bury(&session.connection, &letter)).await
    }

    async fn held_subjects(&self, destination: &str) -> Result<Vec<(Arc<str>, u64)>, StorageError> {
        let name = destination.to_owned();
        self.readers
            .read("reading the held subjects", move |connection| {
                let sql = "SELECT subject, COUNT(*) FROM parked JOIN destination ON destination.number = destination \
                           WHERE name = ? AND subject IS NOT NULL GROUP BY subject";
                rows::all(connection, sql, [name], |row| Ok((row.get::<_, String>(0)?.into(), rows::unsigned(row, 1)?)))
            })
            .await
    }

    async fn parked_count(&self, destination: &str) -> Result<u64, StorageError> {
        let name = destination.to_owned();
        self.readers
            .read("counting parked deliveries", move |connection| {
                let sql = "SELECT COUNT(*) FROM parked JOIN destination ON destination.number = destination WHERE name = ?";
                connection.prepare_cached(sql)?.query_row([name], |row| rows::unsigned(row, 0))
            })
            .await
    }

    async fn parked(&self, filter: ParkedFilter) -> Result<Vec<Parked>, StorageError> {
        self.readers
            .read("listing parked deliveries", move |connection| {
                let mut query = Conditions::new(SELECT_PARKED);
                query.and("name = ?", filter.destination);
                query.and("id = ?", filter.id.map(|id| *id.as_bytes()));
                let tail = format!("ORDER BY due, seq LIMIT ? OFFSET {}", filter.offset);
                query.run(connection, &tail, filter.limit, rows::parked)
            })
            .await
    }

    async fn hurry(
        &self,
        id: EventId,
        destination: Option<&str>,
        now: Timestamp,
    ) -> Result<usize, StorageError> {
        let name = destination.map(str::to_owned);
        self.writer
            .write("hurrying a parked delivery", move |session| {
                let sql = "UPDATE parked SET due = MIN(due, ?1) WHERE id = ?2 AND \
                           (?3 IS NULL OR destination = (SELECT number FROM destination WHERE name = ?3))";
                session.connection.execute(sql, params![millis(now), id.as_bytes(), name])
            })
            .await
    }

    async fn drop_parked(
        &self,
        id: EventId,
        destination: Option<&str>,
        now: Timestamp,
    ) -> Result<usize, StorageError> {
        let name = destination.map(str::to_owned);
        self.writer
            .write("dropping a parked delivery", move |session| {
                let mut query = Conditions::new(SELECT_PARKED);
                query.and("id = ?", Some(*id.as_bytes()));
                query.and("name = ?", name);
                let found = query.run(&session.connection, "LIMIT ?", 0, rows::parked)?;
                for parked in &found {
                    bury(&session.connection, &dropped(parked, now))?;
                }
                Ok(found.len())
            })
            .await
    }

    async fn dead(&self, filter: DeadFilter) -> Result<Vec<DeadLetter>, StorageError> {
        self.readers
            .read("listing dead letters", move |connection| {
                let mut query = Conditions::new(SELECT_DEAD);
                match filter.destination {
                    Some(name) if name.is_empty() => query.require("destination IS NULL"),
                    name => query.and("name = ?", name),
                }
                query.and("id = ?", filter.id.map(|id| *id.as_bytes()));
                query.and("reason = ?", filter.reason);
                query.and("at >= ?", filter.since.map(millis));
                query.and("at < ?", filter.until.map(millis));
                query.and("dead.number > ?", filter.after.map(u64::cast_signed));
                query.run(connection, "ORDER BY dead.number LIMIT ?", filter.limit, rows::dead_letter)
            })
            .await
    }

    async fn quarantined(&self) -> Result<Vec<Quarantined>, StorageError> {
        self.readers
            .read("counting quarantined events", |connection| {
                let sql = "SELECT source, COUNT(*), MIN(received_at) FROM dead WHERE destination IS NULL GROUP BY source";
                rows::all(connection, sql, [], |row| {
                    let source: String = row.get(0)?;
                    let oldest = rows::time(row, 2)?;
                    Ok(Quarantined { source: source.into(), events: rows::unsigned(row, 1)?, oldest })
                })
            })
            .await
    }

    async fn redrive(&self, numbers: &[u64], now: Timestamp) -> Result<usize, StorageError> {
        let numbers = numbers.to_vec();
        self.writer
            .write("redriving dead letters", move |session| {
                let mut found = 0;
                for number in numbers {
                    found += usize::from(redrive(session, number.cast_signed(), now)?);
                }
                Ok(found)
            })
            .await
    }

    async fn drop_dead(&self, numbers: &[u64]) -> Result<usize, StorageError> {
        let numbers = numbers.to_vec();
        self.writer
            .write("deleting dead letters", move |session| {
                let mut delete = session.connection.prepare_cached("DELETE FROM dead WHERE number = ?")?;
                numbers.iter().map(|number| delete.execute([number.cast_signed()])).sum()
            })
            .await
    }
}

fn waiting(destination: &str, ordered: bool) -> Conditions {
    let mut query = Conditions::new(SELECT_PARKED);
    query.and("destination = (SELECT number FROM destination WHERE name = ?)", Some(destination.to_owned()));
    if ordered {
        query.require(NOTHING_BEFORE);
    }
    query
}

fn park(connection: &Connection, parked: &Parked) -> rusqlite::Result<()> {
    const INSERT: &str = concat!(
        "INSERT OR REPLACE INTO parked (destination, seq, due, attempts, first_attempt, history, ",
        event_columns!(),
        ") VALUES (?, ?, ?, ?, ?, ?, ",
        event_values!(),
        ")"
    );
    let head: [&dyn ToSql; 6] = [
        &number_of(connection, &parked.destination)?,
        &seq(parked.position),
        &millis(parked.due),
        &parked.attempts,
        &parked.first_attempt.map(millis),
        &history_text(&parked.history)?,
    ];
    rows::execute_with_event(&mut *connection.prepare_cached(INSERT)?, &head, &parked.event).map(|_| ())
}

fn forget(connection: &Connection, destination: i64, id: EventId) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM parked WHERE destination = ? AND id = ?")?
        .execute(params![destination, id.as_bytes()])
        .map(|_| ())
}

fn bury(connection: &Connection, letter: &DeadLetter) -> rusqlite::Result<()> {
    const INSERT: &str = concat!(
        "INSERT OR REPLACE INTO dead (destination, seq, reason, detail, at, attempts, history, ",
        event_columns!(),
        ") VALUES (?, ?, ?, ?, ?, ?, ?, ",
        event_values!(),
        ")"
    );
    let destination = letter.destination.as_deref().map(|name| number_of(connection, name)).transpose()?;
    let head: [&dyn ToSql; 7] = [
        &destination,
        &letter.position.map(seq),
        &&*letter.reason,
        &&*letter.detail,
        &millis(letter.at),
        &letter.attempts,
        &history_text(&letter.history)?,
    ];
    rows::execute_with_event(&mut *connection.prepare_cached(INSERT)?, &head, &letter.event)?;
    destination.map_or(Ok(()), |destination| forget(connection, destination, letter.event.id))
}

fn dropped(parked: &Parked, now: Timestamp) -> DeadLetter {
    DeadLetter {
        number: 0,
        destination: Some(Arc::clone(&parked.destination)),
        position: Some(parked.position),
        event: parked.event.clone(),
        reason: DROPPED.into(),
        detail: "ended by an operator".into(),
        at: now,
        attempts: parked.attempts,
        history: parked.history.clone(),
    }
}

/// Sends one letter on its way again; false if there is none of that number.
fn redrive(session: &Session, number: i64, now: Timestamp) -> rusqlite::Result<bool> {
    let connection = &session.connection;
    let sql = format!("{SELECT_DEAD} WHERE dead.number = ?");
    let Some(letter) = connection.prepare_cached(&sql)?.query_row([number], rows::dead_letter).optional()?
    else {
        return Ok(false);
    };
    match letter.destination {
        Some(destination) => park(
            connection,
            &Parked {
                destination,
                position: letter.position.unwrap_or(Position(session.head())),
                event: letter.event,
                due: now,
                attempts: 0,
                first_attempt: None,
                history: letter.history,
            },
        )?,
        None => admit(session, letter, now)?,
    }
    connection.execute("DELETE FROM dead WHERE number = ?", [number])?;
    Ok(true)
}

/// Puts a quarantined event into the log. Where its id belongs to another event it gets one that is derived
/// from its own bytes, so that redriving the same letter twice is still one event.
fn admit(session: &Session, letter: DeadLetter, now: Timestamp) -> rusqlite::Result<()> {
    let mut event = letter.event;
    event.received_at = now;
    if append(session, &event, OnConflict::Duplicate)? == Appended::Duplicate {
        event.id = EventId::derive(&event.source, [b"redriven".as_slice(), &Sha256::digest(&event.body)]);
        append(session, &event, OnConflict::Duplicate)?;
    }
    Ok(())
}
