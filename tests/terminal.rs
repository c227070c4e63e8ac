//! What a person at a terminal sees: the README's sessions word for word, colours where they are wanted, and nothing that a
//! client controls. Each program has a pseudo-terminal of its own.

mod readme;

use std::{
    ffi::{OsStr, OsString},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt, process::ExitStatusExt},
    path::PathBuf,
    process::Command,
};

use nix::sys::signal::Signal;
use serde_json::Value;

pub use self::readme::OF_README;
use crate::run::{RunTest, User};
use crate::support::{
    daemon::{Backend, Daemon, MEMTUN, run},
    datagram,
    device::{NO_PI, TUN, TunFile},
    program::{Program, compiled},
    terminal::Terminal,
    until,
};

/// Those that need no device.
pub const TESTS: &[(&str, fn())] = &[
    ("error_is_one_line_and_nothing_else", error_is_one_line_and_nothing_else),
    ("colours_are_for_terminals_that_want_them", colours_are_for_terminals_that_want_them),
    ("help_fits_the_window", help_fits_the_window),
];

pub const OF_RUN: &[RunTest] = &[("interrupt_is_the_programs", interrupt_is_the_programs)];

pub const OF_DEVICE: &[crate::DeviceTest] = &[
    ("terminal_obeys_no_client", terminal_obeys_no_client),
    ("terminal_shows_the_table_whole", terminal_shows_the_table_whole),
    ("terminal_shows_what_is_watched_at_once", terminal_shows_what_is_watched_at_once),
    ("terminal_interrupts_what_waits", terminal_interrupts_what_waits),
    ("terminal_interrupts_a_daemon_in_order", terminal_interrupts_a_daemon_in_order),
    ("terminal_that_is_read_is_told", terminal_that_is_read_is_told),
];

const MISSING: &str = "/nonexistent/control";

fn memtun(arguments: &[&str]) -> Command {
    let mut command = Command::new(MEMTUN);
    command.args(arguments);
    command
}

/// What a program prints until it ends by itself, and its status.
fn shown(command: &Command, columns: u16) -> (i32, String) {
    let (status, text) = Terminal::start(command, columns).end();
    (status.code().unwrap_or(-1), text)
}

/// Without colours and the like: `ESC [ NUMBERS m`.
fn without_styles(text: &str) -> String {
    let mut pieces = text.split("\x1b[");
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        match piece.split_once('m') {
            Some((style, rest)) if style.chars().all(|c| c.is_ascii_digit() || c == ';') => {
                plain.push_str(rest);
            }
            _ => plain.extend(["\x1b[", piece]),
        }
    }
    plain
}

/// Without the `^C` that a terminal shows for the key, unless the signal is faster.
fn without_echo(text: &str) -> String {
    text.replace("^C", "").trim().to_owned()
}

/// A terminal does nothing but show it and begin lines.
#[track_caller]
fn is_harmless(text: &str) {
    let hidden = ['\u{202e}', '\u{2066}', '\u{200b}', '\u{e0041}'];
    let wrong = |c: char| c.is_control() && c != '\r' && c != '\n' || hidden.contains(&c);
    assert!(!text.contains(wrong) && !text.contains('\u{fffd}'), "{text:?}");
}

fn error_is_one_line_and_nothing_else() {
    let said = "memtun: connecting to control socket /nonexistent/control: No such file or directory (os error 2); is 'memtun serve' running, and is this its --control path?\r\n";
    for arguments in
        [&["list"][..], &["-v", "take", "tun0"], &["watch", "-vvv"], &["set", "a", "up"]]
    {
        let (status, text) = shown(&memtun(&[arguments, &["--control", MISSING]].concat()), 80);
        assert_eq!((status, without_styles(&text).as_str()), (1, said), "{arguments:?}");
    }
    let (status, text) = shown(&memtun(&["run", "--", "/no/such/program"]), 80);
    let said = "memtun: running /no/such/program: No such file or directory (os error 2)\r\n";
    assert_eq!((status, without_styles(&text).as_str()), (127, said));
}

fn colours_are_for_terminals_that_want_them() {
    let missing = &["list", "--control", MISSING];
    for (arguments, status) in [
        (&missing[..], 1),
        (&["--help"], 0),
        (&["serve", "--help"], 0),
        (&["serve"], 2),
        (&["set", "tun0", "up", "down"], 2),
        (&["take", "tun0", "--timeout", "-1s"], 2),
        (&["run", "-v", "--front-end", "cuse", "--at", "/none/of/it", "--", "true"], 125),
    ] {
        let coloured = shown(&memtun(arguments), 80);
        assert_eq!(coloured.0, status, "{arguments:?}: {coloured:?}");
        assert!(coloured.1.contains("\x1b["), "{arguments:?}: {coloured:?}");
        let plain = (status, without_styles(&coloured.1));
        for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb"), ("CLICOLOR", "0")] {
            let told = shown(memtun(arguments).env("CI", "true").env(name, value), 80);
            is_harmless(&told.1);
            // A line of the log has its time.
            if !arguments.contains(&"-v") {
                assert_eq!(told, plain, "{arguments:?} with {name}={value}");
            }
        }
        let empty = shown(memtun(arguments).env("NO_COLOR", ""), 80);
        assert!(empty.1.contains("\x1b["), "an empty variable is none: {arguments:?}");
        let piped = run(&mut memtun(arguments), b"");
        is_harmless(&format!("{}{}", piped.stdout, piped.stderr));
    }
}

