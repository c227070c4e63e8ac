//! Binding a file to a tunnel, after `tun_set_iff` and `tun_attach` in `drivers/net/tun.c`, and undoing it.
//!
//! The order of the outcomes is the kernel's. What the caller may do is told with the call:
//!
//! DIFFERS: TUNSETIFF on a tunnel without a netdev asks for no right unless `--require-net-admin` is given. The kernel's tun asks
//! for CAP_NET_ADMIN, or the owner or group of a persistent tunnel. Tests run where nobody has that capability.

use alloc::{boxed::Box, sync::Arc, vec::Vec};

use super::{
    Bound, Charge, CommandError, Core, Credentials, DropReason, Event, File, FileId, MacAddress,
    MadeNetdev, Mode, NetdevRequest, NetdevState, Output, RequestId, Resource, Rights, Scope,
    Tunnel, TunnelId, User, too_many,
    tunnel::{Identity, TUNNEL_MEMORY},
};
use crate::{
    abi::tun::{IFNAMSIZ, IfFlags, Name},
    errno::Errno,
};

/// The interface that is in every network namespace.
pub(super) const LOOPBACK: &[u8] = b"lo";
/// `LOOPBACK_IFINDEX`.
const LOOPBACK_IFINDEX: u32 = 1;
/// `MAX_TAP_QUEUES`.
const MAX_QUEUES: usize = 256;
/// How many numbers `__dev_alloc_name` tries: one for each bit of a page.
const MAX_TEMPLATE_NUMBER: u32 = 8 * 4096;

/// A TUNSETIFF under way: what it asks for, and the tunnel that it means.
#[derive(Clone, Debug)]
pub(super) struct Attachment {
    pub(super) file: FileId,
    /// One that is there, or is to be.
    pub(super) tunnel: TunnelId,
    /// Where its name is looked up.
    pub(super) scope: Scope,
    /// As it was given: a name or a template.
    pub(super) name: Name,
    pub(super) flags: IfFlags,
    /// As TUNSETIFINDEX has it; 0 leaves it open.
    pub(super) index: u32,
    /// What the caller may do.
    pub(super) rights: Rights,
}

impl Core {
    /// TUNSETIFF: attaches a file to the tunnel of that name, or to one made for it; returns the name it got.
    ///
    /// # Errors
    ///
    /// * `EEXIST`: the file is attached.
    /// * `EPERM`: the caller is not permitted to.
    /// * `EINVAL`: `NAPI_FRAGS` without `NAPI` or not on a tap; neither TUN nor TAP; an unusable name; the name is that of
    ///   another kind of interface, or `MULTI_QUEUE` differs.
    /// * `EBUSY`: the name is taken and `TUN_EXCL` was asked for, or its only queue is; the number that TUNSETIFINDEX
    ///   asked for is taken.
    /// * `E2BIG`: the tunnel has 256 queues.
    /// * `ENFILE`: every number of a template is taken, or there are too many tunnels.
    /// * `EMFILE`: the user has too many tunnels.
    /// * `ENOMEM`: there is no memory for it.
    pub(super) fn attach(
        &mut self,
        file: FileId,
        name: Name,
        flags: IfFlags,
        caller: Option<&Credentials>,
    ) -> Result<Name, Errno> {
        let attachment = self.begin_attach(file, name, flags, caller)?;
        self.finish_attach(&attachment, None, None)
    }

    /// Finds the tunnel that TUNSETIFF means, and checks what can be checked before a device is made for it.
    pub(super) fn begin_attach(
        &mut self,
        file: FileId,
        name: Name,
        flags: IfFlags,
        caller: Option<&Credentials>,
    ) -> Result<Attachment, Errno> {
        let (scope, index) = self.check_attach(file, flags, caller)?;
        let tunnel = match self.names.get(&(scope, name)) {
            Some(&id) => self.check_existing(id, flags, caller)?,
            // The kernel knows its names, and who may have one, best.
            None if self.netdevs.makes_devices() => self.new_tunnel_id(file)?,
            None => {
                self.name_of_new(scope, name, flags, caller)?;
                self.new_tunnel_id(file)?
            }
        };
        let may_make = self.may_make_any_of(caller, &template_of(name, flags));
        let rights = match caller {
            Some(caller) if !caller.net_admin => {
                Rights::Of { caller: Box::new(caller.clone()), may_make }
            }
            Some(_) | None => Rights::Admin,
        };
        Ok(Attachment { file, tunnel, scope, name, flags, index, rights })
    }

