//! The listener: connections under permits, HTTP/1 on them, TLS if asked for, and an end in order.
//!
//! Every connection has a permit; one for which there is none is told so and closed. What hyper refuses by itself
//! (broken HTTP) never reaches a request, so it is counted at the connection.

mod tls;
mod full;
mod peers;
pub(crate) mod proxy_protocol;
mod connection;
mod http2;
mod threads;
mod turns;
pub(crate) mod wire;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chaski_common::clock::Clock;
use chaski_common::storage::Storage;
use chaski_common::trace::Tracer;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus::Registry;
use rustls_pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::accept::Acceptor;
use crate::metrics::{ConnectionError, EdgeMetrics};
use crate::peer::{Proxies, Sender};
use crate::per_thread::PerThread;
use crate::request::check_target;
use crate::respond::{Outcome, Refusal, Unavailable};
use crate::source::{Reply, Source, SourceSpec, Sources, SpecError};
use connection::{Connection, End};
use full::Doorman;
use peers::Peers;
use threads::Threads;
pub use tls::{Tls, TlsConfig};
use turns::Turns;
use wire::Phase;

/// Connections the kernel holds until they are taken: as many as Linux lets it (`somaxconn`), because who finds no room
/// there believes to be connected, and is not before the kernel's next attempt, one, three or seven seconds later.
const BACKLOG: i32 = 4096;
/// What the kernel keeps of answers that are not read yet, for each connection: more than a hundred of them, or a
/// handshake. Left to itself it goes up to 4 MiB, for whoever asks and never reads.
const UNREAD_BYTES: usize = 32 * 1024;
/// How long to leave the listener alone when the process has no descriptor for another connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Where the edge listens and what it bears.
#[derive(Clone, Debug)]
pub struct EdgeConfig {
    /// The address; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Longest body, in bytes.
    pub max_body: usize,
    /// TLS on this listener; none means clear text, for a proxy in front or for a test.
    pub tls: Option<TlsConfig>,
    /// Whether HTTP/2 is spoken, too: over TLS with who asks for it, in clear text with who begins with it.
    pub http2: bool,
    /// The names it is served under, without a port and in lower case; any other `Host` gets 421. Empty means all.
    pub hosts: Vec<String>,
    /// Who is believed about the sender's address; nobody by default.
    pub proxies: Proxies,
    /// Every other bound.
    pub limits: Limits,
    /// Who is told of the way of each event.
    pub tracer: Tracer,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            max_body: 256 * 1024,
            tls: None,
            http2: false,
            hosts: Vec::new(),
            proxies: Proxies::default(),
            limits: Limits::default(),
            tracer: Tracer::default(),
        }
    }
}

