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
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum is still to be filled in.
    pub const NEEDS_CSUM: u8 = 1;
}
