//! One module per command, and the one place that turns their outcomes into exit codes.

mod alerts;
pub mod check;
pub mod config;
mod dead;
mod demo;
mod destinations;
mod doctor;
mod events;
mod parked;
mod reload;
mod replay;
mod run;
mod send;
mod topics;

use std::collections::BTreeSet;
use std::process::ExitCode;

use chaski_common::storage::PAGE_MAX;
use serde::Serialize;

use crate::access::Access;
use crate::api::{DestinationView, ListDestinations, Standing};
use crate::app::Role;
use crate::cli::{AlertsCommand, Cli, Command, ConfigCommand, Doctor};
use crate::config::{AccessConfig, Config, ConfigErrors};
use crate::{output, timekeeper};

/// The command line asks for what makes no sense.
const EXIT_USAGE: u8 = 2;
/// The configuration was refused.
const EXIT_CONFIG: u8 = 78;

/// What was asked for makes no sense; the message names the flag that mends it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Ends a command for what was asked of it.
fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}

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
    let is_look = matches!(cli.command, Command::Doctor(_));
    let outcome = runtime.block_on(run(cli));
    if is_look {
        // What it looked at may hang still, a name server for one; nobody waits for that.
        runtime.shutdown_background();
    }
    let unprinted = output::unprinted().map(cannot_print);
    match outcome {
        Ok(code) if code == ExitCode::SUCCESS => unprinted.unwrap_or(code),
        Ok(code) => code,
        Err(error) if error.is::<ConfigErrors>() => {
            output::say(error);
            ExitCode::from(EXIT_CONFIG)
        }
        Err(error) => {
            output::say(format_args!("chaski: {error:#}"));
            if error.is::<Usage>() { ExitCode::from(EXIT_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// Says what clap has to say instead of a command: that the command line is wrong, or the help or version it asks for.
#[must_use]
pub fn say_instead(said: &clap::Error) -> ExitCode {
    match said.print() {
        Err(error) if !said.use_stderr() && output::is_failure(&error) => cannot_print(&error),
        _ if said.use_stderr() => ExitCode::from(EXIT_USAGE),
        _ => ExitCode::SUCCESS,
    }
}

/// Data that nobody gets is a failure, whatever was done.
fn cannot_print(error: &std::io::Error) -> ExitCode {
    output::say(format_args!("chaski: cannot write to stdout: {error}"));
    ExitCode::FAILURE
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { config: file, json, command } = cli;
    let access = || AccessConfig::load(&file);
    match command {
        Command::Run => return run::run(&file, Role::Both).await,
        Command::Ingest => return run::run(&file, Role::Edge).await,
        Command::Dispatch { only } => return run::run(&file, Role::Dispatcher { only }).await,
        Command::Topics { command } => return topics::run(&access()?, &file, command, json).await,
        Command::Demo(demo) => return demo::run(demo, json).await,
        Command::Check => output::line(check::run(&load_to_check(&file, json)?, json).trim_end()),
        Command::Doctor(Doctor { canary: None, .. }) => return doctor::run(&file, json).await,
        Command::Doctor(Doctor { canary: Some(source), url, timeout, yes_production }) => {
            let (config, access) = (Config::load(&file)?, access()?);
            let canary = doctor::Canary { source, url, timeout, yes_production };
            return doctor::canary(&config, &access, canary, json).await;
        }
        Command::Send(send) => return send::run(&Config::load(&file)?, send, json).await,
        Command::Events { filter, command } => events::run(&access()?, filter, command, json).await?,
        Command::Parked { filter, command } => parked::run(&access()?, filter, command, json).await?,
        Command::Dead { filter, command } => dead::run(&access()?, filter, command, json).await?,
        Command::Replay { destination, from, to, yes } => {
            replay::run(&access()?, destination, from..to, yes, json).await?;
        }
        Command::Destinations { command } => destinations::run(&access()?, command, json).await?,
        Command::Alerts { command: AlertsCommand::Test { receiver } } => {
            return alerts::test(&Config::load(&file)?, receiver.as_deref(), json).await;
        }
        Command::Reload => return reload::run(&access()?, json).await,
        Command::Config { command: ConfigCommand::Reference } => config::reference(json)?,
        Command::Config { command: ConfigCommand::Schema } => output::line(config::schema().trim_end()),
        Command::KernelClock => timekeeper::kernel::ask()?.into_iter().for_each(output::line),
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses a name that no destination has: an empty list would look like good news.
async fn known_destination(access: &Access, name: Option<&str>) -> anyhow::Result<()> {
    let Some(name) = name else { return Ok(()) };
    let views = access.call(ListDestinations {}).await?;
    if views.iter().any(|view| &*view.progress.destination == name) {
        return Ok(());
    }
    let names: Vec<&str> = views.iter().map(|view| &*view.progress.destination).collect();
    anyhow::bail!("there is no destination named {name} (--destination); there are: {}", names.join(", "))
}

/// Says of which of these destinations nothing is attempted for now, and why.
async fn warn_of_resting<'n>(access: &Access, names: impl Iterator<Item = &'n str>) -> anyhow::Result<()> {
    let names: BTreeSet<&str> = names.collect();
    let views = access.call(ListDestinations {}).await?;
    for name in &names {
        let of_it = |view: &&DestinationView| &*view.progress.destination == *name;
        let why = match views.iter().find(of_it).map(DestinationView::standing) {
            None | Some(Standing::NotConfigured) => "not in the configuration",
            Some(Standing::Paused) => "paused",
            Some(Standing::NotRunning | Standing::Disabled | Standing::Breaker(_) | Standing::Up) => continue,
        };
        output::say(format_args!("{name} is {why}: nothing is attempted there while it is"));
    }
    if matches!(access, Access::Local(_)) && !names.is_empty() {
        output::say("nothing is running: it will be attempted when chaski is started");
    }
    Ok(())
}

/// How many entries are asked for where so many are shown: one more tells whether there are more.
const fn asked(limit: usize) -> usize {
    if limit < PAGE_MAX { limit + 1 } else { PAGE_MAX }
}

/// Prints the entries of a list that are to be shown, for which [`asked`] many were asked, and says whether there are more.
fn listed<T: Serialize>(
    mut entries: Vec<T>,
    limit: usize,
    json: bool,
    tell: impl FnOnce(&[T]),
) -> anyhow::Result<()> {
    let more = cut(&mut entries, limit);
    if json {
        output::json(&entries)?;
    } else {
        tell(&entries);
    }
    more.into_iter().for_each(output::say);
    Ok(())
}

/// Takes away what was asked for beyond what is shown; what is to be said of it.
fn cut<T>(entries: &mut Vec<T>, limit: usize) -> Option<String> {
    let found = entries.len();
    entries.truncate(limit);
    if found > limit {
        Some(format!("{limit} shown, there are more: --limit"))
    } else {
        let is_most = found == PAGE_MAX;
        is_most.then(|| {
            format!("{PAGE_MAX} shown, which is the most; there may be more: choose with the filters")
        })
    }
}

/// Loads a file whose problems are data, too.
fn load_to_check(file: &std::path::Path, json: bool) -> anyhow::Result<Config> {
    let loaded = Config::load(file);
    if let (Err(ConfigErrors(problems)), true) = (&loaded, json) {
        let problems: Vec<_> = problems
            .iter()
            .map(|problem| {
                serde_json::json!({
                    "file": problem.file, "line": problem.line, "key": problem.key,
                    "reason": problem.reason.label(), "message": problem.message, "hint": problem.hint,
                })
            })
            .collect();
        output::json(&serde_json::json!({ "problems": problems }))?;
    }
    Ok(loaded?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_says_that_there_is_more_of_it() {
        let said = |found: usize, limit| {
            let mut entries = vec![(); found.min(asked(limit))];
            let more = cut(&mut entries, limit);
            (entries.len(), more.map(|more| more.split(':').next().unwrap_or_default().to_owned()))
        };
        let all_of = |shown| (shown, None);
        assert_eq!([said(0, 50), said(49, 50), said(50, 50)], [all_of(0), all_of(49), all_of(50)]);
        assert_eq!(said(51, 50), (50, Some("50 shown, there are more".to_owned())));
        assert_eq!(said(1000, 999), (999, Some("999 shown, there are more".to_owned())));
        // Nobody can ask for one more than the most.
        assert_eq!(said(999, PAGE_MAX), all_of(999));
        let most = "1000 shown, which is the most; there may be more".to_owned();
        assert_eq!(said(2000, PAGE_MAX), (1000, Some(most)));
    }
}
