//! What one user takes is not another's: memory, files and tunnels, and a daemon that answers all the while.

use std::{
    fs,
    net::UdpSocket,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use memtun::abi::tun::ioctl::TUNSETPERSIST;
use memtun_client::{
    Client,
    proto::{
        Address,
        interface::{Interface, Kind},
        join::Join,
        limits::{Limits, LimitsView},
    },
};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::{Uid, geteuid, setfsuid},
};

use crate::{
    DeviceTest,
    device::inject,
    support::{
        daemon::{Backend, Daemon, MEMTUN, resident, run},
        datagram,
        device::{NO_PI, TUN, TunFile},
        network::Network,
        program::{Program, compiled},
        until, within_deadline,
    },
};

pub const TESTS: &[DeviceTest] = &[
    ("shorter_queue_loses_the_newest_uncounted", shorter_queue_loses_the_newest_uncounted),
    ("memory_of_one_user_is_not_anothers", memory_of_one_user_is_not_anothers),
    ("memory_is_returned_to_the_system", memory_is_returned_to_the_system),
    (
        "a_user_with_all_its_tunnels_leaves_some_to_others",
        a_user_with_all_its_tunnels_leaves_some_to_others,
    ),
    ("descriptors_of_interfaces_are_all_counted", descriptors_of_interfaces_are_all_counted),
    ("descriptors_for_interfaces_are_shared", descriptors_for_interfaces_are_shared),
    ("queues_of_interfaces_take_no_memory_each", queues_of_interfaces_take_no_memory_each),
    (
        "descriptors_are_raised_and_the_program_gets_what_was",
        descriptors_are_raised_and_the_program_gets_what_was,
    ),
];

/// As `tun_queue_resize` does: `ptr_ring_resize_multiple_bh` frees what has no place, and nobody counts it. What finds the queue full
/// is counted.
fn shorter_queue_loses_the_newest_uncounted(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    for number in 0..10 {
        inject(&mut daemon.client(), "tun0", &datagram(number));
    }
    daemon.memtun(&["set", "tun0", "txqueuelen", "4"]).succeeded();
    let dropped = || daemon.list().tunnels[0].counters.to_client_dropped.datagrams;
    assert_eq!(dropped(), 0);
    daemon.memtun(&["inject", "tun0", "--hex", "45"]).failed(1);
    assert_eq!(dropped(), 1);
    for number in 0..4 {
        assert_eq!(file.read(), Ok(datagram(number)));
    }
    assert_eq!(daemon.list().tunnels[0].files[0].read_buffer.datagrams, 0);
}

const NOBODY: u32 = 65_534;

/// Opens and attaches as another user: what follows on the file is that user's.
fn attached_by(uid: u32, device: &Path, name: &str) -> Result<TunFile, Errno> {
    thread::scope(|scope| {
        let attaching = scope.spawn(|| {
            // Of this thread alone.
            setfsuid(Uid::from_raw(uid));
            let file = TunFile::open_with(device, OFlag::O_RDWR | OFlag::O_CLOEXEC)?;
            file.set_iff(name, TUN | NO_PI)?;
            Ok(file)
        });
        attaching.join().expect("it does not panic")
    })
}

fn is_root() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        println!("SKIP: a client of another user takes root");
    }
    is_root
}

fn memory_of_one_user_is_not_anothers(backend: Backend) {
    if !is_root() {
        return;
    }
    let daemon = Daemon::start_with(backend, &["--memory", "8M", "--memory-per-user", "2M"]);
    let greedy = attached_by(NOBODY, &daemon.device, "greedy").unwrap();
    let long = vec![0x45; 60_000];
    for _ in 0..40 {
        assert_eq!(greedy.write(&long), Ok(long.len()), "it is not told");
    }
    // What is left takes short ones.
    for _ in 0..500 {
        greedy.write(&[0x45]).unwrap();
    }
    let tunnel = &daemon.list().tunnels[0].counters;
    let dropped = &tunnel.memory_dropped;
    assert!(dropped.datagrams > 40 && dropped.datagrams < 540, "{dropped:?}");
    assert_eq!(tunnel.from_client_dropped.datagrams, dropped.datagrams);
    let used = daemon.shared("memory");
    assert!(used.users[&NOBODY] > 2_000_000 && used.users[&NOBODY] <= used.user_limit, "{used:?}");
    assert_eq!((used.limit, used.user_limit), (8 << 20, 2 << 20));
    assert_eq!(attached_by(NOBODY, &daemon.device, "more").unwrap_err(), Errno::ENOMEM);

    let modest = TunFile::attached(&daemon.device, "modest", TUN | NO_PI);
    for _ in 0..20 {
        modest.write(&long).unwrap();
    }
    let tunnels = daemon.list().tunnels;
    let tunnel = tunnels.iter().find(|tunnel| tunnel.name == "modest").unwrap();
    assert_eq!(tunnel.write_buffer.datagrams, 20);
    let control = daemon.control.to_str().unwrap();
    let shown = |verb| run(Command::new(MEMTUN).args(["--control", control, verb]), b"").stdout;
    let (list, limits) = (shown("list"), shown("limits"));
    assert!(list.contains(&format!("{0} (memory {0})", dropped.datagrams)), "{list}");
    assert!(limits.contains("65534: 2"), "{limits}");
}

