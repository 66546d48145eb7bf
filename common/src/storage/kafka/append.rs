//! How an event becomes durable: in the log, and when Kafka is slow or away in the spool.
//!
//! An id is reserved, the event handed to the producer, and the id confirmed when the event is durable. Without
//! a delivery report after [`HEDGE_AFTER`] the event goes to the spool as well, and the answer is given on
//! whichever has it first: it is *hedged*. What the producer refuses or reports as failed goes to the spool at
//! once. While the spool has the word (see `spool.rs`) events go there first and only there, so that they are
//! not overtaken; should its disk fail, they are handed to Kafka all the same.
//!
//! All of it takes [`APPEND_WITHIN`] at most, or is answered with an error. What is under way then goes on: the id
//! stays reserved until it is known what became of the event, so that a resend is a duplicate if it arrived.
//!
//! A quarantined event is one record of another topic, whose key names it: a second one with the same bytes is the
//! same letter. [`QUARANTINING_MAX`] of them are on their way at most; who waits behind them in vain goes to the
//! spool, or is answered with an error, like one whose report is late.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::Kafka;
use super::client::failed;
use super::dedup::Claim;
use super::producer::{Handed, Place, Report, is_unfit};
use super::spool::{Hedge, Spool};
use crate::event::{Event, EventId, Fingerprint};
use crate::storage::{Appended, CONFLICT, CONFLICT_DETAIL, DeadLetter, OnConflict, Position, StorageError};

/// How long an append may take; a sender waits for its answer.
pub(super) const APPEND_WITHIN: Duration = Duration::from_millis(1200);
/// How long an event waits for its report before it goes to the spool as well.
pub(super) const HEDGE_AFTER: Duration = Duration::from_millis(150);
/// How long a letter waits before it goes to the spool: it is read back, too, and nobody minds if it is written twice.
const LETTER_AFTER: Duration = Duration::from_millis(600);
/// Quarantined events that are on their way to Kafka at once, until their reports have come.
pub(super) const QUARANTINING_MAX: usize = 16;
/// How long a duplicate waits for the first to be durable, and when it looks for the first time.
const PENDING_WITHIN: Duration = Duration::from_millis(500);
const PENDING_LOOK: Duration = Duration::from_millis(5);
const DOING: &str = "storing an event";
pub(super) const QUARANTINING: &str = "keeping a quarantined event";

/// What became of a direct publication, once it is known.
pub(super) type Outcome = watch::Receiver<Option<Report>>;

/// What is known of an id that nobody else is storing.
enum Claimed {
    /// Reserved for this process; `alone`: without having asked the others.
    New {
        alone: bool,
    },
    Known(Fingerprint),
}

impl Kafka {
    /// Stores an event, unless its id is known. Dropped half-way, it leaves the id reserved: see [`ToItsEnd`](super::events::ToItsEnd).
    pub(super) async fn append(
        self: &Arc<Self>,
        event: Event,
        on_conflict: OnConflict,
    ) -> Result<Appended, StorageError> {
        let stored = match self.claim(event.id).await? {
            Claimed::Known(stored) => stored,
            Claimed::New { alone } => {
                let event = Arc::new(event);
                let kept = self.keep(&event, alone, on_conflict).await;
                match kept {
                    Ok(Appended::Stored(_) | Appended::Spooled) => {
                        self.dedup.confirm(event.id, event.fingerprint);
                    }
                    // In doubt the id is free: a resend may be stored twice, and never not at all. The spool may
                    // remember what is forgotten here: then it keeps remembering.
                    Ok(Appended::Duplicate | Appended::Conflict { .. }) | Err(_) => {
                        self.dedup.release(event.id);
                    }
                }
                return kept;
            }
        };
        if stored == event.fingerprint || on_conflict == OnConflict::Duplicate {
            return Ok(Appended::Duplicate);
        }
        let is_new = self.quarantine(event, CONFLICT, CONFLICT_DETAIL).await?;
        Ok(Appended::Conflict { is_new })
    }

