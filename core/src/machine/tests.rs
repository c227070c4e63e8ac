//! The rules of the core, a scenario each. Sections are those of the behaviour of `drivers/net/tun.c`.

use alloc::{borrow::ToOwned, vec, vec::Vec};

mod ioctls;
mod memory;
mod permission;
mod queues;
mod settings;

use bytes::Bytes;

use super::{
    rig::{Rig, bytes_read, call, flags::*},
    *,
};
use crate::{
    abi::tun::{IfFlags, IfReq, Name, POLL_ERROR, POLL_READABLE, POLL_WRITABLE, ioctl::*},
    errno::Errno,
};

const EXCL: u16 = 0x8000;
const IP: &[u8] = &[0x45, 1, 2, 3, 4, 5];

// Attach.

#[test]
fn names_are_chosen_like_the_kernel_does() {
    let mut rig = Rig::new();
    for (asked, flags, got) in [
        ("", TUN, "tun0"),
        ("", TAP, "tap0"),
        ("tun%d", TUN, "tun1"),
        ("%d", TUN, "0"),
        ("foo%dbar", TAP, "foo0bar"),
        ("foo%dbar", TAP, "foo1bar"),
        ("tun7", TUN, "tun7"),
        ("a\u{1}b", TUN, "a\\x01b"),
        ("both", TUN | TAP, "both"),
    ] {
        let file = rig.open();
        let name = rig.set_iff(file, asked, flags).unwrap();
        assert_eq!(name, got, "{asked:?}");
    }
    let both = rig.core.find(&Address::Name(Name::new(b"both"))).unwrap();
    assert_eq!(rig.core.tunnel(both).unwrap().mode(), Mode::Tun, "TUN and TAP together mean TUN");
}

#[test]
fn lowest_free_number_is_taken_again() {
    let mut rig = Rig::new();
    let files: Vec<FileId> = (0..3).map(|_| rig.attached("", TUN).0).collect();
    rig.close(files[1]);
    let file = rig.open();
    assert_eq!(rig.set_iff(file, "tun%d", TUN), Ok("tun1".to_owned()));
}

#[test]
fn unusable_names_are_refused() {
    let mut rig = Rig::new();
    for name in
        [".", "..", "a/b", "a:b", "a b", "a\tb", "a\nb", "%s", "%5d", "%", "%d%d", "all", "default"]
    {
        let file = rig.open();
        assert_eq!(rig.set_iff(file, name, TUN), Err(Errno::EINVAL), "{name:?}");
    }
    let file = rig.open();
    let mut request = IfReq::zeroed(false);
    request.copy_name(&Name::new(b"a\xa0b"));
    request.set_flags(IfFlags::TUN);
    assert_eq!(
        rig.ioctl(file, TUNSETIFF, 0, request.as_bytes()),
        Err(Errno::EINVAL),
        "a no-break space"
    );
}

#[test]
fn outcomes_of_tunsetiff_come_in_order() {
    let mut rig = Rig::new();
    let (attached, _) = rig.attached("t", TUN);
    assert_eq!(
        rig.set_iff(attached, "a/b", 0),
        Err(Errno::EEXIST),
        "attached, before anything else"
    );

    let file = rig.open();
    assert_eq!(rig.set_iff(file, "t", 0x20 | TUN), Err(Errno::EINVAL), "NAPI_FRAGS without NAPI");
    assert_eq!(rig.set_iff(file, "f", 0x30 | TUN), Err(Errno::EINVAL), "NAPI_FRAGS on a tun");
    assert_eq!(rig.set_iff(file, "t", EXCL | TAP), Err(Errno::EBUSY), "EXCL, before the type");
    assert_eq!(rig.set_iff(file, "lo", EXCL | TUN), Err(Errno::EBUSY));
    assert_eq!(rig.set_iff(file, "lo", TUN), Err(Errno::EINVAL));
    assert_eq!(rig.set_iff(file, "t", TAP | MULTI_QUEUE), Err(Errno::EINVAL), "another type");
    assert_eq!(rig.set_iff(file, "t", 0), Err(Errno::EINVAL), "no type");
    assert_eq!(
        rig.set_iff(file, "t", TUN | MULTI_QUEUE),
        Err(Errno::EINVAL),
        "MULTI_QUEUE differs"
    );
    assert_eq!(rig.set_iff(file, "t", TUN), Err(Errno::EBUSY), "its only queue is taken");
    assert_eq!(rig.set_iff(file, "new", 0), Err(Errno::EINVAL), "neither TUN nor TAP");
    assert_eq!(
        rig.set_iff(file, "n", 0x30 | TAP),
        Ok("n".to_owned()),
        "NAPI_FRAGS with NAPI on a tap"
    );
    assert_eq!(rig.set_iff(file, "n", TUN), Err(Errno::EEXIST));
}

