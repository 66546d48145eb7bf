//! An event as it travels from the edge to the destinations, its derived identity, and its bounds.
//!
//! The id is computed, never drawn: the same callback has the same id on every edge and after every
//! restart, so that a receiver can end the duplicates that no sender can.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest event type, in bytes; longer ones are refused by the content rules of the edge.
pub const TYPE_BYTES_MAX: usize = 128;
/// Longest subject, in bytes.
pub const SUBJECT_BYTES_MAX: usize = 256;
/// Longest `content-type` that is kept, in bytes; a longer one is dropped, the event is not.
pub const CONTENT_TYPE_BYTES_MAX: usize = 256;
/// The type of an event whose source names none.
pub const TYPE_UNKNOWN: &str = "unknown";

/// Real money, or play money: whose the key is that signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// Real.
    Production,
    /// Play.
    Sandbox,
}

impl Environment {
    /// As the configuration, the embedded store and Kafka's header write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Sandbox => "sandbox",
        }
    }

    /// The one that is called so.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Production, Self::Sandbox].into_iter().find(|known| known.name() == name)
    }
}

/// One accepted callback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Derived from the source's name and the deduplication key.
    pub id: EventId,
    /// Name of the source, as configured.
    pub source: Arc<str>,
    /// The provider's name of what happened, for example `cip.paid`; [`TYPE_UNKNOWN`] where there is none.
    pub kind: Arc<str>,
    /// What it happened to (a CIP, an order); also the ordering key.
    pub subject: Option<Arc<str>>,
    /// When the provider says it happened.
    pub time: Option<Timestamp>,
    /// When this edge took it, in whole milliseconds.
    pub received_at: Timestamp,
    /// As sent, at most [`CONTENT_TYPE_BYTES_MAX`] bytes.
    pub content_type: Option<Arc<str>>,
    /// W3C trace context: the span of the edge that took it, where that tells spans; else as sent; where none was,
    /// one begun here, see [`crate::trace::TraceContext::begun`].
    pub traceparent: Option<Arc<str>>,
    /// Tells equal content from other content under the same id.
    pub fingerprint: Fingerprint,
    /// The bytes received, untouched.
    pub body: Bytes,
    /// The environment of its source when it was taken, which its source may have left since. None of an event that
    /// was stored before this was kept: it has the environment that its source has now.
    pub environment: Option<Environment>,
}

impl Event {
    /// Bytes this event occupies in a bounded buffer: its body and a flat allowance for the rest.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.body.len() + 256
    }
}

/// 128 bits of SHA-256 over the source's name and the parts of the deduplication key; prints as 32
/// lower-case hexadecimal digits.
// It lies on words, so that what has one in it is copied by words: a copy that begins within a word just written has the
// processor wait for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(align(8))]
pub struct EventId([u8; 16]);

impl EventId {
    /// Derives the id. Every part goes in behind its length, so that `("a|b", "c")` and `("a", "b|c")` differ.
    pub fn derive<'a>(source: &'a str, key: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in std::iter::once(source.as_bytes()).chain(key) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(first_half(&hash.finalize().into()))
    }

    /// Of content that is redriven from quarantine while its own id belongs to other content: made of its bytes, so
    /// that redriving it twice is still one event.
    #[must_use]
    pub fn of_redriven(event: &Event) -> Self {
        Self::derive(&event.source, [b"redriven".as_slice(), &Sha256::digest(&event.body)])
    }

    /// The 16 bytes themselves.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The digits, into a buffer of the caller's: what `Display` prints, where that is asked for often.
    #[must_use]
    pub fn encode<'b>(&self, buffer: &'b mut [u8; 32]) -> &'b str {
        digits(&self.0, buffer)
    }

    /// An id read back from storage.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.encode(&mut [0; 32]))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 32 hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an event id: 32 hexadecimal digits are needed")]
pub struct InvalidEventId;

impl FromStr for EventId {
    type Err = InvalidEventId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0_u8; 16];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidEventId)?;
        Ok(Self(bytes))
    }
}

impl Serialize for EventId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// 128 bits of SHA-256 over the content in a form that a resend keeps: for JSON the tokens without the
/// white space between them and without the difference between `"12"` and `12`; else the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(align(8))]
pub struct Fingerprint([u8; 16]);

impl Fingerprint {
    /// Of content that is already in its comparable form.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(first_half(&Sha256::digest(content).into()))
    }

    /// The 16 bytes themselves.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Its 32 hexadecimal digits, into a buffer of the caller's.
    #[must_use]
    pub fn encode<'b>(&self, buffer: &'b mut [u8; 32]) -> &'b str {
        digits(&self.0, buffer)
    }

    /// A fingerprint read back from storage.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

fn digits<'b>(bytes: &[u8; 16], buffer: &'b mut [u8; 32]) -> &'b str {
    buffer.copy_from_slice(hexadecimal(*bytes).as_flattened());
    // The digits are ASCII.
    std::str::from_utf8(buffer).unwrap_or_default()
}

/// The lower-case digits of each byte. Calculated and not looked up, which the compiler does for all of them at once:
/// each event has its ids and digests written half a dozen times.
pub(crate) fn hexadecimal<const N: usize>(bytes: [u8; N]) -> [[u8; 2]; N] {
    let digit = |value: u8| if value < 10 { b'0' + value } else { b'a' - 10 + value };
    let mut digits = [[0; 2]; N];
    for (pair, byte) in digits.iter_mut().zip(bytes) {
        *pair = [digit(byte >> 4), digit(byte & 15)];
    }
    digits
}

fn first_half(digest: &[u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_depends_on_every_part_and_on_where_the_parts_end() {
        let id = |source: &str, key: &[&str]| EventId::derive(source, key.iter().map(|part| part.as_bytes()));
        assert_eq!(id("pe", &["a", "b"]), id("pe", &["a", "b"]));
        for other in
            [id("pf", &["a", "b"]), id("pe", &["ab"]), id("pe", &["a", "b", ""]), id("pe", &["", "ab"])]
        {
            assert_ne!(id("pe", &["a", "b"]), other);
        }
    }

    #[test]
    fn an_id_reads_back_what_it_prints() {
        let id = EventId::derive("pe", [b"x".as_slice()]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().len(), 32);
        for first in (0..=u8::MAX).step_by(16) {
            let bytes = std::array::from_fn(|index| first + index as u8);
            assert_eq!(EventId::from_bytes(bytes).to_string(), hex::encode(bytes));
        }
        for wrong in ["", "12", "zz", &"0".repeat(31), &"0".repeat(33)] {
            assert_eq!(wrong.parse::<EventId>(), Err(InvalidEventId));
        }
    }
}
