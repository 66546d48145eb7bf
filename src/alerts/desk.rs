//! One task per receiver: waits until there is something to tell and the receiver may be told, sends, tries again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use chaski_common::clock::Clock;
use chaski_common::metrics::Metrics;
use chaski_dispatcher::Poster;
use prometheus::{IntCounter, IntCounterVec, Registry};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::AlertsConfig;
use super::mailbox::Mailbox;
use super::message::{Message, Notice};
use super::receivers::{Receiver, ReceiverSpec};

/// Between the first failure and the second try; doubles from there.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest pause between two tries.
const RETRY_CAP: Duration = Duration::from_secs(300);
/// Tries after the first: about an hour in all, because what breaks the way to a destination often breaks the way to
/// the chat as well.
const RETRIES: usize = 20;

/// How long what is still to be told is waited for when the process stops.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

/// All receivers.
pub(super) struct Desk {
    /// The process stops: no pause any more.
    hurry: CancellationToken,
    posts: BTreeMap<Arc<str>, Post>,
    poster: Poster,
    clock: Clock,
    notifications: IntCounterVec,
}

/// One receiver's place.
struct Post {
    spec: ReceiverSpec,
    pace: Pace,
    tray: Arc<Tray>,
    dropped: IntCounter,
    task: AbortHandle,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Pace {
    group: Duration,
    every: Duration,
}

/// A mailbox that two tasks share.
#[derive(Default)]
struct Tray {
    mailbox: Mutex<Mailbox>,
    filled: Notify,
    emptied: Notify,
}

impl Tray {
    /// Only ever held to look or to swap, never over an await.
    fn open(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait(&self) {
        while self.open().is_empty() {
            self.filled.notified().await;
        }
    }

    async fn wait_until_empty(&self) {
        while !self.open().is_empty() {
            self.emptied.notified().await;
        }
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Desk {
    pub(super) fn new(registry: &Registry, clock: Clock) -> Self {
        let notifications = Metrics(registry).counters(
            "chaski_alert_notifications_total",
            "Messages about alerts that were sent or given up, and alerts that found no room to wait.",
            &["receiver", "result"],
        );
        Self {
            hurry: CancellationToken::new(),
            posts: BTreeMap::new(),
            poster: Poster::new(),
            clock,
            notifications,
        }
    }

    /// Who is told from now on. Those that stay as they were are not disturbed, one that has changed takes over what
    /// was to be told, one that is new is told what is `firing`.
    pub(super) fn reload(&mut self, config: &AlertsConfig, firing: &[Notice]) {
        let pace = Pace { group: config.group, every: config.every };
        let mut before = std::mem::take(&mut self.posts);
        for spec in &config.receivers {
            let post = match before.remove(&spec.name) {
                Some(post) if post.spec == *spec && post.pace == pace => post,
                Some(post) => self.post(spec, pace, Arc::clone(&post.tray)),
                None => {
                    let post = self.post(spec, pace, Arc::default());
                    firing.iter().for_each(|notice| post.tell(notice));
                    post
                }
            };
            self.posts.insert(Arc::clone(&spec.name), post);
        }
        for name in before.keys() {
            for result in ["sent", "failed", "dropped"] {
                let _ = self.notifications.remove_label_values(&[name, result]);
            }
        }
    }

    /// Never waits: whoever has no room has lost it, and that is counted.
    pub(super) fn tell(&self, notice: &Notice) {
        tracing::info!(
            alert = notice.name.name(), labels = ?notice.labels, state = ?notice.state, summary = %notice.summary,
            "alert"
        );
        self.posts.values().for_each(|post| post.tell(notice));
    }

    /// Tells what is still to be told, now; who does not take it in a moment is not waited for.
    pub(super) async fn flush(&self) {
        self.hurry.cancel();
        let empty = async {
            for post in self.posts.values() {
                post.tray.wait_until_empty().await;
            }
        };
        if tokio::time::timeout(FLUSH_WITHIN, empty).await.is_err() {
            tracing::warn!("some alerts were not told before the end");
        }
    }

    fn post(&self, spec: &ReceiverSpec, pace: Pace, tray: Arc<Tray>) -> Post {
        let count = |result| self.notifications.with_label_values(&[&*spec.name, result]);
        let teller = Teller {
            receiver: Receiver::new(spec, &self.poster),
            tray: Arc::clone(&tray),
            pace,
            hurry: self.hurry.clone(),
            clock: self.clock.clone(),
            sent: count("sent"),
            failed: count("failed"),
        };
        let task = tokio::spawn(teller.run()).abort_handle();
        Post { spec: spec.clone(), pace, tray, dropped: count("dropped"), task }
    }
}

impl Post {
    fn tell(&self, notice: &Notice) {
        if !self.tray.open().put(notice.clone()) {
            self.dropped.inc();
        }
        self.tray.filled.notify_one();
    }
}

/// What the task of one receiver has.
struct Teller {
    receiver: Receiver,
    tray: Arc<Tray>,
    pace: Pace,
    hurry: CancellationToken,
    clock: Clock,
    sent: IntCounter,
    failed: IntCounter,
}

impl Teller {
    async fn run(self) {
        let mut free_at = Instant::now();
        loop {
            self.tray.wait().await;
            let pauses = async {
                // What breaks together is told together.
                tokio::time::sleep(self.pace.group).await;
                tokio::time::sleep_until(free_at).await;
            };
            let _ = self.hurry.run_until_cancelled(pauses).await;
            let notices = self.tray.open().take();
            let message = Message::new(notices, self.clock.now());
            self.send(&message).await;
            self.tray.open().done();
            self.tray.emptied.notify_one();
            free_at = Instant::now() + self.pace.every;
        }
    }

    async fn send(&self, message: &Message) {
        let receiver = self.receiver.name();
        let retries = ExponentialBuilder::new()
            .with_min_delay(RETRY_FIRST)
            .with_max_delay(RETRY_CAP)
            .with_max_times(RETRIES);
        let outcome = (|| self.receiver.send(message, self.clock.now()))
            .retry(retries)
            .when(super::receivers::SendError::is_transient)
            .notify(|error, pause| {
                tracing::warn!(%receiver, %error, ?pause, "an alert could not be sent and will be tried again");
            })
            .await;
        match outcome {
            Ok(()) => {
                self.sent.inc();
                tracing::info!(%receiver, alerts = message.alerts(), "alerts were sent");
            }
            Err(error) => {
                self.failed.inc();
                tracing::error!(%receiver, %error, alerts = message.alerts(), "alerts could not be sent");
            }
        }
    }
}
