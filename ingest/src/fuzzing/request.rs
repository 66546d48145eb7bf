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

use crate::source::{Secrets, SourceSpec};
use crate::{Edge, EdgeConfig, presets};

const SECRET: &str = "chaski-test-secret/not+real";
/// Every status there is a rule for.
const STATUSES: &[u16] = &[100, 200, 400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 417, 429, 431, 503];

struct Rig {
    runtime: Runtime,
    edge: Edge,
    _folder: tempfile::TempDir,
}

/// One edge for all inputs: what it has stored makes duplicates of the next.
static RIG: LazyLock<Rig> = LazyLock::new(|| {
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
        let config =
            EdgeConfig { listen: ([127, 0, 0, 1], 0).into(), max_body: 2048, ..EdgeConfig::default() };
        let clock = Clock::manual(Timestamp::from_second(1_772_031_600).expect("a time"));
        Edge::bind(config, vec![source], storage, &registry, clock).expect("an edge")
    });
    Rig { runtime, edge, _folder: folder }
});

pub(super) fn run(input: &[u8]) {
    let rig = &*RIG;
    let answered = rig.runtime.block_on(async {
        let (mut peer, ours) = tokio::io::duplex(16 * 1024);
        let serving = rig.edge.serve_one(ours);
        let asking = async {
            // Whoever is refused may not be read to the end.
            let _ = peer.write_all(input).await;
            let _ = peer.shutdown().await;
            let mut answered = Vec::new();
            let _ = peer.read_to_end(&mut answered).await;
            answered
        };
        let both = async { tokio::join!(serving, asking).1 };
        tokio::time::timeout(Duration::from_secs(20), both).await.expect("the connection ends")
    });
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
    let key = MacKey::new(Hash::Sha256, SECRET.as_bytes());
    let text = input.to_ascii_lowercase();
    let starts =
        (0..input.len()).filter(|at| input[..*at].ends_with(b"\n\r\n") || input[..*at].ends_with(b"\n\n"));
    starts.flat_map(|start| (start..=input.len()).map(move |end| &input[start..end])).any(|body| {
        let forms = [body.to_vec(), super::plain::minified(body)];
        forms.iter().any(|form| {
            let tag = hex::encode(key.tag(&[form]).as_bytes());
            text.windows(tag.len()).any(|found| found == tag.as_bytes())
        })
    })
}
