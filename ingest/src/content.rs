//! Id, type, subject and time out of a verified body, strictly.
//!
//! A signed event that breaks a rule is never thrown away: the caller keeps it in quarantine. Unknown event
//! types and extra fields pass. Money stays the decimal text it was sent as.

use std::borrow::Cow;
use std::time::Duration;

use chaski_common::event::{EventId, Fingerprint, SUBJECT_BYTES_MAX, TYPE_BYTES_MAX, TYPE_UNKNOWN};
use http::header::CONTENT_ENCODING;
use jiff::Timestamp;

use crate::json::{self, Document, Fault, Found, Places, Root};
use crate::location::{Location, Pointer};
use crate::respond::labelled;
use crate::source::{EventSpec, Faults, SpecError, SpecErrors};
use crate::verify::{Verified, parse_rfc3339, parse_unix_auto, scheme};

/// Parts of a deduplication key.
const KEY_PARTS_MAX: usize = 8;
/// Longest part of a deduplication key.
const KEY_PART_BYTES_MAX: usize = 256;
/// The event of PagoEfectivo whose fields its guide describes.
const PAID: &str = "cip.paid";
/// Longest CIP and longest operation number, by PagoEfectivo's guide.
const PAGOEFECTIVO_KEY_BYTES_MAX: usize = 14;

labelled! {
    /// Why a signed event cannot be used.
    pub Unusable {
        /// Compressed; nothing is inflated here.
        ContentEncoding = "content_encoding",
        /// No body.
        EmptyBody = "empty_body",
        /// Not UTF-8.
        JsonUtf8 = "json_utf8",
        /// Not JSON.
        JsonSyntax = "json_syntax",
        /// Containers too deep in one another.
        JsonDepth = "json_depth",
        /// Too many values.
        JsonTooComplex = "json_too_complex",
        /// A number too long or too large.
        JsonNumber = "json_number",
        /// A name twice in one object.
        JsonDuplicateKey = "json_duplicate_key",
        /// Not an object.
        SchemaRoot = "schema_root",
        /// A field that must be there is not.
        SchemaMissing = "schema_missing",
        /// A part of the key, the type or the subject is not of the right form, or there twice.
        SchemaKey = "schema_key",
        /// Not an amount.
        SchemaAmount = "schema_amount",
        /// Not a currency.
        SchemaCurrency = "schema_currency",
        /// Not a time.
        SchemaTime = "schema_time",
        /// It happened too long ago.
        EventTooOld = "event_too_old",
    }
}

impl Unusable {
    /// What a person needs beside the label, in the terms of this crate's bounds. Never a payload.
    pub(crate) const fn detail(self) -> &'static str {
        match self {
            Self::ContentEncoding => "the body has a content coding, and nothing is inflated here",
            Self::EmptyBody => "the body is empty",
            Self::JsonUtf8 => "the body is not UTF-8",
            Self::JsonSyntax => "the body is not one JSON document as RFC 8259 has it",
            Self::JsonDepth => "more than 32 containers in one another",
            Self::JsonTooComplex => "more than 10000 values",
            Self::JsonNumber => "a number longer than 128 characters, or with an exponent past 308",
            Self::JsonDuplicateKey => "an object has a name twice",
            Self::SchemaRoot => "the document is not an object",
            Self::SchemaMissing => "a required field is missing",
            Self::SchemaKey => {
                "a part of the key, the type or the subject has a wrong form or length, or a field is there twice"
            }
            Self::SchemaAmount => "the amount is not a positive decimal with at most two decimals",
            Self::SchemaCurrency => "the currency is neither PEN nor USD",
            Self::SchemaTime => "the payment date is not an RFC 3339 time",
            Self::EventTooOld => "the event is older than max_age",
        }
    }
}

impl From<Fault> for Unusable {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Utf8 => Self::JsonUtf8,
            Fault::Syntax => Self::JsonSyntax,
            Fault::Depth => Self::JsonDepth,
            Fault::TooComplex => Self::JsonTooComplex,
            Fault::Number => Self::JsonNumber,
            Fault::DuplicateKey => Self::JsonDuplicateKey,
        }
    }
}

