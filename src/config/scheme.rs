//! How a source signs: its preset with the file's own fields laid over it, complete, and compiled by the
//! edge, so that what cannot work is told with its line before anything runs.

use std::time::Duration;

use chaski_common::secret::Secret;
use chaski_ingest::location::Location;
use chaski_ingest::presets;
use chaski_ingest::source::{EventSpec, SchemeSpec, Secrets};
use chaski_ingest::verify::{Cover, Freshness, Scheme};

use super::Checker;
use super::problem::{Place, Reason, nearest};
use super::reader::Node;
use super::units::spell_duration;

/// The oldest a request may be, unless the preset takes older ones.
const PAST_MAX: Duration = Duration::from_secs(3600);
/// Stands in for secrets that could not be loaded, so that the rest of the scheme is checked all the same.
/// It is text, hex and base64 alike.
const STAND_IN: &str = "00112233445566778899aabbccddeeff";

impl Checker<'_> {
    /// The preset with the file's own fields laid over it.
    pub(super) fn described(&mut self, node: &Node) -> Option<SchemeSpec> {
        let mut merged = match node.text("provider") {
            Some(provider) => {
                let Some(text) = presets::text(&provider) else {
                    let near = nearest(&provider, presets::names().iter().copied());
                    let hint = near.map_or_else(preset_list, |near| format!("did you mean \"{near}\"?"));
                    self.report.refuse(&node.at("provider"), Reason::Range, "no such preset", hint);
                    return None;
                };
                text.parse::<toml::Table>().ok()?
            }
            None => toml::Table::new(),
        };
        self.check_past(node, &merged);
        for part in ["signature", "event", "reply"] {
            let own = node.section(part).overrides();
            if !own.is_empty() {
                overlay(merged.entry(part).or_insert_with(|| toml::Table::new().into()), own.into());
            }
        }
        if !self.complete(node, &mut merged) {
            return None;
        }
        match merged.try_into::<SchemeSpec>() {
            Ok(scheme) => Some(scheme),
            Err(error) => {
                self.report.refuse(node.section("signature").place(), Reason::Scheme, error.message(), "");
                None
            }
        }
    }

    /// Refuses to take requests so old that they could be replayed for long. A preset may know of a sender that needs one,
    /// and what it says may be said again.
    fn check_past(&mut self, node: &Node, preset: &toml::Table) {
        let own = node.section("signature").section("timestamp");
        let preset = preset.get("signature").and_then(|signature| signature.get("timestamp"));
        let seconds = preset.and_then(|preset| preset.get("past")?.as_integer()).unwrap_or_default();
        let most = PAST_MAX.max(Duration::from_secs(seconds.unsigned_abs()));
        let given = own.duration("past");
        if given > most {
            let [most, given] = [most, given].map(spell_duration);
            let message = format!("must be from 1s to {most}, not {given}");
            self.report.refuse(&own.at("past"), Reason::Range, message, "");
        }
    }

    /// Puts something in place of the fields that have no default and are not there, so that the others are looked
    /// at all the same; false where there is no description at all.
    fn complete(&mut self, node: &Node, merged: &mut toml::Table) -> bool {
        let own = node.section("signature");
        if !merged.contains_key("signature") && !own.given {
            if node.writes("provider") || node.writes("signature") {
                return false;
            }
            let hint = format!(
                "set provider, or describe the scheme in [{}.signature]; {}",
                node.place().key,
                preset_list()
            );
            self.report.refuse(node.place(), Reason::Missing, "neither provider nor signature", hint);
            return false;
        }
        let signature = table(merged, "signature");
        self.need_inside(signature, own, "algorithm", "hmac-sha256");
        self.need_inside(signature, own, "from", "header:x-signature");
        let own = own.section("timestamp");
        if signature.contains_key("timestamp") || own.given {
            let timestamp = table(signature, "timestamp");
            self.need_inside(timestamp, own, "from", "header:x-timestamp");
            self.need_inside(timestamp, own, "format", "unix");
        }
        let (event, own) = (table(merged, "event"), node.section("event"));
        if !event.contains_key("id") && !event.contains_key("fallback") {
            if !own.writes("id") && !own.writes("fallback") {
                let hint = "write for example [\"json:/id\"], or fallback = \"body-sha256\"";
                self.report.refuse(&own.at("id"), Reason::Missing, "missing", hint);
            }
            event.insert("fallback".to_owned(), "body-sha256".into());
        }
        true
    }

    /// Refuses the absence of a field, and puts an example there.
    fn need_inside(&mut self, table: &mut toml::Table, own: &Node, key: &str, example: &str) {
        if !table.contains_key(key) {
            self.need(own, key, &format!("write for example {example:?}"));
            table.insert(key.to_owned(), example.into());
        }
    }

    /// What the edge makes of it; whatever it cannot work with is a problem.
    pub(super) fn compile(
        &mut self,
        node: &Node,
        spec: &SchemeSpec,
        secrets: Option<&Secrets>,
    ) -> Option<Scheme> {
        let stand_in = || match spec.signature.key.select {
            None => Secrets::Any(vec![Secret::new(STAND_IN).into()]),
            Some(_) => Secrets::ById([(String::new(), Secret::new(STAND_IN).into())].into()),
        };
        let errors = match spec.check(secrets.unwrap_or(&stand_in())) {
            Ok(scheme) => return Some(scheme),
            Err(errors) => errors,
        };
        // Of a secret that only stands in nothing is said.
        for error in errors.into_iter().filter(|error| secrets.is_some() || error.field != "secrets") {
            let at = place_of(node, &error.field);
            self.report.refuse(&at, Reason::Scheme, error.wrong, format!("write {}", error.right));
        }
        None
    }

    /// Says what the scheme does not protect.
    pub(super) fn warn_of(&mut self, node: &Node, scheme: &Scheme, event: &EventSpec) {
        if matches!(scheme.freshness(), Freshness::Advisory { .. }) {
            let message =
                "the timestamp is not signed, so it is advisory; deduplication is the replay defence";
            self.report.warn(node.place(), message);
        }
        let message = match scheme.cover() {
            Cover::Body => {
                let mut parts: Vec<String> =
                    unsigned(scheme, &event.id).map(|place| format!("id ({place})")).collect();
                for (name, place) in [("type", &event.kind), ("subject", &event.subject)] {
                    parts.extend(unsigned(scheme, place).map(|place| format!("{name} ({place})")));
                }
                if parts.is_empty() {
                    return;
                }
                format!(
                    "not signed: {}; whoever has a signed request can send its body again with others, as another event",
                    parts.join(", ")
                )
            }
            Cover::Fields(fields) => {
                let fields: Vec<String> = fields.iter().map(ToString::to_string).collect();
                let fields = fields.join(", ");
                format!(
                    "the body is not signed as a whole, only the fields {fields}: believe nothing else in it"
                )
            }
            Cover::Nothing => {
                "the body is not signed: take an event as a hint, and ask the provider".to_owned()
            }
        };
        self.report.warn(node.place(), message);
    }
}

