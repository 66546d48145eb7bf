//! Parked and dead deliveries as rows: how they are written, inside whatever transaction the caller has open,
//! and how they are asked for.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, ToSql, params};

use super::query::Conditions;
use super::readers::Readers;
use super::rows::{self, event_columns, event_values, history_text, millis, seq};
use crate::event::EventId;
use crate::storage::{
    DeadFilter, DeadLetter, Delivered, KeptLetters, Parked, ParkedFilter, Position, Quarantined, StorageError,
};

/// Deliveries recorded by one statement: what a statement costs is shared by its rows.
const ROWS_AT_ONCE: usize = 32;
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

/// The destination's number, given at first sight.
pub(in crate::storage) fn number_of(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    let known = connection
        .prepare_cached("SELECT number FROM destination WHERE name = ?")?
        .query_row([name], |row| row.get(0))
        .optional()?;
    if let Some(number) = known {
        return Ok(number);
    }
    connection.execute("INSERT INTO destination (name) VALUES (?)", [name])?;
    Ok(connection.last_insert_rowid())
}

/// Records that a destination took these events, replacing what earlier deliveries of them left. In the order of
/// their positions it costs least.
pub(in crate::storage) fn record_deliveries(
    connection: &Connection,
    destination: i64,
    delivered: &[Delivered],
) -> rusqlite::Result<()> {
    let (many, rest) = delivered.as_chunks::<ROWS_AT_ONCE>();
    insert_delivered(connection, destination, many.iter().map(<[_; ROWS_AT_ONCE]>::as_slice))?;
    insert_delivered(connection, destination, rest.chunks(1))
}

/// Inserts groups of rows, all of one length, with one statement per group.
fn insert_delivered<'a>(
    connection: &Connection,
    destination: i64,
    groups: impl ExactSizeIterator<Item = &'a [Delivered]>,
) -> rusqlite::Result<()> {
    let mut groups = groups.peekable();
    let Some(first) = groups.peek() else { return Ok(()) };
    let rows = vec!["(?1, ?, ?, ?)"; first.len()].join(", ");
    let sql = format!("INSERT OR REPLACE INTO delivered (destination, seq, at, attempts) VALUES {rows}");
    let mut statement = connection.prepare_cached(&sql)?;
    statement.raw_bind_parameter(1, destination)?;
    for group in groups {
        for (row, delivered) in group.iter().enumerate() {
            statement.raw_bind_parameter(3 * row + 2, seq(delivered.position))?;
            statement.raw_bind_parameter(3 * row + 3, millis(delivered.at))?;
            statement.raw_bind_parameter(3 * row + 4, delivered.attempts)?;
        }
        statement.raw_execute()?;
    }
    Ok(())
}

/// Which partitions' deliveries are meant; none stands for all.
pub(in crate::storage) type Partitions = Option<Vec<u32>>;

/// The deliveries that are parked at a destination.
fn parked_at(sql: &str, destination: &str, partitions: &Partitions) -> Conditions {
    let mut query = Conditions::new(sql);
    query.and("destination = (SELECT number FROM destination WHERE name = ?)", Some(destination.to_owned()));
    if let Some(partitions) = partitions {
        let step = Position::new(1, 0).0;
        let list = partitions.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        query.require(&format!("seq / {step} IN ({list})"));
    }
    query
}

fn waiting(destination: &str, partitions: &Partitions, ordered: bool) -> Conditions {
    let mut query = parked_at(SELECT_PARKED, destination, partitions);
    if ordered {
        query.require(NOTHING_BEFORE);
    }
    query
}

/// Of the positions between two those that are parked, dead or known to be delivered.
pub(in crate::storage) fn settled_elsewhere(
    connection: &Connection,
    destination: &str,
    after: Position,
    before: Position,
) -> rusqlite::Result<Vec<Position>> {
    let sql = "SELECT seq FROM parked WHERE destination = (SELECT number FROM destination WHERE name = ?1) AND seq > ?2 AND seq < ?3 \
               UNION SELECT seq FROM dead WHERE destination = (SELECT number FROM destination WHERE name = ?1) AND seq > ?2 AND seq < ?3 \
               UNION SELECT seq FROM delivered WHERE destination = (SELECT number FROM destination WHERE name = ?1) AND seq > ?2 AND seq < ?3";
    rows::all(connection, sql, params![destination, seq(after), seq(before)], |row| rows::position(row, 0))
}

