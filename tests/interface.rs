//! Tunnels with a kernel link beside them: what a client can do to its interface, and what that does to its tunnel.

use std::{net::UdpSocket, sync::Barrier, thread, time::Duration};

use memtun::abi::tun::{IfFlags, ioctl};
use memtun_client::proto::{event::What, list::TunnelView, take::Take, wait::Until, watch::Watch};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    poll::{PollFlags, PollTimeout},
    sys::signal::Signal,
};

use crate::{
    DeviceTest,
    device::{inject, take},
    support::{
        Background, DEADLINE,
        daemon::{Backend, Daemon, run},
        datagram,
        device::{MULTI_QUEUE, NO_PI, TAP, TUN, TUN_EXCL, TunFile, VNET_HDR, set_up},
        network::Network,
        program::compiled,
        until, within_deadline,
    },
};

pub const TESTS: &[DeviceTest] = &[
    ("interface_is_there_before_tunsetiff_returns", interface_is_there_before_tunsetiff_returns),
    ("first_interfaces_are_made_at_the_same_time", first_interfaces_are_made_at_the_same_time),
    ("interface_decides_whether_writes_succeed", interface_decides_whether_writes_succeed),
    ("interface_renamed_by_its_client_is_known_at_once", interface_renamed_is_known_at_once),
    ("interface_deleted_under_a_blocked_read", interface_deleted_under_a_blocked_read),
    ("interface_moved_to_another_namespace_goes_on", interface_moved_goes_on),
    ("interface_name_taken_is_one_line_and_an_errno", interface_name_taken),
    ("interface_may_be_optional", interface_may_be_optional),
    ("refused_interfaces_do_not_fill_the_log", refused_interfaces_do_not_fill_the_log),
    ("interface_of_each_namespace_is_its_own", interface_of_each_namespace_is_its_own),
    ("interface_vanishes_when_the_daemon_is_killed", interface_vanishes_when_killed),
    ("interface_set_by_the_harness", interface_set_by_the_harness),
    ("interface_has_a_queue_for_each_file", interface_has_a_queue_for_each_file),
    ("shadow_shows_what_the_kernel_sends", shadow_shows_what_the_kernel_sends),
    ("bridge_passes_datagrams_and_errors", bridge_passes_datagrams_and_errors),
    ("bridge_keeps_a_gso_datagram_whole", bridge_keeps_a_gso_datagram_whole),
    ("interface_is_switched_while_in_use", interface_is_switched_while_in_use),
    ("interface_of_a_client_that_closes_meanwhile_goes", interface_of_one_that_closes_meanwhile),
    ("interface_made_amid_signals_costs_no_storm", interface_made_amid_signals_costs_no_storm),
];

/// On a file TUNSETPERSIST gets through to programs of `memtun run` alone.
pub const OF_CHARACTER_DEVICES: &[DeviceTest] =
    &[("interface_persists_with_its_tunnel", interface_persists_with_its_tunnel)];

/// A daemon whose tunnels have interfaces, and a namespace for its clients.
struct Rig {
    daemon: Daemon,
    network: Network,
    backend: Backend,
}

impl Rig {
    fn new(backend: Backend, interface: &str) -> Self {
        Self::with(backend, &["--interface", interface])
    }

    fn with(backend: Backend, options: &[&str]) -> Self {
        let daemon = Daemon::start_with(backend, options);
        Self { daemon, network: Network::new(), backend }
    }

    /// An open file of a client in the namespace.
    fn open(&self) -> TunFile {
        self.network.inside(|| TunFile::open(&self.daemon.device))
    }

    fn attached(&self, name: &str, flags: u16) -> TunFile {
        let file = self.open();
        file.set_iff(name, flags).expect("TUNSETIFF succeeds");
        file
    }

    fn tunnel(&self, name: &str) -> TunnelView {
        let tunnels = self.daemon.list().tunnels;
        tunnels.into_iter().find(|tunnel| tunnel.name == name).expect("it is listed")
    }

    fn exists(&self, name: &str) -> bool {
        let mut command = self.network.command();
        let output = command.args(["ip", "link", "show", "dev", name]).output().expect("ip runs");
        output.status.success()
    }

