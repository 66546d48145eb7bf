//! A person is told, once, soon, by every kind of receiver; nobody waits for a receiver that hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::SeqCst};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;

use crate::harness::{
    Callback, Destination, Layout, MailServer, Receipt, Receiver, Reply, Site, eventually, payment,
};

const ALERT_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// Quick enough for a test: what is grouped is grouped for a moment.
const QUICK: &str = "[alerts]\ngroup = \"200ms\"\nevery = \"1s\"\n";

fn receivers(list: &[(&str, &str)]) -> String {
    let each = list.iter().map(|(name, kind)| {
        let variable = name.to_uppercase();
        format!("[alerts.receivers.{name}]\nkind = \"{kind}\"\nurl = \"env:{variable}_URL\"\n")
    });
    QUICK.to_owned() + &each.collect::<String>()
}

fn document(receipt: &Receipt) -> Value {
    serde_json::from_slice(&receipt.body).unwrap()
}

/// Every alert a webhook was told, in order, as `name state`.
fn told(receiver: &Receiver) -> Vec<String> {
    let alerts = receiver
        .taken()
        .iter()
        .flat_map(|receipt| document(receipt)["alerts"].as_array().unwrap().clone())
        .collect::<Vec<_>>();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    alerts.iter().map(|alert| format!("{} {}", text(&alert["name"]), text(&alert["state"]))).collect()
}

/// A destination that answers what it is told to.
fn switched() -> (Receiver, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(500));
    let answer = Arc::clone(&status);
    (Receiver::scripted(move |_| Reply::status(answer.load(SeqCst))), status)
}

#[test]
fn five_failures_in_a_row_are_told_once_and_so_is_their_end() {
    let (orders, status) = switched();
    let webhook = Receiver::start();
    let slack = Receiver::start();
    let mut layout = Layout::to([Destination::new("orders", &orders)]);
    layout.more = receivers(&[("hook", "webhook"), ("chat", "slack")])
        .replace("url = \"env:HOOK_URL\"", "url = \"env:HOOK_URL\"\nsecret = \"env:ALERT_SECRET\"");
    let site = Site::new(&layout)
        .with_env("HOOK_URL", &webhook.url())
        .with_env("CHAT_URL", &slack.url())
        .with_env("ALERT_SECRET", ALERT_SECRET);
    let gateway = site.start();
    let id = gateway.accept(&payment(1));
    let first = eventually("the alert", || webhook.taken().into_iter().next());
    assert!(orders.receipts_of(&id).len() >= 5);
    let message = document(&first);
    let alert = &message["alerts"][0];
    assert_eq!(
        (&alert["name"], &alert["state"], &alert["severity"], &alert["labels"]),
        (
            &"destination-failing".into(),
            &"firing".into(),
            &"critical".into(),
            &serde_json::json!({ "destination": "orders" })
        ),
        "{message}"
    );
    assert_eq!(alert["command"], "chaski destinations");
    assert!(!alert["since"].as_str().unwrap().is_empty());
    // Signed as deliveries are, checked by somebody else's library.
    let verifier = standardwebhooks::Webhook::new(ALERT_SECRET).unwrap();
    verifier.verify(&first.body, &first.headers).unwrap();
    // No payload and no secret.
    let text = String::from_utf8_lossy(&first.body);
    assert!(
        !text.contains("10000001") && !text.contains("1001.00") && !text.contains(ALERT_SECRET),
        "{text}"
    );

    let chat = eventually("the chat", || slack.taken().into_iter().next());
    let text = document(&chat)["text"].as_str().unwrap().to_owned();
    assert!(text.contains("[CRITICAL] destination-failing"), "{text}");

    status.store(200, SeqCst);
    orders.wait_for(&id);
    eventually("its end", || (told(&webhook).last()? == "destination-failing resolved").then_some(()));
    assert_eq!(told(&webhook), ["destination-failing firing", "destination-failing resolved"]);
    eventually("its end in the chat", || (slack.taken().len() == 2).then_some(()));
    eventually("both to be counted", || {
        let labels = ["receiver=\"hook\"", "result=\"sent\""];
        (gateway.count("chaski_alert_notifications_total", &labels) == 2).then_some(())
    });
    gateway.stop();
}

/// About the embedded store's file.
mod disk {
    use super::*;

