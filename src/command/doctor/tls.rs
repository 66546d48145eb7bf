//! `[ingest.tls]`: whether the edge can use the files, whether senders can follow the chain, and for how long.

use std::path::Path;
use std::sync::Arc;

use chaski_common::clock::Clock;
use chaski_ingest::TlsConfig;
use jiff::Timestamp;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::finding::{Finding, Verdict};
use super::on_thread;
use crate::certificate::{self, Certificate};
use crate::config::TlsFiles;

const CHECK: &str = "tls";
/// Fewer days than this and somebody should have renewed it.
const DAYS_WARNING: i64 = 14;

pub(super) async fn check(files: TlsFiles) -> Vec<Finding> {
    let panicked = || vec![Finding::bad(CHECK, "the check panicked", "report this")];
    on_thread(move || look(&files, Clock::system().now())).await.unwrap_or_else(panicked)
}

fn look(files: &TlsFiles, now: Timestamp) -> Vec<Finding> {
    let advice = "mend the files; a running edge keeps what it has";
    if let Err(error) = TlsConfig::from(files).load() {
        return vec![Finding::bad(CHECK, crate::chain(&error), advice)];
    }
    let chain = match certificates(&files.cert) {
        Ok(chain) => chain,
        Err(error) => return vec![Finding::bad(CHECK, error, advice)],
    };
    let mut findings = vec![Finding::good(CHECK, "the key fits the certificate")];
    findings.push(match certificate::first_break(&chain) {
        Some(place) => Finding::bad(
            "tls chain",
            format!("certificate {} of {} is not signed by the next one", place + 1, files.cert.display()),
            "write the edge's own certificate first, then who signed it, and so on",
        ),
        None => trust(&chain),
    });
    findings.extend(chain.iter().map(|der| expiry("tls certificate", der, now, true)));
    if let Some(path) = &files.client_ca {
        match certificates(path) {
            // Expired or not, an authority that is listed is trusted; it is the senders' certificates that end.
            Ok(authorities) => {
                findings.extend(authorities.iter().map(|der| expiry("tls client_ca", der, now, false)));
            }
            Err(error) => findings.push(Finding::bad("tls client_ca", error, advice)),
        }
    }
    findings
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Whether a sender that knows the public authorities, and no other, can follow the chain.
fn trust(chain: &[CertificateDer<'static>]) -> Finding {
    let check = "tls chain";
    let count = chain.len();
    let followed = verify(chain);
    match followed {
        Some(Ok(())) => Finding::good(check, format!("{count} certificates, up to a public authority")),
        Some(Err(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))) => {
            Finding::warning(
                check,
                format!("{count} certificates, not up to a public authority"),
                "append the intermediate certificates to [ingest.tls] cert; with an authority of your own senders must know it",
            )
        }
        // When it expires, and whom it names, is told elsewhere or nobody's business here.
        _ => Finding::good(check, format!("{count} certificates, each signed by the next")),
    }
}

fn verify(chain: &[CertificateDer<'static>]) -> Option<Result<(), rustls::Error>> {
    let (own, intermediates) = chain.split_first()?;
    let name = ServerName::try_from(certificate::read(own)?.name?).ok()?;
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().ok()?;
    Some(verifier.verify_server_cert(own, intermediates, &name, &[], UnixTime::now()).map(|_| ()))
}

/// How long a certificate holds. `is_shown`: senders see it, and refuse it when it is over.
pub(super) fn expiry(check: &str, der: &[u8], now: Timestamp, is_shown: bool) -> Finding {
    match certificate::read(der) {
        Some(certificate) => judge(check, &certificate, now, is_shown),
        None => Finding::warning(check, "a certificate that cannot be read", "make it anew"),
    }
}

fn judge(check: &str, certificate: &Certificate, now: Timestamp, is_shown: bool) -> Finding {
    let Certificate { subject, from, until, .. } = certificate;
    let days = (*until - now).total(jiff::Unit::Second).unwrap_or_default() as i64 / 86_400;
    let over = if is_shown { Verdict::Bad } else { Verdict::Warning };
    let (verdict, found, advice) = if now > *until {
        (over, format!("{subject} expired at {until}"), "renew it")
    } else if now < *from {
        (over, format!("{subject} holds from {from} only"), "wait, or set the clock")
    } else if days < DAYS_WARNING {
        (Verdict::Warning, format!("{subject} expires in {days} days"), "renew it")
    } else {
        (Verdict::Good, format!("{subject} holds for {days} days"), "")
    };
    Finding::new(check, verdict, found, advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_told_of_before_it_expires() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let certificate = Certificate {
            subject: "CN=pay.example".to_owned(),
            name: None,
            from: at("2026-01-01T00:00:00Z"),
            until: at("2026-03-31T12:00:00Z"),
        };
        let verdict = |now: &str, is_shown| judge(CHECK, &certificate, at(now), is_shown).verdict;
        assert_eq!(verdict("2026-02-01T00:00:00Z", true), Verdict::Good);
        assert_eq!(verdict("2026-03-17T12:00:00Z", true), Verdict::Good);
        assert_eq!(verdict("2026-03-17T12:00:01Z", true), Verdict::Warning);
        assert_eq!(verdict("2026-03-31T12:00:01Z", true), Verdict::Bad);
        assert_eq!(verdict("2026-03-31T12:00:01Z", false), Verdict::Warning);
        assert_eq!(verdict("2025-12-31T23:59:59Z", true), Verdict::Bad);
    }
}
