//! `interface`: puts a kernel device beside a tunnel, takes it away, or lets datagrams pass between the two.

use std::sync::Arc;

use memtun_proto::{
    Failure,
    error::code,
    interface::{Done, Interface, Kind},
};

use super::{Verb, failure};
use crate::{
    control::session::{Reply, Session},
    core::{self, Address},
};

impl Verb for Interface {
    type Parsed = (Address, core::Interface);

    fn parse(self) -> Result<Self::Parsed, String> {
        let Self { tunnel, interface } = self;
        let interface = match interface {
            Kind::None => core::Interface::None,
            Kind::Shadow => core::Interface::Shadow,
            Kind::Bridge => core::Interface::Bridge,
        };
        Ok((tunnel.as_str().parse()?, interface))
    }

    fn perform((tunnel, interface): Self::Parsed, session: &Arc<Session>, reply: Reply<Done>) {
        let hub = session.hub();
        let tunnel = match hub.view(|core| core.find(&tunnel)) {
            Ok(tunnel) => tunnel,
            Err(error) => return reply.send(Err(failure(error))),
        };
        let Some(keeper) = hub.netdev_owner() else {
            return reply
                .send(Err(Failure::new(code::INTERFACE, "this daemon makes no interfaces")));
        };
        let switched = move |switched: Result<(), String>| {
            let result = switched.map(|()| Done {});
            reply.send(result.map_err(|error| Failure::new(code::INTERFACE, error)));
        };
        keeper.switch(tunnel, interface, Box::new(switched));
    }
}
