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
    ("options_have_an_effect_or_are_refused", options_have_an_effect_or_are_refused),
    ("empty_variable_is_named", empty_variable_is_named),
    ("help_that_cannot_be_written_is_an_error", help_that_cannot_be_written_is_an_error),
    ("own_folder_goes_with_the_daemon", own_folder_goes_with_the_daemon),
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
        &["serve", "--fuse", "x", "--number", "241:0"],
        &["run", "--names", "a", "--require-net-admin", "--", "true"],
        &["run", "--use", "x", "--names", "a", "--", "true"],
        &["run", "--use", "x", "--memory", "8M", "--", "true"],
        &["run", "--use", "x", "--memory-per-user", "8M", "--", "true"],
        &["run", "--use", "x", "--cpu", "0", "--", "true"],
        &["run", "--use", "x", "--no-spin", "--", "true"],
        &["run", "--wait-attached", "--", "true"],
        &["wait", "--", "tun0"],
    ] {
        wrong_usage(memtun(arguments), arguments);
    }
}

fn bad_values_are_named_before_a_daemon_is_asked() {
    let ping = |from, to| ["inject", "tun0", "--ping", "--from", from, "--to", to];
    let udp = |from, to| ["inject", "tun0", "--udp", "--from", from, "--to", to];
    let host = |forward| ["host", "tun0", "--addr", "10.0.0.1/24", "--forward", forward];
    for (arguments, said) in [
        (
            &["inject", "tun0", "--hex", "4"][..],
            "'4' for '--hex <HEX>': give two hex digits for each",
        ),
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
        (&["wait", "tun0"], "memtun wait [OPTIONS] [<TUNNEL> <attached|detached|reading|written>]"),
        (&["take", "tun0", "-n", "0"], ": give a number from 1 to 4294967295"),
        (&["take", "tun0", "-n", "-3"], ": give a number from 1 to 4294967295"),
        (
            &["take", "tun0", "--timeout", "soon"],
            "'--timeout <DURATION>': give a number and a unit",
        ),
        (&["serve", "--fuse", "x", "--threads", "0"], ": give a number from 1 to 255"),
        (&["inject", "tun0", "--ping", "--id", "70000"], ": give a number from 0 to 65535"),
        (&["inject", "tun0", "--ping", "--seq", "one"], ": give a number from 0 to 65535"),
        (&["list", "--control", ""], "if MEMTUN_CONTROL is empty, unset it"),
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

/// Each is fine where it means something, see the tests of its verb.
fn options_have_an_effect_or_are_refused() {
    let ping = ["inject", "tun0", "--ping", "--from", "10.0.0.1", "--to", "10.0.0.2"];
    let udp = ["inject", "tun0", "--udp", "--from", "10.0.0.1:1", "--to", "10.0.0.2:1"];
    let hex = ["inject", "tun0", "--hex", "45"];
    let file = ["serve", "--fuse", "x"];
    let run = ["run", "--no-spin"];
    let program = ["--", "true"];
    for (before, options, after, said) in [
        (&ping[..], &["--data", "x"][..], &[][..], "'--data <TEXT>'"),
        (&udp, &["--id", "1"], &[], "'--id <N>'"),
        (&udp, &["--seq", "1"], &[], "'--seq <N>'"),
        (&hex, &["--data", "x"], &[], "--udp"),
        (&hex, &["--no-wait", "--timeout", "1s"], &[], "'--no-wait'"),
        (&file, &["--memory-per-user", "257M"], &[], "cannot take more memory than all"),
        (&file, &["--memory", "8M", "--memory-per-user", "9M"], &[], "more memory than all"),
        (&file, &["--threads", "2", "--no-spin"], &[], "--no-spin is for a single thread"),
        (&file, &["--interface-optional"], &[], "give --interface shadow or bridge"),
        (&file, &["--interface-optional", "--interface", "none"], &[], "give --interface shadow"),
        (&file, &["--names", "a", "--interface", "shadow"], &[], "give --allow-unprivileged with"),
        (&run, &["--memory-per-user", "257M"], &program, "cannot take more memory than all"),
        (&run, &["--interface-optional"], &program, "give --interface shadow or bridge"),
        (
            &run,
            &["--no-intercept", "--front-end", "cuse"],
            &program,
            "--no-intercept is for a file",
        ),
    ] {
        let arguments = [before, options, after].concat();
        let error = wrong_usage(memtun(&arguments), &arguments);
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
    // These names have an effect without --allow-unprivileged, so that it is not asked for. There is no such folder.
    let folder = ["--control", "/nonexistent/control"];
    let arguments = [&file[..], &folder, &["--names", "a"]].concat();
    assert!(memtun(&arguments).failed(1).contains("there is no folder /nonexistent"));
    let arguments = [&run[..], &folder, &["--net", "--interface-optional"], &program].concat();
    assert!(memtun(&arguments).failed(125).contains("there is no folder /nonexistent"));
}

fn empty_variable_is_named() {
    let mut list = Command::new(MEMTUN);
    let error = wrong_usage(run(list.arg("list").env("MEMTUN_CONTROL", ""), b""), &["list"]);
    assert!(error.contains("if MEMTUN_CONTROL is empty, unset it"), "{error}");
}

fn help_that_cannot_be_written_is_an_error() {
    for arguments in [&["--help"][..], &["--version"], &["take", "--help"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let help = Command::new(MEMTUN).args(arguments).stdout(full).output().unwrap();
        let said = String::from_utf8(help.stderr).unwrap();
        let wanted = "memtun: writing to standard output: No space left on device (os error 28)\n";
        assert_eq!((help.status.code(), said.as_str()), (Some(1), wanted), "{arguments:?}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let help = Command::new(MEMTUN).args(arguments).stdout(writer).output().unwrap();
        assert!(help.stderr.is_empty(), "{arguments:?}: {help:?}");
    }
}

/// Of `/run/memtun`. What somebody else has made, or has something in, stays.
fn own_folder_goes_with_the_daemon() {
    if !nix::unistd::geteuid().is_root() || std::fs::metadata("/dev/fuse").is_err() {
        println!("SKIP own_folder_goes_with_the_daemon: it needs root and /dev/fuse");
        return;
    }
    for (prepare, left) in [
        ("", "ls: /run/memtun is gone"),
        ("mkdir /run/memtun;", ""),
        ("MEANWHILE='touch /run/memtun/other';", "other"),
    ] {
        let script = format!(
            "mount -t tmpfs tmpfs /run; {prepare}
            \"$0\" serve -q --fuse /run/memtun/tun & \"$0\" wait --timeout 20s && eval \"$MEANWHILE\"
            kill $!; wait; if [ -d /run/memtun ]; then ls /run/memtun; else echo 'ls: /run/memtun is gone'; fi"
        );
        let mut shell = Command::new("unshare");
        shell.args(["-m", "sh", "-c", &script, MEMTUN]).env_remove("MEMTUN_CONTROL");
        let said = run(&mut shell, b"").succeeded();
        assert_eq!(said.trim_end(), left, "{prepare}");
    }
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
