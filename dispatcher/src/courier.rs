//! One destination's courier: the one task that owns all that changes there.
//!
//! Its lanes, parked deliveries, subjects, breaker and rate have this one owner, so there is no lock and no
//! race between them. A delivery is moved into an attempt or a write and comes home with its report. The courier
//! decides, in [`Courier::step`], what begins, and, in [`Courier::report`], what follows. Attempts are futures of the
//! courier's own task: what a receiver answers wakes that task and no other, and all that has arrived by then is
//! gone through at once. Writes are tasks of their own. Both end with the courier: none of one that is gone meets
//! those of the next.
//!
//! Promise: a lane's position is settled when the delivery succeeded, or when the storage has acknowledged it
//! as parked or dead. A courier that is dropped anywhere settles nothing that is not.

mod relay;
mod controls;
mod launch;
mod follow;
mod stop;
mod handle;

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use chaski_common::clock::Clock;
use chaski_common::storage::{
    Change, Control, Controls, Cursor, Position, Record, Start, Storage, StorageError,
};
use chaski_common::trace::Tracer;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

pub(crate) use self::handle::Handle;
use self::handle::View;
pub(crate) use self::relay::Opening;
use self::relay::told_to_stop;
pub(crate) use self::stop::LAST_SETTLE;
use crate::breaker::{Breaker, Gate};
use crate::deliver::Sender;
use crate::deliver::client::Dialer;
use crate::delivery::Delivery;
use crate::destination::DestinationSpec;
use crate::lane::Lane;
use crate::metrics::DestinationMetrics;
use crate::outcome::Outcome;
use crate::parked::Book;
use crate::rate::Rate;
use crate::reading::{Reading, next_change};
use crate::route::{Route, Way};
use crate::store::{Keep, Kept, Look, Store};
use crate::subjects::Subjects;

/// How often a lane's progress is made durable.
const SETTLE_EVERY: Duration = Duration::from_millis(200);
/// Reports taken in one go.
const REPORTS_AT_ONCE: usize = 128;
/// How often idle connections are looked at.
const TIDY_EVERY: Duration = Duration::from_secs(10);

/// What the attempts and tasks of a courier report.
enum Report {
    Attempted {
        delivery: Box<Delivery>,
        outcome: Outcome,
        /// How often the breaker had opened when it began.
        openings: u32,
    },
    Kept {
        delivery: Box<Delivery>,
        what: Keep,
        result: Result<Kept, StorageError>,
    },
    Looked(Result<Look, StorageError>),
    Saved {
        lane: u64,
        mark: Position,
        result: Result<(), StorageError>,
    },
    /// A lane may begin: these subjects have something parked.
    Opened {
        lane: u64,
        held: Result<Vec<(Arc<str>, u64)>, StorageError>,
    },
    /// A replay can be read.
    Joined {
        replay: u64,
        reading: Result<Reading, StorageError>,
    },
    Ended {
        cursor: Cursor,
        result: Result<(), StorageError>,
    },
}

/// What the couriers of a destination and their tasks look at; of all this only the routes ever change.
pub(crate) struct Fixed {
    /// As it was when the courier was set off: which events it takes, is `route`'s to say.
    pub(crate) spec: Arc<DestinationSpec>,
    /// Where it begins if it was never there before.
    start: Start,
    route: RwLock<Route>,
    sender: Sender,
    store: Store,
    clock: Clock,
    tracer: Tracer,
    view: View,
    parked_max: u64,
}

impl Fixed {
    pub(crate) fn new(
        spec: DestinationSpec,
        storage: Storage,
        dialer: &Dialer,
        metrics: DestinationMetrics,
        clock: Clock,
        tracer: Tracer,
        parked_max: u64,
    ) -> Self {
        Self {
            start: spec.start,
            route: RwLock::new(Route::new(&spec)),
            sender: Sender::new(&spec, dialer, clock.clone(), metrics.header_dropped.clone()),
            store: Store::new(storage, &spec, parked_max),
            spec: Arc::new(spec),
            clock,
            tracer,
            view: View::new(metrics),
            parked_max,
        }
    }

    /// Which events it takes.
    fn route(&self) -> RwLockReadGuard<'_, Route> {
        self.route.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, what is read goes by the routes of `spec`.
    fn reroute(&self, spec: &DestinationSpec) {
        *self.route.write().unwrap_or_else(PoisonError::into_inner) = Route::new(spec);
    }

    /// For a destination that cannot be opened now: if it is new, it begins where it would have begun.
    pub(crate) fn begin_at(mut self, at: Timestamp) -> Self {
        if self.start == Start::Now {
            self.start = Start::At(at);
        }
        self
    }
}

