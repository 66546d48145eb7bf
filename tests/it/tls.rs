//! TLS at the edge, and who may come in: with certificates made by openssl and posts made by curl.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;

use crate::harness::{
    Callback, Destination, Gateway, Layout, PE_PATH, Receiver, Site, certificate, eventually, get, payment,
    text, tool, tool_output,
};

fn site(tls: &str) -> (Site, Receiver) {
    let receiver = Receiver::start();
    let layout = Layout {
        more: format!("[ingest.tls]\n{tls}\n"),
        ..Layout::to([Destination::new("orders", &receiver)])
    };
    let site = Site::new(&layout);
    let authority = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"];
    let client = [
        "basicConstraints=critical,CA:FALSE",
        "extendedKeyUsage=clientAuth",
        "subjectAltName=DNS:client.test",
    ];
    certificate(&site, "server", None, &["subjectAltName=IP:127.0.0.1"]);
    certificate(&site, "clients", None, &authority);
    certificate(&site, "client", Some("clients"), &client);
    certificate(&site, "strangers", None, &authority);
    certificate(&site, "stranger", Some("strangers"), &client);
    (site, receiver)
}

fn curl(site: &Site, Callback { body, signature }: &Callback, more: &[&str]) -> Output {
    let (ca, url) = (site.path("server.pem"), format!("https://{}{PE_PATH}", site.edge));
    let signature = format!("PE-Signature: {signature}");
    let mut arguments = vec![
        "--silent",
        "--show-error",
        "--max-time",
        "20",
        "--cacert",
        text(&ca),
        "-H",
        &signature,
        "--data-binary",
        body,
    ];
    arguments.extend(more);
    arguments.push(&url);
    tool_output("curl", &arguments)
}

#[track_caller]
fn is_accepted(output: &Output) {
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert_eq!(answer["status"], "accepted", "{output:?}");
}

#[test]
fn the_edge_speaks_tls_and_nothing_else_where_it_is_told_to() {
    let (site, receiver) = site("cert = \"server.pem\"\nkey = \"server.key\"");
    let gateway = site.start();
    is_accepted(&curl(&site, &payment(1), &["--tlsv1.3"]));
    is_accepted(&curl(&site, &payment(2), &["--tls-max", "1.2"]));
    assert!(!gateway.try_send(&payment(3)).is_ok_and(|answer| answer.status == 200), "in clear text");
    receiver.wait_for_count(2);
    gateway.stop();
    assert_eq!(receiver.receipts().len(), 2);
}

#[test]
fn a_sender_without_the_right_client_certificate_is_refused() {
    let (site, receiver) = site("cert = \"server.pem\"\nkey = \"server.key\"\nclient_ca = \"clients.pem\"");
    let gateway = site.start();
    let shown = |name: &str| {
        [
            text(&site.path(&format!("{name}.pem"))).to_owned(),
            text(&site.path(&format!("{name}.key"))).to_owned(),
        ]
    };
    let with = |name: &str, callback: &Callback| {
        let [cert, key] = shown(name);
        curl(&site, callback, &["--cert", &cert, "--key", &key])
    };
    let none = curl(&site, &payment(1), &[]);
    assert!(!none.status.success() && none.stdout.is_empty(), "{none:?}");
    let stranger = with("stranger", &payment(2));
    assert!(!stranger.status.success() && stranger.stdout.is_empty(), "{stranger:?}");
    is_accepted(&with("client", &payment(3)));
    receiver.wait_for_count(1);
    gateway.stop();
    assert_eq!(receiver.receipts().len(), 1);
}

#[test]
fn a_key_that_others_can_read_and_a_certificate_that_is_none_are_refused() {
    let (site, _receiver) = site("cert = \"server.pem\"\nkey = \"server.key\"");
    std::fs::set_permissions(site.path("server.key"), Permissions::from_mode(0o644)).unwrap();
    let told = site.command(&["run"]);
    told.exits(78);
    assert!(told.stderr.contains("ingest.tls.key"), "{told:?}");
    std::fs::set_permissions(site.path("server.key"), Permissions::from_mode(0o600)).unwrap();
    std::fs::write(site.path("server.pem"), "no certificate").unwrap();
    let told = site.command(&["run"]);
    told.exits(78);
    assert!(told.stderr.contains("ingest.tls.cert"), "{told:?}");
}

