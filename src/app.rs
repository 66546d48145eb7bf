//! A chaski in one process, whole or one half of it: opened once, addresses known, run, drained.
//!
//! The order of opening is the order of the promises: the store, then the dispatcher with all its cursors,
//! then the edge, so that no event can arrive that a destination would miss. Stopping goes the other way.

mod reload;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use chaski_common::clock::Clock;
use chaski_common::metrics::Metrics;
use chaski_common::storage::{Left, Pruned, Storage, StorageError, embedded, kafka};
use chaski_common::trace::Tracer;
use chaski_dispatcher::destination::DestinationSpec;
use chaski_dispatcher::{Dispatcher, DispatcherConfig};
use chaski_ingest::{Edge, EdgeConfig};
use prometheus::{IntGauge, Registry};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio_util::sync::CancellationToken;

pub use self::reload::Control;
use self::reload::Running;
use crate::admin::{Admin, Readiness, Shared};
use crate::alerts::{AlertsConfig, Watch};
use crate::api::Operations;
use crate::config::{Config, StorageConfig, StorageKind};
use crate::gauges::{Configured, Gauges, Instruments};
use crate::telemetry::Export;
use crate::timekeeper;

/// How long attempts under way may take when the process stops.
const DISPATCH_DRAIN: Duration = Duration::from_secs(26);
/// How often old events are looked for.
const PRUNE_PERIOD: Duration = Duration::from_secs(60);

/// Files and connections of a process that are not the edge's.
const OTHER_FILES: u64 = 1024;

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

    fn measured(&self, config: &Config) -> Configured {
        Configured {
            sources: config.sources.iter().map(|source| Arc::clone(&source.name)).collect(),
            destinations: self.destinations(config).into_iter().map(|destination| destination.name).collect(),
        }
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
    readiness: Readiness,
    clock: Clock,
    watch: Watch,
    export: Option<Export>,
    control: Control,
    /// How long the edge goes on when it is told to stop.
    stop_delay: Duration,
    drain: Duration,
    registry: Registry,
}

impl App {
    /// Opens the storage and the listeners. `file` is where [`Control`] reads the configuration again.
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
        let began = clock.now();
        let telemetry = config.telemetry.as_ref().map(|telemetry| Export::new(telemetry, &registry));
        let (tracer, export) = telemetry.unzip();
        let tracer = tracer.unwrap_or_default();
        let dispatcher = if role.has_dispatcher() {
            let dispatching = DispatcherConfig {
                parked_max: config.storage.parked_max,
                // Brokers come and go; whoever opens a file has it or has not.
                patient: !config.storage.is_embedded(),
                tracer: tracer.clone(),
                ..DispatcherConfig::default()
            };
            let destinations = role.destinations(&config);
            let opening =
                Dispatcher::start(dispatching, destinations, storage.clone(), &registry, clock.clone());
            let dispatcher = opening.await.context("opening the cursors of the destinations")?;
            reload::warn_of_left_before(&storage, &config).await;
            Some(dispatcher)
        } else {
            None
        };
        let edge = if role.has_edge() {
            let listen = config.ingest.listen;
            raise_open_files(config.ingest.limits.connections_max);
            let sources = config.sources.clone();
            let bound =
                Edge::bind(edge_config(&config, tracer), sources, storage.clone(), &registry, clock.clone());
            Some(bound.with_context(|| format!("listening on {listen} ([ingest] listen)"))?)
        } else {
            None
        };

        let folder = match &config.storage.kind {
            StorageKind::Embedded { path } => Some(path.clone()),
            StorageKind::Kafka { options, .. } => options.spool.clone().filter(|_| role.has_edge()),
        };
        let gauges = Gauges::new(&registry, role.measured(&config), config.storage.is_embedded(), folder);
        gauges.look_at_disk().await;
        gauges
            .retention
            .with_label_values(&["events"])
            .set(i64::try_from(config.storage.retention.as_secs()).unwrap_or(i64::MAX));
        let readiness = Readiness::default();
        let admin_config = config.admin.clone();
        let store = config.storage.identity().context("reading who has the store")?;
        let (stop_delay, drain) = (config.ingest.stop_delay, config.ingest.drain_timeout);
        let in_force = Arc::new(Mutex::new(config.clone()));
        let operations = Operations {
            storage: storage.clone(),
            dispatcher: dispatcher.clone(),
            clock: clock.clone(),
            reload: None,
            destinations: {
                let in_force = Arc::clone(&in_force);
                Arc::new(move || {
                    let config = in_force.lock().unwrap_or_else(PoisonError::into_inner);
                    config.destinations.iter().map(|destination| Arc::clone(&destination.name)).collect()
                })
            },
        };
        let (successful, succeeded_at) = (gauges.reload_successful.clone(), gauges.reload_timestamp.clone());
        let certificate_until = gauges.certificate_until.clone();
        let measured = Arc::clone(&gauges.configured);
        let instruments = Arc::new(Instruments::new(registry.clone(), gauges, operations.clone()));
        let (watch, alerts) =
            Watch::new(role.alerts(&config), Arc::clone(&instruments), &registry, clock.clone(), began);
        let control = Control(Arc::new(Running {
            file: file.to_owned(),
            edge: edge.as_ref().map(Edge::handle),
            dispatcher: dispatcher.clone(),
            storage: storage.clone(),
            clock: clock.clone(),
            role: role.clone(),
            in_force,
            turn: tokio::sync::Mutex::new(()),
            successful,
            succeeded_at,
            certificate_until,
            measured,
            alerts,
        }));
        control.0.report(true);
        let shared = Shared {
            instruments,
            operations: Operations { reload: Some(Arc::new(control.clone())), ..operations },
            token: admin_config.token,
            readiness: readiness.clone(),
            store: store.unwrap_or_default(),
        };
        let admin = bind_admin(admin_config.listen, shared, &role).await?;
        Ok(Self {
            edge,
            admin,
            dispatcher,
            storage,
            readiness,
            clock,
            watch,
            export,
            control,
            stop_delay,
            drain,
            registry,
        })
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

