//! A chaski in one process, whole or one half of it: opened once, addresses known, run, drained.
//!
//! The order of opening is the order of the promises: the store, then the dispatcher with all its cursors,
//! then the edge, so that no event can arrive that a destination would miss. Stopping goes the other way.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use chaski_common::clock::Clock;
use chaski_common::storage::{EventFilter, Progress, Storage, StorageError, embedded, kafka};
use chaski_dispatcher::destination::DestinationSpec;
use chaski_dispatcher::{Dispatcher, DispatcherConfig};
use chaski_ingest::source::SourceSpec;
use chaski_ingest::{Edge, EdgeConfig, EdgeHandle, Limits, Tls, TlsConfig};
use jiff::{SignedDuration, Timestamp};
use prometheus::Registry;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, Shared};
use crate::alerts::{AlertsConfig, Steering, Watch};
use crate::api::{Operations, Reload, Reloaded};
use crate::certificate;
use crate::config::{Config, IngestConfig, StorageConfig, StorageKind};
use crate::gauges::{Gauges, Instruments};

/// How long attempts under way may take when the process stops.
const DISPATCH_DRAIN: Duration = Duration::from_secs(26);
/// How often old events are looked for.
const PRUNE_PERIOD: Duration = Duration::from_secs(60);
/// Events deleted in one write: few enough that no accept waits for it.
const PRUNE_EVENTS: usize = 500;

/// What a process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes callbacks and delivers them.
    Both,
    /// Takes callbacks.
    Edge,
    /// Delivers to these destinations, or to all where none is named.
    Dispatcher {
        /// Their names.
        only: Vec<String>,
    },
}

impl Role {
    const fn has_edge(&self) -> bool {
        !matches!(self, Self::Dispatcher { .. })
    }

    const fn has_dispatcher(&self) -> bool {
        !matches!(self, Self::Edge)
    }

    /// Those that this process delivers to.
    fn destinations(&self, config: &Config) -> Vec<DestinationSpec> {
        let mine = |destination: &&DestinationSpec| match self {
            Self::Dispatcher { only } if !only.is_empty() => {
                only.iter().any(|name| **name == *destination.name)
            }
            _ => true,
        };
        config.destinations.iter().filter(mine).cloned().collect()
    }

    /// What this process can see.
    fn alerts(&self, config: &Config) -> AlertsConfig {
        let mine = self.destinations(config).into_iter().map(|destination| destination.name);
        config.alerts_for(mine.collect())
    }
}

/// Everything is open and nothing runs yet.
pub struct App {
    edge: Option<Edge>,
    admin: Admin,
    dispatcher: Option<Dispatcher>,
    storage: Storage,
    ready: Arc<AtomicBool>,
    clock: Clock,
    watch: Watch,
    control: Control,
    drain: Duration,
}

impl App {
    /// Opens the storage and the listeners. `file` is where [`Control::reload`] reads the configuration again.
    ///
    /// # Errors
    /// When the storage or a listener cannot be opened; nothing is left running.
    pub async fn open(config: Config, file: &Path, role: Role) -> anyhow::Result<Self> {
        let registry = Registry::new();
        let storage = open_storage(&config.storage, &role, &registry).await?;
        let opened = Self::open_on(storage.clone(), config, file, role, registry).await;
        if opened.is_err() {
            storage.events.close().await;
        }
        opened
    }

