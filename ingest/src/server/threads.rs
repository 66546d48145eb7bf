//! The threads that connections live on: one for each processor, each with a runtime of its own.
//!
//! A connection stays on the thread that serves it. On a runtime of several workers it wanders: what wakes it
//! is the storage's thread, and whichever worker is free takes it then, with all that belongs to it in the cache of
//! another processor. ARCHITECTURE.md has what that costs.
//!
//! Each takes connections from the one listener. Where another has clearly less to do, that one gets it: what a sender
//! keeps open is spread, and what ends with its first answer crosses no thread.
//!
//! What a connection spawns stays with it, too: the steps behind an append end on these threads, which therefore go on
//! for as long as anybody has a hand on the edge.
//!
//! The storage answers many at once, from a thread of its own, and wakes them by [post](chaski_common::post).

use std::{io, thread};

use chaski_common::post::deliver;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::per_thread;

/// As many as help anybody: each takes some memory, and waits in the kernel by itself.
const THREADS_MAX: usize = 64;

/// See the module. The threads end after this is dropped, and nobody waits for that.
pub(super) struct Threads {
    runtimes: Vec<Handle>,
    _end: DropGuard,
}

impl Threads {
    /// Starts one for each processor that this process may use.
    pub(super) fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let end = CancellationToken::new();
        let mut runtimes = Vec::with_capacity(count);
        for number in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtimes.push(runtime.handle().clone());
            let ended = end.clone();
            let serve = move || {
                per_thread::set_number(number);
                runtime.block_on(async {
                    tokio::select! {
                        () = ended.cancelled() => {}
                        () = deliver() => {}
                    }
                });
            };
            thread::Builder::new().name(format!("chaski-edge-{number}")).spawn(serve)?;
        }
        Ok(Self { runtimes, _end: end.drop_guard() })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.runtimes.len()
    }

    /// Begins something on each of them.
    pub(super) fn spawn_on_each<F>(&self, mut future: impl FnMut() -> F) -> Vec<JoinHandle<()>>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.runtimes.iter().map(|runtime| runtime.spawn(future())).collect()
    }

    /// The one that has the least to do, if that is less by an eighth than what the one has that this is called on.
    pub(super) fn less_busy(&self) -> Option<&Handle> {
        let here = Handle::current().metrics().num_alive_tasks();
        let by_tasks = self.runtimes.iter().map(|runtime| (runtime.metrics().num_alive_tasks(), runtime));
        let (least, runtime) = by_tasks.min_by_key(|(tasks, _)| *tasks)?;
        (least + least / 8 + 1 < here).then_some(runtime)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_comes_stays_until_another_thread_has_clearly_less_to_do() {
        let threads = Arc::new(Threads::start().unwrap());
        let is_alone = threads.count() == 1;
        let main = Builder::new_current_thread().build().unwrap();
        for (tasks, is_moved) in [(0, false), (8, true)] {
            let asked = Arc::clone(&threads);
            let busy = threads.runtimes.first().unwrap();
            let _idle: Vec<_> = (0..tasks).map(|_| busy.spawn(std::future::pending::<()>())).collect();
            let moved = busy.spawn(async move { asked.less_busy().is_some() });
            assert_eq!(main.block_on(moved).unwrap(), is_moved && !is_alone, "{tasks}");
        }
    }
}
