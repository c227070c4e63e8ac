//! `/dev/fuse`: a device as a single regular file, for machines without CUSE. Follows `fs/fuse/inode.c`.
//!
//! Owns the mount, its handshake and its end. Leaves all that is between to [`Channel`], and the file itself
//! to the channel's node.
//!
//! The root of a FUSE mount may be a regular file, and a mount may cover a file. So one file, anywhere, is the whole
//! file system; it can be bind-mounted further, over a device node too. A [`Device`](crate::Device) cannot tell it from
//! `/dev/cuse`; its clients can, see the table in the README.
//!
//! # Privilege
//!
//! Root, or nobody special in a user and mount namespace of their own (`unshare -Urm`), given access to `/dev/fuse`. The
//! descriptor must have been opened in the namespace that mounts (`fuse_fill_super` compares them).
//!
//! # How it ends
//!
//! [`Mount::stop`] is `umount2` with MNT_FORCE and MNT_DETACH: the first aborts the connection (`fuse_umount_begin`), so
//! that waiting clients get ECONNABORTED and every [`Channel::serve`] returns; the second removes the file although it is
//! open. When the server is killed the kernel aborts the connection, but the mount stays, and each use of it gives ENOTCONN. The
//! next [`FileOptions::mount`] at the same place removes it.
//!
//! # Caveats
//!
//! * `close` does not wait for [`Device::release`](crate::Device::release) (`fuse_file_put`). The message is queued before
//!   `close` returns, hence before that of a later `open`; with several threads in [`Channel::serve`] the two may overlap.
//!   [`Channel::catch_up`] waits for it.
//! * MNT_FORCE in a user namespace needs a kernel that asks for privilege in the mount's namespace (measured: 6.18, and 6.1
//!   as of Debian). On others [`Mount::stop`] only detaches, and says so.
//! * A server must not use its own file: it would wait for itself.

mod error;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::statfs::fstatfs;
use nix::unistd::{getegid, geteuid};

use crate::abi::{self, InitFlags, Opcode};
use crate::channel::{Channel, Node};
use crate::codec::{Init, Message, Reply, Request};
use crate::errno::Errno;
use crate::handshake::{HandshakeError, check_version, first_message};
use crate::request::RequestId;

pub use self::error::{MountError, UnmountError};

const FUSE: &str = "/dev/fuse";

/// How many stale mounts on top of each other are taken away.
const MAX_STALE: usize = 64;

/// How many symbolic links are followed, as the kernel does (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// A file to be mounted.
#[derive(Debug)]
pub struct FileOptions {
    path: PathBuf,
    name: String,
    mode: u32,
    uid: Option<u32>,
    gid: Option<u32>,
    allow_other: bool,
    default_permissions: bool,
    max_read: u32,
    max_write: u32,
    device: Option<OwnedFd>,
}

