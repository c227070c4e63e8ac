//! Several queues on one tunnel, and tunnels that are deleted under them.

use alloc::{borrow::ToOwned, vec, vec::Vec};

use super::{ioctls::flags_of, *};

const NAPI: u16 = 0x10;
const NO_CARRIER: u16 = 0x40;

/// A datagram from a host to another, so that each pair is a flow.
fn datagram(from: u8, to: u8) -> [u8; 20] {
    let mut datagram = [0; 20];
    datagram[0] = 0x45;
    datagram[15] = from;
    datagram[19] = to;
    datagram
}

#[test]
fn outcomes_of_tunsetqueue_come_in_order() {
    let mut rig = Rig::new();
    let unattached = rig.open();
    let (single, _) = rig.attached("s", TUN_NO_PI);
    for file in [unattached, single] {
        for flags in [0, ATTACH_QUEUE, DETACH_QUEUE] {
            assert_eq!(rig.set_queue(file, flags), Err(Errno::EINVAL), "{flags:#x}");
        }
    }
    let (file, tunnel) = rig.attached("m", MQ);
    assert_eq!(rig.set_queue(file, 0), Err(Errno::EINVAL));
    assert_eq!(rig.set_queue(file, ATTACH_QUEUE), Err(Errno::EINVAL), "it is not detached");
    assert_eq!(rig.set_queue(file, ATTACH_QUEUE | DETACH_QUEUE), Err(Errno::EINVAL), "attach wins");
    assert_eq!(rig.set_queue(file, DETACH_QUEUE), Ok(()));
    assert_eq!(rig.set_queue(file, DETACH_QUEUE), Err(Errno::EINVAL), "twice");
    assert_eq!(flags_of(&mut rig, file), Ok(0x1501));
    assert_eq!(rig.set_iff(file, "n", MQ), Err(Errno::EEXIST), "attached all the same");
    assert_eq!(rig.set_queue(file, ATTACH_QUEUE | DETACH_QUEUE), Ok(()), "attach wins");
    assert_eq!(flags_of(&mut rig, file), Ok(0x1101));
    rig.set_queue(file, DETACH_QUEUE).unwrap();
    rig.delete(tunnel);
    for flags in [ATTACH_QUEUE, DETACH_QUEUE] {
        assert_eq!(rig.set_queue(file, flags), Err(Errno::EINVAL), "never EBADFD");
    }
}

#[test]
fn a_detached_queue_gets_nothing_but_can_write() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("m", MQ);
    rig.inject(tunnel, IP).unwrap();
    rig.set_queue(file, DETACH_QUEUE).unwrap();
    assert_eq!(rig.read(file, 100), Err(Errno::EAGAIN), "its datagrams are lost");
    assert!(matches!(rig.inject(tunnel, IP), Err(CommandError::NoQueue(_))));
    assert_eq!(rig.poll(file, Some(WakeHandle(1))), POLL_WRITABLE);
    assert_eq!(rig.write(file, IP), Ok(IP.len()));
    assert_eq!(rig.take(tunnel), Some(IP.to_vec()));
    rig.set_link(tunnel, false);
    rig.set_link(tunnel, true);
    assert_eq!(rig.wakes, 0, "NETDEV_UP leaves it out");

    let blocked = rig.read_later(file, 100);
    rig.set_queue(file, ATTACH_QUEUE).unwrap();
    assert_eq!(rig.inject(tunnel, IP), Ok(Delivery::Read));
    assert_eq!(rig.outcome(blocked).map(bytes_read), Some(Ok(IP.to_vec())));
    rig.set_queue(file, DETACH_QUEUE).unwrap();
    assert!(rig.core.tunnel(tunnel).unwrap().has_carrier());
    rig.close(file);
    assert!(rig.core.tunnel(tunnel).is_none(), "its last file, detached or not");
}

#[test]
fn a_detached_queue_of_a_napi_tunnel_cannot_write() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("m", MQ | NAPI);
    assert_eq!(rig.write(file, IP), Ok(IP.len()));
    rig.set_queue(file, DETACH_QUEUE).unwrap();
    assert_eq!(rig.write(file, IP), Err(Errno::EBUSY));
    rig.set_link(tunnel, false);
    assert_eq!(rig.write(file, IP), Err(Errno::EIO), "down comes first");
}

