//! What the harness does: inject and take. A peer that stands in its place does the same.

use alloc::{collections::VecDeque, sync::Arc, vec::Vec};

use super::{
    Address, Core, Datagram, Delivery, DropReason, Event, Interface, MacAddress, Mode, Output,
    Peer, PeerId, Tunnel, TunnelId, User,
    datagram::{self, ETHERNET_HEADER},
    file::cost,
    headers::low_u16,
    offload::{self, OffloadError},
    settings::SettingError,
};
use crate::abi::{tun, virtio_net::VnetHeader};

/// Why the harness does not get what it asked of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// No tunnel answers to the address.
    #[error("no tunnel {0}; 'memtun list' shows those there are")]
    UnknownTunnel(Address),
    /// Several scopes have a tunnel of that name.
    #[error(
        "tunnel {name} is ambiguous; say {name}@SCOPE with one of the scopes {scopes:?}, or #ID"
    )]
    AmbiguousTunnel {
        /// The name.
        name: tun::Name,
        /// The scopes that have it.
        scopes: Vec<u64>,
    },
    /// No client has the tunnel open.
    #[error("tunnel {0} has no open file: no client would read the datagram")]
    NotAttached(tun::Name),
    /// No datagram gets through to the client.
    #[error(
        "tunnel {0} has no carrier; give it one with 'memtun set {0} carrier on', or let its client do so"
    )]
    NoCarrier(tun::Name),
    /// All its queues are detached.
    #[error("tunnel {0} has no attached queue: its clients have detached all by TUNSETQUEUE")]
    NoQueue(tun::Name),
    /// The client's filter refuses the datagram.
    #[error("a filter that the client of tunnel {0} has set drops the datagram")]
    Filtered(tun::Name),
    /// The tunnel is down.
    #[error("tunnel {0} is down; bring it up with 'memtun set {0} up'")]
    Down(tun::Name),
    /// The client does not read fast enough.
    #[error(
        "the queue of tunnel {name} is full with {datagrams} datagrams; wait until the client has read some"
    )]
    QueueFull {
        /// The tunnel.
        name: tun::Name,
        /// How many datagrams wait.
        datagrams: usize,
    },
    /// All memory is in use that there is for datagrams, or for those of the client's user.
    #[error(
        "no memory is left for a datagram to tunnel {name} of uid {uid}; see 'memtun limits', --memory and --memory-per-user"
    )]
    NoMemory {
        /// The tunnel.
        name: tun::Name,
        /// The user who opened the file.
        uid: u32,
    },
    /// The datagram has no bytes.
    #[error("the datagram is empty; give at least one byte")]
    EmptyDatagram,
    /// The datagram is too long.
    #[error("the datagram has {length} bytes; at most {limit} can be injected")]
    OversizedDatagram {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A tap takes frames, and this is not something an Ethernet header can be made for.
    #[error(
        "tunnel {0} is a tap and the datagram is neither IPv4 nor IPv6; inject a whole frame with --frame"
    )]
    NotIp(tun::Name),
    /// A tun takes no frames.
    #[error(
        "tunnel {0} is a tun, which carries no frames; leave out --frame and the Ethernet addresses"
    )]
    NotTap(tun::Name),
    /// A client read the datagram with less room than its headers take, and lost it, as on the kernel's tun.
    #[error(
        "the client's read on tunnel {0} had no room for the headers and got EINVAL; the datagram is lost"
    )]
    ReadTooShort(tun::Name),
    /// What the datagram's vnet header asks for cannot be done.
    #[error("memtun cannot do what the vnet header asks for: {0}")]
    BadVnet(#[from] OffloadError),
    /// Somebody else takes the tunnel's datagrams.
    #[error("tunnel {0} has a peer already; 'memtun list' shows it, 'memtun part {0}' removes it")]
    HasPeer(tun::Name),
    /// A setting that the kernel refuses.
    #[error("{0}")]
    BadSetting(#[from] SettingError),
    /// Nobody but the harness takes the tunnel's datagrams.
    #[error("tunnel {0} has no peer; 'memtun list' shows those that have one")]
    NoPeer(tun::Name),
    /// A tunnel cannot be joined to itself.
    #[error("tunnel {0} cannot be its own peer; name two tunnels")]
    SameTunnel(tun::Name),
    /// Only tunnels of one mode can be joined.
    #[error("tunnel {tun} is a tun and {tap} a tap; only tunnels of one mode can be joined")]
    ModesDiffer {
        /// The one that carries IP datagrams.
        tun: tun::Name,
        /// The one that carries frames.
        tap: tun::Name,
    },
    /// The tunnel was deleted.
    #[error("tunnel {0} is gone; a peer needs one that a client can open")]
    Gone(tun::Name),
    /// More was asked for than the tunnel ever keeps.
    #[error("{count} datagrams are more than can be there at once; ask for 1 to {limit}")]
    BadCount {
        /// What was asked for.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// Too many waits.
    #[error("{0} waits are open, the limit; end some first")]
    TooManyWaits(usize),
}

impl CommandError {
    /// A word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownTunnel(_) => "unknown-tunnel",
            Self::AmbiguousTunnel { .. } => "ambiguous-tunnel",
            Self::NotAttached(_) => "not-attached",
            Self::Down(_) => "down",
            Self::NoCarrier(_) => "no-carrier",
            Self::NoQueue(_) => "no-queue",
            Self::Filtered(_) => "filtered",
            Self::BadSetting(_) => "bad-setting",
            Self::QueueFull { .. } => "queue-full",
            Self::NoMemory { .. } => "no-memory",
            Self::EmptyDatagram => "empty-datagram",
            Self::OversizedDatagram { .. } => "oversized-datagram",
            Self::NotIp(_) => "not-ip",
            Self::NotTap(_) => "not-tap",
            Self::ReadTooShort(_) => "read-too-short",
            Self::BadVnet(_) => "bad-vnet",
            Self::HasPeer(_) => "has-peer",
            Self::NoPeer(_) => "no-peer",
            Self::SameTunnel(_) => "same-tunnel",
            Self::ModesDiffer { .. } => "modes-differ",
            Self::Gone(_) => "gone",
            Self::BadCount { .. } => "bad-count",
            Self::TooManyWaits(_) => "too-many-waits",
        }
    }
}

