//! The core's links: what it asks for is asked of [`Links`], what happens to them is told to it.
//!
//! A link's number is that of its tunnel, a queue's that of its file. Whatever the core asks goes to one thread of
//! [`Links`] in the order it was asked, so a link is removed before another of its name is made, and the core needs no
//! answer to a queue's closing.

use std::{
    collections::BTreeMap,
    io::IoSlice,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak},
};

use tracing::{debug, info, warn};

use super::link::{
    Kind, Link, LinkId, Links, Listener, Made, MakeError, QueueId, Setting, Spec, State, TunNode,
};
use crate::{
    abi::tun::{IfFlags, Name},
    core::{
        CommandError, FileId, Forward, Interface, LinkAnswer, LinkRequest, LinkSetting, MadeLink,
        Mode, RequestId, Rights, Scope, TunnelId,
    },
    errno::Errno,
    hub::{Hub, LinkKeeper, Switched},
};

/// How it is done; see [`Interfaces::start`].
#[derive(Debug)]
pub struct Options {
    /// The kernel's tun driver, as it was before anything covered it.
    pub node: TunNode,
    /// What every tunnel gets.
    pub policy: Interface,
    /// A tunnel does without a link if none can be made, and nobody is told but the operator.
    pub optional: bool,
}

/// Keeps a hub's links.
pub struct Interfaces {
    hub: Weak<Hub>,
    optional: bool,
    /// Until the first link is wanted.
    node: Mutex<Option<TunNode>>,
    links: OnceLock<Links>,
    made: RwLock<BTreeMap<TunnelId, Arc<Link>>>,
    this: Weak<Self>,
}

impl Interfaces {
    /// Keeps the links of a hub from now on.
    pub fn start(hub: &Arc<Hub>, options: Options) -> Arc<Self> {
        let interfaces = Arc::new_cyclic(|this| Self {
            hub: Arc::downgrade(hub),
            optional: options.optional,
            node: Mutex::new(Some(options.node)),
            links: OnceLock::new(),
            made: RwLock::default(),
            this: Weak::clone(this),
        });
        hub.set_link_keeper(Arc::clone(&interfaces) as Arc<dyn LinkKeeper>);
        hub.with(|core| core.set_interface_policy(options.policy));
        interfaces
    }

    /// Removes all links that are not persistent.
    pub fn stop(&self) {
        if let Some(links) = self.links.get() {
            links.stop();
        }
    }

    /// The threads start with the first link. Whoever asks for another meanwhile waits for that.
    fn links(&self) -> Option<&Links> {
        if let Some(links) = self.links.get() {
            return Some(links);
        }
        let mut node = lock(&self.node);
        if let Some(node) = node.take() {
            let listener = self.this.upgrade()? as Arc<dyn Listener>;
            match Links::start(node, listener) {
                // It is set here alone, by whoever took the node.
                Ok(links) => drop(self.links.set(links)),
                Err(error) => warn!(%error, "starting threads for interfaces failed"),
            }
        }
        self.links.get()
    }

    fn answer(&self, answer: LinkAnswer) {
        if let Some(hub) = self.hub.upgrade() {
            hub.with(|core| core.handle_link(answer));
        }
    }

    /// Has a link made, and calls `then` with it, by the thread that made it.
    fn make(
        &self,
        tunnel: TunnelId,
        file: FileId,
        scope: Scope,
        spec: Spec,
        then: impl FnOnce(&Self, Result<Made, MakeError>) + Send + 'static,
    ) {
        let network = self.hub.upgrade().and_then(|hub| hub.networks().find(scope));
        let name = spec.name;
        let refuse = |errno| MakeError::Network { name, errno };
        let (links, network) = match (self.links(), network) {
            (Some(links), Some(network)) => (links, network),
            (None, _) => return then(self, Err(refuse(nix::errno::Errno::EAGAIN))),
            (_, None) => return then(self, Err(refuse(nix::errno::Errno::ESRCH))),
        };
        let this = Weak::clone(&self.this);
        links.make(link_of(tunnel), queue_of(file), network, spec, move |made| {
            let Some(this) = this.upgrade() else { return };
            if let Ok(made) = &made {
                let kind = made.link.kind();
                if kind != Kind::Tun {
                    info!(name = %made.state.name, kind = kind.word(), "a substitute stands in for a tun link");
                }
                this.write_made().insert(tunnel, Arc::clone(&made.link));
            }
            then(&this, made);
        });
    }

