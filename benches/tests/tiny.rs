//! Every scenario in its tiny size. The bench itself fails when the work it claims is not found in the store
//! and at the receiver; what is left to show is that each scenario took place. No time is judged.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::process::Command;

#[test]
fn every_scenario_does_its_work() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_chaski-bench"))
        .args(["--size", "tiny", "--json"])
        .arg(&json)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let cases: Vec<_> = figures["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|case| {
            let rounds = case["rounds"].as_array().unwrap().len();
            let number = |key: &str| case[key].as_u64().unwrap();
            let name = |key: &str| case[key].as_str().unwrap();
            (name("scenario"), name("on"), number("at_once"), number("events"), rounds)
        })
        .collect();
    assert_eq!(
        cases,
        [
            ("accept", "embedded", 64, 400, 1),
            ("accept", "kafka", 64, 400, 1),
            ("accept", "embedded", 256, 400, 1),
            ("accept", "kafka", 256, 400, 1),
            ("duplicate", "embedded", 256, 400, 1),
            ("forge", "embedded", 64, 50, 1),
            ("deliver", "embedded", 32, 400, 1),
            ("deliver", "kafka", 32, 400, 1),
        ]
    );
    assert_eq!(figures["memory"]["events"], 500);
    let numbers = |list: &str, key: &str| -> Vec<u64> {
        figures[list].as_array().unwrap().iter().map(|entry| entry[key].as_u64().unwrap()).collect()
    };
    assert_eq!(numbers("latencies", "events"), [200, 200]);
    assert_eq!(numbers("seats", "destinations"), [5, 50]);
    assert!(figures["published"][0]["edge_per_second"].as_f64().unwrap() > 0.0);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("| deliveries | 32 |"), "{table}");
}

/// A campaign in its tiny size; it fails by itself when a genuine callback does, or a forged one is stored.
fn campaign(name: &str) -> serde_json::Value {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("results/lines.jsonl");
    let output = Command::new(env!("CARGO_BIN_EXE_chaski-bench"))
        .args(["--size", "tiny", "campaign", name, "--seed", "7", "--out"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!((line["campaign"].as_str(), line["seed"].as_u64()), (Some(name), Some(7)));
    line["seen"].clone()
}

#[test]
fn slow_peers_are_let_go_and_genuine_senders_are_served() {
    let seen = campaign("slow");
    assert_eq!(seen["genuine"], 150);
    assert!(seen["ended"].as_u64() >= Some(100), "{seen}");
}

#[test]
fn in_an_overload_every_request_is_taken_or_told_so() {
    let seen = campaign("overload");
    assert!(seen["goodput_per_second"].as_f64() > Some(0.0), "{seen}");
}

#[test]
fn a_flood_of_forgeries_leaves_genuine_senders_and_the_store_alone() {
    let seen = campaign("forged");
    assert_eq!((seen["genuine"].as_u64(), seen["forged"].as_u64()), (Some(100), Some(1000)));
    let answers = seen["forged_answers"].as_object().unwrap();
    assert!(answers.contains_key("401") && answers.contains_key("429"), "{seen}");
}
