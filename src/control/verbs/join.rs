//! `join`: two tunnels as each other's peer.

use std::sync::Arc;

use memtun_proto::join::{Join, Joined};

use super::{Verb, failure, when_they_exist};
use crate::{
    control::session::{Reply, Session},
    core::{Address, input},
};

impl Verb for Join {
    type Parsed = (Address, Address, u64);

    fn parse(self) -> Result<Self::Parsed, String> {
        let Self { tunnel, peer, timeout_ms } = self;
        Ok((tunnel.as_str().parse()?, peer.as_str().parse()?, timeout_ms))
    }

    fn perform(
        (tunnel, peer, timeout_ms): Self::Parsed,
        session: &Arc<Session>,
        reply: Reply<Joined>,
    ) {
        let both = vec![tunnel.clone(), peer.clone()];
        when_they_exist(session, both, timeout_ms, reply, move |hub| {
            let joined = hub.handle(input::Join { left: tunnel, right: peer });
            joined.map(|(id, other)| Joined { id: id.0, peer: other.0 }).map_err(failure)
        });
    }
}
