//! PagoEfectivo, as far as a gateway can see it.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// Made up, of the length a merchant's has.
pub(crate) const PE_SECRET: &str = "Kq7vT2mXbR9sLwYd4HnZpF6cJ3gUeA8oViQ1xNtM";
/// The default path of the source.
pub(crate) const PE_PATH: &str = "/in/pagoefectivo";
/// What signs to the receivers: `whsec_` and 24 bytes in base64.
pub(crate) const DESTINATION_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A callback, signed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Callback {
    pub(crate) body: String,
    pub(crate) signature: String,
}

impl Callback {
    pub(crate) fn of(body: impl Into<String>) -> Self {
        let body = body.into();
        Self { signature: hex_hmac(PE_SECRET, body.as_bytes()), body }
    }

    /// The whole request on a connection that is kept.
    pub(crate) fn wire(&self) -> Vec<u8> {
        let Self { body, signature } = self;
        format!(
            "POST {PE_PATH} HTTP/1.1\r\nhost: pay.test\r\ncontent-type: application/json\r\npe-signature: {signature}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }
}

/// Payment number `number` of `cip` 10_000_000 + number, so that each is an event and a subject of its own.
pub(crate) fn payment(number: u64) -> Callback {
    Callback::of(paid(10_000_000 + number, &number.to_string(), "1001.00"))
}

/// The body of a `cip.paid`.
pub(crate) fn paid(cip: u64, operation: &str, amount: &str) -> String {
    format!(
        r#"{{"eventType":"cip.paid","operationNumber":"{operation}","data":{{"cip":"{cip}","currency":"PEN","amount":{amount}}}}}"#
    )
}

pub(crate) fn hex_hmac(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}
