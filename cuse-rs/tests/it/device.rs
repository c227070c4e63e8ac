//! The device under test: a queue of messages that any file writes and any file reads.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use cuse_rs::{
    Caller, Channel, Device, Errno, FileHandle, Ioctl, Open, Poll, PollHandle, Read, ReplyIoctl,
    ReplyOpen, ReplyPoll, ReplyRead, ReplyRelease, ReplyWrite, RequestId, UserRange, Write,
};

pub(crate) const O_NONBLOCK: u32 = 0o4000;
pub(crate) const POLLIN: u32 = 1;
pub(crate) const POLLOUT: u32 = 4;

/// Returns its argument plus one; needs no memory.
pub(crate) const PLUS_ONE: u32 = 0x5101;
/// Adds one to each of the eight bytes at its argument.
pub(crate) const INCREMENT: u32 = 0x5102;
/// Its argument points to the address and the length (64 bits each) of bytes to be reversed.
pub(crate) const REVERSE: u32 = 0x5103;
/// Asks again and again, with one more byte each time, until it has as many as its argument says.
pub(crate) const CREEP: u32 = 0x5104;

#[derive(Debug)]
pub(crate) struct Queue {
    channel: Arc<Channel>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) messages: VecDeque<Vec<u8>>,
    pub(crate) parked: VecDeque<(RequestId, u32)>,
    pub(crate) sleepers: BTreeMap<FileHandle, PollHandle>,
    pub(crate) files: BTreeMap<FileHandle, Caller>,
    /// All reads that have come this far.
    pub(crate) seen: BTreeSet<RequestId>,
    pub(crate) interrupted: usize,
    opened: u64,
}

impl Queue {
    pub(crate) fn new(channel: &Arc<Channel>) -> Self {
        let (state, changed) = Default::default();
        Self { channel: Arc::clone(channel), state, changed }
    }

    /// Waits until `condition` holds.
    #[track_caller]
    pub(crate) fn wait_until(&self, what: &str, condition: impl Fn(&State) -> bool) {
        let limit = Duration::from_secs(10);
        let state = self.state();
        let (_state, result) = self
            .changed
            .wait_timeout_while(state, limit, |state| !condition(state))
            .expect("no test panics while it holds the state");
        assert!(!result.timed_out(), "waited too long until {what}");
    }

    /// Who has the device open.
    pub(crate) fn files(&self) -> Vec<Caller> {
        self.state().files.values().copied().collect()
    }

    /// Puts a message into the queue, as a write does.
    pub(crate) fn push(&self, message: &[u8]) {
        let mut state = self.state();
        match state.parked.pop_front() {
            Some((id, size)) => {
                let size = message.len().min(size as usize);
                self.channel.reply_read(id).bytes(&message[..size]);
            }
            None => state.messages.push_back(message.to_vec()),
        }
        for &sleeper in state.sleepers.values() {
            self.channel.notify_poll(sleeper);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the state")
    }
}

impl Device for Queue {
    fn open(&self, caller: Caller, open: Open, reply: ReplyOpen<'_>) {
        let mut state = self.state();
        if open.flags & O_NONBLOCK != 0 && caller.uid == 13 {
            reply.error(Errno::EACCES);
            return;
        }
        state.opened += 1;
        let file = FileHandle(state.opened);
        state.files.insert(file, caller);
        reply.opened(file);
        self.changed.notify_all();
    }

    fn read(&self, _caller: Caller, read: Read, reply: ReplyRead<'_>) {
        let mut state = self.state();
        state.seen.insert(reply.id());
        if read.offset > 0 {
            reply.bytes(&[]);
        } else if let Some(message) = state.messages.pop_front() {
            let size = message.len().min(read.size as usize);
            reply.bytes(&message[..size]);
        } else if read.flags & O_NONBLOCK != 0 {
            reply.error(Errno::EAGAIN);
        } else {
            state.parked.push_back((reply.defer(), read.size));
        }
        self.changed.notify_all();
    }

    fn write(&self, _caller: Caller, write: Write<'_>, reply: ReplyWrite<'_>) {
        self.push(&write.data);
        reply.written(u32::try_from(write.data.len()).expect("a message is small"));
    }

    fn ioctl(&self, _caller: Caller, ioctl: Ioctl<'_>, reply: ReplyIoctl<'_>) {
        let argument = UserRange { address: ioctl.argument, length: 8 };
        match ioctl.command {
            PLUS_ONE => {
                let argument = i32::try_from(ioctl.argument);
                reply.done(argument.map_or(-22, |number| number.wrapping_add(1)), &[]);
            }
            INCREMENT if ioctl.input.is_empty() => {
                reply.retry(&[argument], &[argument]);
            }
            INCREMENT => {
                let output: Vec<u8> = ioctl.input.iter().map(|byte| byte.wrapping_add(1)).collect();
                reply.done(0, &output);
            }
            REVERSE => reverse(ioctl, reply),
            CREEP => {
                let length = ioctl.input.len();
                if length as u64 == ioctl.argument {
                    reply.done(i32::try_from(length).expect("a few rounds"), &[]);
                } else {
                    reply.retry(&[UserRange { address: 0x1000, length: length + 1 }], &[]);
                }
            }
            _ => {
                reply.error(Errno::ENOTTY);
            }
        }
    }

    fn poll(&self, _caller: Caller, poll: Poll, reply: ReplyPoll<'_>) {
        let mut state = self.state();
        state.sleepers.extend(poll.notify.map(|handle| (poll.file, handle)));
        let readable = if state.messages.is_empty() { 0 } else { POLLIN };
        reply.ready(POLLOUT | readable);
        self.changed.notify_all();
    }

    fn release(&self, file: FileHandle, reply: ReplyRelease<'_>) {
        let mut state = self.state();
        state.sleepers.remove(&file);
        state.files.remove(&file);
        reply.done();
        self.changed.notify_all();
    }

    fn interrupt(&self, target: RequestId) -> bool {
        let mut state = self.state();
        if let Some(at) = state.parked.iter().position(|&(id, _)| id == target) {
            state.parked.remove(at);
            self.channel.reply_read(target).error(Errno::EINTR);
            state.interrupted += 1;
            self.changed.notify_all();
        }
        state.seen.contains(&target)
    }
}

fn reverse(ioctl: Ioctl<'_>, reply: ReplyIoctl<'_>) {
    let pointer = UserRange { address: ioctl.argument, length: 16 };
    let Some((fields, data)) = ioctl.input.split_at_checked(16) else {
        reply.retry(&[pointer], &[]);
        return;
    };
    let word = |at: usize| {
        u64::from_ne_bytes(fields[at..at + 8].try_into().expect("a range of eight bytes"))
    };
    let buffer = UserRange { address: word(0), length: usize::try_from(word(8)).expect("64 bits") };
    if data.len() < buffer.length {
        reply.retry(&[pointer, buffer], &[buffer]);
    } else {
        let output: Vec<u8> = data.iter().rev().copied().collect();
        reply.done(i32::try_from(output.len()).expect("a small buffer"), &output);
    }
}
