//! Between what the seam speaks of and Kafka records: the one place that knows keys and headers.
//!
//! Every record that carries an event is a CloudEvent in binary mode: the value is the bytes received, the
//! attributes are `ce_` headers in plain UTF-8. What CloudEvents has no name for are extension attributes, so
//! that any CloudEvents library hands them on. A parked or dead delivery has its state in one more header.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use rdkafka::message::{Header, Headers as _, Message, OwnedHeaders};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cloudevents::{SOURCE_PREFIX, SPEC_VERSION};
use crate::event::{Environment, Event, EventId, Fingerprint};
use crate::storage::{DeadLetter, Delivered, Failure, Parked, Position, Record};

const CONTENT_TYPE: &str = "content-type";
/// In the log it is the record's own time instead.
const RECEIVED: &str = "ce_chaskireceived";
const FINGERPRINT: &str = "ce_chaskifingerprint";
/// Of its source when the event came. Absent where an older chaski wrote the record: as its source is now.
const ENVIRONMENT: &str = "ce_chaskienvironment";
const TRACEPARENT: &str = "ce_traceparent";
/// The state of a parked delivery.
const PARKED: &str = "chaski-parked";
/// The state of a dead letter.
const DEAD: &str = "chaski-dead";
/// A key without a meaning.
const PROBE: &str = "/probe";
/// On what an operator did to a parked delivery: whoever has it looks again.
const BY_HAND: &str = "chaski-by-hand";
/// On an event whose id only one edge could look for: others may have stored it, too.
const DEDUP: &str = "ce_chaskidedup";
/// On a tombstone: that the delivery was taken.
const DELIVERED: &str = "chaski-delivered";

/// A record on its way to a topic.
pub(super) struct Outgoing {
    pub(super) topic: Arc<str>,
    pub(super) key: String,
    /// None is a tombstone.
    pub(super) value: Option<Bytes>,
    pub(super) headers: OwnedHeaders,
    /// Milliseconds; none for now.
    pub(super) timestamp: Option<i64>,
}

impl Outgoing {
    /// An event for the log. Of when it was received the record's own time tells, which with this topic Kafka keeps as
    /// it is told, see `topics.rs`; a header only where no record can have that time: at or before the zero of clocks.
    pub(super) fn event(topic: &Arc<str>, event: &Event) -> Self {
        let received = event.received_at.as_millisecond();
        let (timestamp, headers) =
            if received > 0 { (Some(received), headers(event, None)) } else { (None, full_headers(event)) };
        Self {
            topic: Arc::clone(topic),
            // The ordering key: one subject is in one partition.
            key: event.subject.as_deref().map_or_else(|| event.id.to_string(), str::to_owned),
            value: Some(event.body.clone()),
            headers,
            timestamp,
        }
    }

    /// Says of an event that the memory all edges share could not be asked for its id.
    pub(super) fn deduplicated_alone(mut self) -> Self {
        self.headers = self.headers.insert(Header { key: DEDUP, value: Some("local") });
        self
    }

    pub(super) fn parked(topic: &Arc<str>, parked: &Parked) -> Self {
        let state = ParkedState {
            position: parked.position,
            due: parked.due,
            attempts: parked.attempts,
            first_attempt: parked.first_attempt,
            history: parked.history.clone(),
        };
        Self {
            topic: Arc::clone(topic),
            key: parked_key(&parked.destination, parked.event.id),
            value: Some(parked.event.body.clone()),
            headers: with(full_headers(&parked.event), PARKED, &state),
            timestamp: None,
        }
    }

    /// A delivery that is no longer parked.
    pub(super) fn unparked(
        topic: &Arc<str>,
        destination: &str,
        id: EventId,
        delivered: Option<&Delivered>,
    ) -> Self {
        let headers = OwnedHeaders::new();
        let headers = match delivered {
            None => headers,
            Some(delivered) => with(
                headers,
                DELIVERED,
                &DeliveredState {
                    position: delivered.position,
                    at: delivered.at,
                    attempts: delivered.attempts,
                },
            ),
        };
        Self::tombstone(topic, parked_key(destination, id), headers)
    }

    pub(super) fn letter(topic: &Arc<str>, letter: &DeadLetter) -> Self {
        let state = DeadState {
            position: letter.position,
            reason: Arc::clone(&letter.reason),
            detail: Arc::clone(&letter.detail),
            at: letter.at,
            attempts: letter.attempts,
            history: letter.history.clone(),
        };
        Self {
            topic: Arc::clone(topic),
            key: dead_key(letter.destination.as_deref(), &letter.event),
            value: Some(letter.event.body.clone()),
            headers: with(full_headers(&letter.event), DEAD, &state),
            timestamp: None,
        }
    }

    /// Not its reader's doing: an operator's.
    pub(super) fn by_hand(mut self) -> Self {
        self.headers = self.headers.insert(Header { key: BY_HAND, value: Some("1") });
        self
    }

    /// A letter that is gone.
    pub(super) fn no_letter(topic: &Arc<str>, letter: &DeadLetter) -> Self {
        let key = dead_key(letter.destination.as_deref(), &letter.event);
        Self::tombstone(topic, key, OwnedHeaders::new())
    }

