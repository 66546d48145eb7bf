//! The kinds of values, and how each is read from TOML, bounded and described.
//!
//! Durations and sizes carry units. A message says what would be right, and never repeats a value that
//! could be a secret.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use chaski_ingest::source::Validity;
use jiff::Timestamp;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Reason, nearest};
use super::secret;
use super::units::{parse_duration, parse_size, rate, spell_duration, spell_size};

/// Most entries of any list or table of values.
const ENTRIES_MAX: usize = 1024;
/// Most bytes of any text.
const TEXT_BYTES_MAX: usize = 8192;

/// What a setting takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Text,
    Texts,
    /// Names with a text each.
    TextTable,
    /// Names with a text, a number or a flag each, kept as text.
    Settings,
    Flag,
    Integer {
        min: u64,
        max: u64,
    },
    Number {
        min: f64,
        max: f64,
    },
    Duration {
        min: Duration,
        max: Duration,
    },
    /// Several, each longer than zero.
    Durations,
    Size {
        min: u64,
        max: u64,
    },
    Address,
    Path,
    Choice(&'static [&'static str]),
    /// `"100/s"`
    Rate,
    /// A reference to one secret.
    Secret,
    /// One reference, or several while rotating.
    Secrets,
    /// Several references, or a table of key ids; each may say when it is good.
    SecretSet,
}

/// What was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Texts(Vec<Entry>),
    Table(BTreeMap<String, Entry>),
    /// Of [`Kind::SecretSet`].
    Dated(Vec<DatedEntry>),
    DatedTable(BTreeMap<String, DatedEntry>),
    Flag(bool),
    Integer(u64),
    Number(f64),
    Duration(Duration),
    Durations(Vec<Duration>),
    Size(u64),
    Address(SocketAddr),
}

/// An entry of a list or table, and the line it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) line: usize,
    pub(super) text: String,
}

/// A reference to a secret, and when the secret is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DatedEntry {
    pub(super) entry: Entry,
    pub(super) validity: Validity,
}

/// Which line an offset of a text is on.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<usize>);

impl Lines {
    pub(super) fn new(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(offset, _)| offset).collect())
    }

    pub(super) fn of(&self, offset: usize) -> usize {
        self.0.partition_point(|&end| end < offset) + 1
    }
}

/// Why a value is not taken: rule, what is wrong, what would be right.
pub(super) type Refusal = (Reason, String, String);

/// The same with its line; of a list or a table, for every entry that is not taken.
pub(super) type Refusals = Vec<(usize, Refusal)>;

fn range<T>(message: impl Into<String>, hint: impl Into<String>) -> Result<T, Refusal> {
    Err((Reason::Range, message.into(), hint.into()))
}

