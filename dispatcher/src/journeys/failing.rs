//! A storage that refuses: nothing is settled on a write that was not acknowledged.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use async_trait::async_trait;
use chaski_common::event::EventId;
use chaski_common::storage::{Delivered, Deliveries, KeptLetters, Quarantined, StorageError};

use super::*;

/// The real deliveries, but they fail as they are told to.
struct Refusing {
    real: Arc<dyn Deliveries>,
    /// Parking and burying fail.
    refuses: AtomicBool,
    refused: AtomicUsize,
    /// Parking never ends.
    hangs: AtomicBool,
    hanging: AtomicUsize,
    /// Counting what is parked fails; panics, once.
    unreadable: AtomicBool,
    panics: AtomicBool,
}

/// One that hangs.
struct Hanging<'a>(&'a AtomicUsize);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Refusing {
    fn gate(&self) -> Result<(), StorageError> {
        if self.refuses.load(SeqCst) {
            self.refused.fetch_add(1, SeqCst);
            return Err(StorageError::Busy);
        }
        Ok(())
    }
}

#[async_trait]
impl Deliveries for Refusing {
    async fn park(&self, parked: Parked) -> Result<(), StorageError> {
        self.gate()?;
        if self.hangs.load(SeqCst) {
            self.hanging.fetch_add(1, SeqCst);
            let _hanging = Hanging(&self.hanging);
            std::future::pending::<()>().await;
        }
        self.real.park(parked).await
    }
    async fn park_again(&self, parked: Parked) -> Result<bool, StorageError> {
        self.gate()?;
        self.real.park_again(parked).await
    }
    async fn bury(&self, letter: DeadLetter) -> Result<(), StorageError> {
        self.gate()?;
        self.real.bury(letter).await
    }
    async fn due(
        &self,
        destination: &str,
        now: Timestamp,
        ordered: bool,
        limit: usize,
    ) -> Result<Vec<Parked>, StorageError> {
        self.real.due(destination, now, ordered, limit).await
    }
    async fn next_due(&self, destination: &str, ordered: bool) -> Result<Option<Timestamp>, StorageError> {
        self.real.next_due(destination, ordered).await
    }
    async fn complete(
        &self,
        destination: &str,
        id: EventId,
        delivered: Delivered,
    ) -> Result<(), StorageError> {
        self.real.complete(destination, id, delivered).await
    }
    async fn held_subjects(&self, destination: &str) -> Result<Vec<(Arc<str>, u64)>, StorageError> {
        self.real.held_subjects(destination).await
    }
    async fn parked_count(&self, destination: &str) -> Result<u64, StorageError> {
        assert!(!self.panics.swap(false, SeqCst), "told to");
        if self.unreadable.load(SeqCst) {
            self.refused.fetch_add(1, SeqCst);
            return Err(StorageError::Busy);
        }
        self.real.parked_count(destination).await
    }
    async fn parked(&self, filter: ParkedFilter) -> Result<Vec<Parked>, StorageError> {
        self.real.parked(filter).await
    }
    async fn hurry(
        &self,
        id: EventId,
        destination: Option<&str>,
        now: Timestamp,
    ) -> Result<usize, StorageError> {
        self.real.hurry(id, destination, now).await
    }
    async fn drop_parked(
        &self,
        id: EventId,
        destination: Option<&str>,
        now: Timestamp,
    ) -> Result<usize, StorageError> {
        self.real.drop_parked(id, destination, now).await
    }
    async fn dead(&self, filter: DeadFilter) -> Result<Vec<DeadLetter>, StorageError> {
        self.real.dead(filter).await
    }
    async fn quarantined(&self) -> Result<Vec<Quarantined>, StorageError> {
        self.real.quarantined().await
    }
    async fn letters_before(&self, at: Timestamp) -> Result<Vec<KeptLetters>, StorageError> {
        self.real.letters_before(at).await
    }
    async fn redrive(&self, numbers: &[u64], now: Timestamp) -> Result<usize, StorageError> {
        self.real.redrive(numbers, now).await
    }
    async fn drop_dead(&self, numbers: &[u64]) -> Result<usize, StorageError> {
        self.real.drop_dead(numbers).await
    }
}

async fn refusing(config: DispatcherConfig, specs: Vec<DestinationSpec>) -> (Bench, Arc<Refusing>) {
    let folder = TempDir::new().unwrap();
    let real = embedded::open(&Options { path: folder.path().into() }, &Registry::new()).unwrap();
    let no = || AtomicBool::new(false);
    let refusing = Arc::new(Refusing {
        real: real.deliveries,
        refuses: AtomicBool::new(true),
        refused: AtomicUsize::new(0),
        hangs: no(),
        hanging: AtomicUsize::new(0),
        unreadable: no(),
        panics: no(),
    });
    let storage = Storage { events: real.events, deliveries: refusing.clone() };
    (Bench::on(folder, storage, config, specs).await, refusing)
}

#[tokio::test]
async fn nothing_is_settled_on_a_write_that_was_not_acknowledged() {
    for status in [500, 410] {
        let bad = event(0).id.to_string();
        let receiver =
            Receiver::start(move |got| Answer::Status(if got.id() == bad { status } else { 200 })).await;
        let mut spec = spec("erp", &receiver.url());
        spec.retry = patient(Duration::from_hours(1));
        let (bench, store) = refusing(DispatcherConfig::default(), vec![spec]).await;
        for n in 0..10 {
            bench.append(event(n)).await;
        }
        receiver.has(10).await;
        until("refused several times", async || store.refused.load(SeqCst) >= 3).await;
        assert_eq!(bench.mark("erp").await, Position(0), "{status}");
        store.refuses.store(false, SeqCst);
        bench.settled("erp", Position(10)).await;
        assert_eq!(bench.parked().await.len() + bench.dead().await.len(), 1, "{status}");
        assert_eq!(receiver.got().len(), 10, "{status}: what was settled behind it was not delivered again");
    }
}

