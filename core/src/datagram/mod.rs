//! Datagrams, and the headers around them.
//!
//! Inside the core a datagram has no headers: PI and vnet header are put on when a client reads and taken off when it
//! writes (`tun_put_user` and `tun_get_user` in `drivers/net/tun.c`). [`read_part`] and [`parse_write`] are those two
//! functions; `ethernet_frame` is what the harness needs to hand a bare IP datagram to a tap.

mod head;
pub(crate) mod headers;
mod mode;
pub mod offload;
mod payload;

use alloc::{format, string::String};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use zerocopy::{FromBytes, IntoBytes};

pub use self::{head::Head, mode::Mode, payload::Datagram};
use crate::{
    abi::tun::{IfFlags, TunPi},
    abi::virtio_net::VnetHeader,
    errno::Errno,
};

/// An Ethernet header, without a VLAN tag.
pub const ETHERNET_HEADER: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// `eth_random_addr`: locally administered, no group bit.
    #[must_use]
    pub fn random(random: &mut fastrand::Rng) -> Self {
        let mut address = [0; 6];
        random.fill(&mut address);
        address[0] = address[0] & 0xfe | 0x02;
        Self(address)
    }

    /// Its group bit is set (multicast or broadcast).
    #[must_use]
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl core::fmt::Display for MacAddress {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl core::str::FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut address = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut address {
            *byte = parts
                .next()
                .filter(|part| (1..=2).contains(&part.len()))
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| {
                    format!("{text:?} is not an Ethernet address; write it as 02:00:00:00:00:01")
                })?;
        }
        match parts.next() {
            None => Ok(Self(address)),
            Some(_) => {
                Err(format!("{text:?} has more than six bytes; write it as 02:00:00:00:00:01"))
            }
        }
    }
}

/// How a tunnel frames its datagrams: what `read_part` and `parse_write` need to know of it.
#[derive(Clone, Copy, Debug)]
pub struct Framing {
    /// Layer 3 or layer 2.
    pub mode: Mode,
    /// A PI header comes first.
    pub pi: bool,
    /// A vnet header of so many bytes comes next.
    pub vnet: Option<usize>,
    /// Bytes of the longest datagram that can be written.
    pub longest: usize,
}

/// The longest frame of an `IFF_NAPI_FRAGS` tunnel: `ETH_MAX_MTU` less `NET_SKB_PAD`, see `tun_napi_alloc_frags`.
///
/// DIFFERS: on a tunnel with IFF_NAPI_FRAGS the kernel limits the pieces of a `writev`: at most 18, and from the second on 1 to
/// 4,096 bytes each. A server gets the pieces joined, so it cannot see them.
const LONGEST_NAPI_FRAME: usize = 65_535 - 64;

impl Framing {
    pub(crate) fn new(mode: Mode, flags: IfFlags, vnet_header_size: usize) -> Self {
        Self {
            mode,
            pi: !flags.contains(IfFlags::NO_PI),
            vnet: flags.contains(IfFlags::VNET_HDR).then_some(vnet_header_size),
            longest: if flags.contains(IfFlags::NAPI_FRAGS) {
                LONGEST_NAPI_FRAME
            } else {
                usize::MAX
            },
        }
    }
}

/// A datagram as one read gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// PI and vnet header.
    pub head: Head,
    /// What fits of the datagram.
    pub body: Bytes,
    /// What does not.
    pub rest: Bytes,
}

/// What a read with room for `limit` bytes gets of a datagram.
///
/// # Errors
///
/// `EINVAL` if there is no room for the headers, or none in the vnet header for those of a UDP tunnel; the datagram is lost
/// then, as in `tun_put_user`.
pub fn read_part(datagram: &Datagram, framing: Framing, limit: usize) -> Result<Part, Errno> {
    let pi_size = if framing.pi { TunPi::SIZE } else { 0 };
    let vnet_size = framing.vnet.unwrap_or(0);
    let mut vnet = [0; Head::ROOM];
    if let (Some(size), Some(header)) = (framing.vnet, datagram.vnet()) {
        if header.is_in_tunnel() && size < VnetHeader::TUNNEL_SIZE {
            return Err(Errno::EINVAL);
        }
        vnet[..VnetHeader::TUNNEL_SIZE].copy_from_slice(&header.to_bytes());
    }
    let heads = pi_size + vnet_size;
    if limit < heads {
        return Err(Errno::EINVAL);
    }
    let mut body = datagram.payload.clone();
    let rest = body.split_off(body.len().min(limit - heads));

    let mut pi =
        TunPi { flags: 0.into(), proto: protocol_of(&datagram.payload, framing.mode).into() };
    if !rest.is_empty() {
        pi.flags = TunPi::STRIP.into();
    }
    let pi = &pi.as_bytes()[..pi_size];
    let vnet = &vnet[..vnet_size.min(Head::ROOM)];

    let mut head = Head::default();
    if heads <= Head::ROOM {
        let fits = head.push(pi) && head.push(vnet);
        debug_assert!(fits, "heads of {heads} bytes fit");
    } else {
        let mut whole = BytesMut::with_capacity(heads + body.len());
        whole.put_slice(pi);
        whole.put_slice(vnet);
        whole.put_bytes(0, vnet_size - vnet.len());
        whole.put_slice(&body);
        body = whole.freeze();
    }
    Ok(Part { head, body, rest })
}

