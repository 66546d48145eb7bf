//! The spool: a local disk that takes what Kafka does not take in time.
//!
//! It is the embedded store again, in a folder of its own: fsynced, one process, healing from a full disk, refusing
//! after a failed sync. Its events are drained into the log in their order (`drain.rs`) and pruned at once.
//!
//! **Who has the word.** Kafka, until a report is late by the deadline of an append, or fails: from then on
//! events go to the spool first and only there, until all of it is drained and Kafka has acknowledged something since.
//! That is decided under one lock: an event that is on its way to the spool holds the word there, so that no later
//! one of its subject overtakes it through Kafka.
//!
//! **Hedged events** are with Kafka and in the spool. What comes of the publication is kept here until they are
//! drained, so that they are not published twice; a crash forgets it, and then they are, under the same id.
//!
//! Not promised: order between what was handed to Kafka directly and fails after the producer's own time is over
//! (two minutes), and what was handed over behind it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus::{IntGauge, Registry};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::{Notify, watch};

use super::append::Outcome;
use super::client::{BODY_BYTES_MAX, failed};
use super::dedup::Dedup;
use super::dedup::recent::GENERATION_MAX;
use crate::event::{Event, EventId};
use crate::metrics::Metrics;
use crate::storage::embedded;
use crate::storage::{
    Appended, BatchLimit, Cursor, EventFilter, Left, OnConflict, Position, Progress, Start, Storage,
    StorageError, Subscription,
};

/// Its only reader.
const DRAIN: &str = "kafka";
/// Events read at once while ids are collected.
const PAGE: usize = 200;
/// Hedged events that are remembered: as many as the producer holds. One more waits for its report alone.
const HEDGED_MAX: usize = 100_000;
/// What one step of the drain may hold.
const STEP: BatchLimit = BatchLimit { records: 1000, bytes: 4 << 20 };

pub(super) struct Spool {
    store: Storage,
    /// Its last event.
    head: watch::Receiver<Position>,
    word: Mutex<Word>,
    /// What stands in it of who takes the next event, for a look without the lock.
    is_first: AtomicBool,
    hedged: Mutex<HashMap<EventId, Outcome>>,
    /// A letter has been kept.
    pub(super) letters: Notify,
    gauges: Gauges,
}

/// Who takes the next event.
struct Word {
    spool_first: bool,
    /// The latest news of Kafka is bad.
    is_away: bool,
    /// Events on their way to the spool.
    writing: usize,
    /// The log has everything up to here.
    drained: Position,
}

struct Gauges {
    mode: IntGauge,
    records: IntGauge,
    oldest: IntGauge,
}

impl Gauges {
    fn new(registry: &Registry) -> Self {
        let metrics = Metrics(registry);
        Self {
            mode: metrics.gauge(
                "chaski_spool_mode",
                "0: events go to Kafka; 1: to the spool, which is being drained; 2: to the spool, Kafka is away.",
            ),
            records: metrics.gauge("chaski_spool_records", "Events and letters that wait in the spool."),
            oldest: metrics.gauge(
                "chaski_spool_oldest_timestamp_seconds",
                "When the oldest event in the spool was received; 0 if there is none.",
            ),
        }
    }
}

/// An event on its way to the spool.
pub(super) struct Writing(Arc<Spool>);

impl Drop for Writing {
    fn drop(&mut self) {
        let mut word = self.0.word();
        word.writing -= 1;
        self.0.settle_word(&mut word);
    }
}

impl Spool {
    /// Opens it, and begins with the spool having the word. None when its disk does not do: that is told,
    /// as by a store whose sync failed, and events go on without it.
    pub(super) async fn open(folder: &Path, registry: &Registry) -> Result<Option<Arc<Self>>, StorageError> {
        let gauges = Gauges::new(registry);
        let store = match embedded::open(&embedded::Options { path: folder.to_owned() }, registry) {
            Ok(store) => store,
            Err(error @ (StorageError::Locked { .. } | StorageError::Newer { .. })) => return Err(error),
            Err(error) => {
                tracing::error!(%error, folder = %folder.display(), "the spool cannot be opened: what Kafka does not take in time is refused, and what is in the spool stays there");
                return Ok(None);
            }
        };
        let word = Word { spool_first: true, is_away: true, writing: 0, drained: Position::default() };
        let spool = Arc::new(Self {
            head: store.events.head(),
            store,
            word: Mutex::new(word),
            is_first: AtomicBool::new(true),
            hedged: Mutex::default(),
            letters: Notify::new(),
            gauges,
        });
        spool.tell_mode(&spool.word());
        Ok(Some(spool))
    }