impl FileOptions {
    /// A file of mode 0600 that belongs to the caller, for this user only, with the largest reads and writes that FUSE
    /// carries.
    ///
    /// Whatever is at `path`, except a folder, is covered. If nothing is, an empty file is created there, and removed at
    /// the end. A symbolic link is followed, as `mount(2)` does.
    pub fn mount_at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            name: "cuse-rs".to_owned(),
            mode: 0o600,
            uid: None,
            gid: None,
            allow_other: false,
            default_permissions: true,
            max_read: abi::MAX_FILE_DATA,
            max_write: abi::MAX_FILE_DATA,
            device: None,
        }
    }

    /// Names the source and the type in `/proc/mounts`: `NAME /the/path fuse.NAME`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Asks for permission bits of the file, such as `0o666`.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode & 0o7777;
        self
    }

    /// Asks for an owner and a group of the file; `None` leaves the caller's.
    #[must_use]
    pub fn owner(mut self, uid: Option<u32>, gid: Option<u32>) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Lets users other than the one who mounts use the file, as far as its mode does; in a user namespace, those of that
    /// namespace. Off at first. Without it even root gets EACCES from the file of another user.
    ///
    /// A server that hangs can then make the programs of others hang.
    #[must_use]
    pub fn allow_other(mut self, on: bool) -> Self {
        self.allow_other = on;
        self
    }

    /// Makes the kernel check mode and owner of the file, as it does for a device node. On at first.
    #[must_use]
    pub fn default_permissions(mut self, on: bool) -> Self {
        self.default_permissions = on;
        self
    }

    /// Limits the room of a READ in bytes; longer calls come in pieces. At least 4096, at most
    /// [`abi::MAX_FILE_DATA`].
    #[must_use]
    pub fn max_read(mut self, size: u32) -> Self {
        self.max_read = size.clamp(4096, abi::MAX_FILE_DATA);
        self
    }

    /// Limits the data of a WRITE, as [`max_read`](Self::max_read) does for READ. Each thread in [`Channel::serve`] has a
    /// buffer of this size, which takes memory only as far as messages have filled it.
    #[must_use]
    pub fn max_write(mut self, size: u32) -> Self {
        self.max_write = size.clamp(4096, abi::MAX_FILE_DATA);
        self
    }

    /// Takes a descriptor of `/dev/fuse` that was opened before, in the user namespace in which
    /// [`mount`](Self::mount) will be called, and has not been mounted yet.
    #[must_use]
    pub fn device(mut self, fd: OwnedFd) -> Self {
        self.device = Some(fd);
        self
    }

    /// Where the file will be, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts the file: opens `/dev/fuse`, takes a stale mount away, mounts, and does the handshake.
    ///
    /// Nobody gets an answer from the file until somebody is in [`Channel::serve`]. If a file system is mounted at the path
    /// already, its server is asked whether it lives (`statfs(2)`), which takes as long as that server likes.
    ///
    /// # Errors
    ///
    /// A [`MountError`] whose message names the obstacle and says what to do. Nothing is left behind.
    pub fn mount(mut self) -> Result<Mount, MountError> {
        let path = resolve(&self.path)
            .map_err(|error| MountError::MountPoint { path: self.path.clone(), error })?;
        let fd = match self.device.take() {
            Some(fd) => fd,
            None => open_fuse()?,
        };
        let placeholder = Placeholder::prepare(&path)?;
        self.attach(&path, fd.as_fd())?;
        // From here on dropping the guard takes the mount away.
        let attached =
            Attached { mount_id: read_mount_id(&path).ok(), path, _placeholder: placeholder };
        let channel = self.handshake(fd).inspect_err(|_| {
            // The descriptor is closed, so that there is nothing to abort.
            let _ = attached.detach();
        })?;
        Ok(Mount { channel: Arc::new(channel), attached })
    }

    /// Does the FUSE_INIT handshake on a descriptor that is mounted already: for [`mount`](Self::mount), for one that another
    /// process has mounted, and for a fake kernel.
    ///
    /// # Errors
    ///
    /// [`HandshakeError`]: the channel ended or failed, its first message is not INIT, or the kernel speaks another version.
    pub fn handshake(&self, fd: OwnedFd) -> Result<Channel, HandshakeError> {
        let uid = self.uid.unwrap_or_else(|| geteuid().as_raw());
        let gid = self.gid.unwrap_or_else(|| getegid().as_raw());
        let mut channel = Channel::of_file(fd, self.max_write, Node::new(self.mode, uid, gid));
        let mut buffer = vec![0; channel.buffer_size()];
        let (id, offer) = match first_message(&channel, &mut buffer)? {
            Message { id, request: Request::Init(offer), .. } => (id, offer),
            Message { opcode, .. } => {
                return Err(HandshakeError::NotInit { opcode, wanted: Opcode::INIT });
            }
        };
        let max_write = self.accept(&channel, id, offer)?;
        channel.set_max_write(max_write);
        Ok(channel)
    }

    /// Answers INIT; returns what was agreed as `max_write`.
    fn accept(&self, channel: &Channel, id: RequestId, offer: Init) -> Result<u32, HandshakeError> {
        let Init { major, minor, flags } = offer;
        tracing::debug!(major, minor, ?flags, "handshake");
        check_version(major, minor, abi::MINIMUM_FILE_MINOR_VERSION)?;
        let flags = flags & (InitFlags::BIG_WRITES | InitFlags::MAX_PAGES);
        let most =
            if flags.contains(InitFlags::MAX_PAGES) { abi::MAX_FILE_DATA } else { abi::MAX_DATA };
        let max_write = self.max_write.min(most);
        // Where pages are larger than 4 KiB this is more than needed; the sizes in bytes hold all the same.
        let max_pages = max_write.max(self.max_read.min(most)).div_ceil(4096);
        let init = abi::InitOut {
            major: abi::KERNEL_VERSION,
            minor: minor.min(abi::KERNEL_MINOR_VERSION),
            flags: flags.bits(),
            // A program that ends with a thousand files open sends a thousand RELEASEs.
            max_background: 1024,
            congestion_threshold: 768,
            max_write,
            time_gran: 1,
            max_pages: u16::try_from(max_pages).unwrap_or(u16::MAX),
            ..Default::default()
        };
        channel
            .send(id, &Reply::Init(&init))
            .map_err(|errno| HandshakeError::Reply { errno })
            .map(|()| max_write)
    }

    fn attach(&self, path: &Path, fd: BorrowedFd<'_>) -> Result<(), MountError> {
        let mut options = format!(
            "fd={},rootmode=100000,user_id={},group_id={},max_read={}",
            fd.as_raw_fd(),
            geteuid(),
            getegid(),
            self.max_read
        );
        if self.allow_other {
            options.push_str(",allow_other");
        }
        if self.default_permissions {
            options.push_str(",default_permissions");
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let kind = format!("fuse.{}", self.name);
        mount(Some(self.name.as_str()), path, Some(kind.as_str()), flags, Some(options.as_str()))
            .map_err(|errno| MountError::Mount { path: path.to_owned(), errno: Errno::of(errno) })
    }
}

