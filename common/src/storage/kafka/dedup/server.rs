//! The Redis server as it stands: for an operator's question, never on an event's way.

use std::sync::Arc;

use redis::{Client, RedisError};

use crate::clock::Clock;
use crate::storage::StorageError;
use crate::storage::kafka::Redis;

/// What a Redis server says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RedisState {
    /// Its version, such as `7.0.15`.
    pub version: String,
    /// What it does when its memory is full, such as `noeviction`.
    pub policy: String,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes it may use; none: no bound of its own.
    pub bytes_max: Option<u64>,
    /// Seconds by which its clock is ahead of ours.
    pub clock_ahead: f64,
}

/// Asks a Redis server how it stands. Connects on its own; whoever asks bounds the time.
///
/// # Errors
/// When it does not answer, or does not let this user ask.
pub async fn redis_state(settings: &Redis) -> Result<RedisState, StorageError> {
    let doing = "asking redis how it stands";
    let failed = |error: RedisError| StorageError::Engine { doing, source: Arc::new(error) };
    let url = std::str::from_utf8(settings.url.expose()).unwrap_or_default();
    let client = Client::open(url).map_err(failed)?;
    let mut connection = client.get_multiplexed_async_connection().await.map_err(failed)?;
    let clock = Clock::system();
    let before = clock.now();
    let (seconds, micros): (f64, f64) =
        redis::cmd("TIME").query_async(&mut connection).await.map_err(failed)?;
    let between = (before.as_duration().as_secs_f64() + clock.now().as_duration().as_secs_f64()) / 2.0;
    let info: String = redis::cmd("INFO").query_async(&mut connection).await.map_err(failed)?;
    Ok(RedisState { clock_ahead: seconds + micros / 1e6 - between, ..read(&info) })
}

/// The answer to `INFO`: lines of `name:value`.
fn read(info: &str) -> RedisState {
    let value = |name: &str| {
        info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim()
    };
    let bytes = |name| value(name).parse::<u64>().unwrap_or_default();
    RedisState {
        version: value("redis_version").to_owned(),
        policy: value("maxmemory_policy").to_owned(),
        used_bytes: bytes("used_memory"),
        bytes_max: Some(bytes("maxmemory")).filter(|bytes| *bytes > 0),
        clock_ahead: 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_says_is_read() {
        let info = "# Server\r\nredis_version:7.0.15\r\n# Memory\r\nused_memory:1024\r\nused_memory_human:1K\r\n\
                    maxmemory:0\r\nmaxmemory_policy:noeviction\r\n";
        let state = read(info);
        assert_eq!((&*state.version, &*state.policy), ("7.0.15", "noeviction"));
        assert_eq!((state.used_bytes, state.bytes_max), (1024, None));
        assert_eq!(read("maxmemory:5\n").bytes_max, Some(5));
        assert_eq!(read("-NOPERM"), RedisState::default());
    }
}
