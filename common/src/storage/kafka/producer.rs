//! Appending records: idempotent, acknowledged by all in-sync replicas, answered on the delivery report.
//!
//! Handing a record over never blocks: with the queue full it is refused. A record whose report is late may
//! still arrive; whoever gave up waiting has to allow for that.

mod telemetry;

use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use prometheus::Registry;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer};
use tokio::sync::oneshot;

use self::telemetry::Telemetry;
use super::client::{Connect, failed, log};
use super::record::Outgoing;
use crate::storage::StorageError;

/// How long closing waits for reports.
const FLUSH_WITHIN: Duration = Duration::from_secs(10);

/// Where a record stands: partition and offset.
pub(super) type Place = (u32, u64);
/// What the brokers said of a record.
pub(super) type Report = Result<Place, KafkaError>;

pub(super) struct Producer {
    connect: Connect,
    /// None once closed. Replaced when it has failed for good.
    current: RwLock<Option<ThreadedProducer<Reports>>>,
    telemetry: Telemetry,
}

/// Whether this record is refused wherever it is sent, and not because of the state of Kafka.
pub(super) fn is_unfit(error: &StorageError) -> bool {
    let StorageError::Engine { source, .. } = error else { return false };
    let code = source.downcast_ref::<KafkaError>().and_then(KafkaError::rdkafka_error_code);
    code == Some(RDKafkaErrorCode::MessageSizeTooLarge)
}

/// Who waits for a report, and since when.
struct Waiting {
    answer: oneshot::Sender<Report>,
    since: Instant,
}

struct Reports(Telemetry);

impl ClientContext for Reports {
    fn stats_raw(&self, statistics: &[u8]) {
        self.0.connected(statistics);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "kafka producer");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Waiting>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiting: Self::DeliveryOpaque) {
        let report = match result {
            Ok(message) => Ok((message.partition().unsigned_abs(), message.offset().unsigned_abs())),
            Err((error, _)) => Err(error.clone()),
        };
        self.0.reported(&report, waiting.since.elapsed());
        // Who does not wait any more has counted it as unknown.
        let _ = waiting.answer.send(report);
    }
}

impl Producer {
    pub(super) fn new(connect: Connect, registry: &Registry) -> Result<Self, StorageError> {
        let telemetry = Telemetry::new(registry);
        let current = RwLock::new(Some(connect.producer(Reports(telemetry.clone()))?));
        Ok(Self { connect, current, telemetry })
    }

    /// Appends a record; `Ok` means that it is durable, and where.
    pub(super) async fn append(&self, doing: &'static str, record: Outgoing) -> Result<Place, StorageError> {
        let report = self.hand_over(doing, record)?;
        report.await.map_err(|_| StorageError::Closed)?.map_err(|error| failed(doing, error))
    }

    /// Hands a record over; its report comes later, if the producer is not dropped before.
    pub(super) fn hand_over(
        &self,
        doing: &'static str,
        outgoing: Outgoing,
    ) -> Result<oneshot::Receiver<Report>, StorageError> {
        let Outgoing { topic, key, value, headers, timestamp } = outgoing;
        let (answer, report) = oneshot::channel();
        let waiting = Waiting { answer, since: Instant::now() };
        let mut record = BaseRecord::with_opaque_to(&topic, Box::new(waiting)).key(&key).headers(headers);
        if let Some(value) = &value {
            record = record.payload(&**value);
        }
        if let Some(timestamp) = timestamp {
            record = record.timestamp(timestamp);
        }
        let sent = {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            current.as_ref().ok_or(StorageError::Closed)?.send(record)
        };
        let Err((error, record)) = sent else { return Ok(report) };
        self.telemetry.refused(&error);
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::Fatal) {
            return Err(failed(doing, error));
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let mut producer = current.as_ref().ok_or(StorageError::Closed)?;
        // Another thread may have been here meanwhile.
        if producer.client().fatal_error().is_some() {
            // The idempotent producer lost count and will never send again; what it still holds is reported as
            // failed. A new one begins a new count.
            tracing::warn!(%error, "the kafka producer has failed for good; a new one takes over");
            producer.purge(PurgeConfig::default().queue().inflight());
            producer = current.insert(self.connect.producer(Reports(self.telemetry.clone()))?);
        }
        producer.send(record).map(|()| report).map_err(|(error, _)| failed(doing, error))
    }

    /// Waits for the reports that are out, then refuses everything. Blocks.
    pub(super) fn close(&self) {
        let last = self.current.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(producer) = last
            && let Err(error) = producer.flush(FLUSH_WITHIN)
        {
            tracing::warn!(%error, "records were still on their way to kafka when the storage closed");
        }
    }
}
