//! HTTP/2 where it is switched on: the same answers, and an end to every flood.

use base64::Engine as _;
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Version};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncWrite};

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PATIENCE: Duration = Duration::from_secs(30);

async fn speaking(change: impl FnOnce(&mut EdgeConfig)) -> Rig {
    rig(vec![preset("pagoefectivo")], |config| {
        config.http2 = true;
        change(config);
    })
    .await
}

/// A client on a connection that is driven until it ends.
async fn client(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> SendRequest<Bytes> {
    let (client, connection) =
        h2::client::Builder::new().max_send_buffer_size(1 << 20).handshake(stream).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    client.ready().await.unwrap()
}

impl Rig {
    pub(super) async fn h2(&self) -> SendRequest<Bytes> {
        client(TcpStream::connect(self.address).await.unwrap()).await
    }
}

fn request(path: &str, headers: &[(String, String)]) -> Request<()> {
    let builder = Request::post(format!("http://edge{path}")).version(Version::HTTP_2);
    headers.iter().fold(builder, |builder, (name, value)| builder.header(name, value)).body(()).unwrap()
}

/// A genuine request; each number is another event.
pub(super) fn valid(number: usize) -> (Request<()>, Bytes) {
    let body = callback("\"1\"", &format!("\"{number}\""), "1.00");
    let (headers, body) = signed(&preset("pagoefectivo"), &body);
    (request("/in/pagoefectivo", &headers), body.into())
}

/// Sends a request with this body, none of which is sent when it is none, and reads the answer.
async fn exchange(client: &mut SendRequest<Bytes>, request: Request<()>, body: Option<Bytes>) -> Answer {
    let (answer, mut sending) = client.send_request(request, false).unwrap();
    if let Some(body) = body {
        // A refusal may come before all is sent.
        let _ = sending.send_data(body, true);
    }
    let (parts, mut body) = answer.await.unwrap().into_parts();
    let mut text = Vec::new();
    while let Some(data) = body.data().await {
        text.extend_from_slice(&data.unwrap());
    }
    let head = format!("{:?}", parts.headers);
    Answer { status: parts.status.as_u16(), head, body: String::from_utf8(text).unwrap() }
}

#[tokio::test]
async fn what_is_asked_over_http2_is_checked_and_answered_as_ever() {
    let rig = speaking(|config| {
        config.hosts = vec!["edge".into()];
        config.limits.body_timeout = Duration::from_millis(300);
    })
    .await;
    let mut client = rig.h2().await;
    let (first, body) = valid(1);
    let answer = exchange(&mut client, first, Some(body.clone())).await;
    assert_eq!((answer.status, answer.body.contains("accepted")), (200, true), "{answer:?}");
    let answer = exchange(&mut client, valid(1).0, Some(body)).await;
    assert!(answer.body.contains("duplicate"), "{answer:?}");
    let with = |change: &dyn Fn(&mut Request<()>)| {
        let mut changed = valid(2).0;
        change(&mut changed);
        changed
    };
    let header = |name: &'static str, value: String| {
        with(&move |request| {
            request.headers_mut().insert(name, value.parse().unwrap());
        })
    };
    let to = |uri: &str| with(&|request| *request.uri_mut() = uri.parse().unwrap());
    let many = with(&|request| {
        for n in 0..65 {
            request.headers_mut().append("x-many", n.to_string().parse().unwrap());
        }
    });
    let long = Bytes::from(vec![b'x'; 300 * 1024]);
    let cases = [
        ("forged", header("pe-signature", "0".repeat(64)), Some(valid(2).1), 401),
        ("another method", with(&|request| *request.method_mut() = http::Method::GET), None, 405),
        ("another path", to("http://edge/in/nobody"), None, 404),
        ("another host", to("http://evil.test/in/pagoefectivo"), None, 421),
        ("two hosts", header("host", "other".into()), None, 400),
        ("too long a target", to(&format!("http://edge/in/pagoefectivo?{}", "a".repeat(3000))), None, 414),
        ("too many headers", many, None, 431),
        ("too large a head", header("x-large", "x".repeat(20_000)), None, 431),
        ("too long as declared", header("content-length", "300000".into()), None, 413),
        ("too long", valid(2).0, Some(long), 413),
        ("a body that does not come", valid(2).0, None, 408),
        ("a body without a declared length", valid(2).0, Some(valid(2).1), 200),
    ];
    for (name, request, body, expected) in cases {
        let answer = exchange(&mut client, request, body).await;
        assert_eq!(answer.status, expected, "{name}: {answer:?}");
        assert!(!answer.head.contains("connection"), "{name}: {answer:?}");
    }
    assert_eq!(rig.events().await, 2);
    assert_eq!(rig.metric("chaski_edge_connections_total{listener=\"edge\"}"), 1.0, "all on one connection");
    // Who begins with HTTP/1.1 goes on with it.
    let (headers, body) = signed(&preset("pagoefectivo"), &callback("\"1\"", "\"3\"", "1.00"));
    assert_eq!(rig.post("/in/pagoefectivo", &headers, &body).await.status, 200);
    rig.close().await;
}

