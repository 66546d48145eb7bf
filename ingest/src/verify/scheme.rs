//! A signature scheme, compiled from its description: what is left to do per request is reading and one MAC.
//!
//! Verification has two halves. The claim (signatures, key, timestamp) is read from the head before the body
//! is, wherever it stands there; then the body is held against it. A scheme whose claim stands in the body does
//! both afterwards.

use std::borrow::Cow;
use std::time::Duration;

use chaski_common::event::Fingerprint;
use chaski_common::mac::MacKey;
use chaski_common::secret::Secret;
use ed25519_dalek::{Signature, VerifyingKey};
use jiff::Timestamp;
use subtle::ConstantTimeEq;

use super::layout::{Algorithm, Encoding, Layout};
use super::template::{Template, Variable};
use super::timestamp::{Format, check_window};
use super::{BodyForm, KeyUsed, Verified};
use crate::json;
use crate::location::{self, Location};
use crate::request::{Head, Received};
use crate::respond::Refusal;
use crate::source::{
    EventSpec, Faults, KeySpec, SchemeSpec, Secrets, SignatureSpec, SpecError, SpecErrors, Validity,
};

/// Secrets of one source.
const SECRETS_MAX: usize = 16;
/// What a timestamp proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It is under the signature: a request cannot be replayed outside this window.
    Signed {
        /// How old it may be.
        past: Duration,
        /// How far ahead it may be.
        future: Duration,
    },
    /// It is checked, but whoever replays a request can rewrite it: deduplication is the defence.
    Advisory {
        /// How old it may be.
        past: Duration,
        /// How far ahead it may be.
        future: Duration,
    },
    /// The sender says nothing: deduplication is the defence.
    None,
}

/// What of a body the signature covers. The rest anybody may have changed who had a signed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cover {
    /// All of it.
    Body,
    /// These places in it, and nothing else.
    Fields(Vec<Location>),
    /// Nothing: the body is a hint, and the sender's own API has the truth.
    Nothing,
}

/// How a source's signatures are checked.
#[derive(Debug)]
pub struct Scheme {
    layout: Layout,
    /// None for credentials, which cover nothing.
    template: Option<Template>,
    forms: Vec<BodyForm>,
    keys: Keys,
    timestamp: Option<TimestampRule>,
    freshness: Freshness,
    /// Whether any of the claim stands in the body.
    claim_in_body: bool,
    /// Whether the event's id may be made of the text that was signed.
    hashes_text: bool,
}

#[derive(Debug)]
enum Keys {
    Any(Vec<DatedKey>),
    ById { select: Location, keys: Vec<(Vec<u8>, DatedKey)> },
}

