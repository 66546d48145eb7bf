//! What the configuration says about one destination.

use std::sync::Arc;
use std::time::Duration;

use chaski_common::backoff::Schedule;
use chaski_common::event::Environment;
use chaski_common::secret::Secret;
use chaski_common::storage::Start;

/// One configured destination, its secrets loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationSpec {
    /// The name in the configuration, at most 64 bytes of `[a-z0-9_-]`.
    pub name: Arc<str>,
    /// Where to post, `http` or `https`, without user info.
    pub url: http::Uri,
    /// Whether it takes real money. No event of the other environment is ever sent there, whatever else is
    /// said here, and whether it comes from the log, from a replay or from what was parked or redriven.
    pub environment: Environment,
    /// The sources whose events it takes: always spelled out by the configuration.
    pub sources: Vec<Arc<str>>,
    /// All configured sources, whether or not it takes their events, and what each is now. What comes from any
    /// other one (renamed, removed) becomes a dead letter with reason `unrouted` instead of being passed over, and
    /// so does, with reason `environment`, what came while its source was what this destination is and the source
    /// no longer is. A
    /// reload that adds a source must therefore reach the dispatcher before the edge, and one that removes a
    /// source the edge before the dispatcher.
    pub known_sources: Vec<(Arc<str>, Environment)>,
    /// Event types it takes: exact, or ending in `*`; empty means all. An event without a type passes.
    pub events: Vec<String>,
    /// Keys that sign what we send (Standard Webhooks), current first; empty means unsigned.
    pub signing: Vec<Secret>,
    /// A credential for the request's head.
    pub auth: Option<Auth>,
    /// Whether deliveries of one subject wait for each other.
    pub ordering: Ordering,
    /// Attempts under way at once, at least 1.
    pub concurrency: usize,
    /// Attempts begun per second; none means as many as concurrency allows.
    pub rate_per_second: Option<f64>,
    /// One attempt, from connect to the last byte.
    pub timeout: Duration,
    /// When to try again, and when to give up.
    pub retry: Schedule,
    /// Where a destination that was never there before begins.
    pub start: Start,
    /// Whether private and loopback addresses may be connected to. True for what the configuration file
    /// names; link-local and metadata addresses never may.
    pub allow_private: bool,
}

impl DestinationSpec {
    /// Whether it is spoken to in TLS.
    pub(crate) fn is_https(&self) -> bool {
        self.url.scheme() == Some(&http::uri::Scheme::HTTPS)
    }

    /// Whether the other one differs in no more than which events it takes.
    pub(crate) fn differs_in_routes_only(&self, other: &Self) -> bool {
        let (sources, known_sources, events) =
            (other.sources.clone(), other.known_sources.clone(), other.events.clone());
        Self { sources, known_sources, events, ..self.clone() } == *other
    }

    /// Where it is posted to, for people: without the query, which may carry a credential.
    #[must_use]
    pub fn shown_url(&self) -> String {
        let scheme = self.url.scheme_str().unwrap_or("http");
        format!(
            "{scheme}://{}{}",
            self.url.authority().map_or("", http::uri::Authority::as_str),
            self.url.path()
        )
    }
}

/// A credential sent with every attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// `Authorization: Bearer …`.
    Bearer(Secret),
    /// `Authorization: Basic …`.
    Basic {
        /// The user's name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A header of the receiver's choice.
    Header {
        /// Its name.
        name: http::HeaderName,
        /// Its value.
        value: Secret,
    },
}

/// Whether deliveries wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Ordering {
    /// Each for itself.
    #[default]
    None,
    /// One at a time per subject, in log order; a failing one holds back its own subject only.
    Key,
}
