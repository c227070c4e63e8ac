//! Ordinary users against a daemon of root's: nothing of root's changes, and nobody else waits.

mod client;
mod netdev;

use crate::DeviceTest;

pub const TESTS: [&[DeviceTest]; 2] = [client::TESTS, netdev::TESTS];
