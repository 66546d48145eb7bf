//! The log's side of the seam.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{CachedStatement, Connection, OptionalExtension as _, ToSql, params};
use tokio::sync::{mpsc, watch};

use super::Embedded;
use super::checkpoint::length;
use super::ids;
use super::subscription::Feed;
use super::writer::Session;
use crate::event::{Event, EventId, Fingerprint};
use crate::storage::tables::deliveries::{number_of, record_deliveries};
use crate::storage::tables::query::Conditions;
use crate::storage::tables::rows::{self, event_columns, event_values, millis, seq};
use crate::storage::{
    Appended, BatchLimit, Census, Change, Controls, Cursor, Delivered, EventFilter, EventLog, Fate,
    FateState, OnConflict, Position, Progress, Record, Replay, Start, StorageError, Subscription, Track,
};
use crate::storage::{CONFLICT, CONFLICT_DETAIL};

#[async_trait]
impl EventLog for Embedded {
    async fn append(&self, event: Event, on_conflict: OnConflict) -> Result<Appended, StorageError> {
        // Once nothing is written any more, nothing is answered for either.
        if self.writer.is_writable()
            && let Some(stored) = self.durable.find(event.id)
            && is_duplicate(stored, &event, on_conflict)
        {
            return Ok(Appended::Duplicate);
        }
        self.writer.append(event, on_conflict).await
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
        before: Timestamp,
        destinations: &[Arc<str>],
        limit: usize,
    ) -> Result<usize, StorageError> {
        let destinations = destinations.to_vec();
        self.writer.write("pruning", move |session| prune(session, before, &destinations, limit)).await
    }

    async fn census(&self) -> Result<Census, StorageError> {
        let head = self.head.borrow().0;
        let bytes = self.files.iter().map(|file| length(file)).sum();
        self.readers
            .read("counting", move |connection| {
                let oldest = connection
                    .prepare_cached("SELECT seq, received_at FROM event ORDER BY seq LIMIT 1")?
                    .query_row([], |row| Ok((rows::position(row, 0)?, rows::time(row, 1)?)))
                    .optional()?;
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
fn is_duplicate(stored: Fingerprint, event: &Event, on_conflict: OnConflict) -> bool {
    stored == event.fingerprint || on_conflict == OnConflict::Duplicate
}

/// Puts events into the log; has its statements at hand for as many as there are in a group.
pub(super) struct Appender<'s> {
    session: &'s Session,
    insert: CachedStatement<'s>,
    /// The event whose columns are bound: what the next one has in common with it needs no copy.
    bound: Option<Event>,
}

impl<'s> Appender<'s> {
    pub(super) fn new(session: &'s Session) -> rusqlite::Result<Self> {
        // Without `seq`, which is one more than the greatest then: the engine need not look whether it is taken.
        const INSERT: &str =
            concat!("INSERT INTO event (", event_columns!(), ") VALUES (", event_values!(), ")");
        let insert = session.connection.prepare_cached(INSERT)?;
        Ok(Self { session, insert, bound: None })
    }

    /// The fingerprint of the event that has this id; none if the id is new.
    pub(super) fn known(&self, id: EventId) -> rusqlite::Result<Option<Fingerprint>> {
        self.session.ids.find(&self.session.connection, id)
    }

    /// Puts an event into the log, unless its id is there.
    pub(super) fn append(&mut self, event: Event, on_conflict: OnConflict) -> rusqlite::Result<Appended> {
        match self.known(event.id)? {
            None => {
                let bound = self.bound.take();
                rows::bind_event(&mut self.insert, 1, &event, bound.as_ref())?;
                self.insert.raw_execute()?;
                let position = self.session.stored(&event)?;
                self.bound = Some(event);
                Ok(Appended::Stored(position))
            }
            Some(stored) if is_duplicate(stored, &event, on_conflict) => Ok(Appended::Duplicate),
            Some(_) => {
                quarantine(self.session, &event, CONFLICT, CONFLICT_DETAIL)?;
                Ok(Appended::Conflict)
            }
        }
    }
}

fn quarantine(session: &Session, event: &Event, reason: &str, detail: &str) -> rusqlite::Result<bool> {
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
        let before_first =
            |first: Option<i64>| first.map_or_else(|| seq(Position(session.head())), |first| first - 1);
        let mark = match start {
            Start::Now => seq(Position(session.head())),
            Start::Beginning => {
                before_first(connection.query_row("SELECT MIN(seq) FROM event", [], |row| row.get(0))?)
            }
            Start::At(at) => {
                let sql = "SELECT MIN(seq) FROM event WHERE received_at >= ?";
                before_first(connection.query_row(sql, [millis(at)], |row| row.get(0))?)
            }
        };
        let sql = "INSERT INTO cursor (destination, replay, mark) VALUES (?, 0, ?) ON CONFLICT DO NOTHING";
        connection.execute(sql, params![destination, mark])?;
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
    let (first, last, count): (Option<i64>, Option<i64>, i64) = connection.query_row(
        "SELECT MIN(seq), MAX(seq), COUNT(*) FROM event WHERE received_at >= ? AND received_at < ?",
        params![millis(from), millis(to)],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    let head = seq(Position(session.head()));
    let (mark, until) = first.zip(last).map_or((head, head), |(first, last)| (first - 1, last));
    let replay: i64 =
        connection.query_row("SELECT IFNULL(MAX(replay), 0) + 1 FROM cursor", [], |row| row.get(0))?;
    connection.execute(
        "INSERT INTO cursor (destination, replay, mark, until) VALUES (?, ?, ?, ?)",
        params![destination, replay, mark, until],
    )?;
    Ok((Cursor { destination: Arc::clone(name), replay: replay.unsigned_abs() }, count.unsigned_abs()))
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
                 (SELECT received_at FROM event WHERE seq > mark ORDER BY seq LIMIT 1), \
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
            oldest_unsettled: rows::optional_time(row, 3)?,
            paused: row.get(2)?,
            parked: rows::unsigned(row, 4)?,
            dead: rows::unsigned(row, 5)?,
            oldest_dead: rows::optional_time(row, 6)?,
        })
    })
}

