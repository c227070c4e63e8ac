//! A kernel link beside a tunnel, seen from the core.
//!
//! # Theory of operation
//!
//! Clients configure an *interface*, which is the kernel's, by sockets that never come here. So a real link of the tunnel's
//! name may stand beside it, kept by somebody outside. The core holds no link: it says what it wants of one
//! ([`Output::Link`]), parks the client's call, and goes on when it is told ([`Core::handle_link`]).
//!
//! | interface | what the kernel sends into the link | what the client writes |
//! | --- | --- | --- |
//! | none | there is no link | goes to the harness |
//! | shadow | is counted, and shown to observers | goes to the harness |
//! | bridge | goes to the client | goes to the kernel; the harness may take a copy |
//!
//! DIFFERS: on a bridge a sleeping reader wakes a moment after the kernel has sent the datagram, because another thread of
//! memtun has to notice it first. The kernel's tun wakes the reader before the sender's call returns. A client that polls or
//! reads without sleeping finds the datagram at once.
//!
//! With a link the kernel decides: which name a template becomes, whether a name is free, what may be set. TUNSETIFF of a
//! name that has no tunnel is answered when the link is there, or with the errno that the kernel had for it. While it is
//! parked, other TUNSETIFF in the same namespace wait, as they wait for `rtnl_lock` in the kernel; a signal does not end it
//! either. An ioctl that sets something is tried on the link first and takes effect here if that succeeds.
//!
//! The link's state is the tunnel's: up or down, MTU, address, name. It changes without the core being asked, so a call whose
//! outcome depends on it is first sent around by [`Output::Refresh`], as is one that looks for datagrams of a bridge. That costs it a
//! system call or two, and makes the client's own change, and what it sent itself, count from the moment at which the client's
//! call that made it returned.

use alloc::{boxed::Box, collections::BTreeMap, sync::Arc, vec::Vec};

use bytes::Bytes;

use super::{
    CommandError, Core, Datagram, Delivery, Event, FileId, Forward, IoctlCall, LinkAnswer,
    LinkRequest, LinkSetting, LinkState, Look, MadeLink, Mode, Op, Outcome, Output, Reply, Request,
    RequestId, Rights, Scope, Sent, Settings, Tunnel, TunnelId, attach, datagram, ioctl,
    tunnel::Identity,
};
use crate::{
    abi::tun::{self, IfReq, Name},
    errno::Errno,
};

/// Whether a kernel link stands beside a tunnel, and what it does with datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interface {
    /// There is none.
    #[default]
    None,
    /// It can be configured; its datagrams are not the client's.
    Shadow,
    /// The client's datagrams are the link's.
    Bridge,
}

impl Interface {
    /// As on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Shadow => "shadow",
            Self::Bridge => "bridge",
        }
    }
}

/// What the core remembers of links that it waits for.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// What a tunnel gets that is made by TUNSETIFF.
    policy: Interface,
    /// A tunnel may have a link, or have had one. Until then no call pays for looking.
    in_use: bool,
    parked: BTreeMap<RequestId, Parked>,
    /// TUNSETIFF, in the order they came, of namespaces in which one is parked.
    deferred: Vec<Request>,
    /// Closes that wait for the end of a link.
    closing: BTreeMap<TunnelId, RequestId>,
}

/// A client's call that waits for a link.
#[derive(Clone, Debug)]
struct Parked {
    file: FileId,
    call: IoctlCall,
    what: Want,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Make { tunnel: TunnelId, scope: Scope },
    Open { tunnel: TunnelId, scope: Scope },
    Set,
}

impl Links {
    /// A tunnel may have a link, or have had one.
    pub(super) fn is_in_use(&self) -> bool {
        self.in_use
    }
}

impl Core {
    /// Which interface tunnels get from now on.
    pub fn set_interface_policy(&mut self, policy: Interface) {
        self.links.policy = policy;
        self.links.in_use |= policy != Interface::None;
    }

    /// Gives a tunnel another interface. The link itself is the caller's matter; [`LinkAnswer::Changed`] tells how it is.
    pub fn set_interface(&mut self, of: TunnelId, interface: Interface) {
        if let Some(tunnel) = self.tunnels.get_mut(&of) {
            tunnel.interface = interface;
            tunnel.last_writer = None;
            self.links.in_use |= interface != Interface::None;
            if interface == Interface::Shadow {
                // As a bridge it may have left something there.
                self.outputs.extend(tunnel.queues.iter().map(|file| Output::Receive(of, *file)));
            }
        }
        self.settle_waits();
    }

