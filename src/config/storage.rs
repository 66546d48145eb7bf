//! `[storage]`: one SQLite file, or Kafka with Redis beside it.
//!
//! Settings of the Kafka client go through as they are written, except those that promises rest on: these are
//! chaski's, and refused here. Passwords among them are secrets like all others and never stand in the file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chaski_common::secret::Secret;
use chaski_common::storage::{embedded, kafka};

use super::problem::{Place, Reason};
use super::reader::Node;
use super::value::{Entry, Value};
use super::{Checker, secret};

/// `[storage]`.
#[derive(Clone, Debug, PartialEq)]
pub struct StorageConfig {
    /// How long settled events are kept; in the embedded storage their ids, too.
    pub retention: Duration,
    /// Deliveries waiting for their next attempt, per destination.
    pub parked_max: u64,
    /// Which storage.
    pub kind: StorageKind,
}

/// Where events are made durable.
#[derive(Clone, Debug, PartialEq)]
pub enum StorageKind {
    /// One SQLite file.
    Embedded {
        /// The folder of the store.
        path: PathBuf,
    },
    /// Topics on Kafka.
    Kafka {
        /// How to open it.
        options: kafka::Options,
        /// Events per second that Redis is to have room for; only `chaski check` asks.
        rate_per_second: f64,
    },
}

impl StorageConfig {
    /// `embedded` or `kafka`, as the file writes it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.kind {
            StorageKind::Embedded { .. } => "embedded",
            StorageKind::Kafka { .. } => "kafka",
        }
    }

    /// Whether one process owns all of it.
    #[must_use]
    pub const fn is_embedded(&self) -> bool {
        matches!(self.kind, StorageKind::Embedded { .. })
    }

    /// Tells whether two processes have the same storage. Of the embedded one it is who has, or last had, the
    /// folder, and none if there is no store yet; of Kafka, where edges and dispatchers are many processes, the
    /// names of its topics.
    ///
    /// # Errors
    /// The folder cannot be looked into.
    pub fn identity(&self) -> std::io::Result<Option<String>> {
        match &self.kind {
            StorageKind::Embedded { path } => embedded::holder(path),
            StorageKind::Kafka { options, .. } => Ok(Some(format!("kafka {}", options.topic_prefix))),
        }
    }

    /// Where the embedded store is, or the spool if there is one.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        match &self.kind {
            StorageKind::Embedded { path } => Some(path),
            StorageKind::Kafka { options, .. } => options.spool.as_deref(),
        }
    }

    /// How long the ids of events are remembered where all edges see them.
    pub(super) fn remember_ids_for(&mut self, window: Duration) {
        if let StorageKind::Kafka { options: kafka::Options { redis: Some(redis), .. }, .. } = &mut self.kind
        {
            redis.window = window;
        }
    }
}

/// Keys that only Kafka has a use for.
const KAFKA_KEYS: &[&str] = &["brokers", "topic_prefix", "partitions", "replication", "kafka", "dedup"];
/// Settings of the client that are secrets.
const SECRETS: &[&str] = &[
    "sasl.password",
    "sasl.oauthbearer.client.secret",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
];
/// Most bytes of a topic's prefix: the longest name a topic may have, less what chaski and a group append.
const PREFIX_BYTES_MAX: usize = 100;
/// Of the window in Redis until it is known which one the sources need.
const WINDOW: Duration = Duration::from_secs(72 * 3600);

