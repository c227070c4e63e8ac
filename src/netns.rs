//! Network namespaces: held open, entered, and who may administer one.
//!
//! A tunnel is named within the network namespace of the thread that opened the device, at that time. [`Networks`] holds that
//! namespace from then on, as the kernel's own device does, until the last file from there is closed: the opener may long be
//! elsewhere. Who may administer it is the kernel's rule (`ns_capable`, user_namespaces(7)), asked here of `/proc`.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::{core::Scope, sys};

/// A network namespace. It stays as long as this does.
#[derive(Debug)]
pub struct Network {
    file: OwnedFd,
    inode: u64,
}

impl Network {
    /// That of a thread.
    ///
    /// # Errors
    ///
    /// The thread has ended, or may not be looked at.
    pub fn of_thread(tid: u32) -> io::Result<Self> {
        File::open(format!("/proc/{tid}/ns/net"))?.try_into()
    }

    /// That of the thread which calls.
    ///
    /// # Errors
    ///
    /// There is no `/proc`.
    pub fn current() -> io::Result<Self> {
        File::open("/proc/thread-self/ns/net")?.try_into()
    }

    /// A new one, with a loopback interface that is down.
    pub(crate) fn make() -> io::Result<Self> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            // What else is there stays silent. A kernel may have no IPv6, and the file may be read-only.
            let _silent = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
            Self::current()
        })
    }

    /// The inode number, which is what tunnels are told apart by.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs something in the namespace: by this thread if it is there, else by one that moves.
    ///
    /// # Errors
    ///
    /// `EPERM` if this process may not enter it.
    pub(crate) fn run<T: Send>(&self, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        if Self::current().is_ok_and(|current| current.inode == self.inode) {
            return act();
        }
        in_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            act()
        })
    }

    /// Whether somebody may administer the namespace, as `ns_capable` decides. CAP_NET_ADMIN permits it, in the user namespace that
    /// owns the namespace or in one above. So does being the user who made one of these, seen from above. `None`: this process cannot
    /// see the owning user namespace, because it is neither its own nor below its own.
    #[must_use]
    pub(crate) fn is_administered_by(&self, who: &Administrator) -> Option<bool> {
        let mut users = File::from(sys::users_of_namespace(self.as_fd()).ok()?);
        while inode_of(&users)? != who.users {
            let above = File::from(sys::parent_of_namespace(users.as_fd()).ok()?);
            if inode_of(&above)? == who.users
                && sys::owner_of_namespace(users.as_fd()).is_ok_and(|owner| owner == who.uid)
            {
                return Some(true);
            }
            users = above;
        }
        Some(who.has_net_admin)
    }
}

/// What is looked at of somebody who wants to administer a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Administrator {
    /// The number of their user namespace.
    pub(crate) users: u64,
    /// CAP_NET_ADMIN is among their effective capabilities there.
    pub(crate) has_net_admin: bool,
    /// Their effective user id.
    pub(crate) uid: u32,
}

impl Administrator {
    /// CAP_NET_ADMIN in the initial user namespace, which some things take.
    pub(crate) fn is_initial(&self) -> bool {
        /// `PROC_USER_INIT_INO`.
        const INITIAL: u64 = 0xEFFF_FFFD;
        self.has_net_admin && self.users == INITIAL
    }
}

impl AsFd for Network {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<Network> for OwnedFd {
    fn from(network: Network) -> Self {
        network.file
    }
}

impl TryFrom<File> for Network {
    type Error = io::Error;

    fn try_from(file: File) -> io::Result<Self> {
        let inode = file.metadata()?.ino();
        Ok(Self { file: file.into(), inode })
    }
}

/// The namespaces from which files are open.
#[derive(Debug, Default)]
pub struct Networks(Mutex<BTreeMap<Scope, Held>>);

#[derive(Debug)]
struct Held {
    /// `None`: it could not be looked at.
    network: Option<Arc<Network>>,
    files: usize,
}

impl Networks {
    /// A thread is about to open a file, and is in this namespace.
    pub(crate) fn enter(&self, scope: Scope, tid: u32) {
        if let Some(held) = self.lock().get_mut(&scope)
            && held.network.is_some()
        {
            held.files += 1;
            return;
        }
        // The thread waits for its open, so it has not moved since its scope was looked up.
        let network = Network::of_thread(tid).ok().filter(|network| network.inode() == scope.0);
        let network = network.map(Arc::new);
        let mut all = self.lock();
        let held = all.entry(scope).or_insert(Held { network: None, files: 0 });
        // An earlier look may have failed for lack of descriptors.
        held.network = held.network.take().or(network);
        held.files += 1;
    }

    /// A file of the namespace was closed, or not opened after all.
    pub(crate) fn leave(&self, scope: Scope) {
        if let Entry::Occupied(mut held) = self.lock().entry(scope) {
            held.get_mut().files -= 1;
            if held.get().files == 0 {
                held.remove();
            }
        }
    }

    /// One of them; `None` if it could not be looked at.
    #[must_use]
    pub fn find(&self, scope: Scope) -> Option<Arc<Network>> {
        self.lock().get(&scope).and_then(|held| held.network.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Scope, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs what moves to another namespace: only the thread that asks does, and it must not come back to others' work if it cannot
/// come back.
fn in_thread<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let moved = thread::Builder::new().name("network".to_owned()).spawn_scoped(scope, act)?;
        moved.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn inode_of(namespace: &File) -> Option<u64> {
    namespace.metadata().ok().map(|metadata| metadata.ino())
}
