//! Reading the configuration again while the process runs: all of the new one is in force, or all of the old.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chaski_common::clock::Clock;
use chaski_common::storage::{EventFilter, Progress, Storage};
use chaski_dispatcher::Dispatcher;
use chaski_ingest::source::{DatedSecret, SourceSpec};
use chaski_ingest::{EdgeHandle, Tls, TlsConfig};
use tokio::time::timeout;

use super::Role;
use crate::alerts::Steering;
use crate::api::{Reload, Reloaded};
use crate::certificate;
use crate::config::{Config, IngestConfig};
use crate::gauges::Configured;

/// How long a look for what is left behind may keep a process from its beginning.
const LOOK_WITHIN: Duration = Duration::from_secs(2);

/// Changes a running process. Cloning gives another hand on the same one.
#[derive(Clone)]
pub struct Control(pub(super) Arc<Running>);

pub(super) struct Running {
    pub(super) file: PathBuf,
    pub(super) edge: Option<EdgeHandle>,
    pub(super) dispatcher: Option<Dispatcher>,
    pub(super) storage: Storage,
    pub(super) clock: Clock,
    pub(super) role: Role,
    /// What runs: after a reload the new sources and destinations, and the old rest.
    pub(super) in_force: Arc<Mutex<Config>>,
    /// Reloads go one after the other.
    pub(super) turn: tokio::sync::Mutex<()>,
    pub(super) successful: prometheus::IntGauge,
    pub(super) succeeded_at: prometheus::Gauge,
    pub(super) certificate_until: prometheus::IntGauge,
    pub(super) measured: Arc<Mutex<Configured>>,
    pub(super) alerts: Steering,
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
        for warning in &new.warnings {
            tracing::warn!(%warning, "configuration");
        }
        refuse_lost_secrets(&old, &new)?;
        self.refuse_orphans(&old, &new).await?;
        self.put_in_force(&old, &new, tls).await?;
        self.alerts.send_replace(Arc::new(self.role.alerts(&new)));
        let needs_restart = needs_restart(&old, &new);
        let reloaded = Reloaded {
            sources: new.sources.len(),
            destinations: new.destinations.len(),
            needs_restart,
            warnings: new.warnings.iter().map(ToString::to_string).collect(),
        };
        let ingest = reloadable(&new.ingest, old.ingest);
        let in_force = Config {
            ingest,
            admin: old.admin,
            storage: old.storage,
            log: old.log,
            telemetry: old.telemetry,
            ..new
        };
        *self.in_force.lock().unwrap_or_else(PoisonError::into_inner) = in_force;
        Ok(reloaded)
    }

    /// A source that goes is taken from the edge before the destinations forget it, one that comes is known to
    /// them before the edge takes its first event. Between the two callbacks at its path are told to come again.
    async fn put_in_force(&self, old: &Config, new: &Config, tls: Option<Tls>) -> Result<(), String> {
        let stays = |source: &&SourceSpec| new.sources.iter().any(|kept| kept.name == source.name);
        let staying: Vec<_> = old.sources.iter().filter(stays).cloned().collect();
        let is_served = |path: &Arc<str>| staying.iter().any(|source| source.path == *path);
        let paths = old.sources.iter().chain(&new.sources).map(|source| source.path.clone());
        let changing: Vec<_> = paths.filter(|path| !is_served(path)).collect();
        let take = |sources: &[SourceSpec], changing: &[Arc<str>]| match &self.edge {
            Some(edge) => edge.reload(sources, changing).map_err(|error| crate::chain(&error)),
            None => Ok(()),
        };
        take(&staying, &changing)?;
        if let Some(dispatcher) = &self.dispatcher
            && let Err(error) = dispatcher.reload(self.role.destinations(new)).await
        {
            // The old sources were in force a moment ago, so they are in order.
            let _ = take(&old.sources, &[]);
            return Err(crate::chain(&error));
        }
        take(&new.sources, &[])?;
        *self.measured.lock().unwrap_or_else(PoisonError::into_inner) = self.role.measured(new);
        if let Some(edge) = &self.edge {
            edge.set_max_body(reloadable(&new.ingest, old.ingest.clone()).body_bytes_max);
            tls.into_iter().for_each(|tls| edge.set_tls(tls));
        }
        Ok(())
    }

    pub(super) fn in_force(&self) -> Config {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A source whose events are still on their way cannot be taken out: nobody would be routed to them.
    async fn refuse_orphans(&self, old: &Config, new: &Config) -> Result<(), String> {
        let failed = |error| crate::chain(&error);
        let goes = |source: &&SourceSpec| !new.sources.iter().any(|kept| kept.name == source.name);
        let going: Vec<_> = old.sources.iter().filter(goes).collect();
        let is_ours = |progress: &&Progress| {
            old.destinations.iter().any(|destination| destination.name == progress.destination)
        };
        // Only a source that goes has to be asked for: whatever else changes does so while the brokers are away, too.
        if going.is_empty() {
            if let Ok(Ok(progress)) = timeout(LOOK_WITHIN, self.storage.events.progress()).await {
                warn_of_left(progress.iter().filter(is_ours), new);
            }
            return Ok(());
        }
        let progress = self.storage.events.progress().await.map_err(failed)?;
        for source in going {
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
        warn_of_left(progress.iter().filter(is_ours), new);
        Ok(())
    }

    pub(super) fn report(&self, successful: bool) {
        self.successful.set(i64::from(successful));
        if successful {
            self.succeeded_at.set(self.clock.now().as_duration().as_secs_f64());
            let shown = self.edge.as_ref().and_then(EdgeHandle::certificate);
            self.certificate_until.set(certificate::expiry_seconds(shown.as_ref()));
        }
    }
}

/// A secret that is in force does not go because something listed could not be fetched: its callbacks would be refused.
fn refuse_lost_secrets(old: &Config, new: &Config) -> Result<(), String> {
    let is_short =
        |source: &&SourceSpec| new.source_rules.get(&*source.name).is_some_and(|rules| rules.lacks_secret);
    for source in new.sources.iter().filter(is_short) {
        let Some(had) = old.sources.iter().find(|had| had.name == source.name) else { continue };
        let kept = source.secrets.named();
        let is_kept = |had: &DatedSecret| kept.iter().any(|(_, dated)| dated.secret == had.secret);
        if !had.secrets.named().iter().all(|(_, had)| is_kept(had)) {
            return Err(format!(
                "sources.{}.secrets: one that is in force would go, and one that is listed cannot be fetched; \
                 bring that back, or take it out of the list",
                source.name
            ));
        }
    }
    Ok(())
}

/// Says which destinations have not taken everything and are not in the file, so that nothing attempts it.
fn warn_of_left<'p>(progress: impl Iterator<Item = &'p Progress>, config: &Config) {
    for left in progress.filter(|left| left.lag + left.parked > 0) {
        if !config.destinations.iter().any(|destination| destination.name == left.destination) {
            tracing::warn!(
                destination = %left.destination, lag = left.lag, parked = left.parked,
                "a destination that is not in the file has not taken everything; what is parked stays in the store, \
                 the backlog until the retention ends"
            );
        }
    }
}

