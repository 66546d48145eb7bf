//! The log's rows: events that were stored together lie together.
//!
//! What a row costs the engine, its index and its pages is much the same for one event and for many. So a group's events
//! are gathered in a [`Batch`] and written as one row of `batch`; a reader has them all for the price of one, too.
//! Positions stay what they are, one for each event: a row says which it holds, without gaps.
//!
//! `events` is a CBOR sequence (RFC 8742) of arrays, see [`Kept`]: what comes to be known of an event later goes behind
//! what is there, and is missing where it was not known. An event is encoded by whoever brings it, see [`Entry`]: the one
//! thread that writes has only its bytes to copy.
//!
//! `event`, a row for each event, is what versions before 4 wrote. It stands before all of `batch` until it is pruned,
//! and the view `log` is both of them.

#[cfg(any(test, feature = "testing"))]
#[allow(clippy::expect_used, reason = "a panic is what a fuzzer looks for")]
pub(super) mod fuzzing;

use std::convert::Infallible;
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use minicbor::{Decode, Decoder, Encoder, encode};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::event::{Environment, Event, EventId, Fingerprint};
use crate::storage::tables::rows::{self, event_columns, millis, moment, seq};
use crate::storage::{Ages, EventFilter, PAGE_MAX, PASSED_MAX, Position, Record};

/// Events of a row at most: who looks for one of them reads them all.
const EVENTS_MAX: u64 = 64;
/// Bytes in a row that are enough. An event is never divided, so the last one may go beyond.
const BYTES_ENOUGH: usize = 64 * 1024;

/// A query for rows as [`Events`] takes them.
macro_rules! select {
    ($which:literal) => {
        concat!("SELECT last, first, events, ", event_columns!(), " FROM log ", $which)
    };
}
// None of them may sort, or go through the whole log: a query that is given a view's rows one by one needs columns of
// the same kind in both of its parts, and those in its answer by which it orders.
const BEHIND: &str = select!("WHERE last > ? ORDER BY last");
const UP_TO: &str = "SELECT last, first, earliest FROM log WHERE last <= ? ORDER BY last";
const BACKWARDS: &str = select!("WHERE last BETWEEN ? AND ? AND first < ? ORDER BY last DESC");
const ROW: &str = select!("WHERE last = ?");
const OLDEST: &str = "SELECT last, first, earliest FROM log ORDER BY last LIMIT 1";
const LEAST_RECENT: &str = "SELECT last, latest FROM log WHERE latest < ? ORDER BY latest LIMIT 1";
const WITHIN: &str = "SELECT last, first, earliest, latest FROM log WHERE latest >= ? AND earliest < ?";

/// The last position given; 0 if there is none.
macro_rules! head {
    () => {
        "IFNULL((SELECT MAX(last) FROM batch), IFNULL((SELECT MAX(seq) FROM event), 0))"
    };
}
const EVENTS: usize = 2;
/// The first of the columns that only rows of earlier versions have.
const COLUMNS: usize = 3;

/// An event as it lies in a row, with times in milliseconds of Unix time: an array of these in this order.
#[derive(Decode)]
pub(super) struct Kept<'r> {
    #[cbor(n(0), with = "minicbor::bytes")]
    id: [u8; 16],
    #[b(1)]
    source: &'r str,
    #[b(2)]
    kind: &'r str,
    #[b(3)]
    subject: Option<&'r str>,
    #[n(4)]
    time: Option<i64>,
    #[n(5)]
    received_at: i64,
    #[b(6)]
    content_type: Option<&'r str>,
    #[b(7)]
    traceparent: Option<&'r str>,
    #[cbor(n(8), with = "minicbor::bytes")]
    fingerprint: [u8; 16],
    #[cbor(b(9), with = "minicbor::bytes")]
    body: &'r [u8],
    #[b(10)]
    environment: Option<&'r str>,
}

