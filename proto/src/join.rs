//! `join`: two tunnels as each other's peer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Address, Method, method::milliseconds};

/// Parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// One tunnel.
    pub tunnel: Address,
    /// The other.
    pub peer: Address,
    /// How long to wait until both exist, in milliseconds; 0 unless given.
    #[serde(default)]
    pub timeout_ms: u64,
}

impl Join {
    /// Two tunnels that exist.
    pub fn new(tunnel: impl Into<Address>, peer: impl Into<Address>) -> Self {
        Self { tunnel: tunnel.into(), peer: peer.into(), timeout_ms: 0 }
    }

    /// How long to wait until both exist.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout_ms: milliseconds(timeout), ..self }
    }
}

impl Method for Join {
    const NAME: &'static str = "join";
    type Result = Joined;

    fn longest_wait(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// What it gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct Joined {
    /// The one tunnel's id.
    pub id: u32,
    /// The other's.
    pub peer: u32,
}