    fn word(&self) -> MutexGuard<'_, Word> {
        self.word.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the word back to Kafka once nothing is here and Kafka is.
    fn settle_word(&self, word: &mut Word) {
        if !word.is_away && word.writing == 0 && word.drained >= *self.head.borrow() && word.spool_first {
            word.spool_first = false;
            tracing::info!("the spool is drained: events go to kafka again");
        }
        self.tell_mode(word);
    }

    fn tell_mode(&self, word: &Word) {
        self.is_first.store(word.spool_first, Ordering::Release);
        let mode = if word.spool_first { 1 + i64::from(word.is_away) } else { 0 };
        self.gauges.mode.set(mode);
    }

    /// Whether events go here and not to Kafka.
    pub(super) fn is_first(&self) -> bool {
        self.is_first.load(Ordering::Acquire)
    }

    /// For an event that goes here if the spool has the word.
    pub(super) fn enter_first(self: &Arc<Self>) -> Option<Writing> {
        // That it has not is true for a moment only, with the lock or without it, and all but a few events hear that.
        if !self.is_first() {
            return None;
        }
        let mut word = self.word();
        word.spool_first.then(|| {
            word.writing += 1;
            Writing(Arc::clone(self))
        })
    }

    /// For an event that goes here in any case.
    pub(super) fn enter(self: &Arc<Self>) -> Writing {
        self.word().writing += 1;
        Writing(Arc::clone(self))
    }

    /// Kafka failed, or is late: the spool has the word.
    pub(super) fn turn_to(&self, why: &StorageError) {
        let mut word = self.word();
        if !word.spool_first {
            tracing::warn!(error = %why, "kafka does not take events in time: they go to the spool");
        }
        word.spool_first = true;
        word.is_away = true;
        self.tell_mode(&word);
    }

    /// Kafka has acknowledged something.
    pub(super) fn acknowledged(&self) {
        let mut word = self.word();
        word.is_away = false;
        self.settle_word(&mut word);
    }

    /// The log has everything up to here.
    pub(super) fn drained(&self, upto: Position) {
        let mut word = self.word();
        word.drained = word.drained.max(upto);
        self.settle_word(&mut word);
    }

    /// Whether the log has all that is here, and nothing is on its way here.
    pub(super) fn is_drained(&self) -> bool {
        let word = self.word();
        word.writing == 0 && word.drained >= *self.head.borrow()
    }

    /// Makes an event durable here. What it is told is what it is: a resend of what is here is a duplicate.
    pub(super) async fn append(
        &self,
        _writing: Writing,
        event: Event,
        on_conflict: OnConflict,
    ) -> Result<Appended, StorageError> {
        fits(&event)?;
        match self.store.events.append(event, on_conflict).await? {
            Appended::Stored(_) => Ok(Appended::Spooled),
            conflict @ Appended::Conflict { .. } => {
                self.letters.notify_one();
                Ok(conflict)
            }
            known => Ok(known),
        }
    }

    /// Makes a letter without destination durable here; false if it is here already.
    pub(super) async fn quarantine(
        &self,
        event: Event,
        reason: &str,
        detail: &str,
    ) -> Result<bool, StorageError> {
        fits(&event)?;
        let new = self.store.events.quarantine(event, reason, detail).await?;
        self.letters.notify_one();
        Ok(new)
    }

    /// Whether a write may succeed, here or with Kafka.
    pub(super) fn is_writable_either_way(&self) -> bool {
        self.store.events.is_writable() || !self.word().is_away
    }

