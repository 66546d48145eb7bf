//! The command line: what can be said, not what it does.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use chaski_common::clock::Clock;
use chaski_common::event::EventId;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use jiff::Timestamp;

/// A webhook gateway for payments: it answers 200 only when the event is durable, and then delivers it until
/// each destination has taken it or a person has been told.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
pub struct Cli {
    /// The configuration
    #[arg(short, long, global = true, value_name = "FILE", default_value = "chaski.toml")]
    pub config: PathBuf,
    /// Print data as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the words of a command line, the first of which is the program's name.
    ///
    /// # Errors
    /// What is wrong with them, or the help or version that they ask for.
    pub fn read<T: Into<OsString> + Clone>(words: impl IntoIterator<Item = T>) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let mut matches = command.try_get_matches_from_mut(words)?;
        filters_stand_behind(&mut command, &matches)?;
        Self::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
    }
}

/// Refuses a filter in front of a subcommand, which would not look at it. `--json` and `-c` may stand anywhere; clap's
/// own `args_conflicts_with_subcommands` would refuse them, too.
fn filters_stand_behind(command: &mut clap::Command, matches: &ArgMatches) -> Result<(), clap::Error> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(()) };
    let Some((inner, _)) = matches.subcommand() else { return Ok(()) };
    let Some(command) = command.find_subcommand_mut(name) else { return Ok(()) };
    let is_given = |argument: &&clap::Arg| {
        matches.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine)
    };
    let filter = command.get_arguments().filter(|argument| !argument.is_global_set()).find(is_given);
    let Some(filter) = filter.and_then(clap::Arg::get_long) else { return Ok(()) };
    let message =
        format!("--{filter} stands in front of `{inner}`: put it behind, as in `{name} {inner} --{filter}`");
    Err(command.error(ErrorKind::ArgumentConflict, message))
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take callbacks and deliver them, in one process
    Run,
    /// Take callbacks only; needs a storage that processes can share, which is Kafka
    Ingest,
    /// Deliver only; needs a storage that processes can share, which is Kafka
    Dispatch {
        /// Deliver to these destinations only
        #[arg(long, value_delimiter = ',', value_name = "NAMES")]
        only: Vec<String>,
    },
    /// Show it at work: needs no file and no server
    Demo(Demo),
    /// Load the configuration and explain it; secrets are never shown
    Check,
    /// Tell whether the installation is sound; changes nothing
    Doctor(Doctor),
    /// Sign as a source's provider would, post, and print the answers
    Send(Send),
    /// What came in, and what became of it
    Events {
        /// Which.
        #[command(flatten)]
        filter: EventsFilter,
        /// One event.
        #[command(subcommand)]
        command: Option<EventsCommand>,
    },
    /// Deliveries that wait for their next attempt
    Parked {
        /// Which.
        #[command(flatten)]
        filter: ParkedList,
        /// What to do with them.
        #[command(subcommand)]
        command: Option<ParkedCommand>,
    },
    /// Dead letters: deliveries that ended without success, and signed events that cannot be used
    Dead {
        /// Which.
        #[command(flatten)]
        filter: DeadList,
        /// What to do with them.
        #[command(subcommand)]
        command: Option<DeadCommand>,
    },
    /// Deliver a span of history again to one destination
    Replay {
        /// Where to
        #[arg(long, value_name = "NAME")]
        destination: String,
        /// Events received at this time or later: RFC 3339, or a time span back from now such as 2h
        #[arg(long, value_parser = moment)]
        from: Timestamp,
        /// Events received before this time
        #[arg(long, value_parser = moment)]
        to: Timestamp,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// State, backlog, breaker and oldest unsettled event of each destination
    Destinations {
        /// What to do with them.
        #[command(subcommand)]
        command: Option<DestinationsCommand>,
    },
    /// The topics that the Kafka storage needs
    Topics {
        /// What to do; plan when left out.
        #[command(subcommand)]
        command: Option<TopicsCommand>,
    },
    /// Who is told when something is wrong
    Alerts {
        /// What to do.
        #[command(subcommand)]
        command: AlertsCommand,
    },
    /// Make the running process read its configuration again; of several, each has to be asked, or sent SIGHUP
    Reload,
    /// Print the annotated configuration, or its JSON Schema
    Config {
        /// Which of the two.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// What the kernel says of its clock: asked by chaski itself, in a process that may be killed for it
    #[command(hide = true)]
    KernelClock,
}

/// `chaski demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// On this Kafka instead of an embedded store; its topics are the demo's own and deleted at the end
    #[arg(long, value_delimiter = ',', value_name = "BROKERS")]
    pub kafka: Vec<String>,
    /// With the ids of events in this Redis
    #[arg(long, value_name = "URL", requires = "kafka")]
    pub redis: Option<String>,
}

