//! The metrics of this process, and the gauges among them that are read from the store when somebody asks.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chaski_common::metrics::Metrics;
use chaski_common::storage::{KeptLetters, StorageError};
use chaski_dispatcher::Dispatcher;
use jiff::Timestamp;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntGauge, IntGaugeVec, Registry};

use crate::api::Operations;
use crate::certificate;

/// How long the store may take to answer. What it cannot tell in time stays as it was: a scrape must not fail because
/// brokers are away, that is when it is needed.
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// Everything this process measures.
pub(crate) struct Instruments {
    registry: Registry,
    /// Refreshed by one at a time.
    gauges: tokio::sync::Mutex<Gauges>,
    operations: Operations,
}

impl Instruments {
    pub(crate) fn new(registry: Registry, gauges: Gauges, operations: Operations) -> Self {
        Self { registry, gauges: tokio::sync::Mutex::new(gauges), operations }
    }

    /// Asks the store for what only it knows.
    pub(crate) async fn refresh(&self) {
        let gauges = self.gauges.lock().await;
        told(gauges.ask(&self.operations)).await;
    }

    /// The letters that were there at this time, if the store tells.
    pub(crate) async fn letters_before(&self, at: Timestamp) -> Option<Vec<KeptLetters>> {
        told(self.operations.storage.deliveries.letters_before(at)).await
    }

    /// All families as they stand, never in the middle of a refresh. What is measured of a source or a destination
    /// that a reload has taken out is left out: its open breaker would page for ever.
    pub(crate) async fn gather(&self) -> Vec<MetricFamily> {
        let gauges = self.gauges.lock().await;
        let mut families = self.registry.gather();
        let configured = gauges.configured();
        only(&mut families, "source", &configured.sources);
        only(&mut families, "destination", &configured.destinations);
        families
    }
}

/// An answer of the store, if there is one in time.
async fn told<T>(answer: impl Future<Output = Result<T, StorageError>>) -> Option<T> {
    match tokio::time::timeout(ASK_WITHIN, answer).await {
        Ok(Ok(told)) => Some(told),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the store could not be asked for its metrics");
            None
        }
        Err(_) => {
            tracing::warn!(within = ?ASK_WITHIN, "the store did not tell its metrics in time");
            None
        }
    }
}

pub(crate) struct Gauges {
    lag: IntGaugeVec,
    oldest_unsettled: IntGaugeVec,
    dead: IntGaugeVec,
    dead_oldest: IntGaugeVec,
    quarantined: IntGaugeVec,
    quarantine_oldest: IntGaugeVec,
    /// Of the embedded store; a spool keeps its own.
    kept: Option<Kept>,
    pub(crate) reload_successful: IntGauge,
    pub(crate) reload_timestamp: Gauge,
    pub(crate) certificate_until: IntGauge,
    destination_certificate_until: IntGaugeVec,
    pub(crate) retention: IntGaugeVec,
    disk: Option<Disk>,
    /// A reload changes it.
    pub(crate) configured: Arc<Mutex<Configured>>,
}

/// The names of what is measured.
#[derive(Clone)]
pub(crate) struct Configured {
    pub(crate) sources: Vec<Arc<str>>,
    /// Those that this process delivers to, or may.
    pub(crate) destinations: Vec<Arc<str>>,
}

/// Where the store, or the spool, is.
struct Disk {
    folder: PathBuf,
    free: IntGauge,
    capacity: IntGauge,
}

impl Disk {
    async fn look(&self) {
        let folder = self.folder.clone();
        // A file system on a network can take its time.
        let found = tokio::task::spawn_blocking(move || {
            let system = rustix::fs::statvfs(&folder)?;
            let files = std::fs::read_dir(&folder)?.filter_map(|file| file.ok()?.metadata().ok());
            let own: u64 = files.filter(std::fs::Metadata::is_file).map(|file| file.len()).sum();
            std::io::Result::Ok((system.f_bavail.saturating_mul(system.f_frsize), own))
        });
        if let Ok(Ok((free, own))) = found.await {
            self.free.set(signed(free));
            self.capacity.set(signed(free.saturating_add(own)));
        }
    }
}

struct Kept {
    records: IntGauge,
    oldest: IntGauge,
}

impl Kept {
    fn new(metrics: &Metrics<'_>) -> Self {
        Self {
            records: metrics.gauge("chaski_spool_records", "Events kept in the local store."),
            oldest: metrics.gauge(
                "chaski_spool_oldest_timestamp_seconds",
                "When the oldest event of the local store was received; 0 if there is none.",
            ),
        }
    }
}

