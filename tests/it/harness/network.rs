//! A network between clients and a server: fair, slow, swallowing everything, or resetting every connection.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::receiver::runtime;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    Fair,
    /// What comes goes on later.
    Slow(Duration),
    /// What comes stays, and goes on when the weather changes.
    BlackHole,
    /// Connections end, new ones at once.
    Reset,
}

pub(crate) struct Network {
    pub(crate) address: SocketAddr,
    weather: watch::Sender<Weather>,
    server: watch::Sender<Option<SocketAddr>>,
    stop: CancellationToken,
}

impl Network {
    /// In front of a server that is not known yet: connections wait for it.
    pub(crate) fn open() -> Self {
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (weather, server) = (watch::Sender::new(Weather::Fair), watch::Sender::new(None));
        let stop = CancellationToken::new();
        let accepting = accept(listener, weather.subscribe(), server.subscribe());
        runtime().spawn(stop.clone().run_until_cancelled_owned(accepting));
        Self { address, weather, server, stop }
    }

    pub(crate) fn leads_to(&self, port: u16) {
        self.server.send_replace(Some(SocketAddr::from(([127, 0, 0, 1], port))));
    }

    pub(crate) fn becomes(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(
    listener: TcpListener,
    weather: watch::Receiver<Weather>,
    mut server: watch::Receiver<Option<SocketAddr>>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(known) = server.wait_for(Option::is_some).await.map(|server| *server) else { return };
        let (Some(server), weather) = (known, weather.clone()) else { continue };
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(server).await else { return };
            // What is not read when a connection is dropped makes its end a reset.
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::select! {
                () = carry(from_client, to_server, weather.clone()) => {}
                () = carry(from_server, to_client, weather) => {}
            }
        });
    }
}

/// Carries bytes one way until either side or the weather ends the connection.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut weather: watch::Receiver<Weather>) {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut bytes) => read,
            reset = weather.wait_for(|weather| *weather == Weather::Reset) => { drop(reset); return }
        };
        let Ok(count @ 1..) = read else { return };
        let now = *weather.borrow_and_update();
        match now {
            Weather::Fair => {}
            Weather::Slow(delay) => tokio::time::sleep(delay).await,
            Weather::BlackHole => {
                if weather.wait_for(|weather| *weather != Weather::BlackHole).await.is_err() {
                    return;
                }
            }
            Weather::Reset => return,
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