/// `chaski doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Instead of looking: post an event of this source and follow it to every destination it is routed to
    #[arg(long, value_name = "SOURCE")]
    pub canary: Option<String>,
    /// Where to post it, instead of the configured edge and path
    #[arg(long, requires = "canary")]
    pub url: Option<String>,
    /// How long to follow it
    #[arg(long, requires = "canary", default_value = "30s", value_parser = time_span)]
    pub timeout: Duration,
    /// Post it though the source's environment is production: the receivers will take it for a payment
    #[arg(long, requires = "canary")]
    pub yes_production: bool,
}

/// `chaski send`.
#[derive(Debug, Args)]
pub struct Send {
    /// The source whose secret signs
    pub source: String,
    /// Where to post, instead of the configured edge and path
    #[arg(long)]
    pub url: Option<String>,
    /// What to post instead of a made-up event; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    pub body: Option<PathBuf>,
    /// How many; each made-up event has an id of its own, a given body is sent as it is each time. Of more than 20,
    /// with --json more than 10000, answers are counted by status instead of listed
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub count: u64,
    /// How many a second, at most; without it, one after the other
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,
    /// Sign as if it were then: RFC 3339, or a time span back from now such as 10m
    #[arg(long, value_parser = moment)]
    pub at: Option<Timestamp>,
    /// Sign with a key that is not the source's; success is then to be refused
    #[arg(long)]
    pub forge: bool,
}

/// `chaski events`.
#[derive(Debug, Args)]
pub struct EventsFilter {
    /// Of this source
    #[arg(long)]
    pub source: Option<String>,
    /// Of this type
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,
    /// About this subject
    #[arg(long)]
    pub subject: Option<String>,
    /// Received at this time or later: RFC 3339, or a time span back from now such as 24h
    #[arg(long, value_parser = moment)]
    pub since: Option<Timestamp>,
    /// Received before this time: with more than a thousand, how to go further back
    #[arg(long, value_parser = moment)]
    pub until: Option<Timestamp>,
    /// At most so many, newest first
    #[arg(long, default_value_t = 50, value_parser = limit)]
    pub limit: usize,
}

/// `chaski events …`.
#[derive(Debug, Subcommand)]
pub enum EventsCommand {
    /// One event, whole, and what became of it at each destination
    Show {
        /// Its id
        id: EventId,
    },
}

/// `chaski parked list`.
#[derive(Debug, Args)]
pub struct ParkedList {
    /// For this destination
    #[arg(long)]
    pub destination: Option<String>,
    /// At most so many, the next due first
    #[arg(long, default_value_t = 50, value_parser = limit)]
    pub limit: usize,
}

