//! `attach`: a socket for the datagrams of one tunnel, the fast path for a harness in any language.

use serde::{Deserialize, Serialize};

use crate::{Address, Method};

/// Parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The tunnel.
    pub tunnel: Address,
    /// A vnet header stands in front of each message, both ways, and what it asks for is left to whoever gets it.
    #[serde(default)]
    pub vnet: bool,
    /// The length of that header: 10 bytes, or 24 with the fields of UDP tunnels. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vnet_size: Option<usize>,
}

impl Attach {
    /// A socket for a tunnel, without vnet headers.
    pub fn new(tunnel: impl Into<Address>) -> Self {
        Self { tunnel: tunnel.into(), vnet: false, vnet_size: None }
    }

    /// Whether messages have vnet headers.
    #[must_use]
    pub fn vnet(self, vnet: bool) -> Self {
        Self { vnet, ..self }
    }

    /// The length of vnet headers: 10 or 24 bytes.
    #[must_use]
    pub fn vnet_size(self, size: usize) -> Self {
        Self { vnet_size: Some(size), ..self }
    }
}

impl Method for Attach {
    const NAME: &'static str = "attach";
    type Result = Attached;
}

/// What it gives; a `SOCK_SEQPACKET` descriptor comes with it (`SCM_RIGHTS`). One message is one datagram, each way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct Attached {
    /// The tunnel's id.
    pub id: u32,
}
