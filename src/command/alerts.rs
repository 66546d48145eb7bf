//! `chaski alerts test`: whether the people who are to be told can be reached.

use std::process::ExitCode;

use chaski_common::clock::Clock;
use chaski_dispatcher::Poster;

use crate::alerts::Message;
use crate::alerts::receivers::Receiver;
use crate::config::Config;
use crate::output;

/// Sends a test message to each receiver, or to this one, and says what came back.
pub(super) async fn test(config: &Config, only: Option<&str>, json: bool) -> anyhow::Result<ExitCode> {
    let receivers = &config.alerts.receivers;
    let chosen: Vec<_> =
        receivers.iter().filter(|receiver| only.is_none_or(|only| only == &*receiver.name)).collect();
    if let (Some(only), true) = (only, chosen.is_empty()) {
        let names: Vec<&str> = receivers.iter().map(|receiver| &*receiver.name).collect();
        return Err(super::usage(format!(
            "there is no receiver named {only}; there are: {}",
            names.join(", ")
        )));
    }
    if chosen.is_empty() {
        anyhow::bail!("nobody would be told: the configuration has no [alerts.receivers.NAME]");
    }
    let (poster, clock) = (Poster::new(), Clock::system());
    let message = Message::test(clock.now());
    let mut table = output::table(&["RECEIVER", "KIND", "OUTCOME"]);
    let mut outcomes = Vec::new();
    let mut all_sent = true;
    for spec in chosen {
        let sent = Receiver::new(spec, &poster).send(&message, clock.now()).await;
        all_sent &= sent.is_ok();
        let error = sent.err().map(|error| error.to_string());
        let outcome = error.clone().unwrap_or_else(|| "sent".to_owned());
        table.add_row([spec.name.to_string(), spec.kind.name().to_owned(), outcome]);
        outcomes.push(serde_json::json!({
            "receiver": spec.name, "kind": spec.kind.name(), "sent": error.is_none(), "error": error,
        }));
    }
    if json {
        output::json(&outcomes)?;
    } else {
        output::print(&table, "");
    }
    Ok(if all_sent { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
