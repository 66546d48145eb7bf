//! `chaski events`: what came in, and what became of each event at each destination.

use anyhow::bail;
use chaski_common::event::Environment;
use chaski_common::storage::EventFilter;

use super::{asked, listed};
use crate::access::Access;
use crate::api::{self, BodyView, EventDetail, EventView, ShowEvent};
use crate::cli::{EventsCommand, EventsFilter};
use crate::config::AccessConfig;
use crate::output::{self, harmless};

pub(super) async fn run(
    config: &AccessConfig,
    filter: EventsFilter,
    command: Option<EventsCommand>,
    json: bool,
) -> anyhow::Result<()> {
    let access = Access::find(config).await?;
    let outcome = match command {
        None => list(&access, filter, json).await,
        Some(EventsCommand::Show { id }) => show(&access, ShowEvent { id }, json).await,
    };
    access.close().await;
    outcome
}

async fn list(access: &Access, filter: EventsFilter, json: bool) -> anyhow::Result<()> {
    let EventsFilter { source, kind, subject, since, until, limit } = filter;
    let filter =
        EventFilter { source, kind, subject, since, until, limit: asked(limit), ..EventFilter::default() };
    listed(access.call(filter).await?, limit, json, tell)
}

fn tell(events: &[EventView]) {
    let mut table = output::table(&["RECEIVED", "ID", "SOURCE", "TYPE", "SUBJECT", "BYTES"]);
    for event in events {
        table.add_row([
            event.received_at.to_string(),
            event.id.to_string(),
            event.source.to_string(),
            harmless(&event.kind),
            harmless(event.subject.as_deref().unwrap_or("-")),
            event.body_bytes.to_string(),
        ]);
    }
    output::print(&table, "no such event is kept");
}

async fn show(access: &Access, call: ShowEvent, json: bool) -> anyhow::Result<()> {
    let id = call.id;
    let Some(detail) = access.call(call).await? else { bail!("no event {id} is kept") };
    if json {
        return output::json(&detail);
    }
    describe(&detail);
    Ok(())
}

fn describe(detail: &EventDetail) {
    let event = &detail.event;
    let mut facts = output::table(&[]);
    let mut fact = |name: &str, value: String| {
        facts.add_row([name.to_owned(), value]);
    };
    fact("id", event.id.to_string());
    fact("source", event.source.to_string());
    fact("environment", event.environment.map_or("-", Environment::name).to_owned());
    fact("type", harmless(&event.kind));
    fact("subject", harmless(event.subject.as_deref().unwrap_or("-")));
    fact("time", event.time.map_or_else(|| "-".to_owned(), |time| time.to_string()));
    fact("received", event.received_at.to_string());
    fact("content type", harmless(detail.content_type.as_deref().unwrap_or("-")));
    fact("bytes", event.body_bytes.to_string());
    fact("sha-256", detail.body_sha256.clone());
    for fate in &detail.destinations {
        fact(&format!("→ {}", fate.destination), api::tell(&fate.state));
    }
    for letter in &detail.quarantined {
        fact("quarantined", format!("{} {} ({})", letter.at, letter.reason, harmless(&letter.detail)));
    }
    output::line(facts.trim_fmt());
    output::line("");
    output::line(body(&detail.body));
}

pub(super) fn body(body: &BodyView) -> String {
    match body {
        BodyView::Text(text) => harmless(text),
        BodyView::Hex(digits) => format!("not text, in hexadecimal: {digits}"),
    }
}
