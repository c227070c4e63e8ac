//! The part of the protocol that only a FUSE mount speaks: its handshake, and the attributes of its file.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::layouts;

/// `FUSE_ROOT_ID`: the inode of the mount's root, which is the file.
pub const ROOT_ID: u64 = 1;

/// The lowest minor version of a kernel that can serve a file: 7.31 (Linux 5.2) has [`OpenFlags::STREAM`],
/// without which a waiting reader holds up all others of its open file.
pub const MINIMUM_FILE_MINOR_VERSION: u32 = 31;

/// The most bytes a READ or a WRITE of a FUSE mount can carry: `FUSE_MAX_MAX_PAGES` (256) pages of 4 KiB.
pub const MAX_FILE_DATA: u32 = 1 << 20;

/// `FUSE_READ_LOCKOWNER`, of READ: for somebody's `read`. Missing where the kernel fills its page cache.
pub const READ_LOCKOWNER: u32 = 1 << 1;

bitflags! {
    /// The flags of both directions of FUSE_INIT, as far as they matter here.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InitFlags: u32 {
        /// `FUSE_BIG_WRITES`: more than a page in one WRITE; kernels since 4.20 take it for granted.
        const BIG_WRITES = 1 << 5;
        /// `FUSE_MAX_PAGES`: the answer says how many pages a message may carry.
        const MAX_PAGES = 1 << 22;
    }

    /// `FOPEN_*`, of the reply to OPEN.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OpenFlags: u32 {
        /// `FOPEN_DIRECT_IO`: no page cache; each `read` and `write` becomes messages.
        const DIRECT_IO = 1 << 0;
        /// `FOPEN_STREAM`: no position, and so no lock of it (`stream_open`).
        const STREAM = 1 << 4;
        /// `FOPEN_NOFLUSH`: no FLUSH at `close`.
        const NOFLUSH = 1 << 5;
        /// `FOPEN_PARALLEL_DIRECT_WRITES`: writes share the inode's lock.
        const PARALLEL_DIRECT_WRITES = 1 << 6;
    }

    /// `FATTR_*`: what a SETATTR sets.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SetattrFlags: u32 {
        /// `FATTR_MODE`.
        const MODE = 1 << 0;
        /// `FATTR_UID`.
        const UID = 1 << 1;
        /// `FATTR_GID`.
        const GID = 1 << 2;
        /// `FATTR_SIZE`.
        const SIZE = 1 << 3;
        /// `FATTR_ATIME`.
        const ATIME = 1 << 4;
        /// `FATTR_MTIME`.
        const MTIME = 1 << 5;
        /// `FATTR_FH`.
        const FH = 1 << 6;
        /// `FATTR_ATIME_NOW`.
        const ATIME_NOW = 1 << 7;
        /// `FATTR_MTIME_NOW`.
        const MTIME_NOW = 1 << 8;
        /// `FATTR_LOCKOWNER`.
        const LOCKOWNER = 1 << 9;
        /// `FATTR_CTIME`.
        const CTIME = 1 << 10;
        /// `FATTR_KILL_SUIDGID`.
        const KILL_SUIDGID = 1 << 11;
    }
}

