//! Whose address a request comes from: the connection's own, or what a proxy that is trusted says.
//!
//! A proxy says it once per connection (PROXY protocol, read before anything else) or once per request
//! (`X-Forwarded-For`), and is believed only when the configuration names its network. Of a chain the rightmost
//! address counts that is no trusted proxy's: what stands further left is the sender's own word, and nobody has
//! vouched for it. An IPv4 address inside IPv6 is that IPv4 address, here and for everybody who asks here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::header::{HeaderMap, HeaderName};

use crate::source::IpNet;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Leading bits of an IPv6 address that stand for one customer of a network.
const SITE_BITS: u32 = 64;

/// The proxies that are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// Networks whose connections begin with a PROXY header, version 1 or 2; one without it is closed.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Networks whose `X-Forwarded-For` is believed.
    pub forwarded_for_from: Vec<IpNet>,
}

/// The address a request is judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sender {
    pub(crate) address: IpAddr,
    /// Whether others may send from there, too; see [`Proxies::is_shared`].
    pub(crate) is_shared: bool,
}

impl Proxies {
    /// Whether a connection from there must begin with a PROXY header.
    pub(crate) fn speaks_proxy_protocol(&self, address: IpAddr) -> bool {
        contain(&self.proxy_protocol_from, address)
    }

    /// Whose request it is that came over a connection of `peer`. Where a trusted proxy says nothing that can be read,
    /// it is the nearest address that one of them has vouched for, at last `peer` itself.
    pub(crate) fn sender(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut nearest = peer;
        if !contain(&self.forwarded_for_from, peer) {
            return nearest;
        }
        let lines = headers.get_all(&X_FORWARDED_FOR).iter().rev();
        for entry in lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')) {
            let Some(address) = entry_address(entry) else { break };
            nearest = address;
            if !contain(&self.forwarded_for_from, address) {
                break;
            }
        }
        nearest
    }

    /// Whether many senders may have this address, so that nothing can be laid at the door of one of them: a trusted
    /// proxy's, or one of no public network, which is a proxy's or a translator's.
    pub(crate) fn is_shared(&self, address: IpAddr) -> bool {
        let is_private = match address {
            IpAddr::V4(address) => is_private_v4(address),
            IpAddr::V6(address) => {
                address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
            }
        };
        is_private
            || contain(&self.forwarded_for_from, address)
            || contain(&self.proxy_protocol_from, address)
    }
}

/// The address under which a peer's connections and failures are counted: of IPv6 the network of 64 bits, all of which
/// one machine may use.
pub(crate) fn site(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() >> (128 - SITE_BITS) << (128 - SITE_BITS)).into()
        }
    }
}

fn contain(nets: &[IpNet], address: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(address))
}

/// With 100.64.0.0/10, which carriers translate from (RFC 6598).
fn is_private_v4(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || (first == 100 && second & 0b1100_0000 == 64)
}

/// An address, as proxies write it: bare, with a port, or in brackets.
fn entry_address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim_matches([' ', '\t']);
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::from);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse::<IpAddr>().ok().or_else(with_port).or_else(bare).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn proxies() -> Proxies {
        let net = |text: &str, prefix_bits| IpNet { address: text.parse().unwrap(), prefix_bits };
        let trusted = vec![net("10.0.0.0", 8), net("2001:db8:1::", 48)];
        Proxies { proxy_protocol_from: Vec::new(), forwarded_for_from: trusted }
    }

    fn sender(peer: &str, lines: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(&X_FORWARDED_FOR, HeaderValue::from_str(line).unwrap());
        }
        proxies().sender(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn the_rightmost_address_that_is_no_trusted_proxy_counts() {
        let cases: [(&str, &[&str], &str); 14] = [
            ("10.0.0.1", &["203.0.113.7"], "203.0.113.7"),
            ("10.0.0.1", &["1.1.1.1, 203.0.113.7"], "203.0.113.7"),
            ("10.0.0.1", &["1.1.1.1, 203.0.113.7, 10.9.9.9"], "203.0.113.7"),
            ("10.0.0.1", &["1.1.1.1", "203.0.113.7", "10.9.9.9"], "203.0.113.7"),
            ("10.0.0.1", &["203.0.113.7:4711\t,10.9.9.9"], "203.0.113.7"),
            ("10.0.0.1", &["[2001:db8::7]:443"], "2001:db8::7"),
            ("10.0.0.1", &["[2001:db8::7]"], "2001:db8::7"),
            ("10.0.0.1", &["::ffff:203.0.113.7"], "203.0.113.7"),
            ("2001:db8:1::1", &["203.0.113.7, 2001:db8:1::2"], "203.0.113.7"),
            // All are trusted: the first of them is the sender.
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            // What cannot be read ends the chain where somebody still vouches for it.
            ("10.0.0.1", &["203.0.113.7, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            // Nobody else is believed.
            ("203.0.113.9", &["203.0.113.7"], "203.0.113.9"),
        ];
        for (peer, lines, expected) in cases {
            assert_eq!(sender(peer, lines), expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn who_may_be_many_is_held_to_nothing() {
        for shared in
            ["127.0.0.1", "10.1.2.3", "192.168.0.1", "100.64.0.1", "100.127.255.255", "::1", "fd00::1"]
        {
            assert!(proxies().is_shared(shared.parse().unwrap()), "{shared}");
        }
        for own in ["203.0.113.7", "100.63.0.1", "100.128.0.1", "2001:db8::1"] {
            assert!(!proxies().is_shared(own.parse().unwrap()), "{own}");
        }
        assert_eq!(site("2001:db8::1:2:3:4".parse().unwrap()).to_string(), "2001:db8::");
        assert_eq!(site("203.0.113.7".parse().unwrap()).to_string(), "203.0.113.7");
    }
}
