//! A source's secrets, as far as the configuration tells: a missing one has refused the file already.

use chaski_ingest::source::{Secrets, SourceSpec};

use super::finding::Finding;
use crate::config::weakness;

pub(super) fn judge(spec: &SourceSpec) -> Finding {
    let check = format!("source {}", spec.name);
    let environment = spec.environment.name();
    let (secrets, is_rotating) = match &spec.secrets {
        Secrets::Any(list) => (list.iter().collect::<Vec<_>>(), list.len() > 1),
        // Each has a name of its own, so several of them are nothing special.
        Secrets::ById(table) => (table.values().collect(), false),
    };
    if let Some(weakness) = secrets.iter().find_map(|secret| weakness(secret)) {
        let advice = "ask the provider for a better one: whoever guesses it can make up payments";
        return Finding::warning(check, format!("{environment}, {weakness}"), advice);
    }
    let mut found = match secrets.len() {
        1 => format!("{environment}, 1 secret"),
        count => format!("{environment}, {count} secrets"),
    };
    if is_rotating {
        found.push_str("; a rotation is under way: take the old one out when its use ends (chaski_edge_signature_verified_total{key=\"previous\"})");
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
        judge(&config.sources[0])
    }

    #[test]
    fn secrets_are_counted_and_weak_ones_told() {
        assert_eq!(found("['env:GOOD']"), Finding::good("source pe", "production, 1 secret"));
        let rotating = found("['env:GOOD', 'env:OTHER']");
        assert_eq!(rotating.verdict, Verdict::Good);
        assert!(rotating.found.contains("rotation"), "{rotating:?}");
        assert_eq!(found("['env:GOOD', 'env:WEAK']").verdict, Verdict::Warning);
    }
}
