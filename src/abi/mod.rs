//! What the kernel's headers define: numbers and layouts, nothing that acts.

pub mod rtnetlink;
pub use memtun_core::abi::{tun, virtio_net};
