//! One request under bounds of size and time: its head checked, its body read, nothing believed.

use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{Method, Version};
use http_body_util::BodyExt;
use hyper::body::Body;

use crate::in_flight::Charge;
use crate::location;
use crate::respond::{Outcome, Refusal, Unavailable};

/// A request that has been read whole, within its bounds.
#[derive(Debug)]
pub struct Received {
    /// Everything in front of the body.
    pub head: Head,
    /// The bytes received.
    pub body: Bytes,
}

/// What stands in front of the body.
#[derive(Debug)]
pub struct Head {
    /// The header fields, as sent.
    pub headers: HeaderMap,
    /// What follows the question mark, encoded.
    pub query: Option<String>,
    /// Where the connection comes from.
    pub peer: IpAddr,
}

impl Head {
    /// The value of a header that decides something.
    ///
    /// # Errors
    /// [`Refusal::DuplicateHeader`] when it is there more than once with different values.
    pub fn header(&self, name: &HeaderName) -> Result<Option<&[u8]>, Refusal> {
        let mut values = self.headers.get_all(name).iter();
        let first = values.next();
        if values.any(|other| Some(other) != first) {
            return Err(Refusal::DuplicateHeader);
        }
        Ok(first.map(http::HeaderValue::as_bytes))
    }

    /// The first field of that name in the query, decoded.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<std::borrow::Cow<'_, [u8]>> {
        location::field(self.query.as_deref()?.as_bytes(), name)
    }
}

/// The target's length and the host: what can be wrong before a source is known. `hosts` are the names that are
/// served, all when there are none.
pub(crate) fn check_target(
    parts: &http::request::Parts,
    uri_bytes_max: usize,
    hosts: &[String],
) -> Result<(), Refusal> {
    let uri_bytes = parts.uri.path_and_query().map_or(0, |target| target.as_str().len())
        + parts.uri.authority().map_or(0, |authority| authority.as_str().len());
    if uri_bytes > uri_bytes_max {
        return Err(Refusal::UriTooLong);
    }
    let host = host(parts)?;
    let is_served = |host: &Authority| hosts.iter().any(|name| host.host().eq_ignore_ascii_case(name));
    if hosts.is_empty() || host.as_ref().is_some_and(is_served) {
        Ok(())
    } else {
        Err(Refusal::HostNotAllowed)
    }
}

/// Whom the request is for; only HTTP/1.0 may leave it out.
fn host(parts: &http::request::Parts) -> Result<Option<Authority>, Refusal> {
    let authority = parts.uri.authority();
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host,
        (None, _) if parts.version == Version::HTTP_10 => return Ok(authority.cloned()),
        (None, _) if parts.version == Version::HTTP_2 => match authority {
            Some(authority) if is_plain(authority) => return Ok(Some(authority.clone())),
            _ => return Err(Refusal::BadHost),
        },
        _ => return Err(Refusal::BadHost),
    };
    let host = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()).ok_or(Refusal::BadHost)?;
    let differs = authority.is_some_and(|authority| *authority != host);
    if !is_plain(&host) || differs { Err(Refusal::BadHost) } else { Ok(Some(host)) }
}

/// A name or an address, and a port that is one. The grammar of URLs also takes what no host is called: a comma,
/// which may be two headers that somebody has joined, user info, any text for a port.
fn is_plain(host: &Authority) -> bool {
    let name = host.host();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let port = host.as_str().strip_prefix(name).and_then(|rest| match rest.strip_prefix(':') {
        Some(port) => {
            (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()).then_some(())
        }
        None => rest.is_empty().then_some(()),
    });
    port.is_some() && (name.starts_with('[') || name.bytes().all(is_name))
}

/// The method and the framing. `Ok` has the declared length; none means chunks or frames.
pub(crate) fn check_framing(
    parts: &http::request::Parts,
    body_bytes_max: usize,
) -> Result<Option<usize>, Refusal> {
    if parts.method != Method::POST {
        return Err(Refusal::MethodNotAllowed);
    }
    let mut codings = parts.headers.get_all(TRANSFER_ENCODING).iter();
    let length = match (codings.next(), codings.next()) {
        // Its frames say where a body ends.
        (None, _) if parts.version == Version::HTTP_2 && !parts.headers.contains_key(CONTENT_LENGTH) => None,
        (None, _) => Some(declared_length(&parts.headers)?),
        // hyper looks at the last coding only; any other would be left in the body.
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => None,
        _ => return Err(Refusal::BadFraming),
    };
    if length.is_some_and(|length| length > body_bytes_max as u64) {
        return Err(Refusal::BodyTooLarge);
    }
    let mut expectations = parts.headers.get_all(EXPECT).iter();
    if expectations.any(|expected| !expected.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(Refusal::ExpectationFailed);
    }
    Ok(length.map(|length| length as usize))
}

/// hyper has checked that every length is the same number; leading zeros it lets through.
fn declared_length(headers: &HeaderMap) -> Result<u64, Refusal> {
    let length = headers.get(CONTENT_LENGTH).ok_or(Refusal::LengthRequired)?;
    let text = length.to_str().map_err(|_| Refusal::BadFraming)?;
    let is_plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    text.parse().ok().filter(|_| is_plain).ok_or(Refusal::BadFraming)
}

/// Reads a body to its end, at most `bytes_max` of it, charged as it arrives. How long that may take is the
/// wire's affair.
pub(crate) async fn read_body<B>(mut body: B, bytes_max: usize, mut charge: Charge) -> Result<Bytes, Outcome>
where
    B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
{
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Outcome::Refused(broken(&error)))?;
        let Ok(data) = frame.into_data() else { continue };
        let length = first.as_ref().map_or(rest.len(), Bytes::len) + data.len();
        if length > bytes_max {
            return Err(Outcome::Refused(Refusal::BodyTooLarge));
        }
        if !charge.covers(length) {
            return Err(Outcome::Unavailable(Unavailable::Overloaded));
        }
        match first.take() {
            // A small body comes in one piece, which is kept as it is.
            None if rest.is_empty() => first = Some(data),
            earlier => {
                // Room for what is charged, and no more.
                rest.reserve(charge.bytes() - rest.len());
                rest.extend_from_slice(&earlier.unwrap_or_default());
                rest.extend_from_slice(&data);
            }
        }
    }
    Ok(charge.hold(first.unwrap_or_else(|| rest.freeze())))
}

fn broken(error: &hyper::Error) -> Refusal {
    let source = std::error::Error::source(error);
    let taken_back = source.and_then(|source| source.downcast_ref::<h2::Error>());
    let gone = error.is_incomplete_message()
        || error.is_closed()
        || error.is_canceled()
        || taken_back.is_some_and(|error| error.is_remote() || error.is_io());
    let io = source.and_then(|source| source.downcast_ref::<std::io::Error>());
    match io.map(std::io::Error::kind) {
        Some(std::io::ErrorKind::TimedOut) => Refusal::BodyTimeout,
        Some(std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData) => Refusal::BodyFraming,
        None if !gone => Refusal::BodyFraming,
        _ => Refusal::BodyIncomplete,
    }
}
