//! The edge: from a socket to a durable event and a 200.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod source;
