//! The log's way to standard error. To log a line never panics and never waits, and the number of lines has a limit.
//!
//! # Theory of operation
//!
//! A thread that logs formats its line and puts it into a bounded queue. Another thread, the log's own, writes the queue. So no
//! other thread waits for a full disk, a stopped terminal, or a pipe that nobody reads. A line is lost if the queue has no room for
//! it or standard error refuses it. Lost lines are counted, and one line tells the number once standard error takes lines again.
//!
//! Each place in the source that logs is a *kind* of message. Within ten seconds only some lines of each kind pass. The others are
//! counted and not even formatted, and one line tells their number after the ten seconds. So a client that is refused again and
//! again does not fill a disk.
//!
//! The log's thread starts with the daemon ([`start_thread`]). Before that the process forks and enters namespaces, for which it
//! must have one thread. Until then the thread that logs writes as much as standard error takes at once, and leaves the rest in
//! the queue.
//!
//! The end of the process waits a moment for the queue ([`finish`]).

use std::{
    collections::VecDeque,
    fmt,
    io::{self, Write},
    mem,
    os::fd::AsFd,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tracing::{Event, Level, Metadata, Subscriber, callsite::Identifier};
use tracing_subscriber::{Layer, fmt::MakeWriter, layer::Context};

use crate::planted;

/// Bytes of lines that wait to be written.
const MAX_BYTES: usize = 1 << 20;
/// For how long the lines of one kind are counted together.
const WINDOW: Duration = Duration::from_secs(10);
/// Lines of a kind that pass in that time.
const BURST: u64 = 20;
/// The same for debug messages: whoever asks for those wants to see more.
const DEBUG_BURST: u64 = 1_000;
/// How long the end of the process waits for standard error.
const PATIENCE: Duration = Duration::from_secs(1);
/// What `write(2)` on a pipe takes at once where `poll(2)` says that there is room.
const PIECE: usize = nix::libc::PIPE_BUF;

/// A line for standard error that is no message of the log. Like those, it may be lost, but holds up nobody.
pub fn say(line: impl fmt::Display) {
    QUEUE.push(format!("{line}\n").into_bytes());
}

/// Starts the thread that writes; from now on nobody else does. Without the thread all goes on as before.
///
/// # Errors
///
/// There is no thread.
pub fn start_thread() -> io::Result<()> {
    let mut state = QUEUE.lock();
    if !mem::replace(&mut state.has_thread, true) {
        drop(state);
        let started = thread::Builder::new().name("log".to_owned()).spawn(|| {
            let writing = Writing;
            QUEUE.run();
            drop(writing);
        });
        if let Err(error) = started {
            drop(Writing);
            return Err(error);
        }
    }
    Ok(())
}

/// Waits until all is written: for a second in which nobody reads anything, and for ten in all.
pub fn finish() {
    QUEUE.finish(PATIENCE);
}

/// What the log is written to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Queued;

impl<'a> MakeWriter<'a> for Queued {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { kind: None }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        Line { kind: Some(metadata.callsite()) }
    }
}

/// One line of the log.
#[derive(Debug)]
pub(super) struct Line {
    kind: Option<Identifier>,
}

impl Write for Line {
    /// The whole of a line, as `tracing_subscriber` writes it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(kind) = &self.kind {
            QUEUE.remember(kind, line);
        }
        QUEUE.push(line.to_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lets some messages of each kind pass.
pub(super) struct Limit;

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let burst = match *event.metadata().level() {
            // Whoever asks for this wants it all.
            Level::TRACE => return true,
            Level::DEBUG => DEBUG_BURST,
            _ => BURST,
        };
        QUEUE.passes(event.metadata().callsite(), burst, now())
    }
}

static QUEUE: Queue = Queue::new();

struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    lines: VecDeque<Vec<u8>>,
    /// Of the lines that wait, and of the one that is being written.
    bytes: usize,
    /// Lines that were lost and not told of.
    lost: u64,
    /// One for each place that has logged, so their number is bounded by the source.
    kinds: Vec<Kind>,
    has_thread: bool,
    is_writing: bool,
}

/// The messages of one place in the source.
struct Kind {
    callsite: Identifier,
    since: Instant,
    count: u64,
    left_out: u64,
    /// The last line that passed, to tell what the others were like.
    line: Vec<u8>,
}

