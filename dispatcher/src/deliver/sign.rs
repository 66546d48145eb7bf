//! Signing what we send, by the Standard Webhooks specification: `v1,` and the base64 of HMAC-SHA256 over
//! `id.timestamp.body`; one signature per secret while secrets are being rotated, separated by spaces.

use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chaski_common::mac::{Hash, MacKey};
use chaski_common::secret::Secret;
use http::HeaderValue;

/// Marks a secret whose rest is the key in base64, by the same specification.
pub const SECRET_PREFIX: &str = "whsec_";
/// How long the specification wants a key to be.
const KEY_BYTES: RangeInclusive<usize> = 24..=64;
/// `v1,` and 44 digits.
const SIGNATURE_BYTES: usize = 47;

/// The keys of one receiver, ready to use.
#[derive(Clone, Debug)]
pub struct Signer(Vec<MacKey>);

/// The key that the libraries of the specification find in a secret: base64, with [`SECRET_PREFIX`] in front or
/// without. None for other text, which they do not take and which is the key as it stands; so is, without the
/// prefix, base64 of fewer than 24 or more than 64 bytes.
#[must_use]
pub fn standard_key(secret: &Secret) -> Option<Secret> {
    let text = secret.expose();
    let marked = text.strip_prefix(SECRET_PREFIX.as_bytes());
    let key = STANDARD.decode(marked.unwrap_or(text)).ok()?;
    (marked.is_some() || KEY_BYTES.contains(&key.len())).then(|| Secret::new(key))
}

impl Signer {
    /// The first key is the current one.
    #[must_use]
    pub fn new(secrets: &[Secret]) -> Self {
        let key = |secret: &Secret| {
            let decoded = standard_key(secret);
            MacKey::new(Hash::Sha256, decoded.as_ref().unwrap_or(secret).expose())
        };
        Self(secrets.iter().map(key).collect())
    }

    /// The value of `webhook-signature`; none without keys.
    #[must_use]
    pub fn sign(&self, id: &[u8], timestamp: &[u8], body: &[u8]) -> Option<HeaderValue> {
        if self.0.is_empty() {
            return None;
        }
        let mut text = String::with_capacity(self.0.len() * (SIGNATURE_BYTES + 1));
        for key in &self.0 {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str("v1,");
            STANDARD.encode_string(key.tag(&[id, b".", timestamp, b".", body]).as_bytes(), &mut text);
        }
        HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specifications_own_example_comes_out() {
        // The test vector that the libraries of the specification share.
        let signer = Signer::new(&[Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]);
        let signature =
            signer.sign(b"msg_p5jXN8AQM9LWM0D4loKWxJek", b"1614265330", br#"{"test": 2432232314}"#).unwrap();
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_key_in_base64_needs_no_prefix_and_other_text_is_the_key_itself() {
        let sign = |secret: &str| Signer::new(&[Secret::new(secret)]).sign(b"i", b"1", b"b").unwrap();
        let marked = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        assert_eq!(sign(marked), sign(&marked[6..]));
        let text = "orders-secret-of-today";
        let key = MacKey::new(Hash::Sha256, text.as_bytes());
        assert_eq!(sign(text), format!("v1,{}", STANDARD.encode(key.tag(&[b"i.1.b"]).as_bytes())));
        assert!(standard_key(&Secret::new(text)).is_none());
        // Text that happens to be base64, of a key that is too short for one.
        assert!(standard_key(&Secret::new("abcdefghijklmnop")).is_none());
        assert!(standard_key(&Secret::new("whsec_no-base64!")).is_none());
    }

    #[test]
    fn two_secrets_make_two_signatures_and_none_makes_none() {
        let (old, new) = (Secret::new("an old secret"), Secret::new("a new secret"));
        let one = |secret: &Secret| {
            Signer::new(std::slice::from_ref(secret))
                .sign(b"i", b"1", b"b")
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        let both = Signer::new(&[new.clone(), old.clone()]).sign(b"i", b"1", b"b").unwrap();
        assert_eq!(both, format!("{} {}", one(&new), one(&old)));
        assert_eq!(Signer::new(&[]).sign(b"i", b"1", b"b"), None);
    }
}