#[tokio::test]
async fn many_requests_share_a_connection_and_an_end_in_order_lets_them_finish() {
    let rig = speaking(|_| {}).await;
    let mut client = rig.h2().await;
    // With its answer it is known how many requests may be under way.
    let (request, body) = valid(300);
    assert_eq!(exchange(&mut client, request, Some(body)).await.status, 200);
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..300 {
        let client = client.clone();
        requests.spawn(async move {
            let (request, body) = valid(number);
            exchange(&mut client.ready().await.unwrap(), request, Some(body)).await.status
        });
    }
    assert!(requests.join_all().await.iter().all(|status| *status == 200));
    let mut client = client.ready().await.unwrap();
    let (request, body) = valid(1000);
    let (answer, mut sending) = client.send_request(request, false).unwrap();
    while rig.metric("chaski_edge_inflight_requests") < 1.0 {
        tokio::task::yield_now().await;
    }
    rig.shutdown.cancel();
    sending.send_data(body, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
    tokio::time::timeout(PATIENCE, rig.running).await.unwrap().unwrap();
    let stored = rig.storage.events.find(EventFilter { limit: 1000, ..EventFilter::default() }).await;
    assert_eq!(stored.unwrap().len(), 302);
    rig.storage.events.close().await;
}

#[tokio::test]
async fn over_tls_the_client_chooses() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap()).unwrap();
    for http2 in [true, false] {
        let tls = TlsConfig { cert: folder.join("leaf.pem"), key: folder.join("leaf.key"), client_ca: None };
        let rig = speaking(|config| (config.tls, config.http2) = (Some(tls), http2)).await;
        let connect = async |protocols: &[&str]| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
            let stream = TcpStream::connect(rig.address).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
            connector.connect("localhost".try_into().unwrap(), stream).await
        };
        let chosen = |stream: &tokio_rustls::client::TlsStream<TcpStream>| {
            stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec)
        };
        let both = connect(&["h2", "http/1.1"]).await.unwrap();
        assert_eq!(chosen(&both), Some(if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }));
        assert_eq!(chosen(&connect(&["http/1.1"]).await.unwrap()), Some(b"http/1.1".to_vec()));
        assert_eq!(connect(&["h2"]).await.is_ok(), http2);
        if http2 {
            let (request, body) = valid(1);
            assert_eq!(exchange(&mut client(both).await, request, Some(body)).await.status, 200);
        }
        rig.close().await;
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a forged request, in literals; the body of one to the source's own path is waited for.
fn head(path: &str) -> Vec<u8> {
    let literal =
        |first: &[u8], value: &str| [first, &[u8::try_from(value.len()).unwrap()], value.as_bytes()].concat();
    let signature = [[0, 12].as_slice(), b"pe-signature"].concat();
    [vec![0x83, 0x86], literal(&[4], path), literal(&[1], "edge"), literal(&signature, &"0".repeat(64))]
        .concat()
}

