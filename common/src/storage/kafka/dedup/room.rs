//! How full Redis is: looked at once a minute, on a connection of its own, beside what is asked of it.
//!
//! At its bound Redis refuses ids, or forgets them if its policy says so; either way repeats come through. What it does
//! not tell in time stays as it was.

use std::time::Duration;

use prometheus::{IntGauge, Registry};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::batch::Ask;
use super::server::{RedisState, redis_state};
use crate::metrics::Metrics;
use crate::storage::kafka::Redis;

const PERIOD: Duration = Duration::from_secs(60);
const WITHIN: Duration = Duration::from_secs(5);

pub(super) struct Room {
    settings: Redis,
    used: IntGauge,
    max: IntGauge,
}

impl Room {
    pub(super) fn new(settings: Redis, registry: &Registry) -> Self {
        let metrics = Metrics(registry);
        let gauge = |name, help| metrics.gauges(name, help, &["backend"]).with_label_values(&["redis"]);
        Self {
            settings,
            used: gauge(
                "chaski_dedup_used_bytes",
                "Memory that Redis uses; of a cluster its fullest master.",
            ),
            max: gauge("chaski_dedup_capacity_bytes", "Memory that Redis may use; 0 if it has no maxmemory."),
        }
    }

    /// Looks for as long as somebody may ask Redis. Must be called inside a runtime.
    pub(super) fn start(self, asks: &mpsc::Sender<Ask>) {
        let asked = asks.downgrade();
        tokio::spawn(async move {
            let mut period = interval(PERIOD);
            period.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while asked.strong_count() > 0 {
                period.tick().await;
                match timeout(WITHIN, redis_state(&self.settings)).await {
                    Ok(Ok(states)) => self.show(&states),
                    Ok(Err(error)) => tracing::debug!(%error, "redis does not tell its memory"),
                    Err(_) => tracing::debug!("redis does not tell its memory in time"),
                }
            }
        });
    }

    fn show(&self, states: &[RedisState]) {
        let Some(fullest) = fullest(states) else { return };
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.used.set(signed(fullest.used_bytes));
        self.max.set(signed(fullest.bytes_max.unwrap_or(0)));
    }
}

/// One without a bound is never full.
fn fullest(states: &[RedisState]) -> Option<&RedisState> {
    let share = |state: &RedisState| state.bytes_max.map_or(0.0, |max| state.used_bytes as f64 / max as f64);
    states.iter().max_by(|one, other| share(one).total_cmp(&share(other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_cluster_the_master_that_is_full_first_is_told() {
        let state = |used_bytes, bytes_max| RedisState { used_bytes, bytes_max, ..RedisState::default() };
        let states = [state(9, None), state(5, Some(10)), state(4, Some(6)), state(8, Some(100))];
        assert_eq!(fullest(&states), Some(&states[2]));
        assert_eq!(fullest(&states[..1]), Some(&states[0]));
        assert_eq!(fullest(&[]), None);
    }
}
