//! `memtun debug replay-log`

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::anyhow;
use memtun_core::log::{End, Record, Start, digest};
use serde::Serialize;

use super::super::VerbError;
use crate::{
    core::{Core, Input, Instant, Output, Resource, User, input},
    input_log::{Next, Reader},
    log::complain,
    terminal::{escaped, escaped_json},
};

/// The replay and the log differ.
const DIVERGED: u8 = 7;

/// Characters of a line for people.
const MAX_SHOWN: usize = 400;

/// Replays a log that MEMTUN_LOG_INPUTS made, and compares what comes of each input with what the daemon had.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "It prints each input and its outputs. A line begins with the time in seconds. Long lines are cut, except with \
    --json.\n\nExit status: 0 if all outputs are the same, 7 if they differ, 1 if the file cannot be read."
)]
pub(super) struct Args {
    /// The log.
    file: PathBuf,
    /// Print one JSON object on each line.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let path = self.file.display();
        let file = File::open(&self.file).map_err(|error| anyhow!("opening {path}: {error}"))?;
        let (mut log, start) =
            Reader::new(file).map_err(|error| anyhow!("reading {path}: {error}"))?;
        let mut replay = Replay::new(&start);
        let (mut differs_at, mut is_torn) = (None, false);
        loop {
            let number = replay.inputs + 1;
            let next = log.next();
            let next = next.map_err(|error| anyhow!("reading {path}, input {number}: {error}"))?;
            let record = match next {
                Next::Record(record) => *record,
                Next::Torn => {
                    is_torn = true;
                    break;
                }
                Next::End => break,
            };
            let Some(replayed) = replay.perform(record) else { continue };
            if !replayed.is_same && differs_at.is_none() {
                differs_at = Some(replayed.number);
            }
            if self.json { replayed.print_json(out)? } else { replayed.print(out)? }
        }
        let ended = Ended { inputs: replay.inputs, differs_at, ended: word(log.end()), is_torn };
        if self.json {
            print_json(&ended, out)?;
        } else {
            writeln!(out, "{}", ended.text(log.end())).map_err(VerbError::Output)?;
        }
        let Some(number) = differs_at else { return Ok(ExitCode::SUCCESS) };
        out.flush().map_err(VerbError::Output)?;
        complain(&anyhow!(
            "input {number} leads to other outputs than in the daemon; whatever follows may differ by that"
        ));
        Ok(ExitCode::from(DIVERGED))
    }
}

/// A core that is given what another one was given.
struct Replay {
    core: Core,
    /// Those for whom something outside of the other core was charged.
    users: BTreeMap<u32, Arc<User>>,
    inputs: u64,
    outputs: Vec<Output>,
}

impl Replay {
    fn new(start: &Start) -> Self {
        let core = Core::new(start.limits, start.seed);
        Self { core, users: BTreeMap::new(), inputs: 0, outputs: Vec::new() }
    }

    /// What comes of a record, if it is an input.
    fn perform(&mut self, record: Record) -> Option<Replayed<'_>> {
        match record {
            Record::Input { now, input, outputs } => {
                self.inputs += 1;
                self.core.handle(now, input.clone());
                self.outputs.clear();
                self.core.take_outputs(&mut self.outputs);
                let is_same = digest(&self.outputs) == outputs;
                let (number, outputs) = (self.inputs, &*self.outputs);
                Some(Replayed { number, now, input, outputs, is_same })
            }
            Record::Charge { uid, resource, amount } => {
                self.charge(uid, resource, amount);
                None
            }
        }
    }

    fn charge(&mut self, uid: u32, resource: Resource, amount: usize) {
        let core = &mut self.core;
        // Whoever is only looked up changes nothing that has to do with time.
        let find = || core.handle(Instant::ORIGIN, input::FindUser { uid });
        self.users.entry(uid).or_insert_with(find).set_outside(resource, amount);
    }
}

/// An input, and what came of it.
struct Replayed<'a> {
    number: u64,
    now: Instant,
    input: Input,
    outputs: &'a [Output],
    is_same: bool,
}

impl Replayed<'_> {
    fn print(&self, out: &mut dyn Write) -> Result<(), VerbError> {
        let Self { number, now, input, outputs, is_same } = self;
        let at = now.since_origin().as_secs_f64();
        let differs = if *is_same { "" } else { ", differs" };
        // An input is shown within its variant, which has the same name.
        let input = format!("{input:?}");
        let input = input.split_once('(').and_then(|(_, input)| input.strip_suffix(')'));
        writeln!(out, "{at:.9} input {number}{differs}: {}", shown(input.unwrap_or_default()))?;
        for output in *outputs {
            writeln!(out, "{at:.9}   output: {}", shown(&format!("{output:?}")))?;
        }
        Ok(())
    }

    fn print_json(&self, out: &mut dyn Write) -> Result<(), VerbError> {
        #[derive(Serialize)]
        struct Line<'a> {
            number: u64,
            time_ns: u64,
            input: &'a Input,
            outputs: &'a [Output],
            same: bool,
        }
        let Self { number, now, ref input, outputs, is_same: same } = *self;
        let time_ns = u64::try_from(now.since_origin().as_nanos()).unwrap_or(u64::MAX);
        print_json(&Line { number, time_ns, input, outputs, same }, out)
    }
}

/// What there is to say at the end.
#[derive(Serialize)]
struct Ended {
    inputs: u64,
    differs_at: Option<u64>,
    ended: &'static str,
    #[serde(rename = "torn")]
    is_torn: bool,
}

impl Ended {
    fn text(&self, end: End) -> String {
        let Self { inputs, differs_at, is_torn, .. } = self;
        let same = match differs_at {
            None => "all outputs are the same".to_owned(),
            Some(number) => format!("the outputs differ from input {number} on"),
        };
        let ended = match (end, is_torn) {
            (End::Stopped, _) => "",
            (End::None, false) => "; the log has no end: the daemon was killed, or still runs",
            (End::None, true) => {
                "; the log ends within a record: the daemon was killed, or still writes"
            }
            (End::TooSlow, _) => {
                "; the log ends early: inputs came faster than they could be written"
            }
            (End::WriteFailed, _) => "; the log ends early: the daemon could not write the file",
        };
        format!("{inputs} inputs were replayed; {same}{ended}")
    }
}

fn word(end: End) -> &'static str {
    match end {
        End::None => "open",
        End::Stopped => "stopped",
        End::TooSlow => "too-slow",
        End::WriteFailed => "write-failed",
    }
}

fn print_json(value: &impl Serialize, out: &mut dyn Write) -> Result<(), VerbError> {
    let json = serde_json::to_string(value).map_err(io::Error::from)?;
    Ok(writeln!(out, "{}", escaped_json(&json))?)
}

/// Text on one line that is not too long.
fn shown(text: &str) -> String {
    let text = escaped(text);
    match text.char_indices().nth(MAX_SHOWN) {
        None => text.into_owned(),
        Some((end, _)) => format!("{}... ({} more bytes)", &text[..end], text.len() - end),
    }
}
