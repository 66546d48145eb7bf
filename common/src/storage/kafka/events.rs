//! The log's side of the seam.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::Kafka;
use super::append::{APPEND_WITHIN, QUARANTINING};
use super::client::failed;
use super::controls::{DestinationControl, ReplayControl, Span};
use super::progress::{Committed, Group};
use super::query::{Asked, Extent};
use super::reader::Reader;
use super::record::{ControlKey, Outgoing};
use super::spool::Spool;
use super::view::PARKED;
use crate::event::{Event, EventId};
use crate::storage::{
    Ages, Appended, BatchLimit, Census, Controls, Cursor, Delivered, EventFilter, EventLog, Fate, Labels,
    Left, OnConflict, PAGE_MAX, Position, Progress, Pruned, Record, Replay, SKEW_MAX, Start, StorageError,
    Subscription,
};

/// How long a control record may take; the first one finds the brokers.
const CONTROL_WITHIN: Duration = Duration::from_secs(30);

/// Steps that are taken where they are awaited. Dropped half-way, what is left of them goes on in a task, if the runtime
/// does: few do that, and a task for each would cost the others theirs.
pub(super) struct ToItsEnd<T: Send + 'static>(Option<Pin<Box<dyn Future<Output = T> + Send>>>);

impl<T: Send + 'static> ToItsEnd<T> {
    pub(super) fn new(steps: impl Future<Output = T> + Send + 'static) -> Self {
        Self(Some(Box::pin(steps)))
    }
}

impl<T: Send + 'static> Future for ToItsEnd<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(steps) = &mut self.0 else { return Poll::Pending };
        let polled = steps.as_mut().poll(context);
        if polled.is_ready() {
            self.0 = None;
        }
        polled
    }
}

impl<T: Send + 'static> Drop for ToItsEnd<T> {
    fn drop(&mut self) {
        if let Some(steps) = self.0.take()
            && !std::thread::panicking()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(steps);
        }
    }
}

/// See [`EventLog`].
pub(super) struct Events(pub(super) Arc<Kafka>);

#[async_trait]
impl EventLog for Events {
    async fn append(&self, event: Event, on_conflict: OnConflict) -> Result<Appended, StorageError> {
        self.0.check_open()?;
        // A caller that goes away must not leave a reservation behind.
        let kafka = Arc::clone(&self.0);
        let appending = ToItsEnd::new(async move { kafka.append(event, on_conflict).await });
        let late = |_| StorageError::Late { doing: "storing an event", within: APPEND_WITHIN };
        tokio::time::timeout(APPEND_WITHIN, appending).await.map_err(late)?
    }

    async fn quarantine(&self, event: Event, reason: &str, detail: &str) -> Result<bool, StorageError> {
        self.0.check_open()?;
        let (kafka, reason, detail) = (Arc::clone(&self.0), reason.to_owned(), detail.to_owned());
        let keeping = ToItsEnd::new(async move { kafka.quarantine(event, &reason, &detail).await });
        let late = |_| StorageError::Late { doing: QUARANTINING, within: APPEND_WITHIN };
        tokio::time::timeout(APPEND_WITHIN, keeping).await.map_err(late)?
    }

    fn head(&self) -> watch::Receiver<Position> {
        self.0.head.subscribe()
    }

    async fn subscribe(
        &self,
        cursor: &Cursor,
        start: Start,
        limit: BatchLimit,
    ) -> Result<Subscription, StorageError> {
        let kafka = &self.0;
        kafka.opened()?;
        // One at a time per cursor, says the seam: an earlier one whose subscriber is gone is leaving.
        let _ = kafka.reader(cursor).await;
        let spans = if cursor.replay == 0 {
            kafka.begin(cursor, start).await?;
            None
        } else {
            let spans =
                kafka.view()?.controls().replays.get(&cursor.replay).map(|replay| replay.spans.clone());
            match spans {
                Some(spans) if !spans.is_empty() => Some(spans),
                // Nothing to read: over before it begins.
                _ => return Ok(Subscription { changes: mpsc::channel(1).1 }),
            }
        };
        let (reader, subscription) = Reader::start(kafka, cursor.clone(), limit, spans)?;
        kafka.readers().insert(cursor.clone(), reader);
        Ok(subscription)
    }

