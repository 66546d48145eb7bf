//! From the file to a checked [`Config`]: typed, complete, its secrets loaded.
//!
//! Every problem of a file is found in one reading and reported with file, line, key, what is wrong and
//! what would be right; only text that is not TOML ends the reading early. What holds between sections is
//! checked here too, so that whoever holds a `Config` need not ask again. Nothing is opened or bound.
//!
//! One table of settings (`settings`) drives the reader, the reference and the schema.

mod settings;
mod units;
mod value;
mod problem;
mod reader;
mod secret;
mod storage;
mod net;
mod tls;
mod ingest;
mod scheme;
mod source;
mod destination;
mod telemetry;
mod alerts;
mod url;
mod reference;
mod schema;
mod access;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::expect_used, clippy::panic, reason = "a panic is what a fuzzer looks for")]
pub mod fuzzing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chaski_common::event::Environment;
use chaski_common::secret::Secret;
use chaski_common::storage::kafka;
use chaski_dispatcher::destination::DestinationSpec;
use chaski_dispatcher::{SECRET_PREFIX, standard_key};
use chaski_ingest::peer::Proxies;
use chaski_ingest::source::SourceSpec;
use chaski_ingest::verify::{Cover, Freshness};
use chaski_ingest::{Limits, TlsConfig};

pub use access::AccessConfig;
pub use problem::{ConfigErrors, Problem, Reason, Warning};
pub use reference::{reference, settings};
pub use schema::schema;
pub(crate) use secret::weakness;
pub(crate) use source::key_of;
pub use storage::{StorageConfig, StorageKind};
pub use units::{parse_duration, spell_duration, spell_rate, spell_size};

use crate::alerts::AlertsConfig;
use problem::{Place, Report};
use reader::Node;

/// Most bytes a configuration has.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// A configuration that can be run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The edge.
    pub ingest: IngestConfig,
    /// Metrics, health and the API of the commands.
    pub admin: AdminConfig,
    /// Where events are made durable.
    pub storage: StorageConfig,
    /// What is said on stderr.
    pub log: LogConfig,
    /// Who is sent traces; nobody, if there is none.
    pub telemetry: Option<TelemetryConfig>,
    /// The senders, in the order of the file.
    pub sources: Vec<SourceSpec>,
    /// What the configuration says about each source beyond its [`SourceSpec`], by name.
    pub source_rules: BTreeMap<Arc<str>, SourceRules>,
    /// The receivers, in the order of the file.
    pub destinations: Vec<DestinationSpec>,
    /// Who is told when something is wrong.
    pub alerts: AlertsConfig,
    /// What is allowed and yet worth knowing.
    pub warnings: Vec<Warning>,
}

/// `[ingest]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestConfig {
    /// Where senders post to.
    pub listen: SocketAddr,
    /// The largest body taken, in bytes.
    pub body_bytes_max: usize,
    /// Every other bound.
    pub limits: Limits,
    /// Whether HTTP/2 is spoken, too.
    pub http2: bool,
    /// The names it is served under; empty means all.
    pub hosts: Vec<String>,
    /// Who is believed about the address of a sender.
    pub proxies: Proxies,
    /// How long callbacks are still taken when stopping, after `/readyz` has begun to say no.
    pub stop_delay: Duration,
    /// How long requests under way are waited for when stopping.
    pub drain_timeout: Duration,
    /// TLS, if chaski speaks it itself.
    pub tls: Option<TlsFiles>,
}

/// `[ingest.tls]`: files that were there and could be read when the configuration was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and its chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Authorities of which senders must show a certificate.
    pub client_ca: Option<PathBuf>,
}

impl From<&TlsFiles> for TlsConfig {
    fn from(files: &TlsFiles) -> Self {
        let TlsFiles { cert, key, client_ca } = files.clone();
        Self { cert, key, client_ca }
    }
}