/// Help is broken between words, so that a narrow window does not break it within one.
fn help_fits_the_window() {
    const COLUMNS: usize = 50;
    for verb in [
        "-v",
        "serve",
        "run",
        "list",
        "inject",
        "take",
        "wait",
        "watch",
        "set",
        "interface",
        "delete",
        "join",
        "host",
        "part",
    ] {
        let (status, text) = shown(&memtun(&[verb, "--help"]), COLUMNS.try_into().unwrap());
        assert_eq!(status, 0);
        for line in without_styles(&text).split("\r\n") {
            // clap leaves the line of usage whole, and a word cannot be broken.
            let is_whole = line.starts_with("Usage: ") || line.split_whitespace().count() <= 2;
            assert!(line.chars().count() <= COLUMNS || is_whole, "{verb}: {line:?}");
        }
    }
}

/// A client that has chosen its names with care: its command name is that of its file.
fn hostile_client(daemon: &Daemon, folder: &tempfile::TempDir) -> (Program, &'static str) {
    let name = OsStr::from_bytes(b"\x1b]0;a\x07\xc2\x9bJ\xe2\x80\xae\xff");
    let file = folder.path().join(name);
    std::fs::copy(compiled("reader"), &file).unwrap();
    let tunnel = OsString::from("\x1b[2Jtun");
    let program = Program::start(Command::new(&file).arg(&daemon.device).arg(tunnel));
    program.line_with("attached");
    (program, "\\x1b]0;a\\x07\\u{9b}J\\u{202e}\\xff")
}

fn terminal_obeys_no_client(backend: Backend) {
    let daemon = Daemon::start(backend);
    let folder = tempfile::tempdir().unwrap();
    let control = daemon.control.to_str().unwrap();
    let plainly = |arguments: &[&str]| {
        let mut command = memtun(&[arguments, &["--control", control]].concat());
        command.env("NO_COLOR", "1");
        command
    };
    let mut watches = [&["watch"][..], &["watch", "--json"]]
        .map(|arguments| Terminal::start(&plainly(arguments), 80));
    // A watch shows what happens after it has begun: files are opened until one is seen.
    for watch in &mut watches {
        until(|| {
            drop(TunFile::open(&daemon.device));
            watch.has_printed()
        });
    }
    let (client, command) = hostile_client(&daemon, &folder);
    for watch in &mut watches {
        let text = watch.read_until("what was attached", |text| text.contains("2Jtun"));
        is_harmless(&text);
    }
    let (status, table) = shown(&plainly(&["list"]), 200);
    is_harmless(&table);
    assert_eq!(status, 0);
    assert!(table.contains("\\x1b[2Jtun  tun"), "{table}");
    assert!(table.contains(&format!("{command}(")), "{table}");
    let (_, json) = shown(&plainly(&["list", "--json"]), 200);
    is_harmless(&json);
    let listing: Value = serde_json::from_str(&json).unwrap();
    let known = &listing["tunnels"][0]["files"][0]["command"];
    assert_eq!(known, "\x1b]0;a\x07\u{9b}J\u{202e}\\xff", "JSON says what it is: {json}");
    let tunnel = "\x1b[2Jtun";
    let (status, waited) = shown(&plainly(&["wait", tunnel, "attached"]), 200);
    assert_eq!((status, waited.as_str()), (0, "\\x1b[2Jtun #1\r\n"));
    // A message of the daemon's that names the tunnel.
    let (status, refused) = shown(&plainly(&["take", tunnel, "--timeout", "1ms"]), 200);
    is_harmless(&refused);
    assert!(status == 1 && refused.contains("\\x1b[2Jtun"), "{refused}");
    drop(client);
    is_harmless(&daemon.log());
}

fn terminal_shows_the_table_whole(backend: Backend) {
    let daemon = Daemon::start(backend);
    let _file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let mut list = memtun(&["list"]);
    list.env("MEMTUN_CONTROL", &daemon.control);
    let (status, wide) = shown(&list, 200);
    assert_eq!(status, 0);
    assert!(wide.starts_with("\x1b[1mID  TUNNEL  MODE"), "its head stands out: {wide:?}");
    assert_eq!(wide.matches('\x1b').count(), 2, "and nothing else: {wide:?}");
    assert_eq!(shown(&list, 40).1, wide, "the window breaks lines, and nothing is lost");
    assert_eq!(without_styles(&wide).replace('\r', ""), daemon.memtun(&["list"]).succeeded());
}

