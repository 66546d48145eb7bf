//! The side of the seam for deliveries that are not finished, or ended badly: writes are appended to a topic,
//! questions are answered from the view of it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::Connection;
use tokio::time::Instant;

use super::Kafka;
use super::append::QUARANTINING;
use super::events::ToItsEnd;
use super::record::Outgoing;
use super::view::{DEAD, PARKED};
use crate::event::{Event, EventId};
use crate::storage::tables::deliveries::{self, dropped, letter, parked_of};
use crate::storage::{
    Appended, DeadFilter, DeadLetter, Delivered, Deliveries, FateState, KeptLetters, OnConflict, Parked,
    ParkedFilter, Position, Quarantined, StorageError,
};

/// How long a redriven delivery is not due, until its letter is gone: it could die anew before that, and the two letters
/// have one key. Longer than the producer tries to write the letter's end (`delivery.timeout.ms`, two minutes). Should
/// this process end in between, that is how long it waits.
const REDRIVE_HOLD: Duration = Duration::from_secs(150);
/// How long a call waits for the ends of burials, which are two records each; and how often it looks.
const BURIED_WITHIN: Duration = Duration::from_secs(2);
const BURIED_LOOK: Duration = Duration::from_millis(5);

/// See [`Deliveries`].
pub(super) struct Ends(pub(super) Arc<Kafka>);

impl Kafka {
    /// Appends to the parked topic and waits until the view has it.
    async fn to_parked(&self, doing: &'static str, record: Outgoing) -> Result<(), StorageError> {
        let view = self.view()?;
        let (_, offset) = self.producer.append(doing, record).await?;
        view.reached(PARKED, offset + 1).await
    }

    async fn to_dead(&self, doing: &'static str, record: Outgoing) -> Result<(), StorageError> {
        let view = self.view()?;
        let (_, offset) = self.producer.append(doing, record).await?;
        view.reached(DEAD, offset + 1).await
    }

    async fn park_by_hand(&self, parked: &Parked) -> Result<(), StorageError> {
        let record = Outgoing::parked(&self.topics.parked, parked).by_hand();
        self.to_parked("changing a parked delivery", record).await
    }

    async fn keep_letter(&self, letter: &DeadLetter) -> Result<(), StorageError> {
        self.to_dead("keeping a dead letter", Outgoing::letter(&self.topics.dead, letter)).await
    }

    /// The letter first: should this process end in between, the delivery is attempted once more. What was not due has
    /// not been attempted, and is not what is buried: a letter of the same event that is redriven.
    async fn bury(&self, letter: &DeadLetter) -> Result<(), StorageError> {
        self.keep_letter(letter).await?;
        let Some(destination) = &letter.destination else { return Ok(()) };
        let parked = self.parked_of(letter.event.id, Some(destination)).await?;
        if !parked.iter().any(|parked| parked.due <= letter.at) {
            return Ok(());
        }
        let gone = Outgoing::unparked(&self.topics.parked, destination, letter.event.id, None);
        self.to_parked("ending a parked delivery", gone).await
    }

    async fn parked_of(&self, id: EventId, destination: Option<&str>) -> Result<Vec<Parked>, StorageError> {
        let name = destination.map(str::to_owned);
        self.view()?
            .readers
            .read("looking up a parked delivery", move |connection| parked_of(connection, id, name))
            .await
    }

    async fn is_parked(&self, id: EventId, destination: &Arc<str>) -> Result<bool, StorageError> {
        let name = Arc::clone(destination);
        let is_parked = move |connection: &Connection| deliveries::is_parked(connection, &name, id);
        self.view()?.readers.read("looking up a parked delivery", is_parked).await
    }

    async fn letter(&self, number: u64) -> Result<Option<DeadLetter>, StorageError> {
        self.view()?
            .readers
            .read("looking up a dead letter", move |connection| letter(connection, number))
            .await
    }

    /// Whether these very bytes are kept as a letter without destination.
    pub(super) async fn is_quarantined(&self, event: &Event) -> Result<bool, StorageError> {
        let filter =
            DeadFilter { destination: Some(String::new()), id: Some(event.id), ..DeadFilter::default() };
        let kept = self.view()?.readers.dead(filter).await?;
        Ok(kept.iter().any(|letter| letter.event.fingerprint == event.fingerprint))
    }

