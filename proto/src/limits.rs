//! `limits`: how much of everything there may be, and how much is in use.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Method;

/// Parameters: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(deny_unknown_fields)]
pub struct Limits {}

impl Method for Limits {
    const NAME: &'static str = "limits";
    type Result = LimitsView;
}

/// What it gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct LimitsView {
    /// What users share.
    pub shared: Vec<SharedView>,
    /// What a single tunnel, file or connection may have.
    pub single: Vec<SingleView>,
}

/// A resource that users share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct SharedView {
    /// `memory` (in bytes), `files`, `tunnels`, `parked-reads`, `namespaces`, `descriptors`, `connections` or `waits`.
    pub resource: String,
    /// How much is in use.
    pub used: usize,
    /// How much there may be.
    pub limit: usize,
    /// How much one user may have.
    pub user_limit: usize,
    /// How much each user has in use, by uid; those who have nothing are left out.
    pub users: BTreeMap<u32, usize>,
}

/// A limit that is not shared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct SingleView {
    /// What is limited.
    pub resource: String,
    /// Of what: `tunnel`, `file`, `connection`, `user` or `daemon`.
    pub of: String,
    /// How much there may be.
    pub limit: usize,
}
