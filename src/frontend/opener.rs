//! Who opened the device and who calls it, as `/proc` tells.
//!
//! # Caveats
//!
//! A thread that serves the device must not make a call that waits for another process. These do not:
//!
//! * Reading `/proc/TID/status` copies what the kernel has (`proc_pid_status`). It does not take the lock of the thread's memory. A page
//!   fault may hold that lock for as long as a server likes. `cmdline`, `environ` and `maps` take it, so nobody here reads them.
//! * `stat` and `open` of `/proc/TID/ns/net` end in the kernel's own nsfs, which has no server.
//!
//! This one may, so a thread makes it that can be given up (`lookout`):
//!
//! * What follows `/proc/PID/fd/N` to the file: its file system may ask its server. FUSE does not, by the way in which
//!   [`FileKind`] asks; NFS and 9p may.
//!
//! Reading the folder `/proc/PID/fd`, and `/proc/PID/fdinfo/N`, does not follow it.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt};

use super::lookout;
use crate::{
    abi::tun::O_CLOEXEC,
    core::{Credentials, Opener, Scope},
    hub::FileKind,
    netns::{Administrator, Network},
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

/// The ids by which a thread opens files, user first.
pub(super) fn ids_of(tid: u32) -> Option<(u32, u32)> {
    let status = Status::of(tid)?;
    // Real, effective, saved, and of the file system.
    let id = |key| status.field(key)?.split_whitespace().nth(3)?.parse().ok();
    Some((id("Uid:")?, id("Gid:")?))
}

/// The process that a thread belongs to.
pub(super) fn process_of(tid: u32) -> Option<u32> {
    Status::of(tid)?.field("Tgid:")?.parse().ok()
}

/// The rights of a client that the kernel's tun would check before it permits TUNSETIFF on a file of a network namespace. A thread
/// that cannot be seen has no capability, and only the group of its files. In a namespace that cannot be seen nobody has a capability.
///
/// DIFFERS: a client's CAP_NET_ADMIN counts only in user namespaces that the daemon can see: its own, and those below it.
pub(super) fn credentials(tid: u32, uid: u32, gid: u32, network: Option<&Network>) -> Credentials {
    let seen = Status::of(tid).and_then(|status| status.caller());
    let Some(Caller { uid, groups, has_net_admin }) = seen else {
        let groups = vec![gid];
        return Credentials { net_admin: false, is_initial_admin: false, uid, groups };
    };
    let uid = Ids::Users.told(uid);
    let gid = groups.last().map_or(u32::MAX, |gid| Ids::Groups.told(*gid));
    // One that has no number here is of no use here, but for the effective one, which must not be taken for another.
    let supplementary = groups.iter().map(|group| Ids::Groups.told(*group));
    let groups = supplementary.filter(|group| *group != u32::MAX).chain([gid]).collect();
    let administrator = user_namespace_of(tid).map(|users| {
        // An administrator's id is compared with that of a namespace's owner.
        Administrator { users, has_net_admin, uid }
    });
    let is_admin = |network: &Network| network.is_administered_by(&administrator?);
    Credentials {
        net_admin: network.and_then(is_admin).unwrap_or(false),
        is_initial_admin: administrator.is_some_and(|who| who.is_initial()),
        uid,
        groups,
    }
}

fn user_namespace_of(tid: u32) -> Option<u64> {
    fs::metadata(format!("/proc/{tid}/ns/user")).ok().map(|namespace| namespace.ino())
}

/// What `/proc` says of whoever calls.
#[derive(Debug, PartialEq, Eq)]
struct Caller {
    /// Effective.
    uid: u32,
    /// The supplementary ones, and the effective one, which is the last.
    groups: Vec<u32>,
    /// In its own user namespace.
    has_net_admin: bool,
}

/// Numbers of users or groups.
#[derive(Clone, Copy)]
enum Ids {
    Users,
    Groups,
}

impl Ids {
    /// A number as `/proc` tells it; `u32::MAX`, which is nobody's, if it stands for those that have no number here.
    fn told(self, id: u32) -> u32 {
        /// `DEFAULT_OVERFLOWUID`, `DEFAULT_OVERFLOWGID`.
        const OVERFLOW: u32 = 65_534;
        let map = match self {
            Self::Users => "/proc/self/uid_map",
            Self::Groups => "/proc/self/gid_map",
        };
        // Where somebody has it, it is theirs: the kernel lets nobody without a number open a file of a mount of this namespace.
        let is_given = || fs::read_to_string(map).is_ok_and(|map| has_number(&map, OVERFLOW));
        if id == OVERFLOW && !is_given() { u32::MAX } else { id }
    }
}

/// Whether a map of ids gives a number to somebody (user_namespaces(7)).
fn has_number(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        match (numbers.next(), numbers.nth(1)) {
            (Some(Ok(first)), Some(Ok(count))) => {
                id.checked_sub(first).is_some_and(|past| past < count)
            }
            _ => false,
        }
    })
}

