//! Promise 7, at the edge: whatever a sender writes, however long and however slowly, gets the answer of the
//! contract; the process lives, and takes the next event.

use std::io::{BufReader, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use crate::harness::{
    Callback, Destination, Layout, PE_PATH, Receiver, Site, connect, eventually, exchange, pause, payment,
    read_answer,
};

/// How a connection ends without an answer.
const CLOSED: u16 = 0;

/// A request as it is written, with `{..}` for what differs from run to run, and the answers that are right.
struct Case {
    name: &'static str,
    wire: String,
    /// The first is the one expected, the others are as safe.
    answers: &'static [u16],
}

/// The canonical request with other framing lines and another body; `{SIG}` signs `{BODY}`.
fn framed(name: &'static str, framing: &str, body: &str, answers: &'static [u16]) -> Case {
    let wire = format!(
        "POST {PE_PATH} HTTP/1.1\r\nHost: {{HOST}}\r\nContent-Type: application/json\r\nPE-Signature: {{SIG}}\r\n{framing}\r\n{body}"
    );
    Case { name, wire, answers }
}

fn raw(name: &'static str, wire: &str, answers: &'static [u16]) -> Case {
    Case { name, wire: wire.to_owned(), answers }
}

fn cases() -> Vec<Case> {
    let head = "Host: {HOST}\r\nPE-Signature: {SIG}\r\nContent-Length: {LEN}\r\n";
    let line = |name, line: &str, answers| raw(name, &format!("{line}\r\n{head}\r\n{{BODY}}"), answers);
    vec![
        framed("plain", "Content-Length: {LEN}\r\n", "{BODY}", &[200]),
        framed("chunked", "Transfer-Encoding: chunked\r\n", "{LENHEX}\r\n{BODY}\r\n0\r\n\r\n", &[200]),
        framed(
            "chunked with a trailer",
            "Transfer-Encoding: chunked\r\n",
            "{LENHEX}\r\n{BODY}\r\n0\r\nx-sum: 1\r\n\r\n",
            &[200],
        ),
        framed(
            "both framings",
            "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\nPOST /in/pagoefectivo HTTP/1.1\r\n\r\n",
            &[401],
        ),
        framed("not chunked", "Transfer-Encoding: xchunked\r\n", "{BODY}", &[400]),
        framed(
            "chunked twice",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "{LENHEX}\r\n{BODY}\r\n0\r\n\r\n",
            &[400],
        ),
        framed(
            "a chunk length that overflows",
            "Transfer-Encoding: chunked\r\n",
            "fffffffffffffffff\r\n",
            &[400],
        ),
        framed(
            "a chunk that is longer than it says",
            "Transfer-Encoding: chunked\r\n",
            "5\r\nhelloX0\r\n\r\n",
            &[400],
        ),
        framed("two lengths", "Content-Length: {LEN}\r\nContent-Length: 1\r\n", "{BODY}", &[400]),
        framed("a length with a sign", "Content-Length: +{LEN}\r\n", "{BODY}", &[400]),
        framed("a length in hexadecimal", "Content-Length: 0x10\r\n", "{BODY}", &[400]),
        framed("a length above 64 bits", "Content-Length: 18446744073709551616\r\n", "{BODY}", &[400]),
        framed("the greatest length", "Content-Length: 18446744073709551615\r\n", "{BODY}", &[431, 413, 400]),
        framed("no length", "", "", &[411]),
        framed("a length that cuts the body", "Content-Length: 1\r\n", "{BODY}", &[401]),
        framed("too long as declared", "Content-Length: 300000\r\n", "", &[413]),
        framed(
            "too long, and asking first",
            "Expect: 100-continue\r\nContent-Length: 300000\r\n",
            "",
            &[413],
        ),
        framed("an unknown expectation", "Expect: 200-ok\r\nContent-Length: {LEN}\r\n", "{BODY}", &[417]),
        framed(
            "too many headers",
            &format!("{}Content-Length: {{LEN}}\r\n", "x: y\r\n".repeat(80)),
            "{BODY}",
            &[431],
        ),
        framed(
            "too long a header",
            &format!("x: {}\r\nContent-Length: {{LEN}}\r\n", "y".repeat(40_000)),
            "{BODY}",
            &[431],
        ),
        raw("another method", "GET /in/pagoefectivo HTTP/1.1\r\nHost: {HOST}\r\n\r\n", &[405]),
        raw("TRACE", "TRACE /in/pagoefectivo HTTP/1.1\r\nHost: {HOST}\r\n\r\n", &[405]),
        line("another path", "POST /in/nobody HTTP/1.1", &[404]),
        line("the admin's path", "POST /metrics HTTP/1.1", &[404]),
        line("dots in the path", "POST /x/../in/pagoefectivo HTTP/1.1", &[404]),
        line("a target too long", &format!("POST /in/pagoefectivo?{} HTTP/1.1", "a".repeat(4096)), &[414]),
        line("another version", "POST /in/pagoefectivo HTTP/9.9", &[400]),
        raw(
            "no host",
            "POST /in/pagoefectivo HTTP/1.1\r\nPE-Signature: {SIG}\r\nContent-Length: {LEN}\r\n\r\n{BODY}",
            &[400],
        ),
        raw("not HTTP", "\u{16}\u{3}\u{1}\u{2}\u{0}\r\n\r\n", &[400, CLOSED]),
        raw("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[400, CLOSED]),
        raw("nothing of sense", "\r\n\r\n\r\nhello\r\n\r\n", &[400, CLOSED]),
    ]
}

#[test]
fn whatever_is_written_gets_its_answer_and_the_process_takes_the_next_event() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let mut accepted = Vec::new();
    let mut wrong = Vec::new();
    for (number, case) in (0..).zip(cases()) {
        let Callback { body, signature } = payment(number);
        let wire = case
            .wire
            .replace("{HOST}", &site.edge.to_string())
            .replace("{SIG}", &signature)
            .replace("{LENHEX}", &format!("{:x}", body.len()))
            .replace("{LEN}", &body.len().to_string())
            .replace("{BODY}", &body);
        let answer = exchange(site.edge, wire.as_bytes());
        let status = answer.as_ref().map_or(CLOSED, |answer| answer.status);
        if !case.answers.contains(&status) {
            wrong.push(format!("{}: {status} instead of {:?} ({answer:?})", case.name, case.answers));
        }
        if status == 200 {
            accepted.extend(answer.map(|answer| answer.id()));
        }
        // The same event, as it should be written, is taken all the same.
        let again = gateway.send(&payment(number));
        assert_eq!(again.status, 200, "after {}: {again:?}", case.name);
        accepted.push(again.id());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    accepted.sort();
    accepted.dedup();
    receiver.wait_for_count(accepted.len());
    assert!(gateway.exited().is_none());
    assert!(!gateway.log().iter().any(|line| line.contains("panicked")), "{:#?}", gateway.log());
    gateway.stop();
    let mut delivered: Vec<String> = receiver.receipts().into_iter().map(|receipt| receipt.id).collect();
    delivered.sort();
    assert_eq!(delivered, accepted, "exactly what was answered 200, once each");
}

#[test]
fn a_body_above_the_bound_is_refused_as_soon_as_it_is_known() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout {
        ingest: "max_body = \"4KiB\"".to_owned(),
        ..Layout::to([Destination::new("orders", &receiver)])
    });
    let gateway = site.start();
    let padded = |bytes: usize| {
        let Callback { body, .. } = payment(1);
        let filler = " ".repeat(bytes - body.len());
        Callback::of(body.replacen(':', &format!(":{filler}"), 1))
    };
    let chunked = |callback: &Callback| {
        let mut wire = format!(
            "POST {PE_PATH} HTTP/1.1\r\nhost: {}\r\npe-signature: {}\r\ntransfer-encoding: chunked\r\n\r\n",
            site.edge, callback.signature
        );
        for chunk in callback.body.as_bytes().chunks(1000) {
            wire.push_str(&format!("{:x}\r\n{}\r\n", chunk.len(), std::str::from_utf8(chunk).unwrap()));
        }
        wire + "0\r\n\r\n"
    };
    // (bytes, status declared, status in chunks)
    for (bytes, declared, in_chunks) in [(4097, 413, 413), (1 << 20, 413, 413), (4096, 200, 200)] {
        let callback = padded(bytes);
        assert_eq!(gateway.try_send(&callback).unwrap().status, declared, "{bytes} bytes declared");
        assert_eq!(
            exchange(site.edge, chunked(&callback).as_bytes()).unwrap().status,
            in_chunks,
            "{bytes} bytes in chunks"
        );
    }
    receiver.wait_for_count(1);
    gateway.stop();
}

