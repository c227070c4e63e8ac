//! What the next daemon finds at its path: nothing but the remains of one that was killed, or a daemon that lives, or one that hangs.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, symlink},
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;

use crate::{
    DeviceTest,
    device::{inject, take},
    support::{
        daemon::{Backend, Daemon, MEMTUN, Run, run},
        datagram,
        device::{NO_PI, TUN, TunFile},
        program::Program,
        until,
    },
};

/// Tests of `serve --fuse`: the node of a character device goes with its daemon.
pub const OF_FILES: &[DeviceTest] = &[
    ("restart_replaces_what_a_killed_daemon_left", replaces_what_a_killed_daemon_left),
    ("restart_is_refused_by_a_daemon_that_hangs", is_refused_by_a_daemon_that_hangs),
    ("restart_that_waits_for_an_answer_ends_by_signals", ends_by_signals),
    ("restart_follows_symbolic_links", follows_symbolic_links),
];

/// Where a test has its daemons.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A daemon whose file is there. Another of its kind would not have the socket either.
    fn serve(&self, file: &str) -> Daemon {
        let file = self.path(file);
        let options = ["--fuse".into(), file.clone().into()];
        Daemon::start_device(&options, &file, &self.path("control"), &[])
    }

    /// A daemon that is not to start, with a socket of its own.
    fn command(&self, file: &str) -> Command {
        let mut command = Command::new(MEMTUN);
        command.args(["serve", "--fuse"]).arg(self.path(file));
        command.arg("--control").arg(self.path("other"));
        command
    }

    fn refused(&self, file: &str) -> String {
        let run: Run = run(&mut self.command(file), b"");
        assert!(!self.path("other").exists(), "the socket does not stay");
        run.failed(1)
    }
}

fn mounts_at(path: &Path) -> usize {
    let path = path.to_str().expect("a path of letters");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.split(' ').nth(4) == Some(path)).count()
}

fn kill(daemon: &mut Daemon) {
    daemon.signal(Signal::SIGKILL);
    assert_eq!(daemon.wait().signal(), Some(Signal::SIGKILL as i32));
}

/// A client reads and writes.
fn check(daemon: &Daemon) {
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI);
    let mut client = daemon.client();
    inject(&mut client, "tun0", &datagram(1));
    assert_eq!(file.read(), Ok(datagram(1)));
    file.write(&datagram(2)).unwrap();
    assert_eq!(take(&mut client, "tun0"), datagram(2));
}

fn replaces_what_a_killed_daemon_left(_: Backend) {
    let place = Place::new();
    let file = place.path("tun");
    for round in 0..3 {
        let mut daemon = place.serve("tun");
        check(&daemon);
        // From here on the kernel has its attributes, and gives them when nobody serves it.
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o666);
        kill(&mut daemon);
        assert!(fs::metadata(&file).is_ok(), "the kernel knows no better");
        assert_eq!(mounts_at(&file), 1, "round {round}");
        // The mount stays, as a killed daemon leaves it.
        std::mem::forget(daemon);
    }
    let last = place.serve("tun");
    let error = place.refused("tun");
    let tun = file.display();
    assert!(error.contains(&format!("{tun} is served by another daemon")), "{error}");
    check(&last);
}

fn is_refused_by_a_daemon_that_hangs(_: Backend) {
    let place = Place::new();
    let daemon = place.serve("tun");
    check(&daemon);
    daemon.signal(Signal::SIGSTOP);
    let error = place.refused("tun");
    assert!(error.contains("tun is served by another process, which does not answer"), "{error}");
    daemon.signal(Signal::SIGCONT);
    check(&daemon);
}

fn ends_by_signals(_: Backend) {
    let place = Place::new();
    let daemon = place.serve("tun");
    daemon.signal(Signal::SIGSTOP);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut command = place.command("tun");
        let other = Program::start(command.stderr(Stdio::null()));
        let children = format!("/proc/{0}/task/{0}/children", other.pid());
        let child = || fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
        until(|| !child().is_empty());
        let child = child();
        other.signal(signal);
        assert_eq!(other.wait().signal(), Some(signal as i32));
        until(|| !Path::new("/proc").join(&child).exists());
    }
    daemon.signal(Signal::SIGCONT);
}

fn follows_symbolic_links(_: Backend) {
    let place = Place::new();
    fs::create_dir(place.path("folder")).unwrap();
    symlink("folder/file", place.path("link")).unwrap();
    symlink("link", place.path("link to link")).unwrap();
    let file = place.path("folder/file");
    let mut daemon = place.serve("link to link");
    check(&daemon);
    assert_eq!((mounts_at(&file), mounts_at(&place.path("link"))), (1, 0));
    for path in ["link", "folder/file", "link to link"] {
        let error = place.refused(path);
        assert!(error.contains("is served by another daemon"), "{path}: {error}");
    }
    kill(&mut daemon);
    std::mem::forget(daemon);
    let mut next = place.serve("link");
    assert_eq!(mounts_at(&file), 1);
    check(&next);
    next.signal(Signal::SIGTERM);
    assert_eq!(next.wait().code(), Some(0));
    assert_eq!((mounts_at(&file), fs::read_link(place.path("link")).is_ok()), (0, true));
    symlink("loop", place.path("loop")).unwrap();
    assert!(place.refused("loop").contains("Too many levels of symbolic links"));
}