#[test]
fn a_name_is_free_in_another_namespace() {
    let mut rig = Rig::new();
    let (here, _) = rig.attached("tun0", TUN);
    let there = rig.open_in(Scope(2));
    assert_eq!(rig.set_iff(there, "tun0", TUN), Ok("tun0".to_owned()));
    let address = |text: &str| text.parse::<Address>().unwrap();
    assert!(
        matches!(rig.core.find(&address("tun0")), Err(CommandError::AmbiguousTunnel { scopes, .. }) if scopes == [1, 2])
    );
    assert_eq!(rig.core.find(&address("tun0@2")).ok(), rig.core.file(there).unwrap().tunnel());
    rig.close(here);
    assert_eq!(rig.core.find(&address("tun0")).ok(), rig.core.file(there).unwrap().tunnel());
}

#[test]
fn more_than_256_queues_are_too_many() {
    let mut rig = Rig::new();
    for _ in 0..256 {
        rig.attached("mq", TUN | MULTI_QUEUE);
    }
    let file = rig.open();
    assert_eq!(rig.set_iff(file, "mq", TUN | MULTI_QUEUE), Err(Errno::E2BIG));
}

#[test]
fn further_queue_changes_no_flags_but_a_reattach_does() {
    let mut rig = Rig::new();
    let (first, tunnel) = rig.attached("mq", TUN_NO_PI | MULTI_QUEUE);
    let (second, _) = rig.attached("mq", TUN | MULTI_QUEUE | VNET_HDR);
    assert!(rig.core.tunnel(tunnel).unwrap().flags().contains(IfFlags::NO_PI));
    assert!(!rig.core.tunnel(tunnel).unwrap().flags().contains(IfFlags::VNET_HDR));
    rig.ioctl(first, TUNSETPERSIST, 1, &[]).unwrap();
    rig.ioctl(first, TUNSETSNDBUF, 0, &4096_i32.to_ne_bytes()).unwrap();
    rig.ioctl(first, TUNSETVNETHDRSZ, 0, &12_i32.to_ne_bytes()).unwrap();
    rig.close(first);
    rig.close(second);
    let (again, same) = rig.attached("mq", TUN | MULTI_QUEUE | VNET_HDR);
    assert_eq!(same, tunnel, "a persistent tunnel outlives its files");
    assert_eq!(rig.core.tunnel(tunnel).unwrap().flags(), IfFlags::VNET_HDR | IfFlags::MULTI_QUEUE);
    assert_eq!(rig.ioctl(again, TUNGETSNDBUF, 0, &[]).unwrap(), i32::MAX.to_ne_bytes(), "not kept");
    assert_eq!(rig.ioctl(again, TUNGETVNETHDRSZ, 0, &[]).unwrap(), 12_i32.to_ne_bytes(), "kept");
}

#[test]
fn name_is_stored_behind_which_nothing_changes() {
    let mut rig = Rig::new();
    let file = rig.open();
    let mut raw = [0xaa; 40];
    raw[..6].copy_from_slice(b"tap%d\0");
    raw[16..18].copy_from_slice(&TAP.to_ne_bytes());
    let stored = rig.ioctl(file, TUNSETIFF, 0, &raw).unwrap();
    raw[..5].copy_from_slice(b"tap0\0");
    raw[15] = 0;
    assert_eq!(stored, raw);
}

// Ioctls.

#[test]
fn order_of_checks_is_shared_by_all_commands() {
    let mut rig = Rig::new();
    let file = rig.open();
    let fetches = |rig: &mut Rig, command| {
        let call = IoctlCall { argument: 9, ..call(command) };
        let request = rig.ask(Op::Ioctl(file, call));
        rig.outcome(request).unwrap()
    };
    // Type 0x89, known or not, and TUNSETQUEUE: an ifreq comes first.
    for command in [SIOCGIFHWADDR, 0x8901, 0x89ff, TUNSETQUEUE] {
        assert!(
            matches!(
                fetches(&mut rig, command),
                Ok(Reply::Fetch { input: [UserRange { address: 9, length: 40 }, _], .. })
            ),
            "{command:#x}"
        );
    }
    assert_eq!(rig.ioctl(file, 0x8901, 9, &[0; 40]), Err(Errno::EBADFD));
    assert_eq!(rig.ioctl(file, TUNSETQUEUE, 9, &[0; 40]), Err(Errno::EINVAL), "never EBADFD");
    assert_eq!(fetches(&mut rig, SIOCGSKNS), Err(Errno::EPERM));
    // Not attached: before any memory is looked at.
    for command in [TUNGETIFF, TUNSETSNDBUF, TUNGETVNETHDRSZ, TUNSETPERSIST, 0x5401, 0x541b, 0] {
        assert_eq!(fetches(&mut rig, command), Err(Errno::EBADFD), "{command:#x}");
    }
    assert_eq!(rig.ioctl(file, TUNGETFEATURES, 9, &[]).unwrap(), 0x7173_u32.to_ne_bytes());

    rig.set_iff(file, "t", TUN).unwrap();
    for command in [0x5401, 0x541b, 0, TUNSETIFF ^ 0x4000_0000] {
        assert_eq!(rig.ioctl(file, command, 9, &[]), Err(Errno::EINVAL), "{command:#x}");
    }
    assert_eq!(rig.ioctl(file, 0x8901, 9, &[0; 40]), Err(Errno::EINVAL));
}