#[tokio::test]
async fn a_stop_in_the_middle_of_a_refused_write_leaves_the_event_for_the_next_start() {
    let receiver = Receiver::start(|got| Answer::Status(if got.attempt() == 1 { 410 } else { 200 })).await;
    let (bench, store) = refusing(DispatcherConfig::default(), vec![spec("erp", &receiver.url())]).await;
    bench.append(event(1)).await;
    until("refused", async || store.refused.load(SeqCst) >= 1).await;
    bench.dispatcher.shutdown(Duration::from_millis(50)).await;
    assert_eq!(bench.mark("erp").await, Position(0));
    store.refuses.store(false, SeqCst);
    let bench = Bench::on(
        bench.folder,
        bench.storage,
        DispatcherConfig::default(),
        vec![spec("erp", &receiver.url())],
    )
    .await;
    bench.settled("erp", Position(1)).await;
    assert_eq!(bench.dead().await.len(), 1);
}

#[tokio::test]
async fn at_the_bound_of_parked_deliveries_no_new_ones_are_taken() {
    let receiver = Receiver::start(|_| Answer::Status(500)).await;
    let mut spec = spec("erp", &receiver.url());
    spec.retry = patient(Duration::from_hours(1));
    let config = DispatcherConfig { parked_max: 20, ..DispatcherConfig::default() };
    let (bench, store) = refusing(config, vec![spec]).await;
    store.refuses.store(false, SeqCst);
    for n in 0..100 {
        bench.append(event(n)).await;
    }
    until("nearly full", async || bench.status().waiting > 15 && bench.status().in_flight == 0).await;
    assert!(bench.parked().await.len() <= 20);
    assert!(bench.mark("erp").await <= Position(20));
    assert!(receiver.got().len() <= 20);
    // Room is made by hand: it goes on.
    for parked in bench.parked().await {
        bench.storage.deliveries.drop_parked(parked.event.id, None, Clock::system().now()).await.unwrap();
    }
    until("more are tried", async || receiver.got().len() > 30).await;
    assert!(bench.parked().await.len() <= 20);
}

#[tokio::test]
async fn a_courier_that_panics_is_followed_by_another() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let (bench, store) = refusing(DispatcherConfig::default(), vec![spec("erp", &receiver.url())]).await;
    bench.settled("erp", bench.append(event(1)).await).await;
    bench.dispatcher.pause("erp").await.unwrap();
    // The look panics, and the first opening of the successor fails.
    store.panics.store(true, SeqCst);
    store.unreadable.store(true, SeqCst);
    bench.storage.deliveries.hurry(event(1).id, None, Clock::system().now()).await.unwrap();
    bench.dispatcher.resume("erp").await.unwrap();
    until("failed to open", async || store.refused.load(SeqCst) >= 1).await;
    assert!((bench.metric("chaski_panics_total", "courier") - 1.0).abs() < 0.1);
    store.unreadable.store(false, SeqCst);
    bench.settled("erp", bench.append(event(2)).await).await;
    assert_eq!(receiver.got().len(), 2);
    assert!(!bench.status().paused);
    bench.dispatcher.shutdown(LONG).await;
}

#[tokio::test]
async fn a_changed_destination_that_cannot_be_opened_now_is_opened_later() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let (bench, store) = refusing(DispatcherConfig::default(), vec![spec("erp", &receiver.url())]).await;
    store.unreadable.store(true, SeqCst);
    let mut changed = spec("erp", &receiver.url());
    changed.concurrency += 1;
    bench.dispatcher.reload(vec![changed.clone()]).await.unwrap();
    // A new one must be opened before anything else happens: nothing changes.
    assert!(bench.dispatcher.reload(vec![spec("new", &receiver.url())]).await.is_err());
    assert_eq!(bench.dispatcher.status().len(), 1);
    assert_eq!(&*bench.status().name, "erp");
    store.unreadable.store(false, SeqCst);
    bench.settled("erp", bench.append(event(1)).await).await;
}

#[tokio::test]
async fn nothing_of_a_courier_outlives_its_stop() {
    let receiver =
        Receiver::start(|got| if got.attempt() == 1 { Answer::Status(500) } else { Answer::Silence }).await;
    let mut spec = spec("erp", &receiver.url());
    spec.retry = patient(Duration::from_hours(1));
    let config = DispatcherConfig { drain: Duration::from_millis(50), ..DispatcherConfig::default() };
    let (bench, store) = refusing(config, vec![spec.clone()]).await;
    store.refuses.store(false, SeqCst);
    store.hangs.store(true, SeqCst);
    bench.append(event(1)).await;
    until("hangs", async || store.hanging.load(SeqCst) == 1).await;
    spec.url = "http://127.0.0.1:1/".parse().unwrap();
    store.hangs.store(false, SeqCst);
    bench.dispatcher.reload(vec![spec]).await.unwrap();
    assert_eq!(
        store.hanging.load(SeqCst),
        0,
        "a late write could revive what the next courier has delivered"
    );
}
