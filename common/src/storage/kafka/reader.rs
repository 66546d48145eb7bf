//! One cursor's reader: a member of the cursor's consumer group, on a thread of its own.
//!
//! The thread serves the group: it takes and gives up partitions, with explicit offsets and never a default.
//! Each partition that is here has a queue of its own and a task that feeds it to its track, so that a slow
//! one holds back nobody and no more is fetched than its queue may hold. Settling commits the marks of all
//! partitions at once, with what was delivered past them.

mod feed;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::feed::Feed;
use super::Kafka;
use super::client::{ANSWER_WITHIN, failed, log};
use super::controls::Span;
use super::progress::{self, Committed, Committer, Group};
use super::telemetry::ReaderTelemetry;
use crate::storage::{
    BatchLimit, Change, Cursor, Delivered, Position, READ_RETRY, StorageError, Subscription, Track, thread,
};

/// How long the thread waits for the group's news before it looks around.
const POLL: Duration = Duration::from_millis(50);
/// How often a replay's reader asks whether the others have finished, too.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long a partition is kept for what is under way in it when the group gives it to another member: longer than an
/// attempt may take, well below the time after which brokers take a silent member for gone (`max.poll.interval.ms`).
const HAND_OVER_WITHIN: Duration = Duration::from_secs(130);
/// Changes on their way to the subscriber.
const CHANGES_MAX: usize = 1024;

/// A hand on a reader.
#[derive(Clone)]
pub(super) struct Reader {
    shared: Arc<Shared>,
    ended: watch::Receiver<bool>,
}

/// What the thread, its callbacks and the settling calls share.
struct Shared {
    kafka: Weak<Kafka>,
    cursor: Cursor,
    topic: Arc<str>,
    limit: BatchLimit,
    /// The parts of a replay; none for a destination's own way through the log.
    spans: Option<Vec<Span>>,
    telemetry: ReaderTelemetry,
    runtime: Handle,
    stop: CancellationToken,
    /// None once the reader has ended.
    changes: Mutex<Option<mpsc::Sender<Change>>>,
    consumer: OnceLock<Weak<BaseConsumer<Membership>>>,
    /// Made when somebody asks. A member that waits to be let into its group asks nothing else meanwhile, for as
    /// long as the group misses one that was killed; this one is no member.
    asking: OnceLock<Group>,
    held: Mutex<BTreeMap<u32, Held>>,
    committer: Committer,
    /// One commit at a time: those that come meanwhile are in the next one.
    committing: tokio::sync::Mutex<()>,
}

/// A partition that is here.
struct Held {
    progress: Committed,
    unsaved: bool,
    /// It goes to another member: what is parked of it is that one's.
    leaving: bool,
    stop: CancellationToken,
    feed: JoinHandle<()>,
}

impl Reader {
    /// Joins the group; the partitions come as the group shares them out.
    pub(super) fn start(
        kafka: &Arc<Kafka>,
        cursor: Cursor,
        limit: BatchLimit,
        spans: Option<Vec<Span>>,
    ) -> Result<(Self, Subscription), StorageError> {
        let (changes, subscriber) = mpsc::channel(CHANGES_MAX);
        let shared = Arc::new(Shared {
            kafka: Arc::downgrade(kafka),
            topic: Arc::clone(&kafka.topics.events),
            limit,
            spans,
            telemetry: kafka.telemetry.of(&cursor.destination),
            runtime: Handle::current(),
            stop: kafka.closing.child_token(),
            changes: Mutex::new(Some(changes)),
            consumer: OnceLock::new(),
            asking: OnceLock::new(),
            held: Mutex::default(),
            committer: Committer::default(),
            committing: tokio::sync::Mutex::default(),
            cursor,
        });
        let group = kafka.group(&shared.cursor);
        let consumer = Arc::new(kafka.connect.member(&group, Membership(Arc::clone(&shared)))?);
        let _ = shared.consumer.set(Arc::downgrade(&consumer));
        consumer.subscribe(&[&shared.topic]).map_err(|error| failed("joining a group", error))?;
        let (over, ended) = watch::channel(false);
        let reader = Self { shared: Arc::clone(&shared), ended };
        thread::start("chaski-reader", &kafka.is_sound, move || {
            shared.run(consumer);
            over.send_replace(true);
        })?;
        Ok((reader, Subscription { changes: subscriber }))
    }

    /// Whether its subscriber is gone, or it has been told to stop.
    pub(super) fn is_over(&self) -> bool {
        self.shared.stop.is_cancelled() || self.shared.is_deserted()
    }

    /// Leaves the group and waits until that is done.
    pub(super) async fn stop(&mut self) {
        self.shared.stop.cancel();
        let _ = self.ended.wait_for(|ended| *ended).await;
    }

