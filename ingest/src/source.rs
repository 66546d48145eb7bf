//! Which sender: what the configuration says about one source, and what it becomes once compiled.
//!
//! A preset is nothing but such a description, kept as data under `presets/`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use chaski_common::event::Environment;
use chaski_common::secret::Secret;
use chaski_common::storage::OnConflict;
use foldhash::fast::RandomState;
use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::content::Rules;
use crate::metrics::{EdgeMetrics, KeyUse, SourceMetrics};
use crate::verify::Scheme;

/// Longest name of a source, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// One configured source, its secrets loaded.
#[derive(Clone, Debug)]
pub struct SourceSpec {
    /// The name in the configuration, at most 64 bytes of `[a-z0-9_-]`.
    pub name: Arc<str>,
    /// The preset it is built on, if any.
    pub provider: Option<Arc<str>>,
    /// Where it is posted to, for example `/in/pagoefectivo`.
    pub path: Arc<str>,
    /// Whether its events are real money. Its secrets decide it, which no source of the other environment has;
    /// nothing that a callback says does.
    pub environment: Environment,
    /// Its secrets.
    pub secrets: Secrets,
    /// How it signs, what its events carry and how it is answered.
    pub scheme: SchemeSpec,
    /// Peers that may post; empty means all.
    pub allow_ips: Vec<IpNet>,
    /// Same id, other content.
    pub on_conflict: OnConflict,
}

/// The secrets of a source.
#[derive(Clone, Debug)]
pub enum Secrets {
    /// Any may match; the first is the current one, the others are on their way out.
    Any(Vec<DatedSecret>),
    /// A key id in the request selects one (`signature.key.select`).
    ById(BTreeMap<String, DatedSecret>),
}

impl Secrets {
    /// Each with the name that metrics and people call it by: its key id, or `current`, `previous`, `previous-2` …
    pub fn named(&self) -> Vec<(Cow<'_, str>, &DatedSecret)> {
        let place = |index| match index {
            0 => "current".into(),
            1 => "previous".into(),
            index => format!("previous-{index}").into(),
        };
        match self {
            Self::Any(list) => {
                list.iter().enumerate().map(|(index, secret)| (place(index), secret)).collect()
            }
            Self::ById(table) => table.iter().map(|(id, secret)| (id.as_str().into(), secret)).collect(),
        }
    }
}

/// A secret, and when it is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatedSecret {
    /// What signs.
    pub secret: Secret,
    /// Outside of this it verifies nothing.
    pub validity: Validity,
    /// Since when it exists, as far as anybody has told.
    pub created: Option<Timestamp>,
}

impl From<Secret> for DatedSecret {
    /// One that is good at any time.
    fn from(secret: Secret) -> Self {
        Self { secret, validity: Validity::default(), created: None }
    }
}

/// A span of time with both its ends, each of which may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validity {
    /// Not yet before this.
    pub not_before: Option<Timestamp>,
    /// No more after this.
    pub not_after: Option<Timestamp>,
}

impl Validity {
    /// Whether this moment is in it.
    #[must_use]
    pub fn covers(&self, now: Timestamp) -> bool {
        self.not_before.is_none_or(|from| from <= now) && !self.is_over(now)
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.not_after.is_some_and(|until| until < now)
    }
}

/// An address range in CIDR form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpNet {
    /// Any address of the range.
    pub address: IpAddr,
    /// Leading bits that count.
    pub prefix_bits: u8,
}

impl IpNet {
    /// Whether the address is in the range. An IPv4 address inside IPv6 counts as the IPv4 address it is.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (net, address) = match (self.address.to_canonical(), address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(address)) => {
                (u128::from(net.to_bits()) << 96, u128::from(address.to_bits()) << 96)
            }
            (IpAddr::V6(net), IpAddr::V6(address)) => (net.to_bits(), address.to_bits()),
            _ => return false,
        };
        // Of an IPv4 range that is written as IPv6, the first 96 bits say so.
        let written_v6 = self.address.is_ipv6() && self.address.to_canonical().is_ipv4();
        let prefix_bits = u32::from(self.prefix_bits).saturating_sub(if written_v6 { 96 } else { 0 });
        (net ^ address).leading_zeros() >= prefix_bits
    }
}

/// A description that cannot be compiled: which field, what is wrong, what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {wrong}; {right}")]
pub struct SpecError {
    /// The field, from the source's own table on: `signature.template`; of a list the entry as well: `event.id.0`.
    pub field: String,
    /// What is wrong with it.
    pub wrong: String,
    /// What would be right.
    pub right: String,
}

