//! The Redis servers as they stand: for an operator's question, never on an event's way.

use std::collections::HashMap;
use std::sync::Arc;

use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use redis::{FromRedisValue, RedisError, RedisResult, Value};

use super::address::{Address, Connection};
use super::batch::{RELEASE, keys_of};
use crate::clock::Clock;
use crate::storage::StorageError;
use crate::storage::kafka::Redis;

/// What a Redis server says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RedisState {
    /// Where it is, for people.
    pub address: String,
    /// Its version, such as `7.0.15`.
    pub version: String,
    /// Why it cannot be asked for ids the way its URL says; empty when it can.
    pub misplaced: &'static str,
    /// What it does when its memory is full, such as `noeviction`.
    pub policy: String,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes it may use; none: no bound of its own.
    pub bytes_max: Option<u64>,
    /// Seconds by which its clock is ahead of ours.
    pub clock_ahead: f64,
}

/// Asks Redis how it stands: the server, the master that the Sentinels name, or every master of a cluster. Connects on its
/// own; whoever asks bounds the time.
///
/// # Errors
/// When it does not answer, or does not let this user ask.
pub async fn redis_state(settings: &Redis) -> Result<Vec<RedisState>, StorageError> {
    let address = Address::of(settings)?;
    let doing = "asking redis how it stands";
    let failed = |error: RedisError| StorageError::Engine { doing, cause: Arc::new(error) };
    ask(&address).await.map_err(failed)
}

/// What Redis refuses this user of all that deduplication does, in its own words; nothing if it does all.
/// Nothing is changed by asking: the key is never there. Connects on its own; whoever asks bounds the time.
///
/// # Errors
/// When it does not answer.
pub async fn redis_refusal(settings: &Redis, topic_prefix: &str) -> Result<Option<String>, StorageError> {
    let address = Address::of(settings)?;
    let failed = |error: RedisError| StorageError::Engine {
        doing: "asking redis what it allows",
        cause: Arc::new(error),
    };
    let mut connection = address.connect().await.map_err(failed)?;
    let key = format!("{}doctor", keys_of(topic_prefix));
    let mut set = redis::cmd("SET");
    set.arg(&key).arg("").arg("XX").arg("GET").arg("PX").arg(1);
    let mut release = redis::cmd("EVAL");
    release.arg(RELEASE).arg(1).arg(&key).arg("");
    let mut delete = redis::cmd("DEL");
    delete.arg(&key);
    for command in [set, release, delete] {
        let answer: RedisResult<Value> = match &mut connection {
            Connection::Server(server) => command.query_async(server).await,
            Connection::Cluster(cluster) => command.query_async(cluster).await,
        };
        match answer {
            Ok(_) => {}
            Err(error) if error.code().is_some() => return Ok(Some(error.to_string())),
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(None)
}

async fn ask(address: &Address) -> RedisResult<Vec<RedisState>> {
    let now = || Clock::system().now().as_duration().as_secs_f64();
    let mut connection = address.connect().await?;
    let before = now();
    let times: HashMap<String, (f64, f64)> = everywhere(&mut connection, "TIME").await?;
    let between = f64::midpoint(before, now());
    let infos: HashMap<String, String> = everywhere(&mut connection, "INFO").await?;
    let state = |(place, info): (String, String)| {
        let ahead = times.get(&place).map(|(seconds, micros)| seconds + micros / 1e6 - between);
        let place = if place.is_empty() { address.shown() } else { place };
        RedisState { address: place, clock_ahead: ahead.unwrap_or_default(), ..read(&info, address) }
    };
    let mut states: Vec<_> = infos.into_iter().map(state).collect();
    states.sort_by(|one, other| one.address.cmp(&other.address));
    Ok(states)
}

/// An answer of each master, under its address; of a single server under none.
async fn everywhere<T: FromRedisValue>(
    connection: &mut Connection,
    command: &str,
) -> RedisResult<HashMap<String, T>> {
    let command = redis::cmd(command);
    match connection {
        Connection::Server(server) => {
            Ok(HashMap::from([(String::new(), command.query_async(server).await?)]))
        }
        Connection::Cluster(cluster) => {
            let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
            Ok(redis::from_redis_value(cluster.route_command(command, masters).await?)?)
        }
    }
}

/// The answer to `INFO`: lines of `name:value`.
fn read(info: &str, address: &Address) -> RedisState {
    let value = |name: &str| {
        info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim()
    };
    let bytes = |name| value(name).parse::<u64>().unwrap_or_default();
    let misplaced = match (address, value("redis_mode"), value("role")) {
        (Address::Server(_), "cluster", _) => "a node of a cluster: write redis+cluster://",
        (Address::Server(_), "sentinel", _) => "a Sentinel: write redis+sentinel://",
        (Address::Server(_), _, "slave") => "a replica, which takes no writes",
        _ => "",
    };
    RedisState {
        address: String::new(),
        version: value("redis_version").to_owned(),
        misplaced,
        policy: value("maxmemory_policy").to_owned(),
        used_bytes: bytes("used_memory"),
        bytes_max: Some(bytes("maxmemory")).filter(|bytes| *bytes > 0),
        clock_ahead: 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    #[test]
    fn what_redis_says_is_read() {
        let address = |url: &str| Address::read(&Secret::new(url.to_owned())).unwrap();
        let single = address("redis://cache");
        let info = "# Server\r\nredis_version:7.0.15\r\n# Memory\r\nused_memory:1024\r\nused_memory_human:1K\r\n\
                    maxmemory:0\r\nmaxmemory_policy:noeviction\r\n";
        let state = read(info, &single);
        assert_eq!((&*state.version, &*state.policy), ("7.0.15", "noeviction"));
        assert_eq!((state.used_bytes, state.bytes_max), (1024, None));
        assert_eq!(read("maxmemory:5\n", &single).bytes_max, Some(5));
        assert_eq!(read("-NOPERM", &single), RedisState::default());
        for (said, told) in [
            ("redis_mode:cluster\nrole:master\n", "redis+cluster://"),
            ("redis_mode:sentinel\n", "redis+sentinel://"),
            ("redis_mode:standalone\nrole:slave\n", "replica"),
        ] {
            assert!(read(said, &single).misplaced.contains(told), "{said}");
        }
        assert_eq!(read("redis_mode:cluster\n", &address("redis+cluster://cache")).misplaced, "");
    }
}
