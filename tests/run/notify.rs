//! `memtun run --front-end notify`: as root, as an ordinary user, and where a container without capabilities would be.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use nix::sys::signal::Signal;

use super::{RunTest, User, folder, memtun_run};
use crate::support::{
    daemon::{MEMTUN, Run, run},
    program::{Program, compiled},
};

pub(super) const TESTS: &[RunTest] = &[
    ("notified_descriptor_is_that_of_the_device", notified_descriptor_is_that_of_the_device),
    ("notified_program_is_pinged", notified_program_is_pinged),
    ("notified_values_reach_the_device", notified_values_reach_the_device),
    ("notified_client_left_behind_is_served_on", notified_client_left_behind_is_served_on),
    ("notified_program_ends_as_it_would", notified_program_ends_as_it_would),
    ("rings_are_refused_unless_they_are_allowed", rings_are_refused_unless_they_are_allowed),
    ("second_listener_is_refused_with_what_to_do", second_listener_is_refused_with_what_to_do),
    ("lack_of_notifications_is_named", lack_of_notifications_is_named),
    ("paths_lead_to_the_notified_device", paths_lead_to_the_notified_device),
];

/// Tests in a place that allows nothing. To be run by root.
pub const OF_LOCKED: &[(&str, fn())] = &[
    ("descriptor_is_that_of_the_device", || {
        expect_descriptor(&locked_run(&[compiled("descriptor").to_str().expect("a plain path")]));
    }),
    ("program_is_pinged", locked_program_is_pinged),
    ("device_is_there_for_scripts", device_is_there_for_scripts),
    ("front_end_that_needs_more_says_so", front_end_that_needs_more_says_so),
    ("what_can_be_had_is_chosen_and_told", what_can_be_had_is_chosen_and_told),
];

const NOTIFY: [&str; 3] = ["--front-end", "notify", "--"];

fn notified(user: User, program: &[&str]) -> Run {
    memtun_run(user, &[&NOTIFY, program].concat())
}

/// memtun in the locked place, without arguments. What is run there must be open to all.
fn locked() -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lib/locked"));
    command.arg(compiled("locked")).arg(MEMTUN);
    command
}

fn locked_run(program: &[&str]) -> Run {
    let (_folder, control) = folder();
    let mut memtun = locked();
    memtun.arg("run").arg("--control").arg(&control).args(NOTIFY).args(program);
    run(&mut memtun, b"")
}

/// What `tests/programs/descriptor.c` prints on the kernel's tun of Linux 6.18, but for the writes: the kernel's is down there, and
/// answers EIO.
const DESCRIPTOR: &str = "\
attach: 0
fstat: 0
is a character device: 1 10:200
stat: 0
is a character device: 1 10:200
statx: 0
is a character device: 1 10:200
access: 0
execute: EACCES
splice out: EINVAL
write to a pipe: 10
splice in: EINVAL
tee: EINVAL
sendfile in: EINVAL
sendfile out: EINVAL
copy_file_range in: EINVAL
copy_file_range out: EINVAL
mmap private: ENODEV
mmap shared: ENODEV
fsync: EINVAL
fdatasync: EINVAL
ftruncate: EINVAL
fallocate: ENODEV
isatty: EINVAL
lseek: ESPIPE
pread: EAGAIN
pread before the beginning: EINVAL
pwrite: 28
FIONREAD: EINVAL
F_GETFL: 2050
F_SETFL O_APPEND: 0
F_GETFL: 3074
F_SETFL O_DIRECT: EINVAL
F_SETFL: 0
F_GETPIPE_SZ: EBADF
flock: 0
vmsplice: EBADF
open O_TRUNC: 0
open O_CREAT: 0
open O_CREAT O_EXCL: EEXIST
open O_RDONLY: 0
open O_WRONLY: 0
open O_NOFOLLOW: 0
open O_DIRECTORY: ENOTDIR
open O_DIRECT: EINVAL
open by its descriptor: 0
write to what is read only: EBADF
read into nothing: 0
dup reads: EAGAIN
dup writes: 28
dup2: 0
child writes: 0
close: 0
names that are free when close returns: 50
epoll: 0
close_range: 0
read of what is closed: EBADF
";

#[track_caller]
fn expect_descriptor(run: &Run) {
    let differs = |(told, expected): (&str, &str)| {
        (told != expected).then(|| (told.to_owned(), expected.to_owned()))
    };
    let differences: Vec<_> =
        run.stdout.lines().zip(DESCRIPTOR.lines()).filter_map(differs).collect();
    assert!(differences.is_empty(), "{differences:#?}");
    assert_eq!(
        (run.status, run.stdout.lines().count()),
        (0, DESCRIPTOR.lines().count()),
        "{run:?}"
    );
}

