//! Strict JSON in one pass over the bytes: validity within bounds, the values at given pointers, and the
//! comparable form that tells a resend from other content.
//!
//! Strict: UTF-8, one document, no byte-order mark, no name twice in an object, no lone surrogate. Bounded:
//! depth, nodes, length of numbers. Numbers stay the text they were sent as; nothing is printed again.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

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
/// Pointers per pass.
pub(crate) const POINTERS_MAX: usize = 32;

/// Why a document is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
// As wide as a word, see `Refusal`.
#[repr(u64)]
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

/// Where to look: pointers as a tree of their steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places {
    /// The pointers that end here, by their numbers.
    here: Vec<usize>,
    /// What leads on from here.
    steps: Vec<(String, Places)>,
    /// How many pointers the tree has; at its root.
    count: usize,
}

impl Places {
    /// Of pointers by their steps, numbered in their order.
    pub(crate) fn of<'p>(pointers: impl IntoIterator<Item = &'p [String]>) -> Self {
        let mut places = Self::default();
        for (number, pointer) in pointers.into_iter().enumerate() {
            places.count += 1;
            let mut place = &mut places;
            for step in pointer {
                let known = place.steps.iter().position(|(known, _)| known == step);
                let index = known.unwrap_or_else(|| {
                    place.steps.push((step.clone(), Self::default()));
                    place.steps.len() - 1
                });
                place = &mut place.steps[index].1;
            }
            place.here.push(number);
        }
        places
    }

    fn find(&self, is_step: impl Fn(&str) -> bool) -> Option<&Self> {
        self.steps.iter().find(|(step, _)| is_step(step)).map(|(_, place)| place)
    }
}

