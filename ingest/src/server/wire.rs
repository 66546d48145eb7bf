//! A connection's bytes, with two things hyper leaves out: bounds on the time that a head, a body, the silence
//! between two requests and a peer that does not read may take, and a close that lets the peer read our answer.
//!
//! One timer does for the first three. It is looked at only when nothing is there to be read, and put off only when
//! it rings, so that a request that comes in one piece never touches it. The other is there while something cannot
//! be written.
//!
//! Closing a socket with unread bytes resets it, and the reset can overtake the answer. So after a refusal the
//! writing half is closed first, and a bounded rest is read and thrown away; where all of a request was read and nothing
//! stands behind it, there is no rest to wait for.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tracing::debug;

use super::Limits;

/// How long a peer may take to read the last answer.
const LINGER: Duration = Duration::from_secs(1);
/// What is thrown away of a refused body before the connection is cut after all.
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// Nothing of the next request is there.
const IDLE: usize = 0;
/// Some of its head is.
const HEAD: usize = 1;
/// Its head is read, and its body may be waited for.
const BODY: usize = 2;
/// It is being worked on.
const REQUEST: usize = 3;
/// What is added to one of these with every request, so that no two waits are taken for one.
const NEXT: usize = 4;
/// What a log calls them.
const WAITS: [&str; NEXT] = ["idle", "head", "body", "request"];

/// Where a connection is between its requests; written by the service, read by the wire.
#[derive(Default)]
pub(crate) struct Phase {
    /// One of the four above, and how many requests there were.
    state: AtomicUsize,
    late: AtomicBool,
    stalled: AtomicBool,
    closing: AtomicBool,
    /// Nothing is missing of the request that is the last.
    whole: AtomicBool,
    /// A request was refused for want of a place.
    turned_away: AtomicBool,
}

impl Phase {
    pub(super) fn begin_request(&self) {
        self.whole.store(false, Ordering::Relaxed);
        self.enter(BODY);
    }

    /// The body is read, all of it or what there will be of it.
    pub(crate) fn end_body(&self, whole: bool) {
        self.whole.store(whole, Ordering::Relaxed);
        self.enter(REQUEST);
    }

    pub(super) fn end_request(&self, closing: bool) {
        self.closing.store(closing, Ordering::Relaxed);
        self.whole.store(self.whole.load(Ordering::Relaxed) && closing, Ordering::Relaxed);
        self.enter(IDLE);
    }

    pub(super) fn set_turned_away(&self, is_turned_away: bool) {
        self.turned_away.store(is_turned_away, Ordering::Relaxed);
    }

    /// Whether there was no place for a request, and places have been rare since.
    pub(super) fn is_turned_away(&self) -> bool {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// Only the connection's own task does this, so nothing comes in between.
    fn enter(&self, phase: usize) {
        let state = self.state.load(Ordering::Relaxed);
        let requests = state - state % NEXT;
        let requests = if phase == IDLE { requests.wrapping_add(NEXT) } else { requests };
        self.state.store(requests + phase, Ordering::Relaxed);
    }

    fn now(&self) -> usize {
        self.state.load(Ordering::Relaxed) % NEXT
    }

    /// Whether a head was begun and never finished in time.
    pub(super) fn is_late(&self) -> bool {
        self.late.load(Ordering::Relaxed)
    }

    /// Whether the peer has not taken what was written to it in time.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }

    pub(super) fn is_in_head(&self) -> bool {
        self.now() == HEAD
    }

    fn lingers(&self) -> bool {
        !self.is_late() && (self.closing.load(Ordering::Relaxed) || self.is_in_head())
    }
}

/// What was read of a connection before it was known what is spoken on it.
pub(super) struct Begun {
    pub(super) bytes: Bytes,
    /// When the first of it was waited for.
    pub(super) since: Instant,
}

impl Default for Begun {
    fn default() -> Self {
        Self { bytes: Bytes::new(), since: Instant::now() }
    }
}

pub(super) struct Wire<S> {
    stream: S,
    /// What was read before; comes first.
    begun: Bytes,
    phase: Arc<Phase>,
    limits: Limits,
    /// What is waited for, as [`Phase`] has it, and when it must be there.
    wait: Option<(usize, Instant)>,
    /// Made when something is waited for; rings at the time of an earlier wait, or of this one.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Whom it wakes.
    watched_by: Option<Waker>,
    /// Something was asked for and not there. hyper does not ask again before there is something to read, so the
    /// silence behind the answer has to be begun by the answer, and the wait for a body by its request: hyper has
    /// asked for it before the request is looked at.
    is_asked: bool,
    /// Set while the peer takes nothing of what is written.
    stalled: Option<Pin<Box<Sleep>>>,
    linger: Option<Pin<Box<Sleep>>>,
    discarded: usize,
}

impl<S> Wire<S> {
    /// The first head is due from now on, begun or not.
    pub(super) fn new(stream: S, phase: Arc<Phase>, limits: Limits) -> Self {
        phase.enter(HEAD);
        Self {
            stream,
            begun: Bytes::new(),
            phase,
            limits,
            wait: None,
            alarm: None,
            watched_by: None,
            is_asked: false,
            stalled: None,
            linger: None,
            discarded: 0,
        }
    }