    /// Binds the file to the tunnel, which comes to be if it is not there: beside the device that was made for it, or without one.
    /// Returns its name. `reserved_for`: it is bound when the outcome has reached its client.
    pub(super) fn finish_attach(
        &mut self,
        attachment: &Attachment,
        made: Option<MadeNetdev>,
        reserved_for: Option<RequestId>,
    ) -> Result<Name, Errno> {
        let Attachment { file, tunnel: id, flags, ref rights, .. } = *attachment;
        let caller = match rights {
            Rights::Admin => None,
            Rights::Of { caller, .. } => Some(&**caller),
        };
        // It may have been closed meanwhile, or attached.
        self.check_attach(file, flags, caller)?;
        let created = match made {
            Some(made) => {
                self.create_beside(attachment, caller, &made)?;
                true
            }
            // By its number: it may have been renamed meanwhile.
            None if self.tunnels.has(&id) => {
                self.check_existing(id, flags, caller)?;
                false
            }
            None => {
                self.create(attachment, caller)?;
                true
            }
        };
        match reserved_for {
            None => self.bind(file, id, flags, created)?,
            Some(request) => self.reserve_attach(request, attachment, created)?,
        }
        Ok(self.tunnels.get(&id).ok_or(Errno::EBADFD)?.name)
    }

    /// What is checked before the name is looked at; returns the namespace that it is looked up in, and the number that
    /// TUNSETIFINDEX asked for.
    pub(super) fn check_attach(
        &self,
        file: FileId,
        flags: IfFlags,
        caller: Option<&Credentials>,
    ) -> Result<(Scope, u32), Errno> {
        let file = self.files.get(&file).ok_or(Errno::EBADF)?;
        if file.tunnel.is_some() {
            return Err(Errno::EEXIST);
        }
        if flags.contains(IfFlags::NAPI_FRAGS) {
            if !self.may_have_fragments(caller) {
                return Err(Errno::EPERM);
            }
            let kind = flags & (IfFlags::TUN | IfFlags::TAP);
            if !flags.contains(IfFlags::NAPI) || kind != IfFlags::TAP {
                return Err(Errno::EINVAL);
            }
        }
        Ok((file.opener.scope, file.wanted_ifindex))
    }

    pub(super) fn check_existing(
        &self,
        id: TunnelId,
        flags: IfFlags,
        caller: Option<&Credentials>,
    ) -> Result<TunnelId, Errno> {
        let tunnel = self.tunnels.get(&id).ok_or(Errno::EBADFD)?;
        if flags.contains(IfFlags::TUN_EXCL) {
            return Err(Errno::EBUSY);
        }
        if !flags.contains(tunnel.mode.flag()) {
            return Err(Errno::EINVAL);
        }
        let multi_queue = tunnel.flags.contains(IfFlags::MULTI_QUEUE);
        if flags.contains(IfFlags::MULTI_QUEUE) != multi_queue {
            return Err(Errno::EINVAL);
        }
        if !self.may_attach(tunnel, caller) {
            return Err(Errno::EPERM);
        }
        if !multi_queue && !tunnel.queues.is_empty() {
            return Err(Errno::EBUSY);
        }
        if tunnel.file_count() >= MAX_QUEUES {
            return Err(Errno::E2BIG);
        }
        Ok(id)
    }

    /// The name that a tunnel without a device gets which is not there.
    fn name_of_new(
        &self,
        scope: Scope,
        requested: Name,
        flags: IfFlags,
        caller: Option<&Credentials>,
    ) -> Result<Name, Errno> {
        // Every network namespace has a loopback interface, which is no tun.
        if requested.as_bytes() == LOOPBACK {
            let is_new = flags.contains(IfFlags::TUN_EXCL);
            return Err(if is_new { Errno::EBUSY } else { Errno::EINVAL });
        }
        let template = template_of(requested, flags);
        if !self.may_make_any_of(caller, &template) {
            return Err(Errno::EPERM);
        }
        mode_of(flags)?;
        let name = self.resolve_name(scope, template)?;
        if self.may_make(caller, &name) { Ok(name) } else { Err(Errno::EPERM) }
    }