    #[test]
    fn what_goes_wrong_at_the_edge_is_told() {
        let webhook = Receiver::start();
        let layout = Layout { more: receivers(&[("hook", "webhook")]), ..Layout::default() };
        let site = Site::new(&layout).with_env("HOOK_URL", &webhook.url()).on_faulty_disk();
        let gateway = site.start();
        for number in 0..20 {
            let forged = Callback { signature: "0".repeat(64), ..payment(number) };
            assert_eq!(gateway.send(&forged).status, 401);
        }
        let has_told = |alert: &str| told(&webhook).iter().any(|told| told == alert).then_some(());
        eventually("the signatures", || has_told("signature-anomaly firing"));
        site.disk_fails("sync", true);
        for number in 0..5 {
            assert_eq!(gateway.send(&payment(number)).status, 503);
        }
        eventually("the failures", || has_told("source-failing firing"));
        eventually("the store", || has_told("store-poisoned firing"));
    }
}

#[test]
fn a_receiver_gets_one_message_in_its_time_and_the_rest_in_the_next() {
    let orders = Receiver::scripted(|_| Reply::status(410));
    let erp = Receiver::scripted(|_| Reply::status(410));
    let webhook = Receiver::start();
    let mut layout = Layout::to([Destination::new("orders", &orders).with("events = [\"cip.paid\"]")]);
    layout.destinations.push(Destination::new("erp", &erp).with("events = [\"never\"]"));
    let every = "every = \"3s\"";
    layout.more = receivers(&[("hook", "webhook")]).replace("every = \"1s\"", every);
    let site = Site::new(&layout).with_env("HOOK_URL", &webhook.url());
    let gateway = site.start();
    gateway.accept(&payment(1));
    eventually("the first message", || (told(&webhook) == ["dead-letter firing"]).then_some(()));
    // Two more alerts while the receiver may not be told.
    layout.destinations[1] = Destination::new("erp", &erp);
    site.rewrite(&layout);
    site.command(&["reload"]).ok();
    gateway.accept(&payment(2));
    let body = payment(2).body.replace("1001.00", "1002.00");
    let conflict = gateway.send(&Callback::of(body));
    assert_eq!(conflict.outcome(), "quarantined");
    let mut rest =
        eventually("the rest", || Some(told(&webhook).split_off(1)).filter(|rest| rest.len() >= 2));
    rest.sort();
    assert_eq!(rest, ["conflict firing", "dead-letter firing"]);
    for pair in webhook.taken().windows(2) {
        let pause = pair[1].arrived.duration_since(pair[0].answered);
        assert!(pause >= Duration::from_millis(2950), "{pause:?}");
    }
    gateway.stop();
}

#[test]
fn what_waits_for_its_time_is_told_before_the_process_ends() {
    let orders = Receiver::scripted(|_| Reply::status(410));
    let webhook = Receiver::start();
    let mut layout = Layout::to([Destination::new("orders", &orders)]);
    layout.more = receivers(&[("hook", "webhook")]).replace("200ms", "10m");
    let site = Site::new(&layout).with_env("HOOK_URL", &webhook.url());
    let gateway = site.start();
    gateway.accept(&payment(1));
    eventually("the dead letter", || {
        (gateway.count("chaski_dlq_added_total", &["destination=\"orders\""]) == 1).then_some(())
    });
    assert_eq!(webhook.arrivals(), 0);
    gateway.stop();
    assert_eq!(told(&webhook), ["dead-letter firing"]);
}

#[test]
fn a_receiver_that_hangs_holds_up_nobody() {
    let orders = Receiver::scripted(|_| Reply::status(410));
    let (hung, well) = (Receiver::scripted(|_| Reply::hang()), Receiver::start());
    let mut layout = Layout::to([Destination::new("orders", &orders)]);
    layout.more = receivers(&[("hung", "webhook"), ("well", "webhook")]);
    let site = Site::new(&layout).with_env("HUNG_URL", &hung.url()).with_env("WELL_URL", &well.url());
    let gateway = site.start();
    gateway.accept(&payment(1));
    eventually("the other receiver", || (told(&well) == ["dead-letter firing"]).then_some(()));
    eventually("the one that hangs", || (hung.arrivals() == 1).then_some(()));
    // The gateway neither waits for it while it works nor when it stops.
    gateway.accept(&payment(2));
    gateway.stop();
}

