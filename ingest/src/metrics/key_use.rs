//! When each secret was last used, so that an operator can tell when nobody uses the old one any more.
//!
//! A rotation moves a secret from `current` to `previous`; its last use goes with it, because it is known by the
//! secret itself and not by its place. Nothing of it outlives the process: 0 says not since its start
//! (`process_start_time_seconds`).

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chaski_common::metrics::Metrics;
use chaski_common::secret::Secret;
use jiff::Timestamp;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Registry};

use crate::source::Secrets;

/// A secret that is in force, and its last use.
#[derive(Clone)]
pub(crate) struct KeyUse {
    source: Arc<str>,
    /// What metrics call it.
    key: String,
    secret: Secret,
    not_after: Option<Timestamp>,
    created: Option<Timestamp>,
    /// In Unix seconds; 0 if it was not used since the process began.
    last: Arc<AtomicI64>,
}

impl KeyUse {
    pub(crate) fn last(&self) -> Arc<AtomicI64> {
        Arc::clone(&self.last)
    }
}

/// The secrets of all sources, as gauges that are filled when they are read.
#[derive(Clone)]
pub(crate) struct KeysInForce {
    keys: Arc<Mutex<Vec<KeyUse>>>,
    last_used: IntGaugeVec,
    not_after: IntGaugeVec,
    created: IntGaugeVec,
}

impl KeysInForce {
    pub(crate) fn new(registry: &Registry) -> Self {
        // Kept out of the shared registry, where they would be read before they are filled.
        let own = Registry::new();
        let make = Metrics(&own);
        let labels = &["source", "key"];
        let this = Self {
            keys: Arc::default(),
            last_used: make.gauges(
                "chaski_secret_last_used_timestamp_seconds",
                "When a secret last verified a callback; 0 if it did not since the process began.",
                labels,
            ),
            not_after: make.gauges(
                "chaski_secret_not_after_timestamp_seconds",
                "When a secret ends; 0 if it does not.",
                labels,
            ),
            created: make.gauges(
                "chaski_secret_created_timestamp_seconds",
                "Since when a secret exists: its not_before, or else the last change of its file; 0 if neither is known, as of a variable.",
                labels,
            ),
        };
        // A registry that has them already keeps its own.
        let _ = registry.register(Box::new(this.clone()));
        this
    }

    fn keys(&self) -> MutexGuard<'_, Vec<KeyUse>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The secrets of a source; of those that are in force already the last use is known.
    pub(crate) fn known(&self, source: &Arc<str>, secrets: &Secrets) -> Vec<KeyUse> {
        let in_force = self.keys();
        let last = |secret: &Secret| {
            let known = in_force.iter().find(|known| known.source == *source && known.secret == *secret);
            known.map_or_else(Arc::default, KeyUse::last)
        };
        let all = secrets.named();
        all.into_iter()
            .map(|(key, dated)| KeyUse {
                source: Arc::clone(source),
                key: key.into_owned(),
                secret: dated.secret.clone(),
                not_after: dated.validity.not_after,
                created: dated.created,
                last: last(&dated.secret),
            })
            .collect()
    }

    pub(crate) fn replace(&self, keys: Vec<KeyUse>) {
        *self.keys() = keys;
    }
}

impl Collector for KeysInForce {
    fn desc(&self) -> Vec<&Desc> {
        [self.last_used.desc(), self.not_after.desc(), self.created.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let keys = self.keys();
        for gauge in [&self.last_used, &self.not_after, &self.created] {
            gauge.reset();
        }
        let seconds = |at: Option<Timestamp>| at.map_or(0, Timestamp::as_second);
        for key in keys.iter() {
            let labels = [&*key.source, &key.key];
            self.last_used.with_label_values(&labels).set(key.last.load(Ordering::Relaxed));
            self.not_after.with_label_values(&labels).set(seconds(key.not_after));
            self.created.with_label_values(&labels).set(seconds(key.created));
        }
        [self.last_used.collect(), self.not_after.collect(), self.created.collect()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(texts: &[&str]) -> Secrets {
        Secrets::Any(texts.iter().map(|text| Secret::new(*text).into()).collect())
    }

    fn last_used(registry: &Registry) -> Vec<(String, f64)> {
        let families = registry.gather();
        let family =
            families.iter().find(|family| family.name() == "chaski_secret_last_used_timestamp_seconds");
        let series = family.unwrap().get_metric().iter();
        series
            .map(|metric| {
                let key = metric.get_label().iter().find(|pair| pair.name() == "key").unwrap();
                (key.value().to_owned(), metric.get_gauge().get_value())
            })
            .collect()
    }

    #[test]
    fn a_last_use_goes_with_its_secret_through_a_rotation() {
        let registry = Registry::new();
        let keys = KeysInForce::new(&registry);
        let source: Arc<str> = "pe".into();
        let take = |texts: &[&str]| {
            let uses = keys.known(&source, &secrets(texts));
            let handles: Vec<_> = uses.iter().map(KeyUse::last).collect();
            keys.replace(uses);
            handles
        };
        let first = take(&["old"]);
        first[0].store(7, Ordering::Relaxed);
        assert_eq!(last_used(&registry), [("current".to_owned(), 7.0)]);
        let both = take(&["new", "old"]);
        assert_eq!(last_used(&registry), [("current".to_owned(), 0.0), ("previous".to_owned(), 7.0)]);
        // A request that the reload overtook still counts for the secret it was signed with.
        first[0].store(8, Ordering::Relaxed);
        both[0].store(9, Ordering::Relaxed);
        assert_eq!(last_used(&registry), [("current".to_owned(), 9.0), ("previous".to_owned(), 8.0)]);
        take(&["new"]);
        assert_eq!(last_used(&registry), [("current".to_owned(), 9.0)]);
    }
}
