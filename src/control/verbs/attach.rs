//! `attach`: a socket for the datagrams of one tunnel, the fast path for a harness in any language.

use std::sync::Arc;

use memtun_proto::{
    Failure,
    attach::{Attach, Attached},
    error::code,
};

use super::{Verb, failure};
use crate::{
    abi::virtio_net::VnetHeader,
    control::session::{Reply, Session},
    core::Address,
    peer::socket,
};

impl Verb for Attach {
    type Parsed = (Address, Option<usize>);

    fn parse(self) -> Result<Self::Parsed, String> {
        let Self { tunnel, vnet, vnet_size } = self;
        let size = match (vnet, vnet_size) {
            (false, None) => None,
            (false, Some(_)) => return Err("vnet_size needs vnet; say \"vnet\":true".to_owned()),
            (true, size) => Some(size.unwrap_or(VnetHeader::SIZE)),
        };
        if size.is_some_and(|size| ![VnetHeader::SIZE, VnetHeader::TUNNEL_SIZE].contains(&size)) {
            return Err("vnet_size is neither 10 nor 24".to_owned());
        }
        Ok((tunnel.as_str().parse()?, size))
    }

    fn perform((tunnel, vnet): Self::Parsed, session: &Arc<Session>, reply: Reply<Attached>) {
        let tunnel = match session.hub().view(|core| core.find(&tunnel)) {
            Ok(tunnel) => tunnel,
            Err(error) => return reply.send(Err(failure(error))),
        };
        match socket::attach(session.hub(), session.user(), tunnel, vnet) {
            Ok(descriptor) => reply.send_with(Attached { id: tunnel.0 }, descriptor),
            Err(socket::AttachError::Command(error)) => reply.send(Err(failure(error))),
            Err(error @ socket::AttachError::TooMany { .. }) => {
                reply.send(Err(Failure::new(code::TOO_MANY_SOCKETS, error)));
            }
            Err(error @ socket::AttachError::System(_)) => {
                reply.send(Err(Failure::new(code::SYSTEM, error)))
            }
        }
    }
}
