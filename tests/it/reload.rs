//! The configuration is read again on SIGHUP and on `chaski reload`; a bad file leaves the old one in force.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::harness::{
    Callback, Destination, Gateway, Layout, PE_PATH, PE_SECRET, Receiver, Reply, Site, eventually, get,
    hex_hmac, payment, post,
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
fn what_a_reload_takes_out_is_not_measured_any_more() {
    let (orders, erp) = (Receiver::start(), Receiver::scripted(|_| Reply::status(410)));
    let (one, two) = (Destination::new("orders", &orders), Destination::new("erp", &erp));
    let other = "[sources.other]\nprovider = \"github\"\nsecrets = [\"env:OTHER_SECRET\"]\n".to_owned();
    let both = Layout { more: other, ..Layout::to([one.clone(), two.clone()]) };
    let site = Site::new(&both).with_env("OTHER_SECRET", NEW_SECRET);
    let gateway = site.start();
    let id = gateway.accept(&payment(1));
    orders.wait_for(&id);
    eventually("the end of erp", || {
        (gateway.count("chaski_dispatch_disabled", &["destination=\"erp\""]) == 1).then_some(())
    });
    let of = |label: &str| {
        let metrics = get(gateway.admin, "/metrics").unwrap();
        String::from_utf8(metrics.body).unwrap().lines().filter(|line| line.contains(label)).count()
    };
    let (measured, kept) = (of("destination=\"erp\""), of("destination=\"orders\""));
    assert_eq!(measured, kept);
    let slower = Layout { destinations: vec![one.clone(), two.with("concurrency = 2")], ..both.clone() };
    site.rewrite(&slower);
    site.command(&["reload"]).ok();
    assert_eq!(
        gateway.count("chaski_dispatch_disabled", &["destination=\"erp\""]),
        1,
        "it has the same receiver"
    );
    assert_eq!(of("source=\"other\""), of("source=\"pagoefectivo\"") - 1, "one type of event more");

    site.rewrite(&Layout::to([one]));
    site.command(&["reload"]).ok();
    assert_eq!((of("destination=\"erp\""), of("source=\"other\"")), (0, 0));
    assert_eq!(of("destination=\"orders\""), kept);
    // One that comes back goes on counting.
    site.rewrite(&both);
    site.command(&["reload"]).ok();
    assert_eq!(of("destination=\"erp\""), measured);
    let disabled = gateway.count("chaski_dispatch_disabled", &["destination=\"erp\""]);
    assert_eq!(disabled, 0, "its receiver may be another");
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
    assert!(told.stderr.ends_with("the old configuration stays in force\n"), "{told:?}");
    receiver.becomes(|_| Reply::status(200));
    for id in &ids {
        receiver.wait_for(id);
    }
    eventually("the source to be free", || (site.command(&["reload"]).code == Some(0)).then_some(()));
    assert_eq!(gateway.send(&payment(99)).status, 404);
    gateway.stop();
}

