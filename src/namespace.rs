//! Namespaces of this process. In them a path such as `/dev/net/tun` is covered, and no other process sees that.
//!
//! The process must have one thread when it enters them: the kernel refuses a user namespace to a process with several.

mod sysfs;

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    libc::{self, dev_t},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
    sys::stat::{Mode, SFlag, mknod},
    unistd::{getegid, geteuid},
};
use tracing::{info, warn};

use crate::{
    abi::tun::{IfReq, Name},
    sys::{self, tun::IfReqCommand},
};

/// Which namespaces a program gets, beside the one for mounts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// Look like root inside, if a user namespace is needed.
    pub map_root: bool,
    /// A network namespace with a loopback interface that is up, and a `/sys` that shows it if the kernel allows that. Programs may
    /// configure what is in it.
    pub net: bool,
}

/// Why a path cannot be covered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum NamespaceError {
    /// No user namespace, which takes the place of root.
    #[error("making a user namespace: {}{}; run as root, or use a device of 'memtun serve'", .0.desc(), user_hint())]
    User(Errno),
    /// The ids cannot be mapped.
    #[error("mapping ids into the user namespace, {path}: {error}")]
    Map {
        /// The file of `/proc`.
        path: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// No namespace for mounts or network.
    #[error("making a {what} namespace: {}; seccomp or a container's rules may forbid it", .errno.desc())]
    Unshare {
        /// Of which kind.
        what: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// A mount failed.
    #[error("mounting {what} at {at}: {}; AppArmor, SELinux or a container's rules may forbid it", .errno.desc())]
    Mount {
        /// What was to be mounted.
        what: PathBuf,
        /// Where.
        at: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },
    /// A folder cannot be composed anew.
    #[error("making a place for the device in {path}: {error}")]
    Compose {
        /// What could not be made.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The path cannot be covered.
    #[error("{0} cannot be covered: give an absolute path in a folder that exists below the root")]
    NoFolder(PathBuf),
}

/// The usual obstacles, where the kernel shows them.
fn user_hint() -> &'static str {
    let is =
        |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    if is("/proc/sys/user/max_user_namespaces", "0") {
        " (sysctl user.max_user_namespaces is 0)"
    } else if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        " (sysctl kernel.unprivileged_userns_clone is 0)"
    } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        " (sysctl kernel.apparmor_restrict_unprivileged_userns is 1)"
    } else {
        ""
    }
}

/// Moves this process into namespaces of its own. Root needs none for users; everybody else gets one, in which their
/// own ids stay theirs unless they are to look like root.
///
/// # Errors
///
/// As [`NamespaceError`] says: which namespace, and what is in the way.
pub(crate) fn enter(options: Options) -> Result<(), NamespaceError> {
    let mounts = |errno| NamespaceError::Unshare { what: "mount", errno };
    match unshare(CloneFlags::CLONE_NEWNS) {
        Ok(()) => {}
        Err(Errno::EPERM) => {
            let (uid, gid) = (geteuid(), getegid());
            unshare(CloneFlags::CLONE_NEWUSER).map_err(NamespaceError::User)?;
            let inside = |id: u32| if options.map_root { 0 } else { id };
            // Before a gid can be mapped without privilege, groups must not be droppable (user_namespaces(7)).
            write_map("/proc/self/setgroups", "deny")?;
            write_map("/proc/self/uid_map", &format!("{} {uid} 1", inside(uid.as_raw())))?;
            write_map("/proc/self/gid_map", &format!("{} {gid} 1", inside(gid.as_raw())))?;
            unshare(CloneFlags::CLONE_NEWNS).map_err(mounts)?;
            // Root's programs have it anyway. In the outer network namespace it is worth nothing.
            if options.net
                && !options.map_root
                && let Err(errno) = sys::rights::pass_on_net_admin()
            {
                warn!(%errno, "giving the program CAP_NET_ADMIN failed, ignoring");
            }
        }
        Err(errno) => return Err(mounts(errno)),
    }
    // Else what is mounted here would show up in the namespace this one was made from.
    mount_at(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    if options.net {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|errno| NamespaceError::Unshare { what: "network", errno })?;
        if let Err(errno) = bring_loopback_up() {
            warn!(%errno, "bringing up the loopback interface failed, ignoring");
        }
        if let Err(error) = sysfs::renew() {
            info!(%error, "/sys still shows the interfaces of the outer network namespace, ignoring");
        }
    }
    Ok(())
}

