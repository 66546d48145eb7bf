//! `chaski doctor` says what is sound, what is not, and follows a canary. How fast the disk is and who keeps the clock is
//! this machine's affair: no test here depends on it.

use std::net::TcpListener;

use chaski_common::storage::kafka::testing::{RedisServer, options};
use serde_json::Value;

use crate::harness::{
    Destination, Layout, PE_SECRET, Receiver, Reply, Site, Storage, certificate, eventually, expire, get,
    payment, text, tool,
};

/// What depends on the machine.
const OF_THE_MACHINE: [&str; 3] = ["clock", "fsync", "space"];
const SANDBOX: &str = "environment = \"sandbox\"";

struct Report {
    code: Option<i32>,
    checks: Vec<Value>,
}

impl Report {
    fn of(site: &Site) -> Self {
        let told = site.command(&["doctor", "--json"]);
        let value: Value = serde_json::from_str(&told.stdout).unwrap_or_else(|_| panic!("{told:#?}"));
        Self { code: told.code, checks: value["checks"].as_array().unwrap().clone() }
    }

    /// Every verdict on a thing, in order.
    fn verdicts(&self, check: &str) -> Vec<&str> {
        let of_this = self.checks.iter().filter(|finding| finding["check"] == check);
        of_this.map(|finding| finding["verdict"].as_str().unwrap()).collect()
    }

    #[track_caller]
    fn says(&self, check: &str, verdict: &str, words: &str) -> &Self {
        let is_said = self.checks.iter().any(|finding| {
            finding["check"] == check
                && finding["verdict"] == verdict
                && finding["found"].as_str().unwrap().contains(words)
                && (verdict == "good" || !finding["do"].as_str().unwrap().is_empty())
        });
        assert!(is_said, "{check} is not {verdict} with {words:?}: {:#?}", self.checks);
        self
    }

    /// Nothing that this installation could do better.
    #[track_caller]
    fn is_sound(&self) {
        let unsound = |finding: &&Value| {
            !OF_THE_MACHINE.contains(&finding["check"].as_str().unwrap())
                && !["good", "skipped"].contains(&finding["verdict"].as_str().unwrap())
        };
        let unsound: Vec<_> = self.checks.iter().filter(unsound).collect();
        assert!(unsound.is_empty(), "{unsound:#?}");
    }

