//! The connections to one destination.
//!
//! A connection is worked by the attempt that has it, inside the attempt's own future: what arrives wakes the one who
//! waits for it, and nothing is handed from task to task. After its answer it is kept for the next attempt. While it
//! is idle nobody works it: it is looked at before it is used again, and by [`Links::tidy`] from time to time.

use std::pin::{Pin, pin};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use super::BODY_BYTES_MAX;
use super::client::{ConnectError, Connector, HEAD_BYTES_MAX, IDLE_MAX, Seen, Wire};

/// A connection that was used so recently is used again without a look at it.
const TRUSTED_FOR: Duration = Duration::from_millis(100);

/// Opens connections and keeps those that are idle.
pub(super) struct Links {
    connector: Connector,
    to: Uri,
    /// The one used last is the last.
    idle: Mutex<Vec<Link>>,
    idle_max: usize,
}

/// An open connection.
pub(super) struct Link {
    requests: SendRequest<Full<Bytes>>,
    /// None once it has ended: a request that it had not begun is refused when it is dropped, and not before.
    connection: Option<Box<Connection<TokioIo<Wire>, Full<Bytes>>>>,
    seen: Seen,
    idle_since: Instant,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{error}")]
    Http {
        error: hyper::Error,
        /// Something of an answer had come.
        answered: bool,
    },
}

impl Links {
    /// Keeps at most `idle_max` connections.
    pub(super) fn new(connector: Connector, to: Uri, idle_max: usize) -> Self {
        Self { connector, to, idle: Mutex::default(), idle_max }
    }

    /// What the receiver has shown at the connection that was opened last; none in clear text, or before the first.
    pub(super) fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.connector.certificate()
    }

    /// Sends the request and waits for the head of its answer. A connection that turns out to have been closed while
    /// it was idle is replaced at once, by a new one. Dropped before its end, it closes the connection.
    pub(super) async fn exchange(
        &self,
        request: impl Fn() -> Request<Full<Bytes>>,
    ) -> Result<(Link, Response<Incoming>), NoAnswer> {
        if let Some(mut link) = self.take() {
            match link.exchange(request()).await {
                Ok(answer) => return Ok((link, answer)),
                // Not even sent, or not a byte came back.
                Err(error) if error.is_canceled() || !link.seen.answered() => {}
                Err(error) => return Err(NoAnswer::Http { error, answered: true }),
            }
        }
        let mut link = self.open().await?;
        match link.exchange(request()).await {
            Ok(answer) => Ok((link, answer)),
            Err(error) => Err(NoAnswer::Http { error, answered: link.seen.answered() }),
        }
    }

    /// Takes back a connection whose answer was read; closes it if it is not fit for another request.
    pub(super) fn keep(&self, mut link: Link) {
        if !link.is_free() {
            link.work(&mut nobody());
        }
        let mut idle = self.idle();
        if link.is_free() && idle.len() < self.idle_max {
            link.idle_since = Instant::now();
            idle.push(link);
        }
    }

    /// Closes what has been idle for long, or was closed from the other side. Whether any are left.
    pub(super) fn tidy(&self) -> bool {
        let mut idle = self.idle();
        idle.retain_mut(Link::is_fit);
        !idle.is_empty()
    }

    fn take(&self) -> Option<Link> {
        let mut idle = self.idle();
        while let Some(mut link) = idle.pop() {
            if link.idle_since.elapsed() < TRUSTED_FOR || link.is_fit() {
                return Some(link);
            }
        }
        None
    }

    async fn open(&self) -> Result<Link, NoAnswer> {
        let wire = self.connector.dial(&self.to).await?;
        let seen = wire.seen();
        let handshake = Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(wire));
        let (requests, connection) =
            handshake.await.map_err(|error| NoAnswer::Http { error, answered: false })?;
        Ok(Link { requests, connection: Some(Box::new(connection)), seen, idle_since: Instant::now() })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Link>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let answer = self.requests.send_request(request);
        self.until(answer).await
    }

    /// Reads the rest of an answer, or as much of it as is worth another connection.
    pub(super) async fn drain(&mut self, mut body: Incoming) {
        let mut left = BODY_BYTES_MAX;
        while let Some(Ok(frame)) = self.until(body.frame()).await {
            match frame.data_ref().map_or(Some(left), |data| left.checked_sub(data.len())) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    }

    /// Works the connection until it has brought this.
    async fn until<T>(&mut self, brought: impl Future<Output = T>) -> T {
        let mut brought = pin!(brought);
        std::future::poll_fn(|cx| {
            self.work(cx);
            brought.as_mut().poll(cx)
        })
        .await
    }

    /// Writes and reads what can be written and read now. How it ends is told to whoever waits for an answer.
    fn work(&mut self, cx: &mut Context<'_>) {
        let Some(connection) = &mut self.connection else { return };
        if Pin::new(&mut **connection).poll(cx).is_ready() {
            self.connection = None;
        }
    }

    /// Whether it waits for a request, as far as is known.
    fn is_free(&self) -> bool {
        self.connection.is_some() && self.requests.is_ready()
    }

    /// Whether it may carry another request, at a closer look.
    fn is_fit(&mut self) -> bool {
        if self.idle_since.elapsed() >= IDLE_MAX {
            return false;
        }
        self.work(&mut nobody());
        self.is_free()
    }
}

/// For a look that nobody waits for.
fn nobody() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::{sleep, timeout};

    use super::super::client::Dialer;
    use super::*;

    fn request() -> Request<Full<Bytes>> {
        Request::new(Full::default())
    }

    #[tokio::test]
    async fn a_request_that_its_connection_ends_without_beginning_is_refused_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let links = Links::new(Connector::new(&Dialer::new(&[]), true), to, 1);
        let receiver = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await.unwrap();
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            stream
        };
        let (first, stream) = tokio::join!(links.exchange(request), receiver);
        links.keep(first.unwrap().0);
        // Taken while it is open, and closed before it is worked again.
        let mut link = links.take().unwrap();
        drop(stream);
        sleep(Duration::from_millis(100)).await;
        let refused = timeout(Duration::from_secs(10), link.exchange(request())).await;
        assert!(refused.expect("it is not waited for").is_err());
        assert!(!link.is_free());
    }
}
