//! The crate from outside: a device against a fake kernel, and against the real one where there is CUSE.

mod device;
mod handshake;
mod interrupts;
mod operations;
mod properties;
mod real_kernel;
mod robustness;
mod strictness;