    /// Closes a file, and waits for its interface to be gone; the close of a character device waits itself.
    #[track_caller]
    fn close(&self, file: TunFile, name: &str) {
        drop(file);
        if self.backend == Backend::Fuse {
            self.daemon.wait_until(name, Until::Detached);
            until(|| !self.exists(name));
        }
        assert!(!self.exists(name));
    }

    /// A counter of the interface's.
    fn received(&self, name: &str, what: &str) -> u64 {
        let text = self.network.ip(&["-json", "-stats", "link", "show", "dev", name]);
        let shown: serde_json::Value = serde_json::from_str(&text).expect("ip prints JSON");
        shown[0]["stats64"]["rx"][what].as_u64().expect("a number")
    }
}

fn interface_is_there_before_tunsetiff_returns(backend: Backend) {
    let rig = Rig::new(backend, "shadow");
    rig.network.ip(&["tuntap", "add", "dev", "tun0", "mode", "tun"]);
    let (file, index) = rig.network.inside(|| {
        let file = TunFile::open(&rig.daemon.device);
        let name = file.set_iff("tun%d", TUN | NO_PI).unwrap();
        assert_eq!(name, "tun1", "tun0 is another program's");
        (file, if_nametoindex("tun1").expect("the interface is there"))
    });
    let tunnel = rig.tunnel("tun1");
    assert_eq!((tunnel.link.as_str(), tunnel.interface.as_str()), ("down", "shadow"));
    assert_eq!(tunnel.ifindex, index);
    rig.close(file, "tun1");
    let tap = rig.attached("tap0", TAP | NO_PI);
    let address = rig.tunnel("tap0").hwaddr.expect("a tap has one");
    assert!(rig.network.ip(&["link", "show", "dev", "tap0"]).contains(&address));
    rig.close(tap, "tap0");
}

/// In several namespaces: in one each waits for the other.
fn first_interfaces_are_made_at_the_same_time(backend: Backend) {
    let networks = [(); 4].map(|()| Network::new());
    for _ in 0..5 {
        let daemon = Daemon::start_with(backend, &["--interface", "shadow", "--threads", "4"]);
        let files = networks.each_ref().map(|network| {
            let file = network.inside(|| TunFile::open(&daemon.device));
            (network, file)
        });
        let start = Barrier::new(files.len());
        thread::scope(|scope| {
            for (network, file) in &files {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    assert_eq!(file.set_iff("tun0", TUN | NO_PI), Ok("tun0".to_owned()));
                    network.ip(&["link", "show", "dev", "tun0"]);
                });
            }
        });
    }
}

fn interface_made_amid_signals_costs_no_storm(backend: Backend) {
    const COUNT: usize = 20;
    let network = Network::new();
    let daemon = Daemon::start_with(backend, &["--interface", "shadow"]);
    let reads = || {
        let io = std::fs::read_to_string(format!("/proc/{}/io", daemon.pid())).unwrap();
        let count = io.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap();
        count.parse::<u64>().unwrap()
    };
    // How many reads of the daemon the attaches take.
    let attach = |signals: &[&str]| {
        let before = reads();
        let mut command = network.command();
        command.arg(compiled("interrupted")).arg(&daemon.device).arg(COUNT.to_string());
        let said = run(command.args(signals), b"").succeeded();
        let attached = said.lines().filter(|line| line.starts_with("attached ")).count();
        // Where the server fetches the argument itself, a signal ends the call before that.
        assert!(said.lines().all(|line| line.starts_with("attached ") || line == "failed EINTR"));
        (attached, reads() - before)
    };
    let (attached, quiet) = attach(&[]);
    assert_eq!(attached, COUNT);
    let (attached, amid_signals) = attach(&["signals"]);
    assert!(attached > COUNT / 2, "{attached} of {COUNT}");
    // A call brings one INTERRUPT at most, however many signals come.
    let limit = quiet + 2 * COUNT as u64;
    assert!(amid_signals <= limit, "{amid_signals} reads, {quiet} without signals");
}

