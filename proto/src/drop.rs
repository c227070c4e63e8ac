//! `drop`: removes datagrams that a `take` with `keep` has given.

use serde::{Deserialize, Serialize};

use crate::Method;

/// Parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(deny_unknown_fields)]
pub struct DropKept {
    /// The numbers that `take` gave on this connection. Others are passed over.
    pub numbers: Vec<u64>,
}

impl DropKept {
    /// What is dropped, by its numbers.
    pub fn new(numbers: impl Into<Vec<u64>>) -> Self {
        Self { numbers: numbers.into() }
    }
}

impl Method for DropKept {
    const NAME: &'static str = "drop";
    type Result = Dropped;
}

/// What it gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct Dropped {
    /// How many were still kept.
    pub dropped: usize,
}
