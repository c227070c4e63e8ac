//! What a script is tried on: a program that makes the calls, and the far side of its tunnels.

use std::{
    any::Any,
    io::{BufRead, BufReader, Write},
    os::fd::AsFd,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::script::{Act, Action, Line};

/// The other end of tunnels.
pub trait Far {
    /// Does something; what it tells, if it is an act that tells something.
    fn perform(&mut self, act: &Act) -> Option<String>;
    /// Waits until a call that sleeps in the kernel waits for the far side too.
    fn settle(&mut self) {}
}

/// One who answers the steps of scripts.
pub struct Subject {
    pub program: Program,
    pub far: Box<dyn Far>,
    /// Lives as long.
    _kept: Box<dyn Any>,
}

impl Subject {
    pub fn new(program: Program, far: impl Far + 'static, kept: impl Any) -> Self {
        Self { program, far: Box::new(far), _kept: Box::new(kept) }
    }

    /// The results of a script, one for each line that has one. Fails if the program does not answer.
    pub fn perform(&mut self, lines: &[Line]) -> Result<Vec<Option<String>>, String> {
        let mut results = Vec::with_capacity(lines.len());
        let mut next = 0;
        while next < lines.len() {
            // Steps that follow each other are sent together.
            let steps: Vec<&str> = lines[next..].iter().map_while(|line| line.step()).collect();
            for step in &steps {
                self.program.send(step);
            }
            self.program.flush();
            for step in &steps {
                results.push(Some(self.program.answer(step)?));
            }
            next += steps.len();
            let waits = steps.last().is_some_and(|step| step.starts_with("blocked "));
            if waits && results.last().is_some_and(|last| last.as_deref() == Some("blocked")) {
                self.far.settle();
            }
            if let Some(Line { action: Action::Far(act), .. }) = lines.get(next) {
                results.push(self.far.perform(act));
                next += 1;
            }
        }
        Ok(results)
    }
}

impl Line {
    fn step(&self) -> Option<&str> {
        match &self.action {
            Action::Client(step) => Some(step),
            Action::Far(_) => None,
        }
    }
}

/// How long a step may take; the program itself gives up before.
const DEADLINE_MS: u16 = 60_000;

/// The program `step/step.c`, running.
pub struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    buffer: Vec<u8>,
}

impl Program {
    pub fn start(command: &mut Command) -> Self {
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let input = child.stdin.take().expect("it is piped");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, input, output, buffer: Vec::new() }
    }

    fn send(&mut self, step: &str) {
        self.buffer.extend(step.as_bytes());
        self.buffer.push(b'\n');
    }

    /// What cannot be written shows in the answers that do not come.
    fn flush(&mut self) {
        let _ended = self.input.write_all(&self.buffer);
        self.buffer.clear();
    }

    fn answer(&mut self, step: &str) -> Result<String, String> {
        if self.output.buffer().is_empty() {
            let mut files = [PollFd::new(self.output.get_ref().as_fd(), PollFlags::POLLIN)];
            if poll(&mut files, PollTimeout::from(DEADLINE_MS)) != Ok(1) {
                return Err(format!("no answer to {step}"));
            }
        }
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(|error| error.to_string())?;
        match line.strip_suffix('\n') {
            Some(line) if line.starts_with('?') => Err(format!("{step}: {line}")),
            Some(line) => Ok(line.to_owned()),
            None => Err(format!("the program ended at {step}")),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // `memtun run` passes SIGTERM on; what is killed takes its program along too.
        let _ended = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _reaped = self.child.wait();
    }
}
