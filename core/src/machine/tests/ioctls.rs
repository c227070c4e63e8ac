//! Rows of the table of ioctls, one test each.

use alloc::{borrow::ToOwned, vec, vec::Vec};

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;
use crate::abi::tun::SockFprog;

const EINVAL: Result<Vec<u8>, Errno> = Err(Errno::EINVAL);
const STORED_NOTHING: Result<Vec<u8>, Errno> = Ok(vec![]);

fn int(value: i32) -> [u8; 4] {
    value.to_ne_bytes()
}

/// The flags that TUNGETIFF gives.
pub(super) fn flags_of(rig: &mut Rig, file: FileId) -> Result<u16, Errno> {
    let stored = rig.ioctl(file, TUNGETIFF, 0, &[])?;
    Ok(IfReq::from_bytes(&stored).expect("a whole ifreq").flags().bits())
}

/// A frame to an address.
fn frame(to: [u8; 6]) -> Vec<u8> {
    [&to[..], &[2, 0, 0, 0, 0, 0xee, 0x88, 0xb5, 1, 2, 3, 4]].concat()
}

#[test]
fn commands_that_ignore_their_argument_succeed() {
    let mut rig = Rig::new();
    let (file, _) = rig.attached("t", TUN);
    for command in [TUNSETNOCSUM, TUNSETDEBUG] {
        assert_eq!(rig.ioctl(file, command, u64::MAX, &[]), STORED_NOTHING);
    }
    for command in [TUNGETDEVNETNS, SIOCGSKNS] {
        assert_eq!(rig.ioctl(file, command, 0, &[]), Err(Errno::EPERM));
    }
    for command in [TUNGETVNETBE, TUNSETVNETBE] {
        assert_eq!(rig.ioctl(file, command, 0, &[]), EINVAL);
    }
    assert_eq!(ioctl::name(TUNSETCARRIER), Some("TUNSETCARRIER"));
    assert_eq!(ioctl::name(0x400854d5), None, "sock_fprog of a 32-bit program");
}

#[test]
fn namespaces_are_told_apart_by_their_numbers() {
    let mut rig = Rig::new();
    let file = rig.open_in(Scope(7));
    let mut is = |command, number| rig.ioctl(file, command, number, &[]);
    assert_eq!(is(ioctl::IS_SKNS, 7), STORED_NOTHING);
    assert_eq!(is(ioctl::IS_SKNS, 8), Err(Errno::EPERM));
    assert_eq!(is(ioctl::IS_DEVNETNS, 7), Err(Errno::EBADFD));
    rig.set_iff(file, "t", TUN).unwrap();
    let mut is = |command, number| rig.ioctl(file, command, number, &[]);
    assert_eq!(is(ioctl::IS_DEVNETNS, 7), STORED_NOTHING);
    assert_eq!(is(ioctl::IS_DEVNETNS, 8), Err(Errno::EPERM));
    let hidden = rig.open_in(Scope::default());
    assert_eq!(rig.ioctl(hidden, ioctl::IS_SKNS, 0, &[]), Err(Errno::EPERM), "it is not known");
}

#[test]
fn commands_for_taps_fail_on_a_tun_before_memory_is_looked_at() {
    let mut rig = Rig::new();
    let file = rig.open();
    for attached in [false, true] {
        let errno = if attached { Errno::EINVAL } else { Errno::EBADFD };
        for command in [TUNSETTXFILTER, TUNATTACHFILTER, TUNDETACHFILTER, TUNGETFILTER] {
            let request = rig.ask(Op::Ioctl(file, call(command)));
            assert_eq!(rig.outcome(request), Some(Err(errno)), "{command:#x}");
        }
        if !attached {
            rig.set_iff(file, "t", TUN).unwrap();
        }
    }
}