    /// Teaches the deduplication the ids that are here, as many as it remembers.
    pub(super) async fn remember_ids(&self, dedup: &dyn Dedup) -> Result<(), StorageError> {
        let drained = self.progress().await?.map_or(Position::default(), |progress| progress.mark);
        let mut ids = Vec::new();
        let mut before = None;
        while ids.len() < 2 * GENERATION_MAX {
            let filter = EventFilter { before, limit: PAGE, ..EventFilter::default() };
            let page = self.store.events.find(filter).await?;
            before = page.last().map(|record| record.position);
            let here = page.iter().filter(|record| record.position > drained);
            ids.extend(here.map(|record| (record.event.id, record.event.fingerprint)));
            if before.is_none_or(|before| before <= drained) {
                break;
            }
        }
        // The latest last: they are remembered longest.
        ids.into_iter().rev().for_each(|(id, fingerprint)| dedup.remember(id, fingerprint));
        Ok(())
    }

    /// How far the drain is; none before it has begun for the first time.
    async fn progress(&self) -> Result<Option<Progress>, StorageError> {
        Ok(self.store.events.progress().await?.into_iter().find(|progress| &*progress.destination == DRAIN))
    }

    pub(super) async fn close(&self) {
        self.store.events.close().await;
    }
}

/// One that Kafka never takes would stand in front of all others.
fn fits(event: &Event) -> Result<(), StorageError> {
    if event.body.len() <= BODY_BYTES_MAX {
        return Ok(());
    }
    let error = KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge);
    Err(failed("putting an event into the spool", error))
}

/// What the drain does with the store.
impl Spool {
    /// Its events from where the drain was left.
    pub(super) async fn subscribe(&self) -> Result<Subscription, StorageError> {
        self.store.events.subscribe(&Cursor::of(DRAIN), Start::Beginning, STEP).await
    }

    /// What came of a publication of this event, if it was hedged.
    pub(super) fn outcome_of(&self, id: EventId) -> Option<Outcome> {
        self.hedged().remove(&id)
    }

    /// Remembers durably what is drained, and deletes it.
    pub(super) async fn forget(&self, upto: Position) -> Result<(), StorageError> {
        self.store.events.settle(&Cursor::of(DRAIN), upto, Vec::new()).await?;
        let reader = [DRAIN.into()];
        // However old it is.
        let prune = || self.store.events.prune(Timestamp::MAX, Duration::ZERO, &reader);
        while prune().await?.left == Left::More {}
        Ok(())
    }

    pub(super) fn store(&self) -> &Storage {
        &self.store
    }

    /// Brings the gauges up to date.
    pub(super) async fn measure(&self) -> Result<(), StorageError> {
        let letters: u64 =
            self.store.deliveries.quarantined().await?.iter().map(|quarantined| quarantined.events).sum();
        let (waiting, oldest) = match self.progress().await? {
            Some(progress) => (progress.lag, progress.oldest_unsettled),
            // The drain has not begun: all that is here waits.
            None => {
                let census = self.store.events.census().await?;
                (census.events, census.oldest)
            }
        };
        let waiting = letters + waiting;
        let oldest = oldest.map_or(0, Timestamp::as_second);
        self.gauges.records.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.gauges.oldest.set(oldest);
        Ok(())
    }

    fn hedged(&self) -> MutexGuard<'_, HashMap<EventId, Outcome>> {
        self.hedged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An event that is with Kafka and on its way here.
pub(super) struct Hedge {
    id: EventId,
    /// From the first on: a storage that closes waits for it.
    writing: Writing,
}

impl Hedge {
    /// Noted before it is in the spool, so that the drain cannot meet it unknown. None at the bound.
    pub(super) fn begin(spool: &Arc<Spool>, id: EventId, outcome: &Outcome) -> Option<Self> {
        let mut hedged = spool.hedged();
        (hedged.len() < HEDGED_MAX).then(|| {
            hedged.insert(id, outcome.clone());
            Self { id, writing: spool.enter() }
        })
    }

    pub(super) async fn append(
        self,
        spool: &Spool,
        event: Event,
        on_conflict: OnConflict,
    ) -> Result<Appended, StorageError> {
        let appended = spool.append(self.writing, event, on_conflict).await;
        if !matches!(appended, Ok(Appended::Spooled)) {
            // The drain will not meet it.
            spool.hedged().remove(&self.id);
        }
        appended
    }
}
