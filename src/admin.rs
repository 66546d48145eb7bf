//! The admin listener: metrics, health, and the API the commands talk to.
//!
//! `/metrics`, `/healthz` and `/readyz` show numbers and names and are open to whoever reaches the address.
//! `/api/…` shows payloads and changes things: it asks for the bearer token where one is configured, and for
//! a JSON content type always. A request that a web page made is refused: it names an `Origin`, or reaches
//! this address under a name of its own.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use chaski_common::secret::Secret;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::TextEncoder;
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::api::{self, ApiError, CALL_TIMEOUT, Operations};
use crate::gauges::Instruments;

/// Connections open at once.
const CONNECTIONS_MAX: usize = 64;
/// In front of a token.
const BEARER: &[u8] = b"Bearer ";
/// The largest question.
const QUESTION_BYTES_MAX: usize = 1 << 20;
/// In the answer of `/healthz`: what [`identity`](crate::config::StorageConfig::identity) of the storage says.
pub(crate) const STORE_HEADER: &str = "chaski-store";
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The listener, bound and not yet serving.
pub(crate) struct Admin {
    listener: TcpListener,
    shared: Arc<Shared>,
}

/// What the listener answers from.
pub(crate) struct Shared {
    pub(crate) instruments: Arc<Instruments>,
    pub(crate) operations: Operations,
    pub(crate) token: Option<Secret>,
    pub(crate) readiness: Readiness,
    /// Tells a command whether this process has the store it means.
    pub(crate) store: String,
}

/// Whether this process wants work: from when it serves until it is told to stop, and not a moment longer. Cloning
/// gives another hand on the same answer.
#[derive(Clone, Default)]
pub(crate) struct Readiness(Arc<OnceLock<CancellationToken>>);

impl Readiness {
    /// It serves from now on, until this is cancelled.
    pub(crate) fn begin(&self, stop: CancellationToken) {
        let _ = self.0.set(stop);
    }

    fn is_ready(&self) -> bool {
        self.0.get().is_some_and(|stop| !stop.is_cancelled())
    }
}

impl Admin {
    pub(crate) async fn bind(listen: SocketAddr, shared: Arc<Shared>) -> std::io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(listen).await?, shared })
    }

    pub(crate) fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until told to stop. A connection that cannot be accepted is the peer's affair.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                // Out of descriptors, most likely: give others time to close theirs.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let shared = Arc::clone(&self.shared);
            let shutdown = shutdown.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| respond(Arc::clone(&shared), request));
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .max_headers(64)
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    _ = connection => {}
                    () = shutdown.cancelled() => {}
                }
                drop(permit);
            });
        }
    }
}

type Answer = Response<Full<Bytes>>;

