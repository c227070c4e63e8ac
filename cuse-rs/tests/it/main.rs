//! The crate from outside: a device against a fake kernel, and against the real one where there is CUSE or FUSE.

mod device;
mod file_channel;
mod handshake;
mod interrupts;
mod operations;
mod properties;
mod real_kernel;
mod robustness;
mod strictness;
