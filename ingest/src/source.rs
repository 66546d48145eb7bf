//! Which sender: what the configuration says about one source, and what it becomes once compiled.
//!
//! A preset is nothing but such a description, kept as data under `presets/`.

mod description;
mod fault;
mod net;
mod secrets;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use chaski_common::event::Environment;
use chaski_common::storage::OnConflict;
use foldhash::fast::RandomState;
use http::{HeaderValue, StatusCode};

pub use self::description::{EventSpec, KeySpec, ReplySpec, SchemeSpec, SignatureSpec, TimestampSpec};
pub(crate) use self::fault::Faults;
pub use self::fault::{SpecError, SpecErrors};
pub use self::net::IpNet;
pub use self::secrets::{DatedSecret, Secrets, Validity};
use crate::content::Rules;
use crate::metrics::{EdgeMetrics, KeyUse, SourceMetrics};
use crate::verify::Scheme;

/// Longest name of a source, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// One configured source, its secrets loaded.
#[derive(Clone, Debug)]
pub struct SourceSpec {
    /// The name in the configuration, at most 64 bytes of `[a-z0-9_-]`.
    pub name: Arc<str>,
    /// The preset it is built on, if any.
    pub provider: Option<Arc<str>>,
    /// Where it is posted to, for example `/in/pagoefectivo`.
    pub path: Arc<str>,
    /// Whether its events are real money. Its secrets decide it, which no source of the other environment has;
    /// nothing that a callback says does.
    pub environment: Environment,
    /// Its secrets.
    pub secrets: Secrets,
    /// How it signs, what its events carry and how it is answered.
    pub scheme: SchemeSpec,
    /// Peers that may post; empty means all.
    pub allow_ips: Vec<IpNet>,
    /// Same id, other content.
    pub on_conflict: OnConflict,
}

/// A description, compiled: all that a request is held against.
pub(crate) struct Compiled {
    pub(crate) scheme: Scheme,
    pub(crate) rules: Rules,
    pub(crate) reply: Reply,
}

impl SchemeSpec {
    /// Looks at all of it with the eyes of the edge: what passes here is taken there.
    ///
    /// # Errors
    /// Everything that is wrong, each with its field and what would be right.
    pub fn check(&self, secrets: &Secrets) -> Result<Scheme, SpecErrors> {
        self.compile(secrets).map(|compiled| compiled.scheme)
    }

    pub(crate) fn compile(&self, secrets: &Secrets) -> Result<Compiled, SpecErrors> {
        let mut faults = Faults::default();
        let scheme = faults.keep(Scheme::compile(self, secrets));
        let rules = faults.keep(Rules::compile(&self.event));
        let reply = faults.keep(Reply::compile(&self.reply));
        let whole = scheme.zip(rules).zip(reply);
        faults.finish(whole.map(|((scheme, rules), reply)| Compiled { scheme, rules, reply }))
    }
}

/// How an event that is safe is answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Option<Bytes>,
    pub(crate) content_type: HeaderValue,
}

impl Default for Reply {
    fn default() -> Self {
        Self { status: StatusCode::OK, body: None, content_type: HeaderValue::from_static("text/plain") }
    }
}

impl Reply {
    fn compile(spec: &ReplySpec) -> Result<Self, SpecError> {
        let status =
            StatusCode::from_u16(spec.status).ok().filter(StatusCode::is_success).ok_or_else(|| {
                SpecError::new(
                    "reply.status",
                    format!("{} does not say that the event is safe", spec.status),
                    "200 to 299",
                )
            })?;
        let has_body = spec.body.as_ref().is_some_and(|body| !body.is_empty());
        if has_body && matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT) {
            let message = format!("an answer {} has no body, and reply.body says one", spec.status);
            return Err(SpecError::new("reply.status", message, "200, or leave reply.body out"));
        }
        let content_type = HeaderValue::from_str(&spec.content_type).map_err(|_| {
            SpecError::new("reply.content_type", "not a header value", "for example text/plain")
        })?;
        Ok(Self { status, body: spec.body.clone().map(Bytes::from), content_type })
    }
}

