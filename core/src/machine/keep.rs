//! Taking in two steps: a harness gets datagrams that stay in the tunnel, and drops them when it has stored them.
//!
//! # Theory of operation
//!
//! A harness can lose what it has taken: on a full disk, in a closed pipe, by a signal. So it can take a datagram and keep it. The
//! datagram stays in the tunnel's queue, reserved for its keeper, under a number that no other datagram ever has. No other taker gets
//! it meanwhile. The keeper drops it by that number. If the keeper ends first, the datagram goes back to its place as the oldest.
//!
//! A reserved datagram counts towards the limits of its queue, and keeps a deleted tunnel.

use alloc::vec::Vec;

use super::{Core, Datagram, Output, Peer, TunnelId, queue::Holder};

/// Whoever takes and keeps, as the hub numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct Keeper(pub u64);

impl Core {
    /// Drops datagrams that a keeper was given, and returns how many. What is not there, or another's, is passed over, so that
    /// it can be said twice.
    pub(super) fn drop_kept(&mut self, by: Keeper, numbers: &[u64]) -> usize {
        let mut dropped = 0;
        let mut ended = Vec::new();
        for id in self.tunnels.which(|tunnel| tunnel.written.has_reserved()) {
            let Some(tunnel) = self.tunnels.get_mut(&id) else { continue };
            let removed = numbers
                .iter()
                .filter(|number| tunnel.written.remove_reserved(by, **number))
                .count();
            if removed > 0 && tunnel.gone {
                ended.push(tunnel.id);
            }
            dropped += removed;
        }
        for tunnel in ended {
            self.end_if_spent_and_tell(tunnel);
        }
        dropped
    }

    /// A peer waits for the end of a tunnel that is gone.
    pub(super) fn end_if_spent_and_tell(&mut self, id: TunnelId) {
        let peer = self.end_if_spent(id).and_then(|tunnel| tunnel.peer);
        if let Some(Peer::Outside(peer)) = peer {
            self.outputs.push(Output::Notify(peer));
        }
    }

    /// A keeper has ended: what it has not dropped can be taken again.
    pub(super) fn release_kept(&mut self, by: Keeper) {
        let mut released = Vec::new();
        for id in self.tunnels.which(|tunnel| tunnel.written.has_reserved()) {
            if let Some(tunnel) = self.tunnels.get_mut(&id)
                && tunnel.written.release(by)
            {
                released.push((tunnel.id, tunnel.peer));
            }
        }
        for (tunnel, peer) in released {
            match peer {
                None => {}
                Some(Peer::Outside(peer)) => self.outputs.push(Output::Notify(peer)),
                Some(Peer::Tunnel(other)) => self.send_across(tunnel, other),
            }
        }
    }

