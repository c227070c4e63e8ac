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

use super::script::{Act, Action, Change, Line, bytes, shown};

/// The other end of tunnels.
pub trait Far {
    /// Changes a tunnel. What is refused has no effect, which the steps after it show; so with all of these.
    fn change(&mut self, tunnel: &str, change: &Change);
    /// Sends a datagram or a frame to the client, so many times.
    fn inject(&mut self, tunnel: &str, datagram: &[u8], times: u32);
    /// The oldest datagram that the client wrote.
    fn take(&mut self, tunnel: &str) -> Option<Vec<u8>>;
    /// What can be seen of a tunnel.
    fn show(&mut self, tunnel: &str) -> String;
    /// Does something; what it tells, if it is an act that tells something.
    fn perform(&mut self, act: &Act) -> Option<String> {
        match act {
            Act::Link { tunnel, change } => {
                self.change(tunnel, change);
                None
            }
            Act::Inject { tunnel, bytes: datagram, times } => {
                self.inject(tunnel, &bytes(datagram), *times);
                None
            }
            Act::Take { tunnel } => {
                Some(self.take(tunnel).map_or("nothing".to_owned(), |taken| shown(&taken)))
            }
            Act::Show { tunnel } => Some(self.show(tunnel)),
        }
    }
    /// What is seen from outside may come some time after the call that made it so.
    fn is_late(&self) -> bool {
        false
    }
    /// Whether a call that sleeps in the kernel waits for the far side, not for an answer that is on its way.
    fn is_waited_for(&mut self) -> bool {
        true
    }
    /// Removes tunnels that outlived their files, with the program's help where it takes that. The names are all that a
    /// script can have used.
    fn clear(&mut self, names: &[&str], program: &mut Program);
}

/// What can be seen of a tunnel from outside.
pub struct Seen {
    pub mode: String,
    pub up: bool,
    pub mtu: u64,
    pub persistent: bool,
    pub owner: String,
    pub group: String,
}

/// The same words for the kernel and memtun.
pub fn describe(seen: Option<Seen>) -> String {
    let Some(Seen { mode, up, mtu, persistent, owner, group }) = seen else {
        return "no such tunnel".to_owned();
    };
    let up = if up { "up" } else { "down" };
    format!("{mode} {up} mtu={mtu} persistent={persistent} owner={owner} group={group}")
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

    /// The results of a script, one for each line that has one. What is seen from outside may take some time to become what
    /// it should be, if that is known. Fails if the program does not answer.
    pub fn perform(
        &mut self,
        lines: &[Line],
        wanted: Option<&[Option<String>]>,
    ) -> Result<Vec<Option<String>>, String> {
        let mut results = Vec::with_capacity(lines.len());
        let mut next = 0;
        while next < lines.len() {
            // Steps that follow each other are sent together, up to one whose answer may be too early.
            let mut steps: Vec<&str> = lines[next..].iter().map_while(Line::step).collect();
            let first = steps.iter().position(|step| step.starts_with(BLOCKED));
            steps.truncate(first.map_or(steps.len(), |at| at + 1));
            for step in &steps {
                self.program.send(step);
            }
            self.program.flush();
            for step in &steps {
                results.push(Some(self.program.answer(step)?));
            }
            next += steps.len();
            if let Some(step) = steps.last().filter(|step| step.starts_with(BLOCKED)) {
                self.settle(step, results.last_mut().expect("it has a result"))?;
            }
            if let Some(Line { action: Action::Far(act), .. }) = lines.get(next) {
                let wanted = wanted.and_then(|wanted| wanted[next].as_deref());
                results.push(self.act(act, wanted));
                next += 1;
            }
        }
        Ok(results)
    }

    /// Asks again whether a thread is blocked, until it is not or somebody can end that.
    fn settle(&mut self, step: &str, answer: &mut Option<String>) -> Result<(), String> {
        for _ in 0..LATE_MS {
            if answer.as_deref() != Some("blocked") || self.far.is_waited_for() {
                break;
            }
            let tick = poll(&mut [], PollTimeout::from(1_u16));
            assert_eq!(tick, Ok(0));
            *answer = Some(self.program.ask(step)?);
        }
        Ok(())
    }

    fn act(&mut self, act: &Act, wanted: Option<&str>) -> Option<String> {
        let mut told = self.far.perform(act);
        if let Act::Show { .. } = act
            && self.far.is_late()
        {
            for _ in 0..LATE_MS {
                if told.as_deref() == wanted {
                    break;
                }
                let tick = poll(&mut [], PollTimeout::from(1_u16));
                assert_eq!(tick, Ok(0));
                told = self.far.perform(act);
            }
        }
        told
    }

    /// Forgets all that a script left behind.
    pub fn reset(&mut self, names: &[&str]) -> Result<(), String> {
        self.program.ask("reset")?;
        self.far.clear(names, &mut self.program);
        Ok(())
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

/// The step that asks whether a thread is blocked.
const BLOCKED: &str = "blocked ";
/// How late something may be seen.
const LATE_MS: u32 = 2_000;

/// How long a step may take. The program gives up long before; but on a machine under load the kernel was seen to need more
/// than a minute to remove an interface.
const DEADLINE_MS: u32 = 240_000;

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
            if poll(&mut files, PollTimeout::try_from(DEADLINE_MS).expect("it fits")) != Ok(1) {
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

    /// The process that was started, which may be one that runs the program.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// One step alone.
    pub fn ask(&mut self, step: &str) -> Result<String, String> {
        self.send(step);
        self.flush();
        self.answer(step)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // `memtun run` passes SIGTERM on; what is killed takes its program along too.
        let _ended = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _reaped = self.child.wait();
    }
}
