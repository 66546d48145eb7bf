//! What the fuzzers run: records as they may stand in a topic that others write to as well.

use rdkafka::Timestamp as At;
use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};

use super::record::{
    ControlKey, Outgoing, ParkedKey, read_dead_key, read_delivered, read_letter, read_parked,
    read_parked_key, read_record,
};
use crate::fuzzing::Target;
use crate::storage::Position;

/// Every target of this crate.
pub const FUZZED: &[Target] = &[Target { name: "record", run: record }];

/// Lines of `key=value`: `key` and `value` are the record's, everything else is a header.
fn record(input: &[u8]) {
    let (mut key, mut value, mut headers) = (None, None, OwnedHeaders::new());
    for line in input.split(|byte| *byte == b'\n') {
        let Some(end) = line.iter().position(|byte| *byte == b'=') else { continue };
        let (name, text) = (&line[..end], line[end + 1..].to_vec());
        match std::str::from_utf8(name) {
            Ok("key") => key = Some(text),
            Ok("value") => value = Some(text),
            Ok(name) if !name.contains('\0') => {
                headers = headers.insert(Header { key: name, value: Some(&text) });
            }
            _ => {}
        }
    }
    let message = OwnedMessage::new(value, key, "t".to_owned(), At::CreateTime(1), 3, 41, Some(headers));
    // What is read is written and read again: the same.
    if let Ok(record) = read_record(&message) {
        assert_eq!(record.position, Position::new(3, 42));
        let again = again(Outgoing::event(&"t".into(), &record.event));
        assert_eq!(read_record(&again).expect("our own is readable").event, record.event);
    }
    match read_parked_key(&message) {
        Ok(ParkedKey::Delivery(destination, id)) => {
            if let Ok(parked) = read_parked(&message, &destination) {
                let again = again(Outgoing::parked(&"t".into(), &parked));
                let key = read_parked_key(&again).expect("our own is readable");
                assert_eq!(key, ParkedKey::Delivery(destination.clone(), parked.event.id));
                assert_eq!(read_parked(&again, &destination).expect("our own is readable"), parked);
            }
            if let Some(delivered) = read_delivered(&message) {
                let again = again(Outgoing::unparked(&"t".into(), &destination, id, Some(&delivered)));
                assert_eq!(read_delivered(&again), Some(delivered));
            }
        }
        Ok(ParkedKey::Control(control)) => {
            let again = again(Outgoing::control(&"t".into(), &control, Some(&1)));
            let same =
                matches!(control, ControlKey::Probe | ControlKey::Destination(_) | ControlKey::Replay(_));
            assert!(same && read_parked_key(&again).is_ok_and(|key| key == ParkedKey::Control(control)));
        }
        Err(_) => {}
    }
    if let Ok((destination, ..)) = read_dead_key(&message)
        && let Ok(letter) = read_letter(&message, destination.clone())
    {
        let again = again(Outgoing::letter(&"t".into(), &letter));
        let (named, id, print) = read_dead_key(&again).expect("our own is readable");
        assert_eq!((named, id, print), (destination.clone(), letter.event.id, letter.event.fingerprint));
        assert_eq!(read_letter(&again, destination).expect("our own is readable"), letter);
    }
}

/// As the brokers would hand it out, at the same place.
fn again(out: Outgoing) -> OwnedMessage {
    let value = out.value.map(|value| value.to_vec());
    let at = At::CreateTime(out.timestamp.unwrap_or(1));
    OwnedMessage::new(value, Some(out.key.into_bytes()), out.topic.to_string(), at, 3, 41, Some(out.headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_from_a_topic_is_written_and_read_again_the_same() {
        crate::fuzzing::brief(FUZZED[0]);
    }
}
