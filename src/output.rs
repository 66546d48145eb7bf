//! What commands print: data on stdout as a table or JSON, talk on stderr.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::OnceLock;

use comfy_table::{ContentArrangement, Table, TableStyle};
use serde::Serialize;

/// What kept a line of data from being printed first. A process has one stdout, and its exit code answers for it.
static UNPRINTED: OnceLock<io::Error> = OnceLock::new();

/// Prints a line of data; after a failure nothing more, see [`unprinted`].
pub(crate) fn line(text: impl std::fmt::Display) {
    if UNPRINTED.get().is_none()
        && let Err(error) = writeln!(io::stdout(), "{text}")
    {
        // Whoever was first has said it.
        let _ = UNPRINTED.set(error);
    }
}

/// What kept data from being printed, if anything did. A reader that has gone away has had enough, and that is none.
pub(crate) fn unprinted() -> Option<&'static io::Error> {
    if let Err(error) = io::stdout().flush() {
        let _ = UNPRINTED.set(error);
    }
    UNPRINTED.get().filter(|error| is_failure(error))
}

/// Whether a failure to print is one.
pub(crate) fn is_failure(error: &io::Error) -> bool {
    error.kind() != io::ErrorKind::BrokenPipe
}

/// Says something to the person at the terminal.
pub(crate) fn say(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints a value as JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A table with these headings.
pub(crate) fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(TableStyle::new())
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(headings);
    if !io::stdout().is_terminal() {
        // A pipe has no width to fit into.
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table
}

/// Prints a table, or says that there is nothing in it.
pub(crate) fn print(table: &Table, nothing: &str) {
    if table.is_empty() {
        say(nothing);
    } else {
        line(table.trim_fmt());
    }
}

/// So many of something: `1 letter`, `2 letters`.
pub(crate) fn count(number: impl Into<u64>, one: &str) -> String {
    match number.into() {
        1 => format!("1 {one}"),
        number => format!("{number} {one}s"),
    }
}

/// Text with control characters made visible, so that a body cannot steer the terminal.
pub(crate) fn harmless(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if character == '\n' || !(character.is_control() || is_steering(character)) {
            safe.push(character);
        } else {
            safe.extend(character.escape_unicode());
        }
    }
    safe
}

/// Characters that reorder or hide the text around them.
fn is_steering(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Asks before something that cannot be taken back. Without a terminal the answer is no.
pub(crate) fn confirm(question: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        anyhow::bail!("{question}: nobody is there to answer; say --yes");
    }
    let mut stderr = io::stderr();
    write!(stderr, "{question} [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// As [`confirm`], of what can be mended or done again: without a terminal it is done as it was said.
pub(crate) fn confirm_if_asked(question: &str) -> anyhow::Result<bool> {
    if io::stdin().is_terminal() { confirm(question) } else { Ok(true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        assert_eq!(
            [0_u64, 1, 2].map(|number| count(number, "letter")),
            ["0 letters", "1 letter", "2 letters"]
        );
    }

    #[test]
    fn control_characters_of_a_body_are_made_visible() {
        assert_eq!(harmless("a\u{1b}[31m\tb\nc\u{202e}d é"), "a\\u{1b}[31m\\u{9}b\nc\\u{202e}d é");
    }
}
