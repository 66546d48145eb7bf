//! A town whose merchants are paid while something breaks: senders who repeat and forge, three receivers of which two
//! fail now and then, and a ledger that in the end holds what was answered 200 against what each receiver has.
//!
//! The seed decides what is sent and how receivers answer; it is printed, and `CHASKI_TEST_SEED` repeats it.

mod verdict;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub(crate) use self::verdict::{Alone, Faults};
use self::verdict::{Copy, Digest, Ledger, Violation, missing, verdict};
use crate::harness::{
    Callback, Destination, LOOK, Layout, PE_PATH, Random, Receipt, Receiver, Reply, Topics, paid, pause, post,
};

const SENDERS: u64 = 20;
/// Attempts under way at once at each destination, in each process.
const CONCURRENCY: u64 = 16;
/// Of a hundred posts, repeats of what was answered before.
const REPEATS: u64 = 12;
/// How long an unanswered callback is posted again and again.
const PERSISTENCE: Duration = Duration::from_secs(20);
/// How long the backlog may take once nothing breaks any more.
const DRAIN: Duration = Duration::from_secs(120);

/// The seed of this run.
pub(crate) fn seed() -> u64 {
    setting("CHASKI_TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()))
}

/// A number that the environment may choose.
pub(crate) fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

/// Everybody who posts, what they were told, and those who are to have it.
pub(crate) struct Town {
    name: &'static str,
    seed: u64,
    begun: Instant,
    /// How much longer than usual people rest between two payments.
    leisure: u64,
    pub(crate) receivers: BTreeMap<&'static str, Receiver>,
    ledger: Mutex<Ledger>,
    stop: AtomicBool,
    /// Nobody rests: many posts are under way at once.
    rush: AtomicBool,
    under_way: AtomicUsize,
    answered: AtomicU64,
    cut: AtomicU64,
    unavailable: AtomicU64,
    forged: AtomicU64,
}

impl Town {
    pub(crate) fn new(name: &'static str, seed: u64) -> Self {
        eprintln!("{name}: CHASKI_TEST_SEED={seed}");
        Self {
            name,
            seed,
            begun: Instant::now(),
            leisure: 1,
            receivers: receivers(seed),
            ledger: Mutex::default(),
            stop: AtomicBool::new(false),
            rush: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            answered: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            unavailable: AtomicU64::new(0),
            forged: AtomicU64::new(0),
        }
    }

    /// Where faults last for long, fewer payments a second prove as much and are delivered sooner afterwards.
    pub(crate) fn at_leisure(name: &'static str, seed: u64) -> Self {
        Self { leisure: 4, ..Self::new(name, seed) }
    }

    /// A configuration with all receivers as destinations.
    pub(crate) fn layout(&self) -> Layout {
        let retry = "first = \"100ms\"\nfactor = 2\ncap = \"800ms\"\ngive_up_after = \"1h\"";
        Layout::to(self.receivers.iter().map(|(name, receiver)| {
            Destination::new(name, receiver).with(&format!("concurrency = {CONCURRENCY}")).retrying(retry)
        }))
    }

    /// Lets everybody post to these edges for as long as something takes.
    pub(crate) fn busy<T>(&self, edges: &[SocketAddr], during: impl FnOnce() -> T) -> T {
        self.stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            for sender in 0..SENDERS {
                scope.spawn(move || self.send(sender, edges));
            }
            scope.spawn(|| self.forge(edges));
            // Whatever happens meanwhile, the senders must be told to stop, or the scope never ends.
            let _stop = StopOnDrop(&self.stop);
            during()
        })
    }

    /// How many posts have been answered 200.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Acquire)
    }

    /// How many posts met a kill.
    pub(crate) fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    fn unavailable(&self) -> u64 {
        self.unavailable.load(Ordering::Relaxed)
    }

    /// Lets time pass in which people are answered 200 whatever is broken.
    #[track_caller]
    pub(crate) fn goes_on(&self, what: &str, time: Duration) {
        let answered = self.answered();
        pause(time);
        let since = self.answered() - answered;
        assert!(since > SENDERS, "{what}: only {since} answered 200 in {time:?}");
    }

    /// Next to nobody was refused: a machine that others keep busy for longer than an answer may take is a 503, and
    /// rightly so. Without what bridges the fault, most posts would be refused for as long as it lasts.
    #[track_caller]
    pub(crate) fn was_served(&self) {
        let (refused, answered) = (self.unavailable(), self.answered());
        assert!(refused <= SENDERS + answered / 20, "{refused} posts refused, {answered} answered 200");
    }

    /// Waits until everything has arrived and nothing is left to do, then holds the ledger against the receivers.
    /// `destinations` tells how they stand.
    #[track_caller]
    pub(crate) fn judge(&self, faults: Faults, destinations: impl FnMut() -> Value) {
        self.judge_with(faults, Alone::new, destinations);
    }

    /// The same of several edges, which share their deduplication: where one has not asked the others, its record says so.
    #[track_caller]
    pub(crate) fn judge_edges(&self, faults: Faults, topics: &Topics, destinations: impl FnMut() -> Value) {
        self.judge_with(faults, || topics.stored_alone(), destinations);
    }

    #[track_caller]
    fn judge_with(&self, faults: Faults, alone: impl FnOnce() -> Alone, destinations: impl FnMut() -> Value) {
        let at_rest = self.wait_until_at_rest(destinations);
        let ledger = self.ledger.lock().unwrap();
        let (name, seed) = (self.name, self.seed);
        eprintln!(
            "{name}: at rest after {:.1?}; {} sent, {} answered 200, {} posts cut off, {} refused for now, {} forged",
            self.begun.elapsed(),
            ledger.sent.len(),
            ledger.answered.len(),
            self.cut(),
            self.unavailable(),
            self.forged.load(Ordering::Relaxed),
        );
        let faults = Faults { concurrency: CONCURRENCY, ..faults };
        // Read when nothing comes into the log any more.
        let alone = alone();
        match verdict(&ledger, &self.copies(), faults, &alone) {
            Ok(stats) => eprintln!("{name}: nothing lost; {} excused; {stats:?}", alone.len()),
            Err(violations) => panic!(
                "{name}, seed {seed}: {} violations, first: {:#?}",
                violations.len(),
                &violations[..violations.len().min(20)]
            ),
        }
        if let Err(last) = at_rest {
            panic!("{name}, seed {seed}: everything has arrived, and yet it does not come to rest: {last:#}");
        }
    }

    /// Comes back at the latest when patience is over, with how it looked then: what is missing by then is lost.
    fn wait_until_at_rest(&self, mut destinations: impl FnMut() -> Value) -> Result<(), Value> {
        let last = RefCell::new(Value::Null);
        let _show = ShowOnPanic(&last);
        let deadline = Instant::now() + DRAIN;
        loop {
            let told = destinations();
            // Brokers that have just come back may not know yet.
            let all = told.as_array().map(Vec::as_slice).unwrap_or_default();
            assert!(all.iter().all(|destination| destination["dead"] == 0), "{told:#}");
            let is_empty = |destination: &Value| destination["lag"] == 0 && destination["parked"] == 0;
            let at_rest = all.len() == self.receivers.len() && all.iter().all(is_empty);
            if at_rest && !missing(&self.ledger.lock().unwrap(), &self.copies()) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(told);
            }
            last.replace(told);
            pause(20 * LOOK);
        }
    }

    fn copies(&self) -> BTreeMap<&'static str, Vec<Copy>> {
        let copy = |receipt: Receipt| Copy {
            is_taken: receipt.is_taken(),
            at_ms: receipt.answered.duration_since(self.begun).as_millis() as u64,
            id: receipt.id,
            digest: receipt.digest,
        };
        let copies = |receiver: &Receiver| receiver.receipts().into_iter().map(copy).collect();
        self.receivers.iter().map(|(name, receiver)| (*name, copies(receiver))).collect()
    }

    /// Comes back at such a moment; at any moment if it does not come soon.
    pub(crate) fn wait_for(&self, moment: &Moment) {
        self.rush.store(matches!(moment, Moment::Crowded | Moment::JustAnswered), Ordering::Relaxed);
        let answered = self.answered() + SENDERS;
        let is_now = || match moment {
            Moment::Starting | Moment::Random => true,
            Moment::Crowded => self.under_way.load(Ordering::Relaxed) as u64 >= SENDERS * 2 / 3,
            // In the middle of the rush, not at its beginning.
            Moment::JustAnswered => self.answered() > answered,
        };
        let deadline = Instant::now() + Duration::from_millis(200);
        while !is_now() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }

    /// What was broken is broken; people take their time again.
    pub(crate) fn calm(&self) {
        self.rush.store(false, Ordering::Relaxed);
    }
}

