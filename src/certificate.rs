//! X.509 certificates, as far as their files and their dates are somebody's work: what they are for, until when,
//! and whether a chain is one. Trust is decided by rustls, never here.

use jiff::Timestamp;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What is looked at of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// From when it holds.
    pub(crate) from: Timestamp,
    /// Until when.
    pub(crate) until: Timestamp,
}

/// Reads a certificate; none if it is not one.
pub(crate) fn read(der: &[u8]) -> Option<Certificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    let validity = certificate.validity();
    Some(Certificate { from: at(validity.not_before)?, until: at(validity.not_after)? })
}

/// When a certificate expires.
pub(crate) fn not_after(der: &[u8]) -> Option<Timestamp> {
    Some(read(der)?.until)
}
