//! The corpus of hostile and faulty inputs (`corpus/bad_inputs.json`), each with the one answer that is expected:
//! what comes over the wire, what is posted twice, what is written in the file, what a destination answers. Every case
//! is played over real sockets against the real binary.
//!
//! A case that was changed says why in itself (`changed`). One that is not played is named here with its reason, and
//! the list cannot grow unnoticed.

mod case;
mod configuration;
mod destination;
mod edge;
//mod json;
mod kafka;
mod request;
mod stub;
mod steps;

use std::collections::BTreeSet;

use self::case::Case;

/// Cases for which something is missing, and what that is.
const PENDING: &[(&str, &str)] = &[
    ("FR-089", "floods over HTTP/2 have tests of their own in the library"),
    ("FR-090", "floods over HTTP/2 have tests of their own in the library"),
    ("FR-091", "floods over HTTP/2 have tests of their own in the library"),
    ("FR-092", "floods over HTTP/2 have tests of their own in the library"),
];

fn is_pending(case: &Case) -> bool {
    PENDING.iter().any(|(id, _)| *id == case.id)
}

/// The cases of a group that are played.
fn played(group: &str) -> impl Iterator<Item = Case> {
    let group = group.to_owned();
    case::all().into_iter().filter(move |case| case.group == group && !is_pending(case))
}

#[test]
fn every_case_is_played_or_named_with_its_reason() {
    let all = case::all();
    let ids: BTreeSet<&str> = all.iter().map(|case| case.id.as_str()).collect();
    assert_eq!(ids.len(), all.len(), "an id is there twice");
    for (id, _) in PENDING {
        assert!(ids.contains(id), "{id} is pending and not in the corpus");
    }
    let groups: BTreeSet<&str> = all.iter().map(|case| case.group.as_str()).collect();
    let known = [edge::GROUPS, &[steps::GROUP, configuration::GROUP, destination::GROUP]].concat();
    assert_eq!(groups, known.into_iter().collect(), "each group has somebody who plays it");
    assert_eq!(
        (all.len(), PENDING.len()),
        (396, 4),
        "the corpus does not shrink, and what is pending does not grow"
    );
}
