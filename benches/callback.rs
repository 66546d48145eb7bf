//! PagoEfectivo callbacks, rendered and signed before any clock starts. All are of one length, so that a
//! request is a slice.

use std::io::Write as _;

use anyhow::ensure;
use bytes::Bytes;
use chaski_common::mac::{Hash, MacKey};

use crate::tally::Tally;

/// The secret of the source `pagoefectivo`, for this loopback only.
pub(crate) const SECRET: &str = "a secret for the loopback of a bench";
/// Where its callbacks go.
pub(crate) const PATH: &str = "/in/pagoefectivo";
/// Length of a body.
pub(crate) const BODY_BYTES: usize = 350;

/// Requests as they stand on the wire, one after the other.
pub(crate) struct Callbacks {
    requests: Bytes,
    request_bytes: usize,
    count: usize,
    tally: Tally,
}

/// Whether the signatures hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signature {
    Right,
    Forged,
}

impl Callbacks {
    /// `count` different callbacks; those with other numbers `from` are different again.
    pub(crate) fn render(from: usize, count: usize, signature: Signature) -> anyhow::Result<Self> {
        Self::timed(from, count, signature, |_| 0)
    }

    /// Callbacks that say when each is to be sent, in microseconds since 1970.
    pub(crate) fn timed(
        from: usize,
        count: usize,
        signature: Signature,
        sent_us: impl Fn(usize) -> u64,
    ) -> anyhow::Result<Self> {
        let key = MacKey::new(Hash::Sha256, SECRET.as_bytes());
        let (mut requests, mut tally) = (Vec::new(), Tally::default());
        for index in 0..count {
            let body = body(from + index, sent_us(index));
            let mut tag = key.tag(&[body.as_bytes()]).as_bytes().to_vec();
            if signature == Signature::Forged {
                tag[0] ^= 1;
            }
            write!(
                requests,
                "POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\nuser-agent: PagoEfectivo/1.0\r\naccept: */*\r\n\
                 content-type: application/json\r\npe-signature: {}\r\ncontent-length: {}\r\n\r\n{body}",
                hex::encode(tag),
                body.len()
            )?;
            tally.add(body.as_bytes());
        }
        let request_bytes = requests.len() / count.max(1);
        ensure!(request_bytes * count == requests.len(), "callbacks differ in length");
        Ok(Self { requests: requests.into(), request_bytes, count, tally })
    }

    /// How many there are.
    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// What a receiver of each of them once has.
    pub(crate) const fn tally(&self) -> Tally {
        self.tally
    }

    /// A request; counting begins again behind the last.
    pub(crate) fn request(&self, index: usize) -> &[u8] {
        let at = index % self.count * self.request_bytes;
        &self.requests[at..at + self.request_bytes]
    }

    /// Its body.
    pub(crate) fn body(&self, index: usize) -> Bytes {
        let end = (index % self.count + 1) * self.request_bytes;
        self.requests.slice(end - BODY_BYTES..end)
    }
}

/// What stands in front of the time of sending in a body, and how many digits follow.
const SENT: &str = "\"concept\":\"sent ";
const SENT_DIGITS: usize = 16;

/// When a body was to be sent, in microseconds since 1970.
pub(crate) fn sent_us(body: &[u8]) -> Option<u64> {
    let at = body.windows(SENT.len()).position(|bytes| bytes == SENT.as_bytes())? + SENT.len();
    std::str::from_utf8(body.get(at..at + SENT_DIGITS)?).ok()?.parse().ok()
}

fn body(number: usize, sent_us: u64) -> String {
    let mut body = format!(
        "{{\"eventType\":\"cip.paid\",\"operationNumber\":\"{}\",\"data\":{{\"cip\":\"{}\",\"currency\":\"PEN\",\"amount\":22.05,\
         \"paymentDate\":\"2026-01-31T10:15:00-05:00\",\"transactionCode\":\"{:020}\",{SENT}{sent_us:0SENT_DIGITS$}",
        100_000_000_000 + number,
        1_000_000_000_000 + number,
        number
    );
    const END: &str = "\"}}";
    while body.len() + END.len() < BODY_BYTES {
        body.push(' ');
    }
    body + END
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callback_is_its_head_and_its_body() {
        let callbacks = Callbacks::render(7, 3, Signature::Right).unwrap();
        let request = callbacks.request(4);
        assert!(request.starts_with(b"POST /in/pagoefectivo HTTP/1.1\r\n"));
        assert!(request.ends_with(&callbacks.body(1)));
        assert_eq!(callbacks.body(1), body(8, 0));
        let timed = body(123_456_789, 1_795_322_730_961_000);
        assert_eq!(timed.len(), BODY_BYTES);
        assert_eq!(sent_us(timed.as_bytes()), Some(1_795_322_730_961_000));
    }
}
