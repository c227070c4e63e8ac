//! `memtun watch`

use std::io;

use memtun_client::proto::watch::{Watch, Watching};

use super::{Scene, VerbError};
use crate::{core::Address, render, terminal::escaped_json};

/// Prints events as they happen, one on each line, until you interrupt it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this tunnel: NAME, NAME@SCOPE or #ID.
    tunnel: Option<Address>,
    /// Print one JSON object on each line.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says, or that it ended.
    pub(super) fn run(self, scene: &mut Scene<'_>) -> Result<(), VerbError> {
        let watch = self.tunnel.map_or_else(Watch::all, |tunnel| Watch::new(tunnel.to_string()));
        let mut client = scene.connect()?;
        let Watching {} = client.call(&watch)?;
        loop {
            let event = client.next_event()?;
            if self.json {
                let json = serde_json::to_string(&event).map_err(io::Error::from)?;
                writeln!(scene.out, "{}", escaped_json(&json))?;
            } else {
                writeln!(scene.out, "{}", render::event(&event))?;
            }
            scene.out.flush()?;
        }
    }
}