    /// Serves until `shutdown`, then drains: readiness off, after `stop_delay` no new connections, what is in flight finishes,
    /// everything settled is written, the store is closed.
    pub async fn run(self, shutdown: CancellationToken) {
        let (serving, admin_stop) = (shutdown.child_token(), CancellationToken::new());
        // Who connects from now on is served, so that whoever the admin address answers hears no other.
        self.readiness.begin(serving.clone());
        // Whoever delivers knows what is settled, and cleans up.
        let pruning = self.dispatcher.as_ref().map(|_| {
            let pruned_at = Metrics(&self.registry).gauge(
                "chaski_purge_last_success_timestamp_seconds",
                "When everything that was past its retention had last been deleted; 0 if not since the start.",
            );
            let (storage, control) = (self.storage.clone(), self.control.clone());
            tokio::spawn(prune(storage, control, self.clock, pruned_at, serving.clone()))
        });
        let admin = tokio::spawn(self.admin.run(admin_stop.clone()));
        let watch = tokio::spawn(self.watch.run(admin_stop.clone()));
        let timekeeper = tokio::spawn(timekeeper::watch(self.registry, admin_stop.clone()));
        let export = self.export.map(|export| tokio::spawn(export.run(admin_stop.clone())));
        let (stopping, closing) = (serving.clone(), CancellationToken::new());
        let (close, delay) = (closing.clone(), self.stop_delay);
        let closer = tokio::spawn(async move {
            stopping.cancelled().await;
            tokio::time::sleep(delay).await;
            close.cancel();
        });
        match self.edge {
            Some(edge) => edge.run(closing, self.drain).await,
            None => shutdown.cancelled().await,
        }
        closer.abort();
        // An edge that could not listen ends by itself.
        serving.cancel();
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
        let _ = timekeeper.await;
        if let Some(export) = export {
            let _ = export.await;
        }
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

/// Every connection is an open file, and many systems give a process 1024 unless it asks for more.
fn raise_open_files(connections_max: usize) {
    let wanted = connections_max as u64 + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    let possible = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let raised = limit.current.is_none_or(|current| current >= possible)
        || setrlimit(Resource::Nofile, Rlimit { current: Some(possible), ..limit }).is_ok();
    if !raised || possible < wanted {
        tracing::warn!(
            wanted,
            possible,
            "the system grants fewer open files than ingest.connections_max needs"
        );
    }
}

fn edge_config(config: &Config, tracer: Tracer) -> EdgeConfig {
    let ingest = &config.ingest;
    EdgeConfig {
        listen: ingest.listen,
        max_body: ingest.body_bytes_max,
        tls: ingest.tls.as_ref().map(Into::into),
        http2: ingest.http2,
        hosts: ingest.hosts.clone(),
        proxies: ingest.proxies.clone(),
        limits: ingest.limits,
        tracer,
    }
}

/// Deletes what is older than the retention and settled everywhere, in steps of the storage's own.
async fn prune(
    storage: Storage,
    control: Control,
    clock: Clock,
    pruned_at: IntGauge,
    shutdown: CancellationToken,
) {
    let mut period = tokio::time::interval(PRUNE_PERIOD);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = period.tick() => {}
        }
        let config = control.0.in_force();
        let (now, retention) = (clock.now(), config.storage.retention);
        let destinations: Vec<_> =
            config.destinations.iter().map(|destination| Arc::clone(&destination.name)).collect();
        while !shutdown.is_cancelled() {
            match storage.events.prune(now, retention, &destinations).await {
                Ok(Pruned { left: Left::More, .. }) => tokio::task::yield_now().await,
                Ok(Pruned { left: Left::HeldBack, .. }) => {
                    tracing::warn!(
                        "old events stay: they are behind too many that came while a clock was wrong"
                    );
                    break;
                }
                Ok(_) => {
                    pruned_at.set(clock.now().as_second());
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
