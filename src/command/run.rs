//! `chaski run`, `ingest` and `dispatch`: edge and dispatcher in one process, or one of them, until a signal ends
//! it.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use chaski_common::storage::StorageError;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::api::Reload as _;
use crate::app::{App, Role};
use crate::config::Config;
use crate::{logging, output};

pub(super) async fn run(file: &Path, role: Role) -> anyhow::Result<ExitCode> {
    let config = Config::load(file)?;
    if let Some(code) = refused(&config, file, &role) {
        return Ok(code);
    }
    logging::start(&config.log);
    for warning in &config.warnings {
        tracing::warn!(%warning, "configuration");
    }
    let mut signals = Signals::new()?;
    let (sources, destinations) = (config.sources.len(), config.destinations.len());
    let app = match App::open(config, file, role).await {
        Err(error) if is_locked(&error) => {
            output::say(format_args!(
                "{}: storage.path: {}; stop that process, or name another folder",
                file.display(),
                error.root_cause()
            ));
            return Ok(ExitCode::from(super::EXIT_CONFIG));
        }
        opened => opened?,
    };
    tracing::info!(
        edge = app.edge_addr().map(tracing::field::display),
        admin = %app.admin_addr()?,
        sources,
        destinations,
        version = env!("CARGO_PKG_VERSION"),
        "chaski is running"
    );
    let control = app.control();
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let watcher = tokio::spawn(async move {
        while signals.next().await == Told::Reload {
            // The outcome is in the log and in a metric.
            let _ = control.reload().await;
        }
        tracing::info!("stopping: what is in flight is finished first");
        stop.cancel();
    });
    app.run(shutdown).await;
    watcher.abort();
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Whether another process has the folder: trying again does not mend it.
fn is_locked(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(StorageError::Locked { .. }))
}

/// One half of chaski needs a storage that the other half can share, and destinations that exist.
fn refused(config: &Config, file: &Path, role: &Role) -> Option<ExitCode> {
    if *role != Role::Both && config.storage.is_embedded() {
        output::say(format_args!(
            "{}: storage.kind: \"embedded\" is one file that one process owns, so edge and dispatcher cannot run apart; \
             use `chaski run`, or kind = \"kafka\"",
            file.display()
        ));
        return Some(ExitCode::from(super::EXIT_CONFIG));
    }
    let Role::Dispatcher { only } = role else { return None };
    let names: Vec<&str> = config.destinations.iter().map(|destination| &*destination.name).collect();
    let unknown = only.iter().find(|name| !names.contains(&name.as_str()))?;
    output::say(format_args!(
        "chaski: there is no destination named {unknown} (--only); there are: {}",
        names.join(", ")
    ));
    Some(ExitCode::from(super::EXIT_USAGE))
}

#[derive(PartialEq, Eq)]
enum Told {
    Reload,
    Stop,
}

struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.hangup.recv() => Told::Reload,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.terminate.recv() => Told::Stop,
        }
    }
}