#[test]
fn detached_queues_count_among_the_256() {
    let mut rig = Rig::new();
    let mut files = Vec::new();
    for number in 0..256 {
        let (file, _) = rig.attached("m", MQ);
        if number % 2 == 1 {
            rig.set_queue(file, DETACH_QUEUE).unwrap();
        }
        files.push(file);
    }
    let more = rig.open();
    assert_eq!(rig.set_iff(more, "m", MQ), Err(Errno::E2BIG));
    rig.set_queue(files[1], ATTACH_QUEUE).unwrap();
    rig.close(files[3]);
    assert_eq!(rig.set_iff(more, "m", MQ), Ok("m".to_owned()));
}

#[test]
fn a_flow_goes_to_the_queue_that_wrote_it_last() {
    let mut rig = Rig::new();
    let (first, tunnel) = rig.attached("m", MQ);
    let (second, _) = rig.attached("m", MQ);
    for file in [first, second, first] {
        for host in 0..16 {
            rig.write(file, &datagram(host, 200)).unwrap();
            rig.inject(tunnel, &datagram(200, host)).unwrap();
            assert_eq!(rig.read(file, 100), Ok(datagram(200, host).to_vec()), "and back");
        }
    }
    // A detached queue learns nothing; with one queue there is nothing to learn.
    rig.set_queue(second, DETACH_QUEUE).unwrap();
    rig.write(second, &datagram(1, 200)).unwrap();
    rig.set_queue(second, ATTACH_QUEUE).unwrap();
    rig.inject(tunnel, &datagram(200, 1)).unwrap();
    assert_eq!(rig.read(first, 100), Ok(datagram(200, 1).to_vec()));
}

#[test]
fn the_last_queue_takes_the_place_of_one_that_leaves() {
    let mut rig = Rig::new();
    let (first, tunnel) = rig.attached("m", MQ);
    let (second, _) = rig.attached("m", MQ);
    let (third, _) = rig.attached("m", MQ);
    rig.write(first, &datagram(1, 200)).unwrap();
    rig.write(third, &datagram(3, 200)).unwrap();
    rig.close(first);
    let order: Vec<FileId> = rig.core.tunnel(tunnel).unwrap().files().collect();
    assert_eq!(order, [third, second]);
    rig.inject(tunnel, &datagram(200, 1)).unwrap();
    assert_eq!(rig.read(third, 100), Ok(datagram(200, 1).to_vec()), "that of the first");
    rig.inject(tunnel, &datagram(200, 3)).unwrap();
    assert_eq!(rig.read(third, 100), Ok(datagram(200, 3).to_vec()), "none has its number");
}

/// How many of 40 flows go to each file.
fn spread(rig: &mut Rig, tunnel: TunnelId, files: &[FileId]) -> Vec<usize> {
    for host in 0..40 {
        rig.inject(tunnel, &datagram(200, host)).unwrap();
    }
    let mut counts = Vec::new();
    for file in files {
        counts.push((0..40).take_while(|_| rig.read(*file, 100).is_ok()).count());
    }
    counts
}

#[test]
fn flows_of_a_queue_that_leaves_go_to_the_first_until_the_next_one_leaves() {
    let mut rig = Rig::new();
    let (first, tunnel) = rig.attached("m", MQ);
    let rest = [(); 3].map(|()| rig.attached("m", MQ).0);
    let files = [first, rest[0], rest[1], rest[2]];
    let by_hash = spread(&mut rig, tunnel, &files);
    assert!(by_hash.iter().all(|count| *count > 0), "{by_hash:?}");
    for host in 0..40 {
        rig.write(files[3], &datagram(host, 200)).unwrap();
    }
    // Measured on Linux 6.18, up to the hash.
    assert_eq!(spread(&mut rig, tunnel, &files), [0, 0, 0, 40]);
    rig.set_queue(files[3], DETACH_QUEUE).unwrap();
    assert_eq!(spread(&mut rig, tunnel, &files), [40, 0, 0, 0]);
    rig.set_queue(files[2], DETACH_QUEUE).unwrap();
    let of_two = spread(&mut rig, tunnel, &files);
    assert!(of_two[0] > 0 && of_two[1] > 0 && of_two[0] + of_two[1] == 40, "{of_two:?}");
    rig.set_queue(files[2], ATTACH_QUEUE).unwrap();
    rig.set_queue(files[3], ATTACH_QUEUE).unwrap();
    assert_eq!(spread(&mut rig, tunnel, &files), by_hash, "the flows are forgotten");
}

