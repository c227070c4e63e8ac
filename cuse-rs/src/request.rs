//! What a device is asked: the requests of `linux/fuse.h` without their transport.
//!
//! Owns plain data only. [`crate::codec`] makes these values from the kernel's bytes.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

pub use crate::abi::IoctlFlags;

/// Who made a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caller {
    /// Thread id in the pid namespace of whoever opened the channel; 0: not visible there.
    pub tid: u32,
    /// The thread's fsuid in the user namespace of whoever opened the channel.
    pub uid: u32,
    /// The thread's fsgid, likewise.
    pub gid: u32,
}

impl Caller {
    /// A thread, with its user and its group.
    #[must_use]
    pub const fn new(tid: u32, uid: u32, gid: u32) -> Self {
        Self { tid, uid, gid }
    }
}

/// The kernel's name for one request (`unique`), valid until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// The device's name for one open file: what the reply to OPEN gave comes back with each later request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileHandle(pub u64);

/// The kernel's name for one open file in notifications, valid as long as the file is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PollHandle(pub u64);

/// `open(2)` of the device node or the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Open {
    /// The `O_*` flags.
    pub flags: u32,
}

impl Open {
    /// With `O_*` flags.
    #[must_use]
    pub const fn new(flags: u32) -> Self {
        Self { flags }
    }
}

/// `read(2)`, `readv(2)` and the like.
///
/// One message carries `max_read`, 32 pages and 32 pieces of an iovec; on a FUSE file 256 of both. A call with more room arrives in
/// pieces. The kernel asks for the next piece only if the one before it was filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Read {
    /// The open file.
    pub file: FileHandle,
    /// Bytes that earlier pieces of the same call have brought (not a position: `pread` looks like `read`, or
    /// fails on a FUSE file).
    pub offset: u64,
    /// Room in bytes. A longer answer is refused by the kernel, and the caller gets EIO.
    pub size: u32,
    /// The open file's `O_*` flags at this moment: O_NONBLOCK may have been set or cleared since OPEN.
    pub flags: u32,
}

impl Read {
    /// The first piece of a call that may wait.
    #[must_use]
    pub const fn new(file: FileHandle, size: u32) -> Self {
        Self { file, offset: 0, size, flags: 0 }
    }
}

/// `write(2)`, `writev(2)` and the like.
///
/// One message carries `max_write`, 32 pages and 32 pieces of an iovec; on a FUSE file 256 of both. A call with more data arrives in
/// pieces. The first piece does not tell that more will follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Write<'a> {
    /// The open file.
    pub file: FileHandle,
    /// Bytes that earlier pieces of the same call have carried (not a position).
    pub offset: u64,
    /// What is written, gathered.
    pub data: Payload<'a>,
    /// The open file's `O_*` flags at this moment: O_NONBLOCK may have been set or cleared since OPEN.
    pub flags: u32,
}

impl<'a> Write<'a> {
    /// The first piece of a call that may wait.
    #[must_use]
    pub fn new(file: FileHandle, data: impl Into<Payload<'a>>) -> Self {
        Self { file, offset: 0, data: data.into(), flags: 0 }
    }
}

/// What a client writes: a slice, which can be kept.
#[derive(Clone, Copy)]
pub struct Payload<'a> {
    data: &'a [u8],
    /// The same, where it can be kept without a copy.
    shared: Option<&'a Bytes>,
}

impl<'a> Payload<'a> {
    /// The bytes, for as long as the message is there.
    #[must_use]
    pub fn slice(&self) -> &'a [u8] {
        self.data
    }

    /// The bytes, to be kept: without a copy where there are many (32 KiB or more, on a [`Channel`](crate::Channel)). Until
    /// they are dropped they keep a buffer of at most twice their length.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.shared.map_or_else(|| Bytes::copy_from_slice(self.data), Bytes::clone)
    }
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(data: &'a [u8]) -> Self {
        Self { data, shared: None }
    }
}

impl<'a, const LENGTH: usize> From<&'a [u8; LENGTH]> for Payload<'a> {
    fn from(data: &'a [u8; LENGTH]) -> Self {
        data.as_slice().into()
    }
}

impl<'a> From<&'a Bytes> for Payload<'a> {
    fn from(shared: &'a Bytes) -> Self {
        Self { data: shared, shared: Some(shared) }
    }
}

impl Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.data
    }
}

impl PartialEq for Payload<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.data == other.data
    }
}

impl Eq for Payload<'_> {}

impl fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.data.fmt(f)
    }
}

/// `ioctl(2)`.
///
/// Where ioctls are unrestricted, each call first arrives without data. A device that needs memory of the caller answers with
/// [`retry`](crate::ReplyIoctl::retry). Then the call comes again (from `/dev/cuse` under another id), with `input` read and room for
/// `output`. A device may retry any number of times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ioctl<'a> {
    /// The open file.
    pub file: FileHandle,
    /// The second argument of `ioctl(2)`.
    pub command: u32,
    /// The third one: a number, or an address of the caller.
    pub argument: u64,
    /// Width of the caller and the mode of the channel.
    pub flags: IoctlFlags,
    /// The bytes of the ranges that a retry named as input, joined.
    pub input: &'a [u8],
    /// Room in bytes in the ranges that a retry named as output.
    pub output_size: u32,
}

impl Ioctl<'_> {
    /// A call as it arrives first, without data.
    #[must_use]
    pub const fn new(file: FileHandle, command: u32, argument: u64) -> Self {
        Self { file, command, argument, flags: IoctlFlags::empty(), input: &[], output_size: 0 }
    }
}

/// `poll(2)`, `select(2)`, `epoll_wait(2)`, and `epoll_ctl(2)` too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Poll {
    /// The open file.
    pub file: FileHandle,
    /// The `POLL*` events of interest.
    pub events: u32,
    /// Whom to notify: the caller may go to sleep. Call [`Channel::notify_poll`](crate::Channel::notify_poll)
    /// at every later event, for as long as the file is open: an edge-triggered epoll counts them.
    pub notify: Option<PollHandle>,
}

impl Poll {
    /// Of a caller that goes to sleep, if somebody is to be notified.
    #[must_use]
    pub const fn new(file: FileHandle, events: u32, notify: Option<PollHandle>) -> Self {
        Self { file, events, notify }
    }
}

/// A range of the caller's memory that an ioctl needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserRange {
    /// Address.
    pub address: u64,
    /// Length in bytes.
    pub length: usize,
}
