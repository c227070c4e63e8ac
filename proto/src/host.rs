//! `host`: a small host as a tunnel's peer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Address, Cidr, Forward, Method, method::milliseconds};

/// Parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// The tunnel.
    pub tunnel: Address,
    /// The host's addresses, as `10.0.0.1/24`.
    pub addresses: Vec<Cidr>,
    /// TCP ports of the host that lead to an address of the daemon's machine, as `8080:127.0.0.1:80`.
    #[serde(default)]
    pub forwards: Vec<Forward>,
    /// How long to wait until the tunnel exists, in milliseconds; 0 unless given.
    #[serde(default)]
    pub timeout_ms: u64,
}

impl Host {
    /// A host with these addresses, on a tunnel that exists.
    pub fn new<A: Into<Cidr>>(
        tunnel: impl Into<Address>,
        addresses: impl IntoIterator<Item = A>,
    ) -> Self {
        let addresses = addresses.into_iter().map(Into::into).collect();
        Self { tunnel: tunnel.into(), addresses, forwards: Vec::new(), timeout_ms: 0 }
    }

    /// TCP ports that lead elsewhere.
    #[must_use]
    pub fn forwards<F: Into<Forward>>(self, forwards: impl IntoIterator<Item = F>) -> Self {
        Self { forwards: forwards.into_iter().map(Into::into).collect(), ..self }
    }

    /// How long to wait until the tunnel exists.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout_ms: milliseconds(timeout), ..self }
    }
}

impl Method for Host {
    const NAME: &'static str = "host";
    type Result = Hosted;

    fn longest_wait(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// What it gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct Hosted {
    /// The tunnel's id.
    pub id: u32,
    /// The host's Ethernet address, on a tap.
    pub hwaddr: Option<String>,
}
