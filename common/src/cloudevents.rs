//! An event's CloudEvents 1.0 context attributes.
//!
//! Binary mode: the body stays as it is, the attributes travel beside it, in `ce_` headers of a Kafka record as they are,
//! in `ce-` headers over HTTP escaped as that protocol binding asks (section 3.1.3.2): printable ASCII stays, all else
//! becomes percent-encoded UTF-8.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::event::Event;

/// The version of the specification, which each event carries.
pub const SPEC_VERSION: &str = "1.0";

/// What the attribute `source` begins with; the name of the event's source follows.
pub const SOURCE_PREFIX: &str = "/sources/";

/// The attribute `source` of events from the source of this name, escaped.
#[must_use]
pub fn source(name: &str) -> String {
    format!("{SOURCE_PREFIX}{}", escape(name))
}

/// The attribute `time`: when the provider says it happened, else when it was received.
#[must_use]
pub fn time(event: &Event) -> String {
    event.time.unwrap_or(event.received_at).to_string()
}

/// The text as a header may carry it.
#[must_use]
pub fn escape(text: &str) -> Cow<'_, str> {
    let plain = |byte: &u8| (0x21..=0x7e).contains(byte) && !matches!(byte, b'"' | b'%');
    if text.as_bytes().iter().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if plain(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_as_the_http_binding_asks() {
        let cases = [
            ("cip.paid", "cip.paid"),
            ("Euro € 😀", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
            ("a\r\nx: y", "a%0D%0Ax:%20y"),
            ("50%\"", "50%25%22"),
        ];
        for (text, escaped) in cases {
            assert_eq!(escape(text), escaped);
        }
    }
}
