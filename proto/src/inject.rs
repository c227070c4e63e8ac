//! `inject`: puts a datagram on its way to the client.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    Address, MacAddress, Method, Vnet, hex,
    method::{is_zero, milliseconds},
};

/// Parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(deny_unknown_fields)]
pub struct Inject {
    /// The tunnel.
    pub tunnel: Address,
    /// The bytes without PI and vnet header, in hex.
    #[serde(with = "hex")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub datagram: Bytes,
    /// The bytes are a whole Ethernet frame for a tap, and go untouched.
    #[serde(default)]
    pub frame: bool,
    /// Source of the Ethernet header that a tap's IP datagram gets; default: the tunnel's own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<MacAddress>,
    /// Its destination; default: broadcast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<MacAddress>,
    /// What is left to be done to the datagram; done before the client gets it, unless the client accepts it so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vnet: Option<Vnet>,
    /// How long to wait for room in the client's queue, in milliseconds; 0: not at all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeout_ms: u64,
}

impl Inject {
    /// A datagram for a tunnel.
    pub fn new(tunnel: impl Into<Address>, datagram: impl Into<Bytes>) -> Self {
        Self {
            tunnel: tunnel.into(),
            datagram: datagram.into(),
            frame: false,
            source: None,
            destination: None,
            vnet: None,
            timeout_ms: 0,
        }
    }

    /// Whether it is a whole Ethernet frame.
    #[must_use]
    pub fn frame(self, frame: bool) -> Self {
        Self { frame, ..self }
    }

    /// Source of the Ethernet header.
    #[must_use]
    pub fn source(self, source: impl Into<MacAddress>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    /// Destination of the Ethernet header.
    #[must_use]
    pub fn destination(self, destination: impl Into<MacAddress>) -> Self {
        Self { destination: Some(destination.into()), ..self }
    }

    /// What is left to be done to the datagram.
    #[must_use]
    pub fn vnet(self, vnet: Vnet) -> Self {
        Self { vnet: Some(vnet), ..self }
    }

    /// How long to wait for room in the client's queue.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout_ms: milliseconds(timeout), ..self }
    }
}

impl Method for Inject {
    const NAME: &'static str = "inject";
    type Result = Injected;

    fn longest_wait(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// What it gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct Injected {
    /// A blocked read got the datagram.
    pub read: bool,
    /// Else: how many datagrams wait in the client's queue, this one included.
    pub queued: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_is_left_out() {
        let line =
            r#"{"tunnel":"tap0","datagram":"45","frame":false,"source":"02:00:00:00:00:01"}"#;
        let inject: Inject = serde_json::from_str(line).unwrap();
        assert_eq!(inject, Inject::new("tap0", &b"\x45"[..]).source("02:00:00:00:00:01"));
        assert_eq!(serde_json::to_string(&inject).unwrap(), line);
    }
}
