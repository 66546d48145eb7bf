//! From text to a tree of values that are known, of the right kind and inside their bounds.
//!
//! Reads against the table in `settings`; reports every unknown key and every wrong value, and goes on.
//! A setting that was left out or refused answers with its default, so that the later rules can be held
//! against the rest of the file in the same pass.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Place, Reason, Report, nearest};
use super::settings::{FILE, Section, Setting};
use super::value::{Entry, Kind, Lines, Value};

/// Most syntax errors reported of one file: one slip can cause many.
const SYNTAX_ERRORS_MAX: usize = 10;

/// What other gateways call it, and where it is here.
const OTHER_NAMES: &[(&str, &str)] = &[("tolerance", "signature.timestamp.past and .future")];

/// A table of the file, or the defaults where it is not written.
#[derive(Debug)]
pub(super) struct Node {
    place: Place,
    /// Whether the file has this table.
    pub(super) given: bool,
    /// The keys and tables the file writes here, also those that were refused.
    written: BTreeSet<&'static str>,
    section: &'static Section,
    values: BTreeMap<&'static str, (usize, Value)>,
    sections: BTreeMap<&'static str, Node>,
    /// The tables whose names are the operator's, in the order of the file.
    pub(super) each: Vec<(String, Node)>,
}

/// Reads the text; `None` when it is not TOML.
pub(super) fn read(text: &str, report: &mut Report) -> Option<Node> {
    let lines = Lines::new(text);
    let (tree, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Some(Reader { lines, report }.node(&FILE, Place::file(), Some(tree.get_ref())));
    }
    let mut told = BTreeSet::new();
    for error in &errors {
        let line = error.span().map_or(0, |span| lines.of(span.start));
        // What follows on the same line is most often the same slip again.
        if told.len() == SYNTAX_ERRORS_MAX || !told.insert(line) {
            continue;
        }
        // The message only: the rendered error would show the line, and with it perhaps a secret.
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        let hint = if message == "duplicate key" {
            "keep one of the two"
        } else if message.contains("expected `") {
            ""
        } else {
            "write a text in quotes, as in key = \"text\""
        };
        report.refuse(&Place { line, key: key_on(text, line) }, Reason::Syntax, message, hint);
    }
    None
}

/// The key that a line of a text which is not TOML is about, or the table it stands in. Only names that the table of
/// settings knows are told: anything else may be a piece of a value, and that a secret.
fn key_on(text: &str, line: usize) -> String {
    let is_header = |line: &&str| line.starts_with('[');
    let above: Vec<&str> = text.lines().take(line).map(str::trim).collect();
    let header = above.iter().rev().copied().find(is_header).unwrap_or_default();
    let table = header.trim_start_matches('[').split(']').next().unwrap_or_default().trim();
    let here = above.last().copied().filter(|line| !is_header(line)).unwrap_or_default();
    let key = here.split('=').next().unwrap_or_default().trim();
    let full = if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") };
    [full.as_str(), table].into_iter().find(|path| is_known(path)).unwrap_or_default().to_owned()
}

/// Whether a full key is one of the table of settings.
fn is_known(path: &str) -> bool {
    let mut section = Some(&FILE);
    for name in path.split('.') {
        let Some(here) = section else { return false };
        section = here.section(name).or(here.each.filter(|_| is_name(name)));
        if section.is_none() && here.setting(name).is_none() {
            return false;
        }
    }
    true
}

/// Names appear in paths, metrics and record keys.
fn is_name(name: &str) -> bool {
    let inside =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    name.len() <= 64
        && name.bytes().all(inside)
        && name.bytes().next().is_some_and(|first| first.is_ascii_lowercase() || first.is_ascii_digit())
}

struct Reader<'a> {
    lines: Lines,
    report: &'a mut Report,
}

