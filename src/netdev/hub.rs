//! Network devices beside the tunnels of a hub. Passes the core's requests to [`Netdevs`], and tells the core what happens to the devices.

use std::{
    io::IoSlice,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

use bytes::Bytes;
use tracing::warn;

use super::{Client, Kind, Listener, MakeError, Netdevs, News, Then, TunNode};
use crate::{
    core::{
        CommandError, Core, FileId, Forward, Interface, Look, NetdevRequest, Request, Switch,
        TunnelId, input,
    },
    errno::Errno,
    hub::{Hub, NetdevOwner},
};

/// How it is done.
#[derive(Debug)]
pub(crate) struct Options {
    /// The kernel's tun driver, as it was before anything covered it.
    pub node: TunNode,
    /// What every tunnel gets.
    pub policy: Interface,
    /// A tunnel does without a device if none can be made, and nobody is told but the operator.
    pub optional: bool,
}

/// Has devices beside the tunnels of a hub from now on. Their threads start with the first.
pub(crate) fn start(hub: &Arc<Hub>, options: Options) -> Arc<dyn NetdevOwner> {
    let Options { node, policy, optional } = options;
    let listener = Arc::new(ToCore { hub: Arc::downgrade(hub), optional });
    let node = Mutex::new(Some(node));
    let owner: Arc<dyn NetdevOwner> =
        Arc::new(Beside { hub: Arc::downgrade(hub), listener, node, netdevs: OnceLock::new() });
    hub.set_netdev_owner(Arc::clone(&owner));
    hub.handle(input::SetInterfacePolicy { policy });
    owner
}

struct Beside {
    hub: Weak<Hub>,
    listener: Arc<ToCore>,
    /// Until the first device is wanted.
    node: Mutex<Option<TunNode>>,
    /// `None`: there are no threads for it.
    netdevs: OnceLock<Option<Netdevs>>,
}

impl Beside {
    fn started(&self) -> Option<&Netdevs> {
        self.netdevs.get()?.as_ref()
    }

    /// Whoever asks for another meanwhile waits for the start.
    fn start(&self) -> Option<&Netdevs> {
        let start = || {
            let node = self.node.lock().unwrap_or_else(PoisonError::into_inner).take()?;
            let started = Netdevs::start(node, Arc::clone(&self.listener) as Arc<dyn Listener>);
            started
                .inspect_err(|error| warn!(%error, "starting threads for network devices failed"))
                .ok()
        };
        self.netdevs.get_or_init(start).as_ref()
    }
}

impl NetdevOwner for Beside {
    fn ask(&self, request: NetdevRequest) {
        let Some(hub) = self.hub.upgrade() else { return };
        let user_of =
            |file: &FileId| hub.view(|core| core.file(*file).map(|file| Arc::clone(file.user())));
        let (netdevs, client) = match &request {
            NetdevRequest::Make { file, scope, .. } => {
                let network = hub.networks().find(*scope);
                (self.start(), Client { user: user_of(file), network })
            }
            NetdevRequest::Open { file, .. } => {
                (self.started(), Client { user: user_of(file), network: None })
            }
            NetdevRequest::Close { .. }
            | NetdevRequest::SetQueue { .. }
            | NetdevRequest::Set { .. }
            | NetdevRequest::Remove { .. } => (self.started(), Client::default()),
        };
        match (netdevs, request) {
            (Some(netdevs), request) => netdevs.ask(request, client),
            (None, NetdevRequest::Make { tunnel, .. }) => {
                self.listener.tell(News::Made(tunnel, Err(Errno::EAGAIN)));
            }
            // Without threads there is no device.
            (None, _) => {}
        }
    }

    fn forward(&self, forward: &Forward) -> Result<(), Errno> {
        let netdevs = self.started().ok_or(Errno::EBADFD)?;
        let (head, payload) = (forward.head.as_bytes(), &forward.datagram.payload);
        let parts = [IoSlice::new(head), IoSlice::new(payload)];
        // With IFF_NAPI_FRAGS the driver makes each piece after the first a fragment, of a page at most: the datagram is one.
        let parts = if head.is_empty() { &parts[1..] } else { &parts };
        netdevs.write(forward.tunnel, forward.file, parts).map(drop).map_err(errno_of)
    }

    fn look(&self, look: Look, request: Box<Request>) {
        match self.started() {
            Some(netdevs) => netdevs.look(look, request),
            None => self.listener.go_on(*request),
        }
    }

    fn receive(&self, tunnel: TunnelId, file: FileId) {
        if let Some(netdevs) = self.started() {
            netdevs.receive(tunnel, file);
        }
    }

    fn catch_up(&self) {
        if let Some(netdevs) = self.started() {
            netdevs.catch_up();
        }
    }

    fn switch(&self, tunnel: TunnelId, to: Interface, then: Then) {
        let Some(hub) = self.hub.upgrade() else { return };
        let switch = match hub.handle(input::SwitchInterface { tunnel, to }) {
            Err(CommandError::UnknownTunnel(_)) => {
                return then(Err("the tunnel is gone".to_owned()));
            }
            Err(error) => return then(Err(error.to_string())),
            Ok(switch) => switch,
        };
        match switch {
            Switch::Done => then(Ok(())),
            Switch::Busy => then(Err("it is being given another interface".to_owned())),
            Switch::Unused => then(Err("no client has it open".to_owned())),
            Switch::Remove => match self.started() {
                Some(netdevs) => netdevs.remove(tunnel, then),
                None => then(Ok(())),
            },
            Switch::Turn => {
                let kind = self.started().and_then(|netdevs| netdevs.kind(tunnel));
                if to == Interface::Bridge && kind != Some(Kind::Tun) {
                    let why = "the device is a substitute, which passes no datagrams";
                    return then(Err(why.to_owned()));
                }
                hub.handle(input::SetInterface { tunnel, interface: to });
                then(Ok(()));
            }
            Switch::Add(plan) => {
                let user = |core: &Core| core.tunnel(tunnel).map(|it| Arc::clone(it.user()));
                let client =
                    Client { user: hub.view(user), network: hub.networks().find(plan.scope) };
                let hub = Weak::clone(&self.hub);
                let then = move |added: Result<(), String>| {
                    let is_there = || {
                        let hub = hub.upgrade()?;
                        hub.view(|core| core.tunnel(tunnel).filter(|it| !it.is_gone()).map(|_| ()))
                    };
                    then(added.and_then(|()| is_there().ok_or("the tunnel is gone".to_owned())));
                };
                match self.start() {
                    Some(netdevs) => netdevs.add(*plan, client, Box::new(then)),
                    None => {
                        self.listener.tell(News::Added(tunnel, None));
                        then(
                            Err("the threads for network devices could not be started".to_owned()),
                        );
                    }
                }
            }
        }
    }

    fn stop(&self) {
        if let Some(netdevs) = self.started() {
            netdevs.stop();
        }
    }
}

/// Tells the core.
struct ToCore {
    hub: Weak<Hub>,
    optional: bool,
}

impl Listener for ToCore {
    fn tell(&self, news: News) {
        if let Some(hub) = self.hub.upgrade() {
            hub.handle(input::Netdev { news });
        }
    }

    fn take(&self, tunnel: TunnelId, file: FileId, datagram: Bytes) -> bool {
        let Some(hub) = self.hub.upgrade() else { return false };
        hub.handle(input::NetdevDatagram { tunnel, queue: file, bytes: datagram })
    }

    fn go_on(&self, request: Request) {
        if let Some(hub) = self.hub.upgrade() {
            hub.handle(input::Looked { request });
        }
    }

    fn explain(&self, error: &MakeError) -> Option<nix::errno::Errno> {
        let may_do_without = match error {
            // Nobody gets by the kernel's rule because it is applied.
            MakeError::NotPermitted { .. } => false,
            MakeError::Refused { .. }
            | MakeError::NoSubstitute { .. }
            | MakeError::NoTraffic { .. }
            | MakeError::Network { .. }
            | MakeError::Open { .. }
            | MakeError::TooMany { .. }
            | MakeError::NoDescriptors { .. } => self.optional,
        };
        if may_do_without {
            warn!("{error}; going on without");
            return None;
        }
        warn!("{error}");
        Some(error.errno())
    }
}

fn errno_of(errno: nix::errno::Errno) -> Errno {
    Errno::from_number(errno as i32)
}
