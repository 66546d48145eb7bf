//! Alerts: a person is told when money is at risk, without a second system beside chaski.
//!
//! The way of one alert: `snapshot` reduces what this process measures to the few numbers that matter,
//! `conditions` says of two snapshots what is wrong, `tracker` knows since when and who has to hear what, a
//! `mailbox` per receiver holds what has not been told yet, `receivers` speak the services' languages, and
//! `desk` runs one task per receiver so that none waits for another.
//!
//! Promise: nothing here is on an event's way, nothing waits for it, everything is bounded, and a message holds
//! numbers and names of the configuration, never a payload or a secret. What it does not do: remember across a
//! restart. What still is wrong then is told again, dead letters and quarantined events that are kept among it; what has
//! passed is not.

mod conditions;
mod desk;
mod mailbox;
mod message;
pub(crate) mod receivers;
mod snapshot;
mod tracker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chaski_common::clock::Clock;
use jiff::Timestamp;
use prometheus::Registry;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

pub use conditions::{Condition, Rules, Severity};
pub(crate) use message::Message;
pub use receivers::{EmailSpec, Kind, ReceiverSpec, SmtpTls};

use crate::gauges::Instruments;
use conditions::{WINDOW, evaluate};
use desk::Desk;
use snapshot::{Found, Kept, Measure, Snapshot};
use tracker::Tracker;

/// Between two looks at the metrics.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// Between two questions to the storage, which costs it a query each.
const ASK_PERIOD: Duration = Duration::from_secs(10);

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
    /// Snapshots of the last [`WINDOW`].
    kept: Kept,
    /// When this process began, before anything of it could become a letter.
    began: Timestamp,
    /// Known once the store has told.
    found: Option<Found>,
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
        began: Timestamp,
    ) -> (Self, Steering) {
        let (steering, config) = watch::channel(Arc::new(config));
        let kept = Kept::since(Instant::now(), clock.now());
        let watch = Self {
            config,
            instruments,
            desk: Desk::new(registry, clock.clone()),
            clock,
            tracker: Tracker::default(),
            kept,
            began,
            found: None,
            watched: BTreeMap::new(),
        };
        (watch, steering)
    }

    /// Looks, and tells, until `shutdown`; then once more, so that what the last moments brought is told, too.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK_PERIOD);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked: Option<Instant> = None;
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
                        self.ask().await;
                        asked = Some(Instant::now());
                    }
                    self.look(&config).await;
                }
            }
        }
    }

    async fn ask(&mut self) {
        self.instruments.refresh().await;
        if self.found.is_none() {
            self.found = self.instruments.letters_before(self.began).await.map(Found::new);
        }
    }

    async fn look(&mut self, config: &AlertsConfig) {
        let (now, time) = (Instant::now(), self.clock.now());
        let mut snapshot = Snapshot::read(time, &self.instruments.gather().await);
        if let Some(found) = &self.found {
            snapshot.add_found(found);
        }
        let rules = &config.rules;
        self.watched.retain(|source, _| rules.sources.contains_key(source));
        for source in rules.sources.keys() {
            let since = *self.watched.entry(Arc::clone(source)).or_insert(time);
            snapshot.raise(Measure::LastAccepted, source, since.as_second() as f64);
        }
        let Some(before) = self.kept.before(now, WINDOW) else { return };
        let findings = evaluate(rules, before, &snapshot);
        for notice in self.tracker.step(findings, now, time, config.repeat) {
            self.desk.tell(&notice);
        }
        self.kept.keep(now, snapshot);
    }
}
