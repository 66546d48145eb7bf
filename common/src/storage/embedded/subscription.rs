//! Feeds one reader with batches, as fast as it takes them and not faster.

use std::ops::ControlFlow;

use rusqlite::Connection;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::log;
use crate::storage::tables::readers::Readers;
use crate::storage::{BatchLimit, Position, READ_RETRY, Record, StorageError};

pub(super) struct Feed {
    pub(super) readers: Readers,
    pub(super) head: watch::Receiver<Position>,
    pub(super) closing: CancellationToken,
    pub(super) limit: BatchLimit,
    pub(super) until: Option<Position>,
    pub(super) at: Position,
    pub(super) batches: mpsc::Sender<Result<Vec<Record>, StorageError>>,
}

impl Feed {
    /// Runs until the reader is gone, the store closes or the end is reached.
    pub(super) async fn run(mut self) {
        let closing = self.closing.clone();
        tokio::select! {
            () = closing.cancelled() => {}
            () = self.feed() => {}
        }
    }

    async fn feed(&mut self) {
        loop {
            // A place first: what is read is then as fresh as can be, and one batch at most waits.
            let Ok(place) = self.batches.clone().reserve_owned().await else { return };
            let end = self.until.unwrap_or(Position(u64::MAX));
            if self.at >= end {
                return;
            }
            let at = self.at;
            let reader = self.batches.clone();
            let head = tokio::select! {
                () = reader.closed() => return,
                head = self.head.wait_for(|head| *head > at) => match head {
                    Ok(head) => *head,
                    Err(_) => return,
                },
            };
            let limit = self.limit;
            match self
                .readers
                .read("reading the log", move |connection| batch(connection, at, end, limit))
                .await
            {
                // Behind the last event of a replay's span there may be none left.
                Ok(records) if records.is_empty() => {
                    if self.until.is_some() {
                        return;
                    }
                    // What was durable before this read is not there any more; later events are another read's.
                    self.at = head;
                }
                Ok(records) => {
                    self.at = records.last().map_or(at, |record| record.position);
                    place.send(Ok(records));
                }
                Err(StorageError::Closed) => return,
                Err(error) => {
                    place.send(Err(error));
                    tokio::time::sleep(READ_RETRY).await;
                }
            }
        }
    }
}

fn batch(
    connection: &Connection,
    after: Position,
    end: Position,
    limit: BatchLimit,
) -> rusqlite::Result<Vec<Record>> {
    let mut records: Vec<Record> = Vec::with_capacity(limit.records.min(256));
    let mut bytes = 0;
    log::read(connection, after, |position, kept| {
        if position > end {
            return Ok(ControlFlow::Break(()));
        }
        let event = kept.event(records.last().map(|record| &record.event))?;
        bytes += event.weight_bytes();
        records.push(Record { position, event });
        let is_enough = records.len() >= limit.records || bytes >= limit.bytes;
        Ok(if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(records)
}
