//! Signatures as they are written in a request: where, how many, under which tags, in which encoding.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chaski_common::mac::Hash;

use super::scheme::{TimestampPlace, TimestampRule};
use crate::location::Location;
use crate::respond::Refusal;
use crate::source::{Faults, SignatureSpec, SpecError, SpecErrors};

/// Signatures in one request: two keys, two versions, and room.
const CANDIDATES_MAX: usize = 16;
/// Longest decoded signature or credential.
const CANDIDATE_BYTES_MAX: usize = 1024;

/// Where the signatures are and how they are written.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) from: Location,
    pub(super) list: Option<String>,
    pub(super) pair: Option<String>,
    pub(super) tags: Vec<String>,
    pub(super) prefix: String,
    pub(super) encoding: Encoding,
    /// Bytes of a signature; none for credentials.
    pub(super) bytes: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf8,
    Hex,
    Base64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Hmac(Hash),
    Ed25519,
    HttpBasic,
}

impl Algorithm {
    pub(super) fn compile(spec: &SignatureSpec) -> Result<Self, SpecError> {
        Ok(match spec.algorithm.as_str() {
            "hmac-sha1" => Self::Hmac(Hash::Sha1),
            "hmac-sha256" => Self::Hmac(Hash::Sha256),
            "hmac-sha512" => Self::Hmac(Hash::Sha512),
            "ed25519" => Self::Ed25519,
            "http-basic" => Self::HttpBasic,
            other => {
                let right = "hmac-sha1, hmac-sha256, hmac-sha512, ed25519 or http-basic";
                return Err(SpecError::new(
                    "signature.algorithm",
                    format!("no algorithm is called {other}"),
                    right,
                ));
            }
        })
    }
}

impl Encoding {
    pub(super) fn compile(field: &str, name: &str, allowed: &[Self]) -> Result<Self, SpecError> {
        let all = [(Self::Utf8, "utf8"), (Self::Hex, "hex"), (Self::Base64, "base64")];
        let allowed: Vec<_> = all.iter().filter(|(encoding, _)| allowed.contains(encoding)).collect();
        match allowed.iter().find(|(_, known)| *known == name) {
            Some((encoding, _)) => Ok(*encoding),
            None => {
                let names: Vec<&str> = allowed.iter().map(|(_, name)| *name).collect();
                Err(SpecError::new(field, format!("no encoding is called {name}"), names.join(" or ")))
            }
        }
    }

    pub(super) fn decode(self, text: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Utf8 => Some(text.to_vec()),
            Self::Hex => decode_hex(text),
            Self::Base64 => BASE64.decode(text).ok(),
        }
    }

    pub(super) fn encode(self, bytes: &[u8]) -> String {
        match self {
            Self::Utf8 => String::from_utf8_lossy(bytes).into_owned(),
            Self::Hex => hex::encode(bytes),
            Self::Base64 => BASE64.encode(bytes),
        }
    }
}

fn decode_hex(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 2);
    let (whole, rest) = text.as_chunks();
    for digits in whole {
        bytes.extend_from_slice(&sixteen(*digits)?);
    }
    if !rest.is_empty() {
        let mut padded = [b'0'; 32];
        padded[..rest.len()].copy_from_slice(rest);
        bytes.extend_from_slice(&sixteen(padded)?[..rest.len() / 2]);
    }
    text.len().is_multiple_of(2).then_some(bytes)
}

/// The bytes of so many hexadecimal digits, all at once in the processor's vectors.
fn sixteen(digits: [u8; 32]) -> Option<[u8; 16]> {
    let worth = digits.map(digit);
    let seen = worth.iter().fold(0, |seen, worth| seen | worth);
    (seen & NO_DIGIT == 0).then(|| std::array::from_fn(|at| worth[2 * at] << 4 | worth[2 * at + 1]))
}

/// What a byte is worth as a hexadecimal digit. Without a branch, because the digits of a signature are random: the
/// processor would foresee every other one wrongly.
const fn digit(byte: u8) -> u8 {
    let (number, letter) = (byte.wrapping_sub(b'0'), (byte | 0x20).wrapping_sub(b'a'));
    let as_number = if number < 10 { number } else { NO_DIGIT };
    let as_letter = if letter < 6 { letter + 10 } else { NO_DIGIT };
    if as_number < as_letter { as_number } else { as_letter }
}
const NO_DIGIT: u8 = 0x80;

