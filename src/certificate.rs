//! X.509 certificates, as far as a person has to look after them: whom they name, how long they hold, and whether
//! a chain is one. Trust is decided by rustls, never here.

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use x509_parser::error::X509Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What is looked at of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// Whose it is, for people.
    pub(crate) subject: String,
    /// The first host it is for.
    pub(crate) name: Option<String>,
    /// From when it holds.
    pub(crate) from: Timestamp,
    /// Until when.
    pub(crate) until: Timestamp,
}

/// Reads a certificate; none if it is not one.
pub(crate) fn read(der: &[u8]) -> Option<Certificate> {
    let certificate = parse(der)?;
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    let validity = certificate.validity();
    let names = certificate.subject_alternative_name().ok().flatten();
    let host = |name: &GeneralName<'_>| match name {
        // Any host below it will do.
        GeneralName::DNSName(name) => Some(name.replacen('*', "any", 1)),
        _ => None,
    };
    Some(Certificate {
        subject: certificate.subject().to_string(),
        name: names.and_then(|names| names.value.general_names.iter().find_map(host)),
        from: at(validity.not_before)?,
        until: at(validity.not_after)?,
    })
}

/// When a certificate expires, in Unix seconds; 0 if there is none, or it cannot be read.
pub(crate) fn expiry_seconds(der: Option<&CertificateDer<'_>>) -> i64 {
    der.and_then(|der| read(der)).map_or(0, |certificate| certificate.until.as_second())
}

/// The place of the first certificate of a chain that the next one has not signed; none if all are.
pub(crate) fn first_break(chain: &[CertificateDer<'_>]) -> Option<usize> {
    chain.windows(2).position(|pair| {
        let (Some(child), Some(parent)) = (parse(&pair[0]), parse(&pair[1])) else { return true };
        // A kind of key that the parser does not know is not a wrong signature.
        let signed = child.verify_signature(Some(parent.public_key()));
        child.issuer() != parent.subject() || signed == Err(X509Error::SignatureVerificationError)
    })
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}
