//! The log of a daemon's inputs, and its replay.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
};

use memtun::core::{
    Input, Op,
    log::{self, Record},
};
use memtun_client::proto::wait::Until;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    DeviceTest,
    device::{inject, take},
    support::{
        Background,
        daemon::{Backend, Daemon, MEMTUN, Run, run},
        datagram,
        device::{NO_PI, TUN, TunFile},
        until,
    },
};

pub const TESTS: &[DeviceTest] = &[
    ("log_of_inputs_replays_to_the_same_outputs", replays_to_the_same_outputs),
    ("log_of_inputs_of_a_run_replays", log_of_a_run_replays),
    ("changed_log_of_inputs_is_found", changed_log_is_found),
    ("log_of_inputs_of_a_killed_daemon_replays_to_its_end", log_of_a_killed_daemon_replays),
    ("log_of_inputs_that_cannot_be_written_ends", log_that_cannot_be_written_ends),
];

const VARIABLE: &str = "MEMTUN_LOG_INPUTS";

fn logging(backend: Backend, log: &Path) -> Daemon {
    Daemon::with_environment(backend, &[], &[(VARIABLE, log.as_os_str())])
}

fn replay(log: &Path, options: &[&str]) -> Run {
    let mut command = Command::new(MEMTUN);
    run(command.args(["debug", "replay-log"]).arg(log).args(options), b"")
}

/// Its lines, and what it says at the end.
fn replayed(log: &Path) -> (Vec<Value>, Value) {
    let shown = replay(log, &["--json"]).succeeded();
    let mut lines: Vec<Value> =
        shown.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    let end = lines.pop().expect("it says something at the end");
    (lines, end)
}

/// A client and a harness: each kind of call, a read that waits, and one that is given up.
fn act(daemon: &Daemon) {
    let mut client = daemon.client();
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    file.write(&datagram(1)).unwrap();
    assert_eq!(take(&mut client, "tun0"), datagram(1));
    inject(&mut client, "tun0", &datagram(2));
    assert_eq!(file.read().unwrap(), datagram(2));
    let reader = Background::start({
        let file = file.try_clone();
        move || file.read().unwrap()
    });
    daemon.wait_until("tun0", Until::Reading);
    inject(&mut client, "tun0", &datagram(3));
    assert_eq!(reader.join("the reader"), datagram(3));
    file.write(&datagram(4)).unwrap();
    daemon.close(file);
}

fn replays_to_the_same_outputs(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("inputs");
    let mut daemon = logging(backend, &log);
    act(&daemon);
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());

    let (inputs, end) = replayed(&log);
    assert_eq!((&end["differs_at"], &end["ended"]), (&Value::Null, &Value::from("stopped")));
    assert_eq!(end["inputs"], inputs.len());
    let times: Vec<u64> = inputs.iter().filter_map(|line| line["time_ns"].as_u64()).collect();
    assert!(times.len() == inputs.len() && times.is_sorted(), "{times:?}");
    let written: Vec<&Value> = inputs
        .iter()
        .map(|line| &line["input"]["Request"]["op"]["Write"][1]["data"])
        .filter(|data| !data.is_null())
        .collect();
    assert_eq!(written, [&hex::encode(datagram(1)), &hex::encode(datagram(4))]);
    let read = hex::encode(datagram(3));
    let outputs = inputs.iter().flat_map(|line| line["outputs"].as_array().unwrap());
    let reads = outputs.filter(|output| output.to_string().contains(&read)).count();
    assert_eq!(reads, 1, "a waiting read got it");

    let text = replay(&log, &[]).succeeded();
    assert!(text.contains("command: \"integration"), "{text}");
    let count = inputs.len();
    let last = format!("{count} inputs were replayed; all outputs are the same");
    assert_eq!(text.lines().last(), Some(last.as_str()));
    assert!(text.lines().all(|line| line.chars().count() < 500), "{text}");

    let before = fs::read(&log).unwrap();
    let mut again = Command::new(MEMTUN);
    let control = folder.path().join("control");
    let options = backend.options("memtun-never-made").0;
    let again = run(
        again.arg("serve").args(options).arg("--control").arg(control).env(VARIABLE, &log),
        b"",
    );
    let refused = again.failed(1);
    assert!(refused.contains("exists, and memtun overwrites no log"), "{refused}");
    assert_eq!(fs::read(&log).unwrap(), before);
}

fn log_of_a_run_replays(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("inputs");
    let mut command = Command::new(MEMTUN);
    command.args(["run", "--front-end", backend.word(), "--", "sh", "-c"]);
    command.arg("echo \"log: $MEMTUN_LOG_INPUTS\"; exec 3<>/dev/net/tun").env(VARIABLE, &log);
    let shown = run(&mut command, b"").succeeded();
    assert_eq!(shown, "log: \n", "a daemon that the program starts has a log of its own or none");
    let (inputs, end) = replayed(&log);
    assert_eq!(end["ended"], "stopped");
    let opens = inputs.iter().filter(|line| line["input"]["Request"]["op"]["Open"].is_object());
    assert_eq!(opens.count(), 1);
}

