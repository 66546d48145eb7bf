//! Brings what is in the spool into the log, and its letters to where letters are kept.
//!
//! In the spool's order, in *waves* in which every subject occurs once: so many can be on their way together,
//! and one that fails is repeated before a later one of its subject is sent. Nothing is skipped and nothing given
//! up. What is acknowledged is settled and deleted from the spool; where its disk does not take that, the drain
//! goes on, and a restart publishes those again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::Kafka;
use super::append::APPEND_WITHIN;
use super::client::failed;
use super::producer::{Place, Report};
use super::record::Outgoing;
use super::spool::Spool;
use crate::storage::{Change, DeadFilter, Position, Record, StorageError};

const DOING: &str = "draining the spool";
/// Pauses after something failed.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// How often the gauges are brought up to date, and what could not be deleted is tried again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a storage that closes looks whether something is still on its way to the spool.
const CLOSING_LOOK: Duration = Duration::from_millis(5);
/// Letters that are on their way together.
const LETTERS: usize = 100;

/// Drains from when the brokers are reached until the storage closes.
pub(super) fn start(kafka: &Arc<Kafka>) {
    let Some(spool) = &kafka.spool else { return };
    let drain = Drain { kafka: Arc::clone(kafka), spool: Arc::clone(spool) };
    let (letters, gauges) = (drain.clone(), drain.clone());
    kafka.tasks.spawn(async move { drain.events().await });
    kafka.tasks.spawn(async move { letters.letters().await });
    kafka.tasks.spawn(async move { gauges.measure().await });
}

type Batches = mpsc::Receiver<Result<Vec<Record>, StorageError>>;

#[derive(Clone)]
struct Drain {
    kafka: Arc<Kafka>,
    spool: Arc<Spool>,
}

impl Drain {
    /// Waits until the brokers are reached; false if the storage closes before that.
    async fn is_reached(&self) -> bool {
        tokio::select! {
            () = self.kafka.closing.cancelled() => false,
            () = self.kafka.reached.cancelled() => true,
        }
    }