#[derive(Debug)]
struct DatedKey {
    key: Key,
    validity: Validity,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a handful per source, and the large one is the usual one")]
enum Key {
    Mac(MacKey),
    Ed25519(Box<VerifyingKey>),
    Credentials(Secret),
}

#[derive(Debug)]
pub(super) struct TimestampRule {
    pub(super) from: TimestampPlace,
    pub(super) format: Format,
    past: Duration,
    future: Duration,
    /// Whether the template needs its text.
    needed: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum TimestampPlace {
    Tag(String),
    At(Location),
}

/// What a request claims, before any of it is believed.
#[derive(Debug)]
pub(crate) struct Claim {
    candidates: Vec<Vec<u8>>,
    /// The timestamp as it was spelled, for the template.
    ts: Option<Box<[u8]>>,
    time: Option<Timestamp>,
    /// Which of the keys by id; none means any may match.
    key: Option<usize>,
}

impl Scheme {
    /// Compiles a description with its live secrets.
    ///
    /// # Errors
    /// Each [`SpecError`] names a field, what is wrong with it and what would be right.
    pub fn compile(spec: &SchemeSpec, secrets: &Secrets) -> Result<Self, SpecErrors> {
        let hashes_text = spec.event.fallback.as_deref() == Some(EventSpec::SIGNED_SHA256);
        let spec = &spec.signature;
        // Nothing else makes sense without it.
        let algorithm = Algorithm::compile(spec)?;
        let mut faults = Faults::default();
        let layout = faults.keep(Layout::compile(spec, algorithm));
        if hashes_text && algorithm == Algorithm::HttpBasic {
            let wrong = format!("{}, and a credential signs nothing", EventSpec::SIGNED_SHA256);
            faults.keep(Err::<(), _>(SpecError::new("event.fallback", wrong, EventSpec::BODY_SHA256)));
        }
        let template = match algorithm {
            Algorithm::HttpBasic => Some(None),
            _ => faults.keep(Template::compile(&spec.template, &spec.constants)).map(Some),
        };
        let signs_time = |template: &Template| template.uses(&Variable::Timestamp);
        let needed = template.as_ref().and_then(Option::as_ref).is_some_and(signs_time);
        let timestamp = faults.keep(compile_timestamp(spec, needed));
        let keys = faults.keep(Keys::compile(spec, algorithm, secrets));
        let forms = faults.keep(compile_forms(&spec.body));
        let whole = layout.zip(template).zip(timestamp).zip(keys).zip(forms);
        let ((((layout, template), timestamp), keys), forms) = faults.finish(whole)?;

        let uses = |variable: &Variable| template.as_ref().is_some_and(|template| template.uses(variable));
        let freshness = match &timestamp {
            None => Freshness::None,
            Some(TimestampRule { from, past, future, needed, .. }) => {
                let (past, future) = (*past, *future);
                let signed = *needed
                    || match from {
                        TimestampPlace::At(place) if place.in_body() => {
                            uses(&Variable::Body) || uses(&Variable::At(place.clone()))
                        }
                        TimestampPlace::At(place) => uses(&Variable::At(place.clone())),
                        TimestampPlace::Tag(_) => false,
                    };
                if signed { Freshness::Signed { past, future } } else { Freshness::Advisory { past, future } }
            }
        };
        let timestamp_in_body = matches!(&timestamp, Some(TimestampRule { from: TimestampPlace::At(place), .. }) if place.in_body());
        let select_in_body = matches!(&keys, Keys::ById { select, .. } if select.in_body());
        let claim_in_body = layout.from.in_body() || timestamp_in_body || select_in_body;
        Ok(Self { forms, layout, template, keys, timestamp, freshness, claim_in_body, hashes_text })
    }

    /// What the timestamp proves.
    #[must_use]
    pub const fn freshness(&self) -> Freshness {
        self.freshness
    }

    /// What of the body the signature covers, whatever part of the template drops out.
    #[must_use]
    pub fn cover(&self) -> Cover {
        let variables = || self.template.iter().flat_map(Template::variables);
        if variables().any(|(variable, optional)| *variable == Variable::Body && !optional) {
            return Cover::Body;
        }
        let mut fields: Vec<Location> = Vec::new();
        for (variable, _) in variables() {
            if let Variable::At(place) = variable
                && place.in_body()
                && !fields.contains(place)
            {
                fields.push(place.clone());
            }
        }
        if fields.is_empty() { Cover::Nothing } else { Cover::Fields(fields) }
    }

    /// Whether the signature covers what stands at a place, or that nothing does.
    #[must_use]
    pub fn covers(&self, place: &Location) -> bool {
        let outer = place.outermost();
        let is_time = |at: &TimestampPlace| *at == TimestampPlace::At(outer.clone());
        self.template.iter().flat_map(Template::variables).any(|(variable, optional)| match variable {
            Variable::Body => outer.in_body() && !optional,
            Variable::Timestamp => self.timestamp.as_ref().is_some_and(|rule| is_time(&rule.from)),
            Variable::At(signed) => signed == place || signed == outer,
        })
    }

    /// Says whether a request was signed by this source, around `now`.
    ///
    /// # Errors
    /// [`Refusal`] is the reason for the metrics; the sender is told nothing but 401.
    pub fn verify<'r>(&self, received: &'r Received, now: Timestamp) -> Result<Verified<'r>, Refusal> {
        let claim = self.claim(&received.head, Some(&received.body), now)?;
        self.hold(claim, received, now)
    }

