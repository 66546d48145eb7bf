//! From a durable event to delivered, parked or dead, at each destination.
//!
//! The way of one event, module by module: `route` says whether a destination takes it, a `lane` has it
//! in its `window` until it is settled, `deliver` makes one attempt, `outcome` says what came of it,
//! `attempt` decides what follows. One `courier` task per destination owns all that changes there: its
//! lanes, its `parked` deliveries, its `breaker` and the `subjects` that wait for each other.
//! [`Dispatcher`] starts, steers and stops the couriers.
//!
//! Promise: an event ends delivered or dead at every destination it is routed to. Its position is settled
//! when the destination has taken it, or when the storage has acknowledged it as parked or dead; never
//! before. What this crate does not do: listen, store, or read a configuration file.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod destination;
mod dispatcher;
pub mod status;
mod route;
mod courier;
mod reading;
mod lane;
mod window;
mod subjects;
mod delivery;
mod span;
mod deliver;
mod outcome;
mod attempt;
mod breaker;
mod rate;
mod parked;
mod store;
mod metrics;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::expect_used, clippy::panic, reason = "a panic is what a fuzzer looks for")]
pub mod fuzzing;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod journeys;

pub use deliver::egress::is_never_dialled;
pub use deliver::notice::{Answer, PostError, Poster};
pub use deliver::reach::{Reached, Step, Unreachable, reach};
pub use deliver::sign::{SECRET_PREFIX, Signer, standard_key};
pub use dispatcher::{Dispatcher, DispatcherConfig, Error, REPLAYS_MAX, ReplayStarted};
