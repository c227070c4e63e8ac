//! `take`: removes what the client wrote.

use std::{
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Method, default_timeout_ms, timed_out};
use crate::{
    abi::virtio_net::VnetHeader,
    client::{Client, ClientError},
    control::{
        session::{Reply, Session},
        wire::{Failure, hex_bytes},
    },
    core::{Address, Answer, Condition, Datagram, Mode},
    render,
};

/// Datagrams that one call can take.
const MAX_COUNT: usize = 64;

/// Parameters on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Take {
    /// The tunnel.
    pub tunnel: Address,
    /// How many datagrams; all or none are taken.
    #[serde(default = "one")]
    pub count: usize,
    /// How long to wait for them, in milliseconds.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
}

fn one() -> usize {
    1
}

/// What it gives.
#[derive(Debug, Serialize, Deserialize)]
pub struct Taken {
    /// `tun` or `tap`: what the datagrams are.
    pub mode: String,
    /// The datagrams, oldest first.
    pub datagrams: Vec<TakenDatagram>,
}

/// One datagram that a client wrote.
#[derive(Debug, Serialize, Deserialize)]
pub struct TakenDatagram {
    /// The bytes without headers, in hex.
    #[serde(with = "hex_bytes")]
    pub datagram: Bytes,
    /// The protocol that the client's PI header named, if it wrote one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u16>,
    /// The client's vnet header, if it wrote one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vnet: Option<Vnet>,
}

/// The fields of a vnet header, named as in `struct virtio_net_hdr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the kernel's names, described at VnetHeader")]
pub struct Vnet {
    pub flags: u8,
    pub gso_type: u8,
    pub hdr_len: u16,
    pub gso_size: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
}

impl From<VnetHeader> for Vnet {
    fn from(header: VnetHeader) -> Self {
        Self {
            flags: header.flags,
            gso_type: header.gso_type,
            hdr_len: header.hdr_len.get(),
            gso_size: header.gso_size.get(),
            csum_start: header.csum_start.get(),
            csum_offset: header.csum_offset.get(),
        }
    }
}

impl From<Datagram> for TakenDatagram {
    fn from(datagram: Datagram) -> Self {
        Self {
            datagram: datagram.payload,
            protocol: datagram.protocol,
            vnet: datagram.vnet.map(Vnet::from),
        }
    }
}

impl Method for Take {
    const NAME: &'static str = "take";
    type Result = Taken;

    fn perform(self, session: &Arc<Session>, reply: Reply<Taken>) {
        let Self { tunnel: address, count, timeout_ms } = self;
        if !(1..=MAX_COUNT).contains(&count) {
            let message = format!("count is {count}; ask for 1 to {MAX_COUNT} datagrams at a time");
            return reply.send(Err(Failure::new("bad-count", message)));
        }
        let found = session.hub().with(|core| {
            core.find(&address)
                .map(|id| (id, core.tunnel(id).map_or(Mode::Tun, |tunnel| tunnel.mode())))
        });
        let (id, mode) = match found {
            Ok(found) => found,
            Err(error) => return reply.send(Err(Failure::from(error))),
        };
        let timeout = Duration::from_millis(timeout_ms);
        session.wait(Condition::Take(id, count), timeout, reply, move |answer| match answer {
            Answer::Taken(datagrams) => {
                let datagrams = datagrams.into_iter().map(TakenDatagram::from).collect();
                Ok(Taken { mode: mode.word().to_owned(), datagrams })
            }
            Answer::TimedOut(available) => {
                let what =
                    format!("tunnel {address}: the client wrote {available} of {count} datagrams");
                Err(timed_out(what, timeout_ms))
            }
            Answer::Met(_) | Answer::Gone => Err(Failure::new(
                "gone",
                format_args!("tunnel {address} is gone and has no more datagrams to take"),
            )),
        });
    }
}

/// Prints datagrams that the client wrote, oldest first, and removes them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NAME, NAME@SCOPE or #ID, as 'memtun list' shows them.
    tunnel: Address,
    /// How long to wait for all of them, such as 500ms or 2s; 0 takes only what is there.
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    timeout: humantime::Duration,
    /// How many datagrams.
    #[arg(short = 'n', long, default_value_t = 1)]
    count: u64,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Format {
    /// Print the bytes in hex, a datagram a line.
    #[arg(long)]
    hex: bool,
    /// Print a JSON object a line.
    #[arg(long)]
    json: bool,
    /// Print the bytes as they are, with nothing between datagrams.
    #[arg(long)]
    raw: bool,
}

impl Args {
    /// Runs it: each datagram is printed when it comes.
    ///
    /// # Errors
    ///
    /// What the daemon says; a timeout before the last datagram is one of it.
    #[expect(clippy::disallowed_methods, reason = "one deadline for several calls")]
    pub fn run(self, client: &mut Client, out: &mut dyn Write) -> Result<(), ClientError> {
        let start = Instant::now();
        for number in 0..self.count {
            // A message about the first names the time that was asked for.
            let passed = if number == 0 { Duration::ZERO } else { start.elapsed() };
            let rest = self.timeout.saturating_sub(passed);
            let timeout_ms = u64::try_from(rest.as_millis()).unwrap_or(u64::MAX);
            let Taken { mode, datagrams } =
                client.call(&Take { tunnel: self.tunnel.clone(), count: 1, timeout_ms })?;
            for datagram in datagrams {
                self.format.print(&mode, &datagram, out)?;
            }
            out.flush()?;
        }
        Ok(())
    }
}

impl Format {
    fn print(
        &self,
        mode: &str,
        datagram: &TakenDatagram,
        out: &mut dyn Write,
    ) -> std::io::Result<()> {
        if self.raw {
            out.write_all(&datagram.datagram)
        } else if self.hex {
            writeln!(out, "{}", hex::encode(&datagram.datagram))
        } else if self.json {
            serde_json::to_writer(&mut *out, datagram)?;
            writeln!(out)
        } else {
            let mode = if mode == Mode::Tap.word() { Mode::Tap } else { Mode::Tun };
            writeln!(out, "{}", render::datagram(&datagram.datagram, mode))
        }
    }
}
