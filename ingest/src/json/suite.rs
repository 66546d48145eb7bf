//! The cases of Nicolas Seriot's JSON Parsing Test Suite (MIT licence), against this reader.
//!
//! A name begins with `y_` for what every parser must take, with `n_` for what none may, with `i_` for what RFC 8259
//! leaves open. The verdict beside it is this reader's; a text is Latin-1, one character for one byte, and a number
//! behind it says how often it is repeated.

use serde::Deserialize;

use super::{Fault, Places, read};

const SUITE: &str = include_str!("suite.json");

#[derive(Deserialize)]
#[serde(untagged)]
enum Case {
    Once(String, String, String),
    Repeated(String, String, String, usize),
}

/// What every parser takes and this one does not: which of two values was meant is not for it to say.
const TWICE: [&str; 2] = ["y_object_duplicated_key", "y_object_duplicated_key_and_value"];

fn verdict(body: &[u8]) -> &'static str {
    match read(body, &Places::default()).err() {
        None => "taken",
        Some(Fault::Utf8) => "utf8",
        Some(Fault::Syntax) => "syntax",
        Some(Fault::Depth) => "depth",
        Some(Fault::TooComplex) => "too complex",
        Some(Fault::Number) => "number",
        Some(Fault::DuplicateKey) => "duplicate key",
    }
}

#[test]
fn each_document_of_the_suite_is_judged_as_it_must_be() {
    let cases: Vec<Case> = serde_json::from_str(SUITE).unwrap();
    let mut wrong = Vec::new();
    for case in &cases {
        let (name, expected, text, times) = match case {
            Case::Once(name, expected, text) => (name, expected, text, 1),
            Case::Repeated(name, expected, text, times) => (name, expected, text, *times),
        };
        let body: Vec<u8> = text.chars().map(|c| u8::try_from(c).unwrap()).collect();
        let verdict = verdict(&body.repeat(times));
        let is_allowed = match &name[..2] {
            "y_" => verdict == "taken" || (TWICE.contains(&name.as_str()) && verdict == "duplicate key"),
            "n_" => verdict != "taken",
            _ => true,
        };
        if verdict != expected || !is_allowed {
            wrong.push(format!("{name}: {verdict}, not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(cases.len(), 318);
}
