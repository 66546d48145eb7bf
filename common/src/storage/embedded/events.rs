//! The log's side of the seam.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, ToSql, params};
use tokio::sync::{mpsc, watch};

use super::Embedded;
use super::checkpoint::length;
use super::log::Entry;
use super::subscription::Feed;
use super::writer::Session;
use super::{ids, log};
use crate::event::{Event, EventId, Fingerprint};
use crate::storage::tables::deliveries::{number_of, record_deliveries};
use crate::storage::tables::readers::engine;
use crate::storage::tables::rows::{self, event_columns, event_values, millis, seq};
use crate::storage::{
    Ages, Appended, BatchLimit, Census, Change, Controls, Cursor, Delivered, EventFilter, EventLog, Fate,
    FateState, Left, OnConflict, Position, Progress, Pruned, Record, Replay, Start, StorageError,
    Subscription, Track,
};
use crate::storage::{CONFLICT, CONFLICT_DETAIL};

/// Events deleted in one write, about, since whole rows go: few enough that no accept waits for it.
const PRUNE_EVENTS: usize = 500;
/// Generations of ids in one write: several times what so many events leave behind.
const PRUNE_GENERATIONS: i64 = 63;

#[async_trait]
impl EventLog for Embedded {
    async fn append(&self, event: Event, on_conflict: OnConflict) -> Result<Appended, StorageError> {
        // Once nothing is written any more, nothing is answered for either.
        if self.writer.is_writable()
            && let Some(stored) = self.durable.find(event.id)
            && is_duplicate(stored, event.fingerprint, on_conflict)
        {
            return Ok(Appended::Duplicate);
        }
        let entry = Entry::of(event).map_err(|error| engine("storing an event", error))?;
        self.writer.append(Box::new(entry), on_conflict).await
    }

    async fn quarantine(&self, event: Event, reason: &str, detail: &str) -> Result<bool, StorageError> {
        let (reason, detail) = (reason.to_owned(), detail.to_owned());
        let weight = event.weight_bytes();
        self.writer
            .write_or_refuse("keeping a quarantined event", weight, move |session| {
                quarantine(session, &event, &reason, &detail)
            })
            .await
    }

    fn head(&self) -> watch::Receiver<Position> {
        self.head.subscribe()
    }

    async fn subscribe(
        &self,
        cursor: &Cursor,
        start: Start,
        limit: BatchLimit,
    ) -> Result<Subscription, StorageError> {
        let (opened, destination) = (cursor.clone(), Arc::clone(&cursor.destination));
        let (mark, until, settled) = self
            .writer
            .control(
                "opening a cursor",
                move |session| open_cursor(session, &opened, start),
                move |controls, _| _ = controls.entry(destination).or_default(),
            )
            .await?;
        let (batches, receiver) = mpsc::channel(1);
        let feed = Feed {
            readers: self.readers.clone(),
            head: self.head.subscribe(),
            closing: self.closing.clone(),
            limit,
            until,
            at: mark,
            batches,
        };
        tokio::spawn(feed.run());
        let (announce, changes) = mpsc::channel(1);
        // The only partition has the only reader: it comes at once and never goes. There is room for it.
        let track = Track { partition: mark.partition(), mark, settled, until, batches: receiver };
        let _ = announce.try_send(Change::Gained(track));
        Ok(Subscription { changes })
    }

    async fn settle(
        &self,
        cursor: &Cursor,
        mark: Position,
        delivered: Vec<Delivered>,
    ) -> Result<(), StorageError> {
        let cursor = cursor.clone();
        self.writer
            .write("settling", move |session| {
                let destination = number_of(&session.connection, &cursor.destination)?;
                record_deliveries(&session.connection, destination, &delivered)?;
                session
                    .connection
                    .prepare_cached(
                        "UPDATE cursor SET mark = MAX(mark, ?) WHERE destination = ? AND replay = ?",
                    )?
                    .execute(params![seq(mark), destination, cursor.replay.cast_signed()])?;
                Ok(())
            })
            .await
    }

