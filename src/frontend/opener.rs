//! Who opened the device and who calls it, as `/proc` tells.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
};

use crate::{
    abi::tun::O_CLOEXEC,
    core::{Credentials, Opener, Scope},
    terminal::text_of,
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
    if let Some(status) = Status::of(tid) {
        opener.command = status.field("Name:").unwrap_or_default().to_owned();
        opener.pid = status.field("Tgid:").and_then(|pid| pid.parse().ok()).unwrap_or(tid);
    }
    if let Ok(namespace) = fs::metadata(format!("/proc/{tid}/ns/net")) {
        opener.scope = Scope(namespace.ino());
    }
    opener
}

/// The process that a thread belongs to.
pub(super) fn process_of(tid: u32) -> Option<u32> {
    Status::of(tid)?.field("Tgid:")?.parse().ok()
}

/// What the kernel's tun would look at to permit TUNSETIFF. A thread that cannot be seen has no capability, and no groups but
/// that of its files.
///
/// DIFFERS: with `--require-net-admin`, CAP_NET_ADMIN counts in whichever user namespace the caller has it. The kernel wants
/// it in the one that the network namespace belongs to, and for IFF_NAPI_FRAGS in the initial one.
pub(super) fn credentials(tid: u32, uid: u32, gid: u32) -> Credentials {
    let unseen = Credentials { net_admin: false, uid, groups: vec![gid] };
    if tid == 0 {
        return unseen;
    }
    Status::of(tid).and_then(|status| status.credentials()).unwrap_or(unseen)
}

/// `/proc/TID/status`, see `proc_pid_status(5)`.
struct Status(String);

impl Status {
    fn of(tid: u32) -> Option<Self> {
        // A program may have any bytes in its name.
        fs::read(format!("/proc/{tid}/status")).ok().map(|bytes| Self(text_of(&bytes)))
    }

    fn field(&self, key: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
    }

    fn credentials(&self) -> Option<Credentials> {
        /// `CAP_NET_ADMIN`, a bit of the mask.
        const NET_ADMIN: u32 = 12;
        let capabilities = u64::from_str_radix(self.field("CapEff:")?, 16).ok()?;
        // Real, effective, saved, and of the file system.
        let effective = |key| self.field(key)?.split_whitespace().nth(1)?.parse().ok();
        let supplementary = self.field("Groups:")?.split_whitespace();
        let mut groups: Vec<u32> = supplementary.map(str::parse).collect::<Result<_, _>>().ok()?;
        groups.push(effective("Gid:")?);
        Some(Credentials {
            net_admin: capabilities & 1 << NET_ADMIN != 0,
            uid: effective("Uid:")?,
            groups,
        })
    }
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
    fn a_name_that_is_no_text_hides_nobody() {
        let thread = std::thread::spawn(|| {
            fs::write("/proc/thread-self/comm", b"a\xff\x1b[2J").unwrap();
            let tid = nix::unistd::gettid().as_raw().unsigned_abs();
            (look_up(tid, 1, 2), credentials(tid, 9, 9))
        });
        let (opener, credentials) = thread.join().unwrap();
        assert_eq!((opener.pid, opener.command.as_str()), (std::process::id(), "a\\xff\x1b[2J"));
        assert_eq!(credentials.uid, nix::unistd::geteuid().as_raw());
    }

    #[test]
    fn credentials_are_the_effective_ones() {
        let status = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t20 30 \nCapEff:\t0000000000001000\n";
        let credentials = |text: &str| Status(text.to_owned()).credentials();
        let expected = Credentials { net_admin: true, uid: 2, groups: vec![20, 30, 6] };
        assert_eq!(credentials(status), Some(expected));
        let without = credentials(&status.replace("1000", "efff")).unwrap();
        assert!(!without.net_admin);
        assert_eq!(credentials("Name:\tx\n"), None);
        let tid = nix::unistd::gettid().as_raw().unsigned_abs();
        let own = super::credentials(tid, 9, 9);
        assert_eq!(own.uid, nix::unistd::geteuid().as_raw());
        assert!(own.groups.contains(&nix::unistd::getegid().as_raw()));
        let unseen = Credentials { net_admin: false, uid: 9, groups: vec![8] };
        assert_eq!(super::credentials(0, 9, 8), unseen);
    }

    #[test]
    fn a_hidden_thread_has_the_default_scope() {
        assert_eq!(look_up(0, 1, 2).scope, Scope::default());
        assert_eq!(look_up(u32::MAX, 1, 2).command, "");
    }
}
