//! `chaski demo`: everything on loopback in a scratch folder, nothing pretended; or on a Kafka that is there.
//!
//! It runs the same [`App`] as `chaski run`, with a configuration written as text, three receivers of which
//! the ERP refuses for a while, and a PagoEfectivo that sends callbacks, repeats, forgeries and one payment
//! whose second callback names another amount.

mod receiver;

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chaski_common::clock::Clock;
use chaski_common::secret::Secret;
use chaski_common::storage::kafka;
use chaski_ingest::source::SchemeSpec;
use chaski_ingest::verify::sign::{Signer, sign};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use self::receiver::Receiver;
use crate::app::{App, Role};
use crate::cli::Demo;
use crate::config::{Config, StorageKind};
use crate::post::Poster;
use crate::{logging, output};

/// Payments that are made.
const PAYMENTS: u64 = 40;
/// Every so many payments the callback comes twice.
const REPEAT_EVERY: u64 = 5;
/// Every so many payments somebody tries a forgery.
const FORGE_EVERY: u64 = 8;
/// The payment whose second callback names another amount.
const CONFLICT_AT: u64 = 20;
/// Between two payments.
const PACE: Duration = Duration::from_millis(120);
/// How long the ERP refuses.
const ERP_REFUSES: Duration = Duration::from_secs(4);
/// How long deliveries may take before the demo calls it a loss.
const PATIENCE: Duration = Duration::from_secs(45);

/// What the sender was answered.
#[derive(Default)]
struct Ledger {
    /// The events accepted, and the digests of their bytes.
    accepted: HashMap<String, [u8; 32]>,
    duplicates: u64,
    refused: u64,
    quarantined: u64,
    unexpected: Vec<String>,
}

/// What the demo shows at its end.
#[derive(Serialize)]
struct Report {
    accepted: usize,
    duplicates: u64,
    refused: u64,
    quarantined: u64,
    destinations: Vec<Row>,
    lost: usize,
    unexpected: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    destination: &'static str,
    delivered: usize,
    retries: u64,
    repeated: usize,
    missing: usize,
}

pub(super) async fn run(on: Demo, json: bool) -> anyhow::Result<ExitCode> {
    logging::start_quiet();
    let scratch = tempfile::tempdir().context("making a scratch folder")?;
    let receivers = [
        Receiver::start("orders", Duration::ZERO).await?,
        Receiver::start("erp", ERP_REFUSES).await?,
        Receiver::start("notifications", Duration::ZERO).await?,
    ];
    let secret =
        hex::encode(Sha256::digest(format!("{:?} {}", std::time::SystemTime::now(), std::process::id())));
    let file = scratch.path().join("chaski.toml");
    let config = configuration(&on, &storage(&on, &secret).await?, &receivers, &secret, &file)?;
    let topics = match &config.storage.kind {
        StorageKind::Kafka { options, .. } => Some(options.clone()),
        StorageKind::Embedded { .. } => None,
    };
    if let Some(options) = &topics {
        let steps = kafka::plan(options).await.context("asking the brokers")?;
        kafka::apply(options, steps).await.context("making the demo's topics")?;
    }
    let shown = show(config, &file, &secret, &receivers, json).await;
    if let Some(options) = &topics {
        kafka::delete(options).await.context("deleting the demo's topics")?;
    }
    shown
}

