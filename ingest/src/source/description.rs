//! How a sender signs, what its events carry and how it is answered: what the configuration or a preset says.

use std::collections::BTreeMap;
use std::time::Duration;

use chaski_common::storage::OnConflict;
use serde::{Deserialize, Serialize};

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

/// `[sources.NAME.signature.key]`; the secrets themselves are in [`super::SourceSpec::secrets`].
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

impl EventSpec {
    /// [`EventSpec::fallback`]: of the body.
    pub const BODY_SHA256: &str = "body-sha256";
    /// [`EventSpec::fallback`]: of the text that was signed.
    pub const SIGNED_SHA256: &str = "signed-sha256";
}

/// `[sources.NAME.event]`. Locations are `json:/pointer`, `header:NAME`, `query:NAME` or `form:FIELD`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventSpec {
    /// Parts of the deduplication key.
    pub id: Vec<String>,
    /// `body-sha256` or `signed-sha256`: what stands in for a key with a missing or empty part, a hash of the body
    /// or of the text that was signed. Without it such an event is quarantined.
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