impl Gauges {
    /// `folder` is where the store or the spool is, if there is one.
    pub(crate) fn new(
        registry: &Registry,
        configured: Configured,
        is_embedded: bool,
        folder: Option<PathBuf>,
    ) -> Self {
        let metrics = Metrics(registry);
        // The standard process_* metrics; a registry that has them already keeps its own.
        let _ = registry.register(Box::new(ProcessCollector::for_self()));
        let build = metrics.gauges("chaski_build_info", "1, with the version as a label.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let by_destination = |name, help| metrics.gauges(name, help, &["destination"]);
        let by_source = |name, help| metrics.gauges(name, help, &["source"]);
        let gauges = Self {
            lag: metrics.gauges(
                "chaski_kafka_consumer_lag_records",
                "Events past the destination's mark.",
                &["destination", "topic_kind"],
            ),
            oldest_unsettled: by_destination(
                "chaski_kafka_oldest_unsettled_timestamp_seconds",
                "When the oldest event past the destination's mark was received; 0 if there is none.",
            ),
            dead: by_destination("chaski_dlq_events", "Dead letters kept."),
            dead_oldest: by_destination(
                "chaski_dlq_oldest_timestamp_seconds",
                "When the oldest dead letter died; 0 if there is none.",
            ),
            quarantined: by_source("chaski_quarantine_events", "Quarantined events kept."),
            quarantine_oldest: by_source(
                "chaski_quarantine_oldest_timestamp_seconds",
                "When the oldest quarantined event was received; 0 if there is none.",
            ),
            kept: is_embedded.then(|| Kept::new(&metrics)),
            reload_successful: metrics.gauge(
                "chaski_config_last_reload_successful",
                "1 if the last reading of the configuration was taken into force.",
            ),
            reload_timestamp: metrics.seconds(
                "chaski_config_last_reload_success_timestamp_seconds",
                "When a configuration was last taken into force.",
            ),
            certificate_until: metrics
                .gauges(
                    "chaski_tls_certificate_not_after_timestamp_seconds",
                    "When the certificate in force expires; 0 in clear text.",
                    &["listener"],
                )
                .with_label_values(&["edge"]),
            destination_certificate_until: by_destination(
                "chaski_destination_certificate_not_after_timestamp_seconds",
                "When the certificate expires that an https destination showed at the last connection of its deliveries; 0 before the first.",
            ),
            retention: metrics.gauges(
                "chaski_log_retention_seconds",
                "How long settled events are kept.",
                &["topic_kind"],
            ),
            disk: folder.map(|folder| Disk {
                folder,
                free: metrics
                    .gauge("chaski_storage_free_bytes", "What is free where the store or the spool is."),
                capacity: metrics.gauge(
                    "chaski_spool_capacity_bytes",
                    "Bytes that the local store can have on its disk: what it has and what is free.",
                ),
            }),
            configured: Arc::new(Mutex::new(configured)),
        };
        gauges.reload_successful.set(1);
        for source in &gauges.configured().sources {
            gauges.quarantined.with_label_values(&[source]).set(0);
            gauges.quarantine_oldest.with_label_values(&[source]).set(0);
        }
        gauges
    }

    /// What is free at the start: whoever looks before anybody has asked must not find a full disk.
    pub(crate) async fn look_at_disk(&self) {
        if let Some(disk) = &self.disk {
            let _ = tokio::time::timeout(ASK_WITHIN, disk.look()).await;
        }
    }

    fn configured(&self) -> Configured {
        self.configured.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What deliveries have seen since this was last asked.
    fn look_at_certificates(&self, dispatcher: &Dispatcher) {
        self.destination_certificate_until.reset();
        for (destination, shown) in dispatcher.certificates() {
            let until = certificate::expiry_seconds(shown.as_ref());
            self.destination_certificate_until.with_label_values(&[&*destination]).set(until);
        }
    }

    /// Asks the store. What it cannot tell stays as it was.
    async fn ask(&self, operations: &Operations) -> Result<(), StorageError> {
        if let Some(dispatcher) = &operations.dispatcher {
            self.look_at_certificates(dispatcher);
        }
        if let Some(disk) = &self.disk {
            disk.look().await;
        }
        let storage = &operations.storage;
        if let Some(dispatcher) = &operations.dispatcher {
            let found = storage.events.progress().await?;
            // A destination that is not configured any more has nobody to wait for it.
            for gauge in [&self.lag, &self.oldest_unsettled, &self.dead, &self.dead_oldest] {
                gauge.reset();
            }
            let configured = dispatcher.status();
            for progress in found {
                let name = &*progress.destination;
                if !configured.iter().any(|destination| destination.name == progress.destination) {
                    continue;
                }
                self.lag.with_label_values(&[name, "events"]).set(signed(progress.lag));
                self.oldest_unsettled.with_label_values(&[name]).set(seconds(progress.oldest_unsettled));
                self.dead.with_label_values(&[name]).set(signed(progress.dead));
                self.dead_oldest.with_label_values(&[name]).set(seconds(progress.oldest_dead));
            }
        }
        let quarantined = storage.deliveries.quarantined().await?;
        for source in &self.configured().sources {
            let found = quarantined.iter().find(|found| found.source == *source);
            self.quarantined.with_label_values(&[source]).set(found.map_or(0, |found| signed(found.events)));
            self.quarantine_oldest.with_label_values(&[source]).set(seconds(found.map(|found| found.oldest)));
        }
        if let Some(kept) = &self.kept {
            let census = storage.events.census().await?;
            kept.records.set(signed(census.events));
            kept.oldest.set(seconds(census.oldest));
        }
        Ok(())
    }
}

/// Leaves out the series whose label says something else, and families that have none left.
fn only(families: &mut Vec<MetricFamily>, label: &str, values: &[Arc<str>]) {
    families.retain_mut(|family| {
        family.mut_metric().retain(|metric| {
            let found = metric.get_label().iter().find(|pair| pair.name() == label);
            found.is_none_or(|pair| values.iter().any(|value| **value == *pair.value()))
        });
        !family.get_metric().is_empty()
    });
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn seconds(at: Option<Timestamp>) -> i64 {
    at.map_or(0, Timestamp::as_second)
}