impl Kind {
    /// Reads a value of this kind.
    pub(super) fn read(self, value: &Spanned<DeValue<'_>>, lines: &Lines) -> Result<Value, Refusals> {
        let by_number = |index, _: &DeValue<'_>| format!("entry {}", index + 1);
        match (self, value.get_ref()) {
            (Self::Texts, DeValue::Array(list)) if list.len() <= ENTRIES_MAX => {
                each(list, lines, by_number, |entry| self.entry(entry, lines)).map(Value::Texts)
            }
            (Self::Durations, DeValue::Array(list)) if list.len() <= ENTRIES_MAX => {
                let by_text = |index, entry: &DeValue<'_>| {
                    entry.as_str().map_or_else(|| by_number(index, entry), shown)
                };
                each(list, lines, by_text, |entry| duration(entry.get_ref())).map(Value::Durations)
            }
            (Self::Secrets, DeValue::Array(list)) if (1..=ENTRIES_MAX).contains(&list.len()) => {
                each(list, lines, by_number, |entry| self.reference(entry, lines)).map(Value::Texts)
            }
            (Self::SecretSet, DeValue::Array(list)) if (1..=ENTRIES_MAX).contains(&list.len()) => {
                each(list, lines, by_number, |entry| self.dated(entry, lines)).map(Value::Dated)
            }
            (Self::SecretSet, DeValue::Table(table)) if is_of_key_ids(table) => {
                let ids: Vec<_> = table.keys().map(|id| id.get_ref().to_string()).collect();
                let entries = each(
                    table.values(),
                    lines,
                    |index, _| shown(&ids[index]),
                    |entry| self.dated(entry, lines),
                );
                entries.map(|entries| Value::DatedTable(ids.iter().cloned().zip(entries).collect()))
            }
            _ => self.whole(value, lines).map_err(|refusal| vec![(lines.of(value.span().start), refusal)]),
        }
    }

    /// Reads a value of which only one thing can be wrong, or is told.
    fn whole(self, value: &Spanned<DeValue<'_>>, lines: &Lines) -> Result<Value, Refusal> {
        let inner = value.get_ref();
        match self {
            Self::Text => self.text(inner).map(Value::Text),
            Self::Path => match self.text(inner)? {
                path if path.is_empty() => range("is empty", "name a file or folder"),
                path => Ok(Value::Text(path)),
            },
            Self::Texts | Self::Durations => match inner {
                DeValue::Array(_) => range(format!("more than {ENTRIES_MAX} entries"), ""),
                _ => self.wrong(inner),
            },
            Self::TextTable | Self::Settings => self.table(inner, lines).map(Value::Table),
            Self::Flag => inner.as_bool().map(Value::Flag).map_or_else(|| self.wrong(inner), Ok),
            Self::Integer { min, max } => match inner.as_integer() {
                Some(given) => match u64::from_str_radix(given.as_str(), given.radix()) {
                    Ok(number) if (min..=max).contains(&number) => Ok(Value::Integer(number)),
                    _ => range(format!("must be from {min} to {max}, not {given}"), ""),
                },
                None => self.wrong(inner),
            },
            Self::Number { min, max } => {
                let given = match inner {
                    DeValue::Integer(given) => given.as_str().parse::<f64>().ok(),
                    DeValue::Float(given) => given.as_str().parse::<f64>().ok(),
                    _ => return self.wrong(inner),
                };
                match given {
                    Some(number) if (min..=max).contains(&number) => Ok(Value::Number(number)),
                    _ => range(format!("must be from {min} to {max}"), ""),
                }
            }
            Self::Duration { min, max } => match duration(inner)? {
                given if (min..=max).contains(&given) => Ok(Value::Duration(given)),
                given => {
                    let [min, max, given] = [min, max, given].map(spell_duration);
                    range(format!("must be from {min} to {max}, not {given}"), "")
                }
            },
            Self::Size { min, max } => match size(inner)? {
                given if (min..=max).contains(&given) => Ok(Value::Size(given)),
                given => {
                    let [min, max, given] = [min, max, given].map(spell_size);
                    range(format!("must be from {min} to {max}, not {given}"), "")
                }
            },
            Self::Address => match inner.as_str() {
                Some(text) => match text.parse() {
                    Ok(address) => Ok(Value::Address(address)),
                    Err(_) => range(
                        "not an address and a port",
                        "write one like \"127.0.0.1:8080\" or \"[::]:8080\"",
                    ),
                },
                None => self.wrong(inner),
            },
            Self::Choice(choices) => match inner.as_str() {
                Some(text) if choices.contains(&text) => Ok(Value::Text(text.to_owned())),
                Some(text) => {
                    let near = nearest(text, choices.iter().copied());
                    let near = near.map_or_else(String::new, |near| format!("did you mean \"{near}\"?"));
                    range(format!("must be one of {}", quoted(choices)), near)
                }
                None => self.wrong(inner),
            },
            Self::Rate => match inner.as_str().and_then(rate) {
                Some(rate) => Ok(Value::Number(rate)),
                None => range(
                    "not a rate",
                    "write a number per second, minute or hour, like \"100/s\" or \"10/m\"",
                ),
            },
            Self::Secret => match inner {
                DeValue::String(text) => {
                    secret::Reference::check(text).map(|()| Value::Text(text.to_string()))
                }
                _ => self.wrong(inner),
            },
            Self::Secrets | Self::SecretSet => match inner {
                DeValue::Array(list) if list.is_empty() => no_secret(),
                DeValue::Array(_) => range(format!("more than {ENTRIES_MAX} entries"), ""),
                DeValue::String(_) if matches!(self, Self::Secrets) => {
                    self.reference(value, lines).map(|entry| Value::Texts(vec![entry]))
                }
                DeValue::Table(table) if matches!(self, Self::SecretSet) => not_of_key_ids(table),
                other => self.wrong(other),
            },
        }
    }

    fn entry(self, value: &Spanned<DeValue<'_>>, lines: &Lines) -> Result<Entry, Refusal> {
        Ok(Entry { line: lines.of(value.span().start), text: self.text(value.get_ref())? })
    }

    fn reference(self, value: &Spanned<DeValue<'_>>, lines: &Lines) -> Result<Entry, Refusal> {
        let entry = self.entry(value, lines)?;
        secret::Reference::check(&entry.text).map(|()| entry)
    }

    /// A reference, or a table of one and of when its secret is good.
    fn dated(self, value: &Spanned<DeValue<'_>>, lines: &Lines) -> Result<DatedEntry, Refusal> {
        const KEYS: [&str; 3] = ["secret", "not_before", "not_after"];
        let line = lines.of(value.span().start);
        let DeValue::Table(table) = value.get_ref() else {
            let entry = self.reference(value, lines)?;
            return Ok(DatedEntry { entry, validity: Validity::default() });
        };
        if let Some(unknown) = table.keys().find(|key| !KEYS.contains(&key.get_ref().as_ref())) {
            let hint = match nearest(unknown.get_ref(), KEYS) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("write {DATED}"),
            };
            // What stands there is no name of ours, and could be a secret.
            return Err((Reason::UnknownKey, "an unknown key in the table of a secret".to_owned(), hint));
        }
        let text = match table.get("secret") {
            Some(reference) => self.text(reference.get_ref())?,
            None => return range("a table without a secret", format!("write {DATED}")),
        };
        secret::Reference::check(&text)?;
        let [not_before, not_after] = ["not_before", "not_after"].map(|key| table.get(key).map(moment));
        let (not_before, not_after) = (not_before.transpose()?, not_after.transpose()?);
        if not_before.zip(not_after).is_some_and(|(from, until)| from >= until) {
            return range("not_after is not later than not_before", "such a secret is never good");
        }
        Ok(DatedEntry { entry: Entry { line, text }, validity: Validity { not_before, not_after } })
    }

    fn text(self, value: &DeValue<'_>) -> Result<String, Refusal> {
        match value {
            DeValue::String(text) if text.len() <= TEXT_BYTES_MAX => Ok(text.to_string()),
            DeValue::String(_) => range(format!("longer than {TEXT_BYTES_MAX} bytes"), ""),
            other if matches!(self, Self::Path) => self.wrong(other),
            other => Self::Text.wrong(other),
        }
    }

    fn table(self, value: &DeValue<'_>, lines: &Lines) -> Result<BTreeMap<String, Entry>, Refusal> {
        match value {
            DeValue::Table(table) if table.len() > ENTRIES_MAX => {
                range(format!("more than {ENTRIES_MAX} entries"), "")
            }
            DeValue::Table(table) => table
                .iter()
                .map(|(name, entry)| {
                    let text = match (self, entry.get_ref()) {
                        (Self::Settings, DeValue::Boolean(flag)) => flag.to_string(),
                        (Self::Settings, DeValue::Integer(number)) if number.radix() == 10 => {
                            number.as_str().to_owned()
                        }
                        (Self::Settings, DeValue::Float(number)) => number.as_str().to_owned(),
                        (_, other) => self.text(other)?,
                    };
                    Ok((name.get_ref().to_string(), Entry { line: lines.of(name.span().start), text }))
                })
                .collect(),
            other => self.wrong(other),
        }
    }

    /// A value of another type altogether.
    fn wrong<T>(self, found: &DeValue<'_>) -> Result<T, Refusal> {
        range(format!("must be {}, not {}", self.describe(), article(found.type_str())), self.example())
    }

    /// The kind in words.
    pub(super) fn describe(self) -> String {
        match self {
            Self::Text => "a text".to_owned(),
            Self::Texts => "a list of texts".to_owned(),
            Self::TextTable => "a table of texts".to_owned(),
            Self::Settings => "a table of texts, numbers and flags".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Integer { min, max } => format!("a whole number from {min} to {max}"),
            Self::Number { min, max } => format!("a number from {min} to {max}"),
            Self::Duration { min, max } => {
                format!("a duration from {} to {}", spell_duration(min), spell_duration(max))
            }
            Self::Durations => "a list of durations".to_owned(),
            Self::Size { min, max } => format!("a size from {} to {}", spell_size(min), spell_size(max)),
            Self::Address => "an address and a port".to_owned(),
            Self::Path => "a path".to_owned(),
            Self::Choice(choices) => format!("one of {}", quoted(choices)),
            Self::Rate => "a rate".to_owned(),
            Self::Secret => "a reference to a secret".to_owned(),
            Self::Secrets => "a reference to a secret or a list of them".to_owned(),
            Self::SecretSet => "a list of references to secrets, or a table of key ids".to_owned(),
        }
    }

    const fn example(self) -> &'static str {
        match self {
            Self::Duration { .. } => DURATION_HINT,
            Self::Durations => "write one like [\"5s\", \"5m\", \"2h\"]",
            Self::Size { .. } => SIZE_HINT,
            Self::Text | Self::Path | Self::Choice(_) => "write it in quotes",
            Self::Texts => "write one like [\"a\", \"b\"]",
            Self::Secret => "write \"env:NAME\" or \"file:PATH\"",
            Self::Secrets | Self::SecretSet => "write one like [\"env:NAME\"]",
            Self::Address => "write one like \"127.0.0.1:8080\"",
            Self::TextTable
            | Self::Settings
            | Self::Flag
            | Self::Integer { .. }
            | Self::Number { .. }
            | Self::Rate => "",
        }
    }
}

