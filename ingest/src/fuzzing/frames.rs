//! Frames of HTTP/2 on a connection, behind the preface, through the whole edge.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::request::{Rig, has_tag};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PADDED: u8 = 8;
/// A status of 500 as the first of the header fields.
const INTERNAL_ERROR: u8 = 0x8e;

static RIG: LazyLock<Rig> = LazyLock::new(|| Rig::new(true));

/// One frame; its payload without padding.
struct Frame<'a> {
    kind: u8,
    stream: u32,
    payload: &'a [u8],
}

pub(super) fn run(input: &[u8]) {
    let answered = RIG.ask(&[PREFACE, input].concat());
    let (answers, rest) = frames(&answered);
    assert!(rest.is_empty(), "an answer is no frame: {}", rest.escape_ascii());
    let is_fault =
        |frame: &Frame<'_>| frame.kind == HEADERS && frame.payload.first() == Some(&INTERNAL_ERROR);
    assert!(!answers.iter().any(is_fault), "a fault of ours");
    if answered.windows(7).any(|word| word == b"{\"id\":\"") {
        let mut bodies: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        for frame in frames(input).0.iter().filter(|frame| frame.kind == DATA) {
            bodies.entry(frame.stream).or_default().extend(frame.payload);
        }
        assert!(bodies.values().any(|body| has_tag(input, body)), "accepted unsigned");
    }
}

/// The whole frames that there are, and what is left.
fn frames(mut bytes: &[u8]) -> (Vec<Frame<'_>>, &[u8]) {
    let mut all = Vec::new();
    while let [a, b, c, kind, flags, stream @ ..] = bytes
        && let Some((stream, rest)) = stream.split_first_chunk()
        && let Some((payload, rest)) = rest.split_at_checked(u32::from_be_bytes([0, *a, *b, *c]) as usize)
    {
        let padding = match payload.split_first() {
            Some((length, data)) if flags & PADDED != 0 => {
                data.split_at_checked(data.len().saturating_sub(usize::from(*length)))
            }
            _ => Some((payload, [].as_slice())),
        };
        let payload = padding.map_or(payload, |(data, _)| data);
        all.push(Frame { kind: *kind, stream: u32::from_be_bytes(*stream) & 0x7fff_ffff, payload });
        bytes = rest;
    }
    (all, bytes)
}
