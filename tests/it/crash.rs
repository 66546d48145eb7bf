//! Promise 2 under kill -9: the real binary dies again and again while senders post and receivers fail, and in
//! the end every event that was answered 200 is at every destination.
//!
//! `CHASKI_CRASH_KILLS` and `CHASKI_CRASH_SEED` choose another run; the seed decides what is sent, how receivers
//! answer and when the process dies, as far as the machine's timing lets it.

mod verdict;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use self::verdict::{Copy, Digest, Kills, Ledger, Violation, verdict};
use crate::harness::{
    Callback, Destination, Gateway, Layout, PE_PATH, Random, Receiver, Reply, Site, paid, pause, post, within,
};

const KILLS: u64 = 32;
const SENDERS: u64 = 20;
const CONCURRENCY: u64 = 16;
/// Of a hundred posts, repeats of what was answered before.
const REPEATS: u64 = 12;
/// How long an unanswered callback is posted again and again.
const PERSISTENCE: Duration = Duration::from_secs(20);
/// How long the backlog may take once nobody dies any more.
const DRAIN: Duration = Duration::from_secs(60);

#[test]
fn no_event_answered_200_is_lost_however_often_the_process_is_killed() {
    let kills = setting("CHASKI_CRASH_KILLS").unwrap_or(KILLS);
    let seed = setting("CHASKI_CRASH_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("crash: CHASKI_CRASH_KILLS={kills} CHASKI_CRASH_SEED={seed}");
    let receivers = receivers(seed);
    let destination = |(name, receiver): (&&'static str, &Receiver)| {
        let retry = "first = \"100ms\"\nfactor = 2\ncap = \"800ms\"\ngive_up_after = \"1h\"";
        Destination::new(name, receiver).with(&format!("concurrency = {CONCURRENCY}")).retrying(retry)
    };
    // What was written is not lost with the process, only what was not: a commit must take time to be met.
    let site = Site::new(&Layout::to(receivers.iter().map(destination))).on_faulty_disk();
    site.disk_fails("slow", true);
    let town = Arc::new(Town::new(&site));
    let begun = Instant::now();
    let gateway = std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let town = &town;
            scope.spawn(move || town.send(sender, seed));
        }
        scope.spawn(|| town.forge(seed));
        // Whatever happens here, the senders must be told to stop, or the scope never ends.
        let _stop = StopOnDrop(&town.stop);
        kill_again_and_again(&site, &town, kills, &mut Random::new(seed))
    });
    let crashing = begun.elapsed();
    wait_until_drained(&site);
    gateway.stop();

    let receipts: BTreeMap<&'static str, Vec<Copy>> =
        receivers.iter().map(|(name, receiver)| (*name, copies(receiver, begun))).collect();
    let ledger = town.ledger.lock().unwrap();
    eprintln!(
        "crash: {kills} kills in {crashing:.1?}, drained after {:.1?}; {} sent, {} answered 200, {} posts cut off, {} refused for now, {} forged",
        begun.elapsed(),
        ledger.sent.len(),
        ledger.answered.len(),
        town.cut.load(Ordering::Relaxed),
        town.unavailable.load(Ordering::Relaxed),
        town.forged.load(Ordering::Relaxed),
    );
    assert!(
        ledger.answered.len() as u64 > kills * 5,
        "too few events to prove anything: {}",
        ledger.answered.len()
    );
    assert!(kills == 0 || town.cut.load(Ordering::Relaxed) > 0, "no kill ever met a post");
    match verdict(&ledger, &receipts, Kills { count: kills, concurrency: CONCURRENCY }) {
        Ok(stats) => eprintln!("crash: nothing lost; {stats:?}"),
        Err(violations) => panic!(
            "seed {seed}: {} violations, first: {:#?}",
            violations.len(),
            &violations[..violations.len().min(20)]
        ),
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
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

fn copies(receiver: &Receiver, begun: Instant) -> Vec<Copy> {
    let copy = |receipt: crate::harness::Receipt| Copy {
        is_taken: receipt.is_taken(),
        at_ms: receipt.answered.duration_since(begun).as_millis() as u64,
        id: receipt.id,
        digest: receipt.digest,
    };
    receiver.receipts().into_iter().map(copy).collect()
}

/// The moments at which a process may die.
#[derive(Debug)]
enum Moment {
    /// While it opens the store.
    Starting,
    /// Any time.
    Random,
    /// As soon as many posts are under way.
    Crowded,
    /// As soon as a 200 has been read.
    JustAnswered,
}

fn kill_again_and_again(site: &Site, town: &Town, kills: u64, random: &mut Random) -> Gateway {
    let mut marks = BTreeMap::new();
    let mut gateway = site.spawn();
    for kill in 1..=kills {
        let moment = match random.between(0, 10) {
            0 => Moment::Starting,
            1..4 => Moment::Random,
            4..7 => Moment::Crowded,
            _ => Moment::JustAnswered,
        };
        if matches!(moment, Moment::Starting) {
            pause(Duration::from_millis(random.between(0, 80)));
        } else {
            gateway.wait_until_running();
            marks_never_go_back(&gateway, &mut marks);
            pause(Duration::from_millis(random.between(50, 400)));
            town.wait_for(&moment);
        }
        assert!(
            gateway.exited().is_none(),
            "it ended by itself before kill {kill} ({moment:?}): {:#?}",
            gateway.log()
        );
        gateway.kill();
        town.rush.store(false, Ordering::Relaxed);
        gateway = site.spawn();
    }
    gateway.wait_until_running();
    marks_never_go_back(&gateway, &mut marks);
    gateway
}

/// I3, as far as it can be seen from outside.
fn marks_never_go_back(gateway: &Gateway, marks: &mut BTreeMap<String, u64>) {
    for destination in gateway.call("destinations", &serde_json::json!({})).as_array().unwrap() {
        let (name, mark) =
            (destination["destination"].as_str().unwrap(), destination["mark"].as_u64().unwrap());
        let before = marks.insert(name.to_owned(), mark).unwrap_or_default();
        assert!(mark >= before, "the mark of {name} went back from {before} to {mark}");
    }
}

fn wait_until_drained(site: &Site) {
    let last = std::cell::RefCell::new(serde_json::Value::Null);
    let _show = ShowOnPanic(&last);
    within(DRAIN, "an empty backlog", || {
        let told = site.command(&["destinations", "--json"]).json();
        let destinations = told.as_array().unwrap();
        assert_eq!(destinations.len(), 3, "{destinations:?}");
        assert!(destinations.iter().all(|destination| destination["dead"] == 0), "{destinations:?}");
        let is_empty =
            |destination: &serde_json::Value| destination["lag"] == 0 && destination["parked"] == 0;
        let drained = destinations.iter().all(is_empty).then_some(());
        last.replace(told);
        drained
    });
}

/// What it looked like when it was given up.
struct ShowOnPanic<'a>(&'a std::cell::RefCell<serde_json::Value>);

