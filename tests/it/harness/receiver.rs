//! A receiver: a real server on a port of its own that answers as it is told and remembers what it got.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Of a hang: longer than any attempt, and not for ever.
const HANG: Duration = Duration::from_secs(120);

/// One request that was answered, or left without an answer by intent (status 0).
#[derive(Clone, Debug)]
pub(crate) struct Receipt {
    pub(crate) id: String,
    pub(crate) status: u16,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) digest: [u8; 32],
    /// When it arrived, and when it was answered.
    pub(crate) arrived: Instant,
    pub(crate) answered: Instant,
}

impl Receipt {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub(crate) const fn is_taken(&self) -> bool {
        self.status >= 200 && self.status < 300
    }
}

/// What a script decides on.
pub(crate) struct Asked<'a> {
    pub(crate) body: &'a [u8],
    /// How often this id has come here, this time included.
    pub(crate) times: usize,
}

/// What a script decides.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: Option<u16>,
    headers: Vec<(&'static str, String)>,
    body: &'static str,
    delay: Duration,
}

impl Reply {
    pub(crate) const fn status(status: u16) -> Self {
        Self { status: Some(status), headers: Vec::new(), body: "", delay: Duration::ZERO }
    }

    /// Reads the request and closes.
    pub(crate) const fn close() -> Self {
        Self { status: None, headers: Vec::new(), body: "", delay: Duration::ZERO }
    }

    /// Reads the request and says nothing until the sender gives up.
    pub(crate) const fn hang() -> Self {
        Self { status: None, headers: Vec::new(), body: "", delay: HANG }
    }

    pub(crate) fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    pub(crate) fn saying(self, body: &'static str) -> Self {
        Self { body, ..self }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

type Script = Arc<dyn Fn(&Asked<'_>) -> Reply + Send + Sync>;

pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    stop: CancellationToken,
}

struct State {
    script: Mutex<Script>,
    arrivals: Mutex<Vec<String>>,
    receipts: Mutex<Vec<Receipt>>,
}

impl Receiver {
    /// One that takes everything.
    pub(crate) fn start() -> Self {
        Self::scripted(|_| Reply::status(200))
    }

    pub(crate) fn scripted(script: impl Fn(&Asked<'_>) -> Reply + Send + Sync + 'static) -> Self {
        let state = Arc::new(State {
            script: Mutex::new(Arc::new(script)),
            arrivals: Mutex::default(),
            receipts: Mutex::default(),
        });
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        runtime().spawn(stop.clone().run_until_cancelled_owned(serve(
            listener,
            Arc::clone(&state),
            stop.clone(),
        )));
        Self { address, state, stop }
    }

    pub(crate) fn becomes(&self, script: impl Fn(&Asked<'_>) -> Reply + Send + Sync + 'static) {
        *self.state.script.lock().unwrap() = Arc::new(script);
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hooks", self.address)
    }

    /// Everything that was answered so far.
    pub(crate) fn receipts(&self) -> Vec<Receipt> {
        self.state.receipts.lock().unwrap().clone()
    }

    pub(crate) fn receipts_of(&self, id: &str) -> Vec<Receipt> {
        let mut receipts = self.receipts();
        receipts.retain(|receipt| receipt.id == id);
        receipts
    }

    /// What was answered with 2xx.
    pub(crate) fn taken(&self) -> Vec<Receipt> {
        let mut receipts = self.receipts();
        receipts.retain(Receipt::is_taken);
        receipts
    }

    /// How many requests have come, answered or not.
    pub(crate) fn arrivals(&self) -> usize {
        self.state.arrivals.lock().unwrap().len()
    }

    /// Waits until the event has been taken.
    #[track_caller]
    pub(crate) fn wait_for(&self, id: &str) -> Receipt {
        let seen = || self.taken().into_iter().find(|receipt| receipt.id == id);
        super::eventually(&format!("event {id} at {}", self.address), seen)
    }

    /// Waits until so many have been taken.
    #[track_caller]
    pub(crate) fn wait_for_count(&self, count: usize) -> Vec<Receipt> {
        let what = format!("{count} events at {}", self.address);
        super::eventually(&what, || Some(self.taken()).filter(|taken| taken.len() >= count))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Where the servers of the tests run.
pub(super) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    })
}

async fn serve(listener: TcpListener, state: Arc<State>, stop: CancellationToken) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        let connection = async move {
            let service = service_fn(|request| answer(Arc::clone(&state), request));
            // A connection that ends badly is what some scripts are about.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(connection));
    }
}

#[derive(Debug, thiserror::Error)]
#[error("closed by the script")]
struct Closed;

/// A request whose sender goes away before the answer leaves no receipt: nobody can say it was delivered.
async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Closed> {
    let arrived = Instant::now();
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Err(Closed) };
    let body = body.to_bytes();
    let id = head.headers.get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let times = {
        let mut arrivals = state.arrivals.lock().unwrap();
        arrivals.push(id.clone());
        arrivals.iter().filter(|known| **known == id).count()
    };
    let script = Arc::clone(&state.script.lock().unwrap());
    let reply = script(&Asked { body: &body, times });
    if !reply.delay.is_zero() {
        tokio::time::sleep(reply.delay).await;
    }
    let status = reply.status.unwrap_or_default();
    let digest = Sha256::digest(&body).into();
    let receipt = Receipt {
        id,
        status,
        target: head.uri.to_string(),
        headers: head.headers,
        body,
        digest,
        arrived,
        answered: Instant::now(),
    };
    state.receipts.lock().unwrap().push(receipt);
    if status == 0 {
        return Err(Closed);
    }
    let mut response = Response::builder().status(status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    Ok(response.body(Full::from(reply.body)).unwrap())
}
