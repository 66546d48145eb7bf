//! Posting to an edge, as a provider would: for `chaski send` and the demo.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use chaski_ingest::verify::sign::Signed;
use http::header::HOST;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::builderstates::WantsProtocols1;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls_pki_types::ServerName;

/// The largest answer read.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// From connect to the last byte.
const TIMEOUT: Duration = Duration::from_secs(30);

type Https = HttpsConnectorBuilder<WantsProtocols1>;

/// A client with a pool of connections.
#[derive(Clone)]
pub(crate) struct Poster {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Said instead of the URL's.
    host: Option<HeaderValue>,
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
}

impl Poster {
    pub(crate) fn new() -> Self {
        Self::build(None, |https| https)
    }

    /// For a gateway that has this name for its senders, and in its certificate, whatever the URL's address is.
    pub(crate) fn under(host: &str) -> anyhow::Result<Self> {
        let wrong = || format!("{host} is no name of a host");
        let said = host.parse().with_context(wrong)?;
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).with_context(wrong)?;
        let resolver = FixedServerNameResolver::new(name);
        Ok(Self::build(Some(said), |https| https.with_server_name_resolver(resolver)))
    }

    fn build(host: Option<HeaderValue>, name: impl FnOnce(Https) -> Https) -> Self {
        let https = name(HttpsConnectorBuilder::new().with_webpki_roots().https_or_http());
        Self { client: Client::builder(TokioExecutor::new()).build(https.enable_http1().build()), host }
    }

    /// Posts to `url`, which has no query of its own.
    pub(crate) async fn post(&self, url: &str, signed: Signed) -> anyhow::Result<Answer> {
        let url = signed.query.map_or_else(|| url.to_owned(), |query| format!("{url}?{query}"));
        let mut request = Request::post(&url).body(Full::new(signed.body))?;
        request.headers_mut().extend(signed.headers);
        if let Some(host) = &self.host {
            request.headers_mut().insert(HOST, host.clone());
        }
        let exchange = async {
            let response = self.client.request(request).await?;
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
