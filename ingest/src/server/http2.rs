//! HTTP/2 on one connection, where it is switched on: the same requests with the same answers, under bounds that one
//! request at a time does not need.
//!
//! What is abuse by its frames alone (resets, continuations and empty frames without end) h2 recognises and ends.
//! What it does not see is here: a peer that asks and takes back, request after request, and one that keeps a
//! connection without asking for anything, whatever else it sends.

use std::error::Error as _;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use h2::Reason;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant, sleep_until};
use tokio_util::task::TaskTracker;

use super::Shared;
use super::connection::End;
use super::wire::{Begun, Phase, Wire};
use crate::metrics::ConnectionError;

/// The first bytes of a client that knows it may speak HTTP/2.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Requests under way on one connection.
const STREAMS_MAX: u32 = 64;
/// What may be on its way to us, for one request and for all of a connection: the least that HTTP/2 begins with.
const WINDOW_BYTES: u32 = 65_535;
/// Requests that were reset before we had looked at them.
const RESET_UNSEEN_MAX: usize = 20;
/// Requests that we had to reset for what they were, in the life of a connection.
const RESET_BY_US_MAX: usize = 100;
/// Requests in a row that their sender took back before the answer.
const TAKEN_BACK_MAX: u32 = 100;
/// How long a peer has to agree to an end in order.
const GOODBYE: Duration = Duration::from_secs(1);

/// Reads for as long as it could be the preface: what was read, and whether it is. `Err` when the stream breaks.
pub(super) async fn preface(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(Bytes, bool)> {
    let mut read = Vec::with_capacity(PREFACE.len());
    while read.len() < PREFACE.len() && PREFACE.starts_with(&read) {
        let rest = (PREFACE.len() - read.len()) as u64;
        if (&mut *stream).take(rest).read_buf(&mut read).await? == 0 {
            break;
        }
    }
    let is_preface = read == PREFACE;
    Ok((read.into(), is_preface))
}

/// Runs streams as tasks that are waited for when the edge ends.
#[derive(Clone)]
struct Tasks(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// The requests of a connection.
struct Streams {
    state: Mutex<State>,
    abused: Notify,
}

struct State {
    open: usize,
    /// When the last one ended.
    quiet_since: Instant,
    were_any: bool,
    taken_back: u32,
}

/// A request under way.
struct Stream {
    of: Arc<Streams>,
    is_answered: bool,
}

impl Streams {
    fn new(now: Instant) -> Arc<Self> {
        let state = State { open: 0, quiet_since: now, were_any: false, taken_back: 0 };
        Arc::new(Self { state: Mutex::new(state), abused: Notify::new() })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>) -> Stream {
        let mut state = self.state();
        state.open += 1;
        state.were_any = true;
        Stream { of: self.clone(), is_answered: false }
    }

    /// Since when there has been no request, and whether there ever was one.
    fn quiet(&self) -> Option<(Instant, bool)> {
        let state = self.state();
        (state.open == 0).then_some((state.quiet_since, state.were_any))
    }
}

impl Stream {
    fn end(mut self, is_answered: bool) {
        self.is_answered = is_answered;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.of.state();
        state.open -= 1;
        state.quiet_since = Instant::now();
        state.taken_back = if self.is_answered { 0 } else { state.taken_back + 1 };
        if state.taken_back >= TAKEN_BACK_MAX {
            self.of.abused.notify_one();
        }
    }
}

/// Serves a connection until it ends; why, if it ended badly.
pub(super) async fn serve<S>(
    shared: &Arc<Shared>,
    peer: IpAddr,
    stream: S,
    begun: Begun,
    end: &End,
) -> Option<ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let limits = shared.limits;
    let phase = Arc::new(Phase::default());
    let since = begun.since;
    let wire = Wire::new(stream, phase.clone(), limits).with_begun(begun);
    // The wire's waits are of one request at a time; each stream has its own.
    phase.end_body(true);
    let streams = Streams::new(since);
    let service = service_fn(|request| {
        let (shared, stream) = (shared.clone(), streams.begin());
        async move {
            let answer = shared.serve(request, peer, &Phase::default()).await;
            stream.end(answer.is_ok());
            answer
        }
    });
    let http = http2::Builder::new(Tasks(end.tracker.clone()))
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_pending_accept_reset_streams(RESET_UNSEEN_MAX)
        .max_local_error_reset_streams(RESET_BY_US_MAX)
        .serve_connection(TokioIo::new(wire), service);
    let mut http = pin!(http);
    let (mut due, mut is_closing) = (since + limits.head_timeout, false);
    loop {
        tokio::select! {
            biased;
            ended = http.as_mut() => return ended.err().and_then(|error| reason(&error, &phase)),
            () = streams.abused.notified() => return Some(ConnectionError::H2Abuse),
            () = end.cut.cancelled() => return None,
            () = end.shutdown.cancelled(), if !is_closing => is_closing = true,
            () = sleep_until(due) => match streams.quiet() {
                None => {
                    due = Instant::now() + if is_closing { GOODBYE } else { limits.idle_timeout };
                    continue;
                }
                Some((_, false)) => return Some(ConnectionError::HeaderTimeout),
                Some(_) if is_closing => return None,
                Some((since, true)) if since + limits.idle_timeout > Instant::now() => {
                    due = since + limits.idle_timeout;
                    continue;
                }
                Some(_) => is_closing = true,
            },
        }
        http.as_mut().graceful_shutdown();
        due = Instant::now() + GOODBYE;
    }
}

/// Why a connection ended badly; none when it only ended.
fn reason(error: &hyper::Error, phase: &Phase) -> Option<ConnectionError> {
    if phase.is_stalled() {
        return Some(ConnectionError::WriteTimeout);
    }
    let Some(error) = error.source().and_then(|source| source.downcast_ref::<h2::Error>()) else {
        return Some(ConnectionError::Io);
    };
    if error.is_remote() || error.reason() == Some(Reason::NO_ERROR) {
        None
    } else if error.is_io() {
        Some(ConnectionError::Io)
    } else {
        Some(ConnectionError::H2Abuse)
    }
}