/// The kernel makes it down, and most programs take 127.0.0.1 for granted.
fn bring_loopback_up() -> Result<(), Errno> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut request = IfReq::zeroed(false);
    request.copy_name(&Name::new(b"lo"));
    request.set_up();
    sys::tun::with_ifreq(socket.as_fd(), IfReqCommand::SetFlags, &request).map(drop)
}

fn write_map(path: &'static str, text: &str) -> Result<(), NamespaceError> {
    fs::write(path, text).map_err(|error| NamespaceError::Map { path, error })
}

/// Makes sure that there is something at a path that can be covered. Where there is not, its folder is composed anew on a
/// tmpfs, from everything that is in it.
///
/// # Errors
///
/// As [`NamespaceError`] says.
pub(crate) fn provide(at: &Path) -> Result<(), NamespaceError> {
    if at.exists() {
        return Ok(());
    }
    let folder = at
        .parent()
        .filter(|_| at.is_absolute())
        .ok_or_else(|| NamespaceError::NoFolder(at.to_owned()))?;
    // The root itself cannot be covered: paths are looked up from below what would cover it.
    let existing = folder
        .ancestors()
        .find(|folder| folder.is_dir())
        .filter(|folder| folder.parent().is_some())
        .ok_or_else(|| NamespaceError::NoFolder(at.to_owned()))?;
    compose(existing)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| NamespaceError::Compose { path, error }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    fs::write(at, "").map_err(failed(at))
}

/// Covers a folder with a tmpfs that has the same entries.
fn compose(folder: &Path) -> Result<(), NamespaceError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| NamespaceError::Compose { path, error }
    };
    // The old folder stays reachable through its descriptor once it is covered.
    let open = fs::File::open(folder).map_err(failed(folder))?;
    let old = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    // Read through the descriptor, or what is listed would be the tmpfs.
    let entries: Vec<_> = fs::read_dir(&old).map_err(failed(folder))?.flatten().collect();
    mount_at(Some(Path::new("tmpfs")), folder, Some("tmpfs"), MsFlags::MS_NOSUID)?;
    for entry in entries {
        let (from, to) = (old.join(entry.file_name()), folder.join(entry.file_name()));
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_symlink() {
            fs::read_link(&from).and_then(|target| symlink(target, &to)).map_err(failed(&to))?;
            continue;
        }
        let made = if kind.is_dir() { fs::create_dir(&to) } else { fs::write(&to, "") };
        made.map_err(failed(&to))?;
        mount_at(Some(&from), &to, None, MsFlags::MS_BIND | MsFlags::MS_REC)?;
    }
    Ok(())
}

/// Covers a path with a device or file.
///
/// # Errors
///
/// [`NamespaceError::Mount`].
pub(crate) fn cover(device: &Path, at: &Path) -> Result<(), NamespaceError> {
    mount_at(Some(device), at, None, MsFlags::MS_BIND)
}

/// Covers a path with a node of its own for a character device, which all may open: a program may become another user
/// first. The node that the kernel makes is root's alone, as the whole system sees it.
///
/// # Errors
///
/// [`NamespaceError::Mount`]; [`NamespaceError::Compose`] if there can be no node.
pub(crate) fn cover_with_node(device: dev_t, at: &Path) -> Result<(), NamespaceError> {
    let failed = |error| NamespaceError::Compose { path: at.to_owned(), error };
    let folder = at.parent().ok_or_else(|| NamespaceError::NoFolder(at.to_owned()))?;
    // What is at the path, also while a tmpfs for the node covers its folder.
    let covered = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(at);
    let covered = covered.map_err(failed)?;
    mount_at(Some(Path::new("tmpfs")), folder, Some("tmpfs"), MsFlags::MS_NOSUID)?;
    let node = folder.join("node");
    let made = mknod(&node, SFlag::S_IFCHR, Mode::empty(), device)
        .map_err(io::Error::from)
        // Not cut by the umask.
        .and_then(|()| fs::set_permissions(&node, fs::Permissions::from_mode(0o666)))
        .map_err(failed);
    let below = PathBuf::from(format!("/proc/self/fd/{}", covered.as_raw_fd()));
    let covered = made.and_then(|()| cover(&node, &below));
    // What now covers the path stays.
    umount2(folder, MntFlags::MNT_DETACH).map_err(|errno| failed(errno.into()))?;
    covered
}

fn mount_at(
    what: Option<&Path>,
    at: &Path,
    kind: Option<&str>,
    flags: MsFlags,
) -> Result<(), NamespaceError> {
    let none: Option<&str> = None;
    mount(what, at, kind, flags, none).map_err(|errno| NamespaceError::Mount {
        what: what.unwrap_or(Path::new("privately")).to_owned(),
        at: at.to_owned(),
        errno,
    })
}