    /// Reads what can be read in front of the body; none when the claim stands in the body.
    pub(crate) fn claim_of_head(&self, head: &Head, now: Timestamp) -> Result<Option<Claim>, Refusal> {
        if self.claim_in_body { Ok(None) } else { self.claim(head, None, now).map(Some) }
    }

    fn claim(&self, head: &Head, body: Option<&[u8]>, now: Timestamp) -> Result<Claim, Refusal> {
        let value = find(&self.layout.from, head, body)?.ok_or(Refusal::MissingSignature)?;
        let (candidates, tagged) = self.layout.read(&value, self.timestamp.as_ref())?;
        let key = match &self.keys {
            Keys::Any(_) => None,
            Keys::ById { select, keys } => {
                let id = find(select, head, body)?.ok_or(Refusal::UnknownKey)?;
                Some(keys.iter().position(|(known, _)| *known == *id).ok_or(Refusal::UnknownKey)?)
            }
        };
        let (ts, time) = match &self.timestamp {
            None => (None, None),
            Some(rule) => {
                let text = match &rule.from {
                    TimestampPlace::Tag(_) => tagged.map(|text| text.as_bytes().into()),
                    TimestampPlace::At(place) => {
                        find(place, head, body)?.map(|text| Box::from(text.as_ref()))
                    }
                };
                match text {
                    None => return Err(Refusal::MissingTimestamp),
                    Some(text) => {
                        let time = std::str::from_utf8(&text)
                            .ok()
                            .and_then(|text| rule.format.parse(text))
                            .ok_or(Refusal::TimestampFormat)?;
                        check_window(time, now, rule.past, rule.future)?;
                        (Some(text), Some(time))
                    }
                }
            }
        };
        self.check_parts(head)?;
        Ok(Claim { candidates, ts, time, key })
    }

    /// What the template takes from the head must be there, and once.
    fn check_parts(&self, head: &Head) -> Result<(), Refusal> {
        for (variable, optional) in self.template.iter().flat_map(Template::variables) {
            if let Variable::At(place) = variable
                && !place.in_body()
                && find(place, head, None)?.is_none()
                && !optional
            {
                return Err(Refusal::MissingSignature);
            }
        }
        Ok(())
    }

    /// Holds the body against the claim: every form, every secret that may match, every candidate. One that is good now
    /// decides; one that is not is tried as well, so that the operator is told of a sender who is late, or early.
    pub(crate) fn hold<'r>(
        &self,
        claim: Claim,
        received: &'r Received,
        now: Timestamp,
    ) -> Result<Verified<'r>, Refusal> {
        let verified = |place, form, text| {
            let key = match self.keys {
                Keys::Any(_) if place > 0 => KeyUsed::Previous,
                Keys::Any(_) | Keys::ById { .. } => KeyUsed::Current,
            };
            Verified { received, key, place, form, signed_at: claim.time, text }
        };
        let Some(template) = &self.template else {
            let is_claimed = |key: &Key| claim.candidates.iter().any(|claimed| key.is(claimed));
            return Ok(verified(self.matching(&claim, now, is_claimed)?, BodyForm::Raw, None));
        };
        let mut refusal = Refusal::BadSignature;
        for &form in &self.forms {
            let body = form.of(&received.body);
            let is_raw = matches!(body, Cow::Borrowed(_));
            if form == BodyForm::Minified && is_raw && self.forms.contains(&BodyForm::Raw) {
                continue;
            }
            let parts = template.render(|variable| match variable {
                Variable::Body => Ok(Some(Cow::Borrowed(body.as_ref()))),
                Variable::Timestamp => Ok(claim.ts.as_deref().map(Cow::Borrowed)),
                Variable::At(place) => signed_part(place, received),
            })?;
            let parts = parts.ok_or(Refusal::MissingSignature)?;
            let mut whole: Option<Vec<u8>> = None;
            let has_signed = |key: &Key| key.has_signed(&parts, &mut whole, &claim.candidates);
            match self.matching(&claim, now, has_signed) {
                Ok(place) => {
                    let text = self.hashes_text.then(|| Fingerprint::of(&parts.concat()));
                    return Ok(verified(place, form, text));
                }
                Err(Refusal::UnknownKey) => refusal = Refusal::UnknownKey,
                Err(_) => {}
            }
        }
        Err(refusal)
    }

    /// The place of the first key that matches and is good now.
    fn matching(
        &self,
        claim: &Claim,
        now: Timestamp,
        mut matches: impl FnMut(&Key) -> bool,
    ) -> Result<usize, Refusal> {
        let mut refusal = Refusal::BadSignature;
        for (place, _) in self.keys_for(claim).filter(|(_, key)| matches(key)) {
            if self.keys.validity(place).covers(now) {
                return Ok(place);
            }
            refusal = Refusal::UnknownKey;
        }
        Err(refusal)
    }

    /// The keys that may match, each with its place.
    fn keys_for(&self, claim: &Claim) -> impl Iterator<Item = (usize, &Key)> {
        let (any, one) = match (&self.keys, claim.key) {
            (Keys::Any(keys), _) => (keys.as_slice(), None),
            (Keys::ById { keys, .. }, place) => {
                (&[][..], place.and_then(|place| Some((place, &keys.get(place)?.1.key))))
            }
        };
        any.iter().map(|dated| &dated.key).enumerate().chain(one)
    }
}

