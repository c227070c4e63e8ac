//! Clients that want more of a kernel device than the kernel's tun would give them, and clients that hold up others.

use std::process::Command;

use nix::errno::Errno;

use crate::{
    DeviceTest,
    support::{
        daemon::{Backend, Daemon},
        device::{NO_PI, TUN, TunFile},
        network::Network,
        program::{Program, compiled},
        until, within_deadline,
    },
};

pub const TESTS: &[DeviceTest] = &[
    ("hostile_attaching_is_for_whom_the_kernel_lets", attaching_is_for_whom_the_kernel_lets),
    ("hostile_devices_are_made_for_administrators", devices_are_made_for_administrators),
    ("hostile_names_are_kept_from_the_unprivileged", names_are_kept_from_the_unprivileged),
    ("hostile_long_messages_hold_up_nobody", long_messages_hold_up_nobody),
    ("hostile_memory_that_does_not_come_holds_up_nobody", absent_memory_holds_up_nobody),
    ("hostile_name_of_a_moved_device_is_free", name_of_a_moved_device_is_free),
    ("hostile_lack_of_descriptors_is_no_lack_of_a_driver", lack_of_descriptors_is_told),
];

const TUN_NO_PI: &str = "0x1001";
const MULTI_QUEUE: &str = "0x1101";

/// Who attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Root,
    /// A user without any right.
    Nobody,
    /// The same, as root of a user namespace of their own.
    RootOfTheirOwn,
    /// The same, and of a network namespace too.
    RootOfTheirNetwork,
}

impl Who {
    fn words(self) -> &'static [&'static str] {
        const NOBODY: [&str; 6] =
            ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
        const OWN: [&str; 8] =
            ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "unshare", "-Ur"];
        const NETWORK: [&str; 8] = [
            "setpriv",
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "unshare",
            "-Urn",
        ];
        match self {
            Self::Root => &[],
            Self::Nobody => &NOBODY,
            Self::RootOfTheirOwn => &OWN,
            Self::RootOfTheirNetwork => &NETWORK,
        }
    }
}

struct Rig {
    daemon: Daemon,
    network: Network,
}

impl Rig {
    fn new(backend: Backend, options: &[&str]) -> Self {
        let options = [&["--interface", "shadow"], options].concat();
        Self { daemon: Daemon::start_with(backend, &options), network: Network::new() }
    }

    fn command(&self, who: Who, arguments: &[&str]) -> Command {
        let mut command = self.network.command();
        let program = compiled("attach");
        command.args(who.words()).arg(program).arg(&self.daemon.device).args(arguments);
        command.stdin(std::process::Stdio::piped());
        command
    }

    /// A client that attaches, and what it says about that. It is killed when dropped.
    fn attach(&self, who: Who, arguments: &[&str]) -> (Program, String) {
        let program = Program::start(&mut self.command(who, arguments));
        let line = program.line();
        (program, line)
    }

    fn said(&self, who: Who, name: &str, flags: &str) -> String {
        let (program, line) = self.attach(who, &[name, flags]);
        drop(program);
        line
    }

    fn wait_for_closes(&self) {
        until(|| {
            let listing = self.daemon.list();
            listing.tunnels.iter().all(|tunnel| tunnel.files.is_empty() && tunnel.link == "gone")
                && listing.unattached_files.is_empty()
        });
    }

    fn shown(&self) -> String {
        self.network.ip(&["-details", "link", "show"])
    }
}

