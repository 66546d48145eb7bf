//! The product under measurement: the release binary `chaski run`, with a configuration and a store of its own, and
//! a look into that store when it is done.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::callback::SECRET;
use crate::process::{LOOK, Process};
use crate::store::{Books, Store};
use crate::wire::Connection;

const SLOW_SYNC: &str = include_str!("slowsync.c");
/// How long a start may take.
const START: Duration = Duration::from_secs(180);
/// Deliveries under way at once to each destination, as to the bare client's; chaski's default.
pub(crate) const CONCURRENCY: usize = 32;

/// One destination of a gateway.
#[derive(Clone)]
pub(crate) struct Destination {
    to: SocketAddr,
    /// Lines of its section.
    settings: &'static str,
}

impl Destination {
    /// With chaski's defaults.
    pub(crate) const fn to(to: SocketAddr) -> Self {
        Self { to, settings: "" }
    }

    /// With these lines in its section.
    pub(crate) const fn with(to: SocketAddr, settings: &'static str) -> Self {
        Self { to, settings }
    }
}

/// What only some runs have.
#[derive(Clone, Copy, Default)]
pub(crate) struct Extra<'a> {
    /// More lines of `[ingest]`.
    pub(crate) ingest: &'a str,
    /// A library in front of the system's.
    pub(crate) preload: Option<&'a Path>,
    /// What is logged, instead of what the configuration says.
    pub(crate) log: Option<&'a str>,
}

/// A gateway that runs.
pub(crate) struct Gateway {
    pub(crate) process: Process,
    pub(crate) edge: SocketAddr,
    /// From its start until it said that it runs.
    pub(crate) started_in: Duration,
    admin: SocketAddr,
    store: Store,
}

impl Gateway {
    /// Starts in `site`, a folder, on a store; delivers everything from the beginning to each destination.
    pub(crate) async fn start(
        site: &Path,
        store: &Store,
        destinations: &[Destination],
    ) -> anyhow::Result<Self> {
        Self::start_with(site, store, destinations, Extra::default()).await
    }

    /// With what else there is to it.
    pub(crate) async fn start_with(
        site: &Path,
        store: &Store,
        destinations: &[Destination],
        extra: Extra<'_>,
    ) -> anyhow::Result<Self> {
        store.prepare()?;
        let mut configuration = format!(
            "[ingest]\nlisten = \"127.0.0.1:0\"\n{}\n[admin]\nlisten = \"127.0.0.1:0\"\n[storage]\n{}\
             [log]\nformat = \"json\"\nlevel = \"info\"\n\
             [sources.pagoefectivo]\nprovider = \"pagoefectivo\"\nsecrets = [\"env:PE_SECRET\"]\n",
            extra.ingest,
            store.section()?
        );
        for (number, Destination { to, settings }) in destinations.iter().enumerate() {
            write!(
                configuration,
                "[destinations.receiver-{number}]\nurl = \"http://{to}/hooks\"\nsecret = \"env:PE_SECRET\"\n\
                 concurrency = {CONCURRENCY}\nstart = \"beginning\"\n{settings}"
            )?;
        }
        let (file, log) = (site.join("chaski.toml"), log_in(site));
        fs::write(&file, configuration)?;
        let mut command = Command::new(binary()?);
        command.arg("run").arg("-c").arg(&file).env("PE_SECRET", SECRET).env_remove("RUST_LOG");
        if let Some(library) = extra.preload {
            command.env("LD_PRELOAD", library);
        }
        if let Some(filter) = extra.log {
            command.env("RUST_LOG", filter);
        }
        let begun = Instant::now();
        let mut process = Process::start(command.stderr(File::create(&log)?))?;
        let deadline = begun + START;
        loop {
            let said = fs::read_to_string(&log)?;
            if let Some((edge, admin)) = said.lines().find_map(addresses) {
                return Ok(Self { process, edge, started_in: begun.elapsed(), admin, store: store.clone() });
            }
            if process.has_ended()? || Instant::now() > deadline {
                bail!("chaski did not start; it said: {said}");
            }
            sleep(LOOK).await;
        }
    }

    /// A figure of its own: the sum over the series of this name with all these labels.
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> anyhow::Result<f64> {
        let mut connection = Connection::open(self.admin).await?;
        let answer = connection.exchange(b"GET /metrics HTTP/1.1\r\nhost: chaski\r\n\r\n").await?;
        let mut sum = 0.0;
        for line in std::str::from_utf8(answer.body)?.lines() {
            let Some(series) = line.strip_prefix(name) else { continue };
            if series.starts_with(['{', ' ']) && labels.iter().all(|label| series.contains(label)) {
                sum += series.rsplit_once(' ').context("a series has a value")?.1.parse::<f64>()?;
            }
        }
        Ok(sum)
    }

    /// Ends it in order, and reads what it has stored.
    pub(crate) async fn stop(self) -> anyhow::Result<Books> {
        self.process.stop().await?;
        self.store.books()
    }

    /// Ends it in order; nothing is read.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        self.process.stop().await
    }
}

/// What a gateway in this folder has said, line by line, in JSON.
pub(crate) fn log_in(site: &Path) -> PathBuf {
    site.join("log")
}

/// Builds a library that makes each sync take so much longer, less than a second.
pub(crate) fn slow_sync(site: &Path, more: Duration) -> anyhow::Result<PathBuf> {
    let (source, library) = (site.join("slowsync.c"), site.join("slowsync.so"));
    fs::write(&source, SLOW_SYNC)?;
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1"]).arg(format!("-DMORE_NS={}", more.subsec_nanos()));
    command.arg("-o").args([&library, &source]).arg("-ldl");
    let built =
        command.stdin(Stdio::null()).status().context("a C compiler is missing: apt-get install gcc")?;
    ensure!(built.success(), "slowsync.c does not compile");
    Ok(library)
}

/// Where the edge and the admin API are, if this line of the log tells it.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let address = |name: &str| line[name].as_str()?.parse().ok();
    if line["message"] == "chaski is running" { Some((address("edge")?, address("admin")?)) } else { None }
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
