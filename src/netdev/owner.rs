//! The thread that owns all devices.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io,
    ops::ControlFlow,
    os::fd::AsFd,
    sync::{Arc, Weak, mpsc},
};

use nix::{
    errno::Errno,
    sys::epoll::{EpollEvent, EpollFlags, EpollTimeout},
};
use tracing::{debug, info, warn};

use super::{
    Client, Kind, Listener, MakeError, News, Sender, Spec, Then, TunNode,
    device::Device,
    make::errno_of,
    maker::{Job, Made, make_for},
    namespace::{Changes, Namespace},
    queue::Queue,
    remover::{Removal, Remover},
    setting,
    share::{self, Held},
    state_of,
    table::Table,
};
use crate::{
    abi::tun::{IfFlags, IfReq, Name},
    core::{
        FileId, Interface, Look, MadeNetdev, NetdevPlan, NetdevRequest, NetdevSetting, Request,
        RequestId, TunnelId, User,
    },
    netns::Network,
    planted,
    sys::tun::{self, IfReqCommand},
};

/// Devices at one time, as many as tunnels.
const DEVICES: usize = 4_096;
/// Makers at one time.
const MAKERS: usize = 16;
const EVENTS_AT_ONCE: usize = 64;
const MESSAGES_AT_ONCE: usize = 64;

/// What the owner is told.
pub(super) enum Message {
    /// By the core, for a client.
    Asked(NetdevRequest, Client),
    /// A tunnel is to get a device.
    Add(Box<NetdevPlan>, Client, Then),
    /// It is to have none.
    Remove(TunnelId, Then),
    /// A client's call waits for news.
    Look(Look, Box<Request>),
    /// A device is not where it was.
    Left(TunnelId),
    /// Somebody waits for all news.
    CatchUp(mpsc::Sender<()>),
    /// By a maker.
    Made(Job, Result<Made, MakeError>),
    /// By the remover, in the order in which it was asked.
    Removed(TunnelId),
    /// Everything is to be removed.
    Stop,
}

/// What the remover is about to do, as long as it matters to others.
struct Going {
    tunnel: TunnelId,
    /// Of a device: where it is, and its name.
    place: Option<(u64, Name)>,
    what: Then,
}

/// Something that can be read.
#[derive(Clone, Copy)]
enum Source {
    Queue(TunnelId, FileId),
    Monitor(u64),
    Messages,
}

/// All state of the devices.
pub(super) struct Owner {
    node: Arc<TunNode>,
    listener: Arc<dyn Listener>,
    table: Arc<Table>,
    devices: BTreeMap<TunnelId, Device>,
    /// By inode.
    namespaces: BTreeMap<u64, Weak<Namespace>>,
    /// What epoll's numbers mean.
    sources: BTreeMap<u64, Source>,
    last_source: u64,
    messages: mpsc::Receiver<Message>,
    myself: Sender,
    /// What waits for a maker, or for the remover.
    jobs: VecDeque<Job>,
    makers: usize,
    remover: Remover,
    going: VecDeque<Going>,
}

impl Owner {
    pub(super) fn new(
        node: TunNode,
        listener: Arc<dyn Listener>,
        table: Arc<Table>,
        myself: Sender,
        messages: mpsc::Receiver<Message>,
    ) -> io::Result<Self> {
        let remover = Remover::start(myself.clone())?;
        let mut owner = Self {
            node: Arc::new(node),
            listener,
            table,
            devices: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            sources: BTreeMap::new(),
            last_source: 0,
            messages,
            myself,
            jobs: VecDeque::new(),
            makers: 0,
            remover,
            going: VecDeque::new(),
        };
        let number = owner.new_source(Source::Messages);
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
        owner.table.epoll.add(&*owner.myself.wake, event)?;
        Ok(owner)
    }

    pub(super) fn run(mut self) {
        loop {
            self.handle_events(EpollTimeout::NONE);
            // What is sent from now on wakes again.
            let _count = self.myself.wake.read();
            for handled in 0.. {
                if handled == MESSAGES_AT_ONCE {
                    let _again = self.myself.wake.write(1);
                    break;
                }
                let Ok(message) = self.messages.try_recv() else { break };
                if self.handle(message).is_break() {
                    return;
                }
            }
        }
    }

