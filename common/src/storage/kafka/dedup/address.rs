//! Where Redis is, as a URL says: one server, the master that Sentinels name, or a cluster.
//!
//! `redis://host:6379/0`, `redis+sentinel://host1:26379,host2:26379/mymaster/0` and
//! `redis+cluster://host1:7000,host2:7001`; `rediss` in the place of `redis` is TLS to all of them. A user and a
//! password in front of the addresses are the data servers'; Sentinels with a password of their own have it behind
//! them: `?sentinel_password=…`, with `sentinel_username=…`.

use std::fmt::Write as _;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType};
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo as _, RedisResult, TlsMode};

use crate::secret::Secret;
use crate::storage::StorageError;
use crate::storage::kafka::Redis;

const NOT_ONE: &str = "not the URL of a Redis server, of Sentinels or of a cluster";
/// One step of connecting: a handshake, or a question of the client's own to a node.
const STEP_WITHIN: Duration = Duration::from_secs(1);
const SENTINEL_PORT: u16 = 26379;
const SERVER_PORT: u16 = 6379;
/// How often a cluster's client turns to another node by itself, and how long it waits before: a batch is short.
const REDIRECTS_MAX: u32 = 3;
const REDIRECT_WAIT_MS: (u64, u64) = (2, 10);

/// See the module.
#[derive(Clone)]
pub(in crate::storage::kafka) enum Address {
    Server(ConnectionInfo),
    /// The master of this name, which any of the Sentinels knows.
    Sentinels {
        nodes: Vec<ConnectionInfo>,
        master: String,
        /// User, password and database there.
        server: ConnectionInfo,
    },
    /// Some nodes of a cluster; they know the others.
    Cluster(Vec<ConnectionInfo>),
}

/// An open connection.
#[derive(Clone)]
pub(super) enum Connection {
    /// To one server, which takes many commands at once.
    Server(MultiplexedConnection),
    /// To all nodes; each command goes to the one that has its key.
    Cluster(ClusterConnection),
}

impl Address {
    /// Reads the configured one.
    ///
    /// # Errors
    /// As [`Address::read`].
    pub(super) fn of(settings: &Redis) -> Result<Self, StorageError> {
        let unfit = |what| StorageError::Unfit { what: format!("[storage.dedup] redis is {what}") };
        Self::read(&settings.url).map_err(unfit)
    }

    /// Reads a URL. Nothing is opened.
    ///
    /// # Errors
    /// What is wrong with it, in words that do not repeat it: it may have a password.
    pub(in crate::storage::kafka) fn read(url: &Secret) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(url.expose()).map_err(|_| NOT_ONE)?;
        let (scheme, rest) = text.split_once("://").ok_or(NOT_ONE)?;
        match scheme.split_once('+') {
            None => text.into_connection_info().map(Self::Server).map_err(|_| NOT_ONE),
            Some((single @ ("redis" | "rediss"), "sentinel")) => Several::of(single, rest)?.sentinels(),
            Some((single @ ("redis" | "rediss"), "cluster")) => Several::of(single, rest)?.cluster(),
            Some(_) => Err(NOT_ONE),
        }
    }

    /// For people: no user, no password.
    pub(in crate::storage::kafka) fn shown(&self) -> String {
        let list = |nodes: &[ConnectionInfo]| {
            nodes.iter().map(|node| node.addr().to_string()).collect::<Vec<_>>().join(", ")
        };
        match self {
            Self::Server(server) => server.addr().to_string(),
            Self::Sentinels { nodes, master, .. } => format!("{master} of the Sentinels {}", list(nodes)),
            Self::Cluster(nodes) => format!("the cluster of {}", list(nodes)),
        }
    }

    /// Whether the URL is a secret.
    pub(in crate::storage::kafka) fn has_password(&self) -> bool {
        let has_one = |node: &ConnectionInfo| node.redis_settings().password().is_some();
        match self {
            Self::Server(server) => has_one(server),
            Self::Sentinels { nodes, server, .. } => has_one(server) || nodes.iter().any(has_one),
            Self::Cluster(nodes) => nodes.iter().any(has_one),
        }
    }

    /// Opens a connection. Whoever asks bounds the time; dropped half-way it leaves nothing.
    pub(super) async fn connect(&self) -> RedisResult<Connection> {
        match self {
            Self::Server(server) => open(Client::open(server.clone())?).await,
            Self::Sentinels { nodes, master, server } => {
                let mut there = SentinelNodeConnectionInfo::default()
                    .set_redis_connection_info(server.redis_settings().clone());
                if let Some(mode) = tls_mode(server) {
                    there = there.set_tls_mode(mode);
                }
                let kind = SentinelServerType::Master;
                let mut sentinels = SentinelClient::build(nodes.clone(), master, Some(there), kind)?;
                open(sentinels.async_get_client().await?).await
            }
            Self::Cluster(nodes) => {
                let (wait_min, wait_max) = REDIRECT_WAIT_MS;
                let client = ClusterClient::builder(nodes.clone())
                    .connection_timeout(STEP_WITHIN)
                    .response_timeout(STEP_WITHIN)
                    .retries(REDIRECTS_MAX)
                    .min_retry_wait(wait_min)
                    .max_retry_wait(wait_max)
                    .build()?;
                client.get_async_connection().await.map(Connection::Cluster)
            }
        }
    }
}

