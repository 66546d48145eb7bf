//! Redis: a server, a master with a replica under a Sentinel, a cluster.

use std::collections::HashSet;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{START_WITHIN, Server, free_port, text};
use crate::secret::Secret;
use crate::storage::kafka::Redis;

/// Of those that have one: what an operator writes into a URL must reach each server.
const PASSWORD: &str = "s3cret";
/// After this long without an answer a server counts as gone, in milliseconds.
const GONE_AFTER_MS: &str = "500";

/// A Redis server of its own; ends when it is dropped.
pub struct RedisServer {
    port: u16,
    settings: Vec<String>,
    server: Server,
}

impl RedisServer {
    /// Starts a server and waits until it listens.
    #[must_use]
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With settings of its own, as arguments.
    #[must_use]
    pub fn with(settings: &[&str]) -> Self {
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let mut redis = Self { port: free_port(), settings, server: Server::new("redis") };
        redis.run();
        redis
    }

    /// Starts it, or starts it again, empty, at the same address.
    pub fn run(&mut self) {
        let folder = self.server.folder.clone();
        let port = self.port.to_string();
        let arguments = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--dir", text(&folder)];
        let settings = self.settings.iter().map(String::as_str);
        self.server.run("redis-server", arguments.into_iter().chain(settings));
        self.server.listens_at(self.port);
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
        options(format!("redis://127.0.0.1:{}/0", self.port))
    }
}

/// A master and a replica that a Sentinel watches; all of them want a password.
pub struct RedisUnderSentinel {
    servers: Vec<RedisServer>,
    sentinel: u16,
    _sentinel: Server,
}

impl RedisUnderSentinel {
    /// Starts them and waits until the Sentinel could make the replica the master.
    #[must_use]
    pub fn start() -> Self {
        let secured =
            ["--requirepass", PASSWORD, "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0"];
        let master = RedisServer::with(&secured);
        let of = master.port.to_string();
        let replica = RedisServer::with(&[&secured[..], &["--replicaof", "127.0.0.1", &of]].concat());
        eventually("the replica follows", || {
            ask(replica.port, &["info", "replication"]).contains("master_link_status:up")
        });
        let mut server = Server::new("sentinel");
        let port = free_port();
        let written = server.folder.join("sentinel.conf");
        let settings = format!(
            "port {port}\nbind 127.0.0.1\nrequirepass {PASSWORD}\nsentinel monitor payments 127.0.0.1 {of} 1\n\
             sentinel auth-pass payments {PASSWORD}\nsentinel down-after-milliseconds payments {GONE_AFTER_MS}\n\
             sentinel failover-timeout payments 4000\n"
        );
        std::fs::write(&written, settings).expect("a folder of its own");
        server.run("redis-server", [text(&written), "--sentinel"]);
        server.listens_at(port);
        eventually("the Sentinel knows the replica", || {
            ask(port, &["sentinel", "replicas", "payments"]).contains(&replica.port.to_string())
        });
        Self { servers: vec![master, replica], sentinel: port, _sentinel: server }
    }

    /// Kills the first master.
    pub fn kill_master(&mut self) {
        self.servers[0].kill();
    }

    /// How to reach it; the first of the Sentinels named is not there.
    #[must_use]
    pub fn options(&self) -> Redis {
        let (absent, port) = (free_port(), self.sentinel);
        options(format!(
            "redis+sentinel://:{PASSWORD}@127.0.0.1:{absent},127.0.0.1:{port}/payments/1?sentinel_password={PASSWORD}"
        ))
    }
}

/// Three masters and a replica of each; all of them want a password.
pub struct RedisCluster(Vec<RedisServer>);

impl RedisCluster {
    const MASTERS: usize = 3;

    /// Starts them and waits until each answers for its part.
    #[must_use]
    pub fn start() -> Self {
        let node = || {
            let bus = free_port().to_string();
            let timing = ["--cluster-node-timeout", GONE_AFTER_MS, "--repl-diskless-sync-delay", "0"];
            let secured = ["--requirepass", PASSWORD, "--masterauth", PASSWORD];
            let clustered = ["--cluster-enabled", "yes", "--cluster-port", &bus];
            RedisServer::with(&[&clustered[..], &timing, &secured].concat())
        };
        let nodes: Vec<RedisServer> = std::iter::repeat_with(node).take(2 * Self::MASTERS).collect();
        let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        let create = [&["--cluster", "create"], &*addresses.iter().map(String::as_str).collect::<Vec<_>>()];
        let replicated = [&create.concat()[..], &["--cluster-replicas", "1", "--cluster-yes"]].concat();
        let said = ask(nodes[0].port, &replicated);
        for node in &nodes {
            eventually("each node knows of all", || {
                let state = ask(node.port, &["cluster", "info"]);
                state.contains("cluster_state:ok") && state.contains("cluster_known_nodes:6")
            });
        }
        let cluster = Self(nodes);
        eventually(&said, || {
            let lines = cluster.lines();
            let replicas = lines.iter().filter(|line| line.contains("slave"));
            replicas.map(|line| line.split(' ').nth(3).map(str::to_owned)).collect::<HashSet<_>>().len()
                == Self::MASTERS
        });
        eventually("the replicas follow", || {
            cluster.0.iter().all(|node| {
                let state = ask(node.port, &["info", "replication"]);
                state.contains("role:master") || state.contains("master_link_status:up")
            })
        });
        cluster
    }

    /// What a node that lives says of all.
    fn lines(&self) -> Vec<String> {
        ask(self.0[Self::MASTERS - 1].port, &["cluster", "nodes"]).lines().map(str::to_owned).collect()
    }

    /// Kills the first master; its replica takes its part over.
    pub fn kill_master(&mut self) {
        let master = self.0[0].port;
        let is_master = |line: &String| line.contains(&format!(":{master}@")) && line.contains("master");
        assert!(self.lines().iter().any(is_master), "{:#?}", self.lines());
        self.0[0].kill();
    }

    /// How to reach it: two of the nodes, which know the others.
    #[must_use]
    pub fn options(&self) -> Redis {
        let (first, second) = (self.0[0].port, self.0[1].port);
        options(format!("redis+cluster://:{PASSWORD}@127.0.0.1:{first},127.0.0.1:{second}"))
    }
}

fn options(url: String) -> Redis {
    Redis { url: Secret::new(url), window: Duration::from_secs(3600) }
}

/// What a server answers, or why it does not.
fn ask(port: u16, command: &[&str]) -> String {
    let mut asking = Command::new("redis-cli");
    asking.args(["-p", &port.to_string(), "-a", PASSWORD, "--no-auth-warning"]).args(command);
    let answered = asking.output().expect("redis-cli is there (apt-get install redis-server)");
    String::from_utf8_lossy(&answered.stdout).into_owned()
}

/// Looks again and again.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < START_WITHIN, "never so: {what}");
        std::thread::yield_now();
    }
}
