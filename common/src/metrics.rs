//! Registering metrics without ceremony.
//!
//! Names and labels are those of the published list; each half keeps its own in one struct beside its
//! code. Label values come from the configuration or from closed sets, so the number of series is bounded.

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

/// Buckets in seconds for what should take a millisecond and may take seconds: the answer of the edge, an fsync.
pub const FAST_SECONDS: &[f64] =
    &[0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// Buckets in seconds for what waits on somebody else's server: one attempt, a whole delivery.
pub const SLOW_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 300.0, 3600.0, 21600.0];
/// Buckets in bytes for bodies.
pub const BODY_BYTES: &[f64] = &[128.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0];

/// Makes collectors and puts them into one registry.
///
/// # Panics
/// When a name is registered twice or is not a metric name: both are bugs, found by the first test that starts.
#[derive(Clone, Debug)]
pub struct Metrics<'a>(pub &'a Registry);

#[allow(clippy::expect_used, reason = "only a bug can break it, see the type's documentation")]
impl Metrics<'_> {
    fn put<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        self.register(made.expect("a valid metric name and valid labels"))
    }

    /// Puts a collector of another make into the registry.
    pub fn register<C: Collector + Clone + 'static>(&self, collector: C) -> C {
        self.0.register(Box::new(collector.clone())).expect("a metric name of its own");
        collector
    }

    /// A counter without labels.
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.put(IntCounter::new(name, help))
    }

    /// A counter per combination of label values.
    #[must_use]
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.put(IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// A whole-number gauge without labels.
    #[must_use]
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.put(IntGauge::new(name, help))
    }

    /// A gauge in seconds, without labels.
    #[must_use]
    pub fn seconds(&self, name: &str, help: &str) -> Gauge {
        self.put(Gauge::new(name, help))
    }

    /// A whole-number gauge per combination of label values.
    #[must_use]
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.put(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    /// A histogram without labels.
    #[must_use]
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.put(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }

    /// A histogram per combination of label values.
    #[must_use]
    pub fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        self.put(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }
}