    /// With bytes that were read before.
    pub(super) fn with_begun(self, begun: Begun) -> Self {
        let wait = Some((self.phase.state.load(Ordering::Relaxed), begun.since + self.limits.head_timeout));
        Self { begun: begun.bytes, wait, ..self }
    }

    /// Whether what is waited for is too late; arranges to be woken when it will be.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let state = self.phase.state.load(Ordering::Relaxed);
        let within = match state % NEXT {
            IDLE => self.limits.idle_timeout,
            HEAD => self.limits.head_timeout,
            BODY => self.limits.body_timeout,
            _ => return Poll::Pending,
        };
        let due = match self.wait {
            Some((waiting, due)) if waiting == state => due,
            _ => Instant::now() + within,
        };
        self.wait = Some((state, due));
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if alarm.deadline() > due {
            alarm.as_mut().reset(due);
        } else if !alarm.is_elapsed() && self.watched_by.as_ref().is_some_and(|by| by.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        self.watched_by = Some(cx.waker().clone());
        // Whatever the task has left of its budget: an alarm that was not looked at would wake nobody.
        ready!(pin!(unconstrained(alarm.as_mut())).poll(cx));
        if alarm.deadline() < due {
            // It has rung for an earlier wait.
            alarm.as_mut().reset(due);
            ready!(pin!(unconstrained(alarm.as_mut())).poll(cx));
        }
        let_go(WAITS[state % NEXT], due);
        Poll::Ready(())
    }
}

impl<S> Wire<S> {
    /// What came of writing; an error when the peer has taken nothing for too long.
    fn or_stalled<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.stalled.is_some() {
                self.stalled = None;
            }
            return written;
        }
        let within = self.limits.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(within)));
        ready!(stalled.as_mut().poll(cx));
        let_go("write", stalled.deadline());
        self.phase.stalled.store(true, Ordering::Relaxed);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Notes how far beyond its time a wait is ended: ours to answer for, where a peer's clock also has what lies between.
fn let_go(wait: &str, due: Instant) {
    debug!(wait, late_us = due.elapsed().as_micros() as u64, "the peer's time is up");
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.begun.is_empty() {
            let taken = self.begun.len().min(buf.remaining());
            buf.put_slice(&self.begun[..taken]);
            self.begun.advance(taken);
            return Poll::Ready(Ok(()));
        }
        let filled = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.phase.now() == IDLE && buf.filled().len() > filled {
            self.phase.enter(HEAD);
        }
        self.is_asked = read.is_pending();
        if read.is_pending() && self.poll_late(cx).is_ready() {
            if self.phase.now() == IDLE {
                // Nothing is owed to a peer that says nothing: it is as if it had closed.
                return Poll::Ready(Ok(()));
            }
            self.phase.late.store(self.phase.is_in_head(), Ordering::Relaxed);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.or_stalled(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.or_stalled(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = self.phase.state.load(Ordering::Relaxed);
        let is_new = self.wait.is_none_or(|(waiting, _)| waiting != state);
        if self.is_asked && is_new && matches!(state % NEXT, IDLE | BODY) {
            // It begins now, so it cannot be over.
            let _ = self.poll_late(cx);
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.or_stalled(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            let shut = Pin::new(&mut this.stream).poll_shutdown(cx);
            ready!(this.or_stalled(cx, shut))?;
            if !this.phase.lingers() {
                return Poll::Ready(Ok(()));
            }
        }
        let mut scratch = [MaybeUninit::uninit(); 4096];
        loop {
            let mut buf = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    this.discarded += buf.filled().len();
                    if this.discarded > LINGER_BYTES_MAX {
                        return Poll::Ready(Ok(()));
                    }
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                // There is nothing that could be unread.
                Poll::Pending if this.phase.is_whole() && this.discarded == 0 => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    let timer = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
                    return timer.as_mut().poll(cx).map(Ok);
                }
            }
        }
    }
}
