//! The commands, against a running process and on the store of one that stands still.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};

use serde_json::{Value, json};

use crate::harness::{
    Callback, Destination, Gateway, Layout, Receiver, Reply, Site, Storage, eventually, payment,
};

/// Longer than what a receiver asks for, or the delivery ends there.
const DAYS: &str = "first = \"100ms\"\nfactor = 2\ncap = \"1s\"\ngive_up_after = \"72h\"";

/// Three payments at three destinations: one takes all, one asks for an hour, one is gone.
struct Shop {
    orders: Receiver,
    erp: Receiver,
    gone: Receiver,
    site: Site,
    gateway: Option<Gateway>,
    ids: Vec<String>,
}

impl Shop {
    fn open() -> Self {
        let orders = Receiver::start();
        let erp = Receiver::scripted(|_| Reply::status(503).with("retry-after", "3600"));
        let gone = Receiver::scripted(|_| Reply::status(410));
        let site = Site::new(&Layout::to([
            Destination::new("orders", &orders),
            Destination::new("erp", &erp).retrying(DAYS),
            Destination::new("gone", &gone),
        ]));
        let gateway = site.start();
        let ids: Vec<String> = (0..3).map(|number| gateway.accept(&payment(number))).collect();
        let shop = Self { orders, erp, gone, site, gateway: Some(gateway), ids };
        eventually("everything delivered, parked and dead", || {
            let counts = |name, of: &str| shop.destination(name)[of].as_u64().unwrap();
            (counts("orders", "lag") + counts("erp", "lag") + counts("gone", "lag") == 0
                && counts("erp", "parked") == 3
                && counts("gone", "dead") == 3)
                .then_some(())
        });
        shop
    }

    fn json(&self, arguments: &[&str]) -> Value {
        self.site.command(&[arguments, &["--json"]].concat()).json()
    }

    fn ids_of(&self, arguments: &[&str]) -> Vec<String> {
        let mut ids: Vec<String> = self
            .json(arguments)
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["id"].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        ids
    }

    fn destination(&self, name: &str) -> Value {
        let all = self.json(&["destinations"]);
        all.as_array()
            .unwrap()
            .iter()
            .find(|destination| destination["destination"] == name)
            .cloned()
            .unwrap_or_default()
    }

    fn stop(&mut self) {
        self.gateway.take().unwrap().stop();
    }

    fn start(&mut self) {
        self.gateway = Some(self.site.start());
    }

    fn sorted(&self) -> Vec<String> {
        let mut ids = self.ids.clone();
        ids.sort();
        ids
    }
}