/// How bytes become a datagram on their way to a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// A datagram on its way to a client, or the segments that are left of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injection {
    to: TunnelId,
    rest: VecDeque<Datagram>,
    /// What became of those before: the first that was refused, else the last.
    injected: Option<Result<Delivery, CommandError>>,
}

impl Injection {
    /// How much memory it takes while it waits.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.rest.iter().map(cost).sum()
    }
}

/// Commands of the harness.
impl Core {
    /// Puts a datagram on its way to the client. What its vnet header asks for is done first, except for what the client
    /// accepts (TUNSETOFFLOAD): then several datagrams may come of it.
    ///
    /// # Errors
    ///
    /// Says why nothing, or of several datagrams not each, was delivered; a full queue and a read without room for the headers
    /// are counted as drops.
    pub(super) fn inject(
        &mut self,
        to: TunnelId,
        datagram: Datagram,
        wrap: Wrap,
    ) -> Result<Delivery, CommandError> {
        let datagram = self.prepared(to, datagram, wrap)?;
        if datagram.vnet.is_none() {
            self.send_to_client(to, datagram)
        } else {
            self.perform_and_send_to_client(to, datagram)
        }
    }

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
        let datagram = self.prepared(to, datagram, wrap)?;
        let tunnel = self.tunnel_or_unknown(to)?;
        let rest = if datagram.vnet.is_none() {
            VecDeque::from([datagram])
        } else {
            offload::perform(datagram, tunnel.mode, tunnel.offload)?.collect()
        };
        Ok(Injection { to, rest, injected: None })
    }

    /// The next part of an injection finds room, or needs none to be refused.
    pub(super) fn can_go_on(&self, injection: &Injection) -> bool {
        let Injection { to, rest, .. } = injection;
        let Some(datagram) = rest.front() else { return true };
        if self.check_passes(*to).is_err() {
            return true;
        }
        let queue = self.tunnels.get(to).and_then(|tunnel| tunnel.select_queue(datagram));
        let Some(file) = queue.and_then(|file| self.files.get(&file)) else { return true };
        let is_read = !file.parked.is_empty() && file.queue.capacity() > 0;
        is_read || file.queue.has_room_for(datagram.payload.len())
    }

    /// Sends what there is room for: the outcome, or what is left.
    pub(super) fn go_on(
        &mut self,
        mut injection: Injection,
    ) -> Result<Result<Delivery, CommandError>, Injection> {
        while self.can_go_on(&injection) {
            let Some(datagram) = injection.rest.pop_front() else {
                return Ok(injection.injected.unwrap_or(Err(CommandError::EmptyDatagram)));
            };
            let to = injection.to;
            let sent = self.check_passes(to).and_then(|()| self.send_to_client(to, datagram));
            injection.injected = Some(match injection.injected.take() {
                None => sent,
                Some(earlier) => earlier.and(sent),
            });
        }
        Err(injection)
    }

    /// Sends the rest, whether or not there is room.
    pub(super) fn finish_injection(
        &mut self,
        Injection { to, rest, injected }: Injection,
    ) -> Result<Delivery, CommandError> {
        rest.into_iter()
            .map(|datagram| self.check_passes(to).and_then(|()| self.send_to_client(to, datagram)))
            .fold(injected, |earlier, sent| match earlier {
                None => Some(sent),
                Some(earlier) => Some(earlier.and(sent)),
            })
            .unwrap_or(Err(CommandError::EmptyDatagram))
    }

    /// Whether datagrams get through to the clients of a tunnel at all.
    fn check_passes(&self, to: TunnelId) -> Result<(), CommandError> {
        let tunnel = self.tunnel_or_unknown(to)?;
        let name = tunnel.name;
        if tunnel.file_count() == 0 {
            Err(CommandError::NotAttached(name))
        } else if !tunnel.up {
            Err(CommandError::Down(name))
        } else if !tunnel.carrier {
            Err(CommandError::NoCarrier(name))
        } else {
            Ok(())
        }
    }

    fn prepared(
        &self,
        to: TunnelId,
        datagram: Datagram,
        wrap: Wrap,
    ) -> Result<Datagram, CommandError> {
        self.check_passes(to)?;
        let datagram = wrapped(self.tunnel_or_unknown(to)?, datagram, wrap)?;
        let (length, limit) = (datagram.payload.len(), self.limits.datagram);
        if length > limit {
            return Err(CommandError::OversizedDatagram { length, limit });
        }
        Ok(datagram)
    }

    /// Removes the oldest datagram that clients wrote.
    pub(super) fn take(&mut self, from: TunnelId) -> Option<Datagram> {
        let tunnel = self.tunnels.get_mut(&from)?;
        let datagram = tunnel.written.pop();
        if tunnel.gone && tunnel.written.is_empty() {
            self.remove_gone(from);
        }
        datagram
    }

    /// Puts back what was taken last, and did not get to whom it was taken for; in a user's memory.
    pub(super) fn put_back(&mut self, to: TunnelId, datagram: Datagram, user: &Arc<User>) {
        let Some(tunnel) = self.tunnels.get_mut(&to) else { return };
        let (name, length) = (tunnel.name, datagram.payload.len());
        if tunnel.written.unpop(datagram, user) {
            return;
        }
        tunnel.counters.from_client_dropped.add(length);
        let reason = DropReason::Memory;
        self.event(|| Event::Dropped { tunnel: to, name, reason, length });
    }

    /// Gives a tunnel a peer, which is told whenever there is something to [`take`](Self::take): now too, if there is.
    ///
    /// While a tunnel has a peer, no wait of the harness takes from it.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownTunnel`], [`CommandError::HasPeer`].
    pub(super) fn set_peer(&mut self, of: TunnelId, peer: PeerId) -> Result<(), CommandError> {
        let Some(tunnel) = self.tunnels.get_mut(&of) else {
            return Err(CommandError::UnknownTunnel(Address::Id(of)));
        };
        if tunnel.peer.is_some() || tunnel.interface == Interface::Bridge {
            return Err(CommandError::HasPeer(tunnel.name));
        }
        tunnel.peer = Some(Peer::Outside(peer));
        if tunnel.written.available() > 0 {
            self.outputs.push(Output::Notify(peer));
        }
        Ok(())
    }

    /// The peer has left; what clients write is for the harness's waits again.
    pub(super) fn clear_peer(&mut self, peer: PeerId) {
        let outside = Some(Peer::Outside(peer));
        for tunnel in self.tunnels.values_mut().filter(|tunnel| tunnel.peer == outside) {
            tunnel.peer = None;
        }
    }

    /// Puts a datagram from a tunnel's peer on its way to the client. What is refused is counted as dropped: a peer is
    /// not told.
    ///
    /// # Errors
    ///
    /// As [`inject`](Self::inject).
    pub(super) fn inject_from_peer(
        &mut self,
        to: TunnelId,
        datagram: Datagram,
    ) -> Result<Delivery, CommandError> {
        let length = datagram.payload.len();
        let delivery = self.inject(to, datagram, Wrap::Raw);
        // These have been counted where they were noticed.
        let counted = matches!(
            delivery,
            Ok(_)
                | Err(CommandError::QueueFull { .. }
                    | CommandError::NoMemory { .. }
                    | CommandError::ReadTooShort(_)
                    | CommandError::Filtered(_))
        );
        if !counted && let Some(name) = self.tunnels.get(&to).map(|tunnel| tunnel.name) {
            self.count_to_client_drop(to, name, DropReason::Refused, length);
        }
        delivery
    }

    /// A datagram that was taken for a peer is lost: it is longer than the peer can carry.
    pub(super) fn count_peer_drop(&mut self, of: TunnelId, length: usize) {
        let Some(tunnel) = self.tunnels.get_mut(&of) else { return };
        tunnel.counters.from_client_dropped.add(length);
        let name = tunnel.name;
        self.event(|| Event::Dropped { tunnel: of, name, reason: DropReason::PeerLimit, length });
    }
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
            Ok(Datagram { payload, vnet: datagram.vnet.map(behind_ethernet), ..datagram })
        }
    }
}

