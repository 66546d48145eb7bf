//! A load that is cheap enough to be several times what a gateway bears: one thread that waits for all its
//! connections at once, requests that were rendered before, and of an answer no more is read than its status, its
//! length and its last word.
//!
//! Requests come by a schedule that waits for nobody. A request that finds no free connection is sent as soon as
//! there is one, and one that has found none before the end is not sent at all: how many those are says how much a
//! gateway has pushed back.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::callback::Callbacks;
use crate::load::Seen;
use crate::machine;
use crate::tally::Tally;

/// How long the last answers may take when nothing more is sent.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest wait for the next event.
const LOOK: Duration = Duration::from_millis(100);
/// No answer here is longer.
const ANSWER_BYTES_MAX: usize = 1024;
const EVENTS: usize = 256;

/// What is sent, and when.
pub(crate) struct Schedule {
    /// Requests that are due in a second; without end for as fast as it goes.
    pub(crate) per_second: f64,
    pub(crate) lasts: Duration,
    /// Ends it earlier.
    pub(crate) count_max: usize,
}

/// What a crowd saw until the end of its schedule.
pub(crate) struct Pressed {
    /// Requests that were due.
    pub(crate) due: usize,
    /// Those that were sent.
    pub(crate) sent: usize,
    /// Accepted in that time; latencies from when one was sent.
    pub(crate) taken: Seen,
    /// Answered 503 in that time; latencies likewise.
    pub(crate) refused: Seen,
    /// Sent in that time and answered behind it. One that is never answered is an error.
    pub(crate) late: usize,
    /// What was accepted, then and afterwards.
    pub(crate) tally: Tally,
    /// Share of that time in which this thread used its processor.
    pub(crate) busy: f64,
}

/// Open connections to one gateway.
pub(crate) struct Crowd {
    poll: Poll,
    connections: Vec<Connection>,
    free: VecDeque<usize>,
}

struct Connection {
    stream: TcpStream,
    /// Which request is unanswered, and when it was sent.
    under_way: Option<(usize, Instant)>,
    answer: Vec<u8>,
}

impl Crowd {
    pub(crate) fn connect(to: SocketAddr, connections: usize) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let mut all = Vec::with_capacity(connections);
        for number in 0..connections {
            let stream = std::net::TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(number), Interest::READABLE)?;
            all.push(Connection { stream, under_way: None, answer: Vec::with_capacity(ANSWER_BYTES_MAX) });
        }
        Ok(Self { poll, free: (0..connections).collect(), connections: all })
    }

    /// Sends callbacks, from the first on, and reads every answer. Any but 200 accepted and 503 is an error.
    pub(crate) fn press(&mut self, callbacks: &Callbacks, schedule: &Schedule) -> anyhow::Result<Pressed> {
        let (begun, cpu) = (Instant::now(), machine::cpu_of_this_thread()?);
        let end = begun + schedule.lasts;
        let (mut next, mut tally) = (0, Tally::default());
        let (mut taken, mut refused) = (Vec::new(), Vec::new());
        let mut events = Events::with_capacity(EVENTS);
        let mut ended = None;
        loop {
            let now = Instant::now();
            let due = schedule.due(now.min(end) - begun);
            if ended.is_none() && (now >= end || next >= schedule.count_max) {
                let elapsed = now - begun;
                let busy = (machine::cpu_of_this_thread()? - cpu).as_secs_f64() / elapsed.as_secs_f64();
                ended = Some((now, elapsed, due, busy, taken.len(), refused.len()));
            }
            while ended.is_none() && next < due {
                let Some(number) = self.free.pop_front() else { break };
                ensure!(next < callbacks.count(), "more requests than there are callbacks");
                self.connections[number].send(next, callbacks.request(next))?;
                next += 1;
            }
            if let Some((since, elapsed, due, busy, taken_then, refused_then)) = ended {
                if self.free.len() == self.connections.len() {
                    // What came later does not count as goodput, but it is in the store.
                    let late = taken.len() + refused.len() - taken_then - refused_then;
                    taken.truncate(taken_then);
                    refused.truncate(refused_then);
                    let (taken, refused) = (Seen::new(elapsed, taken), Seen::new(elapsed, refused));
                    return Ok(Pressed { due, sent: next, taken, refused, late, tally, busy });
                }
                let missing = self.connections.len() - self.free.len();
                ensure!(now < since + PATIENCE, "{missing} answers are missing");
            }
            let wait =
                if ended.is_none() && !self.free.is_empty() { schedule.next(next, begun, now) } else { LOOK };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => other?,
            }
            for event in &events {
                let number = event.token().0;
                let Some((index, sent, is_taken)) = self.connections[number].receive()? else { continue };
                let us = u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX);
                if is_taken {
                    tally.add(&callbacks.body(index));
                    taken.push(us);
                } else {
                    refused.push(us);
                }
                self.free.push_back(number);
            }
        }
    }
}