/// `/proc/TID/status`, see `proc_pid_status(5)`.
struct Status(String);

impl Status {
    /// `None` if the thread cannot be seen: one of another pid namespace has number 0.
    fn of(tid: u32) -> Option<Self> {
        // A program may have any bytes in its name.
        let status = fs::read(format!("/proc/{tid}/status")).ok().filter(|_| tid > 0);
        status.map(|bytes| Self(text_of(&bytes)))
    }

    fn field(&self, key: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
    }

    fn caller(&self) -> Option<Caller> {
        /// `CAP_NET_ADMIN`, a bit of the mask.
        const NET_ADMIN: u32 = 12;
        let capabilities = u64::from_str_radix(self.field("CapEff:")?, 16).ok()?;
        // Real, effective, saved, and of the file system.
        let effective = |key| self.field(key)?.split_whitespace().nth(1)?.parse().ok();
        let supplementary = self.field("Groups:")?.split_whitespace();
        let mut groups: Vec<u32> = supplementary.map(str::parse).collect::<Result<_, _>>().ok()?;
        groups.push(effective("Gid:")?);
        Some(Caller {
            has_net_admin: capabilities & 1 << NET_ADMIN != 0,
            uid: effective("Uid:")?,
            groups,
        })
    }
}

/// Whether the descriptors that each process has of the device are closed on exec.
///
/// It belongs to descriptors, not to open files, so no message of the kernel tells. `None` if the descriptors cannot be
/// seen, there is none, or they differ. A process whose descriptors cannot be looked at in time is left out.
pub(crate) fn close_on_exec(
    pids: impl IntoIterator<Item = u32>,
    is_device: impl Fn(FileKind) -> bool + Send + Sync + 'static,
) -> BTreeMap<u32, Option<bool>> {
    lookout::look_at(pids, move |pid| close_on_exec_of(pid, &is_device))
}

