//! Alerts: a person is told when money is at risk, without a second system beside chaski.
//!
//! The way of one alert: `snapshot` reduces what this process measures to the few numbers that matter,
//! `conditions` says of two snapshots what is wrong, `tracker` knows since when and who has to hear what, a
//! `mailbox` per receiver holds what has not been told yet, `receivers` speak the services' languages, and
//! `desk` runs one task per receiver so that none waits for another.
//!
//! Promise: nothing here is on an event's way, nothing waits for it, everything is bounded, and a message holds
//! numbers and names of the configuration, never a payload or a secret. What it does not do: remember across a
//! restart. What still is wrong then is told again, what has passed is not.

mod conditions;
mod desk;
mod mailbox;
mod message;
pub(crate) mod receivers;
mod snapshot;
mod tracker;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chaski_common::clock::Clock;
use jiff::{SignedDuration, Timestamp};
use prometheus::Registry;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

pub use conditions::{Condition, Rules, Severity};
pub(crate) use message::Message;
pub use receivers::{EmailSpec, Kind, ReceiverSpec, SmtpTls};

use crate::gauges::Instruments;
use conditions::{WINDOW, evaluate};
use desk::Desk;
use snapshot::{Measure, Snapshot};
use tracker::Tracker;

/// Between two looks at the metrics.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// Between two questions to the storage, which costs it a query each.
const ASK_PERIOD: Duration = Duration::from_secs(10);
/// Between two snapshots that are kept, to say what a window of time added.
const KEEP_PERIOD: SignedDuration = SignedDuration::from_secs(15);

/// `[alerts]`.
#[derive(Clone, Debug, PartialEq)]
pub struct AlertsConfig {
    /// What begins within this time goes to a receiver in one message.
    pub group: Duration,
    /// A receiver gets at most one message in this time.
    pub every: Duration,
    /// After this, what still is wrong is told again.
    pub repeat: Duration,
    /// What is wrong, and from when on.
    pub rules: Rules,
    /// Who is told, in the order of the file.
    pub receivers: Vec<ReceiverSpec>,
}

/// Puts another configuration into force.
pub(crate) type Steering = watch::Sender<Arc<AlertsConfig>>;

/// Looks at this process until it stops.
pub(crate) struct Watch {
    config: watch::Receiver<Arc<AlertsConfig>>,
    instruments: Arc<Instruments>,
    clock: Clock,
    desk: Desk,
    tracker: Tracker,
    /// Snapshots of the last [`WINDOW`], the oldest first. The first one is empty: counters begin at zero.
    kept: VecDeque<Snapshot>,
    /// Since when each source is watched: before that nobody can say that it was silent.
    watched: BTreeMap<Arc<str>, Timestamp>,
}

impl Watch {
    /// Nothing is looked at before [`Watch::run`].
    pub(crate) fn new(
        config: AlertsConfig,
        instruments: Arc<Instruments>,
        registry: &Registry,
        clock: Clock,
    ) -> (Self, Steering) {
        let (steering, config) = watch::channel(Arc::new(config));
        let kept = VecDeque::from([Snapshot::empty(clock.now())]);
        let watch = Self {
            config,
            instruments,
            desk: Desk::new(registry, clock.clone()),
            clock,
            tracker: Tracker::default(),
            kept,
            watched: BTreeMap::new(),
        };
        (watch, steering)
    }

    /// Looks, and tells, until `shutdown`; then once more, so that what the last moments brought is told, too.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK_PERIOD);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked: Option<tokio::time::Instant> = None;
        let mut config = Arc::clone(&self.config.borrow_and_update());
        self.desk.reload(&config, &[]);
        loop {
            let looking = !config.receivers.is_empty();
            tokio::select! {
                () = shutdown.cancelled() => {
                    self.look(&config).await;
                    return self.desk.flush().await;
                }
                Ok(()) = self.config.changed() => {
                    config = Arc::clone(&self.config.borrow_and_update());
                    self.desk.reload(&config, &self.tracker.firing());
                }
                _ = looks.tick(), if looking => {
                    let due = asked.is_none_or(|asked| asked.elapsed() >= ASK_PERIOD);
                    if due {
                        self.instruments.refresh().await;
                        asked = Some(tokio::time::Instant::now());
                    }
                    self.look(&config).await;
                }
            }
        }
    }

    async fn look(&mut self, config: &AlertsConfig) {
        let now = self.clock.now();
        let mut snapshot = Snapshot::read(now, &self.instruments.gather().await);
        let rules = &config.rules;
        self.watched.retain(|source, _| rules.sources.contains_key(source));
        for source in rules.sources.keys() {
            let since = *self.watched.entry(Arc::clone(source)).or_insert(now);
            snapshot.raise(Measure::LastAccepted, source, since.as_second() as f64);
        }
        let Some(before) = self.before(now) else { return };
        let findings = evaluate(rules, before, &snapshot);
        for notice in self.tracker.step(findings, now, config.repeat) {
            self.desk.tell(&notice);
        }
        self.keep(snapshot);
    }

    /// The newest snapshot that is as old as the window, or the oldest there is.
    fn before(&mut self, now: Timestamp) -> Option<&Snapshot> {
        let is_old = |kept: Option<&Snapshot>| kept.is_some_and(|kept| now.duration_since(kept.at) >= WINDOW);
        while is_old(self.kept.get(1)) {
            self.kept.pop_front();
        }
        self.kept.front()
    }

    fn keep(&mut self, snapshot: Snapshot) {
        let is_due = self.kept.back().is_none_or(|last| {
            let age = snapshot.at.duration_since(last.at);
            // A clock that was put back must not stop the keeping.
            age >= KEEP_PERIOD || age.is_negative()
        });
        if is_due {
            self.kept.push_back(snapshot);
        }
    }
}