/// The certificate a new connection is shown, and when the gateway says that it expires.
fn shown(site: &Site, gateway: &Gateway) -> (Vec<u8>, u64) {
    let address = site.edge.to_string();
    let arguments = [
        "-c",
        "openssl s_client -connect \"$0\" </dev/null 2>/dev/null | openssl x509 -noout -fingerprint",
        &address,
    ];
    let until = gateway.count("chaski_tls_certificate_not_after_timestamp_seconds", &["listener=\"edge\""]);
    (tool("sh", &arguments), until)
}

#[test]
fn a_new_certificate_is_shown_after_a_reload_and_a_bad_one_is_not_taken() {
    let (site, receiver) = site("cert = \"server.pem\"\nkey = \"server.key\"");
    let gateway = site.start();
    let first = shown(&site, &gateway);
    assert!(first.1 > 0);

    let key = site.path("server.key");
    let good = std::fs::read(&key).unwrap();
    std::fs::copy(site.path("client.key"), &key).unwrap();
    site.command(&["reload"]).exits(78);
    assert_eq!(gateway.count("chaski_config_last_reload_successful", &[]), 0);
    assert_eq!(shown(&site, &gateway), first, "a key that does not fit leaves the old certificate in force");
    is_accepted(&curl(&site, &payment(1), &[]));

    std::fs::write(&key, good).unwrap();
    certificate(&site, "server", None, &["subjectAltName=IP:127.0.0.1"]);
    gateway.signal("HUP");
    let second =
        eventually("the new certificate", || Some(shown(&site, &gateway)).filter(|now| *now != first));
    assert_ne!(second.0, first.0);
    is_accepted(&curl(&site, &payment(2), &[]));
    receiver.wait_for_count(2);
    gateway.stop();
}

#[test]
fn an_edge_in_clear_text_speaks_tls_after_a_restart_only() {
    let (site, receiver) = site("cert = \"server.pem\"\nkey = \"server.key\"");
    let with_tls = Layout {
        more: "[ingest.tls]\ncert = \"server.pem\"\nkey = \"server.key\"\n".to_owned(),
        ..Layout::to([Destination::new("orders", &receiver)])
    };
    site.rewrite(&Layout { more: String::new(), ..with_tls.clone() });
    let gateway = site.start();
    assert_eq!(gateway.count("chaski_tls_certificate_not_after_timestamp_seconds", &[]), 0);
    site.rewrite(&with_tls);
    let told = site.command(&["reload", "--json"]).json();
    assert_eq!(told["needs_restart"], serde_json::json!(["[ingest]"]), "{told}");
    gateway.accept(&payment(1));
    gateway.stop();
}

/// What is said of destinations' certificates.
fn of_destinations(gateway: &Gateway) -> Vec<String> {
    const METRIC: &str = "chaski_destination_certificate_not_after_timestamp_seconds{";
    let metrics = String::from_utf8(get(gateway.admin, "/metrics").unwrap().body).unwrap();
    metrics.lines().filter_map(|line| line.strip_prefix(METRIC)).map(str::to_owned).collect()
}

#[test]
fn a_destination_on_https_has_an_expiry_from_the_start_until_a_reload_takes_it_out() {
    let receiver = Receiver::start();
    let on_https = |name| {
        let mut destination = Destination::new(name, &receiver);
        destination.url = destination.url.replace("http:", "https:");
        destination
    };
    let (orders, erp, shop) = (Destination::new("orders", &receiver), on_https("erp"), on_https("shop"));
    let site = Site::new(&Layout::to([orders.clone(), erp]));
    let gateway = site.start();
    assert_eq!(of_destinations(&gateway), ["destination=\"erp\"} 0"]);
    site.rewrite(&Layout::to([orders.clone(), shop]));
    site.command(&["reload"]).ok();
    assert_eq!(of_destinations(&gateway), ["destination=\"shop\"} 0"]);
    site.rewrite(&Layout::to([orders]));
    site.command(&["reload"]).ok();
    assert!(of_destinations(&gateway).is_empty());
    gateway.stop();
}
