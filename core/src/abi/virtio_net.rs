//! The vnet header, from `include/uapi/linux/virtio_net.h`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian::U16};

/// What the vnet header tells of a datagram: it stands before a datagram of a tunnel with
/// [`IFF_VNET_HDR`](super::tun::IfFlags::VNET_HDR).
///
/// It has the fields of `struct virtio_net_hdr`, and two of `struct virtio_net_hdr_v1_hash_tunnel`. These two are 0 unless it
/// [`is_in_tunnel`](Self::is_in_tunnel). The kernel carries no other.
///
/// The fields are in the byte order of the machine unless TUNSETVNETLE says little-endian; on a little-endian
/// machine, the only kind memtun runs on so far, both are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Length of all protocol headers, in bytes; a hint.
    pub hdr_len: U16,
    /// Payload bytes of one segment.
    pub gso_size: U16,
    /// Where the checksummed part begins, in bytes from the start of the datagram.
    pub csum_start: U16,
    /// Where the checksum is stored, in bytes from `csum_start`.
    pub csum_offset: U16,
    /// Where the UDP header of the tunnel is, in bytes from the start of the datagram.
    pub outer_th_offset: U16,
    /// Where the IP header inside the tunnel is.
    pub inner_nh_offset: U16,
}

/// `struct virtio_net_hdr_v1_hash_tunnel`: a shorter vnet header is its beginning.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wire {
    flags: u8,
    gso_type: u8,
    hdr_len: U16,
    gso_size: U16,
    csum_start: U16,
    csum_offset: U16,
    /// `num_buffers`, and the hash, which tun neither reads nor writes.
    ignored: [u8; 10],
    outer_th_offset: U16,
    inner_nh_offset: U16,
}

const _: () = assert!(size_of::<Wire>() == VnetHeader::TUNNEL_SIZE);
const _: () =
    assert!(size_of::<VnetHeader>() == VnetHeader::SIZE + 4, "it is moved with each datagram");
const _: () = assert!(cfg!(target_endian = "little"), "the vnet header is read as little-endian");

impl VnetHeader {
    /// Its length in bytes without the fields of UDP tunnels, and the least that TUNSETVNETHDRSZ accepts.
    pub const SIZE: usize = 10;
    /// `TUN_VNET_TNL_SIZE`: its length from which on the fields of UDP tunnels are in it.
    pub const TUNNEL_SIZE: usize = 24;
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum is still to be filled in.
    pub const NEEDS_CSUM: u8 = 1;
    /// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksum has been verified.
    pub const DATA_VALID: u8 = 2;
    /// `VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM`: the tunnel's UDP header has a checksum, which is still to be filled in.
    pub const UDP_TUNNEL_CSUM: u8 = 8;
    /// `VIRTIO_NET_HDR_GSO_ECN`, added to a TCP type: the first segment alone has CWR.
    pub const GSO_ECN: u8 = 0x80;
    /// `VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4`, added to a type: what is to be cut is inside a UDP tunnel over IPv4.
    pub const GSO_UDP_TUNNEL_IPV4: u8 = 0x20;
    /// `VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6`: over IPv6.
    pub const GSO_UDP_TUNNEL_IPV6: u8 = 0x40;
    /// `VIRTIO_NET_HDR_GSO_UDP_TUNNEL`: either of them.
    pub const GSO_UDP_TUNNEL: u8 = Self::GSO_UDP_TUNNEL_IPV4 | Self::GSO_UDP_TUNNEL_IPV6;

    /// The header in all of these bytes, or in the first 24 of them; `None` of fewer than 10.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let known = Self::known_of(bytes.len());
        let mut wire = [0; Self::TUNNEL_SIZE];
        wire[..known].copy_from_slice(bytes.get(..known)?);
        let wire: Wire = zerocopy::transmute!(wire);
        let header = Self {
            flags: wire.flags,
            gso_type: wire.gso_type,
            hdr_len: wire.hdr_len,
            gso_size: wire.gso_size,
            csum_start: wire.csum_start,
            csum_offset: wire.csum_offset,
            outer_th_offset: wire.outer_th_offset,
            inner_nh_offset: wire.inner_nh_offset,
        };
        Some(header.normalized())
    }

    /// How many bytes of a header of this size, at least 10, are looked at.
    #[must_use]
    pub fn known_of(size: usize) -> usize {
        if size < Self::TUNNEL_SIZE { Self::SIZE } else { Self::TUNNEL_SIZE }
    }

    /// With the fields of a UDP tunnel only if it is of one.
    #[must_use]
    pub(crate) fn normalized(self) -> Self {
        if self.is_in_tunnel() {
            return self;
        }
        Self { outer_th_offset: 0.into(), inner_nh_offset: 0.into(), ..self }
    }

    /// Its bytes; those of a shorter header are the first of them.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::TUNNEL_SIZE] {
        zerocopy::transmute!(Wire {
            flags: self.flags,
            gso_type: self.gso_type,
            hdr_len: self.hdr_len,
            gso_size: self.gso_size,
            csum_start: self.csum_start,
            csum_offset: self.csum_offset,
            ignored: [0; 10],
            outer_th_offset: self.outer_th_offset,
            inner_nh_offset: self.inner_nh_offset,
        })
    }

    /// Its bytes without the fields of UDP tunnels.
    #[must_use]
    pub fn to_short_bytes(self) -> [u8; Self::SIZE] {
        let mut short = [0; Self::SIZE];
        short.copy_from_slice(&self.to_bytes()[..Self::SIZE]);
        short
    }

    /// `flags` has [`NEEDS_CSUM`](Self::NEEDS_CSUM).
    #[must_use]
    pub fn needs_checksum(&self) -> bool {
        self.flags & Self::NEEDS_CSUM != 0
    }

    /// `gso_type` says that what is to be cut is inside a UDP tunnel.
    #[must_use]
    pub fn is_in_tunnel(&self) -> bool {
        self.gso_type & Self::GSO_UDP_TUNNEL != 0
    }
}

#[cfg(feature = "log")]
impl serde::Serialize for VnetHeader {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        crate::serial::serialize(&self.to_bytes(), to)
    }
}

#[cfg(feature = "log")]
impl<'de> serde::Deserialize<'de> for VnetHeader {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let bytes = <&[u8]>::deserialize(from)?;
        Self::read(bytes)
            .ok_or_else(|| serde::de::Error::invalid_length(bytes.len(), &"a vnet header"))
    }
}

/// `VIRTIO_NET_HDR_GSO_*`: what a datagram is to be cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Gso {
    /// `VIRTIO_NET_HDR_GSO_TCPV4`: TCP segments over IPv4.
    Tcp4 = 1,
    /// `VIRTIO_NET_HDR_GSO_UDP`: IP fragments of a UDP datagram.
    UdpFragments = 3,
    /// `VIRTIO_NET_HDR_GSO_TCPV6`: TCP segments over IPv6.
    Tcp6 = 4,
    /// `VIRTIO_NET_HDR_GSO_UDP_L4`: UDP datagrams.
    Udp = 5,
}

impl Gso {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tcp4, Self::UdpFragments, Self::Tcp6, Self::Udp];

    /// The type with that number, without what is added to it.
    #[must_use]
    pub fn new(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|gso| *gso as u8 == number)
    }
}