/// A source, compiled: everything a request needs, and nothing that is looked up by name.
pub(crate) struct Source {
    pub(crate) name: Arc<str>,
    pub(crate) environment: Environment,
    pub(crate) scheme: Scheme,
    pub(crate) rules: Rules,
    pub(crate) allow_ips: Vec<IpNet>,
    pub(crate) on_conflict: OnConflict,
    pub(crate) reply: Reply,
    pub(crate) metrics: SourceMetrics,
    /// Of its first event; few sources ever send another.
    content_type: OnceLock<Arc<str>>,
}

impl Source {
    /// The text of a content type, so that an event need not carry its own copy.
    pub(crate) fn content_type(&self, text: &str) -> Arc<str> {
        let first = self.content_type.get_or_init(|| text.into());
        if **first == *text { first.clone() } else { text.into() }
    }

    pub(crate) fn allows(&self, peer: IpAddr) -> bool {
        self.allow_ips.is_empty() || self.allow_ips.iter().any(|net| net.contains(peer))
    }
}

/// The sources in force, by path.
#[derive(Default)]
pub(crate) struct Sources {
    by_path: HashMap<Arc<str>, Arc<Source>, RandomState>,
    /// Paths whose source is about to come, or to come back.
    changing: Vec<Arc<str>>,
}

impl Sources {
    /// Compiles all of them or none, once for each of so many threads: what a source counts of those who hold it, and of those
    /// who hold its texts, is then written to by one thread.
    pub(crate) fn compile(
        specs: &[SourceSpec],
        metrics: &EdgeMetrics,
        threads: usize,
    ) -> Result<Vec<Self>, SpecError> {
        let uses: Vec<_> = specs.iter().map(|spec| metrics.key_uses(&spec.name, &spec.secrets)).collect();
        let compile = |_| Self::compile_once(specs, &uses, metrics);
        let sources = (0..threads).map(compile).collect::<Result<_, _>>()?;
        metrics.in_force(uses);
        Ok(sources)
    }

    fn compile_once(
        specs: &[SourceSpec],
        uses: &[Vec<KeyUse>],
        metrics: &EdgeMetrics,
    ) -> Result<Self, SpecError> {
        let mut sources = HashMap::with_capacity_and_hasher(specs.len(), RandomState::default());
        let mut names = HashSet::new();
        for (spec, uses) in specs.iter().zip(uses) {
            let in_source = |error: SpecError| SpecError {
                field: format!("sources.{}.{}", spec.name, error.field),
                ..error
            };
            check_name(spec).map_err(in_source)?;
            let compiled = spec.scheme.compile(&spec.secrets);
            let Compiled { scheme, rules, reply } = compiled.map_err(|errors| in_source(errors.into()))?;
            let source = Source {
                name: Arc::from(&*spec.name),
                environment: spec.environment,
                scheme,
                rules,
                allow_ips: spec.allow_ips.clone(),
                on_conflict: spec.on_conflict,
                reply,
                metrics: metrics.source(&spec.name, uses),
                content_type: OnceLock::new(),
            };
            if !names.insert(&spec.name) {
                return Err(in_source(SpecError::new("name", "two sources have it", "a name of its own")));
            }
            if sources.insert(spec.path.clone(), Arc::new(source)).is_some() {
                return Err(in_source(SpecError::new(
                    "path",
                    format!("{} has another source", spec.path),
                    "a path of its own",
                )));
            }
        }
        Ok(Self { by_path: sources, changing: Vec::new() })
    }

    /// The source with exactly this path.
    pub(crate) fn at(&self, path: &str) -> Option<&Arc<Source>> {
        self.by_path.get(path)
    }

    pub(crate) fn change(&mut self, paths: &[Arc<str>]) {
        self.changing = paths.to_vec();
    }

    pub(crate) fn is_changing(&self, path: &str) -> bool {
        self.changing.iter().any(|changing| **changing == *path)
    }
}

fn check_name(spec: &SourceSpec) -> Result<(), SpecError> {
    let is_name =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    if spec.name.is_empty() || spec.name.len() > NAME_BYTES_MAX || !spec.name.bytes().all(is_name) {
        return Err(SpecError::new("name", "not a name", "1 to 64 of a-z, 0-9, _ and -"));
    }
    if !spec.path.starts_with('/')
        || spec.path.parse::<http::uri::PathAndQuery>().is_err()
        || spec.path.contains('?')
    {
        return Err(SpecError::new("path", format!("{} is not a path", spec.path), "for example /in/NAME"));
    }
    Ok(())
}
