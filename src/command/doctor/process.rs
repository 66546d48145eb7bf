//! The addresses and the process that may have them: whether it is ours, and how it says it stands.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use chaski_common::clock::Clock;
use chaski_common::storage::embedded;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use tokio::net::TcpSocket;

use super::finding::{Finding, Verdict};
use crate::access::Remote;
use crate::api::{DestinationView, ListDestinations, Standing};
use crate::config::{AccessConfig, Config};

/// Money that has waited this long is at risk; the alert on the backlog pages at the same age.
const OLDEST_BAD: SignedDuration = SignedDuration::from_secs(300);
/// So many failures in a row are no accident; the alert's default is the same.
const FAILURES_BAD: u64 = 5;
/// A secret that nobody has used for so long is used by nobody: senders repeat for three days at most.
const UNUSED_FOR: SignedDuration = SignedDuration::from_hours(72);
/// A secret that is still used is told of this long before its end.
const ENDS_SOON: SignedDuration = SignedDuration::from_hours(48);

pub(super) async fn check(config: Option<Arc<Config>>, access: AccessConfig) -> Vec<Finding> {
    let admin = config.as_ref().map_or(access.admin, |config| config.admin.listen);
    let edge = config.as_ref().map(|config| config.ingest.listen);
    let remote = match Remote::find(&access).await {
        Ok(remote) => remote,
        Err(error) => {
            let advice = "stop that process, or name its configuration (-c)";
            return vec![Finding::bad("process", format!("{error:#}"), advice)];
        }
    };
    let Some(remote) = remote else {
        let mut findings = vec![address("admin address", admin, bind(admin), false)];
        findings.extend(edge.map(|edge| address("edge address", edge, bind(edge), false)));
        findings.push(silent(&access));
        return findings;
    };
    let mut findings =
        vec![Finding::good("admin address", format!("{admin}: chaski answers, with this store"))];
    let metrics = match remote.get("/metrics").await {
        Ok((StatusCode::OK, text)) => Metrics(text),
        Ok((status, _)) => {
            findings.push(Finding::bad("process", format!("/metrics answers {status}"), "see its log"));
            return findings;
        }
        Err(error) => {
            findings.push(Finding::bad("process", format!("{error:#}"), "see its log"));
            return findings;
        }
    };
    // A process that only delivers has no edge, and another one may have the address.
    if let Some(edge) = edge.filter(|_| metrics.value("chaski_edge_capacity").is_some()) {
        findings.push(address("edge address", edge, bind(edge), true));
    }
    findings.push(readiness(remote.get("/readyz").await));
    findings.extend(standing(&metrics));
    findings.extend(key_uses(&metrics, Clock::system().now()));
    match remote.call(ListDestinations {}).await {
        Ok(views) => findings.extend(views.iter().map(|view| delivery(view, Clock::system().now()))),
        Err(error) => findings.push(Finding::bad("deliveries", format!("{error:#}"), "see [admin] token")),
    }
    findings
}

/// Nobody answers where a process should, which is nothing wrong unless one has the store.
fn silent(access: &AccessConfig) -> Finding {
    let nothing = format!("nothing answers at {}", access.admin);
    match access.storage.folder().map(|folder| (folder, embedded::is_held(folder))) {
        Some((folder, Ok(true))) => Finding::bad(
            "process",
            format!("{nothing}, and a process has the store in {}", folder.display()),
            "it hangs, or was started with another [admin] listen: see its log",
        ),
        Some((folder, Err(error))) => {
            let found = format!("{nothing}; {} cannot be looked into: {error}", folder.display());
            Finding::bad("process", found, "run this as the user that chaski runs as")
        }
        _ => Finding::skipped("process", nothing),
    }
}

/// Takes an address as a server would, and gives it back before anybody could connect.
fn bind(listen: SocketAddr) -> std::io::Result<()> {
    let socket = if listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(listen)
}

