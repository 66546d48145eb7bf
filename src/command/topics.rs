//! `chaski topics`: what the Kafka storage needs on the brokers, and making it. Topics that are there and wrong
//! are told and left alone.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use chaski_common::storage::kafka::{self, Options, Step};
use serde::Serialize;

use crate::cli::TopicsCommand;
use crate::config::{self, AccessConfig, Reason, StorageKind};
use crate::output;

/// What more partitions mean for whoever relies on an order.
const MOVES: &str = "with more partitions the events of most subjects go to another one: where ordering = \"key\", new ones may \
                     overtake what is in the old ones, so let the backlog get empty before that";

/// How one topic stands.
#[derive(Serialize)]
struct Row {
    topic: String,
    /// `right`, `missing`, `created`, `too small`, `grown` or `wrong`.
    state: &'static str,
    /// What is to be done, was done, or is wrong and what would be right.
    detail: Vec<String>,
}

pub(super) async fn run(
    access: &AccessConfig,
    file: &Path,
    command: Option<TopicsCommand>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let StorageKind::Kafka { options, .. } = &access.storage.kind else {
        let (wrong, hint) = ("\"embedded\" has no topics", "they belong to kind = \"kafka\"");
        return Err(config::refused(file, "storage.kind", Reason::Unsupported, wrong, hint).into());
    };
    let is_applied = command == Some(TopicsCommand::Apply);
    let asking = || format!("asking {}", options.brokers.join(", "));
    let mut steps = kafka::plan(options).await.with_context(asking)?;
    if is_applied && steps.iter().all(|step| !matches!(step, Step::Refuse { .. })) {
        kafka::apply(options, steps.clone()).await.with_context(asking)?;
    } else if is_applied {
        // Half of it would not open either, and whoever mends the rest should see what is there now.
        steps.retain(|step| matches!(step, Step::Refuse { .. }));
    }
    let rows = rows(options, &steps, is_applied);
    if json {
        output::json(&rows)?;
    } else {
        print(&rows);
    }
    let wrong = rows.iter().any(|row| row.state == "wrong");
    if wrong {
        output::say(
            "what is wrong is not chaski's to change: another hand set it, and must know what it breaks",
        );
    } else {
        if steps.iter().any(|step| matches!(step, Step::Grow { .. })) {
            output::say(MOVES);
        }
        if !is_applied && !steps.is_empty() {
            output::say("`chaski topics apply` does it");
        }
    }
    Ok(if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn rows(options: &Options, steps: &[Step], is_applied: bool) -> Vec<Row> {
    let row = |topic: String| {
        let mut row = Row { topic, state: "right", detail: Vec::new() };
        for step in steps.iter().filter(|step| step.topic() == row.topic) {
            let (planned, applied, detail) = match step {
                Step::Create { partitions, replication, settings, .. } => {
                    let mut detail =
                        vec![format!("partitions={partitions}"), format!("replication={replication}")];
                    detail.extend(settings.iter().map(|(name, value)| format!("{name}={value}")));
                    ("missing", "created", detail)
                }
                Step::Grow { from, to, .. } => {
                    ("too small", "grown", vec![format!("from {from} to {to} partitions")])
                }
                Step::Refuse { why, .. } => ("wrong", "wrong", vec![why.clone()]),
            };
            if row.state != "wrong" {
                row.state = if is_applied { applied } else { planned };
            }
            row.detail.extend(detail);
        }
        row
    };
    options.topics().into_iter().map(row).collect()
}

fn print(rows: &[Row]) {
    let mut table = output::table(&["TOPIC", "STATE", "DETAIL"]);
    for row in rows {
        table.add_row([row.topic.clone(), row.state.to_owned(), row.detail.join("\n")]);
    }
    output::line(table.trim_fmt());
}
