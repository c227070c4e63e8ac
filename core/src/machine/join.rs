//! Two tunnels as each other's peer: what the clients of one write, the clients of the other read.
//!
//! # Theory of operation
//!
//! A write on one tunnel becomes, in the same call of the core, a datagram for a client of the other. It completes a parked read, or
//! joins the queue of the file to which its flow belongs. Nothing stands between the two, so datagrams keep the order of the writes.
//! A datagram for which the reader's queue has no room is dropped and counted on the reader's tunnel, as on a wire. The writer does
//! not learn of it.
//!
//! Invariant: if tunnel A has tunnel B as its peer, then B has A. Both are alive and of one mode, and neither keeps anything for the
//! harness to take.

use super::{CommandError, Core, Interface, Mode, Output, PeerId, TunnelId, to_client::Sender};

/// What stands at the far side of a tunnel, if it is not the harness alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Another tunnel.
    Tunnel(TunnelId),
    /// Something outside of the core: it is notified, and takes.
    Outside(PeerId),
}

impl Core {
    /// Makes two tunnels each other's peer. What their clients wrote before and nobody took goes across first.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownTunnel`], [`CommandError::Gone`], [`CommandError::SameTunnel`], [`CommandError::HasPeer`],
    /// [`CommandError::ModesDiffer`].
    pub(super) fn join(&mut self, left: TunnelId, right: TunnelId) -> Result<(), CommandError> {
        let (first, second) = (self.tunnel_or_unknown(left)?, self.tunnel_or_unknown(right)?);
        for tunnel in [first, second] {
            if tunnel.gone {
                return Err(CommandError::Gone(tunnel.name));
            }
        }
        if left == right {
            return Err(CommandError::SameTunnel(first.name));
        }
        for tunnel in [first, second] {
            if tunnel.peer.is_some() || tunnel.interface == Interface::Bridge {
                return Err(CommandError::HasPeer(tunnel.name));
            }
        }
        match (first.mode, second.mode) {
            (Mode::Tun, Mode::Tun) | (Mode::Tap, Mode::Tap) => {}
            (Mode::Tun, Mode::Tap) => {
                return Err(CommandError::ModesDiffer { tun: first.name, tap: second.name });
            }
            (Mode::Tap, Mode::Tun) => {
                return Err(CommandError::ModesDiffer { tun: second.name, tap: first.name });
            }
        }
        for (from, to) in [(left, right), (right, left)] {
            if let Some(tunnel) = self.tunnels.get_mut(&from) {
                tunnel.peer = Some(Peer::Tunnel(to));
                tunnel.last_writer = None;
            }
            self.send_across(from, to);
        }
        Ok(())
    }