/// What an event is, read from a verified request. Only [`Rules::read`] makes one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Usable<'r> {
    pub(crate) id: EventId,
    pub(crate) kind: Cow<'r, str>,
    pub(crate) subject: Option<Cow<'r, str>>,
    pub(crate) time: Option<Timestamp>,
    pub(crate) fingerprint: Fingerprint,
}

/// How the content of one source is read; compiled from `[sources.NAME.event]`.
#[derive(Debug)]
pub(crate) struct Rules {
    grammar: Grammar,
    id: Vec<Field>,
    fallback: Option<Fallback>,
    kind: Option<Field>,
    subject: Option<Field>,
    time: Option<Field>,
    max_age: Option<Duration>,
    /// What one pass over the body collects; a [`Field`] knows its place here.
    places: Places,
    /// Fields of a form or query that anything is read from.
    form_fields: Vec<Location>,
}

/// What stands in for a key that is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fallback {
    /// The content of the body.
    Body,
    /// The text that was signed.
    Signed,
}

#[derive(Debug)]
enum Grammar {
    Json,
    Form,
    Any,
    PagoEfectivo(PagoEfectivo),
}

/// A location, and where the pass over the JSON puts its value.
#[derive(Debug)]
struct Field {
    place: Location,
    slot: Option<usize>,
}

/// The slots of the fields that the callback of PagoEfectivo must carry in a certain form.
#[derive(Debug)]
struct PagoEfectivo {
    event_type: usize,
    cip: usize,
    operation: usize,
    currency: usize,
    amount: usize,
    payment_date: usize,
}

impl Rules {
    pub(crate) fn compile(spec: &EventSpec) -> Result<Self, SpecErrors> {
        let mut faults = Faults::default();
        let mut pointers = Vec::new();
        let fallback = faults.keep(match spec.fallback.as_deref() {
            None => Ok(None),
            Some(EventSpec::BODY_SHA256) => Ok(Some(Fallback::Body)),
            Some(EventSpec::SIGNED_SHA256) => Ok(Some(Fallback::Signed)),
            Some(other) => {
                let right = format!("{} or {}", EventSpec::BODY_SHA256, EventSpec::SIGNED_SHA256);
                Err(SpecError::new("event.fallback", format!("{other} is not known"), right))
            }
        });
        if spec.id.is_empty() && fallback == Some(None) {
            faults.keep(Err::<(), _>(SpecError::new(
                "event.id",
                "nothing tells two events apart",
                "for example [\"json:/id\"], or fallback = \"body-sha256\"",
            )));
        }
        if spec.id.len() > KEY_PARTS_MAX {
            let wrong = format!("{} parts", spec.id.len());
            faults.keep(Err::<(), _>(SpecError::new("event.id", wrong, format!("at most {KEY_PARTS_MAX}"))));
        }
        let mut field = |name: &str, text: &String| faults.keep(Field::compile(name, text, &mut pointers));
        let parts = spec.id.iter().enumerate();
        let id: Vec<Field> =
            parts.filter_map(|(index, part)| field(&format!("event.id.{index}"), part)).collect();
        let mut optional = |name, text: &Option<String>| text.as_ref().and_then(|text| field(name, text));
        let kind = optional("event.type", &spec.kind);
        let subject = optional("event.subject", &spec.subject);
        let time = optional("event.time", &spec.time);
        let grammar = faults.keep(Grammar::compile(spec.content.as_deref(), &mut pointers));
        if pointers.len() > json::POINTERS_MAX {
            let right = format!("at most {}", json::POINTERS_MAX);
            faults.keep(Err::<(), _>(SpecError::new("event", "too many places in the JSON", right)));
        }
        if let (Some(Grammar::Form | Grammar::Any), Some(pointer), Some(content)) =
            (&grammar, pointers.first(), &spec.content)
        {
            let wrong = format!("\"{content}\" need not be JSON, and json:{pointer} is read from it");
            faults.keep(Err::<(), _>(SpecError::new(
                "event.content",
                wrong,
                "\"json\", or take other places",
            )));
        }
        let places = Places::of(pointers.iter().map(Pointer::steps));
        let mut form_fields: Vec<Location> = Vec::new();
        for field in id.iter().chain(&kind).chain(&subject).chain(&time) {
            let place = field.place.outermost();
            if matches!(place, Location::Form(_) | Location::Query(_)) && !form_fields.contains(place) {
                form_fields.push(place.clone());
            }
        }
        let whole = grammar.zip(fallback).map(|(grammar, fallback)| Self {
            grammar,
            id,
            fallback,
            kind,
            subject,
            time,
            max_age: spec.max_age,
            places,
            form_fields,
        });
        faults.finish(whole)
    }