impl Schedule {
    /// How many requests are due by then.
    fn due(&self, elapsed: Duration) -> usize {
        ((self.per_second * elapsed.as_secs_f64()) as usize).min(self.count_max)
    }

    /// How long nothing more is due.
    fn next(&self, sent: usize, begun: Instant, now: Instant) -> Duration {
        let due = Duration::from_secs_f64((sent + 1) as f64 / self.per_second);
        due.saturating_sub(now - begun).min(LOOK)
    }
}

impl Connection {
    fn send(&mut self, index: usize, request: &[u8]) -> anyhow::Result<()> {
        // The last answer was read to its end, so there is room for all of it.
        let written = self.stream.write(request)?;
        ensure!(written == request.len(), "a request was written in part");
        self.under_way = Some((index, Instant::now()));
        Ok(())
    }

    /// The request that is answered now, when it was sent, and whether it was taken; none while more is to come.
    fn receive(&mut self) -> anyhow::Result<Option<(usize, Instant, bool)>> {
        let mut piece = [0; ANSWER_BYTES_MAX];
        // Once is enough: an answer comes in one piece, and if it did not, the next piece is an event of its own.
        match self.stream.read(&mut piece) {
            Ok(0) => bail!("the gateway closed a connection"),
            Ok(read) => self.answer.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let Some(is_taken) = judge(&self.answer)? else { return Ok(None) };
        self.answer.clear();
        let (index, sent) = self.under_way.take().context("an answer without a request")?;
        Ok(Some((index, sent, is_taken)))
    }
}

/// Whether an answer says accepted or 503; none while it is not whole.
fn judge(answer: &[u8]) -> anyhow::Result<Option<bool>> {
    const ACCEPTED: &[u8] = b"\"accepted\"}";
    if answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(ACCEPTED) {
        return Ok(Some(true));
    }
    // It has no body.
    if answer.starts_with(b"HTTP/1.1 503 ") && answer.ends_with(b"\r\n\r\n") {
        return Ok(Some(false));
    }
    ensure!(
        answer.len() < ANSWER_BYTES_MAX && !answer.ends_with(b"}"),
        "200 accepted or 503 was expected, {} came",
        answer.escape_ascii()
    );
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_taken_or_refused() {
        let accepted = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{\"status\":\"accepted\"}";
        assert_eq!(judge(accepted).unwrap(), Some(true));
        assert_eq!(judge(&accepted[..50]).unwrap(), None);
        let full = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(judge(full).unwrap(), Some(false));
        assert_eq!(judge(&full[..40]).unwrap(), None);
        judge(b"HTTP/1.1 200 OK\r\n\r\n{\"status\":\"duplicate\"}").unwrap_err();
    }

    #[test]
    fn a_schedule_says_how_many_are_due() {
        let schedule = Schedule { per_second: 100.0, lasts: Duration::from_secs(2), count_max: 150 };
        assert_eq!(schedule.due(Duration::from_millis(500)), 50);
        assert_eq!(schedule.due(Duration::from_secs(2)), 150);
        let now = Instant::now();
        assert_eq!(schedule.next(4, now, now), Duration::from_millis(50));
        assert_eq!(schedule.next(4, now, now + Duration::from_secs(1)), Duration::ZERO);
    }
}
