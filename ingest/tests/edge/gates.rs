//! Who is let in, under whose address, how many of them and for how long: the gates in front of any request.

use chaski_ingest::peer::Proxies;
use chaski_ingest::source::IpNet;
use socket2::{Domain, Socket, Type};

use super::*;

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// What the provider is configured with where addresses count.
const SENDER: &str = "203.0.113.7";

fn net(text: &str, prefix_bits: u8) -> IpNet {
    IpNet { address: text.parse().unwrap(), prefix_bits }
}

/// A rig to which this machine is a proxy that speaks the PROXY protocol, and a source that 203.0.113.0/24 may post to.
async fn proxied(change: impl FnOnce(&mut EdgeConfig)) -> Rig {
    let mut pe = preset("pagoefectivo");
    pe.allow_ips = vec![net("203.0.113.0", 24), net("2001:db8::", 32)];
    rig(vec![pe], |config| {
        config.proxies.proxy_protocol_from = vec![net("127.0.0.0", 8)];
        change(config);
    })
    .await
}

/// A signed request; each number is another event.
fn valid(number: usize, more: &str) -> Vec<u8> {
    let (headers, body) =
        signed(&preset("pagoefectivo"), &callback("\"1\"", &format!("\"{number}\""), "1.00"));
    let mut wire =
        format!("POST /in/pagoefectivo HTTP/1.1\r\nhost: edge\r\ncontent-length: {}\r\n{more}", body.len());
    headers.iter().for_each(|(name, value)| wire.push_str(&format!("{name}: {value}\r\n")));
    [wire.as_bytes(), b"\r\n", &body].concat()
}

fn v1(line: &str) -> Vec<u8> {
    format!("{line}\r\n").into_bytes()
}

fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
    [V2, &[command, family], &length, addresses].concat()
}

fn status(answer: Option<&Answer>) -> u16 {
    answer.map_or(0, |answer| answer.status)
}

