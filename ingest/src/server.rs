//! The listener: connections under permits, HTTP/1 on them, TLS if asked for, and an end in order.
//!
//! A permit is taken before a connection is: when there are too many, the kernel's queue fills and senders
//! wait, which they survive better than an answer we cannot give. What hyper refuses by itself (broken HTTP)
//! never reaches a request, so it is counted here, at the connection.

mod tls;
pub(crate) mod wire;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chaski_common::clock::Clock;
use chaski_common::storage::Storage;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus::Registry;
use rustls_pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::accept::Acceptor;
use crate::metrics::{ConnectionError, EdgeMetrics};
use crate::request::check_target;
use crate::respond::{Outcome, Refusal};
use crate::source::{Reply, Source, SourceSpec, Sources, SpecError};
pub use tls::{Tls, TlsConfig};
use wire::{Phase, Wire};

/// Connections the kernel holds for us while all permits are out.
const BACKLOG: i32 = 1024;
/// How long to leave the listener alone when the process has no descriptor for another connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// hyper takes no smaller buffer.
const HEAD_BYTES_FLOOR: usize = 8192;

/// Where the edge listens and what it bears.
#[derive(Clone, Debug)]
pub struct EdgeConfig {
    /// The address; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Longest body, in bytes.
    pub max_body: usize,
    /// TLS on this listener; none means clear text, for a proxy in front or for a test.
    pub tls: Option<TlsConfig>,
    /// Every other bound.
    pub limits: Limits,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            max_body: 256 * 1024,
            tls: None,
            limits: Limits::default(),
        }
    }
}

/// Bounds of the edge. At a bound it slows down or refuses; it does not fall over.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// Open connections from one address; further ones are closed. None by default: behind a proxy all share one.
    pub connections_per_peer: Option<usize>,
    /// Requests being worked on; further ones get 503.
    pub inflight_requests_max: usize,
    /// Bytes of their bodies, counted as they arrive and until they are stored; further ones get 503. Less than
    /// the longest body would refuse that body for ever.
    pub inflight_bytes_max: usize,
    /// Bytes of a head; at least 8 KiB.
    pub head_bytes_max: usize,
    /// Header fields.
    pub headers_max: usize,
    /// Bytes of a target.
    pub uri_bytes_max: usize,
    /// From the first byte of a head to its last.
    pub head_timeout: Duration,
    /// For the last byte of the body, from when it is first waited for.
    pub body_timeout: Duration,
    /// For the whole TLS handshake.
    pub handshake_timeout: Duration,
    /// A connection that waits for its next request.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            connections_per_peer: None,
            inflight_requests_max: 4096,
            inflight_bytes_max: 64 * 1024 * 1024,
            head_bytes_max: 16 * 1024,
            headers_max: 64,
            uri_bytes_max: 2048,
            head_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
        }
    }
}

