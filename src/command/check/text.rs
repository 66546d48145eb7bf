//! An [`Explanation`] for people.

use std::fmt::Write as _;
use std::time::Duration;

use chaski_common::storage::OnConflict;
use chaski_ingest::source::SchemeSpec;

use super::{Destination, Explanation, SharedDedup, Source, SourceKey, Storage, Traces};
use crate::config::{spell_duration, spell_rate};

impl Explanation {
    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let tls = if self.ingest.tls { "TLS" } else { "clear text" };
        let token = if self.admin.token { "with a token" } else { "without a token" };
        writeln!(out, "edge     {} ({tls}), bodies up to {}", self.ingest.listen, self.ingest.max_body)?;
        writeln!(out, "admin    {} ({token})", self.admin.listen)?;
        self.storage.write(out)?;
        self.sources.iter().try_for_each(|source| source.write(out))?;
        self.destinations.iter().try_for_each(|destination| destination.write(out))?;
        let told: Vec<String> =
            self.alerts.iter().map(|receiver| format!("{} ({})", receiver.name, receiver.kind)).collect();
        if !told.is_empty() {
            writeln!(out, "\nalerts   to {}; `chaski alerts test` tries them", told.join(", "))?;
        }
        if let Some(Traces { url, sampling }) = &self.traces {
            writeln!(out, "\ntraces   to {url}, of {}% of the events that bring none", sampling * 100.0)?;
        }
        if !self.warnings.is_empty() {
            writeln!(out, "\nwarnings")?;
            self.warnings.iter().try_for_each(|warning| writeln!(out, "  {warning}"))?;
        }
        Ok(())
    }
}

impl Storage {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Self { kind, path, retention, parked_max, kafka } = self;
        let bounds = format!("kept {retention}, at most {parked_max} parked per destination");
        let Some(kafka) = kafka else {
            return writeln!(out, "storage  {kind} in {}, {bounds}", path.as_deref().unwrap_or_default());
        };
        writeln!(
            out,
            "storage  {kind} at {}, topics {}.*, {} partitions, {} copies, {bounds}",
            kafka.brokers.join(", "),
            kafka.topic_prefix,
            kafka.partitions,
            kafka.replication
        )?;
        if !kafka.settings.is_empty() {
            writeln!(out, "         client settings: {}", kafka.settings.join(", "))?;
        }
        let spool =
            path.as_ref().map_or("none: 503 while Kafka is away".to_owned(), |path| format!("in {path}"));
        writeln!(out, "spool    {spool}")?;
        match &kafka.dedup {
            None => writeln!(out, "dedup    in each edge's own memory"),
            Some(SharedDedup { redis, window, rate_per_second, memory_bytes }) => writeln!(
                out,
                "dedup    Redis at {redis}; ids of {window} at {} need {} MiB there",
                spell_rate(*rate_per_second),
                memory_bytes.div_ceil(1 << 20)
            ),
        }
    }
}

impl Source {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\nsource {} ({})", self.name, self.environment)?;
        writeln!(out, "  url          POST {}", self.url)?;
        writeln!(
            out,
            "  provider     {}",
            self.provider.as_deref().unwrap_or("none, described in the file")
        )?;
        writeln!(out, "  secrets      {}", self.secrets)?;
        self.keys.iter().try_for_each(|key| key.write(out))?;
        let body = match self.signed_fields.join(", ") {
            _ if self.body_is_signed => "signed".to_owned(),
            none if none.is_empty() => "NOT signed: take an event as a hint and ask the provider".to_owned(),
            fields => format!("NOT signed as a whole, only the fields {fields}: believe nothing else in it"),
        };
        writeln!(out, "  body         {body}")?;
        writeln!(out, "  freshness    {}", self.freshness_rule)?;
        let conflict = match self.on_conflict {
            OnConflict::Quarantine => "quarantined",
            OnConflict::Duplicate => "taken for a resend",
        };
        writeln!(
            out,
            "  duplicates   recognised for {}; same id with other content is {conflict}",
            self.dedup_window
        )?;
        if !self.allow_ips.is_empty() {
            writeln!(out, "  peers        {}", self.allow_ips.join(", "))?;
        }
        writeln!(out, "  goes to      {}", listed(&self.destinations, "nowhere"))?;
        writeln!(out, "  scheme")?;
        let scheme = as_in_the_file(&self.scheme);
        scheme
            .lines()
            .try_for_each(|line| if line.is_empty() { writeln!(out) } else { writeln!(out, "    {line}") })
    }
}

impl SourceKey {
    /// Nothing of one that is good at any time.
    fn write(&self, out: &mut String) -> std::fmt::Result {
        let ends = [("from", self.not_before), ("until", self.not_after)];
        let span: Vec<_> =
            ends.into_iter().filter_map(|(word, at)| at.map(|at| format!("{word} {at}"))).collect();
        if span.is_empty() {
            return Ok(());
        }
        let now = if self.good { "" } else { ": NOT good now" };
        writeln!(out, "               {} {}{now}", self.name, span.join(" "))
    }
}

impl Destination {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\ndestination {}", self.name)?;
        writeln!(out, "  url          POST {}", self.url)?;
        writeln!(
            out,
            "  takes        {} from {}",
            listed(&self.events, "every type"),
            listed(&self.sources, "no source")
        )?;
        let signed = match self.signing_secrets {
            0 => "no".to_owned(),
            count => format!("Standard Webhooks, {count} secret{}", if count == 1 { "" } else { "s" }),
        };
        writeln!(out, "  signed       {signed}")?;
        writeln!(out, "  credential   {}", self.auth.as_deref().unwrap_or("none"))?;
        let rate =
            self.rate_per_second.map_or_else(String::new, |rate| format!(", at most {}", spell_rate(rate)));
        writeln!(
            out,
            "  attempts     {} at once{rate}, {} each, ordering {}",
            self.concurrency, self.timeout, self.ordering
        )?;
        writeln!(out, "  starts       {}", self.start)?;
        let more = match self.retries_more {
            0 => String::new(),
            count => format!(", and {count} more"),
        };
        writeln!(out, "  retries      at the latest after {}{more}", listed(&self.retries, "never"))?;
        writeln!(
            out,
            "  gives up     {} after the first attempt, then it is a dead letter",
            self.give_up_after
        )
    }
}

/// A description as the file would have it: durations with units, nothing that is empty.
fn as_in_the_file(scheme: &SchemeSpec) -> String {
    fn tidy(table: &mut toml::Table) {
        for (key, value) in table.iter_mut() {
            match value {
                toml::Value::Table(inner) => tidy(inner),
                toml::Value::Integer(seconds) if ["past", "future", "max_age"].contains(&key.as_str()) => {
                    let duration = Duration::from_secs(u64::try_from(*seconds).unwrap_or(0));
                    *value = toml::Value::String(spell_duration(duration));
                }
                _ => {}
            }
        }
        // An empty reply body is not the same as none.
        table.retain(|key, value| match value {
            toml::Value::Table(inner) => !inner.is_empty(),
            toml::Value::Array(list) => !list.is_empty(),
            toml::Value::String(text) => !text.is_empty() || key == "body",
            _ => true,
        });
    }
    let mut table = toml::Table::try_from(scheme).unwrap_or_default();
    tidy(&mut table);
    toml::to_string(&table).unwrap_or_default()
}

fn listed(list: &[String], none: &str) -> String {
    if list.is_empty() { none.to_owned() } else { list.join(", ") }
}
