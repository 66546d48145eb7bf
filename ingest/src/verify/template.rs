//! The text a signature covers, as a template: literals, variables, and parts that may drop out.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::location::Location;
use crate::source::{Faults, SpecError, SpecErrors};

const FIELD: &str = "signature.template";

/// One variable of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Variable {
    Body,
    Timestamp,
    At(Location),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Literal(Vec<u8>),
    Variable(Variable, Filters),
    /// Left out as a whole when a variable inside is missing.
    Optional(Vec<Piece>),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filters {
    /// ASCII letters become lower case.
    lower: bool,
    /// `\/` becomes `/`.
    unslash: bool,
}

/// A compiled template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template(Vec<Piece>);

impl Template {
    pub(crate) fn compile(text: &str, constants: &BTreeMap<String, String>) -> Result<Self, SpecErrors> {
        let mut faults = Faults::default();
        let mut pieces = Vec::new();
        let mut optional: Option<Vec<Piece>> = None;
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let literal_end = rest.find(['{', '[', ']', '}']).unwrap_or(rest.len());
            let piece = match first {
                '[' if optional.is_none() => {
                    optional = Some(Vec::new());
                    rest = &rest[1..];
                    continue;
                }
                ']' => {
                    rest = &rest[1..];
                    let inside = optional.take().ok_or_else(|| wrong("a ] without its ["))?;
                    pieces.push(Piece::Optional(inside));
                    continue;
                }
                '{' => {
                    let end = rest.find('}').ok_or_else(|| wrong("a { without its }"))?;
                    let piece = faults.keep(variable(&rest[1..end], constants));
                    rest = &rest[end + 1..];
                    let Some(piece) = piece else { continue };
                    piece
                }
                '[' | '}' => return Err(wrong(&format!("a stray {first}")).into()),
                _ => {
                    let piece = Piece::Literal(rest[..literal_end].into());
                    rest = &rest[literal_end..];
                    piece
                }
            };
            optional.as_mut().unwrap_or(&mut pieces).push(piece);
        }
        if optional.is_some() {
            return Err(wrong("a [ without its ]").into());
        }
        let template = Self(pieces);
        if faults.is_empty() && template.variables().next().is_none() {
            let wrong = "no variable, so every request has the same signature";
            return Err(SpecError::new(FIELD, wrong, "for example {body}").into());
        }
        faults.finish(Some(template))
    }

    /// The variables, each with whether it may be missing.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&Variable, bool)> {
        self.0.iter().flat_map(|piece| {
            let (pieces, optional) = match piece {
                Piece::Optional(inside) => (inside.as_slice(), true),
                single => (std::slice::from_ref(single), false),
            };
            pieces.iter().filter_map(move |piece| match piece {
                Piece::Variable(variable, _) => Some((variable, optional)),
                _ => None,
            })
        })
    }

    pub(crate) fn uses(&self, wanted: &Variable) -> bool {
        self.variables().any(|(variable, _)| variable == wanted)
    }

    /// The signed text in parts; none when a variable is missing that may not be. `value` finds a variable. A value in a
    /// part that may drop out must not hold the text behind it, where it ends: as another part that dropped out it could
    /// be signed as well. Then there is none, either.
    pub(crate) fn render<'v, E>(
        &'v self,
        mut value: impl FnMut(&'v Variable) -> Result<Option<Cow<'v, [u8]>>, E>,
    ) -> Result<Option<Vec<Cow<'v, [u8]>>>, E> {
        let mut parts = Vec::with_capacity(self.0.len());
        for piece in &self.0 {
            let (pieces, optional) = match piece {
                Piece::Optional(inside) => (inside.as_slice(), true),
                single => (std::slice::from_ref(single), false),
            };
            let start = parts.len();
            let mut is_whole = true;
            // Each is asked for, also behind one that is missing: what cannot be told is an error wherever it stands.
            for (at, piece) in pieces.iter().enumerate() {
                let part = match piece {
                    Piece::Literal(text) => Some(Cow::Borrowed(text.as_slice())),
                    Piece::Variable(variable, filters) => value(variable)?.map(|found| filters.apply(found)),
                    Piece::Optional(_) => None,
                };
                if optional
                    && let (Piece::Variable(..), Some(part)) = (piece, &part)
                    && let Some(Piece::Literal(end)) = pieces.get(at + 1)
                    && holds(part, end)
                {
                    return Ok(None);
                }
                match part {
                    Some(part) => parts.push(part),
                    None if optional => is_whole = false,
                    None => return Ok(None),
                }
            }
            if !is_whole {
                parts.truncate(start);
            }
        }
        Ok(Some(parts))
    }
}

