//! What becomes of a connection for which there is no place: it is told so, where that costs next to nothing, and
//! closed. Nobody waits in the kernel's queue for a place that may not come: a sender that knows can come again.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Connections that are being told; further ones are closed without a word.
const TOLD_AT_ONCE_MAX: usize = 256;
/// How long one may take to be told.
const TELLING: Duration = Duration::from_secs(1);
/// What is thrown away of its request meanwhile: closing over unread bytes would take the answer back.
const DISCARDED_BYTES_MAX: u64 = 64 * 1024;
/// What a request that is refused for want of a place is answered, too.
const ANSWER: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n";

pub(super) struct Doorman(Arc<Semaphore>);

impl Doorman {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(TOLD_AT_ONCE_MAX)))
    }

    /// Closes a connection, with a 503 in front if it is in clear text. Does not wait for that.
    pub(super) fn turn_away(&self, mut stream: TcpStream, is_clear: bool) {
        let Ok(turn) = self.0.clone().try_acquire_owned() else { return };
        if is_clear {
            tokio::spawn(async move {
                let _ = timeout(TELLING, tell(&mut stream)).await;
                drop(turn);
            });
        }
    }
}

async fn tell(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(ANSWER).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(DISCARDED_BYTES_MAX), &mut tokio::io::sink()).await?;
    Ok(())
}