/// What shows and changes nothing; the same over a running process and over its store, but for what became of an
/// event that was taken.
fn everything_is_shown(shop: &Shop, taken: &str) {
    let id = shop.ids[1].as_str();
    assert_eq!(shop.ids_of(&["events"]), shop.sorted());
    assert_eq!(shop.ids_of(&["events", "--limit", "1"]), [shop.ids[2].clone()], "newest first");
    assert_eq!(shop.ids_of(&["events", "--subject", "10000001"]), [id.to_owned()]);
    assert_eq!(
        shop.ids_of(&["events", "--type", "cip.paid", "--source", "pagoefectivo", "--since", "1h"]),
        shop.sorted()
    );
    assert!(shop.ids_of(&["events", "--source", "nobody"]).is_empty());
    assert!(shop.ids_of(&["events", "--since", "2100-01-01T00:00:00Z"]).is_empty());

    for list in ["events", "parked", "dead"] {
        for form in [&[][..], &["--json"]] {
            // On a storage that is asked itself it says that, too.
            let told = shop.site.command(&[&[list, "--limit", "2"], form].concat());
            assert!(told.ok().stderr.ends_with("2 shown, there are more: --limit\n"), "{list}: {told:?}");
            let all = shop.site.command(&[&[list, "--limit", "3"], form].concat());
            assert!(!all.ok().stderr.contains("shown"), "{list}: {all:?}");
        }
        let shown = shop.ids_of(&[list, "--limit", "2"]);
        assert_eq!(shown.len(), 2, "{list}: {shown:?}");
    }

    let shown = shop.json(&["events", "show", id]);
    assert_eq!(shown["body"]["text"], payment(1).body.as_str());
    let states: Vec<(&str, &str)> = shown["destinations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fate| (fate["destination"].as_str().unwrap(), fate["state"].as_str().unwrap()))
        .collect();
    for state in [("orders", taken), ("erp", "parked"), ("gone", "dead")] {
        assert!(states.contains(&state), "{shown}");
    }
    let text = shop.site.command(&["events", "show", id]);
    for word in [id, "delivered", "parked", "dead", "cip.paid", "10000001"] {
        assert!(text.ok().stdout.contains(word), "{text:?}");
    }

    assert_eq!(shop.ids_of(&["parked"]), shop.sorted());
    assert_eq!(shop.ids_of(&["parked", "list", "--destination", "erp", "--limit", "10"]), shop.sorted());
    assert!(shop.ids_of(&["parked", "--destination", "orders"]).is_empty());
    assert_eq!(shop.ids_of(&["dead"]), shop.sorted());
    assert_eq!(
        shop.ids_of(&["dead", "list", "--destination", "gone", "--reason", "gone", "--since", "1h"]),
        shop.sorted()
    );
    assert!(shop.ids_of(&["dead", "--quarantined"]).is_empty());
    let letter = shop.json(&["dead", "show", id]);
    assert_eq!(
        (&letter[0]["destination"], &letter[0]["reason"]),
        (&json!("gone"), &json!("gone")),
        "{letter}"
    );
    assert_eq!(letter[0]["body"]["text"], payment(1).body.as_str());
    let tables: [(&[&str], &[&str]); 4] = [
        (&["events"], &["ID", "cip.paid", id]),
        (&["parked"], &["erp", id]),
        (&["dead"], &["gone", id]),
        (&["destinations"], &["orders", "erp", "gone", "LAG"]),
    ];
    for (arguments, words) in tables {
        let told = shop.site.command(arguments);
        for word in words {
            assert!(told.ok().stdout.contains(word), "{arguments:?}: {told:?}");
        }
    }
}

#[test]
fn what_is_shown_is_the_same_over_a_running_process_and_over_its_store() {
    let mut shop = Shop::open();
    everything_is_shown(&shop, "delivered");
    assert_eq!(shop.destination("erp")["running"]["breaker"], "closed");
    let disabled = |name| shop.destination(name)["running"]["disabled"].clone();
    assert_eq!([disabled("gone"), disabled("orders")], [json!(true), json!(false)]);
    let told = shop.site.command(&["destinations"]);
    let row = |name: &str| told.stdout.lines().find(|line| line.contains(name)).unwrap().to_owned();
    assert!(row("gone").contains("disabled (410)") && row("orders").contains(" up "), "{told:?}");
    shop.stop();
    // Kafka keeps no row per delivery: only whoever made it knows when.
    let taken = if let Storage::File = shop.site.storage { "delivered" } else { "settled" };
    everything_is_shown(&shop, taken);
    assert_eq!(shop.destination("erp")["running"], Value::Null);
}

#[test]
fn parked_deliveries_are_hurried_and_dropped() {
    let mut shop = Shop::open();
    let [first, second, third] = [0, 1, 2].map(|index| shop.ids[index].clone());
    shop.erp.becomes(|_| Reply::status(200));
    shop.site.command(&["parked", "now", &first]).ok();
    shop.erp.wait_for(&first);
    // Where nobody is at a terminal there is no question: the letter can be redriven.
    let dropped = shop.site.command(&["parked", "drop", &second]);
    assert!(dropped.ok().stderr.contains("erp"), "{dropped:?}");
    eventually("the others", || (shop.ids_of(&["parked"]) == [third.clone()]).then_some(()));
    assert_eq!(
        shop.ids_of(&["dead", "--destination", "erp", "--reason", "dropped"]),
        std::slice::from_ref(&second)
    );

    // The same on the store of a stopped process; it takes effect when one is started.
    shop.stop();
    let told = shop.site.command(&["parked", "now", &third, "--destination", "erp"]);
    assert!(told.ok().stdout.contains('1'), "{told:?}");
    shop.start();
    shop.erp.wait_for(&third);
    assert!(
        shop.erp.receipts_of(&second).iter().all(|receipt| !receipt.is_taken()),
        "what was dropped is not delivered"
    );
    for command in ["now", "drop"] {
        shop.site.command(&["parked", command, &first]).exits(1);
    }
    shop.stop();
}

#[test]
fn dead_letters_are_redriven_and_dropped() {
    let mut shop = Shop::open();
    let [first, second, third] = [0, 1, 2].map(|index| shop.ids[index].clone());
    shop.site.command(&["dead", "redrive", "--yes"]).exits(2);
    let asked = shop.site.command(&["dead", "redrive", "--destination", "gone"]);
    asked.exits(1);
    assert!(
        asked.stderr.contains('3') && asked.stderr.contains("gone"),
        "it says first what it would touch: {asked:?}"
    );
    assert_eq!(shop.gone.receipts().len(), 3);

    // A conflict is kept under the id of the payment that it is not.
    let conflict = Callback::of(payment(0).body.replace("1001.00", "1002.00"));
    assert_eq!(shop.gateway.as_ref().unwrap().send(&conflict).outcome(), "quarantined");
    for change in ["redrive", "drop"] {
        let told = shop.site.command(&["dead", change, &first, "--yes"]);
        assert!(told.exits(2).stderr.contains("--quarantined"), "{told:?}");
    }
    assert_eq!(shop.ids_of(&["dead"]).len(), 4);
    shop.site.command(&["dead", "drop", &first, "--quarantined", "--yes"]).ok();

    shop.gone.becomes(|_| Reply::status(200));
    shop.site.command(&["dead", "redrive", &first, "--yes"]).ok();
    shop.gone.wait_for(&first);
    shop.stop();
    shop.site.command(&["dead", "redrive", &second, "--yes"]).ok();
    shop.site.command(&["dead", "drop", "--destination", "gone", "--reason", "gone", "--yes"]).ok();
    assert!(shop.ids_of(&["dead"]).is_empty());
    shop.start();
    shop.gone.wait_for(&second);
    assert!(
        shop.gone.receipts_of(&third).iter().all(|receipt| !receipt.is_taken()),
        "what was deleted is not delivered"
    );
    shop.site.command(&["dead", "show", &third]).exits(1);
    shop.site.command(&["dead", "show", &third, "--json"]).exits(1);
    shop.site.command(&["dead", "drop", &third, "--yes"]).exits(1);
    shop.stop();
}

#[test]
fn what_waits_for_a_destination_that_the_file_has_no_more_is_told() {
    let mut shop = Shop::open();
    shop.site.rewrite(&Layout::to([Destination::new("orders", &shop.orders)]));
    shop.site.command(&["reload"]).ok();
    let id = shop.ids[0].clone();
    for _ in ["running", "stopped"] {
        let destinations = shop.site.command(&["destinations"]);
        assert_eq!(destinations.ok().stdout.matches("not in the file").count(), 2, "{destinations:?}");
        assert_eq!(["orders", "erp"].map(|name| shop.destination(name)["configured"].clone()), [true, false]);
        let told = shop.site.command(&["parked", "now", &id]);
        assert!(told.ok().stderr.contains("erp is not in the configuration"), "{told:?}");
        for refused in [
            [
                "replay",
                "--destination=erp",
                "--from=2020-01-01T00:00:00Z",
                "--to=2120-01-01T00:00:00Z",
                "--yes",
            ]
            .as_slice(),
            &["destinations", "pause", "erp"],
            &["destinations", "resume", "erp"],
        ] {
            let told = shop.site.command(refused);
            assert!(told.exits(1).stderr.contains("named erp"), "{told:?}");
        }
        if shop.gateway.is_some() {
            shop.stop();
        }
    }
    let told = shop.site.command(&["dead", "redrive", &id, "--yes"]);
    assert!(told.ok().stderr.contains("gone is not in the configuration"), "{told:?}");
}

#[test]
fn history_is_delivered_again_to_one_destination_under_the_same_ids() {
    let mut shop = Shop::open();
    let replay =
        ["replay", "--destination", "orders", "--from", "1h", "--to", "2100-01-01T00:00:00Z", "--yes"];
    shop.site.command(&replay).ok();
    let twice = |times: usize| shop.ids.iter().all(|id| shop.orders.receipts_of(id).len() == times);
    eventually("each once more", || twice(2).then_some(()));
    assert_eq!(shop.orders.receipts().len(), 6);
    let begun = shop.json(&replay);
    assert_eq!(begun["events"], 3, "{begun}");
    eventually("each once more", || twice(3).then_some(()));
    shop.stop();
    let begun = shop.json(&replay);
    assert_eq!(begun["events"], 3, "{begun}");
    shop.start();
    let twice = |times: usize| shop.ids.iter().all(|id| shop.orders.receipts_of(id).len() == times);
    eventually("each once more", || twice(4).then_some(()));
    assert_eq!(shop.erp.taken().len() + shop.gone.taken().len(), 0, "to nobody else");

    shop.site.command(&["replay", "--destination", "nobody", "--from", "1h", "--to", "1m", "--yes"]).exits(1);
    shop.site.command(&["replay", "--destination", "orders", "--from", "1m", "--to", "1h", "--yes"]).exits(2);
    // Nobody is at a terminal, so nobody is asked.
    shop.site.command(&replay[..7]).ok();
    eventually("each once more", || {
        shop.ids.iter().all(|id| shop.orders.receipts_of(id).len() == 5).then_some(())
    });
    shop.stop();
}

#[test]
fn a_paused_destination_keeps_its_backlog_until_it_is_resumed() {
    let mut shop = Shop::open();
    shop.site.command(&["destinations", "pause", "orders"]).ok();
    let gateway = shop.gateway.as_ref().unwrap();
    let fourth = gateway.accept(&payment(4));
    eventually("the others to have it", || (shop.gone.receipts_of(&fourth).len() == 1).then_some(()));
    assert_eq!(
        (&shop.destination("orders")["paused"], &shop.destination("orders")["lag"]),
        (&json!(true), &json!(1))
    );
    // Across a restart, and changed while nothing runs.
    shop.stop();
    shop.start();
    assert_eq!(shop.destination("orders")["paused"], true);
    assert_eq!(shop.orders.receipts_of(&fourth).len(), 0);
    shop.stop();
    shop.site.command(&["destinations", "resume", "orders"]).ok();
    shop.site.command(&["destinations", "pause", "gone"]).ok();
    shop.start();
    shop.orders.wait_for(&fourth);
    let fifth = shop.gateway.as_ref().unwrap().accept(&payment(5));
    shop.orders.wait_for(&fifth);
    assert_eq!(shop.gone.receipts_of(&fifth).len(), 0);
    shop.gone.becomes(|_| Reply::status(200));
    shop.site.command(&["destinations", "resume", "gone"]).ok();
    shop.gone.wait_for(&fifth);
    shop.site.command(&["destinations", "pause", "nobody"]).exits(1);
    shop.stop();
}

#[test]
fn send_signs_as_the_provider_would() {
    let mut shop = Shop::open();
    let sent = shop.site.command(&["send", "pagoefectivo", "--count", "3", "--json"]).json();
    let answers = sent["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 3, "{sent}");
    for answer in answers {
        assert_eq!(answer["status"], 200, "{sent}");
        assert!(answer["body"].as_str().unwrap().contains("\"accepted\""), "{sent}");
    }
    let body = shop.site.path("payment.json");
    std::fs::write(&body, payment(1).body).unwrap();
    let told = shop.site.command(&["send", "pagoefectivo", "--body", body.to_str().unwrap()]);
    assert!(told.ok().stdout.contains("200") && told.stdout.contains("duplicate"), "{told:?}");
    let forged = shop.site.command(&["send", "pagoefectivo", "--forge"]);
    // Refused is what it should be.
    forged.ok();
    assert!(forged.stdout.contains("401"), "{forged:?}");
    shop.site.command(&["send", "nobody"]).exits(1);
    assert_eq!(shop.ids_of(&["events"]).len(), 6);
    // An edge that takes it has the key that was forged with; one that cannot tell has not refused it.
    let [broken, elsewhere] = [503, 404].map(|status| Receiver::scripted(move |_| Reply::status(status)));
    for (taker, url) in
        [("taken", shop.orders.url()), ("not refused", broken.url()), ("not looked at", elsewhere.url())]
    {
        let told = shop.site.command(&["send", "pagoefectivo", "--forge", "--url", &url]);
        assert_eq!(told.code, Some(1), "{taker}: {told:?}");
    }
    shop.stop();
    shop.site.command(&["send", "pagoefectivo"]).exits(1);
}

#[test]
fn send_tells_what_was_answered_before_a_post_failed_and_takes_no_piece_of_a_body() {
    let site = Site::on(Storage::File, &Layout::default());
    // It answers once and is gone.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let once = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        drop(listener);
        let mut head = [0; 1];
        peer.read_exact(&mut head).unwrap();
        peer.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 3\r\nconnection: close\r\n\r\nyes")
            .unwrap();
        // What it does not read would reset the answer.
        let _ = peer.shutdown(Shutdown::Write);
        let _ = std::io::copy(&mut peer, &mut std::io::sink());
    });
    let told = site.command(&["send", "pagoefectivo", "--count", "3", "--url", &url]);
    once.join().unwrap();
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.stdout.contains("202 yes"), "{told:?}");
    assert!(told.stderr.contains("event 2 of 3"), "{told:?}");

    let body = site.path("large.json");
    File::create(&body).unwrap().set_len((64 << 20) + 1).unwrap();
    let told = site.command(&["send", "pagoefectivo", "--url", &url, "--body", body.to_str().unwrap()]);
    assert!(told.code == Some(1) && told.stderr.contains("larger than 64 MiB"), "{told:?}");
}

