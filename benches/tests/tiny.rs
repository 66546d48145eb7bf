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
