//! Wall-clock time, so that a test can hold it still.
//!
//! Durations inside one process come from tokio's clock; this one answers "what time is it in the
//! world", for timestamps of senders, due times and retention.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

/// Where the time of day comes from. Cloning gives another hand on the same clock.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    /// The machine's own clock.
    #[must_use]
    pub const fn system() -> Self {
        Self(None)
    }

    /// A clock that stands where it is put.
    #[must_use]
    pub fn manual(at: Timestamp) -> Self {
        Self(Some(Arc::new(AtomicI64::new(at.as_millisecond()))))
    }

    /// Puts a manual clock to another time; the system clock stays as it is.
    pub fn set(&self, at: Timestamp) {
        if let Some(manual) = &self.0 {
            manual.store(at.as_millisecond(), Ordering::SeqCst);
        }
    }

    /// Now, in whole milliseconds.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "the one place that asks the machine")]
    pub fn now(&self) -> Timestamp {
        let millis = match &self.0 {
            None => Timestamp::now().as_millisecond(),
            Some(manual) => manual.load(Ordering::SeqCst),
        };
        Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}
