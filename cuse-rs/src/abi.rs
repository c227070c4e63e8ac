//! What `include/uapi/linux/fuse.h` defines, as far as a character device, or a file that acts as one, needs it.
//!
//! Owns the layouts and numbers of the FUSE protocol, version 7, in the byte order of the machine (the
//! kernel and the server are always the same one). Knows no meaning: [`crate::codec`] gives it one.
//! Names are those of the header without `fuse_` and `FUSE_`; numbers are in the header's base.
//!
//! Invariant: each structure has the size and the padding of its C counterpart, asserted below, and any
//! bytes of that size are a valid value.

use std::fmt;

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

mod file;

pub use self::file::*;

/// `FUSE_KERNEL_VERSION`: the one major version there is.
pub const KERNEL_VERSION: u32 = 7;

/// The highest minor version this crate announces. The kernel adapts its layouts to it.
pub const KERNEL_MINOR_VERSION: u32 = 36;

/// The lowest minor version of a kernel that will do: since 7.21 (Linux 3.10) POLL tells the events.
pub const MINIMUM_MINOR_VERSION: u32 = 21;

/// `FUSE_MIN_READ_BUFFER`: a read of the channel with less room than this is an error.
pub const MIN_READ_BUFFER: usize = 8192;

/// `CUSE_INIT_INFO_MAX`: length limit of the `KEY=VALUE\0` list in the answer to CUSE_INIT.
pub const CUSE_INIT_INFO_MAX: usize = 4096;

/// `FUSE_IOCTL_MAX_IOV`: the most ranges one retry may name, input and output together.
pub const IOCTL_MAX_IOV: usize = 256;

/// `FUSE_INT_REQ_BIT` of `fs/fuse/dev.c`: requests have even ids, the INTERRUPT of one has the id plus this.
pub const INT_REQ_BIT: u64 = 1 << 0;

/// The most bytes a READ, a WRITE or one direction of an IOCTL can carry: `FUSE_DEFAULT_MAX_PAGES_PER_REQ`
/// (32) pages of 4 KiB. CUSE has no way to raise it; a FUSE mount has, see [`MAX_FILE_DATA`].
pub const MAX_DATA: u32 = 131072;

/// `enum fuse_notify_code`: FUSE_NOTIFY_POLL.
pub const NOTIFY_POLL: i32 = 1;

/// `enum fuse_notify_code`: FUSE_NOTIFY_RETRIEVE.
pub const NOTIFY_RETRIEVE: i32 = 5;

/// `enum fuse_opcode`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Opcode(pub u32);

macro_rules! opcodes {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        impl Opcode {
            $($(#[$doc])* pub const $name: Opcode = Opcode($number);)*

            /// The name in `linux/fuse.h` without its prefix.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Opcode::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

opcodes! {
    /// A name is looked up in a folder (never sent: there is none).
    LOOKUP = 1;
    /// Forget an inode; has no reply.
    FORGET = 2;
    /// `stat(2)`, and whatever else needs the attributes (not sent by CUSE).
    GETATTR = 3;
    /// `chmod`, `chown`, `utimensat`, `truncate`, O_TRUNC (not sent by CUSE).
    SETATTR = 4;
    /// A client opens the device.
    OPEN = 14;
    /// `read(2)` and its relatives.
    READ = 15;
    /// `write(2)` and its relatives.
    WRITE = 16;
    /// `statfs(2)` (not sent by CUSE).
    STATFS = 17;
    /// The last `close` of an open file.
    RELEASE = 18;
    /// `fsync(2)` (not sent by CUSE).
    FSYNC = 20;
    /// `setxattr(2)` (not sent by CUSE).
    SETXATTR = 21;
    /// `getxattr(2)` (not sent by CUSE).
    GETXATTR = 22;
    /// `listxattr(2)` (not sent by CUSE).
    LISTXATTR = 23;
    /// `removexattr(2)` (not sent by CUSE).
    REMOVEXATTR = 24;
    /// A `close`, not necessarily the last (not sent by CUSE).
    FLUSH = 25;
    /// The handshake of a FUSE mount (not sent by CUSE).
    INIT = 26;
    /// `access(2)`, where the kernel does not check modes (not sent by CUSE).
    ACCESS = 34;
    /// A request's client got a signal; has no reply, except to ask for it again.
    INTERRUPT = 36;
    /// The connection ends (not sent by CUSE).
    DESTROY = 38;
    /// `ioctl(2)`.
    IOCTL = 39;
    /// `poll(2)` and its relatives.
    POLL = 40;
    /// Data that the server asked for; has no reply (not sent by CUSE).
    NOTIFY_REPLY = 41;
    /// Several FORGETs; has no reply.
    BATCH_FORGET = 42;
    /// `fallocate(2)` (not sent by CUSE).
    FALLOCATE = 43;
    /// `lseek(2)` for data or holes (not sent by CUSE).
    LSEEK = 46;
    /// `copy_file_range(2)` (not sent by CUSE).
    COPY_FILE_RANGE = 47;
    /// `statx(2)` (not sent by CUSE).
    STATX = 52;
    /// The handshake of a CUSE device.
    CUSE_INIT = 4096;
}

impl Opcode {
    /// Whether the kernel waits for a reply. A reply to one of the others would name an unknown request.
    pub fn has_reply(self) -> bool {
        !matches!(self, Self::FORGET | Self::BATCH_FORGET | Self::INTERRUPT | Self::NOTIFY_REPLY)
    }

    /// Whether this is an operation on files that a character device has no counterpart of. ENOSYS is the right
    /// answer to it: the kernel then does what it does without, and mostly never asks again.
    pub fn is_optional(self) -> bool {
        let xattr = Self::SETXATTR.0..=Self::REMOVEXATTR.0;
        let others = [Self::FLUSH, Self::ACCESS, Self::FALLOCATE, Self::LSEEK, Self::STATX];
        xattr.contains(&self.0) || others.contains(&self) || self == Self::COPY_FILE_RANGE
    }
}

impl fmt::Debug for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "opcode {}", self.0),
        }
    }
}

