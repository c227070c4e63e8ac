//! `memtun list`

use std::io;

use memtun_client::proto::list::List;

use super::{Scene, VerbError};
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
    pub(super) fn run(self, scene: &mut Scene<'_>) -> Result<(), VerbError> {
        let listing = scene.connect()?.call(&List::default())?;
        if self.json {
            let json = serde_json::to_string_pretty(&listing).map_err(io::Error::from)?;
            writeln!(scene.out, "{}", escaped_json(&json))?;
        } else {
            let styles = Styles::of(&io::stdout());
            scene.out.write_all(render::listing(&listing, styles).as_bytes())?;
        }
        Ok(())
    }
}