    /// Whoever keeps links has news.
    pub fn handle_link(&mut self, answer: LinkAnswer) {
        match answer {
            LinkAnswer::Made(tunnel, made) => self.link_made(tunnel, made),
            LinkAnswer::Done(asker, done) => self.link_done(asker, done),
            LinkAnswer::Removed(tunnel) => {
                if let Some(asker) = self.links.closing.remove(&tunnel) {
                    self.outputs.push(Output::Complete(asker, Ok(Reply::Closed)));
                }
            }
            LinkAnswer::Changed(tunnel, state) => self.follow_link(tunnel, &state),
            LinkAnswer::Gone(tunnel) => self.lose_link(tunnel),
            LinkAnswer::Forwarded(forward, taken) => self.forwarded(*forward, taken),
        }
        self.settle_waits();
    }

    /// The kernel has sent something into the link beside a tunnel, by the queue of a file.
    pub fn handle_link_readable(&mut self, of: TunnelId, queue: FileId) {
        let (Some(tunnel), Some(file)) = (self.tunnels.get(&of), self.files.get(&queue)) else {
            return;
        };
        match tunnel.interface {
            Interface::None => {}
            Interface::Shadow => self.outputs.push(Output::Receive(of, queue)),
            Interface::Bridge => {
                if !file.parked.is_empty() {
                    self.outputs.push(Output::Receive(of, queue));
                }
                self.wake(queue);
            }
        }
    }

    /// What it has sent, which is not in the link's queue any more. Whether more is wanted.
    pub fn handle_link_datagram(&mut self, of: TunnelId, queue: FileId, bytes: Bytes) -> bool {
        let Some(tunnel) = self.tunnels.get_mut(&of) else { return true };
        let (name, mode) = (tunnel.name, tunnel.mode);
        // It is never cut short, but for a race with a change of the flags.
        let Some(datagram) = datagram::parse_sent(bytes, tunnel.link_framing()) else {
            return true;
        };
        match tunnel.interface {
            Interface::None => true,
            Interface::Shadow => {
                tunnel.counters.to_link.add(datagram.payload.len());
                let payload = datagram.payload;
                self.event(|| Event::ToLink { tunnel: of, name, mode, payload });
                true
            }
            Interface::Bridge => {
                let delivery = self.send_to_file(of, queue, datagram);
                self.settle_waits();
                // What did not arrive is counted where that is noticed; the kernel is not told either.
                match delivery {
                    Ok(Delivery::Queued(_)) => false,
                    Err(CommandError::Filtered(_)) => true,
                    Ok(Delivery::Read) | Err(_) => {
                        self.files.get(&queue).is_some_and(|file| !file.parked.is_empty())
                    }
                }
            }
        }
    }

    /// What is to be looked at before a request can be answered.
    pub(super) fn look_before(&self, request: &Request) -> Option<Look> {
        if !self.links.in_use {
            return None;
        }
        let (Op::Read(id, _) | Op::Write(id, _) | Op::Poll { file: id, .. } | Op::Ioctl(id, _)) =
            request.op
        else {
            return None;
        };
        let file = self.files.get(&id)?;
        let Some(tunnel) = file.tunnel else {
            // A name may be another's by now. News is of a whole namespace, so any link there will do.
            let mut tunnels = self.tunnels.values().filter(|tunnel| !tunnel.gone);
            return tunnels
                .find(|it| it.scope == file.opener.scope && it.interface != Interface::None)
                .map(|tunnel| Look { tunnel: tunnel.id, sent: Sent::Nothing });
        };
        let sent = match (self.tunnels.get(&tunnel)?.interface, &request.op) {
            (Interface::None, _) => return None,
            // What a write comes to is the kernel's to say.
            (Interface::Bridge, Op::Write(..)) => return None,
            // A read that may wait looks when it waits, so that nothing comes in between.
            (Interface::Bridge, Op::Read(_, call)) if call.is_look() && file.queue.is_empty() => {
                Sent::To(id)
            }
            (Interface::Bridge, Op::Poll { .. }) if file.queue.is_empty() => Sent::To(id),
            // What was sent before has passed the filter that was there.
            (Interface::Bridge, Op::Ioctl(_, call)) if ioctl::sets_filter(call) => Sent::All,
            (Interface::Shadow | Interface::Bridge, _) => Sent::Nothing,
        };
        Some(Look { tunnel, sent })
    }