#[test]
fn what_a_receiver_refused_for_now_is_tried_again_and_a_reload_mends_a_wrong_address() {
    let orders = Receiver::scripted(|_| Reply::status(410));
    let is_first = AtomicBool::new(true);
    let busy =
        Receiver::scripted(move |_| Reply::status(if is_first.swap(false, SeqCst) { 503 } else { 200 }));
    let wrong = Receiver::scripted(|_| Reply::status(503));
    let right = Receiver::start();
    let mut layout = Layout::to([Destination::new("orders", &orders)]);
    layout.more = receivers(&[("busy", "webhook"), ("moved", "webhook")]);
    let site = Site::new(&layout)
        .with_env("BUSY_URL", &busy.url())
        .with_env("MOVED_URL", &wrong.url())
        .with_env("RIGHT_URL", &right.url());
    let gateway = site.start();
    gateway.accept(&payment(1));
    eventually("the second try", || (told(&busy) == ["dead-letter firing"]).then_some(()));
    eventually("a try at the wrong address", || (wrong.arrivals() >= 1).then_some(()));
    layout.more = layout.more.replace("MOVED_URL", "RIGHT_URL");
    site.rewrite(&layout);
    gateway.signal("HUP");
    eventually("the message at the right address", || (told(&right) == ["dead-letter firing"]).then_some(()));
    assert_eq!(told(&busy).len(), 1, "who was told is not told again by a reload");
    gateway.stop();
}

fn base64_hmac(key: &[u8], parts: &[&[u8]]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    parts.iter().for_each(|part| mac.update(part));
    STANDARD.encode(mac.finalize().into_bytes())
}

/// What the services' own documents say of how a robot's message is signed, checked with a MAC of this test's own.
#[test]
fn the_chats_get_their_own_envelopes_and_signatures() {
    const SECRET: &str = "SEC8f1c0b7a9e2d4c6f8a1b3d5e7f90a2b4";
    let yes = |body: &'static str| Receiver::scripted(move |_| Reply::status(200).saying(body));
    let (dingtalk, wecom) = (yes("{\"errcode\":0,\"errmsg\":\"ok\"}"), yes("{\"errcode\":0}"));
    let feishu = yes("{\"code\":0,\"msg\":\"success\",\"data\":{}}");
    let no = yes("{\"errcode\":310000,\"errmsg\":\"keywords not in content\"}");
    let mut layout = Layout::default();
    let signed = |text: String, name: &str| {
        let url = format!("url = \"env:{name}_URL\"");
        text.replace(&url, &format!("{url}\nsecret = \"env:ROBOT_SECRET\""))
    };
    layout.more = receivers(&[("ding", "dingtalk"), ("fei", "feishu"), ("we", "wecom")]);
    layout.more = signed(signed(layout.more, "DING"), "FEI");
    let site = Site::new(&layout)
        .with_env("DING_URL", &format!("{}?access_token=t0ken", dingtalk.url()))
        .with_env("FEI_URL", &feishu.url())
        .with_env("WE_URL", &wecom.url())
        .with_env("NO_URL", &format!("{}?access_token=t0ken", no.url()))
        .with_env("ROBOT_SECRET", SECRET);
    let told = site.command(&["alerts", "test", "--json"]).json();
    assert_eq!(told.as_array().unwrap().len(), 3, "{told}");

    let ding = dingtalk.taken().remove(0);
    let query = ding.target.split_once("?access_token=t0ken&timestamp=").unwrap().1;
    let (timestamp, sign) = query.split_once("&sign=").unwrap();
    assert_eq!(timestamp.len(), 13, "milliseconds: {query}");
    let sign = sign.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=");
    assert_eq!(sign, base64_hmac(SECRET.as_bytes(), &[timestamp.as_bytes(), b"\n", SECRET.as_bytes()]));
    let body = document(&ding);
    assert_eq!(body["msgtype"], "text");
    assert!(body["text"]["content"].as_str().unwrap().starts_with("chaski on "), "{body}");

    let body = document(&feishu.taken().remove(0));
    let timestamp = body["timestamp"].as_str().unwrap();
    assert_eq!(timestamp.len(), 10, "seconds: {body}");
    let key = format!("{timestamp}\n{SECRET}");
    assert_eq!(body["sign"], base64_hmac(key.as_bytes(), &[]).as_str());
    assert_eq!(body["msg_type"], "text");
    assert!(body["content"]["text"].as_str().unwrap().contains("test"), "{body}");

    let body = document(&wecom.taken().remove(0));
    assert_eq!(body["msgtype"], "text");
    assert!(body["text"]["content"].as_str().unwrap().contains("test"), "{body}");

    // A no inside of a 200 is a no, is shown in the service's words, and without the token.
    layout.more += "[alerts.receivers.no]\nkind = \"dingtalk\"\nurl = \"env:NO_URL\"\n";
    site.rewrite(&layout);
    let told = site.command(&["alerts", "test", "no"]);
    told.exits(1);
    assert!(told.stdout.contains("310000") && told.stdout.contains("keywords not in content"), "{told:?}");
    assert!(!format!("{told:?}").contains("t0ken"), "{told:?}");
    assert_eq!(wecom.arrivals(), 1, "only the one that was named");
    site.command(&["alerts", "test", "nobody"]).exits(2);
}