fn notified_descriptor_is_that_of_the_device(user: User) {
    expect_descriptor(&notified(user, &[compiled("descriptor").to_str().unwrap()]));
}

#[track_caller]
fn expect_pong(control: &Path, program: &Program) {
    let memtun = |arguments: &[&str]| {
        run(Command::new(MEMTUN).args(arguments).env("MEMTUN_CONTROL", control), b"").succeeded()
    };
    assert_eq!(memtun(&["wait", "tun0", "reading", "--timeout", "30s"]), "tun0 #1\n");
    for _ in 0..20 {
        memtun(&["inject", "tun0", "--ping", "--from", "10.0.0.1", "--to", "10.0.0.2"]);
        let reply = memtun(&["take", "tun0", "--timeout", "30s"]);
        assert!(reply.starts_with("10.0.0.2 > 10.0.0.1: ICMP echo reply"), "{reply}");
    }
    program.signal(Signal::SIGTERM);
}

fn notified_program_is_pinged(user: User) {
    let (_folder, control) = folder();
    let pong = compiled("pong");
    let arguments = [&NOTIFY[..], &[pong.to_str().unwrap(), "tun0"]].concat();
    let program = Program::start(&mut user.memtun_run(&control, &arguments));
    expect_pong(&control, &program);
    assert_eq!(program.wait().code(), Some(143));
}

fn locked_program_is_pinged() {
    let (_folder, control) = folder();
    let mut memtun = locked();
    memtun.arg("run").arg("--control").arg(&control).args(NOTIFY);
    let program = Program::start(memtun.arg(compiled("pong")).arg("tun0"));
    expect_pong(&control, &program);
    assert_eq!(program.wait().code(), Some(143));
}

fn notified_values_reach_the_device(user: User) {
    let program = compiled("calls");
    let expected = [
        ("ioctl=400454cb,1", "-1 EBADFD"),
        ("read0", "-1 EBADFD"),
        ("attach=tun0", "0"),
        ("ioctl=400454cb,1", "0"),
        ("ioctl32=400454cb,0", "0"),
        ("ioctl=400454cc,ffffffff", "-1 EINVAL"),
        ("read0", "0"),
        ("write0", "-1 EINVAL"),
        ("pread0", "0"),
        ("write0_32", "-1 EINVAL"),
        ("pipe0", "0"),
    ];
    let calls = expected.iter().map(|(call, _)| *call);
    let arguments: Vec<&str> =
        [program.to_str().unwrap(), "/dev/net/tun"].into_iter().chain(calls).collect();
    let told = notified(user, &arguments).succeeded();
    let wanted: String =
        expected.iter().map(|(call, result)| format!("{call}: {result}\n")).collect();
    assert_eq!(told, wanted);
}

fn notified_client_left_behind_is_served_on(user: User) {
    let (_folder, control) = folder();
    let reader = compiled("reader");
    let script = format!("setsid {} /dev/net/tun tun0 & exit 7", reader.display());
    let arguments = [&NOTIFY[..], &["sh", "-c", &script]].concat();
    let program = Program::start_with_stderr(&mut user.memtun_run(&control, &arguments));
    let mut said = [program.line(), program.line()];
    said.sort_unstable();
    assert_eq!(said[0], "attached tun0");
    assert!(said[1].starts_with("memtun: waiting until reader-"), "{said:?}");
    let memtun = |arguments: &[&str]| {
        run(Command::new(MEMTUN).args(arguments).env("MEMTUN_CONTROL", &control), b"").succeeded()
    };
    memtun(&["wait", "tun0", "reading"]);
    memtun(&["inject", "tun0", "--hex", "4501"]);
    program.expect_line("read 2");
    memtun(&["delete", "tun0"]);
    assert_eq!(program.wait().code(), Some(7), "the program's own");
}

fn notified_program_ends_as_it_would(user: User) {
    for (arguments, status) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "kill -9 $$"], 137),
        (&["no-such-program"], 127),
        (&["/etc/passwd"], 126),
    ] {
        let run = notified(user, arguments);
        assert_eq!(run.status, status, "{arguments:?}: {run:?}");
    }
    let usage = memtun_run(user, &["--front-end", "notify", "--no-intercept", "--", "true"]);
    assert_eq!(usage.status, 2, "{usage:?}");
}