impl<'r> Kept<'r> {
    /// What versions before 4 wrote.
    fn of_columns(row: &'r Row<'r>) -> rusqlite::Result<Self> {
        let column = |number| row.get_ref(COLUMNS + number);
        Ok(Self {
            id: row.get(COLUMNS)?,
            source: column(1)?.as_str()?,
            kind: column(2)?.as_str()?,
            subject: column(3)?.as_str_or_null()?,
            time: row.get(COLUMNS + 4)?,
            received_at: row.get(COLUMNS + 5)?,
            content_type: column(6)?.as_str_or_null()?,
            traceparent: column(7)?.as_str_or_null()?,
            fingerprint: row.get(COLUMNS + 8)?,
            body: column(9)?.as_blob()?,
            environment: column(10)?.as_str_or_null()?,
        })
    }

    pub(super) fn id(&self) -> EventId {
        EventId::from_bytes(self.id)
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::from_bytes(self.fingerprint)
    }

    /// The event itself; what it has in common with the one before it is shared.
    pub(super) fn event(&self, before: Option<&Event>) -> rusqlite::Result<Event> {
        let shared = |known: Option<&Arc<str>>, text: &str| match known {
            Some(known) if **known == *text => Arc::clone(known),
            _ => text.into(),
        };
        // A word that nobody knows is an error: what is play money must not be taken for real.
        let environment =
            |name| Environment::named(name).ok_or_else(|| broken("no environment is called so"));
        Ok(Event {
            id: self.id(),
            source: shared(before.map(|event| &event.source), self.source),
            kind: shared(before.map(|event| &event.kind), self.kind),
            subject: self.subject.map(Arc::from),
            time: self.time.map(|millis| moment(millis, EVENTS)).transpose()?,
            received_at: self.received_at()?,
            content_type: self
                .content_type
                .map(|text| shared(before.and_then(|event| event.content_type.as_ref()), text)),
            traceparent: self.traceparent.map(Arc::from),
            fingerprint: self.fingerprint(),
            body: Bytes::copy_from_slice(self.body),
            environment: self.environment.map(environment).transpose()?,
        })
    }

    pub(super) fn received_at(&self) -> rusqlite::Result<Timestamp> {
        moment(self.received_at, EVENTS)
    }

    pub(super) fn is_asked_for(&self, filter: &EventFilter) -> bool {
        filter.id.is_none_or(|id| id == self.id())
            && filter.source.as_deref().is_none_or(|source| source == self.source)
            && filter.kind.as_deref().is_none_or(|kind| kind == self.kind)
            && filter.subject.as_deref().is_none_or(|subject| Some(subject) == self.subject)
            && filter.since.is_none_or(|since| millis(since) <= self.received_at)
            && filter.until.is_none_or(|until| self.received_at < millis(until))
    }
}

fn broken(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(EVENTS, Type::Blob, why.into())
}

/// An event on its way into a row, encoded but for its body: that is copied once, into the row, and until then it counts
/// for those whose bytes it is.
pub(super) struct Entry {
    pub(super) id: EventId,
    pub(super) fingerprint: Fingerprint,
    /// In milliseconds of Unix time.
    received_at: i64,
    /// What stands in front of the body, and what behind.
    around: Vec<u8>,
    front_bytes: usize,
    body: Bytes,
}

/// What there is around a body at most beside the event's texts.
const FRAME_BYTES: usize = 96;

impl Entry {
    pub(super) fn of(event: Event) -> rusqlite::Result<Self> {
        let (around, front_bytes) =
            around(&event).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        Ok(Self {
            id: event.id,
            fingerprint: event.fingerprint,
            received_at: millis(event.received_at),
            around,
            front_bytes,
            body: event.body,
        })
    }

    /// What it adds to a row.
    pub(super) fn len_bytes(&self) -> usize {
        self.around.len() + self.body.len()
    }

    fn write(&self, events: &mut Vec<u8>) {
        let (front, back) = self.around.split_at(self.front_bytes);
        events.reserve(self.len_bytes());
        events.extend_from_slice(front);
        events.extend_from_slice(&self.body);
        events.extend_from_slice(back);
    }

    /// The event as it would be read.
    pub(super) fn event(&self) -> rusqlite::Result<Event> {
        let mut events = Vec::new();
        self.write(&mut events);
        minicbor::decode::<Kept<'_>>(&events).map_err(broken)?.event(None)
    }
}

