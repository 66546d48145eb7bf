//! Every scenario in its tiny size. The bench itself fails when the work it claims is not found in the store
//! and at the receiver; what is left to show is that each scenario took place. No time is judged.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Runs all that is measured on a storage; scenario, case and the number of figures of each, in their order.
fn measured(on: &str) -> Vec<(String, String, usize)> {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_chaski-bench"))
        .args(["--size", "tiny", "--on", on, "--json"])
        .arg(&json)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let mut cases: Vec<(String, String, usize)> = Vec::new();
    for figure in figures["figures"].as_array().unwrap() {
        let text = |key: &str| figure[key].as_str().unwrap().to_owned();
        assert_eq!(text("on"), on);
        for round in figure["rounds"].as_array().unwrap() {
            assert!(round["measured"].as_f64().unwrap() >= 0.0, "{figure}");
        }
        match cases
            .iter_mut()
            .find(|(scenario, case, _)| (scenario, case) == (&text("scenario"), &text("case")))
        {
            Some((_, _, figures)) => *figures += 1,
            None => cases.push((text("scenario"), text("case"), 1)),
        }
    }
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("| case | figure |"), "{table}");
    cases
}

fn as_text(cases: &[(String, String, usize)]) -> Vec<(&str, &str, usize)> {
    cases.iter().map(|(scenario, case, figures)| (&**scenario, &**case, *figures)).collect()
}

#[test]
fn every_scenario_on_the_embedded_store_does_its_work() {
    assert_eq!(
        as_text(&measured("embedded")),
        [
            ("accept", "this disk", 1),
            ("accept", "64 connections", 5),
            ("accept", "256 connections", 5),
            ("slow-sync", "64 connections", 5),
            ("slow-sync", "256 connections", 5),
            ("duplicate", "256 connections", 5),
            ("forge", "64 connections", 5),
            ("deliver", "1 destination", 2),
            ("deliver", "8 destinations", 2),
            ("latency", "as fast as it goes", 2),
            ("latency", "this disk", 1),
            ("latency", "20 % of capacity", 7),
            ("latency", "50 % of capacity", 7),
            ("latency", "80 % of capacity", 7),
            ("sick", "50/s to 8 destinations", 4),
            ("outage", "100/s, 1 s away", 5),
            ("parked", "100 parked", 5),
            ("growth", "100 events stored", 3),
            ("growth", "200 events stored", 3),
            ("growth", "400 events stored", 3),
            ("growth", "500 events stored", 1),
            ("memory", "at rest", 1),
            ("memory", "500 events from edge to receiver", 3),
        ]
    );
}

#[test]
fn every_scenario_on_kafka_does_its_work() {
    assert_eq!(
        as_text(&measured("kafka")),
        [
            ("accept", "this disk", 1),
            ("accept", "64 connections", 5),
            ("accept", "256 connections", 5),
            ("deliver", "1 destination", 2),
            ("deliver", "8 destinations", 2),
            ("publish", "256 connections, records of 725 B", 1),
            ("latency", "as fast as it goes", 2),
            ("latency", "20 % of capacity", 7),
            ("latency", "50 % of capacity", 7),
            ("latency", "80 % of capacity", 7),
            ("memory", "5 destinations, 80 events to each", 3),
            ("memory", "50 destinations, 8 events to each", 3),
        ]
    );
}

/// Names of files under a folder, with the folders below it.
fn files_of(folder: &Path, names: &[&str]) -> BTreeSet<String> {
    let plots = std::fs::read_dir(folder.join("plots"))
        .unwrap()
        .map(|file| format!("plots/{}", file.unwrap().file_name().into_string().unwrap()));
    plots.chain(names.iter().map(|name| (*name).to_owned())).collect()
}

#[test]
fn the_page_in_the_tree_is_what_the_results_in_the_tree_give() {
    let (tree, made) = (Path::new(env!("CARGO_MANIFEST_DIR")), tempfile::tempdir().unwrap());
    let (readme, copy) = (tree.parent().unwrap().join("README.md"), made.path().join("copy"));
    std::fs::copy(&readme, &copy).unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_chaski-bench"))
        .arg("page")
        .arg("--readme")
        .arg(&copy)
        .arg("--results")
        .arg(tree.join("results.json"))
        .arg("--to")
        .arg(made.path())
        .status()
        .unwrap();
    assert!(status.success());
    let same = std::fs::read(&readme).unwrap() == std::fs::read(&copy).unwrap();
    assert!(same, "the figures in the README are not of these results: run chaski-bench page");
    let names = ["README.md", "CAPACITY.md"];
    let files = files_of(made.path(), &names);
    assert_eq!(files, files_of(tree, &names), "run chaski-bench page");
    for file in files {
        let read = |folder: &Path| std::fs::read_to_string(folder.join(&file)).unwrap();
        assert!(read(made.path()) == read(tree), "{file} is not of these results: run chaski-bench page");
    }
}

/// A campaign in its tiny size; it fails by itself when a genuine callback does, or a forged one is stored.
fn campaign(name: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("results/lines.jsonl");
    let output = Command::new(env!("CARGO_BIN_EXE_chaski-bench"))
        .args(["--size", "tiny", "campaign", name, "--seed", "7", "--out"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!((line["campaign"].as_str(), line["seed"].as_u64()), (Some(name), Some(7)));
    line["seen"].clone()
}

#[test]
fn slow_peers_are_let_go_and_genuine_senders_are_served() {
    let seen = campaign("slow");
    assert_eq!(seen["genuine"], 150);
    assert!(seen["ended"].as_u64() >= Some(100), "{seen}");
    let waits: Vec<_> =
        seen["given_up_after_the_limit_ms"].as_array().unwrap().iter().map(|of| &of["wait"]).collect();
    assert_eq!(waits, ["body", "head", "idle", "write"]);
}

#[test]
fn in_an_overload_every_request_is_taken_or_told_so() {
    let seen = campaign("overload");
    for crowd in [&seen, &seen["slow_disk"]].iter().flat_map(|of| of["crowds"].as_array().unwrap()) {
        assert!(crowd["goodput_per_second"].as_f64() > Some(0.0), "{seen}");
        let number = |of: &str| crowd[of].as_u64().unwrap();
        let answered = number("taken") + number("refused") + number("answered_after_the_end");
        assert_eq!(number("sent"), answered, "{seen}");
    }
}

#[test]
fn a_flood_of_forgeries_leaves_genuine_senders_and_the_store_alone() {
    let seen = campaign("forged");
    assert_eq!((seen["genuine"].as_u64(), seen["forged"].as_u64()), (Some(100), Some(1000)));
    let answers = seen["forged_answers"].as_object().unwrap();
    assert!(answers.contains_key("401") && answers.contains_key("429"), "{seen}");
}
