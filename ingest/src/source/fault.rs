//! What is wrong with a description: all of it, not only the first.

/// A description that cannot be compiled: which field, what is wrong, what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {wrong}; {right}")]
pub struct SpecError {
    /// The field, from the source's own table on: `signature.template`; of a list the entry as well: `event.id.0`.
    pub field: String,
    /// What is wrong with it.
    pub wrong: String,
    /// What would be right.
    pub right: String,
}

impl SpecError {
    pub(crate) fn new(field: &str, wrong: impl Into<String>, right: impl Into<String>) -> Self {
        Self { field: field.to_owned(), wrong: wrong.into(), right: right.into() }
    }
}

/// Everything that is wrong with a description; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecErrors(Vec<SpecError>);

impl From<SpecError> for SpecErrors {
    fn from(error: SpecError) -> Self {
        Self(vec![error])
    }
}

impl From<SpecErrors> for SpecError {
    /// The first of them.
    fn from(SpecErrors(mut errors): SpecErrors) -> Self {
        errors.swap_remove(0)
    }
}

impl IntoIterator for SpecErrors {
    type Item = SpecError;
    type IntoIter = std::vec::IntoIter<SpecError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// What was found wrong with a description so far, while the rest of it is looked at.
#[derive(Default)]
pub(crate) struct Faults(Vec<SpecError>);

impl Faults {
    /// What is in order; what is not is noted.
    pub(crate) fn keep<T>(&mut self, outcome: Result<T, impl Into<SpecErrors>>) -> Option<T> {
        outcome.map_err(|errors| self.0.extend(errors.into())).ok()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The whole, if all of it was in order.
    pub(crate) fn finish<T>(self, whole: Option<T>) -> Result<T, SpecErrors> {
        match whole {
            Some(whole) if self.is_empty() => Ok(whole),
            _ => Err(SpecErrors(self.0)),
        }
    }
}
