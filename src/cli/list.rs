//! `memtun list`

use std::io::{self, Write};

use memtun_client::{Client, proto::list::List};

use super::VerbError;
use crate::{
    render,
    terminal::{Styles, escaped_json},
};

/// Lists the tunnels and the clients that have them open.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print one JSON object with all details.
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
        let listing = client.call(&List::default())?;
        if self.json {
            let json = serde_json::to_string_pretty(&listing).map_err(io::Error::from)?;
            writeln!(out, "{}", escaped_json(&json))?;
        } else {
            out.write_all(render::listing(&listing, styles).as_bytes())?;
        }
        Ok(())
    }
}
