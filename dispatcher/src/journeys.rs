//! Whole journeys: a real store in a folder of its own, real sockets, the public face of this crate.
//!
//! Time is real here; a test waits for a state, with a deadline, and never for a duration.

mod receiver;
mod answers;
mod certificates;
mod failing;
mod order;
mod steering;
mod shared;
mod fleet;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chaski_common::backoff::Schedule;
use chaski_common::clock::Clock;
use chaski_common::event::{Environment, Event};
use chaski_common::secret::Secret;
use chaski_common::storage::embedded::{self, Options};
use chaski_common::storage::{
    Appended, DeadFilter, DeadLetter, FateState, OnConflict, Parked, ParkedFilter, Position, Storage,
};
use jiff::Timestamp;
use prometheus::Registry;
use tempfile::TempDir;

use self::receiver::{Answer, Receiver};
use crate::destination::DestinationSpec;
use crate::status::{BreakerState, DestinationStatus};
use crate::testing::{event, spec};
use crate::{Dispatcher, DispatcherConfig};

const LONG: Duration = Duration::from_secs(60);

/// A store with a dispatcher on it.
struct Bench {
    folder: TempDir,
    storage: Storage,
    registry: Registry,
    dispatcher: Dispatcher,
}

impl Bench {
    async fn start(specs: Vec<DestinationSpec>) -> Self {
        let folder = TempDir::new().unwrap();
        let storage = embedded::open(&Options { path: folder.path().into() }, &Registry::new()).unwrap();
        Self::on(folder, storage, DispatcherConfig::default(), specs).await
    }

    async fn on(
        folder: TempDir,
        storage: Storage,
        config: DispatcherConfig,
        specs: Vec<DestinationSpec>,
    ) -> Self {
        let registry = Registry::new();
        let dispatcher =
            Dispatcher::start(config, specs, storage.clone(), &registry, Clock::system()).await.unwrap();
        Self { folder, storage, registry, dispatcher }
    }

    /// Ends all and opens all anew, as another process would.
    async fn restart(self, specs: Vec<DestinationSpec>) -> Self {
        self.dispatcher.shutdown(LONG).await;
        self.storage.events.close().await;
        let storage = embedded::open(&Options { path: self.folder.path().into() }, &Registry::new()).unwrap();
        Self::on(self.folder, storage, DispatcherConfig::default(), specs).await
    }

    async fn append(&self, event: Event) -> Position {
        match self.storage.events.append(event, OnConflict::Duplicate).await.unwrap() {
            Appended::Stored(position) => position,
            other => panic!("stored, not {other:?}"),
        }
    }

    fn status(&self) -> DestinationStatus {
        self.dispatcher.status().remove(0)
    }

    async fn mark(&self, destination: &str) -> Position {
        let progress = self.storage.events.progress().await.unwrap();
        progress.iter().find(|at| &*at.destination == destination).unwrap().mark
    }

    async fn parked(&self) -> Vec<Parked> {
        self.storage.deliveries.parked(ParkedFilter { limit: 1000, ..ParkedFilter::default() }).await.unwrap()
    }

    async fn dead(&self) -> Vec<DeadLetter> {
        self.storage.deliveries.dead(DeadFilter { limit: 1000, ..DeadFilter::default() }).await.unwrap()
    }

    /// Waits until all up to here is settled.
    async fn settled(&self, destination: &str, position: Position) {
        until("settled", async || self.mark(destination).await >= position).await;
    }

    fn metric(&self, name: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let mine =
            |metric: &&prometheus::proto::Metric| metric.get_label().iter().any(|pair| pair.value() == label);
        family
            .get_metric()
            .iter()
            .filter(mine)
            .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
            .sum()
    }
}