/// See the module.
pub(crate) struct Courier {
    fixed: Arc<Fixed>,
    /// What operators say, and what of it this courier holds to.
    controls: watch::Receiver<Controls>,
    control: Control,
    /// Replays that are being opened.
    joining: BTreeSet<u64>,
    readings: Vec<Reading>,
    lanes: Vec<Lane>,
    /// Lanes there ever were.
    lanes_numbered: u64,
    book: Book,
    subjects: Subjects,
    breaker: Breaker,
    rate: Option<Rate>,
    /// Attempts under way, and how many of them were parked.
    in_flight: usize,
    parked_in_flight: usize,
    /// Deliveries being written.
    writing: usize,
    stopping: bool,
    /// The storage is closed: nothing can be settled any more.
    closed: bool,
    /// Whose turn it is: the lane to take from next, and whether a parked one goes before the lanes.
    turn: usize,
    parked_turn: bool,
    /// When the rate lets the next attempt begin; when progress is written next.
    rate_at: Option<Instant>,
    settle_at: Option<Instant>,
    /// When idle connections are looked at next.
    tidy_at: Option<Instant>,
    /// Attempts under way, at most as many as the destination's concurrency.
    attempts: FuturesUnordered<BoxFuture<'static, Report>>,
    /// Writes and looks under way. They do not outlive their courier.
    tasks: JoinSet<Report>,
}