async fn respond(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Answer, http::Error> {
    let path = request.uri().path().to_owned();
    // hyper leaves out the body of an answer to HEAD.
    let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    match (method, &*path) {
        (&Method::GET, "/healthz") => health(&shared),
        (&Method::GET, "/readyz") if shared.is_ready() => plain(StatusCode::OK, "ready\n"),
        (&Method::GET, "/readyz") => plain(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        (&Method::GET, "/metrics") => metrics(&shared).await,
        (&Method::POST, path) if path.starts_with("/api/") => {
            call(&shared, &path["/api/".len()..], request).await
        }
        (_, "/healthz" | "/readyz" | "/metrics") => {
            plain(StatusCode::METHOD_NOT_ALLOWED, "use GET or HEAD\n")
        }
        (_, path) if path.starts_with("/api/") => plain(StatusCode::METHOD_NOT_ALLOWED, "use POST\n"),
        _ => plain(StatusCode::NOT_FOUND, "not found\n"),
    }
}

/// Alive unless only a restart helps; the header names the store's holder.
fn health(shared: &Shared) -> Result<Answer, http::Error> {
    let mut answer = if shared.operations.storage.events.is_writable() {
        plain(StatusCode::OK, "ok\n")?
    } else {
        plain(StatusCode::SERVICE_UNAVAILABLE, "the storage needs a restart, its log says why\n")?
    };
    answer.headers_mut().insert(STORE_HEADER, shared.store.parse()?);
    Ok(answer)
}

async fn metrics(shared: &Shared) -> Result<Answer, http::Error> {
    shared.instruments.refresh().await;
    match TextEncoder::new().encode_to_string(&shared.instruments.gather().await) {
        Ok(text) => Response::builder().header(CONTENT_TYPE, prometheus::TEXT_FORMAT).body(Full::from(text)),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n"),
    }
}

async fn call(shared: &Shared, name: &str, request: Request<Incoming>) -> Result<Answer, http::Error> {
    if !is_from_a_program(&request) {
        return json(
            StatusCode::FORBIDDEN,
            &serde_json::json!({ "error": "requests of web pages are not answered" }),
        );
    }
    if !shared.admits(&request) {
        return json(
            StatusCode::UNAUTHORIZED,
            &serde_json::json!({ "error": "the admin token is missing or wrong" }),
        );
    }
    let is_json = |kind: &http::HeaderValue| {
        let kind = kind.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"application/json")
    };
    if !request.headers().get(CONTENT_TYPE).is_some_and(is_json) {
        return json(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            &serde_json::json!({ "error": "content-type must be application/json" }),
        );
    }
    let question = Limited::new(request.into_body(), QUESTION_BYTES_MAX).collect();
    let Ok(Ok(question)) = tokio::time::timeout(HEAD_TIMEOUT, question).await else {
        return json(
            StatusCode::BAD_REQUEST,
            &serde_json::json!({ "error": "the question did not arrive whole" }),
        );
    };
    let question = question.to_bytes();
    let answered =
        tokio::time::timeout(CALL_TIMEOUT, api::dispatch(name, &question, &shared.operations)).await;
    match answered {
        Ok(Some(Ok(answer))) => json(StatusCode::OK, &answer),
        Ok(Some(Err(ApiError::Refused(why)))) => {
            json(StatusCode::BAD_REQUEST, &serde_json::json!({ "error": why }))
        }
        Ok(Some(Err(ApiError::Storage(error)))) => {
            json(StatusCode::SERVICE_UNAVAILABLE, &serde_json::json!({ "error": crate::chain(&error) }))
        }
        Ok(None) => json(StatusCode::NOT_FOUND, &serde_json::json!({ "error": "no such call" })),
        Err(_) => {
            json(StatusCode::GATEWAY_TIMEOUT, &serde_json::json!({ "error": "the answer took too long" }))
        }
    }
}

/// Whether this is no request that a browser made for somebody's page: those carry an `Origin`, and after DNS
/// rebinding a host name that is not ours.
fn is_from_a_program(request: &Request<Incoming>) -> bool {
    let host =
        request.headers().get(HOST).and_then(|host| host.to_str().ok()).and_then(|host| host.parse().ok());
    let is_ours = host.is_none_or(|host: http::uri::Authority| {
        let name = host.host().trim_matches(['[', ']']);
        name == "localhost" || name.parse::<IpAddr>().is_ok()
    });
    is_ours && !request.headers().contains_key(ORIGIN)
}

impl Shared {
    fn is_ready(&self) -> bool {
        self.readiness.is_ready() && self.operations.storage.events.is_writable()
    }

    fn admits(&self, request: &Request<Incoming>) -> bool {
        let Some(token) = &self.token else { return true };
        let shown = request.headers().get(AUTHORIZATION).map(http::HeaderValue::as_bytes);
        // The name of the scheme counts in any case (RFC 9110, 11.1).
        shown
            .and_then(|value| value.split_at_checked(BEARER.len()))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(BEARER))
            .is_some_and(|(_, shown)| shown.ct_eq(token.expose()).into())
    }
}

fn plain(status: StatusCode, text: &'static str) -> Result<Answer, http::Error> {
    Response::builder().status(status).header(CONTENT_TYPE, "text/plain").body(Full::from(text))
}

fn json(status: StatusCode, value: &serde_json::Value) -> Result<Answer, http::Error> {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::from(value.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_from_when_it_serves_to_the_moment_it_is_told_to_stop() {
        let (readiness, told) = (Readiness::default(), CancellationToken::new());
        assert!(!readiness.is_ready(), "nothing is served yet");
        readiness.clone().begin(told.child_token());
        assert!(readiness.is_ready());
        told.cancel();
        // Nobody has had the time to do anything about it.
        assert!(!readiness.is_ready());
    }
}
