//! Real links beside tunnels: what clients configure with `ip`, `ifconfig`, rtnetlink and the `SIOCSIF*` ioctls of sockets,
//! none of which a device can answer.
//!
//! # Theory of operation
//!
//! [`Links::make`] makes a link in the network namespace of the client that opened the device. It is the kernel's own tun or
//! tap, opened by memtun and asked for by the client's name and flags, so that it looks in every way as the client expects
//! (`IFLA_INFO_KIND`, `tun_flags`, `POINTOPOINT`). Where the driver cannot be asked a substitute stands in, which can be
//! configured, but passes nothing: a `veth`, else a `dummy` or `ifb` link.
//!
//! What happens to the link comes back through a [`Listener`]: its state, its end, and that the kernel has sent something into it.
//! That stays in the driver's queue, with its length and its order, until somebody wants it ([`Links::receive`]). What the client
//! asks of the link goes through [`Links::set`], what it writes through [`Link::write`].
//!
//! ```text
//!   client --ip link set tun0 up--> kernel --RTM_NEWLINK--> data thread --changed--> Listener
//!   kernel --routes a datagram into tun0--> tun driver --epoll--> data thread --readable--> Listener
//!   Links::receive --read--> tun driver
//!   Links::make, set, remove --> work thread --TUNSETIFF, rtnetlink--> kernel
//! ```
//!
//! Two threads serve all links. Making and above all removing a link takes the kernel its time (20 ms for a removal, an RCU
//! grace period), so the *work* thread does that and the *data* thread, an epoll loop, never waits. In each namespace with a
//! link there is one socket for news and one for requests; the news is filtered by the link's index, and news that was lost
//! (`ENOBUFS`) is made up for by looking at each link.
//!
//! The kernel queues news before the call that made it returns. So whoever is about to refuse something because of a link's
//! state calls [`Links::refresh`] first, and the client's own change cannot be overlooked.
//!
//! A link that the client moves to another namespace is followed there, if it is a tun (TUNGETDEVNETNS). All of them vanish
//! when memtun ends, however it ends, but for those that were made persistent: a tun goes with its last queue, a `veth` with its
//! other end, which is in a namespace that only memtun has (`far`). A `dummy` or `ifb` stays when memtun is killed, until its
//! namespace goes; it bears the alias `memtun`.

mod far;
mod make;
mod namespace;
mod network;
mod queue;
mod setting;
mod threads;

use std::{
    collections::BTreeMap,
    io::IoSlice,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use nix::{errno::Errno, sys::uio::writev};

use self::{far::Far, namespace::Namespace, queue::Queue};
pub use self::{
    make::{MakeError, NoDriver, TunNode},
    threads::Links,
};
pub use crate::core::{LinkSetting as Setting, LinkState as State, Rights};
use crate::{
    abi::{
        rtnetlink,
        tun::{IfFlags, Name},
    },
    core::{MacAddress, Scope},
};

/// A link's number, given by whoever has it made; of no other link at the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// A queue's number among those of its link, given likewise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u64);

/// What kind of link it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's tun or tap.
    Tun,
    /// A substitute.
    Veth,
    /// A substitute.
    Dummy,
    /// A substitute.
    Ifb,
}

impl Kind {
    /// As in `ip link add type KIND`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Tun => "tun",
            Self::Veth => "veth",
            Self::Dummy => "dummy",
            Self::Ifb => "ifb",
        }
    }
}

/// What link is wanted.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name; empty or a template, and the kernel chooses.
    pub name: Name,
    /// As the client's TUNSETIFF has them.
    pub flags: IfFlags,
    /// As its TUNSETIFINDEX has it.
    pub index: Option<i32>,
    /// Datagrams are to pass, so no substitute will do.
    pub passes_datagrams: bool,
    /// What the client may do.
    pub rights: Rights,
}

/// How a link in a namespace is.
fn state_of(link: &rtnetlink::Link, namespace: &Namespace) -> State {
    State {
        scope: Scope(namespace.network.inode()),
        index: link.index,
        name: link.name,
        up: link.flags & rtnetlink::IFF_UP != 0,
        carrier: link.carrier,
        mtu: link.mtu,
        address: link.address.map(MacAddress),
        queue_length: link.queue_length,
    }
}

/// Whoever has links made. Called by the threads of this module, without a lock of theirs that a call of [`Links`] takes,
/// but for [`Links::refresh`].
pub trait Listener: Send + Sync {
    /// The kernel has sent something by a queue since this was said last. It stays there until [`Links::receive`] takes it: with PI
    /// and vnet header, as the link's flags say, the latter of 10 bytes.
    fn readable(&self, link: LinkId, queue: QueueId);
    /// A link has changed.
    fn changed(&self, link: LinkId, state: &State);
    /// Somebody deleted a link, or moved it where it cannot be followed.
    fn gone(&self, link: LinkId);
}

/// A link that was made.
#[derive(Clone, Debug)]
pub struct Made {
    /// The link, to write to.
    pub link: Arc<Link>,
    /// How it was.
    pub state: State,
    /// It outlives its queues: somebody has made it persistent.
    pub persistent: bool,
    /// It was there before, and the kernel let the client attach to it.
    pub was_there: bool,
}

/// A link.
#[derive(Debug)]
pub struct Link {
    id: LinkId,
    kind: Kind,
    /// Several may have queues of it, other programs too.
    is_shared: bool,
    place: Mutex<Place>,
    state: Mutex<State>,
    queues: RwLock<BTreeMap<QueueId, Arc<Queue>>>,
    /// Whether it stays when it is not used any more.
    persistent: Mutex<bool>,
    /// Of a `veth`.
    far: Option<Far>,
}

/// Where it is.
#[derive(Clone, Debug)]
struct Place {
    namespace: Arc<Namespace>,
    index: u32,
}

impl Link {
    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How it was when it was last heard of.
    #[must_use]
    pub fn state(&self) -> State {
        *lock(&self.state)
    }

    /// Hands the kernel a datagram, with PI and vnet header as the link's flags say; never blocks. Returns the count.
    ///
    /// # Errors
    ///
    /// The kernel's: `EIO` if the link is down, `EINVAL` for a header that is wrong, `EBADFD` if the link or the queue is
    /// gone.
    pub fn write(&self, queue: QueueId, parts: &[IoSlice<'_>]) -> Result<usize, Errno> {
        let queue = self.queue(Some(queue)).ok_or(Errno::EBADFD)?;
        loop {
            match writev(&*queue, parts) {
                Err(Errno::EINTR) => {}
                written => return written,
            }
        }
    }

    /// A queue of it, or any.
    fn queue(&self, wanted: Option<QueueId>) -> Option<Arc<Queue>> {
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        match wanted {
            Some(wanted) => queues.get(&wanted).cloned(),
            None => queues.values().next().cloned(),
        }
    }

    fn place(&self) -> Place {
        lock(&self.place).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