/// A mounted file.
///
/// Dropping it ends the connection and takes the file away.
#[derive(Debug)]
pub struct Mount {
    channel: Arc<Channel>,
    attached: Attached,
}

impl Mount {
    /// Where the file's requests come from.
    pub fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Where the file is: an absolute path without symbolic links.
    pub fn path(&self) -> &Path {
        &self.attached.path
    }

    /// Ends the connection and takes the file away: open calls of clients fail with ECONNABORTED, later ones with ENOTCONN, and
    /// every [`Channel::serve`] returns. May be called from any thread of this mount namespace, and more than once.
    ///
    /// # Errors
    ///
    /// [`UnmountError`]: another mount covers the file, or the kernel does not let this process abort the connection. It then ends
    /// with the channel.
    pub fn stop(&self) -> Result<(), UnmountError> {
        let stopped = self.attached.detach();
        // Taken away by somebody else, say.
        if stopped.is_err() && is_dead(&self.channel) { Ok(()) } else { stopped }
    }

    /// As [`stop`](Self::stop), and also removes the file that was created to be covered, if one was.
    ///
    /// # Errors
    ///
    /// As [`stop`](Self::stop).
    pub fn unmount(self) -> Result<(), UnmountError> {
        self.stop()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::debug!(%error, "the file ends with its channel, ignoring");
        }
    }
}

/// A mount, and what it covers.
#[derive(Debug)]
struct Attached {
    path: PathBuf,
    /// `None`: `/proc` is not there.
    mount_id: Option<u64>,
    /// Removed when dropped, after the mount.
    _placeholder: Option<Placeholder>,
}

impl Attached {
    /// Aborts the connection and takes the mount away, and no other mount that covers it.
    fn detach(&self) -> Result<(), UnmountError> {
        let failed = |errno| UnmountError::Unmount { path: self.path.clone(), errno };
        let top = open_path(&self.path, OFlag::empty()).map_err(failed)?;
        let through_proc = PathBuf::from(format!("/proc/self/fd/{}", top.as_raw_fd()));
        // The descriptor names the mount, whatever happens to the path meanwhile.
        let target = match (self.mount_id, mount_id_of(&top)) {
            (Some(ours), Ok(top)) if ours != top => {
                return Err(UnmountError::Covered { path: self.path.clone() });
            }
            (Some(_), Ok(_)) => &through_proc,
            _ => &self.path,
        };
        let unmount = |flags| umount2(target, flags).map_err(Errno::of);
        match unmount(MntFlags::MNT_FORCE | MntFlags::MNT_DETACH) {
            Err(Errno::EPERM) => {
                unmount(MntFlags::MNT_DETACH).map_err(failed)?;
                Err(UnmountError::NotAborted { path: self.path.clone() })
            }
            result => result.map_err(failed),
        }
    }
}

