//! How a source signs: its preset with the file's own fields laid over it, complete, and compiled by the
//! edge, so that what cannot work is told with its line before anything runs.

use chaski_common::secret::Secret;
use chaski_ingest::location::Location;
use chaski_ingest::presets;
use chaski_ingest::source::{SchemeSpec, Secrets};
use chaski_ingest::verify::{Freshness, Scheme};

use super::Checker;
use super::problem::{Place, Reason, nearest};
use super::reader::Node;
use super::value::Entry;

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
        for part in ["signature", "event", "reply"] {
            let own = node.section(part).overrides();
            if !own.is_empty() {
                overlay(merged.entry(part).or_insert_with(|| toml::Table::new().into()), own.into());
            }
        }
        if !self.complete(node, &merged) {
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

    /// Whether the fields that have no default are there.
    fn complete(&mut self, node: &Node, merged: &toml::Table) -> bool {
        let signature = merged.get("signature");
        if signature.is_none() && !node.section("signature").given {
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
        let inside =
            |table: Option<&toml::Value>, key: &str| table.is_some_and(|table| table.get(key).is_some());
        let timestamp = signature.and_then(|signature| signature.get("timestamp"));
        let event = merged.get("event");
        let own = node.section("signature");
        let stamp = own.section("timestamp");
        let mut complete = true;
        let mut need = |is_there: bool, node: &Node, key: &str, hint: &str| {
            if !is_there && !node.writes(key) {
                self.report.refuse(&node.at(key), Reason::Missing, "missing", hint);
            }
            complete &= is_there;
        };
        need(inside(signature, "algorithm"), own, "algorithm", "write for example \"hmac-sha256\"");
        need(inside(signature, "from"), own, "from", "write for example \"header:x-signature\"");
        if timestamp.is_some() || stamp.given {
            need(inside(timestamp, "from"), stamp, "from", "write for example \"header:x-timestamp\"");
            need(inside(timestamp, "format"), stamp, "format", "write for example \"unix\"");
        }
        let identified = inside(event, "id") || inside(event, "fallback");
        need(
            identified,
            node.section("event"),
            "id",
            "write for example [\"json:/id\"], or fallback = \"body-sha256\"",
        );
        complete
    }

    /// What the edge makes of it; whatever it cannot work with is a problem.
    pub(super) fn compile(
        &mut self,
        node: &Node,
        spec: &SchemeSpec,
        secrets: Option<&Secrets>,
    ) -> Option<Scheme> {
        let places_are_good = self.check_places(node, spec);
        if http::HeaderValue::from_str(&spec.reply.content_type).is_err() {
            let at = node.section("reply").at("content_type");
            self.report.refuse(&at, Reason::Range, "not a header value", "write for example \"text/plain\"");
        }
        let stand_in = || match spec.signature.key.select {
            None => Secrets::Any(vec![Secret::new(STAND_IN).into()]),
            Some(_) => Secrets::ById([(String::new(), Secret::new(STAND_IN).into())].into()),
        };
        match Scheme::compile(spec, secrets.unwrap_or(&stand_in())) {
            Ok(scheme) => places_are_good.then_some(scheme),
            Err(error) => {
                // Of a secret that only stands in nothing is said.
                if secrets.is_some() || error.field != "secrets" {
                    self.report.refuse(
                        &place_of(node, &error.field),
                        Reason::Scheme,
                        error.wrong,
                        format!("write {}", error.right),
                    );
                }
                None
            }
        }
    }

    /// Whether every place that an event is read from is one.
    fn check_places(&mut self, node: &Node, spec: &SchemeSpec) -> bool {
        let event = node.section("event");
        let parts = event.texts("id").unwrap_or_default();
        let single =
            [("type", &spec.event.kind), ("subject", &spec.event.subject), ("time", &spec.event.time)];
        let single = single.into_iter().filter_map(|(key, place)| {
            place.clone().map(|text| (key, Entry { line: event.at(key).line, text }))
        });
        let mut good = true;
        for (key, entry) in parts.into_iter().map(|part| ("id", part)).chain(single) {
            if let Err(right) = Location::parse(&entry.text) {
                let at = Place { line: entry.line, ..event.at(key) };
                self.report.refuse(
                    &at,
                    Reason::Scheme,
                    format!("{:?} is no place", entry.text),
                    format!("write {right}"),
                );
                good = false;
            }
        }
        good
    }

    /// Says what the scheme does not protect.
    pub(super) fn warn_of(&mut self, node: &Node, scheme: &Scheme) {
        if matches!(scheme.freshness(), Freshness::Advisory { .. }) {
            let message =
                "the timestamp is not signed, so it is advisory; deduplication is the replay defence";
            self.report.warn(node.place(), message);
        }
        if !scheme.body_is_authenticated() {
            self.report
                .warn(node.place(), "the body is not signed: take an event as a hint, and ask the provider");
        }
    }
}

/// Where a field of the description is written: `signature.template`, seen from the source's own table.
fn place_of(node: &Node, field: &str) -> Place {
    match field.split_once('.') {
        Some((section, rest)) => match node.find(section) {
            Some(inner) => place_of(inner, rest),
            // A table of free names (`const`) has no nodes of its own: the field is named all the same.
            None => Place { key: node.at(field).key, ..node.at(section) },
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
