//! Calls on the file of `memtun run` that the kernel does not bring there: ioctls that pass a value, and calls of zero bytes.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::Command,
};

use memtun_client::{
    Client,
    proto::list::{List, Listing},
};
use nix::sys::signal::Signal;

use super::{RunTest, User, folder, memtun_run};
use crate::support::{
    daemon::{Backend, Daemon, MEMTUN, Run, run},
    program::{Program, compiled},
    within_deadline,
};

pub(super) const TESTS: &[RunTest] = &[
    ("values_reach_a_file", values_reach_a_file),
    ("calls_of_nothing_reach_a_file", calls_of_nothing_reach_a_file),
    ("calls_of_32_bit_programs_reach_a_file", calls_of_32_bit_programs_reach_a_file),
    ("threads_and_children_are_intercepted_too", threads_and_children_are_intercepted_too),
    ("setuid_programs_are_intercepted_too", setuid_programs_are_intercepted_too),
    ("a_daemons_file_is_carried_to_as_well", a_daemons_file_is_carried_to_as_well),
    ("program_goes_without_if_told_or_if_there_is_a_listener", program_goes_without),
    ("a_missing_system_call_is_named", a_missing_system_call_is_named),
    ("what_is_left_behind_can_still_write_nothing", what_is_left_behind_can_still_write_nothing),
    ("interceptor_ends_with_the_last_program", interceptor_ends_with_the_last_program),
    ("memtun_can_be_killed_amid_calls", memtun_can_be_killed_amid_calls),
];

const FUSE: [&str; 3] = ["--front-end", "fuse", "--"];

/// What the calls return, one a line.
fn calls(user: User, calls: &[&str]) -> Vec<String> {
    let program = compiled("calls");
    let program = [program.to_str().expect("a plain path"), "/dev/net/tun"];
    let run = memtun_run(user, &[&FUSE, &program[..], calls].concat());
    lines(run)
}

#[track_caller]
fn lines(run: Run) -> Vec<String> {
    run.succeeded().lines().map(str::to_owned).collect()
}

/// Runs the calls on a tunnel, and checks that each returns what stands beside it.
#[track_caller]
fn expect(user: User, expected: &[(&str, &str)]) {
    let arguments: Vec<&str> = expected.iter().map(|(call, _)| *call).collect();
    let wanted: Vec<String> =
        expected.iter().map(|(call, result)| format!("{call}: {result}")).collect();
    assert_eq!(calls(user, &arguments), wanted);
}

fn values_reach_a_file(user: User) {
    // TUNSETPERSIST, TUNSETNOCSUM, TUNSETDEBUG, TUNSETOWNER, TUNSETGROUP, TUNSETLINK, TUNSETOFFLOAD, TUNSETVNETBE
    expect(
        user,
        &[
            ("ioctl=400454cb,1", "-1 EBADFD"),
            ("attach=tun0", "0"),
            ("ioctl=400454cb,1", "0"),
            ("ioctl=400454c8,1", "0"),
            ("ioctl=400454c9,1", "0"),
            ("ioctl=400454cc,5", "0"),
            ("ioctl=400454cc,ffffffff", "-1 EINVAL"),
            ("ioctl=400454ce,6", "0"),
            ("ioctl=400454cd,1", "-1 EBUSY"),
            ("ioctl=400454d0,7", "0"),
            ("ioctl=400454d0,200", "-1 EINVAL"),
            ("ioctl=400454de,0", "-1 EINVAL"),
        ],
    );
}

fn calls_of_nothing_reach_a_file(user: User) {
    expect(
        user,
        &[
            ("write0", "-1 EBADFD"),
            ("read0", "-1 EBADFD"),
            ("pread0", "-1 EBADFD"),
            ("pwrite0", "-1 EBADFD"),
            ("attach=tun0", "0"),
            ("write0", "-1 EINVAL"),
            ("read0", "0"),
            ("pread0", "0"),
            ("pwrite0", "-1 EINVAL"),
            ("pipe0", "0"),
            ("readonly", "0"),
            ("write0", "-1 EBADF"),
            ("read0", "-1 EBADFD"),
            ("writeonly", "0"),
            ("read0", "-1 EBADF"),
            ("write0", "-1 EBADFD"),
        ],
    );
}

