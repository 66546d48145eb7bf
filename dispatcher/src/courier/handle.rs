//! A courier from outside: what it shows, and the way to stop it. What operators say it hears from the storage.

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use chaski_common::event::Event;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Fixed;
use super::relay::{Opening, Relay};
use super::stop::LAST_SETTLE;
use crate::destination::DestinationSpec;
use crate::metrics::DestinationMetrics;
use crate::outcome::{AttemptResult, Outcome};
use crate::status::{BreakerState, DestinationStatus, LastFailure};

/// A hand on a courier's task.
#[derive(Clone)]
pub(crate) struct Handle {
    fixed: Arc<Fixed>,
    stop: Arc<watch::Sender<Option<Instant>>>,
}

impl Handle {
    /// Has a courier begin to work, in a task of its own, with what was opened for it; without, the storage
    /// is asked until it has been opened.
    pub(crate) fn set_off(fixed: Arc<Fixed>, opening: Option<Opening>) -> Self {
        let (stop, stopped) = watch::channel(None);
        tokio::spawn(Relay { fixed: fixed.clone(), stop: stopped }.run(opening));
        Self { fixed, stop: Arc::new(stop) }
    }

    pub(crate) fn name(&self) -> Arc<str> {
        self.fixed.spec.name.clone()
    }

    /// What the next courier is to have: this one may not have been opened yet, and then the next begins where it would
    /// have begun.
    pub(crate) fn succeeded_by(&self, next: Fixed) -> Fixed {
        if self.fixed.spec.url != next.spec.url {
            self.forget_failures();
        }
        Fixed { start: self.fixed.start, ..next }
    }

    /// What its receiver answered is not told of one that has its name later.
    pub(crate) fn forget_failures(&self) {
        self.fixed.view.forget_failures();
    }

    pub(crate) fn spec(&self) -> &DestinationSpec {
        &self.fixed.spec
    }

    pub(crate) fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.fixed.sender.certificate()
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.fixed.store.control().paused
    }

    /// How many replays are under way.
    pub(crate) fn replays(&self) -> usize {
        self.fixed.store.control().replays.len()
    }

    /// Has the courier go on with the routes of `spec`, if that is all in which this differs from what it was set off
    /// with. What is in its window goes where it was to go.
    pub(crate) fn reroute(&self, spec: &DestinationSpec) -> bool {
        let can = self.fixed.spec.differs_in_routes_only(spec);
        if can {
            self.fixed.reroute(spec);
        }
        can
    }

    /// Has the courier stop until `deadline` and waits for it; it takes a moment longer for its last settle. Said more
    /// than once, the earliest holds.
    pub(crate) async fn stop(&self, deadline: Instant) {
        self.stop.send_if_modified(|until| {
            let is_sooner = until.is_none_or(|until| deadline < until);
            if is_sooner {
                *until = Some(deadline);
            }
            is_sooner
        });
        let _ = tokio::time::timeout_at(deadline + LAST_SETTLE * 2, self.stop.closed()).await;
    }

    pub(crate) fn status(&self) -> DestinationStatus {
        let (spec, view) = (&self.fixed.spec, &self.fixed.view);
        let count = |gauge: &prometheus::IntGauge| u64::try_from(gauge.get()).unwrap_or(0);
        let at = view.last_success_ms.load(Relaxed);
        DestinationStatus {
            name: spec.name.clone(),
            url: spec.shown_url(),
            paused: self.is_paused(),
            breaker: match view.breaker.load(Relaxed) {
                0 => BreakerState::Closed,
                1 => BreakerState::Open,
                _ => BreakerState::HalfOpen,
            },
            disabled: view.metrics.disabled.get() != 0,
            queued: count(&view.metrics.queued).saturating_sub(view.waiting.load(Relaxed)),
            in_flight: count(&view.metrics.in_flight),
            waiting: count(&view.metrics.parked) + view.waiting.load(Relaxed),
            consecutive_failures: count(&view.metrics.consecutive_failures),
            last_success: (at != 0).then(|| Timestamp::from_millisecond(at).ok()).flatten(),
            last_failure: view.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// What others see of a courier; written by it alone.
pub(crate) struct View {
    pub(super) metrics: DestinationMetrics,
    breaker: AtomicU8,
    /// Waits inside the windows.
    waiting: AtomicU64,
    last_success_ms: AtomicI64,
    last_failure: Mutex<Option<LastFailure>>,
}

/// What changes with every step.
pub(super) struct Shown {
    pub(super) breaker: BreakerState,
    pub(super) is_open: bool,
    pub(super) queued: usize,
    pub(super) in_flight: usize,
    pub(super) waiting: usize,
    pub(super) parked: u64,
}

impl View {
    pub(super) const fn new(metrics: DestinationMetrics) -> Self {
        Self {
            metrics,
            breaker: AtomicU8::new(0),
            waiting: AtomicU64::new(0),
            last_success_ms: AtomicI64::new(0),
            last_failure: Mutex::new(None),
        }
    }

    fn forget_failures(&self) {
        self.metrics.consecutive_failures.set(0);
        self.metrics.disabled.set(0);
    }

    pub(super) fn show(&self, shown: Shown) {
        let set =
            |gauge: &prometheus::IntGauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        // What waits for its next try within the window is in the queue for it.
        set(&self.metrics.queued, shown.queued + shown.waiting);
        set(&self.metrics.in_flight, shown.in_flight);
        self.metrics.parked.set(i64::try_from(shown.parked).unwrap_or(i64::MAX));
        self.metrics.circuit_open.set(i64::from(shown.is_open));
        self.breaker.store(shown.breaker as u8, Relaxed);
        self.waiting.store(shown.waiting as u64, Relaxed);
    }

    /// An attempt has ended.
    pub(super) fn attempted(&self, name: &str, outcome: &Outcome, now: Timestamp) {
        if outcome.is_success() {
            self.forget_failures();
            self.last_success_ms.store(now.as_millisecond(), Relaxed);
            return;
        }
        if self.metrics.consecutive_failures.get() == 0 {
            tracing::debug!(destination = %name, result = outcome.result.label(), detail = %outcome.detail, "attempts begin to fail");
        }
        self.metrics.consecutive_failures.inc();
        self.metrics.disabled.set(i64::from(outcome.result == AttemptResult::Gone));
        let failure = LastFailure { at: now, result: outcome.result.label(), detail: outcome.detail.clone() };
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    /// An event was taken.
    pub(super) fn delivered(&self, event: &Event, now: Timestamp) {
        self.metrics.end_to_end_seconds.observe(now.duration_since(event.received_at).as_secs_f64().max(0.0));
        if let Some(time) = event.time {
            self.metrics.money_latency_seconds.observe(now.duration_since(time).as_secs_f64().max(0.0));
        }
    }
}
