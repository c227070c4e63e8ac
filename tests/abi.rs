//! The parts of the tun driver's interface that clients seldom use, by real system calls.

use std::{process::Command, thread};

use memtun::abi::tun::ioctl::{
    TUNATTACHFILTER, TUNDETACHFILTER, TUNGETFILTER, TUNSETCARRIER, TUNSETIFINDEX, TUNSETQUEUE,
    TUNSETSTEERINGEBPF, TUNSETTXFILTER,
};
use memtun_client::proto::{set::Set, wait::Until};
use nix::{
    errno::Errno,
    poll::{PollFlags, PollTimeout},
    sched::{CloneFlags, unshare},
};

use crate::{
    DeviceTest,
    device::{inject, take},
    support::{
        Background,
        daemon::{Backend, Daemon},
        datagram,
        device::{MULTI_QUEUE, NO_PI, TAP, TUN, TunFile},
        program::{Program, compiled},
    },
};

pub const TESTS: &[DeviceTest] = &[
    ("tx_filter_is_fetched_in_two_rounds", tx_filter_is_fetched_in_two_rounds),
    ("packet_filter_is_fetched_from_where_it_is", packet_filter_is_fetched_from_where_it_is),
    ("queues_are_detached_and_attached", queues_are_detached_and_attached),
    ("settings_are_those_of_an_interface", settings_are_those_of_an_interface),
    ("client_sets_carrier_and_number", client_sets_carrier_and_number),
    ("deleted_tunnel_leaves_its_file", deleted_tunnel_leaves_its_file),
    (
        "a_name_is_one_tunnel_in_each_network_namespace",
        a_name_is_one_tunnel_in_each_network_namespace,
    ),
    ("net_admin_is_required_if_asked", net_admin_is_required_if_asked),
];

const UNMAPPED: usize = 16;

fn frame(to: u8) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, 9, 0x88, 0xb5][..], &datagram(1)].concat()
}

/// Puts a frame on its way to tap0; whether the client's filters let it through.
fn passes(daemon: &Daemon, frame: &[u8]) -> bool {
    let run = daemon.memtun_with_input(&["inject", "tap0", "--frame"], frame);
    if run.status == 0 {
        return true;
    }
    assert!(run.failed(1).contains("a filter that the client of tunnel tap0 has set drops"));
    false
}

