//! `memtun limits`

use std::io::{self, Write};

use memtun_client::{Client, proto::limits::Limits};

use super::VerbError;
use crate::{render, terminal::Styles};

/// Shows the limits of memory, files, tunnels and so on, and how much of each is in use, by all users and by each.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says.
    pub(super) fn run(
        self,
        client: &mut Client,
        out: &mut dyn Write,
        styles: Styles,
    ) -> Result<(), VerbError> {
        let limits = client.call(&Limits::default())?;
        if self.json {
            serde_json::to_writer_pretty(&mut *out, &limits).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            out.write_all(render::limits(&limits, styles).as_bytes())?;
        }
        Ok(())
    }
}
