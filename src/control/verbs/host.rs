//! `host`: a small host as a tunnel's peer.

use std::sync::Arc;

use memtun_proto::{
    Failure,
    error::code,
    host::{Host, Hosted},
};

use super::{Verb, failure, when_they_exist};
use crate::{
    control::session::{Reply, Session},
    core::Address,
    peer::host::{self, Config, HostError},
};

impl Verb for Host {
    type Parsed = (Address, Config, u64);

    fn parse(self) -> Result<Self::Parsed, String> {
        let Self { tunnel, addresses, forwards, timeout_ms } = self;
        let addresses = addresses.iter().map(|address| address.as_str().parse());
        let forwards = forwards.iter().map(|forward| forward.as_str().parse());
        let config = Config {
            addresses: addresses.collect::<Result<_, _>>()?,
            forwards: forwards.collect::<Result<_, _>>()?,
        };
        Ok((tunnel.as_str().parse()?, config, timeout_ms))
    }

    fn perform(
        (tunnel, config, timeout_ms): Self::Parsed,
        session: &Arc<Session>,
        reply: Reply<Hosted>,
    ) {
        when_they_exist(session, vec![tunnel.clone()], timeout_ms, reply, move |hub| {
            let id = hub.view(|core| core.find(&tunnel)).map_err(failure)?;
            match host::start(hub, id, &config) {
                Ok(hwaddr) => {
                    Ok(Hosted { id: id.0, hwaddr: hwaddr.map(|address| address.to_string()) })
                }
                Err(HostError::Command(error)) => Err(failure(error)),
                Err(HostError::Config(error)) => Err(Failure::new(code::BAD_PARAMS, error)),
                Err(error @ HostError::System(_)) => Err(Failure::new(code::SYSTEM, error)),
            }
        });
    }
}
