//! What the tests of this crate share.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chaski_common::backoff::Schedule;
use chaski_common::event::{Environment, Event, EventId, Fingerprint};
use chaski_common::storage::Start;
use jiff::Timestamp;

use crate::destination::{DestinationSpec, Ordering};

/// The n-th event of a source.
pub(crate) fn event(n: u64) -> Event {
    let body = format!("{{\"n\": {n}, \"amount\": \"10.00\"}}\n");
    Event {
        id: EventId::derive("pe", [n.to_be_bytes().as_slice()]),
        source: "pe".into(),
        kind: "cip.paid".into(),
        subject: None,
        time: None,
        received_at: Timestamp::UNIX_EPOCH + Duration::from_secs(1_790_000_000 + n),
        content_type: Some("application/json".into()),
        traceparent: None,
        fingerprint: Fingerprint::of(body.as_bytes()),
        body: Bytes::from(body),
        environment: None,
    }
}

/// A destination with delays that a test can wait for.
pub(crate) fn spec(name: &str, url: &str) -> DestinationSpec {
    let millis = Duration::from_millis;
    DestinationSpec {
        name: Arc::from(name),
        url: url.parse().unwrap(),
        environment: Environment::Production,
        sources: vec!["pe".into()],
        known_sources: vec![("pe".into(), Environment::Production)],
        events: Vec::new(),
        signing: Vec::new(),
        auth: None,
        ordering: Ordering::None,
        concurrency: 4,
        rate_per_second: None,
        timeout: Duration::from_secs(5),
        retry: Schedule::growing(millis(20), 2.0, millis(200), Duration::from_secs(60)).unwrap(),
        start: Start::Beginning,
        allow_private: true,
    }
}
