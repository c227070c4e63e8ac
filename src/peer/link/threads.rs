//! The two threads that serve all links: what they share, and the work thread's side.

mod data;

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        eventfd::{EfdFlags, EventFd},
    },
};
use tracing::{debug, warn};

use super::{
    Kind, Link, LinkId, Listener, Made, MakeError, Place, QueueId, Rights, Setting, Spec, State,
    TunNode, lock,
    make::{self, errno_of},
    namespace::Namespace,
    queue::{Queue, Stop},
    setting, state_of,
};
use crate::{
    abi::{
        rtnetlink::{self, Request},
        tun::{IfFlags, IfReq},
    },
    netns::Network,
    planted,
    sys::tun::{self, IfReqCommand},
};

/// Links at one time, as many as tunnels.
const LINKS: usize = 4_096;

/// All links, and the threads that serve them; see the [module](super).
pub struct Links {
    shared: Arc<Shared>,
    /// As many jobs wait as callers wait for theirs, plus removals, so this is bounded by those.
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

type Job = Box<dyn FnOnce(&Shared) + Send>;

struct Shared {
    node: TunNode,
    listener: Arc<dyn Listener>,
    /// Held while a link is looked at and the listener is told: what is told last is what was seen last, and whoever finds
    /// nothing new knows that it has been told.
    telling: Mutex<()>,
    links: Mutex<BTreeMap<LinkId, Arc<Link>>>,
    namespaces: Mutex<BTreeMap<u64, Weak<Namespace>>>,
    epoll: Epoll,
    /// Held while events are handled.
    handling: Mutex<()>,
    /// What epoll's numbers mean.
    sources: RwLock<BTreeMap<u64, Source>>,
    last_source: AtomicU64,
    stop: EventFd,
}

/// Something that can be read.
#[derive(Clone)]
enum Source {
    Queue { link: Arc<Link>, id: QueueId, queue: Arc<Queue> },
    Monitor(Weak<Namespace>),
    Stop,
}

impl Links {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// The kernel has no descriptors or threads for it.
    pub fn start(node: TunNode, listener: Arc<dyn Listener>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            node,
            listener,
            telling: Mutex::default(),
            links: Mutex::default(),
            namespaces: Mutex::default(),
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            handling: Mutex::default(),
            sources: RwLock::default(),
            last_source: AtomicU64::new(0),
            stop: EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?,
        });
        let event = EpollEvent::new(EpollFlags::EPOLLIN, shared.new_source());
        shared.watch(&shared.stop, event, Source::Stop)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let spawn = |name: &str, body: Box<dyn FnOnce(&Shared) + Send>| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(name.to_owned()).spawn(move || body(&shared))
        };
        let work = spawn(
            "links",
            Box::new(move |shared| {
                queue.iter().for_each(|job| {
                    planted::panic_at("links");
                    job(shared);
                })
            }),
        )?;
        let data = spawn("links-data", Box::new(Shared::serve))?;
        Ok(Self { shared, jobs: Mutex::new(Some(jobs)), threads: Mutex::new(vec![work, data]) })
    }

    /// Makes a link with one queue in a namespace, and calls `then` with it, by another thread. That must not refresh links.
    pub fn make(
        &self,
        id: LinkId,
        queue: QueueId,
        network: Arc<Network>,
        spec: Spec,
        then: impl FnOnce(Result<Made, MakeError>) + Send + 'static,
    ) {
        self.submit(move |shared| {
            let made = shared.make(id, queue, network, &spec);
            // What became of it since is in the answer, and what becomes of it from now on is told after it.
            let _telling = lock(&shared.telling);
            then(made.map(|made| Made { state: made.link.state(), ..made }));
        });
    }

    /// Opens a further queue of a link, or again the first one of a persistent link, as TUNSETIFF does with these flags.
    pub fn add_queue(
        &self,
        id: LinkId,
        queue: QueueId,
        flags: IfFlags,
        rights: Rights,
        then: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        self.submit(move |shared| then(shared.add_queue(id, queue, flags, rights)));
    }

    /// Lets a queue get datagrams, or not, as TUNSETQUEUE does, and calls `then`, by another thread.
    pub fn set_queue(
        &self,
        id: LinkId,
        queue: QueueId,
        attached: bool,
        then: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        self.submit(move |shared| then(shared.set_queue(id, queue, attached)));
    }

    /// Closes a queue. A persistent link may have none.
    pub fn remove_queue(&self, id: LinkId, queue: QueueId) {
        self.submit(move |shared| shared.remove_queue(id, queue));
    }

    /// Sets something, and calls `then` with how the link is, by another thread. A substitute takes what it does not have.
    pub fn set(
        &self,
        id: LinkId,
        setting: Setting,
        then: impl FnOnce(Result<State, Errno>) + Send + 'static,
    ) {
        self.submit(move |shared| then(shared.set(id, setting)));
    }

    /// Removes a link, or leaves it behind if it is persistent, and calls `then`, by another thread. The listener hears no
    /// more of it.
    pub fn remove(&self, id: LinkId, then: impl FnOnce() + Send + 'static) {
        self.submit(move |shared| {
            shared.remove(id);
            then();
        });
    }

    /// Tells the listener what has happened to a link and is not known yet, before it returns.
    pub fn refresh(&self, id: LinkId) {
        if let Some(link) = self.shared.link(id) {
            self.shared.read_news(&link.place().namespace);
        }
    }

    /// Calls `take` with what the kernel has sent by a queue, as long as it wants more; with some more perhaps later, by another
    /// thread's call of [`Listener::readable`].
    pub fn receive(&self, id: LinkId, queue: QueueId, take: impl FnMut(Bytes) -> bool) {
        if let Some(link) = self.shared.link(id) {
            self.shared.receive(&link, queue, take);
        }
    }

    /// Calls `take` with all that the kernel has sent into a link.
    pub fn receive_all(&self, id: LinkId, mut take: impl FnMut(QueueId, Bytes)) {
        let Some(link) = self.shared.link(id) else { return };
        let queues = link.queues.read().unwrap_or_else(PoisonError::into_inner).clone();
        for (id, queue) in queues {
            // One that was deleted is news to come.
            while queue.receive(|datagram| {
                take(id, datagram);
                true
            }) == Stop::Others
            {}
        }
    }

    /// Tells the listener what has happened to any link, or come by it, and is not known yet, before it returns.
    pub fn refresh_all(&self) {
        let namespaces: Vec<_> = lock(&self.shared.namespaces).values().cloned().collect();
        for namespace in namespaces.iter().filter_map(Weak::upgrade) {
            self.shared.read_news(&namespace);
        }
        // What a queue has got.
        let _ending = self.shared.handle_events();
    }

    /// Removes all links that are not persistent, and ends the threads. Nothing is done any more for whoever asks later.
    pub fn stop(&self) {
        let shared = &self.shared;
        drop(lock(&self.jobs).take());
        // It has room for one more.
        let _told = shared.stop.write(1);
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            if thread.join().is_err() {
                warn!("a thread of the links had panicked, ignoring");
            }
        }
        let links: Vec<LinkId> = lock(&shared.links).keys().copied().collect();
        links.into_iter().for_each(|id| shared.remove(id));
    }

    fn submit(&self, job: impl FnOnce(&Shared) + Send + 'static) {
        if let Some(jobs) = &*lock(&self.jobs) {
            // The thread ends when there is no sender.
            let _queued = jobs.send(Box::new(job));
        }
    }
}

