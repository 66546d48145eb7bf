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
use crate::config::{self, Config, Reason};
use crate::logging;

pub(super) async fn run(file: &Path, role: Role) -> anyhow::Result<ExitCode> {
    let config = Config::load(file)?;
    check_role(&config, file, &role)?;
    logging::start(&config.log);
    for warning in &config.warnings {
        tracing::warn!(%warning, "configuration");
    }
    let mut signals = Signals::new()?;
    let (sources, destinations) = (config.sources.len(), config.destinations.len());
    let app = match App::open(config, file, role).await {
        Err(error) if is_locked(&error) => {
            let wrong = error.root_cause().to_string();
            let hint = "stop that process, or name another folder";
            return Err(config::refused(file, "storage.path", Reason::Duplicate, &wrong, hint).into());
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
        let reloads = async {
            while signals.hangup.recv().await.is_some() {
                // The outcome is in the log and in a metric.
                let _ = control.reload().await;
            }
        };
        tokio::select! {
            _ = signals.interrupt.recv() => {}
            // A reload may take its time, which whoever stops us does not have; one under way goes on by itself.
            _ = signals.terminate.recv() => {}
            () = reloads => {}
        }
        tracing::info!("stopping: what is in flight is finished first");
        stop.cancel();
    });
    app.run(shutdown.clone()).await;
    watcher.abort();
    anyhow::ensure!(
        shutdown.is_cancelled(),
        "the edge takes no connections any more, though nobody stopped it"
    );
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Whether another process has the folder: trying again does not mend it.
fn is_locked(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(StorageError::Locked { .. }))
}

/// One half of chaski needs a storage that the other half can share, and destinations that exist.
fn check_role(config: &Config, file: &Path, role: &Role) -> anyhow::Result<()> {
    if *role != Role::Both && config.storage.is_embedded() {
        let wrong = "\"embedded\" is one file that one process owns, so edge and dispatcher cannot run apart";
        let hint = "use `chaski run`, or kind = \"kafka\"";
        return Err(config::refused(file, "storage.kind", Reason::Unsupported, wrong, hint).into());
    }
    let Role::Dispatcher { only } = role else { return Ok(()) };
    let names: Vec<&str> = config.destinations.iter().map(|destination| &*destination.name).collect();
    match only.iter().find(|name| !names.contains(&name.as_str())) {
        Some(unknown) => Err(super::usage(format!(
            "there is no destination named {unknown} (--only); there are: {}",
            names.join(", ")
        ))),
        None => Ok(()),
    }
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
}
