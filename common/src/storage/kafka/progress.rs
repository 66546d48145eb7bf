//! What is known of a cursor's progress outside of this process: the committed offsets of its group.
//!
//! The offset is the mark. What was delivered past it is in the commit's metadata, as a bitmap: one commit
//! says both, so that after a crash only what was in flight or not committed yet is delivered once more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{ANSWER_WITHIN, Connect, Spoken, failed};
use crate::storage::StorageError;

/// Marks a bitmap of deliveries past the mark.
const PREFIX: &str = "d1:";
/// Bytes of a bitmap: brokers keep 4096 bytes of metadata. Reaches 24,000 places past the mark; what lies
/// further is delivered once more after a crash.
const BITMAP_BYTES_MAX: usize = 3000;

/// A partition's committed progress: everything up to `mark` is settled, these past it were delivered. All are
/// places within the partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Committed {
    pub(super) mark: u64,
    pub(super) delivered: BTreeSet<u64>,
}

impl Committed {
    fn metadata(&self) -> String {
        let mut bitmap = Vec::new();
        for place in &self.delivered {
            let Some(ahead) = place.checked_sub(self.mark + 1) else { continue };
            let Ok(byte) = usize::try_from(ahead / 8) else { break };
            if byte >= BITMAP_BYTES_MAX {
                break;
            }
            if byte >= bitmap.len() {
                bitmap.resize(byte + 1, 0_u8);
            }
            bitmap[byte] |= 1 << (ahead % 8);
        }
        if bitmap.is_empty() { String::new() } else { format!("{PREFIX}{}", BASE64.encode(bitmap)) }
    }

    fn read(mark: u64, metadata: &str) -> Self {
        // Another tool may have moved the group: then nothing past the mark is known.
        let bitmap =
            metadata.strip_prefix(PREFIX).and_then(|text| BASE64.decode(text).ok()).unwrap_or_default();
        let delivered = bitmap
            .iter()
            .zip((mark + 1..).step_by(8))
            .flat_map(|(byte, first)| {
                (0..8).filter(move |bit| byte & (1 << bit) != 0).map(move |bit| first + bit)
            })
            .collect();
        Self { mark, delivered }
    }
}

/// The committed progress of a group in each of these partitions; those without are missing.
pub(super) fn committed<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partitions: impl IntoIterator<Item = u32>,
) -> Result<BTreeMap<u32, Committed>, KafkaError> {
    let mut wanted = TopicPartitionList::new();
    for partition in partitions {
        wanted.add_partition(topic, partition.cast_signed());
    }
    if wanted.count() == 0 {
        return Ok(BTreeMap::new());
    }
    // The client can miss that it has found the group's coordinator and then sleeps until the time is over:
    // a few short questions instead of a long one.
    let mut patience = ANSWER_WITHIN / 32;
    let found = loop {
        match consumer.committed_offsets(wanted.clone(), patience) {
            Err(error) if is_late(&error) && patience < ANSWER_WITHIN / 2 => patience *= 2,
            found => break found?,
        }
    };
    let mut progress = BTreeMap::new();
    for place in found.elements() {
        place.error()?;
        if let Offset::Offset(mark) = place.offset() {
            let committed = Committed::read(mark.unsigned_abs(), place.metadata());
            progress.insert(place.partition().unsigned_abs(), committed);
        }
    }
    Ok(progress)
}

/// Commits for one client, with a deadline: the client itself waits for the brokers as long as it takes.
#[derive(Default)]
pub(super) struct Committer {
    /// One that was not waited for to its end.
    late: Mutex<Option<Receiver<Result<(), KafkaError>>>>,
}