fn rings_are_refused_unless_they_are_allowed(user: User) {
    let calls = compiled("calls");
    let ring = [calls.to_str().unwrap(), "/dev/net/tun", "ring"];
    assert_eq!(notified(user, &ring).succeeded(), "ring: -1 ENOSYS\n");
    let on_a_file = memtun_run(user, &[&["--front-end", "fuse", "--"], &ring[..]].concat());
    assert_eq!(on_a_file.succeeded(), "ring: -1 ENOSYS\n");
    let options = ["--front-end", "notify", "--io-uring", "allow", "--"];
    let allowed = memtun_run(user, &[&options[..], &ring].concat()).succeeded();
    let without = run(Command::new(ring[0]).args(["/dev/null", "ring"]), b"").succeeded();
    let is_number = |told: &str| {
        told.trim_end().rsplit(' ').next().is_some_and(|end| end.parse::<u32>().is_ok())
    };
    assert_eq!(is_number(&allowed), is_number(&without), "{allowed}");
}

fn second_listener_is_refused_with_what_to_do(user: User) {
    let inner = [MEMTUN, "run", "--front-end", "notify", "--", "true"];
    let run = notified(user, &inner);
    assert_eq!(run.status, 125, "{run:?}");
    assert!(run.stderr.contains("one seccomp listener for a program"), "{run:?}");
    assert!(run.stderr.contains("use --front-end fuse"), "{run:?}");
}

fn lack_of_notifications_is_named(user: User) {
    let (_folder, control) = folder();
    let mut memtun = match user {
        User::Root => Command::new(compiled("forbid")),
        User::Ordinary => {
            let mut command =
                Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lib/as-user"));
            // A filter needs it.
            command.args(["setpriv", "--no-new-privs"]).arg(compiled("forbid"));
            command
        }
    };
    memtun.args(["seccomp", MEMTUN, "run", "--control"]).arg(&control).args(NOTIFY).arg("true");
    let error = run(&mut memtun, b"").failed(125);
    assert!(error.contains("seccomp notifications: Operation not permitted"), "{error}");
    assert!(error.contains("use --front-end fuse"), "{error}");
}

/// The device is where a path leads, whether by a link, a folder, or `/proc`.
fn paths_lead_to_the_notified_device(user: User) {
    let (folder, _) = folder();
    let script = r#"
        cd "$0" && ln -s /dev/net/tun link && ln -s link other
        self=/proc/self
        for path in /dev/net/tun /dev/../dev/net//tun link other "$self/root"/dev/net/tun "$self"/cwd/other; do
            cat "$path" 2>&1 | grep -q 'bad state' && echo "$path"
        done
        cat /etc/hostname link/ nothing 2>/dev/null >/dev/null; echo $?
        [ -c link ] && echo device"#;
    let told = notified(user, &["sh", "-c", script, folder.path().to_str().unwrap()]).succeeded();
    let expected = concat!(
        "/dev/net/tun\n/dev/../dev/net//tun\nlink\nother\n",
        "/proc/self/root",
        "/dev/net/tun\n/proc/self/cwd/other\n",
        "1\ndevice\n"
    );
    assert_eq!(told, expected);
}

/// What start scripts of images do before they start a client.
fn device_is_there_for_scripts() {
    let script = r"
        ls /dev/net 2>/dev/null
        [ -c /dev/net/tun ] && [ -e /dev/net/tun ] && [ -r /dev/net/tun ] && [ -w /dev/net/tun ] && echo there
        stat -c '%F %a %t:%T' /dev/net/tun
        cd /dev && [ -c net/tun ] && echo from here
        cat /dev/net/tun
        [ -e /dev/net/tap ] || echo nothing else";
    let run = locked_run(&["sh", "-c", script]);
    let told = "there\ncharacter special file 666 a:c8\nfrom here\nnothing else\n";
    assert_eq!((run.status, run.stdout.as_str()), (0, told), "{run:?}");
    assert!(run.stderr.contains("File descriptor in bad state"), "{run:?}");
}

fn what_can_be_had_is_chosen_and_told() {
    let told = run(locked().arg("doctor"), b"").succeeded();
    for line in [
        "\nfuse    no ",
        "making namespaces: Operation not permitted; run as root",
        "\nnotify  yes ",
        "\nnet     no ",
        "\n'memtun run' chooses notify: there is nothing else here\n",
    ] {
        assert!(told.contains(line), "{line:?} in {told}");
    }
    let (_folder, control) = folder();
    let mut memtun = locked();
    memtun.arg("run").arg("--control").arg(&control).args(["--", "test", "-c", "/dev/net/tun"]);
    run(&mut memtun, b"").succeeded();
    let told = run(Command::new(MEMTUN).arg("doctor"), b"").succeeded();
    assert!(told.contains("\nfuse    yes ") && told.contains("\nnotify  yes "), "{told}");
}

fn front_end_that_needs_more_says_so() {
    let (folder, control) = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut memtun = locked();
    memtun.arg("run").arg("--control").arg(&control).args(["--front-end", "fuse", "--", "true"]);
    let error = run(&mut memtun, b"").failed(125);
    assert!(error.contains("making a user namespace: Operation not permitted"), "{error}");
}