fn find(connection: &Connection, filter: &EventFilter) -> rusqlite::Result<Vec<Record>> {
    let mut query = Conditions::new(concat!("SELECT seq, ", event_columns!(), " FROM event"));
    if let Some(id) = filter.id {
        // No event is at NULL.
        query.and("seq = ?", Some(ids::position(connection, id)?.map(seq)));
    }
    query.and("source = ?", filter.source.clone());
    query.and("type = ?", filter.kind.clone());
    query.and("subject = ?", filter.subject.clone());
    query.and("received_at >= ?", filter.since.map(millis));
    query.and("seq < ?", filter.before.map(seq));
    query.run(connection, "ORDER BY seq DESC LIMIT ?", filter.limit, rows::record)
}

fn fates(connection: &Connection, id: EventId) -> rusqlite::Result<Vec<Fate>> {
    let sql = "SELECT name, mark, event.seq, delivered.at, delivered.attempts, \
                 parked.due, parked.attempts, IFNULL(json_extract(parked.history, '$[#-1].result'), 'behind'), \
                 dead.at, dead.attempts, dead.reason \
               FROM destination JOIN cursor ON cursor.destination = destination.number AND replay = 0 \
               LEFT JOIN event ON event.seq = ?2 \
               LEFT JOIN delivered ON delivered.destination = destination.number AND delivered.seq = event.seq \
               LEFT JOIN parked ON parked.destination = destination.number AND parked.id = ?1 \
               LEFT JOIN dead ON dead.destination = destination.number AND dead.id = ?1 \
               WHERE COALESCE(event.seq, parked.seq, dead.number) IS NOT NULL ORDER BY name";
    let place = ids::position(connection, id)?.map(seq);
    rows::all(connection, sql, params![id.as_bytes(), place], |row| {
        let name: String = row.get(0)?;
        let mark = rows::position(row, 1)?;
        let state = if let Some(due) = rows::optional_time(row, 5)? {
            FateState::Parked { due, attempts: rows::unsigned(row, 6)?, reason: row.get(7)? }
        } else if let Some(at) = rows::optional_time(row, 8)? {
            FateState::Dead { at, attempts: rows::unsigned(row, 9)?, reason: row.get(10)? }
        } else if let Some(at) = rows::optional_time(row, 3)? {
            FateState::Delivered { at, attempts: rows::unsigned(row, 4)? }
        } else if rows::position(row, 2)? > mark {
            FateState::Waiting
        } else {
            FateState::Skipped
        };
        Ok(Fate { destination: name.into(), state })
    })
}

fn prune(
    session: &Session,
    before: Timestamp,
    destinations: &[Arc<str>],
    limit: usize,
) -> rusqlite::Result<usize> {
    let connection = &session.connection;
    // The newest event stays: its position is how the store knows, when it is opened, which are given.
    let mut bound = seq(Position(session.head().saturating_sub(1)));
    for name in destinations {
        let sql = "SELECT MIN(mark) FROM cursor JOIN destination ON number = destination WHERE name = ?";
        // A destination that has not opened its cursor yet may want everything.
        let mark: Option<i64> = connection.query_row(sql, [&**name], |row| row.get(0))?;
        bound = bound.min(mark.unwrap_or(0));
    }
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    // The oldest few by position, and of these the ones that are old enough: however long the log is, only
    // `limit` rows are looked at.
    let old = rows::all(
        connection,
        "SELECT seq, id FROM (SELECT seq, id, received_at FROM event WHERE seq <= ? ORDER BY seq LIMIT ?) \
         WHERE received_at < ?",
        params![bound, limit, millis(before)],
        |row| Ok((row.get::<_, i64>(0)?, EventId::from_bytes(row.get(1)?))),
    )?;
    let mut delete = connection.prepare_cached("DELETE FROM event WHERE seq = ?")?;
    for (seq, id) in &old {
        delete.execute([seq])?;
        session.ids.remove(connection, *id)?;
    }
    // Several times what so many events leave behind.
    session.ids.drop_generations(connection, limit / 8 + 1)?;
    if !old.is_empty() {
        // That an event was delivered is of no use once the event is gone.
        connection.execute(
            "DELETE FROM delivered WHERE destination IN (SELECT number FROM destination) \
               AND seq < IFNULL((SELECT MIN(seq) FROM event), ? + 1)",
            [bound],
        )?;
    }
    Ok(old.len())
}
