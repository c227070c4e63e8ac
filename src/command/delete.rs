//! `delete`: takes a tunnel away from its clients, as `ip link delete` does an interface.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Method;
use crate::{
    client::{Client, ClientError},
    control::session::{Reply, Session},
    core::{Address, input},
};

/// Parameters on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    /// The tunnel.
    pub tunnel: Address,
}

/// Nothing to say.
#[derive(Debug, Serialize, Deserialize)]
pub struct Deleted {}

impl Method for Delete {
    const NAME: &'static str = "delete";
    type Result = Deleted;

    fn perform(self, session: &Arc<Session>, reply: Reply<Deleted>) {
        let result = session.hub().handle(input::Delete { tunnel: self.tunnel });
        reply.send(result.map(|()| Deleted {}).map_err(Into::into));
    }
}

/// Deletes a tunnel that clients have open, as 'ip link delete' deletes an interface. Blocked reads get EFAULT, later calls EBADFD,
/// poll POLLERR. 'memtun take' still gives what the client wrote.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NAME, NAME@SCOPE or #ID, as 'memtun list' shows them.
    tunnel: Address,
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says.
    pub fn run(self, client: &mut Client) -> Result<(), ClientError> {
        client.call(&Delete { tunnel: self.tunnel }).map(|Deleted {}| ())
    }
}
