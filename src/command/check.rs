//! `chaski check`: what a configuration means, for people and for programs. Secrets are counted, never
//! shown.

mod text;

use std::borrow::Cow;

use chaski_common::clock::Clock;
use chaski_common::storage::{OnConflict, Start, kafka};
use chaski_dispatcher::destination::{Auth, DestinationSpec, Ordering};
use chaski_ingest::source::{DatedSecret, SchemeSpec, SourceSpec, Validity};
use chaski_ingest::verify::{Cover, Freshness};
use jiff::Timestamp;
use serde::Serialize;

use super::send::edge_url;
use crate::config::{Config, SourceRules, StorageConfig, StorageKind, spell_duration, spell_size};

/// Most times of a retry schedule that are listed.
const RETRIES_LISTED_MAX: usize = 100;

/// `chaski check`: the explanation as text, or as JSON.
#[must_use]
pub fn run(config: &Config, json: bool) -> String {
    let explanation = explain(config);
    if json { format!("{}\n", serde_json::json!(explanation)) } else { explanation.to_text() }
}

/// What a configuration means.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The edge's address and limits.
    pub ingest: Ingest,
    /// The admin address.
    pub admin: Admin,
    /// Where events are made durable.
    pub storage: Storage,
    /// The senders.
    pub sources: Vec<Source>,
    /// The receivers.
    pub destinations: Vec<Destination>,
    /// Who is told when something is wrong.
    pub alerts: Vec<AlertReceiver>,
    /// Where traces are sent, if anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traces: Option<Traces>,
    /// What is allowed and yet worth knowing.
    pub warnings: Vec<String>,
}

/// Who is told when something is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct AlertReceiver {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: &'static str,
}

/// The edge.
#[derive(Clone, Debug, Serialize)]
pub struct Ingest {
    /// Where it listens.
    pub listen: String,
    /// Whether it speaks TLS itself.
    pub tls: bool,
    /// The largest body taken.
    pub max_body: String,
}

/// Who is sent traces.
#[derive(Clone, Debug, Serialize)]
pub struct Traces {
    /// Where spans are posted to.
    pub url: String,
    /// The share of traces begun here.
    pub sampling: f64,
}

/// The admin address.
#[derive(Clone, Debug, Serialize)]
pub struct Admin {
    /// Where it listens.
    pub listen: String,
    /// Whether a token is asked for.
    pub token: bool,
}

/// Where events are made durable.
#[derive(Clone, Debug, Serialize)]
pub struct Storage {
    /// `embedded` or `kafka`.
    pub kind: &'static str,
    /// The folder of the store, or of the spool.
    pub path: Option<String>,
    /// How long events are kept.
    pub retention: String,
    /// Waiting deliveries per destination.
    pub parked_max: u64,
    /// The topics, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka: Option<Kafka>,
}

/// The topics and what is beside them.
#[derive(Clone, Debug, Serialize)]
pub struct Kafka {
    /// Where the cluster is.
    pub brokers: Vec<String>,
    /// What names of topics and groups begin with.
    pub topic_prefix: String,
    /// Of the events topic.
    pub partitions: i32,
    /// Copies of everything.
    pub replication: i32,
    /// The names of the client's settings that the file makes.
    pub settings: Vec<String>,
    /// The ids that all edges share.
    pub dedup: Option<SharedDedup>,
}

/// Redis.
#[derive(Clone, Debug, Serialize)]
pub struct SharedDedup {
    /// Where it is.
    pub redis: String,
    /// How long an id is remembered.
    pub window: String,
    /// Events expected per second.
    pub rate_per_second: f64,
    /// What Redis needs for the ids of that window at that rate.
    pub memory_bytes: u64,
}

