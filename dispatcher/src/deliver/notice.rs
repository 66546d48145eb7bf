//! The guarded client for what is no event: a notice to a person's chat, a gateway's own webhook.
//!
//! The same rules as for deliveries: addresses are vetted when they are dialled, no redirect is followed, no proxy is
//! taken from the environment, one deadline covers all to the last byte that is read. What differs: some services
//! refuse with a 200 and say so in the body, so the body is handed back.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;

use super::client::{Dialer, HttpClient};
use super::request::host;
use super::{BODY_BYTES_MAX, of_error};
use crate::outcome::AttemptResult;

/// Connections kept open between two notices: they are rare.
const IDLE_CONNECTIONS_MAX: usize = 1;

/// Posts to addresses that the owner of the configuration wrote; private ones are therefore allowed.
#[derive(Clone)]
pub struct Poster(HttpClient);

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status; of whatever class.
    pub status: StatusCode,
    /// The beginning of the body, at most 16 KiB.
    pub body: Bytes,
}

/// Nothing came back, or nothing that is HTTP.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{detail}")]
pub struct PostError {
    /// Whether trying again can help.
    pub is_transient: bool,
    detail: String,
}

impl Default for Poster {
    fn default() -> Self {
        Self::new()
    }
}

impl Poster {
    /// Trusts the public roots.
    #[must_use]
    pub fn new() -> Self {
        Self(Dialer::new(&[]).client(true, IDLE_CONNECTIONS_MAX))
    }

    /// Posts once. The error never shows the URL, which may hold a token.
    ///
    /// # Errors
    /// When no answer came within the time.
    pub async fn post(
        &self,
        url: &Uri,
        mut headers: HeaderMap,
        body: Bytes,
        within: Duration,
    ) -> Result<Answer, PostError> {
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("chaski/", env!("CARGO_PKG_VERSION"))));
        if let Ok(host) = HeaderValue::from_str(&host(url)) {
            headers.insert(HOST, host);
        }
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = url.clone();
        *request.headers_mut() = headers;
        let exchange = async {
            let answer = self.0.request(request).await.map_err(|error| {
                let outcome = of_error(&error);
                PostError {
                    is_transient: outcome.result != AttemptResult::SsrfBlocked,
                    detail: outcome.detail.to_string(),
                }
            })?;
            let (head, body) = answer.into_parts();
            Ok(Answer { status: head.status, body: beginning(body).await })
        };
        tokio::time::timeout(within, exchange).await.unwrap_or_else(|_| {
            let detail = format!("no answer within {} ms", within.as_millis());
            Err(PostError { is_transient: true, detail })
        })
    }
}

async fn beginning(mut body: Incoming) -> Bytes {
    let mut read = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        let left = BODY_BYTES_MAX - read.len();
        read.extend_from_slice(&data[..data.len().min(left)]);
        if data.len() >= left {
            break;
        }
    }
    read.freeze()
}
