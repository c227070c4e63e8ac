//! Making devices and queues: what waits for a maker, and what a maker has made.

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
    thread,
};

use nix::errno::Errno;
use tracing::{debug, info, warn};

use super::{
    super::{
        Client, Kind, MakeError, News, Rights, Spec, Then,
        device::Device,
        make::errno_of,
        maker::{Job, Made, make_for},
        queue::Queue,
        share::Held,
        state_of,
    },
    Message, Owner,
    news::Source,
};
use crate::{
    abi::tun::{IfFlags, Name},
    core::{FileId, Interface, MadeNetdev, NetdevPlan, TunnelId, User},
    netns::Network,
};

/// Devices at one time, as many as tunnels.
const DEVICES: usize = 4_096;
/// Makers at one time.
const MAKERS: usize = 16;

impl Owner {
    pub(super) fn add(&mut self, plan: Box<NetdevPlan>, client: Client, then: Then) {
        match self.room_for(plan.name, client) {
            Ok((user, network)) => {
                let spec = Spec {
                    name: plan.name,
                    flags: plan.flags | IfFlags::TUN_EXCL,
                    index: None,
                    passes_datagrams: plan.to == Interface::Bridge,
                    rights: Rights::Admin,
                    user,
                };
                self.start(Job::Add { plan, spec, network, then });
            }
            Err(error) => self.not_added(plan.tunnel, then, &error),
        }
    }

    pub(super) fn room_for(
        &self,
        name: Name,
        client: Client,
    ) -> Result<(Arc<User>, Arc<Network>), MakeError> {
        if self.devices.len() + self.makers + self.jobs.len() >= DEVICES {
            return Err(MakeError::TooMany { name, limit: DEVICES });
        }
        let Client { user, network } = client;
        user.zip(network).ok_or(MakeError::Network { name, errno: Errno::ESRCH })
    }

    pub(super) fn start(&mut self, job: Job) {
        self.jobs.push_back(job);
        self.start_jobs();
    }

    /// Starts makers for what waits for nothing.
    pub(super) fn start_jobs(&mut self) {
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
        let maker = thread::Builder::new().name("netdev-make".to_owned());
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

    pub(super) fn take_in(&mut self, job: Job, made: Result<Made, MakeError>) {
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

    pub(super) fn tell_not_made(&self, tunnel: TunnelId, error: &MakeError) {
        let made = self.listener.explain(error).map_or(Ok(None), Err);
        let made = made.map_err(|errno| crate::errno::Errno::from_number(errno as i32));
        self.listener.tell(News::Made(tunnel, made));
    }

    fn not_added(&self, tunnel: TunnelId, then: Then, error: &MakeError) {
        self.listener.tell(News::Added(tunnel, None));
        then(Err(error.to_string()));
    }
}

fn log_failure(name: Name, what: &str, done: Result<(), Errno>) {
    if let Err(errno) = done {
        debug!(%name, %errno, "{what} failed, ignoring");
    }
}
