//! The way of a datagram to a client: one function, [`Core::send_to_client`], whoever made the datagram.
//!
//! # Theory of operation
//!
//! The steps are, in this order:
//!
//! 1. *Checks*: the tunnel is attached, up, and has a carrier; the datagram has a length that there is, in the form of the tunnel's mode.
//! 2. *Offloads*: what the vnet header asks for and the client does not accept is done. Several datagrams may come of it.
//! 3. *Queue*: each datagram is one file's.
//! 4. *Filter*: what the client has set for its queue.
//! 5. *Framing* for a parked read, or a place in the queue.
//! 6. *Account*: counters, events, and the pollers.
//!
//! A datagram that is due later, because it waits for room, comes here again then: all steps are repeated. A rule that loses, changes
//! or delays datagrams belongs between the checks and the offloads.

use alloc::{collections::VecDeque, vec::Vec};

use super::{
    Address, CommandError, Core, DropReason, Event, FileId, MacAddress, Output, Tunnel, TunnelId,
    filter::filtered,
    queue::{Refused, cost},
};
use crate::{
    abi::{tun::Name, virtio_net::VnetHeader},
    datagram::{self, Datagram, ETHERNET_HEADER, Mode, headers::low_u16, offload},
};

/// What became of an injected datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub enum Delivery {
    /// A blocked read got it.
    Read,
    /// It waits in a queue of so many datagrams, itself included.
    Queued(usize),
}

/// Who sends a datagram to a client.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sender {
    /// The harness, which is told what becomes of it.
    Harness(Wrap),
    /// A peer, which is not: what is refused is counted as dropped.
    Peer,
    /// The kernel, by the queue of a file. It has checked the datagram, and done what offloads the client does not accept, but for
    /// UDP tunnels where the client's vnet header has no room for them.
    Netdev(FileId),
}

/// How bytes become a datagram on their way to a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub enum Wrap {
    /// Untouched.
    #[default]
    Raw,
    /// Untouched, and only to a tap.
    Frame,
    /// On a tap, an Ethernet header is put before an IP datagram; on a tun, untouched.
    Ethernet {
        /// Default: the tunnel's own address.
        source: Option<MacAddress>,
        /// Default: broadcast.
        destination: Option<MacAddress>,
    },
}

/// A datagram that waits for room in the client's queue, or the segments that are left of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct Injection {
    to: TunnelId,
    rest: VecDeque<Datagram>,
    /// What became of those before: the first that was refused, else the last.
    injected: Option<Result<Delivery, CommandError>>,
}

impl Injection {
    /// The tunnel.
    pub(super) fn tunnel(&self) -> TunnelId {
        self.to
    }

    /// How much memory it takes while it waits.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.rest.iter().map(cost).sum()
    }
}

impl Core {
    /// Puts a datagram on its way to the client of a tunnel.
    ///
    /// # Errors
    ///
    /// Says why nothing, or of several datagrams not each, was delivered: of several the first that was refused.
    pub(super) fn send_to_client(
        &mut self,
        to: TunnelId,
        datagram: Datagram,
        from: Sender,
    ) -> Result<Delivery, CommandError> {
        let (wrap, is_told) = match from {
            Sender::Netdev(queue) => return self.pass_from_netdev(to, datagram, queue),
            Sender::Harness(wrap) => (wrap, true),
            Sender::Peer => (Wrap::Raw, false),
        };
        let length = datagram.payload.len();
        let sent = match self.checked(to, datagram, wrap) {
            Ok(datagram) if !datagram.has_vnet() => self.deliver(to, datagram, None),
            Ok(datagram) => self.offload_and_deliver(to, datagram, None),
            Err(error) => Err(error),
        };
        if !is_told {
            self.count_refused(to, &sent, length);
        }
        sent
    }

