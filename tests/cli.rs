//! What the program says where there is no daemon, and no device can be had.

use std::{process::Command, time::Duration};

use memtun_client::PATIENCE;

use crate::support::{
    Background,
    daemon::{MEMTUN, Run, run},
};

pub const TESTS: &[(&str, fn())] = &[
    ("usage_errors_exit_with_2", usage_errors_exit_with_2),
    (
        "bad_values_are_named_before_a_daemon_is_asked",
        bad_values_are_named_before_a_daemon_is_asked,
    ),
    ("log_options_are_checked", log_options_are_checked),
    ("help_names_every_verb", help_names_every_verb),
    ("missing_daemon_is_named", missing_daemon_is_named),
    ("mute_daemon_is_given_up", mute_daemon_is_given_up),
    ("missing_cuse_is_named", missing_cuse_is_named),
    ("units_are_valid", units_are_valid),
];

fn memtun(arguments: &[&str]) -> Run {
    run(Command::new(MEMTUN).args(arguments).env_remove("MEMTUN_CONTROL"), b"")
}

fn usage_errors_exit_with_2() {
    for arguments in [
        &[][..],
        &["fly"],
        &["inject"],
        &["inject", "tun0", "--hex", "45", "--ping"],
        &["inject", "tun0", "--ping", "--from", "10.0.0.1"],
        &["inject", "tun0", "--hex", "45", "--frame", "--source-mac", "02:00:00:00:00:01"],
        &["inject", "tun0", "--ping", "--from", "10.0.0.1", "--to", "10.0.0.2", "--frame"],
        &["inject", "tun0", "--hex", "45", "--id", "5"],
        &["inject", "tun0", "--hex", "45", "--seq", "5"],
        &["inject", "tun0", "--hex", "45", "--data", "x"],
        &["inject", "", "--hex", "45"],
        &["take", "tun0", "--hex", "--json"],
        &["take", "tun0", "--vnet"],
        &["take", "tun0", "--vnet", "--json"],
        &["inject", "tun0", "--hex", "45", "--vnet", "00"],
        &["inject", "tun0", "--hex", "45", "--gso", "tcp5:1400"],
        &["inject", "tun0", "--hex", "45", "--csum", "20"],
        &["take", "tun0", "--timeout", "soon"],
        &["wait", "tun0"],
        &["wait", "tun0", "friday"],
        &["set", "tun0"],
        &["set", "tun0", "sideways"],
        &["set", "tun0", "up", "mtu"],
        &["set", "tun0", "mac", "02:00"],
        &["delete"],
        &["join", "tun0"],
        &["join", "tun0", "tun1", "--timeout", "soon"],
        &["host", "tun0"],
        &["host", "tun0", "--addr", "10.0.0.1"],
        &["part"],
        &["run", "--use", "/dev/null", "--require-net-admin", "--", "true"],
        &["run", "--cpu", "100000", "--", "true"],
        &["run", "--at", "relative", "--", "true"],
        &["run", "--ready-fd", "1", "--", "true"],
        &["take", "tun0", "-n", "0"],
        &["serve", "--cuse", ""],
        &["serve", "--cuse", "../x"],
        &["serve", "--cuse", "x", "--mode", "rw"],
        &["serve", "--cuse", "x", "--number", "5"],
        &["serve", "--cuse", "x", "--owner", "no-such-user"],
        &["serve", "--cuse", "x", "--control-group", "no-such-group"],
        &["serve", "--cuse", "x", "--control-mode", "8"],
        &["serve", "--cuse", "x", "--threads", "0"],
        &["serve", "--mode", "0600"],
    ] {
        wrong_usage(memtun(arguments), arguments);
    }
}

