//! `[sources.NAME]`: a preset with overrides, or a whole description, and the secrets that go with it.
//!
//! The description itself is the business of `scheme`; here is what goes with it, and what holds between
//! sources.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chaski_common::event::Environment;
use chaski_common::secret::Secret;
use chaski_common::storage::OnConflict;
use chaski_ingest::source::{IpNet, SchemeSpec, Secrets, SourceSpec};
use chaski_ingest::verify::Scheme;

use super::problem::{Place, Reason};
use super::reader::Node;
use super::value::{Entry, Value, spell_duration};
use super::{Checker, SourceRules, environment};

/// Most bytes of a source's path.
const PATH_BYTES_MAX: usize = 256;

/// The sources that could be read, and the names of all.
pub(super) struct Sources {
    ready: Vec<(SourceSpec, SourceRules)>,
    /// Also of those with problems, so that a destination that names one is not blamed for them.
    names: Vec<(Arc<str>, Environment)>,
}

impl Sources {
    pub(super) fn environment_of(&self, name: &str) -> Option<Environment> {
        self.names.iter().find(|(known, _)| &**known == name).map(|(_, environment)| *environment)
    }

    pub(super) fn of_environment(&self, environment: Environment) -> Vec<Arc<str>> {
        self.names.iter().filter(|(_, its)| *its == environment).map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Arc<str>, Environment)> {
        self.names.iter().cloned()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|(name, _)| &**name)
    }

    pub(super) fn uses(&self, secret: &Secret) -> bool {
        self.ready.iter().any(|(source, _)| each_secret(&source.secrets).any(|its| its == secret))
    }

    pub(super) fn into_config(self) -> (Vec<SourceSpec>, BTreeMap<Arc<str>, SourceRules>) {
        let rules = self.ready.iter().map(|(source, rules)| (source.name.clone(), *rules)).collect();
        (self.ready.into_iter().map(|(source, _)| source).collect(), rules)
    }
}

fn each_secret(secrets: &Secrets) -> Box<dyn Iterator<Item = &Secret> + '_> {
    match secrets {
        Secrets::Any(list) => Box::new(list.iter()),
        Secrets::ById(table) => Box::new(table.values()),
    }
}