    async fn open_on(
        storage: Storage,
        config: Config,
        file: &Path,
        role: Role,
        registry: Registry,
    ) -> anyhow::Result<Self> {
        let clock = Clock::system();
        let dispatcher = match role.has_dispatcher() {
            true => {
                let dispatching = DispatcherConfig {
                    parked_max: config.storage.parked_max,
                    // Brokers come and go; whoever opens a file has it or has not.
                    patient: matches!(config.storage.kind, StorageKind::Kafka { .. }),
                    ..DispatcherConfig::default()
                };
                let destinations = role.destinations(&config);
                let opening =
                    Dispatcher::start(dispatching, destinations, storage.clone(), &registry, clock.clone());
                Some(opening.await.context("opening the cursors of the destinations")?)
            }
            false => None,
        };
        let edge = match role.has_edge() {
            true => {
                let listen = config.ingest.listen;
                let sources = config.sources.clone();
                let bound =
                    Edge::bind(edge_config(&config), sources, storage.clone(), &registry, clock.clone());
                Some(bound.with_context(|| format!("listening on {listen} ([ingest] listen)"))?)
            }
            false => None,
        };

        let sources = config.sources.iter().map(|source| Arc::clone(&source.name)).collect();
        let is_embedded = matches!(config.storage.kind, StorageKind::Embedded { .. });
        let folder = match &config.storage.kind {
            StorageKind::Embedded { path } => Some(path.clone()),
            StorageKind::Kafka { options, .. } => options.spool.clone().filter(|_| role.has_edge()),
        };
        let gauges = Gauges::new(&registry, sources, is_embedded, folder);
        gauges
            .retention
            .with_label_values(&["events"])
            .set(i64::try_from(config.storage.retention.as_secs()).unwrap_or(i64::MAX));
        let ready = Arc::new(AtomicBool::new(false));
        let admin_config = config.admin.clone();
        let store = config.storage.identity();
        let drain = config.ingest.drain_timeout;
        let operations = Operations {
            storage: storage.clone(),
            dispatcher: dispatcher.clone(),
            clock: clock.clone(),
            reload: None,
        };
        let (successful, succeeded_at) = (gauges.reload_successful.clone(), gauges.reload_timestamp.clone());
        let (certificate_until, pruned_at) = (gauges.certificate_until.clone(), gauges.pruned_at.clone());
        let instruments = Arc::new(Instruments::new(registry.clone(), gauges, operations.clone()));
        let (watch, alerts) =
            Watch::new(role.alerts(&config), Arc::clone(&instruments), &registry, clock.clone());
        let control = Control(Arc::new(Running {
            file: file.to_owned(),
            edge: edge.as_ref().map(Edge::handle),
            dispatcher: dispatcher.clone(),
            storage: storage.clone(),
            clock: clock.clone(),
            role: role.clone(),
            in_force: Mutex::new(config),
            turn: tokio::sync::Mutex::new(()),
            successful,
            succeeded_at,
            certificate_until,
            pruned_at,
            alerts,
        }));
        control.0.report(true);
        let shared = Shared {
            instruments,
            operations: Operations { reload: Some(Arc::new(control.clone())), ..operations },
            token: admin_config.token,
            ready: Arc::clone(&ready),
            store: store.unwrap_or_default(),
        };
        let admin = bind_admin(admin_config.listen, shared, &role).await?;
        Ok(Self { edge, admin, dispatcher, storage, ready, clock, watch, control, drain })
    }

    /// Where senders post to, if they do so here.
    #[must_use]
    pub fn edge_addr(&self) -> Option<SocketAddr> {
        self.edge.as_ref().map(Edge::local_addr)
    }

    /// Where metrics, health and the API are.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn admin_addr(&self) -> std::io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// What can be asked of it while it runs.
    #[must_use]
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// The store it runs on.
    #[must_use]
    pub fn storage(&self) -> Storage {
        self.storage.clone()
    }

    /// Serves until `shutdown`, then drains: readiness off, no new connections, what is in flight finishes,
    /// everything settled is written, the store is closed.
    pub async fn run(self, shutdown: CancellationToken) {
        let admin_stop = CancellationToken::new();
        let admin = tokio::spawn(self.admin.run(admin_stop.clone()));
        // Whoever delivers knows what is settled, and cleans up.
        let pruning = self.dispatcher.as_ref().map(|_| {
            tokio::spawn(prune(self.storage.clone(), self.control.clone(), self.clock, shutdown.clone()))
        });
        let watch = tokio::spawn(self.watch.run(admin_stop.clone()));
        self.ready.store(true, Ordering::Relaxed);
        let ready = Arc::clone(&self.ready);
        let unready = shutdown.clone();
        let readiness = tokio::spawn(async move {
            unready.cancelled().await;
            ready.store(false, Ordering::Relaxed);
        });
        match self.edge {
            Some(edge) => edge.run(shutdown, self.drain).await,
            None => shutdown.cancelled().await,
        }
        let _ = readiness.await;
        if let Some(dispatcher) = self.dispatcher {
            // What a store that takes no writes cannot record is begun again after the restart anyhow.
            let drain = if self.storage.events.is_writable() { DISPATCH_DRAIN } else { Duration::ZERO };
            dispatcher.shutdown(drain).await;
        }
        if let Some(pruning) = pruning {
            let _ = pruning.await;
        }
        admin_stop.cancel();
        let _ = admin.await;
        let _ = watch.await;
        self.storage.events.close().await;
    }
}

async fn open_storage(config: &StorageConfig, role: &Role, registry: &Registry) -> anyhow::Result<Storage> {
    match &config.kind {
        StorageKind::Embedded { path } => embedded::open(&embedded::Options { path: path.clone() }, registry)
            .with_context(|| format!("opening the store in {}", path.display())),
        StorageKind::Kafka { options, .. } => {
            // The spool is the edge's: nobody else has anything to put there.
            let spool = options.spool.clone().filter(|_| role.has_edge());
            let options = kafka::Options { spool, appends: role.has_edge(), ..options.clone() };
            let opened = kafka::open(&options, registry).await;
            let hint = match &opened {
                Err(StorageError::Unfit { .. }) => " (see `chaski topics plan`)",
                _ => "",
            };
            opened.with_context(|| {
                format!(
                    "opening the topics {}.* on {}{hint}",
                    options.topic_prefix,
                    options.brokers.join(", ")
                )
            })
        }
    }
}

