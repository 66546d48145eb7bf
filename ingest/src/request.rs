//! One request under bounds of size and time: its head checked, its body read, nothing believed.

use std::borrow::Cow;
use std::net::IpAddr;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, Version};
use http_body_util::BodyExt;
use hyper::body::Body;

use crate::in_flight::Charge;
use crate::location;
use crate::respond::{Outcome, Refusal, Unavailable};

/// Character sets in which ASCII is its own bytes, of those that senders of forms name.
const ASCII_SETS: [&str; 5] = ["utf-8", "utf8", "us-ascii", "iso-8859-1", "windows-1252"];

/// A request that has been read whole, within its bounds.
#[derive(Debug)]
pub struct Received {
    /// Everything in front of the body.
    pub head: Head,
    /// The bytes received.
    pub body: Bytes,
}

impl Received {
    /// The room that its header fields took, empty, and the body.
    pub(crate) fn into_room_and_body(self) -> (HeaderMap, Bytes) {
        let mut headers = self.head.headers;
        headers.clear();
        (headers, self.body)
    }
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
    /// Takes what counts; of the rest nothing is left, either.
    pub(crate) fn take(parts: &mut Parts, peer: IpAddr) -> Self {
        let target = std::mem::take(&mut parts.uri);
        let headers = std::mem::take(&mut parts.headers);
        Self { headers, query: target.query().map(str::to_owned), peer }
    }

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

    /// The field of that name in the query, decoded.
    ///
    /// # Errors
    /// [`Refusal::DuplicateHeader`] when it is there more than once.
    pub fn query(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>, Refusal> {
        let query = self.query.as_deref().unwrap_or_default();
        Ok(location::field(query.as_bytes(), name)?)
    }

    /// Whether a receiver that goes by the type of the body finds the fields of a form that are found here: not where the
    /// type is another kind of form, nor in a character set that may have other bytes for ASCII. Without a type, and with
    /// one that says nothing of fields, the bytes decide.
    pub(crate) fn has_form(&self) -> bool {
        self.headers.get_all(CONTENT_TYPE).iter().all(|kind| {
            let Ok(kind) = kind.to_str().map(str::to_ascii_lowercase) else { return false };
            let is_ascii = |behind: &str| {
                let set = behind.trim_start_matches([' ', '\t', '*', '=', '"']);
                ASCII_SETS.contains(&set.split([';', ',', ' ', '\t', '"', '\'']).next().unwrap_or_default())
            };
            !kind.contains("multipart/") && kind.split("charset").skip(1).all(is_ascii)
        })
    }
}

/// The target's length and the host: what can be wrong before a source is known. `hosts` are the names that are
/// served, all when there are none.
pub(crate) fn check_target(parts: &Parts, uri_bytes_max: usize, hosts: &[String]) -> Result<(), Refusal> {
    let uri_bytes = parts.uri.path_and_query().map_or(0, |target| target.as_str().len())
        + parts.uri.authority().map_or(0, |authority| authority.as_str().len());
    if uri_bytes > uri_bytes_max {
        return Err(Refusal::UriTooLong);
    }
    let host = host(parts)?;
    let is_served = |host: &str| hosts.iter().any(|name| host.eq_ignore_ascii_case(name));
    if hosts.is_empty() || host.is_some_and(is_served) { Ok(()) } else { Err(Refusal::HostNotAllowed) }
}

/// The name that the request is for, without a port; only HTTP/1.0 may leave it out.
fn host(parts: &Parts) -> Result<Option<&str>, Refusal> {
    let authority = parts.uri.authority();
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().map_err(|_| Refusal::BadHost)?,
        (None, _) if parts.version == Version::HTTP_10 => return Ok(authority.map(Authority::host)),
        (None, _) if parts.version == Version::HTTP_2 => authority.ok_or(Refusal::BadHost)?.as_str(),
        _ => return Err(Refusal::BadHost),
    };
    if authority.is_some_and(|authority| *authority != *host) {
        return Err(Refusal::BadHost);
    }
    plain_name(host).map(Some).ok_or(Refusal::BadHost)
}

/// The name or address of a host whose port is one, if there is one. The grammar of URLs also takes what no host is
/// called: a comma, which may be two headers that somebody has joined, user info, any text for a port.
fn plain_name(host: &str) -> Option<&str> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let end = if host.starts_with('[') {
        host.parse::<Authority>().ok()?.host().len()
    } else {
        host.bytes().position(|byte| !is_name(byte)).unwrap_or(host.len())
    };
    let (name, port) = host.split_at_checked(end).filter(|_| !host.is_empty())?;
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then_some(name)
}

/// The method and the framing. `Ok` has the declared length; none means chunks or frames.
pub(crate) fn check_framing(parts: &Parts, body_bytes_max: usize) -> Result<Option<usize>, Refusal> {
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
/// wire's affair, and [`Charge::may_wait`]'s. It is copied: a piece is a slice of what the connection reads into, which would be kept for it.
pub(crate) async fn read_body<B>(mut body: B, bytes_max: usize, mut charge: Charge) -> Result<Bytes, Outcome>
where
    B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
{
    let mut read = Vec::new();
    // A body of a declared length has ended with its last byte, and need not be asked once more.
    while !body.is_end_stream()
        && let Some(frame) = body.frame().await
    {
        let frame = frame.map_err(|error| Outcome::Refused(broken(&error)))?;
        let Ok(data) = frame.into_data() else { continue };
        let length = read.len() + data.len();
        if length > bytes_max {
            return Err(Outcome::Refused(Refusal::BodyTooLarge));
        }
        if !charge.covers(length) {
            return Err(Outcome::Unavailable(Unavailable::Overloaded));
        }
        // Room for what is charged, and no more.
        read.reserve_exact(charge.bytes() - read.len());
        read.extend_from_slice(&data);
    }
    Ok(charge.hold(read))
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
