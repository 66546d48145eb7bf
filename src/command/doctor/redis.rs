//! Redis: whether it keeps the ids of events for as long as it is asked to. What it forgets comes through twice,
//! under one id; nothing is lost by it.

use chaski_common::storage::kafka::{self, REDIS_BYTES_PER_ID, Redis, RedisState};

use super::clock::OFF_BAD_SECONDS;
use super::disk::round;
use super::finding::Finding;

const CHECK: &str = "redis";
const MAJOR_MIN: u32 = 7;

pub(super) async fn check(settings: Redis, topic_prefix: String, rate_per_second: f64) -> Vec<Finding> {
    let address = kafka::redis_address(&settings.url).map(|address| address.shown).unwrap_or_default();
    match kafka::redis_state(&settings).await {
        Ok(states) => {
            // A cluster shares the ids out evenly.
            let ids = settings.window.as_secs_f64() * rate_per_second / states.len() as f64;
            let mut findings: Vec<_> = states.iter().flat_map(|state| judge(state, ids)).collect();
            let refused = match kafka::redis_refusal(&settings, &topic_prefix).await {
                Ok(None) => return findings,
                Ok(Some(refusal)) => refusal,
                Err(error) => crate::chain(&error),
            };
            // From inside of a script as well, where older servers have another code for it.
            let is_barred = refused.contains("NOPERM") || refused.contains("can't run this command");
            let (check, advice) = if is_barred {
                ("redis user", format!("let this user do SET, GET, DEL and EVAL on {topic_prefix}:*"))
            } else {
                (CHECK, "mend what it says".to_owned())
            };
            let advice = format!("{advice}; until then duplicates may come through");
            findings.push(Finding::bad(check, format!("{address}: {refused}"), advice));
            findings
        }
        Err(error) => {
            let found = format!("{address}: {}", crate::chain(&error));
            let advice = "start it, or mend [storage.dedup] redis; until then events are taken without it";
            vec![Finding::bad(CHECK, found, advice)]
        }
    }
}

/// Of one server, which is to have room for so many ids.
fn judge(state: &RedisState, ids: f64) -> Vec<Finding> {
    let RedisState { address, version, policy, .. } = state;
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    let found = format!("{address}: version {version}");
    let server = match major {
        _ if !state.misplaced.is_empty() => {
            Finding::bad(CHECK, format!("{address} is {}", state.misplaced), "mend [storage.dedup] redis")
        }
        Some(major) if major >= MAJOR_MIN => Finding::good(CHECK, found),
        Some(_) => Finding::bad(CHECK, found, format!("Redis {MAJOR_MIN} or later is needed")),
        None => Finding::warning(
            CHECK,
            format!("{address}: does not tell its version"),
            "allow INFO to this user",
        ),
    };
    let check = "redis eviction";
    let eviction = match &**policy {
        "noeviction" => Finding::good(check, format!("{address}: noeviction, what is remembered stays")),
        "" => Finding::skipped(check, format!("{address}: does not tell its maxmemory-policy")),
        _ => Finding::warning(
            check,
            format!(
                "{address}: maxmemory-policy {policy}, ids may be evicted, and their repeats come through"
            ),
            "CONFIG SET maxmemory-policy noeviction, and keep it in redis.conf",
        ),
    };
    let mut findings = vec![server, eviction, memory(state, ids)];
    if state.clock_ahead.abs() > OFF_BAD_SECONDS {
        let found = format!("{address}: its clock and ours are {:.0} s apart", state.clock_ahead.abs());
        findings.push(Finding::bad("redis clock", found, "let a time server keep both"));
    }
    findings
}

fn memory(state: &RedisState, ids: f64) -> Finding {
    let check = "redis memory";
    let need = (ids * REDIS_BYTES_PER_ID) as u64;
    let used = format!("{}: {}", state.address, round(state.used_bytes));
    match state.bytes_max {
        None => {
            Finding::good(check, format!("{used} in use, the window needs {}; no maxmemory", round(need)))
        }
        Some(max) => {
            let found = format!("{used} of {} in use, the window needs {}", round(max), round(need));
            let full = state.used_bytes >= max;
            if full || need > max {
                let advice = "raise maxmemory, or shorten dedup_window; check [storage.dedup] rate";
                Finding::warning(check, found, advice)
            } else {
                Finding::good(check, found)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn verdicts(change: impl Fn(&mut RedisState)) -> Vec<Verdict> {
        let mut state = RedisState {
            address: "cache:6379".to_owned(),
            version: "7.2.4".to_owned(),
            policy: "noeviction".to_owned(),
            ..RedisState::default()
        };
        change(&mut state);
        let found = judge(&state, 1e6);
        found.into_iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn redis_keeps_what_it_is_told() {
        use Verdict::{Bad, Good, Skipped, Warning};
        assert_eq!(verdicts(|_| {}), [Good, Good, Good]);
        assert_eq!(verdicts(|state| state.version = "6.2.1".to_owned())[0], Bad);
        assert_eq!(verdicts(|state| state.version = String::new())[0], Warning);
        assert_eq!(verdicts(|state| state.misplaced = "a replica, which takes no writes")[0], Bad);
        for policy in ["allkeys-lru", "volatile-ttl"] {
            assert_eq!(verdicts(|state| state.policy = policy.to_owned())[1], Warning);
        }
        assert_eq!(verdicts(|state| state.policy = String::new())[1], Skipped);
        // A million ids need 240 MB.
        assert_eq!(verdicts(|state| state.bytes_max = Some(1 << 30))[2], Good);
        assert_eq!(verdicts(|state| state.bytes_max = Some(100 << 20))[2], Warning);
        assert_eq!(verdicts(|state| state.clock_ahead = -31.0)[3..], [Bad]);
    }
}