impl Layout {
    pub(super) fn compile(spec: &SignatureSpec, algorithm: Algorithm) -> Result<Self, SpecErrors> {
        let mut faults = Faults::default();
        let from =
            faults.keep(Location::parse(&spec.from).map_err(|right| {
                SpecError::new("signature.from", format!("{} is no place", spec.from), right)
            }));
        faults.keep(match (&spec.pair, spec.tags.as_slice()) {
            (Some(_), []) => Err(SpecError::new(
                "signature.tags",
                "entries have tags and none counts",
                "the tags whose entries are signatures",
            )),
            (None, [_, ..]) => Err(SpecError::new(
                "signature.pair",
                "there are tags and nothing that splits them off",
                "for example =",
            )),
            _ => Ok(()),
        });
        for (field, text) in [("signature.list", &spec.list), ("signature.pair", &spec.pair)] {
            if text.as_ref().is_some_and(String::is_empty) {
                let right = "the text that splits, or leave it out";
                faults.keep(Err::<(), _>(SpecError::new(field, "empty", right)));
            }
        }
        let allowed = [Encoding::Hex, Encoding::Base64];
        let encoding = faults.keep(Encoding::compile("signature.encoding", &spec.encoding, &allowed));
        let bytes = match algorithm {
            Algorithm::Hmac(hash) => Some(hash.tag_bytes()),
            Algorithm::Ed25519 => Some(64),
            Algorithm::HttpBasic => None,
        };
        let (list, pair, tags, prefix) =
            (spec.list.clone(), spec.pair.clone(), spec.tags.clone(), spec.prefix.clone());
        let whole = from.zip(encoding);
        faults.finish(whole.map(|(from, encoding)| Self { from, list, pair, tags, prefix, encoding, bytes }))
    }

    /// The decoded signatures, and the timestamp if it stands among them.
    pub(super) fn read<'v>(
        &self,
        value: &'v [u8],
        timestamp: Option<&TimestampRule>,
    ) -> Result<(Vec<Vec<u8>>, Option<&'v str>), Refusal> {
        let text = std::str::from_utf8(value).map_err(|_| Refusal::SignatureFormat)?;
        let timestamp_tag = timestamp.and_then(|rule| match &rule.from {
            TimestampPlace::Tag(tag) => Some(tag.as_str()),
            TimestampPlace::At(_) => None,
        });
        let mut candidates = Vec::with_capacity(1);
        let mut tagged_time = None;
        let (mut counted, mut unreadable) = (0, 0);
        for entry in self.entries(text) {
            let signature = match &self.pair {
                None => self.behind_prefix(entry),
                Some(pair) => match entry.split_once(pair.as_str()) {
                    Some((tag, value)) if self.tags.iter().any(|counts| counts == tag) => Some(value),
                    Some((tag, value)) if Some(tag) == timestamp_tag => {
                        if tagged_time.is_some_and(|earlier| earlier != value) {
                            return Err(Refusal::TimestampFormat);
                        }
                        tagged_time = Some(value);
                        continue;
                    }
                    Some(_) => continue,
                    None => None,
                },
            };
            counted += 1;
            if counted > CANDIDATES_MAX {
                return Err(Refusal::TooManySignatures);
            }
            match signature.and_then(|signature| self.decode(signature)) {
                Some(signature) => candidates.push(signature),
                None => unreadable += 1,
            }
        }
        match (candidates.is_empty(), unreadable) {
            (false, _) => Ok((candidates, tagged_time)),
            // Entries there are, but none of a kind that counts.
            (true, 0) if !text.trim().is_empty() => Err(Refusal::BadSignature),
            (true, _) => Err(Refusal::SignatureFormat),
        }
    }

    fn entries<'v>(&self, text: &'v str) -> impl Iterator<Item = &'v str> {
        let (split, whole) = match &self.list {
            Some(separator) => (Some(text.split(separator.as_str())), None),
            None => (None, Some(text)),
        };
        split.into_iter().flatten().chain(whole).map(str::trim).filter(|entry| !entry.is_empty())
    }

    /// The name of a scheme of credentials is the same in any case (RFC 9110, 11.1); any other prefix is itself only.
    fn behind_prefix<'v>(&self, entry: &'v str) -> Option<&'v str> {
        let (prefix, signature) = entry.split_at_checked(self.prefix.len())?;
        let is_credentials = self.bytes.is_none();
        let is_it = prefix == self.prefix || (is_credentials && prefix.eq_ignore_ascii_case(&self.prefix));
        is_it.then_some(signature)
    }

    fn decode(&self, signature: &str) -> Option<Vec<u8>> {
        let decoded = self.encoding.decode(signature.as_bytes())?;
        match self.bytes {
            Some(bytes) => (decoded.len() == bytes).then_some(decoded),
            None => (decoded.len() <= CANDIDATE_BYTES_MAX).then_some(decoded),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_other_byte_is_a_hexadecimal_digit() {
        for byte in 0..=u8::MAX {
            for text in [[byte, b'1'], [b'1', byte]] {
                assert_eq!(decode_hex(&text), hex::decode(text).ok(), "{byte}");
            }
        }
    }

    proptest! {
        #[test]
        fn hexadecimal_digits_are_read_as_the_library_reads_them(
            text in "[0-9a-fA-F]{0,80}[ -~]{0,2}[0-9a-fA-F]{0,80}",
        ) {
            prop_assert_eq!(decode_hex(text.as_bytes()), hex::decode(&text).ok());
        }
    }
}
