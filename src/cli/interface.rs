//! The options of `serve` and `run` for links beside tunnels.

use crate::{
    command::interface::Kind,
    peer::{interface::Options, link::TunNode},
};

/// Links beside tunnels.
#[derive(Debug, clap::Args)]
#[group(id = "links")]
pub(super) struct Args {
    /// Put a kernel link of the same name beside each tunnel, in the network namespace of its client [default: none; shadow for
    /// 'run --net'].
    #[arg(long, value_enum, value_name = "KIND")]
    interface: Option<Kind>,
    /// Go on without a link where none can be made; else TUNSETIFF fails then.
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
