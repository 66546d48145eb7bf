//! Log lines on stderr: text on a terminal, one JSON object a line otherwise.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Starts logging; a second call changes nothing. `RUST_LOG` overrides the level.
pub(crate) fn start(config: Option<&LogConfig>) {
    let level = config.map_or(tracing::Level::INFO, |config| config.level);
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        EnvFilter::new(format!(
            "warn,chaski={level},chaski_common={level},chaski_ingest={level},chaski_dispatcher={level}"
        ))
    });
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let text =
        config.map_or_else(|| std::io::stderr().is_terminal(), |config| config.format == LogFormat::Text);
    let started = if text {
        builder.with_ansi(std::io::stderr().is_terminal()).try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(false).try_init()
    };
    drop(started);
}

/// For commands whose own output tells what happens: errors only, unless `RUST_LOG` says otherwise.
pub(crate) fn start_quiet() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    let started = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    drop(started);
}
