//! `take`: removes what the client wrote.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    Address, DEFAULT_TIMEOUT_MS, Method, Vnet, hex,
    method::{default_timeout_ms, milliseconds},
};

/// Datagrams that one call can take.
pub const MAX_COUNT: usize = 64;

/// Parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(deny_unknown_fields)]
pub struct Take {
    /// The tunnel.
    pub tunnel: Address,
    /// How many datagrams, 1 to 64; all or none are taken.
    #[serde(default = "one")]
    pub count: usize,
    /// How long to wait for them, in milliseconds.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// What vnet headers ask for is done first: checksums are filled in, and a datagram may become several. One that cannot
    /// be done comes as it was written.
    #[serde(default)]
    pub segment: bool,
    /// The datagrams stay, reserved for this connection, until it drops them or ends.
    #[serde(default)]
    pub keep: bool,
}

fn one() -> usize {
    1
}

impl Take {
    /// One datagram of a tunnel, which is waited for as long as is usual.
    pub fn new(tunnel: impl Into<Address>) -> Self {
        Self {
            tunnel: tunnel.into(),
            count: 1,
            timeout_ms: DEFAULT_TIMEOUT_MS,
            segment: false,
            keep: false,
        }
    }

    /// How many datagrams.
    #[must_use]
    pub fn count(self, count: usize) -> Self {
        Self { count, ..self }
    }

    /// How long to wait for them.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout_ms: milliseconds(timeout), ..self }
    }

    /// Whether what vnet headers ask for is done first.
    #[must_use]
    pub fn segment(self, segment: bool) -> Self {
        Self { segment, ..self }
    }

    /// Whether the datagrams stay until they are dropped.
    #[must_use]
    pub fn keep(self, keep: bool) -> Self {
        Self { keep, ..self }
    }
}

impl Method for Take {
    const NAME: &'static str = "take";
    type Result = Taken;

    fn longest_wait(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// What it gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct Taken {
    /// `tun` or `tap`: what the datagrams are.
    pub mode: String,
    /// The datagrams, oldest first; or their segments.
    pub datagrams: Vec<TakenDatagram>,
}

/// One datagram that a client wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct TakenDatagram {
    /// By which it is dropped, if it is kept. All segments of one datagram have its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// The bytes without headers, in hex.
    #[serde(with = "hex")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub datagram: Bytes,
    /// The protocol that the client's PI header named, if it wrote one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u16>,
    /// The client's vnet header, if it wrote one, and what it asks for has not been done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vnet: Option<Vnet>,
}
