//! A topic as any Kafka client sees it: what stands in it, and what it costs to add to it. Nothing of chaski's.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};

use crate::load::Seen;
use crate::tally::Tally;

/// How long one answer of the brokers may take.
const ANSWER: Duration = Duration::from_secs(30);

/// Reads the values of all records that stand there now.
pub(crate) fn read(brokers: &[String], topic: &str) -> anyhow::Result<Tally> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers.join(","))
        .set("group.id", "bench-reader")
        .set("enable.auto.commit", "false")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER)?;
    let partitions = metadata.topics().first().context("the topic is there")?.partitions();
    let (mut all, mut expected) = (TopicPartitionList::new(), 0);
    for partition in partitions {
        let (first, end) = consumer.fetch_watermarks(topic, partition.id(), ANSWER)?;
        all.add_partition_offset(topic, partition.id(), Offset::Offset(first))?;
        expected += u64::try_from(end - first)?;
    }
    consumer.assign(&all)?;
    let mut stored = Tally::default();
    while stored.count < expected {
        let record = consumer.poll(ANSWER);
        let record =
            record.with_context(|| format!("{} of {expected} records were read", stored.count))??;
        stored.add(record.payload().unwrap_or_default());
    }
    Ok(stored)
}

/// Tells whether a record was acknowledged.
struct Reports(mpsc::Sender<bool>);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): Self::DeliveryOpaque) {
        // Whoever has gone does not want to know.
        let _ = self.0.send(result.is_ok());
    }
}

/// Adds records one after the other, each when the last is acknowledged by all replicas.
pub(crate) fn produce(
    brokers: &[String],
    topic: &str,
    records: usize,
    record_bytes: usize,
) -> anyhow::Result<Seen> {
    let (tell, reports) = mpsc::channel();
    let producer: ThreadedProducer<Reports> = ClientConfig::new()
        .set("bootstrap.servers", brokers.join(","))
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "0")
        .create_with_context(Reports(tell))?;
    let value = vec![0x5a; record_bytes];
    let all = Instant::now();
    let mut times_us = Vec::with_capacity(records);
    // The first one finds the brokers and is not counted.
    for number in 0..=records {
        let (begun, key) = (Instant::now(), number.to_string());
        let record = BaseRecord::to(topic).key(&key).payload(&value);
        producer.send(record).map_err(|(error, _)| error)?;
        ensure!(reports.recv_timeout(ANSWER)?, "a record was not acknowledged");
        if number > 0 {
            times_us.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
    }
    producer.flush(ANSWER)?;
    Ok(Seen::new(all.elapsed(), times_us))
}
