//! Whoever keeps this machine's clock, and what he says of it: chrony, which knows how far it is off; systemd, which
//! knows whether anybody keeps it; or, where neither answers, as in a container, the kernel itself, see [`kernel`].
//!
//! Asking is bounded in time and fails quietly. Where nobody has ever answered there are no metrics either.

pub(crate) mod kernel;

use std::ffi::OsStr;
use std::time::Duration;

use chaski_common::metrics::Metrics;
use prometheus::{Gauge, IntGauge, Registry};
use tokio::process::Command;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

/// How long one program may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How often a running process asks.
const ASK_EVERY: Duration = Duration::from_secs(60);

/// What was said of the clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Told {
    /// By how many seconds it is off, where that is known.
    pub(crate) off_seconds: Option<f64>,
    /// Whether anybody keeps it.
    pub(crate) is_kept: bool,
}

/// Asks chrony, then systemd, then the kernel; none if nobody answers in time.
pub(crate) async fn ask() -> Option<Told> {
    let chrony = answer("chronyc", &["-c", "-n", "tracking"]).await;
    if let Some(told) = chrony.and_then(|said| told_by_chrony(&said)) {
        return Some(told);
    }
    let systemd = answer("timedatectl", &["show", "--property=NTPSynchronized", "--value"]).await;
    if let Some(told) = systemd.and_then(|said| told_by_systemd(&said)) {
        return Some(told);
    }
    let this = std::env::current_exe().ok()?;
    answer(this, &[kernel::COMMAND]).await.and_then(|said| kernel::told(&said))
}

async fn answer(program: impl AsRef<OsStr>, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    let output =
        timeout(ANSWER_WITHIN, command.args(arguments).kill_on_drop(true).output()).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `chronyc -c tracking`: the fifth field is by how many seconds the clock is off, the last whether anybody keeps it.
fn told_by_chrony(said: &str) -> Option<Told> {
    let fields: Vec<&str> = said.trim().split(',').collect();
    let off: f64 = fields.get(4)?.parse().ok()?;
    Some(Told { off_seconds: Some(off), is_kept: *fields.last()? != "Not synchronised" })
}

fn told_by_systemd(said: &str) -> Option<Told> {
    let is_kept = match said.trim() {
        "yes" => true,
        "no" => false,
        _ => return None,
    };
    Some(Told { off_seconds: None, is_kept })
}

/// Asks once a minute, and puts into metrics what is said, until it is told to stop.
pub(crate) async fn watch(registry: Registry, stop: CancellationToken) {
    let mut gauges = Gauges::new(registry);
    let mut ticks = interval(ASK_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            told = ask() => gauges.set(told),
        }
    }
}

/// Metrics that are there from the first answer on: a 0 that nobody has said would be an alarm, or a comfort.
struct Gauges {
    registry: Registry,
    offset: Option<Gauge>,
    synchronized: Option<IntGauge>,
}

impl Gauges {
    const fn new(registry: Registry) -> Self {
        Self { registry, offset: None, synchronized: None }
    }

    /// Who has answered before and does not any more keeps nothing.
    fn set(&mut self, told: Option<Told>) {
        let make = Metrics(&self.registry);
        if let Some(off) = told.and_then(|told| told.off_seconds) {
            let gauge = self.offset.get_or_insert_with(|| {
                make.seconds(
                    "chaski_clock_offset_seconds",
                    "By how much chrony or the kernel says that the clock is off.",
                )
            });
            gauge.set(off);
        }
        if told.is_some() || self.synchronized.is_some() {
            let gauge = self.synchronized.get_or_insert_with(|| {
                make.gauge(
                    "chaski_clock_synchronized",
                    "1 if chrony, systemd or the kernel says that somebody keeps the clock.",
                )
            });
            gauge.set(i64::from(told.is_some_and(|told| told.is_kept)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_time_keepers_say_is_read() {
        let line = |off: &str, leap: &str| {
            format!(
                "A9FEA97B,169.254.169.123,4,1795326000.1,{off},0.00001,0.00002,-3.1,0.0,0.02,0.0003,0.0004,16.2,{leap}\n"
            )
        };
        let told = |off, is_kept| Some(Told { off_seconds: Some(off), is_kept });
        assert_eq!(told_by_chrony(&line("-0.000012", "Normal")), told(-0.000_012, true));
        assert_eq!(told_by_chrony(&line("0.0", "Not synchronised")), told(0.0, false));
        assert_eq!(told_by_chrony("506 Cannot talk to daemon\n"), None);
        assert_eq!(told_by_systemd("yes\n"), Some(Told { off_seconds: None, is_kept: true }));
        assert_eq!(told_by_systemd("no\n"), Some(Told { off_seconds: None, is_kept: false }));
        assert_eq!(told_by_systemd(""), None);
    }

    #[test]
    fn there_are_metrics_once_somebody_has_answered() {
        let registry = Registry::new();
        let mut gauges = Gauges::new(registry.clone());
        let shown = || -> Vec<(String, f64)> {
            let families = registry.gather();
            let value =
                |family: &prometheus::proto::MetricFamily| family.get_metric()[0].get_gauge().get_value();
            families.iter().map(|family| (family.name().to_owned(), value(family))).collect()
        };
        gauges.set(None);
        assert_eq!(shown(), []);
        gauges.set(Some(Told { off_seconds: None, is_kept: true }));
        assert_eq!(shown(), [("chaski_clock_synchronized".to_owned(), 1.0)]);
        gauges.set(Some(Told { off_seconds: Some(-31.5), is_kept: true }));
        assert_eq!(shown()[0], ("chaski_clock_offset_seconds".to_owned(), -31.5));
        gauges.set(None);
        assert_eq!(shown()[1].1, 0.0, "nobody answers any more");
    }
}