fn interface_decides_whether_writes_succeed(backend: Backend) {
    let rig = Rig::new(backend, "shadow");
    let file = rig.attached("tun0", TUN | NO_PI);
    file.set_nonblocking(true);
    assert_eq!(file.write(&datagram(1)), Err(Errno::EIO));
    assert_eq!(file.poll(PollFlags::POLLOUT, PollTimeout::ZERO), PollFlags::empty());
    // No sooner is it up than it is written to, in the same process: that must not be too soon.
    for round in 0..10 {
        rig.network.inside(|| {
            set_up("tun0", true);
            assert_eq!(file.write(&datagram(round)), Ok(28), "{round}");
            set_up("tun0", false);
        });
        assert_eq!(file.write(&datagram(round)), Err(Errno::EIO), "{round}");
        assert_eq!(take(&mut rig.daemon.client(), "tun0"), datagram(round));
    }
    let waiting = file.try_clone();
    let polled = Background::start(move || waiting.poll(PollFlags::POLLOUT, PollTimeout::NONE));
    rig.daemon.wait_until("tun0", Until::Attached);
    rig.network.ip(&["link", "set", "tun0", "up"]);
    assert_eq!(polled.join("POLLOUT"), PollFlags::POLLOUT);
    assert_eq!(file.read(), Err(Errno::EAGAIN), "what the kernel sends is not for the client");
}

fn interface_renamed_is_known_at_once(backend: Backend) {
    let rig = Rig::new(backend, "shadow");
    let file = rig.attached("tun0", TUN | NO_PI);
    for name in ["first", "second", "tun0"] {
        rig.network.ip(&["link", "set", &file.get_iff().unwrap().0, "name", name]);
        assert_eq!(file.get_iff().unwrap().0, name);
        assert_eq!(rig.tunnel(name).requested_name, "tun0");
    }
    rig.network.ip(&["link", "set", "tun0", "mtu", "1400"]);
    file.get_iff().unwrap();
    assert_eq!(rig.tunnel("tun0").mtu, 1400);
    rig.close(file, "tun0");
}

fn interface_deleted_under_a_blocked_read(backend: Backend) {
    let rig = Rig::new(backend, "shadow");
    let file = rig.attached("tun0", TUN | NO_PI);
    let reader = file.try_clone();
    let reading = Background::start(move || reader.read());
    rig.daemon.wait_until("tun0", Until::Reading);
    rig.network.ip(&["link", "delete", "tun0"]);
    assert_eq!(reading.join("the read"), Err(Errno::EFAULT));
    assert_eq!(file.read(), Err(Errno::EBADFD));
    assert_eq!(file.write(&datagram(1)), Err(Errno::EBADFD));
    assert_eq!(file.get_iff(), Err(Errno::EBADFD));
    assert_eq!(file.poll(PollFlags::POLLIN, PollTimeout::NONE), PollFlags::POLLERR);
    // The file may have another.
    assert_eq!(file.set_iff("tun0", TUN | NO_PI), Ok("tun0".to_owned()));
    assert!(rig.exists("tun0"));
}

fn interface_moved_goes_on(backend: Backend) {
    let rig = Rig::new(backend, "bridge");
    let file = rig.attached("tun0", TUN | NO_PI);
    let other = Network::new();
    rig.network.ip(&["link", "set", "tun0", "netns", &other.path()]);
    other.ip(&["address", "add", "10.9.0.1/24", "dev", "tun0"]);
    other.ip(&["link", "set", "tun0", "mtu", "1400", "up"]);
    until(|| rig.tunnel("tun0").mtu == 1400);
    assert_eq!(file.write(&datagram(1)), Ok(28));
    other.inside(|| {
        UdpSocket::bind("10.9.0.1:0").unwrap().send_to(b"hello", "10.9.0.2:7").unwrap();
    });
    let sent = within_deadline("the datagram", move || {
        std::iter::repeat_with(|| file.read().unwrap()).find(|bytes| bytes[0] == 0x45)
    });
    assert!(sent.is_some_and(|bytes| bytes.ends_with(b"hello")));
}

