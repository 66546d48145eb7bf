//! Address ranges, as the file writes them.

use std::net::IpAddr;

use chaski_ingest::source::IpNet;

/// A range in CIDR form, or one address.
pub(super) fn parse(text: &str) -> Result<IpNet, &'static str> {
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let address: IpAddr = address.parse().map_err(|_| "not an address range")?;
    let (value, width) = match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    let prefix_bits = match bits {
        None => width,
        Some(bits) => bits.parse().ok().filter(|bits| *bits <= width).ok_or("not an address range")?,
    };
    let host = if prefix_bits == 0 { value } else { value.checked_shl(u32::from(prefix_bits)).unwrap_or(0) };
    if host == 0 { Ok(IpNet { address, prefix_bits }) } else { Err("has bits set behind its prefix") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_an_address_and_its_leading_bits() {
        for (text, bits) in [
            ("203.0.113.0/24", 24),
            ("203.0.113.7", 32),
            ("2001:db8::/32", 32),
            ("::1", 128),
            ("0.0.0.0/0", 0),
        ] {
            assert_eq!(parse(text).unwrap().prefix_bits, bits, "{text}");
        }
        for text in [
            "",
            "203.0.113.7/24",
            "203.0.113.0/33",
            "203.0.113/24",
            "::/129",
            "erp.test",
            "0.0.0.0/-1",
            "1.0.0.0/0",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
