//! `memtun part`

use memtun_client::{
    Client,
    proto::part::{Part, Parted},
};

use super::VerbError;
use crate::core::Address;

/// Removes a tunnel's peer: parts it from the tunnel it is joined to, removes its host, or closes its attached socket.
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
    pub(super) fn run(self, client: &mut Client) -> Result<(), VerbError> {
        let Parted {} = client.call(&Part::new(self.tunnel.to_string()))?;
        Ok(())
    }
}
