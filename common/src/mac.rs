//! Keyed digests, for the signatures we check and for the ones we make.

use hmac::{Hmac, KeyInit};
use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use subtle::ConstantTimeEq;

/// Which HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hash {
    /// HMAC-SHA1: only for senders that have nothing better.
    #[serde(rename = "hmac-sha1")]
    Sha1,
    /// HMAC-SHA256.
    #[serde(rename = "hmac-sha256")]
    Sha256,
    /// HMAC-SHA512.
    #[serde(rename = "hmac-sha512")]
    Sha512,
}

impl Hash {
    /// Length of the tag in bytes.
    #[must_use]
    pub const fn tag_bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// A key with its two block states already computed: starting a tag is a copy, not a hash.
#[derive(Clone)]
pub struct MacKey(Keyed);

#[derive(Clone)]
enum Keyed {
    Sha1(Hmac<Sha1>),
    Sha256(Hmac<Sha256>),
    Sha512(Hmac<Sha512>),
}

impl std::fmt::Debug for MacKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MacKey(..)")
    }
}

fn keyed<M: KeyInit>(key: &[u8]) -> M {
    #[allow(clippy::expect_used, reason = "RFC 2104: an HMAC takes a key of any length")]
    M::new_from_slice(key).expect("an HMAC takes a key of any length")
}

impl MacKey {
    /// A key of any length; whether it is long enough is the configuration's business.
    #[must_use]
    pub fn new(hash: Hash, key: &[u8]) -> Self {
        Self(match hash {
            Hash::Sha1 => Keyed::Sha1(keyed(key)),
            Hash::Sha256 => Keyed::Sha256(keyed(key)),
            Hash::Sha512 => Keyed::Sha512(keyed(key)),
        })
    }

    /// The tag over the parts, one after the other.
    #[must_use]
    pub fn tag(&self, parts: &[&[u8]]) -> Tag {
        self.tag_each(parts.iter().copied())
    }

    /// The same of parts that stand in no slice.
    #[must_use]
    pub fn tag_each<'p>(&self, parts: impl Iterator<Item = &'p [u8]>) -> Tag {
        fn finish<'p, M: hmac::Mac + Clone>(key: &M, parts: impl Iterator<Item = &'p [u8]>) -> Tag {
            let mut mac = key.clone();
            parts.for_each(|part| mac.update(part));
            let bytes = mac.finalize().into_bytes();
            let mut tag = Tag { bytes: [0; TAG_BYTES_MAX], len: bytes.len() };
            tag.bytes[..bytes.len()].copy_from_slice(&bytes);
            tag
        }
        match &self.0 {
            Keyed::Sha1(key) => finish(key, parts),
            Keyed::Sha256(key) => finish(key, parts),
            Keyed::Sha512(key) => finish(key, parts),
        }
    }
}

/// Length of the longest tag.
const TAG_BYTES_MAX: usize = 64;

/// A computed tag; comparing takes the same time wherever the first difference is.
#[derive(Clone, Copy)]
pub struct Tag {
    /// Zeros behind the tag.
    bytes: [u8; TAG_BYTES_MAX],
    len: usize,
}

impl Tag {
    /// The tag's bytes, for sending.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Whether `claimed` is this tag, whole; a claim of another length is not.
    #[must_use]
    pub fn matches(&self, claimed: &[u8]) -> bool {
        if claimed.len() != self.len {
            return false;
        }
        let mut padded = [0; TAG_BYTES_MAX];
        padded[..self.len].copy_from_slice(claimed);
        // Eight bytes at a time: all of them, whichever differ.
        let words = |bytes: &[u8; TAG_BYTES_MAX]| -> [u64; TAG_BYTES_MAX / 8] {
            std::array::from_fn(|at| u64::from_ne_bytes(std::array::from_fn(|byte| bytes[at * 8 + byte])))
        };
        words(&self.bytes).ct_eq(&words(&padded)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_agree_with_rfc_4231_and_rfc_2202() {
        // Test case 2 of both documents.
        let cases = [
            (Hash::Sha1, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
            (Hash::Sha256, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
            (
                Hash::Sha512,
                "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
            ),
        ];
        for (hash, expected) in cases {
            let tag = MacKey::new(hash, b"Jefe").tag(&[b"what do ya want ", b"for nothing?"]);
            assert_eq!(hex::encode(tag.as_bytes()), expected);
            assert_eq!(tag.as_bytes().len(), hash.tag_bytes());
            assert!(tag.matches(&hex::decode(expected).unwrap()));
            assert!(!tag.matches(&tag.as_bytes()[1..]));
            assert!(!tag.matches(b""));
        }
    }
}