/// The same of all that the storage knows, when a process begins. Brokers that are away are not waited for.
pub(super) async fn warn_of_left_before(storage: &Storage, config: &Config) {
    if let Ok(Ok(progress)) = timeout(LOOK_WITHIN, storage.events.progress()).await {
        warn_of_left(progress.iter(), config);
    }
}

/// What of `[ingest]` is in force after a reload: the listener stays as it was opened, in clear text or not, and so do
/// the bounds, within which a body has to fit.
fn reloadable(new: &IngestConfig, old: IngestConfig) -> IngestConfig {
    let tls = old.tls.map(|old| new.tls.clone().unwrap_or(old));
    let body_bytes_max = new.body_bytes_max.min(old.limits.inflight_bytes_max);
    IngestConfig { body_bytes_max, tls, ..old }
}

/// The settings a running process cannot change.
fn needs_restart(old: &Config, new: &Config) -> Vec<String> {
    [
        ("[ingest]", reloadable(&new.ingest, old.ingest.clone()) != new.ingest),
        ("[admin]", old.admin != new.admin),
        ("[storage]", old.storage != new.storage),
        ("[log]", old.log != new.log),
        ("[telemetry]", old.telemetry != new.telemetry),
    ]
    .into_iter()
    .filter(|(_, differs)| *differs)
    .map(|(section, _)| section.to_owned())
    .collect()
}