    /// The partitions that are here, and stay.
    pub(super) fn partitions(&self) -> Vec<u32> {
        let held = self.shared.held();
        held.iter().filter(|(_, held)| !held.leaving).map(|(partition, _)| *partition).collect()
    }

    /// What the group has committed in these partitions.
    pub(super) async fn committed(
        &self,
        partitions: Vec<u32>,
    ) -> Result<BTreeMap<u32, Committed>, StorageError> {
        let shared = Arc::clone(&self.shared);
        let asked = tokio::task::spawn_blocking(move || shared.asking()?.committed(partitions));
        asked.await.map_err(StorageError::unfinished)?
    }

    /// See [`EventLog::settle`](crate::storage::EventLog::settle).
    pub(super) async fn settle(&self, mark: Position, delivered: &[Delivered]) -> Result<(), StorageError> {
        let partition = mark.partition();
        let lost = StorageError::Revoked { partition };
        {
            let mut held = self.shared.held();
            let Some(held) = held.get_mut(&partition) else { return Err(lost) };
            held.settle(mark.place(), delivered);
        }
        let _turn = self.shared.committing.lock().await;
        let shared = Arc::clone(&self.shared);
        let committed = tokio::task::spawn_blocking(move || shared.commit());
        match committed.await.map_err(StorageError::unfinished)? {
            Err(_) if !self.shared.held().contains_key(&partition) => Err(lost),
            committed => committed,
        }
    }
}