#[test]
fn send_buffer_belongs_to_the_attached_queues() {
    let mut rig = Rig::new();
    let (first, tunnel) = rig.attached("q", TUN_NO_PI | MULTI_QUEUE);
    let (second, _) = rig.attached("q", TUN_NO_PI | MULTI_QUEUE);
    let size = |rig: &mut Rig, file| rig.ioctl(file, TUNGETSNDBUF, 0, &[]);
    rig.set_queue(second, 0x400).unwrap();
    rig.ioctl(first, TUNSETSNDBUF, 0, &int(5000)).unwrap();
    assert_eq!(size(&mut rig, first).unwrap(), int(5000));
    assert_eq!(size(&mut rig, second).unwrap(), int(i32::MAX), "detached");
    let (third, _) = rig.attached("q", TUN_NO_PI | MULTI_QUEUE);
    assert_eq!(size(&mut rig, third).unwrap(), int(i32::MAX), "came later");
    rig.ioctl(second, TUNSETSNDBUF, 0, &int(7000)).unwrap();
    let sizes = [first, second, third].map(|file| size(&mut rig, file).unwrap());
    assert_eq!(sizes, [int(7000), int(i32::MAX), int(7000)], "not the caller's");
    rig.delete(tunnel);
    assert_eq!(size(&mut rig, first), Err(Errno::EBADFD));
    rig.set_iff(first, "r", TUN).unwrap();
    assert_eq!(size(&mut rig, first).unwrap(), int(7000), "the file's own");
}

#[test]
fn carrier_needs_an_attached_queue() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("t", TUN_NO_PI | MULTI_QUEUE);
    rig.handle(input::Observe { on: true });
    for (value, carrier) in [(0, false), (0, false), (-7, true)] {
        assert_eq!(rig.ioctl(file, TUNSETCARRIER, 0, &int(value)), STORED_NOTHING);
        assert_eq!(rig.core.tunnel(tunnel).unwrap().has_carrier(), carrier);
    }
    let told = |event: &Event| matches!(event, Event::Link { up: true, carrier: false, .. });
    assert_eq!((rig.events.len(), rig.events.iter().filter(|event| told(event)).count()), (2, 1));
    rig.set_queue(file, 0x400).unwrap();
    assert_eq!(rig.ioctl(file, TUNSETCARRIER, 0, &int(1)), Err(Errno::EPERM));
    assert_eq!(rig.ioctl(file, TUNSETCARRIER, 0, &int(0)), STORED_NOTHING);
}

#[test]
fn number_of_an_interface_can_be_asked_for() {
    let mut rig = Rig::new();
    let index = |rig: &Rig, tunnel| rig.core.tunnel(tunnel).unwrap().ifindex();
    let file = rig.open();
    for bad in [-1, i32::MIN] {
        assert_eq!(rig.ioctl(file, TUNSETIFINDEX, 0, &int(bad)), EINVAL);
    }
    rig.ioctl(file, TUNSETIFINDEX, 0, &int(1)).unwrap();
    assert_eq!(rig.set_iff(file, "a/b", TUN), Err(Errno::EINVAL), "the name first");
    assert_eq!(rig.set_iff(file, "i", 0), Err(Errno::EINVAL), "the type first");
    assert_eq!(rig.set_iff(file, "i", TUN), Err(Errno::EBUSY), "that of lo");
    rig.ioctl(file, TUNSETIFINDEX, 0, &int(777)).unwrap();
    rig.set_iff(file, "i", TUN).unwrap();
    let tunnel = rig.core.file(file).unwrap().tunnel().unwrap();
    assert_eq!(index(&rig, tunnel), 777);
    let request = rig.ask(Op::Ioctl(file, call(TUNSETIFINDEX)));
    assert_eq!(rig.outcome(request), Some(Err(Errno::EPERM)), "before memory is looked at");

    let other = rig.open();
    rig.ioctl(other, TUNSETIFINDEX, 0, &int(777)).unwrap();
    assert_eq!(rig.set_iff(other, "j", TUN), Err(Errno::EBUSY));
    let there = rig.open_in(Scope(2));
    rig.ioctl(there, TUNSETIFINDEX, 0, &int(777)).unwrap();
    assert_eq!(rig.set_iff(there, "j", TUN), Ok("j".to_owned()), "in another namespace");
    rig.ioctl(other, TUNSETIFINDEX, 0, &int(0)).unwrap();
    rig.set_iff(other, "j", TUN).unwrap();
    let (_, next) = rig.attached("k", TUN);
    let chosen = rig.core.file(other).unwrap().tunnel().unwrap();
    assert_eq!((index(&rig, chosen), index(&rig, next)), (2, 3), "lo has 1");
    rig.core.last_ifindex = i32::MAX.cast_unsigned();
    let (_, next) = rig.attached("l", TUN);
    assert_eq!(index(&rig, next), 4, "from the beginning");
}