    /// What is refused where nobody is told is counted as dropped, unless it has been.
    fn count_refused(
        &mut self,
        to: TunnelId,
        sent: &Result<Delivery, CommandError>,
        length: usize,
    ) {
        if sent.as_ref().is_err_and(|error| !is_counted(error)) {
            self.count_to_client_drop(to, DropReason::Refused, length);
        }
    }

    fn pass_from_netdev(
        &mut self,
        to: TunnelId,
        datagram: Datagram,
        queue: FileId,
    ) -> Result<Delivery, CommandError> {
        let is_in_tunnel = datagram.vnet().is_some_and(|vnet| vnet.is_in_tunnel());
        // The netdev's vnet header has room for a UDP tunnel, that of the client perhaps not.
        let is_cut = |tunnel: &Tunnel| tunnel.accepted() != tunnel.offload;
        if !is_in_tunnel || !self.tunnels.get(&to).is_some_and(is_cut) {
            return self.deliver(to, datagram, Some(queue));
        }
        let length = datagram.payload.len();
        let sent = self.offload_and_deliver(to, datagram, Some(queue));
        self.count_refused(to, &sent, length);
        sent
    }

    fn offload_and_deliver(
        &mut self,
        to: TunnelId,
        datagram: Datagram,
        sent_by: Option<FileId>,
    ) -> Result<Delivery, CommandError> {
        let tunnel = self.tunnel_or_unknown(to)?;
        offload::perform(datagram, tunnel.mode, tunnel.accepted())?
            .map(|datagram| self.deliver(to, datagram, sent_by))
            .reduce(Result::and)
            .unwrap_or(Err(CommandError::EmptyDatagram))
    }

    /// Whether datagrams get through to the clients of a tunnel at all.
    fn check_passes(&self, to: TunnelId) -> Result<&Tunnel, CommandError> {
        let tunnel = self.tunnel_or_unknown(to)?;
        let name = tunnel.name;
        if tunnel.file_count() == 0 {
            Err(CommandError::NotAttached(name))
        } else if !tunnel.up {
            Err(CommandError::Down(name))
        } else if !tunnel.carrier {
            Err(CommandError::NoCarrier(name))
        } else {
            Ok(tunnel)
        }
    }

    /// A datagram in the form of the tunnel's mode, if it gets through.
    fn checked(
        &self,
        to: TunnelId,
        datagram: Datagram,
        wrap: Wrap,
    ) -> Result<Datagram, CommandError> {
        let datagram = wrapped(self.check_passes(to)?, datagram, wrap)?;
        let (length, limit) = (datagram.payload.len(), self.limits.datagram);
        if length > limit {
            return Err(CommandError::OversizedDatagram { length, limit });
        }
        Ok(datagram)
    }