/// The letter of this number.
pub(in crate::storage) fn letter(
    connection: &Connection,
    number: u64,
) -> rusqlite::Result<Option<DeadLetter>> {
    let sql = format!("{SELECT_DEAD} WHERE dead.number = ?");
    connection.prepare_cached(&sql)?.query_row([number.cast_signed()], rows::dead_letter).optional()
}

/// What is parked of an event, at one destination or at all.
pub(in crate::storage) fn parked_of(
    connection: &Connection,
    id: EventId,
    destination: Option<String>,
) -> rusqlite::Result<Vec<Parked>> {
    let mut query = Conditions::new(SELECT_PARKED);
    query.and("id = ?", Some(*id.as_bytes()));
    query.and("name = ?", destination);
    query.run(connection, "LIMIT ?", 0, rows::parked)
}

/// Parks a delivery, in place of what was parked for the same destination and event.
pub(in crate::storage) fn park(connection: &Connection, parked: &Parked) -> rusqlite::Result<()> {
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

/// Whether something of an event is parked at a destination.
pub(in crate::storage) fn is_parked(
    connection: &Connection,
    destination: &str,
    id: EventId,
) -> rusqlite::Result<bool> {
    let sql =
        "SELECT 1 FROM parked WHERE destination = (SELECT number FROM destination WHERE name = ?) AND id = ?";
    connection.prepare_cached(sql)?.exists(params![destination, id.as_bytes()])
}

/// A delivery is not parked any more.
pub(in crate::storage) fn forget(
    connection: &Connection,
    destination: i64,
    id: EventId,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM parked WHERE destination = ? AND id = ?")?
        .execute(params![destination, id.as_bytes()])
        .map(|_| ())
}

/// Keeps a letter, in place of one for the same destination, event and content. Its number is given here,
/// unless it has one.
pub(in crate::storage) fn keep_letter(connection: &Connection, letter: &DeadLetter) -> rusqlite::Result<()> {
    const INSERT: &str = concat!(
        "INSERT OR REPLACE INTO dead (number, destination, seq, reason, detail, at, attempts, history, ",
        event_columns!(),
        ") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ",
        event_values!(),
        ")"
    );
    let number = (letter.number != 0).then_some(letter.number.cast_signed());
    let destination = letter.destination.as_deref().map(|name| number_of(connection, name)).transpose()?;
    let head: [&dyn ToSql; 8] = [
        &number,
        &destination,
        &letter.position.map(seq),
        &&*letter.reason,
        &&*letter.detail,
        &millis(letter.at),
        &letter.attempts,
        &history_text(&letter.history)?,
    ];
    rows::execute_with_event(&mut *connection.prepare_cached(INSERT)?, &head, &letter.event).map(|_| ())
}

/// The letter that an operator makes of a parked delivery.
pub(in crate::storage) fn dropped(parked: &Parked, now: Timestamp) -> DeadLetter {
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

/// The questions of the seam that only read.
impl Readers {
    pub(in crate::storage) async fn due(
        &self,
        destination: &str,
        partitions: Partitions,
        now: Timestamp,
        ordered: bool,
        limit: usize,
    ) -> Result<Vec<Parked>, StorageError> {
        let mut query = waiting(destination, &partitions, ordered);
        query.and("due <= ?", Some(millis(now)));
        self.read("reading due deliveries", move |connection| {
            query.run(connection, "ORDER BY due, seq LIMIT ?", limit, rows::parked)
        })
        .await
    }

    pub(in crate::storage) async fn next_due(
        &self,
        destination: &str,
        partitions: Partitions,
        ordered: bool,
    ) -> Result<Option<Timestamp>, StorageError> {
        let query = waiting(destination, &partitions, ordered);
        self.read("reading the next due time", move |connection| {
            let first = query.run(connection, "ORDER BY due, seq LIMIT ?", 1, rows::parked)?;
            Ok(first.first().map(|parked| parked.due))
        })
        .await
    }

    pub(in crate::storage) async fn held_subjects(
        &self,
        destination: &str,
        partitions: Partitions,
    ) -> Result<Vec<(Arc<str>, u64)>, StorageError> {
        let mut query = parked_at("SELECT subject, COUNT(*) FROM parked", destination, &partitions);
        query.require("subject IS NOT NULL");
        self.read("reading the held subjects", move |connection| {
            query.run_all(connection, "GROUP BY subject", |row| {
                Ok((row.get::<_, String>(0)?.into(), rows::unsigned(row, 1)?))
            })
        })
        .await
    }

    pub(in crate::storage) async fn parked_count(
        &self,
        destination: &str,
        partitions: Partitions,
    ) -> Result<u64, StorageError> {
        let query = parked_at("SELECT COUNT(*) FROM parked", destination, &partitions);
        self.read("counting parked deliveries", move |connection| {
            let counts = query.run_all(connection, "", |row| rows::unsigned(row, 0))?;
            Ok(counts.first().copied().unwrap_or(0))
        })
        .await
    }

    pub(in crate::storage) async fn parked(&self, filter: ParkedFilter) -> Result<Vec<Parked>, StorageError> {
        self.read("listing parked deliveries", move |connection| {
            let mut query = Conditions::new(SELECT_PARKED);
            query.and("name = ?", filter.destination);
            query.and("id = ?", filter.id.map(|id| *id.as_bytes()));
            let tail = format!("ORDER BY due, seq LIMIT ? OFFSET {}", filter.offset);
            query.run(connection, &tail, filter.limit, rows::parked)
        })
        .await
    }

    pub(in crate::storage) async fn dead(&self, filter: DeadFilter) -> Result<Vec<DeadLetter>, StorageError> {
        self.read("listing dead letters", move |connection| {
            let mut query = Conditions::new(SELECT_DEAD);
            match filter.destination {
                Some(name) if name.is_empty() => query.require("destination IS NULL"),
                name => query.and("destination = (SELECT number FROM destination WHERE name = ?)", name),
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

    pub(in crate::storage) async fn quarantined(&self) -> Result<Vec<Quarantined>, StorageError> {
        self.read("counting quarantined events", |connection| {
                let sql = "SELECT source, COUNT(*), MIN(received_at) FROM dead WHERE destination IS NULL GROUP BY source";
                rows::all(connection, sql, [], |row| {
                    let source: String = row.get(0)?;
                    let oldest = rows::time(row, 2)?;
                    Ok(Quarantined { source: source.into(), events: rows::unsigned(row, 1)?, oldest })
                })
            })
            .await
    }

    pub(in crate::storage) async fn letters_before(
        &self,
        at: Timestamp,
    ) -> Result<Vec<KeptLetters>, StorageError> {
        self.read("counting letters", move |connection| {
            let sql = "SELECT destination.name, source, reason, COUNT(*) \
                       FROM dead LEFT JOIN destination ON destination.number = dead.destination \
                       WHERE at < ? GROUP BY destination.name, source, reason";
            rows::all(connection, sql, [millis(at)], |row| {
                Ok(KeptLetters {
                    destination: row.get(0)?,
                    source: row.get(1)?,
                    reason: row.get(2)?,
                    letters: rows::unsigned(row, 3)?,
                })
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_are_recorded_whatever_their_number_and_the_last_word_stands() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(crate::storage::tables::SCHEMA).unwrap();
        let destination = number_of(&connection, "erp").unwrap();
        for (attempts, count) in (1..).zip([0, 1, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 100]) {
            let at = Timestamp::from_second(i64::from(attempts)).unwrap();
            let made = |n: usize| Delivered { position: Position(n as u64), at, attempts };
            let delivered: Vec<Delivered> = (1..=count).map(made).collect();
            record_deliveries(&connection, destination, &delivered).unwrap();
            let sql = "SELECT seq, at, attempts FROM delivered WHERE destination = ? ORDER BY seq";
            let recorded = rows::all(&connection, sql, [destination], |row| {
                Ok(Delivered {
                    position: rows::position(row, 0)?,
                    at: rows::time(row, 1)?,
                    attempts: rows::unsigned(row, 2)?,
                })
            });
            assert_eq!(recorded.unwrap(), delivered);
        }
    }
}