/// The work thread's side.
impl Shared {
    fn make(
        &self,
        id: LinkId,
        queue: QueueId,
        network: Arc<Network>,
        spec: &Spec,
    ) -> Result<Made, MakeError> {
        let name = spec.name;
        if lock(&self.links).len() >= LINKS {
            return Err(MakeError::TooMany { name, limit: LINKS });
        }
        let failed = |error: io::Error| MakeError::Network { name, errno: errno_of(&error) };
        let namespace = self.namespace(network).map_err(failed)?;
        let made = make::make(&self.node, &namespace, spec)?;
        let index = made.state.index;
        let link = Arc::new(Link {
            id,
            kind: made.kind,
            is_shared: spec.flags.contains(IfFlags::MULTI_QUEUE),
            state: Mutex::new(state_of(&made.state, &namespace)),
            place: Mutex::new(Place { namespace: Arc::clone(&namespace), index }),
            queues: RwLock::default(),
            persistent: Mutex::new(made.persistent),
            far: made.far,
        });
        lock(&self.links).insert(id, Arc::clone(&link));
        let opened = match made.queue {
            Some(file) => self.open_queue(&link, queue, file),
            None => Ok(()),
        };
        namespace.enter(index, id);
        // What happened before there was news about it.
        let state = opened.map_err(|error| errno_of(&error)).and_then(|()| self.look_at(&link));
        match state {
            Ok(state) => {
                let (persistent, was_there) = (made.persistent, made.was_there);
                Ok(Made { link, state, persistent, was_there })
            }
            Err(errno) => {
                self.remove(id);
                Err(MakeError::Refused { name, errno })
            }
        }
    }