fn calls_of_32_bit_programs_reach_a_file(user: User) {
    let probe = Command::new(compiled("calls")).args(["/dev/null", "write0_32"]).output();
    if probe.expect("it can be run").stdout != b"write0_32: 0\n" {
        println!("SKIP calls of 32-bit programs: this machine or kernel has none");
        return;
    }
    expect(
        user,
        &[
            ("write0_32", "-1 EBADFD"),
            ("attach=tun0", "0"),
            ("write0_32", "-1 EINVAL"),
            ("read0_32", "0"),
            ("ioctl32=400454cb,1", "0"),
            ("ioctl32=400454cc,7", "0"),
            ("ioctl32=400454cc,ffffffff", "-1 EINVAL"),
        ],
    );
}

fn threads_and_children_are_intercepted_too(user: User) {
    for start in ["thread", "fork", "threads=32"] {
        let results = calls(user, &["attach=tun0", start, "write0", "ioctl=400454cb,1", "write0"]);
        let expected = ["attach=tun0: 0", "write0: -1 EINVAL", "ioctl=400454cb,1: 0"];
        assert_eq!(results, [&expected[..], &["write0: -1 EINVAL"]].concat(), "{start}");
    }
}

/// One whose memory and descriptors are closed to others of its user. In a user namespace of an ordinary user nobody's
/// program changes the user.
fn setuid_programs_are_intercepted_too(user: User) {
    let (folder, _) = folder();
    let program = folder.path().join("calls");
    fs::copy(compiled("calls"), &program).expect("it can be copied");
    let owner = match user {
        User::Root => 65534,
        User::Ordinary => 0,
    };
    chown(&program, Some(owner), None).expect("root may give it away");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("its owner may");
    let program = program.to_str().expect("a plain path");
    let calls = [program, "/dev/net/tun", "euid", "attach=tun0", "ioctl=400454cb,1", "write0"];
    assert_eq!(
        lines(memtun_run(user, &[&FUSE[..], &calls].concat())),
        ["euid: 65534", "attach=tun0: 0", "ioctl=400454cb,1: 0", "write0: -1 EINVAL"]
    );
}

/// A tunnel of a daemon that is there for longer than the program.
fn a_daemons_file_is_carried_to_as_well(user: User) {
    let daemon = Daemon::start(Backend::Fuse);
    let program = compiled("calls");
    let mut command = user.memtun();
    command.args(["run", "--use"]).args([&daemon.device, Path::new("--"), &program]);
    command.args(["/dev/net/tun", "attach=tun0", "ioctl=400454cb,1", "ioctl=400454cc,9", "write0"]);
    assert_eq!(
        lines(run(&mut command, b"")),
        ["attach=tun0: 0", "ioctl=400454cb,1: 0", "ioctl=400454cc,9: 0", "write0: -1 EINVAL"]
    );
    let tunnel = &daemon.list().tunnels[0];
    assert_eq!((tunnel.persistent, tunnel.owner), (true, Some(9)));
}

fn program_goes_without(user: User) {
    let program = compiled("calls");
    let program = program.to_str().expect("a plain path");
    let calls = [program, "/dev/net/tun", "attach=tun0", "ioctl=400454cb,1", "write0", "read0"];
    let expected = ["attach=tun0: 0", "ioctl=400454cb,1: -1 EFAULT", "write0: 0", "read0: 0"]
        .map(str::to_owned);
    let told = memtun_run(user, &[&["--no-intercept"], &FUSE[..], &calls].concat());
    assert_eq!(lines(told), expected);
    let inner = [MEMTUN, "run", "--front-end", "fuse", "--"];
    let nested = memtun_run(user, &[&FUSE[..], &inner, &calls].concat());
    assert_eq!(nested.stdout.lines().collect::<Vec<_>>(), expected);
    assert_eq!((nested.status, nested.stderr.lines().count()), (0, 1), "{nested:?}");
    assert!(nested.stderr.contains("there is one already"), "{nested:?}");
}

