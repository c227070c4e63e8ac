//! `memtun take`

use std::{
    io::Write,
    time::{Duration, Instant},
};

use super::{Scene, VerbError, number, vnet::words};
use crate::{
    control::verbs::{take::wrote, timed_out},
    core::{Address, Mode},
    render,
    vnet::header_of,
};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use memtun_client::{
    ClientError,
    proto::{
        drop::DropKept,
        error::code,
        take::{Take, Taken, TakenDatagram},
    },
};

/// Prints datagrams that the client wrote, oldest first, and removes them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The command prints each datagram when it arrives, and removes it after it has been written out. A datagram that \
    cannot be written out stays in the tunnel, and so do those after it. If too few arrive, the printed ones are removed."
)]
pub(super) struct Args {
    /// NAME, NAME@SCOPE or #ID, as 'memtun list' shows them.
    tunnel: Address,
    /// How long to wait for all of them, such as 500ms or 2s; 0 takes only what is there.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = super::duration, allow_hyphen_values = true)]
    timeout: humantime::Duration,
    /// How many datagrams.
    #[arg(short = 'n', long, default_value_t = 1, value_parser = number(1, u32::MAX), allow_negative_numbers = true)]
    count: u32,
    /// Do what vnet headers ask for: fill in checksums, and cut GSO datagrams into segments.
    #[arg(long)]
    segment: bool,
    #[command(flatten)]
    format: Format,
    /// With --hex or --raw, put the vnet header before the bytes; zeros where there is none. SIZE is 10 bytes, or 24 with the fields
    /// of UDP tunnels.
    #[arg(
        long,
        value_name = "SIZE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "10",
        value_parser = vnet_size(),
        requires = "Format",
        conflicts_with = "json"
    )]
    vnet: Option<usize>,
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

fn vnet_size() -> impl TypedValueParser<Value = usize> {
    PossibleValuesParser::new(["10", "24"]).try_map(|size| size.parse::<usize>())
}

impl Args {
    /// Runs it: each datagram is printed when it comes, and dropped when it has been written out.
    ///
    /// # Errors
    ///
    /// What the daemon says, a timeout before the last datagram too; and that the output cannot be written.
    #[expect(clippy::disallowed_methods, reason = "one deadline for several calls")]
    pub(super) fn run(self, scene: &mut Scene<'_>) -> Result<(), VerbError> {
        let mut client = scene.connect()?;
        let out = &mut *scene.out;
        let start = Instant::now();
        for number in 0..self.count {
            // A message about the first names the time that was asked for.
            let passed = if number == 0 { Duration::ZERO } else { start.elapsed() };
            let rest = self.timeout.saturating_sub(passed);
            let take = Take::new(self.tunnel.to_string()).timeout(rest);
            let take = take.segment(self.segment).keep(true);
            let Taken { mode, datagrams } =
                client.call(&take).map_err(|error| self.counted(error, number))?;
            for datagram in &datagrams {
                self.format.print(&mode, datagram, self.vnet, out)?;
            }
            out.flush()?;
            let numbers: Vec<u64> =
                datagrams.iter().filter_map(|datagram| datagram.number).collect();
            client.call(&DropKept::new(numbers))?;
        }
        Ok(())
    }

    /// The daemon knows of the last call alone; what is said is about all of them.
    fn counted(&self, error: ClientError, printed: u32) -> ClientError {
        if error.code() == Some(code::TIMEOUT) {
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
        vnet_size: Option<usize>,
        out: &mut dyn Write,
    ) -> std::io::Result<()> {
        let vnet = header_of(datagram.vnet.unwrap_or_default()).to_bytes();
        let head = &vnet[..vnet_size.unwrap_or(0)];
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
            match datagram.vnet.map(words).unwrap_or_default() {
                nothing if nothing.is_empty() => writeln!(out),
                left => writeln!(out, " [{left}]"),
            }
        }
    }
}
