//! What a panic costs, by panics that are planted in a daemon.

use std::{
    io::{Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream, unix::process::ExitStatusExt},
    process::Command,
};

use libtest_mimic::Trial;
use memtun_client::{
    Client, ClientError,
    proto::{
        host::Host,
        list::List,
        part::Part,
        wait::{Until, Wait},
        watch::Watch,
    },
};
use nix::{
    errno::Errno,
    poll::{PollFlags, PollTimeout},
    sys::{
        signal::Signal,
        socket::{MsgFlags, recv, send},
    },
};

use crate::{
    DeviceTest, Gate, netdev,
    support::{
        Background,
        daemon::{Backend, Daemon, MEMTUN, run},
        datagram,
        device::{NO_PI, TUN, TunFile},
        network::Network,
        until, within_deadline,
    },
};

const TESTS: &[DeviceTest] = &[
    ("panic_of_a_device_thread_ends_the_daemon", of_a_device_thread),
    ("panic_during_an_ioctl_ends_the_daemon", of_an_ioctl),
    ("panic_of_the_timer_ends_the_daemon", of_the_timer),
    ("panic_of_the_control_thread_ends_the_daemon", of_the_control_thread),
    ("panic_of_the_log_ends_the_daemon", of_the_log),
    ("panic_of_the_observers_thread_ends_the_daemon", of_the_observers_thread),
    ("panic_under_the_lock_ends_the_daemon", under_the_lock),
    ("panic_whose_orderly_end_hangs_aborts", whose_orderly_end_hangs),
    ("panic_of_a_harness_costs_its_connection", of_a_harness),
    ("panic_of_an_outbox_costs_its_connection", of_an_outbox),
    ("panic_of_a_peer_costs_the_peer", of_a_peer),
    ("panic_under_run_ends_run", under_run),
];

const OF_LINKS: &[DeviceTest] = &[
    ("panic_of_the_owner_of_netdevs_ends_the_daemon", of_the_owner_of_netdevs),
    ("panic_of_news_of_netdevs_ends_the_daemon", of_news_of_netdevs),
];

/// The tests for a kind of device, as far as the program has places for panics.
pub fn trials(backend: Backend, kind: &Gate) -> Vec<Trial> {
    let without = "built without the feature planted-panics";
    let obstacle = (!cfg!(feature = "planted-panics")).then(|| without.to_owned());
    let planted = kind.and(&Gate::new("panics", "planted-panics", obstacle));
    let linked = planted.and(&Gate::new("panics of links", "links", netdev::obstacle()));
    let trials = |gate: &Gate, tests: &[DeviceTest]| -> Vec<Trial> {
        tests.iter().map(|(name, test)| gate.trial(backend, name, *test)).collect()
    };
    [trials(&planted, TESTS), trials(&linked, OF_LINKS)].into_iter().flatten().collect()
}

/// A client that waits in `read`.
fn blocked_reader(daemon: &Daemon) -> Background<Result<Vec<u8>, Errno>> {
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let reader = Background::start(move || file.read());
    daemon.wait_until("tun0", Until::Reading);
    reader
}

/// Every client and harness is told, and the daemon says why it ends.
#[track_caller]
fn ends(mut daemon: Daemon, reader: Background<Result<Vec<u8>, Errno>>, thread: &str) {
    assert!(reader.join("the blocked read").is_err(), "the client gets an error");
    let (status, daemon) = within_deadline("the end of the daemon", move || {
        let status = daemon.wait();
        (status, daemon)
    });
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    let said = format!("thread '{thread}' panicked");
    until(|| daemon.log().contains(&format!("memtun: {said}, and the daemon has ended")));
    assert!(daemon.log().contains(&format!("memtun: {said}: planted")), "{}", daemon.log());
    assert!(std::fs::metadata(&daemon.device).is_err(), "the device is gone");
    assert!(!daemon.control.exists(), "so is the socket");
}

fn of_a_device_thread(backend: Backend) {
    let daemon = Daemon::planted(backend, &[], "poll@device");
    let reader = blocked_reader(&daemon);
    let file = TunFile::open(&daemon.device);
    let polled = Background::start(move || file.poll(PollFlags::POLLIN, PollTimeout::NONE));
    assert!(!polled.join("the poll that met the panic").is_empty());
    ends(daemon, reader, "device");
}