/// Reads a whole document, and what stands at these places.
pub(crate) fn read<'a>(body: &'a [u8], places: &Places) -> Result<Document<'a>, Fault> {
    let text = std::str::from_utf8(body).map_err(|_| Fault::Utf8)?;
    let mut reader = Reader {
        text,
        at: 0,
        nodes: 0,
        names: Vec::with_capacity(NAMES_LINEAR_MAX),
        found: vec![Found::Missing; places.count],
        comparable: Vec::new(),
        compared: 0,
    };
    let first = reader.next();
    let root = match first {
        Some(b'{') => Root::Object,
        Some(b'[') => Root::Array,
        _ => Root::Scalar,
    };
    reader.value(first, 0, Some(places))?;
    if reader.next().is_some() {
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

struct Reader<'a> {
    text: &'a str,
    at: usize,
    nodes: usize,
    /// The names seen so far in every object that is open, the innermost last.
    names: Vec<&'a str>,
    found: Vec<Found<'a>>,
    /// The comparable form of what is in front of `compared`.
    comparable: Vec<u8>,
    compared: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// What follows the white space.
    fn next(&mut self) -> Option<u8> {
        let next = self.peek()?;
        if next > b' ' { Some(next) } else { self.space(next) }
    }

    /// The same where there may be some.
    #[cold]
    fn space(&mut self, first: u8) -> Option<u8> {
        let start = self.at;
        let mut next = Some(first);
        while matches!(next, Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
            next = self.peek();
        }
        if self.at > start {
            self.leave_out(start..self.at);
        }
        next
    }

    /// Takes everything up to this span into the comparable form, and the span not.
    fn leave_out(&mut self, span: Range<usize>) {
        if self.compared == 0 {
            self.comparable.reserve_exact(self.text.len());
        }
        self.comparable.extend_from_slice(&self.text.as_bytes()[self.compared..span.start]);
        self.compared = span.end;
    }

    /// The value that begins here with `first`; `place` is where that is, if any pointer leads here or further.
    ///
    /// Within a container it is part of its loop, so that only containers cost a call.
    #[inline(always)]
    fn value(&mut self, first: Option<u8>, depth: usize, place: Option<&Places>) -> Result<(), Fault> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(Fault::TooComplex);
        }
        let found = match first.ok_or(Fault::Syntax)? {
            b'{' => {
                self.object(depth, place)?;
                Found::Container
            }
            b'[' => {
                self.array(depth, place)?;
                Found::Container
            }
            b'"' => {
                let start = self.at;
                let spelled = self.string()?;
                if is_number(spelled.inner) {
                    self.leave_out(start..start + 1);
                    self.leave_out(self.at - 1..self.at);
                }
                Found::Text(spelled.meant()?)
            }
            b't' => self.word("true", Found::Bool)?,
            b'f' => self.word("false", Found::Bool)?,
            b'n' => self.word("null", Found::Null)?,
            _ => Found::Number(self.number()?),
        };
        if let Some((last, others)) = place.and_then(|place| place.here.split_last()) {
            others.iter().for_each(|number| self.found[*number] = found.clone());
            self.found[*last] = found;
        }
        Ok(())
    }

    fn object(&mut self, depth: usize, place: Option<&Places>) -> Result<(), Fault> {
        self.open(depth)?;
        let first_name = self.names.len();
        let mut set: Option<HashSet<Cow<'a, str>>> = None;
        if self.next() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            if self.next() != Some(b'"') {
                return Err(Fault::Syntax);
            }
            let spelled = self.string()?;
            let name = spelled.meant()?;
            let next = place.and_then(|place| place.find(|step| step == name));
            let siblings = &self.names[first_name..];
            if set.is_none() && (spelled.escaped || siblings.len() == NAMES_LINEAR_MAX) {
                set = Some(siblings.iter().map(|name| Cow::Borrowed(*name)).collect());
            }
            let is_known = match &mut set {
                Some(set) => !set.insert(name),
                None => siblings.contains(&spelled.inner),
            };
            if is_known {
                return Err(Fault::DuplicateKey);
            }
            if set.is_none() {
                self.names.push(spelled.inner);
            }
            if self.next() != Some(b':') {
                return Err(Fault::Syntax);
            }
            self.at += 1;
            let first = self.next();
            self.value(first, depth + 1, next)?;
            match self.next() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(Fault::Syntax),
            }
        }
        self.at += 1;
        self.names.truncate(first_name);
        Ok(())
    }

    fn array(&mut self, depth: usize, place: Option<&Places>) -> Result<(), Fault> {
        self.open(depth)?;
        let mut first = self.next();
        if first == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        for index in 0_usize.. {
            let next = place.and_then(|place| place.find(|step| step.parse() == Ok(index)));
            self.value(first, depth + 1, next)?;
            match self.next() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return Err(Fault::Syntax),
            }
            first = self.next();
        }
        self.at += 1;
        Ok(())
    }

    /// Goes into a container that stands here.
    fn open(&mut self, depth: usize) -> Result<(), Fault> {
        if depth >= DEPTH_MAX {
            return Err(Fault::Depth);
        }
        self.at += 1;
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
        let digits = number(rest.as_bytes()).ok_or(Fault::Syntax)?;
        // What could go on with a number makes another one of it, or none.
        if matches!(rest.as_bytes().get(digits.end), Some(b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')) {
            return Err(Fault::Syntax);
        }
        let number = &rest[..digits.end];
        if number.len() > NUMBER_BYTES_MAX || !exponent_is_sane(&number[digits.exponent..]) {
            return Err(Fault::Number);
        }
        self.at += number.len();
        Ok(number)
    }

    /// The string whose quote stands here. Most of a document is strings: a call each would be a tenth of the pass.
    #[inline(always)]
    fn string(&mut self) -> Result<Spelled<'a>, Fault> {
        let bytes = self.text.as_bytes();
        let start = self.at + 1;
        let mut end = start;
        let mut escaped = false;
        loop {
            end = plain_end(bytes, end);
            match bytes.get(end) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    end += 2;
                }
                _ => return Err(Fault::Syntax),
            }
        }
        self.at = end + 1;
        Ok(Spelled { inner: &self.text[start..end], escaped })
    }
}

/// A string as it stands between its quotes.
#[derive(Clone, Copy)]
struct Spelled<'a> {
    inner: &'a str,
    /// Whether it means something else than it says.
    escaped: bool,
}

impl<'a> Spelled<'a> {
    #[inline(always)]
    fn meant(self) -> Result<Cow<'a, str>, Fault> {
        Ok(if self.escaped { Cow::Owned(unescape(self.inner)?) } else { Cow::Borrowed(self.inner) })
    }
}

