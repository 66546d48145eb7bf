//! The `chaski` command: assembly and talk to people. What happens to an event is decided in
//! `chaski-ingest` and `chaski-dispatcher`; this crate reads the configuration, opens things once, hands
//! each half what it needs, and answers operators.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cli;
pub mod command;
pub mod config;
pub mod app;
pub mod alerts;
mod admin;
pub mod api;
mod access;
mod certificate;
mod gauges;
mod telemetry;
mod timekeeper;
mod logging;
mod output;
mod post;

/// An error and all its causes, outermost first, as one line. A cause that its error has repeated is not said twice.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}