    /// One datagram, with nothing left to do to it. `sent_by`: the queue by which the kernel has sent it, whose pollers are woken.
    fn deliver(
        &mut self,
        to: TunnelId,
        datagram: Datagram,
        sent_by: Option<FileId>,
    ) -> Result<Delivery, CommandError> {
        let Some(tunnel) = self.tunnels.get_mut(&to) else {
            return Err(CommandError::UnknownTunnel(Address::Id(to)));
        };
        let (name, mode) = (tunnel.name, tunnel.mode);
        let selected = sent_by.or_else(|| tunnel.select_queue(&datagram));
        let file_id = selected.ok_or(CommandError::NoQueue(name))?;
        let file = self.files.get_mut(&file_id).ok_or(CommandError::NoQueue(name))?;

        let length = datagram.payload.len();
        let Some(datagram) = filtered(datagram, tunnel, file) else {
            self.count_to_client_drop(to, DropReason::Filtered, length);
            return Err(CommandError::Filtered(name));
        };
        let observed = self.observed.then(|| datagram.payload.clone());
        // A queue of nothing passes nothing, not even to a blocked reader: tun_net_xmit puts it there first.
        // One whose outcome is reserved gets it from there.
        let passes = file.queue.capacity() > 0;
        let is_direct = passes && file.parked.front().is_some_and(|read| !read.reports);
        let parked = if is_direct { file.parked.pop_front() } else { None };
        let mut woken = None;
        let delivery = if let Some(read) = parked {
            let outcome = file.deliver(&datagram, None, tunnel.framing(), read.limit);
            let was_read = outcome.is_ok();
            self.outputs.push(Output::Complete(read.id, outcome));
            if !was_read {
                self.count_to_client_drop(to, DropReason::ReadTooShort, length);
                return Err(CommandError::ReadTooShort(name));
            }
            tunnel.counters.to_client.add(length);
            Delivery::Read
        } else {
            if sent_by.is_none() {
                woken = file.waker;
            }
            let waits = !file.parked.is_empty();
            let queued = match file.queue.push(datagram, &file.user) {
                Ok(()) => {
                    tunnel.counters.to_client.add(length);
                    file.queue.len()
                }
                Err(refused) => self.push_again(to, name, file_id, refused, length)?,
            };
            if waits && self.serve_parked(file_id) {
                woken = None;
                Delivery::Read
            } else {
                Delivery::Queued(queued)
            }
        };
        if let Some(payload) = observed {
            self.outputs.push(Output::Event(Event::ToClient { tunnel: to, name, mode, payload }));
        }
        if woken.is_some() {
            self.wake(file_id);
        }
        Ok(delivery)
    }

    /// A datagram for which there was no room at first; of how many it is then the last in the queue.
    #[cold]
    fn push_again(
        &mut self,
        to: TunnelId,
        name: Name,
        file_id: FileId,
        mut refused: Refused,
        length: usize,
    ) -> Result<usize, CommandError> {
        loop {
            let file = self.files.get(&file_id).ok_or(CommandError::NoQueue(name))?;
            let (uid, datagrams) = (file.user.uid(), file.queue.len());
            let Refused::Memory(datagram, exhausted) = refused else {
                self.count_to_client_drop(to, DropReason::QueueFull, length);
                return Err(CommandError::QueueFull { name, datagrams });
            };
            if self.reclaim(uid, exhausted).is_err() {
                self.count_to_client_drop(to, DropReason::Memory, length);
                return Err(CommandError::NoMemory { name, uid });
            }
            let file = self.files.get_mut(&file_id).ok_or(CommandError::NoQueue(name))?;
            match file.queue.push(datagram, &file.user) {
                Err(again) => refused = again,
                Ok(()) => {
                    let queued = file.queue.len();
                    if let Some(tunnel) = self.tunnels.get_mut(&to) {
                        tunnel.counters.to_client.add(length);
                    }
                    return Ok(queued);
                }
            }
        }
    }

    pub(super) fn count_to_client_drop(&mut self, id: TunnelId, reason: DropReason, length: usize) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let name = tunnel.name;
        tunnel.counters.to_client_dropped.add(length);
        if reason == DropReason::Memory {
            tunnel.counters.memory_dropped.add(length);
        }
        self.event(|| Event::Dropped { tunnel: id, name, reason, length });
    }
}

/// Datagrams that wait for room.
impl Core {
    /// A datagram that may wait for room in the client's queue, by [`Condition::Inject`](super::Condition::Inject). Work that
    /// its vnet header asks for, and that the client does not accept now, is done now.
    ///
    /// # Errors
    ///
    /// As [`Inject`](super::input::Inject), but for what room has to do with.
    pub fn injection(
        &self,
        to: TunnelId,
        datagram: Datagram,
        wrap: Wrap,
    ) -> Result<Injection, CommandError> {
        let datagram = self.checked(to, datagram, wrap)?;
        let tunnel = self.tunnel_or_unknown(to)?;
        let rest = offload::perform(datagram, tunnel.mode, tunnel.accepted())?.collect();
        Ok(Injection { to, rest, injected: None })
    }

