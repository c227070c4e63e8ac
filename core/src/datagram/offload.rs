//! Offloads: checksums that are still to be filled in, and datagrams that are still to be cut into segments.
//!
//! # Theory of operation
//!
//! A vnet header says what is left to be done to its datagram. [`check`] checks the header of a write as the kernel does in
//! `virtio_net_hdr_to_skb`. [`perform`] does what the receiver does not do itself, as `validate_xmit_skb` and the functions that it
//! calls. A client gets the datagram unchanged if it accepts that by TUNSETOFFLOAD; otherwise it gets the segments.
//!
//! What is to be cut may be inside a UDP tunnel (VXLAN, Geneve). Then each segment gets the tunnel's headers, as from
//! `__skb_udp_tunnel_segment`.
//!
//! A segment's checksum is computed from the sum that stands in the checksum field, not from the data. So a wrong sum that a
//! client wrote there shows in the result.
//!
//! A datagram of n bytes is summed and copied once, whatever the size of its segments; there are at most
//! [`MAX_SEGMENTS`].

mod segments;
#[cfg(test)]
mod tests;

use core::mem::take;

use bytes::BytesMut;

use self::segments::{Outer, Segments};
use super::{
    Datagram, ETHERNET_HEADER, Mode,
    headers::{
        IPPROTO_TCP, IPPROTO_UDP, IPV4_HEADER, IPV6_HEADER, Layout, TCP_HEADER, UDP_HEADER, Zero,
        fill_checksum, fold, get_u16, low_u16, put_u16, sum,
    },
};
use crate::{
    abi::{
        tun::Offload,
        virtio_net::{Gso, VnetHeader},
    },
    errno::Errno,
};

/// Segments of one datagram.
///
/// DIFFERS: a GSO datagram makes at most 1,024 segments; the kernel makes up to 65,535. More segments would not fit into any
/// queue of a tunnel.
pub const MAX_SEGMENTS: usize = 1024;
/// `UDP_MAX_SEGMENTS`.
const MAX_UDP_SEGMENTS: usize = 128;

/// Where the checksum is in a UDP header, and in a TCP header.
const UDP_CHECKSUM: usize = 6;
const TCP_CHECKSUM: usize = 16;

/// `NET_SKB_PAD`: what the kernel keeps free before a written datagram; a checksum cannot start so far behind that it would
/// have no place in the 16 bits of `skb->csum_start`.
const HEADROOM: usize = 64;

/// Whether a vnet header may stand before a datagram: `virtio_net_hdr_tnl_to_skb`, as of Linux 6.18.
///
/// # Errors
///
/// `EINVAL` for an unknown type, segments of 0 or 65,535 bytes, headers that do not fit into the datagram, and a checksum where
/// the type has none.
pub fn check(header: &VnetHeader, payload: &[u8]) -> Result<(), Errno> {
    let gso = gso_type(header)?;
    check_headers(header, gso, payload.len())?;
    if header.is_in_tunnel() { check_tunnel(header, gso, payload) } else { Ok(()) }
}