#[test]
fn ebpf_programs_can_only_be_removed() {
    let mut rig = Rig::new();
    let (file, _) = rig.attached("t", TUN);
    for command in [TUNSETSTEERINGEBPF, TUNSETFILTEREBPF] {
        assert_eq!(rig.ioctl(file, command, 0, &int(-1)), STORED_NOTHING);
        assert_eq!(rig.ioctl(file, command, 0, &int(-2)), Err(Errno::EBADF));
        assert_eq!(rig.ioctl(file, command, 0, &int(3)), EINVAL);
    }
}

#[test]
fn tx_filter_chooses_frames_by_destination() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("x", TAP_NO_PI);
    let own = |last| [2, 0, 0, 0, 0, last];
    let group = [0x33, 0x33, 0, 0, 0, 1];
    let filter = |flags: u16, addresses: &[[u8; 6]]| {
        let count = u16::try_from(addresses.len()).unwrap();
        [&flags.to_ne_bytes()[..], &count.to_ne_bytes(), &addresses.concat()].concat()
    };
    let set = |rig: &mut Rig, bytes: &[u8]| {
        rig.ioctl_by(file, TUNSETTXFILTER, 0x1000, bytes, None).map(|(result, _)| result)
    };
    let mut nine: Vec<[u8; 6]> = (0..9).map(own).collect();
    assert_eq!(set(&mut rig, &filter(0, &nine)), Ok(0), "the ninth is no multicast address");
    assert_eq!(rig.inject(tunnel, &frame(own(9))), Ok(Delivery::Queued(1)), "so it is off");
    assert_eq!(rig.read(file, 100), Ok(frame(own(9))));
    nine[8] = group;
    assert_eq!(set(&mut rig, &filter(0, &nine)), Ok(8));
    for (to, passes) in
        [(own(0), true), (own(7), true), (own(8), false), (group, true), ([0xff; 6], false)]
    {
        let injected = rig.inject(tunnel, &frame(to));
        assert_eq!(injected.is_ok(), passes, "{to:?}: {injected:?}");
        assert_eq!(rig.read(file, 100), if passes { Ok(frame(to)) } else { Err(Errno::EAGAIN) });
    }
    assert!(matches!(rig.inject(tunnel, &frame(own(8))), Err(CommandError::Filtered(_))));
    assert_eq!(rig.core.tunnel(tunnel).unwrap().counters().to_client_dropped.datagrams, 3);
    assert_eq!(set(&mut rig, &filter(1, &nine[..2])), Ok(2));
    assert_eq!(rig.inject(tunnel, &frame([0xff; 6])), Ok(Delivery::Queued(1)), "all multicast");
    assert_eq!(set(&mut rig, &filter(0xffff, &[])), Ok(0));
    assert_eq!(rig.inject(tunnel, &frame(own(8))), Ok(Delivery::Queued(2)), "off");
    assert_eq!(set(&mut rig, &filter(0, &nine[..1])), Ok(1));
    let (_, kept) = (rig.ioctl(file, TUNSETPERSIST, 1, &[]), rig.close(file));
    assert_eq!(kept, ());
    let (file, _) = rig.attached("x", TAP_NO_PI);
    assert!(rig.inject(tunnel, &frame(own(8))).is_err(), "kept by a persistent tap");
    assert_eq!(rig.read(file, 100), Err(Errno::EAGAIN));
}

fn fprog(len: u16, address: u64) -> Vec<u8> {
    let mut program = SockFprog::default();
    program.len = len.into();
    program.filter = address.into();
    program.as_bytes().to_vec()
}

/// `ret #length`.
fn keep(length: u32) -> Vec<u8> {
    [&[6, 0, 0, 0][..], &length.to_ne_bytes()].concat()
}