    async fn settle(
        &self,
        cursor: &Cursor,
        mark: Position,
        delivered: Vec<Delivered>,
    ) -> Result<(), StorageError> {
        let kafka = &self.0;
        kafka.opened()?;
        match kafka.reader(cursor).await {
            Some(reader) => reader.settle(mark, &delivered).await?,
            None => kafka.settle_from_outside(cursor, mark, &delivered).await?,
        }
        if cursor.replay == 0 {
            kafka.view()?.note_delivered(&cursor.destination, delivered).await?;
        }
        Ok(())
    }

    async fn begin_replay(
        &self,
        destination: &str,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<(Cursor, u64), StorageError> {
        self.0.begin_replay(destination, from, to).await
    }

    async fn replays(&self) -> Result<Vec<Replay>, StorageError> {
        self.0.check_open()?;
        let known = self.0.view()?.controls().replays.clone();
        let extents = self.0.extents().await?;
        let mut replays = Vec::new();
        for (number, replay) in known {
            let cursor = Cursor { destination: replay.destination.into(), replay: number };
            let committed = self.0.progress_of(&cursor, &extents).await?;
            let mark_in = |span: &Span| committed.get(&span.partition).map_or(span.mark, |found| found.mark);
            let behind = replay.spans.iter().max_by_key(|span| span.until.saturating_sub(mark_in(span)));
            let at = |span: &Span, place| Position::new(span.partition, place);
            let (mark, until) =
                behind.map_or_else(Default::default, |span| (at(span, mark_in(span)), at(span, span.until)));
            replays.push(Replay { cursor, mark, until });
        }
        Ok(replays)
    }

    async fn end_replay(&self, cursor: &Cursor) -> Result<(), StorageError> {
        let kafka = &self.0;
        let key = ControlKey::Replay(cursor.replay);
        kafka.control(&key, None::<&ReplayControl>).await?;
        let reader = kafka.readers().remove(cursor);
        if let Some(mut reader) = reader {
            reader.stop().await;
        }
        // Only tidiness: the brokers forget an empty group by themselves.
        let admin: Result<AdminClient<DefaultClientContext>, _> = kafka.connect.base().create();
        if let Ok(admin) = admin {
            let _ = admin.delete_groups(&[&kafka.group(cursor)], &AdminOptions::new()).await;
        }
        Ok(())
    }

    async fn set_paused(&self, destination: &str, paused: bool) -> Result<(), StorageError> {
        self.0.control_destination(destination, |control| control.paused = paused).await
    }

    fn controls(&self) -> watch::Receiver<Controls> {
        self.0.told.subscribe()
    }

    async fn progress(&self) -> Result<Vec<Progress>, StorageError> {
        self.0.check_open()?;
        self.0.progress().await
    }

    async fn find(&self, filter: EventFilter) -> Result<Vec<Record>, StorageError> {
        self.0.check_open()?;
        self.0.search()?.ask(move |asked| find(asked, &filter)).await
    }

    async fn fates(&self, id: EventId) -> Result<Vec<Fate>, StorageError> {
        self.0.check_open()?;
        self.0.fates(id).await
    }

    async fn prune(
        &self,
        now: Timestamp,
        retention: Duration,
        destinations: &[Arc<str>],
    ) -> Result<Pruned, StorageError> {
        self.0.check_open()?;
        self.0.prune(Ages::at(now, retention), destinations).await
    }

    async fn census(&self) -> Result<Census, StorageError> {
        self.0.check_open()?;
        self.0
            .query()?
            .ask(|asked| {
                let extents = asked.extents()?;
                let mut census = Census::default();
                for extent in extents {
                    census.events += extent.end - extent.first;
                    let first = asked.first(extent)?.map(|record| record.event.received_at);
                    census.oldest = census.oldest.into_iter().chain(first).min();
                }
                Ok(census)
            })
            .await
    }

    /// The client heals by itself; a spool whose disk failed, or a thread that panicked, does not.
    fn is_writable(&self) -> bool {
        !self.0.closing.is_cancelled()
            && self.0.is_sound.load(Ordering::Relaxed)
            && self.0.spool.as_deref().is_none_or(Spool::is_writable_either_way)
    }

    fn labels(&self) -> Labels {
        Labels { path: Labels::KAFKA, dedup: if self.0.has_redis { "redis" } else { "local" } }
    }

    async fn close(&self) {
        self.0.shut().await;
    }
}

impl Kafka {
    /// Writes a control record and waits until it holds here; tells its offset.
    pub(super) async fn control(
        &self,
        key: &ControlKey,
        state: Option<&impl serde::Serialize>,
    ) -> Result<u64, StorageError> {
        let view = self.view()?;
        let doing = "writing a control record";
        let record = Outgoing::control(&self.topics.parked, key, state);
        let appended = tokio::time::timeout(CONTROL_WITHIN, self.producer.append(doing, record));
        let (_, offset) =
            appended.await.unwrap_or(Err(StorageError::Late { doing, within: CONTROL_WITHIN }))?;
        view.reached(PARKED, offset + 1).await?;
        Ok(offset)
    }

