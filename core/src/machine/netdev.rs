//! A network device of the kernel beside a tunnel, seen from the core.
//!
//! # Theory of operation
//!
//! Clients configure an *interface* of the kernel, by calls on sockets. These calls never reach the core. So a real device with the
//! tunnel's name may stand beside the tunnel. Its owner is outside the core. The core asks for what it wants ([`Output::Netdev`]), parks
//! the client's call, and goes on when it gets the answer ([`Core::handle_netdev`]).
//!
//! | interface | what the kernel sends into the device | what the client writes |
//! | --- | --- | --- |
//! | none | there is no device | goes to the harness |
//! | shadow | is counted, and shown to observers | goes to the harness |
//! | bridge | goes to the client | goes to the kernel; the harness may take a copy |
//!
//! DIFFERS: on a bridge a sleeping reader wakes a moment after the kernel has sent the datagram, because another thread of
//! memtun has to notice it first. The kernel's tun wakes the reader before the sender's call returns. A client that polls or
//! reads without sleeping finds the datagram at once.
//!
//! With a device the kernel decides which name a template becomes, whether a name is free, and which settings are valid. TUNSETIFF is
//! one sequence, with a device or without. The core finds and checks the target (`begin_attach`). Then the owner makes or opens the
//! device, if there is one. Then the core binds the file (`finish_attach`). In between the call is parked and its name reserved.
//! Another TUNSETIFF in the same namespace waits, as it waits for `rtnl_lock` in the kernel. No signal ends the call. An ioctl that
//! changes a setting acts on the device first, and takes effect in the core if that succeeds.
//!
//! The tunnel has the device's state: up or down, MTU, address, name. That state changes without the core. So a call whose outcome
//! depends on it first goes out by [`Output::Refresh`], and so does a call that looks for datagrams of a bridge. This costs a system
//! call or two. It makes sure that the core knows every change that the client made, and every datagram that it sent, as soon as the
//! client's own call has returned.

mod message;

use alloc::{boxed::Box, collections::BTreeMap, vec::Vec};

use bytes::Bytes;

pub use self::message::{
    Forward, Look, MadeNetdev, NetdevNews, NetdevPlan, NetdevRequest, NetdevSetting, NetdevState,
    Rights, Sent, Switch,
};
use super::{
    CommandError, Core, Delivery, Event, FileId, IoctlCall, Mode, Op, Outcome, Output, Reply,
    Request, RequestId, Scope, Settings, Tunnel, TunnelId, attach::Attachment, datagram, ioctl,
    to_client::Sender,
};
use crate::{
    abi::tun::{self, IfReq, Name},
    errno::Errno,
};

/// Whether a network device stands beside a tunnel, and what it does with datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub enum Interface {
    /// There is none.
    #[default]
    None,
    /// It can be configured; its datagrams are not the client's.
    Shadow,
    /// The client's datagrams are the device's.
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

/// What the core remembers of network devices that it waits for.
#[derive(Debug, Default)]
pub(super) struct Netdevs {
    /// What a tunnel gets that is made by TUNSETIFF.
    policy: Interface,
    /// A tunnel may have a device, or have had one. Until then no call pays for looking.
    in_use: bool,
    parked: BTreeMap<RequestId, Parked>,
    /// TUNSETIFF, in the order they came, of namespaces in which one is parked.
    deferred: Vec<Request>,
    /// Closes that wait for the end of a device.
    closing: BTreeMap<TunnelId, RequestId>,
    /// Tunnels that are getting a device, as it was planned.
    adding: BTreeMap<TunnelId, Box<NetdevPlan>>,
}

/// A client's call that waits for a network device.
#[derive(Debug)]
enum Parked {
    /// TUNSETIFF.
    Attach(Attachment, Box<IfReq>),
    /// Another, that sets something.
    Set(FileId, IoctlCall),
}

impl Netdevs {
    /// TUNSETIFF of a name that is free makes a device.
    pub(super) fn makes_devices(&self) -> bool {
        self.policy != Interface::None
    }

    /// A tunnel may have a device, or have had one.
    pub(super) fn is_in_use(&self) -> bool {
        self.in_use
    }
}

impl Core {
    /// Which interface tunnels get from now on.
    pub(super) fn set_interface_policy(&mut self, policy: Interface) {
        self.netdevs.policy = policy;
        self.netdevs.in_use |= policy != Interface::None;
    }