/// Runs chaski on a storage that is there, until everything has arrived.
async fn show(
    config: Config,
    file: &Path,
    secret: &str,
    receivers: &[Receiver],
    json: bool,
) -> anyhow::Result<ExitCode> {
    let scheme = config.sources.first().context("the demo has a source")?.scheme.clone();
    let app = App::open(config, file, Role::Both).await?;
    let edge = app.edge_addr().context("the demo has an edge")?;
    let url = format!("http://{edge}/in/pagoefectivo");
    output::say(format_args!("chaski takes callbacks at {url}; the ERP refuses for {ERP_REFUSES:?}"));

    let stop = CancellationToken::new();
    let running = tokio::spawn(app.run(stop.clone()));
    let screen = Screen::new(json)?;
    let sender = Sender { poster: Poster::new(), url, scheme, secret: Secret::new(secret.to_owned()) };
    let ledger = sender.send_all(&screen, receivers).await?;
    wait_for_deliveries(&ledger, &screen, receivers).await;
    screen.finish();
    let report = report(ledger, receivers);
    stop.cancel();
    running.await.context("stopping")?;
    if json {
        output::json(&report)?;
    } else {
        print(&report);
    }
    Ok(if report.lost == 0 && report.unexpected.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What stands in `[storage]`; topics are the demo's own.
async fn storage(on: &Demo, secret: &str) -> anyhow::Result<String> {
    if on.kafka.is_empty() {
        return Ok("kind = \"embedded\"\npath = \"store\"\n".to_owned());
    }
    let brokers = kafka::brokers(&kafka::Options::new(on.kafka.clone())).await;
    let copies = brokers.with_context(|| format!("asking {}", on.kafka.join(", ")))?.clamp(1, 3);
    let mut text = format!(
        "kind = \"kafka\"\nbrokers = {:?}\ntopic_prefix = \"chaski-demo-{}\"\npartitions = 3\nreplication = {copies}\npath = \"spool\"\n",
        on.kafka,
        &secret[..8]
    );
    if on.redis.is_some() {
        text.push_str("[storage.dedup]\nredis = \"env:DEMO_REDIS\"\n");
    }
    Ok(text)
}

fn configuration(
    on: &Demo,
    storage: &str,
    receivers: &[Receiver],
    secret: &str,
    file: &Path,
) -> anyhow::Result<Config> {
    let mut text = format!(
        "[ingest]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[storage]\n{storage}\
         [sources.pagoefectivo]\nprovider = \"pagoefectivo\"\nsecrets = [\"env:PE_SECRET\"]\n",
    );
    for receiver in receivers {
        text.push_str(&format!(
            "[destinations.{}]\nurl = \"http://{}/hooks\"\nsources = [\"pagoefectivo\"]\nsecret = \"env:PE_SECRET\"\n\
             [destinations.{0}.retry]\nfirst = \"500ms\"\nfactor = 2\ncap = \"2s\"\ngive_up_after = \"10m\"\n",
            receiver.name, receiver.address
        ));
    }
    let variable = |name: &str| match name {
        "PE_SECRET" => Some(secret.to_owned()),
        "DEMO_REDIS" => on.redis.clone(),
        _ => None,
    };
    Ok(Config::parse(&text, file, &variable)?)
}

struct Sender {
    poster: Poster,
    url: String,
    scheme: SchemeSpec,
    secret: Secret,
}

impl Sender {
    async fn send_all(&self, screen: &Screen, receivers: &[Receiver]) -> anyhow::Result<Ledger> {
        let mut ledger = Ledger::default();
        let mut pace = tokio::time::interval(PACE);
        for payment in 1..=PAYMENTS {
            pace.tick().await;
            let body = callback(payment, "22.05");
            self.send(&mut ledger, &body, "accepted").await?;
            if payment % REPEAT_EVERY == 0 {
                self.send(&mut ledger, &body, "duplicate").await?;
            }
            if payment % FORGE_EVERY == 0 {
                self.send(&mut ledger, &callback(payment + 100_000, "999.00"), "refused").await?;
            }
            if payment == CONFLICT_AT {
                self.send(&mut ledger, &callback(payment, "2205.00"), "quarantined").await?;
            }
            screen.show(&ledger, receivers);
        }
        Ok(ledger)
    }

    /// Posts one callback and books the answer; another one than expected is told at the end.
    async fn send(&self, ledger: &mut Ledger, body: &str, expected: &str) -> anyhow::Result<()> {
        let signer = Signer { key_id: None, secret: &self.secret, forge: expected == "refused" };
        let signed = sign(&self.scheme, signer, body.as_bytes(), Clock::system().now())?;
        let answer = self.poster.post(&self.url, signed).await?;
        let told: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
        let status = if answer.status == http::StatusCode::UNAUTHORIZED {
            "refused"
        } else {
            told["status"].as_str().unwrap_or("nothing")
        };
        match status {
            "accepted" => {
                let id = told["id"].as_str().unwrap_or_default().to_owned();
                ledger.accepted.insert(id, Sha256::digest(body).into());
            }
            "duplicate" => ledger.duplicates += 1,
            "refused" => ledger.refused += 1,
            "quarantined" => ledger.quarantined += 1,
            _ => {}
        }
        if status != expected {
            ledger.unexpected.push(format!("{} {status} instead of {expected}", answer.status));
        }
        Ok(())
    }
}

/// A `cip.paid` as PagoEfectivo's guide describes it, indented as the guide prints it; the signature is over
/// what is sent.
fn callback(payment: u64, amount: &str) -> String {
    format!(
        "{{\n  \"eventType\": \"cip.paid\",\n  \"operationNumber\": \"{payment}\",\n  \"data\": {{\n    \"cip\": \"{}\",\n    \
         \"currency\": \"PEN\",\n    \"amount\": {amount}\n  }}\n}}",
        11_546_900 + payment
    )
}

/// How many accepted events a receiver does not have, byte by byte.
fn missing(ledger: &Ledger, receiver: &Receiver) -> usize {
    let books = receiver.books();
    ledger.accepted.iter().filter(|(id, digest)| !books.has(id, digest)).count()
}

async fn wait_for_deliveries(ledger: &Ledger, screen: &Screen, receivers: &[Receiver]) {
    let deadline = Instant::now() + PATIENCE;
    let mut look = tokio::time::interval(Duration::from_millis(100));
    while Instant::now() < deadline && receivers.iter().any(|receiver| missing(ledger, receiver) > 0) {
        look.tick().await;
        screen.show(ledger, receivers);
    }
}

fn report(ledger: Ledger, receivers: &[Receiver]) -> Report {
    let destinations: Vec<Row> = receivers
        .iter()
        .map(|receiver| {
            let books = receiver.books();
            Row {
                destination: receiver.name,
                delivered: books.events(),
                retries: books.refused,
                repeated: books.repeated(),
                missing: missing(&ledger, receiver),
            }
        })
        .collect();
    Report {
        accepted: ledger.accepted.len(),
        duplicates: ledger.duplicates,
        refused: ledger.refused,
        quarantined: ledger.quarantined,
        lost: destinations.iter().map(|row| row.missing).sum(),
        destinations,
        unexpected: ledger.unexpected,
    }
}

fn print(report: &Report) {
    let mut answers = output::table(&["CALLBACKS", ""]);
    answers.add_row(["accepted (200, durable)".to_owned(), report.accepted.to_string()]);
    answers.add_row(["duplicates (200, dropped)".to_owned(), report.duplicates.to_string()]);
    answers.add_row(["forged (401, refused)".to_owned(), report.refused.to_string()]);
    answers.add_row(["other amount (200, quarantined)".to_owned(), report.quarantined.to_string()]);
    output::line(answers.trim_fmt());
    output::line("");
    let mut deliveries =
        output::table(&["DESTINATION", "DELIVERED", "REFUSED AND RETRIED", "DELIVERED TWICE", "LOST"]);
    for row in &report.destinations {
        deliveries.add_row([
            row.destination.to_owned(),
            row.delivered.to_string(),
            row.retries.to_string(),
            row.repeated.to_string(),
            row.missing.to_string(),
        ]);
    }
    output::line(deliveries.trim_fmt());
    output::line("");
    for unexpected in &report.unexpected {
        output::line(format_args!("unexpected: {unexpected}"));
    }
    let verdict = if report.lost == 0 { "nothing lost" } else { "EVENTS WERE LOST" };
    output::line(format_args!(
        "{verdict}: {} accepted, {} destinations",
        report.accepted,
        report.destinations.len()
    ));
}

/// What happens, as it happens: a line that changes on a terminal, a line a second elsewhere.
struct Screen {
    bar: ProgressBar,
    quiet: bool,
    last: std::cell::Cell<Option<Instant>>,
}

impl Screen {
    fn new(quiet: bool) -> anyhow::Result<Self> {
        let bar =
            ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
        Ok(Self { bar, quiet, last: std::cell::Cell::new(None) })
    }

    fn show(&self, ledger: &Ledger, receivers: &[Receiver]) {
        let mut now = format!(
            "accepted {} · duplicates {} · refused {} · quarantined {} →",
            ledger.accepted.len(),
            ledger.duplicates,
            ledger.refused,
            ledger.quarantined
        );
        for receiver in receivers {
            let books = receiver.books();
            now.push_str(&format!("  {} {}", receiver.name, books.events()));
            if books.refused > 0 {
                now.push_str(&format!(" (refused {})", books.refused));
            }
        }
        if !self.bar.is_hidden() {
            self.bar.set_message(now);
            self.bar.tick();
        } else if !self.quiet && self.last.get().is_none_or(|last| last.elapsed() >= Duration::from_secs(1)) {
            self.last.set(Some(Instant::now()));
            output::say(now);
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