/// `is_served`: our process says that it listens on an address of this kind.
fn address(check: &str, listen: SocketAddr, bound: std::io::Result<()>, is_served: bool) -> Finding {
    match bound {
        Ok(()) if is_served => Finding::warning(
            check,
            format!("{listen} is free: the running process listens elsewhere"),
            "the file has changed since it started: restart it",
        ),
        Ok(()) => Finding::good(check, format!("{listen} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_served => {
            Finding::good(check, format!("{listen}: held by the running process"))
        }
        Err(error) => {
            let advice = match error.kind() {
                ErrorKind::AddrInUse => "another program has it: stop that, or listen elsewhere",
                ErrorKind::PermissionDenied => {
                    "a low port needs CAP_NET_BIND_SERVICE; or take one above 1023"
                }
                ErrorKind::AddrNotAvailable => "this machine has no such address",
                _ => "listen elsewhere",
            };
            Finding::bad(check, format!("{listen}: {error}"), advice)
        }
    }
}

fn readiness(answer: anyhow::Result<(StatusCode, String)>) -> Finding {
    match answer {
        Ok((StatusCode::OK, _)) => Finding::good("process", "runs and is ready"),
        Ok((_, why)) => {
            Finding::bad("process", format!("runs, {}", why.trim()), "see its log; a restart may help")
        }
        Err(error) => Finding::bad("process", format!("{error:#}"), "see its log"),
    }
}

/// What a scrape says.
struct Metrics(String);

impl Metrics {
    /// The sum over all series of this name; none if there is none.
    fn value(&self, name: &str) -> Option<f64> {
        let of_this = |line: &str| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok()).flatten()
        };
        self.0.lines().filter_map(of_this).reduce(|sum, value| sum + value)
    }

    /// The series of this name by their labels `source` and `key`. Names of sources have no quotes; a key id that
    /// has one is passed over.
    fn by_source_and_key(&self, name: &str) -> Vec<((String, String), f64)> {
        let label = |labels: &str, name: &str| {
            let begin = labels.find(&format!("{name}=\""))? + name.len() + 2;
            let rest = &labels[begin..];
            Some(rest[..rest.find('"')?].to_owned())
        };
        let of_this = |line: &str| {
            let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
            Some(((label(labels, "source")?, label(labels, "key")?), value.parse().ok()?))
        };
        self.0.lines().filter_map(of_this).collect()
    }
}

/// Of each secret that is on its way out, whether anybody uses it still.
fn key_uses(metrics: &Metrics, now: Timestamp) -> Vec<Finding> {
    let moment = |seconds: f64| Timestamp::from_second(seconds as i64).ok().filter(|_| seconds > 0.0);
    let since = metrics.value("process_start_time_seconds").and_then(moment).unwrap_or(now);
    let ends = metrics.by_source_and_key("chaski_secret_not_after_timestamp_seconds");
    let uses = metrics.by_source_and_key("chaski_secret_last_used_timestamp_seconds");
    let old = uses.into_iter().filter(|((_, key), _)| key.starts_with("previous"));
    old.map(|((source, key), used)| {
        let check = format!("secret {source} {key}");
        let end = ends.iter().find(|(labels, _)| labels.0 == source && labels.1 == key);
        let end = end.and_then(|(_, seconds)| moment(*seconds));
        let unused_since = moment(used).unwrap_or(since);
        let unused = now.duration_since(unused_since);
        let found = match moment(used) {
            Some(at) => format!("last used at {at}"),
            None => format!("not used since {since}"),
        };
        if unused >= UNUSED_FOR {
            Finding::good(check, format!("{found} by this process: if no other edge says otherwise, nobody uses it any more, and it can go"))
        } else if end.is_some_and(|end| end.duration_since(now) < ENDS_SOON) && moment(used).is_some() {
            let advice = "its sender has not changed over; give it more time (not_after)";
            Finding::warning(check, format!("{found}, and soon no longer good"), advice)
        } else {
            Finding::good(check, found)
        }
    })
    .collect()
}

/// What a process says of itself beside being ready.
fn standing(metrics: &Metrics) -> Vec<Finding> {
    let is = |name: &str, wanted: f64| metrics.value(name) == Some(wanted);
    let reloaded = metrics
        .value("chaski_config_last_reload_success_timestamp_seconds")
        .and_then(|seconds| Timestamp::from_second(seconds as i64).ok());
    let mut findings = vec![match reloaded {
        _ if is("chaski_config_last_reload_successful", 0.0) => Finding::bad(
            "last reload",
            "failed: the old configuration is in force",
            "`chaski reload` says why",
        ),
        Some(at) => Finding::good("last reload", format!("what is in force was read at {at}")),
        None => Finding::skipped("last reload", "not told"),
    }];
    if let Some(mode) = metrics.value("chaski_spool_mode") {
        let waiting = metrics.value("chaski_spool_records").unwrap_or_default();
        findings.push(if mode == 0.0 {
            Finding::good("spool", "events go to Kafka directly")
        } else {
            Finding::warning(
                "spool",
                format!("events go to the local disk, {waiting} wait there"),
                "see kafka, above or below",
            )
        });
    }
    if is("chaski_spool_poisoned", 1.0) {
        findings.push(Finding::bad(
            "store",
            "a sync failed, so that nothing is written any more or the log grows; or the spool could not be opened",
            "see its log, look after the disk, then restart",
        ));
    }
    let quarantined = metrics.value("chaski_quarantine_events").unwrap_or_default();
    if quarantined > 0.0 {
        findings.push(Finding::warning(
            "quarantine",
            format!("{quarantined} signed callbacks could not be used and are kept"),
            "chaski dead --quarantined",
        ));
    }
    if is("chaski_dedup_degraded", 1.0) {
        findings.push(Finding::warning(
            "dedup",
            "goes on without Redis: duplicates may come through",
            "see redis",
        ));
    }
    findings
}