    /// What TUNSETIFF of the client gets.
    fn report_made(&self, tunnel: TunnelId, made: Result<Made, MakeError>) {
        let answer = match made {
            Ok(Made { state, persistent, was_there, .. }) => {
                Ok(Some(MadeLink { state, persistent, was_there }))
            }
            // Nobody gets by the kernel's rule because it is applied.
            Err(error @ MakeError::NotPermitted { .. }) => {
                warn!("{error}");
                Err(errno_of(error.errno()))
            }
            Err(error) if self.optional => {
                warn!("{error}; going on without");
                Ok(None)
            }
            Err(error) => {
                warn!("{error}");
                Err(errno_of(error.errno()))
            }
        };
        self.answer(LinkAnswer::Made(tunnel, answer));
    }

    /// What a client's call that waits for a link gets.
    fn report_done(
        &self,
        asker: RequestId,
    ) -> impl FnOnce(Result<(), nix::errno::Errno>) + Send + 'static {
        let this = Weak::clone(&self.this);
        move |done| {
            if let Some(this) = this.upgrade() {
                this.answer(LinkAnswer::Done(asker, done.map_err(errno_of)));
            }
        }
    }

    fn link(&self, tunnel: TunnelId) -> Option<Arc<Link>> {
        self.made.read().unwrap_or_else(PoisonError::into_inner).get(&tunnel).cloned()
    }

    fn write_made(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<TunnelId, Arc<Link>>> {
        self.made.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, tunnel: TunnelId, then: impl FnOnce(&Self) + Send + 'static) {
        self.write_made().remove(&tunnel);
        let this = Weak::clone(&self.this);
        let then = move || {
            if let Some(this) = this.upgrade() {
                then(&this);
            }
        };
        match self.links.get() {
            Some(links) => links.remove(link_of(tunnel), then),
            None => then(),
        }
    }

    /// A link for a tunnel that has none: as the tunnel is by now.
    fn add(&self, tunnel: TunnelId, to: Interface, then: Switched) {
        let Some(hub) = self.hub.upgrade() else { return };
        let found = hub.with(|core| {
            let tunnel = core.tunnel(tunnel).filter(|tunnel| !tunnel.is_gone())?;
            let mode = match tunnel.mode() {
                Mode::Tun => IfFlags::TUN,
                Mode::Tap => IfFlags::TAP,
            };
            let flags = tunnel.flags() | mode | IfFlags::TUN_EXCL;
            Some((*tunnel.name(), tunnel.scope(), flags, Wanted::of(tunnel)))
        });
        let Some((name, scope, flags, wanted)) = found else {
            return then(Err("the tunnel is gone".to_owned()));
        };
        let Some(&first) = wanted.files.first() else {
            return then(Err(format!("no client has tunnel {name} open")));
        };
        let passes_datagrams = to == Interface::Bridge;
        let rights = Rights::Admin;
        let spec = Spec { name, flags, index: None, passes_datagrams, rights };
        self.make(tunnel, first, scope, spec, move |this, made| {
            let made = match made {
                Ok(made) => made,
                Err(error) => return then(Err(error.to_string())),
            };
            let (Some(hub), Some(links)) = (this.hub.upgrade(), this.links.get()) else { return };
            let id = link_of(tunnel);
            let name = made.state.name;
            for file in &wanted.files[1..] {
                links.add_queue(id, queue_of(*file), flags, Rights::Admin, move |added| {
                    log_failure(name, "adding a queue", added);
                });
            }
            for file in &wanted.detached {
                links.set_queue(id, queue_of(*file), false, move |set| {
                    log_failure(name, "detaching a queue", set);
                });
            }
            let last = wanted.settings.len().saturating_sub(1);
            let mut then = Some(then);
            for (at, setting) in wanted.settings.into_iter().enumerate() {
                let (hub, name) = (Arc::clone(&hub), made.state.name);
                let then = if at == last { then.take() } else { None };
                links.set(id, setting, move |set| {
                    log_failure(name, "setting what the tunnel has", set.map(drop));
                    if let Some(then) = then {
                        // From now on the link's state counts: it is as the tunnel is.
                        hub.with(|core| core.set_interface(tunnel, to));
                        then(Ok(()));
                    }
                });
            }
        });
    }
}

