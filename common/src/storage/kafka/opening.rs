//! What can only be had from the brokers, and how it is come by.
//!
//! Opening checks the topics, reads what is parked and dead and the ids at the end of the log, and writes a first
//! record. With a spool it does not hold up the start when the brokers cannot be reached: it goes on in
//! the background, without end and with growing pauses, while events go to the spool; whatever else is asked
//! meanwhile is answered [`StorageError::Away`].

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::sync::oneshot;

use super::controls::DestinationControl;
use super::dedup::Dedup;
use super::dedup::recent::GENERATION_MAX;
use super::query::{Extent, OPENING_WITHIN, Query, SEARCH_WITHIN};
use super::record::{ControlKey, Outgoing};
use super::topics::{answers, plan};
use super::view::{DEAD, PARKED, View};
use super::{Kafka, Options};
use crate::storage::{Position, StorageError};

/// How long brokers that may be away hold up a start that can do without them.
const REACH_WITHIN: Duration = Duration::from_secs(5);
/// How long brokers that answer hold it up: reading the ids takes its time.
const OPEN_WITHIN: Duration = Duration::from_secs(60);
/// How long the first write may take.
const PROBE_WITHIN: Duration = Duration::from_secs(30);
/// Pauses between two tries in the background.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LAST: Duration = Duration::from_secs(10);

/// The part of the storage that needs brokers to come into being.
pub(super) struct Opened {
    pub(super) query: Query,
    /// For what may take long, so that it holds up no other question.
    pub(super) search: Query,
    pub(super) view: View,
}

impl Opened {
    /// Ends the clients and the thread. Blocks.
    pub(super) fn close(&self) {
        self.view.close();
        self.query.close();
        self.search.close();
    }
}

/// Opens, and returns when that is done, has failed, or need not be waited for any longer because there is a spool.
pub(super) async fn open(kafka: &Arc<Kafka>, options: Options) -> Result<(), StorageError> {
    if kafka.spool.is_none() {
        return kafka.reach(&options).await;
    }
    let (tell, first) = oneshot::channel();
    kafka.tasks.spawn(Arc::clone(kafka).keep_opening(options, tell));
    match tokio::time::timeout(OPEN_WITHIN, first).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error @ StorageError::Unfit { .. }))) => Err(error),
        _ => {
            tracing::warn!("the brokers cannot be reached: events go to the spool, nothing is delivered");
            Ok(())
        }
    }
}

impl Kafka {
    /// Tries until it is done or the storage closes; tells how the first try ended.
    async fn keep_opening(
        self: Arc<Self>,
        options: Options,
        tell: oneshot::Sender<Result<(), StorageError>>,
    ) {
        let mut tell = Some(tell);
        let mut pauses = ExponentialBuilder::new()
            .with_min_delay(RETRY_FIRST)
            .with_max_delay(RETRY_LAST)
            .with_jitter()
            .without_max_times()
            .build();
        loop {
            let reached = tokio::select! {
                () = self.closing.cancelled() => return,
                reached = self.reach_if_any(&options) => reached,
            };
            match &reached {
                Ok(()) if tell.is_none() => tracing::info!("the brokers are reached"),
                Ok(()) => {}
                // Somebody has to do something; said anew with every try, for as long as it lasts.
                Err(error @ StorageError::Unfit { .. }) => {
                    tracing::error!(%error, "the brokers answer and cannot be used; events stay in the spool");
                }
                Err(error) => tracing::debug!(%error, "the brokers cannot be used yet; trying on"),
            }
            let done = reached.is_ok();
            if let Some(tell) = tell.take() {
                let _ = tell.send(reached);
            }
            if done {
                return;
            }
            let pause = pauses.next().unwrap_or(RETRY_LAST);
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Whether there is anybody to ask is found out first, and quickly.
    async fn reach_if_any(self: &Arc<Self>, options: &Options) -> Result<(), StorageError> {
        if answers(options, REACH_WITHIN).await { self.reach(options).await } else { Err(StorageError::Away) }
    }

    /// Goes the whole way once.
    async fn reach(self: &Arc<Self>, options: &Options) -> Result<(), StorageError> {
        let steps = plan(options).await?;
        if !steps.is_empty() {
            let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
            return Err(StorageError::Unfit { what: steps.join("; ") });
        }
        let topics = &self.topics;
        let client = |within| {
            Query::new(&self.connect, &format!("{}.query", self.prefix), Arc::clone(&topics.events), within)
        };
        let (query, search) = (client(OPENING_WITHIN)?, client(SEARCH_WITHIN)?);
        let followed = [Arc::clone(&topics.parked), Arc::clone(&topics.dead)];
        let (extents, ends) = {
            let followed = followed.clone();
            query
                .ask(move |asked| {
                    let end = |topic: &str| asked.extent_of(topic, 0).map(|extent| extent.end);
                    Ok((asked.extents()?, [end(&followed[PARKED])?, end(&followed[DEAD])?]))
                })
                .await?
        };
        if let Some(last) = extents.iter().map(|extent| Position::new(extent.partition, extent.end)).max() {
            self.note_head(last);
        }
        let view = View::start(
            &self.connect,
            &format!("{}.parked", self.prefix),
            followed,
            ends,
            self.told.clone(),
            &self.is_sound,
        )?;
        let opened = Opened { query, search, view };
        if options.appends {
            opened.remember(Arc::clone(&self.dedup), extents).await?;
        }
        if let Some(spool) = &self.spool {
            // Again, because the log's ids may have taken their place.
            spool.remember_ids(&*self.dedup).await?;
        }
        opened.view.caught_up(ends).await?;
        let probe = opened.probe(self);
        tokio::time::timeout(PROBE_WITHIN, probe)
            .await
            .unwrap_or(Err(StorageError::Late { doing: "writing to the brokers", within: PROBE_WITHIN }))?;
        let _ = self.opened.set(opened);
        if let Some(spool) = &self.spool {
            spool.acknowledged();
            self.reached.cancel();
        }
        Ok(())
    }
}

impl Opened {
    /// Learns the ids at the end of the log, as many as are remembered.
    async fn remember(&self, dedup: Arc<dyn Dedup>, extents: Vec<Extent>) -> Result<(), StorageError> {
        let most = (2 * GENERATION_MAX / extents.len().max(1)) as u64;
        self.query
            .ask(move |asked| {
                for extent in extents {
                    let first = extent.end.saturating_sub(most).max(extent.first);
                    asked.read(Extent { first, ..extent }, |record| {
                        dedup.remember(record.event.id, record.event.fingerprint);
                        ControlFlow::Continue(())
                    })?;
                }
                Ok(())
            })
            .await
    }

    /// Shows that the brokers take what is written, under the conditions that events need; and leaves the producer
    /// ready, so that the first event need not wait for its preparations.
    async fn probe(&self, kafka: &Kafka) -> Result<(), StorageError> {
        let record = Outgoing::control(&kafka.topics.parked, &ControlKey::Probe, None::<&DestinationControl>);
        let (_, offset) = kafka.producer.append("writing to the brokers", record).await?;
        self.view.reached(PARKED, offset + 1).await
    }
}