/// On a file, a thread that moves memory of an ioctl's caller has another in its place.
fn of_an_ioctl(backend: Backend) {
    const TUNSETSNDBUF: u32 = 0x4004_54d4;
    let daemon = Daemon::planted(backend, &[], &format!("ioctl-{TUNSETSNDBUF:x}"));
    let reader = blocked_reader(&daemon);
    let file = TunFile::open(&daemon.device);
    let called = Background::start(move || file.ioctl(TUNSETSNDBUF, &mut [1, 0, 0, 0]));
    assert!(called.join("the ioctl that met the panic").is_err());
    ends(daemon, reader, "device");
}

fn of_the_timer(backend: Backend) {
    // It holds the core's lock at that time.
    let daemon = Daemon::planted(backend, &[], "timer");
    let reader = blocked_reader(&daemon);
    let wait = Wait { tunnel: "tun9".parse().unwrap(), until: Until::Attached, timeout_ms: 10 };
    let mut client = daemon.client();
    let waited = within_deadline("the wait", move || client.call(&wait));
    assert!(matches!(waited, Err(ClientError::Closed)), "{waited:?}");
    ends(daemon, reader, "timer");
}

fn of_the_control_thread(backend: Backend) {
    let mut daemon = Daemon::planted(backend, &[], "control");
    // No harness can see when it reads.
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let reader = Background::start(move || file.read());
    let control = daemon.control.clone();
    let connected = within_deadline("the connection", move || Client::connect(&control).map(drop));
    assert!(connected.is_err());
    assert!(reader.join("the read").is_err(), "the client gets an error");
    assert_eq!(daemon.wait().code(), Some(1), "{}", daemon.log());
}

fn of_the_log(backend: Backend) {
    // The first line that the thread writes: the daemon ends before it is ready, or just after.
    let folder = tempfile::tempdir().unwrap();
    let (options, device) = backend.options(&format!("memtun-log-{}", std::process::id()));
    let ended = run(
        Command::new(MEMTUN)
            .arg("serve")
            .args(options)
            .arg("--control")
            .arg(folder.path().join("control"))
            .env("MEMTUN_PLANTED_PANIC", "log"),
        b"",
    );
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.stderr.contains("thread 'log' panicked"), "{ended:?}");
    assert!(std::fs::metadata(device).is_err(), "the device is gone");
}

fn of_the_observers_thread(backend: Backend) {
    let daemon = Daemon::planted(backend, &[], "observers");
    let reader = blocked_reader(&daemon);
    // The answer comes by that thread, for events come before it.
    let mut client = daemon.client();
    let watched = within_deadline("watch", move || client.call(&Watch { tunnel: None }).map(drop));
    assert!(matches!(watched, Err(ClientError::Closed)), "{watched:?}");
    ends(daemon, reader, "observers");
}

fn under_the_lock(backend: Backend) {
    let daemon = Daemon::planted(backend, &[], "lock@harness");
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let reader = Background::start(move || file.read());
    let mut client = daemon.client();
    let listed = within_deadline("list", move || client.call(&List {}).map(drop));
    assert!(matches!(listed, Err(ClientError::Closed)), "{listed:?}");
    ends(daemon, reader, "harness");
}

fn whose_orderly_end_hangs(backend: Backend) {
    let mut daemon = Daemon::planted(backend, &[], "poll@device,hang:stop");
    let reader = blocked_reader(&daemon);
    let file = TunFile::open(&daemon.device);
    let _polled = Background::start(move || file.poll(PollFlags::POLLIN, PollTimeout::NONE));
    assert!(reader.join("the blocked read").is_err(), "the client gets an error");
    let (status, daemon) = within_deadline("the end of the daemon", move || {
        let status = daemon.wait();
        (status, daemon)
    });
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{}", daemon.log());
    until(|| daemon.log().contains("aborting"));
}

/// More often than there can be connections.
fn of_a_harness(backend: Backend) {
    let daemon = Daemon::planted(backend, &[], "part@harness");
    let reader = blocked_reader(&daemon);
    for _ in 0..200 {
        let part = Part { tunnel: "tun0".parse().unwrap() };
        let mut client = daemon.client();
        // What it waits for and watches goes with it.
        client.call(&Watch { tunnel: None }).expect("watch");
        let parted = within_deadline("part", move || client.call(&part).map(drop));
        assert!(matches!(parted, Err(ClientError::Closed)), "{parted:?}");
    }
    assert_eq!(daemon.list().tunnels[0].files[0].parked_reads, 1);
    assert!(reader.is_running(), "the client knows nothing of it");
    let told = daemon.log().matches("thread 'harness' panicked").count();
    assert!(told > 0);
}