impl SpecError {
    pub(crate) fn new(field: &str, wrong: impl Into<String>, right: impl Into<String>) -> Self {
        Self { field: field.to_owned(), wrong: wrong.into(), right: right.into() }
    }
}

/// Everything that is wrong with a description; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecErrors(Vec<SpecError>);

impl From<SpecError> for SpecErrors {
    fn from(error: SpecError) -> Self {
        Self(vec![error])
    }
}

impl From<SpecErrors> for SpecError {
    /// The first of them.
    fn from(SpecErrors(mut errors): SpecErrors) -> Self {
        errors.swap_remove(0)
    }
}

impl IntoIterator for SpecErrors {
    type Item = SpecError;
    type IntoIter = std::vec::IntoIter<SpecError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// What was found wrong with a description so far, while the rest of it is looked at.
#[derive(Default)]
pub(crate) struct Faults(Vec<SpecError>);

impl Faults {
    /// What is in order; what is not is noted.
    pub(crate) fn keep<T>(&mut self, outcome: Result<T, impl Into<SpecErrors>>) -> Option<T> {
        outcome.map_err(|errors| self.0.extend(errors.into())).ok()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The whole, if all of it was in order.
    pub(crate) fn finish<T>(self, whole: Option<T>) -> Result<T, SpecErrors> {
        match whole {
            Some(whole) if self.is_empty() => Ok(whole),
            _ => Err(SpecErrors(self.0)),
        }
    }
}

/// The declarative description of a sender: `[sources.NAME.signature]`, `.event` and `.reply`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchemeSpec {
    /// How it signs.
    pub signature: SignatureSpec,
    /// What its events carry.
    #[serde(default)]
    pub event: EventSpec,
    /// How it is answered.
    #[serde(default)]
    pub reply: ReplySpec,
}

/// A description, compiled: all that a request is held against.
pub(crate) struct Compiled {
    pub(crate) scheme: Scheme,
    pub(crate) rules: Rules,
    pub(crate) reply: Reply,
}

impl SchemeSpec {
    /// Looks at all of it with the eyes of the edge: what passes here is taken there.
    ///
    /// # Errors
    /// Everything that is wrong, each with its field and what would be right.
    pub fn check(&self, secrets: &Secrets) -> Result<Scheme, SpecErrors> {
        self.compile(secrets).map(|compiled| compiled.scheme)
    }

    pub(crate) fn compile(&self, secrets: &Secrets) -> Result<Compiled, SpecErrors> {
        let mut faults = Faults::default();
        let scheme = faults.keep(Scheme::compile(self, secrets));
        let rules = faults.keep(Rules::compile(&self.event));
        let reply = faults.keep(Reply::compile(&self.reply));
        let whole = scheme.zip(rules).zip(reply);
        faults.finish(whole.map(|((scheme, rules), reply)| Compiled { scheme, rules, reply }))
    }
}

/// `[sources.NAME.signature]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignatureSpec {
    /// `hmac-sha1`, `hmac-sha256`, `hmac-sha512`, `ed25519`, or `http-basic` (credentials, not a signature).
    pub algorithm: String,
    /// `header:NAME`, `form:FIELD` or `json:/pointer`; exactly one value.
    pub from: String,
    /// Splits the value into entries, each trimmed.
    #[serde(default)]
    pub list: Option<String>,
    /// Splits an entry into tag and value.
    #[serde(default)]
    pub pair: Option<String>,
    /// The tags whose entries count; any may match, others are ignored.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Must stand in front of an unpaired entry, and is cut off.
    #[serde(default)]
    pub prefix: String,
    /// `hex` or `base64`.
    #[serde(default = "hex")]
    pub encoding: String,
    /// The signed text: literals and `{body} {ts} {header:N} {query:N} {form:N} {json:/ptr} {const:N}`, with
    /// `|lower` and `|unslash`; a part in `[..]` is left out when a variable inside is missing.
    #[serde(default = "body_template")]
    pub template: String,
    /// Values for `{const:N}`.
    #[serde(default, rename = "const")]
    pub constants: BTreeMap<String, String>,
    /// The forms of the body that are tried in order: `raw`, `json_minify`.
    #[serde(default = "raw")]
    pub body: Vec<String>,
    /// What the key is made of.
    #[serde(default)]
    pub key: KeySpec,
    /// When the sender says it signed.
    #[serde(default)]
    pub timestamp: Option<TimestampSpec>,
}

