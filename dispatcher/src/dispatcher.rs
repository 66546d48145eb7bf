//! Starting, steering and stopping the couriers. Nothing about a single delivery is decided here.

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chaski_common::clock::Clock;
use chaski_common::storage::{Storage, StorageError};
use chaski_common::trace::Tracer;
use futures_util::future::join_all;
use jiff::Timestamp;
use prometheus::Registry;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::{Instant, timeout, timeout_at};

use crate::courier::{self, Fixed, LAST_SETTLE, Opening};
use crate::deliver::client::Dialer;
use crate::destination::DestinationSpec;
use crate::metrics::Metrics;
use crate::status::DestinationStatus;

/// Most unfinished replays of one destination: each reads a window of its own.
pub const REPLAYS_MAX: usize = 8;

/// How long a patient start waits for one cursor to open.
const OPEN_WITHIN: Duration = Duration::from_secs(5);

/// What holds for all destinations.
#[derive(Clone, Debug)]
pub struct DispatcherConfig {
    /// Most deliveries parked per destination; there, a destination stops taking new events.
    pub parked_max: u64,
    /// How long attempts in flight may go on when a reload stops or changes their destination.
    pub drain: Duration,
    /// Whether to start though the storage cannot open a cursor just now, see [`Dispatcher::start`].
    pub patient: bool,
    /// Certificates trusted beside the public roots, for receivers with a CA of their own.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// Who is told of each attempt.
    pub tracer: Tracer,
}

impl Default for DispatcherConfig {
    fn default() -> Self {
        Self {
            parked_max: 10_000,
            // A command that asks for a reload waits for 30 s.
            drain: Duration::from_secs(25),
            patient: false,
            extra_roots: Vec::new(),
            tracer: Tracer::default(),
        }
    }
}

/// What an operator asked for cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No destination has this name.
    #[error("there is no destination named {name}")]
    UnknownDestination {
        /// The name asked for.
        name: String,
    },
    /// See [`Dispatcher::shutdown`].
    #[error("the process is ending")]
    Ending,
    /// Each unfinished replay holds a window of its own.
    #[error("{destination} has {max} replays under way, which is the most; let one end first")]
    TooManyReplays {
        /// The destination.
        destination: String,
        /// Most replays under way at one destination.
        max: usize,
    },
    /// The storage did not do its part.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A replay that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReplayStarted {
    /// Its number.
    pub number: u64,
    /// Events it covers, whether or not the destination takes them.
    pub events: u64,
}

/// All destinations under way. Cloning gives another handle on the same ones. Dropping the last handle stops
/// them as a crash would, without the patience of [`Dispatcher::shutdown`]: nothing is lost, but what was not
/// settled is delivered once more.
#[derive(Clone)]
pub struct Dispatcher(Arc<Inner>);

struct Inner {
    config: DispatcherConfig,
    storage: Storage,
    clock: Clock,
    metrics: Metrics,
    dialer: Dialer,
    /// Only ever held to look or to swap, never over an await.
    couriers: Mutex<BTreeMap<Arc<str>, courier::Handle>>,
    /// What changes the set of couriers goes one after another.
    changing: tokio::sync::Mutex<()>,
    /// So do the beginnings of replays, or there would be more than [`REPLAYS_MAX`]; they wait for no reload that drains.
    beginning: tokio::sync::Mutex<()>,
    /// From then on no courier is set off.
    ending: watch::Sender<bool>,
}

impl Dispatcher {
    /// Opens the cursors of all destinations, then sets the couriers off.
    /// When this returns, no event stored from now on can be missed by a destination that is new.
    ///
    /// With [`DispatcherConfig::patient`], a storage that fails in a way that may pass, or takes longer than
    /// seconds, does not hold the start up: couriers whose cursor is not open yet go on trying by themselves. A
    /// destination that is new then begins, once the storage answers, with the events received from this start
    /// on, by the clocks of the edges that received them.
    ///
    /// # Errors
    /// When the storage cannot open a cursor; nothing runs then.
    pub async fn start(
        config: DispatcherConfig,
        specs: Vec<DestinationSpec>,
        storage: Storage,
        registry: &Registry,
        clock: Clock,
    ) -> Result<Self, StorageError> {
        let dialer = Dialer::new(&config.extra_roots);
        let metrics = Metrics::new(registry);
        let inner = Inner {
            config,
            storage,
            clock,
            metrics,
            dialer,
            couriers: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            beginning: tokio::sync::Mutex::default(),
            ending: watch::Sender::default(),
        };
        let openings = if inner.config.patient {
            inner.open_in_time(specs).await?
        } else {
            inner.open(specs).await?.into_iter().map(|(fixed, opening)| (fixed, Some(opening))).collect()
        };
        for (fixed, opening) in openings {
            inner.set_off(fixed, opening);
        }
        Ok(Self(Arc::new(inner)))
    }

