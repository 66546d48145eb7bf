//! A broker that speaks TLS and wants a name and a password.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::broker::{Broker, Extra, SECURED};
use super::{free_port, options_at, text};
use crate::storage::kafka::Options;

/// Who may come in.
const USER: &str = "chaski";
const PASSWORD: &str = "a-password-of-the-tests";

/// A broker with a certificate of its own, reached by SCRAM-SHA-512 or PLAIN over TLS.
pub struct SecuredBroker {
    port: u16,
    certificate: PathBuf,
    _broker: Broker,
}

impl SecuredBroker {
    /// Starts it and waits until it answers.
    #[must_use]
    pub fn start() -> Self {
        let port = free_port();
        let mut certificate = PathBuf::new();
        let broker = Broker::start_with(|folder| {
            certificate = make_certificate(folder);
            let listener = format!("listener.name.{}", SECURED.to_lowercase());
            let modules = "org.apache.kafka.common.security";
            Extra {
                listeners: format!(",{SECURED}://127.0.0.1:{port}"),
                properties: format!(
                    "{listener}.ssl.keystore.type=PEM\n\
                     {listener}.ssl.keystore.location={}\n\
                     {listener}.sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN\n\
                     {listener}.scram-sha-512.sasl.jaas.config={modules}.scram.ScramLoginModule required;\n\
                     {listener}.plain.sasl.jaas.config={modules}.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";\n",
                    folder.join("keystore.pem").display()
                ),
                format: vec![
                    "--add-scram".to_owned(),
                    format!("SCRAM-SHA-512=[name={USER},password={PASSWORD}]"),
                ],
            }
        });
        Self { port, certificate, _broker: broker }
    }

    /// Options for a storage of its own, with the settings that this mechanism needs.
    #[must_use]
    pub fn options(&self, mechanism: &str) -> Options {
        let mut options = options_at(vec![format!("127.0.0.1:{}", self.port)], 1);
        options.settings = [
            ("security.protocol", "SASL_SSL"),
            ("ssl.ca.location", text(&self.certificate)),
            ("sasl.mechanism", mechanism),
            ("sasl.username", USER),
            ("sasl.password", PASSWORD),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        options
    }
}

/// A certificate for loopback, and beside it key and certificate in one file, as the broker wants them.
fn make_certificate(folder: &Path) -> PathBuf {
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", text(&key), "-out", text(&certificate)])
        .output()
        .expect("openssl is missing: apt-get install openssl");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let read = |path: &Path| std::fs::read_to_string(path).expect("openssl has written it");
    std::fs::write(folder.join("keystore.pem"), read(&key) + &read(&certificate)).expect("written");
    certificate
}
