//! `[sources.NAME]`: a preset with overrides, or a whole description, and the secrets that go with it.
//!
//! The description itself is the business of `scheme`; here is what goes with it, and what holds between
//! sources.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chaski_common::clock::Clock;
use chaski_common::event::Environment;
use chaski_common::secret::Secret;
use chaski_common::storage::OnConflict;
use chaski_ingest::location::Location;
use chaski_ingest::source::{DatedSecret, IpNet, KeySpec, SchemeSpec, Secrets, SourceSpec};
use chaski_ingest::verify::{Scheme, key_bytes};
use jiff::Timestamp;

use super::problem::{Place, Reason};
use super::reader::Node;
use super::scheme::unsigned;
use super::secret::{Reference, weakness};
use super::units::spell_duration;
use super::value::{DatedEntry, Entry, Value};
use super::{Checker, SourceRules, environment};

/// Most bytes of a source's path.
const PATH_BYTES_MAX: usize = 256;

/// The sources that could be read, and the names of all.
pub(super) struct Sources {
    ready: Vec<(SourceSpec, SourceRules)>,
    /// Those that may share a secret, as far as the file goes.
    lax: BTreeSet<Arc<str>>,
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
        self.ready.iter().any(|(source, _)| each_secret(&source.secrets).any(|its| its.secret == *secret))
    }

    pub(super) fn into_config(self) -> (Vec<SourceSpec>, BTreeMap<Arc<str>, SourceRules>) {
        let rules = self.ready.iter().map(|(source, rules)| (source.name.clone(), rules.clone())).collect();
        (self.ready.into_iter().map(|(source, _)| source).collect(), rules)
    }
}