    /// Takes a tunnel's peer away; what clients write is the harness's again. A peer outside of the core is returned
    /// instead, for whoever asks to end it and then [`clear_peer`](Self::clear_peer).
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownTunnel`], [`CommandError::NoPeer`].
    pub(super) fn part(&mut self, of: TunnelId) -> Result<Option<PeerId>, CommandError> {
        let tunnel = self.tunnel_or_unknown(of)?;
        match tunnel.peer.ok_or(CommandError::NoPeer(tunnel.name))? {
            Peer::Outside(peer) => Ok(Some(peer)),
            Peer::Tunnel(other) => {
                self.leave_alone(of);
                self.leave_alone(other);
                Ok(None)
            }
        }
    }

    /// A tunnel was deleted: one that it was joined to is left alone, a peer outside is to look.
    pub(super) fn tell_peer_of_end(&mut self, of: TunnelId) {
        match self.tunnels.get(&of).and_then(|tunnel| tunnel.peer) {
            None => {}
            Some(Peer::Outside(peer)) => self.outputs.push(Output::Notify(peer)),
            Some(Peer::Tunnel(other)) => {
                self.leave_alone(of);
                self.leave_alone(other);
            }
        }
    }

    /// What clients of a tunnel wrote and nobody took goes across to another.
    pub(super) fn send_across(&mut self, from: TunnelId, to: TunnelId) {
        while let Some(datagram) = self.take(from) {
            // What is refused has been counted where it was noticed.
            let _counted = self.send_to_client(to, datagram, Sender::Peer);
        }
    }

    fn leave_alone(&mut self, id: TunnelId) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.peer = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use crate::{
        abi::tun::{self, POLL_READABLE},
        errno::Errno,
        machine::rig::{Rig, bytes_read, flags::*},
        *,
    };

    const PERSIST: u32 = tun::ioctl::TUNSETPERSIST;

    fn numbered(number: u16) -> Vec<u8> {
        let [high, low] = number.to_be_bytes();
        vec![0x45, high, low]
    }

    /// Two clients whose tunnels have one name in two scopes and different headers, and are joined.
    fn joined(rig: &mut Rig) -> [(FileId, TunnelId); 2] {
        let ends = [(1, TUN_NO_PI), (2, TUN)].map(|(scope, flags)| {
            let file = rig.open_in(Scope(scope));
            rig.set_iff(file, "tun0", flags).unwrap();
            (file, rig.core.file(file).unwrap().tunnel().unwrap())
        });
        rig.join(ends[0].1, ends[1].1).unwrap();
        ends
    }

    #[test]
    fn what_one_writes_the_other_reads_in_order_and_with_its_own_headers() {
        let mut rig = Rig::new();
        let [(left, left_tunnel), (right, right_tunnel)] = joined(&mut rig);
        let parked = rig.read_later(right, 100);
        rig.poll(left, Some(WakeHandle(1)));
        for number in 0..3 {
            assert_eq!(rig.write(left, &numbered(number)), Ok(3));
            assert_eq!(rig.write(right, &[&[0, 0, 8, 0], &numbered(number)[..]].concat()), Ok(7));
        }
        let with_pi = |number| Ok([&[0, 0, 8, 0], &numbered(number)[..]].concat());
        assert_eq!(rig.outcome(parked).map(bytes_read), Some(with_pi(0)), "a blocked read gets it");
        assert_eq!((rig.read(right, 100), rig.read(right, 100)), (with_pi(1), with_pi(2)));
        assert_eq!((rig.wakes, rig.poll(left, None) & POLL_READABLE), (3, POLL_READABLE));
        for number in 0..3 {
            assert_eq!(rig.read(left, 100), Ok(numbered(number)));
        }
        assert_eq!(rig.read(left, 100), Err(Errno::EAGAIN), "nothing else came");
        for tunnel in [left_tunnel, right_tunnel] {
            let counters = rig.core.tunnel(tunnel).unwrap().counters();
            assert_eq!((counters.to_client.datagrams, counters.from_client.datagrams), (3, 3));
            assert_eq!(rig.take(tunnel), None, "the harness gets nothing");
        }
        rig.inject(left_tunnel, &numbered(9)).unwrap();
        assert_eq!(rig.read(left, 100), Ok(numbered(9)), "it may inject all the same");
    }

    #[test]
    fn what_was_written_before_goes_across_first() {
        let mut rig = Rig::new();
        let (left, left_tunnel) = rig.attached("a", TUN_NO_PI);
        let (right, right_tunnel) = rig.attached("b", TUN_NO_PI);
        for number in 0..3 {
            rig.write(left, &numbered(number)).unwrap();
        }
        rig.join(right_tunnel, left_tunnel).unwrap();
        rig.write(left, &numbered(3)).unwrap();
        for number in 0..4 {
            assert_eq!(rig.read(right, 100), Ok(numbered(number)));
        }
        assert!(rig.core.tunnel(left_tunnel).unwrap().written().is_empty());
    }

    #[test]
    fn each_gets_the_offloads_it_accepts_and_the_rest_done() {
        let mut rig = Rig::new();
        let (writer, one) = rig.attached("one", TUN_NO_PI | VNET_HDR);
        let (reader, two) = rig.attached("two", TUN_NO_PI | VNET_HDR);
        rig.join(one, two).unwrap();
        let mut tcp = vec![0x45, 0, 1, 34, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        tcp.extend([0; 12]);
        tcp.extend([5 << 4, 0x18, 0, 0, 0, 0, 0, 0]);
        tcp.resize(40 + 250, 7);
        // NEEDS_CSUM, TCPV4, no hint, segments of 100 bytes, a checksum in the TCP header.
        let vnet = [1, 1, 0, 0, 100, 0, 20, 0, 16, 0];
        let whole = [&vnet, &tcp[..]].concat();
        rig.write(writer, &whole).unwrap();
        for length in [140, 140, 90] {
            let read = rig.read(reader, 1_000).unwrap();
            assert_eq!((&read[..10], read.len()), (&[0; 10][..], 10 + length));
        }
        let tso = (tun::Offload::CSUM | tun::Offload::TSO4).bits();
        rig.ioctl(reader, tun::ioctl::TUNSETOFFLOAD, tso, &[]).unwrap();
        rig.write(writer, &whole).unwrap();
        assert_eq!(rig.read(reader, 1_000).unwrap()[10..], tcp, "untouched");
        let counters = rig.core.tunnel(two).unwrap().counters();
        assert_eq!(counters.to_client.datagrams, 4);
    }

    #[test]
    fn a_full_queue_and_a_reader_who_is_away_drop_and_count() {
        let mut rig = Rig::new();
        let [(left, _), (right, tunnel)] = joined(&mut rig);
        rig.handle(input::Observe { on: true });
        let lost = |rig: &Rig| rig.core.tunnel(tunnel).unwrap().counters().to_client_dropped;
        for number in 0..502 {
            assert_eq!(rig.write(left, &numbered(number)), Ok(3), "the writer is not told");
        }
        assert_eq!(lost(&rig), Count { datagrams: 2, bytes: 6 });
        let mut reasons = Vec::new();
        for event in &rig.events {
            if let Event::Dropped { tunnel: at, reason, .. } = event {
                reasons.push((*at, reason.word()));
            }
        }
        assert_eq!(reasons, [(tunnel, "queue-full"); 2]);

        rig.set_link(tunnel, false);
        rig.write(left, &numbered(502)).unwrap();
        assert_eq!(lost(&rig).datagrams, 3, "down");
        rig.set_link(tunnel, true);
        rig.write(left, &[0x45; 65_554]).unwrap();
        assert_eq!(lost(&rig).datagrams, 4, "longer than any datagram");
        assert_eq!(
            rig.write(right, &[0, 0, 8, 0]),
            Ok(4),
            "a PI header alone is an empty datagram"
        );
        assert_eq!(rig.read(left, 100), Err(Errno::EAGAIN), "a read of 0 bytes would be an end");
        // The kernel splits no write that a datagram fits into; what it splits has been refused.
        assert_eq!(rig.write_part(left, &[1], 65_554), Ok(1));
        for number in 0..500 {
            assert_eq!(rig.read(right, 3), Err(Errno::EINVAL), "{number}: no room for PI");
        }
        let parked = rig.read_later(right, 3);
        rig.write(left, &numbered(0)).unwrap();
        assert_eq!(rig.outcome(parked), Some(Err(Errno::EINVAL)));
        assert_eq!(lost(&rig).datagrams, 4 + 501, "read too short");

        rig.ioctl(right, PERSIST, 1, &[]).unwrap();
        rig.close(right);
        rig.write(left, &numbered(1)).unwrap();
        assert_eq!(lost(&rig).datagrams, 506, "open nowhere");
        let again = rig.open_in(Scope(2));
        rig.set_iff(again, "tun0", TUN).unwrap();
        rig.write(left, &numbered(2)).unwrap();
        assert_eq!(rig.read(again, 100).unwrap()[4..], numbered(2), "it is the same tunnel");
    }

    #[test]
    fn carrier_filters_and_queues_are_the_readers() {
        let mut rig = Rig::new();
        let (writer, one) = rig.attached("one", TAP_NO_PI);
        let (first, two) = rig.attached("two", TAP_NO_PI | MULTI_QUEUE);
        let (second, _) = rig.attached("two", TAP_NO_PI | MULTI_QUEUE);
        rig.join(one, two).unwrap();
        let lost = |rig: &Rig| rig.core.tunnel(two).unwrap().counters().to_client_dropped.datagrams;
        let carrier = |on| Settings { carrier: Some(on), ..Settings::default() };
        // IPv4 from a host to another.
        let frame = |from: u8, to: u8| {
            let mut frame = [[2, 0, 0, 0, 0, to], [2, 0, 0, 0, 0, from]].concat();
            frame.extend([8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 1, 0, 0]);
            frame.extend([10, 0, 0, from, 10, 0, 0, to]);
            frame
        };

        for file in [first, second, first] {
            for host in 0..8 {
                rig.write(file, &frame(host, 200)).unwrap();
                assert_eq!(rig.read(writer, 100), Ok(frame(host, 200)));
                rig.write(writer, &frame(200, host)).unwrap();
                assert_eq!(rig.read(file, 100), Ok(frame(200, host)), "where its flow was written");
            }
        }
        for file in [first, second] {
            rig.set_queue(file, 0x400).unwrap();
        }
        assert_eq!(rig.write(writer, &frame(200, 1)), Ok(34), "the writer is not told");
        assert_eq!(lost(&rig), 1, "no queue");
        rig.set_queue(first, 0x200).unwrap();

        rig.configure(two, &carrier(false)).unwrap();
        rig.write(writer, &frame(200, 1)).unwrap();
        assert_eq!(lost(&rig), 2, "no carrier");
        rig.write(first, &frame(1, 200)).unwrap();
        assert_eq!(rig.read(writer, 100), Ok(frame(1, 200)), "it may write all the same");
        rig.configure(two, &carrier(true)).unwrap();

        let only = [&[0, 0, 1, 0][..], &[2, 0, 0, 0, 0, 1]].concat();
        rig.ioctl_by(first, tun::ioctl::TUNSETTXFILTER, 0x1000, &only, None).unwrap();
        rig.write(writer, &frame(200, 2)).unwrap();
        assert_eq!(lost(&rig), 3, "filtered");
        rig.write(writer, &frame(200, 1)).unwrap();
        assert_eq!(rig.read(first, 100), Ok(frame(200, 1)));
        assert_eq!(rig.read(first, 100), Err(Errno::EAGAIN), "nothing else came");
    }

    #[test]
    fn a_join_outlives_a_name_but_not_a_deletion() {
        let mut rig = Rig::new();
        let [(left, left_tunnel), (right, right_tunnel)] = joined(&mut rig);
        let name = Some(tun::Name::new(b"other"));
        rig.configure(right_tunnel, &Settings { name, ..Settings::default() }).unwrap();
        rig.write(left, &numbered(1)).unwrap();
        assert_eq!(rig.read(right, 100).unwrap()[4..], numbered(1));

        let parked = rig.read_later(right, 100);
        rig.wait(1, Condition::Take(left_tunnel, 1), 100).unwrap();
        rig.delete(right_tunnel);
        assert_eq!(rig.outcome(parked), Some(Err(Errno::EFAULT)));
        assert!(rig.core.tunnel(right_tunnel).is_none(), "nothing of it is left to take");
        assert_eq!(rig.core.tunnel(left_tunnel).unwrap().peer(), None);
        rig.write(left, &numbered(2)).unwrap();
        assert!(matches!(rig.answer(1), Some(Answer::Taken(_))), "the harness's again");
    }

    #[test]
    fn a_join_ends_with_either_tunnel_and_does_not_come_again() {
        for close_left in [true, false] {
            let mut rig = Rig::new();
            let mut ends = joined(&mut rig);
            if !close_left {
                ends.reverse();
            }
            let [(file, tunnel), (rest, rest_tunnel)] = ends;
            rig.wait(1, Condition::Take(rest_tunnel, 1), 100).unwrap();
            rig.close(file);
            assert!(rig.core.tunnel(tunnel).is_none(), "nothing of it is left to take");
            assert_eq!(rig.core.tunnel(rest_tunnel).unwrap().peer(), None);
            rig.write(rest, &[0x45, 0, 0x45, 0, 0x45]).unwrap();
            assert!(matches!(rig.answer(1), Some(Answer::Taken(_))), "the harness's again");

            let again = rig.open_in(Scope(if close_left { 1 } else { 2 }));
            rig.set_iff(again, "tun0", TUN_NO_PI).unwrap();
            rig.write(rest, &[0x45, 0, 0x45, 0, 0x45]).unwrap();
            assert_eq!(rig.read(again, 100), Err(Errno::EAGAIN));
        }
    }

    #[test]
    fn parting_either_leaves_both_alone() {
        for part_left in [true, false] {
            let mut rig = Rig::new();
            let [(left, left_tunnel), (_, right_tunnel)] = joined(&mut rig);
            let parted = if part_left { left_tunnel } else { right_tunnel };
            assert_eq!(rig.handle(input::Part { tunnel: parted.into() }), Ok(None));
            rig.write(left, &numbered(1)).unwrap();
            assert_eq!(rig.take(left_tunnel), Some(numbered(1)));
            for tunnel in [left_tunnel, right_tunnel] {
                let name = *rig.core.tunnel(tunnel).unwrap().name();
                assert_eq!(
                    rig.handle(input::Part { tunnel: tunnel.into() }),
                    Err(CommandError::NoPeer(name))
                );
            }
            rig.join(right_tunnel, left_tunnel).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_joined_is_refused() {
        let mut rig = Rig::new();
        let (_, one) = rig.attached("one", TUN_NO_PI);
        let (_, two) = rig.attached("two", TUN_NO_PI);
        let (_, tap) = rig.attached("tap", TAP_NO_PI);
        let (_, three) = rig.attached("three", TUN_NO_PI);
        let (file, gone) = rig.attached("gone", TUN_NO_PI);
        rig.write(file, &numbered(1)).unwrap();
        rig.close(file);
        let name = |name: &str| tun::Name::new(name.as_bytes());
        let unknown = TunnelId(99);
        let differ = || Err(CommandError::ModesDiffer { tun: name("one"), tap: name("tap") });
        rig.set_peer(three, PeerId(1)).unwrap();
        for (left, right, wanted) in [
            (one, one, Err(CommandError::SameTunnel(name("one")))),
            (one, unknown, Err(CommandError::UnknownTunnel(Address::Id(unknown)))),
            (one, tap, differ()),
            (tap, one, differ()),
            (gone, one, Err(CommandError::Gone(name("gone")))),
            (one, three, Err(CommandError::HasPeer(name("three")))),
            (one, two, Ok(())),
            (two, one, Err(CommandError::HasPeer(name("two")))),
            (tap, two, Err(CommandError::HasPeer(name("two")))),
        ] {
            assert_eq!(rig.join(left, right), wanted, "{left:?} {right:?}");
        }
        assert_eq!(rig.set_peer(one, PeerId(2)), Err(CommandError::HasPeer(name("one"))));
        assert_eq!(
            rig.handle(input::Part { tunnel: three.into() }),
            Ok(Some(PeerId(1))),
            "one outside is to be told"
        );
        assert!(rig.core.tunnel(three).unwrap().peer().is_some(), "and leaves by itself");
        assert_eq!(rig.take(gone), Some(numbered(1)), "untouched");
    }

    #[test]
    fn tunnels_are_waited_for_until_all_exist() {
        let mut rig = Rig::new();
        let address = |name: &str| Address::Name(tun::Name::new(name.as_bytes()));
        let both = || Condition::Exist(vec![address("a"), address("b")]);
        rig.wait(1, both(), 100).unwrap();
        let (first, _) = rig.attached("a", TUN_NO_PI);
        rig.close(first);
        let _b = rig.attached("b", TUN_NO_PI);
        assert_eq!(rig.answer(1), None, "not at the same time");
        let _a = rig.attached("a", TUN_NO_PI);
        assert_eq!(rig.answer(1), Some(Answer::Met(None)));
        rig.wait(2, Condition::Exist(vec![address("c")]), 100).unwrap();
        rig.pass_until(100);
        assert_eq!(rig.answer(2), Some(Answer::TimedOut(0)));
        let other = rig.open_in(Scope(2));
        rig.set_iff(other, "a", TUN_NO_PI).unwrap();
        assert!(matches!(rig.wait(3, both(), 100), Err(CommandError::AmbiguousTunnel { .. })));
    }
}
