//! An in-memory `/dev/net/tun`.

pub mod abi;
pub mod core;
pub mod errno;
