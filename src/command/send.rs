//! `chaski send`: signs as a source's provider would, posts, and prints the answers.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use chaski_common::clock::Clock;
use chaski_common::secret::Secret;
use chaski_ingest::source::{DatedSecret, Secrets, SourceSpec};
use chaski_ingest::verify::sign::{Signed, Signer, sign};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;

use super::usage;
use crate::cli::Send;
use crate::config::Config;
use crate::output;
use crate::post::Poster;

/// The largest body read from a file; the edge's own limit is smaller.
const BODY_BYTES_MAX: u64 = 64 << 20;
/// From here on answers are counted, not printed one by one.
const PRINT_MAX: u64 = 20;
/// The same for `--json`.
const JSON_MAX: u64 = 10_000;

/// What the edge said to one post.
#[derive(Serialize)]
struct Said {
    status: u16,
    body: String,
}

pub(super) async fn run(config: &Config, send: Send, json: bool) -> anyhow::Result<ExitCode> {
    let source = known_source(config, &send.source)?;
    if send.rate.is_some_and(|rate| !(rate > 0.0 && rate <= 100_000.0)) {
        return Err(usage("--rate must be a number from above 0 to 100000"));
    }
    let (url, poster) = edge(config, source, send.url.clone())?;
    let given = send.body.as_deref().map(read_body).transpose()?;
    let mut pace = send.rate.map(|rate| tokio::time::interval(Duration::from_secs_f64(1.0 / rate)));
    let bar = if send.count > PRINT_MAX { ProgressBar::new(send.count) } else { ProgressBar::hidden() }
        .with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta}")?);
    let (mut answers, mut by_status) = (Vec::new(), BTreeMap::<u16, u64>::new());
    for number in 0..send.count {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        let body = given.clone().unwrap_or_else(|| made_up(source, number));
        let at = send.at.unwrap_or_else(|| Clock::system().now());
        let answer = match poster.post(&url, signed(source, &body, at, send.forge)?).await {
            Ok(answer) => answer,
            // What was answered before may be stored.
            Err(error) => {
                bar.finish_and_clear();
                report(&answers, &by_status, json)?;
                return Err(error.context(format!("event {} of {}", number + 1, send.count)));
            }
        };
        *by_status.entry(answer.status.as_u16()).or_default() += 1;
        bar.inc(1);
        if send.count <= if json { JSON_MAX } else { PRINT_MAX } {
            answers.push(Said { status: answer.status.as_u16(), body: answer.body });
        }
    }
    bar.finish_and_clear();
    report(&answers, &by_status, json)?;
    // What is forged is to be refused for that: a 404 is said to any.
    let is_well =
        |status: &u16| if send.forge { matches!(status, 401 | 429) } else { matches!(status, 200..300) };
    Ok(if by_status.keys().all(is_well) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The source of this name.
pub(super) fn known_source<'a>(config: &'a Config, name: &str) -> anyhow::Result<&'a SourceSpec> {
    let source = config.sources.iter().find(|source| *source.name == *name);
    source.with_context(|| {
        let names: Vec<&str> = config.sources.iter().map(|source| &*source.name).collect();
        format!("there is no source named {name}; there are: {}", names.join(", "))
    })
}

/// A body as the source's provider would send it then.
pub(super) fn signed(source: &SourceSpec, body: &[u8], at: Timestamp, forge: bool) -> anyhow::Result<Signed> {
    let (key_id, secret) = current(&source.secrets, at)?;
    sign(&source.scheme, Signer { key_id, secret, forge }, body, at)
        .with_context(|| format!("signing as {}", source.name))
}

fn report(answers: &[Said], by_status: &BTreeMap<u16, u64>, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&serde_json::json!({ "answers": answers, "by_status": by_status }));
    }
    for answer in answers {
        output::line(format_args!("{} {}", answer.status, output::harmless(answer.body.trim_end())));
    }
    if answers.is_empty() {
        for (status, count) in by_status {
            output::line(format_args!("{count} × {status}"));
        }
    }
    Ok(())
}

/// Where to post as this source, and by whom: at `url`, or where this configuration listens, under its first name.
pub(super) fn edge(
    config: &Config,
    source: &SourceSpec,
    url: Option<String>,
) -> anyhow::Result<(String, Poster)> {
    Ok(match (url, config.ingest.hosts.first()) {
        (Some(url), _) => (url, Poster::new()),
        (None, None) => (edge_url(config, source), Poster::new()),
        (None, Some(host)) => (edge_url(config, source), Poster::under(host)?),
    })
}

/// Where the source posts to, as the configuration has it.
pub(super) fn edge_url(config: &Config, source: &SourceSpec) -> String {
    let scheme = if config.ingest.tls.is_some() { "https" } else { "http" };
    format!("{scheme}://{}{}", config.ingest.listen, source.path)
}

/// The first secret that is good at this time, and its name where the request must name it.
fn current(secrets: &Secrets, at: Timestamp) -> anyhow::Result<(Option<&str>, &Secret)> {
    let good = |dated: &&DatedSecret| dated.validity.covers(at);
    match secrets {
        Secrets::Any(list) => list.iter().find(good).map(|dated| (None, &dated.secret)),
        Secrets::ById(table) => {
            let good = table.iter().find(|(_, dated)| good(dated));
            good.map(|(id, dated)| (Some(&**id), &dated.secret))
        }
    }
    .with_context(|| format!("none of the source's secrets is good at {at}"))
}

fn read_body(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(BODY_BYTES_MAX + 1).read_to_end(&mut body)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(BODY_BYTES_MAX + 1).read_to_end(&mut body))
    };
    let read = read.with_context(|| format!("reading {} (--body)", path.display()))?;
    anyhow::ensure!(read as u64 <= BODY_BYTES_MAX, "{} (--body) is larger than 64 MiB", path.display());
    Ok(body)
}

/// An event of its own for this source: what the preset's grammar asks for, or an id and a type.
pub(super) fn made_up(source: &SourceSpec, number: u64) -> Vec<u8> {
    let unique = Clock::system().now().as_millisecond().unsigned_abs().wrapping_mul(1_000) + number % 1_000;
    let cip = unique % 10_u64.pow(13);
    let body = match source.provider.as_deref() {
        Some(name) if name.starts_with("pagoefectivo") => serde_json::json!({
            "eventType": "cip.paid",
            "operationNumber": (unique % 10_u64.pow(12)).to_string(),
            "data": { "cip": cip.to_string(), "currency": "PEN", "amount": 22.05 },
        }),
        Some("culqi") => {
            let order = serde_json::json!({ "id": format!("ord_test_{unique}"), "state": "paid" });
            serde_json::json!({
                "object": "event",
                "id": format!("evt_test_{unique}"),
                "type": "order.status.changed",
                "data": order.to_string(),
            })
        }
        _ => serde_json::json!({
            "id": format!("test-{unique}"),
            "type": "test",
            "event_id": format!("test-{unique}"),
            "event_type": "test",
            "eventType": "test",
            "resourceId": format!("test-{unique}"),
            "status": "test",
            "status_code": "0",
            "data": { "id": format!("test-{unique}") },
        }),
    };
    body.to_string().into_bytes()
}
