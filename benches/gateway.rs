//! The product under measurement: the release binary `chaski run`, with a configuration and a store of its own, and
//! a look into that store when it is done.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::callback::SECRET;
use crate::process::{LOOK, Process};
use crate::store::{Books, Store};

/// How long a start may take.
const START: Duration = Duration::from_secs(60);

/// A gateway that runs.
pub(crate) struct Gateway {
    pub(crate) process: Process,
    pub(crate) edge: SocketAddr,
    store: Store,
}

impl Gateway {
    /// Starts in `site`, a folder, on a store; delivers everything from the beginning to each receiver.
    pub(crate) async fn start(
        site: &Path,
        store: &Store,
        receivers: &[SocketAddr],
        concurrency: usize,
    ) -> anyhow::Result<Self> {
        Self::start_with(site, store, receivers, concurrency, "").await
    }

    /// The same with more lines of `[ingest]`.
    pub(crate) async fn start_with(
        site: &Path,
        store: &Store,
        receivers: &[SocketAddr],
        concurrency: usize,
        ingest: &str,
    ) -> anyhow::Result<Self> {
        store.prepare()?;
        let mut configuration = format!(
            "[ingest]\nlisten = \"127.0.0.1:0\"\n{ingest}\n[admin]\nlisten = \"127.0.0.1:0\"\n[storage]\n{}\
             [log]\nformat = \"json\"\nlevel = \"info\"\n\
             [sources.pagoefectivo]\nprovider = \"pagoefectivo\"\nsecrets = [\"env:PE_SECRET\"]\n",
            store.section()?
        );
        for (number, address) in receivers.iter().enumerate() {
            write!(
                configuration,
                "[destinations.receiver-{number}]\nurl = \"http://{address}/hooks\"\nsecret = \"env:PE_SECRET\"\n\
                 concurrency = {concurrency}\nstart = \"beginning\"\n"
            )?;
        }
        let (file, log) = (site.join("chaski.toml"), site.join("log"));
        fs::write(&file, configuration)?;
        let mut command = Command::new(binary()?);
        command.arg("run").arg("-c").arg(&file).env("PE_SECRET", SECRET).env_remove("RUST_LOG");
        let mut process = Process::start(command.stderr(File::create(&log)?))?;
        let deadline = Instant::now() + START;
        loop {
            let said = fs::read_to_string(&log)?;
            if let Some(edge) = said.lines().find_map(address) {
                return Ok(Self { process, edge, store: store.clone() });
            }
            if process.has_ended()? || Instant::now() > deadline {
                bail!("chaski did not start; it said: {said}");
            }
            sleep(LOOK).await;
        }
    }

    /// Ends it in order, and reads what it has stored.
    pub(crate) async fn stop(self) -> anyhow::Result<Books> {
        self.process.stop().await?;
        self.store.books()
    }
}

/// The edge's address, if this line of the log tells it.
fn address(line: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    if line["message"] == "chaski is running" { line["edge"].as_str()?.parse().ok() } else { None }
}

/// The `chaski` that was built together with this program.
fn binary() -> anyhow::Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("chaski");
    ensure!(
        beside.exists(),
        "{} is missing: cargo build --bin chaski, with the same profile",
        beside.display()
    );
    beside.canonicalize().context("finding chaski")
}
