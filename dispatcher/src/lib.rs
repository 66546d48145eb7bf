//! From a durable event to delivered, parked or dead, at each destination.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod destination;