#[test]
fn packet_filter_is_fetched_in_two_rounds() {
    let mut rig = Rig::new();
    let (file, _) = rig.attached("f", TAP);
    let mut asked = IoctlCall { argument: 0x1000, ..call(TUNATTACHFILTER) };
    let mut ask = |asked: &IoctlCall| {
        let request = rig.ask(Op::Ioctl(file, asked.clone()));
        rig.outcome(request).unwrap()
    };
    let head = UserRange { address: 0x1000, length: 16 };
    let fetch = |second| {
        Ok(Reply::Fetch { input: [head, second], output: UserRange { address: 0x1000, length: 0 } })
    };
    assert_eq!(ask(&asked), fetch(UserRange::default()));
    for (len, address) in [(0, 0x2000), (1, 0), (4097, 0x2000)] {
        asked.input = fprog(len, address).into();
        assert_eq!(ask(&asked), Err(Errno::EINVAL), "{len} at {address:#x}, unread");
    }
    asked.input = fprog(2, 0x2000).into();
    let Ok(Reply::Fetch { input, .. }) = ask(&asked) else { panic!("the program is needed") };
    assert_eq!(input, [head, UserRange { address: 0x2000, length: 16 }]);
    asked.input = [fprog(2, 0x2000), keep(0), keep(0)].concat().into();
    assert!(matches!(ask(&asked), Ok(Reply::Ioctl { result: 0, .. })));
}

#[test]
fn packet_filter_drops_and_cuts() {
    let mut rig = Rig::new();
    let (file, tunnel) = rig.attached("f", TAP);
    let attach = |rig: &mut Rig, program: Vec<u8>| {
        let count = u16::try_from(program.len() / 8).unwrap();
        let bytes = [fprog(count, 0x2000), program].concat();
        rig.ioctl(file, TUNATTACHFILTER, 0x1000, &bytes)
    };
    assert_eq!(rig.ioctl(file, TUNGETFILTER, 0, &[]).unwrap(), [0; 16], "never set");
    assert_eq!(flags_of(&mut rig, file), Ok(0x1002), "IFF_NOFILTER, though there is a PI header");
    attach(&mut rig, keep(14)).unwrap();
    assert_eq!(rig.ioctl(file, TUNGETFILTER, 0, &[]).unwrap(), fprog(1, 0x2000), "the address");
    assert_eq!(flags_of(&mut rig, file), Ok(0x0002));
    rig.inject(tunnel, &frame([2; 6])).unwrap();
    assert_eq!(rig.read(file, 100).unwrap().len(), 4 + 14);
    attach(&mut rig, keep(0)).unwrap();
    assert!(matches!(rig.inject(tunnel, &frame([2; 6])), Err(CommandError::Filtered(_))));
    assert!(rig.inject_from_peer(tunnel, &frame([2; 6])).is_err());
    assert_eq!(rig.core.tunnel(tunnel).unwrap().counters().to_client_dropped.datagrams, 2);

    assert_eq!(attach(&mut rig, vec![0xff; 8]), EINVAL, "no program");
    assert_eq!(flags_of(&mut rig, file), Ok(0x0002), "the queue keeps what it has");
    rig.ioctl(file, TUNDETACHFILTER, 0, &[]).unwrap();
    rig.ioctl(file, TUNDETACHFILTER, 0, &[]).unwrap();
    assert_eq!(flags_of(&mut rig, file), Ok(0x1002));
    assert_eq!(rig.inject(tunnel, &frame([2; 6])), Ok(Delivery::Queued(1)));
}

#[test]
fn packet_filter_goes_with_the_attached_queues() {
    let mut rig = Rig::new();
    let (first, tunnel) = rig.attached("f", TAP | MULTI_QUEUE);
    let (second, _) = rig.attached("f", TAP | MULTI_QUEUE);
    let attach = |rig: &mut Rig, file, program: Vec<u8>| {
        rig.ioctl(file, TUNATTACHFILTER, 0x1000, &[fprog(1, 0x2000), program].concat())
    };
    attach(&mut rig, first, keep(9)).unwrap();
    assert_eq!((flags_of(&mut rig, first), flags_of(&mut rig, second)), (Ok(0x102), Ok(0x102)));
    rig.set_queue(second, 0x400).unwrap();
    rig.ioctl(first, TUNDETACHFILTER, 0, &[]).unwrap();
    assert_eq!(
        (flags_of(&mut rig, first), flags_of(&mut rig, second)),
        (Ok(0x1102), Ok(0x502)),
        "a detached queue keeps it"
    );
    rig.set_queue(second, 0x200).unwrap();
    rig.ioctl(first, TUNDETACHFILTER, 0, &[]).unwrap();
    assert_eq!(flags_of(&mut rig, second), Ok(0x1102));
    attach(&mut rig, first, keep(9)).unwrap();
    let (third, _) = rig.attached("f", TAP | MULTI_QUEUE);
    let (fourth, _) = rig.attached("f", TAP_NO_PI | MULTI_QUEUE);
    assert_eq!((flags_of(&mut rig, third), flags_of(&mut rig, fourth)), (Ok(0x102), Ok(0x1102)));

    for file in [first, second, third, fourth] {
        rig.set_queue(file, 0x400).unwrap();
    }
    assert_eq!(attach(&mut rig, first, vec![0xff; 8]), STORED_NOTHING, "no queue, no check");
    assert_eq!(rig.set_queue(first, 0x200), Err(Errno::EINVAL), "but now");
    assert_eq!(flags_of(&mut rig, first), Ok(0x0102), "it is attached, and has its own");
    rig.delete(tunnel);
    rig.set_iff(first, "t", TUN).unwrap();
    assert_eq!(flags_of(&mut rig, first), Ok(0x0001), "the file's own, even on a tun");
}

