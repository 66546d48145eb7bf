//! What one receiver has not been told yet. Pure; bounded, because an alert has one place in it, the latest word on
//! it counts, and there is a most.

use std::collections::BTreeMap;

use super::conditions::Key;
use super::message::Notice;

/// Most alerts that wait for one receiver.
pub(super) const PENDING_MAX: usize = 256;

/// Notices that wait, and those that are being sent: these count as waiting until they have been taken, so that
/// whoever replaces the sender has them.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    pending: BTreeMap<Key, Notice>,
    in_hand: BTreeMap<Key, Notice>,
}

impl Mailbox {
    /// Adds a notice in place of an older one on the same alert; says no when there is no room.
    pub(super) fn put(&mut self, notice: Notice) -> bool {
        let key = notice.key();
        let has_room = self.pending.len() < PENDING_MAX || self.pending.contains_key(&key);
        if has_room {
            self.pending.insert(key, notice);
        }
        has_room
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.in_hand.is_empty()
    }

    /// All of them, to be sent.
    pub(super) fn take(&mut self) -> Vec<Notice> {
        let mut all = std::mem::take(&mut self.in_hand);
        all.append(&mut self.pending);
        self.in_hand = all;
        self.in_hand.values().cloned().collect()
    }

    /// What was taken has been told, or never will be.
    pub(super) fn done(&mut self) {
        self.in_hand.clear();
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::alerts::Condition;
    use crate::alerts::message::State;

    fn notice(subject: &str, state: State) -> Notice {
        let key = (Condition::DeadLetter, subject.into());
        Notice::new(&key, state, Timestamp::UNIX_EPOCH, String::new())
    }

    #[test]
    fn the_latest_word_on_an_alert_counts() {
        let mut mailbox = Mailbox::default();
        assert!(mailbox.put(notice("erp", State::Firing)));
        assert!(mailbox.put(notice("orders", State::Firing)));
        assert!(mailbox.put(notice("erp", State::Resolved)));
        let taken: Vec<State> = mailbox.take().iter().map(|notice| notice.state).collect();
        assert_eq!(taken, [State::Resolved, State::Firing]);
        mailbox.done();
        assert!(mailbox.is_empty());
    }

    #[test]
    fn what_was_taken_and_not_sent_is_taken_again_under_the_latest_word() {
        let mut mailbox = Mailbox::default();
        mailbox.put(notice("erp", State::Firing));
        mailbox.put(notice("orders", State::Firing));
        assert_eq!(mailbox.take().len(), 2);
        mailbox.put(notice("erp", State::Resolved));
        let taken = mailbox.take();
        assert_eq!(taken.len(), 2);
        assert_eq!(taken[0].state, State::Resolved);
    }

    #[test]
    fn there_is_a_most() {
        let mut mailbox = Mailbox::default();
        for number in 0..PENDING_MAX {
            assert!(mailbox.put(notice(&number.to_string(), State::Firing)));
        }
        assert!(!mailbox.put(notice("one more", State::Firing)));
        assert!(mailbox.put(notice("0", State::Resolved)), "a known alert has its place");
    }
}
