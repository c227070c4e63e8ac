//! The kernel's network devices beside tunnels. Clients configure them with `ip`, `ifconfig`, rtnetlink and the `SIOCSIF*` ioctls of
//! sockets. A device in memory could not answer these calls.
//!
//! # Theory of operation
//!
//! The *owner*, one thread, has all state of the devices. It makes, changes and removes them, and the kernel tells it what others do to
//! them. It gets messages through one channel, in the order in which they are sent. It tells the results by [`Listener::tell`], with no
//! lock held. No thread waits for it: a call that must wait for a device is parked in the core, and goes on when the core is told.
//!
//! ```text
//!   core --NetdevRequest--> channel --> owner --NetdevNews--> core
//!   client --ip link set tun0 up--> kernel --RTM_NEWLINK--> owner --Changed--> core
//!   kernel --routes a datagram into tun0--> tun driver --epoll--> owner --Readable--> core
//!   a client's read or poll --> Netdevs::look, receive --read--> tun driver
//!   owner --> maker: namespaces, TUNSETIFF      owner --> remover: deletions, closing of queues
//! ```
//!
//! A device is the kernel's own tun or tap. memtun opens it with the client's name and flags, so it looks as the client expects
//! (`IFLA_INFO_KIND`, `tun_flags`, `POINTOPOINT`). Where memtun cannot use the driver, it makes a substitute, which clients can configure,
//! but which passes nothing: a `veth`, else a `dummy` or `ifb` device. The kernel decides what a client may attach to, by the client's
//! own rights ([`Rights`]).
//!
//! The owner leaves slow work to other threads. A *maker*, one thread for each device that is being made, enters the namespace and makes
//! the device. The *remover*, one thread, deletes devices, many at once, and closes queues. Each of these takes the kernel an RCU grace
//! period of about 20 ms. A call waits for the remover only if it wants the name of a device that is being removed, or a queue of a
//! device that has a queue being closed.
//!
//! Datagrams from the kernel stay in the driver's queue, with its length and its order, until a client wants them. The thread that has
//! the client's call reads them, and writes what the client writes. It looks up the queue in `Table`, which belongs to the owner.
//!
//! The kernel queues news before the call that caused it returns. So a call whose outcome depends on a device first looks for news that
//! the core does not know ([`Netdevs::look`]). If there is any, the owner takes the call over, and the call goes on after the news.
//!
//! memtun follows a tun that is moved to another namespace (TUNGETDEVNETNS). When memtun ends, in whatever way, all devices vanish that
//! are not persistent. A tun goes with its last queue. A `veth` goes with its other end, whose namespace only memtun has (`far`). A
//! `dummy` or `ifb` stays when memtun is killed, until its namespace goes; it has the alias `memtun`.
//!
//! # Locks
//!
//! They are taken in this order. Only the second one is held while the core is told something. `hub` has the order of
//! the daemon's other locks.
//!
//! 1. the lock of `Table`, for a look-up or a change, and no other under it;
//! 2. the turn of a queue, one at a time: held while datagrams are read and given to the core, which keeps their order. The core's own lock comes
//!    after it, and a thread that has the core's lock never takes a turn;
//! 3. the file descriptor of a queue: shared for one `read` or `writev`, which never block, and exclusive to close it;
//! 4. what is watched in a namespace: the owner's, while it reads news;
//! 5. a socket of rtnetlink: each belongs to one thread, except for the one of the makers and the remover.

mod buffer;
mod device;
mod far;
mod hub;
mod make;
mod maker;
mod namespace;
mod owner;
mod queue;
mod remover;
mod rtnetlink;
mod setting;
mod share;
mod table;

use std::{
    io::{self, IoSlice},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    sys::eventfd::{EfdFlags, EventFd},
};
use tracing::warn;

pub(crate) use self::hub::{Options, start};
pub use self::make::{MakeError, NoDriver, TunNode};
use self::{
    owner::{Message, Owner},
    table::Table,
};
pub use crate::core::{
    NetdevNews as News, NetdevRequest, NetdevSetting as Setting, NetdevState as State, Rights,
};
use crate::{
    abi::{
        rtnetlink::Link,
        tun::{IfFlags, Name},
    },
    core::{FileId, Look, NetdevPlan, Request, Sent, TunnelId, User},
    netns::Network,
};

/// What kind of device it is.
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

/// What device is wanted.
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
    /// Whose share it takes of.
    pub user: Arc<User>,
}

/// For whom a device or a queue is made, as far as it is known: the file may have been closed meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// In whose share.
    pub user: Option<Arc<User>>,
    /// In which network namespace.
    pub network: Option<Arc<Network>>,
}

/// Whoever has devices made. Called by the owner, and by whoever calls [`Netdevs`], with no lock but the turn of a queue.
pub trait Listener: Send + Sync {
    /// Something has become of a device.
    fn tell(&self, news: News);
    /// What the kernel has sent by a queue: with PI and vnet header, as the device's flags say, the latter of 10 bytes. Whether more is
    /// wanted.
    fn take(&self, tunnel: TunnelId, file: FileId, datagram: Bytes) -> bool;
    /// A client's call whose device has been looked at.
    fn go_on(&self, request: Request);
    /// Why a device could not be made; the errno that TUNSETIFF is to have, if it is not to do without.
    fn explain(&self, error: &MakeError) -> Option<Errno>;
}

