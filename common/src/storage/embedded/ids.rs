//! Which ids are in the log: the deduplication.
//!
//! Ids are digests, so a table ordered by id is written all over: one page per event, where the event itself
//! shares its page with a dozen others. That page was most of what an accept cost. So the newest ids are kept
//! in memory and go into the table `event_id` later, many at a time and sorted, which writes each page once
//! for many of them.
//!
//! What is kept in memory is in the log, too: the table `indexed` holds the position up to which `event_id` is
//! complete, and opening the store reads the ids of the events behind it. So nothing depends on a merge
//! having been finished, or begun. Bounded by [`MERGE_AT`] and what arrives while a merge is under way.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{CachedStatement, Connection, OptionalExtension as _, params};

use super::durable::Durable;
use crate::event::{EventId, Fingerprint};
use crate::storage::Position;
use crate::storage::tables::rows::{self, seq};

/// Ids in memory at which a merge begins: 4 MiB of them, and a pause of a few milliseconds to sort. Few in
/// tests, which cannot wait for many.
const MERGE_AT: usize = if cfg!(test) { 64 } else { 32 * 1024 };
/// Ids merged with each group, at least. With it a merge is through long before the next is due.
const SLICE_MIN: usize = if cfg!(test) { 8 } else { 256 };
/// Ids merged for each write of a group.
const SLICE_PER_WRITE: usize = 4;

/// By id. An id is a digest already, so the hash only has to be one that a sender cannot foresee.
pub(super) type ById<T> = HashMap<EventId, T, foldhash::fast::RandomState>;

#[derive(Clone, Copy)]
struct Known {
    position: Position,
    fingerprint: Fingerprint,
}

/// The ids, as the writing thread has them.
pub(super) struct Ids {
    state: RefCell<State>,
    /// Those of them that anybody may ask for.
    durable: Arc<Durable>,
}

struct State {
    /// Behind what `indexed` says, all of them; what a merge under way has written is gone from here already.
    recent: ById<Known>,
    /// How to undo what the group under way has changed, oldest first.
    undo: Vec<Undo>,
    merge: Option<Merge>,
    /// Ids of the merge that this group has written.
    slice: usize,
}

enum Undo {
    Added(EventId, Fingerprint),
    Removed(EventId, Known),
}

/// A merge under way.
struct Merge {
    /// Sorted by id, from the end: what is done is taken off.
    left: Vec<(EventId, Position)>,
    /// `event_id` is complete up to here when nothing is left.
    upto: Position,
}

impl Ids {
    /// Reads what `event_id` does not have yet. `durable` is told of what is in the log, and what no longer is.
    pub(super) fn load(connection: &Connection, durable: Arc<Durable>) -> rusqlite::Result<Self> {
        let sql = "SELECT seq, id, fingerprint FROM event WHERE seq > (SELECT seq FROM indexed)";
        let recent = rows::all(connection, sql, [], |row| {
            let fingerprint = Fingerprint::from_bytes(row.get(2)?);
            Ok((EventId::from_bytes(row.get(1)?), Known { position: rows::position(row, 0)?, fingerprint }))
        })?;
        let recent: ById<Known> = recent.into_iter().collect();
        for (id, known) in &recent {
            durable.add(*id, known.fingerprint);
        }
        let state = RefCell::new(State { recent, undo: Vec::new(), merge: None, slice: 0 });
        Ok(Self { state, durable })
    }

    /// The fingerprint of the event that has this id; none if the id is new. `merged` is what
    /// [`Ids::merged`] has prepared.
    pub(super) fn find(
        &self,
        connection: &Connection,
        merged: &mut CachedStatement<'_>,
        id: EventId,
    ) -> rusqlite::Result<Option<Fingerprint>> {
        if let Some(known) = self.state.borrow().recent.get(&id) {
            return Ok(Some(known.fingerprint));
        }
        let found: Option<i64> = merged.query_row([id.as_bytes()], |row| row.get(0)).optional()?;
        let Some(found) = found else { return Ok(None) };
        connection
            .prepare_cached("SELECT fingerprint FROM event WHERE seq = ?")?
            .query_row([found], |row| row.get(0).map(Fingerprint::from_bytes))
            .map(Some)
    }