/// The headers before a datagram that is handed to the kernel: as the client wrote them, in the framing of the link.
#[must_use]
pub(crate) fn write_head(datagram: &Datagram, framing: Framing) -> Head {
    let mut head = Head::default();
    if framing.pi {
        let protocol = datagram.protocol().unwrap_or_default();
        let fits = head.push(TunPi { flags: 0.into(), proto: protocol.into() }.as_bytes());
        debug_assert!(fits, "a PI header fits");
    }
    if let Some(size) = framing.vnet {
        let vnet = datagram.vnet().unwrap_or_default();
        let fits = head.push(&vnet.to_bytes()[..size.min(VnetHeader::TUNNEL_SIZE)]);
        debug_assert!(fits, "a vnet header fits");
    }
    head
}

/// The datagram in what the kernel sent into a link; `None` if it is cut short. It is not checked: the client gets it as it
/// came.
#[must_use]
pub(crate) fn parse_sent(mut data: Bytes, framing: Framing) -> Option<Datagram> {
    if framing.pi {
        data.try_get_u32().ok()?;
    }
    let mut vnet = None;
    if let Some(size) = framing.vnet {
        vnet = Some(VnetHeader::read(data.get(..size)?)?);
        data.advance(size);
    }
    Some(Datagram::from(data).with_vnet(vnet))
}

/// The datagram in what a client wrote: headers taken off and checked, in the order of `tun_get_user`.
///
/// # Errors
///
/// `EMSGSIZE` if it is too long for an `IFF_NAPI_FRAGS` tunnel; `EINVAL` if a header is cut short, the vnet header claims more than there is or is not allowed ([`offload::check`]), a
/// frame is shorter than its Ethernet header, or a tun datagram without PI header is neither IPv4 nor IPv6 by its first
/// nibble.
pub fn parse_write(data: Bytes, framing: Framing) -> Result<Datagram, Errno> {
    let mut datagram = Datagram::from(data);
    if framing.pi {
        let (pi, _) = TunPi::read_from_prefix(&datagram.payload).map_err(|_| Errno::EINVAL)?;
        datagram.set_protocol(pi.proto.get());
        datagram.payload.advance(TunPi::SIZE);
    }
    if let Some(size) = framing.vnet {
        let header = datagram.payload.get(..size).and_then(VnetHeader::read);
        let header = header.ok_or(Errno::EINVAL)?;
        datagram.set_vnet(header);
        datagram.payload.advance(size);
        check_header_length(&header, size, datagram.payload.len(), framing.mode)?;
    }
    if framing.mode == Mode::Tap && datagram.payload.len() < ETHERNET_HEADER {
        return Err(Errno::EINVAL);
    }
    if datagram.payload.len() > framing.longest {
        return Err(Errno::EMSGSIZE);
    }
    if let Some(header) = datagram.vnet() {
        offload::check(&header, &datagram.payload)?;
    }
    if framing.mode == Mode::Tun && !framing.pi && ip_version(&datagram.payload).is_none() {
        return Err(Errno::EINVAL);
    }
    // A header that is longer than any would else be kept with its datagram, and nobody charged for it.
    if framing.vnet.is_some_and(|size| size > VnetHeader::TUNNEL_SIZE) {
        datagram.payload = Bytes::copy_from_slice(&datagram.payload);
    }
    Ok(datagram)
}

