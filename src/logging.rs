//! Log lines on stderr: text on a terminal, one JSON object a line otherwise.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Starts logging; a second call changes nothing. `RUST_LOG` overrides the level.
pub(crate) fn start(config: &LogConfig) {
    let level = config.level;
    let ours = ["chaski", "chaski_common", "chaski_ingest", "chaski_dispatcher"]
        .map(|name| format!("{name}={level}"));
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("warn,{}", ours.join(","))));
    let on_terminal = std::io::stderr().is_terminal();
    let text = match config.format {
        LogFormat::Auto => on_terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if text {
        builder.with_ansi(on_terminal).try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(false).try_init()
    };
    drop(started);
}

/// For commands whose own output tells what happens: silent, unless `RUST_LOG` says otherwise.
pub(crate) fn start_quiet() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    let started = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    drop(started);
}
