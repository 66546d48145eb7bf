use jiff::Timestamp;

use super::*;

const NOW: i64 = 1_800_000_000;

fn rules() -> Rules {
    Rules {
        sources: [("pe".into(), Some(Duration::from_secs(3600))), ("culqi".into(), None)].into(),
        destinations: vec!["erp".into()],
        ignored: Vec::new(),
        failures_in_a_row: 5,
        refused_signatures: 20,
        refused_share: 0.2,
        oldest_unsettled: Duration::from_secs(300),
        breaker_open: Duration::from_secs(60),
        degraded: Duration::from_secs(120),
        disk_free_bytes: 1 << 30,
        clock_offset: Duration::from_secs(30),
    }
}

/// Two snapshots: of each measure what it was and what it is.
fn snapshots(values: &[(Measure, &str, f64, f64)]) -> (Snapshot, Snapshot) {
    let at = |second| Snapshot::empty(Timestamp::from_second(second).unwrap());
    values.iter().fold((at(NOW - 300), at(NOW)), |(old, new), (measure, subject, was, is)| {
        (old.with(*measure, subject, *was), new.with(*measure, subject, *is))
    })
}

#[test]
fn each_condition_fires_at_its_bound_and_not_below() {
    use Measure::*;
    let now = NOW as f64;
    type Case = (&'static [(Measure, &'static str, f64, f64)], &'static [&'static str]);
    let timed: Vec<(Measure, &str, f64, &[&str])> = vec![
        (LastAccepted, "pe", now - 3599.0, &[]),
        (LastAccepted, "pe", now - 3600.0, &["source-silent pe"]),
        // Without a silence of its own a source may be silent.
        (LastAccepted, "culqi", now - 90_000.0, &[]),
        // Zero is "none": nothing is unsettled.
        (OldestUnsettled, "erp", 0.0, &[]),
        (OldestUnsettled, "erp", now - 299.0, &[]),
        (OldestUnsettled, "erp", now - 300.0, &["backlog-old erp"]),
    ];
    for (measure, subject, is, fires) in timed {
        check(&[(measure, subject, 0.0, is)], fires);
    }
    let cases: &[Case] = &[
        (&[], &[]),
        (&[(SourceFailures, "pe", 0.0, 4.0)], &[]),
        (&[(SourceFailures, "pe", 0.0, 5.0)], &["source-failing pe"]),
        (&[(DestinationFailures, "erp", 9.0, 4.0)], &[]),
        (&[(DestinationFailures, "erp", 5.0, 5.0)], &["destination-failing erp"]),
        // What is not configured any more has nobody to look after it.
        (&[(DestinationFailures, "gone", 5.0, 5.0), (DeadLetters, "gone", 0.0, 5.0)], &[]),
        (&[(DeadLetters, "erp", 3.0, 3.0)], &[]),
        (&[(DeadLetters, "erp", 3.0, 4.0)], &["dead-letter erp"]),
        (&[(DeadLettersFound, "erp", 0.0, 1.0)], &["dead-letter erp"]),
        (&[(DeadLettersFound, "erp", 1.0, 1.0)], &[]),
        (&[(QuarantineFound, "pe", 0.0, 1.0)], &["quarantine pe"]),
        (&[(ConflictsFound, "pe", 0.0, 1.0)], &["conflict pe"]),
        (&[(LostToRetention, "erp", 0.0, 1.0)], &["events-lost erp"]),
        (&[(Quarantined, "pe", 1.0, 2.0)], &["quarantine pe"]),
        (&[(Conflicts, "culqi", 0.0, 1.0)], &["conflict culqi"]),
        (&[(RefusedSignatures, "pe", 0.0, 19.0), (Requests, "pe", 0.0, 19.0)], &[]),
        (&[(RefusedSignatures, "pe", 0.0, 20.0), (Requests, "pe", 0.0, 20.0)], &["signature-anomaly pe"]),
        // Many, and few among all.
        (&[(RefusedSignatures, "pe", 0.0, 20.0), (Requests, "pe", 0.0, 101.0)], &[]),
        (&[(RefusedSignatures, "pe", 0.0, 20.0), (Requests, "pe", 0.0, 100.0)], &["signature-anomaly pe"]),
        // Long ago.
        (&[(RefusedSignatures, "pe", 90.0, 90.0), (Requests, "pe", 90.0, 95.0)], &[]),
        (&[(CircuitOpen, "erp", 0.0, 1.0)], &["breaker-open erp"]),
        // A backlog behind an open breaker is the breaker's.
        (&[(CircuitOpen, "erp", 0.0, 1.0), (OldestUnsettled, "erp", 1.0, 1.0)], &["breaker-open erp"]),
        (&[(StoragePoisoned, "", 0.0, 0.0), (StorageFree, "", 0.0, 1_073_741_824.0)], &[]),
        (&[(StoragePoisoned, "", 0.0, 1.0)], &["store-poisoned "]),
        (&[(StorageFree, "", 0.0, 1_073_741_823.0)], &["disk-low "]),
        (&[(SpoolMode, "", 0.0, 1.0)], &["spool-in-use "]),
        (&[(DedupDegraded, "", 0.0, 1.0)], &["dedup-degraded "]),
        (&[(ClockOffset, "", 0.0, -30.0), (ClockSynchronized, "", 1.0, 1.0)], &[]),
        (&[(ClockOffset, "", 0.0, -31.0)], &["clock-off "]),
        (&[(ClockSynchronized, "", 1.0, 0.0)], &["clock-off "]),
    ];
    for (values, fires) in cases {
        check(values, fires);
    }
}

#[track_caller]
fn check(values: &[(Measure, &str, f64, f64)], fires: &[&str]) {
    let (old, new) = snapshots(values);
    let found: Vec<String> = evaluate(&rules(), &old, &new)
        .iter()
        .map(|finding| format!("{} {}", finding.key.0.name(), finding.key.1))
        .collect();
    assert_eq!(found, fires, "{values:?}");
    let ignoring = Rules { ignored: Condition::ALL.to_vec(), ..rules() };
    assert_eq!(evaluate(&ignoring, &old, &new), [], "{values:?}");
}

#[test]
fn what_comes_and_goes_must_last() {
    let (old, new) =
        snapshots(&[(Measure::CircuitOpen, "erp", 0.0, 1.0), (Measure::SpoolMode, "", 0.0, 2.0)]);
    let holds: Vec<u64> =
        evaluate(&rules(), &old, &new).iter().map(|finding| finding.hold.as_secs()).collect();
    assert_eq!(holds, [60, 120]);
}

#[test]
fn names_are_distinct_and_the_reference_lists_them_all() {
    let mut names: Vec<_> = Condition::ALL.iter().map(|condition| condition.name()).collect();
    let reference = crate::config::reference().replace("\n# ", " ");
    for name in &names {
        assert!(reference.contains(name), "{name}");
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Condition::ALL.len());
}