/// `[admin]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// Address and port, never that of the edge.
    pub listen: SocketAddr,
    /// The bearer token; always there unless the address is loopback.
    pub token: Option<Secret>,
}

/// `[log]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// For people or for programs.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: tracing::Level,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[telemetry]`, with a collector.
#[derive(Clone, Debug, PartialEq)]
pub struct TelemetryConfig {
    /// Where spans are posted to.
    pub traces: http::Uri,
    /// The share of traces begun here that are sent, from 0 to 1.
    pub sampling: f64,
}

/// What the configuration says about a source beyond its [`SourceSpec`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRules {
    /// How long a repeated event must be recognised; never longer than the storage's retention.
    pub dedup_window: Duration,
    /// What its timestamp proves.
    pub freshness: Freshness,
    /// What of the body the signature covers.
    pub cover: Cover,
    /// Whether it covers every part of the event's id.
    pub id_is_signed: bool,
    /// How long it may go without an accepted event before somebody is told.
    pub silence: Option<Duration>,
    /// Whether a listed secret could not be fetched, and is gone on without.
    pub lacks_secret: bool,
}

/// What a source's or a destination's section says; real money where it says nothing.
fn environment(node: &Node) -> Environment {
    node.text("environment").as_deref().and_then(Environment::named).unwrap_or(Environment::Production)
}

/// What the checks of one file share.
struct Checker<'a> {
    report: Report,
    /// Where relative paths start.
    folder: &'a Path,
    env: &'a dyn Fn(&str) -> Option<String>,
    /// The sources of which a listed secret could not be fetched.
    short_of_secrets: BTreeSet<String>,
}

impl Config {
    /// Reads a file, with the variables of this process.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let text = read_file(path)?;
        Self::parse(&text, path, &|name| std::env::var(name).ok())
    }

    /// Reads a text as the content of `file`: it is named in problems, and relative paths start at its folder.
    /// Secrets' files and certificates are read, variables are asked of `env`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(
        text: &str,
        file: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigErrors> {
        let mut checker = Checker::new(file, env);
        let config = checker.config(text);
        let warnings = checker.report.finish()?;
        let config = config.expect("a reading that ended early has reported why");
        Ok(Self { warnings, ..config })
    }
}

/// A problem that only shows when a configuration is put to use, told as all others are: with the line that `key`,
/// a full one, has in the file.
#[must_use]
pub fn refused(file: &Path, key: &str, reason: Reason, message: &str, hint: &str) -> ConfigErrors {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let text = read_file(file).unwrap_or_default();
    let read = Checker::new(file, &|_| None).read(&text);
    let mut names = section.split('.').filter(|name| !name.is_empty());
    let node = read.as_ref().and_then(|root| names.try_fold(root, |node, name| node.find(name)));
    let line = node.map_or(0, |node| node.at(name).line);
    let mut report = Report::new(file.to_owned());
    report.refuse(&Place { line, key: key.to_owned() }, reason, message, hint);
    report.into_errors()
}

/// Reads a file that is no larger than a configuration is.
fn read_file(path: &Path) -> Result<String, ConfigErrors> {
    use std::io::Read as _;
    let refused = |reason, message: String, hint: &str| {
        let mut report = Report::new(path.to_owned());
        report.refuse(&Place::file(), reason, message, hint);
        report.into_errors()
    };
    let unreadable = |error: std::io::Error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => {
                "name the file with -c; `chaski config reference` prints one to start from"
            }
            _ => "",
        };
        refused(Reason::Unreadable, format!("cannot be read: {error}"), hint)
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    // One byte more than allowed is enough to know, without reading on to the end.
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(refused(Reason::TooLarge, TOO_LARGE.to_owned(), TOO_LARGE_HINT));
    }
    String::from_utf8(bytes).map_err(|error| {
        refused(Reason::Syntax, format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()), "")
    })
}

const TOO_LARGE: &str = "larger than 1 MiB";
const TOO_LARGE_HINT: &str = "a configuration is never that large; is this the right file?";

