//! The baseline of the dispatcher: hyper-util's pooled client, posting the same bodies to the same receiver,
//! as many at once.
//!
//! It is what somebody would write who has nothing to keep: as many workers of the runtime as chaski has, the bodies
//! in memory, three headers, no signature, no deadline, the system's allocator. What chaski has beside that is its cost: the
//! log, the state, 16 headers, the guard. Rendering the bodies is not measured, and neither is chaski's start.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::ensure;
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;

use crate::callback::{Callbacks, Signature};
use crate::machine;
use crate::report::Sample;

/// Posts `warm_up` callbacks, then `count` that are measured: the first ones, as everywhere.
pub(crate) async fn post_all(
    to: SocketAddr,
    count: usize,
    warm_up: usize,
    concurrency: usize,
) -> anyhow::Result<Sample> {
    let callbacks = Arc::new(Callbacks::render(0, warm_up + count, Signature::Right)?);
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let url: Uri = format!("http://{to}/hooks").parse()?;
    let next = Arc::new(AtomicUsize::new(0));
    post_until(warm_up, &callbacks, &next, &client, &url, concurrency).await?;
    let (begun, cpu) = (Instant::now(), machine::cpu_of(std::process::id())?);
    next.store(warm_up, Ordering::Relaxed);
    post_until(warm_up + count, &callbacks, &next, &client, &url, concurrency).await?;
    let (elapsed, cpu) = (begun.elapsed(), machine::cpu_of(std::process::id())? - cpu);
    Ok(Sample::new(count, elapsed, cpu))
}

type Bare = Client<HttpConnector, Full<Bytes>>;

async fn post_until(
    end: usize,
    callbacks: &Arc<Callbacks>,
    next: &Arc<AtomicUsize>,
    client: &Bare,
    url: &Uri,
    concurrency: usize,
) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..concurrency {
        let (callbacks, next) = (Arc::clone(callbacks), Arc::clone(next));
        let (client, url) = (client.clone(), url.clone());
        tasks.spawn(async move {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= end {
                    return anyhow::Ok(());
                }
                let request = Request::post(url.clone())
                    .header(http::header::CONTENT_TYPE, "application/json")
                    .body(Full::new(callbacks.body(index)))?;
                let answer = client.request(request).await?;
                ensure!(answer.status().is_success(), "the receiver answered {}", answer.status());
                answer.into_body().collect().await?;
            }
        });
    }
    while let Some(posted) = tasks.join_next().await {
        posted??;
    }
    Ok(())
}
