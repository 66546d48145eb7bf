//! What operators have said, as the parked topic tells it: control records, and deliveries changed by hand.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::storage;

/// What holds for destinations and replays.
#[derive(Clone, Debug, Default)]
pub(super) struct Controls {
    pub(super) destinations: BTreeMap<String, DestinationControl>,
    pub(super) replays: BTreeMap<u64, ReplayControl>,
    /// How often each destination's parked deliveries were changed by hand since the topic is followed.
    by_hand: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct DestinationControl {
    pub(super) paused: bool,
    /// Its group has had progress: should the brokers not know it any more, the destination is not a new one.
    #[serde(default)]
    pub(super) begun: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ReplayControl {
    pub(super) destination: String,
    pub(super) spans: Vec<Span>,
}

/// The part of a replay in one partition: places in `(mark, until]`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Span {
    pub(super) partition: u32,
    pub(super) mark: u64,
    pub(super) until: u64,
}

/// What one record says.
pub(super) enum Control {
    Destination(String, Option<DestinationControl>),
    Replay(u64, Option<ReplayControl>),
    ByHand(String),
}

impl Controls {
    pub(super) fn apply(&mut self, control: Control) {
        match control {
            Control::Destination(name, Some(state)) => drop(self.destinations.insert(name, state)),
            Control::Destination(name, None) => drop(self.destinations.remove(&name)),
            Control::Replay(number, Some(state)) => drop(self.replays.insert(number, state)),
            Control::Replay(number, None) => drop(self.replays.remove(&number)),
            Control::ByHand(name) => *self.by_hand.entry(name).or_default() += 1,
        }
    }

    /// As the seam tells it.
    pub(super) fn told(&self) -> storage::Controls {
        let mut told = storage::Controls::new();
        for (name, control) in &self.destinations {
            told.entry(name.as_str().into()).or_default().paused = control.paused;
        }
        for (number, replay) in &self.replays {
            told.entry(replay.destination.as_str().into()).or_default().replays.insert(*number);
        }
        for (name, times) in &self.by_hand {
            told.entry(name.as_str().into()).or_default().by_hand = *times;
        }
        told
    }
}