fn interface_name_taken(backend: Backend) {
    let rig = Rig::new(backend, "shadow");
    rig.network.add_interface("taken");
    let file = rig.open();
    assert_eq!(file.set_iff("taken", TUN | NO_PI), Err(Errno::EINVAL));
    assert_eq!(file.set_iff("taken", TUN | NO_PI | TUN_EXCL), Err(Errno::EBUSY));
    let said = || -> Vec<String> {
        let log = rig.daemon.log();
        let lines = log.lines().filter(|line| line.contains("making interface taken"));
        lines.map(str::to_owned).collect()
    };
    until(|| said().len() >= 2);
    let lines = said();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let said =
        "WARN making interface taken: Device or resource busy; another program may have the name";
    assert!(lines[1].ends_with(said), "{lines:?}");
    assert!(rig.daemon.list().tunnels.is_empty());
    // It is not worse for it.
    assert_eq!(file.set_iff("free", TUN | NO_PI), Ok("free".to_owned()));
}

fn interface_may_be_optional(backend: Backend) {
    let rig = Rig::with(backend, &["--interface", "shadow", "--interface-optional"]);
    rig.network.add_interface("taken");
    let file = rig.attached("taken", TUN | NO_PI);
    assert_eq!(rig.tunnel("taken").interface, "none");
    assert_eq!(file.write(&datagram(1)), Ok(28));
    assert!(rig.daemon.log().contains("going on without"));
}

fn refused_interfaces_do_not_fill_the_log(backend: Backend) {
    let mut rig = Rig::new(backend, "shadow");
    let file = rig.open();
    let calls = 500;
    for _ in 0..calls {
        assert_eq!(file.set_iff("lo", TUN | NO_PI), Err(Errno::EINVAL));
    }
    rig.daemon.signal(Signal::SIGTERM);
    assert!(rig.daemon.wait().success());
    until(|| rig.daemon.log().contains("stopped"));
    let log = rig.daemon.log();
    // One line for each 10 s, and a slow machine takes several times that.
    let left_out = |line: &str| -> Option<usize> {
        let (count, like) = line.split_once("left out ")?.1.split_once(" more messages ")?;
        like.contains("making interface lo").then(|| count.parse().expect("a number"))
    };
    let told: usize = log.lines().filter_map(left_out).sum();
    let is_refusal = |line: &&str| line.contains("WARN") && !line.contains("left out");
    let shown = log.lines().filter(is_refusal).count();
    assert!(shown < calls / 2 && shown + told == calls, "{shown} lines, {told} left out: {log}");
}

fn interface_of_each_namespace_is_its_own(backend: Backend) {
    let rig = Rig::new(backend, "shadow");
    let other = Network::new();
    let first = rig.attached("tun0", TUN | NO_PI);
    let second = other.inside(|| TunFile::attached(&rig.daemon.device, "tun0", TUN | NO_PI));
    other.ip(&["link", "set", "tun0", "up"]);
    until(|| second.write(&datagram(2)) == Ok(28));
    assert_eq!(first.write(&datagram(1)), Err(Errno::EIO));
    let scopes: Vec<u64> = rig.daemon.list().tunnels.iter().map(|tunnel| tunnel.scope).collect();
    assert_eq!(scopes, [rig.network.scope(), other.scope()]);
}

fn interface_vanishes_when_killed(backend: Backend) {
    let mut rig = Rig::new(backend, "shadow");
    let file = rig.attached("tun0", TUN | NO_PI);
    assert!(rig.exists("tun0"));
    rig.daemon.signal(Signal::SIGKILL);
    rig.daemon.wait();
    until(|| !rig.exists("tun0"));
    drop(file);
}

fn interface_set_by_the_harness(backend: Backend) {
    let rig = Rig::new(backend, "shadow");
    let file = rig.attached("tap0", TAP | NO_PI);
    let set = ["set", "tap0", "up", "mtu", "1400", "mac", "02:00:00:00:00:07", "name", "tap9"];
    rig.daemon.memtun(&set).succeeded();
    until(|| rig.exists("tap9"));
    until(|| {
        let shown = rig.network.ip(&["link", "show", "dev", "tap9"]);
        ["02:00:00:00:00:07", "mtu 1400", ",UP"].iter().all(|word| shown.contains(word))
    });
    // A name that the kernel has given to another: the tunnel keeps its interface's.
    rig.network.add_interface("taken");
    rig.daemon.memtun(&["set", "tap9", "name", "taken"]).succeeded();
    until(|| rig.daemon.list().tunnels[0].name == "tap9");
    rig.daemon.memtun(&["delete", "tap9"]).succeeded();
    until(|| !rig.exists("tap9"));
    assert_eq!(file.get_iff(), Err(Errno::EBADFD));
}

