//! The forms of a body that a signature may cover.
//!
//! Minifying works on tokens: white space outside strings goes, everything else stays as spelled. It judges
//! no syntax, but two tokens stay two: where only white space keeps them apart (`22 .05`, which is no JSON) one blank
//! stays, or whoever has a signed text could make others of it that nobody signed.

use std::borrow::Cow;

use super::BodyForm;

impl BodyForm {
    /// The body in this form; borrowed when it has no other.
    pub(crate) fn of(self, body: &[u8]) -> Cow<'_, [u8]> {
        match self {
            Self::Raw => Cow::Borrowed(body),
            Self::Minified => minify(body),
        }
    }
}

/// The body without white space between its tokens; borrowed when there is none.
fn minify(body: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = first_gap(body) else { return Cow::Borrowed(body) };
    let mut minified = Vec::with_capacity(body.len());
    minified.extend_from_slice(&body[..first]);
    let mut in_string = false;
    let mut escaped = false;
    let mut is_behind_space = false;
    // `first` stands outside every string.
    for &byte in &body[first..] {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if is_space(byte) {
            is_behind_space = true;
            continue;
        } else {
            let before = minified.last().copied();
            if is_behind_space && !ends_token(byte) && before.is_some_and(|before| !ends_token(before)) {
                minified.push(b' ');
            }
            is_behind_space = false;
            in_string = byte == b'"';
        }
        minified.push(byte);
    }
    Cow::Owned(minified)
}

fn first_gap(body: &[u8]) -> Option<usize> {
    let mut in_string = false;
    let mut escaped = false;
    body.iter().position(|&byte| {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            false
        } else {
            in_string = byte == b'"';
            is_space(byte)
        }
    })
}

/// Whether no token goes on across this byte.
const fn ends_token(byte: u8) -> bool {
    matches!(byte, b'{' | b'}' | b'[' | b']' | b':' | b',' | b'"')
}

const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn white_space_goes_and_strings_and_numbers_stay() {
        let body = b" { \"a b\\\" c\" :\r\n\t1001.00 , \"d\" : [ 1 , \"\\\\\" , 2 ] } ";
        assert_eq!(minify(body).as_ref(), b"{\"a b\\\" c\":1001.00,\"d\":[1,\"\\\\\",2]}");
        assert!(matches!(minify(b"{\"a b\":1}"), Cow::Borrowed(_)));
        assert_eq!(minify(b" [ 22 .05 , 1 \n 2, tr ue ] x ").as_ref(), b"[22 .05,1 2,tr ue]x");
    }

    /// JSON with random white space, beside the same without any.
    fn spaced() -> impl Strategy<Value = (String, String)> {
        let gap = "[ \t\r\n]{0,3}";
        let leaf = prop_oneof![
            "\"([ a-z]|\\\\\"|\\\\\\\\|\\\\u00e9)*\"".prop_map(|text| (text.clone(), text)),
            "-?[1-9][0-9]{0,5}(\\.[0-9]{1,3})?".prop_map(|text| (text.clone(), text)),
        ];
        let value = leaf.prop_recursive(4, 32, 4, move |inner| {
            prop::collection::vec((gap, inner, gap), 0..4).prop_map(|items| {
                let wide: Vec<String> =
                    items.iter().map(|(a, (wide, _), b)| format!("{a}{wide}{b}")).collect();
                let slim: Vec<String> = items.iter().map(|(_, (_, slim), _)| slim.clone()).collect();
                (format!("[{}]", wide.join(",")), format!("[{}]", slim.join(",")))
            })
        });
        (gap, value, gap).prop_map(|(a, (wide, slim), b)| (format!("{a}{wide}{b}"), slim))
    }

    proptest! {
        #[test]
        fn any_white_space_between_tokens_is_removed_and_nothing_else((wide, slim) in spaced()) {
            prop_assert_eq!(minify(wide.as_bytes()), slim.as_bytes());
            prop_assert_eq!(minify(slim.as_bytes()), slim.as_bytes());
        }
    }
}