#[test]
fn send_posts_under_the_name_that_the_gateway_is_served_under() {
    let layout = Layout { ingest: "hosts = ['pay.shop.test']".into(), ..Layout::default() };
    let site = Site::on(Storage::File, &layout);
    let _gateway = site.start();
    let sent = site.command(&["send", "pagoefectivo", "--json"]).json();
    assert_eq!(sent["answers"][0]["status"], 200, "{sent}");
    // Under the address it is somebody else's.
    let url = format!("http://{}/in/pagoefectivo", site.edge);
    let told = site.command(&["send", "pagoefectivo", "--url", &url]);
    assert!(told.code == Some(1) && told.stdout.contains("421"), "{told:?}");
}

#[test]
fn a_command_leaves_the_store_of_another_configuration_alone() {
    let [ours, other] = [(); 2].map(|()| Site::on(Storage::File, &Layout::default()));
    let gateway = ours.start();
    let unusable = Callback::of("not JSON");
    assert_eq!(gateway.send(&unusable).outcome(), "quarantined");
    // Another folder with the same admin address: its store is missing, or cannot be one.
    let text = other.toml(&Layout::default()).replace(&other.admin.to_string(), &ours.admin.to_string());
    std::fs::write(other.path("a-file"), "").unwrap();
    for (path, says) in [("not-there", "there is no store"), ("a-file", "cannot be told")] {
        other.write(&text.replace("path = \"store\"", &format!("path = \"{path}\"")));
        let commands: [&[&str]; 6] = [
            &["dead", "drop", "--quarantined", "--yes"],
            &["destinations", "pause", "orders"],
            &["events"],
            &["parked"],
            &["replay", "--destination", "orders", "--from", "1h", "--to", "1m", "--yes"],
            &["reload"],
        ];
        for arguments in commands {
            let told = other.command(arguments);
            assert!(told.exits(1).stderr.contains(says), "{arguments:?}: {told:?}");
        }
    }
    let letters = ours.command(&["dead", "--quarantined", "--json"]).json();
    assert_eq!(letters.as_array().unwrap().len(), 1, "{letters}");
    gateway.stop();
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let unknown = "00000000000000000000000000000000";
    let cases: [(&[&str], i32, &str); 13] = [
        (&["--version"], 0, ""),
        (&["--help"], 0, ""),
        (&["check"], 0, ""),
        (&["config", "reference"], 0, ""),
        (&["config", "schema"], 0, ""),
        (&["nonsense"], 2, "nonsense"),
        (&["events", "--limit", "0"], 2, "--limit"),
        (&["events", "--since", "yesterday"], 2, "--since"),
        (&["events", "show", "not-an-id"], 2, "not-an-id"),
        (&["replay", "--destination", "orders"], 2, "--from"),
        (&["dead", "drop", "--quarantined", "--destination", "orders"], 2, "--quarantined"),
        (&["dead", "--destination", "orders", "redrive"], 2, "dead redrive --destination"),
        // No process to reload.
        (&["reload"], 1, ""),
    ];
    for (arguments, code, says) in cases {
        let told = site.command(arguments);
        told.exits(code);
        assert!(told.stderr.contains(says), "{arguments:?}: {told:?}");
        if code != 0 {
            assert!(told.stdout.is_empty(), "talk goes to stderr: {told:?}");
        }
    }
    let gateway = site.start();
    for arguments in
        [&["events", "show", unknown][..], &["dead", "show", unknown], &["parked", "now", unknown]]
    {
        let told = site.command(arguments);
        assert!(told.exits(1).stderr.contains(unknown), "{arguments:?}: {told:?}");
    }
    for arguments in [
        &["events"][..],
        &["parked"],
        &["dead"],
        &["dead", "--json", "list"],
        &["parked", "-c", "chaski.toml", "list"],
        &["destinations"],
        &["reload"],
        &["check"],
        &["config", "reference"],
        &["config", "schema"],
    ] {
        site.command(&[arguments, &["--json"]].concat()).json();
    }
    gateway.stop();
    site.command(&["reload"]).exits(1);
}

#[test]
fn what_cannot_be_printed_is_a_failure_and_a_reader_that_has_gone_is_none() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    gateway.accept(&payment(0));
    let commands: [&[&str]; 9] = [
        &["--help"],
        &["--version"],
        &["check"],
        &["config", "reference"],
        &["config", "schema", "--json"],
        &["events"],
        &["events", "--json"],
        &["destinations"],
        &["parked", "list", "--json"],
    ];
    for arguments in commands {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let told = site.command_into(arguments, full.into());
        assert!(told.exits(1).stderr.contains("cannot write to stdout"), "{arguments:?}: {told:?}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let told = site.command_into(arguments, writer.into());
        assert!(told.ok().stderr.is_empty(), "{arguments:?}: {told:?}");
    }
    gateway.stop();
}