fn close_on_exec_of(pid: u32, is_device: impl Fn(FileKind) -> bool) -> Option<bool> {
    let mut found = None;
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        if !FileKind::at(&entry.path()).is_ok_and(&is_device) {
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
    use std::{
        io::Read,
        process::{Child, Command, Stdio},
    };

    use super::*;

    #[test]
    fn close_on_exec_is_told_where_it_is_the_same_everywhere() {
        // A device that no other of these tests has open.
        let file = fs::File::open("/dev/full").unwrap();
        let number = file.metadata().unwrap().rdev();
        let pid = std::process::id();
        let told = || close_on_exec([pid], move |file| file.character_device == Some(number))[&pid];
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
            (look_up(tid, 1, 2), credentials(tid, 9, 9, None))
        });
        let (opener, credentials) = thread.join().unwrap();
        assert_eq!((opener.pid, opener.command.as_str()), (std::process::id(), "a\\xff\x1b[2J"));
        assert_eq!(credentials.uid, nix::unistd::geteuid().as_raw());
    }

    #[test]
    fn map_of_ids_says_who_has_a_number() {
        let map = "         0       1000          1\n     65534      65534          2\n";
        let has = |id| has_number(map, id);
        assert!(has(0) && has(65_534) && has(65_535));
        assert!(!has(1) && !has(1000) && !has(65_533) && !has(65_536));
        assert!(has_number("0 0 4294967295", 65_534) && !has_number("", 0));
    }

    #[test]
    fn credentials_are_the_effective_ones() {
        let status = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t20 30 \nCapEff:\t0000000000001000\n";
        let caller = |text: &str| Status(text.to_owned()).caller();
        let expected = Caller { has_net_admin: true, uid: 2, groups: vec![20, 30, 6] };
        assert_eq!(caller(status), Some(expected));
        let without = caller(&status.replace("1000", "efff")).unwrap();
        assert!(!without.has_net_admin);
        assert_eq!(caller("Name:\tx\n"), None);
        let tid = nix::unistd::gettid().as_raw().unsigned_abs();
        let own = credentials(tid, 9, 9, None);
        assert_eq!(own.uid, nix::unistd::geteuid().as_raw());
        assert!(own.groups.contains(&nix::unistd::getegid().as_raw()));
        assert!(!own.net_admin, "of no namespace");
        let unseen =
            Credentials { net_admin: false, is_initial_admin: false, uid: 9, groups: vec![8] };
        let network = Network::current().unwrap();
        assert_eq!(credentials(0, 9, 8, Some(&network)), unseen);
    }

    /// A process in namespaces of its own. It ends when this is dropped.
    struct Unshared(Child);

    impl Unshared {
        fn start(namespaces: &[&str]) -> Self {
            let mut unshare = Command::new("unshare");
            unshare.args(namespaces).args(["sh", "-c", "echo; read line"]);
            let child = unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
            let mut child = child.unwrap();
            // It has them when it says something.
            child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            Self(child)
        }
    }

    impl Drop for Unshared {
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            let _ended = self.0.wait();
        }
    }

    /// In a user namespace of its own anybody has all capabilities, and none where the network namespace belongs to another.
    #[test]
    fn capability_counts_in_the_user_namespace_of_the_network() {
        let network = Network::current().unwrap();
        let here = user_namespace_of(std::process::id()).unwrap();
        let child = Unshared::start(&["--user", "--map-root-user"]);
        let status = Status::of(child.0.id()).unwrap().caller().unwrap();
        assert!(status.has_net_admin);
        assert_ne!(user_namespace_of(child.0.id()), Some(here));
        assert!(!credentials(child.0.id(), 0, 0, Some(&network)).net_admin);
        assert!(!credentials(child.0.id(), 0, 0, Some(&network)).is_initial_admin);
        let who = |users, has_net_admin| Administrator { users, has_net_admin, uid: 1 };
        assert_eq!(network.is_administered_by(&who(here, true)), Some(true));
        assert_eq!(network.is_administered_by(&who(here, false)), Some(false));
    }

    /// The namespace above has what it has in those below, and so has the user who made one.
    #[test]
    fn namespace_below_is_administered_from_above() {
        let child = Unshared::start(&["--user", "--map-root-user", "--net"]);
        let network = Network::of_thread(child.0.id()).unwrap();
        assert!(credentials(child.0.id(), 0, 0, Some(&network)).net_admin);
        let here = user_namespace_of(std::process::id()).unwrap();
        let owner = nix::unistd::geteuid().as_raw();
        let has = |has_net_admin, uid| {
            network.is_administered_by(&Administrator { users: here, has_net_admin, uid })
        };
        assert_eq!(has(true, owner + 1), Some(true));
        assert_eq!(has(false, owner), Some(true), "who made it");
        assert_eq!(has(false, owner + 1), Some(false));
    }

    #[test]
    fn a_hidden_thread_has_the_default_scope() {
        assert_eq!(look_up(0, 1, 2).scope, Scope::default());
        assert_eq!(look_up(u32::MAX, 1, 2).command, "");
    }
}
