//! The corpus as data.

use serde::Deserialize;
use serde_json::Value;

const CORPUS: &str = include_str!("bad_inputs.json");

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Case {
    pub(super) id: String,
    pub(super) group: String,
    pub(super) description: String,
    pub(super) build: Value,
    pub(super) expect: Expect,
    /// Which source it is posted to, see the corpus.
    #[serde(default = "default")]
    pub(super) profile: String,
    /// `utf-8`, or Latin-1: one character is one byte.
    #[serde(default)]
    pub(super) encoding: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Expect {
    /// 0 for a connection that is closed without an answer.
    pub(super) status: u16,
    /// Others that are as safe.
    #[serde(default)]
    status_any: Vec<u16>,
    pub(super) outcome: String,
    pub(super) reason: String,
    /// `close` where the connection ends behind the answer.
    #[serde(default)]
    pub(super) conn: String,
    #[serde(default)]
    pub(super) responses_max: Option<usize>,
    #[serde(default)]
    pub(super) then: Value,
}

impl Expect {
    pub(super) fn allows(&self, status: u16) -> bool {
        status == self.status || self.status_any.contains(&status)
    }
}

fn default() -> String {
    "default".to_owned()
}

pub(super) fn all() -> Vec<Case> {
    #[derive(Deserialize)]
    struct Corpus {
        cases: Vec<Case>,
    }
    serde_json::from_str::<Corpus>(CORPUS).unwrap().cases
}
