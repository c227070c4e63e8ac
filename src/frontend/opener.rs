//! Who opened the device, as `/proc` tells.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
};

use crate::{
    abi::tun::O_CLOEXEC,
    core::{Opener, Scope},
};

/// What can be found out about the thread that made a call.
///
/// What cannot be read stays empty: the thread may belong to another pid namespace (then its id is 0), or `/proc` may
/// be hidden. An answer is owed in any case.
pub(super) fn look_up(tid: u32, uid: u32, gid: u32) -> Opener {
    let mut opener = Opener { pid: tid, command: String::new(), uid, gid, scope: Scope::default() };
    if tid == 0 {
        return opener;
    }
    if let Ok(status) = fs::read_to_string(format!("/proc/{tid}/status")) {
        let field =
            |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        opener.command = field("Name:").unwrap_or_default().to_owned();
        opener.pid = field("Tgid:").and_then(|pid| pid.parse().ok()).unwrap_or(tid);
    }
    if let Ok(namespace) = fs::metadata(format!("/proc/{tid}/ns/net")) {
        opener.scope = Scope(namespace.ino());
    }
    opener
}

/// The process that a thread belongs to.
pub(super) fn process_of(tid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// Whether the descriptors that a process has of the device are closed on exec.
///
/// It belongs to descriptors, not to open files, so no message of the kernel tells. `None` if the descriptors cannot be
/// seen, there is none, or they differ.
pub(crate) fn close_on_exec(pid: u32, is_device: impl Fn(&Metadata) -> bool) -> Option<bool> {
    let mut found = None;
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        if !fs::metadata(entry.path()).is_ok_and(|metadata| is_device(&metadata)) {
            continue;
        }
        let info =
            fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", entry.file_name().display()))
                .ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let closed = u32::from_str_radix(flags.trim(), 8).ok()? & O_CLOEXEC != 0;
        if found.replace(closed).is_some_and(|other| other != closed) {
            return None;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_on_exec_is_told_where_it_is_the_same_everywhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = fs::File::create(&path).unwrap();
        let inode = file.metadata().unwrap().ino();
        let told = || close_on_exec(std::process::id(), |metadata| metadata.ino() == inode);
        assert_eq!(told(), Some(true));
        let kept = nix::unistd::dup(&file).unwrap();
        assert_eq!(told(), None);
        drop(file);
        assert_eq!(told(), Some(false));
        drop(kept);
        assert_eq!(told(), None);
    }

    #[test]
    fn a_thread_is_found_under_its_process() {
        let tid = nix::unistd::gettid().as_raw().unsigned_abs();
        let opener = look_up(tid, 1, 2);
        assert_eq!(opener.pid, std::process::id());
        assert_ne!(opener.scope, Scope::default());
        assert!(!opener.command.is_empty());
        assert_eq!((opener.uid, opener.gid), (1, 2));
    }

    #[test]
    fn a_hidden_thread_has_the_default_scope() {
        assert_eq!(look_up(0, 1, 2).scope, Scope::default());
        assert_eq!(look_up(u32::MAX, 1, 2).command, "");
    }
}
