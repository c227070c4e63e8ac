//! `memtun inject`

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{IsTerminal, Read},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use bytes::Bytes;
use memtun_client::{
    Client, ClientError,
    proto::{
        Failure,
        error::code,
        inject::{Inject, Injected},
    },
};

use super::{Scene, VerbError, number, usage_error, vnet::Options};
use crate::{
    core::{Address, MAX_DATAGRAM, MacAddress, Mode, offload::OffloadError},
    log,
    packet::{
        self, Captured, Echo,
        capture::{Capture, CaptureError},
    },
    vnet::of_header,
};

/// The name of standard input.
const STDIN: &str = "-";
/// How long a packet of a capture waits for room in the client's queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);

/// Injects datagrams, which the client reads. They come from an option, a file or standard input.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --hex, --file, --pcap, --ping or --udp, all of standard input is one datagram.\n\
    A tap gets an Ethernet header before each IP datagram, unless --frame is given.\n\
    memtun leaves out packets of a capture that the tunnel cannot carry, and goes on. At the end it reports what it left out and what \
    the capture lacks, with -q on standard error. This is no failure: the exit status is 0.\n\
    --vnet, --gso and --csum leave segmentation and checksums to the client. If the client has not accepted that (TUNSETOFFLOAD), memtun does it."
)]
pub(super) struct Args {
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
    /// Identifier of --ping [default: a random number, so that the answers of two pings differ].
    #[arg(long, value_name = "N", requires = "ping", conflicts_with = "udp", value_parser = number(0, u16::MAX), allow_negative_numbers = true)]
    id: Option<u16>,
    /// Sequence number of --ping.
    #[arg(long, value_name = "N", requires = "ping", conflicts_with = "udp", value_parser = number(0, u16::MAX), allow_negative_numbers = true, default_value = "1")]
    seq: u16,
    /// Payload of --udp.
    #[arg(long, value_name = "TEXT", requires = "udp", conflicts_with = "ping")]
    data: Option<String>,
    /// Inject the bytes unchanged: they are a whole Ethernet frame for a tap.
    #[arg(long, conflicts_with_all = ["source_mac", "destination_mac", "pcap", "ping", "udp"])]
    frame: bool,
    /// Source address of a tap's Ethernet header [default: the tunnel's own].
    #[arg(long, value_name = "MAC")]
    source_mac: Option<MacAddress>,
    /// Destination address of a tap's Ethernet header [default: broadcast].
    #[arg(long, value_name = "MAC")]
    destination_mac: Option<MacAddress>,
    /// How long each datagram waits for room in the client's queue, such as 500ms or 2s [default: 10s with --pcap, otherwise 0s].
    #[arg(long, value_name = "DURATION", conflicts_with = "no_wait", value_parser = super::duration, allow_hyphen_values = true)]
    timeout: Option<humantime::Duration>,
    /// Fail at once when the client's queue is full, as with --timeout 0s.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    vnet: Options,
    /// What `--ping` or `--udp` describes.
    #[arg(skip)]
    built: Option<Bytes>,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Source {
    /// Inject one datagram, written as hex digits. White space and colons between bytes are fine.
    #[arg(long, value_name = "HEX")]
    hex: Option<Hex>,
    /// Inject the bytes of a file as one datagram.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Inject all packets of a capture (pcap or pcapng; - is standard input), without their timing. A tap gets Ethernet frames
    /// whole. A tun gets the IP datagrams, without what stands before them.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Inject an ICMP or ICMPv6 echo request.
    #[arg(long, requires = "from", requires = "to")]
    ping: bool,
    /// Inject a UDP datagram.
    #[arg(long, requires = "from", requires = "to")]
    udp: bool,
}

/// The digits of `--hex`.
#[derive(Clone, Debug)]
struct Hex(Bytes);

impl FromStr for Hex {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits: String = text.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
        hex::decode(&digits)
            .map(|bytes| Self(bytes.into()))
            .map_err(|_| "give two hex digits for each byte, as in 45:00:00:1c")
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
    pub(super) fn check(&mut self) -> Result<(), clap::Error> {
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

    /// Runs it: datagrams go in order.
    ///
    /// # Errors
    ///
    /// What is wrong with the source, or what the daemon says.
    pub(super) fn run(self, scene: &mut Scene<'_>) -> Result<(), InjectError> {
        let client = &mut scene.connect()?;
        if self.reads_stdin() && std::io::stdin().is_terminal() && !scene.is_quiet {
            log::complain(
                &"reading from the terminal; Ctrl-D at the start of a line ends the input",
            );
        }
        if let Some(path) = &self.source.pcap {
            let report = self.inject_capture(path, client)?;
            if scene.is_quiet && !report.is_complete() {
                log::complain(&format_args!("capture {}: {report}", shown(path)));
            }
            writeln!(scene.report(), "{report}").map_err(VerbError::from)?;
            return Ok(());
        }
        let datagram = self.datagram()?;
        let Injected { read, queued } =
            self.inject(client, datagram, self.frame, Duration::ZERO)?;
        let fate = Fate { read, queued };
        writeln!(scene.report(), "1 datagram injected, {fate}").map_err(VerbError::from)?;
        Ok(())
    }

    fn reads_stdin(&self) -> bool {
        match &self.source {
            Source { pcap: Some(path), .. } => path == Path::new(STDIN),
            Source { hex: None, file: None, ping: false, udp: false, .. } => true,
            Source { .. } => false,
        }
    }

    fn inject(
        &self,
        client: &mut Client,
        datagram: Bytes,
        frame: bool,
        default_timeout: Duration,
    ) -> Result<Injected, InjectError> {
        let mode = if frame { Mode::Tap } else { Mode::Tun };
        let datagram = self.vnet.apply(datagram.into(), mode).map_err(InjectError::Vnet)?;
        let timeout = match self.timeout {
            _ if self.no_wait => Duration::ZERO,
            Some(timeout) => *timeout,
            None => default_timeout,
        };
        let call = Inject {
            frame,
            source: self.source_mac.map(|address| address.to_string().into()),
            destination: self.destination_mac.map(|address| address.to_string().into()),
            vnet: datagram.vnet().map(of_header),
            ..Inject::new(self.tunnel.to_string(), datagram.payload).timeout(timeout)
        };
        Ok(client.call(&call)?)
    }

    /// Injects packets as they are read, so that a capture may be a pipe that goes on.
    fn inject_capture(&self, path: &Path, client: &mut Client) -> Result<Report, InjectError> {
        let failed = |source| InjectError::Capture { path: shown(path), source };
        let for_tap = client.is_tap(&self.tunnel.to_string().into())?;
        let input: Box<dyn Read> = if path == Path::new(STDIN) {
            Box::new(std::io::stdin().lock())
        } else {
            Box::new(File::open(path).map_err(|error| failed(error.into()))?)
        };
        let mut capture = Capture::new(input).map_err(failed)?;
        let mut report = Report::default();
        loop {
            let record = match capture.next_record() {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(CaptureError::CutOff) => {
                    report.is_cut_off = true;
                    break;
                }
                Err(source) => {
                    let injected = report.injected;
                    return Err(InjectError::Further { path: shown(path), injected, source });
                }
            };
            report.packets += 1;
            let is_cut = record.is_cut;
            let (datagram, frame) = match Captured::new(record, for_tap) {
                Captured::Frame(frame) => (frame, true),
                Captured::Datagram(datagram) => (datagram, false),
                Captured::NotIp => {
                    report.not_ip += 1;
                    continue;
                }
                Captured::UnknownLinkType(link_type) => {
                    *report.unknown_links.entry(link_type).or_default() += 1;
                    continue;
                }
            };
            match self.inject(client, datagram, frame, QUEUE_TIMEOUT) {
                Ok(injected) => {
                    report.injected += 1;
                    report.shortened += u64::from(is_cut);
                    report.last = Fate { read: injected.read, queued: injected.queued };
                }
                Err(InjectError::Client(ClientError::Refused(failure))) => {
                    match failure.code.as_str() {
                        code::EMPTY_DATAGRAM => report.empty += 1,
                        code::OVERSIZED_DATAGRAM => report.oversized += 1,
                        code::NOT_IP => report.not_ip += 1,
                        code::FILTERED => report.filtered += 1,
                        _ => {
                            let (packet, injected) = (report.packets, report.injected);
                            return Err(InjectError::Packet { packet, injected, failure });
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        match report.unknown_links.first_key_value() {
            Some((link_type, _)) if report.injected == 0 => {
                Err(InjectError::LinkType { path: shown(path), link_type: *link_type })
            }
            _ => Ok(report),
        }
    }

    fn datagram(&self) -> Result<Bytes, InjectError> {
        let Source { hex, file, .. } = &self.source;
        if let Some(bytes) = &self.built {
            Ok(bytes.clone())
        } else if let Some(Hex(bytes)) = hex {
            Ok(bytes.clone())
        } else if let Some(path) = file {
            let failed = |source| InjectError::File { path: path.clone(), source };
            let file = File::open(path).map_err(failed)?;
            let size = file.metadata().map_err(failed)?;
            let size = size.is_file().then_some(size.len());
            limited(path.display().to_string(), read_limited(file).map_err(failed)?, size)
        } else {
            let bytes = read_limited(std::io::stdin().lock()).map_err(InjectError::Stdin)?;
            limited("standard input".to_owned(), bytes, None)
        }
    }
}

/// All that is read is kept, but for what is surely too long.
fn read_limited(input: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(MAX_DATAGRAM as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Refuses what no daemon takes, before it is sent. `size` is known where not all was read.
fn limited(name: String, bytes: Vec<u8>, size: Option<u64>) -> Result<Bytes, InjectError> {
    if bytes.len() <= MAX_DATAGRAM {
        return Ok(bytes.into());
    }
    let size = match size {
        Some(size) => format!("{size} bytes"),
        None => format!("more than {MAX_DATAGRAM} bytes"),
    };
    Err(InjectError::Oversized { name, size })
}

fn shown(path: &Path) -> String {
    if path == Path::new(STDIN) { "standard input".to_owned() } else { path.display().to_string() }
}

/// Where a datagram is now.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    read: bool,
    queued: usize,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.read { f.write_str("read at once") } else { write!(f, "{} queued", self.queued) }
    }
}

/// What became of a capture.
#[derive(Debug, Default)]
struct Report {
    packets: u64,
    injected: u64,
    /// Of the last that was injected.
    last: Fate,
    shortened: u64,
    not_ip: u64,
    empty: u64,
    oversized: u64,
    filtered: u64,
    unknown_links: BTreeMap<u16, u64>,
    is_cut_off: bool,
}

impl Report {
    /// Everything that was on the wire has been injected, as far as the capture tells.
    fn is_complete(&self) -> bool {
        self.injected == self.packets && self.shortened == 0 && !self.is_cut_off
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.injected == 1 { "datagram" } else { "datagrams" };
        write!(f, "{} {plural} injected", self.injected)?;
        if self.injected > 0 {
            write!(f, ", {}", self.last)?;
        }
        if self.shortened > 0 {
            write!(f, ", {} shortened by the capture's snap length", self.shortened)?;
        }
        let links = self.unknown_links.iter();
        let links = links.map(|(link_type, count)| (*count, format!("of link type {link_type}")));
        let left_out: Vec<String> = [
            (self.not_ip, "not IP".to_owned()),
            (self.empty, "empty".to_owned()),
            (self.oversized, format!("longer than {MAX_DATAGRAM} bytes")),
            (self.filtered, "dropped by a filter of the client".to_owned()),
        ]
        .into_iter()
        .chain(links)
        .filter(|(count, _)| *count > 0)
        .map(|(count, why)| format!("{count} {why}"))
        .collect();
        if !left_out.is_empty() {
            write!(f, "; left out: {}", left_out.join(", "))?;
        }
        if self.is_cut_off {
            f.write_str("; the last record is cut off")?;
        }
        Ok(())
    }
}

/// Why nothing, or not everything, was injected.
#[derive(Debug, thiserror::Error)]
pub(super) enum InjectError {
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
        path: String,
        /// What is wrong with it.
        source: CaptureError,
    },
    /// It cannot be read further.
    #[error("reading capture {path}: {source}; {injected} datagrams before it were injected")]
    Further {
        /// The file.
        path: String,
        /// How many went before.
        injected: u64,
        /// What is wrong with it.
        source: CaptureError,
    },
    /// Its packets are neither frames nor IP.
    #[error(
        "reading capture {path}: memtun does not know its link type {link_type}; it knows Ethernet, raw IP, Linux cooked, loopback and PPP"
    )]
    LinkType {
        /// The file.
        path: String,
        /// The link type.
        link_type: u16,
    },
    /// The source is longer than any datagram.
    #[error("{name} has {size}; at most {MAX_DATAGRAM} can be injected as one datagram")]
    Oversized {
        /// The source.
        name: String,
        /// What is known of its size.
        size: String,
    },
    /// Standard input cannot be read.
    #[error("reading standard input: {0}")]
    Stdin(std::io::Error),
    /// `--gso` cannot be followed.
    #[error("--gso: {0}")]
    Vnet(OffloadError),
    /// A packet of a capture was refused.
    #[error(
        "packet {packet} of the capture: {failure}; {injected} datagrams before it were injected"
    )]
    Packet {
        /// Which, from 1.
        packet: u64,
        /// How many went before.
        injected: u64,
        /// Why.
        failure: Failure,
    },
    /// The daemon refused, or is not there.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What was done could not be said.
    #[error(transparent)]
    Output(#[from] VerbError),
}
