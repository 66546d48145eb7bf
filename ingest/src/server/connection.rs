//! One connection, from its first byte to its last: what a proxy says of it, TLS if asked for, and HTTP.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::tls::H2;
use super::wire::{Begun, Phase, Wire};
use super::{Shared, http2, proxy_protocol};
use crate::metrics::ConnectionError;

/// hyper takes no smaller buffer.
const HEAD_BYTES_FLOOR: usize = 8192;

/// When a connection has to end.
#[derive(Clone)]
pub(super) struct End {
    /// With its next answer.
    pub(super) shutdown: CancellationToken,
    /// At once; comes after the other only.
    pub(super) cut: CancellationToken,
    /// Of the tasks that are waited for before the edge ends.
    pub(super) tracker: TaskTracker,
}

impl End {
    /// What comes of something that has no answer to finish; none when it is cut.
    async fn before_cut<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = future => Some(done),
            () = self.cut.cancelled() => None,
        }
    }
}

/// What comes of a connection; none when it has to end before. That is asked for once, and not whenever something
/// else wakes the connection's task, which stays the same. All connections wait for the one token, so none looks at it
/// before its own waker was called for it.
async fn before_shutdown<T>(http: impl Future<Output = T>, shutdown: &CancellationToken) -> Option<T> {
    let (mut http, mut cancelled) = (pin!(http), pin!(shutdown.cancelled()));
    let mut asked: Option<Arc<Asked>> = None;
    poll_fn(|cx| {
        if let Poll::Ready(ended) = http.as_mut().poll(cx) {
            return Poll::Ready(Some(ended));
        }
        if asked.as_ref().is_some_and(|asked| asked.stands_for(cx.waker())) {
            return Poll::Pending;
        }
        let asking = Arc::new(Asked { task: cx.waker().clone(), is_answered: AtomicBool::new(false) });
        let waker = Waker::from(asking.clone());
        asked = Some(asking);
        cancelled.as_mut().poll(&mut Context::from_waker(&waker)).map(|()| None)
    })
    .await
}

/// A task that has asked to be woken, and whether it has been for this.
struct Asked {
    task: Waker,
    is_answered: AtomicBool,
}

impl Asked {
    /// Whether there is nothing to ask anew for whoever is woken by this.
    fn stands_for(&self, task: &Waker) -> bool {
        self.task.will_wake(task) && !self.is_answered.load(Ordering::Acquire)
    }
}

impl Wake for Asked {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_answered.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

/// One open connection: its permit, and its part of the gauge.
pub(super) struct Connection {
    shared: Arc<Shared>,
    /// Who is at the other end of it, be it a proxy.
    peer: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    pub(super) fn open(shared: Arc<Shared>, peer: IpAddr, permit: OwnedSemaphorePermit) -> Self {
        shared.metrics.connections.inc();
        shared.metrics.connections_open.inc();
        Self { shared, peer, _permit: permit }
    }

    /// As [`Connection::serve`], with one that another runtime has taken.
    pub(super) async fn serve_moved(self, stream: std::net::TcpStream, tls: Option<TlsAcceptor>, end: &End) {
        match TcpStream::from_std(stream) {
            Ok(stream) => self.serve(stream, tls, end).await,
            Err(_) => self.shared.metrics.connection_error(ConnectionError::Accept),
        }
    }

