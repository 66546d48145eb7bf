//! Bytes on a connection, through the whole edge: hyper, the bounds, the scheme, the store.

use std::sync::LazyLock;
use std::time::Duration;

use chaski_common::clock::Clock;
use chaski_common::event::Environment;
use chaski_common::mac::{Hash, MacKey};
use chaski_common::secret::Secret;
use chaski_common::storage::OnConflict;
use chaski_common::storage::embedded::{self, Options};
use jiff::Timestamp;
use prometheus::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::source::{Secrets, SourceSpec};
use crate::{Edge, EdgeConfig, presets};

const SECRET: &str = "chaski-test-secret/not+real";
/// Every status there is a rule for.
const STATUSES: &[u16] = &[100, 200, 400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 417, 429, 431, 503];

/// How long a connection of frames may say nothing before nothing more is expected of it.
const QUIET: Duration = Duration::from_millis(5);

/// An edge that serves connections which no socket carries.
pub(super) struct Rig {
    runtime: Runtime,
    edge: Edge,
    http2: bool,
    _folder: tempfile::TempDir,
}

/// One edge for all inputs: what it has stored makes duplicates of the next.
static RIG: LazyLock<Rig> = LazyLock::new(|| Rig::new(false));

impl Rig {
    pub(super) fn new(http2: bool) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let folder = tempfile::tempdir().expect("a folder");
        let registry = Registry::new();
        let edge = runtime.block_on(async {
            let options = Options { path: folder.path().join("data") };
            let storage = embedded::open(&options, &registry).expect("a store");
            let source = SourceSpec {
                name: "pagoefectivo".into(),
                provider: None,
                path: "/in/pagoefectivo".into(),
                secrets: Secrets::Any(vec![Secret::new(SECRET).into()]),
                scheme: presets::load("pagoefectivo").expect("a preset"),
                environment: Environment::Production,
                allow_ips: Vec::new(),
                on_conflict: OnConflict::Quarantine,
            };
            let listen = ([127, 0, 0, 1], 0).into();
            let config = EdgeConfig { listen, max_body: 2048, http2, ..EdgeConfig::default() };
            let clock = Clock::manual(Timestamp::from_second(1_772_031_600).expect("a time"));
            Edge::bind(config, vec![source], storage, &registry, clock).expect("an edge")
        });
        Self { runtime, edge, http2, _folder: folder }
    }

    /// All that comes back for these bytes, until the connection is over.
    pub(super) fn ask(&self, input: &[u8]) -> Vec<u8> {
        self.runtime.block_on(async {
            let (mut peer, ours) = tokio::io::duplex(16 * 1024);
            let serving = self.edge.serve_one(ours);
            let asking = async {
                // Whoever is refused may not be read to the end.
                let _ = peer.write_all(input).await;
                let mut answered = Vec::new();
                // Streams are not answered behind an end, as requests are.
                while self.http2
                    && let Ok(Ok(1..)) = timeout(QUIET, peer.read_buf(&mut answered)).await
                {}
                let _ = peer.shutdown().await;
                let _ = peer.read_to_end(&mut answered).await;
                answered
            };
            let both = async { tokio::join!(serving, asking).1 };
            timeout(Duration::from_secs(20), both).await.expect("the connection ends")
        })
    }
}

pub(super) fn run(input: &[u8]) {
    let answered = RIG.ask(input);
    let answered = String::from_utf8(answered).expect("answers are text");
    let mut is_accepted = false;
    for head in answered.split("HTTP/1.1 ").skip(1) {
        let status = head.get(..3).and_then(|status| status.parse().ok()).expect("a status");
        assert!(STATUSES.contains(&status), "{status}: {answered}");
        is_accepted |= status == 200;
    }
    if is_accepted && !input.windows(7).any(|word| word.eq_ignore_ascii_case(b"chunked")) {
        assert!(is_signed(input), "accepted unsigned: {answered}");
    }
}

/// Whether some of it is followed, or preceded, by its own tag.
fn is_signed(input: &[u8]) -> bool {
    let starts =
        (0..=input.len()).filter(|at| input[..*at].ends_with(b"\n\r\n") || input[..*at].ends_with(b"\n\n"));
    starts
        .flat_map(|start| (start..=input.len()).map(move |end| &input[start..end]))
        .any(|body| has_tag(input, body))
}

/// Whether the tag of a body, in one of its forms, is somewhere in the input.
pub(super) fn has_tag(input: &[u8], body: &[u8]) -> bool {
    let key = MacKey::new(Hash::Sha256, SECRET.as_bytes());
    let forms = [body.to_vec(), super::plain::minified(body)];
    forms.iter().any(|form| {
        let tag = hex::encode(key.tag(&[form]).as_bytes());
        input.windows(tag.len()).any(|found| found.eq_ignore_ascii_case(tag.as_bytes()))
    })
}
