//! The log, where standard error does not take it.

use std::{
    fs::File,
    io::{Read, pipe},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use memtun_client::{Client, proto::list::List};
use nix::{
    poll::{PollFlags, PollTimeout},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    DeviceTest,
    support::{
        Background, DEADLINE,
        daemon::{Backend, MEMTUN},
        datagram,
        device::{NO_PI, TUN, TunFile},
        within_deadline,
    },
};

pub const TESTS: &[DeviceTest] = &[
    ("log_on_a_full_disk_holds_up_nobody", log_on_a_full_disk_holds_up_nobody),
    ("log_whose_reader_has_ended_holds_up_nobody", log_whose_reader_has_ended_holds_up_nobody),
    ("log_that_nobody_reads_holds_up_nobody", log_that_nobody_reads_holds_up_nobody),
];

/// A daemon that logs every call, to wherever.
struct Daemon {
    child: Child,
    device: PathBuf,
    client: Client,
    /// Holds the control socket.
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn start(backend: Backend, test: &str, stderr: impl Into<Stdio>) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the socket");
        let control = folder.path().join("control");
        let (options, device) = backend.options(&format!("memtun-{test}-{}", std::process::id()));
        let child = Command::new(MEMTUN)
            .arg("serve")
            .args(options)
            .args(["--mode", "0666", "--control"])
            .arg(&control)
            .env("MEMTUN_LOG", "trace")
            .stderr(stderr)
            .spawn()
            .expect("memtun serve can be run");
        let client = Client::connect_within(&control, DEADLINE).expect("it becomes ready");
        Self { child, device, client, _folder: folder }
    }

    /// Clients and harnesses are served.
    fn serves(&mut self, calls: usize) {
        let device = self.device.clone();
        within_deadline("a client's calls", move || {
            let file = TunFile::attached(&device, "tun0", TUN | NO_PI);
            for number in 0..calls {
                assert_eq!(file.poll(PollFlags::POLLOUT, PollTimeout::ZERO), PollFlags::POLLOUT);
                if number == 0 {
                    file.write(&datagram(1)).expect("a tunnel takes a datagram");
                }
            }
        });
        assert!(!self.client.call(&List {}).expect("list").tunnels.is_empty());
    }

    fn stop(mut self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).expect("it is running");
        let status = within_deadline("the end of the daemon", move || self.child.wait());
        assert_eq!(status.expect("it can be waited for").code(), Some(0));
        assert!(std::fs::metadata(&self.device).is_err(), "the device is gone");
    }
}

fn log_on_a_full_disk_holds_up_nobody(backend: Backend) {
    let full = File::options().write(true).open("/dev/full").expect("there is /dev/full");
    let mut daemon = Daemon::start(backend, "full", full);
    daemon.serves(10);
    daemon.stop();
}

fn log_whose_reader_has_ended_holds_up_nobody(backend: Backend) {
    let (reader, writer) = pipe().expect("a pipe");
    let mut daemon = Daemon::start(backend, "unheard", writer);
    daemon.serves(1);
    drop(reader);
    daemon.serves(10);
    daemon.stop();
}

/// What is lost is told as soon as somebody reads.
fn log_that_nobody_reads_holds_up_nobody(backend: Backend) {
    let (mut reader, writer) = pipe().expect("a pipe");
    let mut daemon = Daemon::start(backend, "unread", writer);
    // Each is a line of more than 60 bytes: more than the pipe and the queue hold.
    let calls = 25_000;
    daemon.serves(calls);
    let log = Background::start(move || {
        let mut log = String::new();
        reader.read_to_string(&mut log).map(|_| log)
    });
    daemon.stop();
    let log = log.join("the end of the log").expect("a log can be read");
    let lost = log.lines().filter_map(|line| {
        let (lost, _) = line.strip_prefix("memtun: ")?.split_once(" lines were lost")?;
        Some(lost.parse::<usize>().expect("a number"))
    });
    let lost: usize = lost.sum();
    let written = log.lines().filter(|line| line.contains(" opcode=POLL")).count();
    assert!(lost > 0 && written < calls, "{written} lines");
    assert!(written + lost >= calls, "{written} lines are there, {lost} are counted");
}