impl Rig {
    pub(super) async fn wait_for(&self, series: &str, count: f64) {
        let counted = async {
            while self.metric(series) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let patience = Duration::from_secs(20);
        assert!(tokio::time::timeout(patience, counted).await.is_ok(), "{series} did not reach {count}");
    }
}

fn closed_for(reason: &str) -> String {
    format!("chaski_edge_connection_errors_total{{listener=\"edge\",reason=\"{reason}\"}}")
}

#[tokio::test]
async fn the_address_of_a_proxy_header_is_the_peers() {
    let rig = proxied(|_| {}).await;
    let mut ports = vec![203, 0, 113, 7, 10, 0, 0, 1, 1, 2, 3, 4];
    let v4 = v2(0x21, 0x11, &ports);
    let local = v2(0x20, 0x11, &ports);
    ports.extend_from_slice(&[0x04, 0, 200]);
    ports.extend_from_slice(&[0; 200]);
    let with_extensions = v2(0x21, 0x11, &ports);
    let v6 = |address: &str| {
        let address: std::net::Ipv6Addr = address.parse().unwrap();
        v2(0x21, 0x21, &[address.octets().as_slice(), &[0; 16], &[0, 1, 0, 2]].concat())
    };
    let cases = [
        ("v1", v1("PROXY TCP4 203.0.113.7 10.0.0.1 1234 443"), 200),
        ("v1, not listed", v1("PROXY TCP4 198.51.100.7 10.0.0.1 1234 443"), 403),
        ("v1, IPv6", v1("PROXY TCP6 2001:db8::7 2001:db8::1 1234 443"), 200),
        ("v1, IPv4 in IPv6", v1("PROXY TCP6 ::ffff:203.0.113.7 ::1 1234 443"), 200),
        ("v1, the proxy's own", v1("PROXY UNKNOWN"), 403),
        ("v2", v4.clone(), 200),
        ("v2 with extensions", with_extensions, 200),
        ("v2, the proxy's own", local, 403),
        ("v2, IPv6", v6("2001:db8::7"), 200),
        ("v2, IPv4 in IPv6", v6("::ffff:203.0.113.7"), 200),
        ("v2, not listed", v6("2001:db9::7"), 403),
        // Without a header there is no HTTP either: who could leave it out could be anybody.
        ("none", Vec::new(), 0),
        ("v1, no address", v1("PROXY TCP4 here there 1 2"), 0),
        ("v1 without end", format!("PROXY TCP4 {}", "1".repeat(200)).into_bytes(), 0),
        ("v2 of another version", v2(0x31, 0x11, &ports), 0),
        ("v2 cut short", v2(0x21, 0x11, &ports[..8]), 0),
        ("v2 too long", [V2, &[0x21, 0x11, 0xff, 0xff]].concat(), 0),
    ];
    let broken = cases.iter().filter(|(_, _, expected)| *expected == 0).count();
    for (number, (name, header, expected)) in cases.into_iter().enumerate() {
        let (stream, answer) = rig.raw(&[header, valid(number, "")].concat()).await;
        assert_eq!(status(answer.as_ref()), expected, "{name}: {answer:?}");
        assert!(expected != 0 || is_closed(stream).await, "{name}");
    }
    assert_eq!(rig.metric(&closed_for("proxy_header")), broken as f64);
    // A header that comes byte by byte is one.
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in [v4, valid(100, "")].concat() {
        stream.write_all(&[byte]).await.unwrap();
    }
    assert_eq!(read_answer(&mut stream).await.unwrap().status, 200);
    rig.close().await;
}

#[tokio::test]
async fn a_proxy_header_that_does_not_come_ends_the_connection() {
    let rig = proxied(|config| config.limits.handshake_timeout = Duration::from_millis(200)).await;
    for begun in [b"".as_slice(), b"PROXY TCP4 203.0", V2] {
        let (stream, answer) = rig.raw(begun).await;
        assert!(answer.is_none() && is_closed(stream).await);
    }
    assert_eq!(rig.metric(&closed_for("proxy_header")), 3.0);
    rig.close().await;
}

#[tokio::test]
async fn nobody_else_is_believed_about_an_address() {
    let mut pe = preset("pagoefectivo");
    pe.allow_ips = vec![net(SENDER, 32)];
    let elsewhere = Proxies {
        proxy_protocol_from: vec![net("10.0.0.0", 8)],
        forwarded_for_from: vec![net("10.0.0.0", 8)],
    };
    let rig = rig(vec![pe], |config| config.proxies = elsewhere).await;
    let (_, answer) = rig.raw(&valid(1, &format!("x-forwarded-for: {SENDER}\r\n"))).await;
    assert_eq!(status(answer.as_ref()), 403);
    let (_, answer) = rig.raw(&[v1("PROXY TCP4 203.0.113.7 10.0.0.1 1234 443"), valid(1, "")].concat()).await;
    assert_eq!(status(answer.as_ref()), 400, "not HTTP");
    rig.close().await;
}

#[tokio::test]
async fn a_trusted_proxy_is_believed_about_each_request() {
    let mut pe = preset("pagoefectivo");
    pe.allow_ips = vec![net(SENDER, 32)];
    let here = vec![net("127.0.0.0", 8), net("10.0.0.0", 8)];
    let rig = rig(vec![pe], |config| config.proxies.forwarded_for_from = here).await;
    let chain = format!("x-forwarded-for: {}\r\n", "1.1.1.1,".repeat(200) + SENDER + ", 10.1.2.3");
    for (number, (more, expected)) in [
        ("", 403),
        ("x-forwarded-for: 203.0.113.7\r\n", 200),
        ("x-forwarded-for: ::ffff:203.0.113.7\r\n", 200),
        ("x-forwarded-for: 203.0.113.7, 198.51.100.1\r\n", 403),
        ("x-forwarded-for: 203.0.113.7\r\nx-forwarded-for: 198.51.100.1\r\n", 403),
        ("x-forwarded-for: 198.51.100.1\r\nx-forwarded-for: 203.0.113.7\r\n", 200),
        (&chain, 200),
    ]
    .into_iter()
    .enumerate()
    {
        let (_, answer) = rig.raw(&valid(number, more)).await;
        assert_eq!(status(answer.as_ref()), expected, "{more:?}");
    }
    rig.close().await;
}

#[tokio::test]
async fn one_peer_has_so_many_connections_and_others_have_theirs() {
    let rig = proxied(|config| config.limits.connections_per_peer = 2).await;
    let from = |address: &str| v1(&format!("PROXY TCP6 {address} ::1 1 2"));
    let mut open = Vec::new();
    for (number, address) in ["2001:db8::1", "2001:db8::2"].into_iter().enumerate() {
        let (stream, answer) = rig.raw(&[from(address), valid(number, "")].concat()).await;
        assert_eq!(status(answer.as_ref()), 200);
        open.push(stream);
    }
    // All of a network of 64 bits is one peer.
    let (_, answer) = rig.raw(&[from("2001:db8::3"), valid(3, "")].concat()).await;
    assert!(answer.is_none(), "{answer:?}");
    assert_eq!(rig.metric(&closed_for("peer_limit")), 1.0);
    let (_, answer) = rig.raw(&[from("2001:db8:0:1::1"), valid(4, "")].concat()).await;
    assert_eq!(status(answer.as_ref()), 200);
    drop(open);
    let served = async { while rig.raw(&[from("2001:db8::3"), valid(5, "")].concat()).await.1.is_none() {} };
    tokio::time::timeout(Duration::from_secs(20), served).await.unwrap();
    rig.close().await;
}

#[tokio::test]
async fn for_a_connection_too_many_there_is_an_answer_and_soon_a_place() {
    let rig = rig(vec![preset("pagoefectivo")], |config| config.limits.connections_max = 1).await;
    let (first, answer) = rig.raw(&valid(1, "")).await;
    assert_eq!(status(answer.as_ref()), 200);
    let (stream, answer) = rig.raw(&valid(2, "")).await;
    let answer = answer.unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("retry-after: 5"), "{answer:?}");
    assert!(is_closed(stream).await);
    assert_eq!(rig.metric(&closed_for("full")), 1.0);
    assert_eq!(rig.events().await, 1);
    drop(first);
    let served = async { while status(rig.raw(&valid(2, "")).await.1.as_ref()) != 200 {} };
    tokio::time::timeout(Duration::from_secs(20), served).await.unwrap();
    rig.close().await;
}

