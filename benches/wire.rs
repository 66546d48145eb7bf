//! The least of an HTTP/1.1 client: bytes out, one answer in, on a connection that stays.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What an answer is read into at first; the latencies of a receiver are longer.
const ANSWER_BYTES: usize = 16 << 10;

/// A connection to a server; opened anew when the server has closed it behind an answer or because it was idle.
pub(crate) struct Connection {
    to: SocketAddr,
    /// What every connection begins with.
    hello: Vec<u8>,
    stream: TcpStream,
    closed: bool,
    buffer: Vec<u8>,
}

/// What came back.
pub(crate) struct Answer<'a> {
    pub(crate) status: &'a [u8],
    pub(crate) body: &'a [u8],
}

impl Connection {
    pub(crate) async fn open(to: SocketAddr) -> anyhow::Result<Self> {
        Self::open_with(to, Vec::new()).await
    }

    /// One that begins with these bytes, now and whenever it is opened anew: what a proxy says of its client.
    pub(crate) async fn open_with(to: SocketAddr, hello: Vec<u8>) -> anyhow::Result<Self> {
        let stream = connect(to, &hello).await?;
        Ok(Self { to, hello, stream, closed: false, buffer: vec![0; ANSWER_BYTES] })
    }

    /// Whether the server has ended it while nothing was under way, as servers do with idle ones.
    fn has_ended(&self) -> bool {
        let waiting = self.stream.try_read(&mut [0]);
        !waiting.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// Sends a rendered request and reads its answer to the end.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<Answer<'_>> {
        if self.closed || self.has_ended() {
            self.stream = connect(self.to, &self.hello).await?;
        }
        self.stream.write_all(request).await?;
        let mut filled = 0;
        loop {
            if filled == self.buffer.len() {
                self.buffer.resize(2 * filled, 0);
            }
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            filled += read;
            if let Some((head, end)) = frame(&self.buffer[..filled]) {
                if filled > end {
                    bail!("more bytes than one answer");
                }
                if filled == end {
                    self.closed = value(&self.buffer[..head], b"connection: ") == Some("close");
                    return Ok(Answer { status: &self.buffer[9..12], body: &self.buffer[head..end] });
                }
            }
            if read == 0 {
                bail!("the connection ended inside an answer: {}", self.buffer[..filled].escape_ascii());
            }
        }
    }
}

async fn connect(to: SocketAddr, hello: &[u8]) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await.with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true)?;
    stream.write_all(hello).await?;
    Ok(stream)
}

/// Where the head of an answer and where its body end.
fn frame(answer: &[u8]) -> Option<(usize, usize)> {
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    let length: usize = value(&answer[..head], b"content-length: ")?.parse().ok()?;
    Some((head, head + length))
}

/// The value of a header; `name` ends in a colon and a space, as every server here writes it.
fn value<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a str> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let (found, value) = line.split_at_checked(name.len())?;
        if !found.eq_ignore_ascii_case(name) {
            return None;
        }
        std::str::from_utf8(value).ok().map(str::trim_end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_its_length_says() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\ndate: x\r\n\r\nabc";
        assert_eq!(frame(answer), Some((47, 50)));
        assert_eq!(frame(&answer[..40]), None);
        assert_eq!(value(answer, b"date: "), Some("x"));
        assert_eq!(value(answer, b"connection: "), None);
    }
}
