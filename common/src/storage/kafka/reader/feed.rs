//! Feeds one partition to its track, as fast as it is taken and not faster.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::message::Message as _;
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Membership, report_missing};
use crate::storage::kafka::client::failed;
use crate::storage::kafka::record::read_record;
use crate::storage::{BatchLimit, Cursor, READ_RETRY, Record, StorageError};

/// A look from time to time, should a wake-up be lost.
const LOOK_ANYWAY: Duration = Duration::from_secs(1);

pub(super) struct Feed {
    pub(super) queue: PartitionQueue<Membership>,
    pub(super) topic: Arc<str>,
    pub(super) cursor: Cursor,
    /// Counts what was deleted before it could be read.
    pub(super) lost: IntCounter,
    pub(super) stop: CancellationToken,
    pub(super) limit: BatchLimit,
    /// The place of the last record to read.
    pub(super) until: Option<u64>,
    /// The offset to read next.
    pub(super) next: u64,
    pub(super) batches: mpsc::Sender<Result<Vec<Record>, StorageError>>,
}

impl Feed {
    /// Runs until the reader is gone, the partition is lost or the end is reached.
    pub(super) async fn run(mut self) {
        let news = Arc::new(Notify::new());
        let wake = Arc::clone(&news);
        self.queue.set_nonempty_callback(move || wake.notify_one());
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.feed(&news) => {}
        }
    }

    async fn feed(&mut self, news: &Notify) {
        let batches = self.batches.clone();
        while self.until.is_none_or(|until| self.next < until) {
            let Ok(place) = batches.clone().reserve_owned().await else { return };
            match self.batch() {
                Ok(records) if records.is_empty() => {
                    tokio::select! {
                        () = batches.closed() => return,
                        () = news.notified() => {}
                        () = sleep(LOOK_ANYWAY) => {}
                    }
                }
                Ok(records) => {
                    place.send(Ok(records));
                }
                Err(error) => {
                    place.send(Err(error));
                    sleep(READ_RETRY).await;
                }
            }
        }
    }

    /// What is there, within the limit; never waits.
    fn batch(&mut self) -> Result<Vec<Record>, StorageError> {
        let mut records = Vec::new();
        let mut bytes = 0;
        while records.len() < self.limit.records.max(1)
            && (records.is_empty() || bytes < self.limit.bytes)
            && self.until.is_none_or(|until| self.next < until)
        {
            let message = match self.queue.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => message,
                // What there is goes first; the error comes again.
                Some(Err(_)) if !records.is_empty() => break,
                Some(Err(error)) => return Err(failed("reading the log", error)),
            };
            let offset = message.offset().unsigned_abs();
            if offset < self.next {
                continue;
            }
            // Every offset of the log is an event's.
            if offset > self.next {
                report_missing(
                    &self.cursor,
                    message.partition().unsigned_abs(),
                    offset - self.next,
                    &self.lost,
                );
            }
            self.next = offset + 1;
            match read_record(&message) {
                Ok(record) => {
                    bytes += record.event.weight_bytes();
                    records.push(record);
                }
                Err(error) => {
                    tracing::error!(%error, topic = %self.topic, offset, "a record that is none of ours is passed over");
                }
            }
        }
        Ok(records)
    }
}