layouts! {
    /// `struct fuse_notify_retrieve_out`.
    NotifyRetrieveOut[32] {
        /// The id of the NOTIFY_REPLY that it will bring.
        notify_unique: u64,
        /// Whose page cache is wanted.
        nodeid: u64,
        /// From where on.
        offset: u64,
        /// How many bytes; none are answered too.
        size: u32,
        /// Reserved.
        padding: u32,
    }

    /// The part of `struct fuse_init_in` that all kernels send.
    InitIn[16] {
        /// Major version of the kernel's protocol.
        major: u32,
        /// Minor version of the kernel's protocol.
        minor: u32,
        /// The most bytes of read-ahead.
        max_readahead: u32,
        /// See [`InitFlags`].
        flags: u32,
    }

    /// `struct fuse_init_out`.
    InitOut[64] {
        /// Major version of the server's protocol.
        major: u32,
        /// Minor version of the server's protocol.
        minor: u32,
        /// The most bytes of read-ahead.
        max_readahead: u32,
        /// See [`InitFlags`].
        flags: u32,
        /// How many requests that nobody waits for (RELEASE) may be with the server; 0: the kernel's default, 12.
        max_background: u16,
        /// How many of them count as congestion.
        congestion_threshold: u16,
        /// The most bytes of a WRITE; the kernel raises it to 4096.
        max_write: u32,
        /// Granularity of times in nanoseconds.
        time_gran: u32,
        /// The most pages of a message, with [`InitFlags::MAX_PAGES`].
        max_pages: u16,
        /// For DAX.
        map_alignment: u16,
        /// More flags.
        flags2: u32,
        /// For stacked file systems.
        max_stack_depth: u32,
        /// Seconds after which the kernel gives up.
        request_timeout: u16,
        /// Reserved.
        unused: [u16; 11],
    }

    /// `struct fuse_attr`.
    Attr[88] {
        /// Inode number.
        ino: u64,
        /// Size in bytes.
        size: u64,
        /// Size in blocks of 512 bytes.
        blocks: u64,
        /// Time of the last access: seconds.
        atime: u64,
        /// Time of the last change of the data: seconds.
        mtime: u64,
        /// Time of the last change of the attributes: seconds.
        ctime: u64,
        /// Time of the last access: nanoseconds.
        atimensec: u32,
        /// Time of the last change of the data: nanoseconds.
        mtimensec: u32,
        /// Time of the last change of the attributes: nanoseconds.
        ctimensec: u32,
        /// Type and permission bits.
        mode: u32,
        /// Number of hard links.
        nlink: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Device number of a device node.
        rdev: u32,
        /// Preferred size of reads and writes.
        blksize: u32,
        /// `FUSE_ATTR_*`.
        flags: u32,
    }

    /// `struct fuse_attr_out`: the reply to GETATTR and SETATTR.
    AttrOut[104] {
        /// How long the kernel may trust it: seconds.
        attr_valid: u64,
        /// How long the kernel may trust it: nanoseconds.
        attr_valid_nsec: u32,
        /// Reserved.
        dummy: u32,
        /// The attributes.
        attr: Attr,
    }

    /// `struct fuse_setattr_in`.
    SetattrIn[88] {
        /// See [`SetattrFlags`].
        valid: u32,
        /// Reserved.
        padding: u32,
        /// The server's name for the open file, of `ftruncate`.
        fh: u64,
        /// Size in bytes.
        size: u64,
        /// Owner of POSIX locks.
        lock_owner: u64,
        /// Time of the last access: seconds.
        atime: u64,
        /// Time of the last change of the data: seconds.
        mtime: u64,
        /// Time of the last change of the attributes: seconds.
        ctime: u64,
        /// Time of the last access: nanoseconds.
        atimensec: u32,
        /// Time of the last change of the data: nanoseconds.
        mtimensec: u32,
        /// Time of the last change of the attributes: nanoseconds.
        ctimensec: u32,
        /// Type and permission bits.
        mode: u32,
        /// Reserved.
        unused4: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Reserved.
        unused5: u32,
    }

    /// `struct fuse_kstatfs`: the reply to STATFS.
    Kstatfs[80] {
        /// Blocks.
        blocks: u64,
        /// Free blocks.
        bfree: u64,
        /// Free blocks for users.
        bavail: u64,
        /// Inodes.
        files: u64,
        /// Free inodes.
        ffree: u64,
        /// Size of a block in bytes.
        bsize: u32,
        /// Longest name.
        namelen: u32,
        /// Size of a fragment in bytes.
        frsize: u32,
        /// Reserved.
        padding: u32,
        /// Reserved.
        spare: [u32; 6],
    }
}
