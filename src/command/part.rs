//! `part`: takes a tunnel's peer away.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Method, set::Done};
use crate::{
    client::{Client, ClientError},
    control::session::{Reply, Session},
    core::Address,
};

/// Parameters on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The tunnel; of two that are joined, either.
    pub tunnel: Address,
}

impl Method for Part {
    const NAME: &'static str = "part";
    type Result = Done;

    fn perform(self, session: &Arc<Session>, reply: Reply<Done>) {
        let parted = session.hub().part(self.tunnel);
        reply.send(parted.map(|()| Done {}).map_err(Into::into));
    }
}

/// Removes a tunnel's peer: parts it from the tunnel it is joined to, removes its host, or closes its attached socket.
///
/// From then on, 'memtun take' gets what clients write.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NAME, NAME@SCOPE or #ID, as 'memtun list' shows them. Of two joined tunnels, name either.
    tunnel: Address,
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says.
    pub fn run(self, client: &mut Client) -> Result<(), ClientError> {
        client.call(&Part { tunnel: self.tunnel }).map(|Done {}| ())
    }
}
