//! Which ids are in the log: the deduplication.
//!
//! Ids are digests, so a table ordered by id is written all over: a page for each event, and the more of them the
//! fewer are in memory. So nothing is ordered by id as a whole:
//!
//! - The newest ids are in memory, in [`BUCKETS`] buckets by the beginning of the id. What is there is in the log,
//!   too: the table `indexed` holds the position behind which opening the store reads ids from the events.
//! - When there are more than [`RECENT_MAX`], a *sweep* goes on from bucket to bucket, a little with each group, and
//!   writes each as one row of `id_bucket`: some thirty ids at once. When it has been around, everything that was
//!   there when it began is in the table, and `indexed` moves.
//! - Sweeps belong to a *generation* of about [`GENERATION_MAX`] ids. What a sweep writes is behind all that was written
//!   before: one page at the end of the table, however many events there are.
//! - Of each generation a [`Filter`] is in memory, two bytes for each id. An id that is new is found nowhere by it, and no
//!   page is read. An id that may be known is looked for in the row of its bucket in each sweep there, some thirty in all,
//!   and what they say is held against the event: a row names a [`Tag`] and a position, and the event may have been pruned.
//!
//! Pruning therefore touches no row: a generation goes as a whole when the last of its events has gone.
//!
//! Bounds: ids in memory [`RECENT_MAX`] and, after opening, what two sweeps take; filters [`FILTERS_BYTES_MAX`], beyond
//! which the oldest are folded and more often mistaken.
//!
//! `event_id`, ordered by id, is what versions before 3 wrote, and generations whose rows are ordered by their bucket are
//! version 3's: an insert into the middle of a table has the engine reorder its pages, and look at all it has in memory
//! when it commits. Their ids are known until they are pruned.

use std::cell::RefCell;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::durable::Durable;
use super::filter::Filter;
use super::log;
use crate::event::{EventId, Fingerprint};
use crate::storage::Position;
use crate::storage::tables::rows::{self, seq};

/// Few of everything in tests, which cannot wait for many.
const fn many_or(many: usize, in_tests: usize) -> usize {
    if cfg!(test) { in_tests } else { many }
}

/// Parts of all ids, by the beginning of the id.
const BUCKETS: usize = many_or(1024, 8);
/// Ids in memory at which a sweep goes on: less than a MiB of them. A bucket has twice the average when its turn comes.
const RECENT_MAX: usize = many_or(16 * 1024, 64);
/// Ids after which a generation ends with its sweep.
pub(super) const GENERATION_MAX: usize = many_or(1 << 20, 256);
/// What all filters take in memory at most: that of 67 million ids.
const FILTERS_BYTES_MAX: usize = many_or(128 << 20, 2048);
/// Buckets written with one group at most, and so many more for each of its writes. It is reached after opening only.
const SLICE_MIN: usize = 4;
const WRITES_PER_BUCKET: usize = 8;

/// Bits of a row's number that name the bucket, and those above that count the sweep; the generation is above them.
const BUCKET_BITS: u32 = 12;
const SWEEP_BITS: u32 = 12;
const _: () = assert!(BUCKETS <= 1 << BUCKET_BITS);
/// Bytes in a row for each id: its tag and its position.
const ENTRY_BYTES: usize = 16;

/// The second half of an id. Buckets go by the first.
pub(super) type Tag = u64;

pub(super) fn tag_of(id: EventId) -> Tag {
    let [.., a, b, c, d, e, f, g, h] = *id.as_bytes();
    Tag::from_be_bytes([a, b, c, d, e, f, g, h])
}

fn bucket_of(id: EventId) -> usize {
    let [first, second, ..] = *id.as_bytes();
    (usize::from(u16::from_be_bytes([first, second])) * BUCKETS) >> 16
}

/// The rows of a generation.
fn numbers(generation: i64) -> Range<i64> {
    let first = generation << (BUCKET_BITS + SWEEP_BITS);
    first..first + (1 << (BUCKET_BITS + SWEEP_BITS))
}

/// The row of a bucket in a sweep of a generation.
fn number(generation: i64, sweep: i64, bucket: usize) -> i64 {
    numbers(generation).start + (sweep << BUCKET_BITS) + i64::try_from(bucket).unwrap_or_default()
}