/// All of an event, in the order of [`Kept`], but for the bytes of its body; and where these belong.
fn around(event: &Event) -> Result<(Vec<u8>, usize), encode::Error<Infallible>> {
    let optional = [&event.subject, &event.content_type, &event.traceparent];
    let texts = [&event.source, &event.kind].into_iter().chain(optional.into_iter().flatten());
    let texts_bytes: usize = texts.map(|text| text.len()).sum();
    let mut encoder = Encoder::new(Vec::with_capacity(FRAME_BYTES + texts_bytes));
    encoder
        .array(11)?
        .bytes(event.id.as_bytes())?
        .str(&event.source)?
        .str(&event.kind)?
        .encode(event.subject.as_deref())?
        .encode(event.time.map(millis))?
        .i64(millis(event.received_at))?
        .encode(event.content_type.as_deref())?
        .encode(event.traceparent.as_deref())?
        .bytes(event.fingerprint.as_bytes())?
        .bytes_len(event.body.len() as u64)?;
    let front_bytes = encoder.writer().len();
    encoder.encode(event.environment.map(Environment::name))?;
    Ok((encoder.into_writer(), front_bytes))
}

/// Events that will be one row.
#[derive(Default)]
pub(super) struct Batch {
    events: Vec<u8>,
    count: u64,
    /// When they were received, in milliseconds of Unix time.
    earliest: i64,
    latest: i64,
}

impl Batch {
    /// Puts an event behind the others.
    pub(super) fn add(&mut self, event: &Entry) {
        event.write(&mut self.events);
        let at = event.received_at;
        (self.earliest, self.latest) =
            if self.count == 0 { (at, at) } else { (self.earliest.min(at), self.latest.max(at)) };
        self.count += 1;
    }

    /// Whether the next event belongs into another row.
    pub(super) fn is_full(&self) -> bool {
        self.count >= EVENTS_MAX || self.events.len() >= BYTES_ENOUGH
    }

    pub(super) fn clear(&mut self) {
        self.events.clear();
        self.count = 0;
    }

    /// Writes the row, which ends at `last`, and begins anew. False if the log does not end where these begin: then
    /// somebody else has written to it, and nothing was written here.
    pub(super) fn write(&mut self, connection: &Connection, last: Position) -> rusqlite::Result<bool> {
        if self.count == 0 {
            return Ok(true);
        }
        let first = last.0 + 1 - self.count;
        let sql = concat!(
            "INSERT INTO batch (last, first, earliest, latest, events) SELECT ?1, ?2, ?3, ?4, ?5 WHERE ?2 = 1 + ",
            head!()
        );
        let row = params![seq(last), seq(Position(first)), self.earliest, self.latest, self.events];
        let written = connection.prepare_cached(sql)?.execute(row);
        self.clear();
        written.map(|rows| rows == 1)
    }
}

/// The events of a row, with their positions.
struct Events<'r> {
    positions: RangeInclusive<u64>,
    rest: Rest<'r>,
}

enum Rest<'r> {
    Batch(Decoder<'r>),
    /// What versions before 4 wrote has one event in a row.
    Columns(&'r Row<'r>),
}

impl<'r> Events<'r> {
    fn of(row: &'r Row<'r>) -> rusqlite::Result<Self> {
        let (last, first) = (rows::position(row, 0)?, rows::position(row, 1)?);
        let events = row.get_ref(EVENTS)?.as_blob_or_null()?;
        let rest = events.map_or(Rest::Columns(row), |events| Rest::Batch(Decoder::new(events)));
        Ok(Self { positions: first.0..=last.0, rest })
    }

    /// Those behind a position only.
    fn behind(mut self, position: Position) -> rusqlite::Result<Self> {
        while *self.positions.start() <= position.0 && self.positions.next().is_some() {
            if let Rest::Batch(events) = &mut self.rest {
                events.skip().map_err(broken)?;
            }
        }
        Ok(self)
    }
}

