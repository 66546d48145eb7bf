//! The edge: from a socket to a durable event and a 200.
//!
//! One request goes through stages, each with a type that only its step can make: [`request::Received`]
//! (read within its bounds), [`verify::Verified`] (signed by the source), `Usable` (content in order), and an
//! [`respond::Outcome`], decided in `accept` and nowhere else. Nothing outside the process is touched before
//! the signature is right, and 200 is answered only for what the storage has called durable.
//!
//! This crate reads no configuration file and delivers nothing.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod server;
pub mod peer;
pub mod request;
pub mod location;
pub mod source;
pub mod verify;
pub mod presets;
mod json;
pub mod content;
mod in_flight;
mod budget;
mod span;
mod unfinished;
mod accept;
pub mod respond;
mod metrics;
mod per_thread;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::expect_used, clippy::panic, reason = "a panic is what a fuzzer looks for")]
pub mod fuzzing;

pub use server::{Edge, EdgeConfig, EdgeError, EdgeHandle, Limits, Tls, TlsConfig};
pub use source::SpecError;
