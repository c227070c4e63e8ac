//! The vnet header as it goes over the wire.

use serde::{Deserialize, Serialize};

use crate::method::is_zero;

/// The fields of a vnet header, named as in the kernel's `virtio_net.h`: those of `struct virtio_net_hdr`, and the two of
/// `struct virtio_net_hdr_v1_hash_tunnel` that say where the headers of a UDP tunnel are. Those left out are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the kernel's names")]
pub struct Vnet {
    pub flags: u8,
    pub gso_type: u8,
    pub hdr_len: u16,
    pub gso_size: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
    #[serde(skip_serializing_if = "is_zero")]
    pub outer_th_offset: u16,
    #[serde(skip_serializing_if = "is_zero")]
    pub inner_nh_offset: u16,
}