#[test]
fn one_queue_learns_no_flows() {
    let mut rig = Rig::new();
    let (first, tunnel) = rig.attached("m", MQ);
    for host in 0..40 {
        rig.write(first, &datagram(host, 200)).unwrap();
    }
    let (second, _) = rig.attached("m", MQ);
    let counts = spread(&mut rig, tunnel, &[first, second]);
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[test]
fn what_further_queues_ask_for_is_ignored() {
    let mut rig = Rig::new();
    let (first, tunnel) = rig.attached("m", MQ | VNET_HDR);
    rig.set_queue(first, DETACH_QUEUE).unwrap();
    let (second, _) = rig.attached("m", TUN | MULTI_QUEUE | NO_CARRIER);
    assert_eq!(flags_of(&mut rig, second), Ok(0x5101), "even if the others are detached");
    assert!(rig.core.tunnel(tunnel).unwrap().has_carrier());
    rig.ioctl(first, TUNSETPERSIST, 1, &[]).unwrap();
    rig.close(first);
    rig.close(second);
    assert!(!rig.core.tunnel(tunnel).unwrap().has_carrier(), "nobody is there");
    let (first, _) = rig.attached("m", TUN | MULTI_QUEUE | NO_CARRIER);
    assert_eq!(flags_of(&mut rig, first), Ok(0x1901));
    assert!(!rig.core.tunnel(tunnel).unwrap().has_carrier());
    let (second, _) = rig.attached("m", MQ);
    assert!(!rig.core.tunnel(tunnel).unwrap().has_carrier(), "nor does a second queue change it");
    assert_eq!(rig.write(second, &[0, 0, 8, 0, 0x45]), Ok(5), "writes succeed");
    assert!(matches!(rig.inject(tunnel, IP), Err(CommandError::NoCarrier(_))));
}

#[test]
fn a_tun_that_is_also_asked_for_as_a_tap_is_found_as_either() {
    let mut rig = Rig::new();
    let (tap, _) = rig.attached("t", TAP | MULTI_QUEUE);
    let (both, _) = rig.attached("t", TUN | TAP | MULTI_QUEUE);
    assert_eq!(rig.core.file(both).unwrap().tunnel(), rig.core.file(tap).unwrap().tunnel());
}

#[test]
fn a_deleted_tunnel_leaves_its_files_unattached() {
    let mut rig = Rig::new();
    let (first, tunnel) = rig.attached("d", MQ);
    let (second, _) = rig.attached("d", MQ);
    rig.set_queue(second, DETACH_QUEUE).unwrap();
    rig.handle(input::Observe { on: true });
    rig.wait(1, Condition::Detached(Address::Id(tunnel)), 100).unwrap();
    rig.write(first, IP).unwrap();
    for file in [first, second] {
        assert_ne!(rig.poll(file, Some(WakeHandle(1))), POLL_ERROR);
    }
    let blocked = [first, first, second].map(|file| rig.read_later(file, 100));
    rig.delete(tunnel);
    assert_eq!(blocked.map(|read| rig.outcome(read)), [const { Some(Err(Errno::EFAULT)) }; 3]);
    assert_eq!(rig.wakes, 2);
    assert_eq!(rig.answer(1), Some(Answer::Met(None)));
    assert!(matches!(rig.events.last(), Some(Event::Deleted { .. })));
    for file in [first, second] {
        assert_eq!(rig.read(file, 100), Err(Errno::EBADFD));
        assert_eq!(rig.write(file, IP), Err(Errno::EBADFD));
        assert_eq!(rig.poll(file, None), POLL_ERROR);
        assert_eq!(flags_of(&mut rig, file), Err(Errno::EBADFD));
    }
    assert_eq!(rig.take(tunnel), Some(IP.to_vec()), "what was written can be taken");
    assert!(rig.handle(input::Delete { tunnel: tunnel.into() }).is_err());
    assert_eq!(rig.set_iff(first, "d", TAP_NO_PI), Ok("d".to_owned()), "the same file again");
    assert_eq!(rig.set_iff(second, "e", MQ), Ok("e".to_owned()));
    assert_eq!(flags_of(&mut rig, second), Ok(0x1101), "attached");
}

#[test]
fn a_persistent_tunnel_can_be_deleted_without_files() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("p", TUN);
    rig.ioctl(file, TUNSETPERSIST, 1, &[]).unwrap();
    rig.ioctl(file, TUNSETPERSIST, 1, &[]).unwrap();
    rig.close(file);
    rig.delete(tunnel);
    assert!(rig.core.tunnel(tunnel).is_none());
    assert!(matches!(
        rig.handle(input::Delete { tunnel: tunnel.into() }),
        Err(CommandError::UnknownTunnel(_))
    ));
}

