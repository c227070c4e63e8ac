//! Network namespaces, so that programs of one test cannot meet those of another.

use std::{
    fmt::Display,
    fs::File,
    os::{fd::AsRawFd, linux::fs::MetadataExt},
    process::Command,
    thread,
};

use nix::{
    poll::{PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
};

use super::within_deadline;

/// A network namespace. It goes with the last process in it, once this is dropped.
pub struct Network(File);

impl Network {
    /// A namespace with nothing but a loopback interface, which is up.
    pub fn new() -> Self {
        // Only the thread that asks moves; the open file keeps the namespace when the thread has ended.
        let namespace = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
            File::open("/proc/thread-self/ns/net").expect("it has a file")
        });
        let network = Self(namespace.join().expect("it does not panic"));
        network.ip(&["link", "set", "lo", "up"]);
        network
    }

    /// A process's.
    pub fn of(process: impl Display) -> Self {
        let path = format!("/proc/{process}/ns/net");
        Self(File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}")))
    }

    /// Two namespaces joined by a cable: `192.0.2.1` is at one end, `192.0.2.2` at the other.
    pub fn pair() -> [Self; 2] {
        let pair = [Self::new(), Self::new()];
        let [left, right] = &pair;
        left.ip(&["link", "add", "cable", "type", "veth", "peer", "cable", "netns", &right.path()]);
        for (network, address) in [(left, "192.0.2.1/24"), (right, "192.0.2.2/24")] {
            network.ip(&["address", "add", address, "dev", "cable"]);
            network.ip(&["link", "set", "cable", "up"]);
        }
        pair
    }

    /// An interface for a program that looks for one of its tunnel's name.
    pub fn add_interface(&self, name: &str) {
        self.ip(&["link", "add", name, "type", "veth", "peer", "other"]);
    }

    /// What runs the program that is added to it in this namespace.
    pub fn command(&self) -> Command {
        enter(&self.path())
    }

    /// The inode number, by which memtun tells namespaces apart.
    pub fn scope(&self) -> u64 {
        self.0.metadata().expect("an open file has metadata").st_ino()
    }

    /// A descriptor of it.
    pub fn file(&self) -> File {
        self.0.try_clone().expect("a descriptor can be had again")
    }

    /// Runs something there, in a thread of its own.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let moved = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("root may enter its namespace");
                act()
            });
            moved.join().expect("it does not panic")
        })
    }

    /// Runs `ip` there, which must succeed, and returns what it printed.
    #[track_caller]
    pub fn ip(&self, arguments: &[&str]) -> String {
        let output = self.command().arg("ip").args(arguments).output().expect("nsenter runs");
        assert!(output.status.success(), "ip {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("ip prints text")
    }

    /// Waits until somebody takes TCP connections to a port, and does not make one: for a server that does not say so.
    #[track_caller]
    pub fn wait_until_listening(&self, port: u16) {
        let path = self.path();
        within_deadline(&format!("listening on TCP port {port}"), move || {
            while !is_listening(&path, port) {
                let tick = poll(&mut [], PollTimeout::from(20_u16));
                assert_eq!(tick, Ok(0));
            }
        });
    }

    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

fn enter(path: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={path}")).arg("--");
    command
}

fn is_listening(path: &str, port: u16) -> bool {
    let output = enter(path).args(["cat", "/proc/net/tcp"]).output().expect("cat can be run");
    // sl, local_address, rem_address, st: 0A is TCP_LISTEN.
    String::from_utf8_lossy(&output.stdout).lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], [_, local, _, "0A", ..] if local.ends_with(&format!(":{port:04X}")))
    })
}
