//! The senders that are known by name. Each is a TOML description under `presets/`, nothing more; a source may
//! override any single field of it.

use crate::source::SchemeSpec;

macro_rules! presets {
    ($($name:literal,)*) => {
        const NAMES: &[&str] = &[$($name,)*];

        /// The description of a preset as written, comments included.
        #[must_use]
        pub fn text(name: &str) -> Option<&'static str> {
            match name {
                $($name => Some(include_str!(concat!("presets/", $name, ".toml"))),)*
                _ => None,
            }
        }
    };
}

presets! {
    "pagoefectivo",
    "pagoefectivo-xdate",
    "dlocal",
    "paysafe",
    "culqi",
    "kushki",
    "izipay",
    "checkout",
    "pagsmile",
    "mercadopago",
    "paddle",
    "worldline",
    "standard-webhooks",
    "svix",
    "stripe",
    "github",
    "shopify",
    "slack",
    "adyen",
}

/// Every preset's name.
#[must_use]
pub const fn names() -> &'static [&'static str] {
    NAMES
}

/// The description of a preset.
///
/// # Panics
/// When a built-in preset is not a valid description: a bug, found by the first test.
#[must_use]
#[allow(clippy::expect_used, reason = "only a bug can break it, see the function's documentation")]
pub fn load(name: &str) -> Option<SchemeSpec> {
    text(name).map(|text| toml::from_str(text).expect("a built-in preset is a valid description"))
}

#[cfg(test)]
mod tests {
    use chaski_common::secret::Secret;

    use super::*;
    use crate::content::Rules;
    use crate::location::Location;
    use crate::source::Secrets;
    use crate::verify::{Cover, Freshness, Scheme};

    /// A preset, with what only a merchant can fill in.
    fn compiled(name: &str) -> Scheme {
        let mut spec = load(name).unwrap();
        spec.signature.constants.insert("x_login".to_owned(), "login".to_owned());
        let secret = match (spec.signature.algorithm.as_str(), spec.signature.key.encoding.as_str()) {
            ("http-basic", _) => Secret::new("user:password"),
            (_, "hex") => Secret::new("00112233445566778899aabbccddeeff"),
            (_, "base64") => Secret::new("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
            _ => Secret::new("chaski-test-secret/not+real"),
        };
        let secrets = match spec.signature.key.select {
            Some(_) => Secrets::ById([("k1".to_owned(), secret.into())].into()),
            None => Secrets::Any(vec![secret.into()]),
        };
        Rules::compile(&spec.event).unwrap();
        Scheme::compile(&spec, &secrets).unwrap()
    }

    #[test]
    fn every_preset_compiles_and_its_protection_is_what_the_list_says() {
        let advisory = ["pagoefectivo-xdate", "pagsmile"];
        let signed =
            ["dlocal", "kushki", "mercadopago", "paddle", "standard-webhooks", "svix", "stripe", "slack"];
        for name in names() {
            let scheme = compiled(name);
            match scheme.freshness() {
                Freshness::Signed { .. } => assert!(signed.contains(name), "{name}"),
                Freshness::Advisory { .. } => assert!(advisory.contains(name), "{name}"),
                Freshness::None => assert!(!signed.contains(name) && !advisory.contains(name), "{name}"),
            }
            let cover = match *name {
                "culqi" | "mercadopago" => Cover::Nothing,
                "izipay" => Cover::Fields(vec![Location::Form("kr-answer".to_owned())]),
                _ => Cover::Body,
            };
            assert_eq!(scheme.cover(), cover, "{name}");
        }
        assert!(load("nobody").is_none());
    }
}
