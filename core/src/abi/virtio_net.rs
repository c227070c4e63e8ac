//! The vnet header, from `include/uapi/linux/virtio_net.h`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian::U16};

/// `struct virtio_net_hdr`: stands before a datagram of a tunnel with [`IFF_VNET_HDR`](super::tun::IfFlags::VNET_HDR).
///
/// The fields are in the byte order of the machine unless TUNSETVNETLE says little-endian; on a little-endian
/// machine, the only kind memtun runs on so far, both are the same.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
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
}

const _: () = assert!(size_of::<VnetHeader>() == VnetHeader::SIZE);
const _: () = assert!(cfg!(target_endian = "little"), "the vnet header is read as little-endian");

impl VnetHeader {
    /// Its length in bytes, and the least that TUNSETVNETHDRSZ accepts.
    pub const SIZE: usize = 10;
    /// `struct virtio_net_hdr_v1_hash_tunnel`: with a hash, and the place of the headers in a UDP tunnel.
    pub const TUNNEL_SIZE: usize = 24;
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum is still to be filled in.
    pub const NEEDS_CSUM: u8 = 1;
    /// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksum has been verified.
    pub const DATA_VALID: u8 = 2;
    /// `VIRTIO_NET_HDR_GSO_ECN`, added to a TCP type: the first segment alone has CWR.
    pub const GSO_ECN: u8 = 0x80;

    /// `flags` has [`NEEDS_CSUM`](Self::NEEDS_CSUM).
    #[must_use]
    pub fn needs_checksum(&self) -> bool {
        self.flags & Self::NEEDS_CSUM != 0
    }
}

#[cfg(feature = "log")]
impl serde::Serialize for VnetHeader {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        crate::serial::serialize(self.as_bytes(), to)
    }
}

#[cfg(feature = "log")]
impl<'de> serde::Deserialize<'de> for VnetHeader {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let bytes = <&[u8]>::deserialize(from)?;
        Self::read_from_bytes(bytes)
            .map_err(|_| serde::de::Error::invalid_length(bytes.len(), &"a vnet header"))
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

    /// The type with that number, without [`GSO_ECN`](VnetHeader::GSO_ECN).
    #[must_use]
    pub fn new(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|gso| *gso as u8 == number)
    }
}