fn attaching_is_for_whom_the_kernel_lets(backend: Backend) {
    for options in
        [&[][..], &["--allow-unprivileged"], &["--allow-unprivileged", "--interface-optional"]]
    {
        let rig = Rig::new(backend, options);
        let add = |name: &str, more: &[&str]| {
            rig.network.ip(&[&["tuntap", "add", "dev", name, "mode", "tun"], more].concat());
        };
        add("corp0", &["user", "0"]);
        add("corp1", &["user", "0", "multi_queue"]);
        add("corp2", &["group", "0"]);
        add("mine", &["user", "65534"]);
        add("free", &[]);
        let queue = rig.network.inside(|| {
            TunFile::attached(std::path::Path::new("/dev/net/tun"), "corp1", TUN | NO_PI | 0x100)
        });
        let before = rig.shown();
        for who in [Who::Nobody, Who::RootOfTheirOwn] {
            for (name, flags) in
                [("corp0", TUN_NO_PI), ("corp1", MULTI_QUEUE), ("corp2", TUN_NO_PI)]
            {
                assert_eq!(
                    rig.said(who, name, flags),
                    "failed EPERM",
                    "{who:?} {name} {options:?}"
                );
            }
            if !options.contains(&"--interface-optional") {
                let said = rig.said(who, "corp0", "0x9001");
                assert_eq!(said, "failed EBUSY", "TUN_EXCL is looked at first");
            }
        }
        assert_eq!(rig.shown(), before, "nothing of root's has changed");
        for (who, name) in [(Who::Nobody, "mine"), (Who::Nobody, "free"), (Who::Root, "corp0")] {
            assert_eq!(rig.said(who, name, TUN_NO_PI), format!("attached {name}"), "{who:?}");
        }
        until(|| rig.daemon.list().tunnels.iter().all(|tunnel| tunnel.files.is_empty()));
        until(|| rig.shown() == before);
        assert_eq!(queue.get_iff().map(|(name, _)| name), Ok("corp1".to_owned()));
    }
}

fn devices_are_made_for_administrators(backend: Backend) {
    let rig = Rig::new(backend, &[]);
    let before = rig.shown();
    for who in [Who::Nobody, Who::RootOfTheirOwn] {
        for name in ["eth7", "tun0", "", "a/b"] {
            assert_eq!(rig.said(who, name, TUN_NO_PI), "failed EPERM", "{who:?} {name:?}");
        }
        assert_eq!(rig.said(who, "lo", TUN_NO_PI), "failed EINVAL", "it is there");
    }
    assert_eq!(rig.shown(), before);
    assert!(rig.daemon.log().contains("--allow-unprivileged"), "the operator is told");
    for who in [Who::Root, Who::RootOfTheirNetwork] {
        assert_eq!(rig.said(who, "eth7", TUN_NO_PI), "attached eth7", "{who:?}");
    }
    rig.wait_for_closes();
    // Without kernel devices nobody is asked, unless that is wished.
    let plain = Daemon::start(backend);
    let rig = Rig { daemon: plain, ..rig };
    assert_eq!(rig.said(Who::Nobody, "eth7", TUN_NO_PI), "attached eth7");
    let asking = Daemon::start_with(backend, &["--require-net-admin"]);
    let rig = Rig { daemon: asking, ..rig };
    for who in [Who::Nobody, Who::RootOfTheirOwn] {
        assert_eq!(rig.said(who, "eth7", TUN_NO_PI), "failed EPERM", "{who:?}");
    }
    assert_eq!(rig.said(Who::RootOfTheirNetwork, "eth7", TUN_NO_PI), "attached eth7");
}

fn names_are_kept_from_the_unprivileged(backend: Backend) {
    let rig = Rig::new(backend, &["--allow-unprivileged", "--names", "tun*,x1"]);
    let before = rig.shown();
    for name in ["eth7", "x%d", "tap0"] {
        assert_eq!(rig.said(Who::Nobody, name, TUN_NO_PI), "failed EPERM", "{name}");
    }
    assert_eq!(rig.shown(), before);
    let (_kept, line) = rig.attach(Who::Nobody, &["", TUN_NO_PI]);
    assert_eq!(line, "attached tun0");
    assert!(rig.shown().contains("tun0"));
    assert_eq!(rig.said(Who::Nobody, "x1", TUN_NO_PI), "attached x1");
    // A device of somebody else's is none that could be made.
    rig.network.ip(&["tuntap", "add", "dev", "tun7", "mode", "tun", "user", "0"]);
    assert_eq!(rig.said(Who::Nobody, "tun7", TUN_NO_PI), "failed EPERM");
    assert_eq!(rig.said(Who::Root, "eth7", TUN_NO_PI), "attached eth7");
    assert_eq!(rig.said(Who::Nobody, "tap9", "0x1032"), "failed EPERM", "IFF_NAPI_FRAGS");
}