/// `chaski parked …`.
#[derive(Debug, Subcommand)]
pub enum ParkedCommand {
    /// List them
    List(ParkedList),
    /// Try an event's parked deliveries now
    Now {
        /// The event's id
        id: EventId,
        /// At this destination only
        #[arg(long)]
        destination: Option<String>,
    },
    /// End an event's parked deliveries: they become dead letters
    Drop {
        /// The event's id
        id: EventId,
        /// At this destination only
        #[arg(long)]
        destination: Option<String>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// What dead letters are chosen by; all conditions must hold.
#[derive(Clone, Debug, Args)]
pub struct DeadConditions {
    /// For this destination
    #[arg(long, conflicts_with = "quarantined")]
    pub destination: Option<String>,
    /// Signed events that could not be used
    #[arg(long)]
    pub quarantined: bool,
    /// With this reason
    #[arg(long)]
    pub reason: Option<String>,
    /// Dead at this time or later: RFC 3339, or a time span back from now such as 7d
    #[arg(long, value_parser = moment)]
    pub since: Option<Timestamp>,
    /// Dead before this time
    #[arg(long, value_parser = moment)]
    pub until: Option<Timestamp>,
}

/// Which dead letters to change.
#[derive(Clone, Debug, Args)]
pub struct DeadSelection {
    /// The event's id
    pub id: Option<EventId>,
    /// Or by what they are.
    #[command(flatten)]
    pub conditions: DeadConditions,
}

/// `chaski dead list`.
#[derive(Debug, Args)]
pub struct DeadList {
    /// By what they are.
    #[command(flatten)]
    pub conditions: DeadConditions,
    /// At most so many, oldest first
    #[arg(long, default_value_t = 50, value_parser = limit)]
    pub limit: usize,
}

/// `chaski dead …`.
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// List them
    List(DeadList),
    /// The letters of one event, whole
    Show {
        /// The event's id
        id: EventId,
    },
    /// Send them on their way again: all that match
    Redrive {
        /// Which.
        #[command(flatten)]
        selection: DeadSelection,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Delete them for good: all that match
    Drop {
        /// Which.
        #[command(flatten)]
        selection: DeadSelection,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// `chaski destinations …`.
#[derive(Debug, Subcommand)]
pub enum DestinationsCommand {
    /// List them
    List,
    /// Stop delivering to one; its backlog stays in the log
    Pause {
        /// Its name
        destination: String,
    },
    /// Deliver to it again
    Resume {
        /// Its name
        destination: String,
    },
}

/// `chaski topics …`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum TopicsCommand {
    /// Say what is missing or wrong; changes nothing
    Plan,
    /// Make what is missing
    Apply,
}

/// `chaski alerts …`.
#[derive(Debug, Subcommand)]
pub enum AlertsCommand {
    /// Send each receiver a test message and say what came back
    Test {
        /// This one only
        receiver: Option<String>,
    },
}

/// `chaski config …`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Every setting with its default, annotated
    Reference,
    /// The JSON Schema of the file
    Schema,
}

/// A point in time: RFC 3339, or how long ago.
fn moment(text: &str) -> Result<Timestamp, String> {
    if let Some(ago) = crate::config::parse_duration(text) {
        let ago = jiff::SignedDuration::try_from(ago).map_err(|_| "too long ago".to_owned())?;
        return Clock::system().now().checked_sub(ago).map_err(|_| "too long ago".to_owned());
    }
    text.parse().map_err(|_| {
        "a time such as 2026-11-22T10:00:00Z or 2026-11-22T05:00:00-05:00, or how long ago, such as 2h"
            .to_owned()
    })
}

/// Longest time that a canary is followed.
const FOLLOW_MAX: Duration = Duration::from_secs(3600);

fn time_span(text: &str) -> Result<Duration, String> {
    match crate::config::parse_duration(text) {
        Some(span) if !span.is_zero() && span <= FOLLOW_MAX => Ok(span),
        _ => Err("a time span such as 30s, at most 1h".to_owned()),
    }
}

fn limit(text: &str) -> Result<usize, String> {
    let most = chaski_common::storage::PAGE_MAX;
    match text.parse() {
        Ok(limit) if (1..=most).contains(&limit) => Ok(limit),
        _ => Err(format!("a number from 1 to {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Result<Cli, clap::Error> {
        Cli::read(words.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_every_command_takes_stands_in_front_of_a_subcommand_or_behind_it() {
        for command in ["events", "parked", "dead", "destinations", "topics"] {
            let (inner, rest) = match command {
                "events" => ("show", " 00000000000000000000000000000000"),
                "topics" => ("plan", ""),
                _ => ("list", ""),
            };
            for words in [
                format!("chaski --json -c F {command} {inner}{rest}"),
                format!("chaski {command} --json -c F {inner}{rest}"),
                format!("chaski {command} {inner} --json -c F{rest}"),
                format!("chaski {command} {inner}{rest} --json -c F"),
                format!("chaski -c F {command} --json {inner}{rest}"),
            ] {
                let cli = read(&words).unwrap_or_else(|error| panic!("{words}: {error}"));
                assert!(cli.json && cli.config.as_os_str() == "F", "{words}");
            }
        }
    }

    #[test]
    fn a_filter_stands_behind_the_subcommand() {
        for (words, says) in [
            ("chaski dead --destination erp redrive", "`dead redrive --destination`"),
            ("chaski dead --json --limit 5 list", "`dead list --limit`"),
            ("chaski dead --quarantined drop --yes", "`dead drop --quarantined`"),
            ("chaski parked --destination erp list", "`parked list --destination`"),
            ("chaski events --type t show 00000000000000000000000000000000", "`events show --type`"),
        ] {
            let error = read(words).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{words}");
            assert!(error.to_string().contains(says), "{words}: {error}");
        }
        for words in
            ["chaski dead --destination erp", "chaski dead list --limit 5", "chaski events --since 1h"]
        {
            assert!(read(words).is_ok(), "{words}");
        }
    }
}
