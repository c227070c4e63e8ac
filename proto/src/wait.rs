//! `wait`: until a tunnel is as it should be, instead of sleeping and hoping.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Address, DEFAULT_TIMEOUT_MS, Method,
    method::{default_timeout_ms, milliseconds},
};

/// Parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// The tunnel; it need not exist yet.
    pub tunnel: Address,
    /// What to wait for.
    pub until: Until,
    /// How long, in milliseconds.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
}

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(rename_all = "lowercase")]
pub enum Until {
    /// A client has attached to the tunnel (TUNSETIFF).
    Attached,
    /// No client is attached to it, or it is gone.
    Detached,
    /// A client is blocked in a read on it.
    Reading,
    /// A client has written a datagram that nobody has taken.
    Written,
}

impl Wait {
    /// A wait as long as is usual.
    pub fn new(tunnel: impl Into<Address>, until: Until) -> Self {
        Self { tunnel: tunnel.into(), until, timeout_ms: DEFAULT_TIMEOUT_MS }
    }

    /// How long.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout_ms: milliseconds(timeout), ..self }
    }
}

impl Method for Wait {
    const NAME: &'static str = "wait";
    type Result = Met;

    fn longest_wait(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// What it gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct Met {
    /// The tunnel's id; null if it is gone.
    pub id: Option<u32>,
    /// Its name.
    pub name: Option<String>,
}