#[tokio::test]
async fn who_does_not_read_is_let_go() {
    let rig = rig(vec![preset("pagoefectivo")], |config| {
        config.limits.write_timeout = Duration::from_millis(300);
    })
    .await;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&rig.address.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut stream = TcpStream::from_std(socket.into()).unwrap();
    let request = valid(1, "");
    let writing = async { while stream.write_all(&request).await.is_ok() {} };
    let closed = closed_for("write_timeout");
    tokio::select! {
        () = writing => rig.wait_for(&closed, 1.0).await,
        () = rig.wait_for(&closed, 1.0) => {}
    }
    rig.wait_for("chaski_edge_connections_open{listener=\"edge\"}", 0.0).await;
    assert_eq!(rig.events().await, 1);
    // What it may leave unread is bounded: a few hundred answers, and not the megabytes that a system would keep.
    let answered = rig.metric("chaski_edge_requests_total{outcome=\"duplicate\",source=\"pagoefectivo\"}");
    assert!((1.0..5000.0).contains(&answered), "{answered}");
    let (_, answer) = rig.raw(&valid(2, "")).await;
    assert_eq!(status(answer.as_ref()), 200);
    rig.close().await;
}

#[tokio::test]
async fn a_connection_that_says_no_more_is_closed_whatever_it_was_answered() {
    let rig = rig(vec![preset("pagoefectivo")], |config| {
        config.limits.idle_timeout = Duration::from_millis(300);
        // No other wait may be the one that ends it.
        (config.limits.head_timeout, config.limits.body_timeout) =
            (Duration::from_secs(600), Duration::from_secs(600));
    })
    .await;
    // The first waits for the store, the second does not, and of the third the body comes later than its head.
    let mut two_parts = TcpStream::connect(rig.address).await.unwrap();
    let (head, body) = (valid(2, "expect: 100-continue\r\n"), valid(2, ""));
    let end = |wire: &[u8]| wire.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    two_parts.write_all(&head[..end(&head)]).await.unwrap();
    assert_eq!(read_answer(&mut two_parts).await.unwrap().status, 100);
    two_parts.write_all(&body[end(&body)..]).await.unwrap();
    let answer = read_answer(&mut two_parts).await;
    for (stream, answer) in [rig.raw(&valid(1, "")).await, rig.raw(&valid(1, "")).await, (two_parts, answer)]
    {
        assert_eq!(status(answer.as_ref()), 200);
        let closed = tokio::time::timeout(Duration::from_secs(20), is_closed(stream)).await;
        assert_eq!(closed, Ok(true));
    }
    rig.close().await;
}

