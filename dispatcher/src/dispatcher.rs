//! Starting, steering and stopping the couriers. Nothing about a single delivery is decided here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chaski_common::clock::Clock;
use chaski_common::storage::{Cursor, Start, Storage, StorageError};
use jiff::Timestamp;
use prometheus::Registry;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use tokio::time::Instant;

use crate::courier::{self, Command, Courier};
use crate::deliver::Sender;
use crate::deliver::client::Dialer;
use crate::destination::DestinationSpec;
use crate::lane;
use crate::metrics::Metrics;
use crate::parked::Book;
use crate::reading::Reading;
use crate::status::DestinationStatus;
use crate::store::Store;

/// What holds for all destinations.
#[derive(Clone, Debug)]
pub struct DispatcherConfig {
    /// Most deliveries parked per destination; there, a destination stops taking new events.
    pub parked_max: u64,
    /// How long attempts in flight may go on when a reload stops or changes their destination.
    pub drain: Duration,
    /// Certificates trusted beside the public roots, for receivers with a CA of their own.
    pub extra_roots: Vec<CertificateDer<'static>>,
}

impl Default for DispatcherConfig {
    fn default() -> Self {
        Self { parked_max: 10_000, drain: Duration::from_secs(30), extra_roots: Vec::new() }
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
    /// What changes the set of couriers, or must reach the courier that is there, goes one after another.
    changing: tokio::sync::Mutex<()>,
}

impl Dispatcher {
    /// Opens the cursors of all destinations and of their unfinished replays, then sets the couriers off.
    /// When this returns, no event stored from now on can be missed by a destination that is new.
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
        };
        let mut ready = Vec::new();
        for spec in specs {
            ready.push(inner.prepare(Arc::new(spec)).await?);
        }
        for courier in ready {
            inner.set_off(courier);
        }
        Ok(Self(Arc::new(inner)))
    }

    /// How each destination stands, by name.
    #[must_use]
    pub fn status(&self) -> Vec<DestinationStatus> {
        self.0.couriers().values().map(courier::Handle::status).collect()
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
        let _no_reload_meanwhile = self.0.changing.lock().await;
        let handle = self.0.handle(name)?;
        self.0.storage.events.set_paused(name, paused).await?;
        let changed = handle.is_paused() != paused;
        handle.tell(Command::Pause(paused)).await;
        Ok(changed)
    }

    /// Parked deliveries were changed from outside (hurried, dropped, redriven), at one destination or at
    /// any: its courier looks again.
    pub async fn wake(&self, name: Option<&str>) {
        let handles: Vec<_> = {
            let couriers = self.0.couriers();
            couriers
                .iter()
                .filter(|(key, _)| name.is_none_or(|name| &***key == name))
                .map(|(_, handle)| handle.clone())
                .collect()
        };
        for handle in handles {
            handle.tell(Command::Look).await;
        }
    }

    /// Delivers the events received in `[from, to)` once more to one destination.
    ///
    /// # Errors
    /// When there is no such destination, or the storage fails. A replay that was begun and could not be
    /// opened goes on at the next start.
    pub async fn replay(
        &self,
        destination: &str,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<ReplayStarted, Error> {
        let _no_reload_meanwhile = self.0.changing.lock().await;
        let handle = self.0.handle(destination)?;
        let (cursor, events) = self.0.storage.events.begin_replay(destination, from, to).await?;
        let number = cursor.replay;
        let reading = self.0.open(cursor, Start::Beginning).await?;
        handle.tell(Command::Read(Box::new(reading))).await;
        Ok(ReplayStarted { number, events })
    }

    /// Takes over a new list of destinations: new ones start, missing ones drain and stop, changed ones do
    /// both, and those that are as before are not touched.
    ///
    /// # Errors
    /// When the storage cannot open a cursor; the destinations before it in the list run, the new and
    /// changed ones behind it do not, and another reload starts them.
    pub async fn reload(&self, specs: Vec<DestinationSpec>) -> Result<(), StorageError> {
        let _one_at_a_time = self.0.changing.lock().await;
        self.stop(self.0.config.drain, |running| !specs.contains(running)).await;
        for spec in specs {
            if self.0.handle(&spec.name).is_err() {
                let courier = self.0.prepare(Arc::new(spec)).await?;
                self.0.set_off(courier);
            }
        }
        Ok(())
    }

    /// Stops reading, lets attempts in flight finish for at most `deadline`, settles what is settled. What
    /// was not finished begins anew at the next start.
    pub async fn shutdown(&self, deadline: Duration) {
        let _one_at_a_time = self.0.changing.lock().await;
        self.stop(deadline, |_| true).await;
    }

    async fn stop(&self, deadline: Duration, which: impl Fn(&DestinationSpec) -> bool) {
        let mut stopped = Vec::new();
        self.0.couriers().retain(|_, handle| {
            let stops = which(handle.spec());
            if stops {
                stopped.push(handle.clone());
            }
            !stops
        });
        let until = Instant::now() + deadline;
        futures_util::future::join_all(stopped.iter().map(|handle| handle.stop(until))).await;
    }
}

impl Inner {
    fn couriers(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, courier::Handle>> {
        self.couriers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, name: &str) -> Result<courier::Handle, Error> {
        self.couriers().get(name).cloned().ok_or_else(|| Error::UnknownDestination { name: name.to_owned() })
    }

    async fn open(&self, cursor: Cursor, start: Start) -> Result<Reading, StorageError> {
        let limits = lane::Limits::within(self.config.parked_max);
        let subscription = self.storage.events.subscribe(&cursor, start, limits.batch).await?;
        Ok(Reading::new(cursor, subscription, limits))
    }

    /// Everything a courier must know before its first step, read from the storage.
    async fn prepare(&self, spec: Arc<DestinationSpec>) -> Result<Courier, StorageError> {
        let name = spec.name.clone();
        let mut readings = vec![self.open(Cursor::of(name.clone()), spec.start).await?];
        for replay in self.storage.events.replays().await? {
            if replay.cursor.destination == name {
                readings.push(self.open(replay.cursor, Start::Beginning).await?);
            }
        }
        let paused =
            self.storage.events.progress().await?.iter().any(|at| at.destination == name && at.paused);
        let store = Store::new(self.storage.clone(), &spec);
        let book = Book::new(store.look(self.clock.now(), 0).await?, self.config.parked_max);
        let metrics = self.metrics.of(&name);
        let sender = Sender::new(&spec, &self.dialer, self.clock.clone(), metrics.header_dropped.clone());
        Ok(Courier::new(spec, sender, store, metrics, self.clock.clone(), readings, book, paused))
    }

    fn set_off(&self, courier: Courier) {
        let handle = courier.set_off();
        self.couriers().insert(handle.name(), handle);
    }
}