/// `[sources.NAME.signature.key]`; the secrets themselves are in [`SourceSpec::secrets`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySpec {
    /// Cut off in front of the secret if it is there.
    #[serde(default)]
    pub strip_prefix: String,
    /// `utf8`, `hex` or `base64`.
    #[serde(default = "utf8")]
    pub encoding: String,
    /// Where the request names the secret, for example `header:x-key-id`.
    #[serde(default)]
    pub select: Option<String>,
}

/// `[sources.NAME.signature.timestamp]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimestampSpec {
    /// `tag:T`, `header:NAME` or `json:/pointer`.
    pub from: String,
    /// `unix`, `unix_ms`, `unix_auto` (above 1e11 it is milliseconds) or `rfc3339`.
    pub format: String,
    /// How old it may be.
    #[serde(default = "five_minutes", with = "seconds")]
    pub past: Duration,
    /// How far ahead it may be.
    #[serde(default = "five_minutes", with = "seconds")]
    pub future: Duration,
}

/// `[sources.NAME.event]`. Locations are `json:/pointer`, `header:NAME`, `query:NAME` or `form:FIELD`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventSpec {
    /// Parts of the deduplication key.
    pub id: Vec<String>,
    /// `body-sha256`: what stands in for a key with a missing or empty part. Without it such an event is
    /// quarantined.
    pub fallback: Option<String>,
    /// The event's type.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The event's subject, which is also the ordering key.
    pub subject: Option<String>,
    /// When it happened.
    pub time: Option<String>,
    /// The content rules to hold it against: `json` (the default), `form`, `any`, or a named grammar such as
    /// `pagoefectivo`.
    pub content: Option<String>,
    /// An event that happened longer ago than this is quarantined; none means any age will do. A second line of
    /// defence where nothing signed says when a request was sent.
    #[serde(with = "optional_seconds", skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Duration>,
    /// What a source with this description does about the same id with other content, unless it says so itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_conflict: Option<OnConflict>,
}

/// `[sources.NAME.reply]`: the answer to an accepted, duplicate or quarantined event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplySpec {
    /// A 2xx status.
    pub status: u16,
    /// The body; none means the JSON with id and status.
    pub body: Option<String>,
    /// Its content type.
    pub content_type: String,
}

impl Default for ReplySpec {
    fn default() -> Self {
        Self { status: 200, body: None, content_type: "text/plain".to_owned() }
    }
}

impl Default for KeySpec {
    fn default() -> Self {
        Self { strip_prefix: String::new(), encoding: utf8(), select: None }
    }
}

fn hex() -> String {
    "hex".to_owned()
}
fn utf8() -> String {
    "utf8".to_owned()
}
fn raw() -> Vec<String> {
    vec!["raw".to_owned()]
}
fn body_template() -> String {
    "{body}".to_owned()
}
const fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

/// Durations of a preset and of the merged description are whole seconds; the configuration has turned
/// `"5m"` into them.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.as_secs())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_secs)
    }
}

mod optional_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.map(|value| value.as_secs()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_secs))
    }
}

/// How an event that is safe is answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Option<Bytes>,
    pub(crate) content_type: HeaderValue,
}

impl Default for Reply {
    fn default() -> Self {
        Self { status: StatusCode::OK, body: None, content_type: HeaderValue::from_static("text/plain") }
    }
}

impl Reply {
    fn compile(spec: &ReplySpec) -> Result<Self, SpecError> {
        let status =
            StatusCode::from_u16(spec.status).ok().filter(StatusCode::is_success).ok_or_else(|| {
                SpecError::new(
                    "reply.status",
                    format!("{} does not say that the event is safe", spec.status),
                    "200 to 299",
                )
            })?;
        let content_type = HeaderValue::from_str(&spec.content_type).map_err(|_| {
            SpecError::new("reply.content_type", "not a header value", "for example text/plain")
        })?;
        Ok(Self { status, body: spec.body.clone().map(Bytes::from), content_type })
    }
}

/// A source, compiled: everything a request needs, and nothing that is looked up by name.
pub(crate) struct Source {
    pub(crate) name: Arc<str>,
    pub(crate) environment: Environment,
    pub(crate) scheme: Scheme,
    pub(crate) rules: Rules,
    pub(crate) allow_ips: Vec<IpNet>,
    pub(crate) on_conflict: OnConflict,
    pub(crate) reply: Reply,
    pub(crate) metrics: SourceMetrics,
    /// Of its first event; few sources ever send another.
    content_type: OnceLock<Arc<str>>,
}

