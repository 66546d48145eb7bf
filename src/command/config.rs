//! `chaski config`: the annotated file, and its schema.

/// `chaski config reference`: every setting with its default, as a file that loads.
#[must_use]
pub fn reference() -> String {
    crate::config::reference()
}

/// `chaski config schema`: the JSON Schema of the file.
#[must_use]
pub fn schema() -> String {
    crate::config::schema()
}
