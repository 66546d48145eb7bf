//! Mail over SMTP, by `lettre`: it goes its own way, not through the guarded client, because it is not HTTP.

use std::time::{Duration, SystemTime};

use chaski_common::secret::Secret;
use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};

use super::{Message, SAID_CHARS_MAX, SEND_WITHIN};

/// Longer than what a screen shows, and far from any server's bound.
const TEXT_BYTES_MAX: usize = 64 * 1024;
/// Connect, TLS, greeting, login, message: several round trips, each bounded by [`SEND_WITHIN`], all by this.
const MAIL_WITHIN: Duration = Duration::from_secs(30);

/// A mailbox.
#[derive(Clone, Debug, PartialEq)]
pub struct EmailSpec {
    /// Whose name stands on it.
    pub from: Mailbox,
    /// Who gets it; at least one.
    pub to: Vec<Mailbox>,
    /// The mail server's name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is protected.
    pub tls: SmtpTls,
    /// User and password, if the server asks.
    pub login: Option<(String, Secret)>,
}

/// How a connection to a mail server is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmtpTls {
    /// Begins in clear text and must change to TLS before anything is said.
    StartTls,
    /// TLS from the first byte.
    Tls,
    /// Clear text; on this machine only.
    None,
}

/// Why the mail server did not take a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SmtpError {
    #[error("{}", told(.0))]
    Transport(#[from] lettre::transport::smtp::Error),
    #[error("the message cannot be written: {0}")]
    Message(#[from] lettre::error::Error),
    #[error("not taken within {} s", MAIL_WITHIN.as_secs())]
    Timeout,
}

impl SmtpError {
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Transport(error) => !error.is_permanent() && !error.is_client(),
            Self::Message(_) => false,
            Self::Timeout => true,
        }
    }
}

fn told(error: &lettre::transport::smtp::Error) -> String {
    let text: String = crate::chain(error).chars().take(SAID_CHARS_MAX).collect();
    crate::output::harmless(&text).replace('\n', " ")
}

/// A mailbox, ready to be written to.
pub(super) struct Email {
    spec: EmailSpec,
}

impl Email {
    pub(super) fn new(spec: &EmailSpec) -> Self {
        Self { spec: spec.clone() }
    }

    /// A connection of its own each time: mails are rare, and servers close what is idle.
    fn transport(&self) -> Result<AsyncSmtpTransport<Tokio1Executor>, SmtpError> {
        let EmailSpec { host, port, tls, login, .. } = &self.spec;
        let tls = match tls {
            SmtpTls::StartTls => Tls::Required(TlsParameters::new(host.clone())?),
            SmtpTls::Tls => Tls::Wrapper(TlsParameters::new(host.clone())?),
            SmtpTls::None => Tls::None,
        };
        let builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
            .port(*port)
            .tls(tls)
            .timeout(Some(SEND_WITHIN));
        Ok(match login {
            None => builder.build(),
            Some((user, password)) => {
                let password = String::from_utf8_lossy(password.expose()).into_owned();
                builder.credentials(Credentials::new(user.clone(), password)).build()
            }
        })
    }

    fn mail(&self, message: &Message) -> Result<lettre::Message, SmtpError> {
        let mut mail = lettre::Message::builder()
            .from(self.spec.from.clone())
            .date(SystemTime::from(message.sent_at))
            .subject(message.title())
            .header(ContentType::TEXT_PLAIN);
        for to in &self.spec.to {
            mail = mail.to(to.clone());
        }
        Ok(mail.body(message.text(TEXT_BYTES_MAX))?)
    }

    pub(super) async fn send(&self, message: &Message) -> Result<(), SmtpError> {
        let (transport, mail) = (self.transport()?, self.mail(message)?);
        let sent = tokio::time::timeout(MAIL_WITHIN, transport.send(mail)).await;
        sent.map_err(|_| SmtpError::Timeout)??;
        Ok(())
    }
}