const DATED: &str = "{ secret = \"env:NAME\", not_after = \"2026-12-31T00:00:00Z\" }";

/// Reads every entry; those that are not taken are all told, by what each is called.
fn each<'v, 'i: 'v, T>(
    entries: impl IntoIterator<Item = &'v Spanned<DeValue<'i>>>,
    lines: &Lines,
    called: impl Fn(usize, &DeValue<'i>) -> String,
    read: impl Fn(&Spanned<DeValue<'i>>) -> Result<T, Refusal>,
) -> Result<Vec<T>, Refusals> {
    let (mut taken, mut refused) = (Vec::new(), Vec::new());
    for (index, entry) in entries.into_iter().enumerate() {
        match read(entry) {
            Ok(value) => taken.push(value),
            Err((reason, message, hint)) => {
                let message = format!("{}: {message}", called(index, entry.get_ref()));
                refused.push((lines.of(entry.span().start), (reason, message, hint)));
            }
        }
    }
    if refused.is_empty() { Ok(taken) } else { Err(refused) }
}

/// A value as a message names it; never that of a secret.
pub(super) fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
}

/// Whether a table is one of secrets by their key ids, as far as can be seen without reading them.
fn is_of_key_ids(table: &DeTable<'_>) -> bool {
    let is_one = ["not_before", "not_after"].iter().any(|key| table.contains_key(*key));
    (1..=ENTRIES_MAX).contains(&table.len()) && !is_one
}

