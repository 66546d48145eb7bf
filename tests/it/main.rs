//! Journeys through the real binary over real sockets: one file per promise, and `crash.rs`, which kills it.
//!
//! Every test has a process, a store, a configuration and receivers of its own, and waits for states, never for
//! durations. A tool that is missing (curl, python3, openssl, cc) fails the test that needs it.
//!
//! One suite, two runs: as it is on the embedded storage, and with `CHASKI_TEST_STORAGE=kafka` on a real broker and a
//! real Redis. `disk` and `upgrade` are about the file, `kafka` about what only Kafka has: they have one run.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on says so and ends")]

mod harness;
mod town;

mod durable;
mod settled;
mod environments;
mod authentic;
mod once;
mod isolated;
mod bounded;
mod secrets;
mod series;

mod outbound;
mod traces;
mod patient;
mod ordered;

mod commands;
mod configuration;
mod reload;
mod alerts;
mod process;
mod tls;
mod doctor;
mod demo;

mod upgrade;
mod disk;
mod crash;
mod kafka;
mod corpus;
