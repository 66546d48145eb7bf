//! The baseline of the edge, and the receiver of deliveries: a bare hyper server that reads the body and
//! answers 200. As a receiver it also keeps a tally of what came, and tells it to whoever gets `/`.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use clap::ValueEnum;
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::callback::sent_us;
use crate::machine::now_us;
use crate::tally::{Tally, digest};

/// What a null server does with a body that it has read.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Manner {
    /// Answers 200.
    Take,
    /// Answers 200, keeps a tally, and notes how long after its sending each body came.
    Tally,
    /// Answers 401 and closes, as the edge does with a forgery.
    Refuse,
}

/// What came so far.
static COUNT: AtomicU64 = AtomicU64::new(0);
static SUM: AtomicU64 = AtomicU64::new(0);
/// How long after its sending each body came that says when that was, in microseconds.
static LATENCIES_US: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Says where it listens, and serves until it is killed.
pub(crate) async fn serve(manner: Manner) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    crate::print(&listener.local_addr()?.to_string());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            // A connection that breaks is the sender's affair.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(|request| answer(request, manner)))
                .await;
        });
    }
}

async fn answer(request: Request<Incoming>, manner: Manner) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() == Method::GET {
        if request.uri().path() == "/latencies" {
            let latencies = LATENCIES_US.lock().unwrap_or_else(PoisonError::into_inner);
            let told: Vec<u8> = latencies.iter().flat_map(|us| us.to_le_bytes()).collect();
            return Ok(Response::new(Full::from(told)));
        }
        let told = Tally { count: COUNT.load(Ordering::SeqCst), sum: SUM.load(Ordering::SeqCst) };
        return Ok(Response::new(Full::from(told.write())));
    }
    let Ok(body) = request.into_body().collect().await else {
        return Ok(Response::new(Full::default()));
    };
    let mut response = Response::new(Full::default());
    match manner {
        Manner::Take => {}
        Manner::Tally => {
            let body = body.to_bytes();
            if let Some(sent_us) = sent_us(&body).filter(|sent_us| *sent_us > 0) {
                let late = u32::try_from(now_us().saturating_sub(sent_us)).unwrap_or(u32::MAX);
                LATENCIES_US.lock().unwrap_or_else(PoisonError::into_inner).push(late);
            }
            SUM.fetch_add(digest(&body), Ordering::SeqCst);
            COUNT.fetch_add(1, Ordering::SeqCst);
        }
        Manner::Refuse => {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
    Ok(response)
}
