//! The baseline of the edge, and the receiver of deliveries: a bare hyper server that reads the body and
//! answers 200. As a receiver it keeps a tally of what it took, tells it to whoever gets `/`, and does what it is
//! told: refuse, be away for a while, never answer.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use chaski_common::storage::kafka::testing::free_port;
use clap::ValueEnum;
use http::header::{CONNECTION, HeaderValue, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::callback::sent_us;
use crate::machine::now_us;
use crate::tally::{Tally, digest};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// What a null server does with a body that it has read.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Manner {
    /// Answers 200.
    Take,
    /// Answers 200, keeps a tally, and notes how long after its sending each body came.
    Tally,
    /// Answers 401 and closes, as the edge does with a forgery.
    Refuse,
    /// Takes a request and never answers it.
    Hang,
}

/// What a server has taken, and what it has been told.
struct Null {
    manner: Manner,
    taken: Mutex<Taken>,
    /// Changes when all connections are to end; for how long nobody is here then.
    away: watch::Sender<Duration>,
}

#[derive(Default)]
struct Taken {
    tally: Tally,
    /// How long after its sending each body came that says when that was, in microseconds; since the last question.
    latencies_us: Vec<u32>,
    /// With how many seconds of `Retry-After` it answers 500, if it does.
    refuses_for: Option<u32>,
}

/// Says where it listens, and serves until it is killed.
pub(crate) async fn serve(manner: Manner) -> anyhow::Result<()> {
    let mut listener = listen()?;
    let address = listener.local_addr()?;
    crate::print(&address.to_string());
    let null = Arc::new(Null { manner, taken: Mutex::default(), away: watch::Sender::new(Duration::ZERO) });
    let mut away = null.away.subscribe();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                tokio::spawn(Arc::clone(&null).converse(stream));
            }
            _ = away.changed() => {
                let until = *away.borrow_and_update();
                drop(listener);
                // The port is kept, and whoever connects is refused.
                let socket = bind(address)?;
                tokio::time::sleep(until).await;
                listener = socket.listen(BACKLOG)?;
            }
        }
    }
}

/// On a port that no outgoing connection is given, so that it is free again after an absence.
fn listen() -> anyhow::Result<TcpListener> {
    const TRIES: usize = 100;
    // Somebody else may be faster.
    let socket = (0..TRIES).find_map(|_| bind((Ipv4Addr::LOCALHOST, free_port()).into()).ok());
    Ok(socket.context("no port is free")?.listen(BACKLOG)?)
}

fn bind(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

impl Null {
    /// Until the other side has enough, or everybody is sent away; an answer under way is finished.
    async fn converse(self: Arc<Self>, stream: TcpStream) {
        let mut away = self.away.subscribe();
        let service = service_fn(|request| self.answer(request));
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        // A connection that breaks is the sender's affair.
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = away.changed() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        if request.method() == Method::GET {
            return Ok(self.told(request.uri().path()));
        }
        let mut response = Response::new(Full::default());
        let Ok(body) = request.into_body().collect().await else { return Ok(response) };
        match self.manner {
            Manner::Take => {}
            Manner::Tally => self.take(&body.to_bytes(), &mut response),
            Manner::Refuse => {
                *response.status_mut() = StatusCode::UNAUTHORIZED;
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Manner::Hang => std::future::pending().await,
        }
        Ok(response)
    }

    fn take(&self, body: &[u8], response: &mut Response<Full<Bytes>>) {
        let digest = digest(body);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seconds) = taken.refuses_for {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
            return;
        }
        if let Some(sent_us) = sent_us(body).filter(|sent_us| *sent_us > 0) {
            let late = u32::try_from(now_us().saturating_sub(sent_us)).unwrap_or(u32::MAX);
            taken.latencies_us.push(late);
        }
        taken.tally.add_digest(digest);
    }

    /// What the bench says: `/`, `/latencies`, `/refuse/SECONDS`, `/take`, `/away/MILLISECONDS`.
    fn told(&self, path: &str) -> Response<Full<Bytes>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut words = path.trim_start_matches('/').split('/');
        match (words.next(), words.next().and_then(|number| number.parse::<u32>().ok())) {
            (Some("latencies"), None) => {
                let latencies = std::mem::take(&mut taken.latencies_us);
                return Response::new(
                    latencies.iter().flat_map(|us| us.to_le_bytes()).collect::<Vec<u8>>().into(),
                );
            }
            (Some("refuse"), seconds @ Some(_)) => taken.refuses_for = seconds,
            (Some("take"), None) => taken.refuses_for = None,
            (Some("away"), Some(ms)) => {
                self.away.send_replace(Duration::from_millis(ms.into()));
            }
            _ => {}
        }
        Response::new(Full::from(taken.tally.write()))
    }
}
