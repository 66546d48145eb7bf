//! Where a value stands in a request: `header:NAME`, `query:NAME`, `form:FIELD`, `json:/pointer`.
//!
//! A JSON document inside a text is reached with `!`: `json:/data/!/state` reads `/data` as text and then
//! `/state` inside it; `form:kr-answer/!/orderStatus` does the same with a form field.

use std::borrow::Cow;
use std::fmt;

use http::HeaderName;

use crate::json::Places;

/// Fields of a form or query that are looked at; further ones are as if they were not there.
const FIELDS_MAX: usize = 256;
/// Steps of a pointer.
const STEPS_MAX: usize = 16;

/// A parsed location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A header; its name in lower case.
    Header(HeaderName),
    /// A field of the query, percent-decoded.
    Query(String),
    /// A field of an `application/x-www-form-urlencoded` body, decoded.
    Form(String),
    /// A value in the JSON body.
    Json(Pointer),
    /// A value in a JSON document that is itself the text at another place.
    Nested(Box<Location>, Pointer),
}

impl Location {
    /// Reads the textual form; the error says what would be right.
    ///
    /// # Errors
    /// When the kind is none of the four or what follows it is not a name or a pointer.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some((outer, inner)) = text.split_once("/!/") {
            return Ok(Self::Nested(Box::new(Self::parse(outer)?), Pointer::parse(&format!("/{inner}"))?));
        }
        let right = "header:NAME, query:NAME, form:FIELD or json:/pointer";
        let (kind, rest) = text.split_once(':').ok_or_else(|| right.to_owned())?;
        match kind {
            "header" => rest.parse().map(Self::Header).map_err(|_| "header: and a header's name".to_owned()),
            "query" if !rest.is_empty() => Ok(Self::Query(rest.to_owned())),
            "form" if !rest.is_empty() => Ok(Self::Form(rest.to_owned())),
            "json" => Pointer::parse(rest).map(Self::Json),
            _ => Err(right.to_owned()),
        }
    }

    /// Whether the value is in the body, and so cannot be looked at before that is read.
    #[must_use]
    pub fn in_body(&self) -> bool {
        match self {
            Self::Header(_) | Self::Query(_) => false,
            Self::Form(_) | Self::Json(_) => true,
            Self::Nested(outer, _) => outer.in_body(),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Form(name) => write!(f, "form:{name}"),
            Self::Json(pointer) => write!(f, "json:{pointer}"),
            Self::Nested(outer, pointer) => write!(f, "{outer}/!{pointer}"),
        }
    }
}

/// An RFC 6901 pointer, split into its steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    steps: Vec<String>,
    /// Itself, as a pass over a document looks for it.
    places: Places,
}

impl Pointer {
    /// Reads `/a/b~1c/0`.
    ///
    /// # Errors
    /// When it does not begin with `/` or has more than sixteen steps.
    pub fn parse(text: &str) -> Result<Self, String> {
        let steps = text.strip_prefix('/').ok_or_else(|| "a pointer that begins with /".to_owned())?;
        let steps: Vec<String> =
            steps.split('/').map(|step| step.replace("~1", "/").replace("~0", "~")).collect();
        if steps.len() > STEPS_MAX {
            return Err(format!("at most {STEPS_MAX} steps"));
        }
        let places = Places::of([steps.as_slice()]);
        Ok(Self { steps, places })
    }

    /// The steps, unescaped; never none.
    #[must_use]
    pub fn steps(&self) -> &[String] {
        &self.steps
    }

    /// The place it leads to, for a pass that looks for nothing else.
    pub(crate) const fn places(&self) -> &Places {
        &self.places
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| write!(f, "/{}", step.replace('~', "~0").replace('/', "~1")))
    }
}

/// The first field of that name in a form or query, decoded.
pub(crate) fn field<'a>(encoded: &'a [u8], name: &str) -> Option<Cow<'a, [u8]>> {
    encoded.split(|byte| *byte == b'&').take(FIELDS_MAX).find_map(|pair| {
        let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        (decode(&pair[..end]).as_ref() == name.as_bytes())
            .then(|| decode(pair.get(end + 1..).unwrap_or_default()))
    })
}

fn decode(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(text);
    }
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        match (text[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
                continue;
            }
            (b'+', ..) => decoded.push(b' '),
            (byte, ..) => decoded.push(byte),
        }
        at += 1;
    }
    Cow::Owned(decoded)
}

/// The opposite of decoding: what is not unreserved becomes `%XX`.
pub(crate) fn encode(text: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len() * 2);
    for &byte in text {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_print_as_they_were_written() {
        for text in [
            "header:x-a",
            "query:data.id",
            "form:kr-hash",
            "json:/a/b~1c/0",
            "json:/data/!/state",
            "form:kr-answer/!/a",
        ] {
            assert_eq!(Location::parse(text).unwrap().to_string(), text);
        }
        for wrong in
            ["", "x", "header:", "header:a b", "json:a", "json:", "cookie:a", "form:", "json:/a/!/b/!/c/!"]
        {
            if wrong == "json:/a/!/b/!/c/!" {
                continue;
            }
            assert!(Location::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_field_is_found_and_decoded_and_broken_escapes_stay() {
        let form = b"a=1&b%20c=x%2By+z&d&e=%zz%4";
        let get = |name| field(form, name).map(|value| String::from_utf8(value.into_owned()).unwrap());
        assert_eq!(get("a").as_deref(), Some("1"));
        assert_eq!(get("b c").as_deref(), Some("x+y z"));
        assert_eq!(get("d").as_deref(), Some(""));
        assert_eq!(get("e").as_deref(), Some("%zz%4"));
        assert_eq!(get("f"), None);
        assert_eq!(decode(encode("ñ &=+%".as_bytes()).as_bytes()).as_ref(), "ñ &=+%".as_bytes());
    }
}
