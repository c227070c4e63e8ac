//! The vnet header as it goes over the wire.

use serde::{Deserialize, Serialize};

/// The fields of a vnet header, named as in `struct virtio_net_hdr` of the kernel's `virtio_net.h`. Those left out are 0.
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
}
