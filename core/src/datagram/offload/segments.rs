//! The segments of a datagram: each has headers that follow from those of the whole.

use bytes::{BufMut, Bytes, BytesMut};

use super::{UDP_CHECKSUM, fill_outer_checksum, partial_checksum};
use crate::{
    abi::virtio_net::{Gso, VnetHeader},
    datagram::{
        Datagram,
        headers::{IPV6_HEADER, Layout, Zero, fill_checksum, fold, get_u16, low_u16, put_u16, sum},
    },
};

/// The segments of a datagram, made one by one.
#[derive(Clone, Debug)]
pub(super) struct Segments {
    pub(super) gso: Gso,
    pub(super) layout: Layout,
    pub(super) outer: Option<Outer>,
    /// The headers that stand before each.
    pub(super) head: Bytes,
    /// What has not been handed out.
    pub(super) rest: Bytes,
    pub(super) size: usize,
    /// Bytes that have been handed out.
    pub(super) done: usize,
    /// Of the checksum: the part that is the same in all of them.
    pub(super) sum: u16,
    /// The checksum is filled in here.
    pub(super) fill: bool,
    /// What was cut, without its payload.
    pub(super) whole: Datagram,
}

/// The UDP tunnel around what is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outer {
    pub(super) layout: Layout,
    /// Of its checksum, if it has one: the part that is the same in all segments.
    pub(super) sum: Option<u16>,
}

impl Iterator for Segments {
    type Item = Datagram;

    fn next(&mut self) -> Option<Datagram> {
        if self.rest.is_empty() {
            return None;
        }
        let part = self.rest.split_to(self.size.min(self.rest.len()));
        let mut bytes = BytesMut::with_capacity(self.head.len() + part.len());
        bytes.put_slice(&self.head);
        bytes.put_slice(&part);
        self.change_network_header(&self.layout, &mut bytes);
        if let Some(outer) = &self.outer {
            self.change_network_header(&outer.layout, &mut bytes);
        }
        let vnet = self.change_transport_header(&mut bytes);
        self.done += part.len();
        Some(self.whole.clone().with_payload(bytes.freeze()).with_vnet(Some(vnet)))
    }
}

impl Segments {
    /// `inet_gso_segment`, `ipv6_gso_segment`.
    fn change_network_header(&self, layout: &Layout, bytes: &mut [u8]) {
        let ip = &mut bytes[layout.network..];
        let length = ip.len();
        if layout.version == 6 {
            put_u16(ip, 4, low_u16(length - IPV6_HEADER));
            return;
        }
        put_u16(ip, 2, low_u16(length));
        if self.gso == Gso::UdpFragments {
            let more = if self.rest.is_empty() { 0 } else { 0x2000 };
            put_u16(ip, 6, low_u16(self.done / 8) | more);
        } else {
            let id = get_u16(ip, 4).wrapping_add(low_u16(self.done / self.size));
            put_u16(ip, 4, id);
        }
        let header = layout.transport - layout.network;
        put_u16(ip, 10, 0);
        let sum = sum(&ip[..header]);
        put_u16(ip, 10, !sum);
    }

    /// `tcp_gso_segment`, `__udp_gso_segment`; the checksum of a fragmented datagram is complete.
    fn change_transport_header(&self, bytes: &mut [u8]) -> VnetHeader {
        let transport = self.layout.transport;
        let length = low_u16(bytes.len() - transport);
        let zero = match self.gso {
            Gso::UdpFragments => {
                return VnetHeader { flags: VnetHeader::DATA_VALID, ..VnetHeader::default() };
            }
            Gso::Udp => {
                put_u16(bytes, transport + 4, length);
                Zero::IsNone
            }
            Gso::Tcp4 | Gso::Tcp6 => {
                let tcp = &mut bytes[transport..];
                let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
                let done = u32::try_from(self.done).expect("MAX_SEGMENTS of at most 65,534 bytes");
                let sequence = sequence.wrapping_add(done);
                tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
                if self.done > 0 {
                    tcp[13] &= !TCP_CWR;
                }
                if !self.rest.is_empty() {
                    tcp[13] &= !(TCP_FIN | TCP_PSH);
                }
                Zero::IsSum
            }
        };
        let offset = self.gso.checksum_offset();
        put_u16(bytes, transport + offset, fold(u64::from(self.sum) + u64::from(length)));
        if let Some(outer) = &self.outer {
            outer.change_header(bytes, transport, transport + offset);
        }
        if self.fill {
            fill_checksum(bytes, transport, offset, zero);
            VnetHeader::default()
        } else {
            partial_checksum(transport, offset)
        }
    }
}

impl Outer {
    /// `__skb_udp_tunnel_segment`, while the sum of the pseudo-header stands in the inner checksum's field.
    fn change_header(&self, bytes: &mut [u8], inner: usize, inner_checksum: usize) {
        let outer = self.layout.transport;
        let length = low_u16(bytes.len() - outer);
        put_u16(bytes, outer + 4, length);
        if let Some(sum) = self.sum {
            put_u16(bytes, outer + UDP_CHECKSUM, fold(u64::from(sum) + u64::from(length)));
            fill_outer_checksum(bytes, outer, inner, inner_checksum);
        }
    }
}

pub(super) const TCP_FIN: u8 = 0x01;
pub(super) const TCP_PSH: u8 = 0x08;
pub(super) const TCP_CWR: u8 = 0x80;
