//! Whether the time of a comparison tells how much of a forged tag is right: `make constant-time`.
//!
//! Two classes of tags, wrong in their first byte and wrong in their last, are compared in random order, and Welch's t says
//! whether the two means differ (the method of dudect). Past 4.5 they do. A comparison that stops at the first difference is
//! measured beside it: a machine on which that one is not seen says nothing. One JSON line; 1 if chaski's comparison is
//! seen, 2 if the other is not.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a command for people")]

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use chaski_common::fuzzing::Random;
use chaski_common::mac::{Hash, MacKey};
use chaski_common::secret::Secret;
use chaski_ingest::presets;
use chaski_ingest::request::{Head, Received};
use chaski_ingest::source::Secrets;
use chaski_ingest::verify::Scheme;
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;

const SECRET: &[u8] = b"chaski-test-secret/not+real";
const BODY: &[u8] = br#"{"eventType":"cip.paid","operationNumber":"1","data":{"cip":"11546901"}}"#;
/// Past this the classes differ, one time in a hundred thousand by chance.
const T_MAX: f64 = 4.5;
const MEASUREMENTS: usize = 400_000;
/// Comparisons of one measurement: a clock that ticks in tens of nanoseconds does not see one.
const AT_ONCE: usize = 32;
/// Of the measurements of a class; what is slower was interrupted.
const KEPT: f64 = 0.9;

fn main() -> ExitCode {
    let seed = std::env::var("CHASKI_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut random = Random(seed.unwrap_or_else(|| u64::from(std::process::id())));
    let seed = random.0;
    let tag = MacKey::new(Hash::Sha256, SECRET).tag(&[BODY]);
    let claims = [0, 31].map(|at| {
        let mut bytes = tag.as_bytes().to_vec();
        bytes[at] ^= 1;
        bytes
    });
    // What is compared stands in one place, whichever class it is of.
    let put = |claimed: &mut Vec<u8>, class: usize| claimed.copy_from_slice(&claims[class]);
    let mut claimed = claims[0].clone();
    let ours = welch(&mut random, &mut claimed, put, |claimed| tag.matches(claimed));
    // Four bytes at a time, and no further than the first that differ.
    let careless = welch(&mut random, &mut claimed, put, |claimed| {
        tag.as_bytes().chunks(4).zip(claimed.chunks(4)).all(|(one, other)| one == other)
    });
    let (scheme, signature) = (scheme(), HeaderName::from_static("pe-signature"));
    let head = Head { headers: HeaderMap::new(), query: None, peer: [127, 0, 0, 1].into() };
    let mut request = Received { head, body: BODY.into() };
    let put = |request: &mut Received, class: usize| {
        let value = HeaderValue::from_str(&hex::encode(&claims[class])).expect("digits");
        request.head.headers.insert(signature.clone(), value);
    };
    let now = Timestamp::UNIX_EPOCH;
    let whole = welch(&mut random, &mut request, put, |request| scheme.verify(request, now).is_ok());
    println!(
        "{}",
        serde_json::json!({
            "campaign": "constant-time", "measurements": MEASUREMENTS, "t_max": T_MAX, "seed": seed,
            "t": { "tag_compared": ours, "request_verified": whole, "stops_at_first_difference": careless },
        })
    );
    match (ours.abs().max(whole.abs()) < T_MAX, careless.abs() > T_MAX) {
        (_, false) => ExitCode::from(2),
        (true, true) => ExitCode::SUCCESS,
        (false, true) => ExitCode::FAILURE,
    }
}

fn scheme() -> Scheme {
    let spec = presets::load("pagoefectivo").expect("a preset");
    let secrets = Secrets::Any(vec![Secret::new(SECRET).into()]);
    Scheme::compile(&spec, &secrets).expect("a preset compiles")
}

/// Welch's t of the times of two classes. `put` lays out what is compared, and is not measured.
fn welch<S>(
    random: &mut Random,
    state: &mut S,
    put: impl Fn(&mut S, usize),
    compared: impl Fn(&S) -> bool,
) -> f64 {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..MEASUREMENTS {
        let class = random.below(2);
        put(state, class);
        let began = Instant::now();
        for _ in 0..AT_ONCE {
            black_box(compared(black_box(state)));
        }
        times[class].push(began.elapsed().as_nanos() as f64);
    }
    let [one, other] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times.truncate((times.len() as f64 * KEPT) as usize);
        let count = times.len() as f64;
        let mean = times.iter().sum::<f64>() / count;
        let variance = times.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (mean, variance / count)
    });
    (one.0 - other.0) / (one.1 + other.1).sqrt()
}
