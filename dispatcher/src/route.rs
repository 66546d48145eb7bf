//! Whether a destination takes an event. Pure.

use std::sync::Arc;

use chaski_common::event::{Event, TYPE_UNKNOWN};

use crate::destination::DestinationSpec;

/// What one destination takes.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    sources: Vec<Arc<str>>,
    known_sources: Vec<Arc<str>>,
    /// Empty means all.
    kinds: Vec<Pattern>,
}

/// Where an event goes, as one destination sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To this destination.
    There,
    /// Not to this one, as the configuration says.
    Past,
    /// Its source is not configured (any more), so the configuration says nothing about it.
    Nowhere,
}

#[derive(Clone, Debug)]
enum Pattern {
    Exact(Box<str>),
    Prefix(Box<str>),
}

impl Route {
    pub(crate) fn new(spec: &DestinationSpec) -> Self {
        let pattern = |text: &String| match text.strip_suffix('*') {
            Some(prefix) => Pattern::Prefix(prefix.into()),
            None => Pattern::Exact(text.as_str().into()),
        };
        Self {
            sources: spec.sources.clone(),
            known_sources: spec.known_sources.clone(),
            kinds: spec.events.iter().map(pattern).collect(),
        }
    }

    /// Whether this event goes there.
    pub(crate) fn way(&self, event: &Event) -> Way {
        let kind_fits = |pattern: &Pattern| match pattern {
            Pattern::Exact(kind) => **kind == *event.kind,
            Pattern::Prefix(prefix) => event.kind.starts_with(&**prefix),
        };
        if self.sources.contains(&event.source) {
            // An event without a type is filtered by nobody: what was redriven from quarantine has none.
            let fits =
                self.kinds.is_empty() || *event.kind == *TYPE_UNKNOWN || self.kinds.iter().any(kind_fits);
            if fits { Way::There } else { Way::Past }
        } else if self.known_sources.contains(&event.source) {
            Way::Past
        } else {
            Way::Nowhere
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{event, spec};

    #[test]
    fn an_event_without_a_type_passes_any_filter_of_its_source() {
        assert!(takes(&["pe"], &["cip.*"], "pe", TYPE_UNKNOWN));
        assert!(!takes(&["pe"], &["cip.*"], "other", TYPE_UNKNOWN));
    }

    fn takes(sources: &[&str], kinds: &[&str], source: &str, kind: &str) -> bool {
        let mut spec = spec("erp", "http://127.0.0.1:1/");
        spec.sources = sources.iter().map(|name| Arc::from(*name)).collect();
        spec.events = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        let mut event = event(1);
        (event.source, event.kind) = (source.into(), kind.into());
        Route::new(&spec).way(&event) == Way::There
    }

    #[test]
    fn an_event_goes_where_its_source_and_its_type_are_named() {
        assert!(takes(&["pe"], &[], "pe", "anything"));
        assert!(!takes(&["pe"], &[], "pe-sandbox", "anything"));
        assert!(!takes(&[], &[], "pe", "anything"), "no source is spelled out");
        let cases = [
            ("cip.paid", true),
            ("cip.expired", true),
            ("cip", false),
            ("cip.", true),
            ("CIP.PAID", false),
            ("order.made", true),
            ("order.made2", false),
        ];
        for (kind, expected) in cases {
            assert_eq!(takes(&["pe"], &["cip.*", "order.made"], "pe", kind), expected, "{kind}");
        }
    }

    #[test]
    fn an_event_of_no_configured_source_goes_nowhere_and_not_past() {
        let mut spec = spec("erp", "http://127.0.0.1:1/");
        spec.known_sources = vec!["pe".into(), "pe-sandbox".into()];
        let way = |source: &str| {
            let mut event = event(1);
            event.source = source.into();
            Route::new(&spec).way(&event)
        };
        assert_eq!((way("pe"), way("pe-sandbox"), way("pf")), (Way::There, Way::Past, Way::Nowhere));
    }

    proptest! {
        #[test]
        fn a_star_takes_what_begins_like_it_and_nothing_else(pattern in "[a-c.]{0,4}", kind in "[a-c.]{1,6}") {
            prop_assert_eq!(takes(&["s"], &[&format!("{pattern}*")], "s", &kind), kind.starts_with(&pattern));
            prop_assert_eq!(takes(&["s"], &[&pattern], "s", &kind), kind == pattern);
        }
    }
}
