//! What a check found, and how it is told.

use comfy_table::{Attribute, Cell, Color};
use serde::Serialize;

use crate::output::{self, harmless};

/// How something stands; the worst is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// Could not be looked at, or is not there to be looked at.
    Skipped,
    /// As it should be.
    Good,
    /// Nothing is lost yet; somebody should look.
    Warning,
    /// A promise is broken, or will be at the next occasion.
    Bad,
}

impl Verdict {
    const fn name(self) -> &'static str {
        match self {
            Self::Skipped => "skipped",
            Self::Good => "good",
            Self::Warning => "warning",
            Self::Bad => "bad",
        }
    }

    const fn colour(self) -> Color {
        match self {
            Self::Skipped => Color::DarkGrey,
            Self::Good => Color::Green,
            Self::Warning => Color::Yellow,
            Self::Bad => Color::Red,
        }
    }
}

/// One line of the look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at.
    pub(super) check: String,
    pub(super) verdict: Verdict,
    /// What is there.
    pub(super) found: String,
    /// What would mend it; empty where there is nothing to do.
    #[serde(rename = "do")]
    pub(super) advice: String,
}

impl Finding {
    pub(super) fn new(
        check: impl Into<String>,
        verdict: Verdict,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { check: check.into(), verdict, found: found.into(), advice: advice.into() }
    }

    pub(super) fn good(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(check, Verdict::Good, found, "")
    }

    pub(super) fn warning(
        check: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(check, Verdict::Warning, found, advice)
    }

    pub(super) fn bad(check: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(check, Verdict::Bad, found, advice)
    }

    pub(super) fn skipped(check: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(check, Verdict::Skipped, why, "")
    }
}

pub(super) fn worst(findings: &[Finding]) -> Verdict {
    findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Skipped)
}

/// A table on stdout, coloured on a terminal.
pub(super) fn print(findings: &[Finding]) {
    let mut table = output::table(&["CHECK", "VERDICT", "FOUND", "DO"]);
    for Finding { check, verdict, found, advice } in findings {
        let verdict = Cell::new(verdict.name()).fg(verdict.colour()).add_attribute(Attribute::Bold);
        // What others say of themselves is in here, too.
        table.add_row([Cell::new(check), verdict, Cell::new(harmless(found)), Cell::new(harmless(advice))]);
    }
    output::line(table.trim_fmt());
}