/// Measured on Linux 6.18.
#[test]
fn detached_queue_that_gets_a_filter_stays_detached() {
    let mut rig = Rig::new();
    let (file, _) = rig.attached("f", TAP | MULTI_QUEUE);
    rig.set_queue(file, 0x400).unwrap();
    rig.ioctl(file, TUNATTACHFILTER, 0x1000, &[fprog(1, 0x2000), keep(9)].concat()).unwrap();
    for _ in 0..2 {
        assert_eq!((rig.set_queue(file, 0x200), flags_of(&mut rig, file)), (Ok(()), Ok(0x502)));
    }
    assert_eq!(rig.set_queue(file, 0x400), Err(Errno::EINVAL));
    rig.ioctl(file, TUNDETACHFILTER, 0, &[]).unwrap();
    assert_eq!((rig.set_queue(file, 0x200), flags_of(&mut rig, file)), (Ok(()), Ok(0x102)));
}

#[test]
fn link_type_says_how_long_an_address_is() {
    let mut rig = Rig::new();
    let (tap, tunnel) = rig.attached("l", TAP);
    rig.set_link(tunnel, false);
    let mut request = IfReq::zeroed(false);
    request.set_hwaddr(1, [2, 1, 2, 3, 4, 5]);
    rig.ioctl(tap, SIOCSIFHWADDR, 0, request.as_bytes()).unwrap();
    // Measured on Linux 6.18, with 0xbb in the caller's memory.
    for (link_type, expected) in [
        (1, "020102030405bbbbbbbbbbbbbbbb"),
        (0, "02010203040500bbbbbbbbbbbbbb"),
        (6, "020102030405bbbbbbbbbbbbbbbb"),
        (270, "0201020304bbbbbbbbbbbbbbbbbb"),
        (512, "0000000000000000000000000000"),
        (768, "02010203bbbbbbbbbbbbbbbbbbbb"),
        (769, "0201020304050000000000000000"),
        (773, "02bbbbbbbbbbbbbbbbbbbbbbbbbb"),
        (774, "020102030405bbbbbbbbbbbbbbbb"),
        (778, "02010203bbbbbbbbbbbbbbbbbbbb"),
        (804, "0201020304050000bbbbbbbbbbbb"),
        (823, "0201020304050000000000000000"),
        (825, "0201020304050000bbbbbbbbbbbb"),
        (0xfffe, "0000000000000000000000000000"),
    ] {
        rig.ioctl(tap, TUNSETLINK, 0xffff_0000 | link_type, &[]).unwrap();
        let stored = rig.ioctl(tap, SIOCGIFHWADDR, 0, &[0xbb; 40]).unwrap();
        assert_eq!(hex::encode(&stored[18..32]), expected, "{link_type}");
        assert_eq!(u64::from(u16::from_ne_bytes([stored[16], stored[17]])), link_type);
    }
    let set = |rig: &mut Rig, family, address| {
        let mut request = IfReq::zeroed(false);
        request.set_hwaddr(1, address);
        let mut bytes = request.as_bytes().to_vec();
        bytes[16..18].copy_from_slice(&u16::to_ne_bytes(family));
        rig.ioctl(tap, SIOCSIFHWADDR, 0, &bytes)
    };
    rig.ioctl(tap, TUNSETLINK, 512, &[]).unwrap();
    assert_eq!(set(&mut rig, 512, [3, 1, 2, 3, 4, 5]), STORED_NOTHING, "nothing to compare");
    rig.ioctl(tap, TUNSETLINK, 773, &[]).unwrap();
    assert_eq!(
        set(&mut rig, 773, [2, 9, 9, 9, 9, 9]),
        STORED_NOTHING,
        "the first byte is the same"
    );
    assert_eq!(set(&mut rig, 773, [3, 9, 9, 9, 9, 9]), Err(Errno::EADDRNOTAVAIL));
    let address = rig.core.tunnel(tunnel).unwrap().hwaddr();
    assert_eq!(address, Some(MacAddress([2, 1, 2, 3, 4, 5])), "unchanged");
}

