//! What a receiver sees: checked with the specification's own library, not with ours.

use base64::Engine as _;

use crate::harness::{
    Callback, DESTINATION_SECRET, Destination, Layout, PE_PATH, Receiver, Reply, Site, payment, post,
};

#[test]
fn what_is_sent_verifies_with_the_library_of_standard_webhooks() {
    let receiver = Receiver::scripted(|asked| Reply::status(if asked.times == 1 { 500 } else { 200 }));
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let gateway = site.start();
    let id = gateway.accept(&payment(1));
    receiver.wait_for(&id);
    let receipts = receiver.receipts_of(&id);
    assert_eq!(receipts.len(), 2);
    let webhook = standardwebhooks::Webhook::new(DESTINATION_SECRET).unwrap();
    for receipt in &receipts {
        webhook.verify(&receipt.body, &receipt.headers).unwrap();
        let mut changed = receipt.body.to_vec();
        changed[10] ^= 1;
        webhook.verify(&changed, &receipt.headers).unwrap_err();
    }
    gateway.stop();
}

#[test]
fn while_secrets_rotate_both_verify() {
    let secret = |key: &[u8]| format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode(key));
    let (old, new) = (secret(b"pL9sWx3KtV8nRb2YqJ6fHc4G"), secret(b"Zr4u7xAnDpGaKdSgVkYp3s6v"));
    let receiver = Receiver::start();
    let site = Site::new(&Layout::to([Destination::new("orders", &receiver)]));
    let two = std::fs::read_to_string(site.config())
        .unwrap()
        .replace("\"env:DESTINATION_SECRET\"", "[\"env:NEW_SECRET\", \"env:OLD_SECRET\"]");
    site.write(&two);
    let site = site.with_env("NEW_SECRET", &new).with_env("OLD_SECRET", &old);
    let gateway = site.start();
    let id = gateway.accept(&payment(1));
    let receipt = receiver.wait_for(&id);
    for secret in [&new, &old] {
        standardwebhooks::Webhook::new(secret).unwrap().verify(&receipt.body, &receipt.headers).unwrap();
    }
    standardwebhooks::Webhook::new(DESTINATION_SECRET)
        .unwrap()
        .verify(&receipt.body, &receipt.headers)
        .unwrap_err();
    gateway.stop();
}

#[test]
fn the_headers_are_cloud_events_an_idempotency_key_and_the_senders_content_type() {
    let receiver = Receiver::scripted(|asked| Reply::status(if asked.times == 1 { 503 } else { 204 }));
    let destination = Destination::new("orders", &receiver).with("auth = { bearer = \"env:ORDERS_TOKEN\" }");
    let site = Site::new(&Layout::to([destination])).with_env("ORDERS_TOKEN", "tk-5up3r-Qx81");
    let gateway = site.start();
    let body = r#"{"eventType":"cip.paid","operationNumber":"9","data":{"cip":"11546901","currency":"PEN","amount":22.05,"paymentDate":"2026-11-20T10:11:12-05:00"}}"#;
    let callback = Callback::of(body);
    let headers = [
        ("content-type", "application/json; charset=utf-8"),
        ("pe-signature", callback.signature.as_str()),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        // Of these nothing may go further.
        ("chaski-attempt", "9"),
        ("webhook-id", "mine"),
        ("cookie", "canary"),
    ];
    let answer = post(gateway.edge, PE_PATH, &headers, body.as_bytes()).unwrap();
    assert_eq!(answer.outcome(), "accepted", "{answer:?}");
    let id = answer.id();
    receiver.wait_for(&id);
    let receipts = receiver.receipts_of(&id);
    let expected = [
        ("ce-specversion", "1.0"),
        ("ce-id", &*id),
        ("ce-source", "/sources/pagoefectivo"),
        ("ce-type", "cip.paid"),
        ("ce-subject", "11546901"),
        ("webhook-id", &*id),
        ("idempotency-key", &*id),
        ("content-type", "application/json; charset=utf-8"),
        ("authorization", "Bearer tk-5up3r-Qx81"),
    ];
    for (attempt, receipt) in (1..).zip(&receipts) {
        for (name, value) in expected {
            assert_eq!(receipt.header(name), value, "{name}");
        }
        assert_eq!(receipt.header("chaski-attempt"), format!("{attempt}"));
        assert_eq!(
            receipt.header("ce-time").parse::<jiff::Timestamp>().unwrap(),
            "2026-11-20T15:11:12Z".parse().unwrap()
        );
        assert!(
            receipt.header("traceparent").starts_with("00-0af7651916cd43dd8448eb211c80319c-"),
            "{}",
            receipt.header("traceparent")
        );
        let sent_at: i64 = receipt.header("webhook-timestamp").parse().unwrap();
        assert!((chaski_common::clock::Clock::system().now().as_second() - sent_at).abs() < 60);
        assert!(!receipt.headers.contains_key("cookie") && !receipt.headers.contains_key("pe-signature"));
        assert_eq!(receipt.headers.get_all("chaski-attempt").iter().count(), 1);
    }
    assert_eq!(receipts.len(), 2);
    gateway.stop();
}

#[test]
fn no_proxy_is_taken_from_the_environment() {
    let (receiver, proxy) = (Receiver::start(), Receiver::start());
    let site = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
        .into_iter()
        .fold(Site::new(&Layout::to([Destination::new("orders", &receiver)])), |site, name| {
            site.with_env(name, &proxy.url())
        });
    let gateway = site.start();
    receiver.wait_for(&gateway.accept(&payment(1)));
    gateway.stop();
    assert_eq!(proxy.arrivals(), 0);
}