impl Source {
    /// The text of a content type, so that an event need not carry its own copy.
    pub(crate) fn content_type(&self, text: &str) -> Arc<str> {
        let first = self.content_type.get_or_init(|| text.into());
        if **first == *text { first.clone() } else { text.into() }
    }

    pub(crate) fn allows(&self, peer: IpAddr) -> bool {
        self.allow_ips.is_empty() || self.allow_ips.iter().any(|net| net.contains(peer))
    }
}

/// The sources in force, by path.
#[derive(Default)]
pub(crate) struct Sources(HashMap<Arc<str>, Arc<Source>, RandomState>);

impl Sources {
    /// Compiles all of them or none, once for each of so many threads: what a source counts of those who hold it, and of those
    /// who hold its texts, is then written to by one thread.
    pub(crate) fn compile(
        specs: &[SourceSpec],
        metrics: &EdgeMetrics,
        threads: usize,
    ) -> Result<Vec<Self>, SpecError> {
        let uses: Vec<_> = specs.iter().map(|spec| metrics.key_uses(&spec.name, &spec.secrets)).collect();
        let compile = |_| Self::compile_once(specs, &uses, metrics);
        let sources = (0..threads).map(compile).collect::<Result<_, _>>()?;
        metrics.in_force(uses);
        Ok(sources)
    }

    fn compile_once(
        specs: &[SourceSpec],
        uses: &[Vec<KeyUse>],
        metrics: &EdgeMetrics,
    ) -> Result<Self, SpecError> {
        let mut sources = HashMap::with_capacity_and_hasher(specs.len(), RandomState::default());
        let mut names = HashSet::new();
        for (spec, uses) in specs.iter().zip(uses) {
            let in_source = |error: SpecError| SpecError {
                field: format!("sources.{}.{}", spec.name, error.field),
                ..error
            };
            check_name(spec).map_err(in_source)?;
            let compiled = spec.scheme.compile(&spec.secrets);
            let Compiled { scheme, rules, reply } = compiled.map_err(|errors| in_source(errors.into()))?;
            let source = Source {
                name: Arc::from(&*spec.name),
                environment: spec.environment,
                scheme,
                rules,
                allow_ips: spec.allow_ips.clone(),
                on_conflict: spec.on_conflict,
                reply,
                metrics: metrics.source(&spec.name, uses),
                content_type: OnceLock::new(),
            };
            if !names.insert(&spec.name) {
                return Err(in_source(SpecError::new("name", "two sources have it", "a name of its own")));
            }
            if sources.insert(spec.path.clone(), Arc::new(source)).is_some() {
                return Err(in_source(SpecError::new(
                    "path",
                    format!("{} has another source", spec.path),
                    "a path of its own",
                )));
            }
        }
        Ok(Self(sources))
    }

    /// The source with exactly this path.
    pub(crate) fn at(&self, path: &str) -> Option<&Arc<Source>> {
        self.0.get(path)
    }
}

fn check_name(spec: &SourceSpec) -> Result<(), SpecError> {
    let is_name =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    if spec.name.is_empty() || spec.name.len() > NAME_BYTES_MAX || !spec.name.bytes().all(is_name) {
        return Err(SpecError::new("name", "not a name", "1 to 64 of a-z, 0-9, _ and -"));
    }
    if !spec.path.starts_with('/')
        || spec.path.parse::<http::uri::PathAndQuery>().is_err()
        || spec.path.contains('?')
    {
        return Err(SpecError::new("path", format!("{} is not a path", spec.path), "for example /in/NAME"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_a_range_by_its_leading_bits() {
        let net = |text: &str, prefix_bits| IpNet { address: text.parse().unwrap(), prefix_bits };
        let cases = [
            (net("203.0.113.0", 24), "203.0.113.255", true),
            (net("203.0.113.0", 24), "203.0.114.0", false),
            (net("203.0.113.7", 32), "::ffff:203.0.113.7", true),
            (net("::ffff:203.0.113.0", 120), "203.0.113.255", true),
            (net("::ffff:203.0.113.0", 120), "203.0.114.0", false),
            (net("0.0.0.0", 0), "198.51.100.1", true),
            (net("0.0.0.0", 0), "2001:db8::1", false),
            (net("2001:db8::", 32), "2001:db8:ffff::1", true),
            (net("2001:db8::", 32), "2001:db9::1", false),
        ];
        for (net, address, expected) in cases {
            assert_eq!(net.contains(address.parse().unwrap()), expected, "{net:?} {address}");
        }
    }
}
