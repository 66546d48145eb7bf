//! Strict JSON in one pass over the bytes: validity within bounds, the values at given pointers, and the
//! comparable form that tells a resend from other content.
//!
//! Strict: UTF-8, one document, no byte-order mark, no name twice in an object, no lone surrogate. Bounded:
//! depth, nodes, length of numbers. Numbers stay the text they were sent as; nothing is printed again.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use crate::location::Pointer;

/// Containers inside one another.
const DEPTH_MAX: usize = 32;
/// Values in one document, containers and scalars together.
const NODES_MAX: usize = 10_000;
/// Bytes of one number.
const NUMBER_BYTES_MAX: usize = 128;
/// The exponent of a double ends here; nothing that is money comes near.
const EXPONENT_MAX: u32 = 308;
/// Names of one object that are compared one by one; past this a set is made.
const NAMES_LINEAR_MAX: usize = 24;
/// Pointers per pass: one bit each.
pub(crate) const POINTERS_MAX: usize = 32;

/// Why a document is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Utf8,
    Syntax,
    Depth,
    TooComplex,
    Number,
    DuplicateKey,
}

/// What stands at a pointer.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) enum Found<'a> {
    #[default]
    Missing,
    Null,
    Bool,
    Container,
    /// As it was spelled.
    Number(&'a str),
    Text(Cow<'a, str>),
}

/// The result of a pass.
#[derive(Debug)]
pub(crate) struct Document<'a> {
    /// One per pointer, in their order.
    pub(crate) found: Vec<Found<'a>>,
    /// Whether the document is an object, an array, or neither.
    pub(crate) root: Root,
    /// The tokens without the white space between them, and `"12"` as `12`; the body itself if it is spelled so.
    pub(crate) comparable: Cow<'a, [u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    Object,
    Array,
    Scalar,
}

/// Reads a whole document. At most [`POINTERS_MAX`] pointers are followed.
pub(crate) fn read<'a>(body: &'a [u8], pointers: &[Pointer]) -> Result<Document<'a>, Fault> {
    let text = std::str::from_utf8(body).map_err(|_| Fault::Utf8)?;
    debug_assert!(pointers.len() <= POINTERS_MAX, "the compiled rules keep to the bound");
    let mut reader = Reader {
        text,
        at: 0,
        nodes: 0,
        pointers,
        names: Vec::with_capacity(NAMES_LINEAR_MAX),
        found: vec![Found::Missing; pointers.len()],
        comparable: Vec::new(),
        compared: 0,
    };
    reader.space();
    let root = match reader.peek() {
        Some(b'{') => Root::Object,
        Some(b'[') => Root::Array,
        _ => Root::Scalar,
    };
    let live = if pointers.len() >= 32 { u32::MAX } else { (1 << pointers.len()) - 1 };
    reader.value(0, live)?;
    reader.space();
    if reader.at != text.len() {
        return Err(Fault::Syntax);
    }
    let comparable = if reader.compared == 0 {
        Cow::Borrowed(body)
    } else {
        reader.leave_out(text.len()..text.len());
        Cow::Owned(reader.comparable)
    };
    Ok(Document { found: reader.found, root, comparable })
}

struct Reader<'a, 'p> {
    text: &'a str,
    at: usize,
    nodes: usize,
    pointers: &'p [Pointer],
    /// The names seen so far in every object that is open, the innermost last.
    names: Vec<Cow<'a, str>>,
    found: Vec<Found<'a>>,
    /// The comparable form of what is in front of `compared`.
    comparable: Vec<u8>,
    compared: usize,
}