    /// An ioctl; `None` if it waits for a link.
    pub(super) fn ioctl(
        &mut self,
        id: RequestId,
        file: FileId,
        call: IoctlCall,
    ) -> Option<Outcome> {
        match self.want_of(file, &call) {
            Err(errno) => Some(Err(errno)),
            Ok(None) => Some(ioctl::perform(self, file, &call)),
            Ok(Some(Wanted::Wait)) => {
                self.links.deferred.push(Request { id, op: Op::Ioctl(file, call) });
                None
            }
            Ok(Some(Wanted::Link(what, request))) => {
                let request = request(id);
                self.outputs.push(Output::Link(request));
                self.links.parked.insert(id, Parked { file, call, what });
                None
            }
        }
    }

    /// What an ioctl needs of a link before it can be performed.
    fn want_of(&mut self, id: FileId, call: &IoctlCall) -> Result<Option<Wanted>, Errno> {
        let Some(file) = self.files.get(&id) else { return Ok(None) };
        let beside = |tunnel: &TunnelId| {
            self.tunnels.get(tunnel).filter(|tunnel| tunnel.interface != Interface::None)
        };
        if call.command != tun::ioctl::TUNSETIFF {
            let Some(tunnel) = file.tunnel.as_ref().and_then(beside) else { return Ok(None) };
            if call.command == tun::ioctl::TUNSETQUEUE {
                let Some(attached) = ioctl::queue_change(call) else { return Ok(None) };
                let (tunnel, file) = (tunnel.id, id);
                let request = move |asker| LinkRequest::SetQueue { tunnel, file, attached, asker };
                return Ok(Some(Wanted::Link(Want::Set, Box::new(request))));
            }
            let Some(setting) = ioctl::link_setting(call, tunnel) else { return Ok(None) };
            let tunnel = tunnel.id;
            let request = move |asker| LinkRequest::Set { tunnel, setting, asker: Some(asker) };
            return Ok(Some(Wanted::Link(Want::Set, Box::new(request))));
        }
        let Some(request) = IfReq::from_bytes(&call.input) else { return Ok(None) };
        let (scope, name, flags) = (file.opener.scope, request.name(), request.flags());
        let existing = self.names.get(&(scope, name));
        let linked = existing.and_then(beside);
        if linked.is_none() && (existing.is_some() || self.links.policy == Interface::None) {
            return Ok(None);
        }
        if self.links.parked.values().any(|parked| parked.what.scope() == Some(scope)) {
            return Ok(Some(Wanted::Wait));
        }
        let caller = call.credentials.as_deref();
        let (_, index) = self.check_attach(id, flags, caller)?;
        let may_make = self.may_make_any_of(caller, &attach::template_of(name, flags));
        let rights = match caller {
            Some(caller) if !caller.net_admin => {
                Rights::Of { caller: Box::new(caller.clone()), may_make }
            }
            Some(_) | None => Rights::Admin,
        };
        if let Some(tunnel) = linked.map(|tunnel| tunnel.id) {
            self.check_existing(tunnel, flags, caller)?;
            let open = move |asker| LinkRequest::Open { tunnel, file: id, flags, rights, asker };
            return Ok(Some(Wanted::Link(Want::Open { tunnel, scope }, Box::new(open))));
        }
        let tunnel = self.new_tunnel_id(id)?;
        let interface = self.links.policy;
        let make =
            LinkRequest::Make { tunnel, file: id, scope, name, flags, index, interface, rights };
        Ok(Some(Wanted::Link(Want::Make { tunnel, scope }, Box::new(move |_| make))))
    }

    fn link_made(&mut self, id: TunnelId, made: Result<Option<MadeLink>, Errno>) {
        let asker = self.links.parked.iter().find_map(|(asker, parked)| {
            matches!(parked.what, Want::Make { tunnel, .. } if tunnel == id).then_some(*asker)
        });
        let Some(asker) = asker else { return };
        let Some(parked) = self.links.parked.remove(&asker) else { return };
        let outcome = made.and_then(|made| self.attach_to_link(id, &parked, made));
        self.outputs.push(Output::Complete(asker, outcome));
        self.resume_deferred();
    }

