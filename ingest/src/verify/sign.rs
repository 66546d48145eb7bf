//! The inverse of verifying: a request as the provider would make it, for `chaski send`, the demo and tests.
//!
//! What the provider would draw (a delivery id, a request id) is derived from the body, so that the same body
//! signed twice is a resend. Signs for every scheme that can be verified, except a signature that stands inside
//! the JSON it signs.

use std::borrow::Cow;
use std::convert::Infallible;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use chaski_common::mac::MacKey;
use chaski_common::secret::Secret;
use ed25519_dalek::{Signer as _, SigningKey};
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::layout::{Algorithm, Layout};
use super::scheme::{TimestampPlace, TimestampRule, compile_timestamp, key_bytes};
use super::template::{Template, Variable};
use crate::location::{self, Location, Pointer};
use crate::source::{SchemeSpec, SpecError};

/// With what to sign.
#[derive(Clone, Copy, Debug)]
pub struct Signer<'a> {
    /// The name of the secret, where the request names it.
    pub key_id: Option<&'a str>,
    /// The secret as configured. For ed25519 the private key: `whsk_` and base64 of its 32 or 64 bytes.
    pub secret: &'a Secret,
    /// Make a signature that is of the right form and wrong.
    pub forge: bool,
}

/// What to post.
#[derive(Clone, Debug, Default)]
pub struct Signed {
    /// The headers, the content type among them.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What goes behind the question mark, encoded.
    pub query: Option<String>,
    /// The body; for a provider that posts a form, the given one is a field of it.
    pub body: Bytes,
}

/// Signs a body as a sender with this description would, at `now`.
///
/// # Errors
/// [`SpecError`] when the description or the secret is wrong, or the signature would stand inside what it signs.
pub fn sign(spec: &SchemeSpec, signer: Signer<'_>, body: &[u8], now: Timestamp) -> Result<Signed, SpecError> {
    let algorithm = Algorithm::compile(&spec.signature)?;
    let layout = Layout::compile(&spec.signature, algorithm)?;
    if algorithm == Algorithm::HttpBasic {
        let mut credentials = key_bytes(&spec.signature.key, signer.secret)?.expose().to_vec();
        if let (true, Some(last)) = (signer.forge, credentials.last_mut()) {
            *last ^= 1;
        }
        let mut draft = Draft::new(spec, body);
        draft.fill_event_headers(spec)?;
        let value = format!("{}{}", layout.prefix, layout.encoding.encode(&credentials));
        draft.put(&layout.from, "signature.from", value.into_bytes())?;
        return draft.finish();
    }
    let template = Template::compile(&spec.signature.template, &spec.signature.constants)?;
    let timestamp = compile_timestamp(&spec.signature, template.uses(&Variable::Timestamp))?;
    let mut draft = Draft::new(spec, body);
    if let (Some(select), Some(id)) = (&spec.signature.key.select, signer.key_id) {
        let place = Location::parse(select)
            .map_err(|right| SpecError::new("signature.key.select", "no place", right))?;
        draft.put(&place, "signature.key.select", id.as_bytes().to_vec())?;
    }
    let ts = timestamp.as_ref().map(|rule| rule.format.print(now));
    if let (Some(TimestampRule { from: TimestampPlace::At(place), .. }), Some(ts)) = (&timestamp, &ts)
        && !matches!(place, Location::Json(_))
    {
        draft.put(place, "signature.timestamp.from", ts.clone().into_bytes())?;
    }
    for (variable, _) in template.variables() {
        if let Variable::At(place) = variable {
            draft.fill(place)?;
        }
    }
    draft.fill_event_headers(spec)?;
    let parts = template.render(|variable| {
        Ok::<_, Infallible>(match variable {
            Variable::Body => Some(Cow::Borrowed(body)),
            Variable::Timestamp => ts.as_deref().map(|ts| Cow::Borrowed(ts.as_bytes())),
            Variable::At(place) => draft.value(place).map(Cow::Owned),
        })
    });
    let parts = parts.unwrap_or_default().ok_or_else(|| {
        SpecError::new(
            "signature.template",
            "the body has nothing at a place that is signed",
            "a body with that field",
        )
    })?;
    let mut signature = tag(spec, algorithm, signer.secret, &parts.concat())?;
    if signer.forge {
        signature[0] ^= 1;
    }
    draft.put(
        &layout.from,
        "signature.from",
        layout.write(&signature, timestamp.as_ref(), ts.as_deref()).into_bytes(),
    )?;
    draft.finish()
}