fn tx_filter_is_fetched_in_two_rounds(backend: Backend) {
    let daemon = Daemon::start(backend);
    let tap = TunFile::attached(&daemon.device, "tap0", TAP | NO_PI);
    let mut filter = [0, 0, 2, 0, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    assert_eq!(tap.ioctl(TUNSETTXFILTER, &mut filter), Ok(2), "so many are compared");
    assert_eq!([1, 2, 3].map(|last| passes(&daemon, &frame(last))), [true, true, false]);
    assert_eq!(tap.ioctl_value(TUNSETTXFILTER, UNMAPPED), Err(Errno::EFAULT));
    assert_eq!(tap.ioctl(TUNSETTXFILTER, &mut [0; 4]), Ok(0));
    assert!(passes(&daemon, &frame(3)));
}

fn packet_filter_is_fetched_from_where_it_is(backend: Backend) {
    let daemon = Daemon::start(backend);
    let tap = TunFile::attached(&daemon.device, "tap0", TAP | NO_PI);
    // ldb [5]; jeq #1, 0, 1; ret #20; ret #0: the head of frames to the first address.
    let program: [u8; 32] = [
        0x30, 0, 0, 0, 5, 0, 0, 0, 0x15, 0, 0, 1, 1, 0, 0, 0, 6, 0, 0, 0, 20, 0, 0, 0, 6, 0, 0, 0,
        0, 0, 0, 0,
    ];
    let fprog = |address: usize| {
        let mut fprog = [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        fprog[8..].copy_from_slice(&address.to_ne_bytes());
        fprog
    };
    assert_eq!(tap.ioctl(TUNATTACHFILTER, &mut fprog(UNMAPPED)), Err(Errno::EFAULT));
    assert_eq!(tap.ioctl(TUNATTACHFILTER, &mut fprog(0)), Err(Errno::EINVAL));
    let mut given = fprog(program.as_ptr().addr());
    assert_eq!(tap.ioctl(TUNATTACHFILTER, &mut given), Ok(0));
    assert!(passes(&daemon, &frame(1)) && !passes(&daemon, &frame(2)));
    assert_eq!(tap.read(), Ok(frame(1)[..20].to_vec()), "cut");
    let mut stored = [0xff; 16];
    assert_eq!(tap.ioctl(TUNGETFILTER, &mut stored), Ok(0));
    assert_eq!(stored, given, "the address, not the program");
    assert_eq!(tap.ioctl(TUNDETACHFILTER, &mut stored), Ok(0));
    assert!(passes(&daemon, &frame(2)));
}

fn queues_are_detached_and_attached(backend: Backend) {
    let daemon = Daemon::start(backend);
    let flags = TUN | NO_PI | MULTI_QUEUE;
    let files = [(); 2].map(|()| TunFile::attached(&daemon.device, "tun0", flags));
    let set_queue = |file: &TunFile, flags: u16| {
        let mut request = [0; 40];
        request[16..18].copy_from_slice(&flags.to_ne_bytes());
        file.ioctl(TUNSETQUEUE, &mut request)
    };
    assert_eq!(files[0].ioctl_value(TUNSETQUEUE, UNMAPPED), Err(Errno::EFAULT));
    assert_eq!(set_queue(&files[0], 0), Err(Errno::EINVAL));
    assert_eq!(set_queue(&files[0], 0x400), Ok(0));
    assert_eq!(files[0].get_iff().map(|(_, flags)| flags.bits()), Ok(0x1501));
    let mut client = daemon.client();
    for number in 0..8 {
        inject(&mut client, "tun0", &datagram(number));
        assert_eq!(files[1].read(), Ok(datagram(number)), "none goes to the detached one");
    }
    assert_eq!(files[0].write(&datagram(1)), Ok(28));
    assert_eq!(take(&mut client, "tun0"), datagram(1));
    let tunnel = &daemon.list().tunnels[0];
    assert_eq!(tunnel.files.iter().map(|file| file.detached).collect::<Vec<_>>(), [false, true]);
    assert_eq!(set_queue(&files[0], 0x200), Ok(0));
    assert_eq!(set_queue(&files[0], 0x200), Err(Errno::EINVAL));
}

fn settings_are_those_of_an_interface(backend: Backend) {
    let daemon = Daemon::start(backend);
    let tap = TunFile::attached(&daemon.device, "tap0", TAP | NO_PI);
    let words = "mtu 1400 mac 02:00:00:00:00:07 name lan%d carrier off txqueuelen 5 down";
    let arguments = ["set", "tap0"].into_iter().chain(words.split(' ')).collect::<Vec<_>>();
    assert_eq!(daemon.memtun(&arguments).succeeded(), "");
    let tunnel = &daemon.list().tunnels[0];
    assert_eq!((tunnel.name.as_str(), tunnel.link.as_str()), ("lan0", "down"));
    assert_eq!((tunnel.mtu, tunnel.carrier, tunnel.txqueuelen), (1400, false, 5));
    assert_eq!(tunnel.hwaddr.as_deref(), Some("02:00:00:00:00:07"));
    assert_eq!(tap.get_iff().map(|(name, _)| name), Ok("lan0".to_owned()), "the client sees it");
    let hint = daemon.memtun(&["set", "lan0", "up", "mtu", "65522"]).failed(1);
    assert!(hint.contains("give one from 68 to 65521"), "{hint}");
    assert_eq!(daemon.list().tunnels[0].link, "down", "nothing else was done either");
    let set = Set { txqueuelen: Some(u32::MAX), ..Set::new("lan0") };
    assert!(daemon.client().call(&set).is_err());
    daemon.memtun(&["set", "lan0", "up"]).succeeded();
    let hint = daemon.memtun_with_input(&["inject", "lan0", "--frame"], &frame(1)).failed(1);
    assert!(hint.contains("has no carrier"), "{hint}");
}

fn client_sets_carrier_and_number(backend: Backend) {
    let daemon = Daemon::start(backend);
    let tun = TunFile::open(&daemon.device);
    assert_eq!(tun.ioctl_value(TUNSETIFINDEX, UNMAPPED), Err(Errno::EFAULT));
    assert_eq!(tun.ioctl(TUNSETIFINDEX, &mut 777_u32.to_ne_bytes()), Ok(0));
    tun.set_iff("tun0", TUN | NO_PI).unwrap();
    assert_eq!(tun.ioctl(TUNSETIFINDEX, &mut [0; 4]), Err(Errno::EPERM), "attached");
    assert_eq!(daemon.list().tunnels[0].ifindex, 777);
    let other = TunFile::open(&daemon.device);
    assert_eq!(other.ioctl(TUNSETIFINDEX, &mut 777_u32.to_ne_bytes()), Ok(0));
    assert_eq!(other.set_iff("tun1", TUN), Err(Errno::EBUSY));
    assert_eq!(tun.ioctl(TUNSETCARRIER, &mut [0; 4]), Ok(0));
    assert!(!daemon.list().tunnels[0].carrier);
    let mut removed = (-1_i32).to_ne_bytes();
    assert_eq!(tun.ioctl(TUNSETSTEERINGEBPF, &mut removed), Ok(0));
    assert_eq!(removed, (-1_i32).to_ne_bytes(), "though the command says that it stores");
}

fn deleted_tunnel_leaves_its_file(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let reader = {
        let file = file.try_clone();
        Background::start(move || file.read())
    };
    daemon.wait_until("tun0", Until::Reading);
    assert_eq!(daemon.memtun(&["delete", "tun0"]).succeeded(), "");
    assert_eq!(reader.join("the blocked read"), Err(Errno::EFAULT));
    assert_eq!(file.read(), Err(Errno::EBADFD));
    assert_eq!(file.write(&datagram(1)), Err(Errno::EBADFD));
    assert_eq!(file.poll(PollFlags::POLLIN, PollTimeout::NONE), PollFlags::POLLERR);
    assert!(daemon.list().tunnels.is_empty());
    assert_eq!(daemon.memtun(&["wait", "tun0", "detached"]).succeeded(), "");
    let hint = daemon.memtun(&["delete", "tun0"]).failed(1);
    assert!(hint.contains("no tunnel tun0"), "{hint}");
    assert_eq!(file.set_iff("tap%d", TAP | NO_PI), Ok("tap0".to_owned()), "the same file");
}

fn a_name_is_one_tunnel_in_each_network_namespace(backend: Backend) {
    let daemon = Daemon::start(backend);
    let flags = TUN | NO_PI | MULTI_QUEUE;
    let here = TunFile::attached(&daemon.device, "tun0", flags);
    let device = daemon.device.clone();
    // Only the thread moves, and what it opens belongs where it is.
    let there = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
        let [first, second] = [(); 2].map(|()| TunFile::open(&device));
        assert_eq!(first.set_iff("tun0", TUN | NO_PI), Ok("tun0".to_owned()), "it is free there");
        assert_eq!(second.set_iff("tun0", TUN | NO_PI), Err(Errno::EBUSY), "it is not, any more");
        assert_eq!(second.set_iff("tun0", flags), Err(Errno::EINVAL), "nor is it the other one");
        (first, second)
    });
    let (there, unattached) = there.join().expect("it does not panic");
    let _same = TunFile::attached(&daemon.device, "tun0", flags);
    let late = TunFile::open(&daemon.device);
    assert_eq!(late.set_iff("tun0", TUN | NO_PI), Err(Errno::EINVAL), "another kind of tunnel");
    assert_eq!(
        unattached.set_iff("tun%d", TUN | NO_PI),
        Ok("tun1".to_owned()),
        "where it was opened"
    );

    let tunnels = daemon.list().tunnels;
    let known: Vec<(&str, usize)> =
        tunnels.iter().map(|tunnel| (tunnel.name.as_str(), tunnel.files.len())).collect();
    assert_eq!(known, [("tun0", 2), ("tun0", 1), ("tun1", 1)]);
    assert_eq!(tunnels[1].scope, tunnels[2].scope);
    assert_ne!(tunnels[0].scope, tunnels[1].scope);
    let hint = daemon.memtun(&["take", "tun0"]).failed(1);
    assert!(hint.contains("ambiguous"), "{hint}");
    let mut client = daemon.client();
    for (file, tunnel, number) in [(&here, &tunnels[0], 1), (&there, &tunnels[1], 2)] {
        file.write(&datagram(number)).unwrap();
        let address = format!("tun0@{}", tunnel.scope);
        assert_eq!(take(&mut client, &address), datagram(number));
    }
}