/// The file that was created to be covered.
#[derive(Debug)]
struct Placeholder {
    path: PathBuf,
    /// Device and inode, so that no other file is removed.
    identity: (u64, u64),
}

impl Placeholder {
    /// Makes `path` something that a file can be mounted on: takes stale mounts away, creates a file if there is nothing.
    fn prepare(path: &Path) -> Result<Option<Self>, MountError> {
        let mount_point = |error| MountError::MountPoint { path: path.to_owned(), error };
        for _ in 0..MAX_STALE {
            let there = match open_path(path, OFlag::empty()) {
                Err(Errno::ENOENT) => {
                    return Self::create(path).map(Some).map_err(mount_point);
                }
                there => there.map_err(|errno| mount_point(errno.into()))?,
            };
            if open_path(path, OFlag::O_DIRECTORY).is_ok() {
                return Err(MountError::Folder { path: path.to_owned() });
            }
            // The kernel answers `stat` from attributes that it keeps, long after the server has ended. This it always asks.
            match fstatfs(&there).map_err(Errno::of) {
                Err(errno) if is_stale(errno) => {
                    tracing::warn!(path = %path.display(), "stale mount, removing it");
                    umount2(path, MntFlags::MNT_DETACH).map_err(|errno| MountError::Stale {
                        path: path.to_owned(),
                        errno: Errno::of(errno),
                    })?;
                }
                // Any other error is the server's own.
                Ok(_) | Err(_) => return Ok(None),
            }
        }
        Err(MountError::Stale { path: path.to_owned(), errno: Errno::ENOTCONN })
    }

    fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let metadata = file.metadata()?;
        Ok(Self { path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) })
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        let is_ours = |metadata: fs::Metadata| {
            (metadata.dev(), metadata.ino()) == self.identity && metadata.len() == 0
        };
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "placeholder not removed, ignoring");
        }
    }
}

fn open_fuse() -> Result<OwnedFd, MountError> {
    let fuse = OpenOptions::new().read(true).write(true).open(FUSE);
    fuse.map(OwnedFd::from).map_err(|error| MountError::Open { errno: Errno::of_io(&error) })
}

/// Whether the server of a mount is gone.
fn is_stale(errno: Errno) -> bool {
    matches!(errno, Errno::ENOTCONN | Errno::ECONNABORTED)
}

/// The path that `mount(2)` comes to, without symbolic links. It need not be there, but its folder must.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = std::path::absolute(path)?;
    for _ in 0..MAX_LINKS {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(path) };
        let folder = fs::canonicalize(folder)?;
        path = folder.join(name);
        match fs::read_link(&path) {
            Ok(target) => path = folder.join(target),
            // It is no link, or not there.
            Err(_) => return Ok(path),
        }
    }
    Err(Errno::ELOOP.into())
}

/// A descriptor that names what is at the path; asks no server.
fn open_path(path: &Path, flags: OFlag) -> Result<File, Errno> {
    let flags = OFlag::O_PATH | flags;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    opened.map_err(|error| Errno::of_io(&error))
}

fn read_mount_id(path: &Path) -> io::Result<u64> {
    mount_id_of(&open_path(path, OFlag::empty())?)
}

/// The number of the mount a descriptor is of (`seq_show` of `fs/proc/fd.c`).
fn mount_id_of(file: &File) -> io::Result<u64> {
    let fields = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let field = fields.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    field
        .and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether the kernel has given the connection up (`fuse_dev_poll`: POLLERR).
fn is_dead(channel: &Channel) -> bool {
    let mut fds = [PollFd::new(channel.as_fd(), PollFlags::empty())];
    nix::poll::poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
