//! `/dev/fifo`, or a file of any name: bytes that are written can be read. A read of the empty FIFO waits.
//!
//! Shows what a device with waiting clients needs: `defer`, poll with notification, O_NONBLOCK, interrupt.
//!
//! ```text
//! # modprobe cuse && cargo run --example fifo &
//! # cat /dev/fifo &
//! # echo hello > /dev/fifo
//! ```
//!
//! Without CUSE, `cargo run --example fifo /tmp/fifo` does the same with a file.
#![allow(clippy::print_stderr, reason = "an example talks to its user")]

use std::collections::{BTreeMap, VecDeque};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cuse_rs::cuse::DeviceOptions;
use cuse_rs::fuse_file::FileOptions;
use cuse_rs::{
    Caller, Channel, Device, Errno, FileHandle, Open, Poll, PollHandle, Read, ReplyOpen, ReplyPoll,
    ReplyRead, ReplyRelease, ReplyWrite, RequestId, Write,
};
use nix::{fcntl::OFlag, poll::PollFlags};

/// One FIFO, whoever opens it.
struct Fifo {
    channel: Arc<Channel>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    /// Reads that wait, and the room they have.
    parked: VecDeque<(RequestId, u32)>,
    /// Whom to tell when bytes arrive, by open file.
    sleepers: BTreeMap<FileHandle, PollHandle>,
    opened: u64,
}

impl Fifo {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, size: u32) -> Vec<u8> {
        let size = self.bytes.len().min(size as usize);
        self.bytes.drain(..size).collect()
    }
}

impl Device for Fifo {
    fn open(&self, _caller: Caller, _open: Open, reply: ReplyOpen<'_>) {
        let mut state = self.state();
        state.opened += 1;
        reply.opened(FileHandle(state.opened));
    }

    fn read(&self, _caller: Caller, read: Read, reply: ReplyRead<'_>) {
        let mut state = self.state();
        if !state.bytes.is_empty() || read.offset > 0 {
            // The next piece of a large read gets what there is, and never waits.
            reply.bytes(&state.take(read.size));
        } else if read.flags & OFlag::O_NONBLOCK.bits().cast_unsigned() != 0 {
            reply.error(Errno::EAGAIN);
        } else {
            state.parked.push_back((reply.defer(), read.size));
        }
    }

    fn write(&self, _caller: Caller, write: Write<'_>, reply: ReplyWrite<'_>) {
        let mut state = self.state();
        state.bytes.extend(write.data.slice());
        reply.written(u32::try_from(write.data.len()).unwrap_or(u32::MAX));
        while !state.bytes.is_empty()
            && let Some((id, size)) = state.parked.pop_front()
        {
            self.channel.reply_read(id).bytes(&state.take(size));
        }
        for &sleeper in state.sleepers.values() {
            self.channel.notify_poll(sleeper);
        }
    }

    fn poll(&self, _caller: Caller, poll: Poll, reply: ReplyPoll<'_>) {
        let mut state = self.state();
        state.sleepers.extend(poll.notify.map(|sleeper| (poll.file, sleeper)));
        let mut ready = PollFlags::POLLOUT | PollFlags::POLLWRNORM;
        ready.set(PollFlags::POLLIN | PollFlags::POLLRDNORM, !state.bytes.is_empty());
        reply.ready(ready.bits().cast_unsigned().into());
    }

    fn release(&self, file: FileHandle, reply: ReplyRelease<'_>) {
        self.state().sleepers.remove(&file);
        reply.done();
    }

    fn interrupt(&self, target: RequestId) -> bool {
        let mut state = self.state();
        if let Some(at) = state.parked.iter().position(|&(id, _)| id == target) {
            state.parked.remove(at);
            self.channel.reply_read(target).error(Errno::EINTR);
        }
        // One thread serves: a request that is not parked has been answered.
        true
    }
}

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or("fifo".to_owned());
    match serve(&name) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fifo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(name: &str) -> Result<(), Box<dyn std::error::Error>> {
    let fifo = |channel: &Arc<Channel>| Fifo { channel: channel.clone(), state: Mutex::default() };
    if name.starts_with('/') {
        let mount = FileOptions::mount_at(name).name("fifo").mode(0o666).mount()?;
        return Ok(mount.channel().serve(&fifo(mount.channel()))?);
    }
    let registration = DeviceOptions::new(name.parse()?).mode(0o666).register()?;
    Ok(registration.channel().serve(&fifo(registration.channel()))?)
}
