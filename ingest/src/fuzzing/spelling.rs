//! Timestamps: the first byte says which spelling, the rest is the text.

use super::plain;
use crate::verify::timestamp::Format;

pub(super) fn run(input: &[u8]) {
    const FORMATS: [&str; 4] = ["unix", "unix_ms", "unix_auto", "rfc3339"];
    let Some((first, text)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let name = FORMATS[usize::from(*first) % FORMATS.len()];
    let format = Format::named(name).expect("these four are known");
    let ours = format.parse(text).map(jiff::Timestamp::as_nanosecond);
    let theirs = plain::nanoseconds(name, text);
    assert_eq!(ours, theirs, "{name}: {text:?}");
}
