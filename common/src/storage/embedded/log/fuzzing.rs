//! What the fuzzers run: rows of a file that something else has written to.

use super::{Batch, Decoder, Entry, Events, Rest};
use crate::event::Event;
use crate::fuzzing::Target;

/// Every target of this part.
pub const FUZZED: &[Target] = &[Target { name: "row", run: row }];

/// The events of a row, up to the first that is none.
fn events(row: &[u8]) -> Vec<Event> {
    let events = Events { positions: 1..=u64::MAX, rest: Rest::Batch(Decoder::new(row)) };
    events.map_while(|found| found.and_then(|(_, kept)| kept.event(None)).ok()).collect()
}

/// What is read is written and read again: the same.
fn row(input: &[u8]) {
    let found = events(input);
    let mut batch = Batch::default();
    for event in &found {
        batch.add(&Entry::of(event.clone()).expect("what was read can be written"));
    }
    assert_eq!(events(&batch.events), found);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_from_a_row_is_written_and_read_again_the_same() {
        crate::fuzzing::brief(FUZZED[0]);
    }
}
