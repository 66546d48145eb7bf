//! Wakes that come from other threads, many at once.
//!
//! A connection lives on a runtime of one thread, and what it waits for is told elsewhere: by the thread that talks to
//! Redis, and by the producer's. Each wake from outside of such a runtime is a write to its eventfd, twice per event.
//! Therefore others wake a [`Relay`] instead: it puts the task's waker on the list of its thread, and only the first
//! one on an empty list wakes anybody, which is a task there that calls all that are listed.
//!
//! Nothing is lost: a list whose runtime has ended calls its wakers itself, and so does a runtime of several threads, which has no
//! list. Bounded by the tasks that wait.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::runtime::{Handle, Id, RuntimeFlavor};

thread_local! {
    /// The list of the runtime that was last asked for here.
    static HERE: RefCell<Option<(Id, Arc<List>)>> = const { RefCell::new(None) };
}

/// Awaits what another thread brings to an end. Dropped half-way it leaves nothing.
pub(super) async fn relayed<F: Future + Unpin>(mut future: F) -> F::Output {
    let Some(list) = List::here() else { return future.await };
    let mut relay: Option<(Arc<Relay>, Waker)> = None;
    poll_fn(move |context| {
        let waker = context.waker();
        if relay.as_ref().is_none_or(|(relay, _)| !relay.task.will_wake(waker)) {
            let fresh = Arc::new(Relay { list: Arc::clone(&list), task: waker.clone() });
            relay = Some((Arc::clone(&fresh), fresh.into()));
        }
        let waker = relay.as_ref().map_or(waker, |(_, waker)| waker);
        Pin::new(&mut future).poll(&mut Context::from_waker(waker))
    })
    .await
}

/// The wakers to be called on one thread.
#[derive(Default)]
struct List(Mutex<Listed>);

#[derive(Default)]
struct Listed {
    wakers: Vec<Waker>,
    /// Of the task that calls them; none before it is first polled.
    caller: Option<Waker>,
    /// That task is gone.
    is_over: bool,
}

impl List {
    /// The list of this runtime, if it is of one thread.
    fn here() -> Option<Arc<Self>> {
        let runtime = Handle::try_current().ok()?;
        if runtime.runtime_flavor() != RuntimeFlavor::CurrentThread {
            return None;
        }
        HERE.with_borrow_mut(|here| match here {
            Some((id, list)) if *id == runtime.id() && !list.lock().is_over => Some(Arc::clone(list)),
            _ => {
                let list = Arc::<Self>::default();
                runtime.spawn(Caller { list: Arc::clone(&list), wakers: Vec::new() });
                *here = Some((runtime.id(), Arc::clone(&list)));
                Some(list)
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Listed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, waker: Waker) {
        let mut listed = self.lock();
        let wake = if listed.is_over {
            Some(waker)
        } else {
            listed.wakers.push(waker);
            if listed.wakers.len() == 1 { listed.caller.clone() } else { None }
        };
        drop(listed);
        if let Some(waker) = wake {
            waker.wake();
        }
    }
}

/// What others wake in the place of a task.
struct Relay {
    list: Arc<List>,
    task: Waker,
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.list.add(self.task.clone());
    }
}

/// Calls what is listed, until its runtime ends.
struct Caller {
    list: Arc<List>,
    /// Empty between two polls; kept for its room.
    wakers: Vec<Waker>,
}

impl Future for Caller {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Self { list, wakers } = &mut *self;
        let mut listed = list.lock();
        match &mut listed.caller {
            Some(caller) => caller.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        std::mem::swap(&mut listed.wakers, wakers);
        drop(listed);
        wakers.drain(..).for_each(Waker::wake);
        Poll::Pending
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut listed = self.list.lock();
        listed.is_over = true;
        let left = std::mem::take(&mut listed.wakers);
        drop(listed);
        left.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use tokio::runtime::{Builder, Runtime};
    use tokio::sync::oneshot;

    use super::*;

    fn one_thread() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// Counts how often it is woken.
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn many_answers_of_another_thread_are_one_wake() {
        let list = Arc::<List>::default();
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let tasks = Arc::new(Count(AtomicUsize::new(0)));
        let mut caller = Caller { list: Arc::clone(&list), wakers: Vec::new() };
        let waker = Arc::clone(&count).into();
        let mut context = Context::from_waker(&waker);
        for round in 1..=3 {
            assert!(Pin::new(&mut caller).poll(&mut context).is_pending());
            assert_eq!(tasks.0.load(Ordering::Relaxed), 100 * (round - 1));
            for _ in 0..100 {
                list.add(Arc::clone(&tasks).into());
            }
            assert_eq!(count.0.load(Ordering::Relaxed), round, "only the first one wakes");
        }
        drop(caller);
        assert_eq!(tasks.0.load(Ordering::Relaxed), 300, "what is left is called at the end");
        list.add(Arc::clone(&tasks).into());
        assert_eq!(tasks.0.load(Ordering::Relaxed), 301, "and from then on at once");
    }

    #[test]
    fn answers_of_another_thread_arrive_on_one_runtime_after_the_other_and_on_two_at_once() {
        let (first, second) = (one_thread(), one_thread());
        for runtime in [&first, &second, &first, &one_thread()] {
            let (answers, waiting): (Vec<_>, Vec<_>) = (0..1000).map(|_| oneshot::channel()).unzip();
            let others = thread::spawn(move || {
                for (number, answer) in answers.into_iter().enumerate() {
                    answer.send(number).unwrap();
                    if number % 100 == 0 {
                        thread::yield_now();
                    }
                }
            });
            runtime.block_on(async {
                let tasks: Vec<_> = waiting.into_iter().map(|answer| tokio::spawn(relayed(answer))).collect();
                for (number, task) in tasks.into_iter().enumerate() {
                    assert_eq!(task.await.unwrap(), Ok(number));
                }
            });
            others.join().unwrap();
        }
    }

    #[test]
    fn what_goes_on_elsewhere_is_woken_there() {
        let (answer, waiting) = oneshot::channel();
        let mut waiting = Box::pin(relayed(waiting));
        let first = one_thread();
        first.block_on(async {
            assert!(futures_util::poll!(&mut waiting).is_pending());
        });
        drop(first);
        let others = thread::spawn(move || answer.send(7));
        assert_eq!(one_thread().block_on(waiting), Ok(7));
        others.join().unwrap().unwrap();
    }
}