    /// Reads a verified request, in one pass where it is JSON.
    pub(crate) fn read<'r>(
        &self,
        verified: &Verified<'r>,
        source: &str,
        now: Timestamp,
    ) -> Result<Usable<'r>, Unusable> {
        let received = verified.received;
        if received
            .head
            .headers
            .get_all(CONTENT_ENCODING)
            .iter()
            .any(|codings| !codings.as_bytes().split(|byte| *byte == b',').all(is_no_coding))
        {
            return Err(Unusable::ContentEncoding);
        }
        if received.body.is_empty() {
            return Err(Unusable::EmptyBody);
        }
        let document = match self.grammar {
            Grammar::Form | Grammar::Any => None,
            Grammar::Json | Grammar::PagoEfectivo(_) => Some(json::read(&received.body, &self.places)?),
        };
        let is_rooted = match (&self.grammar, &document) {
            (Grammar::PagoEfectivo(_), Some(document)) => document.root == Root::Object,
            (_, document) => document.as_ref().is_none_or(|document| document.root != Root::Scalar),
        };
        if !is_rooted {
            return Err(Unusable::SchemaRoot);
        }
        let checked = match (&self.grammar, &document) {
            (Grammar::PagoEfectivo(grammar), Some(document)) => grammar.check(document)?,
            _ => None,
        };
        // Whoever gets the event might take the other of two.
        for place in &self.form_fields {
            scheme::find(place, &received.head, Some(&received.body)).map_err(|_| Unusable::SchemaKey)?;
        }
        let comparable = document.as_ref().map_or(&*received.body, |document| &document.comparable);
        let fingerprint = Fingerprint::of(comparable);
        let view = View { verified, document: document.as_ref() };
        let time = match (&self.time, checked) {
            (Some(field), Some((slot, time))) if field.is_slot(slot) => Some(time),
            (Some(field), _) => view.text(field).ok().flatten().and_then(|text| read_time(&text)),
            (None, _) => None,
        };
        let time = time.filter(is_time);
        if let (Some(time), Some(max_age)) = (time, self.max_age)
            && now.duration_since(time)
                > jiff::SignedDuration::try_from(max_age).unwrap_or(jiff::SignedDuration::MAX)
        {
            return Err(Unusable::EventTooOld);
        }
        Ok(Usable {
            id: self.id(&view, source, &fingerprint)?,
            kind: view.label(self.kind.as_ref(), TYPE_BYTES_MAX)?.unwrap_or(Cow::Borrowed(TYPE_UNKNOWN)),
            subject: view.label(self.subject.as_ref(), SUBJECT_BYTES_MAX)?,
            time,
            fingerprint,
        })
    }

    /// The id from the key; from what stands in for it where a part of the key is missing or empty.
    fn id(&self, view: &View<'_, '_>, source: &str, fingerprint: &Fingerprint) -> Result<EventId, Unusable> {
        let mut parts = Vec::with_capacity(self.id.len());
        for field in &self.id {
            match view.text(field)?.filter(|part| !part.is_empty()) {
                Some(part) if part.len() > KEY_PART_BYTES_MAX => return Err(Unusable::SchemaKey),
                Some(part) => parts.push(part),
                None => {
                    parts.clear();
                    break;
                }
            }
        }
        if !parts.is_empty() {
            return Ok(EventId::derive(source, parts.iter().map(|part| part.as_bytes())));
        }
        let (what, hash) = match (self.fallback, &view.verified.text) {
            (Some(Fallback::Body), _) => (b"content".as_slice(), fingerprint),
            (Some(Fallback::Signed), Some(text)) => (b"signed".as_slice(), text),
            (Some(Fallback::Signed), None) | (None, _) => return Err(Unusable::SchemaMissing),
        };
        Ok(EventId::derive(source, [what, hash.as_bytes()]))
    }
}

