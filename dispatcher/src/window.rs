//! Which positions of a log are settled at a destination. Pure.
//!
//! Promise (I3): the mark never passes a position that is not settled, and never goes back.
//!
//! Two bounds: what is not settled (records and bytes, which is memory), and the span from the mark to the
//! last position, settled or not (which is what a crash may have to look at again, and what one slow
//! delivery can stand in front of).

use std::collections::VecDeque;

use chaski_common::storage::Position;

/// The positions past the mark, in log order.
#[derive(Debug)]
pub(crate) struct Window {
    mark: Position,
    entries: VecDeque<Entry>,
    unsettled: usize,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    position: Position,
    /// What it weighs while it is not settled; none once it is.
    weight: Option<u32>,
}

impl Window {
    /// Everything up to `mark` is settled.
    pub(crate) const fn new(mark: Position) -> Self {
        Self { mark, entries: VecDeque::new(), unsettled: 0, bytes: 0 }
    }

    /// Everything up to here is settled.
    pub(crate) const fn mark(&self) -> Position {
        self.mark
    }

    /// Positions that are not settled.
    pub(crate) const fn unsettled(&self) -> usize {
        self.unsettled
    }

    /// What they weigh.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Positions past the mark, settled or not; a run of positions that never concerned the destination
    /// counts once.
    pub(crate) fn span(&self) -> usize {
        self.entries.len()
    }

    /// The last position seen.
    pub(crate) fn last(&self) -> Position {
        self.entries.back().map_or(self.mark, |entry| entry.position)
    }

    /// A position that is to be settled later. Answers whether it is new: one that was seen before must not
    /// be delivered by this reading of the log.
    pub(crate) fn admit(&mut self, position: Position, weight_bytes: usize) -> bool {
        if position <= self.last() {
            return false;
        }
        let weight = u32::try_from(weight_bytes).unwrap_or(u32::MAX);
        self.entries.push_back(Entry { position, weight: Some(weight) });
        self.unsettled += 1;
        self.bytes += weight as usize;
        true
    }

    /// A position that is settled from the start.
    pub(crate) fn pass(&mut self, position: Position) {
        if position <= self.last() {
            return;
        }
        match self.entries.back_mut() {
            None => self.mark = position,
            Some(back) if back.weight.is_none() => back.position = position,
            Some(_) => self.entries.push_back(Entry { position, weight: None }),
        }
    }

    /// An admitted position is settled; a second time changes nothing.
    pub(crate) fn settle(&mut self, position: Position) {
        let Ok(index) = self.entries.binary_search_by_key(&position, |entry| entry.position) else {
            return;
        };
        let Some(weight) = self.entries[index].weight.take() else {
            return;
        };
        self.unsettled -= 1;
        self.bytes -= weight as usize;
        while let Some(front) = self.entries.front()
            && front.weight.is_none()
        {
            self.mark = front.position;
            self.entries.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Admit {
            gap: u64,
            weight: usize,
        },
        Pass {
            gap: u64,
        },
        /// Settles the n-th of those not settled.
        Settle(usize),
        /// Settles or admits a position seen before.
        Again(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1_u64..5, 0_usize..1000).prop_map(|(gap, weight)| Step::Admit { gap, weight }),
            2 => (1_u64..5).prop_map(|gap| Step::Pass { gap }),
            4 => any::<usize>().prop_map(Step::Settle),
            1 => (0_u64..100).prop_map(Step::Again),
        ]
    }

    proptest! {
        /// I3, against a model that is a plain set of what is not settled.
        #[test]
        fn the_mark_never_passes_an_unsettled_position_and_never_goes_back(steps in proptest::collection::vec(step(), 0..300)) {
            let mut window = Window::new(Position(10));
            let (mut last, mut open) = (10_u64, BTreeSet::new());
            let mut bytes = std::collections::BTreeMap::new();
            for step in steps {
                let before = window.mark();
                match step {
                    Step::Admit { gap, weight } => {
                        last += gap;
                        prop_assert!(window.admit(Position(last), weight));
                        open.insert(last);
                        bytes.insert(last, weight);
                    }
                    Step::Pass { gap } => { last += gap; window.pass(Position(last)); }
                    Step::Settle(n) if !open.is_empty() => {
                        let position = *open.iter().nth(n % open.len()).unwrap();
                        open.remove(&position);
                        bytes.remove(&position);
                        window.settle(Position(position));
                    }
                    Step::Settle(_) => {}
                    Step::Again(position) => {
                        let position = position.min(last);
                        prop_assert!(!window.admit(Position(position), 1));
                        window.pass(Position(position));
                        if !open.contains(&position) { window.settle(Position(position)); }
                    }
                }
                prop_assert!(window.mark() >= before, "never back");
                match open.first() {
                    Some(lowest) => prop_assert!(window.mark().0 < *lowest),
                    None => prop_assert_eq!(window.mark().0, last, "nothing open: the mark is at the end"),
                }
                prop_assert_eq!(window.unsettled(), open.len());
                prop_assert_eq!(window.bytes(), bytes.values().sum::<usize>());
                prop_assert_eq!(window.last().0, last);
            }
        }
    }

    #[test]
    fn events_of_others_take_no_room_behind_a_slow_one() {
        let mut window = Window::new(Position(0));
        window.admit(Position(1), 1);
        for position in 2..100_000 {
            window.pass(Position(position));
        }
        assert_eq!(window.span(), 2);
        window.settle(Position(1));
        assert_eq!((window.mark(), window.span()), (Position(99_999), 0));
    }
}
