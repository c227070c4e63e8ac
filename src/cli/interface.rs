//! The options of `serve` and `run` for the kernel's network devices beside tunnels.

use crate::{
    command::interface::Kind,
    netdev::{Options, TunNode},
};

/// Network devices of the kernel beside tunnels.
#[derive(Debug, clap::Args)]
#[group(id = "links")]
pub(super) struct Args {
    /// Put a network device of the kernel beside each tunnel [default: none; shadow for 'run --net']. It has the tunnel's name, and is
    /// in the network namespace of the tunnel's client.
    #[arg(long, value_enum, value_name = "KIND")]
    interface: Option<Kind>,
    /// Make the tunnel even if its network device cannot be made. Without this option TUNSETIFF fails.
    #[arg(long)]
    interface_optional: bool,
}

impl Args {
    /// What the daemon is to do. To be called before anything covers the kernel's tun device.
    pub(super) fn options(&self, default: Kind) -> Options {
        let policy = self.interface.unwrap_or(default).into();
        Options { node: TunNode::find(), policy, optional: self.interface_optional }
    }
}