/// Waits for a state.
async fn until(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(LONG, async {
        while !reached().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "not reached: {what}");
}

fn patient(first: Duration) -> Schedule {
    Schedule::growing(first, 1.0, first, Duration::from_hours(72)).unwrap()
}

#[tokio::test]
async fn an_event_is_delivered_once_as_it_came_and_with_all_its_headers() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let mut spec = spec("erp", &receiver.url());
    let current = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    spec.signing = vec![Secret::new(current), Secret::new("the one before")];
    spec.auth = Some(crate::destination::Auth::Bearer(Secret::new("t0ken")));
    let bench = Bench::start(vec![spec]).await;
    let mut event = event(1);
    event.body = b"{ \"a\" : 1.00,\t\"b\":\"\xc3\xb1\" }\r\n".as_slice().into();
    event.subject = Some("CIP 1".into());
    event.traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into());
    let position = bench.append(event.clone()).await;
    bench.settled("erp", position).await;
    let mut bytes = crate::testing::event(2);
    bytes.body = (0..=255).collect::<Vec<u8>>().into();
    bench.settled("erp", bench.append(bytes.clone()).await).await;

    let got = receiver.got();
    assert_eq!(got.len(), 2);
    assert_eq!(got[1].body, bytes.body);
    assert_eq!(got[0].body, event.body);
    let id = event.id.to_string();
    let expected = [
        ("ce-specversion", "1.0"),
        ("ce-id", &id),
        ("ce-source", "/sources/pe"),
        ("ce-type", "cip.paid"),
        ("ce-subject", "CIP%201"),
        ("webhook-id", &id),
        ("idempotency-key", &id),
        ("chaski-attempt", "1"),
        ("content-type", "application/json"),
        ("authorization", "Bearer t0ken"),
        ("traceparent", event.traceparent.as_deref().unwrap()),
        ("user-agent", concat!("chaski/", env!("CARGO_PKG_VERSION"))),
        ("host", &receiver.address().to_string()),
    ];
    for (name, value) in expected {
        assert_eq!(got[0].headers.get(name).map(String::as_str), Some(value), "{name}");
    }
    let mut headers = http::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, got[0].headers[name].parse().unwrap());
    }
    standardwebhooks::Webhook::new(current).unwrap().verify(&event.body, &headers).unwrap();
    standardwebhooks::Webhook::from_bytes(b"the one before".to_vec())
        .unwrap()
        .verify(&event.body, &headers)
        .unwrap();
    assert_eq!(bench.status().consecutive_failures, 0);
    assert!(bench.status().last_success.is_some());
    let families = bench.registry.gather();
    let took = families.iter().find(|family| family.name() == "chaski_dispatch_end_to_end_seconds").unwrap();
    assert_eq!(took.get_metric()[0].get_histogram().get_sample_count(), 2);
}

#[tokio::test]
async fn what_a_destination_does_not_take_is_settled_without_a_delivery() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let mut spec = spec("erp", &receiver.url());
    spec.events = vec!["order.*".to_owned()];
    let bench = Bench::start(vec![spec]).await;
    let position = bench.append(event(1)).await;
    bench.settled("erp", position).await;
    assert!(receiver.got().is_empty());
}

#[tokio::test]
async fn an_event_of_a_source_that_is_not_configured_is_kept_as_a_dead_letter() {
    let first = event(0).id.to_string();
    let receiver = Receiver::start(move |got| {
        if got.id() == first && got.attempt() == 1 { Answer::Silence } else { Answer::Status(200) }
    })
    .await;
    let mut spec = spec("erp", &receiver.url());
    spec.ordering = crate::destination::Ordering::Key;
    spec.timeout = Duration::from_millis(300);
    spec.known_sources.push(("pe-other".into(), Environment::Production));
    let bench = Bench::start(vec![spec]).await;
    let mut last = Position(0);
    for (n, source) in ["pe", "removed", "pe-other", "removed", "pe"].into_iter().enumerate() {
        let mut event = event(n as u64);
        (event.source, event.subject) = (source.into(), Some("CIP-1".into()));
        last = bench.append(event).await;
    }
    bench.settled("erp", last).await;
    let dead = bench.dead().await;
    assert!(dead.iter().all(|letter| &*letter.reason == "unrouted" && !letter.detail.is_empty()));
    let buried: Vec<_> = dead.iter().map(|letter| letter.event.id).collect();
    assert_eq!(buried, [event(1).id, event(3).id]);
    let got: Vec<_> = receiver.got().iter().map(|got| got.id().to_owned()).collect();
    assert_eq!(got, [0, 0, 4].map(|n| event(n).id.to_string()), "and gives nobody the turn of its subject");
    assert!((bench.metric("chaski_dlq_added_total", "unrouted") - 2.0).abs() < 0.1);
}