    #[track_caller]
    fn exits(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{:#?}", self.checks);
        self
    }
}

#[test]
fn a_sound_site_is_good_before_it_runs_and_while_it_does() {
    let receiver = Receiver::start();
    let site = Site::on(Storage::File, &Layout::to([Destination::new("orders", &receiver)]));
    let before = Report::of(&site);
    before.exits(0).is_sound();
    before.says("folder", "good", "will be made").says("edge address", "good", "free");
    before.says("source pagoefectivo", "good", "1 secret").says("destination orders", "good", "connected to");
    assert_eq!(before.verdicts("process"), ["skipped"]);
    assert!(!site.store().exists(), "a look makes nothing");

    let gateway = site.start();
    receiver.wait_for(&gateway.accept(&payment(1)));
    let running = Report::of(&site);
    running.exits(0).is_sound();
    running.says("edge address", "good", "held by the running process").says("process", "good", "ready");
    running.says("last reload", "good", "").says("delivery orders", "good", "");
    assert_eq!(receiver.arrivals(), 1, "nothing is sent to a destination");

    let table = site.command(&["doctor"]);
    table.ok();
    assert!(table.stdout.contains("VERDICT") && table.stdout.contains("destination orders"), "{table:?}");
    assert!(!table.stdout.contains('\u{1b}'), "colours are for terminals");
    assert!(!table.stdout.contains(PE_SECRET));
    gateway.stop();
}

#[test]
fn what_a_running_process_suffers_from_is_told() {
    let receiver = Receiver::scripted(|_| Reply::status(410));
    let layout = Layout::to([Destination::new("orders", &receiver)]);
    let site = Site::new(&layout);
    let gateway = site.start();
    // As many as make a receiver that fails, had it not said why.
    for number in 1..=5 {
        gateway.accept(&payment(number));
    }
    eventually("the dead letters", || (gateway.count("chaski_dlq_events", &[]) == 5).then_some(()));
    Report::of(&site).exits(0).says("delivery orders", "warning", "its receiver answers 410");

    let good = site.toml(&layout);
    site.write(&good.replace("provider = \"pagoefectivo\"", "provider = \"nobody\""));
    gateway.signal("HUP");
    eventually("the reload to fail", || {
        (gateway.count("chaski_config_last_reload_successful", &[]) == 0).then_some(())
    });
    Report::of(&site).exits(78).says("configuration", "bad", "no such preset").says(
        "last reload",
        "bad",
        "failed",
    );

    // The address it is to have is not the one it has.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    site.write(&good.replace(&site.edge.to_string(), &free.to_string()));
    Report::of(&site).exits(1).says("edge address", "warning", "listens elsewhere");
    gateway.stop();
}

#[test]
fn a_destination_that_cannot_be_reached_is_bad() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Speaks TLS, with a certificate that nobody has reason to trust.
    let stranger = Site::new(&Layout {
        more: "[ingest.tls]\ncert = \"server.pem\"\nkey = \"server.key\"\n".to_owned(),
        ..Layout::default()
    });
    certificate(&stranger, "server", None, &["subjectAltName=IP:127.0.0.1"]);
    let speaking = stranger.start();
    let receiver = Receiver::start();
    let at = |name, url: String| Destination { url, ..Destination::new(name, &receiver) };
    let site = Site::new(&Layout::to([
        at("away", format!("http://{nobody}/")),
        at("nowhere", "https://no-such-host.invalid/".to_owned()),
        at("stranger", format!("https://{}/", speaking.edge)),
        Destination::new("orders", &receiver),
    ]));
    let report = Report::of(&site);
    report.exits(1).says("destination away", "bad", "connect failed");
    report.says("destination stranger", "bad", "TLS handshake failed").says("destination orders", "good", "");
    assert_eq!(report.verdicts("destination nowhere"), ["bad"]);
    speaking.stop();
}

#[test]
fn an_address_that_a_stranger_has_is_bad() {
    let site = Site::new(&Layout::default());
    let taken = TcpListener::bind(site.edge).unwrap();
    Report::of(&site).exits(1).says("edge address", "bad", &site.edge.to_string());
    drop(taken);
    let taken = TcpListener::bind(site.admin).unwrap();
    Report::of(&site).exits(1).says("admin address", "bad", &site.admin.to_string());
    drop(taken);
}

#[test]
fn a_process_that_has_the_store_and_answers_elsewhere_is_told() {
    let layout = Layout::default();
    let site = Site::on(Storage::File, &layout);
    let gateway = site.start();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    site.write(&site.toml(&layout).replace(&site.admin.to_string(), &free.to_string()));
    Report::of(&site).exits(1).says("process", "bad", "has the store");
    gateway.stop();
    assert_eq!(Report::of(&site).verdicts("process"), ["skipped"]);
}

#[test]
fn another_stores_process_is_told_from_ours() {
    let [ours, other, new] = [(); 3].map(|()| Site::on(Storage::File, &Layout::default()));
    let gateway = ours.start();
    gateway.signal("TERM");
    gateway.wait_for_exit();
    let text = other.toml(&Layout::default()).replace(&other.admin.to_string(), &ours.admin.to_string());
    other.write(&text);
    let gateway = other.spawn();
    eventually("it runs", || gateway.logged("chaski is running"));
    Report::of(&ours).exits(1).says("process", "bad", "another store");
    new.write(&text.replace("path = \"store\"", "path = \"nothing-yet\""));
    Report::of(&new).exits(1).says("process", "bad", "there is no store in");
}

#[test]
fn a_folder_that_cannot_be_one_is_bad() {
    let site = Site::new(&Layout::default());
    std::fs::write(site.store(), "a file").unwrap();
    Report::of(&site).exits(1).says("folder", "bad", "is not a folder");
}