fn of_an_outbox(backend: Backend) {
    let daemon = Daemon::planted(backend, &[], "outbox");
    let reader = blocked_reader(&daemon);
    // Until the socket is full: then the outbox's thread is to go on.
    let mut stream = UnixStream::connect(&daemon.control).expect("the socket takes connections");
    let mut asking = stream.try_clone().expect("a descriptor can be had again");
    let asked =
        Background::start(move || while asking.write_all(b"{\"method\":\"list\"}\n").is_ok() {});
    asked.join("the end of the connection");
    let mut rest = Vec::new();
    let read = within_deadline("what was sent before", move || stream.read_to_end(&mut rest));
    // Reset, if the daemon had not read everything.
    assert!(read.is_ok() || read.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    assert_eq!(daemon.list().tunnels[0].files[0].parked_reads, 1);
    assert!(reader.is_running(), "the client knows nothing of it");
}

fn of_a_peer(backend: Backend) {
    for place in ["host@host", "attach-in@attach-in", "attach-out@attach-out"] {
        let daemon = Daemon::planted(backend, &[], place);
        let reader = blocked_reader(&daemon);
        let tunnel = || "tun0".parse().unwrap();
        let mut client = daemon.client();
        if place.starts_with("host") {
            let addresses = vec!["10.0.0.1/24".parse().unwrap()];
            let host = Host { tunnel: tunnel(), addresses, forwards: Vec::new(), timeout_ms: 0 };
            client.call(&host).expect("host");
        } else {
            let socket = client.attach(tunnel()).expect("attach");
            if place.starts_with("attach-in") {
                send(socket.as_raw_fd(), &datagram(1), MsgFlags::MSG_NOSIGNAL).expect("it is open");
            }
            let received = within_deadline("the socket's end", move || {
                recv(socket.as_raw_fd(), &mut [0; 100], MsgFlags::empty())
            });
            assert_eq!(received, Ok(0), "{place}");
        }
        until(|| daemon.list().tunnels[0].peer.is_none());
        assert_eq!(daemon.list().tunnels[0].files[0].parked_reads, 1, "{place}");
        assert!(reader.is_running(), "the client knows nothing of it");
        assert!(daemon.log().contains("panicked: planted"), "{place}");
    }
}

fn of_the_owner_of_netdevs(backend: Backend) {
    let network = Network::new();
    let mut daemon = Daemon::planted(backend, &["--interface", "shadow"], "netdev");
    let file = network.inside(|| TunFile::open(&daemon.device));
    let called = within_deadline("TUNSETIFF", move || file.set_iff("tun0", TUN | NO_PI));
    assert!(called.is_err());
    let (status, daemon) =
        within_deadline("the end of the daemon", move || (daemon.wait(), daemon));
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    until(|| daemon.log().contains("thread 'netdev' panicked"));
}

fn of_news_of_netdevs(backend: Backend) {
    let network = Network::new();
    let daemon = Daemon::planted(backend, &["--interface", "shadow"], "news@netdev");
    let file = network.inside(|| TunFile::open(&daemon.device));
    let reader = Background::start(move || {
        file.set_iff("tun0", TUN | NO_PI)?;
        file.read()
    });
    // A client's call may bring the first news, and the device goes with the daemon.
    let mut mtu = 1_300;
    until(|| {
        mtu += 1;
        let change = ["link", "set", "tun0", "mtu", &mtu.to_string()];
        let _changed = network.inside(|| Command::new("ip").args(change).output());
        !daemon.control.exists()
    });
    ends(daemon, reader, "netdev");
}

/// The program is killed, as by any end of memtun.
fn under_run(_: Backend) {
    let script = "memtun=$1; echo $$; \"$memtun\" list; exec sleep 1000";
    let ended = run(
        Command::new(MEMTUN)
            .args(["run", "--", "sh", "-c", script, "sh", MEMTUN])
            .env("MEMTUN_PLANTED_PANIC", "control"),
        b"",
    );
    assert_eq!(ended.status, 125, "{ended:?}");
    assert!(ended.stderr.contains("memtun: thread 'control' panicked"), "{ended:?}");
    let pid: i32 = ended.stdout.trim().parse().expect("the program's id");
    until(|| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) == Err(Errno::ESRCH));
}
