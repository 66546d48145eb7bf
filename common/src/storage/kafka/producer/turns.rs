//! The thread that hands records to the client and takes their reports, by turns.
//!
//! The client's memory is its own affair: a record is a dozen allocations of it, a report frees them. On the threads that
//! serve connections they were made and on another freed, which the allocator and the processors' caches pay for, and
//! each took the client's locks from the others. Here both are one thread's.
//!
//! While records are out a turn comes every [`TURN`], which is also how long records gather: what comes meanwhile goes
//! together, and is answered together. Who comes when nothing is out is served at once. The client is never waited
//! for: the last millisecond of every wait for a report the bindings spend asking again without a pause.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig};

use super::telemetry::Telemetry;
use super::{Handed, Waiting};
use crate::post::together;
use crate::storage::kafka::client::{Connect, log};
use crate::storage::kafka::record::Outgoing;
use crate::storage::{StorageError, thread};

/// How long a turn takes while records are out.
const TURN: Duration = Duration::from_micros(500);
/// How often the client is looked after while none is.
const IDLE: Duration = Duration::from_millis(100);
/// Records that may wait for their turn: more than come within one, unless the thread does not get to run.
const WAITING_MAX: usize = 16 * 1024;
/// How long the end waits for reports.
const FLUSH_WITHIN: Duration = Duration::from_secs(10);

/// Where records wait for their turn.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    called: Condvar,
}

#[derive(Default)]
struct State {
    left: Vec<(Handed, Waiting)>,
    /// Nothing is out, and whoever leaves something has to call.
    is_idle: bool,
    is_closed: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a record for the next turn.
    pub(super) fn push(&self, record: Handed, waiting: Waiting) -> Result<(), StorageError> {
        let mut state = self.state();
        if state.is_closed {
            return Err(StorageError::Closed);
        }
        if state.left.len() >= WAITING_MAX {
            return Err(StorageError::Busy);
        }
        state.left.push((record, waiting));
        let is_idle = std::mem::take(&mut state.is_idle);
        drop(state);
        if is_idle {
            self.called.notify_one();
        }
        Ok(())
    }

    /// Nothing more is taken; what has been left is seen to.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        self.called.notify_one();
    }

    /// Waits for the next turn and takes what has been left, into `records`, which is empty; false if nothing more can come.
    fn collect(&self, records: &mut Vec<(Handed, Waiting)>, is_any_out: bool) -> bool {
        let mut state = self.state();
        if !state.is_closed && (is_any_out || state.left.is_empty()) {
            state.is_idle = !is_any_out;
            let pause = if is_any_out { TURN } else { IDLE };
            state = self.called.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
            state.is_idle = false;
        }
        std::mem::swap(&mut state.left, records);
        !(state.is_closed && records.is_empty())
    }
}

/// See the module.
pub(super) struct Turns {
    connect: Connect,
    /// The topic of the log.
    events: Arc<str>,
    queue: Arc<Queue>,
    telemetry: Telemetry,
    /// Replaced when it has failed for good.
    client: BaseProducer<Reports>,
}

/// Whatever ends the thread: nobody waits for it any more.
impl Drop for Turns {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.is_closed = true;
        state.left.clear();
    }
}

impl Turns {
    pub(super) fn new(
        connect: Connect,
        events: Arc<str>,
        queue: Arc<Queue>,
        telemetry: Telemetry,
    ) -> Result<Self, StorageError> {
        let client = connect.producer(Reports::new(telemetry.clone()))?;
        Ok(Self { connect, events, queue, telemetry, client })
    }

    pub(super) fn start(self, is_sound: &Arc<AtomicBool>) -> Result<JoinHandle<()>, StorageError> {
        thread::start("chaski-producer", is_sound, move || self.run())
    }

    fn run(mut self) {
        let mut records = Vec::new();
        while self.queue.collect(&mut records, self.client.in_flight_count() > 0) {
            for (record, waiting) in records.drain(..) {
                let record = match record {
                    Handed::Record(record) => record,
                    Handed::Event { event, alone } => {
                        let record = Outgoing::event(&self.events, &event);
                        if alone { record.deduplicated_alone() } else { record }
                    }
                };
                self.produce(record, waiting);
            }
            together(|| self.take_reports());
        }
        if let Err(error) = self.client.flush(FLUSH_WITHIN) {
            tracing::warn!(%error, "records were still on their way to kafka when the storage closed");
        }
    }

