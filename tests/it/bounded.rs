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
fn a_sender_that_has_nothing_more_to_say_gets_its_answer() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    for number in 1..20 {
        let mut stream = connect(site.edge).unwrap();
        stream.write_all(&payment(number).wire()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let answer = read_answer(&mut BufReader::new(stream)).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        receiver.wait_for(&answer.id());
    }
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
