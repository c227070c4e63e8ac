//! `delete`: takes a tunnel away from its clients, as `ip link delete` does an interface.

use serde::{Deserialize, Serialize};

use crate::{Address, Method};

/// Parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    /// The tunnel.
    pub tunnel: Address,
}

impl Delete {
    /// The end of a tunnel.
    pub fn new(tunnel: impl Into<Address>) -> Self {
        Self { tunnel: tunnel.into() }
    }
}

impl Method for Delete {
    const NAME: &'static str = "delete";
    type Result = Deleted;
}

/// Nothing to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct Deleted {}
