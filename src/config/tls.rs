//! `[ingest.tls]`: whether the files are there, are what they should be, and are still good.
//!
//! Only what would stop the edge from starting is looked at; trust is the sender's business.

use std::path::{Path, PathBuf};

use chaski_common::clock::Clock;
use jiff::Timestamp;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::problem::{Place, Reason};
use super::reader::Node;
use super::{Checker, TlsFiles, secret};
use crate::certificate::{self, Certificate};

/// Most bytes of a file of certificates.
const FILE_BYTES_MAX: u64 = 4 << 20;

impl Checker<'_> {
    pub(super) fn tls(&mut self, node: &Node) -> Option<TlsFiles> {
        if !node.given {
            return None;
        }
        if node.is_empty() {
            self.report.warn(node.place(), "empty: no TLS is spoken");
            return None;
        }
        self.need(node, "cert", "name the certificate's PEM file");
        self.need(node, "key", "name the private key's PEM file");
        let file = |key: &str| node.text(key).map(|path| (node.at(key), self.folder.join(path)));
        let (cert, key, client_ca) = (file("cert"), file("key"), file("client_ca"));
        for (at, path) in cert.iter().chain(&client_ca) {
            if let Err(message) = check_certificates(path, Clock::system().now()) {
                self.report.refuse(at, Reason::Tls, format!("{}: {message}", path.display()), "");
            }
        }
        if let Some((at, path)) = &key {
            self.private_key(at, path);
        }
        let path = |(_, path): (Place, PathBuf)| path;
        Some(TlsFiles { cert: path(cert?), key: path(key?), client_ca: client_ca.map(path) })
    }

    fn private_key(&mut self, at: &Place, path: &Path) {
        match secret::read_private(path) {
            Err((_, message, hint)) if !path.is_file() => self.report.refuse(at, Reason::Tls, message, hint),
            Err((reason, message, hint)) => self.report.refuse(at, reason, message, hint),
            Ok(pem) => {
                let pem = zeroize::Zeroizing::new(pem);
                if PrivateKeyDer::from_pem_slice(&pem).is_err() {
                    self.report.refuse(
                        at,
                        Reason::Tls,
                        format!("{} holds no private key", path.display()),
                        "it must be PEM",
                    );
                }
            }
        }
    }
}

fn check_certificates(path: &Path, now: Timestamp) -> Result<(), String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err("not a file of certificates".to_owned());
    }
    let pem = std::fs::read(path).map_err(|error| error.to_string())?;
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|_| "not PEM".to_owned())?;
    let first = certificates.first().ok_or_else(|| "holds no certificate (PEM)".to_owned())?;
    let Certificate { from, until, .. } =
        certificate::read(first).ok_or_else(|| "the certificate cannot be read".to_owned())?;
    if now > until {
        return Err(format!("the certificate expired at {until}"));
    }
    if now < from {
        return Err(format!("the certificate is valid from {from} only"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate of which nothing but its two times is anybody's.
    fn certificate(from: &str, until: &str) -> Vec<u8> {
        let wrap = |tag: u8, content: &[u8]| [&[tag, u8::try_from(content.len()).unwrap()], content].concat();
        let stamp = |text: &str| wrap(if text.len() == 13 { 0x17 } else { 0x18 }, text.as_bytes());
        let times = wrap(0x30, &[stamp(from), stamp(until)].concat());
        let (name, algorithm, bits) =
            (wrap(0x30, &[]), wrap(0x30, &wrap(6, &[0x2a, 3, 4])), wrap(3, &[0, 0]));
        let key = wrap(0x30, &[algorithm.clone(), bits.clone()].concat());
        let (version, serial) = (wrap(0xa0, &[2, 1, 2]), wrap(2, &[1]));
        let body = [version, serial, algorithm.clone(), name.clone(), times, name, key].concat();
        wrap(0x30, &[wrap(0x30, &body), algorithm, bits].concat())
    }

    fn pem(der: &[u8]) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }

    #[test]
    fn an_expired_certificate_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cert.pem");
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        for (from, until, verdict) in [
            ("250101000000Z", "270101000000Z", ""),
            ("20250101000000Z", "20530101000000Z", ""),
            ("990101000000Z", "260531235959Z", "expired at 2026-05-31T23:59:59Z"),
            ("270101000000Z", "280101000000Z", "valid from 2027-01-01T00:00:00Z only"),
            ("no date at Z", "270101000000Z", "cannot be read"),
        ] {
            std::fs::write(&path, pem(&certificate(from, until))).unwrap();
            let said = check_certificates(&path, now).err().unwrap_or_default();
            assert!(
                said.ends_with(verdict) && said.is_empty() == verdict.is_empty(),
                "{from} {until}: {said}"
            );
        }
        for content in ["", "hello", "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, content).unwrap();
            assert!(check_certificates(&path, now).is_err(), "{content:?}");
        }
    }

    #[test]
    fn both_files_must_be_good_and_the_key_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mode = |mode| std::fs::set_permissions(at("key"), std::fs::Permissions::from_mode(mode)).unwrap();
        let verdict = || {
            let text = "[ingest.tls]\ncert = 'cert'\nkey = 'key'\n";
            let read = crate::config::Config::parse(text, &at("chaski.toml"), &|_| None);
            read.map(|config| config.ingest.tls.unwrap()).map_err(|errors| {
                errors.0.iter().map(|problem| (problem.reason.label(), problem.line)).collect::<Vec<_>>()
            })
        };
        std::fs::write(at("cert"), pem(&certificate("250101000000Z", "20530101000000Z"))).unwrap();
        std::fs::write(at("key"), "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n").unwrap();
        mode(0o600);
        assert_eq!(verdict(), Ok(TlsFiles { cert: at("cert"), key: at("key"), client_ca: None }));
        mode(0o644);
        assert_eq!(verdict(), Err(vec![("config_secret_permissions", 3)]));
        mode(0o600);
        std::fs::write(at("cert"), pem(&certificate("200101000000Z", "210101000000Z"))).unwrap();
        std::fs::write(at("key"), "no key").unwrap();
        assert_eq!(verdict(), Err(vec![("config_tls", 2), ("config_tls", 3)]));
    }
}
