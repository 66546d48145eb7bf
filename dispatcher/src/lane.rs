//! One partition of a cursor's way through the log: a destination's own, or a replay's. No I/O beyond taking
//! batches.
//!
//! A lane knows what it has read and not finished, what is ready, and what waits inside the window. Who goes
//! when is the courier's decision, because the lanes of a destination share its limits.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::task::{Context, Poll};

use chaski_common::storage::{BatchLimit, Cursor, Delivered, Position, Record, StorageError, Track};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::delivery::Delivery;
use crate::window::Window;

/// Most records read and not settled, and their bytes.
const WINDOW_RECORDS_MAX: u64 = 1024;
const WINDOW_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most positions from the mark on, settled or not: room for healthy deliveries to go on behind a slow one.
const SPAN_MAX: usize = 16 * 1024;
/// Bytes of one batch.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// The bounds of a lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) records: usize,
    pub(crate) batch: BatchLimit,
}

impl Limits {
    /// A window that could be parked whole, and batches of a quarter of it.
    pub(crate) fn within(parked_max: u64) -> Self {
        let records = usize::try_from(parked_max.clamp(1, WINDOW_RECORDS_MAX)).unwrap_or(1);
        Self { records, batch: BatchLimit { records: (records / 4).max(1), bytes: BATCH_BYTES_MAX } }
    }
}

/// One partition of one cursor, for as long as it is here.
pub(crate) struct Lane {
    /// Given once in a courier's life, so that what comes home late finds its own lane or none.
    pub(crate) number: u64,
    pub(crate) cursor: Cursor,
    pub(crate) partition: u32,
    /// None once the end was reached.
    batches: Option<mpsc::Receiver<Result<Vec<Record>, StorageError>>>,
    limits: Limits,
    window: Window,
    /// Settled before this process began.
    settled: HashSet<Position>,
    /// Whether the window has room: full stops the reading, half empty resumes it.
    open: bool,
    /// Whether it may not read yet.
    waits_to_begin: bool,
    /// May be attempted now.
    ready: VecDeque<Box<Delivery>>,
    waits: BTreeMap<(Instant, Position), Wait>,
    delivered: Vec<Delivered>,
    saved: Position,
    /// A settle is being written.
    saving: bool,
    /// The partition goes to another reader, who waits until this is dropped: nothing of it begins here any more.
    leaving: Option<oneshot::Sender<()>>,
}

/// A delivery that waits for its next attempt inside the window.
struct Wait {
    delivery: Box<Delivery>,
    /// Its failure told of the destination only; it counts for nothing once the breaker opens.
    forgivable: bool,
}

impl Lane {
    pub(crate) fn new(number: u64, cursor: Cursor, track: Track, limits: Limits) -> Self {
        Self {
            number,
            cursor,
            partition: track.partition,
            batches: Some(track.batches),
            limits,
            window: Window::new(track.mark),
            settled: track.settled.into_iter().collect(),
            open: true,
            waits_to_begin: false,
            ready: VecDeque::new(),
            waits: BTreeMap::new(),
            delivered: Vec::new(),
            saved: track.mark,
            saving: false,
            leaving: None,
        }
    }

    /// Whether it is the destination's own way through the log, not a replay's.
    pub(crate) const fn is_own(&self) -> bool {
        self.cursor.replay == 0
    }

    /// Deliveries read and not settled.
    pub(crate) const fn unsettled(&self) -> usize {
        self.window.unsettled()
    }

    /// Most records the next batch can add.
    pub(crate) const fn batch_records(&self) -> usize {
        self.limits.batch.records
    }

    /// Whether what waits keeps healthy deliveries from going on, so that it must leave the window.
    pub(crate) fn is_crowded(&self) -> bool {
        !self.waits.is_empty()
            && (self.window.span() >= SPAN_MAX || self.waits.len() > self.limits.records / 2)
    }

    /// Whether there is room for another batch.
    pub(crate) fn has_room(&mut self) -> bool {
        let (records, bytes) = (self.window.unsettled(), self.window.bytes());
        let backlog = self.window.span().max(self.delivered.len());
        if records + self.limits.batch.records > self.limits.records.max(self.limits.batch.records)
            || bytes + BATCH_BYTES_MAX > WINDOW_BYTES_MAX
            || backlog >= SPAN_MAX
        {
            self.open = false;
        } else if records <= self.limits.records / 2
            && bytes <= WINDOW_BYTES_MAX / 2
            && backlog <= SPAN_MAX / 2
        {
            self.open = true;
        }
        self.open && !self.waits_to_begin && self.batches.is_some()
    }