async fn open(client: Client) -> RedisResult<Connection> {
    // Whoever asks bounds the time: a second timer per batch would say the same.
    let config =
        AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(Some(STEP_WITHIN));
    client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::Server)
}

fn tls_mode(node: &ConnectionInfo) -> Option<TlsMode> {
    match node.addr() {
        redis::ConnectionAddr::TcpTls { insecure: false, .. } => Some(TlsMode::Secure),
        redis::ConnectionAddr::TcpTls { insecure: true, .. } => Some(TlsMode::Insecure),
        _ => None,
    }
}

/// The parts of a URL with several hosts.
struct Several<'a> {
    /// `redis` or `rediss`.
    scheme: &'a str,
    user: &'a str,
    hosts: Vec<&'a str>,
    path: Vec<&'a str>,
    query: &'a str,
    /// `#insecure`: any certificate, as with a single server.
    fragment: Option<&'a str>,
}

impl<'a> Several<'a> {
    fn of(scheme: &'a str, rest: &'a str) -> Result<Self, &'static str> {
        let (rest, fragment) = rest.split_once('#').map_or((rest, None), |(rest, end)| (rest, Some(end)));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let hosts: Vec<&str> = hosts.split(',').collect();
        if hosts.iter().any(|host| host.is_empty()) {
            return Err(NOT_ONE);
        }
        let path = path.split('/').filter(|part| !part.is_empty()).collect();
        Ok(Self { scheme, user, hosts, path, query, fragment })
    }

    /// One host as the URL of a single server.
    fn node(
        &self,
        user: &str,
        host: &str,
        port: u16,
        database: &str,
    ) -> Result<ConnectionInfo, &'static str> {
        let mut url = format!("{}://", self.scheme);
        let at = if user.is_empty() { "" } else { "@" };
        // An IPv6 address has its colons in brackets.
        let has_port = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
        let port = if has_port { String::new() } else { format!(":{port}") };
        let _ = write!(url, "{user}{at}{host}{port}/{database}");
        if let Some(fragment) = self.fragment {
            let _ = write!(url, "#{fragment}");
        }
        url.into_connection_info().map_err(|_| NOT_ONE)
    }

    fn sentinels(&self) -> Result<Address, &'static str> {
        let (master, database) = match self.path[..] {
            [master] => (master, "0"),
            [master, database] => (master, database),
            _ => {
                return Err(
                    "Sentinels are asked for a master by its name: redis+sentinel://host1,host2/mymaster",
                );
            }
        };
        let (mut name, mut password) = ("", None);
        for pair in self.query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sentinel_username", value)) => name = value,
                Some(("sentinel_password", value)) => password = Some(value),
                _ => {
                    return Err(
                        "behind Sentinels only ?sentinel_username=…&sentinel_password=… mean something",
                    );
                }
            }
        }
        let user = password.map_or_else(|| name.to_owned(), |password| format!("{name}:{password}"));
        let nodes = self.hosts.iter().map(|host| self.node(&user, host, SENTINEL_PORT, "0"));
        Ok(Address::Sentinels {
            nodes: nodes.collect::<Result<_, _>>()?,
            master: master.to_owned(),
            // Its host is what the Sentinels will say.
            server: self.node(self.user, self.hosts[0], SERVER_PORT, database)?,
        })
    }

    fn cluster(&self) -> Result<Address, &'static str> {
        if !matches!(self.path[..], [] | ["0"]) {
            return Err("a Redis cluster has one database, 0");
        }
        if !self.query.is_empty() {
            return Err("behind the nodes of a cluster no ?… means anything");
        }
        let nodes = self.hosts.iter().map(|host| self.node(self.user, host, SERVER_PORT, "0"));
        nodes.collect::<Result<_, _>>().map(Address::Cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<(String, bool), &'static str> {
        Address::read(&Secret::new(url.to_owned())).map(|address| (address.shown(), address.has_password()))
    }

    #[test]
    fn one_server_sentinels_and_a_cluster_are_told_apart() {
        for (url, shown, has_password) in [
            ("redis://10.0.0.7:6380/2", "10.0.0.7:6380", false),
            ("rediss://default:hunter2@cache.example/0", "cache.example:6379", true),
            ("redis+sentinel://a,b:5000/mymaster", "mymaster of the Sentinels a:26379, b:5000", false),
            ("redis+sentinel://u:p@a/m/3", "m of the Sentinels a:26379", true),
            ("redis+sentinel://a/m?sentinel_password=p", "m of the Sentinels a:26379", true),
            ("redis+cluster://a:7000,b", "the cluster of a:7000, b:6379", false),
            ("rediss+cluster://:p%40ss@[::1]:7000,[::2]/0", "the cluster of ::1:7000, ::2:6379", true),
        ] {
            assert_eq!(read(url), Ok((shown.to_owned(), has_password)), "{url}");
        }
    }

    #[test]
    fn users_passwords_and_databases_go_where_they_belong() {
        let url = "rediss+sentinel://u:p%40@s1,s2/m/5?sentinel_username=su&sentinel_password=s%3Ap";
        let Ok(Address::Sentinels { nodes, master, server }) = Address::read(&Secret::new(url.to_owned()))
        else {
            panic!("these are Sentinels")
        };
        assert_eq!(master, "m");
        let server_settings = server.redis_settings();
        assert_eq!((server_settings.username(), server_settings.password()), (Some("u"), Some("p@")));
        assert_eq!(server_settings.db(), 5);
        assert!(tls_mode(&server).is_some_and(|mode| matches!(mode, TlsMode::Secure)));
        for node in &nodes {
            let settings = node.redis_settings();
            assert_eq!((settings.username(), settings.password()), (Some("su"), Some("s:p")));
            assert!(tls_mode(node).is_some());
        }
        assert_eq!(nodes.len(), 2);
    }

    #[test]
    fn what_is_no_address_is_refused_without_repeating_it() {
        for url in [
            "",
            "cache:6379",
            "http://cache:6379",
            "redis+sentinel://a:26379",
            "redis+sentinel://a/m/0/more",
            "redis+sentinel://a/m/zero",
            "redis+sentinel://a,,b/m",
            "redis+sentinel:///m",
            "redis+sentinel://a/m?password=hunter2",
            "redis+cluster://a/1",
            "redis+cluster://:hunter2@a:port",
            "redis+ring://a",
            "http+cluster://a",
        ] {
            let why = read(url).expect_err(url);
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
