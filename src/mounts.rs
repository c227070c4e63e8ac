//! The mounts that this process sees, after `proc_pid_mountinfo(5)`. No server of a file system is asked anything.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStringExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::libc::O_PATH;

/// One mount.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Its number.
    pub(crate) id: u64,
    /// The number of the mount that it is on.
    pub(crate) parent: u64,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// The type of its file system, such as `ext4` or `fuse.NAME`.
    pub(crate) kind: String,
}

impl Mount {
    /// The mount that an open file is of.
    pub(crate) fn of(file: &File) -> Option<Self> {
        let fields = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
        let id = fields.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse();
        all().into_iter().find(|mount| Ok(mount.id) == id)
    }

    fn parse(line: &str) -> Option<Self> {
        // Its own number, that of what it is on, the device, the root, the path; after a dash the type.
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ');
        let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let path = unescape(fields.nth(2)?);
        Some(Self { id, parent, path, kind: after.split(' ').next()?.to_owned() })
    }
}

/// All mounts.
pub(crate) fn all() -> Vec<Mount> {
    let list = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    list.lines().filter_map(Mount::parse).collect()
}

/// A descriptor that names what is at a path.
pub(crate) fn open_path(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(O_PATH).open(path)
}

/// In that list a space is written `\040`, and so on.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = tail.get(..3).filter(|_| first == b'\\');
        let byte = escaped
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_their_paths_as_they_are() {
        let line = r"36 35 98:0 /mnt1 /a\040b\134\011c rw,noatime master:1 - fuse.memtun memtun rw";
        let path = PathBuf::from("/a b\\\tc");
        let mount = Mount { id: 36, parent: 35, path, kind: "fuse.memtun".to_owned() };
        assert_eq!(Mount::parse(line), Some(mount));
        assert_eq!(Mount::parse("36 35 98:0 / /"), None);
        assert_eq!(unescape(r"\04"), Path::new(r"\04"));
    }

    #[test]
    fn mount_of_a_file_is_found() {
        let mount = Mount::of(&open_path(Path::new("/proc/self/status")).unwrap()).unwrap();
        assert_eq!((mount.path.as_path(), mount.kind.as_str()), (Path::new("/proc"), "proc"));
        assert!(all().iter().any(|parent| parent.id == mount.parent));
    }
}
