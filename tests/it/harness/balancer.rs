//! A load balancer as they stand in front of edges: it asks each for `/readyz`, gives new connections to those that are
//! ready in turn, and goes on to the next when one cannot be connected to. What it has given away it leaves alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::receiver::runtime;

/// Between two looks at an edge, and how long one may take.
const LOOK: Duration = Duration::from_millis(50);
const LOOK_WITHIN: Duration = Duration::from_secs(2);

pub(crate) struct Balancer {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

struct Shared {
    edges: Vec<Edge>,
    turn: AtomicUsize,
    turned_away: AtomicU64,
}

struct Edge {
    address: SocketAddr,
    admin: SocketAddr,
    is_ready: AtomicBool,
}

impl Balancer {
    /// In front of edges, each with its admin address.
    pub(crate) fn before(edges: impl IntoIterator<Item = (SocketAddr, SocketAddr)>) -> Self {
        let edge = |(address, admin)| Edge { address, admin, is_ready: AtomicBool::new(false) };
        let edges: Vec<_> = edges.into_iter().map(edge).collect();
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let count = edges.len();
        let shared = Arc::new(Shared { edges, turn: AtomicUsize::new(0), turned_away: AtomicU64::new(0) });
        for index in 0..count {
            let shared = Arc::clone(&shared);
            let looking = async move { shared.edges[index].look_again_and_again().await };
            runtime().spawn(stop.clone().run_until_cancelled_owned(looking));
        }
        runtime().spawn(stop.clone().run_until_cancelled_owned(accept(listener, Arc::clone(&shared))));
        Self { address, shared, stop }
    }

    pub(crate) fn all_are_ready(&self) -> bool {
        self.shared.edges.iter().all(Edge::is_ready)
    }

    /// Connections that no edge took.
    pub(crate) fn turned_away(&self) -> u64 {
        self.shared.turned_away.load(Ordering::Relaxed)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Edge {
    fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    async fn look_again_and_again(&self) {
        loop {
            let seen = tokio::time::timeout(LOOK_WITHIN, self.look()).await;
            self.is_ready.store(matches!(seen, Ok(Ok(true))), Ordering::Relaxed);
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&self) -> std::io::Result<bool> {
        let mut admin = TcpStream::connect(self.admin).await?;
        admin.write_all(b"GET /readyz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        admin.take(1 << 16).read_to_end(&mut answer).await?;
        Ok(answer.starts_with(b"HTTP/1.1 200"))
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((mut client, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            match shared.connect().await {
                Some(mut edge) => _ = copy_bidirectional(&mut client, &mut edge).await,
                None => _ = shared.turned_away.fetch_add(1, Ordering::Relaxed),
            }
        });
    }
}

impl Shared {
    async fn connect(&self) -> Option<TcpStream> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        for index in 0..self.edges.len() {
            let edge = &self.edges[(turn + index) % self.edges.len()];
            if edge.is_ready()
                && let Ok(stream) = TcpStream::connect(edge.address).await
            {
                return Some(stream);
            }
        }
        None
    }
}