    /// A tunnel without a device.
    fn create(
        &mut self,
        attachment: &Attachment,
        caller: Option<&Credentials>,
    ) -> Result<(), Errno> {
        let Attachment { file, tunnel: id, scope, name: requested_name, flags, index, .. } =
            *attachment;
        let name = self.name_of_new(scope, requested_name, flags, caller)?;
        let mode = mode_of(flags)?;
        let ifindex = self.reserve_ifindex(scope, index)?;
        let user = Arc::clone(&self.files.get(&file).ok_or(Errno::EBADF)?.user);
        self.add_tunnel(Identity { id, name, requested_name, scope, ifindex, user }, mode)?;
        Ok(())
    }

    /// A tunnel with the name and the state of the device that was made for it.
    fn create_beside(
        &mut self,
        attachment: &Attachment,
        caller: Option<&Credentials>,
        made: &MadeNetdev,
    ) -> Result<(), Errno> {
        let Attachment { file, tunnel: id, name: requested_name, flags, .. } = *attachment;
        let NetdevState { scope, name, index: ifindex, .. } = made.state;
        // A tunnel without a device may have the name that the kernel found free.
        if self.names.contains_key(&(scope, name)) {
            return Err(Errno::EBUSY);
        }
        if !made.was_there && !self.may_make(caller, &name) {
            return Err(Errno::EPERM);
        }
        let mode = mode_of(flags)?;
        let user = Arc::clone(&self.files.get(&file).ok_or(Errno::EBADF)?.user);
        self.add_tunnel(Identity { id, name, requested_name, scope, ifindex, user }, mode)?;
        self.stand_beside(id, made);
        Ok(())
    }

    /// A number, if there may be one more tunnel of the user who opened a file.
    pub(super) fn new_tunnel_id(&mut self, file: FileId) -> Result<TunnelId, Errno> {
        let user = Arc::clone(&self.files.get(&file).ok_or(Errno::EBADF)?.user);
        self.charge_tunnel(&user)?;
        self.last_tunnel += 1;
        Ok(TunnelId(self.last_tunnel))
    }

    fn charge_tunnel(&mut self, user: &Arc<User>) -> Result<[Charge; 2], Errno> {
        let tunnel = user.charge(Resource::Tunnels, 1).map_err(too_many)?;
        let memory = self.charge_memory(user, TUNNEL_MEMORY).map_err(|_| Errno::ENOMEM)?;
        Ok([tunnel, memory])
    }

    /// Adds a tunnel of a name that is free.
    ///
    /// # Errors
    ///
    /// As [`attach`](Self::attach) for what there is not enough of.
    pub(super) fn add_tunnel(&mut self, identity: Identity, mode: Mode) -> Result<(), Errno> {
        let charges = self.charge_tunnel(&identity.user)?;
        let (id, name, scope) = (identity.id, identity.name, identity.scope);
        let hwaddr = MacAddress::random(&mut self.random);
        let tunnel = Tunnel::new(identity, mode, hwaddr, charges, &self.limits);
        self.tunnels.insert(id, tunnel);
        self.names.insert((scope, name), id);
        Ok(())
    }

    /// `dev_index_reserve`: the number that is wanted, or the next that is free.
    fn reserve_ifindex(&mut self, scope: Scope, wanted: u32) -> Result<u32, Errno> {
        let is_taken = |ifindex| {
            let mut living = self.tunnels.values().filter(|tunnel| !tunnel.gone);
            ifindex == LOOPBACK_IFINDEX
                || living.any(|tunnel| tunnel.scope == scope && tunnel.ifindex == ifindex)
        };
        if wanted != 0 {
            return if is_taken(wanted) { Err(Errno::EBUSY) } else { Ok(wanted) };
        }
        let after = |last: u32| if last < i32::MAX.cast_unsigned() { last + 1 } else { 1 };
        let mut free = after(self.last_ifindex);
        while is_taken(free) {
            free = after(free);
        }
        self.last_ifindex = free;
        Ok(free)
    }