fn not_of_key_ids<T>(table: &DeTable<'_>) -> Result<T, Refusal> {
    match table.len() {
        0 => no_secret(),
        1..=ENTRIES_MAX => range("one secret, where several are listed", format!("write a list: [{DATED}]")),
        _ => range(format!("more than {ENTRIES_MAX} entries"), ""),
    }
}

fn no_secret<T>() -> Result<T, Refusal> {
    Err((Reason::Missing, "no secret".to_owned(), "name at least one, like \"env:NAME\"".to_owned()))
}

/// A moment of RFC 3339, as a text or as TOML's own.
fn moment(value: &Spanned<DeValue<'_>>) -> Result<Timestamp, Refusal> {
    let text = match value.get_ref() {
        DeValue::String(text) => text.to_string(),
        DeValue::Datetime(moment) => moment.to_string(),
        other => return range(format!("must be a time, not {}", article(other.type_str())), MOMENT_HINT),
    };
    text.parse().or_else(|_| range("not a time with its offset", MOMENT_HINT))
}

const MOMENT_HINT: &str = "write one like \"2026-12-31T00:00:00Z\"";
const DURATION_HINT: &str = "write it with a unit, like \"500ms\", \"5s\", \"5m\", \"72h\" or \"30d\"";
const SIZE_HINT: &str = "write it with a unit, like \"512B\", \"256KiB\" or \"1MiB\"";

fn duration(value: &DeValue<'_>) -> Result<Duration, Refusal> {
    match value {
        DeValue::String(text) => {
            parse_duration(text).map_or_else(|| range("not a duration", DURATION_HINT), Ok)
        }
        DeValue::Integer(_) | DeValue::Float(_) => range("a duration without a unit", DURATION_HINT),
        other => range(format!("must be a duration, not {}", article(other.type_str())), DURATION_HINT),
    }
}

fn size(value: &DeValue<'_>) -> Result<u64, Refusal> {
    match value {
        DeValue::String(text) => parse_size(text).map_or_else(|| range("not a size", SIZE_HINT), Ok),
        DeValue::Integer(_) | DeValue::Float(_) => range("a size without a unit", SIZE_HINT),
        other => range(format!("must be a size, not {}", article(other.type_str())), SIZE_HINT),
    }
}

fn quoted(choices: &[&str]) -> String {
    choices.iter().map(|choice| format!("\"{choice}\"")).collect::<Vec<_>>().join(", ")
}

fn article(kind: &str) -> String {
    match kind {
        "integer" => "a whole number".to_owned(),
        "string" => "a text".to_owned(),
        "array" => "a list".to_owned(),
        other => format!("a {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_count_from_one_and_end_with_their_line_break() {
        let lines = Lines::new("a\nb\n\nc");
        assert_eq!([0, 1, 2, 4, 5].map(|offset| lines.of(offset)), [1, 1, 2, 3, 4]);
    }
}