fn terminal_shows_what_is_watched_at_once(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let mut watch = memtun(&["watch", "tun0"]);
    let mut terminal = Terminal::start(watch.env("MEMTUN_CONTROL", &daemon.control), 60);
    // It shows what happens after it has begun.
    until(|| {
        daemon.memtun(&["set", "tun0", "down"]).succeeded();
        daemon.memtun(&["set", "tun0", "up"]).succeeded();
        terminal.has_printed()
    });
    file.write(&datagram(1)).unwrap();
    let text = terminal.read_until("the datagram", |text| {
        text.lines()
            .any(|line| line.contains("tun0 from client 10.0.0.1") && line.contains("10.0.0.2"))
    });
    is_harmless(&text);
    assert!(text.lines().all(|line| line.contains(" tun0 ")), "a line an event: {text:?}");
    terminal.press(Terminal::CTRL_C);
    let (status, rest) = terminal.end();
    assert_eq!(status.signal(), Some(Signal::SIGINT as i32), "{rest:?}");
    assert_eq!(without_echo(&rest), "");
}

fn terminal_interrupts_what_waits(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    for arguments in [
        &["take", "tun0", "--timeout", "1h"][..],
        &["wait", "tun0", "written", "--timeout", "1h"],
        &["watch"],
    ] {
        let mut command = memtun(arguments);
        let mut terminal = Terminal::start(command.env("MEMTUN_CONTROL", &daemon.control), 80);
        terminal.wait_for_program("memtun");
        terminal.press(Terminal::CTRL_C);
        let (status, text) = terminal.end();
        assert_eq!(status.signal(), Some(Signal::SIGINT as i32), "{arguments:?}: {text:?}");
        assert_eq!(without_echo(&text), "", "{arguments:?}");
    }
    // Who was interrupted has taken nothing.
    file.write(&datagram(1)).unwrap();
    daemon.memtun(&["take", "tun0"]).succeeded();
}

/// A program under `memtun run` gets the key as it would without, and memtun adds nothing to what is shown.
fn interrupt_is_the_programs(user: User) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let control = folder.path().join("control");
    for (script, status) in [
        ("echo started; exec sleep 1000", 128 + Signal::SIGINT as i32),
        ("trap 'exit 7' INT; echo started; while :; do sleep 1000 & wait; done", 7),
    ] {
        let command = user.memtun_run(&control, &["--", "sh", "-c", script]);
        let mut terminal = Terminal::start(&command, 80);
        let text = terminal.read_until("the program", |text| text.contains('\n'));
        assert_eq!(text, "started\r\n");
        terminal.press(Terminal::CTRL_C);
        let (ended, text) = terminal.end();
        assert_eq!((ended.code(), without_echo(&text).as_str()), (Some(status), ""), "{script}");
        assert!(!control.exists());
    }
}

/// A daemon in the foreground says that it is ready; interrupted, it leaves nothing behind.
fn terminal_interrupts_a_daemon_in_order(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let control: PathBuf = folder.path().join("control");
    let (options, device) = backend.options(&format!("memtun-terminal-{}", std::process::id()));
    let mut serve = memtun(&["serve"]);
    serve.args(options).arg("--control").arg(&control);
    let mut terminal = Terminal::start(&serve, 80);
    let text = terminal.read_until("ready", |text| text.contains(" INFO ready control="));
    is_harmless(&text);
    assert!(device.exists());
    terminal.press(Terminal::CTRL_C);
    let (status, text) = terminal.end();
    assert_eq!(status.code(), Some(0), "{text}");
    assert!(
        text.contains(" INFO stopping signal=SIGINT") && text.contains(" INFO stopped"),
        "{text}"
    );
    assert!(!device.exists() && !control.exists());
}

/// Who types a command that waits for input learns that it does, and how the input ends.
fn terminal_that_is_read_is_told(backend: Backend) {
    const CTRL_D: &str = "\x04";
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let start = |arguments: &[&str]| {
        let mut command = memtun(arguments);
        command.env("MEMTUN_CONTROL", &daemon.control).env("NO_COLOR", "1");
        Terminal::start(&command, 80)
    };
    let said =
        "memtun: reading from the terminal; Ctrl-D at the start of a line ends the input\r\n";
    for arguments in [&["inject", "tun0"][..], &["inject", "tun0", "--pcap", "-"]] {
        let mut terminal = start(arguments);
        assert_eq!(terminal.read_until("a line", |text| text.contains('\n')), said);
        terminal.press(&format!("E\n{CTRL_D}"));
        let (status, text) = terminal.end();
        let is_capture = arguments.contains(&"--pcap");
        assert_eq!(status.code(), Some(i32::from(is_capture)), "{text}");
        assert_eq!(text.contains("1 datagram injected, 1 queued"), !is_capture, "{text}");
    }
    assert_eq!(file.read(), Ok(b"E\n".to_vec()));
    let mut quiet = start(&["-q", "inject", "tun0"]);
    quiet.wait_for_program("memtun");
    quiet.press(&format!("E\n{CTRL_D}"));
    let (status, text) = quiet.end();
    assert_eq!((status.code(), text.contains("memtun")), (Some(0), false), "{text}");
}
