//! How a command reaches the store: through the admin API of a running process, or by opening the store of
//! one that stands still.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use chaski_common::clock::Clock;
use chaski_common::storage::{Storage, StorageError, embedded, kafka};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prometheus::Registry;

use crate::admin::STORE_HEADER;
use crate::api::{ApiError, CALL_TIMEOUT, Call, Operations};
use crate::config::{AccessConfig, StorageConfig, StorageKind};
use crate::output;

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

/// A process that is running.
pub(crate) struct Remote {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
    token: Option<String>,
}

impl Access {
    /// Asks for a running process first; without one, opens the store of the configuration.
    pub(crate) async fn find(config: &AccessConfig) -> anyhow::Result<Self> {
        if let Some(remote) = Remote::find(config).await? {
            return Ok(Self::Remote(remote));
        }
        let storage = match &config.storage.kind {
            StorageKind::Embedded { path } => open_file(path, config.admin)?,
            StorageKind::Kafka { options, .. } => {
                output::say(format_args!(
                    "nothing answers at {}; reading {} itself, which may take a moment",
                    config.admin,
                    shown(&config.storage)
                ));
                let opened = kafka::open(options, &Registry::new()).await;
                opened.with_context(|| format!("opening {}", shown(&config.storage)))?
            }
        };
        let names = config.destinations.clone();
        Ok(Self::Local(Operations {
            storage,
            dispatcher: None,
            clock: Clock::system(),
            reload: None,
            destinations: Arc::new(move || names.clone()),
        }))
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

/// The storage in words.
fn shown(storage: &StorageConfig) -> String {
    match &storage.kind {
        StorageKind::Embedded { path } => path.display().to_string(),
        StorageKind::Kafka { options, .. } => {
            format!("{}.* on {}", options.topic_prefix, options.brokers.join(", "))
        }
    }
}

/// Opens a store that no process has.
fn open_file(path: &Path, admin: SocketAddr) -> anyhow::Result<Storage> {
    if !path.join(embedded::FILE).exists() {
        bail!(
            "nothing answers at {admin} and there is no store in {}; is this the right configuration (-c)?",
            path.display()
        );
    }
    match embedded::open(&embedded::Options { path: path.to_owned() }, &Registry::new()) {
        Err(StorageError::Locked { path }) => {
            bail!("a process has the store in {path}, but nothing answers at {admin} ([admin] listen)")
        }
        opened => Ok(opened?),
    }
}

impl Remote {
    /// The process that runs on this configuration's store; none if no chaski answers. One of which that cannot be
    /// told is refused: a command must not change somebody else's store.
    pub(crate) async fn find(config: &AccessConfig) -> anyhow::Result<Option<Self>> {
        let remote = Self::new(config)?;
        let Some(has) = remote.store().await else { return Ok(None) };
        let (base, store) = (&remote.base, shown(&config.storage));
        let wanted = config.storage.identity().with_context(|| {
            format!("a process answers at {base}, and whether it has the store in {store} cannot be told")
        })?;
        match wanted {
            Some(wanted) if wanted == has => Ok(Some(remote)),
            Some(_) => {
                bail!(
                    "the process at {base} has another store than {store}; is this the right configuration (-c)?"
                )
            }
            None => {
                bail!(
                    "a process answers at {base}, and there is no store in {store}; is this the right configuration (-c)?"
                )
            }
        }
    }

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

    /// Reads one of its pages: `/readyz`, `/metrics`.
    pub(crate) async fn get(&self, page: &str) -> anyhow::Result<(StatusCode, String)> {
        let request = Request::get(format!("{}{page}", self.base)).body(Full::default())?;
        let (status, body) = self.exchange(request).await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Asks one question.
    pub(crate) async fn call<C: Call>(&self, call: C) -> anyhow::Result<C::Answer> {
        let mut request = Request::post(format!("{}/api/{}", self.base, C::NAME))
            .header("content-type", "application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let (status, body) = self.exchange(request.body(Full::from(serde_json::to_vec(&call)?))?).await?;
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).context("an answer of another version of chaski?");
        }
        let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        match answer["error"].as_str() {
            Some(why) => bail!("{why}"),
            None => bail!("{} answered {status}", self.base),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, Bytes)> {
        let exchange = async {
            let response = self.client.request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|error| anyhow!(error))?;
            anyhow::Ok((status, body.to_bytes()))
        };
        tokio::time::timeout(CALL_TIMEOUT, exchange)
            .await
            .with_context(|| format!("no answer from {} within {CALL_TIMEOUT:?}", self.base))?
            .with_context(|| format!("asking {}", self.base))
    }
}