#[derive(Clone, Copy)]
struct Known {
    id: EventId,
    position: Position,
    fingerprint: Fingerprint,
}

/// What is known of the newest ids in a part of all.
#[derive(Clone, Default)]
struct Bucket {
    known: Vec<Known>,
    /// Their tags, in the same order: a new id is compared with all of them, in a fifth of the memory.
    tags: Vec<Tag>,
}

/// The ids, as the writing thread has them.
pub(super) struct Ids {
    state: RefCell<State>,
    /// Those of them that anybody may ask for.
    durable: Arc<Durable>,
}

struct State {
    /// The newest, by bucket, in the order in which they came.
    recent: Vec<Bucket>,
    recent_count: usize,
    /// More were there when the store was opened: the first sweep goes around however few come, or a process that is
    /// restarted often would load more each time.
    catches_up: bool,
    /// Oldest first; the last one is being written.
    generations: Vec<Generation>,
    sweep: Sweep,
    /// Whether there are ids in the table of earlier versions.
    earlier: bool,
    /// How to undo what the group under way has changed, oldest first.
    undo: Vec<Undo>,
    /// What it has written of the sweep.
    written: Option<Written>,
}

struct Generation {
    rows: Rows,
    /// Ids in its rows.
    count: usize,
    /// When it is written: no event behind this one is in it.
    upto: Option<Position>,
    filter: Filter,
}

/// Which rows are a generation's.
#[derive(Clone, Copy)]
struct Rows {
    generation: i64,
    /// Sweeps that have been around. Another one may be under way.
    sweeps: i64,
    /// Whether they are in version 3's order.
    by_bucket: bool,
}

/// How far the sweep under way is.
#[derive(Clone, Copy)]
struct Sweep {
    /// The bucket that is next.
    bucket: usize,
    /// Everything up to here is in the table when it has been around.
    upto: Position,
}

struct Written {
    buckets: Range<usize>,
    then: Sweep,
    /// Sweeps of the generation that have been around now.
    sweeps: i64,
    /// The generation is full, and ends here.
    ended: Option<Position>,
}

enum Undo {
    Added(EventId, Fingerprint),
    Removed(Known),
    Dropped(i64),
}

impl Ids {
    /// Reads the filters and what the table does not have yet, of a store that ends at `head`. `durable` is told of
    /// what is in the log, and what no longer is.
    pub(super) fn load(
        connection: &Connection,
        head: Position,
        durable: Arc<Durable>,
    ) -> rusqlite::Result<Self> {
        let mut state = State::load(connection, head)?;
        log::read(connection, indexed(connection)?, |position, kept| {
            let (id, fingerprint) = (kept.id(), kept.fingerprint());
            state.remember(Known { id, position, fingerprint });
            durable.add(id, fingerprint);
            Ok(ControlFlow::Continue(()))
        })?;
        state.catches_up = state.recent_count > RECENT_MAX;
        Ok(Self { state: RefCell::new(state), durable })
    }

