//! Ranges of addresses.

use std::net::IpAddr;

/// An address range in CIDR form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpNet {
    /// Any address of the range.
    pub address: IpAddr,
    /// Leading bits that count.
    pub prefix_bits: u8,
}

impl IpNet {
    /// Whether the address is in the range. An IPv4 address inside IPv6 counts as the IPv4 address it is.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (net, address) = match (self.address.to_canonical(), address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(address)) => {
                (u128::from(net.to_bits()) << 96, u128::from(address.to_bits()) << 96)
            }
            (IpAddr::V6(net), IpAddr::V6(address)) => (net.to_bits(), address.to_bits()),
            _ => return false,
        };
        // Of an IPv4 range that is written as IPv6, the first 96 bits say so.
        let written_v6 = self.address.is_ipv6() && self.address.to_canonical().is_ipv4();
        let prefix_bits = u32::from(self.prefix_bits).saturating_sub(if written_v6 { 96 } else { 0 });
        (net ^ address).leading_zeros() >= prefix_bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_a_range_by_its_leading_bits() {
        let net = |text: &str, prefix_bits| IpNet { address: text.parse().unwrap(), prefix_bits };
        let cases = [
            (net("203.0.113.0", 24), "203.0.113.255", true),
            (net("203.0.113.0", 24), "203.0.114.0", false),
            (net("203.0.113.7", 32), "::ffff:203.0.113.7", true),
            (net("::ffff:203.0.113.0", 120), "203.0.113.255", true),
            (net("::ffff:203.0.113.0", 120), "203.0.114.0", false),
            (net("0.0.0.0", 0), "198.51.100.1", true),
            (net("0.0.0.0", 0), "2001:db8::1", false),
            (net("2001:db8::", 32), "2001:db8:ffff::1", true),
            (net("2001:db8::", 32), "2001:db9::1", false),
        ];
        for (net, address, expected) in cases {
            assert_eq!(net.contains(address.parse().unwrap()), expected, "{net:?} {address}");
        }
    }
}
