//! `memtun delete`

use memtun_client::proto::delete::{Delete, Deleted};

use super::{Scene, VerbError};
use crate::core::Address;

/// Deletes a tunnel that clients have open, as 'ip link delete' deletes an interface. Blocked reads get EFAULT, later calls EBADFD,
/// poll POLLERR. 'memtun take' still gives what the client wrote.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// NAME, NAME@SCOPE or #ID, as 'memtun list' shows them.
    tunnel: Address,
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says.
    pub(super) fn run(self, scene: &mut Scene<'_>) -> Result<(), VerbError> {
        let Deleted {} = scene.connect()?.call(&Delete::new(self.tunnel.to_string()))?;
        Ok(())
    }
}
