//! Between Rust values and rows: one place that knows the columns.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::types::{FromSqlError, ToSql, Type};
use rusqlite::{Params, Row, Statement};

use crate::event::{Environment, Event, EventId, Fingerprint};
use crate::storage::{DeadLetter, Failure, Parked, Position};

/// The event's columns, in the order of [`bind_event`] and [`event`]; the same in each table that holds one.
macro_rules! event_columns {
    () => {
        "id, source, type, subject, time, received_at, content_type, traceparent, fingerprint, body, environment"
    };
}

/// As many placeholders as the event has columns.
macro_rules! event_values {
    () => {
        "?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?"
    };
}

pub(in crate::storage) use {event_columns, event_values};

pub(in crate::storage) fn millis(at: Timestamp) -> i64 {
    at.as_millisecond()
}

pub(in crate::storage) fn moment(millis: i64, column: usize) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(millis)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Integer, Box::new(error)))
}

/// A time column.
pub(in crate::storage) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    moment(row.get(column)?, column)
}

/// A time column that may be NULL.
pub(in crate::storage) fn optional_time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    row.get::<_, Option<i64>>(column)?.map(|millis| moment(millis, column)).transpose()
}

fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<Arc<str>> {
    row.get_ref(column)?.as_str().map(Arc::from).map_err(|error| wrong(column, error))
}

fn optional_text(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Arc<str>>> {
    row.get_ref(column)?
        .as_str_or_null()
        .map(|value| value.map(Arc::from))
        .map_err(|error| wrong(column, error))
}

/// A column that may be NULL. A word nobody knows is an error: what is play money must not be taken for real.
fn environment(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Environment>> {
    let name = row.get_ref(column)?.as_str_or_null().map_err(|error| wrong(column, error))?;
    name.map(|name| Environment::named(name).ok_or_else(|| wrong(column, FromSqlError::InvalidType)))
        .transpose()
}

fn wrong(column: usize, error: FromSqlError) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

/// A SQLite integer as a position. Positions are given by SQLite, so they are never negative.
pub(in crate::storage) fn position(row: &Row<'_>, column: usize) -> rusqlite::Result<Position> {
    row.get::<_, i64>(column).map(|seq| Position(seq.unsigned_abs()))
}

pub(in crate::storage) fn seq(position: Position) -> i64 {
    i64::try_from(position.0).unwrap_or(i64::MAX)
}

/// An unsigned column: a count, a number given by SQLite.
pub(in crate::storage) fn unsigned<T: TryFrom<i64> + Default>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    row.get::<_, i64>(column).map(|value| T::try_from(value).unwrap_or_default())
}

/// Runs a statement whose last parameters are an event's columns, after `head`.
pub(in crate::storage) fn execute_with_event(
    statement: &mut Statement<'_>,
    head: &[&dyn ToSql],
    event: &Event,
) -> rusqlite::Result<usize> {
    for (index, value) in head.iter().enumerate() {
        statement.raw_bind_parameter(index + 1, value)?;
    }
    bind_event(statement, head.len() + 1, event)?;
    statement.raw_execute()
}

/// Binds an event's columns to the parameters from `first` on.
fn bind_event(statement: &mut Statement<'_>, first: usize, event: &Event) -> rusqlite::Result<()> {
    statement.raw_bind_parameter(first, event.id.as_bytes().as_slice())?;
    statement.raw_bind_parameter(first + 1, &*event.source)?;
    statement.raw_bind_parameter(first + 2, &*event.kind)?;
    statement.raw_bind_parameter(first + 3, event.subject.as_deref())?;
    statement.raw_bind_parameter(first + 4, event.time.map(millis))?;
    statement.raw_bind_parameter(first + 5, millis(event.received_at))?;
    statement.raw_bind_parameter(first + 6, event.content_type.as_deref())?;
    statement.raw_bind_parameter(first + 7, event.traceparent.as_deref())?;
    statement.raw_bind_parameter(first + 8, event.fingerprint.as_bytes().as_slice())?;
    statement.raw_bind_parameter(first + 9, &*event.body)?;
    statement.raw_bind_parameter(first + 10, event.environment.map(Environment::name))
}

/// The event whose columns begin at `first`.
fn event(row: &Row<'_>, first: usize) -> rusqlite::Result<Event> {
    Ok(Event {
        id: EventId::from_bytes(row.get(first)?),
        source: text(row, first + 1)?,
        kind: text(row, first + 2)?,
        subject: optional_text(row, first + 3)?,
        time: optional_time(row, first + 4)?,
        received_at: time(row, first + 5)?,
        content_type: optional_text(row, first + 6)?,
        traceparent: optional_text(row, first + 7)?,
        fingerprint: Fingerprint::from_bytes(row.get(first + 8)?),
        body: Bytes::copy_from_slice(
            row.get_ref(first + 9)?.as_blob().map_err(|error| wrong(first + 9, error))?,
        ),
        environment: environment(row, first + 10)?,
    })
}

/// `name, seq, due, attempts, first_attempt, history` and the event's columns.
pub(in crate::storage) fn parked(row: &Row<'_>) -> rusqlite::Result<Parked> {
    Ok(Parked {
        destination: text(row, 0)?,
        position: position(row, 1)?,
        due: time(row, 2)?,
        attempts: unsigned(row, 3)?,
        first_attempt: optional_time(row, 4)?,
        history: history(row, 5)?,
        event: event(row, 6)?,
    })
}

/// `number, name, seq, reason, detail, at, attempts, history` and the event's columns.
pub(in crate::storage) fn dead_letter(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    Ok(DeadLetter {
        number: unsigned(row, 0)?,
        destination: optional_text(row, 1)?,
        position: row.get::<_, Option<i64>>(2)?.map(|seq| Position(seq.unsigned_abs())),
        reason: text(row, 3)?,
        detail: text(row, 4)?,
        at: time(row, 5)?,
        attempts: unsigned(row, 6)?,
        history: history(row, 7)?,
        event: event(row, 8)?,
    })
}

fn history(row: &Row<'_>, column: usize) -> rusqlite::Result<Vec<Failure>> {
    let text = row.get_ref(column)?.as_str().map_err(|error| wrong(column, error))?;
    serde_json::from_str(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}

/// A history as its column holds it.
pub(in crate::storage) fn history_text(history: &[Failure]) -> rusqlite::Result<String> {
    serde_json::to_string(history).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// All rows of a query.
pub(in crate::storage) fn all<T>(
    connection: &rusqlite::Connection,
    sql: &str,
    parameters: impl Params,
    from_row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    connection.prepare_cached(sql)?.query_map(parameters, from_row)?.collect()
}