    /// `dev_get_valid_name`: checks a name and puts the lowest free number into a template.
    pub(super) fn resolve_name(&self, scope: Scope, template: Name) -> Result<Name, Errno> {
        if !is_valid_name(&template) {
            return Err(Errno::EINVAL);
        }
        let raw = template.as_bytes();
        let Some(percent) = raw.iter().position(|&b| b == b'%') else {
            // Both are directories beside the interfaces' own in /proc/sys/net/ipv4/conf.
            return if raw == b"all" || raw == b"default" {
                Err(Errno::EINVAL)
            } else {
                Ok(template)
            };
        };
        let (before, after) = (&raw[..percent], &raw[percent + 1..]);
        let Some(after) = after.strip_prefix(b"d").filter(|after| !after.contains(&b'%')) else {
            return Err(Errno::EINVAL);
        };
        (0..MAX_TEMPLATE_NUMBER)
            .map(|number| Name::numbered(before, number, after))
            .find(|name| !self.names.contains_key(&(scope, *name)))
            .ok_or(Errno::ENFILE)
    }

    /// `tun_attach`, and what `tun_set_iff` does after it.
    /// The file is attached even if this returns an error: then only the filter fails.
    pub(super) fn bind(
        &mut self,
        file_id: FileId,
        id: TunnelId,
        flags: IfFlags,
        created: bool,
    ) -> Result<(), Errno> {
        let (Some(file), Some(tunnel)) = (self.files.get_mut(&file_id), self.tunnels.get_mut(&id))
        else {
            return Ok(());
        };
        // A further queue does not change what the first one set.
        if tunnel.file_count() == 0 {
            tunnel.flags = flags & IfFlags::STORED;
            tunnel.carrier = !flags.contains(IfFlags::NO_CARRIER);
        }
        tunnel.queues.push(file_id);
        file.tunnel = Some(id);
        file.queue = tunnel.new_queue(&self.limits);
        // Here the bit of IFF_NO_PI means IFF_NOFILTER.
        let filtered =
            if flags.contains(IfFlags::NO_PI) { Ok(()) } else { inherit_filter(file, tunnel) };
        let (name, mode) = (tunnel.name, tunnel.mode);
        self.event(|| Event::Attached { tunnel: id, name, mode, file: file_id, created });
        filtered
    }

    /// TUNSETQUEUE, after `tun_set_queue`: detaches the queue of a file, or attaches it again.
    ///
    /// # Errors
    ///
    /// `EINVAL`: neither was asked for; the queue is not detached, or is; the tunnel has one queue only, or there is none; the
    /// filter that it gets is bad, and the queue is attached.
    pub(super) fn set_queue(&mut self, file_id: FileId, flags: IfFlags) -> Result<(), Errno> {
        // A bad filter is found again.
        let _filtered = self.check_set_queue(file_id, flags)?;
        let file = self.files.get_mut(&file_id).ok_or(Errno::EBADF)?;
        let tunnel = file.tunnel.and_then(|id| self.tunnels.get_mut(&id)).ok_or(Errno::EINVAL)?;
        if flags.contains(IfFlags::ATTACH_QUEUE) {
            if tunnel.has_filter() {
                // tun_attach: with a filter to give it goes to its end, and the queue stays as it is.
                return inherit_filter(file, tunnel);
            }
            tunnel.detached.retain(|&other| other != file_id);
            tunnel.queues.push(file_id);
            file.detached = false;
            inherit_filter(file, tunnel)
        } else {
            remove_queue(tunnel, file_id);
            tunnel.detached.push(file_id);
            file.detached = true;
            file.queue.clear();
            Ok(())
        }
    }

