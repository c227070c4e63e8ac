//! `memtun doctor`

use std::io;

use super::{Scene, run::choice};
use crate::namespace;

/// Says which front ends this machine has, which one 'run' chooses and why, and what each missing thing would give.
///
/// A front end is the way in which a program's calls on the device reach memtun.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// One thing that a machine may have.
struct Finding {
    name: &'static str,
    gives: &'static str,
    obstacle: Option<String>,
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// That a child cannot be started, or the output's.
    pub(super) fn run(self, scene: &mut Scene<'_>) -> anyhow::Result<()> {
        let file = choice::file(namespace::Options::default())?;
        let network = choice::file(namespace::Options { net: true, ..Default::default() })?;
        let text = |result: Result<(), choice::NoFile>| result.err().map(|why| why.to_string());
        let findings = [
            Finding {
                name: "cuse",
                gives: "a character device for root: --front-end cuse, 'serve --cuse'",
                obstacle: choice::character_device().err(),
            },
            Finding {
                name: "fuse",
                gives: "a file that behaves as the device: --front-end fuse",
                obstacle: text(file),
            },
            Finding {
                name: "notify",
                gives: "the device without a mount or a namespace: --front-end notify",
                obstacle: choice::notifications().err().map(|why| why.to_string()),
            },
            Finding {
                name: "net",
                gives: "a network namespace for the program: --net",
                obstacle: match network {
                    Err(why @ choice::NoFile::Namespace(_)) => Some(why.to_string()),
                    Ok(()) | Err(choice::NoFile::Device(_)) => None,
                },
            },
        ];
        print(scene, &findings)?;
        Ok(())
    }
}

fn print(scene: &mut Scene<'_>, findings: &[Finding]) -> io::Result<()> {
    for Finding { name, gives, obstacle } in findings {
        let answer = if obstacle.is_none() { "yes" } else { "no" };
        writeln!(scene.out, "{name:<7} {answer:<4} {gives}")?;
        if let Some(obstacle) = obstacle {
            writeln!(scene.out, "             {obstacle}")?;
        }
    }
    // In the order in which they are chosen.
    let chosen = findings[..3].iter().find(|finding| finding.obstacle.is_none());
    match chosen {
        Some(Finding { name: "cuse", .. }) => writeln!(
            scene.out,
            "'memtun run' chooses cuse: for root it is a character device, as the kernel's own is"
        ),
        Some(Finding { name: "fuse", .. }) => writeln!(
            scene.out,
            "'memtun run' chooses fuse: a program may move the device's descriptors to any number there"
        ),
        Some(Finding { name, .. }) => {
            writeln!(scene.out, "'memtun run' chooses {name}: there is nothing else here")
        }
        None => writeln!(scene.out, "'memtun run' fails here: it needs one of the first three"),
    }
}
