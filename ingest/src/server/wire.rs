//! A connection's bytes, with two things hyper leaves out: a bound on the time one head may take that an idle
//! connection does not run into, and a close that lets the peer read our answer.
//!
//! Closing a socket with unread bytes resets it, and the reset can overtake the answer. So after a refusal the
//! writing half is closed first, and a bounded rest is read and thrown away.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// How long a peer may take to read the last answer.
const LINGER: Duration = Duration::from_secs(1);
/// What is thrown away of a refused body before the connection is cut after all.
const LINGER_BYTES_MAX: usize = 1024 * 1024;

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const REQUEST: u8 = 2;

/// Where a connection is between its requests; written by the service, read by the wire.
#[derive(Default)]
pub(super) struct Phase {
    state: AtomicU8,
    late: AtomicBool,
    closing: AtomicBool,
}

impl Phase {
    pub(super) fn begin_request(&self) {
        self.state.store(REQUEST, Ordering::Relaxed);
    }

    pub(super) fn end_request(&self, closing: bool) {
        self.closing.store(closing, Ordering::Relaxed);
        self.state.store(IDLE, Ordering::Relaxed);
    }

    /// Whether a head was begun and never finished in time.
    pub(super) fn is_late(&self) -> bool {
        self.late.load(Ordering::Relaxed)
    }

    pub(super) fn is_in_head(&self) -> bool {
        self.state.load(Ordering::Relaxed) == HEAD
    }

    fn lingers(&self) -> bool {
        !self.is_late() && (self.closing.load(Ordering::Relaxed) || self.is_in_head())
    }
}

pub(super) struct Wire<S> {
    stream: S,
    phase: Arc<Phase>,
    head_timeout: Duration,
    /// When the head that is being read must be complete.
    head_due: Option<Instant>,
    /// Made only when a head is waited for.
    head_timer: Option<Pin<Box<Sleep>>>,
    linger: Option<Pin<Box<Sleep>>>,
    discarded: usize,
}

impl<S> Wire<S> {
    /// The first head is due from now on, begun or not.
    pub(super) fn new(stream: S, phase: Arc<Phase>, head_timeout: Duration) -> Self {
        phase.state.store(HEAD, Ordering::Relaxed);
        let head_due = Some(Instant::now() + head_timeout);
        Self { stream, phase, head_timeout, head_due, head_timer: None, linger: None, discarded: 0 }
    }

    /// Whether the head is too late; arranges to be woken when it will be.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(due) = self.head_due else { return Poll::Pending };
        let timer = self.head_timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match self.phase.state.load(Ordering::Relaxed) {
            REQUEST => self.head_due = None,
            IDLE if buf.filled().len() > filled => {
                self.phase.state.store(HEAD, Ordering::Relaxed);
                self.head_due = Some(Instant::now() + self.head_timeout);
            }
            IDLE => self.head_due = None,
            _ => {}
        }
        if read.is_pending() && self.phase.is_in_head() && self.poll_late(cx).is_ready() {
            self.phase.late.store(true, Ordering::Relaxed);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if !this.phase.lingers() {
                return Poll::Ready(Ok(()));
            }
        }
        let timer = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut scratch = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    this.discarded += buf.filled().len();
                    if this.discarded > LINGER_BYTES_MAX {
                        return Poll::Ready(Ok(()));
                    }
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return timer.as_mut().poll(cx).map(Ok),
            }
        }
    }
}