    /// The next part of an injection finds room, or needs none to be refused.
    pub(super) fn can_go_on(&self, injection: &Injection) -> bool {
        let Injection { to, rest, .. } = injection;
        let Some(datagram) = rest.front() else { return true };
        let Ok(tunnel) = self.check_passes(*to) else { return true };
        let queue = tunnel.select_queue(datagram);
        let Some(file) = queue.and_then(|file| self.files.get(&file)) else { return true };
        let is_read = !file.parked.is_empty() && file.queue.capacity() > 0;
        is_read || file.queue.has_room_for(datagram.payload.len())
    }

    /// Sends what there is room for: the outcome, or what is left.
    pub(super) fn go_on(
        &mut self,
        mut injection: Injection,
    ) -> Result<Result<Delivery, CommandError>, Injection> {
        loop {
            self.repeat_offloads(&mut injection);
            if !self.can_go_on(&injection) {
                return Err(injection);
            }
            if !self.send_next(&mut injection) {
                return Ok(injection.injected.unwrap_or(Err(CommandError::EmptyDatagram)));
            }
        }
    }

    /// Sends the rest, whether or not there is room.
    pub(super) fn finish_injection(
        &mut self,
        mut injection: Injection,
    ) -> Result<Delivery, CommandError> {
        while self.send_next(&mut injection) {}
        injection.injected.unwrap_or(Err(CommandError::EmptyDatagram))
    }

    /// The client may accept less than when the injection began. Each segment waits for room then.
    fn repeat_offloads(&self, Injection { to, rest, .. }: &mut Injection) {
        let (Some(next), Some(tunnel)) = (rest.front(), self.tunnels.get(to)) else { return };
        if !next.has_vnet() {
            return;
        }
        // One that cannot be done any more is refused when it is sent.
        let Ok(parts) = offload::perform(next.clone(), tunnel.mode, tunnel.accepted()) else {
            return;
        };
        let parts: Vec<Datagram> = parts.collect();
        rest.pop_front();
        parts.into_iter().rev().for_each(|part| rest.push_front(part));
    }

    /// Sends the next part; false if there is none.
    fn send_next(&mut self, injection: &mut Injection) -> bool {
        let Some(datagram) = injection.rest.pop_front() else { return false };
        let sent = self.send_to_client(injection.to, datagram, Sender::Harness(Wrap::Raw));
        injection.injected = Some(match injection.injected.take() {
            None => sent,
            Some(earlier) => earlier.and(sent),
        });
        true
    }
}

/// Whether a refusal is of a datagram that got as far as to a queue, where it has been counted.
fn is_counted(error: &CommandError) -> bool {
    matches!(
        error,
        CommandError::Filtered(_)
            | CommandError::QueueFull { .. }
            | CommandError::NoMemory { .. }
            | CommandError::ReadTooShort(_)
    )
}

/// The datagram a client is to get.
fn wrapped(tunnel: &Tunnel, datagram: Datagram, wrap: Wrap) -> Result<Datagram, CommandError> {
    if datagram.payload.is_empty() {
        return Err(CommandError::EmptyDatagram);
    }
    match (wrap, tunnel.mode) {
        (Wrap::Raw, _) | (Wrap::Frame, Mode::Tap) => Ok(datagram),
        (
            Wrap::Frame
            | Wrap::Ethernet { source: Some(_), .. }
            | Wrap::Ethernet { destination: Some(_), .. },
            Mode::Tun,
        ) => Err(CommandError::NotTap(tunnel.name)),
        (Wrap::Ethernet { .. }, Mode::Tun) => Ok(datagram),
        (Wrap::Ethernet { source, destination }, Mode::Tap) => {
            let (source, destination) =
                (source.unwrap_or(tunnel.hwaddr), destination.unwrap_or(MacAddress::BROADCAST));
            let payload = datagram::ethernet_frame(source, destination, &datagram.payload)
                .ok_or(CommandError::NotIp(tunnel.name))?;
            let vnet = datagram.vnet().map(behind_ethernet);
            Ok(datagram.with_payload(payload).with_vnet(vnet))
        }
    }
}

