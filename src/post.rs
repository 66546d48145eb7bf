//! Posting to an edge, as a provider would: for `chaski send` and the demo.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use chaski_ingest::verify::sign::Signed;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// The largest answer read.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// From connect to the last byte.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A client with a pool of connections.
#[derive(Clone)]
pub(crate) struct Poster(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
}

impl Poster {
    pub(crate) fn new() -> Self {
        let https = HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_http1().build();
        Self(Client::builder(TokioExecutor::new()).build(https))
    }

    /// Posts to `url`, which has no query of its own.
    pub(crate) async fn post(&self, url: &str, signed: Signed) -> anyhow::Result<Answer> {
        let url = signed.query.map_or_else(|| url.to_owned(), |query| format!("{url}?{query}"));
        let mut request = Request::post(&url).body(Full::new(signed.body))?;
        request.headers_mut().extend(signed.headers);
        let exchange = async {
            let response = self.0.request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|error| anyhow!(error))?;
            anyhow::Ok(Answer { status, body: String::from_utf8_lossy(&body.to_bytes()).into_owned() })
        };
        tokio::time::timeout(TIMEOUT, exchange)
            .await
            .with_context(|| format!("no answer from {url} within {TIMEOUT:?}"))?
            .with_context(|| format!("posting to {url}"))
    }
}