impl<'a> Checker<'a> {
    fn new(file: &'a Path, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            report: Report::new(file.to_owned()),
            folder: file.parent().unwrap_or(Path::new("")),
            env,
            short_of_secrets: BTreeSet::new(),
        }
    }

    /// The text as a tree of known keys; `None` when it is none.
    fn read(&mut self, text: &str) -> Option<Node> {
        if text.len() > FILE_BYTES_MAX {
            self.report.refuse(&Place::file(), Reason::TooLarge, TOO_LARGE, TOO_LARGE_HINT);
            return None;
        }
        reader::read(text, &mut self.report)
    }
}

impl Checker<'_> {
    fn config(&mut self, text: &str) -> Option<Config> {
        let file = self.read(text)?;
        let mut storage = self.storage(file.section("storage"));
        let retention = storage.retention;
        let ingest = self.ingest(file.section("ingest"));
        if !storage.is_embedded() && ingest.body_bytes_max > kafka::BODY_BYTES_MAX {
            let [body, most] =
                [ingest.body_bytes_max, kafka::BODY_BYTES_MAX].map(|bytes| spell_size(bytes as u64));
            let message = format!("a record of Kafka has no room for a body of {body}");
            let hint = format!("at most {most} with storage.kind = \"kafka\"");
            self.report.refuse(&file.section("ingest").at("max_body"), Reason::Range, message, hint);
        }
        let admin = self.admin(file.section("admin"), ingest.listen);
        let sources = self.sources(&file.section("sources").each, retention);
        let destinations = self.destinations(&file.section("destinations").each, &sources, retention);
        let (sources, source_rules) = sources.into_config();
        let windows = source_rules.values().map(|rules| rules.dedup_window);
        storage.remember_ids_for(windows.max().unwrap_or_default());
        let names = destinations.iter().map(|destination| Arc::clone(&destination.name)).collect();
        let alerts = self.alerts(file.section("alerts"), &source_rules, names);
        Some(Config {
            ingest,
            admin,
            storage,
            log: log(file.section("log")),
            telemetry: self.telemetry(file.section("telemetry")),
            sources,
            source_rules,
            destinations,
            alerts,
            warnings: Vec::new(),
        })
    }

    fn admin(&mut self, node: &Node, ingest: SocketAddr) -> AdminConfig {
        let listen = node.address("listen");
        let same_address =
            listen.ip() == ingest.ip() || listen.ip().is_unspecified() || ingest.ip().is_unspecified();
        if listen.port() == ingest.port() && listen.port() != 0 && same_address {
            let message = "the same address as ingest.listen: metrics and commands would be open to senders";
            self.report.refuse(&node.at("listen"), Reason::Insecure, message, "take another port");
        }
        let token = node.text("token").and_then(|reference| {
            let at = node.at("token");
            let token = self.secret(&at, &reference)?;
            self.strong(&at, &reference, weakness(&token, None).as_deref(), "")
                .then(|| self.header_text(&at, &token))
                .flatten()
        });
        if !listen.ip().is_loopback() && !node.writes("token") {
            let hint = "set admin.token = \"env:NAME\", or listen on 127.0.0.1";
            self.report.refuse(
                &node.at("listen"),
                Reason::Insecure,
                "an address that is not loopback needs a token",
                hint,
            );
        }
        AdminConfig { listen, token }
    }

    /// The secret a reference stands for; a missing one is a problem.
    fn secret(&mut self, at: &Place, reference: &str) -> Option<Secret> {
        match secret::Reference::parse(reference)?.fetch(self.folder, self.env) {
            Ok(secret) => Some(secret),
            Err(secret::Absent::Unset(name)) => {
                let message = format!("the environment variable {name} is not set");
                self.report.refuse(
                    at,
                    Reason::Env,
                    message,
                    "set it, or keep the secret in a file: \"file:PATH\"",
                );
                None
            }
            Err(secret::Absent::Refused((reason, message, hint))) => {
                self.report.refuse(at, reason, message, hint);
                None
            }
        }
    }

    /// The secrets of a list, each with its place there; those after the first may be unset.
    fn rotating(&mut self, at: &Place, references: &[value::Entry]) -> Vec<(usize, Secret)> {
        let mut secrets = Vec::new();
        for (index, reference) in references.iter().enumerate() {
            let at = Place { line: reference.line, key: at.key.clone() };
            let missing = match secret::Reference::parse(&reference.text) {
                Some(secret::Reference::Env(name)) if (self.env)(name).is_none() => {
                    Some(format!("the environment variable {name} is not set"))
                }
                Some(secret::Reference::File(path))
                    if self.folder.join(path).try_exists().is_ok_and(|exists| !exists) =>
                {
                    Some(format!("there is no file {}", path.display()))
                }
                _ => None,
            };
            match missing {
                Some(missing) if index > 0 => {
                    self.report.warn(&at, format!("{missing}; going on without this secret"));
                }
                _ => secrets.extend(self.secret(&at, &reference.text).map(|secret| (index, secret))),
            }
        }
        secrets
    }

    /// Refuses a secret that can be guessed.
    fn strong(&mut self, at: &Place, reference: &str, weakness: Option<&str>, way_out: &str) -> bool {
        if let Some(weakness) = weakness {
            let hint = format!("take {} random bytes or more{way_out}", secret::BYTES_MIN);
            self.report.refuse(at, Reason::SecretWeak, format!("{reference}: {weakness}"), hint);
        }
        weakness.is_none()
    }

    /// Refuses a secret that can be guessed, and one that no receiver's library could read.
    fn signs(&mut self, at: &Place, reference: &str, secret: &Secret) -> bool {
        let key = standard_key(secret);
        let weakness = weakness(secret, key.as_ref());
        if !self.strong(at, reference, weakness.as_deref(), "") {
            return false;
        }
        if key.is_some() {
            return true;
        }
        let is_marked = secret.expose().starts_with(SECRET_PREFIX.as_bytes());
        if is_marked {
            let message = format!("{reference}: {SECRET_PREFIX} stands in front of what is no base64");
            let hint = format!("take {SECRET_PREFIX} and the base64 of 24 random bytes or more");
            self.report.refuse(at, Reason::Scheme, message, hint);
        } else {
            let message = "its text is the key as it stands; a receiver that uses a library of Standard Webhooks needs \
                           the base64 of 24 to 64 bytes";
            self.report.warn(at, message);
        }
        !is_marked
    }

    /// Refuses a secret that cannot stand in a header.
    fn header_text(&mut self, at: &Place, secret: &Secret) -> Option<Secret> {
        let bytes = secret.expose();
        let plain = bytes.iter().all(|&byte| byte == b' ' || byte.is_ascii_graphic());
        let (reason, message) = if bytes.is_empty() {
            (Reason::SecretWeak, "the secret is empty")
        } else if !plain || bytes.first() == Some(&b' ') || bytes.last() == Some(&b' ') {
            (Reason::Header, "cannot stand in a header")
        } else {
            return Some(secret.clone());
        };
        self.report.refuse(at, reason, message, "take printable ASCII, without a line break");
        None
    }

    /// Refuses the absence of a key.
    fn need(&mut self, node: &Node, key: &str, hint: &str) -> bool {
        if !node.writes(key) {
            self.report.refuse(&node.at(key), Reason::Missing, "missing", hint);
        }
        node.has(key)
    }
}

fn log(node: &Node) -> LogConfig {
    LogConfig {
        format: match node.text("format").as_deref() {
            Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            _ => LogFormat::Auto,
        },
        level: node.text("level").and_then(|level| level.parse().ok()).unwrap_or(tracing::Level::INFO),
    }
}
