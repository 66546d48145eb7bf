//! `Received` -> [`Verified`] or a [`Refusal`]: who signed this, with which secret, and was it just now.
//!
//! Promises: tags are compared whole and in constant time, on decoded bytes; the work per request is bounded
//! whatever the sender writes; nothing outside the process is touched. Which scheme a sender uses is data
//! ([`SchemeSpec`](crate::source::SchemeSpec)). What the body says is not judged here.

pub mod scheme;
mod layout;
pub(crate) mod template;
pub(crate) mod timestamp;
pub(crate) mod body_form;
pub mod sign;

use chaski_common::event::Fingerprint;
use jiff::Timestamp;

use crate::request::Received;
use crate::respond::labelled;

pub use scheme::{Cover, Freshness, Scheme, key_bytes};
pub(crate) use timestamp::{parse_rfc3339, parse_unix_auto};

#[cfg(doc)]
use crate::respond::Refusal;

/// A request whose sender has proved who it is. Only [`Scheme::verify`] makes one.
#[derive(Debug)]
pub struct Verified<'r> {
    pub(crate) received: &'r Received,
    /// Which secret matched.
    pub key: KeyUsed,
    /// Its place among the source's secrets, as [`Secrets::named`](crate::source::Secrets::named) has them.
    pub(crate) place: usize,
    /// Which form of the body was signed.
    pub form: BodyForm,
    /// When the sender says it signed, where it says so.
    pub signed_at: Option<Timestamp>,
    /// Of the text that it signed, where the event's id may be made of it.
    pub(crate) text: Option<Fingerprint>,
}

impl<'r> Verified<'r> {
    /// The request.
    #[must_use]
    pub const fn received(&self) -> &'r Received {
        self.received
    }
}

labelled! {
    /// Which of a source's secrets matched.
    pub KeyUsed {
        /// The first one, or the one named by the request.
        Current = "current",
        /// One that is on its way out.
        Previous = "previous",
    }
}

labelled! {
    /// Which form of the body was signed.
    pub BodyForm {
        /// The bytes received.
        Raw = "raw",
        /// JSON without the white space between its tokens.
        Minified = "minified",
    }
}
