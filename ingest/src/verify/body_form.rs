//! The forms of a body that a signature may cover.
//!
//! Minifying works on tokens: white space outside strings goes, everything else stays as spelled. It judges
//! no syntax. Text that is not JSON could be run together (`1 2` becomes `12`), which is why the content rules
//! read the bytes received and never this form.

use std::borrow::Cow;

/// The body without white space between its tokens; borrowed when there is none.
pub(crate) fn minify(body: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = first_gap(body) else { return Cow::Borrowed(body) };
    let mut minified = Vec::with_capacity(body.len());
    minified.extend_from_slice(&body[..first]);
    let mut in_string = false;
    let mut escaped = false;
    // `first` stands outside every string.
    for &byte in &body[first..] {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if is_space(byte) {
            continue;
        } else {
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