impl<'r> Iterator for Events<'r> {
    type Item = rusqlite::Result<(Position, Kept<'r>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let position = Position(self.positions.next()?);
        let kept = match &mut self.rest {
            Rest::Batch(events) => events.decode().map_err(broken),
            Rest::Columns(row) => Kept::of_columns(row),
        };
        Some(kept.map(|kept| (position, kept)))
    }
}

/// Calls `each` with the events behind a position, in their order, until it breaks.
pub(super) fn read(
    connection: &Connection,
    after: Position,
    mut each: impl FnMut(Position, Kept<'_>) -> rusqlite::Result<ControlFlow<()>>,
) -> rusqlite::Result<()> {
    let mut select = connection.prepare_cached(BEHIND)?;
    let mut found = select.query([seq(after)])?;
    while let Some(row) = found.next()? {
        for event in Events::of(row)?.behind(after)? {
            let (position, kept) = event?;
            if each(position, kept)?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// What `take` makes of the first event behind a position, if there is one.
pub(super) fn next<T>(
    connection: &Connection,
    after: Position,
    take: impl Fn(Position, Kept<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Option<T>> {
    let mut next = None;
    read(connection, after, |position, kept| {
        next = Some(take(position, kept)?);
        Ok(ControlFlow::Break(()))
    })?;
    Ok(next)
}

/// What `take` makes of the event at a position, if there is one.
pub(super) fn at<T>(
    connection: &Connection,
    position: Position,
    take: impl Fn(Kept<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Option<T>> {
    let taken = next(connection, Position(position.0.saturating_sub(1)), |found, kept| {
        (found == position).then(|| take(kept)).transpose()
    })?;
    Ok(taken.flatten())
}

/// The last position given, which is that of the newest event: it is never pruned.
pub(super) fn head(connection: &Connection) -> rusqlite::Result<Position> {
    connection.query_row(concat!("SELECT ", head!()), [], |row| rows::position(row, 0))
}

/// Where the log begins now, and when the first of its events were received.
pub(super) fn first(connection: &Connection) -> rusqlite::Result<Option<(Position, Timestamp)>> {
    connection
        .prepare_cached(OLDEST)?
        .query_row([], |row| Ok((rows::position(row, 1)?, rows::time(row, 2)?)))
        .optional()
}

/// The position of the first event that was received at this time or later.
pub(super) fn first_since(connection: &Connection, at: Timestamp) -> rusqlite::Result<Option<Position>> {
    let sql = "SELECT MIN(last) FROM (SELECT MIN(seq) AS last FROM event WHERE received_at >= ?1 \
               UNION ALL SELECT MIN(last) FROM batch WHERE latest >= ?1)";
    let row: Option<i64> = connection.query_row(sql, [millis(at)], |row| row.get(0))?;
    let Some(last) = row else { return Ok(None) };
    let mut select = connection.prepare_cached(ROW)?;
    let mut found = select.query([last])?;
    let Some(row) = found.next()? else { return Ok(None) };
    for event in Events::of(row)? {
        let (position, kept) = event?;
        if kept.received_at >= millis(at) {
            return Ok(Some(position));
        }
    }
    Ok(None)
}

/// The newest row with an event that was received before this time.
fn last_before(connection: &Connection, at: Timestamp) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT MAX(last) FROM (SELECT MAX(seq) AS last FROM event WHERE received_at < ?1 \
               UNION ALL SELECT MAX(last) FROM batch WHERE earliest < ?1)";
    connection.query_row(sql, [millis(at)], |row| row.get(0))
}

/// The first and the last of the events that were received in a span of time, and how many there are.
pub(super) fn span(
    connection: &Connection,
    from: Timestamp,
    to: Timestamp,
) -> rusqlite::Result<Option<(Position, Position, u64)>> {
    let (from, to) = (millis(from), millis(to));
    let mut span: Option<(Position, Position, u64)> = None;
    let mut add = |first: Position, last: Position| {
        let (start, end, count) = span.unwrap_or((first, last, 0));
        span = Some((start.min(first), end.max(last), count + last.0 + 1 - first.0));
    };
    let mut rows = connection.prepare_cached(WITHIN)?;
    let mut found = rows.query([from, to])?;
    let mut partly = connection.prepare_cached(ROW)?;
    while let Some(row) = found.next()? {
        let (last, first) = (rows::position(row, 0)?, rows::position(row, 1)?);
        if row.get::<_, i64>(2)? >= from && row.get::<_, i64>(3)? < to {
            add(first, last);
            continue;
        }
        let mut events = partly.query([seq(last)])?;
        let Some(row) = events.next()? else { continue };
        for event in Events::of(row)? {
            let (position, kept) = event?;
            if (from..to).contains(&kept.received_at) {
                add(position, position);
            }
        }
    }
    Ok(span)
}

/// Events as they are asked for but for their id, newest first.
pub(super) fn find(connection: &Connection, filter: &EventFilter) -> rusqlite::Result<Vec<Record>> {
    let limit = if filter.limit == 0 { PAGE_MAX } else { filter.limit.min(PAGE_MAX) };
    let mut records = Vec::new();
    let oldest = match filter.since {
        None => Position(0),
        Some(since) => match first_since(connection, since)? {
            Some(first) => first,
            None => return Ok(records),
        },
    };
    let before = filter.before.map_or(i64::MAX, seq);
    // A row that begins in front of a position does not end far behind it.
    let mut last = before.saturating_add(i64::try_from(EVENTS_MAX).unwrap_or(i64::MAX));
    if let Some(until) = filter.until {
        match last_before(connection, until)? {
            Some(newest) => last = last.min(newest),
            None => return Ok(records),
        }
    }
    let mut select = connection.prepare_cached(BACKWARDS)?;
    let mut found = select.query(params![seq(oldest), last, before])?;
    while records.len() < limit
        && let Some(row) = found.next()?
    {
        let start = records.len();
        for event in Events::of(row)? {
            let (position, kept) = event?;
            if seq(position) < before && kept.is_asked_for(filter) {
                let event = kept.event(records.last().map(|record: &Record| &record.event))?;
                records.push(Record { position, event });
            }
        }
        records[start..].reverse();
    }
    records.truncate(limit);
    Ok(records)
}

/// A row of events of which none is needed any more.
pub(super) struct Old {
    last: i64,
    pub(super) events: Vec<EventId>,
}

/// Of the oldest rows up to a position those whose events are all past their time, and in front of each those that came
/// while a clock was wrong. However long the log is, only so many events are looked at, and the rest of their row;
/// [`PASSED_MAX`] rows of a wrong clock are passed over beside that.
pub(super) fn old(
    connection: &Connection,
    upto: Position,
    ages: Ages,
    limit: usize,
) -> rusqlite::Result<Vec<Old>> {
    let (before, horizon) = (millis(ages.before), millis(ages.horizon));
    let may_go = |received_at| received_at < before || received_at > horizon;
    let mut select = connection.prepare_cached(UP_TO)?;
    let mut found = select.query([seq(upto)])?;
    let (mut old, mut count, mut looked_at) = (Vec::new(), 0, 0);
    // Of a wrong clock, until a row behind them says how old they are.
    let mut unknown: Vec<i64> = Vec::new();
    while looked_at < limit
        && (unknown.len() as u64) < PASSED_MAX
        && let Some(row) = found.next()?
    {
        let (last, first, earliest): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if earliest > horizon {
            unknown.push(last);
            continue;
        }
        looked_at += usize::try_from(last + 1 - first).unwrap_or(limit);
        let row = if earliest < before { all_of(connection, last, may_go)? } else { None };
        let Some(row) = row else {
            unknown.clear();
            continue;
        };
        for last in unknown.drain(..) {
            // The others wait for the next step, and so does what they are judged by.
            if count < limit
                && let Some(row) = all_of(connection, last, may_go)?
            {
                count += row.events.len();
                old.push(row);
            }
        }
        if count < limit {
            count += row.events.len();
            old.push(row);
        }
    }
    Ok(old)
}

/// A row, if all of its events may go by when they were received.
fn all_of(connection: &Connection, last: i64, may_go: impl Fn(i64) -> bool) -> rusqlite::Result<Option<Old>> {
    let mut select = connection.prepare_cached(ROW)?;
    let mut found = select.query([last])?;
    let Some(row) = found.next()? else { return Ok(None) };
    let mut events = Vec::new();
    for event in Events::of(row)? {
        let (_, kept) = event?;
        if !may_go(kept.received_at) {
            return Ok(None);
        }
        events.push(kept.id());
    }
    Ok(Some(Old { last, events }))
}

/// Where the row ends whose events were received the longest ago, if all of them were before a time.
pub(super) fn least_recent(connection: &Connection, before: Timestamp) -> rusqlite::Result<Option<Position>> {
    connection
        .prepare_cached(LEAST_RECENT)?
        .query_row([millis(before)], |row| rows::position(row, 0))
        .optional()
}

/// Deletes a row.
pub(super) fn delete(connection: &Connection, old: &Old) -> rusqlite::Result<()> {
    // It is in one of them.
    connection.prepare_cached("DELETE FROM batch WHERE last = ?")?.execute([old.last])?;
    connection.prepare_cached("DELETE FROM event WHERE seq = ?")?.execute([old.last])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use rusqlite::{ToSql, params_from_iter};

    use super::*;
    use crate::storage::conformance;
    use crate::storage::tables::SCHEMA;
    use crate::storage::tables::rows::{event_values, execute_with_event};

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// The event of a key, received at this second.
    fn event(key: usize, second: i64) -> Event {
        let optional = |text: &str| (!key.is_multiple_of(3)).then(|| text.into());
        Event {
            kind: if key.is_multiple_of(4) { "cip.paid" } else { "cip.expired" }.into(),
            time: (!key.is_multiple_of(5)).then(|| time(second - 1)),
            received_at: time(second),
            content_type: optional("application/json"),
            traceparent: optional("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            environment: (!key.is_multiple_of(7)).then_some(Environment::Sandbox),
            body: vec![0xff; key % 11].into(),
            ..conformance::event(key as u64)
        }
    }

    fn entry(event: &Event) -> Entry {
        Entry::of(event.clone()).unwrap()
    }

    /// What a row has of one event.
    fn row(event: &Event) -> Vec<u8> {
        let mut row = Vec::new();
        entry(event).write(&mut row);
        row
    }

    /// A log in which the first `earlier` events lie as earlier versions wrote them and the others in rows of these lengths.
    fn log(seconds: &[i64], earlier: usize, rows: &[usize]) -> (Connection, Vec<Record>) {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        let record =
            |(key, &second)| Record { position: Position(key as u64 + 1), event: event(key, second) };
        let records: Vec<Record> = seconds.iter().enumerate().map(record).collect();
        let (old, new) = records.split_at(earlier.min(records.len()));
        let insert =
            concat!("INSERT INTO event (seq, ", event_columns!(), ") VALUES (?, ", event_values!(), ")");
        for record in old {
            let place: [&dyn ToSql; 1] = [&seq(record.position)];
            execute_with_event(&mut connection.prepare(insert).unwrap(), &place, &record.event).unwrap();
        }
        let (mut new, mut rows) = (new, rows.iter().cycle());
        while !new.is_empty() {
            let (row, rest) = new.split_at(new.len().min(*rows.next().unwrap()));
            let mut batch = Batch::default();
            row.iter().for_each(|record| batch.add(&entry(&record.event)));
            assert!(batch.write(&connection, row.last().unwrap().position).unwrap());
            new = rest;
        }
        (connection, records)
    }

    fn all(connection: &Connection, after: Position) -> Vec<Record> {
        let mut found: Vec<Record> = Vec::new();
        read(connection, after, |position, kept| {
            let event = kept.event(found.last().map(|record| &record.event))?;
            found.push(Record { position, event });
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        found
    }

    proptest! {
        /// Whatever lies together, and in whichever order of time: every question is answered as a list would.
        #[test]
        fn how_events_lie_makes_no_difference(
            seconds in vec(0_i64..40, 1..80),
            earlier in 0_usize..20,
            rows in vec(1_usize..=EVENTS_MAX as usize, 1..4),
            (place, other) in (0_u64..90, 0_u64..90),
            (from, to) in (-1_i64..42, -1_i64..42),
            limit in 0_usize..30,
        ) {
            let (connection, mut records) = log(&seconds, earlier, &rows);
            let is_behind = |record: &Record, place: u64| record.position.0 > place;
            let received = |record: &Record| record.event.received_at;

            prop_assert_eq!(head(&connection).unwrap(), Position(records.len() as u64));
            let oldest = first(&connection).unwrap().unwrap();
            prop_assert!(oldest.0 == Position(1) && oldest.1 <= received(&records[0]));
            let expected: Vec<_> = records.iter().filter(|record| is_behind(record, place)).cloned().collect();
            let found = next(&connection, Position(place), |position, _| Ok(position)).unwrap();
            prop_assert_eq!(found, expected.first().map(|record| record.position));
            prop_assert_eq!(all(&connection, Position(place)), expected);
            let found = at(&connection, Position(place), |kept| kept.event(None)).unwrap();
            prop_assert_eq!(found, records.get((place as usize).wrapping_sub(1)).map(|record| record.event.clone()));

            let since = records.iter().find(|record| received(record) >= time(from));
            prop_assert_eq!(first_since(&connection, time(from)).unwrap(), since.map(|record| record.position));
            let within: Vec<_> =
                records.iter().filter(|record| (time(from)..time(to)).contains(&received(record))).collect();
            let expected = within.first().zip(within.last()).map(|(first, last)| {
                (first.position, last.position, within.len() as u64)
            });
            prop_assert_eq!(span(&connection, time(from), time(to)).unwrap(), expected);

            let filter = EventFilter {
                kind: (place % 2 == 0).then(|| "cip.paid".to_owned()),
                source: (place % 3 == 0).then(|| "suite".to_owned()),
                subject: (place % 5 == 0).then(|| "subject-1".to_owned()),
                since: (from > 10).then(|| time(from)),
                until: (to % 2 == 0).then(|| time(to)),
                before: (other > 5).then_some(Position(other)),
                limit,
                id: None,
            };
            let is_asked_for = |record: &&Record| {
                filter.kind.as_deref().is_none_or(|kind| *kind == *record.event.kind)
                    && filter.subject.as_deref().is_none_or(|subject| Some(subject) == record.event.subject.as_deref())
                    && filter.since.is_none_or(|since| since <= received(record))
                    && filter.until.is_none_or(|until| received(record) < until)
                    && filter.before.is_none_or(|before| record.position < before)
            };
            let most = if limit == 0 { PAGE_MAX } else { limit };
            let expected: Vec<_> = records.iter().rev().filter(is_asked_for).take(most).cloned().collect();
            prop_assert_eq!(find(&connection, &filter).unwrap(), expected);

            // What is pruned is old enough and not beyond; it is whole rows, and about as many as were asked for.
            let ages = Ages { before: time(to), horizon: time(to.max(from)) };
            let old = old(&connection, Position(place), ages, limit.max(1)).unwrap();
            let gone: Vec<EventId> = old.iter().flat_map(|row| row.events.clone()).collect();
            prop_assert!(gone.len() < limit.max(1) + EVENTS_MAX as usize);
            old.iter().for_each(|row| delete(&connection, row).unwrap());
            let is_gone = |record: &Record| gone.contains(&record.event.id);
            let is_unknown = |record: &Record| received(record) > ages.horizon;
            let may_go = |record: &Record| {
                !is_behind(record, place) && (received(record) < time(to) || is_unknown(record))
            };
            prop_assert!(records.iter().filter(|record| is_gone(record)).all(may_go));
            records.retain(|record| !is_gone(record));
            prop_assert_eq!(all(&connection, Position(0)), records);
        }
    }

    #[test]
    fn everything_that_is_old_enough_can_be_pruned() {
        let (connection, records) = log(&[1; 50], 10, &[7, 1]);
        let ages = Ages { before: time(2), horizon: time(3) };
        let old = old(&connection, Position(50), ages, 100).unwrap();
        assert_eq!(old.iter().map(|row| row.events.len()).sum::<usize>(), records.len());
    }

    #[test]
    fn what_a_wrong_clock_has_written_goes_with_the_next_of_a_right_one() {
        // Received at these seconds, in rows of two; what is older than 10 s may go, and nobody has been beyond 20 s yet.
        let cases: &[(&[i64], &[u64])] = &[
            (&[99, 99, 1, 1], &[2, 4]),
            (&[99, 1, 1, 99], &[2, 4]),
            (&[99, 99, 99, 99, 1, 1, 15, 15], &[2, 4, 6]),
            (&[1, 1, 99, 99, 15, 15], &[2]),
            (&[99, 99, 15, 15, 1, 1], &[6]),
            (&[99, 15, 1, 1], &[4]),
            (&[99, 99, 1, 15], &[]),
            (&[1, 1, 99, 99], &[2]),
        ];
        for (seconds, expected) in cases {
            let (connection, _) = log(seconds, 0, &[2]);
            let ages = Ages { before: time(10), horizon: time(20) };
            let old = old(&connection, Position(50), ages, 100).unwrap();
            let gone: Vec<u64> = old.iter().map(|row| row.last.unsigned_abs()).collect();
            assert_eq!(gone, *expected, "{seconds:?}");
        }
    }

    #[test]
    fn no_query_sorts_or_goes_through_the_whole_log() {
        let (connection, _) = log(&[1; 50], 10, &[7]);
        for query in [BEHIND, UP_TO, BACKWARDS, ROW, OLDEST, LEAST_RECENT, WITHIN] {
            let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
            let parameters = vec![0; plan.parameter_count()];
            let steps = plan.query_map(params_from_iter(parameters), |row| row.get::<_, String>(3)).unwrap();
            for step in steps {
                let step = step.unwrap();
                assert!(!step.contains("TEMP B-TREE") && !step.contains("CO-ROUTINE"), "{step}, in {query}");
                assert!(query == OLDEST || !step.contains("SCAN"), "{step}, in {query}");
            }
        }
    }

    #[test]
    fn a_row_has_its_bounds() {
        let mut batch = Batch::default();
        for key in 0..EVENTS_MAX as usize {
            assert!(!batch.is_full());
            batch.add(&entry(&event(key, 0)));
        }
        assert!(batch.is_full());
        batch.clear();
        assert!(!batch.is_full());
        batch.add(&entry(&Event { body: vec![0; BYTES_ENOUGH].into(), ..event(0, 0) }));
        assert!(batch.is_full());
    }

    #[test]
    fn what_does_not_follow_the_last_event_is_not_written() {
        let (connection, records) = log(&[1; 9], 3, &[2]);
        for last in [8, 9, 11] {
            let mut batch = Batch::default();
            batch.add(&entry(&event(10, 1)));
            assert!(!batch.write(&connection, Position(last)).unwrap(), "{last}");
        }
        assert_eq!(all(&connection, Position(0)), records);
    }

    #[test]
    fn a_row_that_is_no_row_of_events_is_an_error() {
        let known = row(&event(1, 1));
        let unknown = [known.strip_suffix(b"sandbox").unwrap(), b"staging"].concat();
        for events in [Vec::new(), vec![0x80], b"\xff\xff".to_vec(), unknown] {
            let (connection, _) = log(&[], 0, &[1]);
            let sql = "INSERT INTO batch VALUES (1, 1, 0, 0, ?)";
            connection.execute(sql, [&events]).unwrap();
            assert!(at(&connection, Position(1), |kept| kept.event(None)).is_err(), "{events:x?}");
        }
    }

    #[test]
    fn what_is_known_of_an_event_later_goes_behind_what_is_there() {
        let expected = event(1, 1);
        let mut known = row(&expected);
        assert_eq!(known[0], 0x8b, "an array of eleven");
        known[0] = 0x8c;
        known.extend(minicbor::to_vec("more").unwrap());
        assert_eq!(minicbor::decode::<Kept<'_>>(&known).unwrap().event(None).unwrap(), expected);
    }
}
