//! `chaski config`: the annotated file, and its schema.

use crate::output;

/// `chaski config reference`: every setting with its default, as a file that loads, or as data.
pub fn reference(json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&crate::config::settings());
    }
    output::line(crate::config::reference().trim_end());
    Ok(())
}

/// `chaski config schema`: the JSON Schema of the file.
#[must_use]
pub fn schema() -> String {
    crate::config::schema()
}