/// What a link must have to stand beside a tunnel that was without.
struct Wanted {
    files: Vec<FileId>,
    /// Those among them whose queue gets nothing.
    detached: Vec<FileId>,
    settings: Vec<LinkSetting>,
}

impl Wanted {
    fn of(tunnel: &crate::core::Tunnel) -> Self {
        let (owner, group) = tunnel.owner();
        let settings = [
            tunnel.is_persistent().then_some(Setting::Persistent(true)),
            owner.map(Setting::Owner),
            group.map(Setting::Group),
            tunnel.hwaddr().map(Setting::Address),
            Some(Setting::Mtu(tunnel.mtu())),
            // The last, for there is always one.
            Some(Setting::Up(tunnel.is_up())),
        ];
        Self {
            files: tunnel.files().collect(),
            detached: tunnel.detached_files().collect(),
            settings: settings.into_iter().flatten().collect(),
        }
    }
}

impl LinkKeeper for Interfaces {
    fn perform(&self, request: LinkRequest) {
        match request {
            LinkRequest::Make { tunnel, file, scope, name, flags, index, interface, rights } => {
                let passes_datagrams = interface == Interface::Bridge;
                let index = i32::try_from(index).ok().filter(|index| *index > 0);
                let spec = Spec { name, flags, index, passes_datagrams, rights };
                self.make(tunnel, file, scope, spec, move |this, made| {
                    this.report_made(tunnel, made);
                });
            }
            LinkRequest::Open { tunnel, file, flags, rights, asker } => {
                if let Some(links) = self.links.get() {
                    links.add_queue(
                        link_of(tunnel),
                        queue_of(file),
                        flags,
                        rights,
                        self.report_done(asker),
                    );
                }
            }
            LinkRequest::Close { tunnel, file } => {
                if let Some(links) = self.links.get() {
                    links.remove_queue(link_of(tunnel), queue_of(file));
                }
            }
            LinkRequest::SetQueue { tunnel, file, attached, asker } => {
                if let Some(links) = self.links.get() {
                    let then = self.report_done(asker);
                    links.set_queue(link_of(tunnel), queue_of(file), attached, then);
                }
            }
            LinkRequest::Set { tunnel, setting, asker } => {
                let Some(links) = self.links.get() else { return };
                if let Some(asker) = asker {
                    let then = self.report_done(asker);
                    return links.set(link_of(tunnel), setting, |set| then(set.map(drop)));
                }
                let this = Weak::clone(&self.this);
                links.set(link_of(tunnel), setting, move |set| {
                    let (Some(this), Err(errno)) = (this.upgrade(), set) else { return };
                    warn!(tunnel = tunnel.0, ?setting, %errno, "setting an interface failed, ignoring");
                    // What the harness was told is not so.
                    if let Some(link) = this.link(tunnel) {
                        this.answer(LinkAnswer::Changed(tunnel, link.state()));
                    }
                });
            }
            LinkRequest::Remove { tunnel } => {
                self.remove(tunnel, move |this| this.answer(LinkAnswer::Removed(tunnel)));
            }
        }
    }

