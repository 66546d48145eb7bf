//! Campaigns: attacks on a gateway that serves genuine callbacks meanwhile, one command each.
//!
//! What is promised is held to: a genuine callback that is not accepted, or anything in the store that is not one,
//! fails the run. Figures are not judged but printed beside their goals, because they are the machine's as well. Each
//! run is one line of JSON and names the seed that repeats it.

mod slow;
mod overload;
mod forged;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::gateway::{Extra, Gateway};
use crate::machine::{self, Machine};
use crate::say;
use crate::scenario::Size;
use crate::store::Store;

/// Which attack.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Campaign {
    /// Thousands of peers that are silent, drip, stay, or never read.
    Slow,
    /// Three times what the gateway bears, whether or not it answers.
    Overload,
    /// Twenty forgeries for each genuine callback.
    Forged,
}

/// How large, where, and from which seed.
pub(crate) struct Plan {
    size: Size,
    seed: u64,
    folder: PathBuf,
}

impl Plan {
    pub(crate) fn new(size: Size, seed: Option<u64>, folder: Option<PathBuf>) -> anyhow::Result<Self> {
        let beside = || std::env::current_exe().map(|program| program.with_file_name(""));
        Ok(Self { size, seed: seed.unwrap_or_else(machine::now_us), folder: folder.map_or_else(beside, Ok)? })
    }

    /// One of two, by size.
    fn pick<T>(&self, whole: T, tiny: T) -> T {
        if self.size == Size::Tiny { tiny } else { whole }
    }
}

impl Campaign {
    /// Runs it; what was seen, as one object.
    pub(crate) async fn run(self, plan: &Plan) -> anyhow::Result<Value> {
        say(format_args!("{self:?}, seed {}", plan.seed));
        machine::raise_open_files()?;
        let machine = Machine::look(&plan.folder).await?;
        let seen = match self {
            Self::Slow => slow::run(plan).await,
            Self::Overload => overload::run(plan).await,
            Self::Forged => forged::run(plan).await,
        };
        let seen = seen.with_context(|| format!("seed {}", plan.seed))?;
        Ok(json!({
            "campaign": format!("{self:?}").to_lowercase(),
            "size": plan.size,
            "seed": plan.seed,
            "unix_seconds": machine::now_us() / 1_000_000,
            "machine": machine,
            "seen": seen,
        }))
    }
}

/// Adds a line to a file.
pub(crate) fn append(file: &Path, line: &str) -> anyhow::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = std::fs::File::options().create(true).append(true).open(file)?;
    Ok(writeln!(file, "{line}")?)
}

/// A gateway on a store of its own, and the folder that goes with it.
struct Target {
    gateway: Gateway,
    site: TempDir,
}

impl Target {
    async fn start(plan: &Plan, ingest: &str) -> anyhow::Result<Self> {
        Self::start_with(plan, Extra { ingest, ..Extra::default() }).await
    }

    async fn start_with(plan: &Plan, extra: Extra<'_>) -> anyhow::Result<Self> {
        let site = tempfile::Builder::new().prefix("chaski-campaign-").tempdir_in(&plan.folder)?;
        let store = Store::new(site.path(), None);
        let gateway = Gateway::start_with(site.path(), &store, &[], extra).await?;
        Ok(Self { gateway, site })
    }
}

/// A goal and whether it was met.
fn goal(what: &str, met: bool) -> Value {
    json!({ "goal": what, "met": met })
}

/// A pseudo-random number; the same for the same seed.
fn random(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