#[test]
fn tungetiff_gives_the_name_and_the_flags() {
    let mut rig = Rig::new();
    for (asked, got) in
        [(TUN, 0x1001), (TAP_NO_PI | VNET_HDR | 0x2000, 0x7002), (TUN_NO_PI | MULTI_QUEUE, 0x1101)]
    {
        let (file, _) = rig.attached("", asked);
        let stored = IfReq::from_bytes(&rig.ioctl(file, TUNGETIFF, 0, &[]).unwrap()).unwrap();
        assert_eq!(stored.flags().bits(), got);
        assert!(stored.name().as_bytes().starts_with(b"t"));
        assert_eq!(stored.as_bytes()[18..], [0; 22]);
    }
    let (file, _) = rig.attached("p", TUN);
    rig.ioctl(file, TUNSETPERSIST, 0x1_0000_0000, &[]).unwrap();
    let stored = IfReq::from_bytes(&rig.ioctl(file, TUNGETIFF, 0, &[]).unwrap()).unwrap();
    assert_eq!(stored.flags().bits(), 0x1801, "the whole long counts");
}

#[test]
fn thirty_two_bit_callers_have_a_shorter_ifreq() {
    let mut rig = Rig::new();
    let file = rig.open();
    let mut call = IoctlCall { argument: 1, compat: true, ..call(TUNSETIFF) };
    let request = rig.ask(Op::Ioctl(file, call.clone()));
    assert_eq!(
        rig.outcome(request),
        Some(Ok(Reply::Fetch {
            input: [UserRange { address: 1, length: 32 }, UserRange::default()],
            output: UserRange { address: 1, length: 32 },
        }))
    );
    let mut ifreq = IfReq::zeroed(true);
    ifreq.set_flags(IfFlags::TUN);
    call.input = Bytes::copy_from_slice(ifreq.as_bytes());
    call.output_room = 32;
    let request = rig.ask(Op::Ioctl(file, call));
    let Some(Ok(Reply::Ioctl { result: 0, output })) = rig.outcome(request) else {
        panic!("it succeeds")
    };
    assert_eq!(&output.as_bytes()[..5], b"tun0\0");
    assert_eq!(output.as_bytes().len(), 32);
}

#[test]
fn offloads_need_what_they_build_on() {
    let mut rig = Rig::new();
    let (file, _) = rig.attached("t", TUN);
    for good in [0, 1, 0x3, 0x7, 0xf, 0x11, 0x61, 0x67, 0x83, 0x183] {
        assert_eq!(rig.ioctl(file, TUNSETOFFLOAD, good, &[]), Ok(vec![]), "{good:#x}");
    }
    for bad in [0x2, 0x6, 0x9, 0x21, 0x41, 0x81, 0x101, 0x103, 0x200, 0x1_0000_0000] {
        assert_eq!(rig.ioctl(file, TUNSETOFFLOAD, bad, &[]), Err(Errno::EINVAL), "{bad:#x}");
    }
}

#[test]
fn values_out_of_range_are_refused() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN);
    let int = |value: i32| value.to_ne_bytes();
    assert_eq!(rig.ioctl(file, TUNSETSNDBUF, 0, &int(0)), Err(Errno::EINVAL));
    assert_eq!(rig.ioctl(file, TUNSETVNETHDRSZ, 0, &int(9)), Err(Errno::EINVAL));
    assert_eq!(rig.ioctl(file, TUNSETVNETHDRSZ, 0, &int(-1)), Err(Errno::EINVAL));
    assert_eq!(rig.ioctl(file, TUNSETOWNER, 0xffff_ffff, &[]), Err(Errno::EINVAL));
    assert_eq!(rig.ioctl(file, TUNSETGROUP, u64::MAX, &[]), Err(Errno::EINVAL));
    assert_eq!(rig.ioctl(file, TUNSETVNETBE, 0, &[]), Err(Errno::EINVAL));
    rig.ioctl(file, TUNSETVNETLE, 0, &int(5)).unwrap();
    assert_eq!(rig.ioctl(file, TUNGETVNETLE, 0, &[]).unwrap(), int(1));
    rig.ioctl(file, TUNSETOWNER, 0x1_0000_0007, &[]).unwrap();
    assert_eq!(rig.core.tunnel(tunnel).unwrap().owner(), (Some(7), None));
    assert_eq!(rig.ioctl(file, TUNSETLINK, 772, &[]), Err(Errno::EBUSY), "while up");
    rig.set_link(tunnel, false);
    assert_eq!(rig.ioctl(file, TUNSETLINK, 772, &[]), Ok(vec![]));
}