#[test]
fn what_is_known_of_files_and_tunnels_follows_the_client() {
    let mut rig = Rig::new();
    let (file, id) = rig.attached("tap%d", TAP_NO_PI);
    rig.ioctl(file, TUNSETPERSIST, 1, &[]).unwrap();
    let known = rig.core.tunnel(id).unwrap();
    assert_eq!(
        (known.requested_name().as_bytes(), known.name().as_bytes()),
        (&b"tap%d"[..], &b"tap0"[..])
    );
    assert_eq!((known.scope(), known.is_persistent(), known.peer()), (Scope(1), true, None));
    assert_eq!((known.mode().word(), Mode::Tun.word()), ("tap", "tun"));
    let _read = rig.read_later(file, 100);
    rig.poll(file, Some(WakeHandle(1)));
    let open = rig.core.file(file).unwrap();
    assert_eq!((open.opener().pid, open.open_flags()), (7, 2));
    assert!(open.is_blocking() && open.is_poll_armed());
    rig.write(file, &[2; 20]).unwrap();
    assert_eq!(rig.core.tunnel(id).unwrap().written().len(), 1);
    rig.inject(id, &[2; 20]).unwrap();
    assert_eq!(rig.read(file, 100), Err(Errno::EAGAIN));
    assert!(!rig.core.file(file).unwrap().is_blocking(), "as of the last call");
}

#[test]
fn what_is_given_up_of_a_deleted_tunnel_is_told() {
    let mut rig = Rig::with_limits(Limits {
        gone_tunnels: Bound::unshared(1),
        tunnels: Bound::unshared(2),
        ..Limits::default()
    });
    rig.handle(input::Observe { on: true });
    for _ in 0..2 {
        let (file, tunnel) = rig.attached("t", TUN_NO_PI);
        rig.write(file, IP).unwrap();
        rig.delete(tunnel);
    }
    let lost = |event: &&Event| matches!(event, Event::Dropped { reason: DropReason::WriteBufferFull, length, .. } if *length == IP.len());
    assert_eq!(rig.events.iter().filter(lost).count(), 1, "only one is kept");
    rig.attached("t", TUN_NO_PI);
    let file = rig.open();
    assert_eq!(rig.set_iff(file, "u", TUN), Err(Errno::ENFILE), "of two, one is gone but kept");
}

#[test]
fn a_read_of_nothing_takes_nothing() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN_NO_PI);
    assert_eq!(rig.read(file, 0), Ok(vec![]), "there is nothing, but EAGAIN it is not");
    rig.inject(tunnel, IP).unwrap();
    assert_eq!(rig.read(file, 0), Ok(vec![]));
    assert_eq!(rig.read(file, 100), Ok(IP.to_vec()));
}
