//! Network devices beside tunnels: `memtun::netdev` against this kernel, in network namespaces that each test makes.

mod rig;

use std::{
    collections::BTreeMap,
    io::IoSlice,
    net::UdpSocket,
    path::Path,
    sync::{Arc, Mutex, mpsc},
};

use bytes::Bytes;
use memtun::{
    abi::{
        tun::{IfFlags, Name, TunPi},
        virtio_net::VnetHeader,
    },
    core::{
        Core, Credentials, FileId, Instant, Interface, Limits, Look, MacAddress, MadeNetdev,
        NetdevRequest, Op, Origin, Request, RequestId, Scope, Sent, TunnelId, User, input,
    },
    netdev::{Client, Kind, Listener, MakeError, Netdevs, News, Rights, Setting, State, TunNode},
    netns::Network as Netns,
};
use nix::errno::Errno;

use self::rig::*;
use crate::support::{DEADLINE, device::TunFile, network::Network};

pub const TESTS: &[(&str, fn())] = &[
    ("looks_as_one_that_the_client_made", looks_as_one_that_the_client_made),
    ("kernel_chooses_the_name", kernel_chooses_the_name),
    ("what_others_change_is_told", what_others_change_is_told),
    ("change_is_known_before_a_call_goes_on", change_is_known_before_a_call_goes_on),
    ("burst_of_changes_ends_in_the_last_one", burst_of_changes_ends_in_the_last_one),
    ("what_is_set_shows", what_is_set_shows),
    ("datagrams_pass_both_ways", datagrams_pass_both_ways),
    ("write_gets_the_kernels_error", write_gets_the_kernels_error),
    ("deleted_link_is_gone", deleted_link_is_gone),
    ("moved_link_is_followed", moved_link_is_followed),
    ("removed_link_is_gone_before_it_is_said", removed_link_is_gone_before_it_is_said),
    ("persistent_link_stays_and_is_found_again", persistent_link_stays_and_is_found_again),
    ("long_message_of_the_kernel_is_read", long_message_of_the_kernel_is_read),
    ("messages_of_others_are_not_heard", messages_of_others_are_not_heard),
    ("callers_rights_decide_what_is_attached", callers_rights_decide_what_is_attached),
    ("queue_of_another_program_stays", queue_of_another_program_stays),
    ("taken_name_is_the_kernels_error", taken_name_is_the_kernels_error),
    ("substitute_can_be_configured", substitute_can_be_configured),
    ("substitute_passes_no_datagrams", substitute_passes_no_datagrams),
    ("many_that_go_hold_up_nobody", many_that_go_hold_up_nobody),
    ("name_that_goes_is_waited_for", name_that_goes_is_waited_for),
];

/// Why they cannot run here.
pub fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("only root can make network namespaces".to_owned());
    }
    let open = std::fs::File::options().read(true).write(true).open("/dev/net/tun");
    open.err().map(|error| format!("/dev/net/tun: {error}"))
}

