//! What a proxy writes in front of a connection, on a real socket: the first byte says after how many of the others the rest comes
//! a moment later, and what follows the header must still be there.

use std::io::Write as _;
use std::net::Shutdown;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

use super::plain;
use crate::server::proxy_protocol;

/// One listener for all inputs.
static RIG: LazyLock<Mutex<(Runtime, TcpListener)>> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).expect("a listener");
    Mutex::new((runtime, listener))
});

pub(super) fn run(input: &[u8]) {
    let Some((first, bytes)) = input.split_first() else { return };
    let rig = RIG.lock().unwrap_or_else(PoisonError::into_inner);
    let (runtime, listener) = &*rig;
    let read = runtime.block_on(async {
        let mut proxy =
            std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
        let (mut stream, _) = listener.accept().await.expect("a connection");
        // Nothing is left of it afterwards, so that addresses never run out.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a setting");
        let (early, late) = bytes.split_at(usize::from(*first).min(bytes.len()));
        let writing = async {
            proxy.write_all(early).expect("room for it");
            tokio::task::yield_now().await;
            proxy.write_all(late).expect("room for it");
            proxy.shutdown(Shutdown::Write).expect("an end");
        };
        tokio::join!(read_all(&mut stream), writing).0
    });
    let expected = plain::proxied(bytes).map(|(address, length)| (address, bytes[length..].to_vec()));
    assert_eq!(read, expected, "{}", bytes.escape_ascii());
}

/// What the header says, and all that follows it.
async fn read_all(stream: &mut TcpStream) -> Option<(Option<std::net::IpAddr>, Vec<u8>)> {
    let address = tokio::time::timeout(Duration::from_secs(20), proxy_protocol::read(stream)).await;
    let address = address.expect("an end").ok()?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("an end");
    Some((address, rest))
}
