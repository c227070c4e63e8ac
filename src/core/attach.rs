//! Binding a file to a tunnel, after `tun_set_iff` and `tun_attach` in `drivers/net/tun.c`, and undoing it.
//!
//! The order of the outcomes is the kernel's. The caller is taken for one that may do everything:
//!
//! DIFFERS: TUNSETIFF never asks for CAP_NET_ADMIN, nor whether the caller is the owner of a persistent tunnel or in
//! its group. Tests run where nobody has that capability.

use super::{Core, DropReason, Event, FileId, MacAddress, Mode, Output, Scope, Tunnel, TunnelId};
use crate::{
    abi::tun::{IFNAMSIZ, IfFlags, Name},
    errno::Errno,
};

/// `MAX_TAP_QUEUES`.
const MAX_QUEUES: usize = 256;
/// How many numbers `__dev_alloc_name` tries: one for each bit of a page.
const MAX_TEMPLATE_NUMBER: u32 = 8 * 4096;

impl Core {
    /// TUNSETIFF: attaches a file to the tunnel of that name, or to one made for it; returns the name it got.
    ///
    /// # Errors
    ///
    /// * `EEXIST`: the file is attached.
    /// * `EINVAL`: `NAPI_FRAGS` without `NAPI` or not on a tap; neither TUN nor TAP; an unusable name; the name is that of
    ///   another kind of interface, or `MULTI_QUEUE` differs.
    /// * `EBUSY`: the name is taken and `TUN_EXCL` was asked for, or its only queue is.
    /// * `E2BIG`: the tunnel has 256 queues.
    /// * `ENFILE`: every number of a template is taken, or there are too many tunnels.
    pub(super) fn attach(
        &mut self,
        file: FileId,
        name: Name,
        flags: IfFlags,
    ) -> Result<Name, Errno> {
        let (scope, is_attached) = {
            let file = self.files.get(&file).ok_or(Errno::EBADF)?;
            (file.opener.scope, file.tunnel.is_some())
        };
        if is_attached {
            return Err(Errno::EEXIST);
        }
        let kind = flags & (IfFlags::TUN | IfFlags::TAP);
        if flags.contains(IfFlags::NAPI_FRAGS)
            && (!flags.contains(IfFlags::NAPI) || kind != IfFlags::TAP)
        {
            return Err(Errno::EINVAL);
        }
        let (id, created) = match self.names.get(&(scope, name)) {
            Some(&id) => (self.check_existing(id, flags)?, false),
            // Every network namespace has a loopback interface, which is no tun.
            None if name.as_bytes() == b"lo" => {
                return Err(if flags.contains(IfFlags::TUN_EXCL) {
                    Errno::EBUSY
                } else {
                    Errno::EINVAL
                });
            }
            None => (self.create(scope, name, flags)?, true),
        };
        self.bind(file, id, flags, created);
        Ok(self.tunnels.get(&id).map_or(name, |tunnel| tunnel.name))
    }

    fn check_existing(&self, id: TunnelId, flags: IfFlags) -> Result<TunnelId, Errno> {
        let tunnel = self.tunnels.get(&id).ok_or(Errno::EBADFD)?;
        if flags.contains(IfFlags::TUN_EXCL) {
            return Err(Errno::EBUSY);
        }
        let wanted = match tunnel.mode {
            Mode::Tun => IfFlags::TUN,
            Mode::Tap => IfFlags::TAP,
        };
        if !flags.contains(wanted) {
            return Err(Errno::EINVAL);
        }
        let multi_queue = tunnel.flags.contains(IfFlags::MULTI_QUEUE);
        if flags.contains(IfFlags::MULTI_QUEUE) != multi_queue {
            return Err(Errno::EINVAL);
        }
        if !multi_queue && !tunnel.files.is_empty() {
            return Err(Errno::EBUSY);
        }
        if tunnel.files.len() >= MAX_QUEUES {
            return Err(Errno::E2BIG);
        }
        Ok(id)
    }