    /// False if the storage closes meanwhile.
    async fn pause(&self, pause: Duration) -> bool {
        tokio::select! {
            () = self.kafka.closing.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }

    async fn events(self) {
        if !self.is_reached().await {
            return;
        }
        let Some(mut batches) = self.batches().await else { return };
        let mut unsaved = None;
        let mut is_closing = false;
        while !is_closing && let Some(batch) = self.next(&mut batches, &mut unsaved).await {
            for wave in waves(&batch) {
                let upto = self.publish(wave).await;
                self.spool.drained(upto);
                unsaved = Some(upto);
                is_closing = wave.last().is_some_and(|last| last.position > upto);
                if is_closing {
                    break;
                }
            }
            self.forget(&mut unsaved).await;
        }
    }

    async fn batches(&self) -> Option<Batches> {
        let mut pauses = pauses();
        loop {
            match self.spool.subscribe().await {
                Ok(mut subscription) => {
                    // There is one partition and one reader: it comes at once.
                    let Some(Change::Gained(track)) = subscription.changes.recv().await else { return None };
                    self.spool.drained(track.mark);
                    return Some(track.batches);
                }
                Err(error) => {
                    tracing::error!(%error, "the spool cannot be drained; trying on");
                    if !self.pause(pauses.next().unwrap_or(RETRY_LAST)).await {
                        return None;
                    }
                }
            }
        }
    }

    /// What is to be drained next; none when the storage closes. What is left then is looked at all the same: events
    /// that came into the log by themselves are settled, so that they are not published again by the next process.
    async fn next(&self, batches: &mut Batches, unsaved: &mut Option<Position>) -> Option<Vec<Record>> {
        loop {
            let batch = tokio::select! {
                biased;
                batch = batches.recv() => batch?,
                () = self.nothing_comes() => return None,
                () = tokio::time::sleep(LOOK_EVERY), if unsaved.is_some() => {
                    self.forget(unsaved).await;
                    continue;
                }
            };
            match batch {
                Ok(batch) => return Some(batch),
                Err(_) if self.kafka.closing.is_cancelled() => return None,
                Err(error) => tracing::error!(%error, "the spool cannot be read; trying on"),
            }
        }
    }

    /// The storage closes, the log has all that is in the spool, and nothing is on its way there.
    async fn nothing_comes(&self) {
        self.kafka.closing.cancelled().await;
        while !self.spool.is_drained() {
            tokio::time::sleep(CLOSING_LOOK).await;
        }
    }

    /// Publishes a wave; returns up to where all of it is in the log: short of its end when the storage closes.
    async fn publish(&self, wave: &[Record]) -> Position {
        let mut left: Vec<&Record> = wave.iter().collect();
        let mut pauses = pauses();
        loop {
            left = self.publish_once(left).await;
            let Some(first) = left.first() else {
                return wave.last().map_or(Position::default(), |last| last.position);
            };
            if self.kafka.closing.is_cancelled() || !self.pause(pauses.next().unwrap_or(RETRY_LAST)).await {
                return Position(first.position.0 - 1);
            }
        }
    }

    /// Publishes what is not in the log already; returns what was not acknowledged.
    async fn publish_once<'a>(&self, wave: Vec<&'a Record>) -> Vec<&'a Record> {
        let mut missing = Vec::new();
        for record in wave {
            if !self.is_published(record).await {
                missing.push(record);
            }
        }
        let topic = &self.kafka.topics.events;
        let outgoing = missing.iter().map(|record| Outgoing::event(topic, &record.event)).collect();
        let reports = self.acknowledged(outgoing).await;
        for (partition, offset) in reports.iter().flatten() {
            self.kafka.note_head(Position::new(*partition, offset + 1));
        }
        missing
            .into_iter()
            .zip(reports)
            .filter(|(_, place)| place.is_none())
            .map(|(record, _)| record)
            .collect()
    }

    /// Whether a hedged event has come into the log by itself; waits until that is known.
    async fn is_published(&self, record: &Record) -> bool {
        let Some(mut outcome) = self.spool.outcome_of(record.event.id) else { return false };
        outcome.wait_for(Option::is_some).await.is_ok_and(|report| matches!(*report, Some(Ok(_))))
    }

    /// Hands records over and waits for their reports, which come within the producer's own time. Tells the spool
    /// what they say of Kafka.
    async fn acknowledged(&self, records: Vec<Outgoing>) -> Vec<Option<Place>> {
        let handed: Vec<_> =
            records.into_iter().map(|record| self.kafka.producer.hand_over(record)).collect();
        let deadline = Instant::now() + APPEND_WITHIN;
        let mut places = Vec::with_capacity(handed.len());
        let mut first_failure = None;
        for handed in handed {
            let report = match handed {
                Err(error) => Err(error),
                Ok(mut report) => match timeout_at(deadline, &mut report).await {
                    Ok(report) => reported(report),
                    Err(_) => {
                        self.spool.turn_to(&StorageError::Late { doing: DOING, within: APPEND_WITHIN });
                        reported(report.await)
                    }
                },
            };
            match &report {
                Ok(_) => self.spool.acknowledged(),
                Err(error) => self.spool.turn_to(error),
            }
            places.push(report.map_err(|error| first_failure.get_or_insert(error).clone()).ok());
        }
        if let Some(error) = first_failure
            && !self.kafka.closing.is_cancelled()
        {
            tracing::warn!(%error, "kafka does not take what is in the spool; trying on");
        }
        places
    }

    /// Deletes what is drained. What cannot be deleted now is tried again.
    async fn forget(&self, unsaved: &mut Option<Position>) {
        let Some(upto) = *unsaved else { return };
        match self.spool.forget(upto).await {
            Ok(()) => *unsaved = None,
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "what was drained from the spool is not deleted yet; trying on");
            }
            Err(error) => {
                tracing::error!(%error, "what was drained from the spool is not deleted: a restart publishes it again");
                *unsaved = None;
            }
        }
    }

    async fn letters(self) {
        if !self.is_reached().await {
            return;
        }
        let mut pauses = pauses();
        loop {
            match self.page_of_letters().await {
                Ok(0) => {
                    pauses = self::pauses();
                    tokio::select! {
                        () = self.kafka.closing.cancelled() => return,
                        () = self.spool.letters.notified() => {}
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "letters cannot be drained from the spool; trying on");
                    if !self.pause(pauses.next().unwrap_or(RETRY_LAST)).await {
                        return;
                    }
                }
            }
        }
    }

    /// Drains some letters; returns how many.
    async fn page_of_letters(&self) -> Result<usize, StorageError> {
        let store = &self.spool.store().deliveries;
        let letters = store.dead(DeadFilter { limit: LETTERS, ..DeadFilter::default() }).await?;
        let (mut done, mut missing) = (Vec::new(), Vec::new());
        for letter in &letters {
            let is_kept = self.kafka.is_quarantined(&letter.event).await?;
            if is_kept { done.push(letter.number) } else { missing.push(letter) }
        }
        let topic = &self.kafka.topics.dead;
        let outgoing = missing.iter().map(|letter| Outgoing::letter(topic, letter)).collect();
        let places = self.acknowledged(outgoing).await;
        let kept = missing.iter().zip(places).filter(|(_, place)| place.is_some());
        done.extend(kept.map(|(letter, _)| letter.number));
        store.drop_dead(&done).await?;
        if done.len() < letters.len() {
            return Err(StorageError::Late { doing: DOING, within: APPEND_WITHIN });
        }
        Ok(done.len())
    }

    async fn measure(self) {
        loop {
            if let Err(error) = self.spool.measure().await {
                tracing::debug!(%error, "the spool cannot be measured");
            }
            if !self.pause(LOOK_EVERY).await {
                return;
            }
        }
    }
}

fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(RETRY_FIRST)
        .with_max_delay(RETRY_LAST)
        .with_jitter()
        .without_max_times()
        .build()
}

/// A report that never came went with the producer.
fn reported(report: Result<Report, tokio::sync::oneshot::error::RecvError>) -> Result<Place, StorageError> {
    report.map_err(|_| StorageError::Closed)?.map_err(|error| failed(DOING, error))
}

/// Cuts a batch where a subject occurs again.
fn waves(batch: &[Record]) -> Vec<&[Record]> {
    let mut waves = Vec::new();
    let (mut begin, mut subjects) = (0, HashSet::new());
    for (at, record) in batch.iter().enumerate() {
        if let Some(subject) = record.event.subject.as_deref()
            && !subjects.insert(subject)
        {
            waves.push(&batch[begin..at]);
            begin = at;
            subjects = HashSet::from([subject]);
        }
    }
    if begin < batch.len() {
        waves.push(&batch[begin..]);
    }
    waves
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::conformance::event;

    #[test]
    fn in_a_wave_every_subject_occurs_once() {
        let record = |key| Record { position: Position(key), event: event(key) };
        // Subjects repeat every three keys.
        let batch: Vec<Record> = [0, 1, 3, 4, 6, 7, 8].map(record).into();
        let lengths: Vec<usize> = waves(&batch).iter().map(|wave| wave.len()).collect();
        assert_eq!(lengths, [2, 2, 3]);
        let mut bare = batch;
        bare.iter_mut().for_each(|record| record.event.subject = None);
        assert_eq!(waves(&bare).len(), 1);
        assert!(waves(&[]).is_empty());
    }
}