fn net_admin_is_required_if_asked(backend: Backend) {
    let said = |daemon: &Daemon, options: &[&str], name: &str| {
        let mut command = Command::new(options[0]);
        command.args(&options[1..]).arg(compiled("reader")).arg(&daemon.device).arg(name);
        let reader = Program::start(&mut command);
        reader.line()
    };
    let without = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];
    let daemon = Daemon::start(backend);
    assert_eq!(said(&daemon, &without, "tun0"), "attached tun0", "nobody is asked");
    let daemon = Daemon::start_with(backend, &["--require-net-admin"]);
    assert_eq!(said(&daemon, &without, "tun0"), "failed EPERM");
    // An ordinary user has the capability only over a network namespace of their own.
    assert_eq!(said(&daemon, &["unshare", "--net"], "tun0"), "attached tun0");
    if backend == Backend::Cuse {
        owner_is_let_in(&daemon, |name| said(&daemon, &without, name));
    }
}

/// The kernel lets no file set owner and persistence.
fn owner_is_let_in(daemon: &Daemon, said: impl Fn(&str) -> String) {
    use memtun::abi::tun::ioctl::{TUNSETGROUP, TUNSETOWNER, TUNSETPERSIST};
    for (name, owner, group, expected) in [
        ("mine", Some(0), None, "attached mine"),
        ("yours", Some(12_345), None, "failed EPERM"),
        ("our", Some(0), Some(0), "attached our"),
        ("their", Some(0), Some(12_345), "failed EPERM"),
    ] {
        let file = TunFile::attached(&daemon.device, name, TUN | NO_PI);
        for (command, id) in [(TUNSETOWNER, owner), (TUNSETGROUP, group)] {
            if let Some(id) = id {
                file.ioctl_value(command, id).unwrap();
            }
        }
        file.ioctl_value(TUNSETPERSIST, 1).unwrap();
        daemon.close(file);
        assert_eq!(said(name), expected);
    }
}
