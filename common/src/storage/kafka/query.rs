//! Questions to the events topic outside of any cursor: where it begins and ends, what stands where. One at a
//! time; each blocks, so they run on tokio's blocking threads.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use super::client::{ANSWER_WITHIN, Connect, Spoken, failed};
use super::record::read_record;
use crate::storage::{Ages, Left, PASSED_MAX, Record, StorageError};

/// How long the end of the log may be read when the storage opens.
pub(super) const OPENING_WITHIN: Duration = Duration::from_mins(10);
/// Without a record for so long a reading of the topic has failed.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long a search may read the log: an operator's command waits 30 s for its answer.
pub(super) const SEARCH_WITHIN: Duration = Duration::from_secs(20);
/// How long one wait for a record lasts.
const POLL: Duration = Duration::from_millis(100);
/// Records that a search backwards reads in one piece.
const CHUNK: u64 = 5000;

/// A partition and what it holds: offsets in `[first, end)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) partition: u32,
    pub(super) first: u64,
    pub(super) end: u64,
}

#[derive(Clone)]
pub(super) struct Query(Arc<Inner>);

struct Inner {
    topic: Arc<str>,
    /// How long one question may read the log.
    reads_within: Duration,
    /// None once closed.
    consumer: Mutex<Option<BaseConsumer<Spoken>>>,
}

impl Query {
    pub(super) fn new(
        connect: &Connect,
        group: &str,
        topic: Arc<str>,
        reads_within: Duration,
    ) -> Result<Self, StorageError> {
        let consumer = Mutex::new(Some(connect.consumer(group, true, Spoken)?));
        Ok(Self(Arc::new(Inner { topic, reads_within, consumer })))
    }

    /// Asks on a blocking thread.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Asked<'_>) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let inner = Arc::clone(&self.0);
        let asked = tokio::task::spawn_blocking(move || {
            // Waiting for the question before this one counts.
            let began = Instant::now();
            let consumer = inner.consumer.lock().unwrap_or_else(PoisonError::into_inner);
            let consumer = consumer.as_ref().ok_or(StorageError::Closed)?;
            question(&Asked { consumer, topic: &inner.topic, began, reads_within: inner.reads_within })
        });
        asked.await.map_err(StorageError::unfinished)?
    }

    /// Ends the client. Blocks.
    pub(super) fn close(&self) {
        self.0.consumer.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The client while a question is asked.
pub(super) struct Asked<'a> {
    consumer: &'a BaseConsumer<Spoken>,
    topic: &'a str,
    began: Instant,
    reads_within: Duration,
}

