//! A source's secrets, as far as the configuration tells: a missing one has refused the file already. What is in use
//! of them only a running process knows, see `process`.

use chaski_ingest::source::{Secrets, SourceSpec};
use jiff::{SignedDuration, Timestamp};

use super::finding::Finding;
use crate::config::{key_of, weakness};

/// The last secret that is good is missed this long before it ends.
const ENDS_SOON: SignedDuration = SignedDuration::from_hours(14 * 24);

pub(super) fn judge(spec: &SourceSpec, now: Timestamp) -> Finding {
    let check = format!("source {}", spec.name);
    let environment = spec.environment.name();
    let secrets = spec.secrets.named();
    let mut found = match secrets.len() {
        1 => format!("{environment}, 1 secret"),
        count => format!("{environment}, {count} secrets"),
    };
    let good = || secrets.iter().map(|(_, dated)| dated.validity).filter(|validity| validity.covers(now));
    if good().next().is_none() {
        found.push_str(", none of which is good now: callbacks are answered 401");
        return Finding::bad(check, found, "mend not_before and not_after, or list the secret in use");
    }
    let how = &spec.scheme.signature.key;
    let weakness = |secret| weakness(secret, Some(&key_of(how, secret)));
    if let Some(weakness) = secrets.iter().find_map(|(_, dated)| weakness(&dated.secret)) {
        found.push_str(&format!("; {weakness}"));
        let advice = "ask the provider for a better one: whoever guesses it can make up payments";
        return Finding::warning(check, found, advice);
    }
    // The end of the last of them; there is none if one of them has none.
    let ends = good().map(|validity| validity.not_after).collect::<Option<Vec<_>>>();
    if let Some(end) = ends.and_then(|ends| ends.into_iter().max())
        && end.duration_since(now) < ENDS_SOON
        && !secrets
            .iter()
            .any(|(_, dated)| dated.validity.not_before.is_some_and(|from| now < from && from <= end))
    {
        found.push_str(&format!(", the last of which ends at {end}"));
        return Finding::warning(check, found, "list the secret that takes over");
    }
    if let Some((name, _)) = secrets.iter().find(|(_, dated)| dated.validity.is_over(now)) {
        found.push_str(&format!("; {name} is over"));
        return Finding::warning(check, found, "take it out");
    }
    // Of secrets with names of their own several are nothing special.
    if matches!(&spec.secrets, Secrets::Any(list) if list.len() > 1) {
        found.push_str("; a rotation is under way");
    }
    Finding::good(check, found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::finding::Verdict;
    use super::*;
    use crate::config::Config;

    fn found(secrets: &str) -> Finding {
        let text =
            format!("[sources.pe]\nprovider = 'pagoefectivo'\nsecrets = {secrets}\nweak_secret = 'allow'\n");
        let env = |name: &str| match name {
            "GOOD" => Some("Kq7vT2mXbR9sLwYd4HnZpF6cJ3gUeA8o".to_owned()),
            "OTHER" => Some("Vb6kP1zQw8RtY3uJh5NsXc9LmD2fGaEo".to_owned()),
            _ => Some("short".to_owned()),
        };
        let config = Config::parse(&text, Path::new("chaski.toml"), &env).unwrap();
        judge(&config.sources[0], "2026-11-22T00:00:00Z".parse().unwrap())
    }

    #[test]
    fn a_weak_secret_hides_not_that_none_is_good() {
        let over = "not_after = 2026-11-01T00:00:00Z";
        let found = found(&format!("[{{ secret = 'env:WEAK', {over} }}]"));
        assert_eq!(found.verdict, Verdict::Bad, "{found:?}");
    }

    #[test]
    fn secrets_are_counted_and_weak_ones_told() {
        assert_eq!(found("['env:GOOD']"), Finding::good("source pe", "production, 1 secret"));
        let rotating = found("['env:GOOD', 'env:OTHER']");
        assert_eq!(rotating.verdict, Verdict::Good);
        assert!(rotating.found.contains("rotation"), "{rotating:?}");
        assert_eq!(found("['env:GOOD', 'env:WEAK']").verdict, Verdict::Warning);
    }

    #[test]
    fn a_source_without_a_good_secret_now_or_soon_is_told_of() {
        let good = |span: &str| format!("{{ secret = 'env:GOOD', {span} }}");
        let other = |span: &str| format!("{{ secret = 'env:OTHER', {span} }}");
        let verdict = |list: &[String]| found(&format!("[{}]", list.join(", "))).verdict;
        for (list, expected) in [
            (vec![good("not_after = '2027-11-22T00:00:00Z'")], Verdict::Good),
            (vec![good("not_after = '2026-12-01T00:00:00Z'")], Verdict::Warning),
            (vec![good("not_after = '2026-11-21T23:59:59Z'")], Verdict::Bad),
            (vec![good("not_before = '2026-11-22T00:00:01Z'")], Verdict::Bad),
            // The next one takes over, in time and too late.
            (
                vec![
                    other("not_before = '2026-11-30T00:00:00Z'"),
                    good("not_after = '2026-12-01T00:00:00Z'"),
                ],
                Verdict::Good,
            ),
            (
                vec![
                    other("not_before = '2026-12-02T00:00:00Z'"),
                    good("not_after = '2026-12-01T00:00:00Z'"),
                ],
                Verdict::Warning,
            ),
            (vec!["'env:OTHER'".to_owned(), good("not_after = '2026-11-01T00:00:00Z'")], Verdict::Warning),
            (vec!["'env:OTHER'".to_owned(), good("not_after = '2026-12-01T00:00:00Z'")], Verdict::Good),
        ] {
            assert_eq!(verdict(&list), expected, "{list:?}");
        }
    }
}