#[test]
fn hardware_address_is_the_taps() {
    let mut rig = Rig::new();
    let (tap, tunnel) = rig.attached("tap0", TAP);
    let mut request = IfReq::zeroed(false);
    request.copy_name(&Name::new(b"ignored"));
    let got =
        IfReq::from_bytes(&rig.ioctl(tap, SIOCGIFHWADDR, 0, request.as_bytes()).unwrap()).unwrap();
    let (family, address) = got.hwaddr();
    assert_eq!((family, Some(MacAddress(address))), (1, rig.core.tunnel(tunnel).unwrap().hwaddr()));
    assert_eq!(address[0] & 3, 2, "locally administered, no group");
    assert_eq!(got.name().as_bytes(), b"ignored");

    request.set_hwaddr(1, [2, 0, 0, 0, 0, 9]);
    rig.ioctl(tap, SIOCSIFHWADDR, 0, request.as_bytes()).unwrap();
    assert_eq!(rig.core.tunnel(tunnel).unwrap().hwaddr(), Some(MacAddress([2, 0, 0, 0, 0, 9])));
    for (family, first, errno) in
        [(7, 2, Errno::EINVAL), (1, 3, Errno::EADDRNOTAVAIL), (1, 0, Errno::EADDRNOTAVAIL)]
    {
        request.set_hwaddr(family, [first, 0, 0, 0, 0, 0]);
        assert_eq!(rig.ioctl(tap, SIOCSIFHWADDR, 0, request.as_bytes()), Err(errno));
    }
    let (tun, _) = rig.attached("tun0", TUN);
    assert_eq!(rig.ioctl(tun, SIOCSIFHWADDR, 0, request.as_bytes()), Err(Errno::EOPNOTSUPP));
    let got =
        IfReq::from_bytes(&rig.ioctl(tun, SIOCGIFHWADDR, 0, request.as_bytes()).unwrap()).unwrap();
    assert_eq!(got.hwaddr(), (0xfffe, [0; 6]));
}

// Read.

#[test]
fn unattached_file_is_in_a_bad_state() {
    let mut rig = Rig::new();
    let file = rig.open();
    assert_eq!(rig.read(file, 100), Err(Errno::EBADFD));
    assert_eq!(rig.write(file, IP), Err(Errno::EBADFD));
    assert_eq!(rig.poll(file, None), POLL_ERROR);
    assert_eq!(rig.read(FileId(99), 100), Err(Errno::EBADF));
}

#[test]
fn blocked_read_gets_the_datagram() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN_NO_PI);
    assert_eq!(rig.read(file, 100), Err(Errno::EAGAIN));
    let (first, second) = (rig.read_later(file, 100), rig.read_later(file, 100));
    assert_eq!(rig.outcome(first), None);
    assert_eq!(rig.inject(tunnel, IP), Ok(Delivery::Read));
    assert_eq!(bytes_read(rig.outcome(first).unwrap()), Ok(IP.to_vec()));
    assert_eq!(rig.outcome(second), None, "one datagram, one reader");
    assert!(rig.cancel(second));
    assert_eq!(rig.outcome(second), Some(Err(Errno::EINTR)));
    assert!(!rig.cancel(second), "answered");
    assert_eq!(rig.inject(tunnel, IP), Ok(Delivery::Queued(1)), "nobody reads");
}

#[test]
fn queue_keeps_the_oldest() {
    let mut rig = Rig::new();
    for (flags, capacity) in [(TUN_NO_PI, 500), (TAP_NO_PI, 1000)] {
        let (file, tunnel) = rig.attached("", flags);
        let datagram = |n: usize| [&[0x45; 14][..], &n.to_ne_bytes()].concat();
        for n in 0..capacity {
            assert_eq!(rig.inject(tunnel, &datagram(n)), Ok(Delivery::Queued(n + 1)));
        }
        assert!(
            matches!(rig.inject(tunnel, IP), Err(CommandError::QueueFull { datagrams, .. }) if datagrams == capacity)
        );
        for n in 0..capacity {
            assert_eq!(rig.read(file, 100), Ok(datagram(n)));
        }
        assert_eq!(rig.read(file, 100), Err(Errno::EAGAIN));
        let counters = rig.core.tunnel(tunnel).unwrap().counters();
        assert_eq!(
            (counters.to_client.datagrams, counters.to_client_dropped.datagrams),
            (capacity as u64, 1)
        );
    }
}