#[test]
fn a_signal_to_stop_is_heard_while_a_reload_takes_its_time() {
    let (orders, slow) = (Receiver::start(), Receiver::scripted(|_| Reply::hang()));
    let orders = Destination::new("orders", &orders);
    let without = Layout::to([orders.clone()]);
    let site = Site::new(&without).with_env("NEW_SECRET", NEW_SECRET);
    let with = site.toml(&Layout::to([orders, Destination::new("slow", &slow)]));
    let other = "[sources.other]\nprovider = \"pagoefectivo\"\nsecrets = [\"env:NEW_SECRET\"]\n";
    site.write(&format!("{with}\n{other}"));
    let gateway = site.start();
    gateway.accept(&payment(1));
    eventually("the attempt", || (slow.arrivals() > 0).then_some(()));
    site.rewrite(&without);
    gateway.signal("HUP");
    // It begins with the source that goes, whose sender is told to come again until it is sure that it goes, and then
    // waits for the destination that goes.
    let is_going = || post(gateway.edge, "/in/other", &[], b"{}").unwrap().status == 503;
    eventually("the reload to begin", || is_going().then_some(()));
    gateway.signal("TERM");
    eventually("the end to begin", || {
        gateway.logged("stopping: what is in flight is finished first").map(drop)
    });
    assert!(gateway.logged("the configuration was reloaded").is_none());
    gateway.end();
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

#[test]
fn a_secret_in_force_does_not_go_because_a_listed_one_cannot_be_fetched() {
    let receiver = Receiver::start();
    let layout = Layout::to([Destination::new("orders", &receiver)]);
    let site = Site::new(&layout).with_env("NEW_SECRET", NEW_SECRET);
    let with = |secrets: &str| site.toml(&layout).replace("[\"env:PE_SECRET\"]", secrets);
    site.write(&with("[\"env:NEW_SECRET\", \"env:PE_SECRET\"]"));
    let gateway = site.start();
    // A slip of the pen: only the old secret is in use still.
    site.write(&with("[\"env:NEW_SECRET\", \"env:PE_SECRETE\"]"));
    let told = site.command(&["reload"]);
    assert!(told.exits(78).stderr.contains("sources.pagoefectivo.secrets: one that is in force"), "{told:?}");
    gateway.accept(&payment(1));
    // Nothing goes with it here.
    site.write(&with("[\"env:NEW_SECRET\", \"env:PE_SECRET\", \"file:third\"]"));
    let told = site.command(&["reload"]);
    assert!(told.ok().stderr.contains("there is no file third; going on without"), "{told:?}");
    assert!(gateway.log().iter().any(|line| line.contains("there is no file third")), "{:#?}", gateway.log());
    site.write(&with("[\"env:NEW_SECRET\"]"));
    site.command(&["reload"]).ok();
    assert_eq!(gateway.send(&payment(2)).status, 401, "taken out, it is gone");
    gateway.stop();
}

#[test]
fn a_body_has_to_fit_into_what_is_in_force() {
    let receiver = Receiver::start();
    let layout = Layout {
        ingest: "max_body = \"1KiB\"\nbodies_max = \"64KiB\"".to_owned(),
        ..Layout::to([Destination::new("orders", &receiver)])
    };
    let site = Site::new(&layout);
    let gateway = site.start();
    site.write(&site.toml(&layout).replace("1KiB", "1MiB").replace("64KiB", "64MiB"));
    let told = site.command(&["reload"]);
    assert!(told.ok().stderr.contains("after a restart only: [ingest]"), "{told:?}");
    let padded = |bytes: usize| {
        let body = payment(bytes as u64).body;
        Callback::of(format!("{body}{}", " ".repeat(bytes - body.len())))
    };
    gateway.accept(&padded(60 << 10));
    assert_eq!(gateway.try_send(&padded(65 << 10)).unwrap().status, 413, "503 would be for ever");
    gateway.stop();
}

#[test]
fn a_secret_is_as_old_as_is_known_of_it() {
    let receiver = Receiver::start();
    let layout = Layout::to([Destination::new("orders", &receiver)]);
    let site = Site::new(&layout).with_env("NEW_SECRET", NEW_SECRET);
    let gateway = site.start();
    let created = |key: &str| gateway.count("chaski_secret_created_timestamp_seconds", &[key]);
    assert_eq!(created("key=\"current\""), 0, "nothing is known of a variable");
    let path = site.path("pe-secret");
    std::fs::write(&path, "Kq7vT2mXbR9sLwYd4HnZpF6cJ3gUeA8o").unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let written = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    std::fs::File::options().write(true).open(path).unwrap().set_modified(written).unwrap();
    let secrets = "[\"file:pe-secret\", { secret = \"env:NEW_SECRET\", not_before = 2020-01-01T00:00:00Z }, \"env:PE_SECRET\"]";
    site.write(&site.toml(&layout).replace("[\"env:PE_SECRET\"]", secrets));
    site.command(&["reload"]).ok();
    let each = ["key=\"current\"", "key=\"previous\"", "key=\"previous-2\""].map(created);
    assert_eq!(each, [1_700_000_000, 1_577_836_800, 0]);
    gateway.stop();
}

#[test]
fn a_hundred_reloads_under_load_refuse_no_callback_of_a_good_secret() {
    const ROTATIONS: usize = 50;
    const SENDERS: usize = 3;
    let receiver = Receiver::start();
    let layout = Layout::to([Destination::new("orders", &receiver)]);
    let site = Site::new(&layout).with_env("NEW_SECRET", NEW_SECRET);
    let gateway = site.start();
    let file = |secrets: &str| site.toml(&layout).replace("[\"env:PE_SECRET\"]", secrets);
    let reload = |secrets: &str| {
        site.write(&file(secrets));
        gateway.call("reload", &serde_json::json!({}));
    };
    let signed = |secret: &str, number| {
        let body = payment(number).body;
        Callback { signature: hex_hmac(secret, body.as_bytes()), body }
    };
    // Read while a callback is on its way: who writes has waited for those that were signed with the other one.
    let secret = RwLock::new(PE_SECRET);
    let (next, sent) = (AtomicU64::new(0), AtomicU64::new(0));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..SENDERS {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let secret = secret.read().unwrap();
                    gateway.accept(&signed(*secret, number));
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let secrets = [("env:PE_SECRET", PE_SECRET), ("env:NEW_SECRET", NEW_SECRET)];
        for rotation in 0..ROTATIONS {
            let ((old, _), (new, takes_over)) = (secrets[rotation % 2], secrets[(rotation + 1) % 2]);
            reload(&format!(
                "[{{ secret = \"{new}\", not_before = 2020-01-01T00:00:00Z }}, {{ secret = \"{old}\", not_after = \"2100-01-01T00:00:00Z\" }}]"
            ));
            *secret.write().unwrap() = takes_over;
            reload(&format!("[\"{new}\"]"));
        }
        done.store(true, Ordering::Relaxed);
    });
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent > 0);
    receiver.wait_for_count(usize::try_from(sent).unwrap());

    // The old one is over, and that is told from a forgery; when the other was last used is still known.
    reload("[\"env:PE_SECRET\", { secret = \"env:NEW_SECRET\", not_after = \"2020-01-01T00:00:00Z\" }]");
    assert_eq!(gateway.send(&signed(NEW_SECRET, u64::from(u32::MAX))).status, 401);
    assert_eq!(gateway.count("chaski_edge_refused_total", &["reason=\"unknown_key\""]), 1);
    assert_eq!(gateway.count("chaski_edge_refused_total", &["reason=\"bad_signature\""]), 0);
    let secret = |name: &str, key| gateway.count(&format!("chaski_secret_{name}_timestamp_seconds"), &[key]);
    assert_eq!(secret("not_after", "key=\"current\""), 0);
    assert_eq!(secret("not_after", "key=\"previous\""), 1_577_836_800);
    assert!(secret("last_used", "key=\"current\"") > 1_577_836_800);
    assert_eq!(secret("last_used", "key=\"previous\""), 0, "it was refused");
    gateway.stop();
}
