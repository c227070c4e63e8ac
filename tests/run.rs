//! `memtun run` with a daemon of its own: as root, and as an ordinary user.

mod intercept;
mod network;
pub mod notify;

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::Command,
};

use memtun_client::Client;
use nix::sys::signal::Signal;

use crate::support::{
    daemon::{MEMTUN, Run, run},
    program::{Program, compiled},
    within_deadline,
};

/// A test: its name, and what it does as a user.
pub type RunTest = (&'static str, fn(User));

/// Of each part.
pub const TESTS: [&[RunTest]; 4] = [OF_PROGRAMS, intercept::TESTS, network::TESTS, notify::TESTS];

const OF_PROGRAMS: &[RunTest] = &[
    ("exit_status_is_the_programs", exit_status_is_the_programs),
    ("program_is_pinged_at_dev_net_tun", program_is_pinged_at_dev_net_tun),
    ("missing_path_is_made_for_the_program_alone", missing_path_is_made_for_the_program_alone),
    ("ids_are_kept_unless_root_is_wanted", ids_are_kept_unless_root_is_wanted),
    ("program_inherits_nothing_of_ours", program_inherits_nothing_of_ours),
    (
        "what_the_program_leaves_behind_never_meets_the_real_device",
        what_the_program_leaves_behind_never_meets_the_real_device,
    ),
    ("program_stays_on_the_cpu_it_is_given", program_stays_on_the_cpu_it_is_given),
    ("memtun_says_nothing_of_its_own", memtun_says_nothing_of_its_own),
    ("closed_socket_says_whose_it_is", closed_socket_says_whose_it_is),
    ("nested_runs_have_sockets_of_their_own", nested_runs_have_sockets_of_their_own),
    ("socket_that_is_said_is_that_or_an_error", socket_that_is_said_is_that_or_an_error),
    ("net_admin_is_asked_for_if_wanted", net_admin_is_asked_for_if_wanted),
    ("unwritable_standard_error_changes_nothing", unwritable_standard_error_changes_nothing),
    ("signals_are_passed_on", signals_are_passed_on),
    ("nothing_is_left_behind_when_memtun_is_killed", nothing_is_left_behind_when_memtun_is_killed),
    ("ready_descriptor_tells_scripts", ready_descriptor_tells_scripts),
    ("ready_descriptor_is_one_that_was_inherited", ready_descriptor_is_one_that_was_inherited),
    ("control_socket_needs_its_folder", control_socket_needs_its_folder),
    ("client_that_detaches_itself_is_served_on", client_that_detaches_itself_is_served_on),
    ("client_left_behind_gets_the_signals", client_left_behind_gets_the_signals),
    (
        "what_is_left_behind_without_the_device_is_left",
        what_is_left_behind_without_the_device_is_left,
    ),
];

/// Who runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    Root,
    /// Nobody special, as most users are; `/dev/fuse` is open to them on most systems.
    Ordinary,
}

impl User {
    pub const ALL: &[Self] = &[Self::Root, Self::Ordinary];

    pub fn word(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Ordinary => "user",
        }
    }

    /// Why it cannot be tried here.
    pub fn obstacle(self) -> Option<String> {
        if !nix::unistd::geteuid().is_root() {
            return Some("only root can be both".to_owned());
        }
        let made = fs::metadata("/dev/fuse").map(|_| ());
        made.err().map(|error| format!("/dev/fuse: {error}"))
    }

    /// The program, without arguments.
    fn memtun(self) -> Command {
        match self {
            Self::Root => Command::new(MEMTUN),
            Self::Ordinary => {
                let mut command =
                    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lib/as-user"));
                command.arg(MEMTUN);
                command
            }
        }
    }

    /// `memtun run` with these arguments.
    pub fn memtun_run(self, control: &Path, arguments: &[&str]) -> Command {
        let mut command = self.memtun();
        command.arg("run").arg("--control").arg(control).args(arguments);
        command
    }
}

/// A folder in which anybody may have a socket.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let control = folder.path().join("control");
    (folder, control)
}

/// Runs `memtun run` to its end, and checks that it took its socket along.
fn memtun_run(user: User, arguments: &[&str]) -> Run {
    let (_folder, control) = folder();
    let run = run(&mut user.memtun_run(&control, arguments), b"");
    assert!(!control.exists(), "the socket is gone: {run:?}");
    run
}