#[test]
fn what_does_not_fit_is_lost_but_for_the_rest_of_the_same_call() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN_NO_PI);
    rig.inject(tunnel, IP).unwrap();
    rig.inject(tunnel, &[0x46]).unwrap();
    assert_eq!(rig.read(file, 2), Ok(IP[..2].to_vec()));
    assert_eq!(rig.read_part(file, 2, 2), Ok(IP[2..4].to_vec()));
    assert_eq!(rig.read_part(file, 9, 4), Ok(IP[4..].to_vec()));
    assert_eq!(rig.read_part(file, 9, 6), Ok(vec![]), "never the next datagram");
    assert_eq!(rig.read(file, 9), Ok(vec![0x46]));
    assert_eq!(rig.read_part(file, 9, 1), Ok(vec![]));

    rig.inject(tunnel, IP).unwrap();
    rig.inject(tunnel, &[0x46]).unwrap();
    assert_eq!(rig.read(file, 2), Ok(IP[..2].to_vec()));
    assert_eq!(rig.read(file, 2), Ok(vec![0x46]), "another call");
    assert_eq!(rig.read_part(file, 9, 2), Ok(vec![]), "the rest went with it");
}

#[test]
fn read_without_room_for_headers_loses_the_datagram() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN);
    assert_eq!(rig.read(file, 3), Err(Errno::EAGAIN), "there is none yet");
    rig.inject(tunnel, IP).unwrap();
    assert_eq!(rig.read(file, 3), Err(Errno::EINVAL));
    assert_eq!(rig.read(file, 100), Err(Errno::EAGAIN));
    let blocked = rig.read_later(file, 3);
    assert!(matches!(rig.inject(tunnel, IP), Err(CommandError::ReadTooShort(_))));
    assert_eq!(rig.outcome(blocked), Some(Err(Errno::EINVAL)));
    assert_eq!(rig.core.tunnel(tunnel).unwrap().counters().to_client_dropped.datagrams, 2);
}

#[test]
fn queued_datagrams_can_be_read_while_down() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN_NO_PI);
    rig.inject(tunnel, IP).unwrap();
    rig.set_link(tunnel, false);
    assert!(matches!(rig.inject(tunnel, IP), Err(CommandError::Down(_))));
    assert_eq!(rig.poll(file, None), POLL_READABLE, "no POLLOUT while down");
    assert_eq!(rig.read(file, 100), Ok(IP.to_vec()));
    assert_eq!(rig.write(file, IP), Err(Errno::EIO));
    assert_eq!(rig.write(file, &[0x12]), Err(Errno::EINVAL), "before EIO");
}

// Write.

#[test]
fn written_datagrams_are_taken_in_order() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN);
    assert_eq!(rig.write(file, &[0, 0, 8, 0, 0x45, 1]), Ok(6), "headers count");
    assert_eq!(rig.write(file, &[0, 0, 0x12, 0x34]), Ok(4), "a bare PI header");
    let first = rig.handle(input::Take { tunnel }).unwrap();
    assert_eq!((&first.payload[..], first.protocol()), (&[0x45, 1][..], Some(0x800)));
    assert_eq!(rig.take(tunnel), Some(vec![]));
    assert_eq!(rig.take(tunnel), None);
}

#[test]
fn split_write_is_one_datagram() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN_NO_PI);
    assert_eq!(rig.write(file, &[0x45, 1]), Ok(2));
    assert_eq!(rig.write_part(file, &[2, 3], 2), Ok(2));
    assert_eq!(rig.write_part(file, &[4], 4), Ok(1));
    assert_eq!(rig.take(tunnel), Some(vec![0x45, 1, 2, 3, 4]));
    assert_eq!(
        rig.write_part(file, &[5], 5),
        Ok(1),
        "its first part is taken: lost, and no second datagram"
    );
    assert_eq!(rig.take(tunnel), None);
}

#[test]
fn untaken_datagrams_are_limited() {
    let mut rig = Rig::with_limits(Limits { written_datagrams: 2, ..Limits::default() });
    let (file, tunnel) = rig.attached("t", TUN_NO_PI);
    for n in 0..3 {
        assert_eq!(rig.write(file, &[0x45, n]), Ok(2), "the client does not notice");
    }
    assert_eq!(rig.take(tunnel), Some(vec![0x45, 0]));
    assert_eq!(rig.core.tunnel(tunnel).unwrap().counters().from_client_dropped.datagrams, 1);
}

#[test]
fn written_datagrams_outlive_the_client() {
    let mut rig =
        Rig::with_limits(Limits { gone_tunnels: Bound::unshared(1), ..Limits::default() });
    let (file, tunnel) = rig.attached("t", TUN_NO_PI);
    rig.write(file, IP).unwrap();
    rig.close(file);
    let address = Address::Name(Name::new(b"t"));
    assert_eq!(rig.core.find(&address), Ok(tunnel));
    assert!(rig.core.tunnel(tunnel).unwrap().is_gone());
    let (second_file, second) = rig.attached("t", TUN_NO_PI);
    assert_ne!(second, tunnel, "the name is free again");
    assert_eq!(rig.core.find(&address), Ok(second), "the living come first");
    assert_eq!(rig.take(tunnel), Some(IP.to_vec()));
    assert!(rig.core.tunnel(tunnel).is_none(), "taken empty");

    rig.write(second_file, IP).unwrap();
    rig.close(second_file);
    let (third_file, third) = rig.attached("u", TUN_NO_PI);
    rig.write(third_file, IP).unwrap();
    rig.close(third_file);
    assert!(rig.core.tunnel(second).is_none(), "only so many are kept");
    assert!(rig.core.tunnel(third).is_some());
}