#[tokio::test]
async fn the_time_of_a_body_begins_with_its_head_and_not_with_its_first_byte() {
    let rig = rig(vec![preset("pagoefectivo")], |config| {
        config.limits.body_timeout = Duration::from_millis(300);
        // No other wait may be the one that ends it.
        (config.limits.head_timeout, config.limits.idle_timeout) =
            (Duration::from_secs(600), Duration::from_secs(600));
    })
    .await;
    let request = valid(1, "");
    let end = request.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    let (_, answer) = tokio::time::timeout(Duration::from_secs(20), rig.raw(&request[..end])).await.unwrap();
    assert_eq!(status(answer.as_ref()), 408);
    // Also of one that came right behind another request.
    let two = [&valid(2, ""), &request[..end]].concat();
    let (mut stream, answer) = rig.raw(&two).await;
    assert_eq!(status(answer.as_ref()), 200);
    let answer = tokio::time::timeout(Duration::from_secs(20), read_answer(&mut stream)).await.unwrap();
    assert_eq!(status(answer.as_ref()), 408);
    rig.close().await;
}

#[tokio::test]
async fn for_a_request_too_many_there_is_an_answer_on_a_connection_that_stays() {
    let rig = rig(vec![preset("pagoefectivo")], |config| config.limits.inflight_requests_max = 1).await;
    let mut waiting = TcpStream::connect(rig.address).await.unwrap();
    let head = valid(1, "expect: 100-continue\r\n");
    let end = head.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    waiting.write_all(&head[..end]).await.unwrap();
    assert_eq!(read_answer(&mut waiting).await.unwrap().status, 100);
    let (mut stream, answer) = rig.raw(&valid(2, "")).await;
    let answer = answer.unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("retry-after: 5") && !answer.head.contains("close"), "{answer:?}");
    waiting.write_all(&head[end..]).await.unwrap();
    assert_eq!(read_answer(&mut waiting).await.unwrap().status, 200);
    stream.write_all(&valid(2, "")).await.unwrap();
    assert_eq!(read_answer(&mut stream).await.unwrap().status, 200);
    rig.close().await;
}

const FORGED: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The same request with another signature.
fn forged(number: usize) -> Vec<u8> {
    let wire = String::from_utf8(valid(number, "")).unwrap();
    let (before, after) = wire.split_once("pe-signature: ").unwrap();
    format!("{before}pe-signature: {FORGED}{}", &after[FORGED.len()..]).into_bytes()
}

