//! The connection to Redis: made in the background, and made anew whenever it is doubted.
//!
//! Connecting through Sentinels or to a cluster takes longer than a question may, so a question that finds no
//! connection waits for one within its own time and leaves the connecting to go on. After a failure the way is looked
//! up again: the server may be a replica now, or another one the master.

use std::sync::Arc;
use std::time::Duration;

use redis::{ErrorKind, RedisError, RedisResult};
use tokio::task::JoinHandle;

use super::address::{Address, Connection};

/// How long one try may take: several Sentinels may be asked, of which some do not answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

pub(super) struct Link {
    address: Arc<Address>,
    state: State,
}

enum State {
    Idle,
    Connecting(JoinHandle<RedisResult<Connection>>),
    Connected(Connection),
}

impl Link {
    /// Begins to connect. Must be called inside a runtime.
    pub(super) fn start(address: Address) -> Self {
        let mut link = Self { address: Arc::new(address), state: State::Idle };
        link.renew();
        link
    }

    /// The connection, as soon as there is one. Dropped while it waits, it leaves the connecting to go on.
    pub(super) async fn ready(&mut self) -> RedisResult<Connection> {
        let mut is_tried_now = false;
        loop {
            match &mut self.state {
                State::Connected(connection) => return Ok(connection.clone()),
                State::Idle => {
                    self.renew();
                    is_tried_now = true;
                }
                State::Connecting(connecting) => {
                    // What failed before anybody asked says nothing of now.
                    is_tried_now |= !connecting.is_finished();
                    match connecting.await.unwrap_or_else(|_| Err(failed("connecting to redis broke off"))) {
                        Ok(connection) => self.state = State::Connected(connection),
                        Err(error) => {
                            self.state = State::Idle;
                            if is_tried_now {
                                return Err(error);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Something failed: connects anew, unless that is being done.
    pub(super) fn doubt(&mut self) {
        if matches!(self.state, State::Connected(_)) {
            self.renew();
        }
    }

    fn renew(&mut self) {
        let address = Arc::clone(&self.address);
        self.state = State::Connecting(tokio::spawn(async move {
            let connecting = tokio::time::timeout(CONNECT_WITHIN, address.connect());
            connecting.await.unwrap_or_else(|_| Err(failed("no connection to redis in time")))
        }));
    }
}

fn failed(why: &'static str) -> RedisError {
    RedisError::from((ErrorKind::Io, why))
}