impl Grammar {
    fn compile(name: Option<&str>, pointers: &mut Vec<Pointer>) -> Result<Self, SpecError> {
        Ok(match name {
            None | Some("json") => Self::Json,
            Some("form") => Self::Form,
            Some("any") => Self::Any,
            Some("pagoefectivo") => Self::PagoEfectivo(PagoEfectivo::compile(pointers)?),
            Some(other) => {
                let right = "json, form, any or pagoefectivo";
                return Err(SpecError::new("event.content", format!("no content is called {other}"), right));
            }
        })
    }
}

impl Field {
    fn compile(name: &str, text: &str, pointers: &mut Vec<Pointer>) -> Result<Self, SpecError> {
        let place = Location::parse(text)
            .map_err(|right| SpecError::new(name, format!("{text} is no place"), right))?;
        let pointer = match &place {
            Location::Json(pointer) => Some(pointer),
            Location::Nested(outer, _) => match outer.as_ref() {
                Location::Json(pointer) => Some(pointer),
                _ => None,
            },
            _ => None,
        };
        let slot = pointer.map(|pointer| slot(pointer.clone(), pointers));
        Ok(Self { place, slot })
    }

    /// What it names of the text at its outermost place: all of it, or a value in the JSON that this is.
    fn inside<'t>(&self, text: Cow<'t, str>) -> Result<Option<Cow<'t, str>>, Unusable> {
        let Location::Nested(_, inner) = &self.place else { return Ok(Some(text)) };
        let found = json::read(text.as_bytes(), inner.places())?.found.pop().unwrap_or(Found::Missing);
        Ok(one_text(found)?.map(|text| Cow::Owned(text.into_owned())))
    }

    /// Whether it is the value of this slot, whole.
    fn is_slot(&self, slot: usize) -> bool {
        self.slot == Some(slot) && matches!(self.place, Location::Json(_))
    }
}

fn slot(pointer: Pointer, pointers: &mut Vec<Pointer>) -> usize {
    pointers.iter().position(|known| *known == pointer).unwrap_or_else(|| {
        pointers.push(pointer);
        pointers.len() - 1
    })
}

/// A verified request, and its JSON if it has been read.
struct View<'v, 'r> {
    verified: &'v Verified<'r>,
    document: Option<&'v Document<'r>>,
}

impl<'r> View<'_, 'r> {
    /// The text of a field; none when it is missing or null.
    fn text(&self, field: &Field) -> Result<Option<Cow<'r, str>>, Unusable> {
        let found = match (field.slot, self.document) {
            (Some(slot), Some(document)) => &document.found[slot],
            _ => {
                let received = self.verified.received;
                let place = field.place.outermost();
                let value = scheme::find(place, &received.head, Some(&received.body))
                    .map_err(|_| Unusable::SchemaKey)?;
                let Some(value) = value else { return Ok(None) };
                return field.inside(as_text(value)?);
            }
        };
        one_text(found.clone())?.map_or(Ok(None), |text| field.inside(text))
    }

    /// A text that goes into headers and logs: within its bound and without control characters.
    fn label(&self, field: Option<&Field>, bytes_max: usize) -> Result<Option<Cow<'r, str>>, Unusable> {
        let Some(field) = field else { return Ok(None) };
        let text = self.text(field)?.filter(|text| !text.is_empty());
        match text {
            Some(text) if text.len() > bytes_max || has_control(&text) => Err(Unusable::SchemaKey),
            text => Ok(text),
        }
    }
}

/// A value as text; none where there is none.
fn one_text<'t>(found: Found<'t>) -> Result<Option<Cow<'t, str>>, Unusable> {
    match found {
        Found::Missing | Found::Null => Ok(None),
        Found::Bool | Found::Container => Err(Unusable::SchemaKey),
        Found::Number(text) => Ok(Some(Cow::Borrowed(text))),
        Found::Text(text) => Ok(Some(text)),
    }
}

fn has_control(text: &str) -> bool {
    // Mostly ASCII that prints, of which one look at each byte does.
    !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) && text.contains(char::is_control)
}

/// Of a list of content codings, one that changes nothing.
fn is_no_coding(coding: &[u8]) -> bool {
    let coding = coding.trim_ascii();
    coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
}

fn as_text(bytes: Cow<'_, [u8]>) -> Result<Cow<'_, str>, Unusable> {
    match bytes {
        Cow::Borrowed(bytes) => {
            std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| Unusable::SchemaKey)
        }
        Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|_| Unusable::SchemaKey),
    }
}