    /// On the runtime of whoever asks.
    pub(super) async fn serve(mut self, mut stream: TcpStream, tls: Option<TlsAcceptor>, end: &End) {
        // Answers are small and whole; waiting to fill a segment only adds to the time to 200.
        let _ = stream.set_nodelay(true);
        let shared = self.shared.clone();
        let within = shared.limits.handshake_timeout;
        if shared.proxies.speaks_proxy_protocol(self.peer) {
            match end.before_cut(timeout(within, proxy_protocol::read(&mut stream))).await {
                Some(Ok(Ok(peer))) => self.peer = peer.unwrap_or(self.peer),
                Some(Ok(Err(_)) | Err(_)) => {
                    return shared.metrics.connection_error(ConnectionError::ProxyHeader);
                }
                None => return,
            }
        }
        // Counted under the address that a proxy has named, and before the handshake, which costs the most.
        let Some(_seat) = shared.peers.enter(self.peer, &shared.proxies) else {
            return shared.metrics.connection_error(ConnectionError::PeerLimit);
        };
        match tls {
            None if shared.http2 => self.serve_either(stream, end).await,
            None => self.serve_http1(stream, Begun::default(), end).await,
            Some(tls) => match end.before_cut(timeout(within, tls.accept(stream))).await {
                Some(Ok(Ok(stream))) if stream.get_ref().1.alpn_protocol() == Some(H2) => {
                    self.serve_http2(stream, Begun::default(), end).await;
                }
                Some(Ok(Ok(stream))) => self.serve_http1(stream, Begun::default(), end).await,
                Some(Ok(Err(_)) | Err(_)) => {
                    shared.metrics.connection_error(ConnectionError::TlsHandshake);
                }
                None => {}
            },
        }
    }

    /// In clear text the first bytes say what is spoken.
    async fn serve_either<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S, end: &End) {
        let (limits, since) = (&self.shared.limits, Instant::now());
        match end.before_cut(timeout(limits.head_timeout, http2::preface(&mut stream))).await {
            Some(Ok(Ok((bytes, true)))) => self.serve_http2(stream, Begun { bytes, since }, end).await,
            Some(Ok(Ok((bytes, false)))) => self.serve_http1(stream, Begun { bytes, since }, end).await,
            Some(Ok(Err(_))) => self.shared.metrics.connection_error(ConnectionError::Io),
            Some(Err(_)) => self.shared.metrics.connection_error(ConnectionError::HeaderTimeout),
            None => {}
        }
    }

    async fn serve_http2<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S, begun: Begun, end: &End) {
        if let Some(reason) = http2::serve(&self.shared, self.peer, stream, begun, end).await {
            self.shared.metrics.connection_error(reason);
        }
    }

    async fn serve_http1<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S, begun: Begun, end: &End) {
        let limits = &self.shared.limits;
        let phase = Arc::new(Phase::default());
        let wire = Wire::new(stream, phase.clone(), *limits).with_begun(begun);
        let service = service_fn(|request| self.shared.serve(request, self.peer, &phase));
        let http = http1::Builder::new()
            .max_headers(limits.headers_max)
            // Who has sent all and says so still waits for the answer, or would send it again for ever.
            .half_close(true)
            .max_buf_size(limits.head_bytes_max.max(HEAD_BYTES_FLOOR))
            // An answer is short: to copy it behind its head is less than to write two pieces.
            .writev(false)
            .serve_connection(TokioIo::new(wire), service);
        let mut http = pin!(http);
        let ended = match before_shutdown(http.as_mut(), &end.shutdown).await {
            Some(ended) => ended,
            None => {
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

#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::expect_used, reason = "see the message")]
impl super::Edge {
    /// Serves one connection that no socket carries, to its end.
    pub(crate) async fn serve_one<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) {
        let permits = Arc::new(tokio::sync::Semaphore::new(1));
        let permit = permits.acquire_owned().await.expect("a new semaphore is open");
        let connection = Connection::open(self.shared.clone(), self.address.ip(), permit);
        let (shutdown, cut) = (CancellationToken::new(), CancellationToken::new());
        let end = End { shutdown, cut, tracker: TaskTracker::new() };
        if self.shared.http2 {
            connection.serve_either(stream, &end).await;
        } else {
            connection.serve_http1(stream, Begun::default(), &end).await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.metrics.connections_open.dec();
    }
}

/// Why a connection ended badly; none when it only ended.
fn connection_error(error: &hyper::Error, phase: &Phase) -> Option<ConnectionError> {
    if error.is_parse_too_large() {
        Some(ConnectionError::HttpHeadTooLarge)
    } else if error.is_parse() {
        Some(ConnectionError::HttpParse)
    } else if phase.is_stalled() {
        Some(ConnectionError::WriteTimeout)
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
