//! From the files of `[ingest.tls]` to what a connection is spoken to with. Nothing is kept of a file: whoever wants
//! another certificate in force loads it anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::EdgeError;

/// The names of the protocols in a handshake.
pub(super) const H2: &[u8] = b"h2";
const H1: &[u8] = b"http/1.1";

/// Certificate and key, in PEM.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// The certificate and what leads to its root, in that order.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// Roots of client certificates; when given, a client without one is refused.
    pub client_ca: Option<PathBuf>,
}

/// Files that were read and go together.
pub struct Tls {
    server: rustls::ServerConfig,
    /// The edge's own, the first of its chain.
    certificate: CertificateDer<'static>,
}

/// What connections are spoken to with.
pub(super) struct InForce {
    pub(super) acceptor: TlsAcceptor,
    pub(super) certificate: CertificateDer<'static>,
}

impl Tls {
    /// With the protocols that are spoken inside.
    pub(super) fn offering(mut self, http2: bool) -> InForce {
        let http2: &[&[u8]] = if http2 { &[H2] } else { &[] };
        self.server.alpn_protocols = http2.iter().chain(&[H1]).map(|name| name.to_vec()).collect();
        InForce { acceptor: TlsAcceptor::from(Arc::new(self.server)), certificate: self.certificate }
    }
}

impl TlsConfig {
    /// Reads the files. Blocks on the disk.
    ///
    /// # Errors
    /// [`EdgeError`] names the file that cannot be used, or says that key and certificate do not go together.
    pub fn load(&self) -> Result<Tls, EdgeError> {
        let chain = certificates("cert", &self.cert)?;
        let certificate = chain[0].clone();
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| failed("key", &self.key, error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(EdgeError::Tls)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = rustls::RootCertStore::empty();
                for certificate in certificates("client_ca", path)? {
                    roots.add(certificate).map_err(|error| failed("client_ca", path, error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| failed("client_ca", path, error))?)
            }
        };
        // Sessions live in what is made here: none that began under another certificate, or other authorities of
        // clients, is taken up again.
        let server = builder.with_single_cert(chain, key).map_err(EdgeError::Tls)?;
        Ok(Tls { server, certificate })
    }
}

/// The certificates of a file, at least one.
fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, EdgeError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| failed(key, path, error))?;
    if certificates.is_empty() { Err(failed(key, path, "no certificate in it")) } else { Ok(certificates) }
}

fn failed(
    key: &'static str,
    path: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> EdgeError {
    EdgeError::TlsFile { key, path: path.to_owned(), source: source.into() }
}