impl Courier {
    fn new(fixed: Arc<Fixed>, opening: Opening) -> Self {
        let Opening { reading, mut parked } = opening;
        let spec = &fixed.spec;
        let mut subjects = Subjects::new(spec.ordering);
        subjects.set_parked(std::mem::take(&mut parked.held));
        let rate = spec.rate_per_second.map(|per_second| Rate::new(per_second, Instant::now().into_std()));
        let book = Book::new(&parked, fixed.parked_max);
        Self {
            controls: fixed.store.controls(),
            control: Control::default(),
            joining: BTreeSet::new(),
            fixed,
            readings: vec![reading],
            lanes: Vec::new(),
            lanes_numbered: 0,
            book,
            subjects,
            breaker: Breaker::new(),
            rate,
            in_flight: 0,
            parked_in_flight: 0,
            writing: 0,
            stopping: false,
            closed: false,
            turn: 0,
            parked_turn: false,
            rate_at: None,
            settle_at: None,
            tidy_at: None,
            attempts: FuturesUnordered::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Works until it is told to stop. An error means that the storage is closed.
    async fn run(mut self, stop: &mut watch::Receiver<Option<Instant>>) -> Result<(), StorageError> {
        self.heed();
        let mut timer = std::pin::pin!(sleep_until(Instant::now()));
        while !self.closed {
            let now = Instant::now();
            self.step(now);
            self.show();
            let readable = self.readable(now);
            let wake = self.wake_at(now);
            if let Some(at) = wake
                && timer.deadline() != at
            {
                timer.as_mut().reset(at);
            }
            tokio::select! {
                biased;
                deadline = told_to_stop(stop) => {
                    self.stop(deadline, stop).await;
                    return Ok(());
                }
                Ok(()) = self.controls.changed() => self.heed(),
                Some(report) = self.attempts.next() => {
                    let (now, time) = (Instant::now(), self.fixed.clock.now());
                    self.report(report, now, time);
                    for _ in 1..REPORTS_AT_ONCE {
                        let Some(Some(report)) = self.attempts.next().now_or_never() else { break };
                        self.report(report, now, time);
                    }
                }
                Some(ended) = self.tasks.join_next() => {
                    self.ended(ended);
                    for _ in 1..REPORTS_AT_ONCE {
                        let Some(ended) = self.tasks.try_join_next() else { break };
                        self.ended(ended);
                    }
                }
                (reading, change) = next_change(&mut self.readings) => self.change(reading, change),
                (lane, records) = next_batch(&mut self.lanes, readable) => self.read(lane, records),
                () = &mut timer, if wake.is_some() => {}
            }
        }
        Err(StorageError::Closed)
    }

    /// Begins all that can begin now.
    fn step(&mut self, now: Instant) {
        for index in 0..self.lanes.len() {
            self.lanes[index].wake(now);
            if self.lanes[index].is_crowded() {
                self.park_waits(index, now);
            }
        }
        self.launch(now);
        self.rest();
        let time = self.fixed.clock.now();
        if self.may_look(now)
            && let Some(limit) = self.book.look(now, time)
        {
            let fixed = self.fixed.clone();
            self.spawn(async move { Report::Looked(fixed.store.look(time, limit).await) });
            // What a look finds is launched by the step after its report.
        }
        if self.settle_at.is_some_and(|at| at <= now) {
            self.settle_at = None;
            self.save();
        }
        self.let_go();
        if self.settle_at.is_none() && self.lanes.iter().any(Lane::is_unsaved) {
            self.settle_at = Some(now + SETTLE_EVERY);
        }
        if self.tidy_at.is_some_and(|at| at <= now) {
            // An attempt under way will leave its connection idle.
            let is_left = self.fixed.sender.tidy() || self.in_flight > 0;
            self.tidy_at = is_left.then_some(now + TIDY_EVERY);
        }
        for index in 0..self.readings.len() {
            let reading = &mut self.readings[index];
            let over = self.lanes.iter().all(|lane| lane.cursor != reading.cursor || lane.is_over());
            if reading.ends(over) {
                let (fixed, cursor) = (self.fixed.clone(), reading.cursor.clone());
                self.spawn(async move {
                    let result = fixed.store.end_replay(&cursor).await;
                    Report::Ended { cursor, result }
                });
            }
        }
    }

    /// A partition comes or goes.
    fn change(&mut self, index: usize, change: Option<Change>) {
        let reading = &self.readings[index];
        let lane_of = |partition| {
            let is_its = |lane: &Lane| lane.cursor == reading.cursor && lane.partition == partition;
            self.lanes.iter().position(is_its)
        };
        match change {
            Some(Change::Gained(track)) => {
                self.lanes_numbered += 1;
                let lane = Lane::new(self.lanes_numbered, reading.cursor.clone(), track, reading.limits);
                self.open(lane);
            }
            Some(Change::Leaving { partition, ended }) => {
                if let Some(index) = lane_of(partition) {
                    self.lanes[index].leave(ended);
                    self.park_waits(index, Instant::now());
                }
            }
            Some(Change::Lost { partition }) => {
                if let Some(index) = lane_of(partition) {
                    let lane = self.lanes.remove(index);
                    self.abandon(lane);
                }
            }
            None => return,
        }
        // With the partition comes or goes what is parked of it.
        self.look_again();
    }

    /// Lets a lane begin; where deliveries are ordered only when it is known what is parked, or an event could
    /// overtake an earlier one of its subject that another reader has parked.
    fn open(&mut self, mut lane: Lane) {
        if self.subjects.are_ordered() {
            lane.wait_to_begin();
            let (fixed, number) = (self.fixed.clone(), lane.number);
            self.spawn(async move { Report::Opened { lane: number, held: fixed.store.held().await } });
        }
        self.lanes.push(lane);
    }

    /// Forgets what a lane has begun and not settled: another reader begins it anew.
    fn abandon(&mut self, lane: Lane) {
        self.subjects.forget(lane.number);
        for delivery in lane.abandon() {
            self.release(&delivery);
        }
    }

    pub(super) fn look_again(&mut self) {
        for delivery in self.book.changed(Instant::now(), self.fixed.clock.now()) {
            let next = self.subjects.release(&delivery.event);
            self.take_turn(next);
        }
    }

    /// Takes a batch in.
    fn read(&mut self, index: usize, records: Result<Vec<Record>, StorageError>) {
        let records = match records {
            Ok(records) => records,
            Err(error) => {
                tracing::warn!(destination = %self.fixed.spec.name, %error, "the log could not be read; it is tried again");
                return;
            }
        };
        for record in records {
            let (way, lane) = (self.fixed.route().way(&record.event), &mut self.lanes[index]);
            if way == Way::Past {
                lane.pass(record.position);
            } else if let Some(delivery) = lane.admit(record) {
                if let Way::Nowhere(reason) = way {
                    let at = self.fixed.clock.now();
                    self.keep(delivery, Keep::Dead { reason, at });
                } else {
                    let turn = self.subjects.admit(delivery);
                    self.take_turn(turn);
                }
            }
        }
    }

    /// Whether lanes may read, and how many records the parked bound leaves room for.
    fn readable(&self, now: Instant) -> Readable {
        let unsettled: usize = self.lanes.iter().map(Lane::unsettled).sum();
        let open = match self.breaker.gate(now.into_std(), self.fixed.spec.concurrency) {
            Gate::Limit(_) => true,
            // Something to probe with that has not failed yet, as far as the window goes.
            Gate::Probe | Gate::Shut(_) => !self.lanes.iter().any(Lane::has_fresh),
        };
        let batch = self.lanes.iter().map(Lane::batch_records).max().unwrap_or(0);
        Readable(!self.control.paused && open && self.book.has_room(unsettled + batch))
    }

    /// Whether parked deliveries could go if any were due.
    fn may_look(&self, now: Instant) -> bool {
        !self.control.paused
            && !matches!(self.breaker.gate(now.into_std(), self.fixed.spec.concurrency), Gate::Shut(_))
    }

    /// When there is something to do that no report announces.
    fn wake_at(&self, now: Instant) -> Option<Instant> {
        let gate = match self.breaker.gate(now.into_std(), self.fixed.spec.concurrency) {
            Gate::Shut(at) if !self.control.paused => at.map(Instant::from),
            _ => None,
        };
        let look = if self.may_look(now) { self.book.wake_at(now, self.fixed.clock.now()) } else { None };
        let waits = self.lanes.iter().filter_map(Lane::first_wait);
        waits.chain(gate).chain(look).chain(self.rate_at).chain(self.settle_at).chain(self.tidy_at).min()
    }

    fn save(&mut self) {
        for index in 0..self.lanes.len() {
            self.save_lane(index);
        }
    }

    fn save_lane(&mut self, index: usize) {
        if self.lanes[index].is_unsaved() {
            let (mark, delivered) = self.lanes[index].save();
            let (fixed, cursor) = (self.fixed.clone(), self.lanes[index].cursor.clone());
            let lane = self.lanes[index].number;
            self.spawn(async move {
                let result = fixed.store.settle(&cursor, mark, &delivered).await;
                Report::Saved { lane, mark, result }
            });
        }
    }

    /// Gives up the lanes that leave and of which nothing is under way any more, once what ended is saved.
    fn let_go(&mut self) {
        for index in (0..self.lanes.len()).rev() {
            let lane = &self.lanes[index];
            let parked = || lane.is_own() && self.book.is_under_way(lane.partition);
            if lane.is_leaving() && lane.is_idle(self.subjects.in_line_of(lane.number)) && !parked() {
                self.save_lane(index);
                if !self.lanes[index].is_saving() {
                    let lane = self.lanes.remove(index);
                    self.abandon(lane);
                }
            }
        }
    }

    fn park_waits(&mut self, index: usize, now: Instant) {
        let time = self.fixed.clock.now();
        for (until, delivery) in self.lanes[index].take_waits() {
            let due = after(time, until.saturating_duration_since(now));
            self.keep(delivery, Keep::Parked { due });
        }
    }

    fn spawn(&mut self, task: impl Future<Output = Report> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// The next report of an attempt or the next end of a task; none when nothing is under way.
    async fn next_end(&mut self) -> Option<Result<Report, JoinError>> {
        tokio::select! {
            biased;
            Some(report) = self.attempts.next() => Some(Ok(report)),
            Some(ended) = self.tasks.join_next() => Some(ended),
            else => None,
        }
    }

    /// A task has ended; a panic in a write is a panic of the courier.
    fn ended(&mut self, task: Result<Report, JoinError>) {
        match task.map_err(JoinError::try_into_panic) {
            Ok(report) => self.report(report, Instant::now(), self.fixed.clock.now()),
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            Err(Err(_cancelled)) => {}
        }
    }

    fn lane(&mut self, number: u64) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.number == number)
    }

    fn show(&self) {
        let ready: usize = self.lanes.iter().map(Lane::ready).sum();
        let waiting = self.lanes.iter().map(Lane::waiting).sum();
        self.fixed.view.show(handle::Shown {
            breaker: self.breaker.state(),
            is_open: self.breaker.is_open(),
            queued: ready + self.subjects.in_line(),
            in_flight: self.in_flight,
            waiting,
            parked: self.book.count(),
        });
    }
}

/// A time so much later, in whole milliseconds as the storage keeps them, rounded up: never before its time.
fn after(time: Timestamp, delay: Duration) -> Timestamp {
    let millis = i64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(time.as_millisecond().saturating_add(millis)).unwrap_or(Timestamp::MAX)
}

/// Whether lanes may read.
#[derive(Clone, Copy)]
struct Readable(bool);

/// The next batch of any lane that has room; never, if there is none.
async fn next_batch(lanes: &mut [Lane], readable: Readable) -> (usize, Result<Vec<Record>, StorageError>) {
    let mut poll = |cx: &mut Context<'_>| {
        for (index, lane) in lanes.iter_mut().enumerate() {
            if readable.0
                && lane.has_room()
                && let Poll::Ready(batch) = lane.poll_batch(cx)
            {
                return Poll::Ready((index, batch));
            }
        }
        Poll::Pending
    };
    std::future::poll_fn(|cx| poll(cx)).await
}
