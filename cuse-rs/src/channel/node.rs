//! What a file has beyond a character device: attributes, and ioctls whose memory the server moves itself.
//!
//! Owns the attributes that a client may change. Leaves the rounds of an ioctl to [`Calls`].

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;

use super::barrier::Barrier;
use super::device::Device;
use super::ioctl::Calls;
use crate::abi::{self, OpenFlags, SetattrFlags};
use crate::channel::Channel;
use crate::codec::{FileRequest, Reply, Setattr};
use crate::errno::Errno;
use crate::request::{Caller, Ioctl, RequestId, Write};

/// `S_IFREG`.
const REGULAR: u32 = 0o100_000;

/// How long the kernel may keep the attributes. Nothing changes them but SETATTR, whose reply it sees.
const ATTRIBUTES_VALID: Duration = Duration::from_secs(3600);

/// Size of the file: `MAX_RW_COUNT`, the most that one call writes. A write beyond the end would take the inode's lock
/// alone (`fuse_dio_wr_exclusive_lock`), and 32-bit programs cannot open a file of 2 GiB (`generic_file_open`).
const SIZE: u64 = 0x7fff_f000;

/// The file of a mount.
#[derive(Debug)]
pub(crate) struct Node {
    attr: Mutex<abi::Attr>,
    calls: Calls,
    barrier: Barrier,
}

impl Node {
    /// How the kernel treats open files. Without STREAM, a waiting `read` makes every other call on the same open file wait
    /// (`f_pos_lock`). With it, each call begins at position 0, so a position above 0 marks a later piece of a split call.
    pub(crate) const OPEN_FLAGS: OpenFlags = OpenFlags::DIRECT_IO
        .union(OpenFlags::STREAM)
        .union(OpenFlags::NOFLUSH)
        .union(OpenFlags::PARALLEL_DIRECT_WRITES);

    /// A regular file with these permission bits, owner and group.
    pub(crate) fn new(mode: u32, uid: u32, gid: u32) -> Self {
        let (seconds, nanoseconds) = now();
        let attr = abi::Attr {
            ino: abi::ROOT_ID,
            size: SIZE,
            atime: seconds,
            mtime: seconds,
            ctime: seconds,
            atimensec: nanoseconds,
            mtimensec: nanoseconds,
            ctimensec: nanoseconds,
            mode: REGULAR | mode & 0o7777,
            nlink: 1,
            uid,
            gid,
            blksize: 4096,
            ..Default::default()
        };
        Self { attr: Mutex::new(attr), calls: Calls::default(), barrier: Barrier::default() }
    }

    /// A write of an O_APPEND file begins at the end of the file, wherever the kernel has moved that by earlier ones.
    pub(crate) fn without_position(write: Write<'_>) -> Write<'_> {
        let append = write.flags & OFlag::O_APPEND.bits().cast_unsigned() != 0;
        Write { offset: if append { 0 } else { write.offset }, ..write }
    }

    /// Answers what a device is not asked.
    pub(crate) fn answer(&self, channel: &Channel, id: RequestId, request: FileRequest) {
        let reply = match request {
            FileRequest::Getattr => Reply::Attributes(&reply_of(*self.attr())),
            FileRequest::Setattr(setattr) => Reply::Attributes(&reply_of(self.set(&setattr))),
            FileRequest::Statfs => Reply::Statfs(&abi::Kstatfs {
                bsize: 4096,
                frsize: 4096,
                namelen: 255,
                ..Default::default()
            }),
            // As vfs_fsync says of a driver without it.
            FileRequest::Fsync => Reply::Error(Errno::EINVAL),
            FileRequest::Optional => Reply::Error(Errno::ENOSYS),
        };
        channel.answer(id, &reply);
    }

    /// As [`Device::ioctl`], with the rounds of a retry.
    pub(crate) fn ioctl<D: Device + ?Sized>(
        &self,
        channel: &Channel,
        device: &D,
        id: RequestId,
        caller: Caller,
        ioctl: Ioctl<'_>,
    ) {
        self.calls.run(channel, device, id, caller, ioctl);
    }

    /// The caller of an ioctl got a signal; true if that is all there is to do.
    pub(crate) fn interrupt(&self, channel: &Channel, target: RequestId) -> bool {
        self.calls.interrupt(channel, target)
    }

    pub(crate) fn answer_ioctl(&self, channel: &Channel, id: RequestId, reply: &Reply<'_>) -> bool {
        self.calls.answer(channel, id, reply)
    }

    pub(crate) fn barrier(&self) -> &Barrier {
        &self.barrier
    }

    /// Remembers what `chmod`, `chown` and `utimensat` set. The size stays: `truncate` and O_TRUNC succeed, as on a
    /// device node.
    fn set(&self, setattr: &Setattr) -> abi::Attr {
        let mut attr = self.attr();
        let sets = |flag| setattr.valid.contains(flag);
        if sets(SetattrFlags::MODE) {
            attr.mode = REGULAR | setattr.mode & 0o7777;
        }
        if sets(SetattrFlags::UID) {
            attr.uid = setattr.uid;
        }
        if sets(SetattrFlags::GID) {
            attr.gid = setattr.gid;
        }
        let now = now();
        if sets(SetattrFlags::ATIME) {
            let given = if sets(SetattrFlags::ATIME_NOW) { now } else { setattr.atime };
            (attr.atime, attr.atimensec) = given;
        }
        if sets(SetattrFlags::MTIME) {
            let given = if sets(SetattrFlags::MTIME_NOW) { now } else { setattr.mtime };
            (attr.mtime, attr.mtimensec) = given;
        }
        (attr.ctime, attr.ctimensec) = now;
        *attr
    }

    fn attr(&self) -> MutexGuard<'_, abi::Attr> {
        self.attr.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reply_of(attr: abi::Attr) -> abi::AttrOut {
    abi::AttrOut { attr_valid: ATTRIBUTES_VALID.as_secs(), attr, ..Default::default() }
}

/// Seconds and nanoseconds since 1970.
#[allow(clippy::disallowed_methods, reason = "the times of a file are those of the wall clock")]
fn now() -> (u64, u32) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_secs(), now.subsec_nanos())
}