/// The vnet header, once an Ethernet header stands before what it was for.
fn behind_ethernet(header: VnetHeader) -> VnetHeader {
    let moved = |from: u16| from.saturating_add(low_u16(ETHERNET_HEADER)).into();
    VnetHeader { csum_start: moved(header.csum_start.get()), ..header }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use zerocopy::IntoBytes;

    use super::*;
    use crate::{
        Answer, Condition, FileId, Settings,
        abi::tun::{Offload, ioctl::TUNSETOFFLOAD},
        input,
        machine::rig::Rig,
    };

    const TUN: u16 = 0x1001;
    const TAP: u16 = 0x1002;
    const VNET_HDR: u16 = 0x4000;
    const NEEDS_CHECKSUM: VnetHeader = VnetHeader { flags: 1, ..EMPTY };
    const EMPTY: VnetHeader = VnetHeader {
        flags: 0,
        gso_type: 0,
        hdr_len: zerocopy::little_endian::U16::ZERO,
        gso_size: zerocopy::little_endian::U16::ZERO,
        csum_start: zerocopy::little_endian::U16::ZERO,
        csum_offset: zerocopy::little_endian::U16::ZERO,
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
        Datagram { payload: payload.into(), vnet: Some(vnet), ..Datagram::default() }
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
        let (file, tunnel) = client(&mut rig, TUN | VNET_HDR, tso);
        assert_eq!(rig.inject_datagram(tunnel, tcp(250), Wrap::Raw), Ok(Delivery::Queued(1)));
        let read = rig.read(file, 1_000).unwrap();
        let whole = VnetHeader { hdr_len: 40.into(), ..tcp(250).vnet.unwrap() };
        assert_eq!(read, [whole.as_bytes(), &tcp(250).payload].concat());

        let (file, tunnel) = client(&mut rig, TUN | VNET_HDR, Offload::CSUM);
        let reading = rig.read_later(file, 1_000);
        assert_eq!(rig.inject_datagram(tunnel, tcp(250), Wrap::Raw), Ok(Delivery::Queued(2)));
        assert!(rig.outcome(reading).is_some(), "the first segment was read at once");
        let partial =
            VnetHeader { csum_start: 20.into(), csum_offset: 16.into(), ..NEEDS_CHECKSUM };
        assert_eq!(rig.read(file, 1_000).unwrap()[..10], *partial.as_bytes());
        assert_eq!(rig.read(file, 1_000).unwrap().len(), 10 + 40 + 50);

        let (file, tunnel) = client(&mut rig, TUN, Offload::empty());
        assert_eq!(rig.inject_datagram(tunnel, tcp(250), Wrap::Raw), Ok(Delivery::Queued(3)));
        let lengths = [(); 3].map(|()| rig.read(file, 1_000).unwrap().len());
        assert_eq!(lengths, [140, 140, 90]);
        assert_eq!(rig.core.tunnel(tunnel).unwrap().counters().to_client.datagrams, 3);

        // TUNSETOFFLOAD alone decides: without a vnet header the client cannot tell, as on the kernel's tun.
        let (file, tunnel) = client(&mut rig, TUN, tso);
        rig.inject_datagram(tunnel, tcp(250), Wrap::Raw).unwrap();
        assert_eq!(rig.read(file, 1_000).unwrap(), tcp(250).payload);
    }

    #[test]
    fn checksum_moves_behind_an_ethernet_header() {
        let mut rig = Rig::new();
        let (file, tunnel) = client(&mut rig, TAP | VNET_HDR, Offload::CSUM);
        let framed = Wrap::Ethernet { source: None, destination: None };
        rig.inject_datagram(tunnel, tcp(50), framed).unwrap();
        let partial =
            VnetHeader { csum_start: 34.into(), csum_offset: 16.into(), ..NEEDS_CHECKSUM };
        assert_eq!(rig.read(file, 1_000).unwrap()[..10], *partial.as_bytes());
    }

    #[test]
    fn vnet_header_that_cannot_be_followed_delivers_nothing() {
        let mut rig = Rig::new();
        let (_, tunnel) = client(&mut rig, TUN, Offload::empty());
        let wrong = Datagram { vnet: Some(VnetHeader { gso_type: 2, ..EMPTY }), ..tcp(250) };
        let refused = Err(CommandError::BadVnet(OffloadError::BadHeader));
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
        let (file, tunnel) = client(&mut rig, TUN, Offload::empty());
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
        let (file, tunnel) = client(&mut rig, TUN, Offload::empty());
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
    fn segments_beyond_a_full_queue_are_counted() {
        let mut rig = Rig::new();
        let (_, tunnel) = client(&mut rig, TUN, Offload::empty());
        let refused = rig.inject_datagram(tunnel, tcp(60_000), Wrap::Raw);
        assert!(matches!(refused, Err(CommandError::QueueFull { datagrams: 500, .. })));
        let counters = rig.core.tunnel(tunnel).unwrap().counters();
        let counts = (counters.to_client.datagrams, counters.to_client_dropped.datagrams);
        assert_eq!(counts, (500, 100));
    }
}
