//! `take`: removes what the client wrote.

use std::{
    fmt::Display,
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes;

use super::{Method, default_timeout_ms, drop::DropKept, list::PeerView, timed_out, vnet::Vnet};
use crate::{
    abi::virtio_net::VnetHeader,
    client::{Client, ClientError},
    control::{
        session::{Reply, Session},
        wire::{Failure, hex_bytes},
    },
    core::{Address, Answer, Condition, Datagram, Mode, Tunnel, offload},
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
    /// What vnet headers ask for is done first: checksums are filled in, and a datagram may become several. One that cannot
    /// be done comes as it was written.
    #[serde(default)]
    pub segment: bool,
    /// The datagrams stay, reserved for this connection, until it drops them or ends.
    #[serde(default)]
    pub keep: bool,
}

fn one() -> usize {
    1
}

/// What it gives.
#[derive(Debug, Serialize, Deserialize)]
pub struct Taken {
    /// `tun` or `tap`: what the datagrams are.
    pub mode: String,
    /// The datagrams, oldest first; or their segments.
    pub datagrams: Vec<TakenDatagram>,
}

/// One datagram that a client wrote.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TakenDatagram {
    /// By which it is dropped, if it is kept. All segments of one datagram have its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// The bytes without headers, in hex.
    #[serde(with = "hex_bytes")]
    pub datagram: Bytes,
    /// The protocol that the client's PI header named, if it wrote one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u16>,
    /// The client's vnet header, if it wrote one, and what it asks for has not been done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vnet: Option<Vnet>,
}

impl TakenDatagram {
    fn new(number: Option<u64>, datagram: Datagram) -> Self {
        Self {
            number,
            datagram: datagram.payload,
            protocol: datagram.protocol,
            vnet: datagram.vnet.map(Vnet::from),
        }
    }
}

impl Method for Take {
    const NAME: &'static str = "take";
    type Result = Taken;
    const KNOWS_CLOSES: bool = false;

    fn perform(self, session: &Arc<Session>, reply: Reply<Taken>) {
        let Self { tunnel: address, count, timeout_ms, segment, keep } = self;
        if !(1..=MAX_COUNT).contains(&count) {
            let message = format!("count is {count}; ask for 1 to {MAX_COUNT} datagrams at a time");
            return reply.send(Err(Failure::new("bad-count", message)));
        }
        let found = session.hub().view(|core| {
            core.find(&address)
                .map(|id| (id, core.tunnel(id).map_or(Mode::Tun, |tunnel| tunnel.mode())))
        });
        let (id, mode) = match found {
            Ok(found) => found,
            Err(error) => return reply.send(Err(Failure::from(error))),
        };
        let timeout = Duration::from_millis(timeout_ms);
        let hub = Arc::clone(session.hub());
        let condition = if keep {
            Condition::Keep(id, count, session.keeper())
        } else {
            Condition::Take(id, count)
        };
        let taken = move |datagrams: Vec<(Option<u64>, Datagram)>| {
            let datagrams = datagrams
                .into_iter()
                .flat_map(|(number, datagram)| {
                    let parts = if segment { segments(datagram, mode) } else { vec![datagram] };
                    parts.into_iter().map(move |datagram| TakenDatagram::new(number, datagram))
                })
                .collect();
            Taken { mode: mode.word().to_owned(), datagrams }
        };
        session.wait(condition, timeout, reply, move |answer| match answer {
            Answer::Taken(datagrams) => {
                Ok(taken(datagrams.into_iter().map(|datagram| (None, datagram)).collect()))
            }
            Answer::Kept(datagrams) => Ok(taken(
                datagrams.into_iter().map(|(number, datagram)| (Some(number), datagram)).collect(),
            )),
            Answer::TimedOut(available) => {
                let peer = hub.view(|core| core.tunnel(id).and_then(Tunnel::peer));
                let what = match peer.and_then(|peer| PeerView::new(&hub, peer)) {
                    None => wrote(&address, available, count),
                    Some(peer) => format!(
                        "tunnel {address}: its peer, {peer}, gets what the client writes; nothing was left to take"
                    ),
                };
                Err(timed_out(what, timeout_ms))
            }
            Answer::Met(_) | Answer::Injected(_) | Answer::Gone => Err(Failure::new(
                "gone",
                format_args!("tunnel {address} is gone and has no more datagrams to take"),
            )),
        });
    }
}

/// What is said when not enough came.
fn wrote(tunnel: &Address, available: impl Display, wanted: impl Display) -> String {
    format!("tunnel {tunnel}: the client wrote {available} of {wanted} datagrams")
}

