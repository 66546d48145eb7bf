//! The side of the seam for deliveries that are not finished, or ended badly.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, params};

use super::Embedded;
use super::events::append;
use super::log::Entry;
use super::writer::Session;
use crate::event::EventId;
use crate::storage::tables::deliveries::{
    self, dropped, forget, keep_letter, number_of, park, parked_of, record_deliveries,
};
use crate::storage::tables::rows::millis;
use crate::storage::{
    Appended, Controls, DeadFilter, DeadLetter, Delivered, Deliveries, KeptLetters, OnConflict, Parked,
    ParkedFilter, Position, Quarantined, StorageError,
};

#[async_trait]
impl Deliveries for Embedded {
    async fn park(&self, parked: Parked) -> Result<(), StorageError> {
        self.writer.write("parking a delivery", move |session| park(&session.connection, &parked)).await
    }

    async fn park_again(&self, parked: Parked) -> Result<bool, StorageError> {
        let park_again = move |session: &Session| {
            let connection = &session.connection;
            let is_parked = deliveries::is_parked(connection, &parked.destination, parked.event.id)?;
            if is_parked {
                park(connection, &parked)?;
            }
            Ok(is_parked)
        };
        self.writer.write("parking a delivery", park_again).await
    }

    async fn due(
        &self,
        destination: &str,
        now: Timestamp,
        ordered: bool,
        limit: usize,
    ) -> Result<Vec<Parked>, StorageError> {
        self.readers.due(destination, None, now, ordered, limit).await
    }

    async fn next_due(&self, destination: &str, ordered: bool) -> Result<Option<Timestamp>, StorageError> {
        self.readers.next_due(destination, None, ordered).await
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
                record_deliveries(&session.connection, destination, &[delivered])
            })
            .await
    }

    async fn bury(&self, letter: DeadLetter) -> Result<(), StorageError> {
        self.writer.write("keeping a dead letter", move |session| bury(&session.connection, &letter)).await
    }

    async fn held_subjects(&self, destination: &str) -> Result<Vec<(Arc<str>, u64)>, StorageError> {
        self.readers.held_subjects(destination, None).await
    }

    async fn parked_count(&self, destination: &str) -> Result<u64, StorageError> {
        self.readers.parked_count(destination, None).await
    }

    async fn parked(&self, filter: ParkedFilter) -> Result<Vec<Parked>, StorageError> {
        self.readers.parked(filter).await
    }

    async fn hurry(
        &self,
        id: EventId,
        destination: Option<&str>,
        now: Timestamp,
    ) -> Result<usize, StorageError> {
        let name = destination.map(str::to_owned);
        let hurry = move |session: &Session| {
            let sql = "UPDATE parked SET due = MIN(due, ?1) WHERE id = ?2 AND \
                       (?3 IS NULL OR destination = (SELECT number FROM destination WHERE name = ?3))";
            session.connection.execute(sql, params![millis(now), id.as_bytes(), name])
        };
        self.writer.control("hurrying a parked delivery", hurry, by_hand(destination)).await
    }

    async fn drop_parked(
        &self,
        id: EventId,
        destination: Option<&str>,
        now: Timestamp,
    ) -> Result<usize, StorageError> {
        let name = destination.map(str::to_owned);
        let drop = move |session: &Session| {
            let found = parked_of(&session.connection, id, name)?;
            for parked in &found {
                bury(&session.connection, &dropped(parked, now))?;
            }
            Ok(found.len())
        };
        self.writer.control("dropping a parked delivery", drop, by_hand(destination)).await
    }

    async fn dead(&self, filter: DeadFilter) -> Result<Vec<DeadLetter>, StorageError> {
        self.readers.dead(filter).await
    }

    async fn quarantined(&self) -> Result<Vec<Quarantined>, StorageError> {
        self.readers.quarantined().await
    }

    async fn letters_before(&self, at: Timestamp) -> Result<Vec<KeptLetters>, StorageError> {
        self.readers.letters_before(at).await
    }

    async fn redrive(&self, numbers: &[u64], now: Timestamp) -> Result<usize, StorageError> {
        let numbers = numbers.to_vec();
        let redrive = move |session: &Session| {
            let mut found = 0;
            for number in numbers {
                found += usize::from(redrive(session, number, now)?);
            }
            Ok(found)
        };
        self.writer.control("redriving dead letters", redrive, by_hand(None)).await
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

/// That parked deliveries of a destination, or of any, were changed by hand.
fn by_hand(destination: Option<&str>) -> impl FnOnce(&mut Controls, &usize) + Send + use<> {
    let name: Option<Arc<str>> = destination.map(Arc::from);
    move |controls, _| match name {
        Some(name) => controls.entry(name).or_default().by_hand += 1,
        None => controls.values_mut().for_each(|control| control.by_hand += 1),
    }
}

/// Keeps a letter and forgets the parked delivery it may have come from.
fn bury(connection: &Connection, letter: &DeadLetter) -> rusqlite::Result<()> {
    keep_letter(connection, letter)?;
    let Some(name) = &letter.destination else { return Ok(()) };
    forget(connection, number_of(connection, name)?, letter.event.id)
}

/// Sends one letter on its way again; false if there is none of that number.
fn redrive(session: &Session, number: u64, now: Timestamp) -> rusqlite::Result<bool> {
    let connection = &session.connection;
    let Some(letter) = deliveries::letter(connection, number)? else { return Ok(false) };
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
    connection.execute("DELETE FROM dead WHERE number = ?", [number.cast_signed()])?;
    Ok(true)
}

/// Puts a quarantined event into the log, under an id of its own where its id belongs to other content.
fn admit(session: &Session, letter: DeadLetter, now: Timestamp) -> rusqlite::Result<()> {
    let mut event = letter.event;
    event.received_at = now;
    if append(session, &Entry::of(event.clone())?, OnConflict::Duplicate)? == Appended::Duplicate
        && session.known(event.id)? != Some(event.fingerprint)
    {
        event.id = EventId::of_redriven(&event);
        append(session, &Entry::of(event)?, OnConflict::Duplicate)?;
    }
    Ok(())
}