impl Committer {
    /// `Ok` means durable. Blocks, for [`ANSWER_WITHIN`] at most; what is late may still be committed, and until
    /// that is known nothing else is.
    pub(super) fn commit<C: ConsumerContext + 'static>(
        &self,
        consumer: &Arc<BaseConsumer<C>>,
        topic: &str,
        progress: BTreeMap<u32, Committed>,
    ) -> Result<(), StorageError> {
        let doing = "committing a group's progress";
        let late = || StorageError::Late { doing, within: ANSWER_WITHIN };
        let until = Instant::now() + ANSWER_WITHIN;
        let mut before = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(report) = before.take()
            && report.recv_timeout(ANSWER_WITHIN) == Err(RecvTimeoutError::Timeout)
        {
            *before = Some(report);
            return Err(late());
        }
        let (answer, report) = sync_channel(1);
        let (consumer, topic) = (Arc::clone(consumer), topic.to_owned());
        std::thread::Builder::new()
            .name("chaski-commit".to_owned())
            .spawn(move || {
                let committed = commit(&*consumer, &topic, &progress);
                drop(consumer);
                answer.send(committed)
            })
            .map_err(|error| StorageError::Engine { doing, cause: Arc::new(error) })?;
        match report.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(committed) => committed.map_err(|error| failed(doing, error)),
            Err(RecvTimeoutError::Timeout) => {
                *before = Some(report);
                Err(late())
            }
            Err(RecvTimeoutError::Disconnected) => Err(StorageError::Panicked),
        }
    }
}

/// Commits; `Ok` means durable. Blocks, without end if the brokers are away.
fn commit<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    progress: &BTreeMap<u32, Committed>,
) -> Result<(), KafkaError> {
    let mut list = TopicPartitionList::new();
    for (partition, committed) in progress {
        let mut place = list.add_partition(topic, partition.cast_signed());
        place.set_offset(Offset::Offset(committed.mark.cast_signed()))?;
        place.set_metadata(committed.metadata());
    }
    consumer.commit(&list, CommitMode::Sync)
}

fn is_late(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut)
}

/// Whether a commit was refused because somebody else has the partitions.
fn is_taken(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::FencedInstanceId
                | RDKafkaErrorCode::StaleMemberEpoch
        )
    )
}

/// A client for a group that nobody here reads with: asks and commits, never joins.
pub(super) struct Group {
    consumer: Arc<BaseConsumer<Spoken>>,
    topic: String,
}

impl Group {
    pub(super) fn new(connect: &Connect, group: &str, topic: &str) -> Result<Self, StorageError> {
        let consumer = Arc::new(connect.consumer(group, false, Spoken)?);
        Ok(Self { consumer, topic: topic.to_owned() })
    }

    pub(super) fn committed(
        &self,
        partitions: impl IntoIterator<Item = u32>,
    ) -> Result<BTreeMap<u32, Committed>, StorageError> {
        committed(&self.consumer, &self.topic, partitions)
            .map_err(|error| failed("reading a group's progress", error))
    }

    /// `false` when the group has members: they commit.
    pub(super) fn commit(&self, progress: BTreeMap<u32, Committed>) -> Result<bool, StorageError> {
        match Committer::default().commit(&self.consumer, &self.topic, progress) {
            Ok(()) => Ok(true),
            Err(StorageError::Engine { cause, .. })
                if cause.downcast_ref::<KafkaError>().is_some_and(is_taken) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_delivered_past_the_mark_is_read_back_from_the_metadata(
            mark in 0_u64..1 << 40,
            ahead in proptest::collection::btree_set(1_u64..30_000, 0..300),
        ) {
            let delivered = ahead.iter().map(|ahead| mark + ahead).collect();
            let metadata = Committed { mark, delivered }.metadata();
            prop_assert!(metadata.len() <= 4096);
            let read = Committed::read(mark, &metadata);
            let reach = 8 * BITMAP_BYTES_MAX as u64;
            let expected: BTreeSet<u64> = ahead.into_iter().filter(|ahead| *ahead <= reach).map(|ahead| mark + ahead).collect();
            prop_assert_eq!(read, Committed { mark, delivered: expected });
        }
    }

    #[test]
    fn metadata_of_others_says_nothing() {
        for foreign in ["", "d1:", "d1:***", "x"] {
            assert_eq!(Committed::read(7, foreign), Committed { mark: 7, delivered: BTreeSet::new() });
        }
    }
}
