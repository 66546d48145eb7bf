//! `chaski doctor`: one look that tells whether an installation is sound.
//!
//! Every check looks and changes nothing: the only file it writes is a scratch file without a name, beside the
//! store, to see how long the disk takes. Nothing is sent to a destination beside handshakes. All checks run at the
//! same time, each within [`CHECK_WITHIN`], all within [`ALL_WITHIN`]. Where the configuration is refused, what
//! does not need all of it is looked at all the same.

mod canary;
mod clock;
mod destination;
mod disk;
mod finding;
mod kafka;
mod process;
mod redis;
mod source;
mod tls;

use std::path::Path;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use chaski_common::clock::Clock;
use tokio::time::{Instant, timeout, timeout_at};

pub(super) use self::canary::{Canary, run as canary};
use self::finding::{Finding, Verdict};
use crate::config::{AccessConfig, Config, ConfigErrors, StorageKind};
use crate::output;

/// How long one check may take.
const CHECK_WITHIN: Duration = Duration::from_secs(5);
/// How long all of them may take.
const ALL_WITHIN: Duration = Duration::from_secs(20);

/// A check by its name: what it finds.
type Check = (String, Pin<Box<dyn Future<Output = Vec<Finding>> + Send>>);

pub(super) async fn run(file: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let (config, mut findings) = match Config::load(file) {
        Ok(config) => {
            let found = configured(file, &config);
            (Some(config), found)
        }
        Err(problems) => (None, refused(&problems)),
    };
    let is_refused = config.is_none();
    if let Ok(access) = AccessConfig::load(file) {
        findings.extend(look(checks(config.map(Arc::new), access), CHECK_WITHIN).await);
    }
    if json {
        output::json(&serde_json::json!({ "verdict": finding::worst(&findings), "checks": findings }))?;
    } else {
        finding::print(&findings);
    }
    Ok(match finding::worst(&findings) {
        _ if is_refused => ExitCode::from(super::EXIT_CONFIG),
        Verdict::Bad => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

const CONFIGURATION: &str = "configuration";

fn configured(file: &Path, config: &Config) -> Vec<Finding> {
    let sources = output::count(config.sources.len() as u64, "source");
    let destinations = output::count(config.destinations.len() as u64, "destination");
    let found = format!("{}: {sources}, {destinations}", file.display());
    let warning = |warning: &crate::config::Warning| {
        Finding::warning(CONFIGURATION, warning.to_string(), "see `chaski check`")
    };
    [Finding::good(CONFIGURATION, found)].into_iter().chain(config.warnings.iter().map(warning)).collect()
}

fn refused(ConfigErrors(problems): &ConfigErrors) -> Vec<Finding> {
    let problem = |problem: &crate::config::Problem| {
        let bare = crate::config::Problem { hint: String::new(), ..problem.clone() };
        let advice = if problem.hint.is_empty() { "mend the file or what it names" } else { &problem.hint };
        Finding::bad(CONFIGURATION, bare.to_string(), advice)
    };
    problems.iter().map(problem).collect()
}

/// What there is to look at, in the order in which it is told.
fn checks(config: Option<Arc<Config>>, access: AccessConfig) -> Vec<Check> {
    let mut checks: Vec<Check> = Vec::new();
    let mut add = |name: &str, work: Pin<Box<dyn Future<Output = Vec<Finding>> + Send>>| {
        checks.push((name.to_owned(), work));
    };
    let storage = config.as_ref().map_or_else(|| access.storage.clone(), |config| config.storage.clone());
    add("process", Box::pin(process::check(config.clone(), access)));
    add("clock", Box::pin(clock::check()));
    if let Some(folder) = storage.folder() {
        add("folder", Box::pin(disk::check(folder.to_owned(), storage.is_embedded())));
    }
    if let StorageKind::Kafka { options, rate_per_second } = &storage.kind {
        add("kafka", Box::pin(kafka::check(options.clone())));
        match options.redis.clone() {
            Some(settings) => {
                let prefix = options.topic_prefix.clone();
                add("redis", Box::pin(redis::check(settings, prefix, *rate_per_second)));
            }
            None => add("redis", Box::pin(skip("redis", "none is configured ([storage.dedup] redis)"))),
        }
    }
    let Some(config) = config else { return checks };
    match config.ingest.tls.clone() {
        Some(files) => add("tls", Box::pin(tls::check(files))),
        None => add("tls", Box::pin(skip("tls", "the edge speaks clear text ([ingest.tls])"))),
    }
    for spec in config.sources.clone() {
        let name = format!("source {}", spec.name);
        add(&name, Box::pin(async move { vec![source::judge(&spec, Clock::system().now())] }));
    }
    for spec in config.destinations.clone() {
        add(&format!("destination {}", spec.name), Box::pin(destination::check(spec)));
    }
    checks
}

async fn skip(check: &'static str, why: &'static str) -> Vec<Finding> {
    vec![Finding::skipped(check, why)]
}

/// Runs all checks at once; what they found, in their order. Each has a task of its own, so that one that blocks
/// holds up no other.
async fn look(checks: Vec<Check>, within: Duration) -> Vec<Finding> {
    let end = Instant::now() + ALL_WITHIN;
    let begun: Vec<_> =
        checks.into_iter().map(|(name, work)| (name, tokio::spawn(timeout(within, work)))).collect();
    let mut findings = Vec::new();
    for (name, task) in begun {
        match timeout_at(end, task).await {
            Ok(Ok(Ok(found))) => findings.extend(found),
            Ok(Err(_)) => findings.push(Finding::bad(name, "the check panicked", "report this")),
            Err(_) | Ok(Ok(Err(_))) => {
                let found = format!("no answer within {within:?}");
                findings.push(Finding::bad(name, found, "what is looked at hangs, or is very slow"));
            }
        }
    }
    findings
}

/// Runs what blocks on a thread of its own, which nobody waits for when it hangs. None if it panicked.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || done.send(work()));
    result.await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_check_that_hangs_is_bad_and_holds_up_no_other() {
        let hangs: Check = ("hangs".to_owned(), Box::pin(std::future::pending()));
        let other: Check = ("other".to_owned(), Box::pin(skip("other", "nothing to see")));
        let found = look(vec![hangs, other], Duration::from_millis(1)).await;
        let said: Vec<_> = found.iter().map(|found| (&*found.check, found.verdict)).collect();
        assert_eq!(said, [("hangs", Verdict::Bad), ("other", Verdict::Skipped)]);
    }
}
