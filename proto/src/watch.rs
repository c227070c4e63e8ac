//! `watch`: tells what happens, as it happens.

use serde::{Deserialize, Serialize};

use crate::{Address, Method};

/// Parameters. [Events](crate::event) follow the result, until the connection ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Only what happens on this tunnel, which must exist; else everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Address>,
}

impl Watch {
    /// Everything that happens.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// What happens on one tunnel.
    pub fn new(tunnel: impl Into<Address>) -> Self {
        Self { tunnel: Some(tunnel.into()) }
    }
}

impl Method for Watch {
    const NAME: &'static str = "watch";
    type Result = Watching;
}

/// Nothing to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct Watching {}
