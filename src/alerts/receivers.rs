//! Who is told: a webhook of one's own, a chat, a mailbox. Each service's words are in its own module; here is what
//! they share.

mod chat;
mod email;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chaski_common::secret::Secret;
use chaski_dispatcher::{Answer, PostError, Poster};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use jiff::Timestamp;

use super::message::Message;
use email::Email;
pub use email::{EmailSpec, SmtpTls};

/// One try, from connect to the last byte.
const SEND_WITHIN: Duration = Duration::from_secs(10);
/// Most of a service's own words that are repeated to a person.
const SAID_CHARS_MAX: usize = 200;
/// Shorter parts of a URL are no token.
const TOKEN_BYTES_MIN: usize = 5;

/// `[alerts.receivers.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceiverSpec {
    /// Its configured name.
    pub name: Arc<str>,
    /// What it is.
    pub kind: Kind,
}

/// What a receiver is.
#[derive(Clone, PartialEq)]
pub enum Kind {
    /// The documented JSON, signed as deliveries are where there is a secret.
    Webhook {
        /// Where to post.
        url: Uri,
        /// Signs by Standard Webhooks.
        secret: Option<Secret>,
    },
    /// Slack, or what understands Slack's incoming webhooks.
    Slack {
        /// The incoming webhook's.
        url: Uri,
    },
    /// A group's robot.
    DingTalk {
        /// With its access token.
        url: Uri,
        /// Of the security setting "sign".
        secret: Option<Secret>,
    },
    /// A group's custom bot; Lark's, too.
    Feishu {
        /// With its token.
        url: Uri,
        /// Of the security setting "signature verification".
        secret: Option<Secret>,
    },
    /// A group's robot.
    WeCom {
        /// With its key.
        url: Uri,
    },
    /// Over SMTP.
    Email(EmailSpec),
}

/// A URL may hold a token, so no receiver's is printed.
impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Kind {
    /// As the configuration writes it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Webhook { .. } => "webhook",
            Self::Slack { .. } => "slack",
            Self::DingTalk { .. } => "dingtalk",
            Self::Feishu { .. } => "feishu",
            Self::WeCom { .. } => "wecom",
            Self::Email(_) => "email",
        }
    }
}

/// A message did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// Nothing came back over HTTP.
    #[error(transparent)]
    Post(#[from] PostError),
    /// An answer that is no yes.
    #[error("refused with {status}{}", quote(said))]
    Refused { status: StatusCode, said: String },
    /// A yes in HTTP and a no in the service's own code.
    #[error("refused with code {code}{}", quote(said))]
    Code { code: i64, said: String, is_transient: bool },
    /// The mail server did not take it.
    #[error("{0}")]
    Smtp(#[from] email::SmtpError),
}

fn quote(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

impl SendError {
    /// Whether trying again can help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Post(error) => error.is_transient,
            Self::Refused { status, .. } => {
                status.is_server_error()
                    || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS]
                        .contains(status)
            }
            Self::Code { is_transient, .. } => *is_transient,
            Self::Smtp(error) => error.is_transient(),
        }
    }
}

/// A receiver, ready to be told.
pub(crate) struct Receiver {
    name: Arc<str>,
    way: Way,
}

enum Way {
    Http { kind: Kind, poster: Poster },
    Smtp(Email),
}

/// What is posted.
struct Post {
    url: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Post {
    fn json(url: &Uri, body: &impl serde::Serialize) -> Self {
        // Texts, numbers and maps with text keys: always JSON.
        let body = serde_json::to_vec(body).unwrap_or_default().into();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        Self { url: url.clone(), headers, body }
    }
}

impl Receiver {
    pub(crate) fn new(spec: &ReceiverSpec, poster: &Poster) -> Self {
        let way = match &spec.kind {
            Kind::Email(email) => Way::Smtp(Email::new(email)),
            kind => Way::Http { kind: kind.clone(), poster: poster.clone() },
        };
        Self { name: Arc::clone(&spec.name), way }
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Sends once. `now` is what signatures are made with.
    pub(crate) async fn send(&self, message: &Message, now: Timestamp) -> Result<(), SendError> {
        let (kind, poster) = match &self.way {
            Way::Http { kind, poster } => (kind, poster),
            Way::Smtp(email) => return Ok(email.send(message).await?),
        };
        let post = match kind {
            Kind::Webhook { url, secret } => webhook::post(url, secret.as_ref(), message, now),
            Kind::Slack { url } => chat::slack(url, message),
            Kind::DingTalk { url, secret } => chat::dingtalk(url, secret.as_ref(), message, now),
            Kind::Feishu { url, secret } => chat::feishu(url, secret.as_ref(), message, now),
            Kind::WeCom { url } => chat::wecom(url, message),
            Kind::Email(_) => return Ok(()),
        };
        let answer = poster.post(&post.url, post.headers, post.body, SEND_WITHIN).await?;
        if !answer.status.is_success() {
            return Err(SendError::Refused { status: answer.status, said: words(&answer, &post.url) });
        }
        match kind {
            Kind::DingTalk { .. } | Kind::Feishu { .. } | Kind::WeCom { .. } => {
                chat::accepted(&answer, &post.url)
            }
            _ => Ok(()),
        }
    }
}

/// The beginning of what a service said, on one line and harmless to print. Servers like to repeat what they were
/// asked for: the parts of the URL that could be a token are blotted out.
fn words(answer: &Answer, url: &Uri) -> String {
    let mut text = String::from_utf8_lossy(&answer.body).into_owned();
    let asked = url.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    for part in asked.split(['/', '?', '&', '=']).filter(|part| part.len() >= TOKEN_BYTES_MIN) {
        text = text.replace(part, "…");
    }
    let text: String = text.trim().chars().take(SAID_CHARS_MAX).collect();
    crate::output::harmless(&text).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_repeats_the_url_does_not_give_the_token_away() {
        let url = Uri::from_static("https://chat.test/services/T0001/B0002abc?key=s3cr3t-t0ken");
        let said = "<pre>Cannot POST /services/T0001/B0002abc?key=s3cr3t-t0ken</pre>\n";
        let said = Answer { status: StatusCode::NOT_FOUND, body: Bytes::from_static(said.as_bytes()) };
        assert_eq!(words(&said, &url), "<pre>Cannot POST /…/…/…?key=…</pre>");
        let long = Answer { status: StatusCode::NOT_FOUND, body: Bytes::from(vec![b'x'; 9999]) };
        assert_eq!(words(&long, &url).len(), SAID_CHARS_MAX);
    }
}
