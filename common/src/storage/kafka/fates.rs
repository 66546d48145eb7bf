//! What became of events: progress by destination, and the fates of one event.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use rusqlite::OptionalExtension as _;

use super::Kafka;
use super::query::Extent;
use crate::event::EventId;
use crate::storage::tables::rows;
use crate::storage::{
    Cursor, DeadFilter, EventFilter, Fate, FateState, ParkedFilter, Position, Progress, StorageError,
};

impl Kafka {
    pub(super) async fn progress(&self) -> Result<Vec<Progress>, StorageError> {
        let known = self.view()?.controls().destinations.clone();
        let extents = self.extents().await?;
        let mut all = Vec::new();
        for (name, control) in known {
            let destination: Arc<str> = name.into();
            let marks = self.marks(&destination, &extents).await?;
            let behind: Vec<Extent> = extents
                .iter()
                .map(|extent| Extent { first: marks[&extent.partition].max(extent.first), ..*extent })
                .collect();
            let furthest = behind.iter().max_by_key(|extent| extent.end.saturating_sub(extent.first));
            let mark = furthest
                .map_or(Position(0), |extent| Position::new(extent.partition, marks[&extent.partition]));
            let lag = behind.iter().map(|extent| extent.end.saturating_sub(extent.first)).sum();
            let oldest_unsettled = self.oldest_of(&destination, behind).await?;
            let (parked, dead, oldest_dead) = self.counts(&destination).await?;
            all.push(Progress {
                destination,
                mark,
                lag,
                oldest_unsettled,
                paused: control.paused,
                parked,
                dead,
                oldest_dead,
            });
        }
        Ok(all)
    }

    /// When the oldest event of these was received. Where nothing moves nothing is read again.
    async fn oldest_of(
        &self,
        destination: &Arc<str>,
        behind: Vec<Extent>,
    ) -> Result<Option<Timestamp>, StorageError> {
        // Of a partition where nothing is left there is nothing to read, and its end may move.
        let places = |extent: &Extent| if extent.first < extent.end { extent.first + 1 } else { 0 };
        let marks: Vec<u64> = behind.iter().map(places).collect();
        let last = self.oldest.lock().unwrap_or_else(PoisonError::into_inner).get(destination).cloned();
        if let Some((known, oldest)) = last
            && known == marks
        {
            return Ok(oldest);
        }
        let oldest = self
            .query()?
            .ask(move |asked| {
                let mut oldest = None;
                for extent in behind {
                    let first = asked.first(extent)?.map(|record| record.event.received_at);
                    oldest = oldest.into_iter().chain(first).min();
                }
                Ok(oldest)
            })
            .await?;
        let mut kept = self.oldest.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(Arc::clone(destination), (marks, oldest));
        Ok(oldest)
    }

    /// How far a destination is in each partition.
    async fn marks(
        &self,
        destination: &Arc<str>,
        extents: &[Extent],
    ) -> Result<BTreeMap<u32, u64>, StorageError> {
        let cursor = Cursor::of(Arc::clone(destination));
        let committed = self.progress_of(&cursor, extents).await?;
        let mark =
            |extent: &Extent| committed.get(&extent.partition).map_or(extent.first, |found| found.mark);
        Ok(extents.iter().map(|extent| (extent.partition, mark(extent))).collect())
    }

    async fn counts(&self, destination: &Arc<str>) -> Result<(u64, u64, Option<Timestamp>), StorageError> {
        let name = Arc::clone(destination);
        self.view()?
            .readers
            .read("counting parked and dead deliveries", move |connection| {
                let sql = "SELECT (SELECT COUNT(*) FROM parked WHERE parked.destination = destination.number), \
                             (SELECT COUNT(*) FROM dead WHERE dead.destination = destination.number), \
                             (SELECT MIN(at) FROM dead WHERE dead.destination = destination.number) \
                           FROM destination WHERE name = ?";
                let counts = connection
                    .prepare_cached(sql)?
                    .query_row([&*name], |row| Ok((rows::unsigned(row, 0)?, rows::unsigned(row, 1)?, rows::optional_time(row, 2)?)))
                    .optional()?;
                Ok(counts.unwrap_or_default())
            })
            .await
    }

    pub(super) async fn fates(&self, id: EventId) -> Result<Vec<Fate>, StorageError> {
        let wanted = EventFilter { id: Some(id), limit: 1, ..EventFilter::default() };
        let found = self.search()?.ask(move |asked| super::events::find(asked, &wanted)).await?;
        let position = found.first().map(|record| record.position);
        let parked =
            self.view()?.readers.parked(ParkedFilter { id: Some(id), ..ParkedFilter::default() }).await?;
        let dead = self.view()?.readers.dead(DeadFilter { id: Some(id), ..DeadFilter::default() }).await?;
        let known = self.view()?.controls().destinations.clone();
        let extents = if position.is_some() { self.extents().await? } else { Vec::new() };
        let mut fates = Vec::new();
        for name in known.into_keys() {
            let destination: Arc<str> = name.into();
            let parked = parked.iter().find(|parked| parked.destination == destination);
            let dead = dead.iter().find(|letter| letter.destination.as_ref() == Some(&destination));
            let state = match (parked, dead, position) {
                (Some(parked), ..) => FateState::Parked {
                    due: parked.due,
                    attempts: parked.attempts,
                    reason: parked
                        .history
                        .last()
                        .map_or_else(|| "behind".to_owned(), |failure| failure.result.clone()),
                },
                (None, Some(letter), _) => {
                    let dead = FateState::Dead {
                        at: letter.at,
                        attempts: letter.attempts,
                        reason: letter.reason.to_string(),
                    };
                    match position {
                        Some(position) => self.delivered(&destination, position).await?,
                        None => None,
                    }
                    .filter(|state| matches!(state, FateState::Delivered { at, .. } if *at >= letter.at))
                    .unwrap_or(dead)
                }
                (None, None, Some(position)) => self.fate_in_log(&destination, position, &extents).await?,
                (None, None, None) => continue,
            };
            fates.push(Fate { destination, state });
        }
        Ok(fates)
    }

    /// That it was delivered, as far as this process has seen it.
    pub(super) async fn delivered(
        &self,
        destination: &Arc<str>,
        position: Position,
    ) -> Result<Option<FateState>, StorageError> {
        let name = Arc::clone(destination);
        let reading = self.view()?.readers.read("reading when an event was delivered", move |connection| {
            let sql = "SELECT at, attempts FROM delivered JOIN destination ON number = destination \
                       WHERE name = ? AND seq = ?";
            connection
                .prepare_cached(sql)?
                .query_row(rusqlite::params![&*name, rows::seq(position)], |row| {
                    Ok(FateState::Delivered { at: rows::time(row, 0)?, attempts: rows::unsigned(row, 1)? })
                })
                .optional()
        });
        reading.await
    }

    /// Of an event that is neither parked nor dead.
    async fn fate_in_log(
        &self,
        destination: &Arc<str>,
        position: Position,
        extents: &[Extent],
    ) -> Result<FateState, StorageError> {
        if let Some(delivered) = self.delivered(destination, position).await? {
            return Ok(delivered);
        }
        let marks = self.marks(destination, extents).await?;
        let seen = self.seen().get(&(Arc::clone(destination), position.partition())).copied();
        Ok(if marks.get(&position.partition()).is_none_or(|mark| position.place() > *mark) {
            FateState::Waiting
        } else if seen.is_some_and(|from| position.place() > from) {
            FateState::Skipped
        } else {
            FateState::Settled
        })
    }
}
