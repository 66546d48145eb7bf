//! Whether a destination takes an event. Pure.

use std::sync::Arc;

use chaski_common::event::{Environment, Event, TYPE_UNKNOWN};

use crate::attempt::Reason;
use crate::destination::DestinationSpec;

/// What one destination takes.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    environment: Environment,
    sources: Vec<Arc<str>>,
    known_sources: Vec<(Arc<str>, Environment)>,
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
    /// The configuration says nothing about it (any more), for this reason.
    Nowhere(Reason),
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
            environment: spec.environment,
            sources: spec.sources.clone(),
            known_sources: spec.known_sources.clone(),
            kinds: spec.events.iter().map(pattern).collect(),
        }
    }

    /// What the source of an event is now; none if it is not configured.
    fn now(&self, event: &Event) -> Option<Environment> {
        self.known_sources.iter().find(|(name, _)| *name == event.source).map(|(_, environment)| *environment)
    }

    /// Whether the event is of the other environment, and so never goes there, wherever it comes from. One that
    /// does not say what it is, is what its source is now.
    pub(crate) fn is_barred(&self, event: &Event) -> bool {
        event.environment.or_else(|| self.now(event)).is_some_and(|its| its != self.environment)
    }

    /// Whether this event goes there.
    pub(crate) fn way(&self, event: &Event) -> Way {
        if self.is_barred(event) {
            return Way::Past;
        }
        let now = match self.now(event) {
            None => return Way::Nowhere(Reason::Unrouted),
            Some(now) => now,
        };
        if now != self.environment {
            // The routes are those of what its source is now: they do not say where this one was to go.
            return Way::Nowhere(Reason::Environment);
        }
        let kind_fits = |pattern: &Pattern| match pattern {
            Pattern::Exact(kind) => **kind == *event.kind,
            Pattern::Prefix(prefix) => event.kind.starts_with(&**prefix),
        };
        if self.sources.contains(&event.source) {
            // An event without a type is filtered by nobody: what was redriven from quarantine has none.
            let fits =
                self.kinds.is_empty() || *event.kind == *TYPE_UNKNOWN || self.kinds.iter().any(kind_fits);
            if fits { Way::There } else { Way::Past }
        } else {
            Way::Past
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
        spec.known_sources = ["pe", "s", "other"].map(|name| (name.into(), Environment::Production)).into();
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
        spec.known_sources.push(("pe-other".into(), Environment::Production));
        let way = |source: &str| {
            let mut event = event(1);
            event.source = source.into();
            Route::new(&spec).way(&event)
        };
        let nowhere = Way::Nowhere(Reason::Unrouted);
        assert_eq!((way("pe"), way("pe-other"), way("pf")), (Way::There, Way::Past, nowhere));
    }

    #[test]
    fn an_event_never_goes_to_the_other_environment() {
        use Environment::{Production, Sandbox};
        let barred = (Way::Past, true);
        let lost = (Way::Nowhere(Reason::Environment), false);
        let goes = (Way::There, false);
        // What the event says it is, what its source is now, what the destination is.
        for (event_is, source_is, destination_is, expected) in [
            (Some(Production), Some(Production), Production, goes),
            (Some(Sandbox), Some(Sandbox), Sandbox, goes),
            (Some(Sandbox), Some(Sandbox), Production, barred),
            (Some(Production), Some(Production), Sandbox, barred),
            // The source has changed sides since.
            (Some(Sandbox), Some(Production), Production, barred),
            (Some(Sandbox), Some(Production), Sandbox, lost),
            (Some(Production), Some(Sandbox), Production, lost),
            (Some(Production), Some(Sandbox), Sandbox, barred),
            // The source has gone since.
            (Some(Sandbox), None, Production, barred),
            (Some(Sandbox), None, Sandbox, (Way::Nowhere(Reason::Unrouted), false)),
            // Stored before events said what they are.
            (None, Some(Production), Production, goes),
            (None, Some(Sandbox), Production, barred),
            (None, None, Production, (Way::Nowhere(Reason::Unrouted), false)),
        ] {
            let mut spec = spec("erp", "http://127.0.0.1:1/");
            spec.environment = destination_is;
            // Even where the routes name it.
            spec.known_sources = source_is.map(|its| ("pe".into(), its)).into_iter().collect();
            let event = Event { environment: event_is, ..event(1) };
            let route = Route::new(&spec);
            let found = (route.way(&event), route.is_barred(&event));
            assert_eq!(found, expected, "{event_is:?} of {source_is:?} to {destination_is:?}");
        }
    }

    proptest! {
        #[test]
        fn a_star_takes_what_begins_like_it_and_nothing_else(pattern in "[a-c.]{0,4}", kind in "[a-c.]{1,6}") {
            prop_assert_eq!(takes(&["s"], &[&format!("{pattern}*")], "s", &kind), kind.starts_with(&pattern));
            prop_assert_eq!(takes(&["s"], &[&pattern], "s", &kind), kind == pattern);
        }
    }
}