/// The moments at which a process may die.
#[derive(Debug)]
pub(crate) enum Moment {
    /// While it opens the store.
    Starting,
    /// Any time.
    Random,
    /// As soon as many posts are under way.
    Crowded,
    /// As soon as a 200 has been read.
    JustAnswered,
}

impl Moment {
    pub(crate) const fn any(random: &mut Random) -> Self {
        match random.between(0, 10) {
            0 => Self::Starting,
            1..4 => Self::Random,
            4..7 => Self::Crowded,
            _ => Self::JustAnswered,
        }
    }
}

impl Town {
    /// Posts payments of its own, each until it is answered, and some of them once more.
    fn send(&self, sender: u64, edges: &[SocketAddr]) {
        let mut random = Random::new(self.seed ^ (sender + 100) ^ (self.answered() << 16));
        let mut mine: Vec<Callback> = Vec::new();
        // A town that is busy a second time makes other payments.
        for number in self.begun.elapsed().as_millis() as u64.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let repeat = !mine.is_empty() && random.percent(REPEATS);
            let callback = if repeat {
                mine[random.between(0, mine.len() as u64) as usize].clone()
            } else {
                Callback::of(paid(
                    10_000_000 + sender * 4_000_000 + number,
                    &number.to_string(),
                    &format!("{}.00", random.between(1, 5000)),
                ))
            };
            self.post_until_answered(&callback, edges, &mut random);
            if !repeat {
                mine.push(callback);
            }
            self.rest(Duration::from_millis(self.leisure * random.between(10, 90)));
        }
    }

    /// Between two payments; none while everybody is in a rush.
    fn rest(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.rush.load(Ordering::Relaxed) && Instant::now() < end {
            pause(Duration::from_millis(2));
        }
    }

    /// The same bytes again on a connection error and on a 5xx, as PagoEfectivo does, and more persistently; each time
    /// to any of the edges.
    fn post_until_answered(&self, callback: &Callback, edges: &[SocketAddr], random: &mut Random) {
        let digest: Digest = Sha256::digest(&callback.body).into();
        self.ledger.lock().unwrap().sent(digest);
        let deadline = Instant::now() + PERSISTENCE;
        while Instant::now() < deadline && !self.stop.load(Ordering::Relaxed) {
            self.under_way.fetch_add(1, Ordering::Relaxed);
            let headers = [("content-type", "application/json"), ("pe-signature", &*callback.signature)];
            let edge = edges[random.between(0, edges.len() as u64) as usize];
            self.ledger.lock().unwrap().posts += 1;
            let answer = post(edge, PE_PATH, &headers, callback.body.as_bytes());
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            match answer {
                Ok(answer) if answer.status == 200 => {
                    self.ledger.lock().unwrap().answered(digest, &answer.id(), &answer.outcome());
                    self.answered.fetch_add(1, Ordering::Release);
                    return;
                }
                Ok(answer) if answer.status == 503 => _ = self.unavailable.fetch_add(1, Ordering::Relaxed),
                Ok(answer) => {
                    self.ledger
                        .lock()
                        .unwrap()
                        .broken
                        .push(Violation::OddAnswer { what: format!("{answer:?}") });
                    return;
                }
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                Err(_) => _ = self.cut.fetch_add(1, Ordering::Relaxed),
            }
            pause(Duration::from_millis(15));
        }
    }

    /// Posts what nobody has signed; it may be refused and nothing else.
    fn forge(&self, edges: &[SocketAddr]) {
        let mut random = Random::new(self.seed ^ 77);
        for number in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let body = paid(99_000_000 + number, "666", "999.00");
            let mut signature = Callback::of(body.clone()).signature;
            let wrong = if signature.starts_with('0') { "1" } else { "0" };
            signature.replace_range(..1, wrong);
            let edge = edges[number as usize % edges.len()];
            match post(edge, PE_PATH, &[("pe-signature", &*signature)], body.as_bytes()) {
                Ok(answer) if answer.status == 401 => _ = self.forged.fetch_add(1, Ordering::Relaxed),
                Ok(answer) if answer.status != 503 => {
                    self.ledger
                        .lock()
                        .unwrap()
                        .broken
                        .push(Violation::OddAnswer { what: format!("a forgery: {answer:?}") });
                }
                _ => {}
            }
            pause(Duration::from_millis(random.between(20, 80)));
        }
    }
}

