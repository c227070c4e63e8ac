//! The thread that owns all devices: what it is told, and where that leads. [`making`], [`changes`] and [`removal`] are what it does,
//! [`news`] is what others do.

mod changes;
mod making;
mod news;
mod removal;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    ops::ControlFlow,
    sync::{Arc, Weak, mpsc},
};

use nix::{
    errno::Errno,
    sys::epoll::{EpollEvent, EpollFlags, EpollTimeout},
};

use self::{news::Source, removal::Going};
use super::{
    Client, Listener, MakeError, News, Sender, Spec, Then, TunNode,
    device::Device,
    maker::{Job, Made},
    namespace::Namespace,
    remover::Remover,
    table::Table,
};
use crate::{
    abi::tun::Name,
    core::{Interface, Look, NetdevPlan, NetdevRequest, Request, TunnelId},
    planted,
};

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
                self.look_for(look);
                self.listener.go_on(*request);
            }
            Message::Left(tunnel) => self.has_left(tunnel),
            Message::CatchUp(done) => {
                self.tell_all_news();
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
                match asker {
                    Some(asker) => self.tell_done(asker, set),
                    None => self.tell_not_set(tunnel, setting, set),
                }
            }
            NetdevRequest::Remove { tunnel, is_deleted } => {
                let listener = Arc::clone(&self.listener);
                let told = move |_| listener.tell(News::Removed(tunnel));
                self.remove(tunnel, is_deleted, Box::new(told));
            }
        }
    }
}
