//! `chaski parked`: deliveries that wait for their next attempt.

use anyhow::bail;
use chaski_common::event::EventId;
use chaski_common::storage::ParkedFilter;

use super::{asked, known_destination, listed, warn_of_resting};
use crate::access::Access;
use crate::api::{DropParked, HurryParked, ParkedView};
use crate::cli::{ParkedCommand, ParkedList};
use crate::config::AccessConfig;
use crate::output;

pub(super) async fn run(
    config: &AccessConfig,
    filter: ParkedList,
    command: Option<ParkedCommand>,
    json: bool,
) -> anyhow::Result<()> {
    let access = Access::find(config).await?;
    let outcome = match command.unwrap_or(ParkedCommand::List(filter)) {
        ParkedCommand::List(filter) => list(&access, filter, json).await,
        ParkedCommand::Now { id, destination } => hurry(&access, id, destination, json).await,
        ParkedCommand::Drop { id, destination, yes } => {
            drop_parked(&access, id, destination, yes, json).await
        }
    };
    access.close().await;
    outcome
}

async fn list(access: &Access, filter: ParkedList, json: bool) -> anyhow::Result<()> {
    let ParkedList { destination, limit } = filter;
    known_destination(access, destination.as_deref()).await?;
    let filter = ParkedFilter { destination, limit: asked(limit), ..ParkedFilter::default() };
    listed(access.call(filter).await?, limit, json, tell)
}

fn tell(parked: &[ParkedView]) {
    let mut table =
        output::table(&["DUE", "DESTINATION", "ID", "TYPE", "SUBJECT", "ATTEMPTS", "LAST FAILURE"]);
    for delivery in parked {
        let last = delivery.history.last().map_or_else(
            || "waits behind its subject".to_owned(),
            |failure| format!("{} ({})", failure.result, output::harmless(&failure.detail)),
        );
        table.add_row([
            delivery.due.to_string(),
            delivery.destination.to_string(),
            delivery.event.id.to_string(),
            output::harmless(&delivery.event.kind),
            output::harmless(delivery.event.subject.as_deref().unwrap_or("-")),
            delivery.attempts.to_string(),
            last,
        ]);
    }
    output::print(&table, "nothing is parked");
}

async fn hurry(access: &Access, id: EventId, destination: Option<String>, json: bool) -> anyhow::Result<()> {
    known_destination(access, destination.as_deref()).await?;
    let touched = access
        .call(ParkedFilter { id: Some(id), destination: destination.clone(), ..ParkedFilter::default() })
        .await?;
    warn_of_resting(access, touched.iter().map(|delivery| &*delivery.destination)).await?;
    match access.call(HurryParked { id, destination }).await? {
        0 => bail!("nothing is parked of event {id}"),
        hurried if json => output::json(&serde_json::json!({ "due_now": hurried }))?,
        hurried => output::line(format_args!("deliveries of {id} that are due now: {hurried}")),
    }
    Ok(())
}

async fn drop_parked(
    access: &Access,
    id: EventId,
    destination: Option<String>,
    yes: bool,
    json: bool,
) -> anyhow::Result<()> {
    known_destination(access, destination.as_deref()).await?;
    let mut touched = access
        .call(ParkedFilter { id: Some(id), destination: destination.clone(), ..ParkedFilter::default() })
        .await?;
    touched.retain(|delivery| delivery.event.id == id);
    if touched.is_empty() {
        bail!("nothing is parked of event {id}");
    }
    let names: Vec<&str> = touched.iter().map(|delivery| &*delivery.destination).collect();
    output::say(format_args!(
        "event {id} will not be delivered to {}; it stays as a dead letter",
        names.join(", ")
    ));
    if !yes && !output::confirm_if_asked("Drop it?")? {
        bail!("nothing was done");
    }
    let dropped = access.call(DropParked { id, destination }).await?;
    if json {
        return output::json(&serde_json::json!({ "dropped": dropped }));
    }
    output::line(format_args!("dropped deliveries of {id}: {dropped}"));
    Ok(())
}