/// How far a destination is.
fn delivery(view: &DestinationView, now: Timestamp) -> Finding {
    let progress = &view.progress;
    let check = format!("delivery {}", progress.destination);
    let age = progress.oldest_unsettled.map(|at| now.duration_since(at));
    let mut found = format!("{} behind, {} parked, {} dead", progress.lag, progress.parked, progress.dead);
    if let Some(age) = age {
        found.push_str(&format!("; the oldest has waited {} s", age.as_secs()));
    }
    let name = &progress.destination;
    let running = view.running.as_ref();
    let failure = running.and_then(|running| running.last_failure.as_deref()).unwrap_or("see its log");
    let failures = running.map_or(0, |running| running.consecutive_failures);
    let (verdict, advice) = match view.standing() {
        Standing::NotConfigured if progress.lag + progress.parked > 0 => {
            found.push_str("; not in the file");
            (Verdict::Warning, "nothing attempts these: put it back into the file, or let them go".to_owned())
        }
        Standing::Paused => {
            found.push_str("; paused");
            (Verdict::Warning, format!("chaski destinations resume {name}"))
        }
        Standing::Disabled => {
            found.push_str("; its receiver answers 410");
            let advice = "it wants no more: take it out, or mend it and redrive what is dead";
            (Verdict::Warning, advice.to_owned())
        }
        Standing::Breaker(breaker) => {
            found.push_str(&format!("; breaker {breaker}"));
            (Verdict::Bad, format!("its receiver fails: {failure}"))
        }
        _ if failures >= FAILURES_BAD => {
            found.push_str(&format!("; {failures} attempts in a row failed"));
            (Verdict::Bad, format!("its receiver fails: {failure}"))
        }
        _ if age.is_some_and(|age| age > OLDEST_BAD) => {
            (Verdict::Bad, format!("chaski destinations, chaski parked --destination {name}"))
        }
        _ if progress.dead > 0 => (Verdict::Warning, format!("chaski dead --destination {name}")),
        _ => (Verdict::Good, String::new()),
    };
    Finding::new(check, verdict, found, advice)
}

#[cfg(test)]
mod tests {
    use chaski_common::storage::{Position, Progress};

    use super::*;
    use crate::api::RunningView;