impl Drop for ShowOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("crash: the destinations, last: {:#}", self.0.borrow());
        }
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Everybody who posts, and what they were told.
struct Town {
    edge: std::net::SocketAddr,
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
    fn new(site: &Site) -> Self {
        Self {
            edge: site.edge,
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

    /// Posts payments of its own, each until it is answered, and some of them once more.
    fn send(&self, sender: u64, seed: u64) {
        let mut random = Random::new(seed ^ (sender + 100));
        let mut mine: Vec<Callback> = Vec::new();
        for number in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let repeat = !mine.is_empty() && random.percent(REPEATS);
            let callback = if repeat {
                mine[random.between(0, mine.len() as u64) as usize].clone()
            } else {
                Callback::of(paid(
                    10_000_000 + sender * 1_000_000 + number,
                    &number.to_string(),
                    &format!("{}.00", random.between(1, 5000)),
                ))
            };
            self.post_until_answered(&callback);
            if !repeat {
                mine.push(callback);
            }
            self.rest(Duration::from_millis(random.between(10, 90)));
        }
    }

    /// Between two payments; none while everybody is in a rush.
    fn rest(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.rush.load(Ordering::Relaxed) && Instant::now() < end {
            pause(Duration::from_millis(2));
        }
    }

    /// The same bytes again on a connection error and on a 5xx, as PagoEfectivo does, and more persistently.
    fn post_until_answered(&self, callback: &Callback) {
        let digest: Digest = Sha256::digest(&callback.body).into();
        self.ledger.lock().unwrap().sent(digest);
        let deadline = Instant::now() + PERSISTENCE;
        while Instant::now() < deadline && !self.stop.load(Ordering::Relaxed) {
            self.under_way.fetch_add(1, Ordering::Relaxed);
            let headers = [("content-type", "application/json"), ("pe-signature", &*callback.signature)];
            let answer = post(self.edge, PE_PATH, &headers, callback.body.as_bytes());
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
    fn forge(&self, seed: u64) {
        let mut random = Random::new(seed ^ 77);
        for number in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let body = paid(99_000_000 + number, "666", "999.00");
            let mut signature = Callback::of(body.clone()).signature;
            let wrong = if signature.starts_with('0') { "1" } else { "0" };
            signature.replace_range(..1, wrong);
            match post(self.edge, PE_PATH, &[("pe-signature", &*signature)], body.as_bytes()) {
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

    /// Comes back at such a moment; at any moment if it does not come soon.
    fn wait_for(&self, moment: &Moment) {
        self.rush.store(matches!(moment, Moment::Crowded | Moment::JustAnswered), Ordering::Relaxed);
        let answered = self.answered.load(Ordering::Acquire) + SENDERS;
        let is_now = || match moment {
            Moment::Starting | Moment::Random => true,
            Moment::Crowded => self.under_way.load(Ordering::Relaxed) as u64 >= SENDERS * 2 / 3,
            // In the middle of the rush, not at its beginning.
            Moment::JustAnswered => self.answered.load(Ordering::Acquire) > answered,
        };
        let deadline = Instant::now() + Duration::from_millis(200);
        while !is_now() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}
