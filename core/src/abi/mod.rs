//! What the kernel's headers define: numbers and layouts, nothing that acts.

pub mod tun;
pub mod virtio_net;