bitflags! {
    /// `CUSE_UNRESTRICTED_IOCTL`, the flags of both directions of CUSE_INIT.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CuseInitFlags: u32 {
        /// `CUSE_UNRESTRICTED_IOCTL`: ioctls are passed as they are, and may be retried with more data.
        const UNRESTRICTED_IOCTL = 1 << 0;
    }

    /// `FUSE_IOCTL_*`, of requests and replies.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IoctlFlags: u32 {
        /// `FUSE_IOCTL_COMPAT`: from a 32-bit process on a 64-bit machine.
        const COMPAT = 1 << 0;
        /// `FUSE_IOCTL_UNRESTRICTED`: the argument was not interpreted, and a retry is allowed.
        const UNRESTRICTED = 1 << 1;
        /// `FUSE_IOCTL_RETRY`: of a reply only: call again with these ranges.
        const RETRY = 1 << 2;
        /// `FUSE_IOCTL_32BIT`: the structures behind the argument have a 32-bit layout.
        const BITS_32 = 1 << 3;
        /// `FUSE_IOCTL_DIR`: on a directory.
        const DIR = 1 << 4;
        /// `FUSE_IOCTL_COMPAT_X32`: as COMPAT, from an x32 process (64-bit time).
        const COMPAT_X32 = 1 << 5;
    }

    /// `FUSE_POLL_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PollFlags: u32 {
        /// `FUSE_POLL_SCHEDULE_NOTIFY`: somebody will sleep; notify them of every later event.
        const SCHEDULE_NOTIFY = 1 << 0;
    }
}