/// A time as providers spell it.
fn read_time(text: &str) -> Option<Timestamp> {
    parse_rfc3339(text).or_else(|| parse_unix_auto(text))
}

/// Whether there were webhooks by then; 1900 is how PagoEfectivo says "not yet".
fn is_time(time: &Timestamp) -> bool {
    *time > Timestamp::UNIX_EPOCH
}

impl PagoEfectivo {
    fn compile(pointers: &mut Vec<Pointer>) -> Result<Self, SpecError> {
        let mut at = |text| {
            let pointer =
                Pointer::parse(text).map_err(|right| SpecError::new("event.content", text, right))?;
            Ok::<_, SpecError>(slot(pointer, pointers))
        };
        Ok(Self {
            event_type: at("/eventType")?,
            cip: at("/data/cip")?,
            operation: at("/operationNumber")?,
            currency: at("/data/currency")?,
            amount: at("/data/amount")?,
            payment_date: at("/data/paymentDate")?,
        })
    }

    /// The guide's rules for the fields that are used; everything else may be anything, and of another event than a
    /// payment the money and the date, too: the guide knows no other. `Ok` has the slot that holds a time, and the time.
    fn check(&self, document: &Document<'_>) -> Result<Option<(usize, Timestamp)>, Unusable> {
        let at = |slot: usize| &document.found[slot];
        let is_paid = matches!(at(self.event_type), Found::Text(text) if text == PAID);
        let needed = if is_paid { &[self.currency, self.amount][..] } else { &[] };
        if [self.event_type, self.cip].iter().chain(needed).any(|slot| *at(*slot) == Found::Missing) {
            return Err(Unusable::SchemaMissing);
        }
        if !is_event_type(at(self.event_type)) || !is_key(at(self.cip), 1) {
            return Err(Unusable::SchemaKey);
        }
        if !matches!(at(self.operation), Found::Missing | Found::Null) && !is_key(at(self.operation), 0) {
            return Err(Unusable::SchemaKey);
        }
        if !is_paid {
            return Ok(None);
        }
        if !matches!(at(self.currency), Found::Text(text) if matches!(text.as_ref(), "PEN" | "USD")) {
            return Err(Unusable::SchemaCurrency);
        }
        let amount = match at(self.amount) {
            Found::Number(text) => text,
            Found::Text(text) => text.as_ref(),
            _ => "",
        };
        if !is_amount(amount) {
            return Err(Unusable::SchemaAmount);
        }
        match at(self.payment_date) {
            Found::Missing | Found::Null => Ok(None),
            Found::Text(text) => {
                // A sample of the provider's has a blank for the T.
                let time = parse_rfc3339(text).or_else(|| parse_rfc3339(&text.replacen(' ', "T", 1)));
                let time = time.ok_or(Unusable::SchemaTime)?;
                Ok(Some((self.payment_date, time)))
            }
            _ => Err(Unusable::SchemaTime),
        }
    }
}

/// Any type may come, also one that is not known yet, in characters that can be seen and told from one another.
fn is_event_type(found: &Found<'_>) -> bool {
    matches!(found, Found::Text(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()))
}

/// A CIP or an operation number: text or a whole number.
fn is_key(found: &Found<'_>, bytes_min: usize) -> bool {
    let in_bounds = |text: &str| (bytes_min..=PAGOEFECTIVO_KEY_BYTES_MAX).contains(&text.len());
    match found {
        Found::Text(text) => {
            in_bounds(text) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        }
        Found::Number(text) => in_bounds(text) && text.bytes().all(|byte| byte.is_ascii_digit()),
        _ => false,
    }
}

