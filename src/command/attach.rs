//! `attach`: a socket for the datagrams of one tunnel, the fast path for a harness in any language.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Method;
use crate::{
    control::{
        session::{Reply, Session},
        wire::Failure,
    },
    core::Address,
    peer::socket,
};

/// Parameters on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The tunnel.
    pub tunnel: Address,
    /// A vnet header of 10 bytes stands in front of each message, both ways, and what it asks for is left to whoever gets it.
    #[serde(default)]
    pub vnet: bool,
}

/// What it gives; a `SOCK_SEQPACKET` descriptor comes with it (`SCM_RIGHTS`). One message is one datagram, each way.
#[derive(Debug, Serialize, Deserialize)]
pub struct Attached {
    /// The tunnel's id.
    pub id: u32,
}

impl Method for Attach {
    const NAME: &'static str = "attach";
    type Result = Attached;

    fn perform(self, session: &Arc<Session>, reply: Reply<Attached>) {
        let tunnel = match session.hub().view(|core| core.find(&self.tunnel)) {
            Ok(tunnel) => tunnel,
            Err(error) => return reply.send(Err(error.into())),
        };
        match socket::attach(session.hub(), session.user(), tunnel, self.vnet) {
            Ok(descriptor) => reply.send_with(Attached { id: tunnel.0 }, descriptor),
            Err(socket::AttachError::Command(error)) => reply.send(Err(error.into())),
            Err(error @ socket::AttachError::TooMany { .. }) => {
                reply.send(Err(Failure::new("too-many-sockets", error)));
            }
            Err(error @ socket::AttachError::System(_)) => {
                reply.send(Err(Failure::new("system", error)))
            }
        }
    }
}