impl Queue {
    const fn new() -> Self {
        let state = State {
            lines: VecDeque::new(),
            bytes: 0,
            lost: 0,
            kinds: Vec::new(),
            has_thread: false,
            is_writing: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn push(&self, line: Vec<u8>) {
        let mut state = self.lock();
        state.push(line);
        if state.has_thread {
            self.changed.notify_all();
        } else {
            state.write_some();
        }
    }

    fn remember(&self, callsite: &Identifier, line: &[u8]) {
        if let Some(kind) = self.lock().kinds.iter_mut().find(|kind| kind.callsite == *callsite) {
            kind.line.clear();
            // Without the journal's priority.
            let line = if line.starts_with(b"<") { &line[line.len().min(3)..] } else { line };
            kind.line.extend_from_slice(line.trim_ascii_end());
        }
    }

    fn passes(&self, callsite: Identifier, burst: u64, now: Instant) -> bool {
        let mut state = self.lock();
        state.tell_left_out(|kind| kind.ends() <= now);
        let found = state.kinds.iter_mut().position(|kind| kind.callsite == callsite);
        let index = found.unwrap_or_else(|| {
            state.kinds.push(Kind {
                callsite,
                since: now,
                count: 0,
                left_out: 0,
                line: Vec::new(),
            });
            state.kinds.len() - 1
        });
        let kind = &mut state.kinds[index];
        if kind.ends() <= now {
            (kind.since, kind.count) = (now, 0);
        }
        kind.count += 1;
        if kind.count <= burst {
            return true;
        }
        kind.left_out += 1;
        if kind.left_out == 1 {
            // The thread is to tell of it in time.
            self.changed.notify_all();
        }
        false
    }

    /// The body of the thread.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            let now = now();
            state.tell_left_out(|kind| kind.ends() <= now);
            let Some(line) = state.lines.pop_front() else {
                let due = state.kinds.iter().filter(|kind| kind.left_out > 0).map(Kind::ends).min();
                state = match due {
                    None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                    Some(due) => {
                        let rest = due.saturating_duration_since(now);
                        let waited = self.changed.wait_timeout(state, rest);
                        waited.unwrap_or_else(PoisonError::into_inner).0
                    }
                };
                continue;
            };
            state.is_writing = true;
            drop(state);
            planted::panic_at("log");
            let written = write_all(&line);
            state = self.lock();
            state.is_writing = false;
            state.bytes -= line.len();
            state.is_written(written);
            self.changed.notify_all();
        }
    }

