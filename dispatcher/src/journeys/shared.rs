//! Several dispatchers share a destination over Kafka, against a real broker: they come and go, nothing is
//! lost, and one subject stays in order (I1, I4, I5).

use std::collections::BTreeSet;

use chaski_common::storage::kafka::{self, testing};

use super::*;
use crate::destination::Ordering;

/// What one process would have: its own storage and dispatcher on the shared topics.
pub(super) struct Process {
    pub(super) storage: Storage,
    pub(super) dispatcher: Dispatcher,
}

impl Process {
    pub(super) async fn start(options: &kafka::Options, spec: &DestinationSpec) -> Self {
        Self::serving(options, vec![spec.clone()]).await
    }

    pub(super) async fn serving(options: &kafka::Options, specs: Vec<DestinationSpec>) -> Self {
        let storage = kafka::open(options, &Registry::new()).await.unwrap();
        let dispatcher = Dispatcher::start(
            DispatcherConfig::default(),
            specs,
            storage.clone(),
            &Registry::new(),
            Clock::system(),
        )
        .await
        .unwrap();
        Self { storage, dispatcher }
    }

    async fn append(&self, numbers: std::ops::Range<u64>, expected: &mut BTreeMap<String, Vec<String>>) {
        for n in numbers {
            let mut event = event(n);
            let subject = format!("CIP-{}", n % 23);
            event.subject = Some(subject.as_str().into());
            expected.entry(subject).or_default().push(event.id.to_string());
            let appended = self.storage.events.append(event, OnConflict::Duplicate).await.unwrap();
            assert!(matches!(appended, Appended::Stored(_)), "{appended:?}");
        }
    }

    pub(super) async fn stop(self) {
        self.dispatcher.shutdown(LONG).await;
        self.storage.events.close().await;
    }
}

pub(super) async fn topics() -> kafka::Options {
    let mut options = tokio::task::spawn_blocking(testing::options).await.unwrap();
    options.partitions = 4;
    kafka::apply(&options, kafka::plan(&options).await.unwrap()).await.unwrap();
    options
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dispatchers_that_come_and_go_deliver_everything_in_order() {
    // One in five attempts fails.
    let receiver = Receiver::start(|got| Answer::Status(if is_refused(got) { 500 } else { 200 })).await;
    let mut spec = spec("erp", &receiver.url());
    spec.ordering = Ordering::Key;
    spec.concurrency = 8;
    // The second failure is parked.
    spec.retry =
        Schedule::listed(vec![Duration::from_millis(5), Duration::from_secs(11)], Duration::from_hours(1))
            .unwrap();
    let options = topics().await;

    let mut expected = BTreeMap::new();
    let first = Process::start(&options, &spec).await;
    first.append(0..150, &mut expected).await;
    let second = Process::start(&options, &spec).await;
    second.append(150..300, &mut expected).await;
    let third = Process::start(&options, &spec).await;
    first.stop().await;
    third.append(300..450, &mut expected).await;
    second.stop().await;
    third.append(450..600, &mut expected).await;

    let all: BTreeSet<String> = expected.values().flatten().cloned().collect();
    until("all delivered", async || {
        let parked = ParkedFilter { limit: 1000, ..ParkedFilter::default() };
        let parked = third.storage.deliveries.parked(parked).await.unwrap();
        for parked in &parked {
            third.storage.deliveries.hurry(parked.event.id, None, Clock::system().now()).await.unwrap();
        }
        let progress = third.storage.events.progress().await.unwrap();
        parked.is_empty() && progress.iter().all(|progress| progress.lag == 0)
    })
    .await;
    third.stop().await;

    let taken: Vec<_> = receiver.got().into_iter().filter(|got| !is_refused(got)).collect();
    let mut orders: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for got in &taken {
        if seen.insert(got.id().to_owned()) {
            orders.entry(got.headers["ce-subject"].clone()).or_default().push(got.id().to_owned());
        }
    }
    assert_eq!(seen, all);
    assert_eq!(orders, expected, "first successes of one subject follow the log");
    assert_eq!(
        taken.len(),
        all.len(),
        "each once: a partition is handed over when nothing of it is under way"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_partition_had_ready_is_left_to_the_next() {
    let slow = Receiver::start(|_| Answer::Status(200)).await;
    let fast = Receiver::start(|_| Answer::Status(200)).await;
    let options = topics().await;
    let mut expected = BTreeMap::new();
    let first = Process::start(
        &options,
        &DestinationSpec { rate_per_second: Some(10.0), ..spec("erp", &slow.url()) },
    )
    .await;
    first.append(0..100, &mut expected).await;
    until("the first has read", async || slow.got().len() > 5).await;
    let second = Process::start(&options, &spec("erp", &fast.url())).await;
    until("all settled", async || {
        second.storage.events.progress().await.unwrap().iter().all(|progress| progress.lag == 0)
    })
    .await;
    let ids =
        |receiver: &Receiver| receiver.got().iter().map(|got| got.id().to_owned()).collect::<BTreeSet<_>>();
    let (by_first, by_second) = (ids(&slow), ids(&fast));
    assert!(by_second.len() > 10, "the second has its share");
    assert_eq!(by_first.union(&by_second).count(), 100);
    assert_eq!(by_first.intersection(&by_second).count(), 0, "delivered by both");
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_its_way_when_a_partition_is_handed_over_ends_there_be_it_read_or_parked() {
    const SLOW: Duration = Duration::from_millis(1500);
    let first_fails = |got: &receiver::Got| Answer::Late(if got.attempt() == 1 { 500 } else { 200 }, SLOW);
    let old = Receiver::start(first_fails).await;
    let new = Receiver::start(first_fails).await;
    let options = topics().await;
    let with = |receiver: &Receiver| DestinationSpec {
        concurrency: 64,
        retry: patient(Duration::from_hours(1)),
        ..spec("erp", &receiver.url())
    };
    let first = Process::start(&options, &with(&old)).await;
    first.append(0..40, &mut BTreeMap::new()).await;
    let parked = async || first.storage.deliveries.parked(ParkedFilter::default()).await.unwrap();
    until("all parked", async || parked().await.len() == 40).await;
    // While the second comes, some are on their way for the first time and some for the second.
    let second = Process::start(&options, &with(&new)).await;
    let mut appended = 40;
    until("the second has its share", async || {
        for _ in 0..8 {
            let id = event(appended - 40).id;
            first.storage.deliveries.hurry(id, None, Clock::system().now()).await.unwrap();
            first.append(appended..appended + 1, &mut BTreeMap::new()).await;
            appended += 1;
        }
        new.got().len() > 20
    })
    .await;
    until("all settled", async || {
        for parked in parked().await {
            first.storage.deliveries.hurry(parked.event.id, None, Clock::system().now()).await.unwrap();
        }
        let progress = second.storage.events.progress().await.unwrap();
        parked().await.is_empty() && progress.iter().all(|progress| progress.lag == 0)
    })
    .await;
    first.stop().await;
    second.stop().await;
    let mut attempts = BTreeMap::new();
    for got in old.got().iter().chain(&new.got()) {
        *attempts.entry((got.id().to_owned(), got.attempt())).or_insert(0) += 1;
    }
    assert_eq!(attempts.len() as u64, 2 * appended);
    attempts.retain(|_, times| *times > 1);
    assert!(attempts.is_empty(), "more than once: {attempts:?}");
}

/// By its id and attempt, so that a run can be repeated.
fn is_refused(got: &receiver::Got) -> bool {
    let dice = format!("{}{}", got.id(), got.attempt());
    dice.bytes().fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 5 == 0
}
