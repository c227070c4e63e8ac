//! `memtun limits`

use std::io;

use memtun_client::proto::limits::Limits;

use super::{Scene, VerbError};
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
    pub(super) fn run(self, scene: &mut Scene<'_>) -> Result<(), VerbError> {
        let limits = scene.connect()?.call(&Limits::default())?;
        if self.json {
            serde_json::to_writer_pretty(&mut *scene.out, &limits).map_err(io::Error::from)?;
            writeln!(scene.out)?;
        } else {
            let styles = Styles::of(&io::stdout());
            scene.out.write_all(render::limits(&limits, styles).as_bytes())?;
        }
        Ok(())
    }
}