    fn produce(&mut self, record: Outgoing, waiting: Waiting) {
        let Outgoing { topic, key, value, headers, timestamp } = record;
        let mut record = BaseRecord::with_opaque_to(&topic, Box::new(waiting)).key(&key).headers(headers);
        if let Some(value) = &value {
            record = record.payload(&**value);
        }
        if let Some(timestamp) = timestamp {
            record = record.timestamp(timestamp);
        }
        let Err((error, record)) = self.client.send(record) else { return };
        self.telemetry.refused(&error);
        let refused = if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            // The idempotent producer lost count and will never send again; what it still holds is reported as
            // failed. A new one begins a new count.
            tracing::warn!(%error, "the kafka producer has failed for good; a new one takes over");
            match self.connect.producer(Reports::new(self.telemetry.clone())) {
                Ok(client) => {
                    self.client.purge(PurgeConfig::default().queue().inflight());
                    self.client = client;
                    self.client.send(record).err()
                }
                Err(again) => {
                    tracing::warn!(error = %again, "no new kafka producer can be made");
                    Some((error, record))
                }
            }
        } else {
            Some((error, record))
        };
        if let Some((error, record)) = refused {
            // Who does not wait any more has counted it as unknown.
            let _ = record.delivery_opaque.answer.send(Err(error));
        }
    }

    /// All that are there. The client gives those of one request at a time, and does not say whether there were any.
    fn take_reports(&self) {
        let taken = || self.client.context().taken.load(Ordering::Relaxed);
        loop {
            let before = taken();
            self.client.poll(Duration::ZERO);
            if taken() == before {
                return;
            }
        }
    }
}

/// Where the client tells its reports, and about itself.
struct Reports {
    telemetry: Telemetry,
    /// How many there were.
    taken: AtomicU64,
}

impl Reports {
    const fn new(telemetry: Telemetry) -> Self {
        Self { telemetry, taken: AtomicU64::new(0) }
    }
}

impl ClientContext for Reports {
    fn stats_raw(&self, statistics: &[u8]) {
        self.telemetry.connected(statistics);
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
        self.taken.fetch_add(1, Ordering::Relaxed);
        self.telemetry.reported(&report, waiting.since.elapsed());
        // Who does not wait any more has counted it as unknown.
        let _ = waiting.answer.send(report);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use tokio::sync::oneshot;

    use super::*;
    use crate::storage::kafka::producer::Report;

    fn left(queue: &Queue, key: u64) -> Result<oneshot::Receiver<Report>, StorageError> {
        let (answer, report) = oneshot::channel();
        let event = Arc::new(crate::storage::conformance::event(key));
        let waiting = Waiting { answer, since: Instant::now() };
        queue.push(Handed::Event { event, alone: false }, waiting).map(|()| report)
    }

    fn subjects(records: &[(Handed, Waiting)]) -> Vec<Option<Arc<str>>> {
        let subject = |record: &Handed| match record {
            Handed::Event { event, .. } => event.subject.clone(),
            Handed::Record(_) => None,
        };
        records.iter().map(|(record, _)| subject(record)).collect()
    }

    #[test]
    fn what_was_left_is_collected_in_its_order_and_the_last_of_it_after_the_end() {
        let queue = Queue::default();
        let mut records = Vec::new();
        let _reports = [left(&queue, 1).unwrap(), left(&queue, 2).unwrap()];
        for is_any_out in [false, true] {
            assert!(queue.collect(&mut records, is_any_out));
            let expected = if is_any_out {
                Vec::new()
            } else {
                vec![Some("subject-1".into()), Some("subject-2".into())]
            };
            assert_eq!(subjects(&records), expected);
            records.clear();
        }
        let _report = left(&queue, 3).unwrap();
        queue.close();
        assert!(matches!(left(&queue, 4), Err(StorageError::Closed)));
        assert!(queue.collect(&mut records, true));
        assert_eq!(records.len(), 1);
        records.clear();
        assert!(!queue.collect(&mut records, true));
    }

    #[test]
    fn who_leaves_something_while_nothing_is_out_calls() {
        let queue = Arc::<Queue>::default();
        let asked = Arc::clone(&queue);
        let waits = thread::spawn(move || {
            let mut records = Vec::new();
            while records.is_empty() {
                asked.collect(&mut records, false);
            }
            records.len()
        });
        while !queue.state().is_idle {
            thread::yield_now();
        }
        let _report = left(&queue, 1).unwrap();
        assert!(!queue.state().is_idle, "the next one calls once more");
        assert_eq!(waits.join().unwrap(), 1);
    }

    #[test]
    fn what_waits_for_a_turn_is_bounded() {
        let queue = Queue::default();
        let reports: Vec<_> = (0..=WAITING_MAX as u64).map(|key| left(&queue, key)).collect();
        let refused = |report: &&Result<_, StorageError>| matches!(report, Err(StorageError::Busy));
        assert_eq!(reports.iter().filter(refused).count(), 1);
        assert!(reports.last().is_some_and(Result::is_err));
    }
}
