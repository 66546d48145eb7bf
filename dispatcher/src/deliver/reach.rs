//! Whether a destination can be reached: each step of a connection as an attempt would make it, and no request.

use std::net::SocketAddr;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use super::client::{ConnectError, Connector, Dialer, tcp};
use crate::destination::DestinationSpec;

/// A connection that was made, and closed again.
#[derive(Clone, Debug)]
pub struct Reached {
    /// Where to.
    pub address: SocketAddr,
    /// From the lookup of the name to the end of the last handshake.
    pub took: Duration,
    /// What the receiver showed, its own first; empty in clear text.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// Which step failed, and why.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Unreachable(#[from] ConnectError);

/// A step of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Looking up the name.
    Name,
    /// Whether the address may be connected to.
    Egress,
    /// TCP.
    Connect,
    /// TLS.
    Tls,
}

impl Unreachable {
    /// The step that failed.
    #[must_use]
    pub const fn step(&self) -> Step {
        match self.0 {
            ConnectError::Dns(_) => Step::Name,
            ConnectError::Blocked { .. } => Step::Egress,
            ConnectError::Connect(_) => Step::Connect,
            ConnectError::Tls(_) => Step::Tls,
        }
    }
}

/// Connects to a destination as an attempt would, and closes the connection. Each step ends within 3 s. Sends
/// nothing beside the handshakes.
///
/// # Errors
/// [`Unreachable`] says which step failed.
pub async fn reach(destination: &DestinationSpec) -> Result<Reached, Unreachable> {
    let begun = Instant::now();
    let connector = Connector::new(&Dialer::new(&[]), destination.allow_private);
    let (host, port, is_tls) = Connector::target(&destination.url)?;
    let addresses = connector.vetted(host, port).await?;
    let stream = tcp(&addresses).await.map_err(ConnectError::Connect)?;
    let address = stream.peer_addr().map_err(ConnectError::Connect)?;
    let mut certificates = Vec::new();
    if is_tls {
        let stream = connector.handshake(host, stream).await?;
        certificates = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    }
    Ok(Reached { address, took: begun.elapsed(), certificates })
}
