//! What a person may know about a destination at this moment. No secret and no payload is in here.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

/// One destination as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DestinationStatus {
    /// Its configured name.
    pub name: Arc<str>,
    /// Where it is posted to, without the query.
    pub url: String,
    /// Whether an operator has paused it.
    pub paused: bool,
    /// Whether its breaker lets deliveries through.
    pub breaker: BreakerState,
    /// Whether the last attempt was answered 410: the receiver wants no more.
    pub disabled: bool,
    /// Read from the log and not begun: ready, or behind another of their subject.
    pub queued: u64,
    /// Attempts under way.
    pub in_flight: u64,
    /// Deliveries that wait for their next attempt: inside the window, or parked.
    pub waiting: u64,
    /// Failed attempts since the last success.
    pub consecutive_failures: u64,
    /// When it last took a delivery, since this process began.
    pub last_success: Option<Timestamp>,
    /// The last failed attempt, since this process began.
    pub last_failure: Option<LastFailure>,
}

/// A failed attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastFailure {
    /// When it ended.
    pub at: Timestamp,
    /// The closed set of the metric label `result`.
    pub result: &'static str,
    /// A status line or an error.
    pub detail: String,
}

/// Whether a destination is delivered to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerState {
    /// Deliveries go through.
    #[default]
    Closed,
    /// It is down: nothing is sent until the next probe.
    Open,
    /// A probe is under way, or it is being tried with few at a time.
    HalfOpen,
}