    /// What TUNSETQUEUE returns. `Err`: it is refused. `Ok`: it is not, but the filter that the queue gets may be bad.
    pub(super) fn check_set_queue(
        &self,
        file: FileId,
        flags: IfFlags,
    ) -> Result<Result<(), Errno>, Errno> {
        let file = self.files.get(&file).ok_or(Errno::EBADF)?;
        let tunnel = file.tunnel.and_then(|id| self.tunnels.get(&id)).ok_or(Errno::EINVAL)?;
        let attaches = flags.contains(IfFlags::ATTACH_QUEUE);
        let detaches = flags.contains(IfFlags::DETACH_QUEUE)
            && !file.detached
            && tunnel.flags.contains(IfFlags::MULTI_QUEUE);
        match attaches {
            true if file.detached => Ok(inheritable(tunnel)),
            false if detaches => Ok(Ok(())),
            true | false => Err(Errno::EINVAL),
        }
    }

    /// The last close of an attached file: its queue is lost, and the tunnel goes with its last file unless it is
    /// persistent (`__tun_detach`).
    pub(super) fn detach(&mut self, file_id: FileId, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        remove_queue(tunnel, file_id);
        tunnel.detached.retain(|&other| other != file_id);
        if tunnel.last_writer == Some(file_id) {
            tunnel.last_writer = None;
        }
        if tunnel.file_count() == 0 {
            tunnel.carrier = false;
        }
        let name = tunnel.name;
        let deleted = self.bury_if_unused(id, file_id);
        self.event(|| Event::Detached { tunnel: id, name, file: file_id, deleted });
    }

    /// A file is no longer a tunnel's, and was perhaps its last: whether the tunnel goes with it.
    pub(super) fn bury_if_unused(&mut self, id: TunnelId, file: FileId) -> bool {
        let Some(tunnel) = self.tunnels.get(&id) else { return false };
        let is_deleted = tunnel.is_unused() && !tunnel.persistent;
        if is_deleted {
            self.bury(id, false);
        } else {
            self.tell_netdev(id, |tunnel| NetdevRequest::Close { tunnel, file });
        }
        is_deleted
    }

    /// Deletes a tunnel under its open files, as `ip link delete` does (`tun_detach_all`): blocked reads end with `EFAULT`,
    /// pollers find `POLLERR`, and a file can be attached to another tunnel.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownTunnel`].
    pub(super) fn delete(&mut self, id: TunnelId) -> Result<(), CommandError> {
        let tunnel = self.living_mut(id)?;
        let (name, was_shown) = (tunnel.name, tunnel.is_shown);
        let files: Vec<FileId> = tunnel.files().collect();
        tunnel.queues.clear();
        tunnel.detached.clear();
        tunnel.last_writer = None;
        for file_id in files {
            let Some(file) = self.files.get_mut(&file_id) else { continue };
            file.leave_tunnel();
            for read in core::mem::take(&mut file.parked) {
                self.outputs.push(Output::Complete(read.id, Err(Errno::EFAULT)));
            }
            self.wake(file_id);
        }
        self.bury(id, true);
        if was_shown {
            self.event(|| Event::Deleted { tunnel: id, name });
        }
        Ok(())
    }