    /// Gives a tunnel another interface. The device itself is the caller's matter; [`NetdevNews::Changed`] tells how it is.
    pub(super) fn set_interface(&mut self, of: TunnelId, interface: Interface) {
        if let Some(tunnel) = self.tunnels.get_mut(&of) {
            tunnel.interface = interface;
            tunnel.last_writer = None;
            self.netdevs.in_use |= interface != Interface::None;
            if interface == Interface::Shadow {
                // As a bridge it may have left something there.
                self.outputs.extend(tunnel.queues.iter().map(|file| Output::Receive(of, *file)));
            }
        }
    }

    /// The owner of network devices has news.
    pub(super) fn handle_netdev(&mut self, news: NetdevNews) {
        match news {
            NetdevNews::Made(tunnel, made) => self.netdev_made(tunnel, made),
            NetdevNews::Done(asker, done) => self.netdev_done(asker, done),
            NetdevNews::Removed(tunnel) => {
                if let Some(asker) = self.netdevs.closing.remove(&tunnel) {
                    self.outputs.push(Output::Complete(asker, Ok(Reply::Closed)));
                }
            }
            NetdevNews::Changed(tunnel, state) => self.follow_netdev(tunnel, &state),
            NetdevNews::Gone(tunnel) => self.lose_netdev(tunnel),
            NetdevNews::Readable(tunnel, file) => self.netdev_readable(tunnel, file),
            NetdevNews::Added(tunnel, to) => self.netdev_added(tunnel, to),
            NetdevNews::Forwarded(forward, taken) => self.forwarded(*forward, taken),
        }
    }