/// `hdr_len` is a hint, but `tun_vnet_hdr_get` checks it, since Linux 6.15 before it skips what it does not know of the vnet
/// header: so much may `hdr_len` be beyond the datagram. It knows 10 bytes, or all 24.
fn check_header_length(
    header: &VnetHeader,
    size: usize,
    length: usize,
    mode: Mode,
) -> Result<(), Errno> {
    let hint = usize::from(header.hdr_len.get());
    if hint > length + (size - VnetHeader::known_of(size))
        || (mode == Mode::Tap && !header.needs_checksum() && (1..ETHERNET_HEADER).contains(&hint))
    {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// 4 or 6, from the first nibble.
#[must_use]
pub fn ip_version(payload: &[u8]) -> Option<u8> {
    payload.first().map(|byte| byte >> 4).filter(|version| [4, 6].contains(version))
}

/// The protocol that the PI header of a to-client datagram names: from the IP version, or the frame's EtherType.
fn protocol_of(payload: &[u8], mode: Mode) -> u16 {
    match mode {
        Mode::Tun => ip_version(payload).map_or(0, ethertype_of_ip),
        Mode::Tap => match payload.get(12..ETHERNET_HEADER) {
            Some(&[high, low]) => u16::from_be_bytes([high, low]),
            _ => 0,
        },
    }
}

fn ethertype_of_ip(version: u8) -> u16 {
    if version == 6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 }
}

/// An Ethernet header before a bare IP datagram; `None` if it is neither IPv4 nor IPv6 by its first nibble.
#[must_use]
pub(crate) fn ethernet_frame(
    source: MacAddress,
    destination: MacAddress,
    payload: &[u8],
) -> Option<Bytes> {
    let ethertype = ethertype_of_ip(ip_version(payload)?);
    let mut frame = BytesMut::with_capacity(ETHERNET_HEADER + payload.len());
    frame.put_slice(&destination.0);
    frame.put_slice(&source.0);
    frame.put_u16(ethertype);
    frame.put_slice(payload);
    Some(frame.freeze())
}

/// A hash that both directions of a flow share: over the IP addresses, and the ports of TCP and UDP.
#[must_use]
pub(crate) fn flow_hash(payload: &[u8], mode: Mode) -> u64 {
    let packet = match mode {
        Mode::Tun => payload,
        Mode::Tap => payload.get(ETHERNET_HEADER..).unwrap_or_default(),
    };
    let (addresses, protocol, transport) = match ip_version(packet) {
        Some(4) => {
            (packet.get(12..20), packet.get(9), packet.first().map(|b| usize::from(b & 0xf) * 4))
        }
        Some(6) => (packet.get(8..40), packet.get(6), Some(40)),
        _ => return 0,
    };
    let ports = match (protocol, transport) {
        (Some(6 | 17), Some(start)) => packet.get(start..start + 4),
        _ => None,
    };
    let half = |bytes: Option<&[u8]>, second: bool| {
        let bytes = bytes.unwrap_or_default();
        let (a, b) = bytes.split_at(bytes.len() / 2);
        fnv1a(if second { b } else { a })
    };
    let end = |second| half(addresses, second).rotate_left(17) ^ half(ports, second);
    mix(end(false).wrapping_add(end(true)))
}

/// Spreads each bit over all of them (the finalizer of SplitMix64): FNV's low bits alone would choose badly.
pub(crate) fn mix(hash: u64) -> u64 {
    let hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use super::*;

    const IPV4: &[u8] = &[0x45, 0, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

    fn framing(mode: Mode, pi: bool, vnet: Option<usize>) -> Framing {
        Framing { mode, pi, vnet, longest: usize::MAX }
    }

    fn read(payload: &'static [u8], framing: Framing, limit: usize) -> Result<Vec<u8>, Errno> {
        let datagram = Datagram::from(Bytes::from_static(payload));
        let Part { head, body, rest } = read_part(&datagram, framing, limit)?;
        assert_eq!(rest.len() + body.len() + head.as_bytes().len(), {
            payload.len() + if framing.pi { 4 } else { 0 } + framing.vnet.unwrap_or(0)
        });
        Ok([head.as_bytes(), &body].concat())
    }

    #[test]
    fn pi_header_names_the_protocol_and_the_cut() {
        let tun = framing(Mode::Tun, true, None);
        assert_eq!(read(IPV4, tun, 100).unwrap(), [&[0, 0, 8, 0][..], IPV4].concat());
        assert_eq!(read(IPV4, tun, 10).unwrap(), [&[1, 0, 8, 0][..], &IPV4[..6]].concat());
        assert_eq!(read(IPV4, tun, 4).unwrap(), [1, 0, 8, 0]);
        assert_eq!(read(IPV4, tun, 3), Err(Errno::EINVAL));
        assert_eq!(read(&[0x60, 1], tun, 100).unwrap(), [0, 0, 0x86, 0xdd, 0x60, 1]);
        assert_eq!(read(&[0x12, 1], tun, 100).unwrap(), [0, 0, 0, 0, 0x12, 1]);
        let arp = &[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 8, 6, 9];
        assert_eq!(read(arp, framing(Mode::Tap, true, None), 100).unwrap()[..4], [0, 0, 8, 6]);
    }

    #[test]
    fn vnet_header_of_any_size_stands_between_pi_and_datagram() {
        for size in [10, 12, 24, 25, 4096] {
            let whole = read(IPV4, framing(Mode::Tun, true, Some(size)), 70_000).unwrap();
            assert_eq!(whole, [&[0, 0, 8, 0][..], &vec![0; size], IPV4].concat(), "size {size}");
        }
        assert_eq!(read(IPV4, framing(Mode::Tun, true, Some(12)), 15), Err(Errno::EINVAL));
    }

    fn write(data: &[u8], framing: Framing) -> Result<Vec<u8>, Errno> {
        parse_write(Bytes::copy_from_slice(data), framing).map(|datagram| datagram.payload.to_vec())
    }

    #[test]
    fn write_is_checked_in_the_order_of_the_kernel() {
        let bare = framing(Mode::Tun, false, None);
        assert_eq!(write(&[0x45], bare).unwrap(), [0x45]);
        assert_eq!(write(&[0x15], bare), Err(Errno::EINVAL));
        assert_eq!(write(&[], bare), Err(Errno::EINVAL));

        let pi = framing(Mode::Tun, true, None);
        assert_eq!(write(&[0, 0, 8], pi), Err(Errno::EINVAL));
        assert_eq!(write(&[9, 9, 0x12, 0x34], pi).unwrap(), [0; 0]);
        assert_eq!(
            parse_write(Bytes::from_static(&[0, 0, 0x12, 0x34]), pi).unwrap().protocol(),
            Some(0x1234)
        );

        let tap = framing(Mode::Tap, false, None);
        assert_eq!(write(&[0; 13], tap), Err(Errno::EINVAL));
        assert_eq!(write(&[0; 14], tap).unwrap(), [0; 14]);
    }

    #[test]
    fn vnet_header_of_a_write_is_checked() {
        let framing = |mode, size| framing(mode, false, Some(size));
        let vnet = framing(Mode::Tun, 12);
        assert_eq!(write(&[0; 11], vnet), Err(Errno::EINVAL));
        let behind = |size: usize, header: VnetHeader| {
            let mut data = vec![0; size + 20];
            data[..10].copy_from_slice(&header.to_short_bytes());
            data[size] = 0x45;
            data
        };
        let hint = |hdr_len: u16| VnetHeader { hdr_len: hdr_len.into(), ..VnetHeader::default() };
        assert_eq!(write(&behind(12, hint(20)), vnet).unwrap().len(), 20);
        for (size, beyond) in [(10, 0), (12, 2), (23, 13), (24, 0), (30, 6)] {
            let tun = framing(Mode::Tun, size);
            assert!(write(&behind(size, hint(20 + beyond)), tun).is_ok(), "{size}");
            assert_eq!(write(&behind(size, hint(21 + beyond)), tun), Err(Errno::EINVAL), "{size}");
        }
        assert_eq!(write(&behind(10, hint(13)), framing(Mode::Tap, 10)), Err(Errno::EINVAL));
        assert!(write(&behind(10, hint(13)), framing(Mode::Tun, 10)).is_ok());
        let unknown = VnetHeader { gso_type: 2, gso_size: 1.into(), ..VnetHeader::default() };
        assert_eq!(write(&behind(10, unknown), framing(Mode::Tun, 10)), Err(Errno::EINVAL));
    }

    #[test]
    fn frames_of_a_napi_tunnel_are_limited() {
        let flags = IfFlags::NO_PI | IfFlags::NAPI | IfFlags::NAPI_FRAGS;
        let framing = Framing::new(Mode::Tap, flags, VnetHeader::SIZE);
        assert_eq!(write(&[0; 65_471], framing).map(|payload| payload.len()), Ok(65_471));
        assert_eq!(write(&[0; 65_472], framing), Err(Errno::EMSGSIZE));
    }

    #[test]
    fn both_directions_of_a_flow_hash_alike() {
        let mut there = IPV4.to_vec();
        there[9] = 17;
        there.extend([0, 1, 0, 2]);
        let mut back = there.clone();
        back[12..16].copy_from_slice(&there[16..20]);
        back[16..20].copy_from_slice(&there[12..16]);
        back[20..24].copy_from_slice(&[0, 2, 0, 1]);
        assert_eq!(flow_hash(&there, Mode::Tun), flow_hash(&back, Mode::Tun));
        back[21] = 3;
        assert_ne!(flow_hash(&there, Mode::Tun), flow_hash(&back, Mode::Tun));
        assert_eq!(
            flow_hash(&there[..3], Mode::Tun),
            flow_hash(&there[..4], Mode::Tun),
            "cut short"
        );
    }

    #[test]
    fn bare_ip_gets_an_ethernet_header() {
        let source = "02:00:00:00:00:01".parse().unwrap();
        let frame = ethernet_frame(source, MacAddress::BROADCAST, IPV4).unwrap();
        assert_eq!(frame[..14], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 0]);
        assert!(ethernet_frame(source, source, &[0x12]).is_none());
        assert!("02:00:00:00:00".parse::<MacAddress>().is_err());
        assert!("02:00:00:00:00:01:02".parse::<MacAddress>().is_err());
    }
}