/// One sender.
#[derive(Clone, Debug, Serialize)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// The preset it is built on.
    pub provider: Option<String>,
    /// Where it posts to.
    pub url: String,
    /// `production` or `sandbox`.
    pub environment: &'static str,
    /// How many secrets are listed.
    pub secrets: usize,
    /// When each of them is good.
    pub keys: Vec<SourceKey>,
    /// What its timestamp is worth: `signed`, `advisory` or `none`.
    pub freshness: &'static str,
    /// The same in words.
    pub freshness_rule: String,
    /// Whether the signature covers the body as a whole.
    pub body_is_signed: bool,
    /// Whether it covers every part of the event's id.
    pub id_is_signed: bool,
    /// Where it does not: the places in the body that it covers.
    pub signed_fields: Vec<String>,
    /// How long a repeated event is recognised.
    pub dedup_window: String,
    /// `quarantine` or `duplicate`.
    pub on_conflict: OnConflict,
    /// Peers that may post; empty means all.
    pub allow_ips: Vec<String>,
    /// The description as it holds after presets and overrides.
    pub scheme: SchemeSpec,
    /// The destinations its events go to.
    pub destinations: Vec<String>,
}

/// One secret of a sender, by its name.
#[derive(Clone, Debug, Serialize)]
pub struct SourceKey {
    /// `current`, `previous` … or its key id, as metrics call it.
    pub name: String,
    /// Not good before this.
    pub not_before: Option<Timestamp>,
    /// Not good after this.
    pub not_after: Option<Timestamp>,
    /// Whether it is good now.
    pub good: bool,
}

/// One receiver.
#[derive(Clone, Debug, Serialize)]
pub struct Destination {
    /// Its name.
    pub name: String,
    /// Where is posted to.
    pub url: String,
    /// The sources it takes.
    pub sources: Vec<String>,
    /// The event types it takes; empty means all.
    pub events: Vec<String>,
    /// How many secrets sign what is sent.
    pub signing_secrets: usize,
    /// `bearer`, `basic`, the header's name, or nothing.
    pub auth: Option<String>,
    /// `none` or `key`.
    pub ordering: &'static str,
    /// Attempts under way at once.
    pub concurrency: usize,
    /// Attempts begun per second.
    pub rate_per_second: Option<f64>,
    /// One attempt.
    pub timeout: String,
    /// Where it begins if it is new.
    pub start: String,
    /// The latest times of the attempts after the first, counted from it.
    pub retries: Vec<String>,
    /// How many more follow.
    pub retries_more: u64,
    /// After this it is a dead letter.
    pub give_up_after: String,
}

/// What a configuration means.
#[must_use]
pub fn explain(config: &Config) -> Explanation {
    Explanation {
        ingest: Ingest {
            listen: config.ingest.listen.to_string(),
            tls: config.ingest.tls.is_some(),
            max_body: spell_size(config.ingest.body_bytes_max as u64),
        },
        admin: Admin { listen: config.admin.listen.to_string(), token: config.admin.token.is_some() },
        storage: explain_storage(&config.storage),
        sources: config.sources.iter().map(|source| explain_source(config, source)).collect(),
        destinations: config.destinations.iter().map(explain_destination).collect(),
        traces: config
            .telemetry
            .as_ref()
            .map(|telemetry| Traces { url: telemetry.traces.to_string(), sampling: telemetry.sampling }),
        alerts: config
            .alerts
            .receivers
            .iter()
            .map(|receiver| AlertReceiver { name: receiver.name.to_string(), kind: receiver.kind.name() })
            .collect(),
        warnings: config.warnings.iter().map(ToString::to_string).collect(),
    }
}

fn explain_storage(config: &StorageConfig) -> Storage {
    let (path, kafka) = match &config.kind {
        StorageKind::Embedded { path } => (Some(path), None),
        StorageKind::Kafka { options, rate_per_second } => {
            (options.spool.as_ref(), Some(explain_kafka(options, *rate_per_second)))
        }
    };
    Storage {
        kind: config.name(),
        path: path.map(|path| path.display().to_string()),
        retention: spell_duration(config.retention),
        parked_max: config.parked_max,
        kafka,
    }
}

fn explain_kafka(options: &kafka::Options, rate_per_second: f64) -> Kafka {
    Kafka {
        brokers: options.brokers.clone(),
        topic_prefix: options.topic_prefix.clone(),
        partitions: options.partitions,
        replication: options.replication,
        settings: options.settings.iter().map(|(name, _)| name.clone()).collect(),
        dedup: options.redis.as_ref().map(|redis| SharedDedup {
            redis: kafka::redis_address(&redis.url).map(|address| address.shown).unwrap_or_default(),
            window: spell_duration(redis.window),
            rate_per_second,
            memory_bytes: (redis.window.as_secs_f64() * rate_per_second * kafka::REDIS_BYTES_PER_ID) as u64,
        }),
    }
}

