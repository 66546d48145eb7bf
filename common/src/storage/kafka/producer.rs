//! Appending records: idempotent, acknowledged by all in-sync replicas, answered on the delivery report.
//!
//! Handing a record over never blocks: it is left with a thread that gives it to the client, see `producer/turns.rs`; with
//! too many there it is refused. A record whose report is late may still arrive; whoever gave up waiting has to allow
//! for that.

mod telemetry;
mod turns;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use prometheus::Registry;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::oneshot;

use self::telemetry::Telemetry;
use self::turns::{Queue, Turns};
use super::client::{Connect, failed};
use super::record::Outgoing;
use crate::event::Event;
use crate::storage::StorageError;

/// Where a record stands: partition and offset.
pub(super) type Place = (u32, u64);
/// What the brokers said of a record.
pub(super) type Report = Result<Place, KafkaError>;

pub(super) struct Producer {
    queue: Arc<Queue>,
    turns: Mutex<Option<JoinHandle<()>>>,
}

/// What is to be appended.
pub(super) enum Handed {
    /// To the log. It becomes a record on the thread that also frees it: memory that one thread allocates
    /// and another frees is dear. `alone`: see [`Outgoing::deduplicated_alone`].
    Event {
        event: Arc<Event>,
        alone: bool,
    },
    Record(Outgoing),
}

impl From<Outgoing> for Handed {
    fn from(record: Outgoing) -> Self {
        Self::Record(record)
    }
}

/// Who waits for a report, and since when.
struct Waiting {
    answer: oneshot::Sender<Report>,
    since: Instant,
}

/// Whether this record is refused wherever it is sent, and not because of the state of Kafka.
pub(super) fn is_unfit(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge)
}

impl Producer {
    /// `events` is the topic of the log.
    pub(super) fn new(
        connect: Connect,
        events: &Arc<str>,
        registry: &Registry,
        is_sound: &Arc<AtomicBool>,
    ) -> Result<Self, StorageError> {
        let queue = Arc::<Queue>::default();
        let turns = Turns::new(connect, Arc::clone(events), Arc::clone(&queue), Telemetry::new(registry))?;
        Ok(Self { queue, turns: Mutex::new(Some(turns.start(is_sound)?)) })
    }

    /// Appends a record; `Ok` means that it is durable, and where.
    pub(super) async fn append(
        &self,
        doing: &'static str,
        record: impl Into<Handed>,
    ) -> Result<Place, StorageError> {
        let report = self.hand_over(record)?;
        report.await.map_err(|_| StorageError::Closed)?.map_err(|error| failed(doing, error))
    }

    /// Hands a record over; its report comes later, if the producer does not end before. What the client refuses at once
    /// is reported, too.
    ///
    /// # Errors
    /// [`StorageError::Busy`] when too many wait for the client, [`StorageError::Closed`] once it is closed.
    pub(super) fn hand_over(
        &self,
        record: impl Into<Handed>,
    ) -> Result<oneshot::Receiver<Report>, StorageError> {
        let (answer, report) = oneshot::channel();
        let waiting = Waiting { answer, since: Instant::now() };
        self.queue.push(record.into(), waiting).map(|()| report)
    }

    /// Waits for the reports that are out, then refuses everything. Blocks.
    pub(super) fn close(&self) {
        self.queue.close();
        let turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner).take();
        if turns.is_some_and(|turns| turns.join().is_err()) {
            tracing::error!("the thread that talks to kafka's client has panicked");
        }
    }
}

impl Drop for Producer {
    /// What was handed over is not taken back: the thread ends behind its reports.
    fn drop(&mut self) {
        self.queue.close();
    }
}
