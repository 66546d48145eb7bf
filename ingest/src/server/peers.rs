//! Open connections by peer; as many entries as there are connections, at most.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::peer::{Proxies, site};

/// Who is connected, and how often.
pub(super) struct Peers {
    each_max: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection's place among its peer's; given back when dropped.
pub(super) struct Seat {
    /// None where connections are not counted.
    of: Option<(Arc<Peers>, IpAddr)>,
}

impl Peers {
    pub(super) fn new(each_max: usize) -> Arc<Self> {
        Arc::new(Self { each_max, open: Mutex::default() })
    }

    /// A seat for one more connection of `peer`; none when it has as many as one may have.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr, proxies: &Proxies) -> Option<Seat> {
        if proxies.is_shared(peer) {
            return Some(Seat { of: None });
        }
        let site = site(peer);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(site).or_default();
        if *count >= self.each_max {
            return None;
        }
        *count += 1;
        Some(Seat { of: Some((self.clone(), site)) })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some((peers, site)) = &self.of else { return };
        let mut open = peers.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(site) {
            *count -= 1;
            if *count == 0 {
                open.remove(site);
            }
        }
    }
}