impl<'a> Reader<'a, '_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        let start = self.at;
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
        if self.at > start {
            self.leave_out(start..self.at);
        }
    }

    /// Takes everything up to this span into the comparable form, and the span not.
    fn leave_out(&mut self, span: Range<usize>) {
        if self.compared == 0 {
            self.comparable.reserve_exact(self.text.len());
        }
        self.comparable.extend_from_slice(&self.text.as_bytes()[self.compared..span.start]);
        self.compared = span.end;
    }

    /// Takes one byte of structure, or nothing.
    fn take(&mut self, byte: u8) -> bool {
        let is = self.peek() == Some(byte);
        self.at += usize::from(is);
        is
    }

    /// `live` has a bit for each pointer whose first `depth` steps led here.
    fn value(&mut self, depth: usize, live: u32) -> Result<(), Fault> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(Fault::TooComplex);
        }
        let found = match self.peek().ok_or(Fault::Syntax)? {
            b'{' => {
                self.object(depth, live)?;
                Found::Container
            }
            b'[' => {
                self.array(depth, live)?;
                Found::Container
            }
            b'"' => {
                let start = self.at;
                let text = self.string()?;
                if is_number(&text) && text.len() == self.at - start - 2 {
                    self.leave_out(start..start + 1);
                    self.leave_out(self.at - 1..self.at);
                }
                Found::Text(text)
            }
            b't' => self.word("true", Found::Bool)?,
            b'f' => self.word("false", Found::Bool)?,
            b'n' => self.word("null", Found::Null)?,
            _ => Found::Number(self.number()?),
        };
        let mut here = live;
        while here != 0 {
            let index = here.trailing_zeros() as usize;
            here &= here - 1;
            if self.pointers[index].steps().len() == depth {
                self.found[index] = found.clone();
            }
        }
        Ok(())
    }

    /// The pointers of `live` whose next step is this one.
    fn follow(&self, live: u32, depth: usize, step: impl Fn(&str) -> bool) -> u32 {
        let (mut rest, mut next) = (live, 0);
        while rest != 0 {
            let index = rest.trailing_zeros();
            rest &= rest - 1;
            if self.pointers[index as usize].steps().get(depth).is_some_and(|wanted| step(wanted)) {
                next |= 1 << index;
            }
        }
        next
    }

    fn object(&mut self, depth: usize, live: u32) -> Result<(), Fault> {
        self.open(depth, b'{')?;
        let first_name = self.names.len();
        let mut set: Option<HashSet<Cow<'a, str>>> = None;
        self.space();
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            self.space();
            let name = self.string()?;
            let siblings = &self.names[first_name..];
            let seen = match &mut set {
                Some(set) => !set.insert(name.clone()),
                None => siblings.contains(&name),
            };
            if seen {
                return Err(Fault::DuplicateKey);
            }
            let next = self.follow(live, depth, |wanted| wanted == name);
            if set.is_none() {
                self.names.push(name);
                if self.names.len() - first_name > NAMES_LINEAR_MAX {
                    set = Some(self.names.drain(first_name..).collect());
                }
            }
            self.space();
            if !self.take(b':') {
                return Err(Fault::Syntax);
            }
            self.space();
            self.value(depth + 1, next)?;
            self.space();
            if self.take(b'}') {
                self.names.truncate(first_name);
                return Ok(());
            }
            if !self.take(b',') {
                return Err(Fault::Syntax);
            }
        }
    }

    fn array(&mut self, depth: usize, live: u32) -> Result<(), Fault> {
        self.open(depth, b'[')?;
        self.space();
        if self.take(b']') {
            return Ok(());
        }
        for index in 0_usize.. {
            let next =
                if live == 0 { 0 } else { self.follow(live, depth, |wanted| wanted.parse() == Ok(index)) };
            self.space();
            self.value(depth + 1, next)?;
            self.space();
            if self.take(b']') {
                break;
            }
            if !self.take(b',') {
                return Err(Fault::Syntax);
            }
        }
        Ok(())
    }

    fn open(&mut self, depth: usize, byte: u8) -> Result<(), Fault> {
        if depth >= DEPTH_MAX {
            return Err(Fault::Depth);
        }
        self.take(byte);
        Ok(())
    }

    fn word(&mut self, word: &'static str, found: Found<'a>) -> Result<Found<'a>, Fault> {
        if !self.text[self.at..].starts_with(word) {
            return Err(Fault::Syntax);
        }
        self.at += word.len();
        Ok(found)
    }

    fn number(&mut self) -> Result<&'a str, Fault> {
        let rest = &self.text[self.at..];
        let end = rest
            .bytes()
            .position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
            .unwrap_or(rest.len());
        let number = &rest[..end];
        if !is_number(number) {
            return Err(Fault::Syntax);
        }
        if number.len() > NUMBER_BYTES_MAX || !exponent_is_sane(number) {
            return Err(Fault::Number);
        }
        self.at += end;
        Ok(number)
    }

    /// A string as it is meant.
    fn string(&mut self) -> Result<Cow<'a, str>, Fault> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        if self.peek() != Some(b'"') {
            return Err(Fault::Syntax);
        }
        let mut at = start + 1;
        let mut escaped = false;
        loop {
            at += plain_bytes(bytes.get(at..).ok_or(Fault::Syntax)?);
            match bytes.get(at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    at += 2;
                }
                _ => return Err(Fault::Syntax),
            }
        }
        self.at = at + 1;
        let inner = &self.text[start + 1..at];
        Ok(if escaped { Cow::Owned(unescape(inner)?) } else { Cow::Borrowed(inner) })
    }
}

