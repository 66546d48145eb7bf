//! The threads that connections live on: one for each processor, each with a runtime of its own.
//!
//! A connection stays on the thread that it was given to. On a runtime of several workers it wanders: what wakes it
//! is the storage's thread, and whichever worker is free takes it then, with all that belongs to it in the cache of
//! another processor. ARCHITECTURE.md has what that costs.
//!
//! What a connection spawns stays with it, too: the steps behind an append end on these threads, which therefore go on
//! for as long as anybody has a hand on the edge.

use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

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
            thread::Builder::new()
                .name(format!("chaski-edge-{number}"))
                .spawn(move || runtime.block_on(ended.cancelled()))?;
        }
        Ok(Self { runtimes, _end: end.drop_guard() })
    }

    /// The one that has the least to do.
    pub(super) fn least_busy(&self) -> Option<&Handle> {
        self.runtimes.iter().min_by_key(|runtime| runtime.metrics().num_alive_tasks())
    }
}