#[test]
fn a_slow_sender_is_cut_off_in_time_and_others_are_served_meanwhile() {
    let receiver = Receiver::start();
    let ingest = "header_timeout = \"1s\"\nbody_timeout = \"1s\"".to_owned();
    let site = Site::new(&Layout { ingest, ..Layout::to([Destination::new("orders", &receiver)]) });
    let gateway = site.start();
    let wire = payment(1).wire();
    let head = wire.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    // What is written, whether one byte comes now and then, and the answer.
    let cases: [(&str, &[u8], bool, u16); 5] = [
        ("half a head, then silence", &wire[..head / 2], false, CLOSED),
        ("half a head, then a drip", &wire[..head / 2], true, CLOSED),
        ("a head, then silence", &wire[..head], false, 408),
        ("half a body, then silence", &wire[..wire.len() - 20], false, 408),
        ("half a body, then a drip", &wire[..wire.len() - 100], true, 408),
    ];
    std::thread::scope(|scope| {
        for (name, written, drips, expected) in cases {
            let site = &site;
            scope.spawn(move || {
                let mut stream = connect(site.edge).unwrap();
                stream.write_all(written).unwrap();
                let begun = Instant::now();
                let mut drip = stream.try_clone().unwrap();
                let dripping = drips.then(|| {
                    scope.spawn(move || {
                        while begun.elapsed() < Duration::from_secs(10) && drip.write_all(b"a").is_ok() {
                            pause(Duration::from_millis(200));
                        }
                    })
                });
                let status = read_answer(&mut BufReader::new(&stream)).map_or(CLOSED, |answer| answer.status);
                let took = begun.elapsed();
                let _ = stream.shutdown(Shutdown::Both);
                drop(dripping);
                assert_eq!(status, expected, "{name}");
                assert!(took < Duration::from_secs(4), "{name}: {took:?}");
                assert!(took > Duration::from_millis(900), "{name}: {took:?}");
            });
        }
        for number in 10..20 {
            gateway.accept(&payment(number));
        }
    });
    gateway.accept(&payment(1));
    receiver.wait_for_count(11);
    gateway.stop();
}

