//! `set`: changes a tunnel from outside.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Method;
use crate::{
    client::{Client, ClientError},
    control::session::{Reply, Session},
    core::Address,
};

/// Parameters on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Set {
    /// The tunnel.
    pub tunnel: Address,
    /// Up or down.
    pub link: Link,
}

/// Whether clients can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// Writes succeed.
    Up,
    /// Writes get EIO, and poll gives no POLLOUT.
    Down,
}

/// Nothing to say.
#[derive(Debug, Serialize, Deserialize)]
pub struct Done {}

impl Method for Set {
    const NAME: &'static str = "set";
    type Result = Done;

    fn perform(self, session: &Arc<Session>, reply: Reply<Done>) {
        let result = session.hub().with(|core| {
            let tunnel = core.find(&self.tunnel)?;
            core.set_link(tunnel, self.link == Link::Up)
        });
        reply.send(result.map(|()| Done {}).map_err(Into::into));
    }
}

/// Brings a tunnel up or down.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NAME, NAME@SCOPE or #ID, as 'memtun list' shows them.
    tunnel: Address,
    /// Down: writes get EIO, poll gives no POLLOUT; what is queued can still be read.
    link: Link,
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says.
    pub fn run(self, client: &mut Client) -> Result<(), ClientError> {
        client.call(&Set { tunnel: self.tunnel, link: self.link }).map(|Done {}| ())
    }
}
