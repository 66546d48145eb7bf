//! The requests to one destination. What does not change from one to the next is made once.

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use chaski_common::cloudevents;
use chaski_common::event::Event;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use jiff::Timestamp;
use prometheus::IntCounter;

use super::sign::Signer;
use crate::destination::{Auth, DestinationSpec};

/// A header that is each event's own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Own {
    Id,
    Source,
    Type,
    Subject,
    Time,
    Timestamp,
    Signature,
    Attempt,
    Length,
    ContentType,
    Traceparent,
}

/// Their names; the id has three.
const OWN: [(HeaderName, Own); 13] = [
    (HeaderName::from_static("ce-id"), Own::Id),
    (HeaderName::from_static("webhook-id"), Own::Id),
    (HeaderName::from_static("idempotency-key"), Own::Id),
    (HeaderName::from_static("ce-source"), Own::Source),
    (HeaderName::from_static("ce-type"), Own::Type),
    (HeaderName::from_static("ce-subject"), Own::Subject),
    (HeaderName::from_static("ce-time"), Own::Time),
    (HeaderName::from_static("webhook-timestamp"), Own::Timestamp),
    (HeaderName::from_static("webhook-signature"), Own::Signature),
    (HeaderName::from_static("chaski-attempt"), Own::Attempt),
    (CONTENT_LENGTH, Own::Length),
    (CONTENT_TYPE, Own::ContentType),
    (HeaderName::from_static("traceparent"), Own::Traceparent),
];

/// Makes requests.
pub(super) struct Requests {
    /// What stands in the first line: path and query.
    target: Uri,
    /// What every request carries, and places for what is each event's own.
    template: HeaderMap,
    /// Which of the template's values are to be written, in its order.
    own: Vec<Option<Own>>,
    /// `ce-source` of each configured source; of any other it is made on the way.
    sources: Vec<(Arc<str>, HeaderValue)>,
    signer: Signer,
    header_dropped: IntCounter,
}

impl Requests {
    pub(super) fn new(spec: &DestinationSpec, header_dropped: IntCounter) -> Self {
        let mut template = HeaderMap::new();
        template.insert(USER_AGENT, HeaderValue::from_static(concat!("chaski/", env!("CARGO_PKG_VERSION"))));
        template.insert("ce-specversion", HeaderValue::from_static(cloudevents::SPEC_VERSION));
        let host = host(&spec.url);
        for (name, value) in
            [(HOST, HeaderValue::from_str(&host).ok())].into_iter().chain(spec.auth.as_ref().map(credential))
        {
            match value {
                Some(value) => _ = template.insert(name, value),
                None => header_dropped.inc(),
            }
        }
        for (name, _) in OWN {
            template.entry(name).or_insert(HeaderValue::from_static(""));
        }
        let own = |name: &HeaderName| OWN.iter().find(|(own, _)| own == name).map(|(_, own)| *own);
        let source = |name: &Arc<str>| Some((name.clone(), owned(cloudevents::source(name))?));
        Self {
            target: spec.url.path_and_query().cloned().map(Uri::from).unwrap_or_default(),
            own: template.keys().map(own).collect(),
            template,
            sources: spec.sources.iter().filter_map(source).collect(),
            signer: Signer::new(&spec.signing),
            header_dropped,
        }
    }