    fn forward(&self, forward: &Forward) -> Result<(), Errno> {
        let link = self.link(forward.tunnel).ok_or(Errno::EBADFD)?;
        let (head, payload) = (forward.head.as_bytes(), &forward.datagram.payload);
        let parts = [IoSlice::new(head), IoSlice::new(payload)];
        // With IFF_NAPI_FRAGS the driver makes each piece after the first a fragment, of a page at most: the datagram is one.
        let parts = if head.is_empty() { &parts[1..] } else { &parts };
        link.write(queue_of(forward.file), parts).map(drop).map_err(errno_of)
    }

    fn refresh(&self, tunnel: TunnelId) {
        if let Some(links) = self.links.get() {
            links.refresh(link_of(tunnel));
        }
    }

    fn receive(&self, tunnel: TunnelId, file: FileId) {
        let (Some(links), Some(hub)) = (self.links.get(), self.hub.upgrade()) else { return };
        links.receive(link_of(tunnel), queue_of(file), |datagram| {
            hub.with(|core| core.handle_link_datagram(tunnel, file, datagram))
        });
    }

    fn receive_all(&self, tunnel: TunnelId) {
        let (Some(links), Some(hub)) = (self.links.get(), self.hub.upgrade()) else { return };
        links.receive_all(link_of(tunnel), |queue, datagram| {
            let file = FileId(queue.0);
            let _wanted = hub.with(|core| core.handle_link_datagram(tunnel, file, datagram));
        });
    }

    fn refresh_all(&self) {
        if let Some(links) = self.links.get() {
            links.refresh_all();
        }
    }

    fn switch(&self, tunnel: TunnelId, to: Interface, then: Switched) {
        let Some(hub) = self.hub.upgrade() else { return };
        let found = hub.with(|core| {
            let tunnel = core.tunnel(tunnel)?;
            Some((tunnel.interface(), tunnel.peer().is_some(), *tunnel.name()))
        });
        let Some((now, has_peer, name)) = found else {
            return then(Err("the tunnel is gone".to_owned()));
        };
        if to == Interface::Bridge && has_peer {
            return then(Err(CommandError::HasPeer(name).to_string()));
        }
        match (now, to) {
            _ if now == to => then(Ok(())),
            (Interface::None, _) => self.add(tunnel, to, then),
            (_, Interface::None) => {
                hub.with(|core| core.set_interface(tunnel, to));
                self.remove(tunnel, move |_| then(Ok(())));
            }
            (_, Interface::Bridge)
                if self.link(tunnel).is_none_or(|link| link.kind() != Kind::Tun) =>
            {
                then(Err("the link is a substitute, which passes no datagrams".to_owned()));
            }
            (_, Interface::Bridge | Interface::Shadow) => {
                hub.with(|core| core.set_interface(tunnel, to));
                then(Ok(()));
            }
        }
    }
}

impl Listener for Interfaces {
    fn readable(&self, link: LinkId, queue: QueueId) {
        if let Some(hub) = self.hub.upgrade() {
            hub.with(|core| core.handle_link_readable(tunnel_of(link), FileId(queue.0)));
        }
    }

    fn changed(&self, link: LinkId, state: &State) {
        self.answer(LinkAnswer::Changed(tunnel_of(link), *state));
    }

    fn gone(&self, link: LinkId) {
        let tunnel = tunnel_of(link);
        self.write_made().remove(&tunnel);
        self.answer(LinkAnswer::Gone(tunnel));
    }
}

fn queue_of(file: FileId) -> QueueId {
    QueueId(file.0)
}

fn link_of(tunnel: TunnelId) -> LinkId {
    LinkId(tunnel.0.into())
}

/// Links are numbered by tunnels, whose numbers have 32 bits.
fn tunnel_of(link: LinkId) -> TunnelId {
    TunnelId(u32::try_from(link.0).unwrap_or(u32::MAX))
}

fn errno_of(errno: nix::errno::Errno) -> Errno {
    Errno::from_number(errno as i32)
}

fn log_failure(name: Name, what: &str, done: Result<(), nix::errno::Errno>) {
    if let Err(errno) = done {
        debug!(%name, %errno, "{what} failed, ignoring");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
