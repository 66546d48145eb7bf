//! The configuration is read again on SIGHUP and on `chaski reload`; a bad file leaves the old one in force.

use crate::harness::{
    Callback, Destination, Gateway, Layout, PE_PATH, Receiver, Reply, Site, eventually, hex_hmac, payment,
    post,
};

const NEW_SECRET: &str = "Vb6kP1zQw8RtY3uJh5NsXc9LmD2fGaEo7iUxKrTe";

fn successful(gateway: &Gateway) -> bool {
    gateway.count("chaski_config_last_reload_successful", &[]) == 1
}

#[test]
fn a_good_file_takes_effect_by_signal_and_by_command() {
    let (orders, erp) = (Receiver::start(), Receiver::start());
    let one = Layout::to([Destination::new("orders", &orders)]);
    let two = Layout::to([Destination::new("orders", &orders), Destination::new("erp", &erp)]);
    let site = Site::new(&one).with_env("NEW_SECRET", NEW_SECRET);
    let gateway = site.start();
    assert!(successful(&gateway));
    let first = gateway.accept(&payment(1));
    orders.wait_for(&first);

    site.rewrite(&two);
    gateway.signal("HUP");
    eventually("the reload", || gateway.logged("the configuration was reloaded"));
    let second = gateway.accept(&payment(2));
    erp.wait_for(&second);
    orders.wait_for(&second);
    assert!(erp.receipts_of(&first).is_empty(), "a new destination begins now");

    // A secret rotates: the old one goes.
    let body = payment(3).body;
    let by_new = [("pe-signature", hex_hmac(NEW_SECRET, body.as_bytes()))];
    let send_new = || post(gateway.edge, PE_PATH, &[(by_new[0].0, &by_new[0].1)], body.as_bytes()).unwrap();
    assert_eq!(send_new().status, 401);
    site.write(&site.toml(&two).replace("\"env:PE_SECRET\"", "\"env:NEW_SECRET\", \"env:PE_SECRET\""));
    let told = site.command(&["reload", "--json"]).json();
    assert_eq!((&told["sources"], &told["destinations"]), (&1.into(), &2.into()), "{told}");
    assert_eq!(send_new().outcome(), "accepted");
    assert_eq!(
        gateway.send(&payment(4)).outcome(),
        "accepted",
        "the previous one is good while it is listed"
    );
    site.write(&site.toml(&one).replace("\"env:PE_SECRET\"", "\"env:NEW_SECRET\""));
    site.command(&["reload"]).ok();
    assert_eq!(gateway.send(&payment(5)).status, 401, "the previous one is out");
    assert!(successful(&gateway));
    gateway.stop();
}

#[test]
fn a_destination_that_comes_later_may_begin_at_the_beginning() {
    const EVENTS: u64 = 20;
    let (orders, audit) = (Receiver::start(), Receiver::start());
    let one = Destination::new("orders", &orders);
    let site = Site::new(&Layout::to([one.clone()]));
    let gateway = site.start();
    let ids: Vec<String> = (0..EVENTS).map(|number| gateway.accept(&payment(number))).collect();
    orders.wait_for_count(ids.len());
    site.rewrite(&Layout::to([one, Destination::new("audit", &audit).with("start = \"beginning\"")]));
    site.command(&["reload"]).ok();
    let last = gateway.accept(&payment(EVENTS));
    audit.wait_for(&last);
    for id in &ids {
        audit.wait_for(id);
    }
    gateway.stop();
    assert_eq!(
        (orders.receipts().len(), audit.receipts().len()),
        (ids.len() + 1, ids.len() + 1),
        "once each"
    );
}

#[test]
fn a_bad_file_leaves_the_old_one_in_force_and_says_so() {
    let receiver = Receiver::start();
    let layout = Layout::to([Destination::new("orders", &receiver)]);
    let site = Site::new(&layout);
    let gateway = site.start();
    let good = site.toml(&layout);
    for bad in [
        "[ingest\n",
        &good.replace("provider = \"pagoefectivo\"", "provider = \"nobody\""),
        &good.replace("env:PE_SECRET", "env:NOT_SET"),
    ] {
        site.write(bad);
        gateway.signal("HUP");
        eventually("the reload to fail", || (!successful(&gateway)).then_some(()));
        // The command needs a readable admin address; where the file has none it fails before it asks.
        let told = site.command(&["reload"]);
        assert_ne!(told.code, Some(0), "{told:?}");
        let id = gateway.accept(&Callback::of(payment(bad.len() as u64).body));
        receiver.wait_for(&id);

        site.write(&good);
        site.command(&["reload"]).ok();
        assert!(successful(&gateway));
    }
    assert!(
        gateway.log().iter().any(|line| line.contains("the old one stays in force")),
        "{:#?}",
        gateway.log()
    );
    gateway.stop();
}

#[test]
fn a_source_is_not_reloaded_away_while_its_events_are_on_their_way() {
    let receiver = Receiver::scripted(|_| Reply::hang());
    let layout = Layout::to([Destination::new("orders", &receiver)]);
    let site = Site::new(&layout);
    let good = site.toml(&layout);
    let gateway = site.start();
    // Several, so that they are in several partitions, where there are any.
    let ids: Vec<String> = (0..8).map(|number| gateway.accept(&payment(number))).collect();
    site.write(&good.replace("[sources.pagoefectivo]", "[sources.other]"));
    let told = site.command(&["reload"]);
    assert!(told.exits(78).stderr.contains("pagoefectivo"), "{told:?}");
    receiver.becomes(|_| Reply::status(200));
    for id in &ids {
        receiver.wait_for(id);
    }
    eventually("the source to be free", || (site.command(&["reload"]).code == Some(0)).then_some(()));
    assert_eq!(gateway.send(&payment(99)).status, 404);
    gateway.stop();
}

#[test]
fn what_needs_a_restart_is_named() {
    let receiver = Receiver::start();
    let layout = Layout::to([Destination::new("orders", &receiver)]);
    let site = Site::new(&layout);
    let gateway = site.start();
    site.rewrite(&Layout {
        storage: "retention = \"60d\"".to_owned(),
        ingest: "requests_max = 7".to_owned(),
        ..layout
    });
    let told = site.command(&["reload", "--json"]).json();
    assert_eq!(told["needs_restart"], serde_json::json!(["[ingest]", "[storage]"]), "{told}");
    receiver.wait_for(&gateway.accept(&payment(1)));
    gateway.stop();
}