    /// The tunnel comes to be, with the name and the state of its link.
    fn attach_to_link(&mut self, id: TunnelId, parked: &Parked, made: Option<MadeLink>) -> Outcome {
        let Some(made) = made else { return ioctl::perform(self, parked.file, &parked.call) };
        let attached = self.add_linked(id, parked, made);
        if attached.is_err() {
            self.outputs.push(Output::Link(LinkRequest::Remove { tunnel: id }));
        }
        attached
    }

    fn add_linked(&mut self, id: TunnelId, parked: &Parked, made: MadeLink) -> Outcome {
        let mut request = IfReq::from_bytes(&parked.call.input).ok_or(Errno::EFAULT)?;
        let (flags, state) = (request.flags(), made.state);
        let user = Arc::clone(&self.files.get(&parked.file).ok_or(Errno::EBADF)?.user);
        // A tunnel without a link may have the name that the kernel found free.
        if self.names.contains_key(&(state.scope, state.name)) {
            return Err(Errno::EBUSY);
        }
        let caller = parked.call.credentials.as_deref();
        if !made.was_there && !self.may_make(caller, &state.name) {
            return Err(Errno::EPERM);
        }
        let interface = self.links.policy;
        let identity = Identity {
            id,
            name: state.name,
            requested_name: request.name(),
            scope: state.scope,
            ifindex: state.index,
            user,
        };
        self.add_tunnel(identity, attach::mode_of(flags)?)?;
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.interface = interface;
            tunnel.persistent = made.persistent;
            tunnel.up = state.up;
            tunnel.take_state(&state);
        }
        self.bind(parked.file, id, flags, true)?;
        request.copy_name(&state.name);
        Ok(Reply::Ioctl { result: 0, output: (&request).into() })
    }

    fn link_done(&mut self, asker: RequestId, done: Result<(), Errno>) {
        let Some(parked) = self.links.parked.remove(&asker) else { return };
        let outcome = done.and_then(|()| match parked.what {
            Want::Open { tunnel, .. } => self.open_linked(tunnel, &parked),
            Want::Set | Want::Make { .. } => ioctl::perform(self, parked.file, &parked.call),
        });
        self.outputs.push(Output::Complete(asker, outcome));
        self.resume_deferred();
    }

    /// By its number: it may have been renamed meanwhile.
    fn open_linked(&mut self, tunnel: TunnelId, parked: &Parked) -> Outcome {
        let mut request = IfReq::from_bytes(&parked.call.input).ok_or(Errno::EFAULT)?;
        let caller = parked.call.credentials.as_deref();
        self.check_attach(parked.file, request.flags(), caller)?;
        self.check_existing(tunnel, request.flags(), caller)?;
        self.bind(parked.file, tunnel, request.flags(), false)?;
        request.copy_name(&self.tunnels.get(&tunnel).ok_or(Errno::EBADFD)?.name);
        Ok(Reply::Ioctl { result: 0, output: (&request).into() })
    }

    /// Performs the deferred requests. A request that still has to wait is deferred again.
    fn resume_deferred(&mut self) {
        for request in core::mem::take(&mut self.links.deferred) {
            self.handle_fresh_request(request);
        }
    }

    /// Whether a request is parked for a link. No signal ends it, as none ends a wait for `rtnl_lock`.
    pub(super) fn is_waiting_for_link(&self, id: RequestId) -> bool {
        self.links.parked.contains_key(&id)
            || self.links.deferred.iter().any(|request| request.id == id)
            || self.links.closing.values().any(|closing| *closing == id)
    }

    /// A close, which is answered when the link that went with it is gone; `None` if that is later.
    pub(super) fn close_linked(&mut self, id: RequestId, file: FileId) -> Option<Outcome> {
        let tunnel = self
            .tunnel_of_mut(file)
            .filter(|tunnel| tunnel.interface != Interface::None)
            .map(|tunnel| tunnel.id);
        let outcome = self.close(file);
        let Some(tunnel) = tunnel else { return Some(outcome) };
        if self.tunnels.get(&tunnel).is_some_and(|tunnel| !tunnel.gone) {
            return Some(outcome);
        }
        self.links.closing.insert(tunnel, id);
        None
    }

    /// Asks something of the link beside a tunnel, if there is one.
    pub(super) fn tell_link(
        &mut self,
        tunnel: TunnelId,
        request: impl FnOnce(TunnelId) -> LinkRequest,
    ) {
        let has_link = self.tunnels.get(&tunnel).is_some_and(|it| it.interface != Interface::None);
        if has_link {
            self.outputs.push(Output::Link(request(tunnel)));
        }
    }

    /// The harness has set something of a tunnel; the link follows.
    pub(super) fn tell_link_settings(&mut self, of: TunnelId, settings: &Settings, name: Name) {
        let Settings { up, mtu, hwaddr, carrier, tx_queue_length, .. } = *settings;
        let wanted = [
            mtu.map(LinkSetting::Mtu),
            hwaddr.map(LinkSetting::Address),
            settings.name.map(|_| LinkSetting::Name(name)),
            tx_queue_length.map(LinkSetting::QueueLength),
            up.map(LinkSetting::Up),
            carrier.map(LinkSetting::Carrier),
        ];
        for setting in wanted.into_iter().flatten() {
            self.tell_link(of, |tunnel| LinkRequest::Set { tunnel, setting, asker: None });
        }
    }

    fn follow_link(&mut self, id: TunnelId, state: &LinkState) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        if tunnel.gone || tunnel.interface == Interface::None {
            return;
        }
        let before = (tunnel.scope, tunnel.name);
        tunnel.take_state(state);
        let (now, length) = ((tunnel.scope, tunnel.name), tunnel.tx_queue_length);
        if now != before {
            self.give_up_name(before, id);
            // The kernel has given it to this one. A tunnel without a link that has it too goes on by its number.
            self.names.insert(now, id);
        }
        self.resize_queues(id, length);
        self.change_link(id, Some(state.up), Some(state.carrier));
    }

    /// The tunnel goes with its link.
    fn lose_link(&mut self, id: TunnelId) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.interface = Interface::None;
            // One that is gone already has nobody who could notice.
            let _known = self.delete(id);
        }
    }

    /// A write on a bridged tunnel: the kernel decides. `None`, for its answer comes later.
    pub(super) fn forward(
        &mut self,
        asker: RequestId,
        file: FileId,
        tunnel: TunnelId,
        datagram: Datagram,
        length: usize,
    ) -> Option<Outcome> {
        let Some(framing) = self.tunnels.get(&tunnel).map(Tunnel::link_framing) else {
            return Some(Err(Errno::EBADFD));
        };
        let head = datagram::write_head(&datagram, framing);
        let forward = Forward { asker, tunnel, file, head, datagram, length };
        self.outputs.push(Output::Forward(Box::new(forward)));
        None
    }

    fn forwarded(&mut self, forward: Forward, taken: Result<(), Errno>) {
        let Forward { asker, file, datagram, length, .. } = forward;
        let outcome = taken.map(|()| Reply::Written(length));
        if outcome.is_ok() {
            self.send_to_harness(file, datagram);
        }
        self.outputs.push(Output::Complete(asker, outcome));
    }
}

