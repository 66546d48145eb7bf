//! Which addresses may be connected to. Pure; asked after name resolution, for every address of the answer
//! and for literals alike, and the address that was asked about is the one that is dialled.
//!
//! An IPv6 address that carries an IPv4 address (mapped, compatible, NAT64, 6to4, Teredo) is judged as what
//! it carries, too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address may not be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Blocked {
    /// Nobody's receiver lives there: link-local, cloud metadata, multicast, unspecified, reserved.
    #[error("the address is never connected to")]
    Never,
    /// Inside a network of somebody's own.
    #[error("the address is private")]
    Private,
}

/// Whether an address may be connected to.
pub(crate) const fn permitted(address: IpAddr, allow_private: bool) -> Result<(), Blocked> {
    let reach = match address {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(address) => v6(address),
    };
    match reach {
        Reach::Public => Ok(()),
        Reach::Private if allow_private => Ok(()),
        Reach::Private => Err(Blocked::Private),
        Reach::Never => Err(Blocked::Never),
    }
}

/// Whether no destination may have this address, whoever names it: link-local, cloud metadata, multicast, unspecified,
/// reserved, and every IPv6 address that carries such an IPv4 one.
#[must_use]
pub const fn is_never_dialled(address: IpAddr) -> bool {
    permitted(address, true).is_err()
}

#[derive(Clone, Copy)]
enum Reach {
    Public,
    Private,
    Never,
}

/// IANA's special-purpose registry for IPv4 (RFC 6890 and its updates), and the metadata services that sit
/// outside of link-local.
const fn v4(address: Ipv4Addr) -> Reach {
    match address.octets() {
        _ if is_machinery(address) => Reach::Never,
        // "This network".
        [0, ..] => Reach::Never,
        // Where 6to4 relays were (RFC 7526).
        [192, 88, 99, _] => Reach::Never,
        // Multicast, reserved, broadcast.
        [224..=255, ..] => Reach::Never,
        [10 | 127, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] | [198, 18..=19, ..] => {
            Reach::Private
        }
        _ => Reach::Public,
    }
}

/// Link-local with the common metadata service, protocol assignments with Oracle's; Alibaba's, inside the shared address
/// space; Azure's, inside the public one.
const fn is_machinery(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [169, 254, ..] | [192, 0, 0, _] | [100, 100, 100, 200] | [168, 63, 129, 16])
}

/// The same for IPv6.
const fn v6(address: Ipv6Addr) -> Reach {
    let s = address.segments();
    match s {
        [0, 0, 0, 0, 0, 0, 0, 0] => Reach::Never,
        [0, 0, 0, 0, 0, 0, 0, 1] => Reach::Private,
        // Compatible, mapped, translated (RFC 2765), NAT64 (RFC 6052).
        [0, 0, 0, 0, 0, 0, ..]
        | [0, 0, 0, 0, 0, 0xffff, ..]
        | [0, 0, 0, 0, 0xffff, 0, ..]
        | [0x64, 0xff9b, 0, 0, 0, 0, ..] => carried(s[6], s[7]),
        // NAT64 with a prefix of somebody's own (RFC 8215): how long it is, and so where the IPv4 address stands, is
        // theirs to know.
        [0x64, 0xff9b, 1, ..] => {
            let bits = address.to_bits();
            let machinery = is_machinery(translated(bits, 48))
                || is_machinery(translated(bits, 56))
                || is_machinery(translated(bits, 64));
            match carried(s[6], s[7]) {
                Reach::Never => Reach::Never,
                _ if machinery => Reach::Never,
                _ => Reach::Private,
            }
        }
        // 6to4 (RFC 3056).
        [0x2002, high, low, ..] => carried(high, low),
        // Teredo (RFC 4380), the client's address inverted.
        [0x2001, 0, ..] => match carried(!s[6], !s[7]) {
            Reach::Public => Reach::Private,
            inner => inner,
        },
        // Discard, link-local, site-local as it was, multicast, and the metadata service of AWS.
        [0x0100, ..]
        | [0xfe80..=0xfeff, ..]
        | [0xff00..=0xffff, ..]
        | [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] => Reach::Never,
        [0xfc00..=0xfdff, ..] => Reach::Private,
        // ISATAP (RFC 5214) under whatever prefix.
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => carried(high, low),
        _ => Reach::Public,
    }
}

/// What an IPv4 address would be behind a prefix of 48, 56 or 64 bits: bits 64 to 71 are passed over (RFC 6052,
/// section 2.2).
const fn translated(bits: u128, prefix_bits: u32) -> Ipv4Addr {
    let before = 64 - prefix_bits;
    let first = (bits >> 64) as u64 & ((1 << before) - 1);
    let rest = (bits as u64 & ((1 << 56) - 1)) >> (24 + before);
    Ipv4Addr::from_bits(((first << (32 - before)) | rest) as u32)
}