    /// A control record: what holds for a destination or a replay.
    pub(super) fn control(topic: &Arc<str>, key: &ControlKey, state: Option<&impl Serialize>) -> Self {
        let key = match key {
            ControlKey::Destination(name) => format!("/destination/{name}"),
            ControlKey::Replay(number) => format!("/replay/{number}"),
            ControlKey::Probe => PROBE.to_owned(),
        };
        let value = state.map(|state| serde_json::to_vec(state).unwrap_or_default().into());
        Self { topic: Arc::clone(topic), key, value, headers: OwnedHeaders::new(), timestamp: None }
    }

    fn tombstone(topic: &Arc<str>, key: String, headers: OwnedHeaders) -> Self {
        Self { topic: Arc::clone(topic), key, value: None, headers, timestamp: None }
    }
}

/// What a key of the parked topic names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ParkedKey {
    Delivery(String, EventId),
    Control(ControlKey),
}

/// Destinations have names, so that no delivery's key begins with a slash.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ControlKey {
    Destination(String),
    Replay(u64),
    /// Says nothing: written to see whether the brokers take anything.
    Probe,
}

#[derive(Serialize, Deserialize)]
struct ParkedState {
    position: Position,
    due: Timestamp,
    attempts: u32,
    first_attempt: Option<Timestamp>,
    history: Vec<Failure>,
}

#[derive(Serialize, Deserialize)]
struct DeadState {
    position: Option<Position>,
    reason: Arc<str>,
    detail: Arc<str>,
    at: Timestamp,
    attempts: u32,
    history: Vec<Failure>,
}

#[derive(Serialize, Deserialize)]
struct DeliveredState {
    position: Position,
    at: Timestamp,
    attempts: u32,
}

/// Why a record is none of ours.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("the key is not one of ours")]
    Key,
    #[error("header {0} is missing")]
    Missing(&'static str),
    #[error("header {0} cannot be read")]
    Header(&'static str),
}

fn parked_key(destination: &str, id: EventId) -> String {
    format!("{destination}/{id}")
}

fn dead_key(destination: Option<&str>, event: &Event) -> String {
    format!("{}/{}/{}", destination.unwrap_or(""), event.id, hex::encode(event.fingerprint.as_bytes()))
}

pub(super) fn read_parked_key(message: &impl Message) -> Result<ParkedKey, Unreadable> {
    let key = key_text(message)?;
    if let Some(name) = key.strip_prefix("/destination/") {
        return Ok(ParkedKey::Control(ControlKey::Destination(name.to_owned())));
    }
    if key == PROBE {
        return Ok(ParkedKey::Control(ControlKey::Probe));
    }
    if let Some(number) = key.strip_prefix("/replay/") {
        return Ok(ParkedKey::Control(ControlKey::Replay(number.parse().map_err(|_| Unreadable::Key)?)));
    }
    let (destination, id) = key.rsplit_once('/').ok_or(Unreadable::Key)?;
    Ok(ParkedKey::Delivery(destination.to_owned(), id.parse().map_err(|_| Unreadable::Key)?))
}

/// Whether an operator wrote it, see [`Outgoing::by_hand`].
pub(super) fn is_by_hand(message: &impl Message) -> bool {
    message.headers().is_some_and(|headers| headers.iter().any(|header| header.key == BY_HAND))
}

/// The destination (none for a quarantined event), the event and the fingerprint that a dead letter's key names.
pub(super) fn read_dead_key(
    message: &impl Message,
) -> Result<(Option<String>, EventId, Fingerprint), Unreadable> {
    let key = key_text(message)?;
    let (rest, fingerprint) = key.rsplit_once('/').ok_or(Unreadable::Key)?;
    let (destination, id) = rest.rsplit_once('/').ok_or(Unreadable::Key)?;
    let fingerprint = read_fingerprint(fingerprint).ok_or(Unreadable::Key)?;
    let destination = (!destination.is_empty()).then(|| destination.to_owned());
    Ok((destination, id.parse().map_err(|_| Unreadable::Key)?, fingerprint))
}

fn key_text(message: &impl Message) -> Result<&str, Unreadable> {
    message.key().and_then(|key| std::str::from_utf8(key).ok()).ok_or(Unreadable::Key)
}

fn read_fingerprint(digits: &str) -> Option<Fingerprint> {
    let mut bytes = [0; 16];
    hex::decode_to_slice(digits, &mut bytes).ok().map(|()| Fingerprint::from_bytes(bytes))
}

/// A record of the log.
pub(super) fn read_record(message: &impl Message) -> Result<Record, Unreadable> {
    Ok(Record { position: position(message), event: read_event(message)? })
}

/// Where a record stands.
pub(super) fn position(message: &impl Message) -> Position {
    Position::new(message.partition().unsigned_abs(), message.offset().unsigned_abs() + 1)
}

pub(super) fn read_parked(message: &impl Message, destination: &str) -> Result<Parked, Unreadable> {
    let state: ParkedState = json(message, PARKED)?;
    Ok(Parked {
        destination: destination.into(),
        position: state.position,
        event: read_event(message)?,
        due: state.due,
        attempts: state.attempts,
        first_attempt: state.first_attempt,
        history: state.history,
    })
}

pub(super) fn read_letter(
    message: &impl Message,
    destination: Option<String>,
) -> Result<DeadLetter, Unreadable> {
    let state: DeadState = json(message, DEAD)?;
    Ok(DeadLetter {
        number: message.offset().unsigned_abs() + 1,
        destination: destination.map(Arc::from),
        position: state.position,
        event: read_event(message)?,
        reason: state.reason,
        detail: state.detail,
        at: state.at,
        attempts: state.attempts,
        history: state.history,
    })
}

/// What a tombstone says of a delivery that was taken.
pub(super) fn read_delivered(message: &impl Message) -> Option<Delivered> {
    let state: DeliveredState = json(message, DELIVERED).ok()?;
    Some(Delivered { position: state.position, at: state.at, attempts: state.attempts })
}

/// Of a record whose own time is not when its event was received.
fn full_headers(event: &Event) -> OwnedHeaders {
    headers(event, Some(&event.received_at.as_millisecond().to_string()))
}

fn headers(event: &Event, received: Option<&str>) -> OwnedHeaders {
    let time = event.time.map(|time| time.to_string());
    let (mut id, mut fingerprint) = ([0; 32], [0; 32]);
    let id = event.id.encode(&mut id);
    let fingerprint = event.fingerprint.encode(&mut fingerprint);
    let source = [SOURCE_PREFIX, &event.source].concat();
    [
        (CONTENT_TYPE, event.content_type.as_deref()),
        ("ce_specversion", Some(SPEC_VERSION)),
        ("ce_id", Some(id)),
        ("ce_source", Some(&*source)),
        ("ce_type", Some(&*event.kind)),
        ("ce_subject", event.subject.as_deref()),
        ("ce_time", time.as_deref()),
        (TRACEPARENT, event.traceparent.as_deref()),
        (RECEIVED, received),
        (FINGERPRINT, Some(fingerprint)),
        (ENVIRONMENT, event.environment.map(Environment::name)),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?)))
    .fold(OwnedHeaders::new_with_capacity(13), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value) })
    })
}