    /// Whether this process delivers to it.
    #[must_use]
    pub fn has(&self, destination: &str) -> bool {
        self.0.couriers().contains_key(destination)
    }

    /// How each destination stands, by name.
    #[must_use]
    pub fn status(&self) -> Vec<DestinationStatus> {
        self.0.couriers().values().map(courier::Handle::status).collect()
    }

    /// The certificate of each destination on https: what its receiver showed at the last connection that deliveries
    /// opened, without those that signed it. None before the first one, in this process or since a reload that changed
    /// the destination.
    #[must_use]
    pub fn certificates(&self) -> Vec<(Arc<str>, Option<CertificateDer<'static>>)> {
        let couriers = self.0.couriers();
        let on_https = couriers.values().filter(|handle| handle.spec().is_https());
        on_https.map(|handle| (handle.name(), handle.certificate())).collect()
    }

    /// Keeps a destination from being delivered to until it is resumed; attempts in flight end as they end.
    /// Durable when this returns. `false` if it was paused already.
    ///
    /// # Errors
    /// When there is no such destination, or the storage fails.
    pub async fn pause(&self, name: &str) -> Result<bool, Error> {
        self.set_paused(name, true).await
    }

    /// Lets a paused destination go on. `false` if it was not paused.
    ///
    /// # Errors
    /// When there is no such destination, or the storage fails.
    pub async fn resume(&self, name: &str) -> Result<bool, Error> {
        self.set_paused(name, false).await
    }

    async fn set_paused(&self, name: &str, paused: bool) -> Result<bool, Error> {
        let changed = self.0.handle(name)?.is_paused() != paused;
        // Its courier hears it from the storage, here as everywhere.
        self.0.storage.events.set_paused(name, paused).await?;
        Ok(changed)
    }