/// Asks the daemon again and again, until it is so.
#[track_caller]
fn wait_until(what: &str, daemon: &Daemon, is_so: impl Fn(&mut Client) -> bool + Send + 'static) {
    let mut client = daemon.client();
    within_deadline(what, move || while !is_so(&mut client) {});
}

fn memory_is_returned_to_the_system(backend: Backend) {
    let daemon = Daemon::start(backend);
    let before = daemon.resident();
    let attached = |name| TunFile::attached(&daemon.device, name, TUN | NO_PI);
    // A tunnel keeps 16 MiB of what its client wrote, so two of them hold 30 MB.
    let writers = [attached("a"), attached("b")];
    let long = vec![0x45; 60_000];
    for writer in &writers {
        for _ in 0..250 {
            writer.write(&long).unwrap();
        }
    }
    let full = daemon.resident();
    assert!(full > before + 25_000, "{before} KiB, then {full} KiB");
    // Across they go into queues, which go with their files.
    let readers = [attached("c"), attached("d")];
    let address = |name: &str| name.parse().unwrap();
    for (tunnel, peer) in [("a", "c"), ("b", "d")] {
        let join = Join { tunnel: address(tunnel), peer: address(peer), timeout_ms: 0 };
        daemon.client().call(&join).unwrap();
    }
    drop((writers, readers));
    let pid = daemon.pid();
    wait_until("the memory is the system's again", &daemon, move |client| {
        client.call(&Limits {}).unwrap();
        resident(pid) < before + 12_000
    });
}

fn a_user_with_all_its_tunnels_leaves_some_to_others(backend: Backend) {
    if !is_root() {
        return;
    }
    // All files are this process's own.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit of file descriptors");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("it can be raised to the hard limit");
    let daemon = Daemon::start(backend);
    let share = daemon.shared("tunnels").user_limit;
    let mut files = Vec::new();
    let refused = loop {
        match attached_by(NOBODY, &daemon.device, "t%d") {
            Ok(file) => files.push(file),
            Err(errno) => break errno,
        }
    };
    assert_eq!((files.len(), refused), (share, Errno::EMFILE));
    let used = daemon.shared("tunnels");
    assert_eq!((used.used, used.users[&NOBODY]), (share, share));
    let _other = TunFile::attached(&daemon.device, "other", TUN | NO_PI);
    drop(files);
    wait_until("the tunnels are gone", &daemon, |client| {
        let LimitsView { shared, .. } = client.call(&Limits {}).unwrap();
        shared.iter().any(|shared| shared.resource == "tunnels" && shared.used == 1)
    });
    attached_by(NOBODY, &daemon.device, "again").unwrap();
}

/// What a daemon has open, beside what clients made it open.
struct Open<'a> {
    daemon: &'a Daemon,
    before: usize,
}

impl<'a> Open<'a> {
    fn new(daemon: &'a Daemon) -> Self {
        // The first device starts threads and all that they share.
        daemon.close(TunFile::attached(&daemon.device, "first", TUN | NO_PI));
        until(|| daemon.shared("descriptors").used == 0);
        Self { daemon, before: daemon.descriptors() }
    }

    /// What is open is counted: so much, and each namespace from which files are open.
    #[track_caller]
    fn is_counted(&self, counted: usize) {
        until(|| {
            let used = self.daemon.shared("descriptors");
            let namespaces = self.daemon.shared("namespaces").used;
            used.used == counted
                && used.users.get(&0).is_none_or(|users| *users == counted)
                && self.daemon.descriptors() <= self.before + counted + namespaces
        });
    }
}

/// A queue, and what a namespace takes.
const QUEUE: usize = 1;
const NAMESPACE: usize = 5;

