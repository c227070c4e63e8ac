//! `interface`: puts a kernel link beside a tunnel, takes it away, or lets datagrams pass between the two.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Method;
use crate::{
    client::{Client, ClientError},
    control::{
        session::{Reply, Session},
        wire::Failure,
    },
    core::{self, Address},
};

/// Parameters on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// The tunnel.
    pub tunnel: Address,
    /// What it is to have.
    pub interface: Kind,
}

/// What stands beside a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// No network device. Programs that configure an interface find none.
    None,
    /// A network device that a program can configure. memtun counts what the kernel sends into it, and the client gets none of it.
    Shadow,
    /// A network device that passes datagrams between client and kernel. You may also inject datagrams, and take copies.
    Bridge,
}

impl From<Kind> for core::Interface {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::None => Self::None,
            Kind::Shadow => Self::Shadow,
            Kind::Bridge => Self::Bridge,
        }
    }
}

/// Nothing to say.
#[derive(Debug, Serialize, Deserialize)]
pub struct Done {}

impl Method for Interface {
    const NAME: &'static str = "interface";
    type Result = Done;

    fn perform(self, session: &Arc<Session>, reply: Reply<Done>) {
        let hub = session.hub();
        let tunnel = match hub.view(|core| core.find(&self.tunnel)) {
            Ok(tunnel) => tunnel,
            Err(error) => return reply.send(Err(error.into())),
        };
        let Some(keeper) = hub.netdev_owner() else {
            return reply.send(Err(Failure::new("interface", "this daemon makes no interfaces")));
        };
        let switched = move |switched: Result<(), String>| {
            let result = switched.map(|()| Done {});
            reply.send(result.map_err(|error| Failure::new("interface", error)));
        };
        keeper.switch(tunnel, self.interface.into(), Box::new(switched));
    }
}

/// Puts a network device of the kernel beside a tunnel, with the same name, or removes it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NAME, NAME@SCOPE or #ID, as 'memtun list' shows them.
    tunnel: Address,
    /// What stands beside the tunnel from now on.
    interface: Kind,
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says.
    pub fn run(self, client: &mut Client) -> Result<(), ClientError> {
        let call = Interface { tunnel: self.tunnel, interface: self.interface };
        client.call(&call).map(|Done {}| ())
    }
}