/// All devices, and the way to their owner; see the [module](self).
pub struct Netdevs {
    table: Arc<Table>,
    listener: Arc<dyn Listener>,
    to_owner: Sender,
    /// Disconnected when the owner has ended.
    ended: Mutex<mpsc::Receiver<()>>,
}

/// What is done when a tunnel has another interface, or cannot have it.
pub type Then = Box<dyn FnOnce(Result<(), String>) + Send>;

/// How long an orderly end may take, and a harness waits for news: the kernel may be busy for others.
const PATIENCE: Duration = Duration::from_secs(5);

impl Netdevs {
    /// Starts the owner.
    ///
    /// # Errors
    ///
    /// The kernel has no descriptors or threads for it.
    pub fn start(node: TunNode, listener: Arc<dyn Listener>) -> io::Result<Self> {
        let (send, messages) = mpsc::channel();
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let to_owner = Sender { messages: send, wake };
        let table = Arc::new(Table::new()?);
        let owner = Owner::new(
            node,
            Arc::clone(&listener),
            Arc::clone(&table),
            to_owner.clone(),
            messages,
        )?;
        let (alive, ended) = mpsc::channel();
        thread::Builder::new().name("netdev".to_owned()).spawn(move || {
            let _until_the_end = alive;
            owner.run();
        })?;
        Ok(Self { table, listener, to_owner, ended: Mutex::new(ended) })
    }

    /// Does what is asked, later; answered by [`Listener::tell`]. What is made is made for this client.
    pub fn ask(&self, request: NetdevRequest, client: Client) {
        self.to_owner.send(Message::Asked(request, client));
    }

    /// Gives a tunnel that is there a device, and calls `then` with why not, by the owner.
    pub fn add(&self, plan: NetdevPlan, client: Client, then: Then) {
        self.to_owner.send(Message::Add(Box::new(plan), client, then));
    }

    /// Removes a tunnel's device, and calls `then` when it is gone, by the owner.
    pub fn remove(&self, tunnel: TunnelId, then: Then) {
        self.to_owner.send(Message::Remove(tunnel, then));
    }

    /// Lets a client's call go on when the listener knows how its device is: at once, by this thread, if it does.
    pub fn look(&self, look: Look, request: Box<Request>) {
        match self.table.find(look.tunnel) {
            Some(entry) if entry.namespace.has_news() => {
                self.to_owner.send(Message::Look(look, request));
            }
            Some(_) => {
                self.receive_as(look);
                self.listener.go_on(*request);
            }
            None => self.listener.go_on(*request),
        }
    }

    /// Gives the listener what the kernel has sent by a queue, as long as it wants more; with some more perhaps later.
    pub fn receive(&self, tunnel: TunnelId, file: FileId) {
        self.receive_as(Look { tunnel, sent: Sent::To(file) });
    }

    fn receive_as(&self, look: Look) {
        if self.table.receive(look, self.listener.as_ref()) {
            self.to_owner.send(Message::Left(look.tunnel));
        }
    }

    /// Hands the kernel a datagram, with PI and vnet header as the device's flags say; never blocks. Returns the count.
    ///
    /// # Errors
    ///
    /// The kernel's: `EIO` if the device is down, `EINVAL` for a header that is wrong, `EBADFD` if the device or the queue is
    /// gone.
    pub fn write(
        &self,
        tunnel: TunnelId,
        file: FileId,
        parts: &[IoSlice<'_>],
    ) -> Result<usize, Errno> {
        self.table.queue(tunnel, file).ok_or(Errno::EBADFD)?.write(parts)
    }

    /// What kind a tunnel's device is.
    #[must_use]
    pub fn kind(&self, tunnel: TunnelId) -> Option<Kind> {
        self.table.find(tunnel).map(|entry| entry.kind)
    }

    /// Waits until the listener has been told all that has happened to any device, or come by it. Not for a thread of the listener's
    /// that the owner waits for.
    pub fn catch_up(&self) {
        let (done, told) = mpsc::channel();
        self.to_owner.send(Message::CatchUp(done));
        // An owner that has ended has no news.
        if told.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            warn!("the kernel sends no news of network devices, ignoring");
        }
    }

    /// Removes all devices that are not persistent, and ends the threads, unless that takes too long. Nothing is done any more for
    /// whoever asks later.
    pub fn stop(&self) {
        self.to_owner.send(Message::Stop);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            warn!("removing network devices takes too long, leaving them until the process ends");
        }
    }
}

/// The way to the owner.
#[derive(Clone)]
struct Sender {
    messages: mpsc::Sender<Message>,
    wake: Arc<EventFd>,
}

impl Sender {
    fn send(&self, message: Message) {
        // Nobody listens when the owner has ended, and a counter that is full wakes as well.
        let _ended = self.messages.send(message);
        let _woken = self.wake.write(1);
    }
}

/// How a device in a namespace is.
fn state_of(link: &Link, network: &Network) -> State {
    use crate::{
        abi::rtnetlink::IFF_UP,
        core::{MacAddress, Scope},
    };
    State {
        scope: Scope(network.inode()),
        index: link.index,
        name: link.name,
        up: link.flags & IFF_UP != 0,
        carrier: link.carrier,
        mtu: link.mtu,
        address: link.address.map(MacAddress),
        queue_length: link.queue_length,
    }
}
