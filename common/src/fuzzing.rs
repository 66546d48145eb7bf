//! Fuzz targets, and the brief run of them that every `cargo test` makes.
//!
//! A target is a function over bytes that panics where something is wrong, kept beside the code it is about. Two
//! drive it: libFuzzer, guided by coverage, for as long as somebody likes (`make fuzz TARGET=json SECONDS=60`), and
//! [`brief`]: the kept corpus, then mutations of it for a moment. What either finds is written to `fuzz/found/`; mended, it
//! moves into the corpus.

#![allow(clippy::expect_used, clippy::panic, reason = "a test rig: a panic is a red test")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::event::Fingerprint;

const ROOM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz");
/// Mutations for this long, unless `CHASKI_FUZZ_SECONDS` says another number.
const SECONDS: u64 = 1;
/// No mutation is longer.
const BYTES_MAX: usize = 4096;

/// One thing that is fuzzed.
#[derive(Clone, Copy)]
pub struct Target {
    /// Also the folder of its corpus.
    pub name: &'static str,
    /// Panics where something is wrong.
    pub run: fn(&[u8]),
}

/// Runs the kept corpus, then mutations of it. The seed is printed; `CHASKI_TEST_SEED` takes it.
///
/// # Panics
/// Where the target does, after the input has been written down.
pub fn brief(target: Target) {
    let kept = corpus(target.name);
    assert!(!kept.is_empty(), "{} has no corpus", target.name);
    kept.iter().for_each(|input| run(target, input));
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seconds = Duration::from_secs(number("CHASKI_FUZZ_SECONDS").unwrap_or(SECONDS));
    let seed = number("CHASKI_TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let (mut random, mut runs, began) = (Random(seed), 0_u64, Instant::now());
    while began.elapsed() < seconds {
        run(target, &random.mutate(&kept));
        runs += 1;
    }
    #[allow(clippy::print_stderr, reason = "what a failure is repeated with")]
    {
        eprintln!("{}: {} kept inputs, {runs} mutations, seed {seed}", target.name, kept.len());
    }
}

/// The inputs that are kept, in the order of their names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(ROOM).join("corpus").join(name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = files.map(|file| file.expect("a readable folder").path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("a readable file")).collect()
}

fn run(target: Target, input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
        let found = Path::new(ROOM).join("found");
        let digest = hex::encode(&Fingerprint::of(input).as_bytes()[..8]);
        let file = found.join(format!("{}-{digest}", target.name));
        let written = std::fs::create_dir_all(&found).and_then(|()| std::fs::write(&file, input));
        written.expect("the found input can be written");
        let why = panic.downcast_ref::<String>().map(String::as_str);
        let why = why.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        panic!("{} on {}: {why}", target.name, file.display());
    }
}

/// SplitMix64: a seed gives the same numbers everywhere.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`; zero when that is zero.
    pub const fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.number() % bound as u64) as usize }
    }

    /// One of several; there must be one.
    pub fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        &from[self.below(from.len())]
    }

    /// An input of the corpus with a few changes: bits, bytes, pieces repeated, dropped, or taken from another input.
    fn mutate(&mut self, kept: &[Vec<u8>]) -> Vec<u8> {
        let mut input = self.pick(kept).clone();
        for _ in 0..=self.below(4) {
            let (from, at) = (self.pick(kept), self.below(input.len() + 1));
            let end = (at + self.below(24)).min(input.len());
            match self.below(7) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 if at < input.len() => input[at] = self.number() as u8,
                2 => drop(input.drain(at..end)),
                3 => input.truncate(at),
                4 => {
                    let piece = input[at..end].to_vec();
                    input.splice(at..at, piece);
                }
                5 => {
                    let start = self.below(from.len());
                    let piece = &from[start..(start + self.below(32)).min(from.len())];
                    input.splice(at..end, piece.iter().copied());
                }
                _ => {
                    let special = b"\"\\{}[]:,.0-+e \r\n\t\0\x7f\xff%&=;/";
                    input.insert(at, *self.pick(special));
                }
            }
        }
        input.truncate(BYTES_MAX);
        input
    }
}