/// The head of a forged request that waits to be asked for its body.
fn forged_head() -> Vec<u8> {
    format!(
        "POST /in/pagoefectivo HTTP/1.1\r\nhost: edge\r\nexpect: 100-continue\r\ncontent-length: 300\r\n\
         pe-signature: {FORGED}\r\n\r\n"
    )
    .into_bytes()
}

/// A rig with a budget of so many failures, told the senders' addresses by a proxy; and a way to ask it.
async fn budgeted(failures_per_minute: usize, allowed: Vec<IpNet>) -> Rig {
    let mut pe = preset("pagoefectivo");
    pe.allow_ips = allowed;
    rig(vec![pe], |config| {
        config.proxies.proxy_protocol_from = vec![net("127.0.0.0", 8)];
        config.limits.failures_per_minute = failures_per_minute;
    })
    .await
}

impl Rig {
    async fn ask_from(&self, address: &str, request: &[u8]) -> Answer {
        let header = v1(&format!("PROXY TCP4 {address} 10.0.0.1 1 2"));
        self.raw(&[&header, request].concat()).await.1.unwrap()
    }
}

#[tokio::test]
async fn who_has_sent_too_many_wrong_signatures_is_refused_before_the_body_is_read() {
    const STRANGER: &str = "198.51.100.7";
    let rig = budgeted(2, Vec::new()).await;
    for number in 0..2 {
        assert_eq!(rig.ask_from(STRANGER, &forged(number)).await.status, 401);
    }
    // It is not asked for its body: the budget is for half a minute each.
    let answer = rig.ask_from(STRANGER, &forged_head()).await;
    assert_eq!(answer.status, 429);
    assert!(
        answer.head.contains("retry-after: 60") && answer.head.contains("connection: close"),
        "{answer:?}"
    );
    assert_eq!(rig.ask_from(SENDER, &forged_head()).await.status, 100, "somebody else");
    assert_eq!(rig.ask_from(SENDER, &valid(1, "")).await.status, 200);
    let source = "source=\"pagoefectivo\"";
    assert_eq!(rig.metric(&format!("chaski_edge_refused_total{{reason=\"rate_limited\",{source}}}")), 1.0);
    rig.close().await;
}

#[tokio::test]
async fn a_genuine_sender_is_heard_beside_any_number_of_forgers_at_its_address() {
    let rig = budgeted(2, Vec::new()).await;
    assert_eq!(rig.ask_from(SENDER, &valid(0, "")).await.status, 200);
    for number in 1..50 {
        let expected = if number <= 2 { 401 } else { 429 };
        assert_eq!(rig.ask_from(SENDER, &forged(number)).await.status, expected, "{number}");
        assert_eq!(rig.ask_from(SENDER, &valid(number, "")).await.status, 200, "{number}");
    }
    assert_eq!(rig.events().await, 50);
    rig.close().await;
}

#[tokio::test]
async fn who_repeats_what_it_has_recorded_is_no_genuine_sender() {
    const STRANGER: &str = "198.51.100.7";
    let rig = budgeted(1, Vec::new()).await;
    assert_eq!(rig.ask_from(SENDER, &valid(0, "")).await.status, 200);
    assert_eq!(rig.ask_from(STRANGER, &valid(0, "")).await.status, 200, "a duplicate");
    assert_eq!(rig.ask_from(STRANGER, &forged(1)).await.status, 401);
    assert_eq!(rig.ask_from(STRANGER, &valid(0, "")).await.status, 429);
    rig.close().await;
}