    fn handle(&mut self, message: Message) -> ControlFlow<()> {
        planted::panic_at("netdev");
        match message {
            Message::Asked(request, client) => self.perform(request, client),
            Message::Add(plan, client, then) => self.add(plan, client, then),
            Message::Remove(tunnel, then) => self.remove(tunnel, false, then),
            Message::Look(look, request) => {
                if let Some(entry) = self.table.find(look.tunnel) {
                    self.tell_news(&entry.namespace);
                }
                if self.table.receive(look, self.listener.as_ref()) {
                    self.has_left(look.tunnel);
                }
                self.listener.go_on(*request);
            }
            Message::Left(tunnel) => self.has_left(tunnel),
            Message::CatchUp(done) => {
                let namespaces: Vec<_> =
                    self.namespaces.values().filter_map(Weak::upgrade).collect();
                namespaces.iter().for_each(|namespace| self.tell_news(namespace));
                // What queues have got. Epoll gives each its turn.
                for _ in 0..=self.sources.len() / EVENTS_AT_ONCE {
                    self.handle_events(EpollTimeout::ZERO);
                }
                // Whoever asked may not wait any more.
                let _told = done.send(());
            }
            Message::Made(job, made) => {
                self.makers -= 1;
                self.take_in(job, made);
                self.start_jobs();
            }
            Message::Removed(tunnel) => self.removed(tunnel),
            Message::Stop => {
                self.stop();
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn perform(&mut self, request: NetdevRequest, client: Client) {
        match request {
            NetdevRequest::Make { tunnel, file, name, flags, index, interface, rights, .. } => {
                let index = i32::try_from(index).ok().filter(|index| *index > 0);
                let passes_datagrams = interface == Interface::Bridge;
                match self.room_for(name, client) {
                    Ok((user, network)) => {
                        let spec = Spec { name, flags, index, passes_datagrams, rights, user };
                        self.start(Job::Make { tunnel, file, spec, network });
                    }
                    Err(error) => self.tell_not_made(tunnel, &error),
                }
            }
            NetdevRequest::Open { tunnel, file, flags, rights, asker } => {
                let Some(user) = client.user else {
                    return self.tell_done(asker, Err(Errno::EBADFD));
                };
                let (name, index) = (Name::default(), None);
                let spec = Spec { name, flags, index, passes_datagrams: true, rights, user };
                self.start(Job::Open { tunnel, file, spec, asker });
            }
            NetdevRequest::Close { tunnel, file } => self.close_queue(tunnel, file),
            NetdevRequest::SetQueue { tunnel, file, attached, asker } => {
                let set = self.set_queue(tunnel, file, attached);
                self.tell_done(asker, set);
            }
            NetdevRequest::Set { tunnel, setting, asker } => {
                let set = self.set(tunnel, setting);
                match (asker, set) {
                    (Some(asker), set) => self.tell_done(asker, set),
                    (None, Ok(())) => {}
                    (None, Err(errno)) => {
                        warn!(tunnel = tunnel.0, ?setting, %errno, "setting an interface failed, ignoring");
                        // What the harness was told is not so.
                        if let Some(device) = self.devices.get(&tunnel) {
                            self.listener.tell(News::Changed(tunnel, device.state));
                        }
                    }
                }
            }
            NetdevRequest::Remove { tunnel, is_deleted } => {
                let listener = Arc::clone(&self.listener);
                let told = move |_| listener.tell(News::Removed(tunnel));
                self.remove(tunnel, is_deleted, Box::new(told));
            }
        }
    }

    fn room_for(&self, name: Name, client: Client) -> Result<(Arc<User>, Arc<Network>), MakeError> {
        if self.devices.len() + self.makers + self.jobs.len() >= DEVICES {
            return Err(MakeError::TooMany { name, limit: DEVICES });
        }
        let Client { user, network } = client;
        user.zip(network).ok_or(MakeError::Network { name, errno: Errno::ESRCH })
    }

    fn add(&mut self, plan: Box<NetdevPlan>, client: Client, then: Then) {
        match self.room_for(plan.name, client) {
            Ok((user, network)) => {
                let spec = Spec {
                    name: plan.name,
                    flags: plan.flags | IfFlags::TUN_EXCL,
                    index: None,
                    passes_datagrams: plan.to == Interface::Bridge,
                    rights: super::Rights::Admin,
                    user,
                };
                self.start(Job::Add { plan, spec, network, then });
            }
            Err(error) => self.not_added(plan.tunnel, then, &error),
        }
    }

    // Making.

    fn start(&mut self, job: Job) {
        self.jobs.push_back(job);
        self.start_jobs();
    }

    /// Starts makers for what waits for nothing.
    fn start_jobs(&mut self) {
        for job in std::mem::take(&mut self.jobs) {
            if self.makers >= MAKERS || self.must_wait(&job) {
                self.jobs.push_back(job);
            } else {
                self.start_maker(job);
            }
        }
    }

    /// A name that is being removed is not free, nor is the only queue of a device while it is being closed.
    fn must_wait(&self, job: &Job) -> bool {
        match job {
            Job::Make { spec, network, .. } | Job::Add { spec, network, .. } => {
                let wanted = spec.name.as_bytes();
                let is_template = wanted.is_empty() || wanted.contains(&b'%');
                self.going.iter().filter_map(|going| going.place).any(|(inode, name)| {
                    inode == network.inode() && (is_template || name == spec.name)
                })
            }
            Job::Open { tunnel, .. } => self.going.iter().any(|going| going.tunnel == *tunnel),
        }
    }

    fn start_maker(&mut self, job: Job) {
        let found = match &job {
            Job::Make { network, .. } | Job::Add { network, .. } => {
                Ok((self.namespace_at(network.inode()), None))
            }
            Job::Open { tunnel, .. } => match self.devices.get(tunnel) {
                Some(device) => Ok((Some(Arc::clone(&device.namespace)), Some(device))),
                None => Err(Errno::EBADFD),
            },
        };
        let (known, device) = match found {
            Ok(found) => found,
            Err(errno) => {
                let name = Name::default();
                self.makers += 1;
                return self
                    .myself
                    .send(Message::Made(job, Err(MakeError::Refused { name, errno })));
            }
        };
        let place = device.map(|device| (device.index, device.kind));
        let (node, owner) = (Arc::clone(&self.node), self.myself.clone());
        self.makers += 1;
        let maker = std::thread::Builder::new().name("netdev-make".to_owned());
        let (hand_over, taken) = mpsc::channel::<Job>();
        let spawned = maker.spawn(move || {
            let Ok(job) = taken.recv() else { return };
            let made = make_for(&job, &node, known, place);
            owner.send(Message::Made(job, made));
        });
        match spawned {
            // It is there, and takes it.
            Ok(_) => drop(hand_over.send(job)),
            Err(error) => {
                let (name, errno) = (Name::default(), errno_of(&error));
                self.myself.send(Message::Made(job, Err(MakeError::Network { name, errno })));
            }
        }
    }

    fn take_in(&mut self, job: Job, made: Result<Made, MakeError>) {
        match job {
            Job::Make { tunnel, file, spec, .. } => {
                let name = spec.name;
                let made = made.and_then(|made| self.take_device(tunnel, &[file], &spec, made));
                match made {
                    Ok(made) => self.listener.tell(News::Made(tunnel, Ok(Some(made)))),
                    Err(error) => {
                        debug!(%name, "no device");
                        self.tell_not_made(tunnel, &error);
                    }
                }
            }
            Job::Open { tunnel, file, asker, .. } => {
                let opened = match made {
                    Ok(Made::Queue(queue)) => self.take_queue(tunnel, file, queue),
                    Ok(Made::Device(..)) => Err(Errno::EBADFD),
                    Err(error) => {
                        if let MakeError::Open { .. } | MakeError::NotPermitted { .. } = error {
                            warn!("{error}");
                        }
                        Err(error.errno())
                    }
                };
                self.tell_done(asker, opened);
            }
            Job::Add { plan, spec, then, .. } => {
                let tunnel = plan.tunnel;
                let made = made.and_then(|made| self.take_device(tunnel, &plan.files, &spec, made));
                match made {
                    Ok(_) => {
                        for file in &plan.detached {
                            let set = self.set_queue(tunnel, *file, false);
                            log_failure(plan.name, "detaching a queue", set);
                        }
                        for setting in &plan.settings {
                            let set = self.set(tunnel, *setting);
                            log_failure(plan.name, "setting what the tunnel has", set);
                        }
                        // From now on the device's state counts: it is as the tunnel is.
                        self.listener.tell(News::Added(tunnel, Some(plan.to)));
                        then(Ok(()));
                    }
                    Err(error) => self.not_added(tunnel, then, &error),
                }
            }
        }
    }

    /// A device that was made, with its queues.
    fn take_device(
        &mut self,
        tunnel: TunnelId,
        files: &[FileId],
        spec: &Spec,
        made: Made,
    ) -> Result<MadeNetdev, MakeError> {
        let name = spec.name;
        let Made::Device(namespace, made, further) = made else {
            return Err(MakeError::Refused { name, errno: Errno::EBADFD });
        };
        let refused = |errno| MakeError::Refused { name, errno };
        let namespace = self.join(namespace).map_err(refused)?;
        let index = made.state.index;
        let device = Device {
            kind: made.kind,
            user: Arc::clone(&spec.user),
            is_shared: spec.flags.contains(IfFlags::MULTI_QUEUE),
            state: state_of(&made.state, &namespace.network),
            namespace: Arc::clone(&namespace),
            index,
            queues: BTreeMap::new(),
            persistent: made.persistent,
            far: made.far,
        };
        self.devices.insert(tunnel, device);
        namespace.enter(index, tunnel);
        let open = |this: &mut Self| {
            for (file, queue) in files.iter().zip(made.queue.into_iter().chain(further)) {
                this.open_queue(tunnel, *file, queue)?;
            }
            // What happened before there was news about it.
            let device = this.devices.get_mut(&tunnel).ok_or(Errno::EBADFD)?;
            device.state = device.look()?;
            Ok(device.state)
        };
        match open(self) {
            Ok(state) => {
                self.publish(tunnel);
                if made.kind != Kind::Tun {
                    info!(name = %state.name, kind = made.kind.word(), "a substitute takes the place of a tun device");
                }
                Ok(MadeNetdev { state, persistent: made.persistent, was_there: made.was_there })
            }
            Err(errno) => {
                self.remove(tunnel, false, Box::new(drop));
                Err(refused(errno))
            }
        }
    }

    fn take_queue(
        &mut self,
        tunnel: TunnelId,
        file: FileId,
        queue: Option<Held>,
    ) -> Result<(), Errno> {
        if let Some(queue) = queue {
            self.open_queue(tunnel, file, queue)?;
            self.publish(tunnel);
        }
        // The first queue of a persistent device brings its carrier back; news of that takes the kernel up to a second.
        self.look_at(tunnel)
    }

    fn open_queue(&mut self, tunnel: TunnelId, file: FileId, queue: Held) -> Result<(), Errno> {
        if !self.devices.contains_key(&tunnel) {
            return Err(Errno::EBADFD);
        }
        let source = self.new_source(Source::Queue(tunnel, file));
        let queue = Arc::new(Queue::new(queue, source));
        let watched = queue.watch(&self.table.epoll);
        if watched.is_err() {
            self.sources.remove(&source);
        }
        if let (Ok(()), Some(device)) = (watched, self.devices.get_mut(&tunnel)) {
            device.queues.insert(file, queue);
        }
        watched
    }

    fn tell_not_made(&self, tunnel: TunnelId, error: &MakeError) {
        let made = self.listener.explain(error).map_or(Ok(None), Err);
        let made = made.map_err(|errno| crate::errno::Errno::from_number(errno as i32));
        self.listener.tell(News::Made(tunnel, made));
    }

    fn not_added(&self, tunnel: TunnelId, then: Then, error: &MakeError) {
        self.listener.tell(News::Added(tunnel, None));
        then(Err(error.to_string()));
    }

    // Changing.

    fn set(&mut self, tunnel: TunnelId, setting: NetdevSetting) -> Result<(), Errno> {
        let device = self.devices.get_mut(&tunnel).ok_or(Errno::EBADFD)?;
        setting::set(device, setting)?;
        if let NetdevSetting::Persistent(persistent) = setting {
            device.persistent = persistent;
        }
        self.look_at(tunnel)
    }

    fn set_queue(&self, tunnel: TunnelId, file: FileId, attached: bool) -> Result<(), Errno> {
        let device = self.devices.get(&tunnel).ok_or(Errno::EBADFD)?;
        if device.kind != Kind::Tun {
            return Ok(());
        }
        let queue = device.queues.get(&file).ok_or(Errno::EINVAL)?;
        let mut request = IfReq::zeroed(false);
        request.set_flags(if attached { IfFlags::ATTACH_QUEUE } else { IfFlags::DETACH_QUEUE });
        queue.with(|file| tun::with_ifreq(file, IfReqCommand::SetQueue, &request).map(drop))
    }

    fn tell_done(&self, asker: RequestId, done: Result<(), Errno>) {
        let done = done.map_err(|errno| crate::errno::Errno::from_number(errno as i32));
        self.listener.tell(News::Done(asker, done));
    }

    // Removing.

    fn close_queue(&mut self, tunnel: TunnelId, file: FileId) {
        let Some(device) = self.devices.get_mut(&tunnel) else { return };
        let Some(queue) = device.queues.remove(&file) else { return };
        self.publish(tunnel);
        self.forget_queues([&queue]);
        self.going.push_back(Going { tunnel, place: None, what: Box::new(drop) });
        self.remover.remove(Removal { tunnel, device: None, queues: vec![queue] });
    }

    /// Removes a device, or leaves it behind if it is persistent and not deleted by somebody, and calls `then` when that is done. The
    /// listener hears no more of it.
    fn remove(&mut self, tunnel: TunnelId, is_deleted: bool, then: Then) {
        let Some(device) = self.devices.remove(&tunnel) else { return then(Ok(())) };
        device.namespace.leave(device.index, tunnel);
        self.table.set(tunnel, None);
        self.forget_queues(device.queues.values());
        // A device of which others may have queues is theirs too, and goes with the last.
        let is_ours = device.kind != Kind::Tun || !device.is_shared;
        let goes = is_deleted || is_ours && !device.persistent;
        let (inode, name) = (device.namespace.network.inode(), device.state.name);
        self.going.push_back(Going { tunnel, place: Some((inode, name)), what: then });
        let queues = device.queues.into_values().collect();
        let device = goes.then_some((device.namespace, device.index));
        self.remover.remove(Removal { tunnel, device, queues });
    }

    fn forget_queues<'a>(&mut self, queues: impl IntoIterator<Item = &'a Arc<Queue>>) {
        for queue in queues {
            queue.unwatch(&self.table.epoll);
            self.sources.remove(&queue.source());
        }
    }

    fn removed(&mut self, tunnel: TunnelId) {
        let Some(at) = self.going.iter().position(|going| going.tunnel == tunnel) else { return };
        if let Some(Going { what, .. }) = self.going.remove(at) {
            what(Ok(()));
        }
        self.start_jobs();
    }

    fn stop(&mut self) {
        self.jobs.clear();
        let tunnels: Vec<TunnelId> = self.devices.keys().copied().collect();
        tunnels.into_iter().for_each(|tunnel| self.remove(tunnel, false, Box::new(drop)));
        while !self.going.is_empty() {
            match self.messages.recv() {
                Ok(Message::Removed(tunnel)) => {
                    let at = self.going.iter().position(|going| going.tunnel == tunnel);
                    at.map(|at| self.going.remove(at));
                }
                // The daemon's clients are gone.
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    // News.

    fn handle_events(&mut self, timeout: EpollTimeout) {
        let mut events = [EpollEvent::empty(); EVENTS_AT_ONCE];
        let count = match self.table.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => {
                warn!(%errno, "waiting for network devices failed, ignoring");
                0
            }
        };
        for event in &events[..count] {
            match self.sources.get(&event.data()) {
                Some(Source::Queue(tunnel, file)) => {
                    self.listener.tell(News::Readable(*tunnel, *file));
                }
                Some(Source::Monitor(inode)) => {
                    planted::panic_at("news");
                    if let Some(namespace) = self.namespace_at(*inode) {
                        self.tell_news(&namespace);
                    }
                }
                // Or one that was closed meanwhile.
                Some(Source::Messages) | None => {}
            }
        }
    }

    fn tell_news(&mut self, namespace: &Namespace) {
        namespace.read_news(|Changes { changed, left }| {
            for tunnel in changed {
                // If it is not there any more, that is news to come.
                let _state = self.look_at(tunnel);
            }
            left.into_iter().for_each(|tunnel| self.has_left(tunnel));
        });
    }

    /// Asks the kernel how a device is, and tells the listener if it has changed.
    fn look_at(&mut self, tunnel: TunnelId) -> Result<(), Errno> {
        let device = self.devices.get_mut(&tunnel).ok_or(Errno::EBADFD)?;
        let state = device.look()?;
        let before = std::mem::replace(&mut device.state, state);
        if before != state {
            self.listener.tell(News::Changed(tunnel, state));
        }
        Ok(())
    }

    /// A device is not where it was: deleted, or moved to another namespace, where it is followed.
    fn has_left(&mut self, tunnel: TunnelId) {
        if !self.devices.contains_key(&tunnel) {
            return;
        }
        if self.follow(tunnel).is_ok() {
            debug!(tunnel = tunnel.0, "a device was moved to another network namespace");
            let _state = self.look_at(tunnel);
            return;
        }
        self.listener.tell(News::Gone(tunnel));
        let Some(device) = self.devices.remove(&tunnel) else { return };
        device.namespace.leave(device.index, tunnel);
        self.table.set(tunnel, None);
        self.forget_queues(device.queues.values());
        let queues = device.queues.into_values().collect();
        self.going.push_back(Going { tunnel, place: None, what: Box::new(drop) });
        self.remover.remove(Removal { tunnel, device: None, queues });
    }

    fn follow(&mut self, tunnel: TunnelId) -> io::Result<()> {
        let device = self.devices.get(&tunnel).ok_or(Errno::ENODEV)?;
        let before = (device.namespace.network.inode(), device.index);
        let user = Arc::clone(&device.user);
        let (name, network) = device.any_queue().ok_or(Errno::ENODEV)?.with(|file| {
            let attached = tun::with_ifreq(file, IfReqCommand::Attached, &IfReq::zeroed(false))?;
            Ok((attached.name(), tun::network_of(file.as_fd())?))
        })?;
        let network = Arc::new(Network::try_from(File::from(network))?);
        let namespace = match self.namespace_at(network.inode()) {
            Some(namespace) => namespace,
            None => {
                let charge = share::charge(&user, name, Namespace::DESCRIPTORS);
                let charge = charge.map_err(|error| {
                    warn!("{error}; the interface was moved there, and its tunnel ends");
                    error.errno()
                })?;
                self.join(Arc::new(Namespace::open(network, charge)?))?
            }
        };
        let index = namespace.requests.link_named(name.as_bytes())?.index;
        if before == (namespace.network.inode(), index) {
            return Ok(());
        }
        namespace.enter(index, tunnel);
        if let Some(device) = self.devices.get_mut(&tunnel) {
            device.namespace.leave(device.index, tunnel);
            (device.namespace, device.index) = (namespace, index);
        }
        self.publish(tunnel);
        Ok(())
    }

    fn publish(&self, tunnel: TunnelId) {
        self.table.set(tunnel, self.devices.get(&tunnel).map(Device::entry));
    }

    fn namespace_at(&self, inode: u64) -> Option<Arc<Namespace>> {
        self.namespaces.get(&inode).and_then(Weak::upgrade)
    }

    /// Watches a namespace that a maker has opened, unless there is one that is watched already.
    fn join(&mut self, namespace: Arc<Namespace>) -> Result<Arc<Namespace>, Errno> {
        let inode = namespace.network.inode();
        if let Some(known) = self.namespace_at(inode) {
            return Ok(known);
        }
        self.namespaces.retain(|_, namespace| namespace.strong_count() > 0);
        let namespaces = &self.namespaces;
        self.sources.retain(|_, source| match source {
            Source::Monitor(inode) => namespaces.contains_key(inode),
            Source::Queue(..) | Source::Messages => true,
        });
        let number = self.new_source(Source::Monitor(inode));
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
        self.table.epoll.add(namespace.monitor(), event)?;
        self.namespaces.insert(inode, Arc::downgrade(&namespace));
        Ok(namespace)
    }

    fn new_source(&mut self, source: Source) -> u64 {
        self.last_source += 1;
        self.sources.insert(self.last_source, source);
        self.last_source
    }
}

fn log_failure(name: Name, what: &str, done: Result<(), Errno>) {
    if let Err(errno) = done {
        debug!(%name, %errno, "{what} failed, ignoring");
    }
}