/// Writes frames until the other side has had enough.
async fn flood(rig: &Rig, frames: impl Iterator<Item = Vec<u8>>) {
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let writing = async {
        let mut pending = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        for frame in frames {
            pending.extend_from_slice(&frame);
            if pending.len() > 16 * 1024 {
                if write.write_all(&pending).await.is_err() {
                    return;
                }
                pending.clear();
            }
        }
        let _ = write.write_all(&pending).await;
        std::future::pending::<()>().await;
    };
    let either = async {
        tokio::select! {
            () = writing => {}
            () = end_of(&mut read) => {}
        }
    };
    assert!(tokio::time::timeout(PATIENCE, either).await.is_ok(), "the connection stays open");
}

#[tokio::test]
async fn a_flood_of_frames_ends_its_connection() {
    const SOURCE: &str = "/in/pagoefectivo";
    let rig = speaking(|config| config.limits.body_timeout = Duration::from_secs(60)).await;
    let opened = |path: &str, stream: u32| frame(HEADERS, END_HEADERS, stream, &head(path));
    let streams = |count: u32| (0..count).map(|n| 2 * n + 1);
    let reset = |stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]);
    type Frames<'a> = Box<dyn Iterator<Item = Vec<u8>> + 'a>;
    let floods: [(&str, Frames<'_>); 6] = [
        (
            "streams that are reset at once",
            Box::new(streams(100_000).map(|stream| [opened(SOURCE, stream), reset(stream)].concat())),
        ),
        (
            "continuations without end",
            Box::new(
                std::iter::once(frame(HEADERS, 0, 1, &head(SOURCE)))
                    .chain((0..4096).map(|_| frame(CONTINUATION, 0, 1, &[0; 16 * 1024]))),
            ),
        ),
        (
            "empty frames of a body",
            Box::new(
                std::iter::once(opened(SOURCE, 1)).chain((0..1_000_000).map(|_| frame(DATA, 0, 1, &[]))),
            ),
        ),
        (
            "empty frames of a body that nobody reads",
            Box::new(std::iter::once(opened("/", 1)).chain((0..1_000_000).map(|_| frame(DATA, 0, 1, &[])))),
        ),
        (
            "frames that make us reset",
            Box::new(streams(100_000).map(|stream| {
                [opened(SOURCE, stream), frame(WINDOW_UPDATE, 0, stream, &[0x7f, 255, 255, 255])].concat()
            })),
        ),
        ("a frame that is none", Box::new(std::iter::once(frame(WINDOW_UPDATE, 0, 0, &[0; 4])))),
    ];
    let abuses = "chaski_edge_connection_errors_total{listener=\"edge\",reason=\"h2_abuse\"}";
    for (number, (name, frames)) in floods.into_iter().enumerate() {
        flood(&rig, frames).await;
        while rig.metric("chaski_edge_connections_open{listener=\"edge\"}") > 0.0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(rig.metric(abuses), number as f64 + 1.0, "{name}");
        let (request, body) = valid(number);
        assert_eq!(exchange(&mut rig.h2().await, request, Some(body)).await.status, 200, "after {name}");
    }
    assert_eq!(rig.metric("chaski_edge_inflight_requests"), 0.0);
    rig.close().await;
}

