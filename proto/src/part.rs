//! `part`: takes a tunnel's peer away.

use serde::{Deserialize, Serialize};

use crate::{Address, Method};

/// Parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The tunnel; of two that are joined, either.
    pub tunnel: Address,
}

impl Part {
    /// The end of a tunnel's peer.
    pub fn new(tunnel: impl Into<Address>) -> Self {
        Self { tunnel: tunnel.into() }
    }
}

impl Method for Part {
    const NAME: &'static str = "part";
    type Result = Parted;
}

/// Nothing to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct Parted {}
