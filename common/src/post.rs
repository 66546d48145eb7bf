//! Waking many on another thread for the price of one.
//!
//! A store answers many at once, from a thread of its own. To wake each of them across threads is a system call each, and
//! takes the word that says whether a task runs from the processor that runs it. So whoever waits [`by_post`] is
//! woken in two steps: letters for all of a thread are put into its post, which wakes the thread once, and
//! it wakes them from within.

use std::cell::{OnceCell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

use tokio::sync::Notify;

thread_local! {
    /// The post of this thread, if it delivers any.
    static POST: OnceCell<Arc<Post>> = const { OnceCell::new() };
    /// What this thread will put into posts all [`together`].
    static GATHERED: RefCell<Option<Vec<Arc<Letter>>>> = const { RefCell::new(None) };
}

/// Who on one thread is to be woken. As many as wait for something of another thread, at most.
#[derive(Default)]
struct Post {
    letters: Mutex<Vec<Arc<Letter>>>,
    arrived: Notify,
}

/// Wakes its addressee by way of the post: the thread that wakes it touches nothing of the addressee.
struct Letter {
    to: Waker,
    post: Arc<Post>,
}

/// Delivers this thread's post, for ever. Who waits [`by_post`] here from now on is woken by this, and only while it runs:
/// it is for the thread's own runtime of one thread.
pub async fn deliver() {
    let post = POST.with(|place| Arc::clone(place.get_or_init(Arc::default)));
    let mut letters = Vec::new();
    loop {
        post.arrived.notified().await;
        std::mem::swap(&mut letters, &mut post.letters.lock().unwrap_or_else(PoisonError::into_inner));
        letters.drain(..).for_each(|letter| letter.to.wake_by_ref());
    }
}

/// Waits for what another thread answers, and is woken by way of the post; on a thread without one, directly. Dropping
/// it drops the future.
pub async fn by_post<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut letter: Option<(usize, Waker)> = None;
    poll_fn(|cx| {
        // Whom a letter is for stays where it is while there is the letter.
        let to = cx.waker().data().addr();
        let known = letter.take().filter(|(known, _)| *known == to);
        let (_, by_post) = letter.insert(known.unwrap_or_else(|| {
            let to_here = cx.waker().clone();
            let by_post = POST.with(|place| match place.get() {
                Some(post) => Arc::new(Letter { to: to_here, post: Arc::clone(post) }).into(),
                None => to_here,
            });
            (to, by_post)
        }));
        future.as_mut().poll(&mut Context::from_waker(by_post))
    })
    .await
}

/// Does something that wakes many: whom it wakes by post is woken at its end, each thread once.
pub fn together(wake_many: impl FnOnce()) {
    let _sent_at_the_end = Gathered;
    GATHERED.with_borrow_mut(|gathered| _ = gathered.get_or_insert_default());
    wake_many();
}

/// Sends what is gathered when it is dropped, so that a panic keeps nobody waiting.
struct Gathered;

impl Drop for Gathered {
    fn drop(&mut self) {
        let mut letters = GATHERED.take().unwrap_or_default();
        letters.sort_by_key(|letter| Arc::as_ptr(&letter.post));
        let mut letters = letters.into_iter().peekable();
        while let Some(first) = letters.next() {
            let post = Arc::clone(&first.post);
            let same = std::iter::from_fn(|| letters.next_if(|letter| Arc::ptr_eq(&letter.post, &post)));
            post.put(std::iter::once(first).chain(same));
        }
    }
}

impl Post {
    /// Takes at least one letter.
    fn put(&self, arrived: impl Iterator<Item = Arc<Letter>>) {
        let mut letters = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = letters.is_empty();
        letters.extend(arrived);
        drop(letters);
        if is_first {
            self.arrived.notify_one();
        }
    }
}

impl Wake for Letter {
    fn wake(self: Arc<Self>) {
        let mut letter = Some(self);
        // A thread that ends gathers nothing any more.
        let _ = GATHERED.try_with(|gathered| {
            if let Some(gathered) = &mut *gathered.borrow_mut() {
                gathered.extend(letter.take());
            }
        });
        if let Some(letter) = letter {
            let post = Arc::clone(&letter.post);
            post.put(std::iter::once(letter));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use tokio::runtime::{Builder, Runtime};
    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn whoever_waits_is_woken_by_post_and_whoever_lets_go_is_not_missed() {
        const MANY: usize = 100;
        let (tell_askers, askers) = mpsc::channel();
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let tell_askers = tell_askers.clone();
                thread::spawn(move || {
                    let asking = async {
                        let (mut tells, mut stay) = (Vec::new(), Vec::new());
                        for number in 0..MANY {
                            let (tell, told) = oneshot::channel();
                            tells.push((number, tell));
                            if number % 2 == 0 {
                                stay.push((number, tokio::spawn(by_post(told))));
                            } else {
                                assert!(timeout(Duration::ZERO, by_post(told)).await.is_err());
                            }
                        }
                        tell_askers.send(tells).unwrap();
                        for (number, answer) in stay {
                            assert_eq!(answer.await.unwrap(), Ok(number));
                        }
                    };
                    runtime().block_on(async {
                        tokio::select! {
                            biased;
                            () = deliver() => {}
                            () = asking => {}
                        }
                    });
                })
            })
            .collect();
        let (first, second) =
            askers.iter().take(threads.len()).flatten().partition::<Vec<_>, _>(|(number, _)| number % 3 == 0);
        together(|| first.into_iter().for_each(|(number, tell)| _ = tell.send(number)));
        second.into_iter().for_each(|(number, tell)| _ = tell.send(number));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_panic_among_many_keeps_nobody_waiting() {
        let (tell, told) = oneshot::channel();
        let waking = || {
            together(|| {
                let _ = tell.send(());
                panic!("among many");
            });
        };
        runtime().block_on(async {
            let asking = async {
                let told = tokio::spawn(by_post(told));
                tokio::task::yield_now().await;
                assert!(thread::spawn(waking).join().is_err());
                told.await.unwrap()
            };
            tokio::select! {
                biased;
                () = deliver() => {}
                answer = asking => assert_eq!(answer, Ok(())),
            }
        });
    }

    #[test]
    fn without_a_post_whoever_waits_is_woken_directly() {
        let (tell, told) = oneshot::channel();
        let telling = thread::spawn(|| together(|| _ = tell.send(7)));
        assert_eq!(runtime().block_on(by_post(told)), Ok(7));
        telling.join().unwrap();
    }
}