#[tokio::test]
async fn requests_that_are_taken_back_one_by_one_end_their_connection_too() {
    let rig = speaking(|config| config.limits.body_timeout = Duration::from_secs(60)).await;
    let mut client = rig.h2().await;
    let abuses = "chaski_edge_connection_errors_total{listener=\"edge\",reason=\"h2_abuse\"}";
    let has_ended = || rig.metric(abuses) > 0.0;
    let mut taken_back = 0;
    while !has_ended() {
        let Ok(ready) = client.ready().await else { break };
        client = ready;
        let Ok((_, mut sending)) = client.send_request(valid(1).0, false) else { break };
        while rig.metric("chaski_edge_inflight_requests") < 1.0 && !has_ended() {
            tokio::task::yield_now().await;
        }
        sending.send_reset(h2::Reason::CANCEL);
        while rig.metric("chaski_edge_inflight_requests") > 0.0 {
            tokio::task::yield_now().await;
        }
        taken_back += 1;
        assert!(taken_back < 1000, "no end of it");
    }
    assert!(taken_back >= 100, "{taken_back}");
    rig.wait_for(abuses, 1.0).await;
    rig.close().await;
}

#[tokio::test]
async fn a_connection_that_asks_for_nothing_ends_whatever_else_it_says() {
    let rig = speaking(|config| {
        config.limits.head_timeout = Duration::from_millis(300);
        config.limits.idle_timeout = Duration::from_millis(300);
    })
    .await;
    let ping = || frame(PING, 0, 0, &[0; 8]);
    let begin = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let asked = frame(HEADERS, END_HEADERS | 1, 1, &head("/"));
    // Nothing, half a preface, half a head, and a request: pings do not make any of them last.
    for (begun, pings) in [
        (Vec::new(), false),
        (PREFACE[..10].to_vec(), false),
        ([begin.as_slice(), &frame(HEADERS, 0, 1, &head("/"))].concat(), false),
        (begin.clone(), true),
        ([begin.as_slice(), &asked].concat(), true),
    ] {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        stream.write_all(&begun).await.unwrap();
        let (mut read, mut write) = stream.split();
        let pinging = async {
            while pings && write.write_all(&ping()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            std::future::pending::<()>().await;
        };
        let either = async {
            tokio::select! {
                () = pinging => {}
                () = end_of(&mut read) => {}
            }
        };
        assert!(tokio::time::timeout(PATIENCE, either).await.is_ok(), "{} bytes, {pings}", begun.len());
    }
    rig.close().await;
}

#[tokio::test]
async fn a_body_that_is_taken_back_is_none() {
    // Credentials say nothing about a body: only its end says that it is whole.
    const CREDENTIALS: &str = "merchant:chaski-test-secret";
    let secrets = Secrets::Any(vec![Secret::new(CREDENTIALS).into()]);
    let open = source("culqi", presets::load("culqi").unwrap(), secrets);
    let rig = rig(vec![open], |config| config.http2 = true).await;
    let credentials = base64::engine::general_purpose::STANDARD.encode(CREDENTIALS);
    let headers = [("authorization".to_owned(), format!("Basic {credentials}"))];
    let body = Bytes::from_static(br#"{"id":"1","type":"order.status.changed"}"#);
    let mut client = rig.h2().await;
    let (answer, mut sending) = client.send_request(request("/in/culqi", &headers), false).unwrap();
    sending.send_data(body.clone(), false).unwrap();
    while rig.metric("chaski_edge_inflight_requests") < 1.0 {
        tokio::task::yield_now().await;
    }
    sending.send_reset(h2::Reason::CANCEL);
    assert!(answer.await.is_err());
    while rig.metric("chaski_edge_inflight_requests") > 0.0 {
        tokio::task::yield_now().await;
    }
    assert_eq!((rig.events().await, rig.quarantined().await.len()), (0, 0));
    let answer = exchange(&mut rig.h2().await, request("/in/culqi", &headers), Some(body)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    rig.close().await;
}

/// Reads whatever comes until the other side has ended.
async fn end_of(read: &mut (impl AsyncRead + Unpin)) {
    let mut scratch = vec![0; 16 * 1024];
    while matches!(read.read(&mut scratch).await, Ok(1..)) {}
}