fn descriptors_of_interfaces_are_all_counted(backend: Backend) {
    if !is_root() {
        return;
    }
    let daemon = Daemon::start_with(backend, &["--interface", "shadow"]);
    let open = Network::new().inside(|| Open::new(&daemon));
    let attached =
        |network: &Network| network.inside(|| TunFile::attached(&daemon.device, "t0", TUN | NO_PI));
    let networks: Vec<Network> = (0..4).map(|_| Network::new()).collect();
    let mut files: Vec<TunFile> = networks[..3].iter().map(attached).collect();
    open.is_counted(3 * (QUEUE + NAMESPACE));
    networks[0].ip(&["link", "set", "t0", "netns", &networks[3].path()]);
    open.is_counted(3 * (QUEUE + NAMESPACE));
    let second = networks[1].inside(|| TunFile::attached(&daemon.device, "t1", TUN | NO_PI));
    open.is_counted(4 * QUEUE + 3 * NAMESPACE);
    let mut left = 0;
    // On a file this ioctl reaches the tunnels of `memtun run` alone.
    if backend == Backend::Cuse {
        let kept = files.remove(2);
        kept.ioctl_value(TUNSETPERSIST, 1).expect("it can be kept");
        daemon.close(kept);
        left = NAMESPACE;
        open.is_counted(3 * QUEUE + 3 * NAMESPACE);
    }
    drop((files, second));
    open.is_counted(left);

    // Files that were open before there was any interface.
    let daemon = Daemon::start(backend);
    let (network, mut client) = (Network::new(), daemon.client());
    let file = network.inside(|| TunFile::attached(&daemon.device, "t0", TUN | NO_PI));
    client.call(&Interface::new("t0".parse::<Address>().unwrap(), Kind::Shadow)).unwrap();
    assert_eq!(daemon.shared("descriptors").users[&0], QUEUE + NAMESPACE);
    drop(file);
    until(|| daemon.shared("descriptors").used == 0);
}

fn descriptors_for_interfaces_are_shared(backend: Backend) {
    if !is_root() {
        return;
    }
    let daemon = Daemon::within(backend, &["--interface", "shadow"], 256);
    let share = daemon.shared("descriptors");
    let attach = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "unshare", "-Urn"]);
        command.arg(compiled("attach")).arg(&daemon.device).args(["t0", "0x1001"]);
        let program = Program::start(command.stdin(Stdio::piped()));
        let line = program.line();
        (program, line)
    };
    let fitting = share.user_limit / (QUEUE + NAMESPACE);
    let clients: Vec<_> = (0..fitting).map(|_| attach()).collect();
    assert!(clients.iter().all(|(_, line)| line == "attached t0"));
    let (_refused, line) = attach();
    assert_eq!(line, "failed EMFILE");
    let used = daemon.shared("descriptors");
    assert_eq!(used.users[&NOBODY], fitting * (QUEUE + NAMESPACE));
    assert!(daemon.log().contains("no file descriptors are left for uid 65534"), "it is told");
    // A device that is moved to a namespace of its own takes more: there is nothing left, so its tunnel ends.
    let place = Network::new();
    Network::of(clients[0].0.pid()).ip(&["link", "set", "t0", "netns", &place.path()]);
    until(|| daemon.shared("descriptors").users[&NOBODY] == (fitting - 1) * (QUEUE + NAMESPACE));
    assert!(daemon.log().contains("the interface was moved there, and its tunnel ends"));
    let _of_root = Network::new().inside(|| TunFile::attached(&daemon.device, "t0", TUN | NO_PI));
    drop(clients);
    until(|| daemon.shared("descriptors").users.get(&NOBODY).is_none_or(|used| *used == 0));
    assert_eq!(attach().1, "attached t0");
}

fn queues_of_interfaces_take_no_memory_each(backend: Backend) {
    if !is_root() {
        return;
    }
    const COUNT: usize = 100;
    let daemon = Daemon::start_with(backend, &["--interface", "shadow"]);
    let network = Network::new();
    let attached = || network.inside(|| TunFile::attached(&daemon.device, "t%d", TUN | NO_PI));
    let first = attached();
    let before = daemon.resident();
    let files: Vec<TunFile> = (1..COUNT).map(|_| attached()).collect();
    let batch: String = (0..COUNT)
        .map(|at| format!("address add 10.9.{at}.1/24 dev t{at}\nlink set t{at} mtu 65000 up\n"))
        .collect();
    let ran = run(network.command().args(["ip", "-batch", "-"]), batch.as_bytes());
    assert!(ran.stderr.is_empty(), "{ran:?}");
    let send = |at: usize| {
        let socket = network.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.send_to(&[7; 60_000], format!("10.9.{at}.2:9")).unwrap();
        until(|| daemon.list().tunnels[at].counters.to_link.bytes > 60_000);
    };
    (0..COUNT).for_each(send);
    let grown = daemon.resident().saturating_sub(before);
    assert!(grown < COUNT * 60 / 2, "{grown} KiB for {COUNT} queues");
    drop((first, files));
}

fn descriptors_are_raised_and_the_program_gets_what_was(backend: Backend) {
    let limits = |pid: &str| {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let mut words = line.split_whitespace().skip(3).map(str::to_owned);
        (words.next().unwrap(), words.next().unwrap())
    };
    let daemon = Daemon::start(backend);
    let (soft, hard) = limits(&daemon.pid().to_string());
    assert_eq!(soft, hard);
    let script = format!(
        "ulimit -Sn 300; exec {MEMTUN} run --front-end {} -- sh -c 'ulimit -Sn; ulimit -Hn'",
        backend.word()
    );
    let ran = run(Command::new("sh").args(["-c", &script]), b"");
    let (_, own) = limits("self");
    assert_eq!(ran.stdout.lines().collect::<Vec<_>>(), ["300", own.as_str()]);
}
