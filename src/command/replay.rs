//! `chaski replay`: delivers a span of history again to one destination.

use std::ops::Range;
use std::time::Duration;

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;

use super::{known_destination, usage};
use crate::access::Access;
use crate::api::{BeginReplay, ListDestinations};
use crate::config::AccessConfig;
use crate::output;

/// How often a running replay is asked for.
const PERIOD: Duration = Duration::from_millis(300);

pub(super) async fn run(
    config: &AccessConfig,
    destination: String,
    span: Range<Timestamp>,
    yes: bool,
    json: bool,
) -> anyhow::Result<()> {
    if span.start >= span.end {
        return Err(usage("--from must be earlier than --to"));
    }
    let access = Access::find(config).await?;
    let outcome = ask_and_replay(&access, destination, span, yes, json).await;
    access.close().await;
    outcome
}

async fn ask_and_replay(
    access: &Access,
    destination: String,
    span: Range<Timestamp>,
    yes: bool,
    json: bool,
) -> anyhow::Result<()> {
    known_destination(access, Some(&destination)).await?;
    let question =
        format!("Deliver everything received from {} to {} to {destination} again?", span.start, span.end);
    if !yes && !output::confirm_if_asked(&question)? {
        bail!("nothing was done");
    }
    replay(access, destination, span, json).await
}

async fn replay(
    access: &Access,
    destination: String,
    span: Range<Timestamp>,
    json: bool,
) -> anyhow::Result<()> {
    let begun =
        access.call(BeginReplay { destination: destination.clone(), from: span.start, to: span.end }).await?;
    if json {
        output::json(&begun)?;
    } else {
        output::line(format_args!(
            "replay {} to {destination} has begun: of {}, those that are for it",
            begun.number,
            output::count(begun.events, "event")
        ));
    }
    if begun.events == 0 {
        bail!("no event was received from {} to {}: there is nothing to replay", span.start, span.end);
    }
    if matches!(access, Access::Local(_)) {
        output::say("nothing is running: it will be delivered when chaski is started");
        return Ok(());
    }
    if !json {
        watch(access, &destination, begun.events).await?;
    }
    Ok(())
}

/// Shows the replays of the destination until none is left. Ending the command does not end them.
async fn watch(access: &Access, destination: &str, events: u64) -> anyhow::Result<()> {
    let spinner =
        ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
    let events = output::count(events, "event");
    spinner.set_message(format!("going through {events} for {destination} (Ctrl-C leaves it running)"));
    let mut period = tokio::time::interval(PERIOD);
    loop {
        period.tick().await;
        spinner.tick();
        let views = access.call(ListDestinations {}).await?;
        let Some(view) = views.iter().find(|view| &*view.progress.destination == destination) else { break };
        if view.replays == 0 {
            break;
        }
        if view.progress.paused {
            spinner.finish_and_clear();
            output::say(format_args!("{destination} is paused: the replay goes on when it is resumed"));
            return Ok(());
        }
    }
    spinner.finish_and_clear();
    output::say("done; what the destination did not take is in `chaski parked` and `chaski dead`");
    Ok(())
}