fn exit_status_is_the_programs(user: User) {
    for (arguments, status) in [
        (&["--", "true"][..], 0),
        (&["--", "sh", "-c", "exit 7"], 7),
        (&["--", "sh", "-c", "kill -9 $$"], 137),
        (&["--", "sh", "-c", "kill -TERM $$"], 143),
        (&["--", "no-such-program"], 127),
        (&["--", "/etc/passwd"], 126),
        (&["--at", "relative/path", "--", "true"], 2),
        (&["--at", "/none/of/it", "--", "true"], 125),
    ] {
        let run = memtun_run(user, arguments);
        assert_eq!(run.status, status, "{arguments:?}: {run:?}");
    }
    let echoed = memtun_run(user, &["--", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!(echoed.stdout, "out\n");
    assert!(echoed.stderr.ends_with("err\n"), "{echoed:?}");
}

fn program_is_pinged_at_dev_net_tun(user: User) {
    let (_folder, control) = folder();
    let pong = compiled("pong");
    let program =
        Program::start(&mut user.memtun_run(&control, &["--", pong.to_str().unwrap(), "tun0"]));
    let memtun = |arguments: &[&str]| {
        run(Command::new(MEMTUN).args(arguments).env("MEMTUN_CONTROL", &control), b"")
    };
    assert_eq!(memtun(&["wait", "tun0", "reading", "--timeout", "30s"]).succeeded(), "tun0 #1\n");
    memtun(&["inject", "tun0", "--ping", "--from", "10.0.0.1", "--to", "10.0.0.2"]).succeeded();
    let id = |reply: &str| {
        let (before, after) = ("10.0.0.2 > 10.0.0.1: ICMP echo reply, id ", ", seq 1, length 64\n");
        let id = reply.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
        id.and_then(|id| id.parse::<u16>().ok()).unwrap_or_else(|| panic!("{reply}"))
    };
    let first = id(&memtun(&["take", "tun0", "--timeout", "30s"]).succeeded());
    // Of many pings one at least has another identifier.
    let differs = (0..20).any(|_| {
        memtun(&["inject", "tun0", "--ping", "--from", "10.0.0.1", "--to", "10.0.0.2"]).succeeded();
        id(&memtun(&["take", "tun0", "--timeout", "30s"]).succeeded()) != first
    });
    assert!(differs, "a ping can be told from others");
    program.signal(Signal::SIGTERM);
    assert_eq!(program.wait().code(), Some(143));
}

fn missing_path_is_made_for_the_program_alone(user: User) {
    let list = "ls /dev/net-of-a-test/tun && ls -l /dev/null && readlink /dev/fd";
    let shown = memtun_run(user, &["--at", "/dev/net-of-a-test/tun", "--", "sh", "-c", list]);
    assert_eq!(shown.status, 0, "{shown:?}");
    assert!(shown.stdout.contains("crw-rw-rw-"), "the other devices are still there: {shown:?}");
    assert!(!Path::new("/dev/net-of-a-test").exists());
}

fn ids_are_kept_unless_root_is_wanted(user: User) {
    let own = match user {
        User::Root => "0 0\n",
        User::Ordinary => "65534 65534\n",
    };
    let ids = ["sh", "-c", "echo $(id -u) $(id -g)"];
    assert_eq!(memtun_run(user, &[&["--"][..], &ids].concat()).stdout, own);
    assert_eq!(memtun_run(user, &[&["--map-root", "--"][..], &ids].concat()).stdout, "0 0\n");
}

fn program_inherits_nothing_of_ours(user: User) {
    let script = ["sh", "-c", "ls /proc/self/fd; grep SigBlk /proc/self/status"];
    let without = run(Command::new(script[0]).args(&script[1..]), b"").succeeded();
    assert_eq!(memtun_run(user, &[&["--"][..], &script].concat()).stdout, without);
}

fn what_the_program_leaves_behind_never_meets_the_real_device(user: User) {
    let (_folder, control) = folder();
    // The child waits for the end of the program, then opens the device until memtun has ended too: before that it is memtun's, which
    // says that the descriptor is in a bad state, or cuts the call short.
    let script = r#"
        exec 3>&1
        (
            while kill -0 $$ 2>/dev/null; do :; done
            while error=$(cat /dev/net/tun 2>&1 >/dev/null); echo "$error" | grep -qE 'bad state|Input/output error'; do :; done
            echo "$error" >&3
        ) &"#;
    let program = Program::start(&mut user.memtun_run(&control, &["--", "sh", "-c", script]));
    let error = program.line();
    // The device of the kernel's own driver would go on to say that the descriptor is in a bad state.
    let ends = ["not connected", "connection abort", "No such device"];
    assert!(ends.iter().any(|end| error.contains(end)), "{error}");
}

fn program_stays_on_the_cpu_it_is_given(user: User) {
    let cpus = |options: &[&str]| {
        memtun_run(
            user,
            &[options, &["--", "grep", "Cpus_allowed_list", "/proc/self/status"]].concat(),
        )
    };
    assert_eq!(cpus(&["--cpu", "0"]).stdout, "Cpus_allowed_list:\t0\n");
    for (cpu, status, said) in
        [("1023", 125, "--cpu 1023: Invalid argument"), ("1000000", 2, "from 0 to 1023")]
    {
        let run = cpus(&["--cpu", cpu]);
        assert_eq!((run.status, run.stderr.contains(said)), (status, true), "{run:?}");
    }
}

/// Nothing unless asked, on standard error too: that is the program's.
fn memtun_says_nothing_of_its_own(user: User) {
    assert_eq!(memtun_run(user, &["--", "true"]).succeeded(), "");
    assert_eq!(memtun_run(user, &["--net", "-q", "--", "true"]).succeeded(), "");
    let told = memtun_run(user, &["-v", "--", "true"]);
    assert!(told.status == 0 && told.stderr.contains("INFO chosen front_end="), "{told:?}");
    assert!(!told.stderr.contains("DEBUG"), "{told:?}");
    assert!(memtun_run(user, &["-vv", "--", "true"]).stderr.contains("DEBUG"));
}

/// A socket of root's, or in a folder of root's, is there and closed to others.
fn closed_socket_says_whose_it_is(user: User) {
    let (folder, control) = folder();
    let socket = std::os::unix::net::UnixListener::bind(&control).unwrap();
    let list = || {
        let mut list = user.memtun();
        list.args(["list", "--control"]).arg(&control);
        list
    };
    fs::set_permissions(&control, fs::Permissions::from_mode(0o640)).unwrap();
    if user == User::Root {
        // Nothing is closed to root, and this one never answers.
        let mut child = list().stderr(std::process::Stdio::null()).spawn().unwrap();
        let harness = socket.accept().unwrap();
        drop(harness);
        assert_eq!(child.wait().unwrap().code(), Some(1));
        return;
    }
    let error = run(&mut list(), b"").failed(1);
    let advice = "Permission denied (os error 13); it belongs to user root, with mode 0640; use sudo, or start 'memtun serve' with --control-group or --control-mode";
    assert!(error.ends_with(advice), "{error}");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let error = run(&mut list(), b"").failed(1);
    assert!(error.contains("you may not look into one of its folders; use sudo"), "{error}");
}

fn nested_runs_have_sockets_of_their_own(user: User) {
    let inner =
        [MEMTUN, "run", "--", "sh", "-c", "test -S $MEMTUN_CONTROL && echo $MEMTUN_CONTROL"];
    let (_folder, control) = folder();
    let run = run(&mut user.memtun_run(&control, &[&["--"][..], &inner].concat()), b"");
    assert_eq!(run.status, 0, "{run:?}");
    assert_ne!(run.stdout.trim_end(), control.to_str().unwrap());
    // The variable may be relative to where a shell stands.
    let script = "cd \"${MEMTUN_CONTROL%/*}\" && MEMTUN_CONTROL=./${MEMTUN_CONTROL##*/} \"$@\"";
    let inner = [&["--", "sh", "-c", script, "sh"][..], &inner].concat();
    let run = crate::support::daemon::run(&mut user.memtun_run(&control, &inner), b"");
    assert_eq!(run.status, 0, "{run:?}");
    assert!(run.stdout.starts_with('/') && run.stdout.trim_end() != control.to_str().unwrap());
}

/// Whoever says a path looks for the socket there. A variable may be that of the shell around.
fn socket_that_is_said_is_that_or_an_error(user: User) {
    let (_folder, control) = folder();
    let path = control.to_str().unwrap();
    let inner = [
        "--",
        "sh",
        "-c",
        "\"$0\" run --control \"$MEMTUN_CONTROL\" -- true; echo $?; \"$0\" list",
        MEMTUN,
    ];
    let run = run(&mut user.memtun_run(&control, &inner), b"");
    let said = format!(
        "memtun: control socket {path} is in use by another daemon; stop that one, or give another path with --control\n"
    );
    assert_eq!((run.status, run.stderr), (0, said));
    assert!(run.stdout.starts_with("125\n") && control.metadata().is_err(), "{}", run.stdout);
}

fn net_admin_is_asked_for_if_wanted(user: User) {
    let (_folder, control) = folder();
    let reader = compiled("reader");
    let says = |options: &[&str]| {
        let client = ["--", "timeout", "9", reader.to_str().unwrap(), "/dev/net/tun", "tun0"];
        let program = Program::start(&mut user.memtun_run(&control, &[options, &client].concat()));
        let line = program.line();
        program.signal(Signal::SIGTERM);
        program.wait();
        line
    };
    assert_eq!(says(&[]), "attached tun0");
    let expected = match user {
        User::Root => "attached tun0",
        User::Ordinary => "failed EPERM",
    };
    assert_eq!(says(&["--require-net-admin"]), expected);
}

fn unwritable_standard_error_changes_nothing(user: User) {
    let full = || fs::File::options().write(true).open("/dev/full").expect("there is /dev/full");
    for (arguments, status) in [
        (&["run", "--", "true"][..], 0),
        (&["run", "--", "no-such-program"], 127),
        (&["run", "--at", "/no-such-folder/tun", "--", "true"], 125),
        (&["list", "--control", "/no/such/socket"], 1),
    ] {
        let mut memtun = user.memtun();
        memtun.args(arguments).stderr(full());
        let ended = within_deadline("memtun", move || memtun.status()).expect("memtun can be run");
        assert_eq!(ended.code(), Some(status), "{arguments:?}");
    }
}

fn signals_are_passed_on(user: User) {
    let (_folder, control) = folder();
    let script = "trap 'echo usr2' USR2; trap 'echo int; exit 3' INT; echo started; while :; do read line; done";
    let program = Program::start(&mut user.memtun_run(&control, &["--", "sh", "-c", script]));
    program.expect_line("started");
    program.signal(Signal::SIGUSR2);
    program.expect_line("usr2");
    program.signal(Signal::SIGINT);
    program.expect_line("int");
    assert_eq!(program.wait().code(), Some(3));
}

fn nothing_is_left_behind_when_memtun_is_killed(user: User) {
    let (_folder, control) = folder();
    let reader = compiled("reader");
    let program = Program::start(&mut user.memtun_run(
        &control,
        // A child that has left the program's session, too.
        &[
            "--",
            "sh",
            "-c",
            "setsid tail -f /dev/null & echo $! $$; exec \"$0\" /dev/net/tun tun0",
            reader.to_str().unwrap(),
        ],
    ));
    let line = program.line();
    let pids: Vec<u32> = line.split(' ').map(|pid| pid.parse().expect("a pid")).collect();
    assert_eq!(pids.len(), 2);
    program.expect_line("attached tun0");
    assert!(Client::connect(&control).is_ok());
    program.signal(Signal::SIGKILL);
    assert_eq!(program.wait().signal(), Some(Signal::SIGKILL as i32));
    within_deadline("the program and the socket to go", move || {
        let is_running = |pid| {
            fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
        };
        while pids.iter().any(is_running) || control.exists() {}
    });
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("/dev/net/tun"), "no mount was ever seen here");
}

fn ready_descriptor_tells_scripts(user: User) {
    let (_folder, control) = folder();
    // The shell has the line on a pipe; the program's own output goes elsewhere.
    let ready = |options: &[&str]| {
        let command = user.memtun_run(&control, options);
        let script = "\"$@\" 3>&1 >/dev/null 2>&1 | { read line; echo \"$line\"; }";
        let output = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(command.get_program())
            .args(command.get_args())
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    assert_eq!(ready(&["--ready-fd", "3", "--", "true"]), "ready\n");
    let reader = compiled("reader");
    let attached = [
        "--ready-fd",
        "3",
        "--wait-attached",
        "--",
        "timeout",
        "1",
        reader.to_str().unwrap(),
        "/dev/net/tun",
        "tun0",
    ];
    assert_eq!(ready(&attached), "ready\n");
    assert_eq!(
        ready(&["--ready-fd", "3", "--wait-attached", "--", "true"]),
        "\n",
        "nobody attached"
    );
}

fn ready_descriptor_is_one_that_was_inherited(user: User) {
    let (_folder, control) = folder();
    let script = |redirection: &str, number: u32| {
        let command = user.memtun_run(&control, &["--ready-fd", &number.to_string(), "--", "true"]);
        let script = format!("\"$@\" {redirection}");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
        run(&mut shell, b"")
    };
    for number in 3..=9 {
        // Not one of those that the shell may have.
        let refused = script(&format!("{number}>&-"), number);
        assert_eq!(refused.status, 2, "{refused:?}");
        assert!(refused.stderr.contains("this descriptor was not inherited"), "{refused:?}");
    }
    let refused = script("5</dev/null", 5);
    assert_eq!(refused.status, 2, "{refused:?}");
    assert!(refused.stderr.contains("this descriptor is not open for writing"), "{refused:?}");
    assert!(script("", 1).stderr.contains("3 or more"));
    assert_eq!(script("9>&1 >/dev/null", 9).stdout, "ready\n");
}

fn control_socket_needs_its_folder(user: User) {
    let (folder, _) = folder();
    let missing = folder.path().join("missing");
    let refused = run(&mut user.memtun_run(&missing.join("control"), &["--", "true"]), b"");
    let line = refused.failed(125);
    let expected = format!("there is no folder {}; make it", missing.display());
    assert!(line.contains(&expected), "{line}");
    assert!(!missing.exists());
}

/// A program that starts another, which attaches to tun0 and reads from it, and ends at once.
fn detaching(user: User, control: &Path, prepare: &str) -> Program {
    let reader = compiled("reader");
    let script = format!("{prepare} setsid \"$0\" /dev/net/tun tun0 & exit 7");
    let arguments = ["--", "sh", "-c", &script, reader.to_str().unwrap()];
    Program::start_with_stderr(&mut user.memtun_run(control, &arguments))
}

fn client_that_detaches_itself_is_served_on(user: User) {
    let (_folder, control) = folder();
    let program = detaching(user, &control, "");
    // In either order.
    let mut said = [program.line(), program.line()];
    said.sort_unstable();
    let [attached, waiting] = said;
    let (start, end) =
        ("memtun: waiting until reader-", "has closed the device; SIGINT or SIGTERM is passed on");
    assert_eq!(attached, "attached tun0");
    assert!(waiting.starts_with(start) && waiting.ends_with(end), "{waiting}");
    let memtun = |arguments: &[&str]| {
        run(Command::new(MEMTUN).args(arguments).env("MEMTUN_CONTROL", &control), b"").succeeded()
    };
    memtun(&["wait", "tun0", "reading"]);
    memtun(&["inject", "tun0", "--hex", "4501"]);
    program.expect_line("read 2");
    memtun(&["delete", "tun0"]);
    assert_eq!(program.wait().code(), Some(7), "the program's own");
    assert!(!control.exists());
}

fn client_left_behind_gets_the_signals(user: User) {
    let (_folder, control) = folder();
    for prepare in ["", "trap '' INT;"] {
        let program = detaching(user, &control, prepare);
        program.line_with("waiting until reader-");
        program.signal(Signal::SIGINT);
        assert_eq!(program.wait().code(), Some(7), "{prepare}");
    }
    // What ends the program is meant for what it leaves behind.
    let reader = compiled("reader");
    let script = "setsid \"$0\" /dev/net/tun tun0 & while :; do sleep 1; done";
    let arguments = ["--", "sh", "-c", script, reader.to_str().unwrap()];
    let program = Program::start_with_stderr(&mut user.memtun_run(&control, &arguments));
    program.line_with("attached tun0");
    program.signal(Signal::SIGTERM);
    assert_eq!(program.wait().code(), Some(143));
}

fn what_is_left_behind_without_the_device_is_left(user: User) {
    let (_folder, control) = folder();
    let program = Program::start_with_stderr(
        &mut user.memtun_run(&control, &["--", "sh", "-c", "tail -f /dev/null & echo $!"]),
    );
    let left: i32 = program.line().parse().unwrap();
    assert_eq!(program.wait().code(), Some(0));
    assert!(nix::sys::signal::kill(nix::unistd::Pid::from_raw(left), Signal::SIGKILL).is_ok());
}
