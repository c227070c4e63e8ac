//! Peers other than the harness.

mod host;
mod join;

use crate::DeviceTest;

pub const TESTS: &[&[DeviceTest]] = &[join::TESTS, host::TESTS];