fn tag(
    spec: &SchemeSpec,
    algorithm: Algorithm,
    secret: &Secret,
    message: &[u8],
) -> Result<Vec<u8>, SpecError> {
    match algorithm {
        Algorithm::Hmac(hash) => {
            let key = key_bytes(&spec.signature.key, secret)?;
            Ok(MacKey::new(hash, key.expose()).tag(&[message]).as_bytes().to_vec())
        }
        Algorithm::Ed25519 => {
            let text = secret.expose();
            let decoded = BASE64.decode(text.strip_prefix(b"whsk_").unwrap_or(text)).ok();
            let seed = decoded.as_deref().and_then(|bytes| bytes.first_chunk::<32>());
            let seed = seed
                .ok_or_else(|| SpecError::new("secrets", "not an ed25519 private key", "whsk_ and base64"))?;
            Ok(SigningKey::from_bytes(seed).sign(message).to_bytes().to_vec())
        }
        Algorithm::HttpBasic => {
            Err(SpecError::new("signature.algorithm", "credentials sign nothing", "an algorithm that does"))
        }
    }
}

impl Layout {
    /// The opposite of reading: the signature as its header has it.
    fn write(&self, signature: &[u8], timestamp: Option<&TimestampRule>, ts: Option<&str>) -> String {
        let signature = self.encoding.encode(signature);
        let (Some(pair), Some(tag)) = (&self.pair, self.tags.first()) else {
            return format!("{}{signature}", self.prefix);
        };
        let entry = format!("{tag}{pair}{signature}");
        match (timestamp, ts, &self.list) {
            (Some(TimestampRule { from: TimestampPlace::Tag(time_tag), .. }), Some(ts), Some(list)) => {
                format!("{time_tag}{pair}{ts}{list}{entry}")
            }
            _ => entry,
        }
    }
}

/// A request that is being put together.
struct Draft<'a> {
    given: &'a [u8],
    headers: Vec<(HeaderName, Vec<u8>)>,
    query: Vec<(String, Vec<u8>)>,
    /// Fields of the body, where the body is a form.
    form: Option<Vec<(String, Vec<u8>)>>,
    /// Stands for whatever the provider would draw.
    drawn: String,
}

impl<'a> Draft<'a> {
    fn new(spec: &SchemeSpec, given: &'a [u8]) -> Self {
        let is_form = spec.signature.from.starts_with("form:");
        let drawn = format!("msg_{}", hex::encode(&Sha256::digest(given)[..12]));
        Self { given, headers: Vec::new(), query: Vec::new(), form: is_form.then(Vec::new), drawn }
    }

    /// A value for something the template signs and nothing else has set: the given body for a form's field,
    /// the same path of the JSON for a field of the query, else something drawn.
    fn fill(&mut self, place: &Location) -> Result<(), SpecError> {
        if self.value(place).is_some() {
            return Ok(());
        }
        let value = match place {
            Location::Form(_) => self.given.to_vec(),
            Location::Query(name) => match self.in_json(&format!("/{}", name.replace('.', "/"))) {
                Some(value) => value,
                None => return Ok(()),
            },
            _ => self.drawn.clone().into_bytes(),
        };
        self.put(place, "signature.template", value)
    }