/// As in a container with strict rules.
fn a_missing_system_call_is_named(user: User) {
    let [forbid, program] = ["forbid", "calls"].map(compiled);
    for missing in ["seccomp", "pidfd_getfd", "close_range"] {
        let (_folder, control) = folder();
        let inner = user.memtun_run(&control, &FUSE);
        let mut command = Command::new(&forbid);
        command.args([missing.as_ref(), inner.get_program()]).args(inner.get_args());
        command.arg(&program).args(["/dev/net/tun", "attach=tun0", "ioctl=400454cb,1", "write0"]);
        let run = run(&mut command, b"");
        let expected = "attach=tun0: 0\nioctl=400454cb,1: -1 EFAULT\nwrite0: 0\n";
        assert_eq!((run.status, run.stdout.as_str()), (0, expected), "{run:?}");
        assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
        assert!(run.stderr.contains(&format!("{missing}: Operation not permitted")), "{run:?}");
    }
}

fn what_is_left_behind_can_still_write_nothing(user: User) {
    let (_folder, control) = folder();
    let program = compiled("calls");
    let program = program.to_str().expect("a plain path");
    // The child goes on when the file has lost its server.
    let script = "(while true </dev/net/tun; do :; done 2>/dev/null; \"$0\" /dev/null pipe0 write0) & exit 4";
    let arguments = [&FUSE[..], &["sh", "-c", script, program]].concat();
    let mut command = user.memtun_run(&control, &arguments);
    let ended = run(&mut command, b"");
    assert_eq!((ended.status, ended.stdout.as_str()), (4, "pipe0: 0\nwrite0: 0\n"), "{ended:?}");
}

/// Processes whose command line has this text in it.
fn processes_of(text: &str) -> usize {
    let entries = fs::read_dir("/proc").expect("/proc is there").flatten();
    entries
        .filter(|entry| {
            // Ended, but not reaped, they have none.
            fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(text))
        })
        .count()
}

fn interceptor_ends_with_the_last_program(user: User) {
    let (_folder, control) = folder();
    let text = control.to_str().expect("a plain path").to_owned();
    let script = "echo $$; while :; do read line; done";
    let arguments = [&FUSE[..], &["sh", "-c", script]].concat();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let program = Program::start(&mut user.memtun_run(&control, &arguments));
        program.line();
        // memtun, what removes its socket, and the interceptor; and perhaps what runs memtun as a user.
        assert!(processes_of(&text) >= 3);
        program.signal(signal);
        program.wait();
        let text = text.clone();
        within_deadline("all processes to end", move || while processes_of(&text) > 0 {});
    }
}

/// While the interceptor waits for the device, which only memtun can answer.
fn memtun_can_be_killed_amid_calls(user: User) {
    let program = compiled("calls");
    for _ in 0..5 {
        let (_folder, control) = folder();
        let text = control.to_str().expect("a plain path").to_owned();
        let call = [program.to_str().expect("a plain path"), "/dev/net/tun", "attach=tun0"];
        let many = ["threads=8", "repeat=100000", "write0"];
        let arguments = [&FUSE[..], &call, &many].concat();
        let running = Program::start(&mut user.memtun_run(&control, &arguments));
        running.expect_line("attach=tun0: 0");
        running.expect_line("write0: -1 EINVAL");
        let listing: Listing =
            Client::connect(&control).expect("it runs").call(&List {}).expect("list");
        assert_eq!(listing.tunnels.len(), 1);
        running.signal(Signal::SIGKILL);
        running.wait();
        within_deadline("all processes to end", move || while processes_of(&text) > 0 {});
    }
}