    /// Keeps a letter without destination, unless these very bytes are kept already. Takes as long as the producer and
    /// the view do.
    pub(super) async fn keep_quarantined(&self, letter: DeadLetter) -> Result<bool, StorageError> {
        if self.is_quarantined(&letter.event).await? {
            return Ok(false);
        }
        let record = Outgoing::letter(&self.topics.dead, &letter);
        // The bytes are the producer's now.
        drop(letter);
        self.to_dead(QUARANTINING, record).await?;
        Ok(true)
    }

    async fn end_letter(&self, letter: &DeadLetter) -> Result<(), StorageError> {
        self.to_dead("ending a dead letter", Outgoing::no_letter(&self.topics.dead, letter)).await
    }

    /// Its new state first: should this process end in between, the letter is still there. Whether there was such a
    /// letter, and none of what is parked.
    async fn redrive(
        self: &Arc<Self>,
        number: u64,
        now: Timestamp,
        begun: Instant,
    ) -> Result<bool, StorageError> {
        let Some(letter) = self.letter(number).await? else { return Ok(false) };
        let Some(destination) = letter.destination.clone() else {
            // Who asked may go away, and must not leave a reservation behind.
            ToItsEnd::new(Arc::clone(self).admit(letter.event.clone(), now)).await?;
            return self.end_letter(&letter).await.map(|()| true);
        };
        // The end of what was parked of it would end what is parked here.
        while self.is_parked(letter.event.id, &destination).await? {
            if begun.elapsed() > BURIED_WITHIN {
                return Ok(false);
            }
            tokio::time::sleep(BURIED_LOOK).await;
        }
        // Meanwhile somebody else may have redriven it.
        if self.letter(number).await?.is_none() {
            return Ok(false);
        }
        self.redeliver(letter, destination, now, begun).await.map(|()| true)
    }

    /// Parks it for later, ends its letter, and makes it due: three records, which others write between.
    async fn redeliver(
        &self,
        letter: DeadLetter,
        destination: Arc<str>,
        now: Timestamp,
        begun: Instant,
    ) -> Result<(), StorageError> {
        let (id, position) = (letter.event.id, letter.position.unwrap_or(*self.head.borrow()));
        let mut parked = Parked {
            destination,
            position,
            event: letter.event.clone(),
            due: now + begun.elapsed() + REDRIVE_HOLD,
            attempts: 0,
            first_attempt: None,
            history: letter.history.clone(),
        };
        self.park_by_hand(&parked).await?;
        self.end_letter(&letter).await?;
        let destination = Arc::clone(&parked.destination);
        let held = self.parked_of(id, Some(&destination)).await?;
        // Nobody has attempted it, unless an operator wanted that: then it is not to come back.
        if held
            .iter()
            .any(|held| held.attempts == 0 && held.due.as_millisecond() == parked.due.as_millisecond())
        {
            parked.due = now;
            return self.park_by_hand(&parked).await;
        }
        if held.is_empty() && !self.has_ended(&destination, position, &letter).await? {
            return self.keep_letter(&letter).await;
        }
        Ok(())
    }

    /// Whether a redriven delivery that is not parked any more was delivered, or is a letter once more. Neither, its end
    /// and what it was redriven with have met: the end of a burial, or of the older letter, has ended the newer one.
    async fn has_ended(
        &self,
        destination: &Arc<str>,
        position: Position,
        letter: &DeadLetter,
    ) -> Result<bool, StorageError> {
        let delivered = self.delivered(destination, position).await?;
        if matches!(delivered, Some(FateState::Delivered { at, .. }) if at >= letter.at) {
            return Ok(true);
        }
        let of_it = DeadFilter {
            destination: Some(destination.to_string()),
            id: Some(letter.event.id),
            limit: 1,
            ..DeadFilter::default()
        };
        Ok(!self.view()?.readers.dead(of_it).await?.is_empty())
    }

