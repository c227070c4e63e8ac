//! `host`: a small host as a tunnel's peer.

use std::{io::Write, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{Method, usage_error, when_they_exist};
use crate::{
    client::{Client, ClientError},
    control::{
        session::{Reply, Session},
        wire::Failure,
    },
    core::Address,
    peer::host::{self, Cidr, Config, Forward, HostError},
};

/// Parameters on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// The tunnel.
    pub tunnel: Address,
    /// The host's addresses, as `10.0.0.1/24`.
    #[serde(with = "texts")]
    pub addresses: Vec<Cidr>,
    /// TCP ports of the host that lead to an address of the daemon's machine, as `8080:127.0.0.1:80`.
    #[serde(default, with = "texts")]
    pub forwards: Vec<Forward>,
    /// How long to wait until the tunnel exists, in milliseconds; 0 unless given.
    #[serde(default)]
    pub timeout_ms: u64,
}

/// What it gives.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hosted {
    /// The tunnel's id.
    pub id: u32,
    /// The host's Ethernet address, on a tap.
    pub hwaddr: Option<String>,
}

impl Method for Host {
    const NAME: &'static str = "host";
    type Result = Hosted;

    fn perform(self, session: &Arc<Session>, reply: Reply<Hosted>) {
        let Self { tunnel, addresses, forwards, timeout_ms } = self;
        let config = Config { addresses, forwards };
        when_they_exist(session, vec![tunnel.clone()], timeout_ms, reply, move |hub| {
            let id = hub.view(|core| core.find(&tunnel))?;
            match host::start(hub, id, &config) {
                Ok(hwaddr) => {
                    Ok(Hosted { id: id.0, hwaddr: hwaddr.map(|address| address.to_string()) })
                }
                Err(HostError::Command(error)) => Err(error.into()),
                Err(HostError::Config(error)) => Err(Failure::new("bad-params", error)),
                Err(error @ HostError::System(_)) => Err(Failure::new("system", error)),
            }
        });
    }
}

/// Lists of what is written as text.
mod texts {
    use super::{Deserialize, Deserializer, Error, FromStr, Serializer};

    pub(super) fn serialize<T: ToString, S: Serializer>(
        list: &[T],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, T: FromStr<Err = String>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<T>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
    }
}

/// Puts a small host at the far side of a tunnel, which answers the client without any network.
///
/// The host answers ARP, neighbour discovery and pings. On TCP and UDP it has the services echo (port 7) and discard (port 9). It stays
/// until the tunnel is gone, or until 'memtun part'. On a tap the command prints the host's Ethernet address.
#[derive(Debug, clap::Args)]
pub struct Args {
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
    pub fn check(&self) -> Result<(), clap::Error> {
        let config = Config { addresses: self.addr.clone(), forwards: self.forward.clone() };
        config.check().map_err(usage_error)
    }

    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says.
    pub fn run(self, client: &mut Client, out: &mut dyn Write) -> Result<(), ClientError> {
        let Self { tunnel, addr: addresses, forward: forwards, timeout } = self;
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let hosted = client.call(&Host { tunnel, addresses, forwards, timeout_ms })?;
        if let Some(hwaddr) = hosted.hwaddr {
            writeln!(out, "{hwaddr}")?;
        }
        Ok(())
    }
}
