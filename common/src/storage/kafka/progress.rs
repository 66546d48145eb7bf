//! What is known of a cursor's progress outside of this process: the committed offsets of its group.
//!
//! The offset is the mark. What was delivered past it is in the commit's metadata, as a bitmap: one commit
//! says both, so that after a crash only what was in flight or not committed yet is delivered once more.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{ANSWER_WITHIN, Connect, Spoken, failed};
use super::query::Extent;
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

/// Commits; `Ok` means durable. Blocks.
pub(super) fn commit<C: ConsumerContext>(
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
pub(super) fn is_taken(error: &KafkaError) -> bool {
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
    consumer: BaseConsumer<Spoken>,
    topic: String,
}

impl Group {
    pub(super) fn new(connect: &Connect, group: &str, topic: &str) -> Result<Self, StorageError> {
        Ok(Self { consumer: connect.consumer(group, false, Spoken)?, topic: topic.to_owned() })
    }

    pub(super) fn committed(&self, extents: &[Extent]) -> Result<BTreeMap<u32, Committed>, StorageError> {
        committed(&self.consumer, &self.topic, extents.iter().map(|extent| extent.partition))
            .map_err(|error| failed("reading a group's progress", error))
    }

    /// `false` when the group has members: they commit.
    pub(super) fn commit(&self, progress: &BTreeMap<u32, Committed>) -> Result<bool, StorageError> {
        match commit(&self.consumer, &self.topic, progress) {
            Ok(()) => Ok(true),
            Err(error) if is_taken(&error) => Ok(false),
            Err(error) => Err(failed("committing a group's progress", error)),
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