/// The root of a namespace gives its device so many names that the kernel's message about it is longer than others.
fn long_messages_hold_up_nobody(backend: Backend) {
    let rig = Rig::new(backend, &[]);
    let (attacker, line) = rig.attach(Who::RootOfTheirNetwork, &["evil", TUN_NO_PI]);
    assert_eq!(line, "attached evil");
    let theirs = Network::of(attacker.pid());
    for number in 0..140 {
        theirs.ip(&[
            "link",
            "property",
            "add",
            "dev",
            "evil",
            "altname",
            &format!("{number:0120}"),
        ]);
    }
    theirs.ip(&["link", "set", "evil", "up", "mtu", "1400"]);
    until(|| {
        rig.daemon.list().tunnels.iter().any(|tunnel| tunnel.mtu == 1400 && tunnel.link == "up")
    });
    assert_eq!(rig.said(Who::Root, "tun0", TUN_NO_PI), "attached tun0");
    drop(attacker);
    rig.wait_for_closes();
}

/// What TUNSETIFF answers cannot be stored, for nobody lets the page be changed.
fn absent_memory_holds_up_nobody(backend: Backend) {
    // The kernel stores the answer of a character device itself.
    let rig = Rig::new(backend, &[]);
    let mute: Vec<Program> = (0..3)
        .map(|number| {
            let (program, line) =
                rig.attach(Who::Root, &[&format!("mute{number}"), TUN_NO_PI, "mute"]);
            assert_eq!(line, "asking");
            program
        })
        .collect();
    for number in 0..3 {
        until(|| rig.shown().contains(&format!("mute{number}")));
    }
    for number in 0..5 {
        assert_eq!(
            rig.said(Who::Root, &format!("tun{number}"), TUN_NO_PI),
            format!("attached tun{number}")
        );
    }
    // The kernel's fault is over with their input.
    for program in mute {
        program.wait();
        assert!(program.line().starts_with("attached mute"));
    }
    rig.wait_for_closes();
}

fn name_of_a_moved_device_is_free(backend: Backend) {
    let rig = Rig::new(backend, &[]);
    let other = Network::new();
    let open = |network: &Network| network.inside(|| TunFile::open(&rig.daemon.device));
    let moved = open(&rig.network);
    moved.set_iff("mv0", TUN | NO_PI).unwrap();
    rig.network.ip(&["link", "set", "mv0", "netns", &other.path()]);
    let second = open(&rig.network);
    assert_eq!(second.set_iff("mv0", TUN | NO_PI), Ok("mv0".to_owned()), "where it was");
    let third = open(&other);
    assert_eq!(third.set_iff("mv0", TUN | NO_PI), Err(Errno::EBUSY), "where it is");
    let scopes: Vec<u64> = rig.daemon.list().tunnels.iter().map(|tunnel| tunnel.scope).collect();
    assert_eq!(scopes, [other.scope(), rig.network.scope()]);
    drop((moved, second, third));
    rig.wait_for_closes();
}

fn lack_of_descriptors_is_told(backend: Backend) {
    let rig = Rig::new(backend, &["--allow-unprivileged"]);
    let first = rig.network.inside(|| TunFile::attached(&rig.daemon.device, "tun0", TUN | NO_PI));
    let second = rig.network.inside(|| TunFile::open(&rig.daemon.device));
    let folder = format!("/proc/{}/fd", rig.daemon.pid());
    let used = || -> Vec<u32> {
        let entries = std::fs::read_dir(&folder).unwrap().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    };
    let limit = |limit: &str| {
        let pid = rig.daemon.pid().to_string();
        let set = Command::new("prlimit").args(["--pid", &pid]).arg(limit).status();
        assert!(set.unwrap().success());
    };
    let used = used();
    let free = (0..).find(|number| !used.contains(number)).unwrap();
    limit(&format!("--nofile={free}:"));
    let refused = within_deadline("TUNSETIFF", move || {
        let refused = second.set_iff("tun1", TUN | NO_PI);
        (second, refused)
    });
    limit("--nofile=1024:");
    assert_eq!(refused.1, Err(Errno::ENFILE));
    assert!(!rig.shown().contains("tun1"), "no substitute either");
    assert!(rig.daemon.log().contains("Too many open files; raise"), "it is told");
    assert_eq!(refused.0.set_iff("tun1", TUN | NO_PI), Ok("tun1".to_owned()));
    drop(first);
}
