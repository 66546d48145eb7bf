//! The annotated file: every setting with its default, made from the table of settings.
//!
//! It is itself a configuration that loads, given the secrets it names. `deploy/chaski.toml` is this text.

use serde::Serialize;
use serde_json::Value;

use super::schema::to_json;
use super::settings::{FILE, Section, Setting};

const HEAD: &str = "\
# chaski: every setting, with its default.
#
# Durations and sizes carry units (\"500ms\", \"5s\", \"5m\", \"72h\", \"30d\"; \"256KiB\", \"1MiB\"). A secret is never written
# here, but where it is kept: \"env:NAME\" or \"file:PATH\" (a file only its owner can read). Relative paths start at
# the folder of this file. What is commented out, or says so, has no default and shows an example. Unknown
# keys are refused.
# `chaski check` explains the file; `kill -HUP` or `chaski reload` reads it again.
";

/// A source as most are: the rest is in its preset.
const PRESET_SOURCE: &str = "
# A sender with a preset needs no more than this.
[sources.pagoefectivo]
provider = \"pagoefectivo\"
secrets = [\"env:PE_SECRET\", \"env:PE_SECRET_PREVIOUS\"]
";

/// Columns of a comment.
const WIDTH: usize = 110;

/// The annotated file.
#[must_use]
pub fn reference() -> String {
    let mut text = HEAD.to_owned();
    for section in FILE.sections {
        match section.each {
            Some(each) if section.name == "sources" => {
                text.push_str(PRESET_SOURCE);
                print(&mut text, each, "sources.acme", false);
            }
            Some(each) => print(&mut text, each, "destinations.orders", false),
            None => print(&mut text, section, section.name, false),
        }
    }
    text
}

/// One setting, for programs.
#[derive(Debug, Serialize)]
pub struct Documented {
    /// Its full key; NAME is what the operator calls it.
    pub key: String,
    /// What it takes, with bounds and units.
    pub takes: String,
    /// What holds when it is left out.
    pub default: Option<Value>,
    /// What it may look like.
    pub example: Option<Value>,
    /// What it is about.
    pub doc: &'static str,
}

/// The settings in the order of the annotated file.
#[must_use]
pub fn settings() -> Vec<Documented> {
    let mut settings = Vec::new();
    FILE.sections.iter().for_each(|section| document(&mut settings, section, section.name));
    settings
}

fn document(settings: &mut Vec<Documented>, section: &Section, path: &str) {
    settings.extend(section.settings.iter().map(|setting| Documented {
        key: format!("{path}.{}", setting.key),
        takes: setting.kind.describe(),
        default: setting.default.and_then(to_json),
        example: setting.example.and_then(to_json),
        doc: setting.doc,
    }));
    for inner in section.sections.iter().chain(section.each) {
        document(settings, inner, &format!("{path}.{}", inner.name));
    }
}

fn print(text: &mut String, section: &Section, path: &str, inside_optional: bool) {
    let optional = section.optional || inside_optional;
    if let Some(each) = section.each {
        return print(text, each, &format!("{path}.team"), optional);
    }
    let mark = if optional { "# " } else { "" };
    text.push('\n');
    comment(text, section.doc);
    text.push_str(&format!("{mark}[{path}]\n"));
    for setting in section.settings {
        comment(text, setting.doc);
        text.push_str(&line(setting, path, optional));
    }
    for inner in section.sections {
        print(text, inner, &format!("{path}.{}", inner.name), optional);
    }
}

fn line(setting: &Setting, path: &str, optional: bool) -> String {
    let key = setting.key;
    // The described source needs its secrets; everything else without a default can be left out.
    let live = setting.required || (path == "sources.acme" && key == "secrets");
    match (setting.default, setting.example) {
        (Some(default), Some(example)) if !optional => format!("{key} = {example} # default: {default}\n"),
        (Some(default), _) if !optional => format!("{key} = {default}\n"),
        (None, Some(example)) if live && !optional => format!("{key} = {example} # no default\n"),
        (_, Some(example)) => format!("# {key} = {example}\n"),
        (Some(default), None) => format!("# {key} = {default}\n"),
        (None, None) => String::new(),
    }
}

fn comment(text: &mut String, doc: &str) {
    let mut column = 0;
    for word in doc.split_whitespace() {
        if column == 0 || column + 1 + word.len() > WIDTH {
            text.push_str(if column == 0 { "# " } else { "\n# " });
            column = 2 + word.len();
        } else {
            text.push(' ');
            column += 1 + word.len();
        }
        text.push_str(word);
    }
    if column > 0 {
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn secret(name: &str) -> Option<String> {
        Some(format!("{name}-0aX7qLmZk3J9"))
    }

    #[test]
    fn the_reference_is_a_configuration_without_a_warning_about_itself() {
        let config = Config::parse(&reference(), Path::new("chaski.toml"), &secret)
            .unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config.sources.len(), 2);
        assert_eq!(config.destinations.len(), 1);
        assert_eq!(config.warnings, []);
    }

    #[test]
    fn every_setting_is_there_for_programs_as_well() {
        let settings = serde_json::to_value(settings()).unwrap();
        let find =
            |key: &str| settings.as_array().unwrap().iter().find(|setting| setting["key"] == key).unwrap();
        let max_body = find("ingest.max_body");
        assert_eq!(
            (&max_body["default"], &max_body["takes"]),
            (&"256KiB".into(), &"a size from 1KiB to 16MiB".into())
        );
        assert_eq!(find("sources.NAME.signature.algorithm")["default"], Value::Null);
        assert_eq!(find("alerts.receivers.NAME.kind")["example"], "slack");
        let is_there = |key: &str| {
            let last = format!(".{key}");
            settings
                .as_array()
                .unwrap()
                .iter()
                .any(|setting| setting["key"].as_str().unwrap().ends_with(&last))
        };
        for line in reference().lines() {
            let line = line.trim_start_matches("# ");
            let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| !key.contains(' ')) else {
                continue;
            };
            assert!(is_there(key), "{line}");
        }
    }

    #[test]
    fn what_must_be_written_is_not_shown_as_a_default() {
        let text = reference();
        for line in [
            "algorithm = \"hmac-sha256\" # no default\n",
            "from = \"header:x-acme-timestamp\" # no default\n",
            "format = \"unix\" # no default\n",
            "past = \"5m\"\n",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }

    #[test]
    fn what_is_commented_out_is_right_as_well() {
        // The three ways to authenticate exclude each other, as do the two ways to give secrets.
        let all: Vec<String> = reference()
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(code)
                    if code.starts_with('[')
                        || code.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) =>
                {
                    code.to_owned()
                }
                _ => line.to_owned(),
            })
            .collect();
        let errors = Config::parse(&all.join("\n"), Path::new("chaski.toml"), &secret).unwrap_err();
        for problem in &errors.0 {
            assert!(!["config_syntax", "config_unknown_key"].contains(&problem.reason.label()), "{problem}");
        }
    }

    #[test]
    fn the_annotated_file_in_deploy_is_the_reference() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/chaski.toml");
        if std::env::var_os("CHASKI_BLESS").is_some() {
            std::fs::write(&path, reference()).unwrap();
        }
        let file = std::fs::read_to_string(&path).unwrap();
        assert!(file == reference(), "write it anew: CHASKI_BLESS=1 cargo test -p chaski --lib reference");
    }
}