    /// The request of this attempt, signed as of `now`. A header whose value may not be sent is left out and counted.
    pub(super) fn make(
        &self,
        event: &Event,
        attempt: u32,
        traceparent: Option<&str>,
        now: Timestamp,
    ) -> Request<Full<Bytes>> {
        let mut id = [0; 32];
        let id = event.id.encode(&mut id);
        let timestamp = now.as_second().to_string();
        let mut signature = self.signer.sign(id.as_bytes(), timestamp.as_bytes(), &event.body);
        let id = HeaderValue::from_str(id);
        let mut headers = self.template.clone();
        let mut absent = Vec::new();
        for (value, own) in headers.values_mut().zip(&self.own) {
            let Some(own) = own else { continue };
            // None if the event has no such thing.
            let made = match own {
                Own::Id => Some(id.as_ref().ok().cloned()),
                Own::Source => Some(self.source(&event.source)),
                Own::Type => Some(text(&cloudevents::escape(&event.kind))),
                Own::Subject => event.subject.as_deref().map(|subject| text(&cloudevents::escape(subject))),
                Own::Time => Some(owned(cloudevents::time(event))),
                Own::Timestamp => Some(text(&timestamp)),
                Own::Signature => signature.take().map(Some),
                Own::Attempt => Some(Some(attempt.into())),
                Own::Length => Some(Some(event.body.len().into())),
                Own::ContentType => event.content_type.as_deref().map(text),
                Own::Traceparent => traceparent.or(event.traceparent.as_deref()).map(text),
            };
            match made {
                Some(Some(made)) => *value = made,
                Some(None) => {
                    self.header_dropped.inc();
                    absent.push(*own);
                }
                // What the configuration has put there stays.
                None if value.is_empty() => absent.push(*own),
                None => {}
            }
        }
        for absent in absent {
            OWN.iter().filter(|(_, own)| *own == absent).for_each(|(name, _)| _ = headers.remove(name));
        }
        let mut request = Request::new(Full::new(event.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = headers;
        request
    }

    fn source(&self, name: &str) -> Option<HeaderValue> {
        let known = self.sources.iter().find(|(known, _)| **known == *name).map(|(_, value)| value.clone());
        known.or_else(|| owned(cloudevents::source(name)))
    }
}

fn text(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}

/// A header value that takes the text over instead of copying it.
fn owned(text: String) -> Option<HeaderValue> {
    HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
}

/// The value of `host`: the port is said where it is not the scheme's own.
pub(super) fn host(uri: &Uri) -> String {
    let name = uri.host().unwrap_or_default();
    match (uri.port_u16(), uri.scheme_str()) {
        (None, _) | (Some(80), Some("http")) | (Some(443), Some("https")) => name.to_owned(),
        (Some(port), _) => format!("{name}:{port}"),
    }
}

fn credential(auth: &Auth) -> (HeaderName, Option<HeaderValue>) {
    let (name, text) = match auth {
        Auth::Bearer(token) => (AUTHORIZATION, [b"Bearer ", token.expose()].concat()),
        Auth::Basic { user, password } => {
            let pair = [user.as_bytes(), b":", password.expose()].concat();
            (
                AUTHORIZATION,
                format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)).into_bytes(),
            )
        }
        Auth::Header { name, value } => (name.clone(), value.expose().to_vec()),
    };
    let value = HeaderValue::from_bytes(&text).ok().map(|mut value| {
        value.set_sensitive(true);
        value
    });
    (name, value)
}

#[cfg(test)]
mod tests {
    use chaski_common::secret::Secret;

    use super::*;
    use crate::testing::{event, spec};

    fn requests(change: impl FnOnce(&mut DestinationSpec)) -> (Requests, IntCounter) {
        let dropped = IntCounter::new("dropped", "dropped").unwrap();
        let mut spec = spec("erp", "http://127.0.0.1:9001/hooks?of=erp");
        change(&mut spec);
        (Requests::new(&spec, dropped.clone()), dropped)
    }

    fn headers(requests: &Requests, event: &Event) -> HeaderMap {
        requests.make(event, 3, None, Timestamp::UNIX_EPOCH).into_parts().0.headers
    }

    #[test]
    fn a_header_is_there_exactly_when_there_is_something_to_say() {
        let (unsigned, dropped) = requests(|_| {});
        let (signed, _) = requests(|spec| spec.signing = vec![Secret::new("a secret")]);
        let full = Event {
            subject: Some("an order".into()),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            ..event(1)
        };
        let bare = Event { subject: None, content_type: None, traceparent: None, ..event(2) };
        let optional = ["ce-subject", "content-type", "traceparent"];
        for (event, expected) in [(&full, true), (&bare, false), (&full, true)] {
            let headers = headers(&unsigned, event);
            assert_eq!(optional.map(|name| headers.contains_key(name)), [expected; 3]);
            assert!(!headers.contains_key("webhook-signature"));
            assert!(headers.values().all(|value| !value.is_empty()), "{headers:?}");
            assert_eq!(headers["content-length"], event.body.len().to_string());
            for name in ["ce-id", "webhook-id", "idempotency-key"] {
                assert_eq!(headers[name], event.id.to_string());
            }
        }
        assert_eq!(headers(&unsigned, &full)["ce-subject"], "an%20order");
        assert!(headers(&signed, &bare).contains_key("webhook-signature"));
        assert_eq!(dropped.get(), 0);
    }

    #[test]
    fn what_may_not_be_sent_is_left_out_and_counted() {
        let (requests, dropped) = requests(|_| {});
        let odd = Event { content_type: Some("text/\nplain".into()), ..event(1) };
        let headers = headers(&requests, &odd);
        assert_eq!((headers.get(CONTENT_TYPE), dropped.get()), (None, 1));
    }

    #[test]
    fn a_credential_stays_where_the_event_has_nothing_to_put() {
        let secret = |spec: &mut DestinationSpec| {
            spec.auth = Some(Auth::Header {
                name: HeaderName::from_static("webhook-signature"),
                value: Secret::new("let me in"),
            });
        };
        let (unsigned, _) = requests(secret);
        assert_eq!(headers(&unsigned, &event(1))["webhook-signature"], "let me in");
    }

    #[test]
    fn a_source_that_is_not_configured_is_spelled_the_same() {
        let (known, _) = requests(|_| {});
        let (unknown, _) = requests(|spec| spec.sources.clear());
        assert_eq!(headers(&known, &event(1))["ce-source"], "/sources/pe");
        assert_eq!(headers(&known, &event(1)), headers(&unknown, &event(1)));
    }
}