    /// The headers an event is told apart by.
    fn fill_event_headers(&mut self, spec: &SchemeSpec) -> Result<(), SpecError> {
        let places = spec.event.id.iter().chain(&spec.event.kind);
        for place in places.filter(|place| place.starts_with("header:")) {
            let place = Location::parse(place).map_err(|right| SpecError::new("event", "no place", right))?;
            self.fill(&place)?;
        }
        Ok(())
    }

    fn in_json(&self, pointer: &str) -> Option<Vec<u8>> {
        super::scheme::in_json(self.given, &Pointer::parse(pointer).ok()?).map(Cow::into_owned)
    }

    fn value(&self, place: &Location) -> Option<Vec<u8>> {
        let of = |fields: &[(String, Vec<u8>)], wanted: &str| {
            fields.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone())
        };
        match place {
            Location::Header(wanted) => {
                self.headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone())
            }
            Location::Query(name) => of(&self.query, name),
            Location::Form(name) => of(self.form.as_deref()?, name),
            Location::Json(pointer) => self.in_json(&pointer.to_string()),
            Location::Nested(..) => None,
        }
    }

    fn put(&mut self, place: &Location, field: &str, value: Vec<u8>) -> Result<(), SpecError> {
        match (place, &mut self.form) {
            (Location::Header(name), _) => self.headers.push((name.clone(), value)),
            (Location::Query(name), _) => self.query.push((name.clone(), value)),
            (Location::Form(name), Some(form)) => form.push((name.clone(), value)),
            _ => {
                return Err(SpecError::new(
                    field,
                    format!("nothing can be put at {place}"),
                    "a header, a query or a form",
                ));
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Signed, SpecError> {
        let encode = |fields: &[(String, Vec<u8>)]| {
            let pairs = fields.iter().map(|(name, value)| {
                format!("{}={}", location::encode(name.as_bytes()), location::encode(value))
            });
            pairs.collect::<Vec<_>>().join("&")
        };
        let content_type =
            if self.form.is_some() { "application/x-www-form-urlencoded" } else { "application/json" };
        let mut headers = vec![(CONTENT_TYPE, HeaderValue::from_static(content_type))];
        for (name, value) in &self.headers {
            let value = HeaderValue::from_bytes(value).map_err(|_| {
                SpecError::new(
                    "signature",
                    format!("the value of {name} is no header value"),
                    "printable text",
                )
            })?;
            headers.push((name.clone(), value));
        }
        let query = (!self.query.is_empty()).then(|| encode(&self.query));
        let body = self
            .form
            .as_deref()
            .map_or_else(|| Bytes::copy_from_slice(self.given), |form| Bytes::from(encode(form)));
        Ok(Signed { headers, query, body })
    }
}

#[cfg(test)]
mod tests {
    use chaski_common::mac::Hash;
    use http::HeaderMap;
    use http::header::CONTENT_TYPE;

    use super::*;
    use crate::presets;
    use crate::request::{Head, Received};
    use crate::respond::Refusal;
    use crate::source::{DatedSecret, Secrets, Validity};
    use crate::verify::{BodyForm, KeyUsed, Scheme};

    const NOW: i64 = 1_772_031_600;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn received(signed: Signed) -> Received {
        let headers = HeaderMap::from_iter(signed.headers);
        Received {
            head: Head { headers, query: signed.query, peer: [127, 0, 0, 1].into() },
            body: signed.body,
        }
    }

    /// A preset with what only a merchant can fill in, its secret, and an older one.
    fn preset(name: &str) -> (SchemeSpec, Secret, Secret) {
        let mut spec = presets::load(name).unwrap();
        spec.signature.constants.insert("x_login".into(), "login".into());
        let (secret, older) = match (spec.signature.algorithm.as_str(), spec.signature.key.encoding.as_str())
        {
            ("http-basic", _) => ("user:password", "user:older"),
            (_, "hex") => ("00112233445566778899aabbccddeeff", "ff112233445566778899aabbccddeeff"),
            (_, "base64") => ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "NfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
            _ => ("chaski-test-secret/not+real", "chaski-test-secret/not+real/older"),
        };
        (spec, Secret::new(secret), Secret::new(older))
    }

    #[test]
    fn what_is_signed_verifies_and_what_is_forged_does_not_for_every_preset() {
        let body = br#"{"id":"1","data":{"id":"ORD-1"},"eventType":"cip.paid"}"#;
        for name in presets::names() {
            let (spec, secret, older) = preset(name);
            let selects = spec.signature.key.select.is_some();
            let secrets = if selects {
                Secrets::ById([("k".into(), secret.clone().into())].into())
            } else {
                Secrets::Any(vec![secret.clone().into(), older.clone().into()])
            };
            let scheme = Scheme::compile(&spec, &secrets).unwrap();
            let signer = Signer { key_id: selects.then_some("k"), secret: &secret, forge: false };
            let request = received(sign(&spec, signer, body, at(NOW)).unwrap());
            let verified = scheme.verify(&request, at(NOW)).unwrap_or_else(|why| panic!("{name}: {why:?}"));
            assert_eq!((verified.key, verified.form), (KeyUsed::Current, BodyForm::Raw), "{name}");
            let forged = received(sign(&spec, Signer { forge: true, ..signer }, body, at(NOW)).unwrap());
            assert_eq!(scheme.verify(&forged, at(NOW)).err(), Some(Refusal::BadSignature), "{name}");
            let stale = scheme.verify(&request, at(NOW + 100_000)).err();
            assert_eq!(stale, spec.signature.timestamp.as_ref().map(|_| Refusal::TimestampStale), "{name}");
            if !selects {
                let old = received(sign(&spec, Signer { secret: &older, ..signer }, body, at(NOW)).unwrap());
                assert_eq!(scheme.verify(&old, at(NOW)).unwrap().key, KeyUsed::Previous, "{name}");
            }
        }
    }

    fn dated(secret: &Secret, not_before: Option<i64>, not_after: Option<i64>) -> DatedSecret {
        let validity = Validity { not_before: not_before.map(at), not_after: not_after.map(at) };
        DatedSecret { secret: secret.clone(), validity, created: None }
    }

    #[test]
    fn who_signs_with_both_secrets_while_they_change_is_let_in_by_the_one_that_is_good() {
        let (spec, new, old) = preset("standard-webhooks");
        let signed =
            |secret| sign(&spec, Signer { key_id: None, secret, forge: false }, b"{}", at(150)).unwrap();
        let both = |first, second| {
            let (mut request, other) = (received(signed(first)), received(signed(second)));
            let value =
                |request: &Received| request.head.headers["webhook-signature"].to_str().unwrap().to_owned();
            let list = format!("{} {}", value(&request), value(&other));
            request.head.headers.insert("webhook-signature", list.parse().unwrap());
            request
        };
        let (early, over) = (dated(&new, Some(200), None), dated(&old, None, Some(100)));
        for (secrets, key) in [
            (vec![early.clone(), dated(&old, None, None)], Ok(KeyUsed::Previous)),
            (vec![over.clone(), dated(&new, None, None)], Ok(KeyUsed::Previous)),
            (vec![dated(&new, None, None), over.clone()], Ok(KeyUsed::Current)),
            (vec![early, over], Err(Refusal::UnknownKey)),
        ] {
            let scheme = Scheme::compile(&spec, &Secrets::Any(secrets)).unwrap();
            for request in [both(&new, &old), both(&old, &new)] {
                assert_eq!(scheme.verify(&request, at(150)).map(|verified| verified.key), key);
            }
        }
    }

    #[test]
    fn a_secret_verifies_only_in_its_time_and_both_ends_belong_to_it() {
        let (spec, new, old) = preset("pagoefectivo");
        let overlapping = [dated(&new, Some(100), None), dated(&old, None, Some(200))];
        let scheme = Scheme::compile(&spec, &Secrets::Any(overlapping.to_vec())).unwrap();
        let verdict = |secret: &Secret, second| {
            let signer = Signer { key_id: None, secret, forge: false };
            let request = received(sign(&spec, signer, b"{}", at(second)).unwrap());
            scheme.verify(&request, at(second)).map(|verified| verified.key)
        };
        for (second, by_new, by_old) in [
            (99, Err(Refusal::UnknownKey), Ok(KeyUsed::Previous)),
            (100, Ok(KeyUsed::Current), Ok(KeyUsed::Previous)),
            (200, Ok(KeyUsed::Current), Ok(KeyUsed::Previous)),
            (201, Ok(KeyUsed::Current), Err(Refusal::UnknownKey)),
        ] {
            assert_eq!((verdict(&new, second), verdict(&old, second)), (by_new, by_old), "{second}");
            let stranger = Secret::new("somebody else's secret");
            assert_eq!(verdict(&stranger, second), Err(Refusal::BadSignature));
        }
        // The same of secrets that the request names, and of credentials.
        for name in ["izipay", "culqi"] {
            let (spec, secret, _) = preset(name);
            let over = dated(&secret, None, Some(200));
            let selects = spec.signature.key.select.is_some();
            let secrets =
                if selects { Secrets::ById([("k".into(), over)].into()) } else { Secrets::Any(vec![over]) };
            let scheme = Scheme::compile(&spec, &secrets).unwrap();
            let signer = Signer { key_id: selects.then_some("k"), secret: &secret, forge: false };
            let request = received(sign(&spec, signer, br#"{"id":"1"}"#, at(200)).unwrap());
            let verdict = |second| scheme.verify(&request, at(second)).map(|verified| verified.key);
            assert_eq!(
                (verdict(200), verdict(201)),
                (Ok(KeyUsed::Current), Err(Refusal::UnknownKey)),
                "{name}"
            );
        }
    }

    /// A source of one's own whose template is this, and a request with the right signature of a text.
    fn own(template: &str, text: &str, query: &str, body: &str) -> Result<(), Refusal> {
        let toml = format!(
            "[signature]\nalgorithm = 'hmac-sha256'\nfrom = 'header:x-sig'\nencoding = 'hex'\ntemplate = '{template}'\n[event]\nid = ['query:id']\ncontent = 'any'"
        );
        let scheme = Scheme::compile(
            &toml::from_str(&toml).unwrap(),
            &Secrets::Any(vec![Secret::new("chaski-test-secret").into()]),
        );
        let tag = MacKey::new(Hash::Sha256, b"chaski-test-secret").tag(&[text.as_bytes()]);
        let signature = HeaderValue::try_from(hex::encode(tag.as_bytes())).unwrap();
        let request = received(Signed {
            headers: vec![(HeaderName::from_static("x-sig"), signature)],
            query: Some(query.to_owned()),
            body: Bytes::copy_from_slice(body.as_bytes()),
        });
        scheme.unwrap().verify(&request, at(NOW)).map(|_| ())
    }

    #[test]
    fn a_second_field_of_a_name_that_the_scheme_reads_is_refused_in_every_spelling() {
        let (spec, secret, _) = preset("izipay");
        let scheme =
            Scheme::compile(&spec, &Secrets::ById([("k".into(), secret.clone().into())].into())).unwrap();
        let signer = Signer { key_id: Some("k"), secret: &secret, forge: false };
        let genuine = sign(&spec, signer, br#"{"orderStatus":"UNPAID"}"#, at(NOW)).unwrap();
        let verdict = |body: String| {
            let request = received(Signed { body: body.into(), ..genuine.clone() });
            scheme.verify(&request, at(NOW)).map(|_| ())
        };
        let body = std::str::from_utf8(&genuine.body).unwrap();
        assert_eq!(verdict(format!("{body}&kr-answer-type=V4%2FPayment&kr-answer-type=2")), Ok(()));
        for name in ["kr-answer", "kr-hash", "kr-hash-key"] {
            for spelled in [name.to_owned(), name.replace('-', "%2D"), name.replacen('k', "%6b", 1)] {
                for second in [format!("{spelled}=%7B%22orderStatus%22%3A%22PAID%22%7D"), spelled.clone()] {
                    let far = format!("{body}{}&{second}", "&a".repeat(1000));
                    for form in [format!("{body}&{second}"), format!("{second}&{body}"), far] {
                        assert_eq!(verdict(form), Err(Refusal::DuplicateHeader), "{second}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_form_whose_type_says_that_it_is_another_is_refused() {
        let (spec, secret, _) = preset("izipay");
        let scheme =
            Scheme::compile(&spec, &Secrets::ById([("k".into(), secret.clone().into())].into())).unwrap();
        let signer = Signer { key_id: Some("k"), secret: &secret, forge: false };
        let genuine = sign(&spec, signer, br#"{"orderStatus":"UNPAID"}"#, at(NOW)).unwrap();
        let verdict = |kinds: &[&str]| {
            let mut request = received(genuine.clone());
            request.head.headers.remove(CONTENT_TYPE);
            for kind in kinds {
                request.head.headers.append(CONTENT_TYPE, kind.parse().unwrap());
            }
            scheme.verify(&request, at(NOW)).map(|_| ())
        };
        for taken in [
            "application/x-www-form-urlencoded",
            "Application/X-WWW-Form-Urlencoded; Charset=\"UTF-8\"",
            "application/x-www-form-urlencoded;charset=iso-8859-1;a=b",
            "text/plain",
        ] {
            assert_eq!(verdict(&[taken]), Ok(()), "{taken}");
        }
        assert_eq!(verdict(&[]), Ok(()));
        for other in [
            "multipart/form-data; boundary=b",
            "Multipart/Mixed",
            "application/x-www-form-urlencoded; charset=utf-16be",
            "application/x-www-form-urlencoded; charset = \"UTF-7\"",
            "application/x-www-form-urlencoded; charset*=utf-16''",
            "application/x-www-form-urlencoded; charset=",
            "application/x-www-form-urlencoded; charset=utf-8; charset=utf-16",
        ] {
            assert_eq!(verdict(&[other]), Err(Refusal::SignatureFormat), "{other}");
            assert_eq!(verdict(&["text/plain", other]), Err(Refusal::SignatureFormat), "{other}");
        }
    }

    #[test]
    fn an_advisory_timestamp_is_not_dodged_by_leaving_it_out() {
        let (spec, secret, _) = preset("pagoefectivo-xdate");
        let scheme = Scheme::compile(&spec, &Secrets::Any(vec![secret.clone().into()])).unwrap();
        let signer = Signer { key_id: None, secret: &secret, forge: false };
        let mut request = received(sign(&spec, signer, b"{}", at(NOW)).unwrap());
        assert_eq!(scheme.verify(&request, at(NOW)).map(|_| ()), Ok(()));
        request.head.headers.remove("x-date");
        assert_eq!(scheme.verify(&request, at(NOW)).map(|_| ()), Err(Refusal::MissingTimestamp));
    }

    #[test]
    fn the_scheme_of_credentials_may_be_in_any_case_and_no_other_prefix_may() {
        for (name, prefix, spellings, verdict) in [
            ("culqi", "Basic ", ["Basic ", "basic ", "BASIC ", "bAsIc "].as_slice(), Ok(())),
            ("culqi", "Basic ", &["Basic", "Bearer ", "", "\u{df}asic "], Err(Refusal::SignatureFormat)),
            ("github", "sha256=", &["SHA256=", "Sha256="], Err(Refusal::SignatureFormat)),
        ] {
            let (spec, secret, _) = preset(name);
            let scheme = Scheme::compile(&spec, &Secrets::Any(vec![secret.clone().into()])).unwrap();
            let signer = Signer { key_id: None, secret: &secret, forge: false };
            let signed = sign(&spec, signer, b"{}", at(NOW)).unwrap();
            for spelled in spellings {
                let mut request = received(signed.clone());
                let header = request
                    .head
                    .headers
                    .values_mut()
                    .find(|value| value.as_bytes().starts_with(prefix.as_bytes()));
                let header = header.unwrap();
                let value = header.to_str().unwrap().replacen(prefix, spelled, 1);
                *header = HeaderValue::from_bytes(value.as_bytes()).unwrap();
                assert_eq!(scheme.verify(&request, at(NOW)).map(|_| ()), verdict, "{name} {spelled}");
            }
        }
    }

    #[test]
    fn a_part_of_a_form_or_query_that_is_signed_is_there_once() {
        let form = |body| own("{form:amount}|{form:order}", "1.00|A", "", body);
        assert_eq!(form("amount=1.00&order=A&note=x&note=y"), Ok(()));
        for forged in
            ["amount=1.00&order=A&order=B", "amount=1.00&order=A&%6frder=A", "amount&amount=1.00&order=A"]
        {
            assert_eq!(form(forged), Err(Refusal::DuplicateHeader), "{forged}");
        }
        let query = |query| own("[id:{query:no};{query:data.id};]{body}", "x", query, "x");
        assert_eq!((query("data.id=1"), query("other=1&other=2")), (Ok(()), Ok(())));
        assert_eq!(query("data.id=1&data.id=2"), Err(Refusal::DuplicateHeader), "a part that drops out");
        let both = |query| own("{query:a}", "1", query, "x");
        assert_eq!((both("a=1"), both("a=1&%61=2")), (Ok(()), Err(Refusal::DuplicateHeader)));
    }

    #[test]
    fn a_part_in_json_drops_out_where_nothing_stands_and_is_refused_where_it_cannot_be_read() {
        let required = |body| own("{json:/a}", "1", "", body);
        assert_eq!(required(r#"{"a":1}"#), Ok(()));
        assert_eq!(required(r#"{"a":1,"a":2}"#), Err(Refusal::MissingSignature));
        let optional = |body| own("[a:{json:/a};][b:{json:/b/!/c};]{query:id}", "1", "id=1", body);
        for empty in ["{}", r#"{"a":null}"#, r#"{"b":"{}"}"#] {
            assert_eq!(optional(empty), Ok(()), "{empty}");
        }
        let deep = format!(r#"{{"a":1,"b":{}{}}}"#, "[".repeat(40), "]".repeat(40));
        for forged in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"a":true}"#,
            r#"{"a":{"b":1}}"#,
            r#"{"b":"{\"c\":1,\"c\":2}"}"#,
            deep.as_str(),
            "a=1",
        ] {
            assert_eq!(optional(forged), Err(Refusal::MissingSignature), "{forged}");
        }
    }

    #[test]
    fn ed25519_is_an_override_of_standard_webhooks() {
        let mut spec = presets::load("standard-webhooks").unwrap();
        spec.signature.algorithm = "ed25519".into();
        spec.signature.tags = vec!["v1a".into()];
        spec.signature.key.strip_prefix = "whpk_".into();
        let private = SigningKey::from_bytes(&[7; 32]);
        let public = Secret::new(format!("whpk_{}", BASE64.encode(private.verifying_key().as_bytes())));
        let scheme = Scheme::compile(&spec, &Secrets::Any(vec![public.into()])).unwrap();
        let secret = Secret::new(format!("whsk_{}", BASE64.encode(private.to_keypair_bytes())));
        let signer = Signer { key_id: None, secret: &secret, forge: false };
        let request = received(sign(&spec, signer, b"{}", at(NOW)).unwrap());
        assert!(scheme.verify(&request, at(NOW)).is_ok());
        let forged = received(sign(&spec, Signer { forge: true, ..signer }, b"{}", at(NOW)).unwrap());
        assert_eq!(scheme.verify(&forged, at(NOW)).err(), Some(Refusal::BadSignature));
    }
}