#[test]
fn a_sender_that_goes_away_in_the_middle_can_come_again() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let wire = payment(1).wire();
    for cut in [1, 20, wire.len() / 2, wire.len() - 1] {
        let mut stream = connect(site.edge).unwrap();
        stream.write_all(&wire[..cut]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let status = read_answer(&mut BufReader::new(stream)).map_or(CLOSED, |answer| answer.status);
        assert!(matches!(status, CLOSED | 400), "cut after {cut} bytes: {status}");
    }
    // Written whole, and gone before the answer: accepted or not, but never half.
    for number in 2..30 {
        let mut stream = connect(site.edge).unwrap();
        stream.write_all(&payment(number).wire()).unwrap();
        drop(stream);
    }
    let ids: Vec<String> = (1..30)
        .map(|number| gateway.send(&payment(number)))
        .map(|answer| {
            assert_eq!(answer.status, 200, "{answer:?}");
            answer.id()
        })
        .collect();
    for id in &ids {
        receiver.wait_for(id);
    }
    gateway.stop();
    assert_eq!(receiver.receipts().len(), ids.len());
}

#[test]
fn requests_in_one_write_are_answered_in_order() {
    const REQUESTS: u64 = 100;
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let wire: Vec<u8> = (0..REQUESTS).flat_map(|number| payment(number).wire()).collect();
    let mut stream = connect(site.edge).unwrap();
    stream.write_all(&wire).unwrap();
    let mut answers = BufReader::new(stream);
    let ids: Vec<String> = (0..REQUESTS)
        .map(|number| {
            let answer = read_answer(&mut answers).unwrap();
            assert_eq!(answer.outcome(), "accepted", "request {number}: {answer:?}");
            answer.id()
        })
        .collect();
    receiver.wait_for_count(ids.len());
    for (number, id) in (0..).zip(&ids) {
        assert_eq!(
            receiver.wait_for(id).body,
            payment(number).body.as_bytes(),
            "answer {number} is about request {number}"
        );
    }
    gateway.stop();
}

#[test]
fn more_requests_than_the_bound_are_refused_as_our_fault_and_the_others_are_served() {
    let receiver = Receiver::start();
    let ingest = "requests_max = 1\nbody_timeout = \"20s\"".to_owned();
    let site = Site::new(&Layout { ingest, ..Layout::to([Destination::new("orders", &receiver)]) });
    let gateway = site.start();
    let callback = payment(1);
    let wire = callback.wire();
    let mut slow = connect(site.edge).unwrap();
    slow.write_all(&wire[..wire.len() - 10]).unwrap();
    eventually("the slow request to be under way", || {
        (gateway.count("chaski_edge_inflight_requests", &[]) > 0).then_some(())
    });
    gateway.send(&payment(2)).is_unavailable();
    slow.write_all(&wire[wire.len() - 10..]).unwrap();
    let answer = read_answer(&mut BufReader::new(slow)).unwrap();
    assert_eq!(answer.outcome(), "accepted");
    let id = gateway.accept(&payment(2));
    receiver.wait_for(&answer.id());
    receiver.wait_for(&id);
    gateway.stop();
}
