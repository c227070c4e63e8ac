//! `memtun interface`, and the options of `serve` and `run` for the kernel's network devices beside tunnels.

use memtun_client::proto::interface::{self, Done, Interface};

use super::{Scene, VerbError, usage_error};
use crate::{
    core::{self, Address},
    netdev::{Options, TunNode},
};

/// Puts a network device of the kernel beside a tunnel, with the same name, or removes it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// NAME, NAME@SCOPE or #ID, as 'memtun list' shows them.
    tunnel: Address,
    /// The network device that the tunnel is to have.
    interface: Kind,
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says.
    pub(super) fn run(self, scene: &mut Scene<'_>) -> Result<(), VerbError> {
        let call = Interface::new(self.tunnel.to_string(), self.interface.into());
        let Done {} = scene.connect()?.call(&call)?;
        Ok(())
    }
}

/// What stands beside a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// No network device. Programs that configure an interface find none.
    None,
    /// A network device that a program can configure. memtun counts what the kernel sends into it, and the client gets none of it.
    Shadow,
    /// A network device that passes datagrams between client and kernel. You may also inject datagrams, and take copies.
    Bridge,
}

impl From<Kind> for core::Interface {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::None => Self::None,
            Kind::Shadow => Self::Shadow,
            Kind::Bridge => Self::Bridge,
        }
    }
}

impl From<Kind> for interface::Kind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::None => Self::None,
            Kind::Shadow => Self::Shadow,
            Kind::Bridge => Self::Bridge,
        }
    }
}

/// Network devices of the kernel beside tunnels.
#[derive(Debug, clap::Args)]
#[group(id = "links")]
pub(super) struct Devices {
    /// Put a network device of the kernel beside each tunnel [default: none; shadow for 'run --net']. It has the tunnel's name, and is
    /// in the network namespace of the tunnel's client.
    #[arg(long, value_enum, value_name = "KIND")]
    interface: Option<Kind>,
    /// Make the tunnel even if its network device cannot be made. Without this option TUNSETIFF fails.
    #[arg(long)]
    interface_optional: bool,
}

impl Devices {
    /// What stands beside tunnels.
    pub(super) fn kind(&self, default: Kind) -> Kind {
        self.interface.unwrap_or(default)
    }

    /// Whether the options have an effect together.
    ///
    /// # Errors
    ///
    /// A usage error.
    pub(super) fn check(&self, default: Kind) -> Result<(), clap::Error> {
        if self.interface_optional && self.kind(default) == Kind::None {
            return Err(usage_error(
                "--interface-optional needs a network device; give --interface shadow or bridge",
            ));
        }
        Ok(())
    }

    /// What the daemon is to do. To be called before anything covers the kernel's tun device.
    pub(super) fn options(&self, default: Kind) -> Options {
        let policy = self.kind(default).into();
        Options { node: TunNode::find(), policy, optional: self.interface_optional }
    }
}