impl Checker<'_> {
    pub(super) fn storage(&mut self, node: &Node) -> StorageConfig {
        let kind = if node.text("kind").as_deref() == Some("kafka") {
            self.kafka(node)
        } else {
            for key in KAFKA_KEYS.iter().filter(|key| node.writes(key)) {
                let hint = "write kind = \"kafka\", or take it out";
                self.report.refuse(
                    &node.at(key),
                    Reason::Unsupported,
                    "means nothing to kind = \"embedded\"",
                    hint,
                );
            }
            StorageKind::Embedded { path: self.folder.join(node.text("path").unwrap_or_default()) }
        };
        StorageConfig { retention: node.duration("retention"), parked_max: node.integer("parked_max"), kind }
    }

    fn kafka(&mut self, node: &Node) -> StorageKind {
        let dedup = node.section("dedup");
        let mut options = kafka::Options::new(self.brokers(node));
        options.settings = self.client_settings(node);
        options.redis = self.redis(dedup);
        options.spool = node.has("path").then(|| self.folder.join(node.text("path").unwrap_or_default()));
        if node.has("topic_prefix") {
            options.topic_prefix = self.topic_prefix(node);
        }
        let count = |key| node.has(key).then(|| i32::try_from(node.integer(key)).unwrap_or(i32::MAX));
        options.partitions = count("partitions").unwrap_or(options.partitions);
        options.replication = count("replication").unwrap_or(options.replication);
        if options.replication == 1 {
            self.report
                .warn(&node.at("replication"), "one copy: events are lost with the disk of one broker");
        }
        if options.spool.is_none() {
            let message = "no local disk for a spool: while Kafka is away, callbacks are answered 503";
            self.report.warn(&node.at("path"), message);
        }
        if !dedup.writes("redis") {
            let message =
                "each edge remembers its own ids only: with several edges, duplicates can come through";
            self.report.warn(&dedup.at("redis"), message);
        }
        StorageKind::Kafka { options, rate_per_second: dedup.number("rate").unwrap_or_default() }
    }

    fn brokers(&mut self, node: &Node) -> Vec<String> {
        let hint = "write for example brokers = [\"127.0.0.1:9092\"]";
        if !self.need(node, "brokers", hint) {
            return Vec::new();
        }
        let listed = node.texts("brokers").unwrap_or_default();
        if listed.is_empty() {
            self.report.refuse(&node.at("brokers"), Reason::Missing, "no broker", hint);
        }
        for (index, Entry { line, text }) in listed.iter().enumerate() {
            let port = text
                .rsplit_once(':')
                .filter(|(host, _)| !host.is_empty())
                .map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(1..))) || text.contains([',', '/', ' ']) {
                let at = Place { line: *line, ..node.at("brokers") };
                // By its number: what stands there may be a URL with a password.
                let message = format!("entry {}: not a host and a port", index + 1);
                self.report.refuse(&at, Reason::Range, message, hint);
            }
        }
        listed.into_iter().map(|entry| entry.text).collect()
    }

    fn topic_prefix(&mut self, node: &Node) -> String {
        let prefix = node.text("topic_prefix").unwrap_or_default();
        let inside = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX || !prefix.bytes().all(inside) {
            let hint = "use letters, digits, ., _ and -, at most 100";
            self.report.refuse(
                &node.at("topic_prefix"),
                Reason::Range,
                "cannot begin the name of a topic",
                hint,
            );
        }
        prefix
    }

    fn client_settings(&mut self, node: &Node) -> Vec<(String, String)> {
        let Some(Value::Table(table)) = node.value("kafka") else { return Vec::new() };
        let mut settings = Vec::new();
        for (name, Entry { line, text }) in table {
            let at = Place { line, key: format!("storage.kafka.{name}") };
            let value = if kafka::is_reserved(&name) {
                let message = "promises rest on this setting: it is chaski's";
                self.report.refuse(&at, Reason::Unsupported, message, "take it out");
                continue;
            } else if secret::Reference::parse(&text).is_some() {
                let Some(secret) = self.secret(&at, &text) else { continue };
                match String::from_utf8(secret.expose().to_vec()) {
                    Ok(value) => value,
                    Err(_) => {
                        self.report.refuse(&at, Reason::Range, "the secret is not text", "");
                        continue;
                    }
                }
            } else if SECRETS.contains(&&*name) {
                let message = "a secret is never written in the file";
                let hint = "write where it is kept: \"env:NAME\" or \"file:PATH\"";
                self.report.refuse(&at, Reason::Insecure, message, hint);
                continue;
            } else if name.ends_with(".location") {
                self.folder.join(text).display().to_string()
            } else {
                text
            };
            match kafka::check_setting(&name, &value) {
                Ok(()) => settings.push((name, value)),
                Err(why) => self.report.refuse(&at, Reason::Range, why, "see librdkafka's CONFIGURATION.md"),
            }
        }
        settings
    }

    fn redis(&mut self, node: &Node) -> Option<kafka::Redis> {
        let written = node.text("redis")?;
        let at = node.at("redis");
        let url = match secret::Reference::parse(&written) {
            Some(_) => self.secret(&at, &written)?,
            None => Secret::new(written.clone()),
        };
        match kafka::redis_address(&url) {
            Err(why) => {
                let hint = "write for example \"redis://127.0.0.1:6379/0\", \"redis+sentinel://host1,host2/mymaster\" or \
                            \"redis+cluster://host1,host2\"; \"env:NAME\" where it has a password";
                self.report.refuse(&at, Reason::Range, why, hint);
                None
            }
            Ok(address) if address.has_password && secret::Reference::parse(&written).is_none() => {
                let message = "a secret is never written in the file";
                let hint = "write where the whole URL is kept: \"env:NAME\" or \"file:PATH\"";
                self.report.refuse(&at, Reason::Insecure, message, hint);
                None
            }
            Ok(_) => Some(kafka::Redis { url, window: WINDOW }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, ConfigErrors};

    fn parse(storage: &str) -> Result<Config, ConfigErrors> {
        let env = |name: &str| match name {
            "PASSWORD" => Some("s3cret-of-the-cluster".to_owned()),
            "REDIS" => Some("rediss://default:s3cret-of-the-cache@cache.example:6380/1".to_owned()),
            "PE_SECRET" => Some("k3J9-0aX7qLmZ-secret".to_owned()),
            _ => None,
        };
        let text = format!(
            "[storage]\n{storage}\n[sources.pe]\nprovider = 'pagoefectivo'\nsecrets = ['env:PE_SECRET']\n\
             dedup_window = '48h'\n"
        );
        Config::parse(&text, Path::new("/etc/chaski/chaski.toml"), &env)
    }

    fn options(storage: &str) -> kafka::Options {
        match parse(storage).unwrap_or_else(|errors| panic!("{errors}")).storage.kind {
            StorageKind::Kafka { options, .. } => options,
            other => panic!("{other:?}"),
        }
    }

    /// Each problem as its key and its reason.
    fn problems(storage: &str) -> Vec<(String, &'static str)> {
        let errors = parse(storage).unwrap_err();
        let told = errors.to_string();
        assert!(!told.contains("s3cret"), "{told}");
        errors.0.into_iter().map(|problem| (problem.key, problem.reason.label())).collect()
    }

    #[test]
    fn kafka_is_set_up_as_it_is_written() {
        let options = options(
            "kind = 'kafka'\nbrokers = ['a.example:9092', '[::1]:9093']\ntopic_prefix = 'pay'\npartitions = 6\n\
             replication = 2\npath = 'spool'\n\
             [storage.kafka]\n'security.protocol' = 'SASL_SSL'\n'sasl.mechanism' = 'SCRAM-SHA-512'\n\
             'sasl.password' = 'env:PASSWORD'\n'ssl.ca.location' = 'ca.pem'\n'linger.ms' = 1\n\
             'socket.keepalive.enable' = true\n\
             [storage.dedup]\nredis = 'env:REDIS'\n",
        );
        assert_eq!(options.brokers, ["a.example:9092", "[::1]:9093"]);
        assert_eq!((&*options.topic_prefix, options.partitions, options.replication), ("pay", 6, 2));
        assert_eq!(options.spool.as_deref(), Some(Path::new("/etc/chaski/spool")));
        let setting = |name: &str| {
            let found = options.settings.iter().find(|(found, _)| found == name);
            found.map(|(_, value)| value.as_str()).unwrap_or_default()
        };
        assert_eq!(setting("sasl.password"), "s3cret-of-the-cluster");
        assert_eq!(setting("ssl.ca.location"), "/etc/chaski/ca.pem");
        assert_eq!((setting("linger.ms"), setting("socket.keepalive.enable")), ("1", "true"));
        let redis = options.redis.expect("there is one");
        assert_eq!(redis.window, Duration::from_secs(48 * 3600));
        assert!(redis.url.expose().ends_with(b"/1"));
    }

    #[test]
    fn what_is_left_out_has_defaults_and_what_they_cost_is_said() {
        let text = "kind = 'kafka'\nbrokers = ['127.0.0.1:9092']\n";
        assert_eq!(options(text), kafka::Options::new(vec!["127.0.0.1:9092".to_owned()]));
        let warned = |text: &str| {
            let warnings = parse(text).unwrap().warnings.into_iter().map(|warning| warning.key);
            warnings.filter(|key| key.starts_with("storage")).collect::<Vec<_>>()
        };
        assert_eq!(warned(text), ["storage.path", "storage.dedup.redis"]);
        assert_eq!(warned(&format!("{text}replication = 1\n")).len(), 3);
        let whole = "path = 's'\n[storage.dedup]\nredis = 'redis://127.0.0.1/'\n";
        assert_eq!(warned(&format!("{text}{whole}")), Vec::<String>::new());
    }

    #[test]
    fn what_promises_rest_on_and_secrets_in_the_file_are_refused() {
        let kafka = "kind = 'kafka'\nbrokers = ['127.0.0.1:9092']\n";
        for (text, key, reason) in [
            ("[storage.kafka]\nacks = '1'\n", "storage.kafka.acks", "config_unsupported"),
            (
                "[storage.kafka]\n'enable.idempotence' = false\n",
                "storage.kafka.enable.idempotence",
                "config_unsupported",
            ),
            (
                "[storage.kafka]\n'auto.offset.reset' = 'latest'\n",
                "storage.kafka.auto.offset.reset",
                "config_unsupported",
            ),
            ("[storage.kafka]\n'group.id' = 'x'\n", "storage.kafka.group.id", "config_unsupported"),
            (
                "[storage.kafka]\n'bootstrap.servers' = 'x:1'\n",
                "storage.kafka.bootstrap.servers",
                "config_unsupported",
            ),
            (
                "[storage.kafka]\n'sasl.password' = 's3cret'\n",
                "storage.kafka.sasl.password",
                "config_insecure",
            ),
            (
                "[storage.kafka]\n'sasl.password' = 'env:ABSENT'\n",
                "storage.kafka.sasl.password",
                "config_env",
            ),
            ("[storage.kafka]\n'sasl.pasword' = 's3cret'\n", "storage.kafka.sasl.pasword", "config_range"),
            (
                "[storage.kafka]\n'security.protocol' = 's3cret'\n",
                "storage.kafka.security.protocol",
                "config_range",
            ),
            (
                "[storage.dedup]\nredis = 'redis://:s3cret@cache/0'\n",
                "storage.dedup.redis",
                "config_insecure",
            ),
            ("[storage.dedup]\nredis = 'cache:6379'\n", "storage.dedup.redis", "config_range"),
            ("[storage.dedup]\nredis = 'redis+sentinel://cache'\n", "storage.dedup.redis", "config_range"),
            ("[storage.dedup]\nredis = 'redis+cluster://a,b/1'\n", "storage.dedup.redis", "config_range"),
            (
                "[storage.dedup]\nredis = 'redis+sentinel://a/m?sentinel_password=s3cret'\n",
                "storage.dedup.redis",
                "config_insecure",
            ),
            ("topic_prefix = 'a/b'\n", "storage.topic_prefix", "config_range"),
        ] {
            assert_eq!(problems(&format!("{kafka}{text}")), [(key.to_owned(), reason)], "{text}");
        }
        for brokers in ["[]", "['kafka']", "['kafka:0']", "['a:9092,b:9092']", "['http://a:9092']"] {
            assert_eq!(problems(&format!("kind = 'kafka'\nbrokers = {brokers}\n"))[0].0, "storage.brokers");
        }
    }

    #[test]
    fn what_only_kafka_has_is_refused_beside_a_file() {
        let text =
            "brokers = ['127.0.0.1:9092']\nreplication = 3\n[storage.dedup]\nredis = 'redis://127.0.0.1/'\n";
        let found = problems(text);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().all(|(_, reason)| *reason == "config_unsupported"));
    }
}