/// Bounds of the edge. At a bound it slows down or refuses; it does not fall over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections; further ones get 503, over TLS nothing, and are closed.
    pub connections_max: usize,
    /// Open connections from one address, of IPv6 from 64 bits of it; further ones are closed. Not counted where many
    /// senders have one address: [`Proxies`], and what is not of a public network.
    pub connections_per_peer: usize,
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
    /// Wrong signatures a minute from one address, of IPv6 from 64 bits of it; above it 429. Not counted where many
    /// senders have one address: [`Proxies`], and what is not of a public network.
    pub failures_per_minute: usize,
    /// From the first byte of a head to its last.
    pub head_timeout: Duration,
    /// For the last byte of the body, from when it is first waited for.
    pub body_timeout: Duration,
    /// For the whole TLS handshake; as long again for a PROXY header.
    pub handshake_timeout: Duration,
    /// For a peer that does not read, until it takes some of what is written to it.
    pub write_timeout: Duration,
    /// A connection that waits for its next request.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            connections_per_peer: 2500,
            inflight_requests_max: 4096,
            inflight_bytes_max: 64 * 1024 * 1024,
            head_bytes_max: 16 * 1024,
            headers_max: 64,
            uri_bytes_max: 2048,
            failures_per_minute: 60,
            head_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(5),
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
    /// The system gives no thread for connections.
    #[error("cannot start the threads that serve connections")]
    Threads(#[source] io::Error),
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
    proxies: Proxies,
    hosts: Vec<String>,
    /// What connections that come from now on are spoken to with; none in clear text.
    tls: RwLock<Option<tls::InForce>>,
    http2: bool,
    sources: PerThread<RwLock<Sources>>,
    acceptor: Acceptor,
    metrics: EdgeMetrics,
    peers: Arc<Peers>,
    threads: Threads,
    turns: Turns,
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
        let threads = Threads::start().map_err(EdgeError::Threads)?;
        let metrics = EdgeMetrics::new(registry, storage.events.labels(), threads.count());
        let sources = Sources::compile(&sources, &metrics, threads.count())?;
        let tls = config.tls.as_ref().map(TlsConfig::load).transpose()?;
        let failed = |source| EdgeError::Listen { listen: config.listen, source };
        let listener = listen(config.listen).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let limits = config.limits;
        metrics.capacity("connections", limits.connections_max);
        let acceptor = Acceptor::new(storage, clock, &limits, config.max_body, &metrics, config.tracer);
        let peers = Peers::new(limits.connections_per_peer);
        let tls = tls.map(|tls| tls.offering(config.http2));
        let mut sources = sources.into_iter();
        let sources = PerThread::new(threads.count(), || RwLock::new(sources.next().unwrap_or_default()));
        let turns = Turns::new(threads.count(), Instant::now().into());
        let shared = Shared {
            limits,
            http2: config.http2,
            proxies: config.proxies,
            hosts: config.hosts,
            tls: RwLock::new(tls),
            sources,
            acceptor,
            metrics,
            peers,
            threads,
            turns,
        };
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
        let reception = Arc::new(Reception::new(
            self.listener,
            self.shared.clone(),
            End { shutdown, cut: cut.clone(), tracker: tracker.clone() },
        ));
        for accepting in self.shared.threads.spawn_on_each(|| reception.clone().accept_connections()) {
            if accepting.await.is_err() {
                tracing::error!("connections are not taken any more by one thread");
            }
        }
        drop(reception);
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
    /// Puts other sources in force, all of them or none. Requests under way finish under the old ones. At the paths of
    /// `changing` no source is in force now and one may be soon: requests there are answered 503.
    ///
    /// # Errors
    /// [`SpecError`] names the first source and field that is wrong; the old sources stay in force.
    pub fn reload(&self, sources: &[SourceSpec], changing: &[Arc<str>]) -> Result<(), SpecError> {
        let mut compiled = Sources::compile(sources, &self.0.metrics, self.0.threads.count())?;
        compiled.iter_mut().for_each(|sources| sources.change(changing));
        // All at once: of two reloads that meet, one is in force on every thread.
        let in_force = self.0.sources.all().map(|own| own.write().unwrap_or_else(PoisonError::into_inner));
        let in_force: Vec<_> = in_force.collect();
        in_force.into_iter().zip(compiled).for_each(|(mut own, sources)| *own = sources);
        Ok(())
    }

    /// Puts another certificate in force for connections that come from now on. An edge in clear text stays so:
    /// its senders would not know.
    pub fn set_tls(&self, tls: Tls) {
        if let Some(in_force) = self.0.tls.write().unwrap_or_else(PoisonError::into_inner).as_mut() {
            *in_force = tls.offering(self.0.http2);
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
    // What is taken from a listener has it from there.
    socket.set_send_buffer_size(UNREAD_BYTES)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Where connections come in, on all threads.
struct Reception {
    listener: TcpListener,
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    doorman: Doorman,
    end: End,
}

impl Reception {
    fn new(listener: TcpListener, shared: Arc<Shared>, end: End) -> Self {
        let permits = Arc::new(Semaphore::new(shared.limits.connections_max));
        Self { listener, shared, permits, doorman: Doorman::new(), end }
    }

    /// Until the shutdown, on the runtime of whoever asks.
    async fn accept_connections(self: Arc<Self>) {
        let listener = self.listener.try_clone().and_then(tokio::net::TcpListener::from_std);
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the listener cannot be served"),
        };
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.end.shutdown.cancelled() => return,
            };
            let taken = accepted.and_then(|(stream, peer)| self.take(stream, peer.ip().to_canonical()));
            if taken.is_err() {
                self.shared.metrics.connection_error(ConnectionError::Accept);
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }

    /// Serves a connection, here or on another thread.
    fn take(&self, stream: TcpStream, peer: IpAddr) -> io::Result<()> {
        let tls = self.shared.tls_acceptor();
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            self.shared.metrics.connection_error(ConnectionError::Full);
            self.doorman.turn_away(stream, tls.is_none());
            return Ok(());
        };
        let connection = Connection::open(self.shared.clone(), peer, permit);
        // Each connection asks a token of its own: one for all of them would be a lock that they meet at.
        let end = End { shutdown: self.end.shutdown.child_token(), ..self.end.clone() };
        let tracker = &self.end.tracker;
        match self.shared.threads.less_busy() {
            None => _ = tracker.spawn(async move { connection.serve(stream, tls, &end).await }),
            Some(thread) => {
                let stream = stream.into_std()?;
                tracker.spawn_on(async move { connection.serve_moved(stream, tls, &end).await }, thread);
            }
        }
        Ok(())
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

    /// Answers one request. Its parts stand in the future from the beginning, so that they are not moved once more.
    fn serve<'a>(
        &'a self,
        request: Request<Incoming>,
        peer: IpAddr,
        phase: &'a Phase,
    ) -> impl Future<Output = Result<Response<Full<Bytes>>, Gone>> + 'a {
        let (mut parts, body) = request.into_parts();
        async move {
            phase.begin_request();
            let begun = Instant::now();
            if phase.is_turned_away() {
                // Boxed, it does not make every request's future longer.
                Box::pin(self.wait_for_turn(begun, phase)).await;
            }
            let is_http2 = parts.version == Version::HTTP_2;
            let peer = self.sender(peer, &parts.headers);
            let mut is_unread = false;
            let mut response = match self.route(&parts) {
                Ok(source) => {
                    // Pinned, it is made where it stays.
                    let outcome =
                        pin!(self.acceptor.accept(&source, &peer, begun, &mut parts, body, phase)).await;
                    source.metrics.ended(outcome, begun.elapsed());
                    if outcome == Outcome::Refused(Refusal::BodyIncomplete) {
                        return Err(Gone);
                    }
                    is_unread = outcome == Outcome::Unavailable(Unavailable::Overloaded);
                    if is_unread {
                        phase.set_turned_away(true);
                    }
                    outcome.response(&source.reply, parts.headers)
                }
                Err(outcome) => {
                    if let Outcome::Refused(why) = outcome {
                        self.metrics.unrouted(why);
                    }
                    outcome.response(&Reply::default(), parts.headers)
                }
            };
            if is_http2 {
                // A connection of many requests does not end with one.
                response.headers_mut().remove(http::header::CONNECTION);
            }
            phase.end_request(is_unread || response.headers().contains_key(http::header::CONNECTION));
            Ok(response)
        }
    }

    /// Where places are rare still: until one is given back, or the turn to be refused has come.
    async fn wait_for_turn(&self, now: Instant, phase: &Phase) {
        if self.acceptor.is_tight() {
            self.acceptor.place_given_back(self.turns.next(now.into())).await;
        } else {
            phase.set_turned_away(false);
        }
    }

    fn sender(&self, connection: IpAddr, headers: &HeaderMap) -> Sender {
        let address = self.proxies.sender(connection, headers);
        Sender { address, is_shared: self.proxies.is_shared(address) }
    }

    fn route(&self, parts: &http::request::Parts) -> Result<Arc<Source>, Outcome> {
        // Of HTTP/1 hyper has counted them.
        if parts.version == Version::HTTP_2 && parts.headers.len() > self.limits.headers_max {
            return Err(Outcome::Refused(Refusal::HeadTooLarge));
        }
        check_target(parts, self.limits.uri_bytes_max, &self.hosts).map_err(Outcome::Refused)?;
        let sources = self.sources.here().read().unwrap_or_else(PoisonError::into_inner);
        let path = parts.uri.path();
        sources.at(path).cloned().ok_or_else(|| match sources.is_changing(path) {
            true => Outcome::Unavailable(Unavailable::Changing),
            false => Outcome::Refused(Refusal::UnknownRoute),
        })
    }
}
