//! A merchant's system, as small as it can be: takes deliveries, remembers what it got, and may refuse for
//! a while.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

const BODY_BYTES_MAX: usize = 1 << 20;

/// A receiver on loopback, serving until it is dropped with its runtime.
#[derive(Clone)]
pub(super) struct Receiver {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    books: Arc<Mutex<Books>>,
}

/// What a receiver remembers.
#[derive(Clone, Debug, Default)]
pub(super) struct Books {
    /// How often each event was taken, and the digest of its bytes.
    taken: HashMap<String, (u64, [u8; 32])>,
    /// Deliveries answered 503.
    pub(super) refused: u64,
}

impl Books {
    /// Different events taken.
    pub(super) fn events(&self) -> usize {
        self.taken.len()
    }

    /// Events taken more than once.
    pub(super) fn repeated(&self) -> usize {
        self.taken.values().filter(|(times, _)| *times > 1).count()
    }

    /// Whether an event was taken with exactly these bytes.
    pub(super) fn has(&self, id: &str, digest: &[u8; 32]) -> bool {
        self.taken.get(id).is_some_and(|(_, taken)| taken == digest)
    }
}

impl Receiver {
    /// Begins to serve; answers 503 for the first `refusing`.
    pub(super) async fn start(name: &'static str, refusing: Duration) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let receiver = Self { name, address: listener.local_addr()?, books: Arc::default() };
        let open_at = Instant::now() + refusing;
        let serving = receiver.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = serving.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| serving.clone().take(request, open_at));
                    // A connection that breaks is chaski's affair: it delivers again.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(receiver)
    }

    async fn take(
        self,
        request: Request<Incoming>,
        open_at: Instant,
    ) -> anyhow::Result<Response<Full<Bytes>>> {
        let id = request
            .headers()
            .get("webhook-id")
            .and_then(|id| id.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX)
            .collect()
            .await
            .map_err(anyhow::Error::from_boxed)?;
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        let status = if Instant::now() < open_at {
            books.refused += 1;
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            let digest = Sha256::digest(body.to_bytes()).into();
            books.taken.entry(id).or_insert((0, digest)).0 += 1;
            StatusCode::OK
        };
        Ok(Response::builder().status(status).body(Full::default())?)
    }

    /// What it remembers now.
    pub(super) fn books(&self) -> Books {
        self.books.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
