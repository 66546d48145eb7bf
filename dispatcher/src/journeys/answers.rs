//! What receivers answer, well and badly, and the result each answer has: cases DS-… of the shared list.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::outcome::Outcome;

/// One attempt at a receiver that answers like this.
async fn attempt(answer: Answer, change: impl FnOnce(&mut DestinationSpec)) -> Outcome {
    let receiver = Receiver::start(move |_| answer.clone()).await;
    let mut spec = spec("erp", &receiver.url());
    spec.timeout = Duration::from_millis(700);
    change(&mut spec);
    sender(&spec).attempt(&event(1), 1, None).await
}

fn sender(spec: &DestinationSpec) -> crate::deliver::Sender {
    let dropped = prometheus::IntCounter::new("dropped", "dropped").unwrap();
    crate::deliver::Sender::new(spec, &crate::deliver::client::Dialer::new(&[]), Clock::system(), dropped)
}

#[tokio::test]
async fn each_answer_has_its_result() {
    let raw = |text: &str| Answer::Raw(text.as_bytes().to_vec());
    let head = |bytes: usize| Answer::Raw([b"HTTP/1.1 200 OK\r\nx-a: ".to_vec(), vec![b'a'; bytes]].concat());
    let cases = [
        ("DS-002", Answer::Status(201), "success"),
        ("DS-003", raw("HTTP/1.1 204 No Content\r\n\r\n"), "success"),
        (
            "DS-005",
            Answer::Endless(b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n", &[b'x'; 4096]),
            "success",
        ),
        (
            "endless chunks",
            Answer::Endless(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
            "success",
        ),
        ("DS-008", raw("HTTP/1.1 200 OK\r\nContent-"), "bad_response"),
        ("DS-010 a", raw("HTTP/1.1 99 X\r\n\r\n"), "bad_response"),
        ("DS-010 b", raw("HTTP/1.1 600 X\r\ncontent-length: 0\r\n\r\n"), "bad_response"),
        ("DS-010 c", raw("HTTP/1.1 1000 X\r\n\r\n"), "bad_response"),
        ("not HTTP", raw("SSH-2.0-OpenSSH_9.6\r\n"), "bad_response"),
        ("DS-012", Answer::With(302, "location", "http://127.0.0.1:6379/"), "http_3xx"),
        ("DS-014", Answer::With(308, "location", "http://127.0.0.1:6379/"), "http_3xx"),
        ("DS-016", Answer::Status(401), "http_4xx"),
        ("DS-021", Answer::Status(410), "gone"),
        ("DS-022", Answer::With(429, "retry-after", "30"), "rate_limited"),
        ("DS-028", Answer::Status(500), "http_5xx"),
        ("DS-031", Answer::Endless(b"", b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"), "bad_response"),
        ("DS-032", head(10 << 20), "bad_response"),
        ("DS-033", Answer::Silence, "timeout"),
        ("closed without a word", raw(""), "connect"),
        ("DS-036", Answer::Reset, "connect"),
        (
            "DS-038",
            raw("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            "success",
        ),
    ];
    for (case, answer, expected) in cases {
        let outcome = attempt(answer, |_| {}).await;
        assert_eq!(outcome.result.label(), expected, "{case}: {outcome:?}");
    }
}

#[tokio::test]
async fn no_connection_has_its_result_too() {
    let tls = |spec: &mut DestinationSpec| {
        spec.url = spec.url.to_string().replace("http:", "https:").parse().unwrap();
    };
    let to = |url: &'static str| move |spec: &mut DestinationSpec| spec.url = url.parse().unwrap();
    assert_eq!(attempt(Answer::Status(200), tls).await.result.label(), "tls");
    assert_eq!(attempt(Answer::Status(200), to("http://127.0.0.1:1/")).await.result.label(), "connect");
    assert_eq!(attempt(Answer::Status(200), to("http://nobody.invalid/")).await.result.label(), "dns");
    for url in [
        "http://169.254.169.254/",
        "http://0.0.0.0:80/",
        "http://[::]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[fe80::1]/",
    ] {
        assert_eq!(attempt(Answer::Status(200), to(url)).await.result.label(), "ssrf_blocked", "{url}");
    }
    // The receiver's own address is a loopback one.
    assert_eq!(
        attempt(Answer::Status(200), |spec| spec.allow_private = false).await.result.label(),
        "ssrf_blocked"
    );
    let by_name = |spec: &mut DestinationSpec| {
        spec.allow_private = false;
        spec.url = spec.url.to_string().replace("127.0.0.1", "localhost").parse().unwrap();
    };
    assert_eq!(attempt(Answer::Status(200), by_name).await.result.label(), "ssrf_blocked");
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_is_replaced_uncounted() {
    let receiver = Receiver::start(|_| Answer::Close).await;
    let sender = sender(&spec("erp", &receiver.url()));
    for n in 1..=50 {
        let outcome = sender.attempt(&event(n), 1, None).await;
        assert!(outcome.is_success(), "{n}: {outcome:?}");
    }
    assert_eq!(receiver.got().len(), 50);
}

/// The same, noticed only after the request was written: every second request of a connection gets no answer.
#[tokio::test]
async fn a_connection_that_dies_under_a_second_request_is_replaced_uncounted() {
    let served = Arc::new(std::sync::Mutex::new(std::collections::HashSet::new()));
    let receiver = Receiver::start(move |got| {
        let first = served.lock().unwrap().insert(got.connection);
        if first { Answer::Status(200) } else { Answer::Raw(Vec::new()) }
    })
    .await;
    let sender = sender(&spec("erp", &receiver.url()));
    for n in 0..10 {
        let outcome = sender.attempt(&event(n), 1, None).await;
        assert!(outcome.is_success(), "{n}: {outcome:?}");
    }
    let got = receiver.got();
    assert_eq!(got.len(), 19, "all but the first were sent twice");
    assert!(got.iter().all(|got| got.attempt() == 1));
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let receiver = Receiver::start(|_| Answer::Status(200)).await;
    let sender = sender(&spec("erp", &receiver.url()));
    for n in 0..20 {
        assert!(sender.attempt(&event(n), 1, None).await.is_success());
    }
    assert!(receiver.got().iter().all(|got| got.connection == 0));
}

#[tokio::test]
async fn an_idle_connection_that_the_other_side_has_closed_is_let_go() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sender = sender(&spec("erp", &format!("http://{}/", listener.local_addr().unwrap())));
    assert!(!sender.tidy(), "there is none yet");
    let event = event(1);
    let answer = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(&event.body) {
            stream.read_buf(&mut request).await.unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        stream
    };
    let (outcome, stream) = tokio::join!(sender.attempt(&event, 1, None), answer);
    assert!(outcome.is_success(), "{outcome:?}");
    assert!(sender.tidy(), "it is open at both ends");
    drop(stream);
    let let_go = async {
        while sender.tidy() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), let_go).await.unwrap();
}