/// How many bytes at the front are neither a quote, nor a backslash, nor a control character. Eight at a time:
/// callbacks are mostly strings.
fn plain_bytes(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_le_bytes([0x01; 8]);
    const HIGHS: u64 = u64::from_le_bytes([0x80; 8]);
    // The high bit of each byte that is below `limit` (at most 0x80); a borrow may mark bytes behind such a one.
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit)) & !word & HIGHS;
    let mut words = bytes.chunks_exact(8);
    let mut plain = 0;
    for chunk in &mut words {
        let mut eight = [0; 8];
        eight.copy_from_slice(chunk);
        let word = u64::from_le_bytes(eight);
        let is_quote = below(word ^ (ONES * u64::from(b'"')), 1);
        let is_backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
        let stops = below(word, 0x20) | is_quote | is_backslash;
        if stops != 0 {
            return plain + (stops.trailing_zeros() / 8) as usize;
        }
        plain += 8;
    }
    let stops = |byte: &u8| matches!(byte, 0..=0x1f | b'"' | b'\\');
    plain + words.remainder().iter().position(stops).unwrap_or(words.remainder().len())
}

fn unescape(inner: &str) -> Result<String, Fault> {
    let mut meant = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        meant.push_str(&rest[..at]);
        let escape = rest.as_bytes().get(at + 1).ok_or(Fault::Syntax)?;
        rest = rest.get(at + 2..).ok_or(Fault::Syntax)?;
        meant.push(match escape {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => unicode(&mut rest)?,
            _ => return Err(Fault::Syntax),
        });
    }
    meant.push_str(rest);
    Ok(meant)
}

/// Four digits behind `\u`, or two such groups that make one character.
fn unicode(rest: &mut &str) -> Result<char, Fault> {
    let first = code_unit(rest)?;
    if !(0xd800..0xdc00).contains(&first) {
        return char::from_u32(first).ok_or(Fault::Syntax);
    }
    *rest = rest.strip_prefix("\\u").ok_or(Fault::Syntax)?;
    let second = code_unit(rest)?;
    if !(0xdc00..0xe000).contains(&second) {
        return Err(Fault::Syntax);
    }
    char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)).ok_or(Fault::Syntax)
}

fn code_unit(rest: &mut &str) -> Result<u32, Fault> {
    let digits = rest
        .get(..4)
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .ok_or(Fault::Syntax)?;
    *rest = &rest[4..];
    u32::from_str_radix(digits, 16).map_err(|_| Fault::Syntax)
}

/// The grammar of RFC 8259, section 6.
pub(crate) fn is_number(text: &str) -> bool {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut at = usize::from(bytes.first() == Some(&b'-'));
    let whole = digits(at);
    if whole == 0 || (whole > 1 && bytes[at] == b'0') {
        return false;
    }
    at += whole;
    if bytes.get(at) == Some(&b'.') {
        let fraction = digits(at + 1);
        if fraction == 0 {
            return false;
        }
        at += 1 + fraction;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1 + usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        let exponent = digits(at);
        if exponent == 0 {
            return false;
        }
        at += exponent;
    }
    at == bytes.len()
}

fn exponent_is_sane(number: &str) -> bool {
    number.split_once(['e', 'E']).is_none_or(|(_, exponent)| {
        exponent.trim_start_matches(['+', '-']).parse::<u32>().is_ok_and(|exponent| exponent <= EXPONENT_MAX)
    })
}