    /// Delivers the events received in `[from, to)` once more to one destination.
    ///
    /// # Errors
    /// When there is no such destination, it has [`REPLAYS_MAX`] replays already, or the storage fails.
    pub async fn replay(
        &self,
        destination: &str,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<ReplayStarted, Error> {
        let (inner, destination) = (self.0.clone(), destination.to_owned());
        to_its_end(async move {
            let _one_at_a_time = inner.beginning.lock().await;
            if inner.handle(&destination)?.replays() >= REPLAYS_MAX {
                return Err(Error::TooManyReplays { destination, max: REPLAYS_MAX });
            }
            let (cursor, events) = inner.storage.events.begin_replay(&destination, from, to).await?;
            Ok(ReplayStarted { number: cursor.replay, events })
        })
        .await
    }

    /// Takes over a new list of destinations: new ones start, missing ones drain and stop, changed ones do both, each
    /// for itself, and those that are as before are not touched. Where only sources or types of events differ, the
    /// routes are exchanged and nothing stops.
    ///
    /// New ones are opened before anything is stopped. A changed one has its cursor already and is opened when
    /// its old courier has let go of it; if the storage fails just then, its new courier tries on by itself.
    ///
    /// # Errors
    /// When the storage cannot open the cursor of a new destination; nothing has changed then. When the process is
    /// ending: what drains has no longer than that, and nothing is set off.
    pub async fn reload(&self, specs: Vec<DestinationSpec>) -> Result<(), Error> {
        let inner = self.0.clone();
        to_its_end(async move {
            let _one_at_a_time = inner.changing.lock().await;
            let running = inner.couriers().clone();
            let (known, new): (Vec<_>, Vec<_>) =
                specs.into_iter().partition(|spec| running.contains_key(&spec.name));
            for (fixed, opening) in inner.unless_ending(inner.open(new)).await?? {
                inner.set_off(fixed, Some(opening));
            }
            let mut known: BTreeMap<_, _> = known.into_iter().map(|spec| (spec.name.clone(), spec)).collect();
            let until = Instant::now() + inner.config.drain;
            let exchange = |(name, old)| inner.exchange(old, known.remove(&name), until);
            join_all(running.into_iter().map(exchange)).await;
            inner.unless_ending(ready(())).await
        })
        .await
    }

    /// Stops reading, lets attempts in flight finish for at most `deadline`, settles what is settled. What
    /// was not finished begins anew at the next start.
    ///
    /// This is the end of a reload as well: what one under way drains has until the same deadline, and it sets nothing
    /// off any more, nor does a later one. Returns seconds after the deadline at the latest, whatever the storage does.
    pub async fn shutdown(&self, deadline: Duration) {
        let until = Instant::now() + deadline;
        self.0.ending.send_replace(true);
        let running: Vec<_> = self.0.couriers().values().cloned().collect();
        let reloaded = timeout_at(until + LAST_SETTLE * 2, self.0.changing.lock());
        let _ = tokio::join!(join_all(running.iter().map(|courier| courier.stop(until))), reloaded);
        self.0.couriers().clear();
    }
}

impl Inner {
    fn couriers(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, courier::Handle>> {
        self.couriers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, name: &str) -> Result<courier::Handle, Error> {
        self.couriers().get(name).cloned().ok_or_else(|| Error::UnknownDestination { name: name.to_owned() })
    }

    fn fixed(&self, spec: DestinationSpec) -> Fixed {
        let metrics = self.metrics.of(&spec.name);
        let (storage, clock) = (self.storage.clone(), self.clock.clone());
        let DispatcherConfig { parked_max, ref tracer, .. } = self.config;
        Fixed::new(spec, storage, &self.dialer, metrics, clock, tracer.clone(), parked_max)
    }

    /// Opens all of them, or none.
    async fn open(&self, specs: Vec<DestinationSpec>) -> Result<Vec<(Arc<Fixed>, Opening)>, StorageError> {
        let mut opened = Vec::with_capacity(specs.len());
        for fixed in specs.into_iter().map(|spec| self.fixed(spec)) {
            let opening = fixed.open().await?;
            opened.push((Arc::new(fixed), opening));
        }
        Ok(opened)
    }

    /// Opens what can be opened now. When one has failed, or took too long, those behind it are not waited for.
    async fn open_in_time(
        &self,
        specs: Vec<DestinationSpec>,
    ) -> Result<Vec<(Arc<Fixed>, Option<Opening>)>, StorageError> {
        let started = self.clock.now();
        let mut answers = true;
        let mut opened = Vec::with_capacity(specs.len());
        for fixed in specs.into_iter().map(|spec| self.fixed(spec)) {
            let opening = if answers { timeout(OPEN_WITHIN, fixed.open()).await.ok() } else { None };
            match opening {
                Some(Ok(opening)) => opened.push((Arc::new(fixed), Some(opening))),
                Some(Err(error)) if !error.is_transient() => return Err(error),
                failed => {
                    if answers {
                        let error = failed.and_then(Result::err).map(tracing::field::display);
                        tracing::warn!(destination = %fixed.spec.name, error, "the storage does not open cursors yet; destinations begin when it does");
                    }
                    answers = false;
                    opened.push((Arc::new(fixed.begin_at(started)), None));
                }
            }
        }
        Ok(opened)
    }

    /// In place of the one that was there; none once the process is ending.
    fn set_off(&self, fixed: Arc<Fixed>, opening: Option<Opening>) {
        // Looked at under the lock: a shutdown finds all that was set off before it said so.
        let mut couriers = self.couriers();
        if !*self.ending.borrow() {
            let handle = courier::Handle::set_off(fixed, opening);
            couriers.insert(handle.name(), handle);
        }
    }

    /// One courier goes on, or stops and has a successor or none.
    async fn exchange(&self, old: courier::Handle, spec: Option<DestinationSpec>, until: Instant) {
        match spec {
            Some(spec) if old.reroute(&spec) => {}
            Some(spec) => {
                old.stop(until).await;
                let fixed = Arc::new(old.succeeded_by(self.fixed(spec)));
                if let Ok(opening) = self.unless_ending(fixed.open()).await {
                    self.set_off(fixed, opening.ok());
                }
            }
            None => {
                old.stop(until).await;
                old.forget_failures();
                self.couriers().remove(&old.name());
            }
        }
    }

    /// Does the work, or leaves it once the process is ending.
    async fn unless_ending<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        let mut ending = self.ending.subscribe();
        tokio::select! {
            biased;
            _ = ending.wait_for(|ending| *ending) => Err(Error::Ending),
            done = work => Ok(done),
        }
    }
}

/// Does the work to its end even if the caller goes away in the middle, so that a storage and a courier that
/// are to be told the same thing both hear it.
async fn to_its_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(work).await.map_err(JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime ends, and this future with it.
        Err(Err(_cancelled)) => std::future::pending().await,
    }
}
