//! `delete`: takes a tunnel away from its clients, as `ip link delete` does an interface.

use std::sync::Arc;

use memtun_proto::delete::{Delete, Deleted};

use super::{Verb, failure};
use crate::{
    control::session::{Reply, Session},
    core::input,
};

impl Verb for Delete {
    type Parsed = input::Delete;

    fn parse(self) -> Result<Self::Parsed, String> {
        let Self { tunnel } = self;
        Ok(input::Delete { tunnel: tunnel.as_str().parse()? })
    }

    fn perform(delete: Self::Parsed, session: &Arc<Session>, reply: Reply<Deleted>) {
        let result = session.hub().handle(delete);
        reply.send(result.map(|()| Deleted {}).map_err(failure));
    }
}
