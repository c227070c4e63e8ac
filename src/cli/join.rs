//! `memtun join`

use memtun_client::proto::join::{Join, Joined};

use super::{Scene, VerbError, usage_error};
use crate::core::Address;

/// Joins two tunnels: the clients of each read what the clients of the other write.
///
/// The tunnels stay joined until one of them is gone, or until 'memtun part'.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
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
    pub(super) fn check(&self) -> Result<(), clap::Error> {
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
    pub(super) fn run(self, scene: &mut Scene<'_>) -> Result<(), VerbError> {
        let join = Join::new(self.tunnel.to_string(), self.peer.to_string());
        let Joined { .. } = scene.connect()?.call(&join.timeout(*self.timeout))?;
        Ok(())
    }
}
