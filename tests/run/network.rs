//! `memtun run --net`: a network namespace of the program's own, and what shows it.

use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::process::ExitStatusExt},
    path::Path,
    process::Command,
};

use nix::sys::signal::Signal;

use super::{RunTest, User, folder, memtun_run};
use crate::{
    netdev,
    support::{
        daemon::{Run, run},
        network::Network,
        program::{Program, compiled},
        within_deadline,
    },
};

pub(super) const TESTS: &[RunTest] = &[
    ("network_is_empty_if_wanted", network_is_empty_if_wanted),
    ("sysfs_shows_the_programs_interfaces", sysfs_shows_the_programs_interfaces),
    ("what_is_mounted_on_sysfs_comes_along", what_is_mounted_on_sysfs_comes_along),
    ("what_sysfs_may_not_show_stays_covered", what_sysfs_may_not_show_stays_covered),
    ("namespace_is_for_those_who_may_administer_it", namespace_is_for_those_who_may_administer_it),
    ("namespace_is_configured_under_the_own_id", namespace_is_configured_under_the_own_id),
    ("namespace_is_that_of_the_open_file", namespace_is_that_of_the_open_file),
    ("substitute_vanishes_when_memtun_is_killed", substitute_vanishes_when_memtun_is_killed),
];

fn network_is_empty_if_wanted(user: User) {
    let count = |options: &[&str]| {
        let run =
            memtun_run(user, &[options, &["--", "sh", "-c", "grep -c : /proc/net/dev"]].concat());
        run.stdout.trim().parse::<u32>().unwrap_or_else(|_| panic!("{run:?}"))
    };
    assert_eq!(count(&["--net"]), 1, "the loopback interface alone");
    let here = fs::read_to_string("/proc/net/dev").unwrap().matches(':').count();
    assert_eq!(usize::try_from(count(&[])).ok(), Some(here), "else it is untouched");
    let loopback = "ip -o address show dev lo up | grep -c 'inet 127.0.0.1/8'";
    let run = memtun_run(user, &["--net", "--", "sh", "-c", loopback]);
    assert_eq!((run.status, run.stdout.as_str()), (0, "1\n"), "it is up: {run:?}");
}

fn sysfs_shows_the_programs_interfaces(user: User) {
    if let Some(obstacle) = netdev::obstacle() {
        println!("SKIP sysfs of an interface: {obstacle}");
        return;
    }
    let program = compiled("calls");
    // TUNSETPERSIST, so that the tunnel is there when its program has ended.
    let script = "\"$0\" /dev/net/tun attach=tun0 ioctl=400454cb,1; ls /sys/class/net
        cat /sys/class/net/tun0/tun_flags; ip tuntap show";
    let run = memtun_run(user, &["--net", "--", "sh", "-c", script, program.to_str().unwrap()]);
    let calls = "attach=tun0: 0\nioctl=400454cb,1: 0\n";
    let shown = "lo\ntun0\n0x1801\ntun0: tun persist\n";
    assert_eq!((run.status, run.stdout), (0, [calls, shown].concat()), "{}", run.stderr);
}

/// `memtun run --net` with a shell's script, on a machine on whose files another script has worked.
fn on_prepared_machine(user: User, control: &Path, prepare: &str, script: &[&str]) -> Command {
    let inner = user.memtun_run(control, &[&["--net", "--", "sh", "-c"], script].concat());
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &format!("set -e; {prepare}; exec \"$0\" \"$@\"")]);
    command.arg(inner.get_program()).args(inner.get_args()).env("MEMTUN_LOG", "info");
    command
}

#[track_caller]
fn on_prepared_sysfs(user: User, prepare: &str, script: &str) -> Run {
    let (_folder, control) = folder();
    let run = run(&mut on_prepared_machine(user, &control, prepare, &[script]), b"");
    assert_eq!(run.status, 0, "{run:?}");
    run
}

fn what_is_mounted_on_sysfs_comes_along(user: User) {
    let prepare = "mount -t tmpfs tmpfs /sys/fs/cgroup; mkdir /sys/fs/cgroup/below
        mount -t tmpfs tmpfs /sys/fs/cgroup/below; touch /sys/fs/cgroup/below/marker
        mount -o remount,bind,ro,nosuid /sys";
    let script =
        "ls /sys/class/net /sys/fs/cgroup/below; grep ' /sys ' /proc/self/mountinfo | tail -n 1";
    let run = on_prepared_sysfs(user, prepare, script);
    let (listed, mount) = run.stdout.split_at(run.stdout.find("marker\n").expect("it is there"));
    assert_eq!(listed, "/sys/class/net:\nlo\n\n/sys/fs/cgroup/below:\n", "{run:?}");
    assert!(mount.contains(" /sys ro,nosuid"), "no more may be written than before: {run:?}");
}

/// A container covers parts of its sysfs; the kernel then gives an ordinary user no other.
fn what_sysfs_may_not_show_stays_covered(user: User) {
    let prepare = "mount -t tmpfs tmpfs /sys/module";
    let run = on_prepared_sysfs(user, prepare, "ls /sys/module; ls /sys/class/net");
    let outside = Command::new("ls").arg("/sys/class/net").output().expect("ls can be run").stdout;
    let outside = String::from_utf8(outside).expect("names are text");
    let (interfaces, notes) = match user {
        User::Root => ("lo\n", 0),
        User::Ordinary => (outside.as_str(), 1),
    };
    assert_eq!(run.stdout, interfaces, "{run:?}");
    assert_eq!(run.stderr.matches("/sys still shows").count(), notes, "{run:?}");
}

