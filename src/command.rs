//! One module per command, and the one place that turns their outcomes into exit codes.

pub mod check;
pub mod config;
mod dead;
mod demo;
mod destinations;
mod events;
mod parked;
mod reload;
mod replay;
mod run;
mod send;

use std::process::ExitCode;

use crate::cli::{Cli, Command, ConfigCommand};
use crate::config::{AccessConfig, Config, ConfigErrors};
use crate::output;

/// The configuration was refused.
const EXIT_CONFIG: u8 = 78;

/// Runs a command to its end.
#[must_use]
pub fn main(cli: Cli) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::say(format_args!("chaski: the runtime does not start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(code) => code,
        Err(error) if error.is::<ConfigErrors>() => {
            output::say(error);
            ExitCode::from(EXIT_CONFIG)
        }
        Err(error) => {
            output::say(format_args!("chaski: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { config: file, json, command } = cli;
    let access = || AccessConfig::load(&file);
    match command {
        Command::Run => run::run(&file).await?,
        Command::Ingest | Command::Dispatch { .. } => return run::refuse_half(&file),
        Command::Demo => return demo::run(json).await,
        Command::Check => output::line(check::run(&Config::load(&file)?, json).trim_end()),
        Command::Send(send) => return send::run(&Config::load(&file)?, send, json).await,
        Command::Events { filter, command } => events::run(&access()?, filter, command, json).await?,
        Command::Parked { filter, command } => parked::run(&access()?, filter, command, json).await?,
        Command::Dead { filter, command } => dead::run(&access()?, filter, command, json).await?,
        Command::Replay { destination, from, to, yes } => {
            replay::run(&access()?, destination, from..to, yes, json).await?;
        }
        Command::Destinations { command } => destinations::run(&access()?, command, json).await?,
        Command::Reload => reload::run(&access()?, json).await?,
        Command::Config { command: ConfigCommand::Reference } => output::line(config::reference().trim_end()),
        Command::Config { command: ConfigCommand::Schema } => output::line(config::schema().trim_end()),
    }
    Ok(ExitCode::SUCCESS)
}