#[test]
fn certificates_are_looked_at_before_senders_refuse_them() {
    let site = Site::new(&Layout {
        more: "[ingest.tls]\ncert = \"server.pem\"\nkey = \"server.key\"\nclient_ca = \"authority.pem\"\n"
            .to_owned(),
        ..Layout::default()
    });
    certificate(&site, "authority", None, &["basicConstraints=critical,CA:TRUE"]);
    certificate(&site, "server", Some("authority"), &["subjectAltName=DNS:pay.test"]);
    let [cert, authority] =
        ["server.pem", "authority.pem"].map(|name| std::fs::read_to_string(site.path(name)).unwrap());

    // Two days are left, and who signed it is missing.
    let report = Report::of(&site);
    report.exits(0).says("tls", "good", "key fits").says("tls certificate", "warning", "expires in");
    report.says("tls chain", "warning", "not up to a public authority");
    assert_eq!(report.verdicts("tls client_ca"), ["warning"]);

    std::fs::write(site.path("server.pem"), format!("{cert}{cert}{authority}")).unwrap();
    Report::of(&site).exits(1).says("tls chain", "bad", "not signed by the next");
    std::fs::write(site.path("server.pem"), format!("{authority}{cert}")).unwrap();
    Report::of(&site).exits(1).says("tls", "bad", "cannot be used together");

    expire(&site, "server");
    Report::of(&site).exits(78).says("configuration", "bad", "expired");
}

#[test]
fn a_canary_is_followed_to_every_destination() {
    let (orders, erp) = (Receiver::start(), Receiver::start());
    let in_sandbox = |name, receiver| Destination::new(name, receiver).with(SANDBOX);
    let layout = Layout {
        source: SANDBOX.to_owned(),
        ..Layout::to([in_sandbox("orders", &orders), in_sandbox("erp", &erp)])
    };
    let site = Site::new(&layout);
    let canary = ["doctor", "--canary", "pagoefectivo"];
    let told = site.command(&canary);
    assert!(told.exits(1).stderr.contains("nothing answers"), "{told:?}");

    let gateway = site.start();
    let told = site.command(&[&canary[..], &["--json"]].concat()).json();
    assert_eq!(told["delivered"], true, "{told}");
    let id = told["id"].as_str().unwrap();
    assert_eq!((orders.receipts_of(id).len(), erp.receipts_of(id).len()), (1, 1));
    let steps: Vec<_> =
        told["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert!(["answered", "orders", "erp"].iter().all(|step| steps.contains(step)), "{steps:?}");

    erp.becomes(|_| Reply::status(410));
    let told = site.command(&canary);
    assert!(told.exits(1).stdout.contains("erp: dead"), "{told:?}");

    // A destination of other types is not asked for it; nobody is who takes it.
    let of_others = |name, receiver| in_sandbox(name, receiver).with("events = [\"order.*\"]");
    let mut other = Layout {
        source: SANDBOX.to_owned(),
        ..Layout::to([in_sandbox("orders", &orders), of_others("erp", &erp)])
    };
    site.rewrite(&other);
    site.command(&["reload"]).ok();
    let told = site.command(&canary);
    assert!(told.ok().stdout.contains("erp: not for this destination"), "{told:?}");
    other.destinations[0] = of_others("orders", &orders);
    site.rewrite(&other);
    site.command(&["reload"]).ok();
    let told = site.command(&canary);
    assert!(told.exits(1).stdout.contains("not taken: no destination"), "{told:?}");
    site.rewrite(&layout);
    site.command(&["reload"]).ok();

    // Nobody else answers for the edge.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    site.command(&[&canary[..], &["--url", &format!("http://{nobody}/in/x")]].concat()).exits(1);
    site.command(&["destinations", "pause", "orders"]).ok();
    let told = site.command(&[&canary[..], &["--timeout", "1s"]].concat());
    assert!(told.exits(1).stdout.contains("orders: not there within"), "{told:?}");
    gateway.stop();
}

#[test]
fn a_canary_of_a_production_source_needs_a_word() {
    let receiver = Receiver::start();
    // Its answers do not name the event.
    let more = "[sources.pagoefectivo.reply]\nbody = \"OK\"\n".to_owned();
    let site = Site::new(&Layout { more, ..Layout::to([Destination::new("orders", &receiver)]) });
    let gateway = site.start();
    let told = site.command(&["doctor", "--canary", "pagoefectivo"]);
    assert!(told.exits(2).stderr.contains("--yes-production"), "{told:?}");
    assert_eq!(receiver.arrivals(), 0);
    let told = site.command(&["doctor", "--canary", "pagoefectivo", "--yes-production", "--json"]).json();
    receiver.wait_for(told["id"].as_str().unwrap());
    gateway.stop();
}

#[test]
fn topics_that_are_missing_are_bad_and_a_redis_that_evicts_is_told() {
    let (kafka, redis) = (options(), RedisServer::start());
    let url = String::from_utf8(redis.options().url.expose().to_vec()).unwrap();
    let (_, port) = url.trim_end_matches("/0").rsplit_once(':').unwrap();
    tool("redis-cli", &["-p", port, "config", "set", "maxmemory-policy", "allkeys-lru"]);
    let site = Site::on(Storage::File, &Layout::default());
    let storage = format!(
        "kind = \"kafka\"\nbrokers = [\"{}\"]\ntopic_prefix = \"{}\"\npartitions = 1\nreplication = 1\npath = \"spool\"\n\
         [storage.dedup]\nredis = \"{url}\"\n",
        kafka.brokers[0], kafka.topic_prefix
    );
    let embedded = "kind = \"embedded\"\npath = \"store\"\n";
    site.write(&site.toml(&Layout::default()).replace(embedded, &storage));
    let topic = |name: &str| format!("topic {}.{name}", kafka.topic_prefix);

    let report = Report::of(&site);
    report.exits(1).says("kafka", "warning", "replication: 1").says(&topic("events"), "bad", "missing");
    report.says("redis", "good", "version").says("redis eviction", "warning", "allkeys-lru");

    site.command(&["topics", "apply"]).ok();
    tool("redis-cli", &["-p", port, "config", "set", "maxmemory-policy", "noeviction"]);
    let report = Report::of(&site);
    report.exits(0).says(&topic("events"), "good", "").says("redis eviction", "good", "noeviction");

    drop(redis);
    Report::of(&site).exits(1).says("redis", "bad", "");
    assert!(!site.path("spool").exists(), "a look makes nothing");
}

#[test]
fn where_nobody_else_knows_of_the_clock_the_kernel_is_asked() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let nothing = site.path("nothing");
    let site = site.with_env("PATH", text(&nothing));
    // Whether anybody keeps it depends on the machine that runs this.
    let is_kept = !site.command(&["kernel-clock"]).ok().stdout.is_empty();
    let said = if is_kept { "kept by a time server" } else { "the kernel knows of nobody" };
    let clock = Report::of(&site).checks.into_iter().find(|finding| finding["check"] == "clock").unwrap();
    assert!(clock["found"].as_str().unwrap().contains(said), "{clock}");
}