fn interface_persists_with_its_tunnel(backend: Backend) {
    let rig = Rig::new(backend, "shadow");
    let file = rig.attached("tun0", TUN | NO_PI);
    file.ioctl_value(ioctl::TUNSETPERSIST, 1).unwrap();
    rig.daemon.close(file);
    assert!(rig.exists("tun0"));
    assert_eq!(rig.tunnel("tun0").files.len(), 0);
    rig.network.ip(&["link", "set", "tun0", "mtu", "1300"]);
    let file = rig.attached("tun0", TUN | NO_PI);
    assert_eq!(rig.tunnel("tun0").mtu, 1300);
    drop(file);
    rig.network.ip(&["link", "delete", "tun0"]);
    rig.daemon.wait_until("tun0", Until::Detached);
    until(|| rig.daemon.list().tunnels.is_empty());
}

fn interface_has_a_queue_for_each_file(backend: Backend) {
    let rig = Rig::new(backend, "bridge");
    let files: Vec<TunFile> =
        (0..3).map(|_| rig.attached("tap0", TAP | NO_PI | MULTI_QUEUE)).collect();
    let shown = |what: &str| {
        let text = rig.network.ip(&["-json", "-details", "link", "show", "dev", "tap0"]);
        let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
        shown[0]["linkinfo"]["info_data"][what].as_u64().unwrap()
    };
    assert_eq!(shown("numqueues"), 3);
    let mut request = [0; 40];
    request[16..18].copy_from_slice(&IfFlags::DETACH_QUEUE.bits().to_ne_bytes());
    files[1].ioctl(ioctl::TUNSETQUEUE, &mut request).unwrap();
    until(|| shown("numdisabled") == 1);
    drop(files);
    until(|| !rig.exists("tap0"));
}

fn shadow_shows_what_the_kernel_sends(backend: Backend) {
    let rig = Rig::new(backend, "shadow");
    let file = rig.attached("tun0", TUN | NO_PI);
    file.set_nonblocking(true);
    let mut watcher = rig.daemon.client();
    watcher.call(&Watch { tunnel: Some("tun0".parse().unwrap()) }).unwrap();
    rig.network.ip(&["address", "add", "10.9.0.1", "peer", "10.9.0.2", "dev", "tun0"]);
    rig.network.ip(&["link", "set", "tun0", "up"]);
    rig.network.inside(|| {
        UdpSocket::bind("10.9.0.1:0").unwrap().send_to(b"hello", "10.9.0.2:7").unwrap();
    });
    loop {
        if let What::ToLink(passed) = watcher.next_event().unwrap().what
            && passed.datagram.ends_with(b"hello")
        {
            break;
        }
    }
    assert!(rig.tunnel("tun0").counters.to_link.datagrams >= 1);
    assert_eq!(file.read(), Err(Errno::EAGAIN));
}

fn bridge_passes_datagrams_and_errors(backend: Backend) {
    let rig = Rig::new(backend, "bridge");
    let file = rig.attached("tun0", TUN | NO_PI);
    assert_eq!(file.write(&datagram(1)), Err(Errno::EIO), "the kernel's word");
    rig.network.ip(&["address", "add", "10.9.0.1", "peer", "10.9.0.2", "dev", "tun0"]);
    rig.network.ip(&["link", "set", "tun0", "up"]);
    let socket = rig.network.inside(|| UdpSocket::bind("10.9.0.1:0").unwrap());
    socket.connect("10.9.0.2:7").unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    for number in 0..200_u32 {
        socket.send(&number.to_be_bytes()).unwrap();
        let reader = file.try_clone();
        let request = within_deadline("the request", move || {
            std::iter::repeat_with(|| reader.read().unwrap()).find(|bytes| bytes[9] == 17)
        });
        let reply = crate::netdev::echo(&request.expect("it comes"));
        assert_eq!(file.write(&reply), Ok(reply.len()), "{number}");
        let mut answer = [0; 8];
        assert_eq!(socket.recv(&mut answer).unwrap(), 4);
        assert_eq!(answer[..4], number.to_be_bytes(), "order is kept");
    }
    // The harness may take a copy, and inject.
    let mut client = rig.daemon.client();
    assert_eq!(take(&mut client, "tun0")[9], 17);
    inject(&mut client, "tun0", &datagram(7));
    assert_eq!(file.read(), Ok(datagram(7)));
}

