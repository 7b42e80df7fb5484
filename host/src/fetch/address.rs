//! Which addresses are everyone's.
//!
//! **Problem.** A name that anybody owns may lead to the operator's own network, and an address may be written within another one.
//!
//! **Mechanism.** The special-purpose registries of IANA. An IPv6 address that carries an IPv4 one (mapped, NAT64, 6to4) is what the
//! latter is. **Limits.** What is public and yet the operator's own is not known here. **Cost.** A few comparisons.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether this is an address of the public Internet: no loopback, link-local, private, shared, multicast or reserved one.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let bits = address.to_bits();
    let within = |network: [u8; 4], length: u32| {
        (bits ^ Ipv4Addr::from(network).to_bits()).leading_zeros() >= length
    };
    let special = within([0, 0, 0, 0], 8)
        || within([10, 0, 0, 0], 8)
        // Shared by carriers.
        || within([100, 64, 0, 0], 10)
        || within([127, 0, 0, 0], 8)
        // Link-local: where clouds answer for a machine's own credentials.
        || within([169, 254, 0, 0], 16)
        || within([172, 16, 0, 0], 12)
        || within([192, 0, 0, 0], 24)
        || within([192, 0, 2, 0], 24)
        // Relays of 6to4.
        || within([192, 88, 99, 0], 24)
        || within([192, 168, 0, 0], 16)
        // Benchmarks.
        || within([198, 18, 0, 0], 15)
        || within([198, 51, 100, 0], 24)
        || within([203, 0, 113, 0], 24)
        // Multicast, reserved, broadcast.
        || within([224, 0, 0, 0], 3);
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let carried = |at: u32| Ipv4Addr::from_bits((address.to_bits() >> at) as u32);
    match address.segments() {
        // Mapped.
        [0, 0, 0, 0, 0, 0xffff, ..] => is_public_v4(carried(0)),
        // NAT64.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_public_v4(carried(0)),
        // 6to4.
        [0x2002, ..] => is_public_v4(carried(80)),
        // Of IETF protocols, Teredo among them; documentation.
        [0x2001, 0..0x200, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..0x1000, ..] => false,
        // All that is global unicast; what is not in there is unique local, link-local, multicast, loopback or unspecified.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::is_public;

    #[test]
    fn only_what_anyone_may_reach_is_public() {
        let public = [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.0",
            "192.0.1.1",
            "192.169.0.1",
            "198.17.0.1",
            "198.20.0.0",
            "223.255.255.255",
            "9.255.255.255",
            "11.0.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "2a00::1",
            "3fff:1000::",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
        ];
        for address in public {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        let special = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.0.171",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a00:1::",
            "2002:a9fe:a9fe::",
            "100::1",
            "2001::1",
            "2001:10::1",
            "2001:1ff::1",
            "2001:db8::1",
            "3fff::1",
            "3fff:fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ];
        for address in special {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }
}
