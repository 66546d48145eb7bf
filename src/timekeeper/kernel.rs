//! What the kernel knows of its clock, by `adjtimex(2)`.
//!
//! A seccomp filter may answer that call by killing who makes it, as systemd's do unless they are told otherwise. So a
//! process of its own makes it, `chaski kernel-clock`, and a gateway that asks loses an answer at worst.
//!
//! The kernel knows only what it was told. chrony may keep a clock without telling it, and a guest's clock may be the
//! host's. So "nobody keeps it" is no news unless somebody did before: then it is no answer.

use std::io;

use super::Told;

/// The command that asks.
pub(super) const COMMAND: &str = "kernel-clock";

/// By how many seconds the kernel is still correcting its clock; none if nobody keeps it.
///
/// # Errors
///
/// The call is refused.
pub(crate) fn ask() -> io::Result<Option<f64>> {
    let clock = read()?;
    if clock.status & libc::STA_UNSYNC != 0 {
        return Ok(None);
    }
    let per_second = if clock.status & libc::STA_NANO == 0 { 1e6 } else { 1e9 };
    Ok(Some(clock.offset as f64 / per_second))
}

#[allow(unsafe_code, reason = "no crate that is widely used has a safe binding")]
fn read() -> io::Result<libc::timex> {
    // SAFETY: a C structure of numbers, for which zeros are a value; no mode set means that nothing is changed.
    let mut clock: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes to the structure while it is called, and keeps no address of it.
    match unsafe { libc::adjtimex(&raw mut clock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(clock),
    }
}

/// What the command has printed.
pub(super) fn told(said: &str) -> Option<Told> {
    let off: f64 = said.trim().parse().ok()?;
    Some(Told { off_seconds: Some(off), is_kept: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_and_what_is_not_a_number_of_seconds_is_no_answer() {
        // Whether anybody keeps the clock here depends on the machine; how far it is off is then less than what is kept.
        let off = ask().unwrap();
        assert!(off.is_none_or(|off| off.abs() <= 1.0), "{off:?}");
        assert_eq!(told("-0.000012\n"), Some(Told { off_seconds: Some(-0.000_012), is_kept: true }));
        assert_eq!(told(""), None);
    }
}