#[tokio::test]
async fn a_stranger_that_sends_no_bodies_has_a_sixteenth_of_the_places_until_its_budget_is_used_up() {
    const STRANGER: &str = "198.51.100.7";
    let rig = rig(vec![preset("pagoefectivo")], |config| {
        config.proxies.proxy_protocol_from = vec![net("127.0.0.0", 8)];
        config.limits.inflight_requests_max = 64;
        config.limits.failures_per_minute = 2;
        config.limits.body_timeout = Duration::from_secs(1);
    })
    .await;
    let from = |address: &str| [&v1(&format!("PROXY TCP4 {address} 10.0.0.1 1 2")), &*forged_head()].concat();
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let (stream, answer) = rig.raw(&from(STRANGER)).await;
        assert_eq!(status(answer.as_ref()), 100);
        stalled.push(stream);
    }
    assert_eq!(status(rig.raw(&from(STRANGER)).await.1.as_ref()), 503, "it is not asked for its body");
    assert_eq!(status(rig.raw(&from("198.51.100.8")).await.1.as_ref()), 100, "somebody else");
    assert_eq!(rig.ask_from(SENDER, &valid(0, "")).await.status, 200);
    // Who has shown that it is genuine has all that there is.
    let mut genuine = Vec::new();
    for _ in 0..8 {
        let (stream, answer) = rig.raw(&from(SENDER)).await;
        assert_eq!(status(answer.as_ref()), 100);
        genuine.push(stream);
    }
    // One goes before its time is up, the others when it is.
    stalled.pop();
    for mut stream in stalled.into_iter().chain(genuine) {
        assert_eq!(status(read_answer(&mut stream).await.as_ref()), 408);
    }
    assert_eq!(status(rig.raw(&from(STRANGER)).await.1.as_ref()), 429);
    assert_eq!(status(rig.raw(&from(SENDER)).await.1.as_ref()), 100);
    rig.close().await;
}

#[tokio::test]
async fn an_address_that_may_post_is_heard_before_it_has_shown_anything() {
    let rig = budgeted(2, vec![net(SENDER, 32)]).await;
    for number in 0..10 {
        let expected = if number < 2 { 401 } else { 429 };
        assert_eq!(rig.ask_from(SENDER, &forged(number)).await.status, expected);
    }
    assert_eq!(rig.ask_from(SENDER, &valid(1, "")).await.status, 200);
    rig.close().await;
}

#[tokio::test]
async fn an_address_that_many_may_have_has_no_budget() {
    let rig = budgeted(1, Vec::new()).await;
    for address in ["10.1.2.3", "127.0.0.1", "192.168.1.1"] {
        for number in 0..5 {
            assert_eq!(rig.ask_from(address, &forged(number)).await.status, 401, "{address}");
        }
        assert_eq!(rig.ask_from(address, &valid(1, "")).await.status, 200, "{address}");
    }
    rig.close().await;
}

#[tokio::test]
async fn only_the_configured_names_are_served() {
    let rig = rig(vec![preset("pagoefectivo")], |config| {
        config.hosts = vec!["pay.example.com".into(), "[2001:db8::1]".into()];
    })
    .await;
    let for_host = |host: &str, version: &str| {
        let wire = String::from_utf8(valid(1, "")).unwrap();
        wire.replace("host: edge\r\n", host).replace("HTTP/1.1", version).into_bytes()
    };
    for (host, version, expected) in [
        ("host: pay.example.com\r\n", "HTTP/1.1", 200),
        ("host: PAY.example.com:8443\r\n", "HTTP/1.1", 200),
        ("host: [2001:db8::1]:443\r\n", "HTTP/1.1", 200),
        ("host: pay.example.com.evil.test\r\n", "HTTP/1.1", 421),
        ("host: example.com\r\n", "HTTP/1.1", 421),
        ("host: 127.0.0.1\r\n", "HTTP/1.0", 421),
        ("", "HTTP/1.0", 421),
        ("", "HTTP/1.1", 400),
        ("host: pay.example.com\r\nhost: pay.example.com\r\n", "HTTP/1.1", 400),
        ("host: x@pay.example.com\r\n", "HTTP/1.1", 400),
    ] {
        let (_, answer) = rig.raw(&for_host(host, version)).await;
        assert_eq!(status(answer.as_ref()), expected, "{host:?} {version}");
    }
    rig.close().await;
}
