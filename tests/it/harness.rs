//! What the journeys share: a site with a running gateway, senders, receivers, and waiting for a state.

mod balancer;
mod certificate;
mod gateway;
mod http;
mod network;
mod receiver;
mod sender;
mod smtp;
mod storage;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

pub(crate) use self::balancer::Balancer;
pub(crate) use self::certificate::{certificate, expire};
pub(crate) use self::gateway::{Destination, Gateway, Layout, Site, text};
pub(crate) use self::http::{Answer, connect, exchange, get, post, read_answer};
pub(crate) use self::network::{Network, Weather};
pub(crate) use self::receiver::{Receipt, Receiver, Reply};
pub(crate) use self::sender::{Callback, DESTINATION_SECRET, PE_PATH, PE_SECRET, hex_hmac, paid, payment};
pub(crate) use self::smtp::MailServer;
pub(crate) use self::storage::{Storage, Topics};

/// How long a state may take to come about; long, because the machine may have other things to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
pub(crate) const LOOK: Duration = Duration::from_millis(10);

/// Looks again and again until there is something to see; panics with what was waited for when it does not come.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look)
}

/// As [`eventually`], with a bound of the caller's.
#[track_caller]
pub(crate) fn within<T>(bound: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "not seen within {bound:?}: {what}");
        pause(LOOK);
    }
}

/// Lets time pass: between two looks, between two payments, up to the moment of a fault. Never until something is
/// bound to have happened.
#[allow(clippy::disallowed_methods, reason = "on a thread of the test's own, not on a worker")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Runs a program that is not ours and returns what it printed.
#[track_caller]
pub(crate) fn tool(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = tool_output(program, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?} failed: {said}");
    output.stdout
}

/// Runs a program that may fail.
#[track_caller]
pub(crate) fn tool_output(program: &str, arguments: &[&str]) -> Output {
    match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) => panic!("this test needs {program}: {error}"),
    }
}

/// SplitMix64: a seed gives the same numbers everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `low` to below `high`.
    pub(crate) const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    pub(crate) const fn percent(&mut self, share: u64) -> bool {
        self.between(0, 100) < share
    }
}
