//! libFuzzer over one target, the one that `CHASKI_FUZZ_TARGET` names: `make fuzz TARGET=json SECONDS=60`.

#![no_main]
#![allow(clippy::expect_used, clippy::panic, reason = "a panic is what a fuzzer looks for")]

use std::sync::LazyLock;

use chaski_common::fuzzing::Target;
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let all = [
        chaski_ingest::fuzzing::TARGETS,
        chaski_common::storage::embedded::FUZZED,
        chaski_common::storage::kafka::FUZZED,
        chaski_dispatcher::fuzzing::TARGETS,
        chaski::config::fuzzing::TARGETS,
    ]
    .concat();
    let name = std::env::var("CHASKI_FUZZ_TARGET").unwrap_or_default();
    let names: Vec<&str> = all.iter().map(|target| target.name).collect();
    *all.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("TARGET is one of {names:?}"))
});

fuzz_target!(|input: &[u8]| (TARGET.run)(input));