#[tokio::test]
async fn what_came_before_its_source_changed_sides_is_kept_as_a_dead_letter_and_no_play_money_goes_out() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let mut spec = spec("erp", &receiver.url());
    spec.ordering = crate::destination::Ordering::Key;
    spec.known_sources =
        vec![("pe".into(), Environment::Production), ("now-sandbox".into(), Environment::Sandbox)];
    spec.sources = vec!["pe".into(), "now-sandbox".into()];
    let bench = Bench::start(Vec::new()).await;
    let of = |n, source: &str, environment| Event {
        source: source.into(),
        environment,
        subject: Some("CIP-1".into()),
        ..event(n)
    };
    let (real, play) = (Some(Environment::Production), Some(Environment::Sandbox));
    // Parked when its source and the destination were play money both.
    let parked = Parked {
        destination: "erp".into(),
        position: Position(1),
        event: of(0, "pe", play),
        due: Clock::system().now(),
        attempts: 0,
        first_attempt: None,
        history: Vec::new(),
    };
    bench.append(of(0, "pe", play)).await;
    bench.storage.deliveries.park(parked).await.unwrap();
    bench.append(of(1, "now-sandbox", real)).await;
    bench.append(of(2, "now-sandbox", None)).await;
    bench.append(of(3, "pe", play)).await;
    let last = bench.append(of(4, "pe", real)).await;
    let bench = bench.restart(vec![spec]).await;
    bench.settled("erp", last).await;
    until("the parked one is buried", async || bench.dead().await.len() == 2).await;
    let mut dead: Vec<_> =
        bench.dead().await.into_iter().map(|letter| (letter.event.id, letter.reason)).collect();
    dead.sort();
    let mut expected = [0, 1].map(|n| (event(n).id, "environment".into()));
    expected.sort();
    assert_eq!(dead, expected);
    receiver.has(1).await;
    let got: Vec<_> = receiver.got().iter().map(|got| got.id().to_owned()).collect();
    assert_eq!(got, [event(4).id.to_string()], "and it had its subject's turn");
}

#[tokio::test]
async fn no_attempt_comes_before_the_time_the_receiver_asked_for() {
    let receiver = Receiver::start(|got| {
        if got.attempt() == 1 { Answer::With(503, "retry-after", "1") } else { Answer::Status(200) }
    })
    .await;
    let bench = Bench::start(vec![spec("erp", &receiver.url())]).await;
    let position = bench.append(event(1)).await;
    let got = receiver.has(2).await;
    assert!(got[1].at - got[0].at >= Duration::from_secs(1), "{:?}", got[1].at - got[0].at);
    bench.settled("erp", position).await;
}

