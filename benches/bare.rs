//! The baseline of the dispatcher: hyper-util's pooled client, posting the same bodies to a receiver of the
//! same kind, as many at once.
//!
//! It is what somebody would write who has nothing to keep: as many workers of the runtime as chaski has, the bodies
//! in memory, three headers, no signature, no deadline, the system's allocator. What chaski has beside that is its cost: the
//! log, the state, 16 headers, the guard. Rendering the bodies is not measured, and neither is chaski's start.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::ensure;
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;

use crate::callback::{Callbacks, Signature};
use crate::gateway::CONCURRENCY;

/// Posts so many callbacks, the first ones as everywhere, each so often as there are destinations; then it rests, until
/// it is killed by whoever has read its CPU time.
pub(crate) async fn serve(to: SocketAddr, events: usize, destinations: usize) -> anyhow::Result<()> {
    let callbacks = Arc::new(Callbacks::render(0, events, Signature::Right)?);
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let url: Uri = format!("http://{to}/hooks").parse()?;
    post_all(events * destinations, &callbacks, &client, &url, CONCURRENCY * destinations).await?;
    std::future::pending().await
}

type Bare = Client<HttpConnector, Full<Bytes>>;

async fn post_all(
    count: usize,
    callbacks: &Arc<Callbacks>,
    client: &Bare,
    url: &Uri,
    concurrency: usize,
) -> anyhow::Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..concurrency {
        let (callbacks, next) = (Arc::clone(callbacks), Arc::clone(&next));
        let (client, url) = (client.clone(), url.clone());
        tasks.spawn(async move {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
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