    /// The fingerprint of the event that has this id; none if the id is new.
    pub(super) fn find(&self, connection: &Connection, id: EventId) -> rusqlite::Result<Option<Fingerprint>> {
        let state = self.state.borrow();
        if let Some(known) = state.recent[bucket_of(id)].find(id) {
            return Ok(Some(known.fingerprint));
        }
        let tag = tag_of(id);
        for generation in state.generations.iter().filter(|generation| generation.filter.may_have(tag)) {
            for place in generation.rows.places(connection, id)? {
                let found = fingerprint(connection, place, id)?;
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        match state.earlier.then(|| earlier(connection, id)).transpose()?.flatten() {
            Some(place) => fingerprint(connection, place, id),
            None => Ok(None),
        }
    }

    /// An event has been put into the log.
    pub(super) fn add(&self, id: EventId, position: Position, fingerprint: Fingerprint) {
        let mut state = self.state.borrow_mut();
        state.remember(Known { id, position, fingerprint });
        state.undo.push(Undo::Added(id, fingerprint));
    }

    /// An event is taken out of the log.
    pub(super) fn remove(&self, connection: &Connection, id: EventId) -> rusqlite::Result<()> {
        self.durable.remove(id);
        let mut state = self.state.borrow_mut();
        if state.earlier {
            connection.prepare_cached("DELETE FROM event_id WHERE id = ?")?.execute([id.as_bytes()])?;
        }
        if let Some(known) = state.forget(id) {
            state.undo.push(Undo::Removed(known));
        }
        Ok(())
    }

    /// Drops the generations of which no event is in the log any more, at most so many rows at a time.
    pub(super) fn drop_generations(&self, connection: &Connection, rows_max: i64) -> rusqlite::Result<()> {
        let first = log::first(connection)?.map(|(first, _)| first);
        let mut state = self.state.borrow_mut();
        let State { generations, undo, .. } = &mut *state;
        for generation in generations.iter() {
            if generation.upto.is_some_and(|upto| first.is_none_or(|first| upto < first)) {
                let number = generation.rows.generation;
                connection.execute("DELETE FROM generation WHERE number = ?", [number])?;
                undo.push(Undo::Dropped(number));
            }
        }
        let oldest: i64 = connection.query_row("SELECT MIN(number) FROM generation", [], |row| row.get(0))?;
        connection
            .prepare_cached(
                "DELETE FROM id_bucket WHERE number IN (SELECT number FROM id_bucket WHERE number < ? LIMIT ?)",
            )?
            .execute([numbers(oldest).start, rows_max])
            .map(drop)
    }

    /// How much the group under way has changed, for [`Ids::undo`].
    pub(super) fn changes(&self) -> usize {
        self.state.borrow().undo.len()
    }

    /// Takes back what has been changed since there were `changes` of them.
    pub(super) fn undo(&self, changes: usize) {
        let state = &mut *self.state.borrow_mut();
        state.written = None;
        for undo in state.undo.split_off(changes).into_iter().rev() {
            match undo {
                Undo::Added(id, _) => _ = state.forget(id),
                Undo::Removed(known) => state.remember(known),
                Undo::Dropped(_) => {}
            }
        }
    }

    /// Goes on with the sweep a little: the last thing that is written in the transaction of a group of so many writes,
    /// behind which the log ends at `head`.
    pub(super) fn sweep(
        &self,
        connection: &Connection,
        writes: usize,
        head: Position,
    ) -> rusqlite::Result<()> {
        let state = &mut *self.state.borrow_mut();
        state.written = None;
        let surplus =
            if state.catches_up { state.recent_count } else { state.recent_count.saturating_sub(RECENT_MAX) };
        let Some(generation) = state.generations.last_mut().filter(|_| surplus > 0) else { return Ok(()) };
        let (sweep, rows) = (state.sweep, generation.rows);
        let last = BUCKETS.min(sweep.bucket + SLICE_MIN + writes / WRITES_PER_BUCKET);
        let mut insert =
            connection.prepare_cached("INSERT OR REPLACE INTO id_bucket (number, entries) VALUES (?, ?)")?;
        let (mut next, mut count) = (sweep.bucket, 0);
        while next < last && count < surplus {
            let bucket = &state.recent[next].known;
            if !bucket.is_empty() {
                // A sweep that an end of the process has cut short is done again with all it had, and more.
                let number = number(rows.generation, rows.sweeps, next);
                insert.execute(params![number, entries(bucket)])?;
                bucket.iter().for_each(|known| generation.filter.add(tag_of(known.id)));
            }
            count += bucket.len();
            next += 1;
        }
        let mut then = Sweep { bucket: next, ..sweep };
        let (mut sweeps, mut ended) = (rows.sweeps, None);
        if next == BUCKETS {
            then = Sweep { bucket: 0, upto: head };
            sweeps += 1;
            connection
                .prepare_cached("UPDATE generation SET sweeps = ? WHERE number = ?")?
                .execute([sweeps, rows.generation])?;
            if generation.count + count >= GENERATION_MAX || sweeps >> SWEEP_BITS > 0 {
                generation.end(connection, head)?;
                ended = Some(head);
            }
            connection.prepare_cached("UPDATE indexed SET seq = ?")?.execute([seq(sweep.upto)])?;
        }
        state.written = Some(Written { buckets: sweep.bucket..next, then, sweeps, ended });
        Ok(())
    }

    /// The group is durable.
    pub(super) fn committed(&self) {
        let state = &mut *self.state.borrow_mut();
        for undo in state.undo.drain(..) {
            match undo {
                Undo::Added(id, fingerprint) => self.durable.add(id, fingerprint),
                Undo::Removed(known) => self.durable.remove(known.id),
                Undo::Dropped(number) => {
                    state.generations.retain(|generation| generation.rows.generation != number);
                }
            }
        }
        if let Some(written) = state.written.take() {
            state.written(written);
        }
    }
}

impl State {
    fn load(connection: &Connection, head: Position) -> rusqlite::Result<Self> {
        let mut generations: Vec<Generation> = Vec::new();
        let sql = "SELECT number, sweeps, by_bucket, upto, filter FROM generation ORDER BY number";
        let mut select = connection.prepare(sql)?;
        let mut found = select.query([])?;
        while let Some(row) = found.next()? {
            let rows = Rows::of(row)?;
            let upto = row.get::<_, Option<i64>>(3)?.map(|seq| Position(seq.unsigned_abs()));
            let filter = row.get_ref(4)?.as_blob_or_null()?.and_then(Filter::from_blob);
            generations.push(match filter {
                Some(filter) => Generation { rows, count: 0, upto, filter },
                None => Generation::read(connection, rows, upto)?,
            });
            fit(&mut generations);
        }
        Ok(Self {
            recent: vec![Bucket::default(); BUCKETS],
            recent_count: 0,
            catches_up: false,
            generations,
            sweep: Sweep { bucket: 0, upto: head },
            earlier: connection.query_row("SELECT EXISTS (SELECT 1 FROM event_id)", [], |row| row.get(0))?,
            undo: Vec::new(),
            written: None,
        })
    }

    fn remember(&mut self, known: Known) {
        self.recent[bucket_of(known.id)].push(known);
        self.recent_count += 1;
    }

    fn forget(&mut self, id: EventId) -> Option<Known> {
        let known = self.recent[bucket_of(id)].take(id)?;
        self.recent_count -= 1;
        Some(known)
    }

    /// This much of the sweep is durable.
    fn written(&mut self, written: Written) {
        let Some(generation) = self.generations.last_mut() else { return };
        for bucket in &mut self.recent[written.buckets] {
            self.recent_count -= bucket.known.len();
            generation.count += bucket.known.len();
            bucket.clear();
        }
        generation.rows.sweeps = written.sweeps;
        self.sweep = written.then;
        self.catches_up = self.catches_up && self.sweep.bucket > 0;
        if written.ended.is_some() {
            generation.upto = written.ended;
            let next = Generation::new(generation.rows.next());
            self.generations.push(next);
            fit(&mut self.generations);
        }
    }
}

/// Folds the largest filters, the oldest first, until all are within their bound.
fn fit(generations: &mut [Generation]) {
    while generations.iter().map(|generation| generation.filter.bytes()).sum::<usize>() > FILTERS_BYTES_MAX {
        // Of several that are largest `max_by_key` takes the last.
        let Some(largest) = generations.iter_mut().rev().max_by_key(|generation| generation.filter.bytes())
        else {
            return;
        };
        largest.filter.fold();
    }
}

impl Generation {
    fn new(rows: Rows) -> Self {
        Self { rows, count: 0, upto: None, filter: Filter::new() }
    }

    /// One without a filter in the file: it is not full yet.
    fn read(connection: &Connection, rows: Rows, upto: Option<Position>) -> rusqlite::Result<Self> {
        let mut generation = Self { upto, ..Self::new(rows) };
        let mut select =
            connection.prepare_cached("SELECT entries FROM id_bucket WHERE number >= ? AND number < ?")?;
        let numbers = numbers(rows.generation);
        let mut found = select.query([numbers.start, numbers.end])?;
        while let Some(row) = found.next()? {
            for entry in row.get_ref(0)?.as_blob()?.as_chunks::<ENTRY_BYTES>().0 {
                generation.filter.add(entry_of(entry).0);
                generation.count += 1;
            }
        }
        Ok(generation)
    }

    /// Writes that it is full, and the beginning of the next.
    fn end(&self, connection: &Connection, upto: Position) -> rusqlite::Result<()> {
        connection.execute(
            "UPDATE generation SET upto = ?, filter = ? WHERE number = ?",
            params![seq(upto), self.filter.to_blob(), self.rows.generation],
        )?;
        let next = self.rows.next().generation;
        connection.execute("INSERT INTO generation (number) VALUES (?)", [next]).map(drop)
    }
}

impl Bucket {
    fn find(&self, id: EventId) -> Option<&Known> {
        if !self.tags.contains(&tag_of(id)) {
            return None;
        }
        self.known.iter().find(|known| known.id == id)
    }

    fn push(&mut self, known: Known) {
        self.tags.push(tag_of(known.id));
        self.known.push(known);
    }

    fn take(&mut self, id: EventId) -> Option<Known> {
        let at = self.known.iter().rposition(|known| known.id == id)?;
        self.tags.swap_remove(at);
        Some(self.known.swap_remove(at))
    }

    fn clear(&mut self) {
        self.tags.clear();
        self.known.clear();
    }
}

/// The row of a bucket.
fn entries(bucket: &[Known]) -> Vec<u8> {
    let entry = |known: &Known| [tag_of(known.id).to_be_bytes(), known.position.0.to_be_bytes()];
    bucket.iter().flat_map(entry).flatten().collect()
}

/// A tag, and a position where its id may be.
fn entry_of(entry: &[u8; ENTRY_BYTES]) -> (Tag, Position) {
    let both = u128::from_be_bytes(*entry);
    ((both >> 64) as u64, Position(both as u64))
}

impl Rows {
    /// Of a row `number, sweeps, by_bucket`.
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { generation: row.get(0)?, sweeps: row.get(1)?, by_bucket: row.get(2)? })
    }

