//! `part`: takes a tunnel's peer away.

use std::sync::Arc;

use memtun_proto::part::{Part, Parted};

use super::{Verb, failure};
use crate::{
    control::session::{Reply, Session},
    core::Address,
};

impl Verb for Part {
    type Parsed = Address;

    fn parse(self) -> Result<Self::Parsed, String> {
        let Self { tunnel } = self;
        tunnel.as_str().parse()
    }

    fn perform(tunnel: Address, session: &Arc<Session>, reply: Reply<Parted>) {
        let parted = session.hub().part(tunnel);
        reply.send(parted.map(|()| Parted {}).map_err(failure));
    }
}