// Poll.

#[test]
fn every_datagram_wakes_an_armed_poller() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN_NO_PI);
    assert_eq!(rig.poll(file, None), POLL_WRITABLE);
    rig.inject(tunnel, IP).unwrap();
    assert_eq!(rig.wakes, 0, "nobody sleeps");
    assert_eq!(rig.poll(file, Some(WakeHandle(5))), POLL_READABLE | POLL_WRITABLE);
    rig.inject(tunnel, IP).unwrap();
    rig.inject(tunnel, IP).unwrap();
    assert_eq!(rig.wakes, 2, "each is an edge");
    rig.set_link(tunnel, false);
    assert_eq!(rig.wakes, 2);
    rig.set_link(tunnel, true);
    assert_eq!(rig.wakes, 3, "POLLOUT came back");
}

#[test]
fn tiny_send_buffer_is_never_writable() {
    let mut rig = Rig::new();
    let (file, _) = rig.attached("t", TUN_NO_PI);
    for (size, events) in [(1, 0), (3, 0), (4, POLL_WRITABLE)] {
        rig.ioctl(file, TUNSETSNDBUF, 0, &i32::to_ne_bytes(size)).unwrap();
        assert_eq!(rig.poll(file, None), events, "{size}");
        assert_eq!(rig.write(file, IP), Ok(IP.len()));
    }
}

// Close.

#[test]
fn last_close_takes_the_tunnel_along() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN);
    rig.close(file);
    assert!(rig.core.tunnel(tunnel).is_none());
    assert_eq!(rig.core.files().count(), 0);
    let (file, tunnel) = rig.attached("t", TUN);
    rig.ioctl(file, TUNSETPERSIST, 1, &[]).unwrap();
    rig.close(file);
    assert!(matches!(rig.inject(tunnel, IP), Err(CommandError::NotAttached(_))));
    let (file, same) = rig.attached("t", TUN);
    assert_eq!(same, tunnel);
    rig.ioctl(file, TUNSETPERSIST, 0, &[]).unwrap();
    rig.close(file);
    assert!(rig.core.tunnel(tunnel).is_none());
}

// The harness.

#[test]
fn bare_ip_to_a_tap_is_framed() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("tap0", TAP_NO_PI);
    let own = rig.core.tunnel(tunnel).unwrap().hwaddr().unwrap();
    let framed = Wrap::Ethernet { source: None, destination: None };
    rig.inject_as(tunnel, IP, framed).unwrap();
    assert_eq!(rig.read(file, 100), Ok([&[0xff; 6][..], &own.0, &[8, 0], IP].concat()));
    let given = MacAddress([2, 0, 0, 0, 0, 1]);
    rig.inject_as(
        tunnel,
        &[0x60],
        Wrap::Ethernet { source: Some(given), destination: Some(given) },
    )
    .unwrap();
    assert_eq!(rig.read(file, 100), Ok([&given.0[..], &given.0, &[0x86, 0xdd, 0x60]].concat()));
    assert!(matches!(rig.inject_as(tunnel, &[1], framed), Err(CommandError::NotIp(_))));
    rig.inject_as(tunnel, &[1], Wrap::Frame).unwrap();
    assert_eq!(rig.read(file, 100), Ok(vec![1]), "untouched, however short");

    let (file, tunnel) = rig.attached("tun0", TUN_NO_PI);
    rig.inject_as(tunnel, &[0xde, 0xad], framed).unwrap();
    assert_eq!(rig.read(file, 100), Ok(vec![0xde, 0xad]), "a tun takes anything");
    assert!(matches!(rig.inject_as(tunnel, IP, Wrap::Frame), Err(CommandError::NotTap(_))));
}

#[test]
fn datagrams_to_inject_have_a_length() {
    let mut rig = Rig::new();
    let (_, tunnel) = rig.attached("t", TUN_NO_PI);
    assert_eq!(rig.inject(tunnel, &[]), Err(CommandError::EmptyDatagram));
    let limit = rig.core.limits().datagram;
    assert_eq!(rig.inject(tunnel, &vec![0; limit]), Ok(Delivery::Queued(1)));
    let length = limit + 1;
    assert_eq!(
        rig.inject(tunnel, &vec![0; length]),
        Err(CommandError::OversizedDatagram { length, limit })
    );
}

