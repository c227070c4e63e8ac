//! The headers inside a datagram: where they are, and the Internet checksum over them (RFC 1071).

use super::{ETHERNET_HEADER, Mode, ip_version};

pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;
pub(crate) const UDP_HEADER: usize = 8;
pub(crate) const TCP_HEADER: usize = 20;

pub(crate) const IPPROTO_TCP: u8 = 6;
pub(crate) const IPPROTO_UDP: u8 = 17;

/// Where the headers of a datagram are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) network: usize,
    pub(crate) transport: usize,
    pub(crate) version: u8,
    /// Of the transport header.
    pub(crate) protocol: u8,
}

impl Layout {
    /// `None` unless there is a whole IP header, and behind it something.
    pub(crate) fn of(payload: &[u8], mode: Mode) -> Option<Self> {
        let (network, version) = match mode {
            Mode::Tun => (0, ip_version(payload)?),
            Mode::Tap => network_header(payload)?,
        };
        Self::at(network, version, payload)
    }

    /// The same of an IP datagram inside another.
    pub(crate) fn inside(payload: &[u8], network: usize) -> Option<Self> {
        Self::at(network, ip_version(payload.get(network..)?)?, payload)
    }

    fn at(network: usize, version: u8, payload: &[u8]) -> Option<Self> {
        let ip = payload.get(network..)?;
        let (length, protocol) = if version == 4 {
            let length = usize::from(ip.first()? & 0xf) * 4;
            (length, *ip.get(9)?)
        } else {
            ipv6_headers(ip)?
        };
        let least = if version == 4 { IPV4_HEADER } else { IPV6_HEADER };
        (length >= least && length + UDP_HEADER <= ip.len()).then_some(Self {
            network,
            transport: network + length,
            version,
            protocol,
        })
    }

    /// Over the pseudo-header of a transport header and what follows, so many bytes.
    pub(crate) fn pseudo_header_sum(&self, payload: &[u8], length: usize) -> u16 {
        let ip = &payload[self.network..];
        let addresses = if self.version == 4 { &ip[12..20] } else { &ip[8..40] };
        fold(u64::from(sum(addresses)) + u64::from(self.protocol) + length as u64)
    }
}

/// Where the network header of a frame is, behind any VLAN tags, and the IP version by the EtherType.
fn network_header(frame: &[u8]) -> Option<(usize, u8)> {
    let mut at = ETHERNET_HEADER - 2;
    loop {
        match frame.get(at..at + 2)? {
            [0x08, 0x00] => return Some((at + 2, 4)),
            [0x86, 0xdd] => return Some((at + 2, 6)),
            [0x81, 0x00] | [0x88, 0xa8] => at += 4,
            _ => return None,
        }
    }
}

/// The length of an IPv6 header with its extensions (those of `ipv6_gso_pull_exthdrs`), and the protocol behind them.
fn ipv6_headers(ip: &[u8]) -> Option<(usize, u8)> {
    const EXTENSIONS: [u8; 3] = [0, 43, 60];
    let (mut length, mut protocol) = (IPV6_HEADER, *ip.get(6)?);
    while EXTENSIONS.contains(&protocol) {
        let extension = ip.get(length..length + 2)?;
        protocol = extension[0];
        length += (usize::from(extension[1]) + 1) * 8;
    }
    Some((length, protocol))
}

/// What a checksum of 0 means to the receiver.
#[derive(Clone, Copy)]
pub(crate) enum Zero {
    /// A sum.
    IsSum,
    /// That there is none; so 0xffff is written, which is the same sum (`CSUM_MANGLED_0`).
    IsNone,
}

/// `skb_checksum_help`, `gso_make_checksum`: sums up from `start`, the part of the sum in its field included, and stores the
/// complement there. The field must be inside.
pub(crate) fn fill_checksum(bytes: &mut [u8], start: usize, offset: usize, zero: Zero) {
    let checksum = match (!sum(&bytes[start..]), zero) {
        (0, Zero::IsNone) => 0xffff,
        (checksum, _) => checksum,
    };
    put_u16(bytes, start + offset, checksum);
}

/// The Internet checksum's sum (RFC 1071), not complemented.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let words = words.iter().chain([&last]).map(|word| u64::from(u32::from_be_bytes(*word)));
    fold(words.sum())
}

pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    let [.., high, low] = sum.to_be_bytes();
    u16::from_be_bytes([high, low])
}

pub(crate) fn low_u16(number: usize) -> u16 {
    let [.., high, low] = number.to_be_bytes();
    u16::from_be_bytes([high, low])
}

pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, number: u16) {
    bytes[at..at + 2].copy_from_slice(&number.to_be_bytes());
}