    /// The look into what is merged.
    pub(super) fn merged(connection: &Connection) -> rusqlite::Result<CachedStatement<'_>> {
        connection.prepare_cached("SELECT seq FROM event_id WHERE id = ?")
    }

    /// An event has been put into the log.
    pub(super) fn add(&self, id: EventId, position: Position, fingerprint: Fingerprint) {
        let mut state = self.state.borrow_mut();
        state.recent.insert(id, Known { position, fingerprint });
        state.undo.push(Undo::Added(id, fingerprint));
    }

    /// An event is taken out of the log.
    pub(super) fn remove(&self, connection: &Connection, id: EventId) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM event_id WHERE id = ?")?.execute([id.as_bytes()])?;
        self.durable.remove(id);
        let mut state = self.state.borrow_mut();
        if let Some(known) = state.recent.remove(&id) {
            state.undo.push(Undo::Removed(id, known));
        }
        Ok(())
    }

    /// How much the group under way has changed, for [`Ids::undo`].
    pub(super) fn changes(&self) -> usize {
        self.state.borrow().undo.len()
    }

    /// Takes back what has been changed since there were `changes` of them.
    pub(super) fn undo(&self, changes: usize) {
        let mut state = self.state.borrow_mut();
        for undo in state.undo.split_off(changes).into_iter().rev() {
            match undo {
                Undo::Added(id, _) => state.recent.remove(&id),
                Undo::Removed(id, known) => state.recent.insert(id, known),
            };
        }
    }

    /// Merges a little, inside the group's transaction.
    pub(super) fn merge(&self, connection: &Connection, writes: usize) -> rusqlite::Result<()> {
        let mut state = self.state.borrow_mut();
        state.slice = 0;
        if state.merge.is_none() && state.recent.len() >= MERGE_AT {
            state.merge = Some(Merge::of(&state.recent));
        }
        let Some(merge) = &state.merge else { return Ok(()) };
        let slice = merge.left.len().min(SLICE_MIN.max(writes * SLICE_PER_WRITE));
        let first = merge.left.len() - slice;
        let mut insert =
            connection.prepare_cached("INSERT OR IGNORE INTO event_id (id, seq) VALUES (?, ?)")?;
        for (id, position) in merge.left[first..].iter().rev() {
            // One that was pruned meanwhile must not come back.
            if state.recent.get(id).is_some_and(|known| known.position == *position) {
                insert.execute(params![id.as_bytes(), seq(*position)])?;
            }
        }
        if first == 0 {
            connection.prepare_cached("UPDATE indexed SET seq = ?")?.execute([seq(merge.upto)])?;
        }
        state.slice = slice;
        Ok(())
    }

    /// The group is durable.
    pub(super) fn committed(&self) {
        let state = &mut *self.state.borrow_mut();
        for undo in state.undo.drain(..) {
            match undo {
                Undo::Added(id, fingerprint) => self.durable.add(id, fingerprint),
                Undo::Removed(id, _) => self.durable.remove(id),
            }
        }
        let Some(merge) = &mut state.merge else { return };
        for (id, _) in merge.left.drain(merge.left.len() - state.slice..) {
            state.recent.remove(&id);
        }
        state.slice = 0;
        if merge.left.is_empty() {
            state.merge = None;
        }
    }
}

impl Merge {
    fn of(recent: &ById<Known>) -> Self {
        let mut left: Vec<_> = recent.iter().map(|(id, known)| (*id, known.position)).collect();
        left.sort_unstable_by(|one, other| other.cmp(one));
        let upto = left.iter().map(|(_, position)| *position).max().unwrap_or_default();
        Self { left, upto }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(crate::storage::tables::SCHEMA).unwrap();
        connection
    }

    fn id(key: u64) -> EventId {
        EventId::derive("ids", [key.to_be_bytes().as_slice()])
    }

    fn load(connection: &Connection) -> Ids {
        Ids::load(connection, Arc::default()).unwrap()
    }

    fn find(ids: &Ids, connection: &Connection, id: EventId) -> Option<Fingerprint> {
        ids.find(connection, &mut Ids::merged(connection).unwrap(), id).unwrap()
    }

    const PRINT: Fingerprint = Fingerprint::from_bytes([7; 16]);

    #[test]
    fn what_a_group_has_changed_is_taken_back_with_it() {
        let connection = database();
        let ids = load(&connection);
        ids.add(id(1), Position(1), PRINT);
        ids.committed();
        ids.remove(&connection, id(1)).unwrap();
        let changes = ids.changes();
        ids.add(id(2), Position(2), PRINT);
        ids.undo(changes);
        assert_eq!(find(&ids, &connection, id(2)), None);
        ids.undo(0);
        assert_eq!(find(&ids, &connection, id(1)), Some(PRINT));
    }

    #[test]
    fn only_what_is_committed_and_not_pruned_is_told_to_others() {
        let connection = database();
        let ids = load(&connection);
        ids.add(id(1), Position(1), PRINT);
        assert_eq!(ids.durable.find(id(1)), None, "not committed");
        ids.undo(0);
        ids.committed();
        assert_eq!(ids.durable.find(id(1)), None, "undone");
        ids.add(id(1), Position(1), PRINT);
        ids.add(id(2), Position(2), PRINT);
        ids.remove(&connection, id(2)).unwrap();
        ids.committed();
        assert_eq!(ids.durable.find(id(1)), Some(PRINT));
        assert_eq!(ids.durable.find(id(2)), None, "pruned in its own group");
        ids.remove(&connection, id(1)).unwrap();
        assert_eq!(ids.durable.find(id(1)), None, "pruned");
    }

    #[test]
    fn a_slice_that_was_not_committed_is_merged_again() {
        let connection = database();
        let ids = load(&connection);
        for key in 1..=MERGE_AT as u64 {
            ids.add(id(key), Position(key), PRINT);
        }
        ids.committed();
        let merged =
            || connection.query_row("SELECT COUNT(*) FROM event_id", [], |row| row.get::<_, i64>(0)).unwrap();
        for _ in 0..2 {
            connection.execute_batch("BEGIN").unwrap();
            ids.merge(&connection, 1).unwrap();
            connection.execute_batch("ROLLBACK").unwrap();
            ids.undo(0);
            assert_eq!(merged(), 0);
        }
        while connection.query_row("SELECT seq FROM indexed", [], |row| row.get::<_, i64>(0)).unwrap() == 0 {
            ids.merge(&connection, 1).unwrap();
            ids.committed();
        }
        assert_eq!(merged(), i64::try_from(MERGE_AT).unwrap());
        assert!(ids.state.borrow().recent.is_empty());
    }

    #[test]
    fn an_event_that_is_pruned_while_its_id_is_merged_does_not_come_back() {
        let connection = database();
        let ids = load(&connection);
        for key in 1..=MERGE_AT as u64 {
            ids.add(id(key), Position(key), PRINT);
        }
        ids.committed();
        for _ in 0..MERGE_AT {
            ids.merge(&connection, 1).unwrap();
            ids.committed();
            for key in 1..=MERGE_AT as u64 {
                ids.remove(&connection, id(key)).unwrap();
            }
        }
        assert_eq!(find(&ids, &connection, id(1)), None);
    }
}
