//! The process: one per store, an end in order, health that tells the truth.

use std::io::{BufReader, Read as _, Write as _};

use crate::harness::{
    Destination, Layout, Receiver, Reply, Site, connect, eventually, get, payment, post, read_answer,
};

#[test]
fn a_second_process_on_the_same_store_is_refused_and_the_first_goes_on() {
    let receiver = Receiver::start();
    let layout = Layout::to([Destination::new("orders", &receiver)]);
    let site = Site::new(&layout);
    let gateway = site.start();
    // Other addresses, the same folder.
    let text = site.toml(&layout);
    let other = text.replace(&site.edge.port().to_string(), "0").replace(&site.admin.port().to_string(), "0");
    let line = 1 + other.lines().position(|line| line.starts_with("path = ")).unwrap();
    std::fs::write(site.path("other.toml"), other).unwrap();
    let told = site.bare(&["run", "-c", "other.toml"]);
    assert!(told.exits(78).stderr.contains("in use by another process"), "{told:?}");
    assert!(told.stderr.contains(&format!("other.toml:{line}: storage.path: ")), "{told:?}");
    // The same addresses as well.
    site.command(&["run"]).exits(78);
    receiver.wait_for(&gateway.accept(&payment(1)));
    gateway.stop();
    // Free again.
    let gateway = site.start();
    receiver.wait_for(&gateway.accept(&payment(2)));
    gateway.stop();
}

#[test]
fn a_process_that_ends_at_once_alarms_nobody() {
    let layout = Layout { more: "[alerts]\ndisk_free = \"1KiB\"\n".to_owned(), ..Layout::default() };
    let site = Site::new(&layout);
    let gateway = site.start();
    gateway.end();
    assert_eq!(gateway.logged("alert"), None);
}

/// Linked in is all it is, see `main.rs`: a linker that leaves it out says nothing.
#[test]
fn memory_comes_from_the_allocator_that_is_linked_in() {
    let site = Site::new(&Layout::default()).with_env("MIMALLOC_VERBOSE", "1");
    let told = site.bare(&["--version"]);
    assert!(told.ok().stderr.contains("mimalloc"), "{told:?}");
}

#[test]
fn an_address_that_is_taken_is_named() {
    let site = Site::new(&Layout::default());
    let taken = std::net::TcpListener::bind(site.edge).unwrap();
    let told = site.command(&["run"]);
    assert!(told.exits(1).stderr.contains(&site.edge.to_string()), "{told:?}");
    drop(taken);
    site.start().stop();
}

#[test]
fn callbacks_are_taken_until_a_load_balancer_has_had_its_time_to_notice() {
    let receiver = Receiver::start();
    let layout = Layout { ingest: "stop_delay = \"5m\"".to_owned(), ..Layout::default() };
    let destinations = vec![Destination::new("orders", &receiver)];
    let site = Site::new(&Layout { destinations, ..layout });
    let gateway = site.start();
    gateway.signal("TERM");
    eventually("readiness to go", || (gateway.readiness() != 200).then_some(()));
    receiver.wait_for(&gateway.accept(&payment(1)));
    assert!(gateway.exited().is_none());
    gateway.kill();
}

#[test]
fn a_request_under_way_at_the_end_is_finished_and_its_event_delivered() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let wire = payment(1).wire();
    let mut slow = connect(site.edge).unwrap();
    slow.write_all(&wire[..wire.len() - 10]).unwrap();
    eventually("the request to be under way", || {
        (gateway.count("chaski_edge_inflight_requests", &[]) == 1).then_some(())
    });
    // An idle connection must not hold it up.
    let mut idle = connect(site.edge).unwrap();
    idle.write_all(b"").unwrap();

    gateway.signal("TERM");
    eventually("readiness to go", || (gateway.readiness() != 200).then_some(()));
    eventually("the listener to close", || connect(site.edge).is_err().then_some(()));
    assert!(gateway.exited().is_none(), "it waits for the request under way");
    slow.write_all(&wire[wire.len() - 10..]).unwrap();
    let answer = read_answer(&mut BufReader::new(slow)).unwrap();
    assert_eq!((answer.status, answer.outcome().as_str()), (200, "accepted"), "{answer:?}");
    assert_eq!(gateway.wait_for_exit().code(), Some(0), "{:#?}", gateway.log());
    drop(gateway);

    let gateway = site.start();
    receiver.wait_for(&answer.id());
    assert_eq!(gateway.send(&payment(1)).outcome(), "duplicate");
    gateway.stop();
}

#[test]
fn an_attempt_under_way_at_the_end_is_finished_and_not_made_again() {
    let receiver = Receiver::scripted(|_| Reply::status(200).after(std::time::Duration::from_millis(1200)));
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let id = gateway.accept(&payment(1));
    eventually("the attempt", || (receiver.arrivals() == 1).then_some(()));
    gateway.stop();
    assert_eq!(receiver.receipts_of(&id).len(), 1, "it was waited for");
    let gateway = site.start();
    let marker = gateway.accept(&payment(2));
    receiver.wait_for(&marker);
    assert_eq!(receiver.arrivals(), 2, "and settled");
    gateway.stop();
}

#[test]
fn the_admin_address_has_health_metrics_and_an_api_behind_a_token() {
    let receiver = Receiver::start();
    let layout = Layout::to([Destination::new("orders", &receiver)]);
    let site = Site::new(&layout);
    let with_token = site.toml(&layout).replacen("[storage]", "token = \"env:ADMIN_TOKEN\"\n[storage]", 1);
    site.write(&with_token);
    let site = site.with_env("ADMIN_TOKEN", "4dm1n-t0ken-Zq83xWvB");
    let gateway = site.start();
    for (path, status) in
        [("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/nowhere", 404), ("/api/events", 405)]
    {
        assert_eq!(get(site.admin, path).unwrap().status, status, "{path}");
    }
    // Some load balancers ask without wanting to read.
    let mut stream = connect(site.admin).unwrap();
    stream.write_all(b"HEAD /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut head = String::new();
    stream.read_to_string(&mut head).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    let json = ("content-type", "application/json");
    let right = ("authorization", "Bearer 4dm1n-t0ken-Zq83xWvB");
    let wrong = ("authorization", "Bearer 4dm1n-t0ken-Zq83xWvC");
    let cases: [(&[(&str, &str)], u16); 4] =
        [(&[json, right], 200), (&[json], 401), (&[json, wrong], 401), (&[right], 415)];
    for (headers, status) in cases {
        assert_eq!(
            post(site.admin, "/api/destinations", headers, b"{}").unwrap().status,
            status,
            "{headers:?}"
        );
    }
    // The command has the token from the same file.
    assert_eq!(site.command(&["destinations", "--json"]).json()[0]["destination"], "orders");
    assert_eq!(get(site.edge, "/metrics").unwrap().status, 404, "not on the edge");
    gateway.stop();
}

#[test]
fn it_tells_when_old_events_were_last_deleted() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    eventually("the first look for old events", || {
        (gateway.count("chaski_purge_last_success_timestamp_seconds", &[]) > 0).then_some(())
    });
    gateway.stop();
}
