//! Where a value stands in a request: `header:NAME`, `query:NAME`, `form:FIELD`, `json:/pointer`.
//!
//! A JSON document inside a text is reached with `!`: `json:/data/!/state` reads `/data` as text and then
//! `/state` inside it; `form:kr-answer/!/orderStatus` does the same with a form field.

use std::borrow::Cow;
use std::fmt;

use http::HeaderName;

use crate::json::Places;

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
            if inner.split('/').any(|step| step == "!") {
                return Err("at most one /!/: a text in a text in a text is not looked into".to_owned());
            }
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

    /// Where in the request the text is from; a value inside a text is where that text is.
    pub(crate) fn outermost(&self) -> &Self {
        match self {
            Self::Nested(outer, _) => outer.outermost(),
            single => single,
        }
    }

    /// Whether the value is in the body, and so cannot be looked at before that is read.
    #[must_use]
    pub fn in_body(&self) -> bool {
        matches!(self.outermost(), Self::Form(_) | Self::Json(_))
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

/// A form or query has more than one field of a name, however each spells it, or one that only some take for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Repeated;

/// The field of that name in a form or query, decoded. Every field is looked at: of two with one name this one would be
/// checked, and whoever gets the bytes might take the other. How many there are, the bound of the body or the target says.
pub(crate) fn field<'a>(encoded: &'a [u8], name: &str) -> Result<Option<Cow<'a, [u8]>>, Repeated> {
    let mut found = None;
    for pair in encoded.split(|byte| *byte == b'&') {
        // To some readers a semicolon is an ampersand, too.
        for (at, piece) in pair.split(|byte| *byte == b';').enumerate() {
            let end = piece.iter().position(|byte| *byte == b'=').unwrap_or(piece.len());
            let spelled = decode(&piece[..end]);
            let is_it = *spelled == *name.as_bytes();
            if !is_it && !may_be_read_as(&spelled, name) {
                continue;
            }
            // What ends at a semicolon is a name to those alone; `a;b=1` is a field `a;b` to all others.
            let is_of_all = at == 0 && (end < piece.len() || piece.len() == pair.len());
            if !is_it || !is_of_all || found.is_some() {
                return Err(Repeated);
            }
            found = Some(pair.get(end + 1..).unwrap_or_default());
        }
    }
    Ok(found.map(decode))
}

/// Whether some reader takes it for that name. PHP passes over blanks in front, ends a name at a NUL, and has `_` for a
/// blank, a dot and a bracket that is not closed; Rack and qs pass over brackets in front; they all make `name[]` an entry
/// of `name`; to ASP.NET a name is the same in any case.
fn may_be_read_as(spelled: &[u8], name: &str) -> bool {
    let read = |byte: &u8| match byte {
        b' ' | b'.' | b'[' => b'_',
        byte => byte.to_ascii_lowercase(),
    };
    let is_name = |text: &[u8]| text.iter().map(read).eq(name.as_bytes().iter().map(read));
    let is_passed_over = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'[' | b']');
    let start = spelled.iter().position(|byte| !is_passed_over(byte)).unwrap_or(spelled.len());
    let spelled = until(&spelled[start..], |byte| byte == 0);
    is_name(spelled) || is_name(until(spelled, |byte| matches!(byte, b'[' | b']')))
}

fn until(text: &[u8], is_end: impl Fn(u8) -> bool) -> &[u8] {
    &text[..text.iter().position(|byte| is_end(*byte)).unwrap_or(text.len())]
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
        for wrong in [
            "",
            "x",
            "header:",
            "header:a b",
            "json:a",
            "json:",
            "cookie:a",
            "form:",
            "json:/a/!/b/!/c",
            "json:/a/!/!",
        ] {
            assert!(Location::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_field_is_found_and_decoded_and_broken_escapes_stay() {
        let form = b"a=1&b%20c=x%2By+z&d&e=%zz%4";
        let get =
            |name| field(form, name).unwrap().map(|value| String::from_utf8(value.into_owned()).unwrap());
        assert_eq!(get("a").as_deref(), Some("1"));
        assert_eq!(get("b c").as_deref(), Some("x+y z"));
        assert_eq!(get("d").as_deref(), Some(""));
        assert_eq!(get("e").as_deref(), Some("%zz%4"));
        assert_eq!(get("f"), None);
        assert_eq!(decode(encode("ñ &=+%".as_bytes()).as_bytes()).as_ref(), "ñ &=+%".as_bytes());
    }

    #[test]
    fn two_fields_of_one_name_are_none_however_they_are_spelled_and_wherever_they_stand() {
        let far = format!("a=1{}&a=2", "&b=".repeat(10_000));
        for form in ["a=1&a=1", "a=1&a=2", "a=1&%61=2", "%61&a", "a=&b=1&&a=", far.as_str()] {
            assert_eq!(field(form.as_bytes(), "a"), Err(Repeated), "{form}");
        }
        for seen_as in [
            "+a=2",
            "%20%09a=2",
            "a%00=2",
            "a%00b=2",
            "a[]=2",
            "a%5Bb%5D=2",
            "c=1;a=2",
            "c;+a",
            "a;b=2",
            "a;b",
            "[a]=2",
            "a]=2",
            "]a",
            "%5Ba=2",
            "A=2",
        ] {
            for form in [format!("a=1&{seen_as}"), format!("{seen_as}&a=1"), seen_as.to_owned()] {
                assert_eq!(field(form.as_bytes(), "a"), Err(Repeated), "{form}");
            }
        }
        assert_eq!(field(b"a=1;b&b[=2&c=;d", "a"), Ok(Some(Cow::Borrowed(b"1;b".as_slice()))));
        assert_eq!(field(b"a[b]=1&a[c]=2", "a[b]"), Ok(Some(Cow::Borrowed(b"1".as_slice()))));
        assert_eq!(field(far.as_bytes(), "c"), Ok(None));
        assert_eq!(field(b"x+y=1&x%20y=2", "x y"), Err(Repeated));
        for seen_as in ["order.id", "order+id", "order[id", "ORDER_ID", "order%2Eid[]"] {
            let form = format!("order_id=1&{seen_as}=2");
            assert_eq!(field(form.as_bytes(), "order_id"), Err(Repeated), "{form}");
        }
        assert_eq!(field(b"a=1&a_=2&ab=3&=a&ba=1&b[a]=1", "a"), Ok(Some(Cow::Borrowed(b"1".as_slice()))));
    }
}
