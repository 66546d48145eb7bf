//! What a request goes over: a connector that vets every address, the transport that counts what comes back, and a
//! pooled client for what goes to many hosts. A destination has [`super::links`].
//!
//! The name is resolved here, every address of the answer is asked about in [`super::egress`], and one of
//! those very addresses is dialled: an answer that changes in between changes nothing. No proxy is ever
//! taken from the environment. What comes back is bounded at the transport, so that neither an endless head
//! nor endless interim answers can occupy us until the deadline.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Uri;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::egress;

/// Each step of a connection (name, TCP, TLS) ends within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest answer head, in bytes.
pub(super) const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Most bytes taken from a connection for one request: a head, what is read of a body, what hyper reads ahead.
const ANSWER_BYTES_MAX: usize = 128 * 1024;
/// A connection that has been idle for so long is closed; shorter than what common servers allow.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(50);

/// A pooled client that posts bodies.
pub(crate) type HttpClient = Client<Connector, Full<Bytes>>;

/// Makes clients; all share one TLS configuration.
#[derive(Clone)]
pub(crate) struct Dialer(Arc<ClientConfig>);

impl Dialer {
    /// Trusts the public roots and these.
    pub(crate) fn new(extra_roots: &[CertificateDer<'static>]) -> Self {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        roots.add_parsable_certificates(extra_roots.iter().cloned());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        #[allow(clippy::expect_used, reason = "ring speaks TLS 1.2 and 1.3")]
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS");
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self(Arc::new(config))
    }

    pub(crate) fn client(&self, allow_private: bool, idle_max: usize) -> HttpClient {
        Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(idle_max)
            .http1_max_buf_size(HEAD_BYTES_MAX)
            .retry_canceled_requests(true)
            .build(Connector::new(self, allow_private))
    }
}

/// The certificate of whoever answered the last handshake, without those that signed it.
#[derive(Clone, Debug, Default)]
struct PeerCertificate(Arc<Mutex<Option<CertificateDer<'static>>>>);

impl PeerCertificate {
    fn last(&self) -> Option<CertificateDer<'static>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A session that is resumed has the certificate of the handshake that began it.
    fn seen(&self, stream: &TlsStream<TcpStream>) {
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }
}

/// Resolves, vets, dials, and shakes hands.
#[derive(Clone)]
pub(crate) struct Connector {
    tls: TlsConnector,
    allow_private: bool,
    certificate: PeerCertificate,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("name lookup failed: {0}")]
    Dns(io::Error),
    #[error("{address} is blocked: {source}")]
    Blocked { address: IpAddr, source: egress::Blocked },
    #[error("connect failed: {0}")]
    Connect(io::Error),
    #[error("TLS handshake failed: {0}")]
    Tls(io::Error),
}

impl Connector {
    pub(super) fn new(dialer: &Dialer, allow_private: bool) -> Self {
        Self {
            tls: TlsConnector::from(dialer.0.clone()),
            allow_private,
            certificate: PeerCertificate::default(),
        }
    }

    /// What the last handshake has shown; none before the first that succeeded.
    pub(super) fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.certificate.last()
    }

    /// The host and the port of a URL, and whether TLS is spoken there.
    pub(super) fn target(uri: &Uri) -> Result<(&str, u16, bool), ConnectError> {
        let is_tls = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
        let host = uri.host().ok_or_else(nowhere)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Ok((host, uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }), is_tls))
    }

    /// Connects to the host of a URL, ready for a request.
    pub(super) async fn dial(&self, uri: &Uri) -> Result<Wire, ConnectError> {
        let (host, port, is_tls) = Self::target(uri)?;
        let tcp = tcp(&self.vetted(host, port).await?).await.map_err(ConnectError::Connect)?;
        let stream =
            if is_tls { Stream::Tls(Box::new(self.handshake(host, tcp).await?)) } else { Stream::Plain(tcp) };
        Ok(Wire { stream, seen: Seen::default() })
    }

    pub(super) async fn handshake(
        &self,
        host: &str,
        tcp: TcpStream,
    ) -> Result<TlsStream<TcpStream>, ConnectError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| nowhere())?;
        let stream = within_step(self.tls.connect(name, tcp)).await.map_err(ConnectError::Tls)?;
        self.certificate.seen(&stream);
        Ok(stream)
    }

    /// The addresses of a host, unless any one of them may not be connected to.
    pub(super) async fn vetted(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
        let addresses: Vec<SocketAddr> = match host.parse::<IpAddr>() {
            Ok(literal) => vec![SocketAddr::new(literal, port)],
            Err(_) => {
                within_step(tokio::net::lookup_host((host, port))).await.map_err(ConnectError::Dns)?.collect()
            }
        };
        for address in &addresses {
            egress::permitted(address.ip(), self.allow_private)
                .map_err(|source| ConnectError::Blocked { address: address.ip(), source })?;
        }
        if addresses.is_empty() {
            return Err(ConnectError::Dns(io::Error::new(
                io::ErrorKind::NotFound,
                "the name has no address",
            )));
        }
        Ok(addresses)
    }
}

