//! A client that does everything wrong (`tests/programs/hostile.c`), beside root's tunnels and those of another user.

use std::{process::Command, time::Instant};

use memtun_client::proto::{Address, delete::Delete};
use nix::errno::Errno;

use crate::{
    DeviceTest,
    device::{inject, take},
    support::{
        daemon::{Backend, Daemon},
        device::{NO_PI, TUN, TunFile},
        network::Network,
        program::{Program, compiled},
        until,
    },
};

pub const TESTS: &[DeviceTest] = &[
    ("hostile_client_changes_nothing_of_others", changes_nothing_of_others),
    ("hostile_client_changes_no_interface_of_others", changes_no_interface_of_others),
    ("hostile_root_of_its_network_changes_no_interface_of_others", root_of_its_network),
];

const HOSTILE: u32 = 65_534;
const OTHER: &[&str] = &["setpriv", "--reuid", "65533", "--regid", "65533", "--clear-groups"];
const NOBODY: &[&str] = &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
const UNSHARED: &[&str] =
    &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "unshare", "-Urn"];
/// How long one of root's calls, or of its harness, may take beside the client: the machine is busy, but nobody waits for the client.
const PATIENCE_MS: u128 = 5_000;
/// Deleted tunnels of one user that are kept for what was written to them, and more memory than that takes.
const KEPT: (usize, usize) = (16, 1 << 20);

fn changes_nothing_of_others(backend: Backend) {
    beside_others(backend, &[], NOBODY);
}

fn changes_no_interface_of_others(backend: Backend) {
    beside_others(backend, &["--interface", "shadow", "--allow-unprivileged"], NOBODY);
}

fn root_of_its_network(backend: Backend) {
    beside_others(backend, &["--interface", "shadow"], UNSHARED);
}

fn seed() -> u64 {
    let given = std::env::var("MEMTUN_TEST_SEED").ok();
    given.map_or(7, |seed| seed.parse().expect("MEMTUN_TEST_SEED is a number"))
}

/// What the client must leave as it is.
#[derive(Debug, PartialEq)]
struct Theirs {
    tunnels: Vec<String>,
    /// What `ip` shows in their network.
    interfaces: String,
}

impl Theirs {
    fn look(daemon: &Daemon, network: &Network) -> Self {
        let mut tunnels = daemon.list().tunnels;
        tunnels.retain(|tunnel| ["root0", "root1", "other0"].contains(&tunnel.name.as_str()));
        // What the test itself does is counted.
        let tunnels = tunnels.into_iter().map(|tunnel| {
            format!("{:?}", (tunnel.name, tunnel.flags, tunnel.link, tunnel.mtu, tunnel.files))
        });
        Self { tunnels: tunnels.collect(), interfaces: network.ip(&["-details", "link", "show"]) }
    }
}

fn beside_others(backend: Backend, options: &[&str], who: &[&str]) {
    let (daemon, network) = (Daemon::start_with(backend, options), Network::new());
    let has_interfaces = !options.is_empty();
    let command = |who: &[&str], program: &str, arguments: &[&str]| -> Command {
        let mut command = network.command();
        command.args(who).arg(compiled(program)).arg(&daemon.device).args(arguments);
        command.stdin(std::process::Stdio::piped());
        command
    };
    let attached = |name| network.inside(|| TunFile::attached(&daemon.device, name, TUN | NO_PI));
    let (root, quiet) = (attached("root0"), attached("root1"));
    network.ip(&["tuntap", "add", "dev", "corp0", "mode", "tun", "user", "0"]);
    if has_interfaces {
        network.ip(&["link", "set", "root0", "up"]);
        until(|| daemon.list().tunnels.iter().any(|it| it.name == "root0" && it.link == "up"));
    }
    // An ordinary user makes no interface, unless all may.
    let attach = ["other0", "0x1001"];
    let other = (options.len() != 2).then(|| {
        let program = Program::start(&mut command(OTHER, "attach", &attach));
        program.expect_line("attached other0");
        program
    });

    let mut harness = daemon.client();
    let before = Theirs::look(&daemon, &network);
    let (descriptors, threads) = (daemon.descriptors(), daemon.threads());
    let resident = daemon.resident();
    let seed = seed();
    println!("MEMTUN_TEST_SEED={seed}");
    let hostile = Program::start(&mut command(who, "hostile", &[&seed.to_string()]));
    let (mut slowest, mut round) = (0, 0_u32);
    while !hostile.has_said("done") {
        let started = now();
        let sent = [&[0x45; 20][..], &round.to_ne_bytes()].concat();
        assert_eq!(root.write(&sent), Ok(sent.len()));
        assert_eq!(take(&mut harness, "root0"), sent);
        inject(&mut harness, "root0", &sent);
        // With an interface the kernel's own datagrams are nobody's.
        assert_eq!(root.read(), Ok(sent));
        slowest = slowest.max(started.elapsed().as_millis());
        round += 1;
    }
    assert!(hostile.wait().success());
    let opened = hostile.line_said("opened ").parse::<usize>().expect("a number");
    let share = daemon.shared("files").user_limit;
    assert!(opened <= share && opened > share / 2, "{opened} files, of {share} it may have");
    assert!(slowest < PATIENCE_MS, "root waited for {slowest} ms in one of {round} rounds");

    // What it has made persistent stays, until somebody deletes it.
    until(|| daemon.shared("files").users.get(&HOSTILE).is_none_or(|files| *files == 0));
    for tunnel in daemon.list().tunnels {
        if tunnel.persistent && tunnel.files.is_empty() && tunnel.link != "gone" {
            let address: Address = format!("#{}", tunnel.id).parse().expect("a tunnel's number");
            harness.call(&Delete::new(address)).expect("it can be deleted");
        }
    }
    until(|| {
        let of = |resource: &str| daemon.shared(resource).users.get(&HOSTILE).copied().unwrap_or(0);
        let gone = ["files", "parked-reads", "namespaces", "descriptors"];
        gone.iter().all(|resource| of(resource) == 0)
            && of("tunnels") <= KEPT.0
            && of("memory") <= KEPT.1
    });
    until(|| Theirs::look(&daemon, &network) == before);
    // Two threads stand by where ioctls had to wait for memory.
    until(|| daemon.descriptors() <= descriptors && daemon.threads() <= threads + 2);
    until(|| daemon.resident() < resident + (16 << 10));
    assert_eq!(quiet.get_iff().map(|(name, _)| name), Ok("root1".to_owned()));
    quiet.set_nonblocking(true);
    assert_eq!(quiet.read(), Err(Errno::EAGAIN), "nothing came there");
    if let Some(other) = other {
        drop(other);
        until(|| daemon.list().tunnels.iter().all(|tunnel| tunnel.name != "other0"));
    }
    let log = daemon.log();
    assert!(!log.contains('\x1b') && !log.contains("panicked"), "the log is clean");
}

#[expect(clippy::disallowed_methods, reason = "how long others wait is a time")]
fn now() -> Instant {
    Instant::now()
}
