//! What a tunnel carries.

use crate::abi::tun::{IfFlags, MAX_MTU};

/// Layer 3 or layer 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub enum Mode {
    /// IP datagrams.
    Tun,
    /// Ethernet frames.
    Tap,
}

impl Mode {
    /// `"tun"` or `"tap"`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Tun => "tun",
            Self::Tap => "tap",
        }
    }

    /// `tx_queue_len` at first: `TUN_READQ_SIZE` for tun, what `ether_setup` sets for tap.
    pub(crate) fn tx_queue_length(self) -> usize {
        match self {
            Self::Tun => 500,
            Self::Tap => 1000,
        }
    }

    /// Its flag in TUNSETIFF.
    pub(crate) fn flag(self) -> IfFlags {
        match self {
            Self::Tun => IfFlags::TUN,
            Self::Tap => IfFlags::TAP,
        }
    }

    /// `max_mtu`.
    #[must_use]
    pub(crate) fn max_mtu(self) -> u32 {
        match self {
            Self::Tun => MAX_MTU,
            Self::Tap => MAX_MTU - 14,
        }
    }
}