const COMMANDS: [u32; 34] = [
    TUNSETIFF,
    TUNGETIFF,
    TUNGETFEATURES,
    TUNSETNOCSUM,
    TUNSETDEBUG,
    TUNSETPERSIST,
    TUNSETOWNER,
    TUNSETGROUP,
    TUNSETLINK,
    TUNSETOFFLOAD,
    TUNSETTXFILTER,
    TUNGETSNDBUF,
    TUNSETSNDBUF,
    TUNATTACHFILTER,
    TUNDETACHFILTER,
    TUNGETFILTER,
    TUNGETVNETHDRSZ,
    TUNSETVNETHDRSZ,
    TUNSETQUEUE,
    TUNSETIFINDEX,
    TUNGETVNETLE,
    TUNSETVNETLE,
    TUNGETVNETBE,
    TUNSETVNETBE,
    TUNSETSTEERINGEBPF,
    TUNSETFILTEREBPF,
    TUNSETCARRIER,
    SIOCGIFHWADDR,
    SIOCSIFHWADDR,
    TUNGETDEVNETNS,
    SIOCGSKNS,
    ioctl::IS_DEVNETNS,
    ioctl::IS_SKNS,
    0x89ff,
];

/// A call with whatever in it: what a front end would never pass too.
fn any_call() -> impl Strategy<Value = IoctlCall> {
    let command = prop_oneof![9 => prop::sample::select(&COMMANDS[..]), 1 => any::<u32>()];
    let length = prop::sample::select(&[0_usize, 3, 4, 10, 16, 24, 32, 40, 64][..]);
    let input = length.prop_flat_map(|length| prop::collection::vec(any::<u8>(), length));
    let room = prop::sample::select(&[0_usize, 4, 16, 32, 40][..]);
    (command, any::<u64>(), any::<bool>(), input, room).prop_map(
        |(command, argument, compat, input, output_room)| IoctlCall {
            command,
            argument,
            compat,
            credentials: None,
            input: input.into(),
            output_room,
        },
    )
}

proptest! {
    /// Whatever the arguments are, each call is answered once, and asks for no more than a front end can fetch.
    #[test]
    fn random_bytes_in_an_ioctl_do_no_harm(calls in prop::collection::vec((0..3_usize, any_call()), 1..40)) {
        let mut rig = Rig::new();
        let files = [rig.open(), rig.attached("f", TAP | MULTI_QUEUE).0, rig.attached("f", TAP | MULTI_QUEUE).0];
        for (file, mut asked) in calls {
            for round in 0..4 {
                let request = rig.ask(Op::Ioctl(files[file], asked.clone()));
                match rig.outcome(request).expect("it is answered at once") {
                    Ok(Reply::Fetch { input, output }) => {
                        let length = input[0].length + input[1].length;
                        prop_assert!(length <= 4 + 6 * 65_535 && output.length <= 40);
                        // What a front end fetches: the head that is there already, and whatever is behind it.
                        let mut bytes = asked.input.to_vec();
                        bytes.resize(length, 0x5a);
                        asked.input = bytes.into();
                        asked.output_room = output.length;
                        prop_assert!(round < 3, "{:#x} does not come to an end", asked.command);
                    }
                    Ok(Reply::Ioctl { result, output }) => {
                        prop_assert!((0..=8).contains(&result));
                        prop_assert!(output.as_bytes().len() <= asked.output_room);
                        break;
                    }
                    Err(_) => break,
                    Ok(other) => prop_assert!(false, "{:#x} gave {other:?}", asked.command),
                }
            }
            let tunnels: Vec<TunnelId> = rig.core.tunnels().map(Tunnel::id).collect();
            for tunnel in tunnels {
                let _any = rig.inject(tunnel, &frame([0xff; 6]));
            }
        }
    }
}