#[test]
fn several_queues_share_by_flow() {
    let mut rig = Rig::new();
    let (first, tunnel) = rig.attached("mq", TUN_NO_PI | MULTI_QUEUE);
    let (second, _) = rig.attached("mq", TUN_NO_PI | MULTI_QUEUE);
    for host in 0..64 {
        let mut datagram = [0x45; 20];
        datagram[15] = host;
        rig.inject(tunnel, &datagram).unwrap();
        rig.inject(tunnel, &datagram).unwrap();
    }
    let mut counts = Vec::new();
    for file in [first, second] {
        let mut count = 0;
        while let Ok(datagram) = rig.read(file, 100) {
            assert_eq!(rig.read(file, 100), Ok(datagram), "a flow stays on its queue");
            count += 2;
        }
        counts.push(count);
    }
    assert_eq!(counts.iter().sum::<i32>(), 128);
    assert!(counts.iter().all(|count| *count > 16), "{counts:?}");
}

#[test]
fn waits_end_when_their_condition_holds() {
    let mut rig = Rig::new();
    let name = || Address::Name(Name::new(b"t"));
    rig.wait(1, Condition::Attached(name()), 100).unwrap();
    rig.wait(2, Condition::Reading(name()), 100).unwrap();
    rig.wait(3, Condition::Written(name()), 100).unwrap();
    let (file, tunnel) = rig.attached("t", TUN_NO_PI);
    let met = Some(Answer::Met(Some(tunnel)));
    assert_eq!((rig.answer(1), rig.answer(2), rig.answer(3)), (met.clone(), None, None));
    let read = rig.read_later(file, 9);
    assert_eq!((rig.answer(2), rig.answer(3)), (met.clone(), None));
    rig.write(file, IP).unwrap();
    assert_eq!(rig.answer(3), met.clone());
    rig.wait(4, Condition::Written(name()), 100).unwrap();
    assert_eq!(rig.answer(4), met, "at once");
    rig.wait(5, Condition::Detached(name()), 100).unwrap();
    rig.cancel(read);
    rig.close(file);
    assert_eq!(rig.answer(5), Some(Answer::Met(None)));
}

#[test]
fn takers_are_served_in_order_and_take_all_or_nothing() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN_NO_PI);
    rig.wait(1, Condition::Take(tunnel, 2), 100).unwrap();
    rig.write(file, &[0x45, 1]).unwrap();
    assert_eq!(rig.answer(1), None);
    rig.write(file, &[0x45, 2]).unwrap();
    let Some(Answer::Taken(taken)) = rig.answer(1) else { panic!("two are there") };
    assert_eq!(taken.iter().map(|datagram| datagram.payload[1]).collect::<Vec<_>>(), [1, 2]);

    rig.wait(2, Condition::Take(tunnel, 2), 100).unwrap();
    rig.write(file, &[0x45, 3]).unwrap();
    assert_eq!(rig.core.poll_timeout(), Some(rig.at(100)));
    rig.pass_until(99);
    assert_eq!(rig.answer(2), None);
    rig.pass_until(100);
    assert_eq!(rig.answer(2), Some(Answer::TimedOut(1)));
    assert_eq!(rig.core.poll_timeout(), None);
    assert_eq!(rig.take(tunnel), Some(vec![0x45, 3]), "it stayed");

    rig.wait(3, Condition::Take(tunnel, 1), 200).unwrap();
    rig.close(file);
    assert_eq!(rig.answer(3), Some(Answer::Gone));
    assert!(matches!(
        rig.wait(4, Condition::Take(tunnel, 1), 0),
        Err(CommandError::UnknownTunnel(_))
    ));
}

#[test]
fn a_cancelled_wait_takes_nothing() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN_NO_PI);
    rig.wait(1, Condition::Take(tunnel, 1), 100).unwrap();
    rig.handle(input::CancelWait { id: WaitId(1) });
    rig.write(file, IP).unwrap();
    assert_eq!(rig.answer(1), None);
    assert_eq!(rig.take(tunnel), Some(IP.to_vec()));
}

#[test]
fn bad_waits_are_refused() {
    let mut rig = Rig::with_limits(Limits { waits: Bound::unshared(1), ..Limits::default() });
    let (_, tunnel) = rig.attached("t", TUN);
    assert!(matches!(
        rig.wait(1, Condition::Take(tunnel, 0), 1),
        Err(CommandError::BadCount { .. })
    ));
    assert!(matches!(
        rig.wait(1, Condition::Take(tunnel, 9999), 1),
        Err(CommandError::BadCount { .. })
    ));
    rig.wait(1, Condition::Take(tunnel, 1), 1).unwrap();
    assert!(matches!(
        rig.wait(2, Condition::Take(tunnel, 1), 1),
        Err(CommandError::TooManyWaits(1))
    ));
}

