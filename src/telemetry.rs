//! Spans on their way to a collector: out of the tracer's queue, in batches, over HTTP as OTLP has it.
//!
//! One task beside all others. The queue is bounded, so a collector that is slow or away costs spans and nothing else:
//! the batch it has not taken is tried again with growing pauses, and what finds no room meanwhile is dropped and
//! counted. The log says once that it does not take them, and once that it does again.

mod otlp;

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use bytes::Bytes;
use chaski_common::metrics::Metrics;
use chaski_common::trace::{Span, Tracer};
use chaski_dispatcher::Poster;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use prometheus::{IntCounter, Registry};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::TelemetryConfig;

/// Spans that wait to be sent, about 4 MiB.
const SPANS_MAX: usize = 8192;
/// Spans sent in one request.
const BATCH_SPANS_MAX: usize = 512;
/// How long a first span waits for others to go with it.
const GATHER: Duration = Duration::from_secs(1);
/// What the collector has for one request.
const POST_WITHIN: Duration = Duration::from_secs(10);
/// Between a failure and the next try; doubles from there.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest pause between two tries.
const RETRY_CAP: Duration = Duration::from_secs(30);
/// How long what is still to be sent may take when the process stops.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

/// See the module.
pub(crate) struct Export {
    told: mpsc::Receiver<Span>,
    collector: Collector,
    is_away: bool,
    exported: IntCounter,
    refused: IntCounter,
    dropped: IntCounter,
}

impl Export {
    /// The tracer that fills it.
    pub(crate) fn new(config: &TelemetryConfig, registry: &Registry) -> (Tracer, Self) {
        let spans = Metrics(registry).counters(
            "chaski_telemetry_spans_total",
            "Spans that the collector took, that it refused, and that were dropped because it was slow or away.",
            &["result"],
        );
        let [exported, refused, dropped] =
            ["exported", "refused", "dropped"].map(|result| spans.with_label_values(&[result]));
        let (tracer, told) = Tracer::new(SPANS_MAX, config.sampling, dropped.clone());
        let collector = Collector { poster: Poster::new(), traces: config.traces.clone() };
        (tracer, Self { told, collector, is_away: false, exported, refused, dropped })
    }

    /// Sends until `stop`, then what is left for as long as [`FLUSH_WITHIN`].
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH_SPANS_MAX);
        let _ = stop.run_until_cancelled(self.send(&mut batch)).await;
        if timeout(FLUSH_WITHIN, self.flush(&mut batch)).await.is_err() {
            tracing::debug!("the collector was too slow for the last spans");
        }
        let left = batch.len() + self.told.len();
        self.dropped.inc_by(left as u64);
        if left > 0 {
            tracing::warn!(spans = left, "stopping with spans that the collector has not taken");
        }
    }

    /// Dropped anywhere, it leaves in `batch` what was taken from the queue and not sent for certain.
    async fn send(&mut self, batch: &mut Vec<Span>) {
        while self.told.recv_many(batch, BATCH_SPANS_MAX).await > 0 {
            if batch.len() < BATCH_SPANS_MAX {
                tokio::time::sleep(GATHER).await;
                self.fill(batch);
            }
            let request = otlp::request(batch);
            let spans = batch.len() as u64;
            let backoff = ExponentialBuilder::new()
                .with_min_delay(RETRY_FIRST)
                .with_max_delay(RETRY_CAP)
                .with_jitter()
                .without_max_times();
            let (collector, is_away) = (&self.collector, &mut self.is_away);
            let sent = (|| collector.post(request.clone()))
                .retry(backoff)
                .sleep(tokio::time::sleep)
                .when(|failure: &Failure| failure.is_transient)
                .notify(|failure, _| {
                    if !std::mem::replace(is_away, true) {
                        tracing::warn!(why = %failure.why, "the collector does not take traces; spans are dropped once the queue is full");
                    }
                })
                .await;
            self.sent(sent, spans);
            batch.clear();
        }
    }

    /// As [`Export::send`], but what fails is not tried again.
    async fn flush(&mut self, batch: &mut Vec<Span>) {
        loop {
            self.fill(batch);
            if batch.is_empty() {
                return;
            }
            let sent = self.collector.post(otlp::request(batch)).await;
            if sent.as_ref().is_err_and(|failure| failure.is_transient) {
                return;
            }
            self.sent(sent, batch.len() as u64);
            batch.clear();
        }
    }

    fn fill(&mut self, batch: &mut Vec<Span>) {
        while batch.len() < BATCH_SPANS_MAX
            && let Ok(span) = self.told.try_recv()
        {
            batch.push(span);
        }
    }

    fn sent(&mut self, sent: Result<(), Failure>, spans: u64) {
        match sent {
            Ok(()) => {
                self.exported.inc_by(spans);
                if std::mem::take(&mut self.is_away) {
                    tracing::info!("the collector takes traces again");
                }
            }
            Err(failure) => {
                self.refused.inc_by(spans);
                if !std::mem::replace(&mut self.is_away, true) {
                    tracing::warn!(why = %failure.why, "the collector refuses traces");
                }
            }
        }
    }
}

/// Who takes the spans.
struct Collector {
    poster: Poster,
    traces: Uri,
}

struct Failure {
    why: String,
    is_transient: bool,
}

impl Collector {
    async fn post(&self, request: Bytes) -> Result<(), Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        match self.poster.post(&self.traces, headers, request, POST_WITHIN).await {
            Ok(answer) if answer.status.is_success() => Ok(()),
            Ok(answer) => {
                let is_transient = matches!(
                    answer.status,
                    StatusCode::TOO_MANY_REQUESTS
                        | StatusCode::BAD_GATEWAY
                        | StatusCode::SERVICE_UNAVAILABLE
                        | StatusCode::GATEWAY_TIMEOUT
                );
                Err(Failure { why: answer.status.to_string(), is_transient })
            }
            Err(error) => Err(Failure { why: error.to_string(), is_transient: error.is_transient }),
        }
    }
}
