//! `chaski dead`: dead letters, and what a person can do about them.

use std::collections::BTreeMap;

use anyhow::bail;
use chaski_common::event::EventId;
use chaski_common::storage::{DeadFilter, PAGE_MAX};
use indicatif::{ProgressBar, ProgressStyle};

use super::events::body;
use super::{asked, known_destination, listed, usage, warn_of_resting};
use crate::access::Access;
use crate::api::{DeadView, DropDead, RedriveDead, ShowDead};
use crate::cli::{DeadCommand, DeadConditions, DeadList, DeadSelection};
use crate::config::AccessConfig;
use crate::output::{self, harmless};

/// Letters touched in one call: few enough that no accept waits for them.
const STEP: usize = 200;

pub(super) async fn run(
    config: &AccessConfig,
    filter: DeadList,
    command: Option<DeadCommand>,
    json: bool,
) -> anyhow::Result<()> {
    let access = Access::find(config).await?;
    let outcome = match command.unwrap_or(DeadCommand::List(filter)) {
        DeadCommand::List(filter) => list(&access, filter, json).await,
        DeadCommand::Show { id } => show(&access, id, json).await,
        DeadCommand::Redrive { selection, yes } => {
            change(&access, Change::Redrive, selection, yes, json).await
        }
        DeadCommand::Drop { selection, yes } => change(&access, Change::Drop, selection, yes, json).await,
    };
    access.close().await;
    outcome
}

async fn list(access: &Access, list: DeadList, json: bool) -> anyhow::Result<()> {
    let filter = filter(access, list.conditions).await?;
    listed(access.call(DeadFilter { limit: asked(list.limit), ..filter }).await?, list.limit, json, tell)
}

fn tell(letters: &[DeadView]) {
    let mut table =
        output::table(&["DIED", "DESTINATION", "ID", "SOURCE", "TYPE", "SUBJECT", "REASON", "ATTEMPTS"]);
    for letter in letters {
        table.add_row([
            letter.at.to_string(),
            place(letter).to_owned(),
            letter.event.id.to_string(),
            letter.event.source.to_string(),
            harmless(&letter.event.kind),
            harmless(letter.event.subject.as_deref().unwrap_or("-")),
            letter.reason.to_string(),
            letter.attempts.to_string(),
        ]);
    }
    output::print(&table, "no dead letters");
}

fn place(letter: &DeadView) -> &str {
    letter.destination.as_deref().unwrap_or("(quarantined)")
}

async fn show(access: &Access, id: EventId, json: bool) -> anyhow::Result<()> {
    let letters = access.call(ShowDead { id }).await?;
    if letters.is_empty() {
        bail!("there is no dead letter of event {id}");
    }
    if json {
        return output::json(&letters);
    }
    for detail in &letters {
        let letter = &detail.letter;
        output::line(format_args!(
            "{} {}: {} ({})",
            letter.at,
            place(letter),
            letter.reason,
            harmless(&letter.detail)
        ));
        for failure in &letter.history {
            let detail = harmless(&failure.detail);
            output::line(format_args!(
                "  attempt {} {}: {} ({detail})",
                failure.attempt, failure.at, failure.result
            ));
        }
        output::line(body(&detail.body));
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Change {
    Redrive,
    Drop,
}

async fn change(
    access: &Access,
    change: Change,
    selection: DeadSelection,
    yes: bool,
    json: bool,
) -> anyhow::Result<()> {
    let says_which = selection.conditions.quarantined || selection.conditions.destination.is_some();
    let only = selection.id.filter(|_| !says_which);
    let letters = select(access, selection).await?;
    if letters.is_empty() {
        bail!("no dead letter matches");
    }
    if let Some(id) = only {
        one_kind(id, &letters)?;
    }
    let mut by_place = BTreeMap::<(&str, &str), u64>::new();
    for letter in &letters {
        *by_place.entry((place(letter), &letter.reason)).or_default() += 1;
    }
    let (will, question) = match change {
        Change::Redrive => ("will be delivered again", "Redrive them?"),
        Change::Drop => ("will be deleted for good", "Delete them?"),
    };
    for ((place, reason), count) in by_place {
        let letters = output::count(count, "letter");
        output::say(format_args!("{letters} of {place} ({reason}) {will}"));
    }
    if matches!(change, Change::Redrive) {
        let places = letters.iter().filter_map(|letter| letter.destination.as_deref());
        warn_of_resting(access, places).await?;
    }
    if !yes && !output::confirm(question)? {
        bail!("nothing was done");
    }
    let numbers: Vec<u64> = letters.iter().map(|letter| letter.number).collect();
    let bar = ProgressBar::new(numbers.len() as u64)
        .with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {eta}")?);
    let mut done = 0;
    for step in numbers.chunks(STEP) {
        done += match change {
            Change::Redrive => access.call(RedriveDead { numbers: step.to_vec() }).await?,
            Change::Drop => access.call(DropDead { numbers: step.to_vec() }).await?,
        };
        bar.inc(step.len() as u64);
    }
    bar.finish_and_clear();
    let told = match change {
        Change::Redrive => "redriven",
        Change::Drop => "deleted",
    };
    if json {
        output::json(&serde_json::json!({ told: done }))?;
    } else {
        output::line(format_args!("{told}: {done}"));
    }
    if done < numbers.len() {
        let left = output::count((numbers.len() - done) as u64, "letter");
        bail!(
            "not {told}: {left}: gone meanwhile, or its event is parked at its destination (`chaski parked`)"
        );
    }
    Ok(())
}

/// A conflict is kept under the id of the payment that it is not: whoever names that id may mean the one or the other.
fn one_kind(id: EventId, letters: &[DeadView]) -> anyhow::Result<()> {
    let is_mixed = letters.iter().any(|letter| letter.destination.is_none())
        && letters.iter().any(|letter| letter.destination.is_some());
    if is_mixed {
        let ways = "say --quarantined, or --destination NAME";
        return Err(usage(format!("{id} has quarantined letters and some of destinations: {ways}")));
    }
    Ok(())
}

/// All letters that match, page by page. At least one condition must be given: everything at once is a
/// slip of the hand more often than a wish.
async fn select(access: &Access, selection: DeadSelection) -> anyhow::Result<Vec<DeadView>> {
    let filter = filter(access, selection.conditions).await?;
    let mut filter = DeadFilter { id: selection.id, limit: PAGE_MAX, ..filter };
    let DeadFilter { id, destination, reason, since, until, .. } = &filter;
    if id.is_none() && destination.is_none() && reason.is_none() && since.is_none() && until.is_none() {
        let ways = "name an event id, --destination, --quarantined, --reason, --since or --until";
        return Err(usage(format!("which ones? {ways}")));
    }
    let mut letters = Vec::new();
    loop {
        let page = access.call(filter.clone()).await?;
        let last = page.len() < PAGE_MAX;
        filter.after = page.last().map(|letter| letter.number);
        letters.extend(page);
        if last {
            return Ok(letters);
        }
    }
}

async fn filter(access: &Access, conditions: DeadConditions) -> anyhow::Result<DeadFilter> {
    let DeadConditions { destination, quarantined, reason, since, until } = conditions;
    known_destination(access, destination.as_deref()).await?;
    let destination = if quarantined { Some(String::new()) } else { destination };
    Ok(DeadFilter { destination, reason, since, until, ..DeadFilter::default() })
}
