//! The secrets of a source, what they are called and when they are good.

use std::borrow::Cow;
use std::collections::BTreeMap;

use chaski_common::secret::Secret;
use jiff::Timestamp;

/// The secrets of a source.
#[derive(Clone, Debug)]
pub enum Secrets {
    /// Any may match; the first is the current one, the others are on their way out.
    Any(Vec<DatedSecret>),
    /// A key id in the request selects one (`signature.key.select`).
    ById(BTreeMap<String, DatedSecret>),
}

impl Secrets {
    /// Each with the name that metrics and people call it by: its key id, or `current`, `previous`, `previous-2` …
    pub fn named(&self) -> Vec<(Cow<'_, str>, &DatedSecret)> {
        let place = |index| match index {
            0 => "current".into(),
            1 => "previous".into(),
            index => format!("previous-{index}").into(),
        };
        match self {
            Self::Any(list) => {
                list.iter().enumerate().map(|(index, secret)| (place(index), secret)).collect()
            }
            Self::ById(table) => table.iter().map(|(id, secret)| (id.as_str().into(), secret)).collect(),
        }
    }
}

/// A secret, and when it is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatedSecret {
    /// What signs.
    pub secret: Secret,
    /// Outside of this it verifies nothing.
    pub validity: Validity,
    /// Since when it exists, as far as anybody has told.
    pub created: Option<Timestamp>,
}

impl From<Secret> for DatedSecret {
    /// One that is good at any time.
    fn from(secret: Secret) -> Self {
        Self { secret, validity: Validity::default(), created: None }
    }
}

/// A span of time with both its ends, each of which may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validity {
    /// Not yet before this.
    pub not_before: Option<Timestamp>,
    /// No more after this.
    pub not_after: Option<Timestamp>,
}

impl Validity {
    /// Whether this moment is in it.
    #[must_use]
    pub fn covers(&self, now: Timestamp) -> bool {
        self.not_before.is_none_or(|from| from <= now) && !self.is_over(now)
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.not_after.is_some_and(|until| until < now)
    }
}