    #[test]
    fn an_address_is_free_or_ours() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 1));
        let taken = |kind: ErrorKind| Err(std::io::Error::from(kind));
        let verdict = |bound, is_served| address("edge address", listen, bound, is_served).verdict;
        assert_eq!(verdict(Ok(()), false), Verdict::Good);
        assert_eq!(verdict(Ok(()), true), Verdict::Warning);
        assert_eq!(verdict(taken(ErrorKind::AddrInUse), true), Verdict::Good);
        assert_eq!(verdict(taken(ErrorKind::AddrInUse), false), Verdict::Bad);
        assert_eq!(verdict(taken(ErrorKind::AddrNotAvailable), false), Verdict::Bad);
        assert_eq!(verdict(taken(ErrorKind::PermissionDenied), false), Verdict::Bad);
    }

    #[test]
    fn an_old_secret_is_told_of_by_its_last_use() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let told = |hours_since_start: i64, used: i64, not_after: i64| {
            let start = 1_800_000_000 - hours_since_start * 3600;
            let text = format!(
                "process_start_time_seconds {start}\n\
                 chaski_secret_last_used_timestamp_seconds{{key=\"current\",source=\"pe\"}} 1799999999\n\
                 chaski_secret_last_used_timestamp_seconds{{key=\"previous\",source=\"pe\"}} {used}\n\
                 chaski_secret_not_after_timestamp_seconds{{key=\"previous\",source=\"pe\"}} {not_after}\n"
            );
            let found = key_uses(&Metrics(text), now);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].check, "secret pe previous");
            (found[0].verdict, found[0].found.contains("it can go"))
        };
        let just_now = 1_799_999_990;
        assert_eq!(told(1, 0, 0), (Verdict::Good, false), "not watched for long enough");
        assert_eq!(told(72, 0, 0), (Verdict::Good, true));
        assert_eq!(told(100, just_now, 0), (Verdict::Good, false));
        assert_eq!(told(100, just_now, 1_800_000_000 + 3600), (Verdict::Warning, false));
        assert_eq!(told(100, just_now, 1_800_000_000 + 49 * 3600), (Verdict::Good, false));
        assert_eq!(told(500, 1_800_000_000 - 72 * 3600, 0), (Verdict::Good, true));
    }

    #[test]
    fn what_a_process_says_of_itself_is_judged() {
        let verdicts = |text: &str| {
            let told = "chaski_config_last_reload_success_timestamp_seconds 1.7e9\n";
            let found = standing(&Metrics(format!("{told}{text}")));
            found.into_iter().map(|finding| (finding.check, finding.verdict)).collect::<Vec<_>>()
        };
        let one = |check: &str, verdict| vec![(check.to_owned(), verdict)];
        assert_eq!(verdicts("chaski_config_last_reload_successful 1\n"), one("last reload", Verdict::Good));
        assert_eq!(verdicts("chaski_config_last_reload_successful 0\n"), one("last reload", Verdict::Bad));
        assert_eq!(verdicts("chaski_spool_mode 0\n")[1..], one("spool", Verdict::Good));
        assert_eq!(
            verdicts("chaski_spool_mode 2\nchaski_spool_records 7\n")[1..],
            one("spool", Verdict::Warning)
        );
        assert_eq!(verdicts("chaski_spool_poisoned 1\n")[1..], one("store", Verdict::Bad));
        let quarantine =
            |events: u8| verdicts(&format!("chaski_quarantine_events{{source=\"pe\"}} {events}\n"));
        assert_eq!(quarantine(0).len(), 1);
        assert_eq!(quarantine(2)[1..], one("quarantine", Verdict::Warning));
        assert_eq!(verdicts("chaski_dedup_degraded 1\n")[1..], one("dedup", Verdict::Warning));
        let metrics = Metrics("# HELP a b\na{x=\"1\"} 2\na{x=\"2\"} 3\nab 9\n".to_owned());
        assert_eq!((metrics.value("a"), metrics.value("b")), (Some(5.0), None));
    }

    #[test]
    fn a_destination_that_does_not_get_its_events_is_told_of() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let verdict = |change: &dyn Fn(&mut DestinationView)| {
            let progress = Progress {
                destination: Arc::from("erp"),
                mark: Position::default(),
                lag: 0,
                oldest_unsettled: None,
                paused: false,
                parked: 0,
                dead: 0,
                oldest_dead: None,
            };
            let running = RunningView {
                disabled: false,
                url: String::new(),
                breaker: "closed".to_owned(),
                in_flight: 0,
                consecutive_failures: 0,
                last_success: None,
                last_failure: None,
            };
            let mut view = DestinationView { progress, configured: true, replays: 0, running: Some(running) };
            change(&mut view);
            delivery(&view, now).verdict
        };
        let waited = |seconds: i64| now.checked_sub(SignedDuration::from_secs(seconds)).ok();
        assert_eq!(verdict(&|_| {}), Verdict::Good);
        assert_eq!(verdict(&|view| view.running = None), Verdict::Good);
        assert_eq!(verdict(&|view| view.progress.oldest_unsettled = waited(300)), Verdict::Good);
        assert_eq!(verdict(&|view| view.progress.oldest_unsettled = waited(301)), Verdict::Bad);
        assert_eq!(verdict(&|view| view.progress.dead = 1), Verdict::Warning);
        assert_eq!(verdict(&|view| view.progress.paused = true), Verdict::Warning);
        let open = |view: &mut DestinationView| {
            view.running.iter_mut().for_each(|running| running.breaker = "open".to_owned());
        };
        assert_eq!(verdict(&open), Verdict::Bad);
        let fails = |times| {
            move |view: &mut DestinationView| {
                view.running.iter_mut().for_each(|running| running.consecutive_failures = times);
            }
        };
        assert_eq!(verdict(&fails(4)), Verdict::Good);
        assert_eq!(verdict(&fails(5)), Verdict::Bad);
        let gone = |view: &mut DestinationView| {
            view.running.iter_mut().for_each(|running| running.disabled = true);
        };
        assert_eq!(verdict(&gone), Verdict::Warning);
        let gone_and_open = |view: &mut DestinationView| {
            gone(view);
            open(view);
        };
        assert_eq!(verdict(&gone_and_open), Verdict::Warning, "what `chaski destinations` says");
    }
}
