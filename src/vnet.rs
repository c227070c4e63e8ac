//! The vnet header as the harness and as the kernel writes it.

use memtun_proto::Vnet;

use crate::abi::virtio_net::VnetHeader;

/// As the harness writes it.
pub(crate) fn of_header(header: VnetHeader) -> Vnet {
    Vnet {
        flags: header.flags,
        gso_type: header.gso_type,
        hdr_len: header.hdr_len.get(),
        gso_size: header.gso_size.get(),
        csum_start: header.csum_start.get(),
        csum_offset: header.csum_offset.get(),
        outer_th_offset: header.outer_th_offset.get(),
        inner_nh_offset: header.inner_nh_offset.get(),
    }
}

/// As the kernel writes it.
pub(crate) fn header_of(vnet: Vnet) -> VnetHeader {
    VnetHeader {
        flags: vnet.flags,
        gso_type: vnet.gso_type,
        hdr_len: vnet.hdr_len.into(),
        gso_size: vnet.gso_size.into(),
        csum_start: vnet.csum_start.into(),
        csum_offset: vnet.csum_offset.into(),
        outer_th_offset: vnet.outer_th_offset.into(),
        inner_nh_offset: vnet.inner_nh_offset.into(),
    }
}