/// The places among these that the signature does not cover.
pub(super) fn unsigned<'p>(
    scheme: &Scheme,
    places: impl IntoIterator<Item = &'p String>,
) -> impl Iterator<Item = &'p String> {
    places.into_iter().filter(|place| Location::parse(place).is_ok_and(|place| !scheme.covers(&place)))
}

/// A table in a table, made if it is not there.
fn table<'t>(tables: &'t mut toml::Table, name: &str) -> &'t mut toml::Table {
    let inner = tables.entry(name).or_insert_with(|| toml::Table::new().into());
    inner.as_table_mut().expect("the reader takes nothing but a table here, and the presets have them")
}

/// Where a field of the description is written: `signature.template`, seen from the source's own table.
fn place_of(node: &Node, field: &str) -> Place {
    match field.split_once('.') {
        Some((section, rest)) => match (node.find(section), rest.parse::<usize>()) {
            (Some(inner), _) => place_of(inner, rest),
            // An entry of a list, if the list is the file's own.
            (None, Ok(index)) => {
                let entry = node.texts(section).and_then(|list| list.into_iter().nth(index));
                let at = node.at(section);
                Place { line: entry.filter(|_| node.has(section)).map_or(at.line, |entry| entry.line), ..at }
            }
            // A table of free names (`const`) has no nodes of its own: the field is named all the same.
            (None, Err(_)) => Place { key: node.at(field).key, ..node.at(section) },
        },
        // The secrets stand at the source or at its key.
        None if field == "secrets" && !node.has("secrets") => {
            node.section("signature").section("key").at(field)
        }
        None => node.find(field).map_or_else(|| node.at(field), |inner| inner.place().clone()),
    }
}

fn preset_list() -> String {
    format!("presets: {}", presets::names().join(", "))
}

/// Lays `over` on `base`, table by table; anything else replaces.
fn overlay(base: &mut toml::Value, over: toml::Value) {
    match (base, over) {
        (toml::Value::Table(base), toml::Value::Table(over)) => {
            for (key, value) in over {
                match base.get_mut(&key) {
                    Some(inner) => overlay(inner, value),
                    None => drop(base.insert(key, value)),
                }
            }
        }
        (base, over) => *base = over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_replaces_single_fields() {
        let mut base = "[a]\nx = 1\ny = [1, 2]\n[a.b]\nz = 1".parse::<toml::Table>().unwrap().into();
        let over = "[a]\ny = [3]\n[a.b]\nw = 2\n[c]\nv = 1".parse::<toml::Table>().unwrap().into();
        overlay(&mut base, over);
        let expected = "[a]\nx = 1\ny = [3]\n[a.b]\nz = 1\nw = 2\n[c]\nv = 1".parse::<toml::Table>().unwrap();
        assert_eq!(base, expected.into());
    }
}