#[cfg(test)]
mod suite;
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fault(body: impl AsRef<[u8]>) -> Option<Fault> {
        read(body.as_ref(), &[]).err()
    }

    fn comparable(body: &str) -> String {
        String::from_utf8(read(body.as_bytes(), &[]).unwrap().comparable.into_owned()).unwrap()
    }

    #[test]
    fn bounds_and_strictness() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        let items = |count: usize| format!("[{}]", vec!["0"; count].join(","));
        assert_eq!(fault(nested(DEPTH_MAX)), None);
        assert_eq!(fault(nested(DEPTH_MAX + 1)), Some(Fault::Depth));
        assert_eq!(fault("[".repeat(100_000)), Some(Fault::Depth));
        assert_eq!(fault(items(NODES_MAX - 1)), None);
        assert_eq!(fault(items(NODES_MAX)), Some(Fault::TooComplex));
        assert_eq!(fault("1".repeat(NUMBER_BYTES_MAX)), None);
        assert_eq!(fault("1".repeat(NUMBER_BYTES_MAX + 1)), Some(Fault::Number));
        for number in ["1e400", "1E-309", &format!("1e{}", "0".repeat(10_000))] {
            assert_eq!(fault(number), Some(Fault::Number), "{number}");
        }
        for wrong in [
            "",
            " ",
            "{\"a\":1,}",
            "[1,]",
            "[,1]",
            "{a:1}",
            "{\"a\" 1}",
            "{\"a\":}",
            "01",
            "+1",
            ".5",
            "1.",
            "1e",
            "-",
            "0x10",
            "NaN",
            "tru",
            "'a'",
            "\"a",
            "\"\\x41\"",
            "\"\\",
            "\"\n\"",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "\"\\udc00\"",
            "\"\\u+123\"",
            "1 2",
            "{}{}",
            "{/**/}",
            "\u{feff}{}",
            "\u{a0}1",
            "[1 2]",
            "\"\\é\"",
        ] {
            assert_eq!(fault(wrong), Some(Fault::Syntax), "{wrong}");
        }
        for wrong in [&b"\"\xc0\xaf\""[..], b"\"\xed\xa0\x80\"", b"\"\x80\"", b"\"\xe2\x82\""] {
            assert_eq!(fault(wrong), Some(Fault::Utf8));
        }
    }

    #[test]
    fn a_name_twice_is_refused_however_it_is_spelled_and_however_many_there_are() {
        assert_eq!(fault(r#"{"a":1,"a":1}"#), Some(Fault::DuplicateKey));
        assert_eq!(fault(r#"{"a":1,"\u0061":1}"#), Some(Fault::DuplicateKey));
        assert_eq!(fault(r#"{"a":{"a":1},"b":[{"a":1},{"a":2}]}"#), None);
        for count in [2, NAMES_LINEAR_MAX, NAMES_LINEAR_MAX + 1, 200] {
            let members = |last: usize| {
                let names =
                    (0..count).map(|n| format!("\"n{n}\":{{\"x\":1}}")).chain([format!("\"n{last}\":0")]);
                format!("{{{}}}", names.collect::<Vec<_>>().join(","))
            };
            assert_eq!(fault(members(count)), None, "{count}");
            for last in [0, count / 2, count - 1] {
                assert_eq!(fault(members(last)), Some(Fault::DuplicateKey), "{count} {last}");
            }
        }
    }

    #[test]
    fn values_are_found_by_pointer() {
        let body =
            r#" { "a" : { "b" : [ 10 , {"c":"x\ny"} ] } , "a~/b" : 1001.00, "n":null, "t":true, "":"e" } "#;
        let found = |pointer: &str| {
            let pointer = Pointer::parse(pointer).unwrap();
            read(body.as_bytes(), std::slice::from_ref(&pointer)).unwrap().found.remove(0)
        };
        assert_eq!(found("/a/b/0"), Found::Number("10"));
        assert_eq!(found("/a/b/1/c"), Found::Text("x\ny".into()));
        assert_eq!(found("/a~0~1b"), Found::Number("1001.00"));
        assert_eq!(found("/n"), Found::Null);
        assert_eq!(found("/t"), Found::Bool);
        assert_eq!(found("/a"), Found::Container);
        assert_eq!(found("/"), Found::Text("e".into()));
        assert_eq!(found("/a/c"), Found::Missing);
    }

    #[test]
    fn the_comparable_form_knows_neither_white_space_nor_quotes_around_numbers() {
        assert_eq!(
            comparable(" { \"a\" : [ 12 , \"12\" , \"x y\" , \"012\" ] } "),
            "{\"a\":[12,12,\"x y\",\"012\"]}"
        );
        assert_eq!(comparable("{\"12\":-1.50e3}"), "{\"12\":-1.50e3}");
        assert_ne!(comparable("[1.0]"), comparable("[1.00]"));
    }

    proptest! {
        #[test]
        fn what_is_valid_agrees_with_serde_json(text in "[ \\[\\]{},:\"\\\\a-c0-2tfnu.eE+-]{0,24}") {
            let theirs = serde_json::from_str::<serde_json::Value>(&text).is_ok();
            match fault(&text) {
                None => prop_assert!(theirs, "{text}"),
                Some(Fault::Syntax) => prop_assert!(!theirs, "{text}"),
                Some(_) => {}
            }
        }

        #[test]
        fn a_mutated_document_is_judged_as_serde_json_judges_it(at in 0_usize..200, byte in any::<u8>()) {
            let mut body = br#"{"eventType":"cip.paid","operationNumber":"12\u0041","data":{"cip":11546901,"amounts":[22.05,-1e2,0],"x":[true,false,null,{}],"y":"\ud83d\ude00"}}"#.to_vec();
            let at = at % body.len();
            body[at] = byte;
            let theirs = serde_json::from_slice::<serde_json::Value>(&body).is_ok();
            match fault(&body) {
                None => prop_assert!(theirs),
                Some(Fault::Syntax | Fault::Utf8) => prop_assert!(!theirs),
                Some(_) => {}
            }
        }
    }

    proptest! {
        #[test]
        fn plain_bytes_end_where_a_byte_by_byte_look_says(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let stops = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
            prop_assert_eq!(plain_bytes(&bytes), bytes.iter().position(stops).unwrap_or(bytes.len()));
        }
    }
}
