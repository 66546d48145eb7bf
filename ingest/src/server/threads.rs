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
//! The storage answers many at once, from a thread of its own. To wake each of them across threads is a system call
//! each; so they are put into their thread's [`Post`], which wakes the thread once and them from within.

use std::cell::OnceCell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;
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
                let post = Arc::<Post>::default();
                POST.with(|place| _ = place.set(Arc::clone(&post)));
                runtime.block_on(async {
                    tokio::select! {
                        () = ended.cancelled() => {}
                        () = post.deliver() => {}
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

thread_local! {
    /// Of the threads that are started here; no other has one.
    static POST: OnceCell<Arc<Post>> = const { OnceCell::new() };
}

/// Who on one thread is to be woken. As many as wait for something of another thread, at most: one a connection.
#[derive(Default)]
struct Post {
    letters: Mutex<Vec<Waker>>,
    arrived: Notify,
}

/// Wakes its addressee by way of the post.
struct Letter {
    to: Waker,
    post: Arc<Post>,
}

impl Post {
    /// Wakes whoever is to be woken, for ever.
    async fn deliver(&self) {
        let mut letters = Vec::new();
        loop {
            self.arrived.notified().await;
            std::mem::swap(&mut letters, &mut self.letters.lock().unwrap_or_else(PoisonError::into_inner));
            letters.drain(..).for_each(Waker::wake);
        }
    }
}

impl Wake for Letter {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut letters = self.post.letters.lock().unwrap_or_else(PoisonError::into_inner);
        letters.push(self.to.clone());
        let is_first = letters.len() == 1;
        drop(letters);
        if is_first {
            self.post.arrived.notify_one();
        }
    }
}

/// What comes of something that another thread answers, which wakes whoever waits here by way of the post; on a thread
/// without one, directly. Dropping it drops the future.
pub(crate) async fn by_post<F: Future>(future: F) -> F::Output {
    let Some(post) = POST.with(|place| place.get().cloned()) else { return future.await };
    let mut future = pin!(future);
    let mut letter: Option<(Waker, Waker)> = None;
    poll_fn(|cx| {
        let known = letter.take().filter(|(to, _)| to.will_wake(cx.waker()));
        let (_, by_post) = letter.insert(known.unwrap_or_else(|| {
            let to = cx.waker().clone();
            (to.clone(), Arc::new(Letter { to, post: Arc::clone(&post) }).into())
        }));
        future.as_mut().poll(&mut Context::from_waker(by_post))
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

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

    #[test]
    fn whoever_waits_for_another_thread_is_woken_by_post_and_whoever_lets_go_is_not_missed() {
        const MANY: usize = 100;
        let threads = Threads::start().unwrap();
        let thread = threads.runtimes.first().unwrap();
        let (mut asked, mut answered) = (Vec::new(), Vec::new());
        for number in 0..MANY {
            let (tell, told) = oneshot::channel();
            asked.push(tell);
            answered.push(thread.spawn(async move {
                let within = Duration::from_secs(if number % 2 == 0 { 60 } else { 0 });
                tokio::time::timeout(within, by_post(told)).await
            }));
        }
        let main = Builder::new_current_thread().enable_all().build().unwrap();
        main.block_on(async {
            let mut odd = Vec::new();
            for (number, answer) in answered.into_iter().enumerate() {
                if number % 2 == 0 {
                    odd.push((number, answer));
                } else {
                    assert!(answer.await.unwrap().is_err());
                }
            }
            let told = thread::spawn(|| asked.into_iter().enumerate().for_each(|(n, tell)| _ = tell.send(n)));
            for (number, answer) in odd {
                assert_eq!(answer.await.unwrap(), Ok(Ok(number)));
            }
            told.join().unwrap();
            assert_eq!(by_post(async { 7 }).await, 7, "also where there is no post");
        });
    }
}
