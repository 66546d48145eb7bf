//! How the clients of the Kafka storage are set up, and what their errors mean at the seam.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, ProducerContext};

use super::Options;
use crate::storage::StorageError;

/// How long a question to the brokers may take.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Largest record, with its headers: the largest body, its history, and room.
pub(super) const RECORD_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Largest body of an event: a record has room for it beside its headers and, once it is parked or dead, the longest
/// history.
pub const BODY_BYTES_MAX: usize = RECORD_BYTES_MAX - 128 * 1024;

/// Settings that the promises rest on: they are ours, whatever an operator writes.
const OURS: &[(&str, &str)] = &[
    ("client.id", "chaski"),
    ("allow.auto.create.topics", "false"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // Every reading begins at an offset of ours. Should the brokers have deleted what stands there, the oldest
    // record they have is next, and a reader sees by its offset what is missing.
    ("auto.offset.reset", "earliest"),
    ("isolation.level", "read_committed"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("group.protocol", "classic"),
    // A partition that goes to another member is kept until what is under way in it has ended.
    ("max.poll.interval.ms", "300000"),
    // Per partition: enough to keep a lane busy, and no more.
    ("queued.min.messages", "500"),
    ("queued.max.messages.kbytes", "2048"),
    ("fetch.message.max.bytes", "1048576"),
    // A queue that is full is looked at again this soon: with the client's default, a second, a backlog would be read at
    // one fetch a second.
    ("fetch.queue.backoff.ms", "10"),
    ("fetch.wait.max.ms", "100"),
    ("fetch.error.backoff.ms", "100"),
    // Partitions that the topic gains are read this soon.
    ("topic.metadata.refresh.interval.ms", "30000"),
];
const PRODUCERS: &[(&str, &str)] = &[
    ("client.id", "chaski"),
    ("allow.auto.create.topics", "false"),
    ("enable.idempotence", "true"),
    ("acks", "all"),
    // Our own deadline says when to give up; a report that comes late still tells what became of the record.
    ("delivery.timeout.ms", "120000"),
    // The partition that every other Kafka client would choose for the key.
    ("partitioner", "murmur2_random"),
    ("queue.buffering.max.messages", "100000"),
    ("queue.buffering.max.kbytes", "262144"),
    // How often it is counted which brokers are connected.
    ("statistics.interval.ms", "5000"),
];

/// How long the producer gathers, in milliseconds, unless the operator says otherwise. A record that comes alone waits a
/// millisecond with less, too: that is what the client rounds its waits to.
const LINGER: (&str, &str) = ("linger.ms", "1");
/// Makes a process a static member of its groups: an operator's choice, see the module `kafka`.
const INSTANCE: &str = "group.instance.id";

/// Whether a setting is not the operator's to make.
#[must_use]
pub fn is_reserved(setting: &str) -> bool {
    let aliases = [
        "bootstrap.servers",
        "metadata.broker.list",
        "group.id",
        "request.required.acks",
        "message.timeout.ms",
        "delivery.report.only.error",
        "transactional.id",
        "retries",
        "message.send.max.retries",
        "max.in.flight",
        "max.in.flight.requests.per.connection",
        "offset.store.method",
        "message.max.bytes",
        "enable.partition.eof",
        "check.crcs",
    ];
    aliases.contains(&setting) || OURS.iter().chain(PRODUCERS).any(|(name, _)| *name == setting)
}

/// Makes clients for one cluster.
#[derive(Clone)]
pub(super) struct Connect {
    base: ClientConfig,
}

impl Connect {
    pub(super) fn new(options: &Options) -> Self {
        let mut base = ClientConfig::new();
        for (name, value) in &options.settings {
            base.set(name, value);
        }
        base.set("bootstrap.servers", options.brokers.join(","));
        base.set("message.max.bytes", RECORD_BYTES_MAX.to_string());
        base.set_log_level(RDKafkaLogLevel::Warning);
        Self { base }
    }

    /// A client that only administers.
    pub(super) fn base(&self) -> &ClientConfig {
        &self.base
    }

    pub(super) fn producer<C>(&self, context: C) -> Result<BaseProducer<C>, StorageError>
    where
        C: ProducerContext + 'static,
    {
        let mut config = self.base.clone();
        config.remove(INSTANCE);
        for (name, value) in PRODUCERS {
            config.set(*name, *value);
        }
        if config.get(LINGER.0).is_none() {
            config.set(LINGER.0, LINGER.1);
        }
        BaseProducer::from_config_and_context(&config, context)
            .map_err(|error| failed("making a producer", error))
    }

    /// A client that joins its group.
    pub(super) fn member<C>(&self, group: &str, context: C) -> Result<BaseConsumer<C>, StorageError>
    where
        C: ConsumerContext,
    {
        Self::consume(self.base.clone(), group, false, context)
    }

    /// A client that reads or asks outside of any group; `group` names it, and is whose progress it asks for.
    /// `eof`: whether the end of a partition is reported.
    pub(super) fn consumer<C>(
        &self,
        group: &str,
        eof: bool,
        context: C,
    ) -> Result<BaseConsumer<C>, StorageError>
    where
        C: ConsumerContext,
    {
        let mut config = self.base.clone();
        config.remove(INSTANCE);
        Self::consume(config, group, eof, context)
    }

    fn consume<C>(
        mut config: ClientConfig,
        group: &str,
        eof: bool,
        context: C,
    ) -> Result<BaseConsumer<C>, StorageError>
    where
        C: ConsumerContext,
    {
        config.remove(LINGER.0);
        for (name, value) in OURS {
            config.set(*name, *value);
        }
        config.set("group.id", group).set("enable.partition.eof", eof.to_string());
        BaseConsumer::from_config_and_context(&config, context)
            .map_err(|error| failed("making a consumer", error))
    }
}

/// An error of the client, as the seam reports it.
pub(super) fn failed(doing: &'static str, error: KafkaError) -> StorageError {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::QueueFull) => StorageError::Busy,
        _ => StorageError::Engine { doing, cause: Arc::new(error) },
    }
}

/// What librdkafka says goes to our log; it speaks for the connection, never for an event.
pub(super) struct Spoken;

impl ClientContext for Spoken {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Who asked for the end of a partition to be told hears of it elsewhere.
        if !matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::PartitionEOF)) {
            tracing::warn!(%error, reason, "kafka client");
        }
    }
}

impl ConsumerContext for Spoken {}

pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error => {
            tracing::warn!(facility, message, "librdkafka");
        }
        _ => tracing::debug!(facility, message, "librdkafka"),
    }
}
