//! `inject`: puts datagrams on their way to the client.

use std::{
    fs::File,
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Method, usage_error,
    vnet::{self, Vnet},
};
use crate::{
    abi::virtio_net::VnetHeader,
    client::{Client, ClientError},
    control::{
        session::{Reply, Session},
        wire::hex_bytes,
    },
    core::{Address, Datagram, Delivery, MacAddress, Mode, Wrap, offload::OffloadError},
    packet::{self, Captured, Echo},
};

/// Parameters on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inject {
    /// The tunnel.
    pub tunnel: Address,
    /// The bytes without PI and vnet header, in hex.
    #[serde(with = "hex_bytes")]
    pub datagram: Bytes,
    /// The bytes are a whole Ethernet frame for a tap, and go untouched.
    #[serde(default)]
    pub frame: bool,
    /// Source of the Ethernet header that a tap's IP datagram gets; default: the tunnel's own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<MacAddress>,
    /// Its destination; default: broadcast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<MacAddress>,
    /// What is left to be done to the datagram; done before the client gets it, unless the client accepts it so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vnet: Option<Vnet>,
}

/// What it gives.
#[derive(Debug, Serialize, Deserialize)]
pub struct Injected {
    /// A blocked read got the datagram.
    pub read: bool,
    /// Else: how many datagrams wait in the client's queue, this one included.
    pub queued: usize,
}

impl Method for Inject {
    const NAME: &'static str = "inject";
    type Result = Injected;
    const KNOWS_CLOSES: bool = false;

    fn perform(self, session: &Arc<Session>, reply: Reply<Injected>) {
        let Self { tunnel, datagram, frame, source, destination, vnet } = self;
        let vnet = vnet.map(VnetHeader::from);
        let datagram = Datagram { payload: datagram, vnet, ..Datagram::default() };
        let wrap = if frame { Wrap::Frame } else { Wrap::Ethernet { source, destination } };
        let injected = session.hub().with(|core| {
            let tunnel = core.find(&tunnel)?;
            core.inject(tunnel, datagram, wrap)
        });
        let result = injected.map(|delivery| match delivery {
            Delivery::Read => Injected { read: true, queued: 0 },
            Delivery::Queued(queued) => Injected { read: false, queued },
        });
        reply.send(result.map_err(Into::into));
    }
}

/// Puts datagrams on their way to the client: from an option, a file or standard input.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --hex, --file, --pcap, --ping or --udp, standard input to its end is one datagram.\n\
    A tap gets an Ethernet header before each IP datagram, unless --frame is given.\n\
    --vnet, --gso and --csum leave work to the client, which gets it done unless it accepts that (TUNSETOFFLOAD)."
)]
pub struct Args {
    /// NAME, NAME@SCOPE or #ID, as 'memtun list' shows them.
    tunnel: Address,
    #[command(flatten)]
    source: Source,
    /// Source of --ping (ADDR) or --udp (ADDR:PORT; IPv6 in brackets).
    #[arg(long, value_name = "ADDR[:PORT]")]
    from: Option<Endpoint>,
    /// Destination of --ping (ADDR) or --udp (ADDR:PORT).
    #[arg(long, value_name = "ADDR[:PORT]")]
    to: Option<Endpoint>,
    /// Identifier of --ping; default: a random number, so that answers of two pings can be told apart.
    #[arg(long, value_name = "N", requires = "ping", allow_negative_numbers = true)]
    id: Option<u16>,
    /// Sequence number of --ping.
    #[arg(
        long,
        value_name = "N",
        requires = "ping",
        allow_negative_numbers = true,
        default_value = "1"
    )]
    seq: u16,
    /// Payload of --udp.
    #[arg(long, value_name = "TEXT", requires = "udp")]
    data: Option<String>,
    /// The bytes are a whole Ethernet frame for a tap, and go untouched.
    #[arg(long, conflicts_with_all = ["source_mac", "destination_mac", "pcap", "ping", "udp"])]
    frame: bool,
    /// Source address of a tap's Ethernet header; default: the tunnel's own.
    #[arg(long, value_name = "MAC")]
    source_mac: Option<MacAddress>,
    /// Destination address of a tap's Ethernet header; default: broadcast.
    #[arg(long, value_name = "MAC")]
    destination_mac: Option<MacAddress>,
    #[command(flatten)]
    vnet: vnet::Options,
    /// What `--ping` or `--udp` describes.
    #[arg(skip)]
    built: Option<Bytes>,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Source {
    /// One datagram, as hex digits; white space and colons between bytes are fine.
    #[arg(long, value_name = "HEX")]
    hex: Option<Hex>,
    /// One datagram, the bytes of a file.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// All datagrams of a capture (pcap or pcapng), without their timing; frames lose or keep their Ethernet header as
    /// the tunnel needs.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// An ICMP or ICMPv6 echo request.
    #[arg(long, requires = "from", requires = "to")]
    ping: bool,
    /// A UDP datagram.
    #[arg(long, requires = "from", requires = "to")]
    udp: bool,
}

/// The digits of `--hex`.
#[derive(Clone, Debug)]
struct Hex(Bytes);

impl FromStr for Hex {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits: String = text.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
        hex::decode(&digits)
            .map(|bytes| Self(bytes.into()))
            .map_err(|error| format!("{error}; give two hex digits for each byte"))
    }
}

/// `--from` or `--to`.
#[derive(Clone, Copy, Debug)]
struct Endpoint {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for Endpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let with_port =
            text.parse().map(|end: SocketAddr| Self { address: end.ip(), port: Some(end.port()) });
        with_port.or_else(|_| text.parse().map(|address| Self { address, port: None })).map_err(
            |_| "give an address, such as 10.0.0.1, or with a port, as 10.0.0.1:53 or [fd00::1]:53",
        )
    }
}

