//! What is wrong with a file, in words that let its owner mend it.
//!
//! A problem says where (file, line, key), what is wrong and what would be right. It never repeats a
//! value that could be a secret.

use std::fmt;
use std::path::PathBuf;

/// Everything that is wrong with one file; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<Problem>);

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// One thing that must change before the file is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named.
    pub file: PathBuf,
    /// The line, counted from 1; 0 when it is about the file as a whole.
    pub line: usize,
    /// The full key, for example `sources.pe.tolerance`; empty when it is about the file as a whole.
    pub key: String,
    /// Which rule, from a closed set.
    pub reason: Reason,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        place(f, &self.file.to_string_lossy(), self.line, &self.key)?;
        f.write_str(&self.message)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

/// Something that is allowed and yet worth knowing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The file, as it was named.
    pub file: PathBuf,
    /// The line, counted from 1; 0 when it is about the file as a whole.
    pub line: usize,
    /// The full key; empty when it is about the file as a whole.
    pub key: String,
    /// What to know.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        place(f, &self.file.to_string_lossy(), self.line, &self.key)?;
        f.write_str(&self.message)
    }
}

fn place(f: &mut fmt::Formatter<'_>, file: &str, line: usize, key: &str) -> fmt::Result {
    f.write_str(file)?;
    if line > 0 {
        write!(f, ":{line}")?;
    }
    f.write_str(": ")?;
    if key.is_empty() { Ok(()) } else { write!(f, "{key}: ") }
}

/// Which rule a problem breaks; the label is part of the public surface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Not TOML, or a key twice.
    Syntax,
    /// Larger than a configuration is.
    TooLarge,
    /// The file cannot be read.
    Unreadable,
    /// A key nobody knows.
    UnknownKey,
    /// Something that must be there is not.
    Missing,
    /// A value of the wrong kind, outside its bounds, or against another.
    Range,
    /// Two of what there can be one of.
    Duplicate,
    /// A variable of the environment that is not set.
    Env,
    /// A secret that can be guessed.
    SecretWeak,
    /// One secret for sandbox and production.
    SecretReused,
    /// A secret's file cannot be read, or others can read it too.
    SecretPermissions,
    /// Something that would open a door.
    Insecure,
    /// A description of a signature that does not work.
    Scheme,
    /// Ids would be forgotten while the sender may still send them.
    DedupWindow,
    /// A destination that must not be posted to.
    Destination,
    /// A header that must not be sent.
    Header,
    /// A certificate or key that does not work.
    Tls,
    /// Not in this build.
    Unsupported,
}

impl Reason {
    /// The label of this reason, as tests and tools know it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Syntax => "config_syntax",
            Self::TooLarge => "config_too_large",
            Self::Unreadable => "config_unreadable",
            Self::UnknownKey => "config_unknown_key",
            Self::Missing => "config_missing",
            Self::Range => "config_range",
            Self::Duplicate => "config_duplicate",
            Self::Env => "config_env",
            Self::SecretWeak => "config_secret_weak",
            Self::SecretReused => "config_secret_reused",
            Self::SecretPermissions => "config_secret_permissions",
            Self::Insecure => "config_insecure",
            Self::Scheme => "config_scheme",
            Self::DedupWindow => "config_dedup_window",
            Self::Destination => "config_destination",
            Self::Header => "config_header",
            Self::Tls => "config_tls",
            Self::Unsupported => "config_unsupported",
        }
    }
}

/// A place in the file: where a problem is reported.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) key: String,
}

impl Place {
    /// The file as a whole.
    pub(super) const fn file() -> Self {
        Self { line: 0, key: String::new() }
    }
}

/// Collects what a reading finds, in the order it is found.
#[derive(Debug)]
pub(super) struct Report {
    file: PathBuf,
    problems: Vec<Problem>,
    warnings: Vec<Warning>,
}

impl Report {
    pub(super) const fn new(file: PathBuf) -> Self {
        Self { file, problems: Vec::new(), warnings: Vec::new() }
    }

    pub(super) fn refuse(
        &mut self,
        at: &Place,
        reason: Reason,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        let (message, hint) = (message.into(), hint.into());
        self.problems.push(Problem {
            file: self.file.clone(),
            line: at.line,
            key: at.key.clone(),
            reason,
            message,
            hint,
        });
    }

    pub(super) fn warn(&mut self, at: &Place, message: impl Into<String>) {
        let warning =
            Warning { file: self.file.clone(), line: at.line, key: at.key.clone(), message: message.into() };
        self.warnings.push(warning);
    }

    /// Forgets problems with these keys; those of the file as a whole stay, as all do of a text that is not TOML.
    pub(super) fn forget_keys(&mut self, forget: impl Fn(&str) -> bool) {
        let is_of_all = |problem: &Problem| problem.key.is_empty() || problem.reason == Reason::Syntax;
        self.problems.retain(|problem| is_of_all(problem) || !forget(&problem.key));
    }

    /// The warnings, or everything that was refused; both in the order of the file.
    pub(super) fn finish(mut self) -> Result<Vec<Warning>, ConfigErrors> {
        if !self.problems.is_empty() {
            return Err(self.into_errors());
        }
        self.warnings.sort_by_key(|warning| warning.line);
        Ok(self.warnings)
    }

    pub(super) fn into_errors(mut self) -> ConfigErrors {
        self.problems.sort_by_key(|problem| problem.line);
        ConfigErrors(self.problems)
    }
}

/// `; did you mean …`, if a known name is near enough to have been meant.
pub(super) fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |name: &&str| strsim::damerau_levenshtein(wrong, name);
    let near = known.into_iter().min_by_key(distance)?;
    (distance(&near) <= (near.len() / 3).max(1)).then_some(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_with_place_fault_and_remedy() {
        let mut report = Report::new("chaski.toml".into());
        let at = Place { line: 12, key: "sources.pe.tolerence".to_owned() };
        report.refuse(&at, Reason::UnknownKey, "unknown key", "did you mean \"tolerance\"?");
        let errors = report.finish().unwrap_err();
        assert_eq!(
            errors.to_string(),
            "chaski.toml:12: sources.pe.tolerence: unknown key; did you mean \"tolerance\"?"
        );
    }

    #[test]
    fn only_a_near_name_is_proposed() {
        assert_eq!(nearest("tolerence", ["path", "tolerance"]), Some("tolerance"));
        assert_eq!(nearest("lisetn", ["listen", "token"]), Some("listen"));
        assert_eq!(nearest("colour", ["listen", "token"]), None);
        assert_eq!(nearest("x", []), None);
    }
}
