//! The driver of `scripts/bench`: measures peers in turn, and reports what was measured.
//!
//! `measure` starts a server for each peer of a set, runs `client` against each in turn, round by round, and writes a
//! run to a JSON file. `report` makes the table, `bench.json` and the picture out of one or more of those: the
//! set of the CUSE peers is measured in a virtual machine, and reported outside.

mod measure;
mod peer;
mod picture;
mod place;
mod results;
mod row;
mod table;
mod targets;

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

use anyhow::Context;
use clap::Parser;

use crate::results::{Report, Run};

#[derive(Parser)]
enum Arguments {
    /// Measures a set of peers.
    Measure(measure::Options),
    /// Prints how many CPUs are in use.
    Others,
    /// Makes table, JSON and picture from runs.
    Report {
        /// What `measure` wrote.
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        /// Where to write all runs in one.
        #[arg(long)]
        json: PathBuf,
        /// Where to draw the picture.
        #[arg(long)]
        picture: Option<PathBuf>,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse() {
        Arguments::Measure(options) => measure::run(&options),
        Arguments::Others => {
            println!("{:.2}", place::others_now());
            Ok(())
        }
        Arguments::Report { runs, json, picture } => {
            let runs = runs.iter().map(read_run).collect::<anyhow::Result<_>>()?;
            let report = Report { schema: results::SCHEMA, runs };
            let text = table::render(&report) + &targets::render(&report);
            // First, so that a reader who has seen enough does not cost the files.
            write(&json, &serde_json::to_string_pretty(&report)?)?;
            picture.map_or(Ok(()), |path| write(&path, &picture::draw(&report)))?;
            io::stdout().write_all(text.as_bytes()).context("printing the table")
        }
    }
}

fn read_run(path: &PathBuf) -> anyhow::Result<Run> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("understanding {}", path.display()))
}

fn write(path: &PathBuf, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