/// Listens where the configuration says. Two halves on one machine may run on one file: the one that comes
/// second takes a free port and says which.
async fn bind_admin(listen: SocketAddr, shared: Shared, role: &Role) -> anyhow::Result<Admin> {
    let shared = Arc::new(shared);
    let bound = match Admin::bind(listen, Arc::clone(&shared)).await {
        Err(error) if error.kind() == ErrorKind::AddrInUse && *role != Role::Both => {
            let bound = Admin::bind(SocketAddr::new(listen.ip(), 0), shared).await;
            if let Ok(Ok(admin)) = bound.as_ref().map(Admin::local_addr) {
                tracing::warn!(%listen, %admin, "[admin] listen is taken by another process; listening elsewhere");
            }
            bound
        }
        bound => bound,
    };
    bound.with_context(|| format!("listening on {listen} ([admin] listen)"))
}

fn edge_config(config: &Config) -> EdgeConfig {
    let ingest = &config.ingest;
    EdgeConfig {
        listen: ingest.listen,
        max_body: ingest.body_bytes_max,
        tls: ingest.tls.as_ref().map(Into::into),
        limits: Limits {
            connections_max: ingest.connections_max,
            inflight_requests_max: ingest.requests_max,
            head_timeout: ingest.header_timeout,
            body_timeout: ingest.body_timeout,
            ..Limits::default()
        },
    }
}

/// Changes a running process. Cloning gives another hand on the same one.
#[derive(Clone)]
pub struct Control(Arc<Running>);

struct Running {
    file: PathBuf,
    edge: Option<EdgeHandle>,
    dispatcher: Option<Dispatcher>,
    storage: Storage,
    clock: Clock,
    role: Role,
    /// What runs: after a reload the new sources and destinations, and the old rest.
    in_force: Mutex<Config>,
    /// Reloads go one after the other.
    turn: tokio::sync::Mutex<()>,
    successful: prometheus::IntGauge,
    succeeded_at: prometheus::Gauge,
    certificate_until: prometheus::IntGauge,
    pruned_at: prometheus::IntGauge,
    alerts: Steering,
}

#[async_trait]
impl Reload for Control {
    /// Goes on to its end when the caller has lost patience: half a reload is nobody's configuration.
    async fn reload(&self) -> Result<Reloaded, String> {
        let running = Arc::clone(&self.0);
        let reload = tokio::spawn(async move { running.reload().await });
        reload.await.unwrap_or_else(|_| Err("the reload panicked; restart chaski".to_owned()))
    }
}

impl Running {
    async fn reload(&self) -> Result<Reloaded, String> {
        let _turn = self.turn.lock().await;
        let outcome = self.try_reload().await;
        self.report(outcome.is_ok());
        match &outcome {
            Ok(reloaded) => tracing::info!(
                sources = reloaded.sources,
                destinations = reloaded.destinations,
                needs_restart = ?reloaded.needs_restart,
                "the configuration was reloaded"
            ),
            Err(why) => {
                tracing::error!(%why, "the configuration was not reloaded, the old one stays in force");
            }
        }
        outcome
    }

    async fn try_reload(&self) -> Result<Reloaded, String> {
        let file = self.file.clone();
        let (new, tls) = tokio::task::spawn_blocking(move || {
            let new = Config::load(&file).map_err(|problems| problems.to_string())?;
            let tls = new.ingest.tls.as_ref().map(|files| TlsConfig::from(files).load()).transpose();
            Ok::<_, String>((new, tls.map_err(|error| crate::chain(&error))?))
        })
        .await
        .map_err(|_| "reading the configuration was interrupted".to_owned())??;
        let old = self.in_force();
        self.refuse_orphans(&old, &new).await?;
        self.put_in_force(&old, &new, tls).await?;
        self.alerts.send_replace(Arc::new(self.role.alerts(&new)));
        let needs_restart = needs_restart(&old, &new);
        let reloaded =
            Reloaded { sources: new.sources.len(), destinations: new.destinations.len(), needs_restart };
        let ingest = reloadable(&new.ingest, old.ingest);
        let in_force = Config { ingest, admin: old.admin, storage: old.storage, log: old.log, ..new };
        *self.in_force.lock().unwrap_or_else(PoisonError::into_inner) = in_force;
        Ok(reloaded)
    }

