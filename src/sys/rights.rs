//! Acting with a client's rights, so that the kernel itself judges what the client may do.
//!
//! Ids and capabilities belong to threads. The C library's `setresuid` sets those of all threads of a process; the system calls, which
//! are used here, those of one. That thread has the client's effective ids and no capability, does the one thing, and ends.

use std::{
    io,
    sync::{Mutex, PoisonError},
    thread,
};

use nix::{
    errno::Errno,
    libc::{self, c_long, gid_t, uid_t},
    sys::prctl,
    unistd::{Gid, getegid, geteuid, getgroups},
};

/// Runs something in a thread with a user's effective id, these groups and no capabilities. What is as it is to be is not set,
/// which would take a right.
///
/// # Errors
///
/// `EPERM`: this process may not take these ids; else what `act` says.
pub(crate) fn with_rights_of<T: Send>(
    uid: u32,
    groups: &[u32],
    act: impl FnOnce() -> Result<T, Errno> + Send,
) -> Result<T, Errno> {
    // The flag is the whole process's: one at a time clears it and restores it.
    static DUMPABLE: Mutex<()> = Mutex::new(());
    let _turn = DUMPABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let was_dumpable = prctl::get_dumpable();
    let result = thread::scope(|scope| {
        let thread = thread::Builder::new().name("rights".to_owned());
        let thread = thread.spawn_scoped(scope, || take(uid, groups).and_then(|()| act()));
        let thread = thread.map_err(|error| errno_of(&error))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    // A change of ids has cleared it for the whole process (`commit_creds`).
    if was_dumpable == Ok(true) {
        let _as_before = prctl::set_dumpable(true);
    }
    result
}

fn take(uid: u32, groups: &[u32]) -> Result<(), Errno> {
    let no_change = -1_i32;
    // (uid_t)-1 is nobody's id. The kernel takes it for "as it is".
    let gid = *groups.last().ok_or(Errno::EPERM)?;
    if uid == uid_t::MAX || groups.contains(&gid_t::MAX) {
        return Err(Errno::EPERM);
    }
    if own_groups() != sorted(groups.to_vec()) {
        // SAFETY: a number of ids, and where they are.
        let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
        // In a user namespace it may be forbidden. A client of the same user has those that have no number there too.
        if result != 0 && named(own_groups()) != named(sorted(groups.to_vec())) {
            set(result)?;
        }
    }
    if getegid().as_raw() != gid {
        // SAFETY: three numbers.
        set(unsafe { libc::syscall(libc::SYS_setresgid, no_change, gid, no_change) })?;
    }
    if geteuid().as_raw() != uid {
        // SAFETY: three numbers.
        set(unsafe { libc::syscall(libc::SYS_setresuid, no_change, uid, no_change) })?;
    }
    drop_capabilities()
}

/// The effective one counts beside the others, wherever it stands.
fn own_groups() -> Vec<u32> {
    let groups = getgroups().unwrap_or_default();
    sorted(groups.into_iter().chain([getegid()]).map(Gid::as_raw).collect())
}

fn sorted(mut ids: Vec<u32>) -> Vec<u32> {
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Those that have a number in this user namespace.
fn named(mut groups: Vec<u32>) -> Vec<u32> {
    /// `DEFAULT_OVERFLOWGID`.
    const OVERFLOW: u32 = 65_534;
    groups.retain(|group| *group != OVERFLOW);
    groups
}

/// Has CAP_NET_ADMIN, which this thread has, go on to the programs that it starts, though their user is not root: the ambient set of
/// capabilities(7).
pub(crate) fn pass_on_net_admin() -> Result<(), Errno> {
    /// `CAP_NET_ADMIN`.
    const NET_ADMIN: u32 = 12;
    /// Where the first word of the inheritable set is among the sets.
    const INHERITABLE: usize = 2;
    let mut header = THIS_THREAD;
    let mut sets = Sets::default();
    // SAFETY: the two structures have the sizes that belong to this version.
    set(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) })?;
    sets[INHERITABLE] |= 1 << NET_ADMIN;
    set_capabilities(&sets)?;
    let (raise, none) = (libc::PR_CAP_AMBIENT_RAISE, 0);
    // SAFETY: numbers.
    let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, NET_ADMIN, none, none) };
    Errno::result(result).map(drop)
}

/// None is left to this thread.
fn drop_capabilities() -> Result<(), Errno> {
    set_capabilities(&Sets::default())
}

/// `struct __user_cap_header_struct`: `_LINUX_CAPABILITY_VERSION_3`, which has two words for each set, and 0 for this thread.
const THIS_THREAD: [u32; 2] = [0x2008_0522, 0];

/// `struct __user_cap_data_struct`, twice: the effective, permitted and inheritable set.
type Sets = [u32; 6];

fn set_capabilities(sets: &Sets) -> Result<(), Errno> {
    let header = THIS_THREAD;
    // SAFETY: the two structures have the sizes that belong to this version.
    set(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) })
}

fn set(result: c_long) -> Result<(), Errno> {
    match Errno::result(result) {
        Ok(_) => Ok(()),
        // An id that this user namespace does not know: EINVAL.
        Err(errno) => {
            tracing::warn!(%errno, "taking a client's rights failed, answering EPERM");
            Err(Errno::EPERM)
        }
    }
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn kernel_judges_by_the_rights_that_are_taken() {
        if !geteuid().is_root() {
            println!(
                "SKIP kernel_judges_by_the_rights_that_are_taken: only root can take others' rights"
            );
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("of-root");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let open = || std::fs::File::open(&path).map(drop).map_err(|error| errno_of(&error));
        assert_eq!(with_rights_of(1234, &[5, 6], open), Err(Errno::EACCES));
        let ids = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let field = |key: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
                line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
            };
            Ok([field("Uid:"), field("Gid:"), field("Groups:"), field("CapEff:")])
        };
        let [uids, gids, groups, capabilities] = with_rights_of(1234, &[5, 6], ids).unwrap();
        assert_eq!((&*uids[1], &*gids[1]), ("1234", "6"));
        assert_eq!(groups, ["5", "6"]);
        assert_eq!(capabilities, ["0000000000000000"]);
        // Root's id is not root's rights.
        let [uids, .., capabilities] = with_rights_of(0, &[0], ids).unwrap();
        assert_eq!((&*uids[1], &*capabilities[0]), ("0", "0000000000000000"));
        assert_eq!(with_rights_of(u32::MAX, &[0], open), Err(Errno::EPERM), "nobody's id");
        assert_eq!(open(), Ok(()), "the other threads keep theirs");
        assert_eq!(prctl::get_dumpable(), Ok(true));
    }
}