#[tokio::test]
async fn a_poison_event_is_parked_and_the_others_pass() {
    let poison = event(3).id.to_string();
    let receiver =
        Receiver::start(move |got| Answer::Status(if got.id() == poison { 500 } else { 200 })).await;
    let mut spec = spec("erp", &receiver.url());
    spec.retry = Schedule::listed(
        vec![
            Duration::from_millis(20),
            Duration::from_millis(20),
            Duration::from_millis(20),
            Duration::from_hours(4),
        ],
        Duration::from_hours(72),
    )
    .unwrap();
    let bench = Bench::start(vec![spec]).await;
    let mut last = Position(0);
    for n in 0..50 {
        last = bench.append(event(n)).await;
    }
    bench.settled("erp", last).await;
    let parked = bench.parked().await;
    assert_eq!(parked.len(), 1);
    assert_eq!((parked[0].event.id, parked[0].attempts, parked[0].history.len()), (event(3).id, 4, 4));
    assert!(parked[0].first_attempt.is_some());
    let mut times = BTreeMap::new();
    for got in receiver.got() {
        *times.entry(got.id().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(times.len(), 50);
    assert!(
        times.iter().all(|(id, times)| *times == if *id == event(3).id.to_string() { 4 } else { 1 }),
        "{times:?}"
    );
    until("shown", async || bench.status().waiting == 1).await;
    // Hurried, it goes at once, and when it is taken it is gone.
    bench.storage.deliveries.hurry(event(3).id, None, Clock::system().now()).await.unwrap();
    receiver.has(54).await;
}

#[tokio::test]
async fn what_cannot_heal_is_a_dead_letter() {
    let status = |n: u64| match n {
        1 => 410,
        2 => 422,
        _ => 200,
    };
    let of = move |got: &receiver::Got| (0..9).find(|n| event(*n).id.to_string() == got.id()).unwrap();
    let receiver = Receiver::start(move |got| Answer::Status(status(of(got)))).await;
    let bench = Bench::start(vec![spec("erp", &receiver.url())]).await;
    for n in 0..3 {
        bench.append(event(n)).await;
    }
    bench.settled("erp", Position(3)).await;
    until("two letters", async || bench.dead().await.len() == 2).await;
    let dead = bench.dead().await;
    let letter = |n: u64| dead.iter().find(|letter| letter.event.id == event(n).id).unwrap();
    assert_eq!((&*letter(1).reason, letter(1).attempts), ("gone", 1));
    assert_eq!((&*letter(2).reason, letter(2).attempts), ("rejected", 3));
    assert_eq!(letter(2).event.body, event(2).body);
    assert!(bench.parked().await.is_empty());
    assert!((bench.metric("chaski_dlq_added_total", "gone") - 1.0).abs() < 0.1);
    assert!((bench.metric("chaski_dlq_added_total", "rejected") - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn it_gives_up_when_the_schedule_says_so() {
    let receiver = Receiver::start(|_| Answer::Status(500)).await;
    let mut spec = spec("erp", &receiver.url());
    spec.retry = Schedule::growing(
        Duration::from_millis(10),
        2.0,
        Duration::from_millis(40),
        Duration::from_millis(300),
    )
    .unwrap();
    let bench = Bench::start(vec![spec]).await;
    bench.append(event(1)).await;
    until("a letter", async || bench.dead().await.len() == 1).await;
    let letter = &bench.dead().await[0];
    assert_eq!(&*letter.reason, "gave_up");
    assert!(letter.attempts > 4);
    assert_eq!(receiver.got().len(), letter.attempts as usize);
    assert!(bench.parked().await.is_empty());
}

/// A receiver that answers 503 for as long as the flag is set.
async fn receiver_that_is_down() -> (Receiver, Arc<std::sync::atomic::AtomicBool>) {
    let down = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_down = down.clone();
    let receiver = Receiver::start(move |_| {
        Answer::Status(if is_down.load(std::sync::atomic::Ordering::Relaxed) { 503 } else { 200 })
    })
    .await;
    (receiver, down)
}

#[tokio::test]
async fn the_breaker_opens_for_an_outage_and_closes_when_it_is_over() {
    let (receiver, down) = receiver_that_is_down().await;
    let mut spec = spec("erp", &receiver.url());
    spec.retry = patient(Duration::from_hours(1));
    let bench = Bench::start(vec![spec]).await;
    let mut last = Position(0);
    for n in 0..40 {
        last = bench.append(event(n)).await;
    }
    until("open", async || bench.status().breaker == BreakerState::Open).await;
    // Some that failed before it opened are parked for long; the rest stays in the log and the window.
    let at_opening = receiver.got().len();
    assert!(at_opening < 15, "{at_opening}");
    receiver.has(at_opening + 1).await;
    down.store(false, std::sync::atomic::Ordering::Relaxed);
    bench.settled("erp", last).await;
    until("closed", async || bench.status().breaker == BreakerState::Closed).await;
    let parked = bench.parked().await.len();
    assert!(parked < 8, "{parked}");
    let delivered =
        receiver.got().iter().map(|got| got.id().to_owned()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(delivered.len(), 40);
    assert!((bench.metric("chaski_dispatch_circuit_open", "erp")).abs() < 0.1);
}

#[tokio::test]
async fn events_that_look_like_an_outage_do_not_stand_in_front_of_the_others() {
    let poison: Vec<String> = (0..8).map(|n| event(n).id.to_string()).collect();
    let is_poison = poison.clone();
    let receiver = Receiver::start(move |got| {
        Answer::Status(if is_poison.iter().any(|poison| got.id() == poison) { 503 } else { 200 })
    })
    .await;
    let mut spec = spec("erp", &receiver.url());
    spec.retry = patient(Duration::from_hours(1));
    let bench = Bench::start(vec![spec]).await;
    for n in 0..8 {
        bench.append(event(n)).await;
    }
    until("open", async || bench.status().breaker == BreakerState::Open).await;
    let mut last = Position(0);
    for n in 8..48 {
        last = bench.append(event(n)).await;
    }
    until("the others", async || {
        receiver.got().iter().filter(|got| !poison.iter().any(|poison| got.id() == poison)).count() == 40
    })
    .await;
    // Once others are taken, failing is their own fault, and counts.
    bench.settled("erp", last).await;
    let parked = bench.parked().await;
    assert_eq!(parked.len(), 8);
    assert!(parked.iter().all(|parked| parked.attempts > 0 && !parked.history.is_empty()), "{parked:?}");
}

#[tokio::test]
async fn parked_events_that_go_on_failing_do_not_take_every_turn_of_the_rate() {
    let is_poison = |id: &str| (0..40).any(|n| event(n).id.to_string() == id);
    let receiver =
        Receiver::start(move |got| Answer::Status(if is_poison(got.id()) { 500 } else { 200 })).await;
    let mut spec = spec("erp", &receiver.url());
    spec.retry = patient(Duration::from_millis(1));
    spec.rate_per_second = Some(100.0);
    let bench = Bench::start(vec![spec]).await;
    for n in 0..40 {
        bench.append(event(n)).await;
    }
    until("all parked", async || bench.parked().await.len() == 40).await;
    for n in 40..45 {
        bench.append(event(n)).await;
    }
    let before = receiver.got().len();
    let taken = || receiver.got().iter().filter(|got| !is_poison(got.id())).count();
    until("the others", async || taken() == 5).await;
    let passed = receiver.got().len() - before;
    assert!(passed < 30, "every second turn is theirs, but {passed} attempts passed");
    until("the parked ones", async || receiver.got().len() > before + 50).await;
}

#[tokio::test]
async fn the_breaker_closes_behind_an_outage_that_held_up_few() {
    let (receiver, down) = receiver_that_is_down().await;
    let mut spec = spec("erp", &receiver.url());
    spec.concurrency = 64;
    spec.retry = patient(Duration::from_millis(50));
    let bench = Bench::start(vec![spec]).await;
    let mut last = Position(0);
    for n in 0..4 {
        last = bench.append(event(n)).await;
    }
    until("open", async || bench.status().breaker == BreakerState::Open).await;
    down.store(false, std::sync::atomic::Ordering::Relaxed);
    bench.settled("erp", last).await;
    until("closed", async || bench.status().breaker == BreakerState::Closed).await;
}

#[tokio::test]
async fn a_restart_goes_on_where_it_was_and_what_was_parked_is_delivered() {
    let sick = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (is_sick, poison) = (sick.clone(), event(1).id.to_string());
    let receiver = Receiver::start(move |got| {
        Answer::Status(if got.id() == poison && is_sick.load(std::sync::atomic::Ordering::Relaxed) {
            500
        } else {
            200
        })
    })
    .await;
    let mut spec = spec("erp", &receiver.url());
    spec.retry = patient(Duration::from_secs(20));
    let specs = vec![spec];
    let bench = Bench::start(specs.clone()).await;
    for n in 0..20 {
        bench.append(event(n)).await;
    }
    receiver.has(20).await;
    let bench = bench.restart(specs).await;
    let parked = bench.parked().await;
    assert_eq!(parked.len(), 1, "what waited is parked at the stop, so that its time is kept");
    sick.store(false, std::sync::atomic::Ordering::Relaxed);
    bench.storage.deliveries.hurry(event(1).id, None, Clock::system().now()).await.unwrap();
    until("nothing is parked", async || bench.parked().await.is_empty()).await;
    let position = bench.append(event(20)).await;
    bench.settled("erp", position).await;
    let got = receiver.got();
    assert_eq!(got.len(), 22, "none twice but the one that failed");
    assert_eq!(
        got.iter()
            .find(|got| got.id() == event(1).id.to_string() && got.attempt() == 2)
            .map(receiver::Got::attempt),
        Some(2)
    );
}

#[tokio::test]
async fn a_receiver_that_hangs_on_one_event_does_not_stand_in_front_of_the_others() {
    let slow = event(0).id.to_string();
    let receiver =
        Receiver::start(move |got| if got.id() == slow { Answer::Silence } else { Answer::Status(200) })
            .await;
    let mut spec = spec("erp", &receiver.url());
    spec.timeout = LONG;
    let specs = vec![spec];
    let bench = Bench::start(specs.clone()).await;
    let appends = (0..3000).map(|n| bench.append(event(n)));
    futures_util::future::join_all(appends).await;
    // More than a window of healthy ones passes while the first attempt is still under way.
    let got = receiver.has(3000).await;
    assert_eq!(got.iter().filter(|got| got.attempt() > 1).count(), 0);
    assert!(bench.mark("erp").await < Position(3000), "the slow one is not settled");
    // A stop without patience, and another start: of the 3000 only the one that was not settled comes again.
    bench.dispatcher.shutdown(Duration::ZERO).await;
    let fates = bench.storage.events.fates(event(0).id).await.unwrap();
    assert!(fates.iter().all(|fate| fate.state == FateState::Waiting), "{fates:?}");
    let bench = bench.restart(specs).await;
    bench.append(event(3000)).await;
    let got = receiver.has(3002).await;
    let again: Vec<_> = got[3000..].iter().map(receiver::Got::id).collect();
    assert_eq!(again, [event(0).id.to_string(), event(3000).id.to_string()]);
    bench.dispatcher.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_breaker_that_opens_leaves_alone_what_waits_for_a_failure_of_its_own() {
    let poison = event(0).id.to_string();
    let is_poison = poison.clone();
    let receiver =
        Receiver::start(move |got| Answer::Status(if got.id() == is_poison { 500 } else { 503 })).await;
    let mut spec = spec("erp", &receiver.url());
    spec.retry = patient(Duration::from_secs(2));
    let bench = Bench::start(vec![spec]).await;
    bench.append(event(0)).await;
    until("it waits", async || bench.status().waiting == 1).await;
    for n in 1..8 {
        bench.append(event(n)).await;
    }
    until("open", async || bench.status().breaker == BreakerState::Open).await;
    let attempts = || -> Vec<u32> {
        receiver.got().iter().filter(|got| got.id() == poison).map(receiver::Got::attempt).collect()
    };
    until("tried again", async || attempts().len() >= 2).await;
    assert_eq!(attempts()[..2], [1, 2]);
}

#[tokio::test]
async fn an_attempt_that_panics_is_counted_and_its_event_tried_again() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let mut broken = spec("erp", &receiver.url());
    // No clock goes so far.
    broken.timeout = Duration::MAX;
    let bench = Bench::start(vec![broken]).await;
    let position = bench.append(event(1)).await;
    until("panicked twice", async || bench.metric("chaski_panics_total", "attempt") > 1.5).await;
    bench.dispatcher.reload(vec![spec("erp", &receiver.url())]).await.unwrap();
    bench.settled("erp", position).await;
    until("delivered", async || !receiver.got().is_empty()).await;
    assert!(bench.dead().await.is_empty());
}

#[tokio::test]
async fn the_rate_spreads_the_attempts() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let mut spec = spec("erp", &receiver.url());
    spec.rate_per_second = Some(20.0);
    let bench = Bench::start(vec![spec]).await;
    for n in 0..12 {
        bench.append(event(n)).await;
    }
    let got = receiver.has(12).await;
    let took = got[11].at - got[0].at;
    assert!(took >= Duration::from_millis(450), "ten intervals of 50 ms behind a burst of two, not {took:?}");
}
