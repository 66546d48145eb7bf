//! What edges share through Redis: one server, a master under a Sentinel, a cluster; and going on without it.

use tokio::task::spawn_blocking;

use super::*;
use crate::event::EventId;
use crate::secret::Secret;
use crate::storage::kafka::dedup::shared::Shared;
use crate::storage::kafka::dedup::{Claim, Dedup as _};
use crate::storage::kafka::{Redis, redis_refusal, redis_state};

/// Two edges on the same topics and the same Redis.
async fn two_edges() -> (testing::RedisServer, Options, Storage, Storage) {
    let mut backend = OnBroker::with_partitions(1).await;
    let redis = spawn_blocking(testing::RedisServer::start).await.unwrap();
    backend.0.redis = Some(redis.options());
    let first = backend.open().await;
    let second = backend.open().await;
    (redis, backend.0, first, second)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_edges_store_one_id_once() {
    let (_redis, _, first, second) = two_edges().await;
    let mut posts = tokio::task::JoinSet::new();
    for number in 0_u64..200 {
        let edge = if number % 2 == 0 { first.clone() } else { second.clone() };
        posts.spawn(async move { post(&edge, event(number % 10)).await });
    }
    let outcomes = posts.join_all().await;
    let stored = outcomes.iter().filter(|outcome| matches!(outcome, Appended::Stored(_))).count();
    assert_eq!((stored, outcomes.len()), (10, 200));
    assert_eq!(first.events.find(EventFilter::default()).await.unwrap().len(), 10);

    assert!(matches!(post(&first, event(77)).await, Appended::Stored(_)));
    let other = Event { body: "{}".into(), fingerprint: Fingerprint::of(b"{}"), ..event(77) };
    assert_eq!(post(&second, other).await, Appended::Conflict { is_new: true });
    first.events.close().await;
    second.events.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_events_are_taken_and_with_it_back_it_is_asked_again() {
    let (mut redis, options, first, second) = two_edges().await;
    assert!(matches!(post(&first, event(1)).await, Appended::Stored(_)));

    redis.signal("STOP");
    let began = Instant::now();
    for key in 10..30 {
        assert!(matches!(post(&first, event(key)).await, Appended::Stored(_)));
    }
    assert!(began.elapsed() < Duration::from_millis(900), "{:?} for 20 events", began.elapsed());
    assert_eq!(post(&first, event(10)).await, Appended::Duplicate, "this edge remembers by itself");
    let marked = kcat(&options, "%k|%h\n", &["-e"])
        .lines()
        .filter(|line| line.contains("ce_chaskidedup=local"))
        .count();
    assert_eq!(marked, 20, "each that was stored without redis says so");
    redis.signal("CONT");

    redis.kill();
    assert!(matches!(post(&second, event(40)).await, Appended::Stored(_)));
    let redis = spawn_blocking(move || {
        redis.run();
        redis
    });
    let _redis = redis.await.unwrap();
    // Asked again as soon as it has been left alone for a while: then what one edge stores, the other knows.
    let mut key = 100;
    loop {
        assert!(matches!(post(&first, event(key)).await, Appended::Stored(_)));
        if post(&second, event(key)).await == Appended::Duplicate {
            break;
        }
        key += 1;
        assert!(key < 10_000, "redis is never asked again");
    }
    first.events.close().await;
    second.events.close().await;
}

/// Two edges' memories of ids, on one Redis.
struct Edges {
    first: Arc<Shared>,
    second: Arc<Shared>,
    asked: u64,
}

impl Edges {
    fn on(redis: &Redis) -> Self {
        let edge = || Shared::new(redis, "edges", &Registry::new()).unwrap();
        Self { first: edge(), second: edge(), asked: 0 }
    }

    /// Whether a new id that one edge takes is known to the other at each step; not, if Redis did not answer one of
    /// them in time. What both are told must never be at odds.
    async fn share_one(&mut self) -> bool {
        self.asked += 1;
        let id = EventId::derive("edges", [self.asked.to_be_bytes().as_slice()]);
        let print = Fingerprint::of(&self.asked.to_be_bytes());
        if self.first.reserve(id).await != Claim::Mine || self.second.reserve(id).await != Claim::Pending {
            return false;
        }
        self.first.release(id);
        self.first.flush().await;
        if self.second.reserve(id).await != Claim::Mine || self.first.reserve(id).await != Claim::Pending {
            return false;
        }
        self.second.confirm(id, print);
        self.second.flush().await;
        match self.first.reserve(id).await {
            Claim::Known(known) => known == print,
            _ => false,
        }
    }

    /// Waits until they share one id after another, as many as touch each part of a cluster.
    async fn wait_until_shared(&mut self) {
        const IN_A_ROW: u32 = 12;
        let (began, mut row) = (Instant::now(), 0);
        while row < IN_A_ROW {
            assert!(began.elapsed() < Duration::from_secs(60), "never shared: {row} in a row");
            row = if self.share_one().await { row + 1 } else { 0 };
            if row == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Asks until one is told that nobody answers, and goes on.
    async fn wait_until_alone(&mut self) {
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < Duration::from_secs(60), "never alone");
            self.asked += 1;
            let id = EventId::derive("edges", [self.asked.to_be_bytes().as_slice()]);
            if self.first.reserve(id).await == Claim::Alone {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_stored_without_redis_is_known_to_the_others_when_it_is_back() {
    let redis = spawn_blocking(testing::RedisServer::start).await.unwrap();
    let mut edges = Edges::on(&redis.options());
    edges.wait_until_shared().await;
    redis.signal("STOP");
    let print = Fingerprint::of(b"stored");
    // More than go with one batch.
    let ids: Vec<_> = (0_u64..300).map(|n| EventId::derive("stored", [n.to_be_bytes().as_slice()])).collect();
    for id in &ids {
        assert_eq!(edges.first.reserve(*id).await, Claim::Alone);
        edges.first.confirm(*id, print);
    }
    redis.signal("CONT");
    // Nobody asks anything of the first edge any more.
    let began = Instant::now();
    for id in ids {
        while edges.second.reserve(id).await != Claim::Known(print) {
            edges.second.release(id);
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "redis never hears of what was stored without it"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_full_redis_is_is_told() {
    let bounded = || testing::RedisServer::with(&["--maxmemory", "64mb"]);
    let redis = spawn_blocking(bounded).await.unwrap();
    let registry = Registry::new();
    let _edge = Shared::new(&redis.options(), "edges", &registry).unwrap();
    let gauge = |name: &str| {
        let families = registry.gather();
        families.iter().find(|family| family.name() == name).unwrap().get_metric()[0].get_gauge().get_value()
    };
    let began = Instant::now();
    while gauge("chaski_dedup_capacity_bytes") < 0.5 {
        assert!(began.elapsed() < Duration::from_secs(60), "never told");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(gauge("chaski_dedup_capacity_bytes"), f64::from(64 << 20));
    let used = gauge("chaski_dedup_used_bytes");
    assert!(used > 0.0 && used < f64::from(64 << 20), "{used}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_redis_does_not_let_a_user_do_is_told() {
    let users = ["--user", "bare", "on", ">s3cret", "~chaski:*", "+@all", "-@scripting"];
    let redis = spawn_blocking(move || testing::RedisServer::with(&users)).await.unwrap();
    let mut options = redis.options();
    assert_eq!(redis_refusal(&options, "chaski").await.unwrap(), None);
    let url = std::str::from_utf8(options.url.expose()).unwrap().replace("redis://", "redis://bare:s3cret@");
    options.url = Secret::new(url);
    let refusal = redis_refusal(&options, "chaski").await.unwrap().unwrap();
    assert!(refusal.to_lowercase().contains("eval") && !refusal.contains("s3cret"), "{refusal}");
    let elsewhere = redis_refusal(&options, "other").await.unwrap().unwrap();
    assert!(elsewhere.contains("key"), "{elsewhere}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_master_that_a_sentinel_names_is_asked_and_after_it_the_next() {
    let mut redis = spawn_blocking(testing::RedisUnderSentinel::start).await.unwrap();
    let mut edges = Edges::on(&redis.options());
    edges.wait_until_shared().await;
    let before = redis_state(&redis.options()).await.unwrap();
    assert_eq!((before.len(), before[0].misplaced), (1, ""), "{before:?}");
    let redis = spawn_blocking(move || {
        redis.kill_master();
        redis
    });
    let redis = redis.await.unwrap();
    edges.wait_until_alone().await;
    edges.wait_until_shared().await;
    assert_eq!(redis_state(&redis.options()).await.unwrap()[0].misplaced, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_asked_key_by_key_and_a_replica_takes_the_place_of_a_dead_master() {
    let mut redis = spawn_blocking(testing::RedisCluster::start).await.unwrap();
    let mut edges = Edges::on(&redis.options());
    edges.wait_until_shared().await;
    let (mut many, began) = (tokio::task::JoinSet::new(), Instant::now());
    // More at once than one batch takes, over all parts.
    for number in 0_u64..600 {
        let edge = Arc::clone(if number % 2 == 0 { &edges.first } else { &edges.second });
        let id = EventId::derive("many", [(number / 2).to_be_bytes().as_slice()]);
        many.spawn(async move { (id, edge.reserve(id).await) });
    }
    let mut taken = BTreeSet::new();
    for (id, claim) in many.join_all().await {
        assert!(claim != Claim::Mine || taken.insert(id.to_string()), "{id} was taken twice");
    }
    assert!(taken.len() > 30, "{} of 300 ids within {:?}", taken.len(), began.elapsed());

    let states = redis_state(&redis.options()).await.unwrap();
    assert_eq!(states.len(), 3, "{states:?}");
    assert!(
        states.iter().all(|state| state.version.contains('.') && state.misplaced.is_empty()),
        "{states:?}"
    );
    let redis = spawn_blocking(move || {
        redis.kill_master();
        redis
    });
    let _redis = redis.await.unwrap();
    edges.wait_until_alone().await;
    edges.wait_until_shared().await;
}