#[test]
fn a_clock_that_is_off_is_told_of_by_whoever_keeps_it() {
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let programs = site.path("programs");
    std::fs::create_dir(&programs).unwrap();
    let said = "A9FEA97B,10.0.0.1,4,1795326000.1,-40.5,0.1,0.2,-3.1,0.0,0.02,0.0003,0.0004,16.2,Normal";
    // Written by another process: what this one has open for writing, a child of another test may have, too.
    let chronyc = text(&programs.join("chronyc")).to_owned();
    let write = format!("printf '#!/bin/sh\\necho {said}\\n' > {chronyc} && chmod 755 {chronyc}");
    tool("sh", &["-c", &write]);
    let site = site.with_env("PATH", text(&programs));
    let gateway = site.start();
    eventually("the metric", || {
        let metrics = get(gateway.admin, "/metrics").unwrap().body;
        let metrics = String::from_utf8(metrics).unwrap();
        (metrics.contains("chaski_clock_offset_seconds -40.5")
            && metrics.contains("chaski_clock_synchronized 1"))
        .then_some(())
    });
    let told = site.command(&["doctor", "--json"]);
    let told: Value = serde_json::from_str(&told.stdout).unwrap();
    let clock = told["checks"].as_array().unwrap().iter().find(|check| check["check"] == "clock").unwrap();
    assert_eq!(clock["verdict"], "bad", "{clock}");
    gateway.stop();
}
