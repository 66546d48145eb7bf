//! What strangers write makes no time series: not a path, not a key id, and of event types no more than the bound.

use std::collections::BTreeSet;
use std::io::{BufReader, Write as _};

use crate::harness::{
    Callback, Destination, Gateway, Layout, PE_SECRET, Random, Receiver, Site, Storage, connect, exchange,
    get, payment, read_answer,
};

/// How many of each kind there are, where somebody says so.
const STRANGERS: &str = "CHASKI_STRANGERS";
/// Else, of each kind that is refused: the connection ends with the refusal, so these cost more.
const REFUSED: u64 = 2_000;
/// Else, of what is accepted.
const TYPES: u64 = 10_000;
/// Event types that have a series of their own.
const TYPES_NAMED_MAX: usize = 16;
const CONNECTIONS: u64 = 4;
const AT_ONCE: usize = 50;

/// The series that there are, without their values.
fn series(gateway: &Gateway) -> BTreeSet<String> {
    let text = String::from_utf8(get(gateway.admin, "/metrics").unwrap().body).unwrap();
    let named = text.lines().filter(|line| !line.starts_with('#'));
    named.filter_map(|line| line.rsplit_once(' ')).map(|(series, _)| series.to_owned()).collect()
}

fn word(random: &mut Random) -> String {
    format!("{:016x}{:016x}", random.next(), random.next())
}

/// A payment of its own, of a type of its own.
fn typed(kind: &str, number: u64) -> Vec<u8> {
    let body = payment(number).body.replace("cip.paid", kind);
    Callback::of(body).wire()
}

/// Signed by whom it should be, under a key id that nobody has.
fn keyed(id: &str, number: u64) -> Vec<u8> {
    let Callback { body, signature } = payment(number);
    format!(
        "POST /in/keyed HTTP/1.1\r\nhost: pay.test\r\nx-key-id: {id}\r\npe-signature: {signature}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A sender's part of so many types, in pieces of some that are answered together, and of so many paths and key ids.
fn post_all(gateway: &Gateway, sender: u64, types: u64, refused: u64) {
    let mut random = Random::new(sender);
    let mut stream = connect(gateway.edge).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let numbers: Vec<u64> = (0..types).filter(|number| number % CONNECTIONS == sender).collect();
    for some in numbers.chunks(AT_ONCE) {
        let all: Vec<u8> = some.iter().flat_map(|number| typed(&word(&mut random), 1_000 + number)).collect();
        stream.write_all(&all).unwrap();
        for _ in some {
            assert_eq!(read_answer(&mut answers).unwrap().status, 200);
        }
    }
    for number in 0..refused / CONNECTIONS {
        let path = word(&mut random);
        let stray =
            format!("POST /{path}/in?{path} HTTP/1.1\r\nhost: {path}.test\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(exchange(gateway.edge, stray.as_bytes()).unwrap().status, 404);
        assert_eq!(exchange(gateway.edge, &keyed(&word(&mut random), number)).unwrap().status, 401);
    }
}

#[test]
fn what_strangers_write_adds_no_series() {
    let each =
        std::env::var(STRANGERS).ok().map(|each| each.parse::<u64>().unwrap().next_multiple_of(CONNECTIONS));
    let (types, refused) = (each.unwrap_or(TYPES), each.unwrap_or(REFUSED));
    let receiver = Receiver::start();
    let layout = Layout {
        more: "[sources.keyed]\nprovider = \"pagoefectivo\"\nweak_secret = \"allow\"\nsecrets = { \"k1\" = \"env:PE_SECRET\" }\n\
               [sources.keyed.signature.key]\nselect = \"header:x-key-id\"\n"
            .to_owned(),
        ..Layout::to([Destination::new("orders", &receiver).with("events = [\"cip.paid\"]")])
    };
    let site = Site::on(Storage::File, &layout).with_env("PE_SECRET", PE_SECRET);
    let gateway = site.start();
    let at_start = series(&gateway);
    for number in 0..2 * TYPES_NAMED_MAX as u64 {
        assert_eq!(exchange(gateway.edge, &typed(&format!("type-{number}"), number)).unwrap().status, 200);
    }
    let before = series(&gateway);
    let named = before.difference(&at_start).filter(|series| series.contains("event_type=")).count();
    assert!(named <= TYPES_NAMED_MAX, "{named} types have a series of their own");
    std::thread::scope(|scope| {
        for sender in 0..CONNECTIONS {
            let gateway = &gateway;
            scope.spawn(move || post_all(gateway, sender, types, refused));
        }
    });
    let added: Vec<String> = series(&gateway).difference(&before).cloned().collect();
    assert!(added.is_empty(), "{added:#?}");
    assert_eq!(gateway.count("chaski_edge_events_total", &["event_type=\"other\""]), types + 16);
    assert_eq!(gateway.count("chaski_edge_unrouted_total", &[]), refused);
    assert_eq!(gateway.count("chaski_edge_refused_total", &["reason=\"unknown_key\""]), refused);
    gateway.stop();
}