fn bad_values_are_named_before_a_daemon_is_asked() {
    let ping = |from, to| ["inject", "tun0", "--ping", "--from", from, "--to", to];
    let udp = |from, to| ["inject", "tun0", "--udp", "--from", from, "--to", to];
    let host = |forward| ["host", "tun0", "--addr", "10.0.0.1/24", "--forward", forward];
    for (arguments, said) in [
        (&["inject", "tun0", "--hex", "4"][..], "give two hex digits for each byte"),
        (&["inject", "tun0", "--hex", "4x"], "give two hex digits for each byte"),
        (
            &["inject", "tun0", "--hex", "45", "--from", "10.0.0.1"],
            "--from and --to need --ping or --udp",
        ),
        (
            &["inject", "tun0", "--to", "10.0.0.1", "--from", "10.0.0.2"],
            "--from and --to need --ping or --udp",
        ),
        (&ping("ten", "10.0.0.1"), "'ten' for '--from"),
        (&ping("10.0.0.1", "10.0.0.2:5"), "a ping has no ports"),
        (&ping("::1", "10.0.0.1"), "give two IPv4 or two IPv6 addresses"),
        (&udp("10.0.0.1", "10.0.0.2:1"), "--udp needs ports"),
        (&udp("10.0.0.1:1", "[fd00::1]:1"), "give two IPv4 or two IPv6 addresses"),
        (&["set", "tun0", "up", "down"], "up or down may be given once"),
        (&["set", "tun0", "mtu", "1400", "mtu", "1300"], "mtu may be given once"),
        (&["set", "tun0", "mtu", "-5"], "mtu takes a number, not \"-5\""),
        (&["join", "tun0", "tun0"], "cannot be joined to itself"),
        (&host("7:127.0.0.1:7"), "port 7 of the host has a service already"),
        (&["serve"], "<--cuse <NAME>|--fuse <PATH>>"),
    ] {
        let error = wrong_usage(memtun(arguments), arguments);
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
    // A negative number is a bad value, and not taken for an option.
    for arguments in [
        &["take", "tun0", "--timeout", "-1s"][..],
        &["wait", "tun0", "attached", "--timeout", "-1s"],
        &["join", "tun0", "tun1", "--timeout", "-1"],
        &["host", "tun0", "--addr", "10.0.0.1/24", "--timeout", "-1s"],
        &["take", "tun0", "-n", "-1"],
        &["inject", "tun0", "--ping", "--id", "-1"],
        &["serve", "--cuse", "x", "--mode", "-1"],
        &["serve", "--cuse", "x", "--number", "-1:0"],
        &["serve", "--cuse", "x", "--threads", "-1"],
        &["run", "--cpu", "-1", "--", "true"],
        &["run", "--ready-fd", "-1", "--", "true"],
    ] {
        let error = wrong_usage(memtun(arguments), arguments);
        let value = arguments.iter().find(|word| word.starts_with("-1")).unwrap();
        assert!(error.contains(&format!("invalid value '{value}'")), "{arguments:?}: {error}");
        assert!(!error.contains("tip"), "{arguments:?}: {error}");
    }
    let word = ["take", "tun0", "-1s"];
    assert!(!wrong_usage(memtun(&word), &word).contains("-- -1s"));
}

/// Status 2, and how the verb is used.
#[track_caller]
fn wrong_usage(run: Run, arguments: &[&str]) -> String {
    assert_eq!((run.status, run.stdout.as_str()), (2, ""), "{arguments:?}: {run:?}");
    let verb = arguments.iter().find(|word| !word.starts_with('-') && **word != "fly");
    let usage = format!("Usage: memtun {}", verb.copied().unwrap_or("[OPTIONS]"));
    assert!(run.stderr.contains(&usage), "{arguments:?}: {}", run.stderr);
    run.stderr
}

fn log_options_are_checked() {
    for arguments in [["-q", "list", "-v"], ["list", "-vq", "--json"]] {
        let error = wrong_usage(memtun(&arguments), &arguments);
        assert!(error.contains("exclude each other"), "{error}");
    }
    let with_log = |value: &str, arguments: &[&str]| {
        let mut command = Command::new(MEMTUN);
        run(command.args(arguments).env("MEMTUN_LOG", value), b"")
    };
    let arguments = ["run", "--", "true"];
    for value in ["loud", "hyper=debug", "memtun=x"] {
        let error = wrong_usage(with_log(value, &arguments), &arguments);
        assert!(error.contains("MEMTUN_LOG: ") && !error.contains("  tip"), "{error}");
    }
    // What is said by an option counts more, and an empty variable is none.
    assert!(memtun(&["--help"]).succeeded().contains("MEMTUN_LOG"));
    let missing = ["list", "--control", "/nonexistent/control"];
    with_log("", &missing).failed(1);
    with_log("loud", &["list", "-v", "--control", "/nonexistent/control"]).failed(1);
    with_log("warn,memtun::control=debug", &missing).failed(1);
}

fn help_names_every_verb() {
    let help = memtun(&["--help"]).succeeded();
    for verb in [
        "serve", "run", "list", "inject", "take", "wait", "watch", "set", "delete", "join", "host",
        "part",
    ] {
        assert!(help.contains(&format!("\n  {verb}")), "{verb}: {help}");
        assert!(memtun(&[verb, "--help"]).succeeded().contains("Usage: memtun"), "{verb}");
    }
}

fn missing_daemon_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let path = path.to_str().unwrap();
    let error = memtun(&["list", "--control", path]).failed(1);
    assert!(error.contains(path) && error.contains("is 'memtun serve' running"), "{error}");
    let error = memtun(&["wait", "--timeout", "50ms", "--control", path]).failed(1);
    assert!(error.contains(path), "{error}");
    // A dead daemon's socket.
    drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    let error = memtun(&["list", "--control", path]).failed(1);
    assert!(error.contains("Connection refused"), "{error}");
}

