//! `memtun host`

use memtun_client::proto::host::Host;

use super::{Scene, VerbError, usage_error};
use crate::{
    core::Address,
    peer::host::{Cidr, Config, Forward},
};

/// Puts a small host at the far side of a tunnel, which answers the client without any network.
///
/// The host answers ARP, neighbour discovery and pings. On TCP and UDP it has the services echo (port 7) and discard (port 9). It stays
/// until the tunnel is gone, or until 'memtun part'. On a tap the command prints the host's Ethernet address.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// NAME, NAME@SCOPE or #ID, as 'memtun list' shows them.
    tunnel: Address,
    /// An address of the host, with its network's prefix. Repeat the option for more addresses.
    #[arg(long, value_name = "ADDRESS/PREFIX", required = true)]
    addr: Vec<Cidr>,
    /// A TCP port of the host that leads to an address in the daemon's network. Repeat the option for more ports.
    #[arg(long, value_name = "PORT:ADDRESS:PORT")]
    forward: Vec<Forward>,
    /// How long to wait until the tunnel exists, such as 500ms or 5s.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = super::duration, allow_hyphen_values = true)]
    timeout: humantime::Duration,
}

impl Args {
    /// Whether there can be such a host.
    ///
    /// # Errors
    ///
    /// A usage error: too much of something, or twice the same.
    pub(super) fn check(&self) -> Result<(), clap::Error> {
        let config = Config { addresses: self.addr.clone(), forwards: self.forward.clone() };
        config.check().map_err(usage_error)
    }

    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says.
    pub(super) fn run(self, scene: &mut Scene<'_>) -> Result<(), VerbError> {
        let addresses = self.addr.iter().map(ToString::to_string);
        let forwards = self.forward.iter().map(ToString::to_string);
        let host = Host::new(self.tunnel.to_string(), addresses).forwards(forwards);
        let hosted = scene.connect()?.call(&host.timeout(*self.timeout))?;
        if let Some(hwaddr) = hosted.hwaddr {
            writeln!(scene.out, "{hwaddr}")?;
        }
        Ok(())
    }
}