fn each_secret(secrets: &Secrets) -> Box<dyn Iterator<Item = &DatedSecret> + '_> {
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
        let mut sources = Sources { ready: Vec::new(), lax: BTreeSet::new(), names: Vec::new() };
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
            if may_be_weak(node) {
                sources.lax.insert(name.as_str().into());
            }
            if let Some((spec, scheme)) = self.source(name, node, path, environment, &sources) {
                let (freshness, cover) = (scheme.freshness(), scheme.cover());
                let id_is_signed = unsigned(&scheme, &spec.scheme.event.id).next().is_none();
                let silence = node.has("silence").then(|| node.duration("silence"));
                let lacks_secret = self.short_of_secrets.contains(name);
                let rules =
                    SourceRules { dedup_window, freshness, cover, id_is_signed, silence, lacks_secret };
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
        others: &Sources,
    ) -> Option<(SourceSpec, Scheme)> {
        let allow_ips = self.allow_ips(node);
        let mut described = self.described(node);
        let key = described.as_ref().map(|described| described.signature.key.clone());
        let owner = Owner { node, name, environment, others, key };
        let secrets = self.source_secrets(&owner, described.as_mut());
        let described = described?;
        let scheme = self.compile(node, &described, secrets.as_ref());
        let (secrets, scheme) = (secrets?, scheme?);
        self.warn_of(node, &scheme, &described.event);
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

    fn source_secrets(&mut self, owner: &Owner<'_>, scheme: Option<&mut SchemeSpec>) -> Option<Secrets> {
        let node = owner.node;
        let key = node.section("signature").section("key");
        if node.has("secrets") && key.has("secrets") {
            let hint = format!("keep one of them; the other is {}", node.at("secrets").key);
            self.report.refuse(&key.at("secrets"), Reason::Duplicate, "the secrets are given twice", hint);
        }
        let holder = if key.has("secrets") { key } else { node };
        let at = holder.at("secrets");
        let select = scheme.map(|scheme| &mut scheme.signature.key.select);
        match holder.value("secrets") {
            Some(Value::Dated(listed)) => {
                // Secrets without names cannot be selected. Trying each of them is as safe, so this is no refusal:
                // the sample of the public surface has it.
                if let Some(select) = select.and_then(Option::take) {
                    if let Err(right) = Location::parse(&select) {
                        let message = format!("{select} is no place");
                        self.report.refuse(
                            &key.at("select"),
                            Reason::Scheme,
                            message,
                            format!("write {right}"),
                        );
                    }
                    let message = "a list has no key ids, so signature.key.select is not used; write { \"key-1\" = \"env:NAME\" }";
                    self.report.warn(&at, message);
                }
                let entries: Vec<_> = listed.iter().map(|dated| dated.entry.clone()).collect();
                let found = self.rotating(&at, &entries);
                if found.len() < entries.len() {
                    self.short_of_secrets.insert(owner.name.to_owned());
                }
                let found = found.into_iter().map(|(index, secret)| (&listed[index], secret)).collect();
                let secrets = self.good_secrets(owner, &at, found)?;
                (!secrets.is_empty()).then_some(Secrets::Any(secrets))
            }
            Some(Value::DatedTable(table)) => {
                let is_selected = select.is_none_or(|select| select.is_some());
                if !is_selected {
                    let hint = "write a list, or say in signature.key.select where the request names the key";
                    self.report.refuse(
                        &at,
                        Reason::Range,
                        "a table of key ids, but nothing selects one",
                        hint,
                    );
                }
                let fetch = |dated: &'_ DatedEntry| {
                    let at = Place { line: dated.entry.line, key: at.key.clone() };
                    self.secret(&at, &dated.entry.text)
                };
                let fetched: Vec<_> = table.values().map(fetch).collect();
                let found = table.values().zip(fetched).filter_map(|(dated, secret)| Some((dated, secret?)));
                let secrets = self.good_secrets(owner, &at, found.collect())?;
                let is_whole = secrets.len() == table.len();
                (is_whole && is_selected).then(|| Secrets::ById(table.keys().cloned().zip(secrets).collect()))
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

    /// The secrets with their times, if each is one that protects this source and nothing else.
    fn good_secrets(
        &mut self,
        owner: &Owner<'_>,
        at: &Place,
        found: Vec<(&DatedEntry, Secret)>,
    ) -> Option<Vec<DatedSecret>> {
        let mut good = true;
        for (index, (dated, secret)) in found.iter().enumerate() {
            let at = Place { line: dated.entry.line, key: at.key.clone() };
            let key = owner.key_of(secret);
            let strong = self.strong_enough(owner.node, &at, &dated.entry.text, secret, &key);
            let before = found[..index].iter().find(|(_, earlier)| owner.key_of(earlier) == key);
            let before = before.map(|(earlier, _)| &*earlier.entry.text);
            good &= strong && self.of_its_own(owner, &at, &dated.entry, (secret, &key), before);
        }
        let secrets: Vec<_> = found
            .into_iter()
            .map(|(dated, secret)| DatedSecret {
                secret,
                validity: dated.validity,
                created: self.created(dated),
            })
            .collect();
        self.warn_of_times(at, &secrets);
        good.then_some(secrets)
    }

    /// Whoever wrote `not_before` knows it better than the file, which may be a copy.
    fn created(&self, dated: &DatedEntry) -> Option<Timestamp> {
        let of_the_file = || Reference::parse(&dated.entry.text)?.written_at(self.folder);
        dated.validity.not_before.or_else(of_the_file)
    }

    /// Weak secrets may be allowed, an empty one never.
    fn strong_enough(
        &mut self,
        node: &Node,
        at: &Place,
        reference: &str,
        secret: &Secret,
        key: &Secret,
    ) -> bool {
        let is_empty = secret.expose().is_empty();
        match weakness(secret, Some(key)).as_deref() {
            Some(weakness) if may_be_weak(node) && !is_empty => {
                self.report.warn(at, format!("{reference}: {weakness}, and taken: weak_secret = \"allow\""));
                true
            }
            weakness if is_empty => self.strong(at, reference, weakness, ""),
            weakness => self.strong(
                at,
                reference,
                weakness,
                ", or set weak_secret = \"allow\" where the provider gave no better one",
            ),
        }
    }

    /// Refuses a secret that is there already: `before` in this source, or in another one.
    fn of_its_own(
        &mut self,
        owner: &Owner<'_>,
        at: &Place,
        reference: &Entry,
        (secret, key): (&Secret, &Secret),
        before: Option<&str>,
    ) -> bool {
        let reference = &reference.text;
        if let Some(before) = before {
            let (message, hint) = if before == reference {
                (format!("{reference} is listed twice"), "leave one of them out")
            } else {
                let message = format!("{reference} holds the same secret as {before}");
                (message, "leave one of them out; a rotation needs a new secret")
            };
            self.report.refuse(at, Reason::SecretReused, message, hint);
            return false;
        }
        let uses = |(other, _): &&(SourceSpec, SourceRules)| {
            let how = &other.scheme.signature.key;
            // One text that two schemes read differently is one secret all the same.
            each_secret(&other.secrets).any(|its| its.secret == *secret || key_of(how, &its.secret) == *key)
        };
        // That of the other environment first: no word of the file allows it.
        let mut sharing: Vec<_> = owner.others.ready.iter().filter(uses).map(|(other, _)| other).collect();
        sharing.sort_by_key(|other| other.environment == owner.environment);
        let Some(other) = sharing.first() else { return true };
        let (message, hint) = if other.environment != owner.environment {
            (
                format!(
                    "{reference} holds a secret that sources.{} uses in {}",
                    other.name,
                    other.environment.name()
                ),
                "take one secret for sandbox and another for production",
            )
        } else if owner.others.lax.contains(owner.name) || owner.others.lax.contains(&other.name) {
            return true;
        } else {
            (
                format!(
                    "{reference} holds a secret that sources.{} uses: a callback signed for one could be posted to the other, as another event",
                    other.name
                ),
                "give each a secret of its own, or set weak_secret = \"allow\" where the provider has one only",
            )
        };
        self.report.refuse(at, Reason::SecretReused, message, hint);
        false
    }

    /// Says which secrets are of no use now.
    fn warn_of_times(&mut self, at: &Place, secrets: &[DatedSecret]) {
        let now = Clock::system().now();
        for until in secrets.iter().filter(|dated| dated.validity.is_over(now)) {
            let until = until.validity.not_after.unwrap_or_default();
            self.report.warn(
                at,
                format!("a secret was good until {until} and verifies nothing any more; take it out"),
            );
        }
        if !secrets.is_empty() && !secrets.iter().any(|dated| dated.validity.covers(now)) {
            self.report.warn(at, "none of the secrets is good now: every callback is answered 401");
        }
    }
}

/// Whose secrets are being read.
struct Owner<'a> {
    node: &'a Node,
    name: &'a str,
    environment: Environment,
    others: &'a Sources,
    /// How a secret's text is read; none where the scheme is wrong.
    key: Option<KeySpec>,
}

impl Owner<'_> {
    fn key_of(&self, secret: &Secret) -> Secret {
        self.key.as_ref().map_or_else(|| secret.clone(), |key| key_of(key, secret))
    }
}

/// What a secret stands for, as two texts may be one key. One that stands for nothing is refused with its scheme.
pub(crate) fn key_of(key: &KeySpec, secret: &Secret) -> Secret {
    key_bytes(key, secret).unwrap_or_else(|_| secret.clone())
}

fn may_be_weak(node: &Node) -> bool {
    node.text("weak_secret").as_deref() == Some("allow")
}