/// The kernel accepts connections for a daemon that is stopped.
fn mute_daemon_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let runs = [
        (&["list"][..], PATIENCE),
        (&["take", "tun0", "--timeout", "1h"], PATIENCE),
        // It is this one that may still have to start.
        (&["wait", "--timeout", "1s"], PATIENCE + Duration::from_secs(1)),
    ]
    .map(|(arguments, after)| {
        let mut command = Command::new(MEMTUN);
        command.args(arguments).env("MEMTUN_CONTROL", &path);
        (arguments, after, Background::start(move || run(&mut command, b"")))
    });
    for (arguments, after, run) in runs {
        let error = run.join("a verb without a daemon").failed(1);
        let said = format!(
            "memtun: the daemon of control socket {} did not answer within {after:?}; it may be stopped or overloaded",
            path.display()
        );
        assert_eq!(error, said, "{arguments:?}");
    }
}

fn missing_cuse_is_named() {
    if std::path::Path::new("/dev/cuse").exists() {
        println!("SKIP missing_cuse_is_named: /dev/cuse is there");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control");
    let error =
        memtun(&["serve", "--cuse", "memtun", "--control", control.to_str().unwrap()]).failed(1);
    assert!(error.contains("/dev/cuse") && error.contains("modprobe cuse"), "{error}");
    assert!(!control.exists(), "the socket does not stay");
}

/// systemd's own judgement of the units, with the program where they expect it.
fn units_are_valid() {
    let units = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd");
    let folder = tempfile::tempdir().unwrap();
    for unit in ["memtun.service", "memtun.socket"] {
        let text = std::fs::read_to_string(format!("{units}/{unit}")).unwrap();
        std::fs::write(folder.path().join(unit), text.replace("/usr/bin/memtun", MEMTUN)).unwrap();
    }
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "memtun.service", "memtun.socket"])
        .current_dir(folder.path())
        .env("SYSTEMD_UNIT_PATH", format!("{}:", folder.path().display()))
        .output();
    let output = match verify {
        Ok(output) => output,
        Err(error) if std::env::var_os("CI").is_none() => {
            println!("SKIP units_are_valid: systemd-analyze: {error}");
            return;
        }
        Err(error) => panic!("systemd-analyze: {error}"),
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("memtun"), "{said}");
    let service = std::fs::read_to_string(format!("{units}/memtun.service")).unwrap();
    assert!(service.contains("Type=notify"));
}