/// `__virtio_net_hdr_to_skb`.
fn check_headers(header: &VnetHeader, gso: Option<Gso>, length: usize) -> Result<(), Errno> {
    let offset = usize::from(header.csum_offset.get());
    if header.needs_checksum() {
        let start = usize::from(header.csum_start.get());
        let network = gso.map_or(IPV4_HEADER, Gso::least_network_header);
        let has_room = start + offset + 2 <= length && start + HEADROOM < usize::from(u16::MAX);
        if start < network || !has_room {
            return Err(Errno::EINVAL);
        }
    }
    let Some(gso) = gso else { return Ok(()) };
    let (size, headers) = (usize::from(header.gso_size.get()), headers_end(header, gso));
    let is_allowed = match gso {
        Gso::Tcp4 | Gso::Tcp6 => !header.needs_checksum() || offset == TCP_CHECKSUM,
        Gso::UdpFragments => true,
        Gso::Udp => {
            header.needs_checksum()
                && offset == UDP_CHECKSUM
                && header.gso_type & VnetHeader::GSO_ECN == 0
                && length <= headers + size * MAX_UDP_SEGMENTS
        }
    };
    // 65,535 is the kernel's own GSO_BY_FRAGS.
    if is_allowed && headers <= length && (1..usize::from(u16::MAX)).contains(&size) {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

/// What `virtio_net_hdr_tnl_to_skb` checks besides. It takes an Ethernet header for granted, before an IP datagram of a tun too.
fn check_tunnel(header: &VnetHeader, gso: Option<Gso>, payload: &[u8]) -> Result<(), Errno> {
    let outer_is_v6 = match header.gso_type & VnetHeader::GSO_UDP_TUNNEL {
        VnetHeader::GSO_UDP_TUNNEL_IPV4 => false,
        VnetHeader::GSO_UDP_TUNNEL_IPV6 => true,
        _ => return Err(Errno::EINVAL),
    };
    let least = |is_v6| if is_v6 { IPV6_HEADER } else { IPV4_HEADER };
    let [outer_transport, inner_network, inner_transport] =
        [header.outer_th_offset, header.inner_nh_offset, header.csum_start]
            .map(|offset| usize::from(offset.get()));
    let inner_is_v6 = match gso {
        Some(Gso::Tcp4) => false,
        Some(Gso::Tcp6) => true,
        Some(Gso::Udp) => payload.get(inner_network).is_some_and(|byte| byte >> 4 == 6),
        Some(Gso::UdpFragments) | None => return Err(Errno::EINVAL),
    };
    if header.needs_checksum()
        && outer_transport >= ETHERNET_HEADER + least(outer_is_v6)
        && inner_network >= outer_transport + UDP_HEADER
        && inner_transport >= inner_network + least(inner_is_v6)
    {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

/// `None` is no segmentation at all.
fn gso_type(header: &VnetHeader) -> Result<Option<Gso>, Errno> {
    match header.gso_type & !VnetHeader::GSO_UDP_TUNNEL {
        0 => Ok(None),
        number => Gso::new(number & !VnetHeader::GSO_ECN).map(Some).ok_or(Errno::EINVAL),
    }
}

/// Where the payload begins, as far as the vnet header tells: behind a transport header without options.
fn headers_end(header: &VnetHeader, gso: Gso) -> usize {
    let transport = if header.needs_checksum() {
        header.csum_start.get().into()
    } else {
        gso.least_network_header()
    };
    transport + gso.least_transport_header()
}

impl Gso {
    fn least_network_header(self) -> usize {
        match self {
            Self::Tcp6 => IPV6_HEADER,
            Self::Tcp4 | Self::Udp | Self::UdpFragments => IPV4_HEADER,
        }
    }

    fn least_transport_header(self) -> usize {
        match self {
            Self::Tcp4 | Self::Tcp6 => TCP_HEADER,
            Self::Udp | Self::UdpFragments => UDP_HEADER,
        }
    }

    fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp4 | Self::Tcp6 => TCP_CHECKSUM,
            Self::Udp | Self::UdpFragments => UDP_CHECKSUM,
        }
    }

    /// Where the first segment's part of the datagram begins, if its transport header has no options.
    fn cut_at(self, transport: usize) -> usize {
        match self {
            // The UDP header is in the first fragment.
            Self::UdpFragments => transport,
            Self::Tcp4 | Self::Tcp6 | Self::Udp => transport + self.least_transport_header(),
        }
    }

    /// The IP versions and the protocol that it is for.
    fn is_for(self, layout: &Layout) -> bool {
        match self {
            Self::Tcp4 => (layout.version, layout.protocol) == (4, IPPROTO_TCP),
            Self::Tcp6 => (layout.version, layout.protocol) == (6, IPPROTO_TCP),
            Self::Udp | Self::UdpFragments => layout.protocol == IPPROTO_UDP,
        }
    }

    /// What a receiver must accept to get it whole. Fragments are accepted by nobody: TUN_F_UFO is without effect.
    fn needs(self, header: &VnetHeader) -> Option<Offload> {
        let segments = match self {
            Self::Tcp4 => Offload::TSO4,
            Self::Tcp6 => Offload::TSO6,
            Self::Udp => Offload::USO4 | Offload::USO6,
            Self::UdpFragments => return None,
        };
        let has_ecn = header.gso_type & VnetHeader::GSO_ECN != 0;
        let ecn = if has_ecn { Offload::TSO_ECN } else { Offload::empty() };
        let tunnel = match header.is_in_tunnel() {
            false => Offload::empty(),
            true if header.flags & VnetHeader::UDP_TUNNEL_CSUM != 0 => Offload::UDP_TUNNEL_GSO_CSUM,
            true => Offload::UDP_TUNNEL_GSO,
        };
        Some(Offload::CSUM | segments | ecn | tunnel)
    }
}

/// Why the offloads of a datagram cannot be performed. The kernel drops it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub enum OffloadError {
    /// The vnet header is not allowed before the datagram.
    #[error("it does not fit the datagram")]
    BadHeader,
    /// The datagram is not what its gso_type says, or its checksum does not begin with its transport header.
    #[error("the datagram's headers are not those of its gso_type")]
    OtherHeaders,
    /// With its real headers, it is no longer than one segment.
    #[error("behind the datagram's headers there is no more than one segment")]
    OneSegment,
    /// UFO over IPv6.
    ///
    /// DIFFERS: memtun cannot cut a UDP datagram over IPv6 whose vnet header asks for fragments (UFO).
    #[error("fragments of UDP over IPv6 are not made")]
    Ipv6Fragments,
    /// More than [`MAX_SEGMENTS`].
    #[error("the datagram would make {0} segments; {MAX_SEGMENTS} is the limit")]
    TooManySegments(usize),
}

/// Does what the vnet header of a datagram asks for, except for what is accepted.
///
/// Gives the datagram, or its segments. Their vnet headers say what is left to be done, as `virtio_net_hdr_tnl_from_skb` does.
///
/// DIFFERS: a datagram in a UDP tunnel that is no longer than one segment is delivered as outside of one. The kernel's driver
/// (Linux 6.18) keeps the mark of the tunnel: then a read gets EINVAL, or a vnet header that no write accepts. On a tap with a
/// VLAN tag, the kernel's vnet header counts the tag in csum_start, but not in the two offsets of the tunnel.
///
/// # Errors
///
/// As [`OffloadError`] says.
pub fn perform(
    mut datagram: Datagram,
    mode: Mode,
    accepted: Offload,
) -> Result<Performed, OffloadError> {
    let Some(header) = datagram.vnet() else { return Ok(Performed::one(datagram)) };
    let length = datagram.payload.len();
    check(&header, &datagram.payload).map_err(|_| OffloadError::BadHeader)?;
    if let Ok(Some(gso)) = gso_type(&header) {
        let layouts = layouts(&datagram.payload, mode, &header);
        let layouts = layouts.filter(|(layout, _)| gso.is_for(layout));
        let layouts = layouts.ok_or(OffloadError::OtherHeaders);
        let transport = if header.needs_checksum() {
            header.csum_start.get().into()
        } else {
            layouts?.0.transport
        };
        if length > gso.cut_at(transport) + usize::from(header.gso_size.get()) {
            return perform_segmentation(datagram, &header, gso, layouts?, accepted);
        }
    }
    let mut payload = take(&mut datagram.payload);
    let start = usize::from(header.csum_start.get());
    let offset = usize::from(header.csum_offset.get());
    if header.is_in_tunnel() && header.flags & VnetHeader::UDP_TUNNEL_CSUM != 0 {
        let mut bytes = BytesMut::from(payload);
        fill_outer_checksum(&mut bytes, header.outer_th_offset.get().into(), start, start + offset);
        payload = bytes.freeze();
    }
    let (payload, vnet) = if !header.needs_checksum() {
        let flags = header.flags & VnetHeader::DATA_VALID;
        (payload, VnetHeader { flags, ..VnetHeader::default() })
    } else if accepted.contains(Offload::CSUM) {
        (payload, partial_checksum(start, offset))
    } else {
        let mut payload = BytesMut::from(payload);
        fill_checksum(&mut payload, start, offset, Zero::IsNone);
        (payload.freeze(), VnetHeader::default())
    };
    Ok(Performed::one(datagram.with_payload(payload).with_vnet(Some(vnet))))
}

/// Does all that the vnet header of a datagram asks for; what it gives has none.
///
/// # Errors
///
/// As [`OffloadError`] says.
pub fn finish(datagram: Datagram, mode: Mode) -> Result<Finished, OffloadError> {
    perform(datagram, mode, Offload::empty()).map(Finished)
}

/// What [`finish`] gives: the datagram, or its segments.
#[derive(Clone, Debug)]
pub struct Finished(Performed);

impl Iterator for Finished {
    type Item = Datagram;

    fn next(&mut self) -> Option<Datagram> {
        self.0.next().map(|datagram| datagram.with_vnet(None))
    }
}

/// Makes of a finished datagram one that is to be cut, and whose checksum is to be filled in: as a sender does that relies
/// on offloads.
///
/// # Errors
///
/// [`OffloadError::OtherHeaders`].
pub fn defer(
    mut datagram: Datagram,
    mode: Mode,
    gso: Gso,
    ecn: bool,
    size: u16,
) -> Result<Datagram, OffloadError> {
    let mut bytes = BytesMut::from(take(&mut datagram.payload));
    let layout = Layout::of(&bytes, mode)
        .filter(|layout| gso.is_for(layout))
        .filter(|layout| layout.transport + gso.least_transport_header() <= bytes.len())
        .ok_or(OffloadError::OtherHeaders)?;
    let transport = layout.transport;
    let sum = layout.pseudo_header_sum(&bytes, bytes.len() - transport);
    put_u16(&mut bytes, transport + gso.checksum_offset(), sum);
    let vnet = VnetHeader {
        gso_type: gso as u8 | if ecn { VnetHeader::GSO_ECN } else { 0 },
        gso_size: size.into(),
        ..partial_checksum(transport, gso.checksum_offset())
    };
    Ok(datagram.with_payload(bytes.freeze()).with_vnet(Some(vnet)))
}

/// Where the headers are that belong to what is cut, and those of the UDP tunnel around it.
fn layouts(payload: &[u8], mode: Mode, header: &VnetHeader) -> Option<(Layout, Option<Layout>)> {
    let first = Layout::of(payload, mode)?;
    if !header.is_in_tunnel() {
        return Some((first, None));
    }
    let inner = Layout::inside(payload, header.inner_nh_offset.get().into())?;
    let is_tunnel = first.protocol == IPPROTO_UDP && first.transport + UDP_HEADER <= inner.network;
    is_tunnel.then_some((inner, Some(first)))
}

fn perform_segmentation(
    mut datagram: Datagram,
    header: &VnetHeader,
    gso: Gso,
    (layout, outer): (Layout, Option<Layout>),
    accepted: Offload,
) -> Result<Performed, OffloadError> {
    let mut payload = take(&mut datagram.payload);
    let transport = layout.transport;
    if header.needs_checksum() && usize::from(header.csum_start.get()) != transport {
        return Err(OffloadError::OtherHeaders);
    }
    let size = usize::from(header.gso_size.get());
    let (head, size) = match gso {
        Gso::Tcp4 | Gso::Tcp6 => (transport + tcp_header(&payload, transport)?, size),
        Gso::Udp => (transport + UDP_HEADER, size),
        Gso::UdpFragments if layout.version == 6 => return Err(OffloadError::Ipv6Fragments),
        // The offset of a fragment counts units of 8 bytes.
        Gso::UdpFragments => (transport, (size & !7).max(8)),
    };
    let length = payload.len();
    let segments = length.saturating_sub(head).div_ceil(size);
    match segments {
        0 | 1 => return Err(OffloadError::OneSegment),
        2..=MAX_SEGMENTS => {}
        _ => return Err(OffloadError::TooManySegments(segments)),
    }

    let checksum_at = transport + gso.checksum_offset();
    if gso == Gso::UdpFragments || !header.needs_checksum() {
        // The sum over the pseudo-header, which the writer left to us.
        let mut bytes = BytesMut::from(payload);
        let sum = layout.pseudo_header_sum(&bytes, length - transport);
        put_u16(&mut bytes, checksum_at, sum);
        if gso == Gso::UdpFragments {
            fill_checksum(&mut bytes, transport, UDP_CHECKSUM, Zero::IsNone);
        }
        payload = bytes.freeze();
    }
    if gso.needs(header).is_some_and(|needed| accepted.contains(needed)) {
        let hint = usize::from(header.hdr_len.get());
        let hdr_len = if (head..=length).contains(&hint) { hint } else { head };
        let vnet = VnetHeader {
            gso_type: header.gso_type,
            hdr_len: low_u16(hdr_len).into(),
            gso_size: header.gso_size,
            ..partial_checksum(transport, gso.checksum_offset())
        };
        let vnet = outer.map_or(vnet, |outer| in_tunnel(vnet, header, &layout, &outer));
        return Ok(Performed::one(datagram.with_payload(payload).with_vnet(Some(vnet))));
    }
    // What is left of the pseudo-header's sum without the length that is in it.
    let counted_length = match gso {
        Gso::Udp => get_u16(&payload, transport + 4),
        Gso::Tcp4 | Gso::Tcp6 | Gso::UdpFragments => low_u16(length - transport),
    };
    let sum = fold(u64::from(get_u16(&payload, checksum_at)) + u64::from(!counted_length));
    let outer = outer.map(|layout| {
        let at = layout.transport + UDP_CHECKSUM;
        let has_checksum = header.flags & VnetHeader::UDP_TUNNEL_CSUM != 0;
        let length = fold((length - layout.transport) as u64);
        let sum = fold(u64::from(get_u16(&payload, at)) + u64::from(!length));
        Outer { layout, sum: has_checksum.then_some(sum) }
    });
    let rest = payload.split_off(head);
    let fill = !accepted.contains(Offload::CSUM);
    let segments = Segments {
        gso,
        layout,
        outer,
        head: payload,
        rest,
        size,
        done: 0,
        sum,
        fill,
        whole: datagram,
    };
    Ok(Performed(Inner::Several(segments)))
}

/// The length of a TCP header that is all there.
fn tcp_header(payload: &[u8], transport: usize) -> Result<usize, OffloadError> {
    let length = payload.get(transport + 12).map_or(0, |byte| usize::from(byte >> 4) * 4);
    if length >= TCP_HEADER && transport + length <= payload.len() {
        Ok(length)
    } else {
        Err(OffloadError::OtherHeaders)
    }
}

/// Adds the tunnel's part to a vnet header: the place of its headers is where they are found.
fn in_tunnel(vnet: VnetHeader, asked: &VnetHeader, inner: &Layout, outer: &Layout) -> VnetHeader {
    let kind = match outer.version {
        6 => VnetHeader::GSO_UDP_TUNNEL_IPV6,
        _ => VnetHeader::GSO_UDP_TUNNEL_IPV4,
    };
    VnetHeader {
        flags: vnet.flags | asked.flags & VnetHeader::UDP_TUNNEL_CSUM,
        gso_type: vnet.gso_type & !VnetHeader::GSO_UDP_TUNNEL | kind,
        outer_th_offset: low_u16(outer.transport).into(),
        inner_nh_offset: low_u16(inner.network).into(),
        ..vnet
    }
}

/// Completes the checksum of a tunnel's UDP header, in which the sum of the pseudo-header stands. From `inner` on, all has a
/// checksum of its own, in whose field a sum of the same kind stands: so it adds up to the complement of that
/// (`gso_make_checksum`).
fn fill_outer_checksum(bytes: &mut [u8], outer: usize, inner: usize, inner_checksum: usize) {
    let rest = !get_u16(bytes, inner_checksum);
    let checksum = match !fold(u64::from(sum(&bytes[outer..inner])) + u64::from(rest)) {
        0 => 0xffff,
        checksum => checksum,
    };
    put_u16(bytes, outer + UDP_CHECKSUM, checksum);
}

fn partial_checksum(start: usize, offset: usize) -> VnetHeader {
    VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        csum_start: low_u16(start).into(),
        csum_offset: low_u16(offset).into(),
        ..VnetHeader::default()
    }
}

/// What [`perform`] leaves of a datagram: itself, or its segments.
#[derive(Clone, Debug)]
pub struct Performed(Inner);

#[derive(Clone, Debug)]
enum Inner {
    One(Option<Datagram>),
    Several(Segments),
}

impl Performed {
    fn one(datagram: Datagram) -> Self {
        Self(Inner::One(Some(datagram)))
    }
}

impl Iterator for Performed {
    type Item = Datagram;

    fn next(&mut self) -> Option<Datagram> {
        match &mut self.0 {
            Inner::One(datagram) => datagram.take(),
            Inner::Several(segments) => segments.next(),
        }
    }
}
