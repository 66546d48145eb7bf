//! `chaski destinations`: how each stands, pause and resume.

use crate::access::Access;
use crate::api::{DestinationView, ListDestinations, SetPaused, Standing};
use crate::cli::DestinationsCommand;
use crate::config::AccessConfig;
use crate::output;

pub(super) async fn run(
    config: &AccessConfig,
    command: Option<DestinationsCommand>,
    json: bool,
) -> anyhow::Result<()> {
    let access = Access::find(config).await?;
    let outcome = match command.unwrap_or(DestinationsCommand::List) {
        DestinationsCommand::List => list(&access, json).await,
        DestinationsCommand::Pause { destination } => pause(&access, destination, true, json).await,
        DestinationsCommand::Resume { destination } => pause(&access, destination, false, json).await,
    };
    access.close().await;
    outcome
}

async fn list(access: &Access, json: bool) -> anyhow::Result<()> {
    let views = access.call(ListDestinations {}).await?;
    if json {
        return output::json(&views);
    }
    let mut table =
        output::table(&["DESTINATION", "STATE", "LAG", "OLDEST UNSETTLED", "PARKED", "DEAD", "LAST FAILURE"]);
    for view in &views {
        let progress = &view.progress;
        let oldest = progress.oldest_unsettled.map_or_else(|| "-".to_owned(), |at| at.to_string());
        let failure = view
            .running
            .as_ref()
            .and_then(|running| running.last_failure.clone())
            .unwrap_or_else(|| "-".to_owned());
        table.add_row([
            progress.destination.to_string(),
            state(view),
            progress.lag.to_string(),
            oldest,
            progress.parked.to_string(),
            progress.dead.to_string(),
            output::harmless(&failure),
        ]);
    }
    output::print(&table, "no destination has a cursor yet");
    Ok(())
}

fn state(view: &DestinationView) -> String {
    let mut state = match view.standing() {
        Standing::NotConfigured => "not in the file".to_owned(),
        Standing::Paused => "paused".to_owned(),
        Standing::NotRunning => "not running here".to_owned(),
        Standing::Disabled => "disabled (410)".to_owned(),
        Standing::Breaker(breaker) => format!("breaker {breaker}"),
        Standing::Up => "up".to_owned(),
    };
    if view.replays > 0 {
        state.push_str(", replaying");
    }
    state
}

async fn pause(access: &Access, destination: String, paused: bool, json: bool) -> anyhow::Result<()> {
    let is = match access {
        _ if paused => "paused",
        Access::Remote(_) => "delivered to again",
        Access::Local(_) => "not paused any more",
    };
    let done = format!("{destination} is {is}");
    access.call(SetPaused { destination: destination.clone(), paused }).await?;
    if json {
        return output::json(&serde_json::json!({ "destination": destination, "paused": paused }));
    }
    output::line(done);
    Ok(())
}
