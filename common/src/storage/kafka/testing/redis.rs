//! A Redis server.

use std::time::{Duration, Instant};

use super::{START_WITHIN, Server, free_port, text};
use crate::secret::Secret;
use crate::storage::kafka::Redis;

/// A Redis server of its own; ends when it is dropped.
pub struct RedisServer {
    port: u16,
    server: Server,
}

impl RedisServer {
    /// Starts a server and waits until it listens.
    #[must_use]
    pub fn start() -> Self {
        let mut redis = Self { port: free_port(), server: Server::new("redis") };
        redis.run();
        redis
    }

    /// Starts it, or starts it again, empty, at the same address.
    pub fn run(&mut self) {
        let folder = self.server.folder.clone();
        let port = self.port.to_string();
        let arguments = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--dir", text(&folder)];
        self.server.run("redis-server", arguments);
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(
                began.elapsed() < START_WITHIN,
                "redis-server is missing (apt-get install redis-server) or does not start:\n{}",
                self.server.last_words()
            );
            std::thread::yield_now();
        }
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Sends it a signal, `STOP` or `CONT`.
    pub fn signal(&self, signal: &str) {
        self.server.signal(signal);
    }

    /// How to reach it.
    #[must_use]
    pub fn options(&self) -> Redis {
        let url = Secret::new(format!("redis://127.0.0.1:{}/0", self.port));
        Redis { url, window: Duration::from_secs(3600) }
    }
}