/// What a call must wait for.
enum Wanted {
    /// Another call.
    Wait,
    /// An answer to a request, which is made with the number of the call.
    Link(Want, Box<dyn FnOnce(RequestId) -> LinkRequest>),
}

impl Want {
    /// The namespace in which nobody else can attach meanwhile.
    fn scope(self) -> Option<Scope> {
        match self {
            Self::Make { scope, .. } | Self::Open { scope, .. } => Some(scope),
            Self::Set => None,
        }
    }
}

impl Tunnel {
    /// The link's state is the tunnel's.
    fn take_state(&mut self, state: &LinkState) {
        self.scope = state.scope;
        self.name = state.name;
        self.ifindex = state.index;
        self.mtu = state.mtu;
        self.tx_queue_length = usize::try_from(state.queue_length).unwrap_or(usize::MAX);
        if let Some(address) = state.address.filter(|_| self.mode == Mode::Tap) {
            self.hwaddr = address;
        }
    }

    /// How datagrams are framed on the link: by the client's flags, but the vnet header is never longer than it must be.
    fn link_framing(&self) -> datagram::Framing {
        let framing = self.framing();
        let vnet = framing.vnet.map(|_| crate::abi::virtio_net::VnetHeader::SIZE);
        datagram::Framing { vnet, ..framing }
    }

    /// What stands beside it.
    #[must_use]
    pub fn interface(&self) -> Interface {
        self.interface
    }
}

#[cfg(test)]
mod tests;
