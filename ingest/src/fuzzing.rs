//! What the fuzzers run: the edge's own code beside a slow, plain version of it that was written from its documentation.

mod description;
mod document;
#[cfg(test)]
mod forgery;
mod frames;
mod plain;
mod proxied;
mod request;
mod spelling;

use chaski_common::fuzzing::Target;

/// Every target of this crate.
pub const TARGETS: &[Target] = &[
    Target { name: "request", run: request::run },
    Target { name: "http2", run: frames::run },
    Target { name: "proxy", run: proxied::run },
    Target { name: "json", run: document::run },
    Target { name: "template", run: description::template },
    Target { name: "scheme", run: description::scheme },
    Target { name: "timestamp", run: spelling::run },
];

#[cfg(test)]
mod tests {
    use chaski_common::fuzzing::brief;

    use super::*;

    fn target(name: &str) -> Target {
        *TARGETS.iter().find(|target| target.name == name).unwrap()
    }

    #[test]
    fn every_byte_sequence_is_answered_and_none_is_accepted_unsigned() {
        brief(target("request"));
    }

    #[test]
    fn every_sequence_of_frames_is_answered_and_none_is_accepted_unsigned() {
        brief(target("http2"));
    }

    #[test]
    fn proxy_headers_are_read_as_a_plain_reading_has_them_and_no_further() {
        brief(target("proxy"));
    }

    #[test]
    fn documents_are_read_as_a_second_parser_reads_them() {
        brief(target("json"));
    }

    #[test]
    fn templates_render_as_a_plain_reading_has_them() {
        brief(target("template"));
    }

    #[test]
    fn requests_are_verified_as_a_plain_reading_has_it() {
        brief(target("scheme"));
    }

    #[test]
    fn times_are_read_as_a_calendar_made_by_hand_has_them() {
        brief(target("timestamp"));
    }
}
