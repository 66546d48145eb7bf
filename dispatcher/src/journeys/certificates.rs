//! What receivers on TLS show of themselves, and what is known of it.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A certificate for loopback that nobody else has signed, made by openssl.
struct Certificate {
    der: CertificateDer<'static>,
    config: Arc<ServerConfig>,
}

impl Certificate {
    fn make(folder: &Path) -> Self {
        let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&cert)
            .output()
            .expect("this test needs openssl");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let der = CertificateDer::from_pem_file(cert).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![der.clone()], PrivateKeyDer::from_pem_file(key).unwrap())
            .unwrap();
        Self { der, config: Arc::new(config) }
    }
}

/// TLS in front of a receiver, with a certificate that can be renewed.
struct Front {
    url: String,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    _connections: JoinSet<()>,
}

impl Front {
    async fn of(receiver: &Receiver, certificate: &Certificate) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/hooks", listener.local_addr().unwrap());
        let (config, behind) = (Arc::new(Mutex::new(certificate.config.clone())), receiver.address());
        let (in_force, mut connections) = (config.clone(), JoinSet::new());
        connections.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = TlsAcceptor::from(in_force.lock().unwrap().clone());
                connections.spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut behind = TcpStream::connect(behind).await.unwrap();
                    let _ = copy_bidirectional(&mut stream, &mut behind).await;
                });
            }
        });
        Self { url, config, _connections: connections }
    }

    fn renew(&self, certificate: &Certificate) {
        *self.config.lock().unwrap() = certificate.config.clone();
    }
}

#[tokio::test]
async fn the_certificate_of_a_destination_is_the_one_that_its_last_connection_was_shown() {
    let folder = TempDir::new().unwrap();
    let [first, second, strange] = [(); 3].map(|()| Certificate::make(folder.path()));
    // Each request has a connection of its own.
    let receiver = Receiver::start(|_| Answer::Close).await;
    let [front, other] = [Front::of(&receiver, &first).await, Front::of(&receiver, &strange).await];
    let trusted = [&first, &second].map(|certificate| certificate.der.clone()).to_vec();
    let store = embedded::open(&Options { path: folder.path().into() }, &Registry::new()).unwrap();
    let config = DispatcherConfig { extra_roots: trusted, ..DispatcherConfig::default() };
    let mut untrusted = spec("untrusted", &other.url);
    untrusted.retry = patient(Duration::from_millis(20));
    let mut specs = vec![spec("erp", &front.url), spec("plain", &receiver.url()), untrusted];
    let bench = Bench::on(folder, store, config, specs.clone()).await;
    let known = || bench.dispatcher.certificates();
    let shown = |erp: Option<&Certificate>| {
        vec![("erp".into(), erp.map(|certificate| certificate.der.clone())), ("untrusted".into(), None)]
    };
    assert_eq!(known(), shown(None), "nothing is known before a connection, and nothing of one without TLS");

    bench.settled("erp", bench.append(event(1)).await).await;
    assert_eq!(known(), shown(Some(&first)));
    until("refused", async || bench.metric("chaski_dispatch_consecutive_failures", "untrusted") > 0.5).await;
    assert_eq!(known(), shown(Some(&first)), "and nothing of one that was not believed");

    front.renew(&second);
    bench.settled("erp", bench.append(event(2)).await).await;
    assert_eq!(known(), shown(Some(&second)));

    // Those that are as before keep what was seen, also beside one that goes.
    specs.remove(1);
    bench.dispatcher.reload(specs.clone()).await.unwrap();
    assert_eq!(known(), shown(Some(&second)));
    specs[0].concurrency += 1;
    bench.dispatcher.reload(specs.clone()).await.unwrap();
    assert_eq!(known(), shown(None), "another client has seen nothing yet");
    bench.settled("erp", bench.append(event(3)).await).await;
    assert_eq!(known(), shown(Some(&second)));
    specs[0].url = receiver.url().parse().unwrap();
    bench.dispatcher.reload(specs).await.unwrap();
    assert_eq!(known(), [("untrusted".into(), None)]);
}