fn explain_source(config: &Config, source: &SourceSpec) -> Source {
    let rules = &config.source_rules[&source.name];
    let (freshness, freshness_rule) = explain_freshness(rules);
    let now = Clock::system().now();
    let key = |(name, dated): (Cow<'_, str>, &DatedSecret)| {
        let Validity { not_before, not_after } = dated.validity;
        SourceKey { name: name.into_owned(), not_before, not_after, good: dated.validity.covers(now) }
    };
    let keys: Vec<_> = source.secrets.named().into_iter().map(key).collect();
    let signed_fields = match &rules.cover {
        Cover::Fields(fields) => fields.iter().map(ToString::to_string).collect(),
        Cover::Body | Cover::Nothing => Vec::new(),
    };
    let takers = config.destinations.iter().filter(|destination| destination.sources.contains(&source.name));
    Source {
        name: source.name.to_string(),
        provider: source.provider.as_deref().map(str::to_owned),
        url: edge_url(config, source),
        environment: source.environment.name(),
        secrets: keys.len(),
        keys,
        freshness,
        freshness_rule,
        body_is_signed: rules.cover == Cover::Body,
        id_is_signed: rules.id_is_signed,
        signed_fields,
        dedup_window: spell_duration(rules.dedup_window),
        on_conflict: source.on_conflict,
        allow_ips: source
            .allow_ips
            .iter()
            .map(|net| format!("{}/{}", net.address, net.prefix_bits))
            .collect(),
        scheme: source.scheme.clone(),
        destinations: takers.map(|destination| destination.name.to_string()).collect(),
    }
}

/// A word for programs, and the rule for people.
fn explain_freshness(rules: &SourceRules) -> (&'static str, String) {
    let dedup = spell_duration(rules.dedup_window);
    let defence = if rules.id_is_signed {
        format!("deduplication ({dedup}) is the replay defence")
    } else {
        "nor is the id signed: a replay under another one is a new event".to_owned()
    };
    let window =
        |past, future| format!("at most {} old and {} ahead", spell_duration(past), spell_duration(future));
    match rules.freshness {
        Freshness::Signed { past, future } => (
            "signed",
            format!("signed timestamp, {}; repeats are recognised for {dedup}", window(past, future)),
        ),
        Freshness::Advisory { past, future } => {
            let window = window(past, future);
            (
                "advisory",
                format!(
                    "ADVISORY: {window}, but the timestamp is not signed and a replay can rewrite it; {defence}"
                ),
            )
        }
        Freshness::None => ("none", format!("none: the sender says no time; {defence}")),
    }
}

fn explain_destination(destination: &DestinationSpec) -> Destination {
    let times = destination.retry.latest_times(RETRIES_LISTED_MAX);
    Destination {
        name: destination.name.to_string(),
        url: destination.shown_url(),
        sources: destination.sources.iter().map(ToString::to_string).collect(),
        events: destination.events.clone(),
        signing_secrets: destination.signing.len(),
        auth: destination.auth.as_ref().map(|auth| match auth {
            Auth::Bearer(_) => "bearer".to_owned(),
            Auth::Basic { .. } => "basic".to_owned(),
            Auth::Header { name, .. } => name.to_string(),
        }),
        ordering: match destination.ordering {
            Ordering::None => "none",
            Ordering::Key => "key",
        },
        concurrency: destination.concurrency,
        rate_per_second: destination.rate_per_second,
        timeout: spell_duration(destination.timeout),
        start: match destination.start {
            Start::Now => "now".to_owned(),
            Start::Beginning => "beginning".to_owned(),
            Start::At(time) => time.to_string(),
        },
        retries_more: destination.retry.retries().saturating_sub(times.len() as u64),
        retries: times.into_iter().map(spell_duration).collect(),
        give_up_after: spell_duration(destination.retry.give_up_after()),
    }
}