/// Where, from `at` on, the first quote, backslash or control character is. Eight bytes at a time: callbacks are mostly
/// strings.
#[inline(always)]
fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = u64::from_le_bytes([0x01; 8]);
    const HIGHS: u64 = u64::from_le_bytes([0x80; 8]);
    while let Some(eight) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let word = u64::from_le_bytes(*eight);
        // A byte that is less than what is taken from it borrows, and its high bit is set; so may be those behind it.
        let control = word.wrapping_sub(ONES * 0x20);
        let quote = (word ^ (ONES * u64::from(b'"'))).wrapping_sub(ONES);
        let backslash = (word ^ (ONES * u64::from(b'\\'))).wrapping_sub(ONES);
        let stops = (control | quote | backslash) & !word & HIGHS;
        if stops != 0 {
            return at + (stops.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while bytes.get(at).is_some_and(|byte| !matches!(byte, 0..=0x1f | b'"' | b'\\')) {
        at += 1;
    }
    at
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

/// Where the parts of a number end.
struct Digits {
    /// Its exponent begins here; where it has none, this is its end.
    exponent: usize,
    end: usize,
}

/// The number at the front, by the grammar of RFC 8259, section 6.
fn number(bytes: &[u8]) -> Option<Digits> {
    let some_digits = |from: usize| {
        let rest = bytes.get(from..)?;
        let count = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
        (count > 0).then_some(from + count)
    };
    let start = usize::from(bytes.first() == Some(&b'-'));
    let mut end = some_digits(start)?;
    if bytes[start] == b'0' && end > start + 1 {
        return None;
    }
    if bytes.get(end) == Some(&b'.') {
        end = some_digits(end + 1)?;
    }
    let exponent = end;
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let is_signed = matches!(bytes.get(end + 1), Some(b'+' | b'-'));
        end = some_digits(end + 1 + usize::from(is_signed))?;
    }
    Some(Digits { exponent, end })
}

/// Whether all of this is one number.
pub(crate) fn is_number(text: &str) -> bool {
    number(text.as_bytes()).is_some_and(|number| number.end == text.len())
}

/// Whether an exponent, from its `e` on, is one that money may have; none is.
fn exponent_is_sane(exponent: &str) -> bool {
    let digits = exponent.trim_start_matches(['e', 'E', '+', '-']);
    exponent.is_empty() || digits.parse::<u32>().is_ok_and(|exponent| exponent <= EXPONENT_MAX)
}

#[cfg(test)]
mod suite;
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::location::Pointer;

    fn fault(body: impl AsRef<[u8]>) -> Option<Fault> {
        read(body.as_ref(), &Places::default()).err()
    }

    fn comparable(body: &str) -> String {
        String::from_utf8(read(body.as_bytes(), &Places::default()).unwrap().comparable.into_owned()).unwrap()
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
            read(body.as_bytes(), pointer.places()).unwrap().found.remove(0)
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
        fn plain_bytes_end_where_a_byte_by_byte_look_says(
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
            from in 0_usize..40,
        ) {
            let from = from.min(bytes.len());
            let stops = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
            let end = bytes[from..].iter().position(stops).map_or(bytes.len(), |count| from + count);
            prop_assert_eq!(plain_end(&bytes, from), end);
        }
    }

    #[test]
    fn several_pointers_are_followed_in_one_pass_also_to_one_place_and_through_one_another() {
        let pointers = ["/a", "/a/b", "/c/1", "/a/b", "/c", "/c/1/d", "/e"];
        let pointers: Vec<_> = pointers.iter().map(|text| Pointer::parse(text).unwrap()).collect();
        let found = |body: &'static str| {
            read(body.as_bytes(), &Places::of(pointers.iter().map(Pointer::steps))).unwrap().found
        };
        use Found::{Container, Missing, Number};
        assert_eq!(
            found(r#"{"c":[0,{"d":1}],"a":{"b":2,"e":3}}"#),
            [Container, Number("2"), Container, Number("2"), Container, Number("1"), Missing]
        );
        assert_eq!(
            found(r#"{"a":4,"c":{"1":5}}"#),
            [Number("4"), Missing, Number("5"), Missing, Container, Missing, Missing]
        );
    }
}
