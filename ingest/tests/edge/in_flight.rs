//! What is in flight is bounded by what has come, not by what was promised, and until it is stored.

use std::sync::Mutex;

use async_trait::async_trait;
use chaski_common::event::{Event, EventId};
use chaski_common::storage::{
    Appended, BatchLimit, Census, Controls, Cursor, Delivered, EventLog, Fate, Position, Progress, Pruned,
    Record, Replay, Start, StorageError, Subscription,
};
use tokio::sync::watch;

use super::*;

/// The head of a chunked request, which waits to be asked for its body, with a well-formed signature that is wrong.
fn stalled_head() -> String {
    format!(
        "POST /in/pagoefectivo HTTP/1.1\r\nhost: edge\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\
         pe-signature: {}\r\n\r\n",
        "0".repeat(64)
    )
}

#[tokio::test]
async fn promised_bodies_take_no_room_from_those_that_come() {
    let pe = preset("pagoefectivo");
    let rig = rig(vec![pe.clone()], |config| config.limits.inflight_bytes_max = 4 * config.max_body).await;
    let mut stalled = Vec::new();
    for n in 0..16 {
        let declared = stalled_head().replace("transfer-encoding: chunked", "content-length: 262144");
        let head = if n % 2 == 0 { stalled_head() } else { declared };
        let (stream, answer) = rig.raw(head.as_bytes()).await;
        assert_eq!(answer.unwrap().status, 100, "the edge has the request in hand");
        stalled.push(stream);
    }
    let (headers, body) = signed(&pe, &callback("\"1\"", "\"2\"", "3.00"));
    assert_eq!(rig.post("/in/pagoefectivo", &headers, &body).await.status, 200);
    drop(stalled);
    rig.close().await;
}

#[tokio::test]
async fn a_request_that_comes_whole_finds_room_beside_any_number_that_do_not() {
    let pe = preset("pagoefectivo");
    let rig = rig(vec![pe.clone()], |config| {
        config.limits.inflight_requests_max = 16;
        config.http2 = true;
    })
    .await;
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let (stream, answer) = rig.raw(stalled_head().as_bytes()).await;
        assert_eq!(answer.unwrap().status, 100);
        stalled.push(stream);
    }
    for n in 0..20 {
        let unasked = stalled_head().replace("expect: 100-continue\r\n", "");
        for head in [stalled_head(), unasked] {
            assert_eq!(rig.raw(head.as_bytes()).await.1.unwrap().status, 503, "half of the places");
        }
        let (headers, body) = signed(&pe, &callback("\"1\"", &format!("\"{n}\""), "3.00"));
        assert_eq!(rig.post("/in/pagoefectivo", &headers, &body).await.status, 200);
        let (request, body) = http2::valid(100 + n);
        let (answer, mut sending) = rig.h2().await.send_request(request, false).unwrap();
        sending.send_data(body, true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 200);
    }
    drop(stalled);
    rig.wait_for("chaski_edge_inflight_requests", 0.0).await;
    assert_eq!(rig.raw(stalled_head().as_bytes()).await.1.unwrap().status, 100);
    rig.close().await;
}

#[tokio::test]
async fn bytes_over_the_bound_are_503_when_they_come() {
    let rig = rig(vec![preset("pagoefectivo")], |config| config.limits.inflight_bytes_max = 40_000).await;
    let (mut stream, answer) = rig.raw(stalled_head().as_bytes()).await;
    assert_eq!(answer.unwrap().status, 100);
    let chunk = [b"4e20\r\n".as_slice(), &[b'x'; 20_000], b"\r\n"].concat();
    for _ in 0..3 {
        stream.write_all(&chunk).await.unwrap();
    }
    let answer = read_answer(&mut stream).await.unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("retry-after: "), "{answer:?}");
    assert_eq!(rig.metric("chaski_edge_inflight_bytes"), 0.0);
    rig.close().await;
}

/// The real log, but what is appended stays in a queue.
struct Queueing {
    real: Arc<dyn EventLog>,
    queue: Mutex<Vec<Event>>,
}

#[async_trait]
impl EventLog for Queueing {
    async fn append(&self, event: Event, _: OnConflict) -> Result<Appended, StorageError> {
        self.queue.lock().unwrap().push(event);
        std::future::pending().await
    }
    async fn quarantine(&self, event: Event, reason: &str, detail: &str) -> Result<bool, StorageError> {
        self.real.quarantine(event, reason, detail).await
    }
    fn head(&self) -> watch::Receiver<Position> {
        self.real.head()
    }
    async fn subscribe(
        &self,
        cursor: &Cursor,
        start: Start,
        limit: BatchLimit,
    ) -> Result<Subscription, StorageError> {
        self.real.subscribe(cursor, start, limit).await
    }
    async fn settle(
        &self,
        cursor: &Cursor,
        mark: Position,
        delivered: Vec<Delivered>,
    ) -> Result<(), StorageError> {
        self.real.settle(cursor, mark, delivered).await
    }
    async fn begin_replay(
        &self,
        destination: &str,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<(Cursor, u64), StorageError> {
        self.real.begin_replay(destination, from, to).await
    }
    async fn replays(&self) -> Result<Vec<Replay>, StorageError> {
        self.real.replays().await
    }
    async fn end_replay(&self, cursor: &Cursor) -> Result<(), StorageError> {
        self.real.end_replay(cursor).await
    }
    async fn set_paused(&self, destination: &str, paused: bool) -> Result<(), StorageError> {
        self.real.set_paused(destination, paused).await
    }
    fn controls(&self) -> watch::Receiver<Controls> {
        self.real.controls()
    }
    async fn progress(&self) -> Result<Vec<Progress>, StorageError> {
        self.real.progress().await
    }
    async fn find(&self, filter: EventFilter) -> Result<Vec<Record>, StorageError> {
        self.real.find(filter).await
    }
    async fn fates(&self, id: EventId) -> Result<Vec<Fate>, StorageError> {
        self.real.fates(id).await
    }
    async fn prune(
        &self,
        now: Timestamp,
        retention: Duration,
        destinations: &[Arc<str>],
    ) -> Result<Pruned, StorageError> {
        self.real.prune(now, retention, destinations).await
    }
    fn is_writable(&self) -> bool {
        self.real.is_writable()
    }
    async fn census(&self) -> Result<Census, StorageError> {
        self.real.census().await
    }
    async fn close(&self) {
        self.real.close().await;
    }
}

#[tokio::test]
async fn an_event_that_waits_to_be_stored_is_charged_though_its_sender_has_gone() {
    let pe = preset("pagoefectivo");
    let mut queueing = None;
    let rig = rig_over(
        |mut storage| {
            let log = Arc::new(Queueing { real: storage.events, queue: Mutex::default() });
            storage.events = log.clone();
            queueing = Some(log);
            storage
        },
        vec![pe.clone()],
        |config| config.http2 = true,
    )
    .await;
    let log = queueing.unwrap();
    let (request, body) = http2::valid(1);
    let mut client = rig.h2().await;
    let (answer, mut sending) = client.send_request(request, false).unwrap();
    sending.send_data(body.clone(), true).unwrap();
    while log.queue.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    // Over HTTP/2 that is said, where an end of HTTP/1.1 may be that of the sender's own side only.
    drop((answer, sending));
    while rig.metric("chaski_edge_inflight_requests") > 0.0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.metric("chaski_edge_inflight_bytes"), body.len() as f64);
    log.queue.lock().unwrap().clear();
    assert_eq!(rig.metric("chaski_edge_inflight_bytes"), 0.0);
    rig.close().await;
}
