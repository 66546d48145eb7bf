//! Signing what we send, by the Standard Webhooks specification: `v1,` and the base64 of HMAC-SHA256 over
//! `id.timestamp.body`; one signature per secret while secrets are being rotated, separated by spaces.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chaski_common::mac::{Hash, MacKey};
use chaski_common::secret::Secret;
use http::HeaderValue;

/// Marks a secret whose rest is the key in base64, by the same specification.
const SECRET_PREFIX: &[u8] = b"whsec_";
/// `v1,` and 44 digits.
const SIGNATURE_BYTES: usize = 47;

/// The keys of one receiver, ready to use.
#[derive(Clone, Debug)]
pub struct Signer(Vec<MacKey>);

impl Signer {
    /// The first key is the current one.
    #[must_use]
    pub fn new(secrets: &[Secret]) -> Self {
        let key = |secret: &Secret| {
            let text = secret.expose();
            let decoded = text
                .strip_prefix(SECRET_PREFIX)
                .and_then(|digits| STANDARD.decode(digits).ok())
                .map(Secret::new);
            MacKey::new(Hash::Sha256, decoded.as_ref().map_or(text, Secret::expose))
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