    /// Those of the generation behind this one.
    const fn next(self) -> Self {
        Self { generation: self.generation + 1, sweeps: 0, by_bucket: false }
    }

    /// Where an id may be, they say.
    fn places(self, connection: &Connection, id: EventId) -> rusqlite::Result<Vec<Position>> {
        let (tag, bucket) = (tag_of(id), bucket_of(id));
        let mut places = Vec::new();
        let mut select =
            connection.prepare_cached("SELECT entries FROM id_bucket WHERE number >= ? AND number < ?")?;
        let mut look = |numbers: Range<i64>| {
            let mut found = select.query([numbers.start, numbers.end])?;
            while let Some(row) = found.next()? {
                let entries = row.get_ref(0)?.as_blob()?.as_chunks().0.iter().map(entry_of);
                places.extend(entries.filter(|(other, _)| *other == tag).map(|(_, position)| position));
            }
            Ok::<_, rusqlite::Error>(())
        };
        if self.by_bucket {
            // The bucket was above the sweep.
            let first =
                numbers(self.generation).start + (i64::try_from(bucket).unwrap_or_default() << SWEEP_BITS);
            look(first..first + (1 << SWEEP_BITS))?;
        } else {
            for sweep in 0..=self.sweeps {
                let number = number(self.generation, sweep, bucket);
                look(number..number + 1)?;
            }
        }
        Ok(places)
    }
}

