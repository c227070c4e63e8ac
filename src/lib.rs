//! An in-memory `/dev/net/tun`.

pub mod abi;
pub mod cli;
pub mod client;
pub mod command;
pub mod control;
pub mod core;
pub mod daemon;
pub mod errno;
pub mod frontend;
pub mod hub;
pub mod packet;
pub mod peer;
pub mod render;
mod sys;
