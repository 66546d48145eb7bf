//! The product under measurement: the release binary `chaski run`, with a configuration and a store of its
//! own, and a look into that store when it is done.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use chaski_common::storage::{EventFilter, PAGE_MAX, embedded};
use prometheus::Registry;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::callback::SECRET;
use crate::process::{LOOK, Process};
use crate::tally::Tally;

/// The only destination there is, in the scenarios that have one.
pub(crate) const DESTINATION: &str = "receiver";
/// How long a start may take.
const START: Duration = Duration::from_secs(20);

/// A gateway that runs.
pub(crate) struct Gateway {
    pub(crate) process: Process,
    pub(crate) edge: SocketAddr,
    site: PathBuf,
}

impl Gateway {
    /// Starts on the store in `site`, a folder; delivers to `receiver`, everything from the beginning, if
    /// there is one.
    pub(crate) async fn start(
        site: &Path,
        receiver: Option<SocketAddr>,
        concurrency: usize,
    ) -> anyhow::Result<Self> {
        let mut configuration = "[ingest]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [storage]\nkind = \"embedded\"\npath = \"store\"\n[log]\nformat = \"json\"\nlevel = \"info\"\n\
             [sources.pagoefectivo]\nprovider = \"pagoefectivo\"\nsecrets = [\"env:PE_SECRET\"]\n"
            .to_owned();
        if let Some(address) = receiver {
            configuration.push_str(&format!(
                "[destinations.{DESTINATION}]\nurl = \"http://{address}/hooks\"\nsecret = \"env:PE_SECRET\"\n\
                 concurrency = {concurrency}\nstart = \"beginning\"\n"
            ));
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
                return Ok(Self { process, edge, site: site.to_owned() });
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
        Books::read(&self.site.join("store")).await
    }
}

/// What a store holds.
#[derive(Debug)]
pub(crate) struct Books {
    pub(crate) stored: Tally,
    /// Events the destination has not settled, and those that ended dead or wait there.
    pub(crate) unsettled: u64,
    pub(crate) failed: u64,
}

impl Books {
    async fn read(store: &Path) -> anyhow::Result<Self> {
        let storage = embedded::open(&embedded::Options { path: store.to_owned() }, &Registry::new())?;
        let mut stored = Tally::default();
        let mut before = None;
        loop {
            let filter = EventFilter { before, limit: PAGE_MAX, ..EventFilter::default() };
            let page = storage.events.find(filter).await?;
            let Some(last) = page.last() else { break };
            before = Some(last.position);
            for record in &page {
                stored.add(&record.event.body);
            }
        }
        let progress = storage.events.progress().await?;
        let quarantined: u64 = storage.deliveries.quarantined().await?.iter().map(|of| of.events).sum();
        let books = Self {
            stored,
            unsettled: progress.iter().map(|progress| progress.lag).sum(),
            failed: quarantined
                + progress.iter().map(|progress| progress.parked + progress.dead).sum::<u64>(),
        };
        storage.events.close().await;
        Ok(books)
    }

    /// Everything was stored, each once, and nothing went wrong on its way.
    pub(crate) fn must_be(&self, stored: Tally) -> anyhow::Result<()> {
        ensure!(self.stored == stored, "the store holds {:?} instead of {stored:?}", self.stored);
        ensure!(self.unsettled == 0 && self.failed == 0, "not everything was delivered: {self:?}");
        Ok(())
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
