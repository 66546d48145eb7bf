//! What both halves of chaski name in a signature, and nothing else.
//!
//! The edge turns bytes into an [`event::Event`] and hands it to the [`storage`] seam; the dispatcher
//! reads it there and delivers it. Neither half knows the other.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod event;
pub mod trace;
pub mod cloudevents;
pub mod storage;
pub mod mac;
pub mod secret;
pub mod backoff;
pub mod clock;
pub mod metrics;
pub mod post;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