impl Reader<'_> {
    fn node(&mut self, section: &'static Section, place: Place, table: Option<&DeTable<'_>>) -> Node {
        let mut node = Node {
            given: table.is_some(),
            written: BTreeSet::new(),
            section,
            values: BTreeMap::new(),
            sections: BTreeMap::new(),
            each: Vec::new(),
            place,
        };
        for (key, value) in table.into_iter().flatten() {
            let name: &str = key.get_ref();
            let place = Place { line: self.lines.of(key.span().start), key: join(&node.place.key, name) };
            if let Some(setting) = section.setting(name) {
                node.written.insert(setting.key);
                self.value(&mut node, setting, &place, value);
            } else if let Some(inner) = section.section(name) {
                node.written.insert(inner.name);
                if let Some(table) = self.table(&place, value) {
                    let read = self.node(inner, place, Some(table));
                    node.sections.insert(inner.name, read);
                }
            } else if let Some(inner) = section.each {
                if let (Some(table), true) = (self.table(&place, value), self.name(&place, name)) {
                    let read = self.node(inner, place, Some(table));
                    node.each.push((name.to_owned(), read));
                }
            } else {
                self.unknown(section, &place, name);
            }
        }
        node.each.sort_by_key(|(_, each)| each.place.line);
        for inner in section.sections {
            if !node.sections.contains_key(inner.name) {
                let place = Place { line: node.place.line, key: join(&node.place.key, inner.name) };
                let absent = self.node(inner, place, None);
                node.sections.insert(inner.name, absent);
            }
        }
        node
    }

    fn value(
        &mut self,
        node: &mut Node,
        setting: &'static Setting,
        place: &Place,
        value: &Spanned<DeValue<'_>>,
    ) {
        match setting.kind.read(value, &self.lines) {
            Ok(read) => {
                node.values.insert(setting.key, (place.line, read));
            }
            Err(refusals) => {
                for (line, (reason, message, hint)) in refusals {
                    let at = Place { line, key: place.key.clone() };
                    self.report.refuse(&at, reason, message, hint);
                }
            }
        }
    }

    fn table<'t, 'i>(&mut self, place: &Place, value: &'t Spanned<DeValue<'i>>) -> Option<&'t DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let hint = format!("write [{}] and its keys below", place.key);
            self.report.refuse(place, Reason::Range, "must be a table", hint);
        }
        table
    }

    fn name(&mut self, place: &Place, name: &str) -> bool {
        let good = is_name(name);
        if !good {
            let hint = "use a to z, 0 to 9, _ and -, at most 64, a letter or digit first";
            self.report.refuse(place, Reason::Range, "not a name", hint);
        }
        good
    }

    fn unknown(&mut self, section: &'static Section, place: &Place, name: &str) {
        let here = section
            .settings
            .iter()
            .map(|setting| setting.key)
            .chain(section.sections.iter().map(|inner| inner.name));
        let hint = match nearest(name, here.clone()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => match (elsewhere(section, name), renamed(section, name)) {
                (Some(path), _) => format!("it belongs in {}", join(&parent_of(&place.key), &path)),
                (None, Some(path)) => {
                    format!("did you mean {}?", format_args!("{}.{path}", parent_of(&place.key)))
                }
                (None, None) => format!("known here: {}", here.collect::<Vec<_>>().join(", ")),
            },
        };
        self.report.refuse(place, Reason::UnknownKey, "unknown key", hint);
    }
}

/// Where below this section a key of that name exists.
fn elsewhere(section: &'static Section, name: &str) -> Option<String> {
    section.sections.iter().find_map(|inner| {
        if inner.setting(name).is_some() {
            return Some(inner.name.to_owned());
        }
        elsewhere(inner, name).map(|path| join(inner.name, &path))
    })
}

