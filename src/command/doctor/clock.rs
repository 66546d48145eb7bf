//! The clock: a wrong one refuses good signatures by their timestamps and dates events wrongly.
//!
//! The kernel's own word (`adjtimex`) has no safe binding in a maintained crate, so whoever keeps the clock is asked:
//! chrony, which knows the offset, or systemd, which knows whether there is anybody.

use std::process::Command;

use super::finding::{Finding, Verdict};
use super::on_thread;

const CHECK: &str = "clock";
/// Further away than this, timestamps inside of signatures begin to be refused.
pub(super) const OFF_BAD_SECONDS: f64 = 30.0;
const OFF_WARNING_SECONDS: f64 = 1.0;

pub(super) async fn check() -> Vec<Finding> {
    let asked = on_thread(|| {
        let chrony = ask("chronyc", &["-c", "-n", "tracking"]).and_then(|said| chrony(&said));
        chrony.or_else(|| {
            ask("timedatectl", &["show", "--property=NTPSynchronized", "--value"])
                .and_then(|said| systemd(&said))
        })
    });
    let unknown = || Finding::skipped(CHECK, "nobody to ask: neither chronyc nor timedatectl answers");
    vec![asked.await.flatten().unwrap_or_else(unknown)]
}

fn ask(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `chronyc -c tracking`: the fifth field is by how many seconds the clock is off, the last whether anybody keeps it.
fn chrony(said: &str) -> Option<Finding> {
    let fields: Vec<&str> = said.trim().split(',').collect();
    let off: f64 = fields.get(4)?.parse().ok()?;
    let is_kept = *fields.last()? != "Not synchronised";
    Some(judge(Some(off), is_kept))
}

fn systemd(said: &str) -> Option<Finding> {
    match said.trim() {
        "yes" => Some(judge(None, true)),
        "no" => Some(judge(None, false)),
        _ => None,
    }
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

    #[test]
    fn what_time_keepers_say_is_read() {
        let line = |off: &str, leap: &str| {
            format!(
                "A9FEA97B,169.254.169.123,4,1795326000.1,{off},0.00001,0.00002,-3.1,0.0,0.02,0.0003,0.0004,16.2,{leap}\n"
            )
        };
        assert_eq!(chrony(&line("-0.000012", "Normal")).map(|found| found.verdict), Some(Verdict::Good));
        assert_eq!(chrony(&line("40.5", "Normal")).map(|found| found.verdict), Some(Verdict::Bad));
        assert_eq!(
            chrony(&line("0.0", "Not synchronised")).map(|found| found.verdict),
            Some(Verdict::Warning)
        );
        assert_eq!(chrony("506 Cannot talk to daemon\n"), None);
        assert_eq!(systemd("no\n").map(|found| found.verdict), Some(Verdict::Warning));
        assert_eq!(systemd(""), None);
    }
}
