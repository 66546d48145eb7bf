//! Counters and histograms that each thread of the edge keeps for itself, summed when they are read.
//!
//! The library's are words that all threads add to, twenty-seven times a callback: of what the edge took of a processor these
//! waits were a twentieth. Here a thread writes only what is its own, so that adding is a load and a store. Whoever reads
//! sees all that was counted before: nothing is kept back to be added later.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chaski_common::metrics::Metrics;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

use crate::per_thread::PerThread;

/// One series; each thread has a `T` of its own.
pub(super) type Series<T> = Arc<PerThread<T>>;

/// What is summed over the threads.
pub(super) trait Tally: Sized + Send + Sync {
    /// What all of one family have in common.
    type Shape: Copy + Send + Sync;
    /// What Prometheus calls it.
    const TYPE: MetricType;

    fn new(shape: Self::Shape) -> Self;

    /// The sum of the threads'.
    fn sum(shape: Self::Shape, threads: &PerThread<Self>) -> Metric;
}

/// A number that one thread adds to and any thread reads. If two add at once, one of the two may be lost.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn inc(&self) {
        self.0.store(self.get().wrapping_add(1), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Tally for Count {
    type Shape = ();
    const TYPE: MetricType = MetricType::COUNTER;

    fn new((): ()) -> Self {
        Self::default()
    }

    fn sum((): (), threads: &PerThread<Self>) -> Metric {
        let mut counter = proto::Counter::default();
        counter.set_value(threads.all().map(Self::get).sum::<u64>() as f64);
        let mut metric = Metric::default();
        metric.set_counter(counter);
        metric
    }
}

/// How many values were at most so large; as [`Count`], for one thread to write.
pub(super) struct Distribution {
    bounds: &'static [f64],
    /// For each bound the values up to it and above the one before; then those above all.
    counts: Box<[Count]>,
    /// The bits of an `f64`.
    sum: AtomicU64,
}

impl Distribution {
    pub(super) fn observe(&self, value: f64) {
        let place = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        self.counts[place].inc();
        self.sum.store((self.total() + value).to_bits(), Ordering::Relaxed);
    }

    fn total(&self) -> f64 {
        f64::from_bits(self.sum.load(Ordering::Relaxed))
    }
}

impl Tally for Distribution {
    /// The bounds, in ascending order.
    type Shape = &'static [f64];
    const TYPE: MetricType = MetricType::HISTOGRAM;

    fn new(bounds: Self::Shape) -> Self {
        let counts = std::iter::repeat_with(Count::default).take(bounds.len() + 1).collect();
        Self { bounds, counts, sum: AtomicU64::new(0) }
    }

    fn sum(bounds: Self::Shape, threads: &PerThread<Self>) -> Metric {
        let mut so_far = 0;
        let mut up_to = |place: usize| {
            so_far += threads.all().map(|thread| thread.counts[place].get()).sum::<u64>();
            so_far
        };
        let buckets = bounds.iter().enumerate().map(|(place, bound)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(up_to(place));
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(up_to(bounds.len()));
        histogram.set_sample_sum(threads.all().map(Self::total).sum());
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        metric
    }
}

/// A family of series, one for each combination of label values that was asked for.
pub(super) struct Tallies<T: Tally>(Arc<Family<T>>);

impl<T: Tally> Clone for Tallies<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Family<T: Tally> {
    description: Desc,
    threads: usize,
    shape: T::Shape,
    /// By the values of their labels.
    series: Mutex<HashMap<Vec<String>, Series<T>>>,
}

impl<T: Tally + 'static> Tallies<T> {
    /// # Panics
    /// As all of [`Metrics`], for a bug only.
    #[allow(clippy::expect_used, reason = "only a bug can break it")]
    pub(super) fn register(
        make: &Metrics<'_>,
        threads: usize,
        (name, help): (&str, &str),
        labels: &[&str],
        shape: T::Shape,
    ) -> Self {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let description = Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new());
        let description = description.expect("a valid metric name and valid labels");
        make.register(Self(Arc::new(Family { description, threads, shape, series: Mutex::default() })))
    }

    /// The series with these label values; the same as before if it was asked for before.
    pub(super) fn with(&self, values: &[&str]) -> Series<T> {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        let Family { threads, shape, .. } = *self.0;
        let mut series = self.0.series.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(PerThread::new(threads, || T::new(shape)));
        Arc::clone(series.entry(values).or_insert_with(new))
    }
}

impl<T: Tally> Collector for Tallies<T> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.description]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Family { description, shape, .. } = &*self.0;
        let series = self.0.series.lock().unwrap_or_else(PoisonError::into_inner);
        let metrics = series.iter().map(|(values, threads)| {
            let mut metric = T::sum(*shape, threads);
            metric.set_label(label_pairs(&description.variable_labels, values));
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(description.fq_name.clone());
        family.set_help(description.help.clone());
        family.set_field_type(T::TYPE);
        family.set_metric(metrics.collect());
        vec![family]
    }
}

/// In the order of their names, as the library has them.
fn label_pairs(names: &[String], values: &[String]) -> Vec<LabelPair> {
    let pair = |(name, value): (&String, &String)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.clone());
        pair.set_value(value.clone());
        pair
    };
    let mut pairs: Vec<_> = names.iter().zip(values).map(pair).collect();
    pairs.sort_by(|one, other| one.name().cmp(other.name()));
    pairs
}

#[cfg(test)]
mod tests {
    use prometheus::{Registry, TextEncoder};

    use super::*;
    use crate::per_thread;

    const BOUNDS: &[f64] = &[-1.0, 0.0, 2.5, 10.0];
    const LABELS: &[&str] = &["source", "key"];

    fn text(registry: &Registry) -> String {
        TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn what_threads_have_counted_reads_as_if_the_library_had() {
        let (ours, theirs) = (Registry::new(), Registry::new());
        let make = Metrics(&ours);
        let counts = Tallies::<Count>::register(&make, 3, ("events_total", "Events."), LABELS, ());
        let sizes = Tallies::<Distribution>::register(&make, 3, ("sizes", "Sizes."), LABELS, BOUNDS);
        let make = Metrics(&theirs);
        let their_counts = make.counters("events_total", "Events.", LABELS);
        let their_sizes = make.histograms("sizes", "Sizes.", LABELS, BOUNDS);
        for labels in [["pe", "current"], ["pe", "previous"], ["dlocal", "current"]] {
            let (count, size) = (counts.with(&labels), sizes.with(&labels));
            assert!(Arc::ptr_eq(&count, &counts.with(&labels)), "one series, however often it is asked for");
            let (their_count, their_size) =
                (their_counts.with_label_values(&labels), their_sizes.with_label_values(&labels));
            assert_eq!(text(&ours), text(&theirs), "0 from the start");
            for number in 0..3 {
                let (count, size, their_count, their_size) = (&count, &size, &their_count, &their_size);
                std::thread::scope(|scope| {
                    scope.spawn(move || {
                        per_thread::set_number(number);
                        for value in [-1.5, -1.0, 0.25, 2.5, 3.0, 10.5, 1e9].into_iter().skip(number) {
                            count.here().inc();
                            size.here().observe(value);
                            their_count.inc();
                            their_size.observe(value);
                        }
                    });
                });
            }
        }
        assert_eq!(text(&ours), text(&theirs));
    }
}