    /// Changes what holds for a destination, and makes it known to all processes.
    async fn control_destination(
        &self,
        destination: &str,
        change: impl FnOnce(&mut DestinationControl),
    ) -> Result<(), StorageError> {
        let mut control = self.view()?.controls().destinations.get(destination).copied().unwrap_or_default();
        change(&mut control);
        let key = ControlKey::Destination(destination.to_owned());
        self.control(&key, Some(&control)).await.map(|_| ())
    }

    /// Makes the start of a new cursor durable. One whose progress the brokers have forgotten is not new: they do so with
    /// a group that has had no members for `offsets.retention.minutes`, a week unless they are told otherwise, which may be
    /// less than events are kept. It begins at the oldest event there is: a copy can be told, a loss cannot.
    async fn begin(&self, cursor: &Cursor, start: Start) -> Result<(), StorageError> {
        let destination = &cursor.destination;
        let begun =
            self.view()?.controls().destinations.get(&**destination).is_some_and(|control| control.begun);
        let has_begun_now = self.begin_group(cursor, if begun { Start::Beginning } else { start }).await?;
        if begun && has_begun_now {
            tracing::error!(
                %destination,
                "the brokers have forgotten how far it was: it begins at the oldest event kept, and gets copies; \
                 give the brokers an offsets.retention.minutes of storage.retention at least"
            );
        }
        if begun {
            Ok(())
        } else {
            self.control_destination(destination, |control| control.begun = true).await
        }
    }

    /// Whether the cursor's group has its first progress from this.
    async fn begin_group(&self, cursor: &Cursor, start: Start) -> Result<bool, StorageError> {
        let (extents, starts) = self
            .query()?
            .ask(move |asked| {
                let extents = asked.extents()?;
                let starts = match start {
                    Start::Now => extents.iter().map(|extent| extent.end).collect(),
                    Start::Beginning => extents.iter().map(|extent| extent.first).collect(),
                    Start::At(at) => asked.since(&extents, at)?,
                };
                Ok((extents, starts))
            })
            .await?;
        self.with_group(cursor, move |group| {
            let known = group.committed(extents.iter().map(|extent| extent.partition))?;
            // A group with any progress is not new: what it lacks are partitions that came since, and those
            // begin at their beginning.
            if !known.is_empty() || extents.is_empty() {
                return Ok(false);
            }
            let progress = extents
                .iter()
                .zip(starts)
                .map(|(extent, mark)| (extent.partition, Committed { mark, ..Committed::default() }))
                .collect();
            // Refused if the group has members: they have begun it meanwhile.
            group.commit(progress)
        })
        .await
    }

    /// Settles for a cursor that nobody in this process reads.
    async fn settle_from_outside(
        &self,
        cursor: &Cursor,
        mark: Position,
        delivered: &[Delivered],
    ) -> Result<(), StorageError> {
        let partition = mark.partition();
        let places: BTreeSet<u64> = delivered.iter().map(|delivered| delivered.position.place()).collect();
        let from = self
            .with_group(cursor, move |group: &Group| {
                let mut progress = group.committed([partition])?.remove(&partition).unwrap_or_default();
                let from = progress.mark;
                progress.mark = from.max(mark.place());
                progress.delivered.extend(places);
                progress.delivered = progress.delivered.split_off(&(progress.mark + 1));
                let taken = !group.commit(BTreeMap::from([(partition, progress)]))?;
                if taken { Err(StorageError::Revoked { partition }) } else { Ok(from) }
            })
            .await?;
        if cursor.replay == 0 {
            self.seen().entry((Arc::clone(&cursor.destination), partition)).or_insert(from);
        }
        Ok(())
    }

