//! `join`: two tunnels as each other's peer.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Method, usage_error, when_they_exist};
use crate::{
    client::{Client, ClientError},
    control::session::{Reply, Session},
    core::{Address, input},
};

/// Parameters on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// One tunnel.
    pub tunnel: Address,
    /// The other.
    pub peer: Address,
    /// How long to wait until both exist, in milliseconds; 0 unless given.
    #[serde(default)]
    pub timeout_ms: u64,
}

/// What it gives.
#[derive(Debug, Serialize, Deserialize)]
pub struct Joined {
    /// The one tunnel's id.
    pub id: u32,
    /// The other's.
    pub peer: u32,
}

impl Method for Join {
    const NAME: &'static str = "join";
    type Result = Joined;

    fn perform(self, session: &Arc<Session>, reply: Reply<Joined>) {
        let Self { tunnel, peer, timeout_ms } = self;
        let both = vec![tunnel.clone(), peer.clone()];
        when_they_exist(session, both, timeout_ms, reply, move |hub| {
            let joined = hub.handle(input::Join { left: tunnel.clone(), right: peer.clone() });
            Ok(joined.map(|(id, other)| Joined { id: id.0, peer: other.0 })?)
        });
    }
}

/// Joins two tunnels: the clients of each read what the clients of the other write.
///
/// The tunnels stay joined until one of them is gone, or until 'memtun part'.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NAME, NAME@SCOPE or #ID, as 'memtun list' shows them.
    tunnel: Address,
    /// The other tunnel, of the same mode.
    peer: Address,
    /// How long to wait until both tunnels exist, such as 500ms or 5s.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = super::duration, allow_hyphen_values = true)]
    timeout: humantime::Duration,
}

impl Args {
    /// Whether there are two of them, as far as can be seen.
    ///
    /// # Errors
    ///
    /// A usage error.
    pub fn check(&self) -> Result<(), clap::Error> {
        if self.tunnel == self.peer {
            return Err(usage_error("a tunnel cannot be joined to itself; name two"));
        }
        Ok(())
    }

    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says.
    pub fn run(self, client: &mut Client) -> Result<(), ClientError> {
        let timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        client
            .call(&Join { tunnel: self.tunnel, peer: self.peer, timeout_ms })
            .map(|Joined { .. }| ())
    }
}