    /// Gives somebody the oldest datagram that nobody keeps.
    pub(super) fn keep(&mut self, from: TunnelId, by: Keeper) -> Option<(u64, Datagram)> {
        self.tunnels.get_mut(&from)?.written.reserve(Holder::Keeper(by), &mut self.last_kept)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::{
        Address, Answer, Condition, FileId, PeerId, input,
        machine::rig::{Rig, flags::TUN_NO_PI},
    };

    const LEFT: Keeper = Keeper(1);
    const RIGHT: Keeper = Keeper(2);

    fn written(rig: &mut Rig, datagrams: &[u8]) -> (FileId, TunnelId) {
        let (file, tunnel) = rig.attached("", TUN_NO_PI);
        for byte in datagrams {
            assert_eq!(rig.write(file, &[0x45, *byte]), Ok(2));
        }
        (file, tunnel)
    }

    /// What a keeper is given at once: numbers and second bytes.
    fn keep(rig: &mut Rig, tunnel: TunnelId, count: usize, by: Keeper) -> Vec<(u64, u8)> {
        let wait = 1_000 + by.0;
        rig.wait(wait, Condition::Keep(tunnel, count, by), 0).unwrap();
        match rig.answer(wait) {
            Some(Answer::Kept(kept)) => {
                kept.into_iter().map(|(number, datagram)| (number, datagram.payload[1])).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn release(rig: &mut Rig, by: Keeper) {
        rig.handle(input::ReleaseKept { keeper: by });
    }

    #[test]
    fn two_keepers_never_get_the_same() {
        let mut rig = Rig::new();
        let (file, tunnel) = written(&mut rig, &[1, 2, 3]);
        assert_eq!(keep(&mut rig, tunnel, 1, LEFT), [(1, 1)]);
        assert_eq!(keep(&mut rig, tunnel, 1, RIGHT), [(2, 2)]);
        assert_eq!(rig.take(tunnel), Some(vec![0x45, 3]), "one who takes at once gets the next");
        rig.wait(1, Condition::Keep(tunnel, 1, RIGHT), 100).unwrap();
        rig.wait(2, Condition::Written(Address::Id(tunnel)), 100).unwrap();
        rig.pass_until(50);
        assert_eq!((rig.answer(1), rig.answer(2)), (None, None), "kept ones are nobody else's");
        assert_eq!(
            rig.handle(input::DropKept { keeper: LEFT, numbers: vec![2] }),
            0,
            "nor theirs to drop"
        );
        assert_eq!(rig.handle(input::DropKept { keeper: LEFT, numbers: vec![1, 99] }), 1);
        assert_eq!(rig.handle(input::DropKept { keeper: LEFT, numbers: vec![1] }), 0, "said twice");
        rig.pass_until(100);
        assert_eq!(rig.answer(1), Some(Answer::TimedOut(0)));
        release(&mut rig, LEFT);
        assert_eq!(rig.take(tunnel), None);
        release(&mut rig, RIGHT);
        assert_eq!(rig.take(tunnel), Some(vec![0x45, 2]));
        rig.write(file, &[0x45, 4]).unwrap();
        assert_eq!(rig.take(tunnel), Some(vec![0x45, 4]));
    }

    #[test]
    fn what_is_given_back_comes_in_order_and_first() {
        let mut rig = Rig::new();
        let (_, tunnel) = written(&mut rig, &[1, 2, 3, 4]);
        keep(&mut rig, tunnel, 1, LEFT);
        keep(&mut rig, tunnel, 1, RIGHT);
        keep(&mut rig, tunnel, 1, LEFT);
        rig.wait(1, Condition::Take(tunnel, 3), 100).unwrap();
        assert_eq!(rig.answer(1), None);
        release(&mut rig, LEFT);
        let Some(Answer::Taken(taken)) = rig.answer(1) else { panic!("the wait is answered") };
        assert_eq!(taken.iter().map(|datagram| datagram.payload[1]).collect::<Vec<_>>(), [1, 3, 4]);
        release(&mut rig, RIGHT);
        assert_eq!(keep(&mut rig, tunnel, 1, LEFT), [(2, 2)], "under its number");
    }

    #[test]
    fn deleted_tunnel_stays_until_all_is_dropped() {
        let mut rig = Rig::new();
        let (file, tunnel) = written(&mut rig, &[1, 2]);
        assert_eq!(keep(&mut rig, tunnel, 2, LEFT), [(1, 1), (2, 2)]);
        rig.close(file);
        assert_eq!(rig.handle(input::DropKept { keeper: LEFT, numbers: vec![1] }), 1);
        assert!(rig.core.tunnel(tunnel).is_some());
        rig.set_peer(tunnel, PeerId(7)).unwrap();
        assert_eq!(rig.handle(input::DropKept { keeper: LEFT, numbers: vec![2] }), 1);
        assert!(rig.core.tunnel(tunnel).is_none());
        assert_eq!(rig.notified, 1, "its peer hears of the end");
        assert_eq!(
            rig.handle(input::DropKept { keeper: LEFT, numbers: vec![1, 2] }),
            0,
            "of a tunnel that is gone"
        );
    }

    #[test]
    fn a_peer_gets_what_is_given_back() {
        let mut rig = Rig::new();
        let (_, tunnel) = written(&mut rig, &[1]);
        keep(&mut rig, tunnel, 1, LEFT);
        rig.set_peer(tunnel, PeerId(7)).unwrap();
        assert_eq!(rig.notified, 0, "there is nothing for it");
        release(&mut rig, LEFT);
        assert_eq!((rig.notified, rig.take(tunnel)), (1, Some(vec![0x45, 1])));

        let (_, left) = written(&mut rig, &[2]);
        let (reader, right) = rig.attached("u", TUN_NO_PI);
        keep(&mut rig, left, 1, LEFT);
        rig.join(left, right).unwrap();
        release(&mut rig, LEFT);
        assert_eq!(rig.read(reader, 9), Ok(vec![0x45, 2]));
    }
}