impl Key {
    /// Whether one of these is its signature of the parts; `whole` is where they are put together once they have to be.
    fn has_signed(
        &self,
        parts: &[Cow<'_, [u8]>],
        whole: &mut Option<Vec<u8>>,
        candidates: &[Vec<u8>],
    ) -> bool {
        match self {
            Self::Mac(key) => {
                let tag = key.tag_each(parts.iter().map(AsRef::as_ref));
                candidates.iter().any(|claimed| tag.matches(claimed))
            }
            Self::Ed25519(key) => {
                let message = whole.get_or_insert_with(|| parts.concat());
                candidates.iter().any(|claimed| {
                    Signature::from_slice(claimed)
                        .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok())
                })
            }
            Self::Credentials(_) => false,
        }
    }

    fn is(&self, claimed: &[u8]) -> bool {
        match self {
            Self::Credentials(secret) => secret.expose().ct_eq(claimed).into(),
            Self::Mac(_) | Self::Ed25519(_) => false,
        }
    }
}

impl Keys {
    /// When the key at this place is good.
    fn validity(&self, place: usize) -> Validity {
        match self {
            Self::Any(keys) => keys.get(place).map(|dated| dated.validity),
            Self::ById { keys, .. } => keys.get(place).map(|(_, dated)| dated.validity),
        }
        .unwrap_or_default()
    }

    fn compile(spec: &SignatureSpec, algorithm: Algorithm, secrets: &Secrets) -> Result<Self, SpecErrors> {
        let mut faults = Faults::default();
        let select = spec.key.select.as_ref().map(|select| {
            Location::parse(select).map_err(|right| {
                SpecError::new("signature.key.select", format!("{select} is no place"), right)
            })
        });
        let select = select.and_then(|select| faults.keep(select));
        let encoding = faults.keep(key_encoding(&spec.key));
        let named = secrets.named();
        let count = named.len();
        if count == 0 || count > SECRETS_MAX {
            let wrong = format!("{count} secrets");
            faults.keep(Err::<(), _>(SpecError::new("secrets", wrong, format!("1 to {SECRETS_MAX}"))));
        }
        let misfit = match (secrets, &spec.key.select) {
            (Secrets::Any(_), None) | (Secrets::ById(_), Some(_)) => Ok(()),
            (Secrets::Any(_), Some(_)) => Err(SpecError::new(
                "secrets",
                "the request names its secret, and these have no names",
                "a table: { \"key-id\" = \"env:NAME\" }",
            )),
            (Secrets::ById(_), None) => Err(SpecError::new(
                "secrets",
                "these have names, and nothing in the request selects one",
                "a list, or signature.key.select",
            )),
        };
        faults.keep(misfit);
        let mut keys = Vec::with_capacity(count);
        for (name, dated) in named.into_iter().filter(|_| encoding.is_some()) {
            let key = Key::compile(spec, algorithm, &dated.secret).map_err(|error| match count {
                1 => error,
                _ => SpecError { wrong: format!("{name}: {}", error.wrong), ..error },
            });
            let key = faults.keep(key).map(|key| DatedKey { key, validity: dated.validity });
            keys.extend(key.map(|key| (name.into_owned().into_bytes(), key)));
        }
        faults.finish(Some(match select {
            Some(select) => Self::ById { select, keys },
            None => Self::Any(keys.into_iter().map(|(_, key)| key).collect()),
        }))
    }
}