/// Where an id is, say versions before 3.
fn earlier(connection: &Connection, id: EventId) -> rusqlite::Result<Option<Position>> {
    connection
        .prepare_cached("SELECT seq FROM event_id WHERE id = ?")?
        .query_row([id.as_bytes()], |row| rows::position(row, 0))
        .optional()
}

/// The fingerprint of the event at this position, if it has this id.
fn fingerprint(
    connection: &Connection,
    position: Position,
    id: EventId,
) -> rusqlite::Result<Option<Fingerprint>> {
    let found = log::at(connection, position, |kept| Ok((kept.id() == id).then(|| kept.fingerprint())))?;
    Ok(found.flatten())
}

/// Up to where the ids are in the table.
fn indexed(connection: &Connection) -> rusqlite::Result<Position> {
    connection.query_row("SELECT seq FROM indexed", [], |row| rows::position(row, 0))
}

/// Where the event of this id is, for those who only read and have no filters.
pub(super) fn position(connection: &Connection, id: EventId) -> rusqlite::Result<Option<Position>> {
    // One state of the store for all questions: ids move from the log's end into the table.
    let snapshot = connection.unchecked_transaction()?;
    let mut found: Vec<Position> = earlier(&snapshot, id)?.into_iter().collect();
    let generations = rows::all(&snapshot, "SELECT number, sweeps, by_bucket FROM generation", [], Rows::of)?;
    for rows in generations {
        found.extend(rows.places(&snapshot, id)?);
    }
    for place in found {
        if fingerprint(&snapshot, place, id)?.is_some() {
            return Ok(Some(place));
        }
    }
    let mut newest = None;
    log::read(&snapshot, indexed(&snapshot)?, |position, kept| {
        newest = (kept.id() == id).then_some(position);
        Ok(if newest.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::event::Event;
    use crate::storage::conformance;
    use crate::storage::embedded::log::Batch;

    const PRINT: Fingerprint = Fingerprint::from_bytes([7; 16]);

    fn id(key: u64) -> EventId {
        EventId::derive("ids", [key.to_be_bytes().as_slice()])
    }

    fn event(key: u64) -> Event {
        Event { id: id(key), fingerprint: PRINT, ..conformance::event(key) }
    }

    /// A log of ids, and what ought to be known. A group is a transaction.
    struct Log {
        connection: Connection,
        ids: Ids,
        head: u64,
        known: BTreeMap<u64, Position>,
    }

    impl Log {
        fn new() -> Self {
            let connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(crate::storage::tables::SCHEMA).unwrap();
            let ids = Ids::load(&connection, Position(0), Arc::default()).unwrap();
            Self { connection, ids, head: 0, known: BTreeMap::new() }
        }

        fn reopen(&mut self) {
            self.ids = Ids::load(&self.connection, Position(self.head), Arc::default()).unwrap();
        }

        /// One group: it puts these keys into the log, prunes those, and is committed or not.
        fn group(&mut self, put: Range<u64>, pruned: Range<u64>, commits: bool) {
            self.connection.execute_batch("BEGIN").unwrap();
            let (writes, before) = (put.clone().count(), self.head);
            for key in put.clone() {
                self.head += 1;
                let (event, position) = (event(key), Position(self.head));
                let mut batch = Batch::default();
                batch.add(&log::Entry::of(event.clone()).unwrap());
                assert!(batch.write(&self.connection, position).unwrap());
                self.ids.add(event.id, position, event.fingerprint);
            }
            for key in pruned.clone() {
                let place = self.known.get(&key).copied().map(seq);
                self.connection.execute("DELETE FROM batch WHERE last = ?", [place]).unwrap();
                self.connection.execute("DELETE FROM event WHERE seq = ?", [place]).unwrap();
                self.ids.remove(&self.connection, id(key)).unwrap();
            }
            self.ids.drop_generations(&self.connection, 16).unwrap();
            self.ids.sweep(&self.connection, writes, Position(self.head)).unwrap();
            if commits {
                self.connection.execute_batch("COMMIT").unwrap();
                self.ids.committed();
                self.known.extend(put.zip((before + 1..).map(Position)));
                self.known.retain(|key, _| !pruned.contains(key));
            } else {
                self.connection.execute_batch("ROLLBACK").unwrap();
                self.ids.undo(0);
                self.head = before;
            }
        }

        fn knows(&self, key: u64) -> bool {
            let found = self.ids.find(&self.connection, id(key)).unwrap();
            assert!(found.is_none_or(|found| found == PRINT));
            found.is_some()
        }

        fn must_know_what_it_has(&self, keys: Range<u64>) {
            for key in keys {
                assert_eq!(self.knows(key), self.known.contains_key(&key), "{key}");
                let place = position(&self.connection, id(key)).unwrap();
                assert_eq!(place.is_some(), self.known.contains_key(&key), "{key}, to those who read");
            }
        }

        fn count(&self, table: &str) -> i64 {
            self.connection.query_row(&format!("SELECT COUNT(*) FROM {table}"), [], |row| row.get(0)).unwrap()
        }

        fn indexed(&self) -> i64 {
            self.connection.query_row("SELECT seq FROM indexed", [], |row| row.get(0)).unwrap()
        }
    }

    #[test]
    fn ids_are_known_wherever_they_are_and_after_whatever_ends() {
        let mut log = Log::new();
        let mut last = 0;
        for step in 0..300 {
            let keys = last..last + 1 + step % 23;
            last = keys.end;
            // What is undone comes again, at other positions.
            if step % 5 == 0 {
                log.group(keys.start + 1..keys.end, 0..0, false);
            }
            log.group(keys, 0..0, true);
            if step % 37 == 0 {
                log.reopen();
            }
            if step % 50 == 0 {
                log.must_know_what_it_has(0..last + 20);
            }
        }
        log.must_know_what_it_has(0..last + 20);
        assert!(log.count("generation") > 8, "more than there is room for without folding");
        let state = log.ids.state.borrow();
        let bytes: usize = state.generations.iter().map(|generation| generation.filter.bytes()).sum();
        assert!(bytes <= FILTERS_BYTES_MAX && bytes > FILTERS_BYTES_MAX / 2);
        assert!(state.recent_count <= RECENT_MAX);
    }

    #[test]
    fn pruned_ids_are_new_again_and_their_generations_go() {
        let mut log = Log::new();
        let last = 10 * GENERATION_MAX as u64;
        for first in (0..last).step_by(16) {
            log.group(first..first + 16, 0..0, true);
        }
        let (generations, rows) = (log.count("generation"), log.count("id_bucket"));
        for first in (0..last - 64).step_by(16) {
            log.group(0..0, first..first + 16, false);
            if first % 160 == 0 {
                log.must_know_what_it_has(first..first + 40);
            }
            log.group(0..0, first..first + 16, true);
            if first % 480 == 0 {
                log.reopen();
            }
        }
        for _ in 0..rows {
            log.group(0..0, 0..0, true);
        }
        log.must_know_what_it_has(0..last);
        assert!(generations > 4 && log.count("generation") <= 2, "{generations}");
        assert!(log.count("id_bucket") < rows / 4, "{} of {rows}", log.count("id_bucket"));
        log.group(0..100, 0..0, true);
        log.must_know_what_it_has(0..last);
    }

    #[test]
    fn a_sweep_that_is_undone_or_cut_short_is_done_again() {
        let mut log = Log::new();
        log.group(0..3 * RECENT_MAX as u64, 0..0, false);
        assert_eq!((log.count("id_bucket"), log.ids.changes()), (0, 0));
        assert_eq!(log.ids.state.borrow().recent_count, 0);
        let last = 8 * RECENT_MAX as u64 + 10;
        // Few writes, so that a sweep takes several groups.
        for first in 0..last {
            log.group(first..first + 1, 0..0, true);
        }
        let around = log.indexed();
        assert!(around > 0, "no sweep has been around");
        let bucket = log.ids.state.borrow().sweep.bucket;
        assert!(bucket > 0, "no sweep is under way");
        let rows = log.count("id_bucket");
        log.reopen();
        log.must_know_what_it_has(0..last + 10);
        for key in last..2 * last {
            log.group(key..key + 1, 0..0, true);
            log.must_know_what_it_has(key..key + 2);
        }
        assert!(log.indexed() > around && log.count("id_bucket") > rows);
        log.reopen();
        log.must_know_what_it_has(0..2 * last);
    }

    #[test]
    fn however_often_it_is_reopened_what_is_loaded_stays_bounded() {
        let mut log = Log::new();
        let some = RECENT_MAX as u64 / 2;
        for round in 0..20 {
            log.reopen();
            let loaded = log.ids.state.borrow().recent_count;
            assert!(loaded <= 3 * RECENT_MAX, "{loaded} in round {round}");
            for key in some * round..some * (round + 1) {
                log.group(key..key + 1, 0..0, true);
            }
        }
        log.reopen();
        log.must_know_what_it_has(0..20 * some);
    }

    #[test]
    fn only_what_is_committed_and_not_pruned_is_told_to_others() {
        let log = Log::new();
        let Log { connection, ids, .. } = &log;
        ids.add(id(1), Position(1), PRINT);
        assert_eq!(ids.durable.find(id(1)), None, "not committed");
        ids.undo(0);
        ids.committed();
        assert_eq!(ids.durable.find(id(1)), None, "undone");
        ids.add(id(1), Position(1), PRINT);
        ids.add(id(2), Position(2), PRINT);
        ids.remove(connection, id(2)).unwrap();
        ids.committed();
        assert_eq!(ids.durable.find(id(1)), Some(PRINT));
        assert_eq!(ids.durable.find(id(2)), None, "pruned in its own group");
        ids.remove(connection, id(1)).unwrap();
        assert_eq!(ids.durable.find(id(1)), None, "pruned");
    }

    #[test]
    fn ids_of_an_earlier_version_are_known_until_they_are_pruned() {
        let mut log = Log::new();
        log.group(0..40, 0..0, true);
        let sql = "INSERT INTO event (seq, id, source, type, received_at, fingerprint, body) \
                   VALUES (?, ?, '', '', 0, ?, x'')";
        for key in 0..40 {
            let place = position(&log.connection, id(key)).unwrap().map(seq);
            log.connection.execute(sql, params![place, id(key).as_bytes(), PRINT.as_bytes()]).unwrap();
        }
        let sql = "DELETE FROM batch; UPDATE indexed SET seq = 40; \
                   INSERT INTO event_id (id, seq) SELECT id, seq FROM event";
        log.connection.execute_batch(sql).unwrap();
        log.reopen();
        assert_eq!(log.ids.state.borrow().recent_count, 0);
        log.group(40..200, 0..0, true);
        log.must_know_what_it_has(0..210);
        log.group(0..0, 0..30, true);
        log.must_know_what_it_has(0..210);
        assert_eq!(log.count("event_id"), 10);
        log.group(0..30, 0..0, true);
        log.must_know_what_it_has(0..210);
    }

    #[test]
    fn ids_of_version_3_are_known_until_they_are_pruned() {
        let mut log = Log::new();
        let last = GENERATION_MAX as u64 * 3 / 2;
        for first in (0..last).step_by(8) {
            log.group(first..first + 8, 0..0, true);
        }
        // As it wrote them, and what the step to version 4 makes of that.
        let sql = "CREATE TEMP TABLE bucket AS SELECT * FROM id_bucket; DELETE FROM id_bucket; INSERT INTO id_bucket \
            SELECT (number & ~0xffffff) | (number & 0xfff) << 12 | (number >> 12 & 0xfff), entries FROM bucket; \
            UPDATE generation SET by_bucket = 1, upto = IFNULL(upto, (SELECT MAX(last) FROM batch)); \
            INSERT INTO generation (number) SELECT MAX(number) + 1 FROM generation";
        log.connection.execute_batch(sql).unwrap();
        let rows = log.count("id_bucket");
        assert!(rows > 0 && log.count("generation") > 2);
        log.reopen();
        log.must_know_what_it_has(0..last + 10);
        for first in (last..2 * last).step_by(8) {
            log.group(first..first + 8, 0..0, true);
        }
        log.reopen();
        log.must_know_what_it_has(0..2 * last + 10);
        log.group(0..0, 0..last, true);
        log.must_know_what_it_has(0..2 * last);
        for _ in 0..rows {
            log.group(0..0, 0..0, true);
        }
        let by_bucket = "(SELECT 1 FROM generation WHERE by_bucket)";
        assert_eq!(log.count(by_bucket), 0, "they have gone with their events");
    }

    #[test]
    fn a_filter_that_is_missing_is_read_from_the_rows() {
        let mut log = Log::new();
        for first in (0..1000).step_by(10) {
            log.group(first..first + 10, 0..0, true);
        }
        log.connection.execute("UPDATE generation SET filter = NULL WHERE number = 0", []).unwrap();
        log.connection.execute("UPDATE generation SET filter = x'00' WHERE number = 1", []).unwrap();
        log.reopen();
        log.must_know_what_it_has(0..1010);
    }
}