/// The place of a key under its name here.
fn renamed(section: &'static Section, name: &str) -> Option<&'static str> {
    let other = nearest(name, OTHER_NAMES.iter().map(|(other, _)| *other))?;
    let (_, here) = OTHER_NAMES.iter().find(|(known, _)| *known == other)?;
    section.section(here.split('.').next()?).map(|_| *here)
}

fn parent_of(key: &str) -> String {
    key.rsplit_once('.').map_or_else(String::new, |(parent, _)| parent.to_owned())
}

/// A key as TOML writes it, safe to print.
fn join(parent: &str, name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' || byte == b'.');
    let name =
        if bare { name.to_owned() } else { format!("{:?}", name.chars().take(64).collect::<String>()) };
    if parent.is_empty() { name } else { format!("{parent}.{name}") }
}

impl Node {
    /// Where this table begins.
    pub(super) const fn place(&self) -> &Place {
        &self.place
    }

    /// Whether the file says nothing here that is known.
    pub(super) fn is_empty(&self) -> bool {
        self.written.is_empty()
    }

    /// Where a key is, or would be.
    pub(super) fn at(&self, key: &str) -> Place {
        let line = self.values.get(key).map_or(self.place.line, |(line, _)| *line);
        Place { line, key: join(&self.place.key, key) }
    }

    /// A table inside; it answers with defaults if the file does not have it.
    pub(super) fn section(&self, name: &str) -> &Self {
        &self.sections[name]
    }

    /// Whether the file sets this key, to a value of the right kind.
    pub(super) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A table inside, if there is one of that name.
    pub(super) fn find(&self, name: &str) -> Option<&Self> {
        self.sections.get(name)
    }

    /// Whether the file sets any key here to a value of the wrong kind, which is reported already: to hold the
    /// others against its default would report what nobody wrote.
    pub(super) fn has_wrong(&self) -> bool {
        self.written.iter().any(|key| self.section.setting(key).is_some() && !self.has(key))
    }

    /// Whether the file writes this key or table, be it right or wrong.
    pub(super) fn writes(&self, name: &str) -> bool {
        self.written.contains(name)
    }

    /// What the file says, else the default, else nothing.
    pub(super) fn value(&self, key: &str) -> Option<Value> {
        let setting = self.section.setting(key)?;
        match self.values.get(key) {
            Some((_, value)) => Some(value.clone()),
            None => default(setting),
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<String> {
        match self.value(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn texts(&self, key: &str) -> Option<Vec<Entry>> {
        match self.value(key) {
            Some(Value::Texts(list)) => Some(list),
            _ => None,
        }
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        self.value(key) == Some(Value::Flag(true))
    }

    pub(super) fn integer(&self, key: &str) -> u64 {
        match self.value(key) {
            Some(Value::Integer(number) | Value::Size(number)) => number,
            _ => 0,
        }
    }

    pub(super) fn count(&self, key: &str) -> usize {
        usize::try_from(self.integer(key)).unwrap_or(usize::MAX)
    }

    pub(super) fn number(&self, key: &str) -> Option<f64> {
        match self.value(key) {
            Some(Value::Number(number)) => Some(number),
            _ => None,
        }
    }

    pub(super) fn duration(&self, key: &str) -> Duration {
        match self.value(key) {
            Some(Value::Duration(duration)) => duration,
            _ => Duration::ZERO,
        }
    }

    pub(super) fn address(&self, key: &str) -> SocketAddr {
        match self.value(key) {
            Some(Value::Address(address)) => address,
            _ => SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }

    /// What the file itself says here and below, as plain TOML: durations in whole seconds, no secrets.
    pub(super) fn overrides(&self) -> toml::Table {
        let mut table = toml::Table::new();
        for (key, (_, value)) in &self.values {
            if matches!(
                self.section.setting(key).map(|setting| setting.kind),
                Some(Kind::SecretSet | Kind::Secrets | Kind::Secret)
            ) {
                continue;
            }
            table.extend(plain(value).map(|value| ((*key).to_owned(), value)));
        }
        for (name, inner) in self.sections.iter().filter(|(_, inner)| inner.given) {
            table.insert((*name).to_owned(), toml::Value::Table(inner.overrides()));
        }
        table
    }
}

/// None for secrets.
fn plain(value: &Value) -> Option<toml::Value> {
    // Every number of the table of settings is far below 2^63.
    let number = |number: u64| toml::Value::Integer(i64::try_from(number).unwrap_or(i64::MAX));
    Some(match value {
        Value::Dated(_) | Value::DatedTable(_) => return None,
        Value::Text(text) => toml::Value::String(text.clone()),
        Value::Texts(list) => {
            list.iter().map(|entry| toml::Value::String(entry.text.clone())).collect::<Vec<_>>().into()
        }
        Value::Table(table) => toml::Value::Table(
            table
                .iter()
                .map(|(name, entry)| (name.clone(), toml::Value::String(entry.text.clone())))
                .collect(),
        ),
        Value::Flag(flag) => toml::Value::Boolean(*flag),
        Value::Integer(count) | Value::Size(count) => number(*count),
        Value::Number(value) => toml::Value::Float(*value),
        Value::Duration(duration) => number(duration.as_secs()),
        Value::Durations(list) => {
            list.iter().map(|duration| number(duration.as_secs())).collect::<Vec<_>>().into()
        }
        Value::Address(address) => toml::Value::String(address.to_string()),
    })
}

/// The default of a setting; the table's own test reads every one of them.
pub(super) fn default(setting: &Setting) -> Option<Value> {
    setting.kind.read(&DeValue::parse(setting.default?).ok()?, &Lines::default()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_setting(section: &'static Section, check: &mut dyn FnMut(&'static Setting)) {
        section.settings.iter().for_each(&mut *check);
        section.sections.iter().chain(section.each).for_each(|inner| each_setting(inner, check));
    }

    #[test]
    fn every_default_and_example_is_of_its_own_kind() {
        let mut count = 0;
        each_setting(&FILE, &mut |setting| {
            for text in [setting.default, setting.example].into_iter().flatten() {
                let value = DeValue::parse(text).unwrap();
                assert!(setting.kind.read(&value, &Lines::default()).is_ok(), "{}: {text}", setting.key);
                count += 1;
            }
            assert!(setting.default.is_some() || setting.example.is_some(), "{} shows nothing", setting.key);
        });
        assert!(count > 60);
    }
}