    /// The next batch. At its end the lane stays pending for good.
    pub(crate) fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Record>, StorageError>> {
        let Some(batches) = &mut self.batches else {
            return Poll::Pending;
        };
        match batches.poll_recv(cx) {
            Poll::Ready(Some(batch)) => Poll::Ready(batch),
            Poll::Ready(None) => {
                self.batches = None;
                Poll::Ready(Ok(Vec::new()))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Nothing is read until it may begin.
    pub(crate) fn wait_to_begin(&mut self) {
        self.waits_to_begin = true;
    }

    /// It may read.
    pub(crate) fn begin(&mut self) {
        self.waits_to_begin = false;
    }

    /// Ends the reading; what was read and not settled is read again by the next one.
    pub(crate) fn stop_reading(&mut self) {
        self.batches = None;
    }

    /// A record that the destination takes; none if it is settled already.
    pub(crate) fn admit(&mut self, record: Record) -> Option<Box<Delivery>> {
        if self.settled.remove(&record.position) {
            self.window.pass(record.position);
            return None;
        }
        let new = self.window.admit(record.position, record.event.weight_bytes());
        new.then(|| Box::new(Delivery::read(self.number, !self.is_own(), record)))
    }

    /// A record that the destination does not take.
    pub(crate) fn pass(&mut self, position: Position) {
        self.settled.remove(&position);
        self.window.pass(position);
    }

    /// A delivery waits inside the window.
    pub(crate) fn wait(&mut self, mut delivery: Box<Delivery>, until: Instant, forgivable: bool) {
        delivery.waits = delivery.waits.saturating_add(1);
        self.waits.insert((until, delivery.position), Wait { delivery, forgivable });
    }

    /// Deliveries that wait inside the window.
    pub(crate) fn waiting(&self) -> usize {
        self.waits.len()
    }

    /// When the first wait is over.
    pub(crate) fn first_wait(&self) -> Option<Instant> {
        self.waits.first_key_value().map(|((until, _), _)| *until)
    }

    /// Those whose wait is over are ready, before all others.
    pub(crate) fn wake(&mut self, now: Instant) {
        while let Some(entry) = self.waits.first_entry()
            && entry.key().0 <= now
        {
            self.ready.push_front(entry.remove().delivery);
        }
    }

    /// The breaker has opened: what waits for an outage is ready again, as if the attempt before had not been
    /// made. A failure of the event itself keeps its wait and its history, and so does a wait that the receiver
    /// asked for.
    pub(crate) fn forgive(&mut self, recoveries: u32) {
        let forgiven: Vec<_> = self.waits.extract_if(.., |_, wait| wait.forgivable).collect();
        for (_, mut wait) in forgiven {
            wait.delivery.forget_wait();
            self.set_back(wait.delivery, recoveries);
        }
    }

    /// A delivery failed while nothing was taken: it goes behind the others.
    pub(crate) fn set_back(&mut self, mut delivery: Box<Delivery>, recoveries: u32) {
        delivery.set_back = Some(recoveries);
        self.ready.push_back(delivery);
    }

    /// A delivery may be attempted now.
    pub(crate) fn make_ready(&mut self, delivery: Box<Delivery>) {
        self.ready.push_back(delivery);
    }

    /// How many may be attempted now.
    pub(crate) fn ready(&self) -> usize {
        if self.is_leaving() { 0 } else { self.ready.len() }
    }

    /// The next that may be attempted.
    pub(crate) fn take(&mut self) -> Option<Box<Delivery>> {
        if self.is_leaving() { None } else { self.ready.pop_front() }
    }

    /// Where the next one is that was never set back.
    fn fresh(&self) -> Option<usize> {
        self.ready.iter().position(|delivery| delivery.set_back.is_none()).filter(|_| !self.is_leaving())
    }

    /// Whether something is ready that was never set back.
    pub(crate) fn has_fresh(&self) -> bool {
        self.fresh().is_some()
    }

    /// The next that was never set back.
    pub(crate) fn take_fresh(&mut self) -> Option<Box<Delivery>> {
        self.fresh().and_then(|fresh| self.ready.remove(fresh))
    }

    /// All that waits, with when the wait would have ended.
    pub(crate) fn take_waits(&mut self) -> impl Iterator<Item = (Instant, Box<Delivery>)> + use<> {
        std::mem::take(&mut self.waits).into_iter().map(|((until, _), wait)| (until, wait.delivery))
    }

    /// A position is settled; with the delivery, if that is why.
    pub(crate) fn settle(&mut self, position: Position, delivered: Option<Delivered>) {
        self.window.settle(position);
        self.delivered.extend(delivered);
    }

    /// Whether there is something to settle that the storage does not know.
    pub(crate) fn is_unsaved(&self) -> bool {
        !self.saving && (self.window.mark() > self.saved || !self.delivered.is_empty())
    }

    /// What to settle, in the log's order; until it is acknowledged, nothing else is written for this lane.
    pub(crate) fn save(&mut self) -> (Position, Vec<Delivered>) {
        self.saving = true;
        let mut delivered = std::mem::take(&mut self.delivered);
        delivered.sort_unstable_by_key(|delivered| delivered.position);
        (self.window.mark(), delivered)
    }

    /// Settled up to here, durably.
    pub(crate) fn saved(&mut self, mark: Position) {
        self.saving = false;
        self.saved = mark;
    }

    /// Whether a settle is being written.
    pub(crate) const fn is_saving(&self) -> bool {
        self.saving
    }

    /// Whether all that there was to read is settled, durably.
    pub(crate) fn is_over(&self) -> bool {
        self.batches.is_none() && self.unsettled() == 0 && !self.saving && !self.is_unsaved()
    }

    /// The partition goes to another reader: nothing of it begins here any more. `ended` goes with the lane.
    pub(crate) fn leave(&mut self, ended: oneshot::Sender<()>) {
        self.stop_reading();
        self.leaving = Some(ended);
    }

    /// Whether the partition goes to another reader.
    pub(crate) const fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// Whether nothing that was read is in an attempt or being written; `in_line` of it wait for their subject's turn.
    pub(crate) fn is_idle(&self, in_line: usize) -> bool {
        self.unsettled() == self.ready.len() + self.waits.len() + in_line
    }

    /// What is ready or waits, when the partition is lost: another reader begins it anew.
    pub(crate) fn abandon(self) -> impl Iterator<Item = Box<Delivery>> {
        self.ready.into_iter().chain(self.waits.into_values().map(|wait| wait.delivery))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::event;

    fn lane(parked_max: u64) -> Lane {
        let (_, batches) = mpsc::channel(1);
        let track =
            Track { partition: 0, mark: Position(0), settled: vec![Position(2)], until: None, batches };
        Lane::new(1, Cursor::of("erp"), track, Limits::within(parked_max))
    }

    fn record(position: u64) -> Record {
        Record { position: Position(position), event: event(position) }
    }

    #[test]
    fn an_opening_breaker_forgives_the_outages_and_nothing_else() {
        let (mut lane, now) = (lane(100), Instant::now());
        for (position, forgivable) in [(1, true), (3, false)] {
            let mut delivery = lane.admit(record(position)).unwrap();
            delivery.begin(jiff::Timestamp::UNIX_EPOCH);
            lane.wait(delivery, now + Duration::from_secs(1), forgivable);
        }
        lane.forgive(0);
        let forgiven = lane.ready.pop_front().unwrap();
        assert_eq!((forgiven.attempts, forgiven.waits, forgiven.first_attempt), (0, 0, None));
        assert!(lane.ready.is_empty());
        lane.wake(now);
        assert!(lane.ready.is_empty(), "not before its time");
        lane.wake(now + Duration::from_secs(1));
        assert_eq!(lane.ready.pop_front().map(|delivery| delivery.attempts), Some(1));
    }

    #[test]
    fn what_is_settled_already_is_not_delivered_and_does_not_hold_the_mark() {
        let mut lane = lane(100);
        assert!(lane.admit(record(1)).is_some());
        assert_eq!(lane.admit(record(2)), None, "settled before this process began");
        assert_eq!(lane.admit(record(1)), None, "read twice");
        lane.pass(Position(3));
        assert!(!lane.is_unsaved());
        lane.settle(Position(1), None);
        assert!(lane.is_unsaved());
        assert_eq!(lane.save().0, Position(3));
        assert!(!lane.is_unsaved(), "one settle at a time");
    }

    #[test]
    fn a_full_window_reads_again_when_half_of_it_is_settled() {
        let mut lane = lane(8);
        let mut last = 10;
        while lane.has_room() {
            last += 1;
            lane.admit(record(last));
        }
        assert!(lane.unsettled() <= 8);
        let mut settled = 0;
        while !lane.has_room() {
            settled += 1;
            lane.settle(Position(10 + settled), None);
        }
        assert_eq!(lane.unsettled(), 4);
    }
}