const fn carried(high: u16, low: u16) -> Reach {
    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
    v4(Ipv4Addr::new(a, b, c, d))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every spelling of an IPv4 address inside an IPv6 one.
    fn spellings(address: Ipv4Addr) -> Vec<IpAddr> {
        let [a, b, c, d] = address.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let mut all: Vec<IpAddr> = vec![IpAddr::V4(address), IpAddr::V6(address.to_ipv6_mapped())];
        all.extend(
            [
                [0, 0, 0, 0, 0, 0, high, low],
                [0, 0, 0, 0, 0xffff, 0, high, low],
                [0x64, 0xff9b, 0, 0, 0, 0, high, low],
                [0x64, 0xff9b, 1, 0, 0, 0, high, low],
                [0x2002, high, low, 0, 0, 0, 0, 0],
                [0x2002, high, low, 7, 7, 7, 7, 7],
                [0x2001, 0, 1, 2, 3, 4, !high, !low],
                [0x2a00, 1, 2, 3, 0, 0x5efe, high, low],
                [0x2a00, 1, 2, 3, 0x200, 0x5efe, high, low],
            ]
            .map(|segments| IpAddr::V6(segments.into())),
        );
        all
    }

    #[test]
    fn some_addresses_are_never_connected_to_however_they_are_spelled() {
        for text in [
            "169.254.169.254",
            "169.254.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.0.192",
            "100.100.100.200",
            "168.63.129.16",
            "192.88.99.1",
        ] {
            for address in spellings(text.parse().unwrap()) {
                // `::` has a meaning of its own, and `::1` is not 0.0.0.1.
                assert_eq!(permitted(address, true), Err(Blocked::Never), "{text} as {address}");
            }
        }
        for text in ["::", "fe80::1", "febf::1", "fec0::1", "ff02::1", "fd00:ec2::254", "100::1"] {
            assert_eq!(permitted(text.parse().unwrap(), true), Err(Blocked::Never), "{text}");
        }
    }

    #[test]
    fn a_local_translator_is_no_way_to_the_machinery_wherever_its_prefix_ends() {
        for text in ["169.254.169.254", "192.0.0.192", "100.100.100.200", "168.63.129.16"] {
            let [a, b, c, d] = text.parse::<Ipv4Addr>().unwrap().octets();
            let join = |high, low| u16::from_be_bytes([high, low]);
            for segments in [
                [0x64, 0xff9b, 1, join(a, b), join(0, c), join(d, 0), 0, 0],
                [0x64, 0xff9b, 1, join(7, a), join(0, b), join(c, d), 0, 0],
                [0x64, 0xff9b, 1, 0x0707, join(0, a), join(b, c), join(d, 0), 0],
                [0x64, 0xff9b, 1, 0x0707, 0, 0, join(a, b), join(c, d)],
            ] {
                let address = IpAddr::V6(segments.into());
                assert_eq!(permitted(address, true), Err(Blocked::Never), "{text} as {address}");
            }
        }
        let receiver = "64:ff9b:1:707::10.0.0.5".parse().unwrap();
        assert_eq!((permitted(receiver, true), permitted(receiver, false)), (Ok(()), Err(Blocked::Private)));
    }

    #[test]
    fn private_addresses_only_where_they_are_allowed() {
        for text in [
            "10.0.0.5",
            "127.0.0.1",
            "127.255.255.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "198.18.0.1",
        ] {
            for address in spellings(text.parse().unwrap()) {
                assert_eq!(permitted(address, false), Err(Blocked::Private), "{text} as {address}");
                assert_eq!(permitted(address, true), Ok(()), "{text} as {address}");
            }
        }
        for text in ["::1", "fc00::1", "fd12:3456::1", "fdff::1"] {
            assert_eq!(permitted(text.parse().unwrap(), false), Err(Blocked::Private), "{text}");
            assert_eq!(permitted(text.parse().unwrap(), true), Ok(()), "{text}");
        }
    }

    #[test]
    fn public_addresses_may_be_connected_to() {
        for text in [
            "1.1.1.1",
            "172.15.0.1",
            "172.32.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "192.169.0.1",
            "203.0.113.5",
            "2606:4700::1111",
            "64:ff9b::101:101",
            "2002:101:101::",
        ] {
            assert_eq!(permitted(text.parse().unwrap(), false), Ok(()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_spelling_is_laxer_than_the_address_itself(bits in any::<u32>(), allow_private in any::<bool>()) {
            let address = Ipv4Addr::from(bits);
            if permitted(IpAddr::V4(address), allow_private).is_err() {
                for spelling in spellings(address) {
                    let loopback = spelling == IpAddr::V6(Ipv6Addr::LOCALHOST);
                    prop_assert!(loopback || permitted(spelling, allow_private).is_err(), "{} as {}", address, spelling);
                }
            }
        }
    }
}
