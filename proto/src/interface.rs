//! `interface`: puts a kernel device beside a tunnel, takes it away, or lets datagrams pass between the two.

use serde::{Deserialize, Serialize};

use crate::{Address, Method};

/// Parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// The tunnel.
    pub tunnel: Address,
    /// What it is to have.
    pub interface: Kind,
}

/// What stands beside a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// No device: programs that configure an interface find none.
    None,
    /// A device of the tunnel's name, so that they succeed; what the kernel sends into it is counted, and nobody's.
    Shadow,
    /// The same, and datagrams pass between client and kernel; the harness may inject too, and take a copy.
    Bridge,
}

impl Interface {
    /// Another interface for a tunnel.
    pub fn new(tunnel: impl Into<Address>, interface: Kind) -> Self {
        Self { tunnel: tunnel.into(), interface }
    }
}

impl Method for Interface {
    const NAME: &'static str = "interface";
    type Result = Done;
}

/// Nothing to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct Done {}
