//! What a file is, asked in a way that does not wait for a server.

use std::{
    ffi::{CStr, CString, OsStr},
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::{errno::Errno, libc, sys::stat::makedev};

/// What a file is, as far as the kernel knows by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileKind {
    /// The number of the file system that it is on (`st_dev`).
    pub file_system: u64,
    /// Its number there (`st_ino`).
    pub inode: u64,
    /// Of a character device, its number (`st_rdev`).
    pub character_device: Option<u64>,
    /// It is a symbolic link.
    pub is_link: bool,
}

impl FileKind {
    /// An open file's. Its server is not asked, which might never answer.
    pub(crate) fn of(file: BorrowedFd<'_>) -> Result<Self, Errno> {
        Self::look(file.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
    }

    /// That of what a path leads to. The server of a FUSE file is not asked; for a link of `/proc` to a file of a network file system
    /// (NFS, 9p) the kernel asks before (`d_weak_revalidate`).
    pub(crate) fn at(path: &Path) -> Result<Self, Errno> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
        Self::look(libc::AT_FDCWD, &path, libc::AT_NO_AUTOMOUNT)
    }

    /// That of what a name in a folder leads to, likewise.
    pub(crate) fn in_folder(folder: BorrowedFd<'_>, name: &CStr) -> Result<Self, Errno> {
        Self::look(folder.as_raw_fd(), name, libc::AT_NO_AUTOMOUNT)
    }

    /// That of what has a name in a folder, which may be a link.
    pub(crate) fn named(folder: BorrowedFd<'_>, name: &OsStr) -> Result<Self, Errno> {
        let name = CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?;
        let flags = libc::AT_NO_AUTOMOUNT | libc::AT_SYMLINK_NOFOLLOW;
        Self::look(folder.as_raw_fd(), &name, flags)
    }

    fn look(folder: RawFd, path: &CStr, flags: i32) -> Result<Self, Errno> {
        let mut status = MaybeUninit::<libc::statx>::zeroed();
        let (flags, mask) = (flags | libc::AT_STATX_DONT_SYNC, libc::STATX_TYPE | libc::STATX_INO);
        // SAFETY: the path ends with a NUL, and the structure is as large as the kernel takes it to be.
        let result =
            unsafe { libc::statx(folder, path.as_ptr(), flags, mask, status.as_mut_ptr()) };
        Errno::result(result)?;
        // SAFETY: zeros are a valid value of it, whatever of it the kernel has filled in.
        let status = unsafe { status.assume_init() };
        let format = u32::from(status.stx_mode) & libc::S_IFMT;
        let is_device = format == libc::S_IFCHR;
        let device = || makedev(status.stx_rdev_major.into(), status.stx_rdev_minor.into());
        Ok(Self {
            file_system: makedev(status.stx_dev_major.into(), status.stx_dev_minor.into()),
            inode: status.stx_ino,
            character_device: is_device.then(device),
            is_link: format == libc::S_IFLNK,
        })
    }
}