    /// Puts a quarantined event into the log, under an id of its own where its id belongs to other content.
    async fn admit(self: Arc<Self>, mut event: Event, now: Timestamp) -> Result<(), StorageError> {
        event.received_at = now;
        if self.append(event.clone(), OnConflict::Duplicate).await? == Appended::Duplicate
            && self.stored(event.id).await? != Some(event.fingerprint)
        {
            event.id = EventId::of_redriven(&event);
            self.append(event, OnConflict::Duplicate).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Deliveries for Ends {
    async fn park(&self, parked: Parked) -> Result<(), StorageError> {
        let record = Outgoing::parked(&self.0.topics.parked, &parked);
        self.0.to_parked("parking a delivery", record).await
    }

    async fn park_again(&self, parked: Parked) -> Result<bool, StorageError> {
        let is_parked = self.0.is_parked(parked.event.id, &parked.destination).await?;
        if is_parked {
            self.park(parked).await?;
        }
        Ok(is_parked)
    }

    async fn due(
        &self,
        destination: &str,
        now: Timestamp,
        ordered: bool,
        limit: usize,
    ) -> Result<Vec<Parked>, StorageError> {
        let share = self.0.share(destination);
        self.0.view()?.readers.due(destination, share, now, ordered, limit).await
    }

    async fn next_due(&self, destination: &str, ordered: bool) -> Result<Option<Timestamp>, StorageError> {
        self.0.view()?.readers.next_due(destination, self.0.share(destination), ordered).await
    }

    async fn complete(
        &self,
        destination: &str,
        id: EventId,
        delivered: Delivered,
    ) -> Result<(), StorageError> {
        let gone = Outgoing::unparked(&self.0.topics.parked, destination, id, Some(&delivered));
        self.0.to_parked("completing a parked delivery", gone).await
    }

    async fn bury(&self, letter: DeadLetter) -> Result<(), StorageError> {
        self.0.bury(&letter).await
    }

    async fn held_subjects(&self, destination: &str) -> Result<Vec<(Arc<str>, u64)>, StorageError> {
        self.0.view()?.readers.held_subjects(destination, self.0.share(destination)).await
    }

    async fn parked_count(&self, destination: &str) -> Result<u64, StorageError> {
        self.0.view()?.readers.parked_count(destination, self.0.share(destination)).await
    }

    async fn parked(&self, filter: ParkedFilter) -> Result<Vec<Parked>, StorageError> {
        self.0.view()?.readers.parked(filter).await
    }

    async fn hurry(
        &self,
        id: EventId,
        destination: Option<&str>,
        now: Timestamp,
    ) -> Result<usize, StorageError> {
        let found = self.0.parked_of(id, destination).await?;
        // What is due may be in an attempt: to write it once more could bring back what that has just ended.
        for parked in found.iter().filter(|parked| parked.due > now) {
            self.0.park_by_hand(&Parked { due: now, ..parked.clone() }).await?;
        }
        Ok(found.len())
    }

    async fn drop_parked(
        &self,
        id: EventId,
        destination: Option<&str>,
        now: Timestamp,
    ) -> Result<usize, StorageError> {
        let found = self.0.parked_of(id, destination).await?;
        for parked in &found {
            self.0.keep_letter(&dropped(parked, now)).await?;
            let gone = Outgoing::unparked(&self.0.topics.parked, &parked.destination, id, None).by_hand();
            self.0.to_parked("dropping a parked delivery", gone).await?;
        }
        Ok(found.len())
    }

    async fn dead(&self, filter: DeadFilter) -> Result<Vec<DeadLetter>, StorageError> {
        self.0.view()?.readers.dead(filter).await
    }

    async fn quarantined(&self) -> Result<Vec<Quarantined>, StorageError> {
        self.0.view()?.readers.quarantined().await
    }

    async fn letters_before(&self, at: Timestamp) -> Result<Vec<KeptLetters>, StorageError> {
        self.0.view()?.readers.letters_before(at).await
    }

    async fn redrive(&self, numbers: &[u64], now: Timestamp) -> Result<usize, StorageError> {
        let begun = Instant::now();
        let _alone = self.0.redriving.lock().await;
        let mut found = 0;
        for number in numbers {
            found += usize::from(self.0.redrive(*number, now, begun).await?);
        }
        Ok(found)
    }

    async fn drop_dead(&self, numbers: &[u64]) -> Result<usize, StorageError> {
        let mut found = 0;
        for number in numbers {
            if let Some(letter) = self.0.letter(*number).await? {
                self.0.end_letter(&letter).await?;
                found += 1;
            }
        }
        Ok(found)
    }
}
