//! The clock: a wrong one refuses good signatures by their timestamps and dates events wrongly. Who is asked is in
//! `timekeeper`.

use super::finding::{Finding, Verdict};
use crate::timekeeper;

const CHECK: &str = "clock";
/// Further away than this, timestamps inside of signatures begin to be refused.
pub(super) const OFF_BAD_SECONDS: f64 = 30.0;
const OFF_WARNING_SECONDS: f64 = 1.0;

pub(super) async fn check() -> Vec<Finding> {
    let told = timekeeper::ask().await;
    vec![told.map_or_else(
        || {
            Finding::skipped(
                CHECK,
                "nobody to ask: neither chronyc nor timedatectl answers, and the kernel knows of nobody",
            )
        },
        |told| judge(told.off_seconds, told.is_kept),
    )]
}

fn judge(off_seconds: Option<f64>, is_kept: bool) -> Finding {
    let off = off_seconds.map(f64::abs);
    let found = match (off, is_kept) {
        (Some(off), true) => format!("kept by a time server, {off:.3} s off"),
        (Some(off), false) => format!("kept by nobody, {off:.3} s off"),
        (None, true) => "kept by a time server".to_owned(),
        (None, false) => "kept by nobody".to_owned(),
    };
    let verdict = match off {
        Some(off) if off > OFF_BAD_SECONDS => Verdict::Bad,
        Some(off) if off > OFF_WARNING_SECONDS => Verdict::Warning,
        _ if !is_kept => Verdict::Warning,
        _ => Verdict::Good,
    };
    let advice = if verdict == Verdict::Good { "" } else { "let chrony or systemd-timesyncd keep the clock" };
    Finding::new(CHECK, verdict, found, advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_good_when_it_is_kept_and_close() {
        let verdict = |off, is_kept| judge(off, is_kept).verdict;
        assert_eq!(verdict(Some(0.001), true), Verdict::Good);
        assert_eq!(verdict(None, true), Verdict::Good);
        assert_eq!(verdict(None, false), Verdict::Warning);
        assert_eq!(verdict(Some(-2.0), true), Verdict::Warning);
        assert_eq!(verdict(Some(-31.0), true), Verdict::Bad);
    }
}
