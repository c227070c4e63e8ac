//! `drop`: removes datagrams that a `take` with `keep` has given.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Method;
use crate::{
    control::session::{Reply, Session},
    core::input,
};

/// Parameters on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DropKept {
    /// The numbers that `take` gave on this connection. Others are passed over.
    pub numbers: Vec<u64>,
}

/// What it gives.
#[derive(Debug, Serialize, Deserialize)]
pub struct Dropped {
    /// How many were still kept.
    pub dropped: usize,
}

impl Method for DropKept {
    const NAME: &'static str = "drop";
    type Result = Dropped;
    const KNOWS_CLOSES: bool = false;

    fn perform(self, session: &Arc<Session>, reply: Reply<Dropped>) {
        let keeper = session.keeper();
        let dropped = session.hub().handle(input::DropKept { keeper, numbers: self.numbers });
        reply.send(Ok(Dropped { dropped }));
    }
}