/// All take their time, so that a delivery that was settled before it was made is gone with the process.
fn receivers(seed: u64) -> BTreeMap<&'static str, Receiver> {
    let scripted = |which: u64, script: fn(&mut Random) -> Reply| {
        let random = Mutex::new(Random::new(seed ^ (which << 32)));
        Receiver::scripted(move |_| script(&mut random.lock().unwrap()))
    };
    BTreeMap::from([
        (
            "orders",
            scripted(1, |random| Reply::status(200).after(Duration::from_millis(random.between(5, 50)))),
        ),
        (
            "erp",
            scripted(2, |random| match random.between(0, 100) {
                0 => Reply::hang(),
                1..4 => Reply::close(),
                4..18 => Reply::status(503).after(Duration::from_millis(random.between(0, 20))),
                _ => Reply::status(201).after(Duration::from_millis(random.between(5, 40))),
            }),
        ),
        (
            "notifications",
            scripted(3, |random| match random.between(0, 100) {
                0..5 => Reply::close(),
                5..10 => Reply::status(500),
                _ => Reply::status(204).after(Duration::from_millis(random.between(1, 30))),
            }),
        ),
    ])
}

/// What it looked like when it was given up.
struct ShowOnPanic<'a>(&'a RefCell<Value>);

impl Drop for ShowOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the destinations, last: {:#}", self.0.borrow());
        }
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
