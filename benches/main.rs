//! `chaski-bench`: what chaski costs, as ratios to a bare baseline that is measured in the same minutes.
//!
//! Every side under measurement is a process of its own, so that its CPU time is its own: the release binary
//! `chaski run`, a bare hyper server, a bare hyper client. This process makes the load and keeps the books. A
//! case takes turns with its baseline, because the same machine is a different
//! one a minute later. Whatever a run claims to have done is looked for afterwards, in the store and
//! at the receiver, byte by byte; a run whose work is not found there fails and has no figures.
//!
//! Nothing here judges a time: goals are printed beside the figures.

mod callback;
mod tally;
mod wire;
mod load;
mod crowd;
mod null;
mod bare;
mod process;
mod topic;
mod store;
mod gateway;
mod machine;
mod scenario;
mod report;
mod campaign;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::campaign::{Campaign, Plan};
use crate::report::Report;
use crate::scenario::{Bench, Scenario, Size};
use crate::store::On;

/// Measures chaski beside its baseline and prints a table.
#[derive(Parser)]
#[command(name = "chaski-bench", version)]
struct Cli {
    /// How much to do: figures come from `full`, a look from `quick`; `tiny` only shows that everything works.
    #[arg(long, value_enum, default_value_t = Size::Full)]
    size: Size,
    /// The same as `--size quick`.
    #[arg(long, conflicts_with = "size")]
    quick: bool,
    /// Only these scenarios; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Scenario>,
    /// Only on this storage; both when left out.
    #[arg(long, value_enum)]
    on: Option<On>,
    /// How often each case is measured, instead of what the size says.
    #[arg(long)]
    rounds: Option<u32>,
    /// Where the stores are made: the disk whose syncs count. By default beside this program.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Also write all figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(subcommand)]
    part: Option<Part>,
}

/// Campaigns, the pages, and the processes of a run, which `chaski-bench` starts itself.
#[derive(Subcommand)]
enum Part {
    /// Writes the page, the plots and the capacity plan again, without measuring.
    Page {
        /// The figures.
        #[arg(long, default_value = "benches/results.json")]
        results: PathBuf,
        /// Where the pages go.
        #[arg(long, default_value = "benches")]
        to: PathBuf,
        /// The README that has a place for a table and a plot.
        #[arg(long, default_value = "README.md")]
        readme: PathBuf,
    },
    /// A server that reads the body and answers 200.
    #[command(hide = true)]
    NullServer {
        /// What it does with a body.
        #[arg(value_enum)]
        manner: null::Manner,
    },
    /// A client that posts callbacks.
    #[command(hide = true)]
    BareClient {
        /// To whom.
        #[arg(long)]
        to: SocketAddr,
        /// How many.
        #[arg(long)]
        events: usize,
        /// How often each.
        #[arg(long)]
        destinations: usize,
    },
    /// Attacks a gateway while it serves, and adds a line with what was seen to a file.
    Campaign {
        /// Which attack.
        #[arg(value_enum)]
        name: Campaign,
        /// Repeats a run.
        #[arg(long)]
        seed: Option<u64>,
        /// The file of the results, JSON lines.
        #[arg(long)]
        out: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("chaski-bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    match cli.part {
        Some(Part::Page { results, to, readme }) => Report::read(&results)?.publish(&to, &readme),
        // As chaski does it: one worker per core.
        Some(Part::NullServer { manner }) => tokio::runtime::Runtime::new()?.block_on(null::serve(manner)),
        Some(Part::BareClient { to, events, destinations }) => {
            tokio::runtime::Runtime::new()?.block_on(bare::serve(to, events, destinations))
        }
        Some(Part::Campaign { name, seed, out }) => {
            let plan = Plan::new(if cli.quick { Size::Quick } else { cli.size }, seed, cli.dir)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let line = runtime.block_on(name.run(&plan))?.to_string();
            print(&line);
            out.map_or(Ok(()), |file| campaign::append(&file, &line))
        }
        // The load comes from one thread, so that it takes as little as possible from what is measured.
        None => tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(cli)),
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    // Stores of several sizes are open at once, with as many connections each.
    machine::raise_open_files()?;
    let size = if cli.quick { Size::Quick } else { cli.size };
    let bench = Bench::new(size, cli.rounds, cli.dir)?;
    let mut report = Report::new(size, bench.folder()).await?;
    let save = |report: &mut Report| {
        report.finish()?;
        cli.json.as_deref().map_or(Ok(()), |file| report.write(file))
    };
    bench.run(&cli.only, cli.on, &mut report, &save).await?;
    print(&report.markdown());
    Ok(())
}

/// Prints data.
fn print(text: &str) {
    // A reader that has gone away has had enough.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Says how far it is.
fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