    fn create(&mut self, scope: Scope, requested: Name, flags: IfFlags) -> Result<TunnelId, Errno> {
        let mode = if flags.contains(IfFlags::TUN) {
            Mode::Tun
        } else if flags.contains(IfFlags::TAP) {
            Mode::Tap
        } else {
            return Err(Errno::EINVAL);
        };
        let template = match (requested.as_bytes(), mode) {
            (b"", Mode::Tun) => Name::new(b"tun%d"),
            (b"", Mode::Tap) => Name::new(b"tap%d"),
            _ => requested,
        };
        let name = self.resolve_name(scope, template)?;
        if self.tunnels.len() >= self.limits.tunnels {
            return Err(Errno::ENFILE);
        }
        self.last_tunnel += 1;
        let id = TunnelId(self.last_tunnel);
        let hwaddr = self.random_address();
        self.tunnels
            .insert(id, Tunnel::new(id, name, requested, scope, mode, hwaddr, &self.limits));
        self.names.insert((scope, name), id);
        Ok(id)
    }

    /// `dev_get_valid_name`: checks a name and puts the lowest free number into a template.
    fn resolve_name(&self, scope: Scope, template: Name) -> Result<Name, Errno> {
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
            .map(|number| Name::new(&[before, number.to_string().as_bytes(), after].concat()))
            .find(|name| !self.names.contains_key(&(scope, *name)))
            .ok_or(Errno::ENFILE)
    }

    /// `eth_hw_addr_random`: locally administered, no group bit.
    fn random_address(&mut self) -> MacAddress {
        let mut address = [0; 6];
        self.random.fill(&mut address);
        address[0] = address[0] & 0xfe | 0x02;
        MacAddress(address)
    }

    fn bind(&mut self, file_id: FileId, id: TunnelId, flags: IfFlags, created: bool) {
        let (Some(file), Some(tunnel)) = (self.files.get_mut(&file_id), self.tunnels.get_mut(&id))
        else {
            return;
        };
        // A further queue does not change what the first one set.
        if tunnel.files.is_empty() {
            tunnel.flags = flags & IfFlags::STORED;
            tunnel.send_buffer = i32::MAX;
        }
        tunnel.files.push(file_id);
        file.tunnel = Some(id);
        file.queue = tunnel.new_queue(&self.limits);
        let (name, mode) = (tunnel.name, tunnel.mode);
        self.event(|| Event::Attached { tunnel: id, name, mode, file: file_id, created });
    }

    /// The last close of an attached file: its queue is lost, and the tunnel goes with its last file unless it is
    /// persistent (`__tun_detach`).
    pub(super) fn detach(&mut self, file_id: FileId, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        tunnel.files.retain(|&other| other != file_id);
        if tunnel.last_writer == Some(file_id) {
            tunnel.last_writer = None;
        }
        let deleted = tunnel.files.is_empty() && !tunnel.persistent;
        let name = tunnel.name;
        if deleted {
            self.bury(id);
        }
        self.event(|| Event::Detached { tunnel: id, name, file: file_id, deleted });
    }

    /// Deletes a tunnel. What its client wrote can still be taken: a client often ends before the test looks.
    fn bury(&mut self, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        self.names.remove(&(tunnel.scope, tunnel.name));
        tunnel.gone = true;
        if let Some(peer) = tunnel.peer {
            self.outputs.push(Output::Notify(peer));
        }
        if tunnel.written.is_empty() {
            self.tunnels.remove(&id);
            return;
        }
        let gone: Vec<TunnelId> =
            self.tunnels.values().filter(|tunnel| tunnel.gone).map(|tunnel| tunnel.id).collect();
        let excess = gone.len().saturating_sub(self.limits.gone_tunnels);
        for id in &gone[..excess] {
            self.lose_gone(*id);
        }
    }

    /// Gives up what a deleted tunnel's client wrote.
    fn lose_gone(&mut self, id: TunnelId) {
        let Some(tunnel) = self.tunnels.remove(&id) else { return };
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

/// `dev_valid_name`: not empty, not `.` or `..`, no `/`, no `:`, no white space as the kernel's `isspace` sees it.
fn is_valid_name(name: &Name) -> bool {
    let raw = name.as_bytes();
    let is_space = |b: u8| matches!(b, b' ' | 0x09..=0x0d | 0xa0);
    const { assert!(IFNAMSIZ == 16) };
    !matches!(raw, b"" | b"." | b"..")
        && !raw.iter().any(|&b| b == b'/' || b == b':' || is_space(b))
}