    fn finish(&self, patience: Duration) {
        let end = now() + 10 * patience;
        let mut state = self.lock();
        state.tell_left_out(|_| true);
        self.changed.notify_all();
        let (mut left, mut deadline) = (state.bytes, now() + patience);
        while !state.lines.is_empty() || state.is_writing {
            if state.bytes < left {
                (left, deadline) = (state.bytes, end.min(now() + patience));
            }
            let rest = deadline.saturating_duration_since(now());
            if rest.is_zero() {
                return;
            }
            if state.has_thread {
                let waited = self.changed.wait_timeout(state, rest);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            } else {
                wait_for_room(PollTimeout::try_from(rest).unwrap_or(PollTimeout::ZERO));
                state.write_some();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, line: Vec<u8>) {
        if self.bytes + line.len() > MAX_BYTES {
            self.lost += 1;
            return;
        }
        self.bytes += line.len();
        self.lines.push_back(line);
    }

    /// A line was written, or is lost.
    fn is_written(&mut self, written: Result<(), Errno>) {
        match written {
            Ok(()) if self.lost > 0 => {
                let lost = mem::take(&mut self.lost);
                let told = format!(
                    "memtun: {lost} lines were lost, because standard error did not take them\n"
                );
                self.bytes += told.len();
                self.lines.push_front(told.into_bytes());
            }
            Ok(()) => {}
            Err(_) => self.lost += 1,
        }
    }

    fn tell_left_out(&mut self, is_due: impl Fn(&Kind) -> bool) {
        let mut told = Vec::new();
        for kind in &mut self.kinds {
            if kind.left_out > 0 && is_due(kind) {
                let seconds = WINDOW.as_secs();
                let left_out = mem::take(&mut kind.left_out);
                let text =
                    format!("memtun: left out {left_out} more messages within {seconds} s like: ");
                told.push([text.as_bytes(), &kind.line, b"\n"].concat());
            }
        }
        told.into_iter().for_each(|line| self.push(line));
    }

    /// Writes what standard error takes at once.
    fn write_some(&mut self) {
        while let Some(mut line) = self.lines.pop_front() {
            if !wait_for_room(PollTimeout::ZERO) {
                self.lines.push_front(line);
                return;
            }
            let written = write_some(&line);
            self.bytes -= written.unwrap_or(line.len());
            if let Ok(written) = written
                && written < line.len()
            {
                line.drain(..written);
                self.lines.push_front(line);
                continue;
            }
            self.is_written(written.map(drop));
        }
    }
}

impl Kind {
    fn ends(&self) -> Instant {
        self.since + WINDOW
    }
}

/// The thread is running. However it ends, others write then.
struct Writing;

impl Drop for Writing {
    fn drop(&mut self) {
        let mut state = QUEUE.lock();
        (state.has_thread, state.is_writing) = (false, false);
        QUEUE.changed.notify_all();
    }
}

/// Waits as long as it takes.
fn write_all(mut line: &[u8]) -> Result<(), Errno> {
    while !line.is_empty() {
        match write_some(line) {
            Ok(written) => line = &line[written..],
            // Whoever shares it has made it non-blocking.
            Err(Errno::EAGAIN) => {
                wait_for_room(PollTimeout::NONE);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn write_some(line: &[u8]) -> Result<usize, Errno> {
    loop {
        match nix::unistd::write(io::stderr(), &line[..line.len().min(PIECE)]) {
            Err(Errno::EINTR) => {}
            Ok(0) => return Err(Errno::EIO),
            written => return written,
        }
    }
}

/// Whether standard error takes something, or says why not, without waiting.
fn wait_for_room(timeout: PollTimeout) -> bool {
    let stderr = io::stderr();
    let mut files = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    // Interrupted, it is asked again.
    poll(&mut files, timeout).is_ok_and(|ready| ready > 0)
}

#[expect(clippy::disallowed_methods, reason = "lines are counted over a time")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not of size zero, or two of them may have one address.
    struct Place(#[expect(dead_code, reason = "it has a size")] u8);

    impl tracing::callsite::Callsite for Place {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}

        fn metadata(&self) -> &Metadata<'_> {
            unreachable!("nobody asks")
        }
    }

    static PLACE: Place = Place(0);
    static OTHER: Place = Place(1);

    fn text(queue: &Queue) -> Vec<String> {
        let lines = mem::take(&mut queue.lock().lines);
        lines.into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
    }

    #[test]
    fn messages_of_one_kind_are_limited_and_their_number_is_told() {
        let (queue, start) = (Queue::new(), now());
        let place = Identifier(&PLACE);
        let passed = (0..500).filter(|_| queue.passes(place.clone(), BURST, start)).count();
        assert_eq!(u64::try_from(passed).unwrap(), BURST);
        queue.remember(&place, b"<6>refused\n");
        assert!(text(&queue).is_empty(), "it is told when the time is over");
        assert!(queue.passes(place, BURST, start + WINDOW));
        let told = text(&queue);
        assert_eq!(told, ["memtun: left out 480 more messages within 10 s like: refused\n"]);
    }

    #[test]
    fn another_kind_passes() {
        let (queue, start) = (Queue::new(), now());
        while queue.passes(Identifier(&PLACE), BURST, start) {}
        assert!(queue.passes(Identifier(&OTHER), BURST, start));
    }

    #[test]
    fn a_full_queue_loses_lines_and_counts_them() {
        let mut state = Queue::new().state.into_inner().unwrap();
        let line = vec![b'x'; 1000];
        let fits = MAX_BYTES / line.len();
        (0..fits + 7).for_each(|_| state.push(line.clone()));
        assert_eq!((state.lines.len(), state.lost), (fits, 7));
        state.is_written(Err(Errno::ENOSPC));
        assert_eq!(state.lost, 8);
        state.is_written(Ok(()));
        let told = String::from_utf8(state.lines.pop_front().unwrap()).unwrap();
        assert!(told.contains(" 8 lines were lost"), "{told}");
        assert_eq!(state.lost, 0);
    }
}
