//! What an operator writes, looked at before anything connects.

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use crate::secret::Secret;

/// Whether the client takes a setting. Nothing is opened.
///
/// # Errors
/// What is wrong with it, in words that do not repeat the value: it may be a password.
pub fn check_setting(name: &str, value: &str) -> Result<(), &'static str> {
    let mut config = ClientConfig::new();
    config.set(name, value);
    match config.create_native_config() {
        Ok(_) => Ok(()),
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Err("the Kafka client knows no such setting")
        }
        Err(_) => Err("the Kafka client does not take this value"),
    }
}

/// Where a Redis URL points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisAddress {
    /// Host and port, or the path of a socket; for people.
    pub shown: String,
    /// Whether the URL is a secret.
    pub has_password: bool,
}

/// Reads a Redis URL. Nothing is opened.
///
/// # Errors
/// When it is none; the words do not repeat it.
pub fn redis_address(url: &Secret) -> Result<RedisAddress, &'static str> {
    let not_one = "not the URL of a Redis server";
    let text = std::str::from_utf8(url.expose()).map_err(|_| not_one)?;
    let client = redis::Client::open(text).map_err(|_| not_one)?;
    let info = client.get_connection_info();
    Ok(RedisAddress {
        shown: info.addr().to_string(),
        has_password: info.redis_settings().password().is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_known_or_not_and_passwords_are_not_repeated() {
        assert_eq!(check_setting("security.protocol", "sasl_ssl"), Ok(()));
        assert_eq!(check_setting("sasl.mechanism", "SCRAM-SHA-512"), Ok(()));
        assert!(check_setting("security.protocoll", "ssl").unwrap_err().contains("no such"));
        assert!(!check_setting("security.protocol", "hunter2").unwrap_err().contains("hunter2"));
    }

    #[test]
    fn a_redis_url_tells_where_it_leads_and_whether_it_is_a_secret() {
        let address = |url: &str| redis_address(&Secret::new(url.to_owned()));
        let plain = address("redis://10.0.0.7:6380/2").unwrap();
        assert_eq!((plain.shown.as_str(), plain.has_password), ("10.0.0.7:6380", false));
        let secret = address("rediss://default:hunter2@cache.example/0").unwrap();
        assert!(secret.has_password && !secret.shown.contains("hunter2"), "{secret:?}");
        for wrong in ["", "cache:6379", "http://cache:6379"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