fn nowhere() -> ConnectError {
    ConnectError::Dns(io::Error::new(io::ErrorKind::InvalidInput, "the URL names no host"))
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer within 3 s")
}

async fn within_step<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(CONNECT_TIMEOUT, step).await.unwrap_or_else(|_| Err(late()))
}

/// Tries the addresses one after the other, each with a fair share of the time that is left.
pub(super) async fn tcp(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let end = Instant::now() + CONNECT_TIMEOUT;
    let mut last = late();
    for (index, address) in addresses.iter().enumerate() {
        let now = Instant::now();
        let share =
            end.saturating_duration_since(now) / u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        match timeout_at(now + share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => {}
        }
    }
    Err(last)
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<TokioIo<Wire>, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.dial(&uri).await.map(TokioIo::new) })
    }
}

/// A connection that knows what it has carried.
pub(crate) struct Wire {
    stream: Stream,
    seen: Seen,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// What it has carried; so far, and from now on.
    pub(super) fn seen(&self) -> Seen {
        self.seen.clone()
    }
}

/// What a connection has carried since the last write, in bytes; shared with whoever looks at an error on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<AtomicUsize>);

impl Seen {
    /// Something of an answer has come.
    pub(crate) fn answered(&self) -> bool {
        self.0.load(Relaxed) > 0
    }

    fn wrote(&self) {
        self.0.store(0, Relaxed);
    }

    fn read(&self, bytes: usize) -> io::Result<()> {
        let total = self.0.load(Relaxed) + bytes;
        self.0.store(total, Relaxed);
        if total > ANSWER_BYTES_MAX { Err(io::Error::other(TooMuch)) } else { Ok(()) }
    }
}

/// The answer is longer than any that is read.
#[derive(Debug, thiserror::Error)]
#[error("more than {ANSWER_BYTES_MAX} bytes of answer")]
pub(crate) struct TooMuch;

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new().extra(self.seen.clone())
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        let before = buf.filled().len();
        ready!(match &mut wire.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        })?;
        Poll::Ready(wire.seen.read(buf.filled().len() - before))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        wire.seen.wrote();
        match &mut wire.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        wire.seen.wrote();
        match &mut wire.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the resolver makes of a spelling is judged, not the spelling: these are no literals to us.
    #[tokio::test]
    async fn an_address_is_vetted_however_it_is_spelled() {
        let never = [
            "2852039166",
            "0xa9fea9fe",
            "0XA9.0xfe.0xa9.0xfe",
            "0251.0376.0251.0376",
            "025177524776",
            "169.254.43518",
            "169.16689662",
            "0",
            "0x0",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::169.254.169.254",
            "2002:a9fe:a9fe::1",
            "fe80::1",
            "fe80::1%1",
            "fe80::1%lo",
        ];
        let private = [
            "2130706433",
            "0x7f.1",
            "0x7f000001",
            "0177.0.0.1",
            "127.1",
            "localhost",
            "::1",
            "::ffff:127.0.0.1",
        ];
        let dialer = Dialer::new(&[]);
        for (allow_private, hosts) in [(true, &never[..]), (false, &never[..]), (false, &private[..])] {
            let connector = Connector::new(&dialer, allow_private);
            for host in hosts {
                let vetted = connector.vetted(host, 80).await;
                assert!(matches!(vetted, Err(ConnectError::Blocked { .. })), "{host}: {vetted:?}");
            }
        }
        for host in private {
            Connector::new(&dialer, true).vetted(host, 80).await.unwrap();
        }
    }
}