/// Why the edge could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {listen}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file of `[ingest.tls]` cannot be used.
    #[error("ingest.tls.{key}: {} cannot be used", path.display())]
    TlsFile {
        /// The key in the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Certificate and key do not go together.
    #[error("ingest.tls: the certificate and the key cannot be used together")]
    Tls(#[source] rustls::Error),
    /// A source's description is wrong.
    #[error(transparent)]
    Source(#[from] SpecError),
}

/// An edge that listens and does not serve yet.
pub struct Edge {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// A hand on a running edge.
#[derive(Clone)]
pub struct EdgeHandle(Arc<Shared>);

struct Shared {
    limits: Limits,
    /// What connections that come from now on are spoken to with; none in clear text.
    tls: RwLock<Option<Tls>>,
    sources: RwLock<Arc<Sources>>,
    acceptor: Acceptor,
    metrics: EdgeMetrics,
    peers: Peers,
}

impl Edge {
    /// Takes the address and compiles the sources. Nothing is served before [`Edge::run`].
    ///
    /// # Errors
    /// [`EdgeError`] names the address, the file or the field.
    pub fn bind(
        config: EdgeConfig,
        sources: Vec<SourceSpec>,
        storage: Storage,
        registry: &Registry,
        clock: Clock,
    ) -> Result<Self, EdgeError> {
        let metrics = EdgeMetrics::new(registry, storage.events.labels());
        let sources = Sources::compile(sources, &metrics)?;
        let tls = config.tls.as_ref().map(TlsConfig::load).transpose()?;
        let failed = |source| EdgeError::Listen { listen: config.listen, source };
        let listener = listen(config.listen).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let limits = config.limits;
        metrics.capacity("connections", limits.connections_max);
        let acceptor = Acceptor::new(storage, clock, &limits, config.max_body, &metrics);
        let peers = Peers { each_max: limits.connections_per_peer, open: Mutex::default() };
        let (tls, sources) = (RwLock::new(tls), RwLock::new(Arc::new(sources)));
        let shared = Shared { limits, tls, sources, acceptor, metrics, peers };
        Ok(Self { listener, address, shared: Arc::new(shared) })
    }

    /// The address listened on, its port resolved.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// A hand that stays valid while the edge runs.
    #[must_use]
    pub fn handle(&self) -> EdgeHandle {
        EdgeHandle(self.shared.clone())
    }

    /// Serves until `shutdown`. Then nothing new is taken, what is in flight may finish for as long as `drain`,
    /// and what is still open after that is cut; an event cut there was not answered and comes again.
    pub async fn run(self, shutdown: CancellationToken, drain: Duration) {
        let tracker = TaskTracker::new();
        let cut = CancellationToken::new();
        info!(address = %self.address, tls = self.shared.tls_acceptor().is_some(), "edge listening");
        match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => {
                accept_connections(&listener, &self.shared, &tracker, &shutdown, &cut).await;
            }
            Err(error) => tracing::error!(%error, "the listener cannot be served"),
        }
        tracker.close();
        if timeout(drain, tracker.wait()).await.is_err() {
            warn!(open = tracker.len(), "connections cut at the end of the drain time");
            cut.cancel();
            tracker.wait().await;
        }
        info!("edge closed");
    }
}

impl EdgeHandle {
    /// Puts other sources in force, all of them or none. Requests under way finish under the old ones.
    ///
    /// # Errors
    /// [`SpecError`] names the first source and field that is wrong; the old sources stay in force.
    pub fn reload(&self, sources: Vec<SourceSpec>) -> Result<(), SpecError> {
        let sources = Arc::new(Sources::compile(sources, &self.0.metrics)?);
        *self.0.sources.write().unwrap_or_else(PoisonError::into_inner) = sources;
        Ok(())
    }

    /// Puts another certificate in force for connections that come from now on. An edge in clear text stays so:
    /// its senders would not know.
    pub fn set_tls(&self, tls: Tls) {
        if let Some(in_force) = self.0.tls.write().unwrap_or_else(PoisonError::into_inner).as_mut() {
            *in_force = tls;
        }
    }

    /// The certificate in force; none in clear text.
    #[must_use]
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        let tls = self.0.tls.read().unwrap_or_else(PoisonError::into_inner);
        tls.as_ref().map(|tls| tls.certificate.clone())
    }

    /// Changes the longest body, in bytes, for requests that begin from now on.
    pub fn set_max_body(&self, bytes: usize) {
        self.0.acceptor.body_bytes_max.store(bytes, Ordering::Relaxed);
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

async fn accept_connections(
    listener: &tokio::net::TcpListener,
    shared: &Arc<Shared>,
    tracker: &TaskTracker,
    shutdown: &CancellationToken,
    cut: &CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(shared.limits.connections_max));
    loop {
        let taken = async {
            let permit = permits.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            taken = taken => taken,
            () = shutdown.cancelled() => return,
        };
        let (Ok(permit), Ok((stream, peer))) = (permit, accepted) else {
            shared.metrics.connection_error(ConnectionError::Accept);
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let Some(connection) = Connection::open(shared.clone(), peer.ip(), permit) else {
            shared.metrics.connection_error(ConnectionError::PeerLimit);
            continue;
        };
        // Each connection asks a token of its own: one for all of them would be a lock that they meet at.
        let (tls, end) = (shared.tls_acceptor(), End { shutdown: shutdown.child_token(), cut: cut.clone() });
        tracker.spawn(async move { connection.serve(stream, tls, &end).await });
    }
}

/// When a connection has to end.
struct End {
    /// With its next answer.
    shutdown: CancellationToken,
    /// At once; comes after the other only.
    cut: CancellationToken,
}

/// One open connection: its permit, its place among its peer's, and its part of the gauge.
struct Connection {
    shared: Arc<Shared>,
    peer: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn open(shared: Arc<Shared>, peer: IpAddr, permit: OwnedSemaphorePermit) -> Option<Self> {
        if !shared.peers.enter(peer) {
            return None;
        }
        shared.metrics.connections.inc();
        shared.metrics.connections_open.inc();
        Some(Self { shared, peer, _permit: permit })
    }

    async fn serve(&self, stream: TcpStream, tls: Option<TlsAcceptor>, end: &End) {
        // Answers are small and whole; waiting to fill a segment only adds to the time to 200.
        let _ = stream.set_nodelay(true);
        match tls {
            None => self.serve_http(stream, end).await,
            Some(tls) => {
                let shaken = tokio::select! {
                    shaken = timeout(self.shared.limits.handshake_timeout, tls.accept(stream)) => shaken,
                    () = end.cut.cancelled() => return,
                };
                match shaken {
                    Ok(Ok(stream)) => self.serve_http(stream, end).await,
                    Ok(Err(_)) | Err(_) => {
                        self.shared.metrics.connection_error(ConnectionError::TlsHandshake);
                    }
                }
            }
        }
    }

    async fn serve_http<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S, end: &End) {
        let limits = &self.shared.limits;
        let phase = Arc::new(Phase::default());
        let wire = Wire::new(stream, phase.clone(), *limits);
        let service = service_fn(|request| {
            let (shared, phase, peer) = (self.shared.clone(), phase.clone(), self.peer);
            async move { shared.serve(request, peer, &phase).await }
        });
        let http = http1::Builder::new()
            .max_headers(limits.headers_max)
            .max_buf_size(limits.head_bytes_max.max(HEAD_BYTES_FLOOR))
            .serve_connection(TokioIo::new(wire), service);
        let mut http = std::pin::pin!(http);
        let ended = tokio::select! {
            biased;
            ended = http.as_mut() => ended,
            () = end.shutdown.cancelled() => {
                http.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = http => ended,
                    () = end.cut.cancelled() => return,
                }
            }
        };
        if let Err(error) = ended
            && let Some(reason) = connection_error(&error, &phase)
        {
            self.shared.metrics.connection_error(reason);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.metrics.connections_open.dec();
        self.shared.peers.leave(self.peer);
    }
}

/// Why a connection ended badly; none when it only ended.
fn connection_error(error: &hyper::Error, phase: &Phase) -> Option<ConnectionError> {
    if error.is_parse_too_large() {
        Some(ConnectionError::HttpHeadTooLarge)
    } else if error.is_parse() {
        Some(ConnectionError::HttpParse)
    } else if phase.is_late() {
        Some(ConnectionError::HeaderTimeout)
    } else if error.is_user() || error.is_incomplete_message() {
        Some(ConnectionError::BodyIncomplete)
    } else if error.is_closed() || error.is_canceled() {
        None
    } else {
        Some(ConnectionError::Io)
    }
}

/// The peer closed in the middle of its request: there is nobody to answer.
#[derive(Debug, thiserror::Error)]
#[error("the peer is gone")]
struct Gone;

impl Shared {
    fn tls_acceptor(&self) -> Option<TlsAcceptor> {
        let tls = self.tls.read().unwrap_or_else(PoisonError::into_inner);
        tls.as_ref().map(|tls| tls.acceptor.clone())
    }

    async fn serve(
        &self,
        request: Request<Incoming>,
        peer: IpAddr,
        phase: &Phase,
    ) -> Result<Response<Full<Bytes>>, Gone> {
        phase.begin_request();
        let begun = Instant::now();
        let (parts, body) = request.into_parts();
        let response = match self.route(&parts) {
            Ok(source) => {
                let outcome = self.acceptor.accept(&source, peer, parts, body, phase).await;
                source.metrics.ended(outcome, begun.elapsed());
                if outcome == Outcome::Refused(Refusal::BodyIncomplete) {
                    return Err(Gone);
                }
                outcome.response(&source.reply)
            }
            Err(why) => {
                self.metrics.unrouted(why);
                Outcome::Refused(why).response(&Reply::default())
            }
        };
        phase.end_request(response.headers().contains_key(http::header::CONNECTION));
        Ok(response)
    }

    fn route(&self, parts: &http::request::Parts) -> Result<Arc<Source>, Refusal> {
        check_target(parts, self.limits.uri_bytes_max)?;
        let sources = self.sources.read().unwrap_or_else(PoisonError::into_inner);
        sources.at(parts.uri.path()).cloned().ok_or(Refusal::UnknownRoute)
    }
}

/// Open connections by peer; as many entries as there are connections, at most.
struct Peers {
    each_max: Option<usize>,
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl Peers {
    fn enter(&self, peer: IpAddr) -> bool {
        let Some(each_max) = self.each_max else { return true };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(peer).or_default();
        let enters = *count < each_max;
        *count += usize::from(enters);
        enters
    }

    fn leave(&self, peer: IpAddr) {
        if self.each_max.is_none() {
            return;
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                open.remove(&peer);
            }
        }
    }
}