/// Where each record begins.
fn records(log: &[u8]) -> Vec<usize> {
    let mut at = log::RECORDS_AT;
    let mut starts = Vec::new();
    while at < log.len() {
        starts.push(at);
        let length = u32::from_le_bytes(log[at..at + log::LENGTH].try_into().unwrap());
        at += log::LENGTH + usize::try_from(length).unwrap();
    }
    assert_eq!(at, log.len(), "the last is whole");
    starts
}

fn changed_log_is_found(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("inputs");
    let mut daemon = logging(backend, &log);
    act(&daemon);
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    let whole = fs::read(&log).unwrap();
    let starts = records(&whole);
    let changed = |bytes: &[u8]| {
        let changed = folder.path().join("changed");
        fs::write(&changed, bytes).unwrap();
        replay(&changed, &["--json"])
    };

    for start in &starts {
        let mut damaged = whole.clone();
        damaged[start + log::LENGTH] ^= 1;
        let Run { status, stderr, .. } = changed(&damaged);
        assert!(status == 1 && stderr.contains("the record is damaged"), "{start}: {stderr}");
    }

    // An input that is sound, but not the one that the daemon had: the first byte of the last datagram that was written.
    let (mut bytes, mut number, mut changes_at) = (whole[..starts[1]].to_vec(), 0, None);
    for (nth, start) in starts.iter().enumerate().skip(1) {
        let end = starts.get(nth + 1).copied().unwrap_or(whole.len());
        let mut record = Record::decode(&whole[start + log::LENGTH..end]).unwrap();
        if let Record::Input { input, .. } = &mut record {
            number += 1;
            if let Input::Inject(inject) = input
                && inject.datagram.payload[..] == datagram(3)
            {
                inject.datagram.payload = datagram(5).into();
                changes_at = Some(number);
            }
            if let Input::Request(request) = input {
                let is_write = matches!(request.op, Op::Write(..));
                assert!(!is_write || changes_at.is_none() || number > changes_at.unwrap());
            }
        }
        record.encode(&mut bytes);
    }
    let changes_at = changes_at.expect("it was injected");
    let Run { status, stdout, stderr } = changed(&bytes);
    assert_eq!(status, 7, "{stderr}");
    assert!(stderr.contains(&format!("input {changes_at} leads to other outputs")), "{stderr}");
    let end: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert_eq!((&end["differs_at"], &end["inputs"]), (&changes_at.into(), &number.into()));

    let Run { status, stderr, .. } = changed(&whole[1..]);
    assert!(status == 1 && stderr.contains("not a log of inputs"), "{stderr}");
}

fn log_of_a_killed_daemon_replays(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("inputs");
    let mut daemon = logging(backend, &log);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    file.write(&datagram(1)).unwrap();
    let written = datagram(1);
    until(|| fs::read(&log).unwrap().windows(written.len()).any(|bytes| bytes == written));
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    let (inputs, end) = replayed(&log);
    assert_eq!((&end["ended"], &end["torn"]), (&"open".into(), &false.into()));
    let text = replay(&log, &[]).succeeded();
    assert!(text.ends_with("the log has no end: the daemon was killed, or still runs\n"), "{text}");

    let whole = fs::read(&log).unwrap();
    let last = *records(&whole).last().unwrap();
    for length in last + 1..whole.len() {
        File::options().write(true).open(&log).unwrap().set_len(length as u64).unwrap();
        let (rest, end) = replayed(&log);
        assert_eq!((rest.len(), &end["torn"]), (inputs.len() - 1, &true.into()), "{length}");
        fs::write(&log, &whole).unwrap();
    }
}

fn log_that_cannot_be_written_ends(backend: Backend) {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("inputs");
    let mut daemon = logging(backend, &log);
    // As a disk that is full: the file gets no longer.
    let limited = Command::new("prlimit")
        .args(["--pid", &daemon.pid().to_string(), "--fsize=16384"])
        .status()
        .expect("prlimit can be run");
    assert!(limited.success());
    let mut client = daemon.client();
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let long = [&[0x45][..], &[7; 5_000]].concat();
    for _ in 0..8 {
        file.write(&long).unwrap();
        assert_eq!(take(&mut client, "tun0"), long, "the daemon goes on");
    }
    until(|| daemon.log().contains("writing the log of inputs failed; it ends here, ignoring"));
    file.write(&datagram(2)).unwrap();
    assert_eq!(take(&mut client, "tun0"), datagram(2));
    daemon.close(file);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    let (inputs, end) = replayed(&log);
    assert_eq!((&end["ended"], &end["torn"]), (&"write-failed".into(), &false.into()));
    assert!(inputs.len() > 3, "{end}");
    let text = replay(&log, &[]).succeeded();
    assert!(text.ends_with("the daemon could not write the file\n"), "{text}");
}