#[test]
fn a_peer_is_told_of_what_was_written_and_what_is() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN_NO_PI);
    rig.write(file, &[0x45, 1]).unwrap();
    rig.set_peer(tunnel, PeerId(1)).unwrap();
    assert_eq!(rig.notified, 1, "of what there is");
    assert!(matches!(rig.set_peer(tunnel, PeerId(2)), Err(CommandError::HasPeer(_))));
    rig.write(file, &[0x45, 2]).unwrap();
    assert_eq!(rig.notified, 2);
    rig.wait(1, Condition::Take(tunnel, 1), 100).unwrap();
    assert_eq!(rig.answer(1), None, "it is the peer's");
    assert_eq!(
        (rig.take(tunnel), rig.take(tunnel)),
        (Some(vec![0x45, 1]), Some(vec![0x45, 2])),
        "in order"
    );
    rig.write(file, &[0x45, 3]).unwrap();
    rig.handle(input::ClearPeer { peer: PeerId(1) });
    rig.pass_until(99);
    assert!(matches!(rig.answer(1), Some(Answer::Taken(_))), "the harness's again");
}

#[test]
fn a_peer_is_told_when_its_tunnel_is_gone() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN_NO_PI);
    rig.set_peer(tunnel, PeerId(1)).unwrap();
    rig.close(file);
    assert_eq!((rig.notified, rig.core.tunnel(tunnel).is_none()), (1, true));

    let (file, tunnel) = rig.attached("t", TUN_NO_PI);
    rig.write(file, IP).unwrap();
    rig.close(file);
    rig.set_peer(tunnel, PeerId(2)).unwrap();
    assert_eq!(rig.notified, 2, "there is something to take from one that is gone");
    assert_eq!(rig.take(tunnel), Some(IP.to_vec()));
    assert!(rig.core.tunnel(tunnel).is_none(), "taken empty");
}

#[test]
fn what_a_peer_sends_in_vain_is_counted() {
    let mut rig = Rig::new();
    let (_, tunnel) = rig.attached("t", TUN_NO_PI);
    rig.set_link(tunnel, false);
    assert!(rig.inject_from_peer(tunnel, IP).is_err());
    rig.set_link(tunnel, true);
    assert!(rig.inject_from_peer(tunnel, &vec![0; 70_000]).is_err());
    for _ in 0..501 {
        let _full = rig.inject_from_peer(tunnel, IP);
    }
    rig.handle(input::CountPeerDrop { tunnel, length: 9 });
    let counters = rig.core.tunnel(tunnel).unwrap().counters();
    assert_eq!((counters.to_client.datagrams, counters.to_client_dropped.datagrams), (500, 3));
    assert_eq!(counters.from_client_dropped.datagrams, 1);
}

#[test]
fn waits_by_a_name_that_became_ambiguous_go_on() {
    let mut rig = Rig::new();
    let name = || Address::Name(Name::new(b"t"));
    let (first, _) = rig.attached("t", TUN_NO_PI);
    rig.wait(1, Condition::Detached(name()), 100).unwrap();
    let second = rig.open_in(Scope(2));
    rig.set_iff(second, "t", TUN_NO_PI).unwrap();
    assert_eq!(rig.answer(1), None);
    rig.close(first);
    assert_eq!(rig.answer(1), None, "one is left");
    rig.close(second);
    assert_eq!(rig.answer(1), Some(Answer::Met(None)));
}

#[test]
fn events_are_built_only_while_somebody_observes() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN_NO_PI);
    assert!(rig.events.is_empty());
    rig.handle(input::Observe { on: true });
    rig.inject(tunnel, IP).unwrap();
    rig.write(file, IP).unwrap();
    rig.set_link(tunnel, false);
    rig.close(file);
    let kinds: Vec<&str> = rig
        .events
        .iter()
        .map(|event| match event {
            Event::Opened { .. } => "opened",
            Event::Closed { .. } => "closed",
            Event::Attached { .. } => "attached",
            Event::Detached { deleted: true, .. } => "deleted",
            Event::Detached { .. } => "detached",
            Event::Deleted { .. } => "deleted under its files",
            Event::ToClient { .. } => "to client",
            Event::FromClient { .. } => "from client",
            Event::Dropped { .. } => "dropped",
            Event::ToLink { .. } => "to link",
            Event::Link { .. } => "link",
        })
        .collect();
    assert_eq!(kinds, ["to client", "from client", "link", "deleted", "closed"]);
}

#[test]
fn the_same_seed_gives_the_same_addresses() {
    let address = |seed| {
        let mut rig = Rig::new();
        rig.core = Core::new(Limits::default(), seed);
        let (_, tunnel) = rig.attached("t", TAP);
        rig.core.tunnel(tunnel).unwrap().hwaddr().unwrap()
    };
    assert_eq!(address(5), address(5));
    assert_ne!(address(5), address(6));
}
