//! Slow peers: they connect and say nothing, drip a head or a body byte by byte, stay after an answer, or write and
//! never read. Each is to be gone when its time is up, and comes again for as long as the campaign lasts.
//!
//! Two clocks say when it is gone: the gateway's own, which it notes in its log when it gives up, and the peer's, except
//! where it never reads and its own system does not hear of the end before long. Between them lie the kernel's queue of
//! connections that nobody has taken yet, and this program, which has thousands of peers to look after. How often that
//! queue was full is told, too: a peer that met it believes to be connected, and is not before the kernel's next attempt,
//! a second or three later.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{Plan, Target, goal, random};
use crate::callback::{Callbacks, Signature};
use crate::gateway::{Extra, log_in};
use crate::load::{Expected, Senders};
use crate::machine;

/// Between two bytes of a peer that drips.
const DRIP: Duration = Duration::from_secs(1);
/// How long a peer waits for its end before the campaign gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the system lets a peer that never reads leave unread.
const UNREAD_BYTES: u32 = 4096;
/// Beyond its limit, before a peer is to be gone.
const GRACE: Duration = Duration::from_secs(1);
/// What the gateway logs: among others, each time that it gives up a peer.
const LOGGED: &str = "info,chaski_ingest::server::wire=debug";
const GAVE_UP: &str = "the peer's time is up";
/// Connections of the genuine sender.
const CONNECTIONS: usize = 32;

/// What a slow peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Silent,
    DripsHead,
    DripsBody,
    Stays,
    NeverReads,
}

/// How many of a hundred do what; those that never read keep the gateway busy until they are full.
const SHARES: [(Manner, usize); 5] = [
    (Manner::Silent, 26),
    (Manner::DripsHead, 26),
    (Manner::DripsBody, 26),
    (Manner::Stays, 20),
    (Manner::NeverReads, 2),
];

/// Limits that the gateway is given.
struct Limits {
    request: Duration,
    idle: Duration,
}

impl Manner {
    fn of(number: usize) -> Self {
        let mut share = number % 100;
        for (manner, of_hundred) in SHARES {
            match share.checked_sub(of_hundred) {
                Some(rest) => share = rest,
                None => return manner,
            }
        }
        Self::Silent
    }

    const fn limit(self, limits: &Limits) -> Duration {
        match self {
            Self::Stays => limits.idle,
            _ => limits.request,
        }
    }
}

pub(super) async fn run(plan: &Plan) -> anyhow::Result<Value> {
    let (peers, per_second, seconds) = plan.pick((5000, 500, 30), (100, 50, 3));
    let limits = plan.pick(
        Limits { request: Duration::from_secs(5), idle: Duration::from_secs(10) },
        Limits { request: Duration::from_secs(1), idle: Duration::from_secs(1) },
    );
    let ingest = format!(
        "header_timeout = \"{0}s\"\nbody_timeout = \"{0}s\"\nwrite_timeout = \"{0}s\"\nidle_timeout = \"{1}s\"",
        limits.request.as_secs(),
        limits.idle.as_secs()
    );
    let extra = Extra { ingest: &ingest, log: Some(LOGGED), ..Extra::default() };
    let target = Target::start_with(plan, extra).await?;
    let gateway = &target.gateway;
    let mut senders = Senders::connect(gateway.edge, CONNECTIONS).await?;
    let warm_up = Arc::new(Callbacks::render(0, 4 * per_second, Signature::Right)?);
    senders.post(&warm_up, warm_up.count(), Expected::Accepted).await?;
    let (before, overflows) = (gateway.process.memory()?, machine::listen_overflows()?);

    // The one callback that all slow peers have.
    let theirs = Arc::new(Callbacks::render(usize::pow(10, 9), 1, Signature::Right)?);
    let until = Instant::now() + Duration::from_secs(seconds as u64);
    let limits = Arc::new(limits);
    let mut slow = JoinSet::new();
    for number in 0..peers {
        let (to, theirs, limits) = (gateway.edge, Arc::clone(&theirs), Arc::clone(&limits));
        let seed = random(plan.seed.wrapping_add(number as u64));
        slow.spawn(async move {
            let manner = Manner::of(number);
            anyhow::Ok((manner, repeat(manner, to, &theirs, &limits, until, seed).await?))
        });
    }
    let begin_us = machine::now_us() + 100_000;
    let due_us = |index: usize| begin_us + (index * 1_000_000 / per_second) as u64;
    let genuine = Arc::new(Callbacks::render(warm_up.count(), per_second * seconds, Signature::Right)?);
    let watched = async {
        let mut peak_mib = 0.0_f64;
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(200)).await;
            peak_mib = peak_mib.max(gateway.process.memory()?.now_mib);
        }
        anyhow::Ok(peak_mib)
    };
    let (answered, peak_mib) =
        tokio::try_join!(senders.keep_to(&genuine, due_us, Expected::Accepted), watched)?;

    let (mut ended, mut late_ms) = (0, BTreeMap::<String, Vec<f64>>::new());
    while let Some(gone) = slow.join_next().await {
        let (manner, late) = gone??;
        ended += late.len();
        if manner == Manner::NeverReads {
            continue;
        }
        let all = late_ms.entry(format!("{manner:?}")).or_default();
        all.extend(late.iter().map(|late| late.as_secs_f64() * 1000.0));
    }
    let overflows = machine::listen_overflows()? - overflows;
    ensure!(ended >= peers, "{ended} of {peers} slow peers were ended");
    drop(senders);
    target.gateway.stop().await?.must_be(warm_up.tally().and(genuine.tally()).and(theirs.tally()))?;
    let gave_up = gave_up_ms(&log_in(target.site.path()))?;
    ensure!(gave_up.contains_key("write"), "no peer that never reads was given up");
    let gave_up = quantiles("wait", gave_up);
    let gone = quantiles("manner", late_ms);
    let is_in_time = |late: &Value| late["max"].as_f64() <= Some(GRACE.as_secs_f64() * 1000.0);
    let goals = [
        goal("the gateway gives up each wait within its limit and a second", gave_up.iter().all(is_in_time)),
        goal("each slow peer that waits is gone within its limit and a second", gone.iter().all(is_in_time)),
    ];
    Ok(json!({
        "slow_peers": peers,
        "ended": ended,
        "given_up_after_the_limit_ms": gave_up,
        "gone_after_their_limit_ms": gone,
        "listen_overflows": overflows,
        "genuine": answered.count(),
        "genuine_failed": 0,
        "genuine_ms": { "p50": answered.quantile_ms(0.5), "p99": answered.quantile_ms(0.99) },
        "resident_mib": { "before": before.now_mib, "peak": peak_mib },
        "kib_per_slow_peer": (peak_mib - before.now_mib) * 1024.0 / peers as f64,
        "goals": goals,
    }))
}