/// The vnet header, once an Ethernet header stands before what it was for.
fn behind_ethernet(header: VnetHeader) -> VnetHeader {
    let moved = |from: u16| from.saturating_add(low_u16(ETHERNET_HEADER)).into();
    let header = VnetHeader { csum_start: moved(header.csum_start.get()), ..header };
    if !header.is_in_tunnel() {
        return header;
    }
    VnetHeader {
        outer_th_offset: moved(header.outer_th_offset.get()),
        inner_nh_offset: moved(header.inner_nh_offset.get()),
        ..header
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::{
        Answer, Condition, FileId, Settings,
        abi::tun::{Offload, ioctl::TUNSETOFFLOAD},
        input,
        machine::rig::{Rig, flags::*},
    };

    const NEEDS_CHECKSUM: VnetHeader = VnetHeader { flags: 1, ..EMPTY };
    const EMPTY: VnetHeader = VnetHeader {
        flags: 0,
        gso_type: 0,
        hdr_len: zerocopy::little_endian::U16::ZERO,
        gso_size: zerocopy::little_endian::U16::ZERO,
        csum_start: zerocopy::little_endian::U16::ZERO,
        csum_offset: zerocopy::little_endian::U16::ZERO,
        outer_th_offset: zerocopy::little_endian::U16::ZERO,
        inner_nh_offset: zerocopy::little_endian::U16::ZERO,
    };

    /// TCP over IPv4 with so many bytes of data, in segments of 100.
    fn tcp(data: usize) -> Datagram {
        let mut payload = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        payload.extend([0; 12]);
        payload.extend([5 << 4, 0x18, 0, 0, 0, 0, 0, 0]);
        payload.resize(40 + data, 7);
        let vnet = VnetHeader {
            gso_type: 1,
            gso_size: 100.into(),
            csum_start: 20.into(),
            csum_offset: 16.into(),
            ..NEEDS_CHECKSUM
        };
        Datagram::from(bytes::Bytes::from(payload)).with_vnet(Some(vnet))
    }

    fn client(rig: &mut Rig, flags: u16, accepted: Offload) -> (FileId, TunnelId) {
        let (file, tunnel) = rig.attached("", flags);
        rig.ioctl(file, TUNSETOFFLOAD, accepted.bits(), &[]).expect("it is a set");
        (file, tunnel)
    }

    #[test]
    fn client_gets_what_it_accepts_whole_and_the_rest_done() {
        let mut rig = Rig::new();
        let tso = Offload::CSUM | Offload::TSO4;
        let (file, tunnel) = client(&mut rig, TUN_NO_PI | VNET_HDR, tso);
        assert_eq!(rig.inject_datagram(tunnel, tcp(250), Wrap::Raw), Ok(Delivery::Queued(1)));
        let read = rig.read(file, 1_000).unwrap();
        let whole = VnetHeader { hdr_len: 40.into(), ..tcp(250).vnet().unwrap() };
        assert_eq!(read, [&whole.to_short_bytes()[..], &tcp(250).payload].concat());

        let (file, tunnel) = client(&mut rig, TUN_NO_PI | VNET_HDR, Offload::CSUM);
        let reading = rig.read_later(file, 1_000);
        assert_eq!(rig.inject_datagram(tunnel, tcp(250), Wrap::Raw), Ok(Delivery::Queued(2)));
        assert!(rig.outcome(reading).is_some(), "the first segment was read at once");
        let partial =
            VnetHeader { csum_start: 20.into(), csum_offset: 16.into(), ..NEEDS_CHECKSUM };
        assert_eq!(rig.read(file, 1_000).unwrap()[..10], partial.to_short_bytes());
        assert_eq!(rig.read(file, 1_000).unwrap().len(), 10 + 40 + 50);

        let (file, tunnel) = client(&mut rig, TUN_NO_PI, Offload::empty());
        assert_eq!(rig.inject_datagram(tunnel, tcp(250), Wrap::Raw), Ok(Delivery::Queued(3)));
        let lengths = [(); 3].map(|()| rig.read(file, 1_000).unwrap().len());
        assert_eq!(lengths, [140, 140, 90]);
        assert_eq!(rig.core.tunnel(tunnel).unwrap().counters().to_client.datagrams, 3);

        // TUNSETOFFLOAD alone decides: without a vnet header the client cannot tell, as on the kernel's tun.
        let (file, tunnel) = client(&mut rig, TUN_NO_PI, tso);
        rig.inject_datagram(tunnel, tcp(250), Wrap::Raw).unwrap();
        assert_eq!(rig.read(file, 1_000).unwrap(), tcp(250).payload);
    }

    #[test]
    fn checksum_moves_behind_an_ethernet_header() {
        let mut rig = Rig::new();
        let (file, tunnel) = client(&mut rig, TAP_NO_PI | VNET_HDR, Offload::CSUM);
        let framed = Wrap::Ethernet { source: None, destination: None };
        rig.inject_datagram(tunnel, tcp(50), framed).unwrap();
        let partial =
            VnetHeader { csum_start: 34.into(), csum_offset: 16.into(), ..NEEDS_CHECKSUM };
        assert_eq!(rig.read(file, 1_000).unwrap()[..10], partial.to_short_bytes());
    }

    #[test]
    fn vnet_header_that_cannot_be_followed_delivers_nothing() {
        let mut rig = Rig::new();
        let (_, tunnel) = client(&mut rig, TUN_NO_PI, Offload::empty());
        let wrong = tcp(250).with_vnet(Some(VnetHeader { gso_type: 2, ..EMPTY }));
        let refused = Err(CommandError::BadVnet(offload::OffloadError::BadHeader));
        assert_eq!(rig.inject_datagram(tunnel, wrong.clone(), Wrap::Raw), refused);
        assert_eq!(rig.handle(input::InjectFromPeer { tunnel, datagram: wrong }), refused);
        let counters = rig.core.tunnel(tunnel).unwrap().counters();
        assert_eq!((counters.to_client.datagrams, counters.to_client_dropped.datagrams), (0, 1));
    }

    /// Starts to wait for room.
    fn inject_later(rig: &mut Rig, wait: u64, to: TunnelId, datagram: Datagram) {
        let injection = rig.core.injection(to, datagram, Wrap::Raw).unwrap();
        rig.wait(wait, Condition::Inject(injection), 100).unwrap();
    }

    fn set_queue_length(rig: &mut Rig, tunnel: TunnelId, length: u32) {
        let settings = Settings { tx_queue_length: Some(length), ..Settings::default() };
        rig.configure(tunnel, &settings).unwrap();
    }

    #[test]
    fn injection_waits_for_room_in_turn_and_counts_no_drops() {
        let mut rig = Rig::new();
        let (file, tunnel) = client(&mut rig, TUN_NO_PI, Offload::empty());
        set_queue_length(&mut rig, tunnel, 1);
        let numbered = |number: u8| Datagram::from(bytes::Bytes::from(vec![0x45, number]));
        for number in 1..=3 {
            inject_later(&mut rig, number.into(), tunnel, numbered(number));
        }
        let queued = || Some(Answer::Injected(Ok(Delivery::Queued(1))));
        assert_eq!((rig.answer(1), rig.answer(2)), (queued(), None));
        assert_eq!(rig.read(file, 9), Ok(vec![0x45, 1]));
        assert_eq!((rig.answer(2), rig.answer(3)), (queued(), None));
        assert_eq!(rig.read(file, 9), Ok(vec![0x45, 2]));
        assert_eq!(rig.answer(3), queued());
        let counters = |rig: &Rig| rig.core.tunnel(tunnel).unwrap().counters();
        assert_eq!(counters(&rig).to_client_dropped.datagrams, 0);

        // At the deadline it is refused, and counted, as one that does not wait.
        inject_later(&mut rig, 4, tunnel, numbered(4));
        rig.pass_until(100);
        let Some(Answer::Injected(Err(CommandError::QueueFull { datagrams: 1, .. }))) =
            rig.answer(4)
        else {
            panic!("the queue is full")
        };
        assert_eq!(counters(&rig).to_client_dropped.datagrams, 1);

        // What takes the client away, or more room, ends the wait as well.
        inject_later(&mut rig, 5, tunnel, numbered(5));
        set_queue_length(&mut rig, tunnel, 2);
        assert_eq!(rig.answer(5), Some(Answer::Injected(Ok(Delivery::Queued(2)))));
        inject_later(&mut rig, 6, tunnel, numbered(6));
        rig.set_link(tunnel, false);
        let down = rig.core.tunnel(tunnel).map(|tunnel| CommandError::Down(*tunnel.name()));
        assert_eq!(rig.answer(6), down.map(|down| Answer::Injected(Err(down))));
        rig.set_link(tunnel, true);
        inject_later(&mut rig, 7, tunnel, numbered(7));
        rig.close(file);
        assert!(matches!(rig.answer(7), Some(Answer::Injected(Err(_)))));
    }

    #[test]
    fn all_segments_wait_for_room() {
        let mut rig = Rig::new();
        let (file, tunnel) = client(&mut rig, TUN_NO_PI, Offload::empty());
        set_queue_length(&mut rig, tunnel, 2);
        inject_later(&mut rig, 1, tunnel, tcp(350));
        for length in [140, 140, 140] {
            assert_eq!(rig.read(file, 1_000).unwrap().len(), length);
        }
        assert_eq!(rig.answer(1), Some(Answer::Injected(Ok(Delivery::Queued(2)))));
        assert_eq!(rig.read(file, 1_000).unwrap().len(), 90);
        let parked = rig.read_later(file, 1_000);
        inject_later(&mut rig, 2, tunnel, tcp(50));
        assert_eq!(rig.answer(2), Some(Answer::Injected(Ok(Delivery::Read))));
        assert!(rig.outcome(parked).is_some());
        let counters = rig.core.tunnel(tunnel).unwrap().counters();
        assert_eq!(counters.to_client_dropped.datagrams, 0);
    }

    #[test]
    fn datagram_that_waited_passes_every_step_again() {
        let mut rig = Rig::new();
        let (file, tunnel) = client(&mut rig, TUN_NO_PI, Offload::CSUM | Offload::TSO4);
        set_queue_length(&mut rig, tunnel, 1);
        rig.inject_datagram(tunnel, tcp(50), Wrap::Raw).unwrap();
        inject_later(&mut rig, 1, tunnel, tcp(250));
        rig.ioctl(file, TUNSETOFFLOAD, 0, &[]).unwrap();
        let lengths = [(); 4].map(|()| rig.read(file, 1_000).unwrap().len());
        assert_eq!(lengths, [90, 140, 140, 90], "the client accepts no whole one any more");
        assert_eq!(rig.answer(1), Some(Answer::Injected(Ok(Delivery::Queued(1)))));
        assert_eq!(rig.core.tunnel(tunnel).unwrap().counters().to_client_dropped.datagrams, 0);
    }

    #[test]
    fn segments_beyond_a_full_queue_are_counted() {
        let mut rig = Rig::new();
        let (_, tunnel) = client(&mut rig, TUN_NO_PI, Offload::empty());
        let refused = rig.inject_datagram(tunnel, tcp(60_000), Wrap::Raw);
        assert!(matches!(refused, Err(CommandError::QueueFull { datagrams: 500, .. })));
        let counters = rig.core.tunnel(tunnel).unwrap().counters();
        let counts = (counters.to_client.datagrams, counters.to_client_dropped.datagrams);
        assert_eq!(counts, (500, 100));
    }
}