const OF_FILE: &str = "namespace=894c";
const OF_TUNNEL: &str = "namespace=54e3";
const NOT_PERMITTED: &str = "-1 EPERM";

/// Checks what calls on a file of `memtun run` return, with these options. The kernel's own tun was seen to return the same.
#[track_caller]
fn expect(user: User, options: &[&str], expected: &[(&str, &str)]) {
    let program = compiled("calls");
    let calls: Vec<&str> = expected.iter().map(|(call, _)| *call).collect();
    let start = ["--front-end", "fuse", "--", program.to_str().expect("a plain path")];
    let run = memtun_run(user, &[options, &start, &["/dev/net/tun"], &calls].concat());
    let wanted: String =
        expected.iter().map(|(call, result)| format!("{call}: {result}\n")).collect();
    assert_eq!((run.status, run.stdout), (0, wanted), "{options:?}: {}", run.stderr);
}

fn namespace_is_for_those_who_may_administer_it(user: User) {
    let given = match user {
        User::Root => "0",
        User::Ordinary => NOT_PERMITTED,
    };
    expect(user, &[], &[(OF_TUNNEL, "-1 EBADFD"), (OF_FILE, given)]);
    let may = [(OF_FILE, "0"), ("attach=tun0", "0"), (OF_FILE, "0"), (OF_TUNNEL, "0")];
    expect(user, &["--net"], &may);
    expect(user, &["--net", "--map-root"], &may);
}

/// A program that asks who it is finds the user who started it, and may configure its interface all the same.
fn namespace_is_configured_under_the_own_id(user: User) {
    let id = match user {
        User::Root => "0",
        User::Ordinary => "65534",
    };
    let program = compiled("calls");
    // TUNSETPERSIST, so that the tunnel is there when its program has ended.
    let script = "set -e; id -u; \"$0\" /dev/net/tun attach=tun0 ioctl=400454cb,1 >/dev/null
        ip address add 10.9.0.1/24 dev tun0; ip link set tun0 up mtu 1400
        ip route add 10.10.0.0/16 via 10.9.0.2; cat /sys/class/net/tun0/mtu";
    let program = program.to_str().expect("a plain path");
    let run = memtun_run(user, &["--net", "--", "sh", "-c", script, program]);
    assert_eq!((run.status, run.stdout), (0, format!("{id}\n1400\n")), "{}", run.stderr);
    let count = "grep CapAmb /proc/self/status";
    let ambient =
        |options: &[&str]| memtun_run(user, &[options, &["--", "sh", "-c", count]].concat()).stdout;
    let expected = match user {
        User::Root => "CapAmb:\t0000000000000000\n",
        User::Ordinary => "CapAmb:\t0000000000001000\n",
    };
    assert_eq!(ambient(&["--net"]), expected, "nothing more");
    assert_eq!(ambient(&[]), "CapAmb:\t0000000000000000\n", "the network is not its own");
}

fn namespace_is_that_of_the_open_file(user: User) {
    const NEW_NET: &str = "unshare=40000000";
    const NEW_USER: &str = "unshare=10000000";
    let options = ["--net", "--map-root"];
    let moved = [("attach=tun0", "0"), (NEW_NET, "0"), (OF_FILE, "1"), (OF_TUNNEL, "1")];
    expect(user, &options, &moved);
    let lost = [
        ("attach=tun0", "0"),
        (NEW_USER, "0"),
        (OF_FILE, NOT_PERMITTED),
        (OF_TUNNEL, NOT_PERMITTED),
    ];
    expect(user, &options, &lost);
}

fn substitute_vanishes_when_memtun_is_killed(user: User) {
    let probe = ["ip", "link", "add", "probe", "type", "veth"];
    if !Network::new().command().args(probe).output().unwrap().status.success() {
        println!("SKIP substitute_vanishes_when_memtun_is_killed: the kernel has no veth");
        return;
    }
    let (_folder, control) = folder();
    let reader = compiled("reader");
    let script = ["echo $$; exec \"$0\" /dev/net/tun tun0", reader.to_str().unwrap()];
    let without_driver = "mount -t tmpfs tmpfs /dev/net";
    let mut command = on_prepared_machine(user, &control, without_driver, &script);
    let program = Program::start(&mut command);
    let pid = program.line();
    program.expect_line("attached tun0");
    // Held, so that the link does not go with it.
    let namespace = File::open(format!("/proc/{pid}/ns/net")).expect("it has one");
    let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    let shown = move || {
        let ip = ["ip", "-details", "link", "show", "dev", "tun0"];
        let output = Command::new("nsenter").arg(format!("--net={path}")).args(ip).output();
        String::from_utf8(output.expect("nsenter runs").stdout).expect("ip prints text")
    };
    assert!(shown().contains("veth"), "{}", shown());
    program.signal(Signal::SIGKILL);
    assert_eq!(program.wait().signal(), Some(Signal::SIGKILL as i32));
    within_deadline("the link to go", move || while !shown().is_empty() {});
}