fn key_encoding(key: &KeySpec) -> Result<Encoding, SpecError> {
    let allowed = [Encoding::Utf8, Encoding::Hex, Encoding::Base64];
    Encoding::compile("signature.key.encoding", &key.encoding, &allowed)
}

/// The bytes a secret stands for: two texts may be one key.
///
/// # Errors
/// When the encoding is none, or the secret is not in it or stands for nothing.
pub fn key_bytes(key: &KeySpec, secret: &Secret) -> Result<Secret, SpecError> {
    let encoding = key_encoding(key)?;
    let text = secret.expose();
    let text = text.strip_prefix(key.strip_prefix.as_bytes()).unwrap_or(text);
    let bytes = encoding.decode(text).ok_or_else(|| {
        SpecError::new(
            "secrets",
            format!("a secret is not {}", key.encoding),
            "the secret as the provider shows it",
        )
    })?;
    if bytes.is_empty() {
        return Err(SpecError::new(
            "secrets",
            "a secret is empty, so anybody could sign",
            "the secret as the provider shows it",
        ));
    }
    Ok(Secret::new(bytes))
}

impl Key {
    fn compile(spec: &SignatureSpec, algorithm: Algorithm, secret: &Secret) -> Result<Self, SpecError> {
        let bytes = key_bytes(&spec.key, secret)?;
        Ok(match algorithm {
            Algorithm::Hmac(hash) => Self::Mac(MacKey::new(hash, bytes.expose())),
            Algorithm::Ed25519 => {
                let wrong = || {
                    SpecError::new(
                        "secrets",
                        "not an ed25519 public key",
                        "32 bytes, for example whpk_ and base64",
                    )
                };
                let bytes: [u8; 32] = bytes.expose().try_into().map_err(|_| wrong())?;
                let key =
                    VerifyingKey::from_bytes(&bytes).ok().filter(|key| !key.is_weak()).ok_or_else(wrong)?;
                Self::Ed25519(Box::new(key))
            }
            Algorithm::HttpBasic if !bytes.expose().contains(&b':') => {
                return Err(SpecError::new("secrets", "not credentials", "user:password"));
            }
            Algorithm::HttpBasic => Self::Credentials(bytes),
        })
    }
}

fn compile_forms(names: &[String]) -> Result<Vec<BodyForm>, SpecErrors> {
    let right = "raw, json_minify, or both in the order they are tried";
    if names.is_empty() || names.len() > 2 {
        return Err(SpecError::new("signature.body", format!("{} forms", names.len()), right).into());
    }
    let mut faults = Faults::default();
    let forms = names.iter().enumerate().filter_map(|(index, name)| {
        faults.keep(match name.as_str() {
            "raw" => Ok(BodyForm::Raw),
            "json_minify" => Ok(BodyForm::Minified),
            other => {
                let field = format!("signature.body.{index}");
                Err(SpecError::new(&field, format!("no form is called {other}"), right))
            }
        })
    });
    let forms = forms.collect();
    faults.finish(Some(forms))
}