impl Checker<'_> {
    pub(super) fn sources(&mut self, nodes: &[(String, Node)], retention: Duration) -> Sources {
        if nodes.is_empty() {
            let nowhere = Place { line: 0, key: "sources".to_owned() };
            self.report.warn(&nowhere, "no source is configured: nothing can come in");
        }
        let mut sources = Sources { ready: Vec::new(), names: Vec::new() };
        let mut paths: HashMap<Arc<str>, String> = HashMap::new();
        for (name, node) in nodes {
            let path = self.path(name, node);
            if let Some(first) = paths.insert(path.clone(), node.place().key.clone()) {
                let message = format!("{first} has the path {path} already");
                self.report.refuse(
                    &node.at("path"),
                    Reason::Duplicate,
                    message,
                    "give each source a path of its own",
                );
            }
            let environment = environment(node);
            let dedup_window = self.dedup_window(node, retention);
            sources.names.push((name.as_str().into(), environment));
            if let Some((spec, scheme)) = self.source(name, node, path, environment) {
                self.reused(node, &spec, &sources);
                let (freshness, body_is_signed) = (scheme.freshness(), scheme.body_is_authenticated());
                let silence = node.has("silence").then(|| node.duration("silence"));
                let rules = SourceRules { dedup_window, freshness, body_is_signed, silence };
                sources.ready.push((spec, rules));
            }
        }
        sources
    }

    fn source(
        &mut self,
        name: &str,
        node: &Node,
        path: Arc<str>,
        environment: Environment,
    ) -> Option<(SourceSpec, Scheme)> {
        let allow_ips = self.allow_ips(node);
        let mut described = self.described(node);
        let secrets = self.source_secrets(node, described.as_mut());
        let described = described?;
        let scheme = self.compile(node, &described, secrets.as_ref());
        let (secrets, scheme) = (secrets?, scheme?);
        self.warn_of(node, &scheme);
        let on_conflict = match node.text("on_conflict").as_deref() {
            Some("duplicate") => OnConflict::Duplicate,
            Some(_) => OnConflict::Quarantine,
            None => described.event.on_conflict.unwrap_or(OnConflict::Quarantine),
        };
        let provider = node.text("provider").map(Into::into);
        let spec = SourceSpec {
            name: name.into(),
            provider,
            path,
            environment,
            secrets,
            scheme: described,
            allow_ips,
            on_conflict,
        };
        Some((spec, scheme))
    }

    fn path(&mut self, name: &str, node: &Node) -> Arc<str> {
        let Some(path) = node.text("path") else { return format!("/in/{name}").into() };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
        let segments = || path.split('/').skip(1);
        let wrong = if !path.starts_with('/') {
            "must begin with /"
        } else if path.len() > PATH_BYTES_MAX {
            "longer than 256 bytes"
        } else if !path.bytes().all(plain) {
            "holds more than letters, digits and / - . _ ~"
        } else if segments().any(|segment| segment.is_empty() || segment == "." || segment == "..") {
            "has an empty segment, . or .."
        } else {
            return path.into();
        };
        let hint = format!("write one like \"/in/{name}\", which is also the default");
        self.report.refuse(&node.at("path"), Reason::Range, wrong, hint);
        format!("/in/{name}").into()
    }

    fn dedup_window(&mut self, node: &Node, retention: Duration) -> Duration {
        let window = node.duration("dedup_window");
        let [shown, kept] = [window, retention].map(spell_duration);
        if window > retention {
            let message = format!(
                "{shown} is longer than storage.retention ({kept}), and ids are kept as long as events"
            );
            self.report.refuse(
                &node.at("dedup_window"),
                Reason::DedupWindow,
                message,
                "raise storage.retention or shorten this",
            );
        }
        let retries = node.duration("sender_retry_window");
        if retries > window {
            let message = format!(
                "{shown} is shorter than the {} the sender goes on repeating",
                spell_duration(retries)
            );
            self.report.refuse(&node.at("dedup_window"), Reason::DedupWindow, message, "raise dedup_window");
        }
        window
    }

    fn allow_ips(&mut self, node: &Node) -> Vec<IpNet> {
        if node.texts("allow_ips").is_some_and(|listed| listed.is_empty()) {
            self.report.refuse(
                &node.at("allow_ips"),
                Reason::Range,
                "an empty list lets nobody in",
                "leave it out to let all in",
            );
        }
        self.nets(node, "allow_ips")
    }

    fn source_secrets(&mut self, node: &Node, scheme: Option<&mut SchemeSpec>) -> Option<Secrets> {
        let key = node.section("signature").section("key");
        if node.has("secrets") && key.has("secrets") {
            let hint = format!("keep one of them; the other is {}", node.at("secrets").key);
            self.report.refuse(&key.at("secrets"), Reason::Duplicate, "the secrets are given twice", hint);
        }
        let holder = if key.has("secrets") { key } else { node };
        let at = holder.at("secrets");
        let select = scheme.map(|scheme| &mut scheme.signature.key.select);
        match holder.value("secrets") {
            Some(Value::Texts(references)) => {
                // Secrets without names cannot be selected. Trying each of them is as safe, so this is no refusal.
                if select.and_then(Option::take).is_some() {
                    let message = "a list has no key ids, so signature.key.select is not used; write { \"key-1\" = \"env:NAME\" }";
                    self.report.warn(&at, message);
                }
                let secrets = self.rotating(&at, &references);
                let strong = secrets.iter().filter(|secret| self.strong_enough(node, &at, secret)).count();
                (strong == secrets.len() && !secrets.is_empty()).then_some(Secrets::Any(secrets))
            }
            Some(Value::Table(references)) => {
                if select.is_some_and(|select| select.is_none()) {
                    let hint = "write a list, or say in signature.key.select where the request names the key";
                    self.report.refuse(
                        &at,
                        Reason::Range,
                        "a table of key ids, but nothing selects one",
                        hint,
                    );
                }
                self.secrets_by_id(node, &at, &references).map(Secrets::ById)
            }
            _ => {
                if !node.writes("secrets") && !key.writes("secrets") {
                    self.report.refuse(
                        &at,
                        Reason::Missing,
                        "missing",
                        "write for example secrets = [\"env:NAME\"]",
                    );
                }
                None
            }
        }
    }

    fn secrets_by_id(
        &mut self,
        node: &Node,
        at: &Place,
        references: &BTreeMap<String, Entry>,
    ) -> Option<BTreeMap<String, Secret>> {
        let mut secrets = BTreeMap::new();
        for (id, reference) in references {
            let at = Place { line: reference.line, key: at.key.clone() };
            if let Some(secret) = self.secret(&at, &reference.text)
                && self.strong_enough(node, &at, &secret)
            {
                secrets.insert(id.clone(), secret);
            }
        }
        (secrets.len() == references.len()).then_some(secrets)
    }

    /// Weak secrets may be allowed, an empty one never.
    fn strong_enough(&mut self, node: &Node, at: &Place, secret: &Secret) -> bool {
        let allowed = node.text("weak_secret").as_deref() == Some("allow") && !secret.expose().is_empty();
        allowed
            || self.strong(
                at,
                secret,
                ", or set weak_secret = \"allow\" where the provider gave no better one",
            )
    }

    fn reused(&mut self, node: &Node, spec: &SourceSpec, sources: &Sources) {
        let other = sources.ready.iter().find(|(other, _)| {
            other.environment != spec.environment
                && each_secret(&spec.secrets)
                    .any(|secret| each_secret(&other.secrets).any(|its| its == secret))
        });
        if let Some((other, _)) = other {
            let message =
                format!("sources.{} uses the same secret in {}", other.name, other.environment.name());
            let at = if node.has("secrets") {
                node.at("secrets")
            } else {
                node.section("signature").section("key").at("secrets")
            };
            self.report.refuse(
                &at,
                Reason::SecretReused,
                message,
                "take one secret for sandbox and another for production",
            );
        }
    }
}