/// N(18,2): at most sixteen digits and two decimals, more than zero, and no other spelling of it.
fn is_amount(text: &str) -> bool {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    if whole.len() > 1 && whole.starts_with('0') {
        return false;
    }
    let digits =
        |text: &str, max| (1..=max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    digits(whole, 16) && digits(decimals, 2) && text.bytes().any(|byte| matches!(byte, b'1'..=b'9'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_a_positive_decimal_with_at_most_two_decimals() {
        for right in ["22.05", "22.5", "22", "0.01", "1001.00", "1234567890123456.00"] {
            assert!(is_amount(right), "{right}");
        }
        for wrong in [
            "",
            "0",
            "0.00",
            "-22.05",
            "-0.00",
            "22.005",
            "22.",
            ".5",
            "22,05",
            "1e2",
            "12345678901234567.00",
            "022.05",
            "00.50",
            "２２.05",
            "1.2.3",
        ] {
            assert!(!is_amount(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_payment_date_may_have_a_blank_for_its_t_and_nowhere_else() {
        let mut pointers = Vec::new();
        let grammar = PagoEfectivo::compile(&mut pointers).unwrap();
        let places = Places::of(pointers.iter().map(Pointer::steps));
        let time = |date: &str| {
            let body = format!(
                r#"{{"eventType":"cip.paid","data":{{"cip":"1","currency":"PEN","amount":1,"paymentDate":"{date}"}}}}"#
            );
            let document = json::read(body.as_bytes(), &places).unwrap();
            grammar.check(&document).map(|checked| checked.map(|(_, time)| time))
        };
        let paid = Ok(Some("2026-02-25T15:00:00Z".parse().unwrap()));
        assert_eq!(time("2026-02-25T10:00:00-05:00"), paid);
        assert_eq!(time("2026-02-25 10:00:00-05:00"), paid);
        for wrong in [
            "2026-02-25  10:00:00-05:00",
            " 2026-02-25T10:00:00-05:00",
            "2026-02-25T10:00:00 -05:00",
            "2026-02-25 10:00:00",
            "2026-02-30 10:00:00-05:00",
            "2026-02-25",
        ] {
            assert_eq!(time(wrong), Err(Unusable::SchemaTime), "{wrong}");
        }
    }

    #[test]
    fn the_rules_of_a_payment_are_not_those_of_another_event() {
        let mut pointers = Vec::new();
        let grammar = PagoEfectivo::compile(&mut pointers).unwrap();
        let places = Places::of(pointers.iter().map(Pointer::steps));
        let check = |kind: &str, data: &str| {
            let body = format!(r#"{{"eventType":"{kind}","data":{{"cip":"1"{data}}}}}"#);
            grammar.check(&json::read(body.as_bytes(), &places).unwrap()).map(|_| ())
        };
        let paid = r#","currency":"PEN","amount":1"#;
        for (data, verdict) in [
            ("", Err(Unusable::SchemaMissing)),
            (paid, Ok(())),
            (r#","currency":"PEN","amount":-5.00"#, Err(Unusable::SchemaAmount)),
            (r#","currency":"PEN","amount":1,"paymentDate":"""#, Err(Unusable::SchemaTime)),
            (r#","currency":"PEN","amount":1,"paymentDate":"soon""#, Err(Unusable::SchemaTime)),
        ] {
            assert_eq!(check("cip.paid", data), verdict, "{data}");
            assert_eq!(check("cip.expired", data), Ok(()), "{data}");
        }
        assert_eq!(check("", paid), Err(Unusable::SchemaKey));
    }

    #[test]
    fn a_description_that_cannot_be_meant_names_its_field() {
        let event = |id: &[&str]| EventSpec {
            id: id.iter().map(|&part| part.into()).collect(),
            ..EventSpec::default()
        };
        let field = |spec: &EventSpec| SpecError::from(Rules::compile(spec).unwrap_err()).field;
        assert_eq!(field(&event(&[])), "event.id");
        assert_eq!(field(&event(&["json:/a", "cookie:a"])), "event.id.1");
        assert_eq!(field(&EventSpec { kind: Some("x".into()), ..event(&["json:/id"]) }), "event.type");
        assert_eq!(
            field(&EventSpec { content: Some("xml".into()), ..event(&["json:/id"]) }),
            "event.content"
        );
        assert_eq!(
            field(&EventSpec { content: Some("any".into()), ..event(&["json:/id"]) }),
            "event.content"
        );
        assert_eq!(
            field(&EventSpec { fallback: Some("md5".into()), ..event(&["json:/id"]) }),
            "event.fallback"
        );
    }

    #[test]
    fn times_are_read_leniently_and_1900_is_no_time() {
        assert!(read_time("2026-02-25T10:00:00-05:00").is_some());
        assert_eq!(read_time("1772031600"), read_time("1772031600000"));
        assert!(read_time("1900-01-01T00:00:00-05:00").is_some_and(|time| !is_time(&time)));
        assert_eq!(read_time("yesterday"), None);
    }
}