    /// Deletes a tunnel. What its client wrote can still be taken: a client often ends before the test looks.
    pub(super) fn bury(&mut self, id: TunnelId, is_deleted: bool) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        tunnel.gone = true;
        let name = (tunnel.scope, tunnel.name);
        self.give_up_name(name, id);
        self.tell_netdev(id, |tunnel| NetdevRequest::Remove { tunnel, is_deleted });
        self.tell_peer_of_end(id);
        if self.end_if_spent(id).is_some() {
            return;
        }
        self.gone.push(id);
        let Bound { all, user: share } = self.limits.gone_tunnels;
        let uid = |id: &TunnelId| self.tunnels.get(id).map(|tunnel| tunnel.user.uid());
        let theirs = |owner| self.gone.iter().filter(move |id| uid(id) == owner);
        let own = uid(&id);
        // Those of a user who has kept most of them go first, so that one cannot drive out what others have kept.
        let most = || self.gone.iter().map(&uid).max_by_key(|owner| theirs(*owner).count());
        let loser = match () {
            () if theirs(own).count() > share => Some(own),
            () if self.gone.len() > all => most(),
            () => None,
        };
        if let Some(lost) = loser.and_then(|owner| theirs(owner).next().copied()) {
            self.lose_gone(lost);
        }
    }

    /// A name is free from now on, if it was this tunnel's.
    pub(super) fn give_up_name(&mut self, name: (Scope, Name), of: TunnelId) {
        self.waits.name_changed(name.1);
        if self.names.get(&name) == Some(&of) {
            self.names.remove(&name);
        }
    }

    /// The end of a tunnel that is gone, if nothing is left of what its clients wrote.
    pub(super) fn end_if_spent(&mut self, id: TunnelId) -> Option<Box<Tunnel>> {
        let tunnel = self.tunnels.get_mut(&id).filter(|tunnel| tunnel.gone)?;
        // It may have something for the harness later, but that nobody can see yet.
        tunnel.is_shown = !tunnel.written.is_empty();
        if tunnel.is_shown || !tunnel.withheld.is_empty() {
            return None;
        }
        self.remove_gone(id)
    }

    /// The end of a tunnel that is gone.
    pub(super) fn remove_gone(&mut self, id: TunnelId) -> Option<Box<Tunnel>> {
        self.gone.retain(|other| *other != id);
        self.tunnels.remove(&id)
    }

    /// Gives up what a deleted tunnel's client wrote.
    pub(super) fn lose_gone(&mut self, id: TunnelId) {
        let Some(tunnel) = self.remove_gone(id) else { return };
        let name = tunnel.name;
        for datagram in tunnel.written.iter() {
            let length = datagram.payload.len();
            self.event(|| Event::Dropped {
                tunnel: id,
                name,
                reason: DropReason::WriteBufferFull,
                length,
            });
        }
    }
}

/// The template that an empty name stands for.
pub(super) fn template_of(name: Name, flags: IfFlags) -> Name {
    match (name.as_bytes(), flags.contains(IfFlags::TUN)) {
        (b"", true) => Name::new(b"tun%d"),
        (b"", false) => Name::new(b"tap%d"),
        _ => name,
    }
}

pub(super) fn mode_of(flags: IfFlags) -> Result<Mode, Errno> {
    if flags.contains(IfFlags::TUN) {
        Ok(Mode::Tun)
    } else if flags.contains(IfFlags::TAP) {
        Ok(Mode::Tap)
    } else {
        Err(Errno::EINVAL)
    }
}

/// The last queue takes the place of one that leaves, as in `__tun_detach`.
fn remove_queue(tunnel: &mut Tunnel, file: FileId) {
    let Some(index) = tunnel.queues.iter().position(|&other| other == file) else { return };
    tunnel.queues.swap_remove(index);
    // Not the queue that has left: the kernel is off by one. Until the next one leaves, its flows go to the first.
    tunnel.flows.forget_queue(tunnel.queues.len() + 1);
}

/// A queue gets the filter of those before it. It is attached all the same if that is one that nobody has looked at yet, and
/// bad: `EINVAL`.
///
/// DIFFERS: a queue that is attached while TUNATTACHFILTER is in force gets the filter. The kernel reads the filter again, from the
/// same address in the caller. If that succeeds, TUNSETIFF returns 0 but the queue is not attached (`tun_attach` goes to its end on
/// success). memtun attaches it. After TUNSETQUEUE the queue stays detached, here too.
fn inherit_filter(file: &mut File, tunnel: &Tunnel) -> Result<(), Errno> {
    inheritable(tunnel)?;
    if let Some(Ok(program)) = &tunnel.packet_filter.program {
        file.packet_filter = Some(Arc::clone(program));
    }
    Ok(())
}

/// What is wrong with the filter that a queue would get.
pub(super) fn inheritable(tunnel: &Tunnel) -> Result<(), Errno> {
    match &tunnel.packet_filter.program {
        Some(Err(errno)) => Err(*errno),
        Some(Ok(_)) | None => Ok(()),
    }
}

/// `dev_valid_name`: not empty, not `.` or `..`, no `/`, no `:`, no white space as the kernel's `isspace` sees it.
fn is_valid_name(name: &Name) -> bool {
    let raw = name.as_bytes();
    let is_space = |b: u8| matches!(b, b' ' | 0x09..=0x0d | 0xa0);
    const { assert!(IFNAMSIZ == 16) };
    !matches!(raw, b"" | b"." | b"..")
        && !raw.iter().any(|&b| b == b'/' || b == b':' || is_space(b))
}
