//! What operators say, at whichever process: a courier hears it from the storage and holds to it.
//!
//! What is heard is how things stand, not what happened: of many words in a row only the last counts, and a
//! courier that begins later hears the same.

use chaski_common::storage::{Cursor, StorageError};

use super::{Courier, Report};
use crate::dispatcher::REPLAYS_MAX;
use crate::lane::Lane;
use crate::reading::Reading;

impl Courier {
    /// Takes over how things stand now.
    pub(super) fn heed(&mut self) {
        let said = self.controls.borrow_and_update().get(&self.fixed.spec.name).cloned().unwrap_or_default();
        let last = std::mem::replace(&mut self.control, said);
        if last.by_hand != self.control.by_hand {
            self.look_again();
        }
        self.leave_replays();
        self.join_replays();
    }

    /// Has a replay that was begun, here or elsewhere, opened; at the bound the others wait for one to end. All
    /// couriers of the destination choose the same ones.
    fn join_replays(&mut self) {
        for replay in self.control.replays.iter().copied().take(REPLAYS_MAX) {
            let known = self.readings.iter().any(|reading| reading.cursor.replay == replay);
            if known || !self.joining.insert(replay) {
                continue;
            }
            let fixed = self.fixed.clone();
            let cursor = Cursor { destination: fixed.spec.name.clone(), replay };
            self.tasks
                .spawn(async move { Report::Joined { replay, reading: fixed.store.join(cursor).await } });
        }
    }

    pub(super) fn joined(
        &mut self,
        replay: u64,
        reading: Result<Reading, StorageError>,
    ) -> Result<(), StorageError> {
        self.joining.remove(&replay);
        let reading = reading?;
        if self.control.replays.contains(&replay) {
            self.readings.push(reading);
        }
        Ok(())
    }

    /// Lets go of replays that another courier has found to be settled, all of them.
    fn leave_replays(&mut self) {
        let over = |cursor: &Cursor| cursor.replay != 0 && !self.control.replays.contains(&cursor.replay);
        self.readings.retain(|reading| !over(&reading.cursor));
        let left: Vec<Lane> = self.lanes.extract_if(.., |lane| over(&lane.cursor)).collect();
        for lane in left {
            self.abandon(lane);
        }
    }
}