impl Asked<'_> {
    /// Every partition and what it holds.
    pub(super) fn extents(&self) -> Result<Vec<Extent>, StorageError> {
        let doing = "reading the extent of the log";
        let metadata = self
            .consumer
            .fetch_metadata(Some(self.topic), ANSWER_WITHIN)
            .map_err(|error| failed(doing, error))?;
        let partitions = metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions);
        let mut extents = Vec::new();
        for partition in partitions {
            extents.push(self.extent_of(self.topic, partition.id())?);
        }
        extents.sort_by_key(|extent| extent.partition);
        Ok(extents)
    }

    /// What a partition of any topic holds.
    pub(super) fn extent_of(&self, topic: &str, partition: i32) -> Result<Extent, StorageError> {
        let (first, end) = self
            .consumer
            .fetch_watermarks(topic, partition, ANSWER_WITHIN)
            .map_err(|error| failed("reading the extent of a topic", error))?;
        Ok(Extent {
            partition: partition.unsigned_abs(),
            first: first.unsigned_abs(),
            end: end.unsigned_abs(),
        })
    }

    /// Of each partition the offset of the first record that was received at this time or later.
    pub(super) fn since(&self, extents: &[Extent], at: Timestamp) -> Result<Vec<u64>, StorageError> {
        let doing = "looking up a time in the log";
        let mut wanted = TopicPartitionList::new();
        for extent in extents {
            wanted
                .add_partition_offset(
                    self.topic,
                    extent.partition.cast_signed(),
                    Offset::Offset(at.as_millisecond()),
                )
                .map_err(|error| failed(doing, error))?;
        }
        let found =
            self.consumer.offsets_for_times(wanted, ANSWER_WITHIN).map_err(|error| failed(doing, error))?;
        extents
            .iter()
            .map(|extent| {
                let place = found.find_partition(self.topic, extent.partition.cast_signed());
                match place.map(|place| (place.offset(), place.error())) {
                    Some((_, Err(error))) => Err(failed(doing, error)),
                    Some((Offset::Offset(offset), Ok(()))) => Ok(offset.unsigned_abs()),
                    _ => Ok(extent.end),
                }
            })
            .collect()
    }

    /// Of each partition the offset up to which everything is past its time, that one excluded, and what is behind it.
    pub(super) fn aged(&self, extents: &[Extent], ages: Ages) -> Result<Vec<(u64, Left)>, StorageError> {
        let young = self.since(extents, ages.before)?;
        let beyond = ages.horizon.saturating_add(Duration::from_millis(1)).unwrap_or(Timestamp::MAX);
        let unknown = self.since(extents, beyond)?;
        let places = extents.iter().zip(young.into_iter().zip(unknown));
        places
            .map(|(extent, (young, unknown))| {
                if young < unknown || young >= extent.end {
                    return Ok((young, Left::Nothing));
                }
                // It came while a clock was wrong, and is as old as the next that did not.
                let looked_at = Extent { first: young, end: extent.end.min(young + PASSED_MAX), ..*extent };
                let mut next = None;
                self.read(looked_at, |record| {
                    next = (record.event.received_at <= ages.horizon).then_some(record);
                    if next.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })?;
                Ok(match next {
                    Some(next) if next.event.received_at < ages.before => (next.position.place(), Left::More),
                    None if looked_at.end < extent.end => (young, Left::HeldBack),
                    _ => (young, Left::Nothing),
                })
            })
            .collect()
    }

    /// Reads the records of a partition in `[extent.first, extent.end)`, in order, until told to stop.
    pub(super) fn read(
        &self,
        extent: Extent,
        mut each: impl FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        let doing = "reading the log";
        if extent.first >= extent.end {
            return Ok(());
        }
        let mut place = TopicPartitionList::new();
        let partition = extent.partition.cast_signed();
        place
            .add_partition_offset(self.topic, partition, Offset::Offset(extent.first.cast_signed()))
            .and_then(|()| self.consumer.assign(&place))
            .map_err(|error| failed(doing, error))?;
        let outcome = self.read_assigned(extent, &mut each);
        self.consumer.unassign().map_err(|error| failed(doing, error))?;
        outcome
    }

    fn read_assigned(
        &self,
        extent: Extent,
        each: &mut impl FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        let doing = "reading the log";
        let mut heard = Instant::now();
        let mut next = extent.first;
        while next < extent.end {
            // What was found so far says nothing about the rest.
            if self.began.elapsed() > self.reads_within {
                return Err(StorageError::Late { doing: "searching the log", within: self.reads_within });
            }
            match self.consumer.poll(POLL) {
                None if heard.elapsed() < SILENCE_MAX => {}
                None => return Err(failed(doing, KafkaError::MessageConsumption(TIMED_OUT))),
                // Records of an earlier question may still be on their way.
                Some(Ok(message)) if message.partition().unsigned_abs() != extent.partition => {}
                Some(Ok(message)) => {
                    heard = Instant::now();
                    let offset = message.offset().unsigned_abs();
                    if offset < next || offset >= extent.end {
                        continue;
                    }
                    next = offset + 1;
                    match read_record(&message) {
                        Ok(record) => {
                            if each(record).is_break() {
                                return Ok(());
                            }
                        }
                        Err(error) => {
                            tracing::debug!(%error, offset, "passing over a record that is not ours");
                        }
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition)))
                    if partition.unsigned_abs() == extent.partition =>
                {
                    return Ok(());
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) if heard.elapsed() < SILENCE_MAX => {
                    tracing::debug!(%error, "the log could not be read; trying on");
                }
                Some(Err(error)) => return Err(failed(doing, error)),
            }
        }
        Ok(())
    }

    /// The first record at or behind an offset.
    pub(super) fn first(&self, extent: Extent) -> Result<Option<Record>, StorageError> {
        let mut found = None;
        self.read(extent, |record| {
            found = Some(record);
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// The newest records of a partition that match, newest first, at most `limit`. Reads backwards, piece by
    /// piece, as far as it has to.
    pub(super) fn newest(
        &self,
        extent: Extent,
        limit: usize,
        matches: impl Fn(&Record) -> bool,
    ) -> Result<Vec<Record>, StorageError> {
        let mut found = Vec::new();
        let mut piece = Extent { first: extent.end, ..extent };
        while piece.first > extent.first && found.len() < limit {
            piece.end = piece.first;
            piece.first = piece.end.saturating_sub(CHUNK).max(extent.first);
            let mut matching = Vec::new();
            self.read(piece, |record| {
                if matches(&record) {
                    matching.push(record);
                }
                ControlFlow::Continue(())
            })?;
            found.extend(matching.into_iter().rev());
        }
        found.truncate(limit);
        Ok(found)
    }
}

const TIMED_OUT: rdkafka::error::RDKafkaErrorCode = rdkafka::error::RDKafkaErrorCode::OperationTimedOut;