fn with(headers: OwnedHeaders, key: &str, state: &impl Serialize) -> OwnedHeaders {
    // A struct of numbers and texts is always JSON.
    let text = serde_json::to_string(state).unwrap_or_default();
    headers.insert(Header { key, value: Some(&text) })
}

fn read_event(message: &impl Message) -> Result<Event, Unreadable> {
    let text = |name: &'static str| header(message, name);
    let needed = |name: &'static str| text(name)?.ok_or(Unreadable::Missing(name));
    let body = Bytes::copy_from_slice(message.payload().unwrap_or_default());
    let source = needed("ce_source")?;
    let received = match text(RECEIVED)? {
        Some(millis) => millis.parse().map_err(|_| Unreadable::Header(RECEIVED))?,
        None => message.timestamp().to_millis().ok_or(Unreadable::Missing(RECEIVED))?,
    };
    Ok(Event {
        id: needed("ce_id")?.parse().map_err(|_| Unreadable::Header("ce_id"))?,
        source: source.strip_prefix(SOURCE_PREFIX).unwrap_or(source).into(),
        kind: needed("ce_type")?.into(),
        subject: text("ce_subject")?.map(Arc::from),
        time: text("ce_time")?
            .map(|time| time.parse().map_err(|_| Unreadable::Header("ce_time")))
            .transpose()?,
        received_at: Timestamp::from_millisecond(received).map_err(|_| Unreadable::Header(RECEIVED))?,
        content_type: text(CONTENT_TYPE)?.map(Arc::from),
        traceparent: text(TRACEPARENT)?.map(Arc::from),
        fingerprint: text(FINGERPRINT)?
            .map_or_else(|| Some(Fingerprint::of(&body)), read_fingerprint)
            .ok_or(Unreadable::Header(FINGERPRINT))?,
        body,
        environment: text(ENVIRONMENT)?
            .map(|name| Environment::named(name).ok_or(Unreadable::Header(ENVIRONMENT)))
            .transpose()?,
    })
}

fn header<'a>(message: &'a impl Message, name: &'static str) -> Result<Option<&'a str>, Unreadable> {
    let Some(headers) = message.headers() else { return Ok(None) };
    for index in 0..headers.count() {
        let Some(header) = headers.try_get(index) else { continue };
        if header.key == name {
            return header
                .value
                .map(|value| std::str::from_utf8(value).map_err(|_| Unreadable::Header(name)))
                .transpose();
        }
    }
    Ok(None)
}

fn json<T: DeserializeOwned>(message: &impl Message, name: &'static str) -> Result<T, Unreadable> {
    let text = header(message, name)?.ok_or(Unreadable::Missing(name))?;
    serde_json::from_str(text).map_err(|_| Unreadable::Header(name))
}