    async fn begin_replay(
        &self,
        destination: &str,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<(Cursor, u64), StorageError> {
        let name: Arc<str> = destination.into();
        self.writer
            .control(
                "beginning a replay",
                move |session| begin_replay(session, &name, from, to),
                |controls, (cursor, _)| {
                    let control = controls.entry(Arc::clone(&cursor.destination)).or_default();
                    control.replays.insert(cursor.replay);
                },
            )
            .await
    }

    async fn replays(&self) -> Result<Vec<Replay>, StorageError> {
        self.readers
            .read("listing replays", |connection| {
                let sql = "SELECT name, replay, mark, until FROM cursor JOIN destination ON number = destination \
                           WHERE until IS NOT NULL ORDER BY replay";
                rows::all(connection, sql, [], |row| {
                    let destination: String = row.get(0)?;
                    let cursor = Cursor { destination: destination.into(), replay: rows::unsigned(row, 1)? };
                    Ok(Replay { cursor, mark: rows::position(row, 2)?, until: rows::position(row, 3)? })
                })
            })
            .await
    }

    async fn end_replay(&self, cursor: &Cursor) -> Result<(), StorageError> {
        let (cursor, ended) = (cursor.clone(), cursor.clone());
        self.writer
            .control(
                "ending a replay",
                move |session| {
                    let destination = number_of(&session.connection, &cursor.destination)?;
                    session.connection.execute(
                        "DELETE FROM cursor WHERE destination = ? AND replay = ? AND until IS NOT NULL",
                        params![destination, cursor.replay.cast_signed()],
                    )
                },
                move |controls, _| {
                    controls.entry(ended.destination).or_default().replays.remove(&ended.replay);
                },
            )
            .await
            .map(|_| ())
    }

    async fn set_paused(&self, destination: &str, paused: bool) -> Result<(), StorageError> {
        let (name, said) = (destination.to_owned(), Arc::from(destination));
        self.writer
            .control(
                "pausing or resuming",
                move |session| {
                    let destination = number_of(&session.connection, &name)?;
                    session.connection.execute(
                        "UPDATE destination SET paused = ? WHERE number = ?",
                        params![paused, destination],
                    )
                },
                move |controls, _| controls.entry(said).or_default().paused = paused,
            )
            .await
            .map(|_| ())
    }

    fn controls(&self) -> watch::Receiver<Controls> {
        self.writer.controls()
    }

    async fn progress(&self) -> Result<Vec<Progress>, StorageError> {
        let head = *self.head.borrow();
        self.readers.read("reading the progress", move |connection| progress(connection, head)).await
    }

    async fn find(&self, filter: EventFilter) -> Result<Vec<Record>, StorageError> {
        self.readers.read("finding events", move |connection| find(connection, &filter)).await
    }

    async fn fates(&self, id: EventId) -> Result<Vec<Fate>, StorageError> {
        self.readers.read("finding what became of an event", move |connection| fates(connection, id)).await
    }

    async fn prune(
        &self,
        now: Timestamp,
        retention: Duration,
        destinations: &[Arc<str>],
    ) -> Result<Pruned, StorageError> {
        let (ages, destinations) = (Ages::at(now, retention), destinations.to_vec());
        self.writer.write("pruning", move |session| prune(session, ages, &destinations)).await
    }

    async fn census(&self) -> Result<Census, StorageError> {
        let head = self.head.borrow().0;
        let bytes = self.files.iter().map(|file| length(file)).sum();
        self.readers
            .read("counting", move |connection| {
                let oldest = log::first(connection)?;
                let events = oldest.map_or(0, |(first, _)| (head + 1).saturating_sub(first.0));
                Ok(Census { events, oldest: oldest.map(|(_, at)| at), bytes })
            })
            .await
    }

    fn is_writable(&self) -> bool {
        self.writer.is_writable()
    }

    async fn close(&self) {
        self.shut().await;
    }
}

/// Whether an event says nothing new beside the stored one that has its id.
fn is_duplicate(stored: Fingerprint, found: Fingerprint, on_conflict: OnConflict) -> bool {
    stored == found || on_conflict == OnConflict::Duplicate
}

/// Puts an event into the log, unless its id is there.
pub(super) fn append(
    session: &Session,
    event: &Entry,
    on_conflict: OnConflict,
) -> rusqlite::Result<Appended> {
    match session.known(event.id)? {
        None => session.store(event).map(Appended::Stored),
        Some(stored) if is_duplicate(stored, event.fingerprint, on_conflict) => Ok(Appended::Duplicate),
        Some(_) => {
            let is_new = quarantine(session, &event.event()?, CONFLICT, CONFLICT_DETAIL)?;
            Ok(Appended::Conflict { is_new })
        }
    }
}

/// False if these bytes are kept already, be it as a letter or, once that was redriven, in the log.
fn quarantine(session: &Session, event: &Event, reason: &str, detail: &str) -> rusqlite::Result<bool> {
    for id in [event.id, EventId::of_redriven(event)] {
        if session.known(id)? == Some(event.fingerprint) {
            return Ok(false);
        }
    }
    const INSERT: &str = concat!(
        "INSERT INTO dead (reason, detail, at, attempts, history, ",
        event_columns!(),
        ") VALUES (?, ?, ?, ?, ?, ",
        event_values!(),
        ") ON CONFLICT DO NOTHING"
    );
    let mut insert = session.connection.prepare_cached(INSERT)?;
    let head: [&dyn ToSql; 5] = [&reason, &detail, &millis(event.received_at), &0, &"[]"];
    Ok(rows::execute_with_event(&mut insert, &head, event)? == 1)
}

type OpenCursor = (Position, Option<Position>, Vec<Position>);

fn open_cursor(session: &Session, cursor: &Cursor, start: Start) -> rusqlite::Result<OpenCursor> {
    let connection = &session.connection;
    let destination = number_of(connection, &cursor.destination)?;
    if cursor.replay == 0 {
        let head = Position(session.head());
        let before =
            |first: Option<Position>| first.map_or(head, |first| Position(first.0.saturating_sub(1)));
        let mark = match start {
            Start::Now => head,
            Start::Beginning => before(log::first(connection)?.map(|(first, _)| first)),
            Start::At(at) => before(log::first_since(connection, at)?),
        };
        let sql = "INSERT INTO cursor (destination, replay, mark) VALUES (?, 0, ?) ON CONFLICT DO NOTHING";
        connection.execute(sql, params![destination, seq(mark)])?;
    }
    let (mark, until) = connection.query_row(
        "SELECT mark, until FROM cursor WHERE destination = ? AND replay = ?",
        params![destination, cursor.replay.cast_signed()],
        |row| {
            Ok((
                rows::position(row, 0)?,
                row.get::<_, Option<i64>>(1)?.map(|seq| Position(seq.unsigned_abs())),
            ))
        },
    )?;
    let settled = if cursor.replay == 0 { settled_past(connection, destination, mark)? } else { Vec::new() };
    Ok((mark, until, settled))
}

fn settled_past(
    connection: &Connection,
    destination: i64,
    mark: Position,
) -> rusqlite::Result<Vec<Position>> {
    let sql = "SELECT seq FROM delivered WHERE destination = ?1 AND seq > ?2 \
               UNION SELECT seq FROM parked WHERE destination = ?1 AND seq > ?2 \
               UNION SELECT seq FROM dead WHERE destination = ?1 AND seq > ?2 ORDER BY seq";
    rows::all(connection, sql, params![destination, seq(mark)], |row| rows::position(row, 0))
}

fn begin_replay(
    session: &Session,
    name: &Arc<str>,
    from: Timestamp,
    to: Timestamp,
) -> rusqlite::Result<(Cursor, u64)> {
    let connection = &session.connection;
    let destination = number_of(connection, name)?;
    let head = seq(Position(session.head()));
    let (mark, until, count) = log::span(connection, from, to)?
        .map_or((head, head, 0), |(first, last, count)| (seq(first) - 1, seq(last), count));
    let replay: i64 =
        connection.query_row("SELECT IFNULL(MAX(replay), 0) + 1 FROM cursor", [], |row| row.get(0))?;
    connection.execute(
        "INSERT INTO cursor (destination, replay, mark, until) VALUES (?, ?, ?, ?)",
        params![destination, replay, mark, until],
    )?;
    Ok((Cursor { destination: Arc::clone(name), replay: replay.unsigned_abs() }, count))
}

/// What operators have said before the store was opened.
pub(super) fn controls(connection: &Connection) -> rusqlite::Result<Controls> {
    let sql = "SELECT name, paused, replay FROM destination \
               LEFT JOIN cursor ON number = destination AND until IS NOT NULL";
    let mut controls = Controls::new();
    for (name, paused, replay) in rows::all(connection, sql, [], |row| {
        Ok((row.get::<_, String>(0)?, row.get(1)?, row.get::<_, Option<i64>>(2)?))
    })? {
        let control = controls.entry(name.into()).or_default();
        control.paused = paused;
        control.replays.extend(replay.map(i64::unsigned_abs));
    }
    Ok(controls)
}

fn progress(connection: &Connection, head: Position) -> rusqlite::Result<Vec<Progress>> {
    let sql = "SELECT name, mark, paused, \
                 (SELECT COUNT(*) FROM parked WHERE parked.destination = destination.number), \
                 (SELECT COUNT(*) FROM dead WHERE dead.destination = destination.number), \
                 (SELECT MIN(at) FROM dead WHERE dead.destination = destination.number) \
               FROM destination JOIN cursor ON number = cursor.destination WHERE replay = 0 ORDER BY name";
    rows::all(connection, sql, [], |row| {
        let name: String = row.get(0)?;
        let mark = rows::position(row, 1)?;
        Ok(Progress {
            destination: name.into(),
            mark,
            lag: head.0.saturating_sub(mark.0),
            oldest_unsettled: log::next(connection, mark, |_, kept| kept.received_at())?,
            paused: row.get(2)?,
            parked: rows::unsigned(row, 3)?,
            dead: rows::unsigned(row, 4)?,
            oldest_dead: rows::optional_time(row, 5)?,
        })
    })
}

fn find(connection: &Connection, filter: &EventFilter) -> rusqlite::Result<Vec<Record>> {
    let Some(id) = filter.id else { return log::find(connection, filter) };
    let Some(position) = ids::position(connection, id)? else { return Ok(Vec::new()) };
    let found = log::at(connection, position, |kept| {
        let is_it = kept.is_asked_for(filter) && filter.before.is_none_or(|before| position < before);
        is_it.then(|| kept.event(None)).transpose()
    })?;
    Ok(found.flatten().map(|event| Record { position, event }).into_iter().collect())
}

fn fates(connection: &Connection, id: EventId) -> rusqlite::Result<Vec<Fate>> {
    let sql = "SELECT name, mark, ?2, delivered.at, delivered.attempts, \
                 parked.due, parked.attempts, IFNULL(json_extract(parked.history, '$[#-1].result'), 'behind'), \
                 dead.at, dead.attempts, dead.reason \
               FROM destination JOIN cursor ON cursor.destination = destination.number AND replay = 0 \
               LEFT JOIN delivered ON delivered.destination = destination.number AND delivered.seq = ?2 \
               LEFT JOIN parked ON parked.destination = destination.number AND parked.id = ?1 \
               LEFT JOIN dead ON dead.destination = destination.number AND dead.id = ?1 \
               WHERE COALESCE(?2, parked.seq, dead.number) IS NOT NULL ORDER BY name";
    let place = ids::position(connection, id)?.map(seq);
    rows::all(connection, sql, params![id.as_bytes(), place], |row| {
        let name: String = row.get(0)?;
        let mark = rows::position(row, 1)?;
        let (delivered, dead) = (rows::optional_time(row, 3)?, rows::optional_time(row, 8)?);
        let state = if let Some(due) = rows::optional_time(row, 5)? {
            FateState::Parked { due, attempts: rows::unsigned(row, 6)?, reason: row.get(7)? }
        } else if let Some(at) = dead.filter(|at| delivered.is_none_or(|delivered| delivered < *at)) {
            FateState::Dead { at, attempts: rows::unsigned(row, 9)?, reason: row.get(10)? }
        } else if let Some(at) = delivered {
            FateState::Delivered { at, attempts: rows::unsigned(row, 4)? }
        } else if rows::position(row, 2)? > mark {
            FateState::Waiting
        } else {
            FateState::Skipped
        };
        Ok(Fate { destination: name.into(), state })
    })
}

fn prune(session: &Session, ages: Ages, destinations: &[Arc<str>]) -> rusqlite::Result<Pruned> {
    let connection = &session.connection;
    // The newest event stays: its position is how the store knows, when it is opened, which are given.
    let mut bound = Position(session.head().saturating_sub(1));
    for name in destinations {
        let sql = "SELECT MIN(mark) FROM cursor JOIN destination ON number = destination WHERE name = ?";
        // A destination that has not opened its cursor yet may want everything.
        let mark: Option<i64> = connection.query_row(sql, [&**name], |row| row.get(0))?;
        bound = bound.min(Position(mark.unwrap_or(0).unsigned_abs()));
    }
    let old = log::old(connection, bound, ages, PRUNE_EVENTS)?;
    for row in &old {
        log::delete(connection, row)?;
        row.events.iter().try_for_each(|id| session.ids.remove(connection, *id))?;
    }
    session.ids.drop_generations(connection, PRUNE_GENERATIONS)?;
    if !old.is_empty() {
        // That an event was delivered is of no use once the event is gone.
        let first = log::first(connection)?.map_or(bound, |(first, _)| first);
        let sql = "DELETE FROM delivered WHERE destination IN (SELECT number FROM destination) AND seq < ?";
        connection.execute(sql, [seq(first)])?;
    }
    let events = old.iter().map(|row| row.events.len()).sum::<usize>();
    let is_any_left = log::least_recent(connection, ages.before)?.is_some_and(|last| last <= bound);
    let left = match events {
        0 if is_any_left => Left::HeldBack,
        1.. if is_any_left || events >= PRUNE_EVENTS => Left::More,
        _ => Left::Nothing,
    };
    Ok(Pruned { events: events as u64, left })
}