    /// Reserves an id, or tells what is stored under it. Waits for whoever is storing it.
    async fn claim(&self, id: EventId) -> Result<Claimed, StorageError> {
        let began = Instant::now();
        let mut pause = PENDING_LOOK;
        loop {
            match self.dedup.reserve(id).await {
                Claim::Mine => return Ok(Claimed::New { alone: false }),
                Claim::Alone => return Ok(Claimed::New { alone: true }),
                Claim::Known(fingerprint) => return Ok(Claimed::Known(fingerprint)),
                Claim::Pending if began.elapsed() < PENDING_WITHIN => {
                    tokio::time::sleep(pause).await;
                    pause = (2 * pause).min(PENDING_LOOK * 10);
                }
                Claim::Pending => return Err(StorageError::Busy),
            }
        }
    }

    /// The content that is stored under an id, as far as it is remembered. As [`Kafka::append`] when dropped.
    pub(super) async fn stored(&self, id: EventId) -> Result<Option<Fingerprint>, StorageError> {
        match self.claim(id).await? {
            Claimed::Known(stored) => Ok(Some(stored)),
            Claimed::New { .. } => {
                self.dedup.release(id);
                Ok(None)
            }
        }
    }

    /// Makes an event durable whose id is new, one way or the other.
    async fn keep(
        self: &Arc<Self>,
        event: &Arc<Event>,
        alone: bool,
        on_conflict: OnConflict,
    ) -> Result<Appended, StorageError> {
        let record = || Handed::Event { event: Arc::clone(event), alone };
        let Some(spool) = &self.spool else {
            return self.in_log(self.producer.append(DOING, record()).await);
        };
        if let Some(writing) = spool.enter_first() {
            match spool.append(writing, Event::clone(event), on_conflict).await {
                Ok(appended) => return Ok(appended),
                // The spool is broken, and tells so itself: Kafka may be there all the same.
                Err(_) => return self.in_log(self.publish_unspooled(spool, record()).await),
            }
        }
        let began = Instant::now();
        let failure = match self.producer.hand_over(record()) {
            Err(error) => error,
            Ok(mut report) => match timeout(self.hedge_after, &mut report).await {
                Ok(Ok(Ok(place))) => return Ok(self.stored_at(place)),
                Ok(Ok(Err(error))) if is_unfit(&error) => return Err(failed(DOING, error)),
                Ok(Ok(Err(error))) => failed(DOING, error),
                Ok(Err(_)) => StorageError::Closed,
                Err(_) => {
                    return self.hedge(spool, event, on_conflict, self.watch(spool, report, began)).await;
                }
            },
        };
        spool.turn_to(&failure);
        spool.append(spool.enter(), Event::clone(event), on_conflict).await.map_err(|_| failure)
    }

    /// Gives an event whose report is late to the spool as well; whichever has it first answers.
    async fn hedge(
        &self,
        spool: &Arc<Spool>,
        event: &Arc<Event>,
        on_conflict: OnConflict,
        mut outcome: Outcome,
    ) -> Result<Appended, StorageError> {
        let Some(hedge) = Hedge::begin(spool, event.id, &outcome) else {
            return self.in_log(settled(&mut outcome).await);
        };
        let (keeper, event) = (Arc::clone(spool), Event::clone(event));
        // In a task of its own: where the report comes first the event may have gone to the spool or not.
        let mut spooling = tokio::spawn(async move { hedge.append(&keeper, event, on_conflict).await });
        tokio::select! {
            biased;
            report = settled(&mut outcome) => match report {
                Ok(place) => Ok(self.stored_at(place)),
                Err(error) => spooling.await.unwrap_or(Err(StorageError::Closed)).map_err(|_| error),
            },
            spooled = &mut spooling => match spooled {
                Ok(Ok(appended)) => Ok(appended),
                _ => self.in_log(settled(&mut outcome).await),
            },
        }
    }

    /// Publishes without a spool to fall back on.
    async fn publish_unspooled(
        self: &Arc<Self>,
        spool: &Arc<Spool>,
        record: Handed,
    ) -> Result<Place, StorageError> {
        let report = self.producer.hand_over(record)?;
        settled(&mut self.watch(spool, report, Instant::now())).await
    }

