//! `chaski doctor --canary SOURCE`: one event of ours, followed from the public URL to every destination.
//!
//! It is signed as the provider would sign it, so receivers take it for a payment. Only a source whose environment is
//! `sandbox` is posted to, because no production destination is ever routed a sandbox event; another one needs
//! `--yes-production`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use chaski_common::clock::Clock;
use chaski_common::event::{Environment, EventId};
use chaski_common::storage::{EventFilter, FateState};
use chaski_ingest::source::SourceSpec;
use jiff::Timestamp;
use serde::Serialize;
use sha2::Digest as _;

use crate::access::Remote;
use crate::api::{self, ShowEvent};
use crate::command::{send, usage};
use crate::config::{AccessConfig, Config};
use crate::output;

/// Between two looks at the event.
const PERIOD: Duration = Duration::from_millis(100);
/// Events looked through where the answer does not name its own: what came in since the post, newest first.
const SEARCHED_MAX: usize = 50;

/// What was asked for.
pub(in crate::command) struct Canary {
    pub(in crate::command) source: String,
    pub(in crate::command) url: Option<String>,
    pub(in crate::command) timeout: Duration,
    pub(in crate::command) yes_production: bool,
}

/// One thing that has happened.
#[derive(Serialize)]
struct Step {
    /// Since the post began.
    seconds: f64,
    step: String,
    said: String,
}

/// Tells of each step as it happens.
struct Journey {
    begun: Instant,
    json: bool,
    steps: Vec<Step>,
}

impl Journey {
    fn tell(&mut self, step: &str, said: String) {
        let seconds = self.begun.elapsed().as_secs_f64();
        if !self.json {
            output::line(format_args!("{seconds:>8.3} s  {step}: {}", output::harmless(&said)));
        }
        self.steps.push(Step { seconds, step: step.to_owned(), said });
    }
}

pub(in crate::command) async fn run(
    config: &Config,
    access: &AccessConfig,
    canary: Canary,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let source = send::known_source(config, &canary.source)?;
    if source.environment != Environment::Sandbox && !canary.yes_production {
        return Err(usage(format!(
            "{} is a production source: its destinations would take the canary for a payment; give it a sandbox source \
             (environment = \"sandbox\"), or say --yes-production",
            source.name
        )));
    }
    let expected: Vec<Arc<str>> = config
        .destinations
        .iter()
        .filter(|destination| destination.sources.contains(&source.name))
        .map(|destination| Arc::clone(&destination.name))
        .collect();
    if expected.is_empty() {
        bail!("no destination takes the events of {}: there is nothing to follow", source.name);
    }
    let remote = Remote::find(access).await?;
    let remote = remote.with_context(|| {
        format!(
            "nothing answers at {}: a canary is followed in a running process ([admin] listen)",
            access.admin
        )
    })?;

    let mut journey = Journey { begun: Instant::now(), json, steps: Vec::new() };
    let posted = post(config, source, &canary, &remote, &mut journey).await?;
    let is_delivered = match posted {
        Some(id) => follow(&remote, id, expected, canary.timeout, &mut journey).await?,
        None => false,
    };
    if json {
        let id = posted.map(|id| id.to_string());
        output::json(&serde_json::json!({ "id": id, "delivered": is_delivered, "steps": journey.steps }))?;
    }
    Ok(if is_delivered { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Posts an event of its own; its id, if it was accepted.
async fn post(
    config: &Config,
    source: &SourceSpec,
    canary: &Canary,
    remote: &Remote,
    journey: &mut Journey,
) -> anyhow::Result<Option<EventId>> {
    let (url, poster) = send::edge(config, source, canary.url.clone())?;
    let at = Clock::system().now();
    let signed = send::signed(source, &send::made_up(source, 0), at, false)?;
    let body = signed.body.clone();
    let answer = match tokio::time::timeout(canary.timeout, poster.post(&url, signed)).await {
        Ok(answer) => answer?,
        Err(_) => bail!("no answer from {url} within {:?} (--timeout)", canary.timeout),
    };
    let said = format!("{url} answered {} {}", answer.status, answer.body.trim());
    if !answer.status.is_success() {
        journey.tell("refused", said);
        return Ok(None);
    }
    journey.tell("answered", said);
    let told: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    if let Some(status) = told["status"].as_str().filter(|status| *status != "accepted") {
        // It goes nowhere.
        journey.tell("not accepted", status.to_owned());
        return Ok(None);
    }
    match told["id"].as_str().and_then(|id| id.parse().ok()) {
        Some(id) => Ok(Some(id)),
        None => search(remote, source, at, &body).await.map(Some),
    }
}

/// The id of the event with this body, for a source whose answers do not name it.
async fn search(
    remote: &Remote,
    source: &SourceSpec,
    since: Timestamp,
    body: &[u8],
) -> anyhow::Result<EventId> {
    let digest = hex::encode(sha2::Sha256::digest(body));
    let filter = EventFilter {
        source: Some(source.name.to_string()),
        // The clock of the edge may be behind ours.
        since: since.checked_sub(jiff::SignedDuration::from_mins(5)).ok(),
        limit: SEARCHED_MAX,
        ..EventFilter::default()
    };
    for event in remote.call(filter).await? {
        let detail = remote.call(ShowEvent { id: event.id }).await?;
        if detail.is_some_and(|detail| detail.body_sha256 == digest) {
            return Ok(event.id);
        }
    }
    bail!(
        "answered, but not among the last {SEARCHED_MAX} events of this store; does the URL lead to another process?"
    )
}

/// How the event has ended at a destination.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Taken,
    Lost,
    /// It takes other types.
    NotForIt,
}

/// Looks at the event until it has ended everywhere, or time is up. Whether all that take such events have it, and
/// there is one.
async fn follow(
    remote: &Remote,
    id: EventId,
    expected: Vec<Arc<str>>,
    within: Duration,
    journey: &mut Journey,
) -> anyhow::Result<bool> {
    let mut ended = BTreeMap::<Arc<str>, End>::new();
    let is_open = |ended: &BTreeMap<_, _>| expected.iter().any(|name| !ended.contains_key(name));
    while is_open(&ended) && journey.begun.elapsed() < within {
        let fates =
            remote.call(ShowEvent { id }).await?.map(|detail| detail.destinations).unwrap_or_default();
        for fate in fates {
            if fate.state == FateState::Waiting || ended.contains_key(&fate.destination) {
                continue;
            }
            journey.tell(&fate.destination, api::tell(&fate.state));
            let end = match fate.state {
                FateState::Parked { .. } | FateState::Dead { .. } => End::Lost,
                FateState::Skipped => End::NotForIt,
                FateState::Delivered { .. } | FateState::Settled | FateState::Waiting => End::Taken,
            };
            ended.insert(fate.destination, end);
        }
        if is_open(&ended) {
            tokio::time::sleep(PERIOD).await;
        }
    }
    for name in expected.iter().filter(|name| !ended.contains_key(*name)) {
        journey.tell(name, format!("not there within {} s (--timeout)", within.as_secs()));
    }
    let mut ends = expected.iter().map(|name| ended.get(name).copied().unwrap_or(End::Lost));
    let is_anywhere = ends.clone().any(|end| end == End::Taken);
    if ends.clone().all(|end| end == End::NotForIt) {
        journey.tell("not taken", "no destination takes events of its type".to_owned());
    }
    Ok(is_anywhere && ends.all(|end| end != End::Lost))
}