fn looks_as_one_that_the_client_made() {
    let rig = Rig::new();
    let sys = |name: &str| {
        let file = format!("/sys/class/net/{name}/tun_flags");
        let script = format!("mount -t sysfs sysfs /sys && cat {file}");
        let mut command = rig.network.command();
        let output = command.args(["unshare", "-m", "sh", "-c", &script]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    for (number, (flags, options)) in [
        (TUN, "mode tun"),
        (IfFlags::TUN, "mode tun pi"),
        (TAP | IfFlags::VNET_HDR | IfFlags::MULTI_QUEUE, "mode tap vnet_hdr multi_queue"),
        (TAP | IfFlags::ONE_QUEUE, "mode tap one_queue"),
    ]
    .into_iter()
    .zip(0..)
    .map(|(case, number)| (number, case))
    {
        let id = TunnelId(number);
        let made = rig.try_make(id, spec("ours", flags)).unwrap();
        assert_eq!(rig.netdevs.kind(id), Some(Kind::Tun));
        assert!(!made.persistent && !made.state.up);
        rig.set_of(id, Setting::Persistent(true)).unwrap();
        let mut add = vec!["tuntap", "add", "dev", "theirs"];
        add.extend(options.split(' '));
        rig.network.ip(&add);
        assert_eq!(sys("ours"), sys("theirs"), "{options}");
        let compared = |name: &str| {
            let mut shown = rig.shown(name);
            for differs in ["ifindex", "ifname", "address"] {
                shown.as_object_mut().unwrap().remove(differs);
            }
            // `ip tuntap` has closed its queue.
            shown["linkinfo"]["info_data"].as_object_mut().unwrap().remove("numqueues");
            shown
        };
        assert_eq!(compared("ours"), compared("theirs"), "{options}");
        rig.network.ip(&["link", "delete", "theirs"]);
        rig.network.ip(&["link", "delete", "ours"]);
        rig.hear("its end", |heard| (*heard == Heard::Gone).then_some(()));
    }
}

fn kernel_chooses_the_name() {
    let rig = Rig::new();
    rig.network.ip(&["tuntap", "add", "dev", "tun0", "mode", "tun"]);
    rig.network.ip(&["tuntap", "add", "dev", "of0it", "mode", "tun"]);
    let names: Vec<String> = ["", "", "of%dit"]
        .iter()
        .zip(0..)
        .map(|(name, number)| {
            let made = rig.try_make(TunnelId(number), spec(name, TUN)).unwrap();
            made.state.name.to_string()
        })
        .collect();
    assert_eq!(names, ["tun1", "tun2", "of1it"]);
}

fn what_others_change_is_told() {
    let rig = Rig::new();
    let made = rig.make("tap0", TAP);
    assert_eq!((made.state.mtu, made.state.queue_length), (1500, 1000));
    assert!(made.state.address.is_some_and(|address| address.0[0] & 3 == 2));
    rig.network.ip(&["link", "set", "tap0", "up"]);
    rig.hear_state("up", |state| state.up);
    rig.network.ip(&["link", "set", "tap0", "mtu", "1400", "txqueuelen", "7"]);
    rig.hear_state("MTU", |state| state.mtu == 1400 && state.queue_length == 7);
    rig.network.ip(&["link", "set", "tap0", "address", "02:00:00:00:00:09"]);
    rig.hear_state("address", |state| state.address == Some(MacAddress([2, 0, 0, 0, 0, 9])));
    rig.network.ip(&["link", "set", "tap0", "down"]);
    rig.hear_state("down", |state| !state.up);
    rig.network.ip(&["link", "set", "tap0", "name", "else"]);
    let state = rig.hear_state("name", |state| state.name == Name::new(b"else"));
    assert_eq!(rig.state_of(LINK), state);
    assert_eq!(state.index, made.state.index);
    assert!(!state.up && state.mtu == 1400);
}

fn change_is_known_before_a_call_goes_on() {
    let rig = Rig::new();
    rig.make("tun0", TUN);
    for number in 0..20 {
        let up = number % 2 == 0;
        rig.network.ip(&["link", "set", "tun0", if up { "up" } else { "down" }]);
        let request = Request { id: ASKER, op: Op::Poll { file: QUEUE, arm: None } };
        rig.netdevs.look(Look { tunnel: LINK, sent: Sent::Nothing }, Box::new(request));
        let answer = rig.answers.recv_timeout(DEADLINE);
        assert!(matches!(answer, Ok(Answer::GoneOn)), "{answer:?}");
        assert_eq!(rig.state_of(LINK).up, up, "{number}");
    }
}

/// The listener is kept busy while more happens than a socket's buffer holds.
fn burst_of_changes_ends_in_the_last_one() {
    let (go_on, wait) = mpsc::channel();
    let rig = Rig::with(TunNode::find(), Some(wait));
    rig.make("tun0", TUN);
    let lines: String = (0..3000)
        .map(|number| format!("link set tun0 mtu {}\n", 1000 + number % 2 + number / 2))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("batch");
    std::fs::write(&path, lines).unwrap();
    rig.network.ip(&["-batch", path.to_str().unwrap()]);
    drop(go_on);
    rig.hear_state("the last MTU", |state| state.mtu == 2500);
    rig.network.ip(&["link", "set", "tun0", "up"]);
    let state = rig.hear_state("what comes after", |state| state.up);
    assert_eq!(state.mtu, 2500);
}

fn what_is_set_shows() {
    let rig = Rig::new();
    rig.make("tap0", TAP);
    for setting in [
        Setting::Mtu(1300),
        Setting::Address(MacAddress([2, 0, 0, 0, 0, 7])),
        Setting::QueueLength(9),
        Setting::Owner(1234),
        Setting::Group(5678),
        Setting::Persistent(true),
        Setting::Offload(0),
        Setting::Up(true),
        Setting::Carrier(false),
    ] {
        rig.set(setting).unwrap_or_else(|errno| panic!("{setting:?}: {errno}"));
    }
    let shown = rig.shown("tap0");
    assert_eq!(shown["mtu"], 1300);
    assert_eq!(shown["address"], "02:00:00:00:00:07");
    assert_eq!(shown["txqlen"], 9);
    assert_eq!(shown["linkinfo"]["info_data"]["user"], 1234);
    assert_eq!(shown["linkinfo"]["info_data"]["group"], 5678);
    assert_eq!(shown["linkinfo"]["info_data"]["persist"], true);
    let flags = shown["flags"].as_array().unwrap();
    assert!(flags.contains(&"UP".into()) && flags.contains(&"NO-CARRIER".into()), "{flags:?}");
    assert_eq!(rig.set(Setting::LinkType(1)), Err(Errno::EBUSY));
    assert_eq!(
        rig.set(Setting::Address(MacAddress([1, 0, 0, 0, 0, 7]))),
        Err(Errno::EADDRNOTAVAIL)
    );
    assert_eq!(rig.set(Setting::Mtu(20)), Err(Errno::EINVAL));
    rig.set(Setting::Carrier(true)).unwrap();
    rig.set(Setting::Persistent(false)).unwrap();
    // Before Linux 6.2 a link that is up cannot be renamed.
    rig.set(Setting::Up(false)).unwrap();
    let state = rig.set(Setting::Name(Name::new(b"other"))).unwrap();
    assert_eq!((state.name, state.mtu), (Name::new(b"other"), 1300));
    assert_eq!(rig.state_of(LINK), state);
}

/// An answer to a UDP datagram: addresses and ports changed over, which leaves the checksums as they are.
pub fn echo(request: &[u8]) -> Vec<u8> {
    let mut reply = request.to_vec();
    for (a, b, length) in [(12, 16, 4), (20, 22, 2)] {
        reply[a..a + length].copy_from_slice(&request[b..b + length]);
        reply[b..b + length].copy_from_slice(&request[a..a + length]);
    }
    reply
}

fn datagrams_pass_both_ways() {
    // With all the headers that there are, before an IP datagram.
    let all = TunPi::SIZE + VnetHeader::TUNNEL_SIZE;
    for (flags, headers) in [(TUN, 0), (IfFlags::TUN | IfFlags::VNET_HDR, all)] {
        let rig = Rig::new();
        rig.make("tun0", flags);
        rig.network.ip(&["address", "add", "10.9.0.1", "peer", "10.9.0.2", "dev", "tun0"]);
        rig.network.ip(&["link", "set", "tun0", "up"]);
        let socket = rig.network.inside(|| UdpSocket::bind("10.9.0.1:0").unwrap());
        socket.connect("10.9.0.2:7").unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.send(b"hello").unwrap();
        let request = rig.hear("a datagram of UDP", |heard| match heard {
            Heard::Readable(QUEUE) => {
                rig.netdevs.receive(LINK, QUEUE);
                let mut taken = rig.ear.taken.lock().unwrap();
                taken.drain(..).find(|bytes| bytes.get(headers + 9) == Some(&17))
            }
            Heard::Readable(_) | Heard::Changed(_) | Heard::Gone => None,
        });
        let (head, body) = request.split_at(headers);
        assert_eq!(body.len(), 20 + 8 + 5);
        let written = rig.write(&[head, &echo(body)].concat());
        assert_eq!(written, Ok(request.len()));
        let mut answer = [0; 9];
        assert_eq!(socket.recv(&mut answer).unwrap(), 5);
        assert_eq!(&answer[..5], b"hello");
    }
}

fn write_gets_the_kernels_error() {
    let rig = Rig::new();
    rig.make("tun0", TUN | IfFlags::VNET_HDR);
    let datagram = crate::support::datagram(1);
    let with_type = |gso_type| {
        let mut head = [0; VnetHeader::TUNNEL_SIZE];
        head[1] = gso_type;
        [&head[..], &datagram].concat()
    };
    assert_eq!(rig.write(&with_type(0)), Err(Errno::EIO));
    rig.set(Setting::Up(true)).unwrap();
    assert_eq!(rig.write(&with_type(0)), Ok(VnetHeader::TUNNEL_SIZE + datagram.len()));
    // A GSO type that there is not.
    assert_eq!(rig.write(&with_type(2)), Err(Errno::EINVAL));
    assert_eq!(rig.netdevs.write(LINK, FileId(999), &[]), Err(Errno::EBADFD));
}

fn deleted_link_is_gone() {
    let rig = Rig::new();
    rig.make("tun0", TUN);
    rig.network.ip(&["link", "delete", "tun0"]);
    rig.hear("its end", |heard| (*heard == Heard::Gone).then_some(()));
    assert_eq!(rig.write(&crate::support::datagram(1)), Err(Errno::EBADFD));
    assert_eq!(rig.set(Setting::Up(true)), Err(Errno::EBADFD));
    // A number is not used again, the name may be.
    rig.try_make(TunnelId(2), spec("tun0", TUN)).unwrap();
    assert!(rig.heard.try_recv().is_err(), "nothing more is heard");
}

fn moved_link_is_followed() {
    let rig = Rig::new();
    rig.make("tun0", TUN);
    let other = Network::new();
    rig.network.ip(&["link", "set", "tun0", "netns", &other.path()]);
    other.ip(&["link", "set", "tun0", "mtu", "1234"]);
    other.ip(&["link", "set", "tun0", "up"]);
    rig.hear_state("MTU and up in the other namespace", |state| state.mtu == 1234 && state.up);
    assert_eq!(rig.write(&crate::support::datagram(1)), Ok(28));
    let state = rig.set(Setting::Mtu(1300)).unwrap();
    assert_eq!(show(&other, "tun0")["mtu"], 1300);
    assert_eq!(state.mtu, 1300);
    rig.remove();
    assert!(!exists(&other, "tun0"));
}

fn removed_link_is_gone_before_it_is_said() {
    let rig = Rig::new();
    for flags in [TUN, TAP | IfFlags::MULTI_QUEUE] {
        rig.make("tun0", flags);
        if flags.contains(IfFlags::MULTI_QUEUE) {
            let (tunnel, file, rights, asker) = (LINK, FileId(11), Rights::Admin, ASKER);
            let answer = rig.answered(NetdevRequest::Open { tunnel, file, flags, rights, asker });
            assert!(matches!(answer, Answer::Done(Ok(()))), "{answer:?}");
            assert_eq!(rig.shown("tun0")["linkinfo"]["info_data"]["numqueues"], 2);
        }
        rig.remove();
        assert!(!exists(&rig.network, "tun0"));
        assert_eq!(rig.write(&[]), Err(Errno::EBADFD));
    }
    assert!(!rig.heard.try_iter().any(|heard| heard == Heard::Gone), "its remover knows");
}

fn persistent_link_stays_and_is_found_again() {
    let rig = Rig::new();
    rig.make("tun0", TUN);
    rig.set(Setting::Persistent(true)).unwrap();
    rig.set(Setting::Mtu(1300)).unwrap();
    rig.remove();
    assert!(exists(&rig.network, "tun0"));
    let made = rig.try_make(TunnelId(2), spec("tun0", TUN)).unwrap();
    assert!(made.persistent);
    assert_eq!(made.state.mtu, 1300);
}

fn taken_name_is_the_kernels_error() {
    let rig = Rig::new();
    rig.network.ip(&["link", "add", "taken", "type", "veth", "peer", "other"]);
    rig.network.ip(&["tuntap", "add", "dev", "tap0", "mode", "tap"]);
    let refused = |name: &str, flags| {
        let error = rig.try_make(LINK, spec(name, flags)).unwrap_err();
        (error.errno, error.text)
    };
    let (errno, text) = refused("taken", TUN);
    assert_eq!(errno, Errno::EINVAL);
    assert_eq!(text, "making interface taken: Invalid argument; another program may have the name");
    assert_eq!(refused("taken", TUN | IfFlags::TUN_EXCL).0, Errno::EBUSY);
    assert_eq!(refused("tap0", TUN).0, Errno::EINVAL);
    assert_eq!(refused("a/b", TUN).0, Errno::EINVAL);
    rig.make("tun0", TUN);
    let error = rig.try_make(TunnelId(2), spec("tun0", TUN)).unwrap_err();
    assert_eq!(error.errno, Errno::EBUSY);
}

/// Whoever is root in a namespace may give a link so many names that the kernel's message about it has 20 KiB.
fn long_message_of_the_kernel_is_read() {
    let rig = Rig::new();
    rig.make("tun0", TUN);
    let names: Vec<String> = (0..140).map(|number| format!("{number:0120}")).collect();
    let lines: String =
        names.iter().map(|name| format!("link property add dev tun0 altname {name}\n")).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("batch");
    std::fs::write(&path, lines).unwrap();
    rig.network.ip(&["-batch", path.to_str().unwrap()]);
    assert!(rig.set(Setting::Mtu(1400)).unwrap().mtu == 1400, "an answer");
    rig.network.ip(&["link", "set", "tun0", "up"]);
    rig.hear_state("news", |state| state.up);
    assert!(rig.state_of(LINK).up);
}

/// A socket of rtnetlink takes messages of anybody who may administer its namespace.
fn messages_of_others_are_not_heard() {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket,
    };
    use std::os::fd::AsRawFd;
    let rig = Rig::new();
    let made = rig.make("tun0", TUN);
    // Columns of the list: the address of the socket, the protocol, and the number of the port.
    let listed = rig.network.command().args(["cat", "/proc/net/netlink"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let ports: Vec<u32> = listed
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields[1] == "0" && fields[2] != "0")
        .filter_map(|fields| fields[2].parse().ok())
        .collect();
    assert_eq!(ports.len(), 3, "two for requests, one for news: {listed}");
    // Its number is that of the answer that is next, whichever that is.
    let gone =
        memtun::abi::rtnetlink::Request::new(memtun::abi::rtnetlink::DELLINK, 0, made.state.index);
    rig.network.inside(|| {
        let protocol = SockProtocol::NetlinkRoute;
        let sender =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), protocol).unwrap();
        for number in 1..100 {
            let mut bytes = gone.clone().into_bytes(number);
            // NLMSG_ERROR: the request has failed, with EPERM.
            if number % 2 == 0 {
                bytes[4] = 2;
                bytes[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
            }
            for port in &ports {
                let address = NetlinkAddr::new(*port, 0);
                let flags = MsgFlags::empty();
                assert_eq!(sendto(sender.as_raw_fd(), &bytes, &address, flags), Ok(bytes.len()));
            }
        }
    });
    assert_eq!(rig.set(Setting::Mtu(1400)).map(|state| state.mtu), Ok(1400));
    rig.network.ip(&["link", "set", "tun0", "up"]);
    rig.hear_state("news of the kernel's", |state| state.up);
    assert!(!rig.heard.try_iter().any(|heard| heard == Heard::Gone));
}

/// As the kernel's tun has it for whoever calls it.
fn callers_rights_decide_what_is_attached() {
    let rig = Rig::new();
    let add = |name: &str, more: &[&str]| {
        rig.network.ip(&[&["tuntap", "add", "dev", name, "mode", "tun"], more].concat());
    };
    add("roots", &["user", "0"]);
    add("groups", &["group", "50"]);
    add("others", &["user", "1234"]);
    add("free", &[]);
    add("theirs", &["user", "77", "group", "50"]);
    let try_by = |id: u32, name: &str, uid: u32, groups: &[u32], may_make: bool| {
        let caller = Credentials { uid, groups: groups.to_vec(), ..Credentials::default() };
        let rights = Rights::Of { caller: Box::new(caller), may_make };
        let made = rig.try_make(TunnelId(id), Spec { rights, ..spec(name, TUN) });
        made.map(|made| made.was_there).map_err(|error| error.errno)
    };
    for may_make in [false, true] {
        for name in ["roots", "groups", "others", "theirs"] {
            assert_eq!(try_by(1, name, 77, &[77], may_make), Err(Errno::EPERM), "{name}");
        }
        // Root's number without root's capability.
        assert_eq!(try_by(1, "others", 0, &[0], may_make), Err(Errno::EPERM));
    }
    let shown = rig.shown("roots");
    assert_eq!(shown["linkinfo"]["info_data"]["user"], "root");
    assert_eq!(try_by(1, "no-such", 77, &[77], false), Err(Errno::EPERM));
    assert_eq!(try_by(1, "a/b", 77, &[77], true), Err(Errno::EINVAL));
    assert_eq!(try_by(1, "lo", 77, &[77], true), Err(Errno::EINVAL));
    for (id, name, groups, was_there) in [
        (1, "groups", &[50, 77][..], true),
        (2, "theirs", &[77, 50], true),
        (3, "free", &[77], true),
        (4, "made", &[77], false),
    ] {
        assert_eq!(try_by(id, name, 77, groups, true), Ok(was_there), "{name}");
    }
    assert_eq!(rig.shown("made")["linkinfo"]["info_data"]["persist"], false);
}

/// A device with several queues belongs to all who have one.
fn queue_of_another_program_stays() {
    let rig = Rig::new();
    let flags = TUN | IfFlags::MULTI_QUEUE;
    let theirs = rig.network.inside(|| {
        let file = TunFile::open(Path::new("/dev/net/tun"));
        file.set_iff("tun0", flags.bits()).unwrap();
        file
    });
    rig.make("tun0", flags);
    assert_eq!(rig.shown("tun0")["linkinfo"]["info_data"]["numqueues"], 2);
    rig.remove();
    assert_eq!(rig.shown("tun0")["linkinfo"]["info_data"]["numqueues"], 1);
    drop(theirs);
    assert!(!exists(&rig.network, "tun0"));
}

fn no_driver() -> Rig {
    Rig::with(TunNode::at(Path::new("/dev/null")), None)
}

/// Whether the kernel has a kind that can stand in.
fn has_substitute(network: &Network) -> bool {
    ["veth", "dummy", "ifb"].iter().any(|kind| {
        let add = ["ip", "link", "add", "probe", "type", kind];
        network.command().args(add).output().unwrap().status.success()
    })
}

fn substitute_can_be_configured() {
    if !has_substitute(&Network::new()) {
        println!("SKIP substitute_can_be_configured: the kernel has no veth, dummy or ifb");
        return;
    }
    let rig = no_driver();
    let made = rig.make("", TUN);
    let kind = rig.netdevs.kind(LINK).unwrap();
    assert_ne!(kind, Kind::Tun);
    assert_eq!(made.state.name, Name::new(b"tun0"));
    let second = rig.try_make(TunnelId(2), spec("", TUN)).unwrap();
    assert_eq!(second.state.name, Name::new(b"tun1"));
    assert_eq!(made.state.queue_length, 500);
    let shown = rig.shown("tun0");
    assert_eq!(shown["linkinfo"]["info_kind"], kind.word());
    assert_eq!(shown["ifalias"], "memtun");
    rig.network.ip(&["address", "add", "10.9.0.1", "peer", "10.9.0.2", "dev", "tun0"]);
    rig.network.ip(&["link", "set", "tun0", "mtu", "1400", "up"]);
    rig.hear_state("up", |state| state.up && state.mtu == 1400);
    if kind == Kind::Veth {
        for on in [false, true] {
            assert_eq!(rig.set(Setting::Carrier(on)).unwrap().carrier, on);
        }
    }
    for setting in [
        Setting::Owner(1),
        Setting::Carrier(true),
        Setting::LinkType(1),
        Setting::Up(false),
        Setting::Name(Name::new(b"other")),
    ] {
        rig.set(setting).unwrap_or_else(|errno| panic!("{setting:?}: {errno}"));
    }
    assert_eq!(rig.try_make(TunnelId(3), spec("other", TUN)).unwrap_err().errno, Errno::EINVAL);
    let taken = rig.try_make(TunnelId(3), spec("other", TUN | IfFlags::TUN_EXCL)).unwrap_err();
    assert_eq!(taken.errno, Errno::EBUSY);
    assert_eq!(
        taken.text,
        "making interface other: the kernel's tun driver cannot be used (/dev/null: it is not the tun driver's node), and \
         a substitute for it failed: Device or resource busy; another program may have the name"
    );
    rig.remove();
    assert!(!exists(&rig.network, "other"));
}

fn substitute_passes_no_datagrams() {
    let rig = no_driver();
    let error = rig
        .try_make(LINK, Spec { interface: Interface::Bridge, ..spec("tun0", TUN) })
        .expect_err("there is nothing that could");
    assert_eq!(error.errno, Errno::ENODEV);
    assert!(!exists(&rig.network, "tun0"));
}

/// Devices that one client leaves behind are not in the way of another's.
fn many_that_go_hold_up_nobody() {
    const MANY: u32 = 300;
    let rig = Rig::new();
    for number in 0..MANY {
        rig.try_make(TunnelId(number), spec("tun%d", TUN)).unwrap();
    }
    let count = || rig.network.ip(&["-brief", "link"]).lines().count() - 1;
    assert_eq!(count(), usize::try_from(MANY).unwrap());
    for tunnel in (0..MANY).map(TunnelId) {
        rig.netdevs.ask(NetdevRequest::Remove { tunnel, is_deleted: false }, rig.client());
    }
    // In another namespace, and by another name where they were.
    let other = Arc::new(Netns::try_from(Network::new().file()).unwrap());
    for (number, network) in [(MANY, other), (MANY + 1, rig.netns())] {
        let name = Name::new(b"new");
        let (tunnel, file, scope, index) = (TunnelId(number), QUEUE, Scope::default(), 0);
        let (interface, rights, flags) = (Interface::Shadow, Rights::Admin, TUN);
        let request =
            NetdevRequest::Make { tunnel, file, scope, name, flags, index, interface, rights };
        rig.netdevs.ask(request, Client { network: Some(network), ..rig.client() });
    }
    let mut gone = 0;
    let mut made = Vec::new();
    while gone < MANY || made.len() < 2 {
        match rig.answers.recv_timeout(DEADLINE).unwrap() {
            Answer::Removed => gone += 1,
            Answer::Made(new) => {
                new.unwrap();
                made.push(gone);
            }
            other @ (Answer::Done(_) | Answer::GoneOn) => panic!("{other:?}"),
        }
    }
    assert!(made.iter().all(|gone| *gone < MANY), "both came before the end: {made:?}");
    assert_eq!(count(), 1);
    // A number is given again when it is free.
    rig.remove_of(TunnelId(MANY + 1));
    assert_eq!(
        rig.try_make(TunnelId(MANY + 2), spec("", TUN)).unwrap().state.name.to_string(),
        "tun0"
    );
}

/// Whoever asks for a name that is being removed gets it.
fn name_that_goes_is_waited_for() {
    let rig = Rig::new();
    for number in 0..20 {
        let tunnel = TunnelId(number);
        rig.try_make(tunnel, spec("tun0", TUN)).unwrap();
        rig.netdevs.ask(NetdevRequest::Remove { tunnel, is_deleted: false }, rig.client());
        let name = if number % 2 == 0 { "tun0" } else { "" };
        let (next, file, scope, index) = (TunnelId(100 + number), QUEUE, Scope::default(), 0);
        let Spec { name, flags, interface, rights } = spec(name, TUN);
        let tunnel = next;
        let request =
            NetdevRequest::Make { tunnel, file, scope, name, flags, index, interface, rights };
        assert!(matches!(rig.answered(request), Answer::Removed));
        let made = rig.answers.recv_timeout(DEADLINE).unwrap();
        let Answer::Made(Ok(made)) = made else { panic!("{made:?}") };
        assert_eq!(made.state.name, Name::new(b"tun0"));
        rig.remove_of(next);
    }
}
