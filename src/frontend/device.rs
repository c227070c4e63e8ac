//! Messages of the kernel become requests, outcomes become replies: the same for every kind of device that `cuse_rs`
//! serves.

use std::{
    error,
    io::IoSlice,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{intercept::Carried, opener, probe, stores::Stores};
use crate::{
    abi::tun::{O_NONBLOCK, ioctl::TUNSETIFF},
    core::{
        self, Credentials, FileId, IoctlCall, Op, Origin, Outcome, ReadCall, Reply, Request,
        RequestId, WakeHandle, WriteCall, input,
    },
    errno::Errno,
    hub::{Ended, FileKind, FrontEnd, Hub},
    planted,
};
use bytes::Bytes;
use cuse_rs::{
    Caller, Channel, Device, FileHandle, Ioctl, IoctlFlags, Open, Poll, PollHandle, Read,
    ReplyIoctl, ReplyOpen, ReplyPoll, ReplyRead, ReplyRelease, ReplyWrite, UserRange, Write,
};

/// How long the harness waits for a channel that is not served: a client keeps it busy, or it has ended.
const CATCH_UP: Duration = Duration::from_secs(1);

/// One device: what a client opens.
pub(crate) struct DeviceFrontEnd {
    hub: Arc<Hub>,
    origin: Origin,
    channel: Arc<Channel>,
    identity: Identity,
    stores: Arc<Stores>,
    stop: Mutex<Option<Box<Stop>>>,
}

/// Takes a device away: blocked clients get an error, and the loops that serve it end. False if they do not.
pub(crate) type Stop = dyn FnOnce() -> bool + Send;

/// How an open file of the device is recognised in `/proc/PID/fd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A character device, by its number (`st_rdev`).
    Number(u64),
    /// A file, by the number of the file system that it is alone on (`st_dev`).
    FileSystem(u64),
}

impl DeviceFrontEnd {
    /// Adds a front end for a device to the hub; `None` if the hub has its full number.
    #[must_use]
    pub(crate) fn new(
        hub: &Arc<Hub>,
        channel: Arc<Channel>,
        identity: Identity,
        stop: Box<Stop>,
    ) -> Option<Arc<Self>> {
        hub.add_front_end(|origin| {
            Arc::new(Self {
                hub: Arc::clone(hub),
                origin,
                channel,
                identity,
                stores: Arc::default(),
                stop: Mutex::new(Some(stop)),
            })
        })
    }

    fn submit(&self, id: cuse_rs::RequestId, op: Op) {
        self.submit_as(Form::Plain, id, op);
    }

    fn submit_as(&self, form: Form, id: cuse_rs::RequestId, op: Op) {
        let unique = form.mark(id);
        self.hub.handle(Request { id: RequestId { origin: self.origin, unique }, op });
    }

    /// What the caller may do, where that is asked: by TUNSETIFF, once its argument is there.
    fn credentials(&self, caller: &Caller, ioctl: &Ioctl<'_>) -> Option<Box<Credentials>> {
        if ioctl.command != TUNSETIFF || ioctl.input.is_empty() {
            return None;
        }
        let file = FileId(ioctl.file.0);
        let scope = self.hub.view(|core| core.asks_who_attaches(file))?;
        let network = self.hub.networks().find(scope);
        Some(Box::new(opener::credentials(caller.tid, caller.uid, caller.gid, network.as_deref())))
    }

    fn complete_ioctl(&self, id: cuse_rs::RequestId, outcome: Outcome) {
        if let Ok(Reply::Ioctl { result, output }) = outcome
            && !output.as_bytes().is_empty()
        {
            return self.stores.answer(&self.hub, &self.channel, id, result, output);
        }
        self.stores.forget(id);
        let reply = self.channel.reply_ioctl(id);
        match outcome {
            Ok(Reply::Ioctl { result, .. }) => reply.done(result, &[]),
            Ok(Reply::Fetch { input, output }) => {
                let (input, output) = (input.map(user_range), [user_range(output)]);
                reply.retry(some(&input), some(&output))
            }
            // A carried read or write of zero bytes.
            Ok(Reply::Read { .. } | Reply::Written(_)) => reply.done(0, &[]),
            // No ioctl is answered so.
            Ok(Reply::Ready(_) | Reply::Opened(_) | Reply::Closed) => {
                reply.error(cuse_rs::Errno::EIO)
            }
            Err(errno) => reply.error(to_cuse(errno)),
        };
    }
}

/// What form the reply to a request must have: that of an ioctl, whatever the core is asked, or that of what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    Ioctl,
}

impl Form {
    /// The number of a request in the core: the kernel's, and the form in the lowest bit. The kernel's never have 64 bits
    /// (`fuse_get_unique` counts).
    fn mark(self, id: cuse_rs::RequestId) -> u64 {
        id.0 << 1 | u64::from(self == Self::Ioctl)
    }

    fn unmark(unique: u64) -> (Self, cuse_rs::RequestId) {
        let form = if unique & 1 == 0 { Self::Plain } else { Self::Ioctl };
        (form, cuse_rs::RequestId(unique >> 1))
    }
}

impl Device for DeviceFrontEnd {
    fn open(&self, caller: Caller, open: Open, reply: ReplyOpen<'_>) {
        let opener = opener::look_up(caller.tid, caller.uid, caller.gid);
        self.hub.networks().enter(opener.scope, caller.tid);
        self.submit(reply.defer(), Op::Open { flags: open.flags, opener });
    }

