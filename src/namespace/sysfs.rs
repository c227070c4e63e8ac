//! `/sys` as it is seen from another network namespace.
//!
//! A sysfs shows the interfaces of the network namespace that it was mounted from (`net_grab_current_ns`), whoever looks. So
//! whoever moves to another has to mount it anew, as `ip netns exec` does. What is mounted below it (control groups, tracefs,
//! what a container covers) comes along, or programs would miss the one and see the other.

use std::{
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, umount2},
    sys::{
        statfs::{SYSFS_MAGIC, fstatfs},
        statvfs::{FsFlags, fstatvfs},
    },
};

use super::{NamespaceError, mount_at};
use crate::mounts::{self, Mount};

const PATH: &str = "/sys";

/// Covers `/sys`, if a sysfs is there, with that of this process's network namespace.
///
/// # Errors
///
/// [`NamespaceError::Mount`], and all is as it was. In a user namespace the kernel wants the one that is there to show everything
/// (`mount_too_revealing`): a container that covers parts of it does not get another.
pub(super) fn renew() -> Result<(), NamespaceError> {
    let path = Path::new(PATH);
    let Some(old) = File::open(path).ok().filter(is_sysfs) else { return Ok(()) };
    let flags = flags_of(&old).map_err(|errno| failed(path, errno))?;
    let covered = mounted_on(&old);
    mount_at(Some(Path::new("sysfs")), path, Some("sysfs"), flags)?;
    // The old one stays reachable through its descriptor.
    let old = PathBuf::from(format!("/proc/self/fd/{}", old.as_raw_fd()));
    let bind = |below: &PathBuf| {
        let at = path.join(below);
        // Interfaces of the other namespace are not there.
        let is_there = at.symlink_metadata().is_ok();
        let bind =
            || mount_at(Some(&old.join(below)), &at, None, MsFlags::MS_BIND | MsFlags::MS_REC);
        if is_there { bind() } else { Ok(()) }
    };
    covered.iter().try_for_each(bind).inspect_err(|_| {
        // It shows what was covered.
        let _left = umount2(path, MntFlags::MNT_DETACH);
    })
}

fn is_sysfs(file: &File) -> bool {
    fstatfs(file).is_ok_and(|status| status.filesystem_type() == SYSFS_MAGIC)
}

/// The flags of a mount, so that another is as read-only as it is.
fn flags_of(file: &File) -> Result<MsFlags, Errno> {
    let flags = fstatvfs(file)?.flags();
    let is_set = |(flag, _): &(FsFlags, MsFlags)| flags.contains(*flag);
    let known = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
    ];
    Ok(known.into_iter().filter(is_set).map(|(_, flag)| flag).collect())
}

/// Where there is something mounted on a mount of [`PATH`], as paths from there.
fn mounted_on(mount: &File) -> Vec<PathBuf> {
    let Some(Mount { id, .. }) = Mount::of(mount) else { return Vec::new() };
    let below = |mount: Mount| {
        let path = mount.path.strip_prefix(PATH).ok().filter(|_| mount.parent == id)?;
        (path != Path::new("")).then(|| path.to_owned())
    };
    mounts::all().into_iter().filter_map(below).collect()
}

fn failed(at: &Path, errno: Errno) -> NamespaceError {
    NamespaceError::Mount { what: "sysfs".into(), at: at.to_owned(), errno }
}