    fn netdev_readable(&mut self, of: TunnelId, queue: FileId) {
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

    /// What it has sent, which is not in the device's queue any more. Whether more is wanted.
    pub(super) fn handle_netdev_datagram(
        &mut self,
        of: TunnelId,
        queue: FileId,
        bytes: Bytes,
    ) -> bool {
        let Some(tunnel) = self.tunnels.get_mut(&of) else { return true };
        let (name, mode) = (tunnel.name, tunnel.mode);
        // It is never cut short, but for a race with a change of the flags.
        let Some(datagram) = datagram::parse_sent(bytes, tunnel.netdev_framing()) else {
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
                let delivery = self.send_to_client(of, datagram, Sender::Netdev(queue));
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
        if !self.netdevs.in_use {
            return None;
        }
        let (Op::Read(id, _) | Op::Write(id, _) | Op::Poll { file: id, .. } | Op::Ioctl(id, _)) =
            request.op
        else {
            return None;
        };
        // It comes again with its memory. Only who serves it can be told to fetch that, and another thread may have the news.
        if let Op::Ioctl(_, call) = &request.op
            && ioctl::wants_memory(call)
        {
            return None;
        }
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
            // What a write comes to is the kernel's to say, if it can say it to the client.
            (Interface::Bridge, Op::Write(..)) if !self.reports(request.id) => return None,
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

    /// An ioctl; `None` if it waits for a network device.
    pub(super) fn ioctl(
        &mut self,
        id: RequestId,
        file: FileId,
        call: IoctlCall,
    ) -> Option<Outcome> {
        if self.must_wait(file, &call) {
            self.netdevs.deferred.push(Request { id, op: Op::Ioctl(file, call) });
            return None;
        }
        match ioctl::tunsetiff(&call) {
            Some(request) => self.set_iff(id, file, &call, request),
            None => match self.setting_of(id, file, &call) {
                Some(request) => {
                    self.outputs.push(Output::Netdev(request));
                    self.netdevs.parked.insert(id, Parked::Set(file, call));
                    None
                }
                None => Some(self.perform_ioctl(id, file, &call)),
            },
        }
    }

    /// Whether a call must wait for another's device: TUNSETIFF in its namespace, or what changes a tunnel that is getting one.
    fn must_wait(&self, id: FileId, call: &IoctlCall) -> bool {
        let Some(file) = self.files.get(&id) else { return false };
        if call.command != tun::ioctl::TUNSETIFF {
            let is_changed = |tunnel: &TunnelId| self.netdevs.adding.contains_key(tunnel);
            let Some(tunnel) = file.tunnel.filter(is_changed) else { return false };
            let tunnel = self.tunnels.get(&tunnel);
            return ioctl::queue_change(call).is_some()
                || tunnel.is_some_and(|tunnel| ioctl::netdev_setting(call, tunnel).is_some());
        }
        let scope = file.opener.scope;
        let Some(request) = ioctl::tunsetiff(call) else { return false };
        let tunnel = self.names.get(&(scope, request.name()));
        tunnel.is_some_and(|tunnel| self.netdevs.adding.contains_key(tunnel))
            || self.netdevs.parked.values().any(|parked| parked.scope() == Some(scope))
            || self.reservations.is_attaching_in(scope)
    }

    /// What a network device has to be asked before an ioctl takes effect.
    fn setting_of(
        &self,
        asker: RequestId,
        file: FileId,
        call: &IoctlCall,
    ) -> Option<NetdevRequest> {
        if let Some(attached) = ioctl::queue_change(call) {
            let tunnel = self.whose_queue_changes(file, attached)?;
            return Some(NetdevRequest::SetQueue { tunnel, file, attached, asker });
        }
        let id = self.files.get(&file)?.tunnel?;
        let tunnel = self.tunnels.get(&id).filter(|it| it.interface != Interface::None)?;
        let setting = ioctl::netdev_setting(call, tunnel)?;
        Some(NetdevRequest::Set { tunnel: id, setting, asker: Some(asker) })
    }

    /// The tunnel whose device has a queue of a file that TUNSETQUEUE changes. With a filter it attaches none.
    pub(super) fn whose_queue_changes(&self, file: FileId, attaches: bool) -> Option<TunnelId> {
        let tunnel = self.tunnels.get(&self.files.get(&file)?.tunnel?)?;
        let stays = attaches && tunnel.has_filter();
        (tunnel.interface != Interface::None && !stays).then_some(tunnel.id)
    }

    /// TUNSETIFF, as far as it goes without waiting.
    fn set_iff(
        &mut self,
        asker: RequestId,
        file: FileId,
        call: &IoctlCall,
        request: IfReq,
    ) -> Option<Outcome> {
        // What comes before the memory is looked at.
        if call.output_room == 0 {
            return Some(ioctl::perform(self, file, call));
        }
        let caller = call.credentials.as_deref();
        let attachment = match self.begin_attach(file, request.name(), request.flags(), caller) {
            Ok(attachment) => attachment,
            Err(errno) => return Some(Err(errno)),
        };
        let Some(wanted) = self.device_for(asker, &attachment) else {
            return Some(self.end_attach(asker, &attachment, request, None));
        };
        self.outputs.push(Output::Netdev(wanted));
        self.netdevs.parked.insert(asker, Parked::Attach(attachment, Box::new(request)));
        None
    }

    /// The device, or the queue of one, that TUNSETIFF needs.
    fn device_for(&self, asker: RequestId, attachment: &Attachment) -> Option<NetdevRequest> {
        let Attachment { file, scope, name, flags, index, ref rights, .. } = *attachment;
        let (tunnel, rights) = (attachment.tunnel, rights.clone());
        match self.tunnels.get(&tunnel) {
            Some(there) if there.interface == Interface::None => None,
            Some(_) => Some(NetdevRequest::Open { tunnel, file, flags, rights, asker }),
            None if self.netdevs.policy == Interface::None => None,
            None => {
                let interface = self.netdevs.policy;
                Some(NetdevRequest::Make {
                    tunnel,
                    file,
                    scope,
                    name,
                    flags,
                    index,
                    interface,
                    rights,
                })
            }
        }
    }

    /// A tunnel is beside a device from now on.
    pub(super) fn stand_beside(&mut self, id: TunnelId, made: &MadeNetdev) {
        let interface = self.netdevs.policy;
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.interface = interface;
            tunnel.persistent = made.persistent;
            tunnel.up = made.state.up;
            tunnel.take_state(&made.state);
        }
    }

    fn end_attach(
        &mut self,
        asker: RequestId,
        attachment: &Attachment,
        mut request: IfReq,
        made: Option<MadeNetdev>,
    ) -> Outcome {
        let reserved_for = self.reports(asker).then_some(asker);
        let name = self.finish_attach(attachment, made, reserved_for)?;
        request.copy_name(&name);
        Ok(Reply::Ioctl { result: 0, output: (&request).into() })
    }

    fn netdev_made(&mut self, id: TunnelId, made: Result<Option<MadeNetdev>, Errno>) {
        let asker = self.netdevs.parked.iter().find_map(|(asker, parked)| {
            matches!(parked, Parked::Attach(attachment, _) if attachment.tunnel == id)
                .then_some(*asker)
        });
        let parked = asker.and_then(|asker| Some((asker, self.netdevs.parked.remove(&asker)?)));
        let Some((asker, Parked::Attach(attachment, request))) = parked else { return };
        let has_device = matches!(made, Ok(Some(_)));
        let outcome = made.and_then(|made| self.end_attach(asker, &attachment, *request, made));
        if outcome.is_err() && has_device && !self.tunnels.has(&id) {
            let remove = NetdevRequest::Remove { tunnel: id, is_deleted: false };
            self.outputs.push(Output::Netdev(remove));
        }
        self.outputs.push(Output::Complete(asker, outcome));
        self.resume_deferred();
    }

    fn netdev_done(&mut self, asker: RequestId, done: Result<(), Errno>) {
        let Some(parked) = self.netdevs.parked.remove(&asker) else { return };
        let outcome = done.and_then(|()| match parked {
            Parked::Set(file, call) => self.perform_ioctl(asker, file, &call),
            Parked::Attach(attachment, request) => {
                let Attachment { tunnel, file, .. } = attachment;
                let attached = self.end_attach(asker, &attachment, *request, None);
                let is_reserved = self.reservations.has(asker);
                if !is_reserved
                    && self.files.get(&file).is_none_or(|file| file.tunnel != Some(tunnel))
                {
                    self.tell_netdev(tunnel, |tunnel| NetdevRequest::Close { tunnel, file });
                }
                attached
            }
        });
        self.outputs.push(Output::Complete(asker, outcome));
        self.resume_deferred();
    }

    /// What it takes to give a tunnel another interface. What it is to lose it has lost when this returns.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownTunnel`]; [`CommandError::HasPeer`] if it is to be bridged.
    pub(super) fn begin_switch(
        &mut self,
        of: TunnelId,
        to: Interface,
    ) -> Result<Switch, CommandError> {
        let is_busy = self.netdevs.adding.contains_key(&of);
        let tunnel = self.living_mut(of)?;
        if to == Interface::Bridge && tunnel.peer.is_some() {
            return Err(CommandError::HasPeer(tunnel.name));
        }
        Ok(match (tunnel.interface, to) {
            _ if is_busy => Switch::Busy,
            (now, to) if now == to => Switch::Done,
            (Interface::None, _) if tunnel.file_count() == 0 => Switch::Unused,
            (Interface::None, _) => {
                let plan = Box::new(NetdevPlan::of(tunnel, to));
                self.netdevs.adding.insert(of, plan.clone());
                Switch::Add(plan)
            }
            (_, Interface::None) => {
                self.set_interface(of, to);
                Switch::Remove
            }
            (_, Interface::Bridge | Interface::Shadow) => Switch::Turn,
        })
    }

    /// A tunnel that was there has got a device, or not. What has changed meanwhile is changed on the device.
    fn netdev_added(&mut self, id: TunnelId, to: Option<Interface>) {
        let Some(plan) = self.netdevs.adding.remove(&id) else { return };
        let tunnel = self.tunnels.get(&id).filter(|tunnel| !tunnel.gone);
        match (to, tunnel.map(|tunnel| NetdevPlan::of(tunnel, plan.to))) {
            (None, _) => {}
            (Some(_), None) => {
                let remove = NetdevRequest::Remove { tunnel: id, is_deleted: false };
                self.outputs.push(Output::Netdev(remove));
            }
            (Some(to), Some(now)) => {
                self.set_interface(id, to);
                for file in plan.files.iter().filter(|file| !now.files.contains(file)) {
                    let close = NetdevRequest::Close { tunnel: id, file: *file };
                    self.outputs.push(Output::Netdev(close));
                }
                for setting in now.settings.iter().filter(|it| !plan.settings.contains(it)) {
                    let setting = *setting;
                    let set = NetdevRequest::Set { tunnel: id, setting, asker: None };
                    self.outputs.push(Output::Netdev(set));
                }
            }
        }
        self.resume_deferred();
    }

    /// Performs the deferred requests. A request that still has to wait is deferred again.
    pub(super) fn resume_deferred(&mut self) {
        for request in core::mem::take(&mut self.netdevs.deferred) {
            self.perform_in_turn(request);
        }
    }

    /// Whether a request is parked for a device. No signal ends it, as none ends a wait for `rtnl_lock`.
    pub(super) fn is_waiting_for_netdev(&self, id: RequestId) -> bool {
        self.netdevs.parked.contains_key(&id)
            || self.netdevs.deferred.iter().any(|request| request.id == id)
            || self.netdevs.closing.values().any(|closing| *closing == id)
    }

    /// A close, which is answered when the device that went with it is gone; `None` if that is later.
    pub(super) fn close_with_netdev(&mut self, id: RequestId, file: FileId) -> Option<Outcome> {
        let tunnel = self
            .tunnel_of_mut(file)
            .filter(|tunnel| tunnel.interface != Interface::None)
            .map(|tunnel| tunnel.id);
        let outcome = self.close(file);
        let Some(tunnel) = tunnel else { return Some(outcome) };
        if self.tunnels.get(&tunnel).is_some_and(|tunnel| !tunnel.gone) {
            return Some(outcome);
        }
        self.netdevs.closing.insert(tunnel, id);
        None
    }

    /// Asks something of the device beside a tunnel, if there is one.
    pub(super) fn tell_netdev(
        &mut self,
        tunnel: TunnelId,
        request: impl FnOnce(TunnelId) -> NetdevRequest,
    ) {
        let has_link = self.tunnels.get(&tunnel).is_some_and(|it| it.interface != Interface::None);
        if has_link {
            self.outputs.push(Output::Netdev(request(tunnel)));
        }
    }

    /// The harness has set something of a tunnel; the device follows.
    pub(super) fn tell_netdev_settings(&mut self, of: TunnelId, settings: &Settings, name: Name) {
        let Settings { up, mtu, hwaddr, carrier, tx_queue_length, .. } = *settings;
        let wanted = [
            mtu.map(NetdevSetting::Mtu),
            hwaddr.map(NetdevSetting::Address),
            settings.name.map(|_| NetdevSetting::Name(name)),
            tx_queue_length.map(NetdevSetting::QueueLength),
            up.map(NetdevSetting::Up),
            carrier.map(NetdevSetting::Carrier),
        ];
        for setting in wanted.into_iter().flatten() {
            self.tell_netdev(of, |tunnel| NetdevRequest::Set { tunnel, setting, asker: None });
        }
    }

    fn follow_netdev(&mut self, id: TunnelId, state: &NetdevState) {
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

    /// The tunnel goes with its device.
    fn lose_netdev(&mut self, id: TunnelId) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.interface = Interface::None;
            // One that is gone already has nobody who could notice.
            let _known = self.delete(id);
        }
    }
}

impl Parked {
    /// The namespace in which nobody else can attach meanwhile.
    fn scope(&self) -> Option<Scope> {
        match self {
            Self::Attach(attachment, _) => Some(attachment.scope),
            Self::Set(..) => None,
        }
    }
}

impl NetdevPlan {
    fn of(tunnel: &Tunnel, to: Interface) -> Self {
        let settings = [
            tunnel.persistent.then_some(NetdevSetting::Persistent(true)),
            tunnel.owner.map(NetdevSetting::Owner),
            tunnel.group.map(NetdevSetting::Group),
            tunnel.hwaddr().map(NetdevSetting::Address),
            Some(NetdevSetting::Mtu(tunnel.mtu)),
            Some(NetdevSetting::Up(tunnel.up)),
        ];
        Self {
            tunnel: tunnel.id,
            to,
            name: tunnel.name,
            scope: tunnel.scope,
            flags: tunnel.flags | tunnel.mode.flag(),
            files: tunnel.files().collect(),
            detached: tunnel.detached_files().collect(),
            settings: settings.into_iter().flatten().collect(),
        }
    }
}

impl Tunnel {
    /// The device's state is the tunnel's.
    fn take_state(&mut self, state: &NetdevState) {
        self.scope = state.scope;
        self.name = state.name;
        self.ifindex = state.index;
        self.mtu = state.mtu;
        self.tx_queue_length = usize::try_from(state.queue_length).unwrap_or(usize::MAX);
        if let Some(address) = state.address.filter(|_| self.mode == Mode::Tap) {
            self.hwaddr = address;
        }
    }

    /// How datagrams are framed on the device: by the client's flags, but the vnet header always has room for all that is known.
    pub(super) fn netdev_framing(&self) -> datagram::Framing {
        let framing = self.framing();
        let vnet = framing.vnet.map(|_| crate::abi::virtio_net::VnetHeader::TUNNEL_SIZE);
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