pub(super) fn compile_timestamp(
    spec: &SignatureSpec,
    needed: bool,
) -> Result<Option<TimestampRule>, SpecErrors> {
    let Some(timestamp) = &spec.timestamp else {
        let right = "[signature.timestamp], or a template without {ts}";
        return if needed {
            let wrong = "the template signs a timestamp that has no place";
            Err(SpecError::new("signature.timestamp", wrong, right).into())
        } else {
            Ok(None)
        };
    };
    const FROM: &str = "signature.timestamp.from";
    let mut faults = Faults::default();
    let from = faults.keep(match timestamp.from.strip_prefix("tag:") {
        // Tags that nothing splits off are a fault of their own.
        Some(tag) if !tag.is_empty() && (spec.pair.is_some() || !spec.tags.is_empty()) => {
            Ok(TimestampPlace::Tag(tag.to_owned()))
        }
        Some(_) => {
            let right = "signature.pair, or header:NAME";
            Err(SpecError::new(FROM, "the signature's entries have no tags", right))
        }
        None => Location::parse(&timestamp.from).map(TimestampPlace::At).map_err(|right| {
            let wrong = format!("{} is no place", timestamp.from);
            SpecError::new(FROM, wrong, format!("tag:TAG, {right}"))
        }),
    });
    let format = faults.keep(Format::named(&timestamp.format).ok_or_else(|| {
        let wrong = format!("no format is called {}", timestamp.format);
        SpecError::new("signature.timestamp.format", wrong, "unix, unix_ms, unix_auto or rfc3339")
    }));
    let (past, future) = (timestamp.past, timestamp.future);
    let rule = from.zip(format).map(|(from, format)| TimestampRule { from, format, past, future, needed });
    faults.finish(rule.map(Some))
}

/// What stands at a location. A place in the body is empty before the body is there.
///
/// # Errors
/// When it cannot be said: [`Refusal::DuplicateHeader`], because the header or the field is there more than once;
/// [`Refusal::SignatureFormat`], because the body's type says that it is no such form.
pub(crate) fn find<'r>(
    place: &Location,
    head: &'r Head,
    body: Option<&'r [u8]>,
) -> Result<Option<Cow<'r, [u8]>>, Refusal> {
    Ok(match place {
        Location::Header(name) => head.header(name)?.map(Cow::Borrowed),
        Location::Query(name) => head.query(name)?,
        Location::Form(_) if !head.has_form() => return Err(Refusal::SignatureFormat),
        Location::Form(name) => location::field(body.unwrap_or_default(), name)?,
        Location::Json(pointer) => body.and_then(|body| in_json(body, pointer)),
        Location::Nested(outer, pointer) => match find(outer, head, body)? {
            None => None,
            Some(Cow::Borrowed(text)) => in_json(text, pointer),
            Some(Cow::Owned(text)) => in_json(&text, pointer).map(|found| Cow::Owned(found.into_owned())),
        },
    })
}

/// What of a request the template takes from a place. Where nothing stands there a part may drop out of the text; where
/// it cannot be read it may not, because whoever gets the bytes might find something: JSON with a name twice, a container.
fn signed_part<'r>(place: &Location, received: &'r Received) -> Result<Option<Cow<'r, [u8]>>, Refusal> {
    let (head, body) = (&received.head, Some(received.body.as_ref()));
    let found = find(place, head, body)?;
    let is_empty = |document: &[u8], pointer: &location::Pointer| {
        let mut read = json::read(document, pointer.places()).ok();
        let found = read.as_mut().and_then(|document| document.found.pop());
        matches!(found, Some(json::Found::Missing | json::Found::Null))
    };
    let drops_out = match place {
        _ if found.is_some() => true,
        Location::Json(pointer) => is_empty(&received.body, pointer),
        Location::Nested(outer, pointer) => {
            find(outer, head, body)?.is_none_or(|document| is_empty(&document, pointer))
        }
        Location::Header(_) | Location::Query(_) | Location::Form(_) => true,
    };
    if drops_out { Ok(found) } else { Err(Refusal::MissingSignature) }
}

pub(super) fn in_json<'r>(document: &'r [u8], pointer: &location::Pointer) -> Option<Cow<'r, [u8]>> {
    let mut document = json::read(document, pointer.places()).ok()?;
    match document.found.pop()? {
        json::Found::Text(Cow::Borrowed(text)) | json::Found::Number(text) => {
            Some(Cow::Borrowed(text.as_bytes()))
        }
        json::Found::Text(Cow::Owned(text)) => Some(Cow::Owned(text.into_bytes())),
        json::Found::Missing | json::Found::Null | json::Found::Bool | json::Found::Container => None,
    }
}