    async fn begin_replay(
        &self,
        destination: &str,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<(Cursor, u64), StorageError> {
        let (spans, count) = self.search()?.ask(move |asked| span(asked, from, to)).await?;
        let number = self.next_replay().await?;
        let cursor = Cursor { destination: destination.into(), replay: number };
        if !spans.is_empty() {
            let progress = spans
                .iter()
                .map(|span| (span.partition, Committed { mark: span.mark, ..Committed::default() }))
                .collect();
            self.with_group(&cursor, move |group| group.commit(progress)).await?;
        }
        let control = ReplayControl { destination: destination.to_owned(), spans };
        self.control(&ControlKey::Replay(number), Some(&control)).await?;
        Ok((cursor, count))
    }

    /// A number that no replay had or will have, whoever begins it and even if the topic has forgotten those before:
    /// the place of a record that says nothing else. Each replay has its own record behind that.
    async fn next_replay(&self) -> Result<u64, StorageError> {
        Ok(self.control(&ControlKey::Probe, None::<&ReplayControl>).await? + 1)
    }

    /// All that can go, in one step: the brokers only note where the log begins now.
    async fn prune(&self, ages: Ages, destinations: &[Arc<str>]) -> Result<Pruned, StorageError> {
        let (extents, aged) = self
            .search()?
            .ask(move |asked| {
                let extents = asked.extents()?;
                let aged = asked.aged(&extents, ages)?;
                Ok((extents, aged))
            })
            .await?;
        let mut bounds: BTreeMap<u32, u64> =
            extents.iter().zip(&aged).map(|(extent, (upto, _))| (extent.partition, *upto)).collect();
        for destination in destinations {
            let committed = self.progress_now(&Cursor::of(Arc::clone(destination)), &extents).await?;
            for (partition, bound) in &mut bounds {
                // One that has not opened its cursor yet may want everything.
                *bound = (*bound).min(committed.get(partition).map_or(0, |committed| committed.mark));
            }
        }
        let replays = self.view()?.controls().replays.clone();
        let is_needed = |name: &str| destinations.iter().any(|destination| **destination == *name);
        for (number, replay) in replays.into_iter().filter(|(_, replay)| is_needed(&replay.destination)) {
            let cursor = Cursor { destination: replay.destination.into(), replay: number };
            let committed = self.progress_now(&cursor, &extents).await?;
            for span in &replay.spans {
                let mark = committed.get(&span.partition).map_or(span.mark, |committed| committed.mark);
                bounds.entry(span.partition).and_modify(|bound| *bound = (*bound).min(mark));
            }
        }
        let (mut events, mut left) = (0, Left::Nothing);
        let mut list = TopicPartitionList::new();
        for (extent, (upto, behind)) in extents.iter().zip(aged) {
            let bound = bounds.get(&extent.partition).copied().unwrap_or(0);
            // Where something is not settled that is past its time, nothing behind it matters yet.
            if bound >= upto {
                left = left.max(behind);
            }
            let bound = bound.clamp(extent.first, extent.end);
            if bound > extent.first {
                events += bound - extent.first;
                let offset = rdkafka::Offset::Offset(bound.cast_signed());
                list.add_partition_offset(&self.topics.events, extent.partition.cast_signed(), offset)
                    .map_err(|error| failed("pruning", error))?;
            }
        }
        if events > 0 {
            let admin: AdminClient<DefaultClientContext> =
                self.connect.base().create().map_err(|error| failed("pruning", error))?;
            let deleted = admin.delete_records(&list, &AdminOptions::new()).await;
            let deleted = deleted.map_err(|error| failed("pruning", error))?;
            for place in deleted.elements() {
                place.error().map_err(|error| failed("pruning", error))?;
            }
        }
        Ok(Pruned { events, left })
    }
}

/// The span of a replay in each partition, and how many events it covers. Times are the edges', so that an event
/// may stand behind others that were received after it: both ends are looked for, what is between them is not
/// read.
fn span(asked: &Asked<'_>, from: Timestamp, to: Timestamp) -> Result<(Vec<Span>, u64), StorageError> {
    let within = |record: &Record| (from..to).contains(&record.event.received_at);
    let extents = asked.extents()?;
    let firsts = asked.since(&extents, from)?;
    let ends = asked.since(&extents, to.saturating_add(SKEW_MAX).unwrap_or(Timestamp::MAX))?;
    let (mut spans, mut count) = (Vec::new(), 0);
    for (extent, (first, end)) in extents.into_iter().zip(firsts.into_iter().zip(ends)) {
        let extent = Extent { first, end, ..extent };
        let mut begins = None;
        asked.read(extent, |record| {
            begins = within(&record).then(|| record.position.place() - 1);
            if begins.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let Some(mark) = begins else { continue };
        let last = asked.newest(Extent { first: mark, ..extent }, 1, within)?;
        let until = last.first().map_or(mark, |record| record.position.place());
        count += until - mark;
        spans.push(Span { partition: extent.partition, mark, until });
    }
    Ok((spans, count))
}

pub(super) fn find(asked: &Asked<'_>, filter: &EventFilter) -> Result<Vec<Record>, StorageError> {
    let limit = if filter.limit == 0 { PAGE_MAX } else { filter.limit.min(PAGE_MAX) };
    let mut extents = asked.extents()?;
    if let Some(since) = filter.since {
        for (extent, first) in extents.clone().iter().zip(asked.since(&extents, since)?) {
            extents[extent.partition as usize].first = first;
        }
    }
    if let Some(until) = filter.until {
        let ends = asked.since(&extents, until.saturating_add(SKEW_MAX).unwrap_or(Timestamp::MAX))?;
        for (extent, end) in extents.iter_mut().zip(ends) {
            extent.end = end;
        }
    }
    // Across partitions the time of receipt is the order; within one it is the log's.
    let newest = |record: &Record| (record.event.received_at, record.position);
    let mut page_ends = None;
    if let Some(before) = filter.before {
        for extent in &mut extents {
            if extent.partition == before.partition() {
                let last = Extent { first: before.place().saturating_sub(1), ..*extent };
                page_ends = asked.first(last)?.as_ref().map(newest);
                extent.end = extent.end.min(before.place().saturating_sub(1));
            }
        }
    }
    let several = extents.len() > 1;
    let matches = |record: &Record| {
        let event = &record.event;
        filter.id.is_none_or(|id| event.id == id)
            && filter.source.as_deref().is_none_or(|source| &*event.source == source)
            && filter.kind.as_deref().is_none_or(|kind| &*event.kind == kind)
            && filter.subject.as_deref().is_none_or(|subject| event.subject.as_deref() == Some(subject))
            && filter.since.is_none_or(|since| event.received_at >= since)
            && filter.until.is_none_or(|until| event.received_at < until)
            && (!several || page_ends.is_none_or(|end| newest(record) < end))
    };
    // Ids are unique as far as deduplication remembers: the newest is the one that is asked for.
    let enough = if filter.id.is_some() { 1 } else { limit };
    let mut found = Vec::new();
    for extent in extents {
        found.extend(asked.newest(extent, enough, matches)?);
    }
    if several {
        found.sort_by_key(|record| std::cmp::Reverse(newest(record)));
        found.truncate(limit);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn steps_go_on_when_nobody_waits_any_more_and_end_once() {
        let (first, wait) = oneshot::channel::<()>();
        let (done, ended) = oneshot::channel();
        let mut steps = ToItsEnd::new(async move {
            let _ = wait.await;
            done.send(7)
        });
        assert!(futures_util::poll!(&mut steps).is_pending());
        drop(steps);
        assert!(first.send(()).is_ok(), "dropped with who waited for them");
        assert_eq!(ended.await, Ok(7));

        let mut steps = ToItsEnd::new(async { 8 });
        assert_eq!((&mut steps).await, 8);
        drop(steps);
    }
}