/// TCP over IPv4 with 3,000 bytes of data in segments of 1,000.
fn bridge_keeps_a_gso_datagram_whole(backend: Backend) {
    let rig = Rig::new(backend, "bridge");
    let file = rig.attached("tun0", TUN | NO_PI | VNET_HDR);
    rig.network.ip(&["link", "set", "tun0", "up"]);
    let mut bytes = vec![1, 1, 40, 0, 0xe8, 3, 20, 0, 16, 0];
    bytes.extend([0x45, 0, 0x0b, 0xe0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1]);
    bytes.extend([0, 9, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 0x10, 1, 0, 0, 0, 0, 0]);
    bytes.resize(10 + 40 + 3_000, 7);
    until(|| file.write(&bytes) == Ok(bytes.len()));
    assert_eq!(rig.received("tun0", "packets"), 1);
    assert_eq!(rig.received("tun0", "bytes"), 3_040);
}

fn interface_is_switched_while_in_use(backend: Backend) {
    let rig = Rig::new(backend, "none");
    let file = rig.attached("tun0", TUN | NO_PI);
    file.set_nonblocking(true);
    assert!(!rig.exists("tun0"));
    let switch = |to: &str| rig.daemon.memtun(&["interface", "tun0", to]);
    switch("shadow").succeeded();
    assert!(rig.exists("tun0"));
    assert_eq!(file.write(&datagram(1)), Ok(28), "it is up, as it was");
    assert_eq!(take(&mut rig.daemon.client(), "tun0"), datagram(1));
    let before = rig.received("tun0", "packets");
    switch("bridge").succeeded();
    assert_eq!(file.write(&datagram(2)), Ok(28));
    assert_eq!(rig.received("tun0", "packets"), before + 1);
    switch("none").succeeded();
    assert!(!rig.exists("tun0"));
    assert_eq!(file.write(&datagram(3)), Ok(28));
    let listed = rig.daemon.memtun(&["list"]).succeeded();
    assert!(listed.contains(" up  "), "{listed}");
    // A name that is taken meanwhile.
    rig.network.add_interface("tun0");
    let said = switch("shadow").failed(1);
    let expected =
        "memtun: making interface tun0: Device or resource busy; another program may have the name";
    assert_eq!(said, expected);
    assert_eq!(file.write(&datagram(4)), Ok(28));
    let call = Take {
        tunnel: "tun0".parse().unwrap(),
        count: 3,
        timeout_ms: timeout_ms(),
        segment: false,
        keep: false,
    };
    let taken = rig.daemon.client().call(&call).unwrap().datagrams;
    let taken: Vec<&[u8]> = taken.iter().map(|taken| &taken.datagram[..]).collect();
    assert_eq!(taken, [datagram(2), datagram(3), datagram(4)]);
}

fn timeout_ms() -> u64 {
    u64::try_from(Duration::as_millis(&DEADLINE)).expect("a short time")
}

/// A client closes while its tunnel is given a device.
fn interface_of_one_that_closes_meanwhile(backend: Backend) {
    let rig = Rig::new(backend, "none");
    let devices = || rig.network.ip(&["-brief", "link"]).lines().count();
    let before = devices();
    for _ in 0..20 {
        let file = rig.attached("tun0", TUN | NO_PI);
        thread::scope(|scope| {
            let switched = scope.spawn(|| rig.daemon.memtun(&["interface", "tun0", "shadow"]));
            // It may be there already, be on its way, or be asked for a tunnel that is gone.
            drop(file);
            let _either = switched.join().expect("it does not panic");
        });
        until(|| devices() == before);
    }
}