impl Held {
    fn settle(&mut self, mark: u64, delivered: &[Delivered]) {
        let progress = &mut self.progress;
        progress.mark = progress.mark.max(mark);
        progress.delivered.extend(delivered.iter().map(|delivered| delivered.position.place()));
        progress.delivered = progress.delivered.split_off(&(progress.mark + 1));
        self.unsaved = true;
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, BTreeMap<u32, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn consumer(&self) -> Result<Arc<BaseConsumer<Membership>>, StorageError> {
        self.consumer.get().and_then(Weak::upgrade).ok_or(StorageError::Closed)
    }

    fn asking(&self) -> Result<&Group, StorageError> {
        if let Some(group) = self.asking.get() {
            return Ok(group);
        }
        let kafka = self.kafka.upgrade().ok_or(StorageError::Closed)?;
        let group = Group::new(&kafka.connect, &kafka.group(&self.cursor), &self.topic)?;
        Ok(self.asking.get_or_init(|| group))
    }

    /// Whether the subscriber is gone.
    fn is_deserted(&self) -> bool {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    /// A subscriber that is gone hears nothing, and ends this reader soon. Blocks.
    fn announce(&self, change: Change) {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(changes) = changes {
            let _ = changes.blocking_send(change);
        }
    }

    fn run(self: &Arc<Self>, consumer: Arc<BaseConsumer<Membership>>) {
        let mut asked = Instant::now();
        while !self.stop.is_cancelled() && !self.is_deserted() {
            match consumer.poll(POLL) {
                None => {}
                Some(Err(error)) => {
                    tracing::warn!(cursor = ?self.cursor, %error, "a reader of the log has trouble; it goes on trying");
                }
                // Every partition has a queue of its own before it is fetched from.
                Some(Ok(_)) => {
                    tracing::error!(cursor = ?self.cursor, "a record outside of its partition's queue");
                }
            }
            if self.spans.is_some() && asked.elapsed() >= ASK_EVERY {
                asked = Instant::now();
                if self.is_replayed(&consumer) {
                    break;
                }
            }
        }
        self.stop.cancel();
        let held = std::mem::take(&mut *self.held());
        for (partition, held) in held {
            held.stop.cancel();
            let _ = self.runtime.block_on(held.feed);
            if let Some(kafka) = self.kafka.upgrade() {
                kafka.forget_seen(&self.cursor, partition);
            }
        }
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Nobody asks for the reader of a replay again.
        if self.cursor.replay != 0
            && let Some(kafka) = self.kafka.upgrade()
        {
            kafka.readers().remove(&self.cursor);
        }
        // The last hand on it: leaves the group.
        drop(consumer);
    }

    /// Whether all parts of a replay are settled, wherever they were read.
    fn is_replayed(&self, consumer: &BaseConsumer<Membership>) -> bool {
        let spans = self.spans.as_deref().unwrap_or_default();
        let done = {
            let held = self.held();
            held.iter().all(|(partition, held)| {
                spans.iter().all(|span| span.partition != *partition || held.progress.mark >= span.until)
            })
        };
        done && progress::committed(consumer, &self.topic, spans.iter().map(|span| span.partition)).is_ok_and(
            |committed| {
                spans.iter().all(|span| {
                    committed.get(&span.partition).is_some_and(|committed| committed.mark >= span.until)
                })
            },
        )
    }

    /// Commits what is settled and not saved. Blocks.
    fn commit(&self) -> Result<(), StorageError> {
        let unsaved: BTreeMap<u32, Committed> = {
            let mut held = self.held();
            let unsaved = held.iter_mut().filter_map(|(partition, held)| {
                std::mem::take(&mut held.unsaved).then(|| (*partition, held.progress.clone()))
            });
            unsaved.collect()
        };
        if unsaved.is_empty() {
            return Ok(());
        }
        let partitions: Vec<u32> = unsaved.keys().copied().collect();
        self.committer.commit(&self.consumer()?, &self.topic, unsaved).inspect_err(|_| {
            for (partition, held) in self.held().iter_mut() {
                held.unsaved |= partitions.contains(partition);
            }
        })
    }

    /// Takes partitions over.
    fn assign(&self, consumer: &BaseConsumer<Membership>, list: &TopicPartitionList) {
        let partitions: Vec<u32> =
            list.elements().iter().map(|place| place.partition().unsigned_abs()).collect();
        let Some(kafka) = self.kafka.upgrade() else { return };
        let starts = loop {
            if self.stop.is_cancelled() {
                return;
            }
            match self.starts(consumer, &kafka, &partitions) {
                Ok(starts) => break starts,
                Err(error) => {
                    tracing::warn!(cursor = ?self.cursor, %error, "where to begin is not known yet; trying on");
                    // Made inside: a timer needs the runtime it is to run on.
                    self.runtime.block_on(async { tokio::time::sleep(READ_RETRY).await });
                }
            }
        };
        if let Err(error) = self.take_over(consumer, &kafka, starts) {
            tracing::error!(cursor = ?self.cursor, %error, "partitions could not be taken over; they are not read until the group shares them out anew");
        }
    }

    /// Where each partition begins, and what past that is settled already.
    fn starts(
        &self,
        consumer: &BaseConsumer<Membership>,
        kafka: &Kafka,
        partitions: &[u32],
    ) -> Result<Vec<(u32, Committed, Vec<Position>)>, StorageError> {
        let mut committed = progress::committed(consumer, &self.topic, partitions.iter().copied())
            .map_err(|error| failed("reading a group's progress", error))?;
        let end = |topic: &str| {
            let extent = consumer.fetch_watermarks(topic, 0, ANSWER_WITHIN);
            extent
                .map(|(_, end)| end.unsigned_abs())
                .map_err(|error| failed("reading the extent of a topic", error))
        };
        let ends = [end(&kafka.topics.parked)?, end(&kafka.topics.dead)?];
        let mut starts = Vec::new();
        for partition in partitions {
            let (first, _) = consumer
                .fetch_watermarks(&self.topic, partition.cast_signed(), ANSWER_WITHIN)
                .map_err(|error| failed("reading the extent of the log", error))?;
            let first = first.unsigned_abs();
            // A partition that the topic has gained since: from its beginning, or its first events are lost.
            let mut progress = committed
                .remove(partition)
                .unwrap_or_else(|| Committed { mark: first, ..Committed::default() });
            let mut settled = if self.cursor.replay == 0 {
                let name = &self.cursor.destination;
                self.runtime.block_on(kafka.settled_past(name, *partition, &progress, ends))?
            } else {
                progress.delivered.iter().map(|place| Position::new(*partition, *place)).collect()
            };
            if progress.mark < first {
                let gap = first - progress.mark;
                let known = settled.len();
                settled.retain(|position| position.place() > first);
                let missing = gap - ((known - settled.len()) as u64).min(gap);
                self.go_on_behind_a_gap(*partition, &mut progress, first, missing)?;
            }
            starts.push((*partition, progress, settled));
        }
        Ok(starts)
    }

    /// What is past the mark has been deleted, up to `first`; of that so many were not settled. Counted when the new mark is committed, so that the
    /// next reader does not count it again.
    fn go_on_behind_a_gap(
        &self,
        partition: u32,
        progress: &mut Committed,
        first: u64,
        missing: u64,
    ) -> Result<(), StorageError> {
        progress.mark = first;
        progress.delivered = progress.delivered.split_off(&(first + 1));
        let committed = BTreeMap::from([(partition, progress.clone())]);
        self.committer.commit(&self.consumer()?, &self.topic, committed)?;
        report_missing(&self.cursor, partition, missing, &self.telemetry.lost);
        Ok(())
    }

    fn take_over(
        &self,
        consumer: &BaseConsumer<Membership>,
        kafka: &Kafka,
        starts: Vec<(u32, Committed, Vec<Position>)>,
    ) -> Result<(), KafkaError> {
        let mut places = TopicPartitionList::new();
        for (partition, progress, _) in &starts {
            let offset = Offset::Offset(progress.mark.cast_signed());
            places.add_partition_offset(&self.topic, partition.cast_signed(), offset)?;
        }
        consumer.incremental_assign(&places)?;
        // Paused while the queues are made: what was fetched before goes nowhere and is fetched again.
        consumer.pause(&places)?;
        let Some(owner) = self.consumer.get().and_then(Weak::upgrade) else { return Ok(()) };
        let mut fed = TopicPartitionList::new();
        for (partition, progress, settled) in starts {
            let span = self.spans.as_ref().map(|spans| spans.iter().find(|span| span.partition == partition));
            let until = match span {
                None => None,
                Some(Some(span)) if progress.mark < span.until => Some(span.until),
                // Nothing of the replay is left here.
                Some(_) => continue,
            };
            let queue = owner
                .split_partition_queue(&self.topic, partition.cast_signed())
                .ok_or_else(|| KafkaError::Subscription(self.topic.to_string()))?;
            fed.add_partition(&self.topic, partition.cast_signed());
            let (batches, receiver) = mpsc::channel(1);
            let stop = self.stop.child_token();
            let next = progress.mark;
            let feed = Feed {
                queue,
                stop: stop.clone(),
                limit: self.limit,
                until,
                next,
                batches,
                topic: Arc::clone(&self.topic),
                cursor: self.cursor.clone(),
                lost: self.telemetry.lost.clone(),
            };
            let feed = self.runtime.spawn(feed.run());
            let track = Track {
                partition,
                mark: Position::new(partition, progress.mark),
                settled,
                until: until.map(|until| Position::new(partition, until)),
                batches: receiver,
            };
            kafka.note_seen(&self.cursor, partition, progress.mark);
            self.held().insert(partition, Held { progress, unsaved: false, leaving: false, stop, feed });
            self.announce(Change::Gained(track));
        }
        consumer.resume(&fed)
    }

    /// Has what is under way in these partitions end and be settled, so that nobody begins it anew. The group's other
    /// members go on meanwhile; nobody has these. Blocks.
    fn hand_over(&self, partitions: &[u32]) {
        let mut leaving = Vec::new();
        for partition in partitions {
            match self.held().get_mut(partition) {
                None => continue,
                Some(held) => held.leaving = true,
            }
            let (ended, has_ended) = oneshot::channel();
            self.announce(Change::Leaving { partition: *partition, ended });
            leaving.push(has_ended);
        }
        let all = async {
            for has_ended in leaving {
                let _ = has_ended.await;
            }
        };
        self.runtime.block_on(async {
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = all => {}
                () = tokio::time::sleep(HAND_OVER_WITHIN) => {
                    tracing::warn!(cursor = ?self.cursor, "what is under way in a partition that goes to another process did not end in time; it is begun anew there");
                }
            }
        });
    }

    /// Gives partitions up.
    fn revoke(&self, consumer: &BaseConsumer<Membership>, list: &TopicPartitionList) {
        let partitions: Vec<u32> =
            list.elements().iter().map(|place| place.partition().unsigned_abs()).collect();
        if !consumer.assignment_lost() {
            self.hand_over(&partitions);
        }
        if !consumer.assignment_lost()
            && let Err(error) = self.commit()
        {
            tracing::warn!(cursor = ?self.cursor, %error, "the last progress of a partition was not saved; what it was is delivered once more");
        }
        for partition in partitions {
            let Some(held) = self.held().remove(&partition) else { continue };
            held.stop.cancel();
            let _ = self.runtime.block_on(held.feed);
            if let Some(kafka) = self.kafka.upgrade() {
                kafka.forget_seen(&self.cursor, partition);
            }
            self.announce(Change::Lost { partition });
        }
    }
}

/// What the client calls when the group changes.
pub(super) struct Membership(Arc<Shared>);

impl ClientContext for Membership {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(cursor = ?self.0.cursor, %error, reason, "kafka reader");
    }
}

impl ConsumerContext for Membership {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            // Every sharing out ends with this, even if nothing new comes.
            if self.0.cursor.replay == 0 {
                self.0.telemetry.rebalances.inc();
            }
            self.0.assign(consumer, list);
            return;
        }
        self.0.revoke(consumer, list);
        if let Err(error) = consumer.incremental_unassign(list) {
            tracing::error!(cursor = ?self.0.cursor, %error, "partitions could not be given up");
        }
    }
}

/// Events that a cursor was to read have been deleted. For a replay they are past: it was delivered before, or died.
fn report_missing(cursor: &Cursor, partition: u32, missing: u64, lost: &IntCounter) {
    if cursor.replay != 0 {
        tracing::warn!(
            ?cursor,
            partition,
            missing,
            "events of a replay have been deleted; it goes on behind them"
        );
        return;
    }
    lost.inc_by(missing);
    tracing::error!(
        ?cursor,
        partition,
        missing,
        "events were deleted before the destination had settled them; it goes on behind them"
    );
}
