//! What each thread of the edge has for itself.
//!
//! A word in memory that two processors write to goes back and forth between them, and each waits for it. What a request
//! writes to is therefore its thread's own where it can be: counters, the count of who holds a source, the lock in front of it.

use std::cell::Cell;

thread_local! {
    /// Which of the edge's threads this one is; the first, where there is no edge around it.
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// Says which of the edge's threads this one is, from 0.
pub(crate) fn set_number(number: usize) {
    NUMBER.set(number);
}

/// One for each thread, too far apart for processors to share what lies between.
pub(crate) struct PerThread<T>(Box<[Apart<T>]>);

/// Two lines of a cache: processors fetch the neighbour of what they ask for.
#[repr(align(128))]
struct Apart<T>(T);

impl<T> PerThread<T> {
    /// One for each of so many threads, at least one.
    pub(crate) fn new(threads: usize, make: impl FnMut() -> T) -> Self {
        Self(std::iter::repeat_with(make).take(threads.max(1)).map(Apart).collect())
    }

    /// This thread's own.
    pub(crate) fn here(&self) -> &T {
        &self.0[NUMBER.get().min(self.0.len() - 1)].0
    }

    /// Everybody's, the first thread's first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|Apart(own)| own)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn each_thread_has_its_own_and_one_too_many_shares_the_last() {
        let own = PerThread::new(2, || Mutex::new(0));
        std::thread::scope(|scope| {
            for number in 0..3 {
                let own = &own;
                scope.spawn(move || {
                    set_number(number);
                    *own.here().lock().unwrap() += 10_i32.pow(number as u32);
                });
            }
        });
        *own.here().lock().unwrap() += 1;
        assert_eq!(own.all().map(|own| *own.lock().unwrap()).collect::<Vec<_>>(), [2, 110]);
    }
}