#[test]
fn a_mail_arrives_and_a_password_is_never_said_in_clear_text() {
    let orders = Receiver::scripted(|_| Reply::status(410));
    let server = MailServer::start();
    let mut layout = Layout::to([Destination::new("orders", &orders)]);
    let mail = format!(
        "{QUICK}[alerts.receivers.mail]\nkind = \"email\"\nserver = \"{}\"\ntls = \"none\"\n\
         from = \"chaski <chaski@shop.test>\"\nto = [\"ops@shop.test\", \"boss@shop.test\"]\n\
         user = \"chaski\"\npassword = \"env:SMTP_PASSWORD\"\n",
        server.address
    );
    layout.more.clone_from(&mail);
    let site = Site::new(&layout).with_env("SMTP_PASSWORD", "hunter2");
    let gateway = site.start();
    gateway.accept(&payment(1));
    let mail_taken = eventually("the mail", || server.mails().into_iter().next());
    assert!(mail_taken.from.contains("<chaski@shop.test>"), "{mail_taken:?}");
    let to = mail_taken.to.join(" ");
    assert!(to.contains("<ops@shop.test>") && to.contains("<boss@shop.test>"), "{mail_taken:?}");
    assert_eq!(mail_taken.login, format!("PLAIN {}", STANDARD.encode("\0chaski\0hunter2")));
    let data = &mail_taken.data;
    assert!(data.contains("Subject: chaski on ") && data.contains("[CRITICAL] dead-letter"), "{data}");
    gateway.stop();

    // A server that offers no TLS gets neither the password nor the mail.
    let clear = MailServer::start();
    layout.more = mail
        .replace(&server.address.to_string(), &clear.address.to_string())
        .replace("\"none\"", "\"starttls\"");
    site.rewrite(&layout);
    let told = site.command(&["alerts", "test"]);
    told.exits(1);
    assert!(clear.mails().is_empty());
    assert!(!clear.commands().iter().any(|command| command.starts_with("AUTH")), "{:?}", clear.commands());
}

#[test]
fn what_a_killed_process_had_not_told_is_told_by_the_next_as_long_as_it_is_kept() {
    let orders = Receiver::scripted(|_| Reply::status(410));
    let webhook = Receiver::start();
    let mut layout = Layout::to([Destination::new("orders", &orders)]);
    layout.more = receivers(&[("hook", "webhook")]).replace("200ms", "10m");
    let site = Site::new(&layout).with_env("HOOK_URL", &webhook.url());
    let gateway = site.start();
    gateway.accept(&payment(1));
    let conflict = payment(1).body.replace("1001.00", "1002.00");
    assert_eq!(gateway.send(&Callback::of(conflict)).outcome(), "quarantined");
    eventually("the dead letter", || {
        (gateway.count("chaski_dlq_added_total", &["destination=\"orders\""]) == 1).then_some(())
    });
    gateway.kill();
    assert_eq!(webhook.arrivals(), 0);
    layout.more = receivers(&[("hook", "webhook")]);
    site.rewrite(&layout);
    let gateway = site.start();
    let mut first = eventually("both", || Some(told(&webhook)).filter(|told| told.len() >= 2));
    first.sort();
    assert_eq!(first, ["conflict firing", "dead-letter firing"]);
    let text = String::from_utf8(webhook.taken()[0].body.to_vec()).unwrap();
    assert!(text.contains("kept since before this start"), "{text}");
    gateway.stop();
}
