//! `memtun part`

use memtun_client::proto::part::{Part, Parted};

use super::{Scene, VerbError};
use crate::core::Address;

/// Removes a tunnel's peer: separates two joined tunnels, removes a host, or closes an attached socket.
///
/// From then on, 'memtun take' gets what clients write.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// NAME, NAME@SCOPE or #ID, as 'memtun list' shows them. Of two joined tunnels, name either.
    tunnel: Address,
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says.
    pub(super) fn run(self, scene: &mut Scene<'_>) -> Result<(), VerbError> {
        let Parted {} = scene.connect()?.call(&Part::new(self.tunnel.to_string()))?;
        Ok(())
    }
}