    /// A source that goes is taken from the edge before the destinations forget it, one that comes is known to
    /// them before the edge takes its first event.
    async fn put_in_force(&self, old: &Config, new: &Config, tls: Option<Tls>) -> Result<(), String> {
        let stays = |source: &&SourceSpec| new.sources.iter().any(|kept| kept.name == source.name);
        let staying = old.sources.iter().filter(stays).cloned().collect();
        let take = |sources| match &self.edge {
            Some(edge) => edge.reload(sources).map_err(|error| crate::chain(&error)),
            None => Ok(()),
        };
        take(staying)?;
        if let Some(dispatcher) = &self.dispatcher
            && let Err(error) = dispatcher.reload(self.role.destinations(new)).await
        {
            // The old sources were in force a moment ago, so they are in order.
            let _ = take(old.sources.clone());
            return Err(crate::chain(&error));
        }
        take(new.sources.clone())?;
        if let Some(edge) = &self.edge {
            edge.set_max_body(new.ingest.body_bytes_max);
            tls.into_iter().for_each(|tls| edge.set_tls(tls));
        }
        Ok(())
    }

    fn in_force(&self) -> Config {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A source whose events are still on their way cannot be taken out: nobody would be routed to them.
    async fn refuse_orphans(&self, old: &Config, new: &Config) -> Result<(), String> {
        let failed = |error| crate::chain(&error);
        let progress = self.storage.events.progress().await.map_err(failed)?;
        for source in &old.sources {
            if new.sources.iter().any(|kept| kept.name == source.name) {
                continue;
            }
            let is_ours = |progress: &&Progress| {
                old.destinations.iter().any(|destination| destination.name == progress.destination)
            };
            for behind in progress.iter().filter(is_ours) {
                let Some(since) = behind.oldest_unsettled else { continue };
                let source_name = Some(source.name.to_string());
                let left = EventFilter {
                    source: source_name,
                    since: Some(since),
                    limit: 1,
                    ..EventFilter::default()
                };
                if !self.storage.events.find(left).await.map_err(failed)?.is_empty() {
                    return Err(format!(
                        "source {} has events that {} has not settled; keep the source until its backlog is empty",
                        source.name, behind.destination
                    ));
                }
            }
        }
        for destination in &old.destinations {
            let gone = !new.destinations.iter().any(|kept| kept.name == destination.name);
            let left = progress.iter().find(|progress| progress.destination == destination.name);
            if let Some(left) = left.filter(|left| gone && left.lag + left.parked > 0) {
                tracing::warn!(
                    destination = %destination.name, lag = left.lag, parked = left.parked,
                    "a destination was removed that had not taken everything; what is parked stays in the store, \
                     the backlog until the retention ends"
                );
            }
        }
        Ok(())
    }

    fn report(&self, successful: bool) {
        self.successful.set(i64::from(successful));
        if successful {
            self.succeeded_at.set(self.clock.now().as_duration().as_secs_f64());
            let certificate = self.edge.as_ref().and_then(EdgeHandle::certificate);
            self.certificate_until.set(
                certificate.and_then(|der| certificate::not_after(&der)).map_or(0, Timestamp::as_second),
            );
        }
    }
}

/// What of `[ingest]` is in force after a reload: the listener stays as it was opened, in clear text or not.
fn reloadable(new: &IngestConfig, old: IngestConfig) -> IngestConfig {
    let tls = old.tls.map(|old| new.tls.clone().unwrap_or(old));
    IngestConfig { body_bytes_max: new.body_bytes_max, tls, ..old }
}

/// The settings a running process cannot change.
fn needs_restart(old: &Config, new: &Config) -> Vec<String> {
    [
        ("[ingest]", reloadable(&new.ingest, old.ingest.clone()) != new.ingest),
        ("[admin]", old.admin != new.admin),
        ("[storage]", old.storage != new.storage),
        ("[log]", old.log != new.log),
    ]
    .into_iter()
    .filter(|(_, differs)| *differs)
    .map(|(section, _)| section.to_owned())
    .collect()
}

/// Deletes what is older than the retention and settled everywhere, little by little.
async fn prune(storage: Storage, control: Control, clock: Clock, shutdown: CancellationToken) {
    let mut period = tokio::time::interval(PRUNE_PERIOD);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = period.tick() => {}
        }
        let config = control.0.in_force();
        let Ok(age) = SignedDuration::try_from(config.storage.retention) else { continue };
        let Ok(before) = clock.now().checked_sub(age) else { continue };
        let destinations: Vec<_> =
            config.destinations.iter().map(|destination| Arc::clone(&destination.name)).collect();
        while !shutdown.is_cancelled() {
            match storage.events.prune(before, &destinations, PRUNE_EVENTS).await {
                Ok(deleted) if deleted == PRUNE_EVENTS => tokio::task::yield_now().await,
                Ok(_) => {
                    control.0.pruned_at.set(clock.now().as_second());
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, "old events could not be deleted and will be tried again");
                    break;
                }
            }
        }
    }
}