impl Args {
    /// Builds what options alone describe, so that what is wrong with them is known before a daemon is asked.
    ///
    /// # Errors
    ///
    /// A usage error: options that say nothing together, or do not fit.
    pub fn check(&mut self) -> Result<(), clap::Error> {
        self.built = self.build().map_err(usage_error)?;
        Ok(())
    }

    fn build(&self) -> Result<Option<Bytes>, String> {
        let (from, to) = match (self.from, self.to, &self.source) {
            (Some(from), Some(to), Source { ping: true, .. } | Source { udp: true, .. }) => {
                (from, to)
            }
            (None, None, _) => return Ok(None),
            (..) => return Err("--from and --to need --ping or --udp".to_owned()),
        };
        let built = match (self.source.ping, from.port, to.port) {
            (true, None, None) => {
                let id = self.id.unwrap_or_else(|| fastrand::u16(..));
                packet::echo_request(from.address, to.address, Echo { id, seq: self.seq })
            }
            (true, ..) => {
                return Err("a ping has no ports; give --from and --to without".to_owned());
            }
            (false, Some(from_port), Some(to_port)) => packet::udp(
                SocketAddr::new(from.address, from_port),
                SocketAddr::new(to.address, to_port),
                self.data.as_deref().unwrap_or_default().as_bytes(),
            ),
            (false, ..) => {
                return Err(
                    "--udp needs ports, as in --from 10.0.0.1:53 --to 10.0.0.2:53".to_owned()
                );
            }
        };
        built.map(|bytes| Some(bytes.into())).map_err(|error| error.to_string())
    }

    /// Runs it: datagrams go in order, and the first that is refused ends it.
    ///
    /// # Errors
    ///
    /// What is wrong with the source, or what the daemon says.
    pub fn run(self, client: &mut Client, out: &mut dyn Write) -> Result<(), InjectError> {
        let mut injected = Injected { read: false, queued: 0 };
        let Captured { datagrams, skipped } = self.datagrams(client)?;
        let count = datagrams.len();
        for (number, (datagram, is_frame)) in datagrams.into_iter().enumerate() {
            let mode = if is_frame { Mode::Tap } else { Mode::Tun };
            let Datagram { payload, vnet, .. } =
                self.vnet.apply(datagram.into(), mode).map_err(InjectError::Vnet)?;
            let call = Inject {
                tunnel: self.tunnel.clone(),
                datagram: payload,
                frame: is_frame,
                source: self.source_mac,
                destination: self.destination_mac,
                vnet: vnet.map(Vnet::from),
            };
            injected = client.call(&call).map_err(|error| match count {
                1 => InjectError::Client(error),
                _ => InjectError::Datagram { number: number + 1, count, source: error },
            })?;
        }
        let Injected { read, queued } = injected;
        let plural = if count == 1 { "datagram" } else { "datagrams" };
        let fate = if read { "read at once".to_owned() } else { format!("{queued} queued") };
        let skipped = if skipped > 0 {
            format!(", {skipped} frames skipped that are not IP")
        } else {
            String::new()
        };
        writeln!(out, "{count} {plural} injected, {fate}{skipped}").map_err(ClientError::from)?;
        Ok(())
    }

    fn datagrams(&self, client: &mut Client) -> Result<Captured, InjectError> {
        let one = |bytes: Bytes| Ok(Captured { datagrams: vec![(bytes, self.frame)], skipped: 0 });
        let Source { hex, file, pcap, .. } = &self.source;
        if let Some(bytes) = &self.built {
            one(bytes.clone())
        } else if let Some(Hex(bytes)) = hex {
            one(bytes.clone())
        } else if let Some(path) = file {
            let mut bytes = Vec::new();
            let read = File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
            read.map_err(|source| InjectError::File { path: path.clone(), source })?;
            one(bytes.into())
        } else if let Some(path) = pcap {
            let is_tap = self.frame || client.is_tap(&self.tunnel)?;
            packet::read_capture(path, is_tap)
                .map_err(|source| InjectError::Capture { path: path.clone(), source })
        } else {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).map_err(InjectError::Stdin)?;
            one(bytes.into())
        }
    }
}

/// Why nothing, or not everything, was injected.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// `--file` cannot be read.
    #[error("reading {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// `--pcap` cannot be read.
    #[error("reading capture {path}: {source}")]
    Capture {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: packet::CaptureError,
    },
    /// Standard input cannot be read.
    #[error("reading standard input: {0}")]
    Stdin(std::io::Error),
    /// `--gso` cannot be followed.
    #[error("--gso: {0}")]
    Vnet(OffloadError),
    /// One of several datagrams was refused.
    #[error("datagram {number} of {count}: {source}")]
    Datagram {
        /// Which, from 1.
        number: usize,
        /// Of how many.
        count: usize,
        /// Why.
        source: ClientError,
    },
    /// The daemon refused, or is not there.
    #[error(transparent)]
    Client(#[from] ClientError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ethernet_addresses_are_text_and_may_be_left_out() {
        let line =
            r#"{"tunnel":"tap0","datagram":"45","frame":false,"source":"02:00:00:00:00:01"}"#;
        let inject: Inject = serde_json::from_str(line).unwrap();
        assert_eq!(inject.source, Some(MacAddress([2, 0, 0, 0, 0, 1])));
        assert_eq!(inject.destination, None);
        assert_eq!(serde_json::to_string(&inject).unwrap(), line);
        let error = serde_json::from_str::<Inject>(&line.replace(":01", "")).unwrap_err();
        assert!(error.to_string().contains("02:00:00:00:00"), "{error}");
    }
}