    /// Waits for a report in the background, for as long as it takes, and tells the spool what it says of Kafka.
    pub(super) fn watch(
        self: &Arc<Self>,
        spool: &Arc<Spool>,
        mut report: oneshot::Receiver<Report>,
        began: Instant,
    ) -> Outcome {
        let (tell, outcome) = watch::channel(None);
        let (kafka, spool) = (Arc::clone(self), Arc::clone(spool));
        self.tasks.spawn(async move {
            let in_time = timeout_at(began + APPEND_WITHIN, &mut report).await;
            let report = match in_time {
                Ok(report) => report,
                Err(_) => {
                    spool.turn_to(&StorageError::Late { doing: DOING, within: APPEND_WITHIN });
                    report.await
                }
            };
            // Dropped with the producer: nobody knows.
            let report = report.unwrap_or(Err(rdkafka::error::KafkaError::Canceled));
            match &report {
                Ok((partition, offset)) => {
                    kafka.note_head(Position::new(*partition, offset + 1));
                    spool.acknowledged();
                }
                Err(error) => spool.turn_to(&failed(DOING, error.clone())),
            }
            tell.send_replace(Some(report));
        });
        outcome
    }

    fn in_log(&self, place: Result<Place, StorageError>) -> Result<Appended, StorageError> {
        place.map(|place| self.stored_at(place))
    }

    fn stored_at(&self, (partition, offset): Place) -> Appended {
        let position = Position::new(partition, offset + 1);
        self.note_head(position);
        Appended::Stored(position)
    }

    /// Whether these bytes are in the log, as far as that is remembered: their letter may have been redriven.
    async fn is_stored(self: &Arc<Self>, event: &Event) -> bool {
        for id in [event.id, EventId::of_redriven(event)] {
            if matches!(self.stored(id).await, Ok(Some(stored)) if stored == event.fingerprint) {
                return true;
            }
        }
        false
    }

    /// Keeps an event as a letter without destination, unless these very bytes are kept already. Answers within
    /// [`APPEND_WITHIN`], as far as the spool's disk does.
    pub(super) async fn quarantine(
        self: &Arc<Self>,
        event: Event,
        reason: &str,
        detail: &str,
    ) -> Result<bool, StorageError> {
        self.check_open()?;
        if self.is_stored(&event).await {
            return Ok(false);
        }
        let letter = quarantined(event.clone(), reason, detail);
        let Some(spool) = &self.spool else { return self.quarantine_in_time(APPEND_WITHIN, letter).await };
        if self.opened.get().is_some() && self.is_quarantined(&event).await? {
            return Ok(false);
        }
        let is_first = spool.is_first();
        if is_first && let Ok(new) = spool.quarantine(event.clone(), reason, detail).await {
            return Ok(new);
        }
        let within = if is_first { APPEND_WITHIN } else { LETTER_AFTER };
        match self.quarantine_in_time(within, letter).await {
            Err(error) if !is_first => spool.quarantine(event, reason, detail).await.map_err(|_| error),
            kept => kept,
        }
    }

    /// As [`Kafka::quarantine`], with Kafka alone. What is under way when the time is over goes on and keeps its turn:
    /// the same bytes wait for it, and find the letter.
    async fn quarantine_in_time(
        self: &Arc<Self>,
        within: Duration,
        letter: DeadLetter,
    ) -> Result<bool, StorageError> {
        let late = |_| StorageError::Late { doing: QUARANTINING, within };
        let until = Instant::now() + within;
        let turn = usize::from(letter.event.fingerprint.as_bytes()[0]) % QUARANTINING_MAX;
        let turn = Arc::clone(&self.quarantining[turn]).lock_owned();
        let turn = timeout_at(until, turn).await.map_err(late)?;
        let kafka = Arc::clone(self);
        let keeping = self.tasks.spawn(async move {
            let _turn = turn;
            kafka.keep_quarantined(letter).await
        });
        timeout_at(until, keeping)
            .await
            .map_err(late)?
            .unwrap_or_else(|error| Err(StorageError::unfinished(error)))
    }
}

fn quarantined(event: Event, reason: &str, detail: &str) -> DeadLetter {
    DeadLetter {
        number: 0,
        destination: None,
        position: None,
        reason: reason.into(),
        detail: detail.into(),
        at: event.received_at,
        attempts: 0,
        history: Vec::new(),
        event,
    }
}

/// What a publication came to.
async fn settled(outcome: &mut Outcome) -> Result<Place, StorageError> {
    let report = outcome.wait_for(Option::is_some).await.map_err(|_| StorageError::Closed)?;
    match &*report {
        Some(Ok(place)) => Ok(*place),
        Some(Err(error)) => Err(failed(DOING, error.clone())),
        None => Err(StorageError::Closed),
    }
}