/// Structures as the kernel lays them out, with their sizes.
macro_rules! layouts {
    ($($(#[$doc:meta])* $name:ident[$size:literal] {
        $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
    })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}
use layouts;

layouts! {
    /// `struct fuse_in_header`: heads each message of the kernel.
    InHeader[40] {
        /// Length of the whole message in bytes.
        len: u32,
        /// See [`Opcode`].
        opcode: u32,
        /// Id of the request, repeated by its reply.
        unique: u64,
        /// Inode; 0 for CUSE.
        nodeid: u64,
        /// The caller's fsuid in the user namespace of whoever opened the channel.
        uid: u32,
        /// The caller's fsgid, likewise.
        gid: u32,
        /// The caller's thread id in the pid namespace of whoever opened the channel, or 0.
        pid: u32,
        /// Length of the extensions at the end of the message in units of 8 bytes.
        total_extlen: u16,
        /// Reserved.
        padding: u16,
    }

    /// `struct fuse_out_header`: heads each message of the server.
    OutHeader[16] {
        /// Length of the whole message in bytes.
        len: u32,
        /// 0, or a negated errno; of a notification (`unique` 0) its code.
        error: i32,
        /// Id of the request, or 0.
        unique: u64,
    }

    /// `struct cuse_init_in`.
    CuseInitIn[16] {
        /// Major version of the kernel's protocol.
        major: u32,
        /// Minor version of the kernel's protocol.
        minor: u32,
        /// Reserved.
        unused: u32,
        /// See [`CuseInitFlags`].
        flags: u32,
    }

    /// `struct cuse_init_out`; the `KEY=VALUE\0` list follows.
    CuseInitOut[72] {
        /// Major version of the server's protocol.
        major: u32,
        /// Minor version of the server's protocol.
        minor: u32,
        /// Reserved.
        unused: u32,
        /// See [`CuseInitFlags`].
        flags: u32,
        /// The most bytes of a READ; the kernel raises it to 4096.
        max_read: u32,
        /// The most bytes of a WRITE; the kernel raises it to 4096.
        max_write: u32,
        /// Major number of the device; 0: any free one.
        dev_major: u32,
        /// Minor number of the device.
        dev_minor: u32,
        /// Reserved.
        spare: [u32; 10],
    }

    /// `struct fuse_open_in`.
    OpenIn[8] {
        /// The `O_*` flags of `open(2)`, without O_CREAT, O_EXCL and O_NOCTTY.
        flags: u32,
        /// `FUSE_OPEN_*`.
        open_flags: u32,
    }

    /// `struct fuse_open_out`.
    OpenOut[16] {
        /// The server's name for the open file.
        fh: u64,
        /// `FOPEN_*`; CUSE ignores it.
        open_flags: u32,
        /// Reserved.
        padding: u32,
    }

    /// `struct fuse_read_in`.
    ReadIn[40] {
        /// The server's name for the open file.
        fh: u64,
        /// Position; of CUSE, the bytes that earlier pieces of the same call have brought.
        offset: u64,
        /// Room in bytes.
        size: u32,
        /// `FUSE_READ_*`.
        read_flags: u32,
        /// Owner of POSIX locks.
        lock_owner: u64,
        /// The open file's flags at this moment (O_NONBLOCK may have changed).
        flags: u32,
        /// Reserved.
        padding: u32,
    }

    /// `struct fuse_write_in`; the data follows.
    WriteIn[40] {
        /// The server's name for the open file.
        fh: u64,
        /// Position; of CUSE, the bytes that earlier pieces of the same call have carried.
        offset: u64,
        /// Length of the data in bytes.
        size: u32,
        /// `FUSE_WRITE_*`.
        write_flags: u32,
        /// Owner of POSIX locks.
        lock_owner: u64,
        /// The open file's flags at this moment (O_NONBLOCK may have changed).
        flags: u32,
        /// Reserved.
        padding: u32,
    }

    /// `struct fuse_write_out`.
    WriteOut[8] {
        /// Bytes taken.
        size: u32,
        /// Reserved.
        padding: u32,
    }

    /// `struct fuse_release_in`.
    ReleaseIn[24] {
        /// The server's name for the open file.
        fh: u64,
        /// The open file's flags.
        flags: u32,
        /// `FUSE_RELEASE_*`.
        release_flags: u32,
        /// Owner of POSIX locks.
        lock_owner: u64,
    }

    /// `struct fuse_interrupt_in`.
    InterruptIn[8] {
        /// Id of the request whose caller got a signal.
        unique: u64,
    }

    /// `struct fuse_ioctl_in`; the input data follows.
    IoctlIn[32] {
        /// The server's name for the open file.
        fh: u64,
        /// See [`IoctlFlags`].
        flags: u32,
        /// The command of `ioctl(2)`.
        cmd: u32,
        /// The third argument of `ioctl(2)`, mostly an address of the caller.
        arg: u64,
        /// Length of the input data in bytes.
        in_size: u32,
        /// Room for output data in bytes.
        out_size: u32,
    }

    /// `struct fuse_ioctl_out`; the output data, or the ranges of a retry, follow.
    IoctlOut[16] {
        /// What `ioctl(2)` returns; negative: an errno.
        result: i32,
        /// See [`IoctlFlags`].
        flags: u32,
        /// Of a retry: the number of ranges to read from the caller.
        in_iovs: u32,
        /// Of a retry: the number of ranges to write to the caller.
        out_iovs: u32,
    }

    /// `struct fuse_ioctl_iovec`: a range of the caller's memory.
    IoctlIovec[16] {
        /// Address.
        base: u64,
        /// Length in bytes.
        len: u64,
    }

    /// `struct fuse_poll_in`.
    PollIn[24] {
        /// The server's name for the open file.
        fh: u64,
        /// The kernel's name for the open file, for notifications.
        kh: u64,
        /// See [`PollFlags`].
        flags: u32,
        /// `POLL*` events of interest.
        events: u32,
    }

    /// `struct fuse_poll_out`.
    PollOut[8] {
        /// `POLL*` events that hold now.
        revents: u32,
        /// Reserved.
        padding: u32,
    }

    /// `struct fuse_notify_poll_wakeup_out`.
    NotifyPollWakeupOut[8] {
        /// The kernel's name for the open file.
        kh: u64,
    }
}
