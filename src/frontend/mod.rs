//! How a client's system calls reach the core: each front end is a codec and a read loop, nothing more.

pub mod cuse;
pub(crate) mod opener;