fn variable(text: &str, constants: &BTreeMap<String, String>) -> Result<Piece, SpecError> {
    let mut words = text.split('|');
    let name = words.next().unwrap_or_default();
    let mut filters = Filters::default();
    for filter in words {
        match filter {
            "lower" => filters.lower = true,
            "unslash" => filters.unslash = true,
            other => {
                return Err(SpecError::new(
                    FIELD,
                    format!("no filter is called {other}"),
                    "lower or unslash",
                ));
            }
        }
    }
    if let Some(constant) = name.strip_prefix("const:") {
        let value = constants.get(constant).ok_or_else(|| {
            SpecError::new(
                &format!("signature.const.{constant}"),
                "the template asks for it and it is not there",
                "a text",
            )
        })?;
        return Ok(Piece::Literal(filters.apply(Cow::Borrowed(value.as_bytes())).into_owned()));
    }
    let variable = match name {
        "body" => Variable::Body,
        "ts" => Variable::Timestamp,
        location => Variable::At(Location::parse(location).map_err(|right| {
            SpecError::new(
                FIELD,
                format!("{{{location}}} is not known"),
                format!("{{body}}, {{ts}}, {{const:NAME}} or {right} in braces"),
            )
        })?),
    };
    Ok(Piece::Variable(variable, filters))
}

fn holds(text: &[u8], wanted: &[u8]) -> bool {
    !wanted.is_empty() && text.windows(wanted.len()).any(|window| window == wanted)
}

fn wrong(what: &str) -> SpecError {
    SpecError::new(FIELD, what, "literals, {variables} and [parts that may drop out]")
}

impl Filters {
    fn apply(self, text: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
        let mut text = text;
        if self.unslash && text.windows(2).any(|pair| pair == b"\\/") {
            text = Cow::Owned(unslash(&text));
        }
        if self.lower && text.iter().any(u8::is_ascii_uppercase) {
            text = Cow::Owned(text.to_ascii_lowercase());
        }
        text
    }
}

fn unslash(text: &[u8]) -> Vec<u8> {
    let drops = |at: usize| text[at] == b'\\' && text.get(at + 1) == Some(&b'/');
    (0..text.len()).filter(|at| !drops(*at)).map(|at| text[at]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn render(template: &str, known: &[(&str, &str)]) -> Option<String> {
        let constants = BTreeMap::from([("login".to_owned(), "me".to_owned())]);
        let template = Template::compile(template, &constants).unwrap();
        let find = |variable: &Variable| {
            let name = match variable {
                Variable::Body => "body".to_owned(),
                Variable::Timestamp => "ts".to_owned(),
                Variable::At(location) => location.to_string(),
            };
            let found = known
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| Cow::Owned(value.as_bytes().to_vec()));
            Ok::<_, ()>(found)
        };
        let parts = template.render(find).unwrap()?;
        Some(String::from_utf8(parts.concat()).unwrap())
    }

    #[test]
    fn literals_variables_and_constants_are_joined() {
        assert_eq!(render("v0:{ts}:{body}", &[("ts", "1"), ("body", "x")]).as_deref(), Some("v0:1:x"));
        assert_eq!(render("{const:login}{ts}{body}", &[("ts", "1"), ("body", "x")]).as_deref(), Some("me1x"));
        assert_eq!(render("{header:a|lower}", &[("header:a", "AbC")]).as_deref(), Some("abc"));
        assert_eq!(render("{form:a|unslash}", &[("form:a", r"\/a\\/b\n")]).as_deref(), Some(r"/a\/b\n"));
        assert_eq!(render("{ts}.{body}", &[("body", "x")]), None);
    }

    #[test]
    fn a_part_in_brackets_drops_out_as_a_whole() {
        let template = "[id:{query:data.id};][request-id:{header:x-request-id};]ts:{ts};";
        assert_eq!(
            render(template, &[("ts", "1"), ("header:x-request-id", "r")]).as_deref(),
            Some("request-id:r;ts:1;")
        );
        assert_eq!(render(template, &[("ts", "1"), ("query:data.id", "i")]).as_deref(), Some("id:i;ts:1;"));
        let moved = "i;request-id:r";
        assert_eq!(render(template, &[("ts", "1"), ("query:data.id", moved)]), None, "the text of i and r");
    }

    #[test]
    fn a_template_that_cannot_be_meant_is_refused() {
        for wrong in [
            "",
            "x",
            "{",
            "}",
            "[",
            "]",
            "[[{body}]]",
            "{bod}",
            "{body|upper}",
            "{const:nobody}",
            "{header:a b}",
        ] {
            assert!(Template::compile(wrong, &BTreeMap::new()).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(text in "[a-z{}\\[\\]:|/.]{0,30}") {
            let _ = Template::compile(&text, &BTreeMap::new());
        }
    }
}
