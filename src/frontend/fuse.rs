//! A single file by `/dev/fuse`, where there is no CUSE.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use cuse_rs::fuse_file::{FileOptions, Mount, MountError};
use nix::sys::stat::makedev;
use tracing::{info, warn};

use super::{Registered, device::Identity};

/// What the list of mounts calls it, after `fuse.`.
const FILE_SYSTEM: &str = "memtun";

/// Mounts the file.
///
/// # Errors
///
/// As [`MountError`] says.
pub fn mount(options: FileOptions) -> Result<Registered, MountError> {
    let mount = options.name(FILE_SYSTEM).mount()?;
    info!(file = %mount.path().display(), "mounted");
    Ok(Registered {
        name: mount.path().display().to_string(),
        path: Some(mount.path().to_owned()),
        channel: Arc::clone(mount.channel()),
        identity: Identity::FileSystem(file_system_at(mount.path()).unwrap_or_default()),
        stop: Box::new(move || stop(&mount)),
    })
}

/// A path as the list of mounts has it: without symbolic links in its folder.
#[must_use]
pub fn resolved(path: &Path) -> PathBuf {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (fs::canonicalize(folder), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

/// A living daemon has its file at a path. That of one that is gone gives ENOTCONN, and may be replaced.
#[must_use]
pub fn is_served(path: &Path) -> bool {
    mount_at(path).is_some_and(|(kind, _)| kind == format!("fuse.{FILE_SYSTEM}"))
        && fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// The number of the file system mounted at a path, as `st_dev`. From the list of mounts: the file itself answers only
/// once it is served.
fn file_system_at(path: &Path) -> Option<u64> {
    mount_at(path).map(|(_, number)| number)
}

/// Type and number of the file system that is mounted at a path, after `proc_pid_mountinfo(5)`.
fn mount_at(path: &Path) -> Option<(String, u64)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    // In that list a space is written \040, and so on; the last mount covers those before.
    let shown = path
        .to_str()?
        .replace('\\', "\\134")
        .replace(' ', "\\040")
        .replace('\t', "\\011")
        .replace('\n', "\\012");
    let is_meant = |line: &&str| line.split(' ').nth(4) == Some(&shown);
    let (before, after) = mounts.lines().rev().find(is_meant)?.split_once(" - ")?;
    let (major, minor) = before.split(' ').nth(2)?.split_once(':')?;
    Some((after.split(' ').next()?.to_owned(), makedev(major.parse().ok()?, minor.parse().ok()?)))
}

fn stop(mount: &Mount) -> bool {
    match mount.stop() {
        Ok(()) => true,
        // The end of the process ends the connection just as well.
        Err(error) => {
            warn!(%error, "unmounting the file failed, ignoring");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn number_of_a_file_system_is_found_among_the_mounts() {
        assert_eq!(file_system_at(Path::new("/proc")), Some(fs::metadata("/proc").unwrap().dev()));
        assert_eq!(file_system_at(Path::new("/proc/self")), None);
    }
}