fn segments(datagram: Datagram, mode: Mode) -> Vec<Datagram> {
    match offload::finish(datagram.clone(), mode) {
        Ok(segments) => segments.collect(),
        Err(_) => vec![datagram],
    }
}

/// Prints datagrams that the client wrote, oldest first, and removes them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The command prints each datagram when it arrives, and removes it after it has been written out. A datagram that \
    cannot be written out stays in the tunnel, and so do those after it. If too few arrive, the printed ones are removed."
)]
pub struct Args {
    /// NAME, NAME@SCOPE or #ID, as 'memtun list' shows them.
    tunnel: Address,
    /// How long to wait for all of them, such as 500ms or 2s. With 0s the command takes only what is there.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = super::duration, allow_hyphen_values = true)]
    timeout: humantime::Duration,
    /// How many datagrams to take.
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), allow_negative_numbers = true)]
    count: u64,
    /// Do what the vnet headers ask for: fill in checksums, and cut GSO datagrams into segments.
    #[arg(long)]
    segment: bool,
    #[command(flatten)]
    format: Format,
    /// With --hex or --raw, put the vnet header of 10 bytes before the datagram. It is zero if there is none.
    #[arg(long, requires = "Format", conflicts_with = "json")]
    vnet: bool,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Format {
    /// Print the bytes in hex, one datagram on each line.
    #[arg(long)]
    hex: bool,
    /// Print one JSON object on each line.
    #[arg(long)]
    json: bool,
    /// Print the bytes unchanged, with nothing between datagrams.
    #[arg(long)]
    raw: bool,
}

impl Args {
    /// Runs it: each datagram is printed when it comes, and dropped when it has been written out.
    ///
    /// # Errors
    ///
    /// What the daemon says, a timeout before the last datagram too; and that the output cannot be written.
    #[expect(clippy::disallowed_methods, reason = "one deadline for several calls")]
    pub fn run(self, client: &mut Client, out: &mut dyn Write) -> Result<(), ClientError> {
        let start = Instant::now();
        for number in 0..self.count {
            // A message about the first names the time that was asked for.
            let passed = if number == 0 { Duration::ZERO } else { start.elapsed() };
            let rest = self.timeout.saturating_sub(passed);
            let timeout_ms = u64::try_from(rest.as_millis()).unwrap_or(u64::MAX);
            let take = Take {
                tunnel: self.tunnel.clone(),
                count: 1,
                timeout_ms,
                segment: self.segment,
                keep: true,
            };
            let Taken { mode, datagrams } =
                client.call(&take).map_err(|error| self.counted(error, number))?;
            for datagram in &datagrams {
                self.format.print(&mode, datagram, self.vnet, out)?;
            }
            out.flush()?;
            let numbers = datagrams.iter().filter_map(|datagram| datagram.number).collect();
            client.call(&DropKept { numbers })?;
        }
        Ok(())
    }

    /// The daemon knows of the last call alone; what is said is about all of them.
    fn counted(&self, error: ClientError, printed: u64) -> ClientError {
        if let ClientError::Refused(Failure { message, .. }) = &error
            && message.starts_with(&wrote(&self.tunnel, 0, 1))
        {
            let timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
            return timed_out(wrote(&self.tunnel, printed, self.count), timeout_ms).into();
        }
        error
    }
}

impl Format {
    fn print(
        &self,
        mode: &str,
        datagram: &TakenDatagram,
        with_vnet: bool,
        out: &mut dyn Write,
    ) -> std::io::Result<()> {
        let vnet = VnetHeader::from(datagram.vnet.unwrap_or_default());
        let head = if with_vnet { vnet.as_bytes() } else { &[] };
        if self.raw {
            out.write_all(head)?;
            out.write_all(&datagram.datagram)
        } else if self.hex {
            writeln!(out, "{}{}", hex::encode(head), hex::encode(&datagram.datagram))
        } else if self.json {
            // The number means nothing to others than this program.
            let datagram = TakenDatagram { number: None, ..datagram.clone() };
            serde_json::to_writer(&mut *out, &datagram)?;
            writeln!(out)
        } else {
            let mode = if mode == Mode::Tap.word() { Mode::Tap } else { Mode::Tun };
            write!(out, "{}", render::datagram(&datagram.datagram, mode))?;
            match datagram.vnet.map(|vnet| vnet.to_string()).unwrap_or_default() {
                nothing if nothing.is_empty() => writeln!(out),
                left => writeln!(out, " [{left}]"),
            }
        }
    }
}
