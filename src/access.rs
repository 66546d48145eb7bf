//! How a command reaches the store: through the admin API of a running process, or by opening the store of
//! one that stands still.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use chaski_common::clock::Clock;
use chaski_common::storage::{StorageError, embedded};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::admin::STORE_HEADER;
use crate::api::{ApiError, CALL_TIMEOUT, Call, Operations};
use crate::config::AccessConfig;

/// The largest answer read.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// How long a running process may take to accept the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A way to the store.
pub(crate) enum Access {
    /// A process is running.
    Remote(Remote),
    /// None is; this one has the store until it is done.
    Local(Operations),
}

pub(crate) struct Remote {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
    token: Option<String>,
}

impl Access {
    /// Asks for a running process first; without one, opens the store of the configuration.
    pub(crate) async fn find(config: &AccessConfig) -> anyhow::Result<Self> {
        let remote = Remote::new(config)?;
        if let Some(has) = remote.store().await {
            match embedded::holder(&config.store) {
                Some(holder) if holder != has => bail!(
                    "the process at {} has another store than {}; is this the right configuration (-c)?",
                    remote.base,
                    config.store.display()
                ),
                _ => return Ok(Self::Remote(remote)),
            }
        }
        let path: PathBuf = config.store.clone();
        if !path.join(embedded::FILE).exists() {
            bail!(
                "nothing answers at {} and there is no store in {}; is this the right configuration (-c)?",
                remote.base,
                path.display()
            );
        }
        let storage = match embedded::open(&embedded::Options { path }, &prometheus::Registry::new()) {
            Err(StorageError::Locked { path }) => {
                bail!(
                    "a process has the store in {path}, but nothing answers at {} ([admin] listen)",
                    remote.base
                )
            }
            opened => opened?,
        };
        Ok(Self::Local(Operations { storage, dispatcher: None, clock: Clock::system(), reload: None }))
    }

    /// Asks one question.
    pub(crate) async fn call<C: Call>(&self, call: C) -> anyhow::Result<C::Answer> {
        match self {
            Self::Remote(remote) => remote.call(call).await,
            Self::Local(operations) => call.run(operations).await.map_err(|error| match error {
                ApiError::Refused(why) => anyhow!(why),
                ApiError::Storage(error) => error.into(),
            }),
        }
    }

    /// Gives the store back.
    pub(crate) async fn close(self) {
        if let Self::Local(operations) = self {
            operations.storage.events.close().await;
        }
    }
}

impl Remote {
    fn new(config: &AccessConfig) -> anyhow::Result<Self> {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let token = config.token.as_ref().map(|token| String::from_utf8(token.expose().to_vec())).transpose();
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            base: format!("http://{}", config.admin),
            token: token.context("the admin token is not text")?,
        })
    }

    /// The store of the process that answers; none if none does, or it is no chaski.
    async fn store(&self) -> Option<String> {
        let request = Request::get(format!("{}/healthz", self.base)).body(Full::default()).ok()?;
        let answered =
            tokio::time::timeout(CONNECT_TIMEOUT, self.client.request(request)).await.ok()?.ok()?;
        Some(answered.headers().get(STORE_HEADER)?.to_str().ok()?.to_owned())
    }

    async fn call<C: Call>(&self, call: C) -> anyhow::Result<C::Answer> {
        let mut request = Request::post(format!("{}/api/{}", self.base, C::NAME))
            .header("content-type", "application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::from(serde_json::to_vec(&call)?))?;
        let exchange = async {
            let response = self.client.request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|error| anyhow!(error))?;
            anyhow::Ok((status, body.to_bytes()))
        };
        let (status, body) = tokio::time::timeout(CALL_TIMEOUT, exchange)
            .await
            .with_context(|| format!("no answer from {} within {CALL_TIMEOUT:?}", self.base))?
            .with_context(|| format!("asking {}", self.base))?;
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).context("an answer of another version of chaski?");
        }
        let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        match answer["error"].as_str() {
            Some(why) => bail!("{why}"),
            None => bail!("{} answered {status}", self.base),
        }
    }
}