/// How far beyond its limit the gateway gave up each wait, by what it waited for, as its log has it.
fn gave_up_ms(log: &Path) -> anyhow::Result<BTreeMap<String, Vec<f64>>> {
    let mut late_ms: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for line in fs::read_to_string(log)?.lines().filter(|line| line.contains(GAVE_UP)) {
        let line: Value = serde_json::from_str(line)?;
        let (wait, late_us) = line["wait"].as_str().zip(line["late_us"].as_f64()).context("both are told")?;
        late_ms.entry(wait.to_owned()).or_default().push(late_us / 1000.0);
    }
    Ok(late_ms)
}

fn quantiles(name: &str, late_ms: BTreeMap<String, Vec<f64>>) -> Vec<Value> {
    let each = late_ms.into_iter().map(|(what, mut late_ms)| {
        late_ms.sort_by(f64::total_cmp);
        let of = |share: f64| late_ms[((late_ms.len() - 1) as f64 * share) as usize];
        json!({ name: what, "count": late_ms.len(), "p50": of(0.5), "p99": of(0.99), "max": of(1.0) })
    });
    each.collect()
}

/// Comes again and again; how long after its limit it was gone, each time.
async fn repeat(
    manner: Manner,
    to: SocketAddr,
    theirs: &Callbacks,
    limits: &Limits,
    until: Instant,
    seed: u64,
) -> anyhow::Result<Vec<Duration>> {
    let mut late = Vec::new();
    for time in 0.. {
        let cut = random(seed.wrapping_add(time)) as usize;
        let limit = manner.limit(limits);
        let gone = once(manner, to, theirs.request(0), cut, limit).await;
        let began = gone.with_context(|| format!("a peer that is {manner:?}"))?;
        late.push(began.elapsed().saturating_sub(limit));
        if Instant::now() >= until {
            break;
        }
    }
    Ok(late)
}

/// One connection until the gateway ends it; since when its time was running.
async fn once(
    manner: Manner,
    to: SocketAddr,
    request: &[u8],
    cut: usize,
    limit: Duration,
) -> anyhow::Result<Instant> {
    let head = request.windows(4).position(|end| end == b"\r\n\r\n").context("a request has a head")? + 4;
    let socket = TcpSocket::new_v4()?;
    if manner == Manner::NeverReads {
        socket.set_recv_buffer_size(UNREAD_BYTES)?;
    }
    let mut stream = socket.connect(to).await?;
    match manner {
        Manner::Silent => drip(stream, &[]).await,
        Manner::DripsHead => {
            let cut = cut % (head - 1);
            stream.write_all(&request[..cut]).await?;
            drip(stream, &request[cut..head - 1]).await
        }
        Manner::DripsBody => {
            let cut = head + cut % (request.len() - head - 1);
            stream.write_all(&request[..cut]).await?;
            drip(stream, &request[cut..request.len() - 1]).await
        }
        Manner::Stays => {
            stream.write_all(request).await?;
            ensure!(stream.read(&mut [0; 1024]).await? > 0, "a genuine request was not answered");
            drip(stream, &[]).await
        }
        Manner::NeverReads => {
            let (mut progress, mut rest) = (Instant::now(), request);
            // Full as it is, its own system hears of the end with one of its probes only, and those come ever more
            // rarely: when it was ended, the gateway's log says.
            while let Ok(Ok(written @ 1..)) = timeout(limit + GRACE, stream.write(rest)).await {
                progress = Instant::now();
                rest = if written == rest.len() { request } else { &rest[written..] };
            }
            Ok(progress)
        }
    }
}

/// Writes byte after byte until the other side ends the connection; when that began.
async fn drip(mut stream: TcpStream, bytes: &[u8]) -> anyhow::Result<Instant> {
    let began = Instant::now();
    let (mut read, mut write) = stream.split();
    let dripping = async {
        for byte in bytes {
            tokio::time::sleep(DRIP).await;
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let ended = async {
        let mut scratch = [0; 1024];
        while let Ok(1..) = read.read(&mut scratch).await {}
    };
    let either = async {
        tokio::select! {
            () = dripping => {}
            () = ended => {}
        }
    };
    let_go(either).await?;
    Ok(began)
}

async fn let_go<T>(end: impl Future<Output = T>) -> anyhow::Result<T> {
    timeout(PATIENCE, end).await.context("is never let go")
}