    fn read(&self, _caller: Caller, read: Read, reply: ReplyRead<'_>) {
        let call = ReadCall {
            limit: usize::try_from(read.size).unwrap_or(usize::MAX),
            offset: read.offset,
            nonblock: read.flags & O_NONBLOCK != 0,
        };
        self.submit(reply.defer(), Op::Read(FileId(read.file.0), call));
    }

    fn write(&self, _caller: Caller, write: Write<'_>, reply: ReplyWrite<'_>) {
        let call = WriteCall {
            data: write.data.to_bytes(),
            offset: write.offset,
            nonblock: write.flags & O_NONBLOCK != 0,
        };
        self.submit(reply.defer(), Op::Write(FileId(write.file.0), call));
    }

    fn ioctl(&self, caller: Caller, ioctl: Ioctl<'_>, reply: ReplyIoctl<'_>) {
        planted::panic_at(format_args!("ioctl-{:x}", ioctl.command));
        if ioctl.command == probe::IDENTIFY {
            reply.done(probe::IDENTITY, &[]);
            return;
        }
        let file = FileId(ioctl.file.0);
        let op = match Carried::decode(ioctl.command, ioctl.argument) {
            Some(carried) => carried.op(file),
            None => Op::Ioctl(
                file,
                IoctlCall {
                    command: ioctl.command,
                    argument: ioctl.argument,
                    credentials: self.credentials(&caller, &ioctl),
                    compat: ioctl.flags.contains(IoctlFlags::COMPAT),
                    input: Bytes::copy_from_slice(ioctl.input),
                    output_room: usize::try_from(ioctl.output_size).unwrap_or(usize::MAX),
                },
            ),
        };
        let id = reply.defer();
        // All others are answered without memory of the caller, or at once.
        if ioctl.command == TUNSETIFF && matches!(self.identity, Identity::FileSystem(_)) {
            self.stores.ask(id, caller.uid, || self.submit_as(Form::Ioctl, id, op));
        } else {
            self.submit_as(Form::Ioctl, id, op);
        }
    }

    fn poll(&self, _caller: Caller, poll: Poll, reply: ReplyPoll<'_>) {
        planted::panic_at("poll");
        let arm = poll.notify.map(|handle| WakeHandle(handle.0));
        self.submit(reply.defer(), Op::Poll { file: FileId(poll.file.0), arm });
    }

    fn release(&self, file: FileHandle, reply: ReplyRelease<'_>) {
        self.submit(reply.defer(), Op::Close(FileId(file.0)));
    }

    fn interrupt(&self, target: cuse_rs::RequestId) -> bool {
        // Two forms of a call can wait: an ioctl for a netdev that is being made, and a carried read of zero bytes, as other reads do.
        [Form::Plain, Form::Ioctl].into_iter().any(|form| {
            let unique = form.mark(target);
            self.hub.handle(input::Cancel { request: RequestId { origin: self.origin, unique } })
        })
    }
}

impl FrontEnd for DeviceFrontEnd {
    /// Until the device is unregistered; see [`Channel::serve_briskly`].
    fn serve(&self, briskly: bool) -> Result<Ended, Box<dyn error::Error + Send + Sync>> {
        if briskly { self.channel.serve_briskly(self) } else { self.channel.serve(self) }?;
        Ok(Ended::Taken)
    }

    /// What the kernel says to a reply is of no use here: the request may be gone with its caller.
    fn complete(&self, unique: u64, outcome: Outcome) {
        let channel = &self.channel;
        let (form, id) = Form::unmark(unique);
        match outcome {
            outcome if form == Form::Ioctl => self.complete_ioctl(id, outcome),
            Ok(Reply::Opened(file)) => {
                if !channel.reply_open(id).opened(FileHandle(file.0)) {
                    // The opener is gone, so no close will come: the file would stay for ever.
                    let request = RequestId { origin: self.origin, unique };
                    self.hub.handle(input::Undelivered { request });
                }
            }
            Ok(Reply::Read { head, body }) => {
                channel.reply_read(id).data(&[IoSlice::new(head.as_bytes()), IoSlice::new(&body)]);
            }
            Ok(Reply::Written(count)) => {
                channel.reply_write(id).written(u32::try_from(count).unwrap_or(u32::MAX));
            }
            Ok(Reply::Ready(events)) => {
                channel.reply_poll(id).ready(events);
            }
            Ok(Reply::Closed) => {
                channel.reply_release(id).done();
            }
            // Nothing but an ioctl is answered so.
            Ok(Reply::Ioctl { .. } | Reply::Fetch { .. }) => {
                channel.reply_read(id).error(cuse_rs::Errno::EIO);
            }
            // An error reply has no payload, so it is the same for all of these.
            Err(errno) => {
                channel.reply_read(id).error(to_cuse(errno));
            }
        }
    }

    fn wake(&self, handle: WakeHandle) {
        self.channel.notify_poll(PollHandle(handle.0));
    }

    fn owns(&self, file: FileKind) -> bool {
        match self.identity {
            Identity::Number(number) => file.character_device == Some(number),
            Identity::FileSystem(number) => file.file_system == number,
        }
    }

    fn catch_up(&self) -> bool {
        self.channel.catch_up(CATCH_UP)
    }

    fn stop(&self) -> bool {
        let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
        stop.is_some_and(|stop| stop())
    }
}

fn user_range(range: core::UserRange) -> UserRange {
    UserRange { address: range.address, length: range.length }
}

/// The ranges before the first that is empty.
fn some(ranges: &[UserRange]) -> &[UserRange] {
    let count = ranges.iter().take_while(|range| range.length > 0).count();
    &ranges[..count]
}

fn to_cuse(errno: Errno) -> cuse_rs::Errno {
    cuse_rs::Errno::from_number(errno.number())
}