    fn add_queue(
        &self,
        id: LinkId,
        queue: QueueId,
        flags: IfFlags,
        rights: Rights,
    ) -> Result<(), Errno> {
        let link = self.link(id).ok_or(Errno::EBADFD)?;
        let place = link.place();
        let state = self.look_at(&link)?;
        if link.kind != Kind::Tun {
            return Ok(());
        }
        let flags = flags - IfFlags::TUN_EXCL;
        let spec = Spec { name: state.name, flags, index: None, passes_datagrams: true, rights };
        let file = make::add_queue(&self.node, &place.namespace, place.index, &spec)
            .map_err(|error| error.errno())?;
        self.open_queue(&link, queue, file).map_err(|error| errno_of(&error))?;
        // The first queue of a persistent link brings its carrier back; news of that takes the kernel up to a second.
        self.look_at(&link).map(drop)
    }

    fn open_queue(&self, link: &Arc<Link>, id: QueueId, file: OwnedFd) -> io::Result<()> {
        let queue = Arc::new(Queue::new(file, self.new_source()));
        link.queues.write().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::clone(&queue));
        let (link, watched) = (Arc::clone(link), Arc::clone(&queue));
        self.watch(&*queue, queue.event(), Source::Queue { link, id, queue: watched })
    }

    fn set_queue(&self, id: LinkId, queue: QueueId, attached: bool) -> Result<(), Errno> {
        let link = self.link(id).ok_or(Errno::EBADFD)?;
        if link.kind != Kind::Tun {
            return Ok(());
        }
        let file = link.queue(Some(queue)).ok_or(Errno::EINVAL)?;
        let mut request = IfReq::zeroed(false);
        request.set_flags(if attached { IfFlags::ATTACH_QUEUE } else { IfFlags::DETACH_QUEUE });
        tun::with_ifreq(file.as_fd(), IfReqCommand::SetQueue, &request).map(drop)
    }

    fn receive(&self, link: &Arc<Link>, id: QueueId, take: impl FnMut(Bytes) -> bool) {
        let Some(queue) = link.queue(Some(id)) else { return };
        match queue.receive(take) {
            Stop::Done => {}
            Stop::Others => {
                // It is told of again. That fails only if it is not watched any more.
                let _unwatched = self.epoll.modify(&*queue, &mut queue.event());
            }
            Stop::Gone => {
                self.close_queues(link, |other| other == id);
                self.has_left(link.id);
            }
        }
    }

    fn remove_queue(&self, id: LinkId, queue: QueueId) {
        if let Some(link) = self.link(id) {
            self.close_queues(&link, |other| other == queue);
        }
    }

    fn close_queues(&self, link: &Link, which: impl Fn(QueueId) -> bool) {
        let mut sources = self.sources.write().unwrap_or_else(PoisonError::into_inner);
        sources.retain(|_, source| match source {
            Source::Queue { link: of, id, queue } if of.id == link.id && which(*id) => {
                // It fails only where it is not watched.
                let _unwatched = self.epoll.delete(&**queue);
                false
            }
            Source::Queue { .. } | Source::Monitor(_) | Source::Stop => true,
        });
        drop(sources);
        link.queues
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|queue, _| !which(*queue));
    }

    fn set(&self, id: LinkId, setting: Setting) -> Result<State, Errno> {
        let link = self.link(id).ok_or(Errno::EBADFD)?;
        setting::set(&link, setting)?;
        if let Setting::Persistent(persistent) = setting {
            *lock(&link.persistent) = persistent;
        }
        self.look_at(&link)
    }

    fn remove(&self, id: LinkId) {
        let Some(link) = self.forget(id) else { return };
        let place = link.place();
        // Others may have queues of it: it is theirs then, and goes with the last.
        if !*lock(&link.persistent) && !link.is_shared {
            // Said to the kernel, and not left to the closing of the last queue, which the data thread may be reading.
            let request = Request::new(rtnetlink::DELLINK, rtnetlink::ACK, place.index);
            match place.namespace.requests.change(request) {
                // Somebody was faster.
                Ok(()) | Err(Errno::ENODEV) => {}
                Err(errno) => {
                    let name = link.state().name;
                    debug!(%name, %errno, "deleting a link failed: it goes with its last queue");
                }
            }
        }
        self.close_queues(&link, |_| true);
    }

    /// The listener hears no more of a link.
    fn forget(&self, id: LinkId) -> Option<Arc<Link>> {
        let link = lock(&self.links).remove(&id)?;
        let place = link.place();
        place.namespace.leave(place.index, id);
        Some(link)
    }

    fn namespace(&self, network: Arc<Network>) -> io::Result<Arc<Namespace>> {
        let inode = network.inode();
        let mut namespaces = lock(&self.namespaces);
        if let Some(namespace) = namespaces.get(&inode).and_then(Weak::upgrade) {
            return Ok(namespace);
        }
        namespaces.retain(|_, namespace| namespace.strong_count() > 0);
        let namespace = Arc::new(Namespace::open(network)?);
        let news = Source::Monitor(Arc::downgrade(&namespace));
        let event = EpollEvent::new(EpollFlags::EPOLLIN, self.new_source());
        self.watch(namespace.monitor(), event, news)?;
        namespaces.insert(inode, Arc::downgrade(&namespace));
        Ok(namespace)
    }

    fn new_source(&self) -> u64 {
        self.last_source.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn watch(&self, file: impl AsFd, event: EpollEvent, source: Source) -> io::Result<()> {
        let mut sources = self.sources.write().unwrap_or_else(PoisonError::into_inner);
        sources.retain(|_, source| match source {
            Source::Monitor(namespace) => namespace.strong_count() > 0,
            Source::Queue { .. } | Source::Stop => true,
        });
        sources.insert(event.data(), source);
        drop(sources);
        Ok(self.epoll.add(file, event)?)
    }

    fn link(&self, id: LinkId) -> Option<Arc<Link>> {
        lock(&self.links).get(&id).cloned()
    }

    /// Asks the kernel how a link is, and tells the listener if it has changed.
    ///
    /// News is not taken at its word: what it says may be older than what the kernel has answered meanwhile, and that a carrier
    /// has come is news up to a second after it has.
    fn look_at(&self, link: &Link) -> Result<State, Errno> {
        let telling = lock(&self.telling);
        let place = link.place();
        let state = state_of(&place.namespace.requests.link(place.index)?, &place.namespace);
        self.is_now(link, state, &telling);
        Ok(state)
    }
}
