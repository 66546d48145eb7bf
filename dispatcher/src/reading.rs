//! One cursor that is being read: a destination's own way through the log, or a replay. Its partitions come
//! and go as its readers share them; each that is here is a [lane](crate::lane).

use std::task::{Context, Poll, ready};

use chaski_common::storage::{Change, Cursor, Subscription};
use tokio::sync::mpsc;

use crate::lane::Limits;

pub(crate) struct Reading {
    pub(crate) cursor: Cursor,
    pub(crate) limits: Limits,
    /// None once no more partitions will come.
    changes: Option<mpsc::Receiver<Change>>,
    /// The end of the replay is being written.
    ending: bool,
}

impl Reading {
    pub(crate) fn new(cursor: Cursor, subscription: Subscription, limits: Limits) -> Self {
        Self { cursor, limits, changes: Some(subscription.changes), ending: false }
    }

    /// The next partition that comes or goes; pending for good once there are no more.
    fn poll_change(&mut self, cx: &mut Context<'_>) -> Poll<Option<Change>> {
        let Some(changes) = &mut self.changes else {
            return Poll::Pending;
        };
        let change = ready!(changes.poll_recv(cx));
        if change.is_none() {
            self.changes = None;
        }
        Poll::Ready(change)
    }

    /// Whether the end of a replay is to be written: no more partitions come, and those that came are over.
    /// True once.
    pub(crate) fn ends(&mut self, lanes_are_over: bool) -> bool {
        let over = self.cursor.replay != 0 && self.changes.is_none() && lanes_are_over;
        over && !std::mem::replace(&mut self.ending, true)
    }
}

/// The next change of any reading, none when one has no more; never, if there is none.
pub(crate) async fn next_change(readings: &mut [Reading]) -> (usize, Option<Change>) {
    let mut poll = |cx: &mut Context<'_>| {
        for (index, reading) in readings.iter_mut().enumerate() {
            if let Poll::Ready(change) = reading.poll_change(cx) {
                return Poll::Ready((index, change));
            }
        }
        Poll::Pending
    };
    std::future::poll_fn(|cx| poll(cx)).await
}
