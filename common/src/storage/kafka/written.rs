//! What an operator writes, looked at before anything connects.

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use super::dedup::address::Address;
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
    /// Hosts and ports, or the path of a socket; for people.
    pub shown: String,
    /// Whether the URL is a secret.
    pub has_password: bool,
}

/// Reads a Redis URL: of a server, of Sentinels or of a cluster. Nothing is opened.
///
/// # Errors
/// What is wrong with it; the words do not repeat it.
pub fn redis_address(url: &Secret) -> Result<RedisAddress, &'static str> {
    let address = Address::read(url)?;
    Ok(RedisAddress { shown: address.shown(), has_password: address.has_password() })
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
}
