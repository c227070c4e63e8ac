//! A daemon for one test, with a device and a control socket of its own.

use std::{
    ffi::{OsStr, OsString},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
};

use memtun_client::{
    Client,
    proto::{
        Address,
        limits::{Limits, LimitsView, SharedView},
        list::{List, Listing},
        wait::{Until, Wait},
    },
};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{DEADLINE, device::TunFile, until, within_deadline};

/// How the daemon makes its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A character device.
    Cuse,
    /// A file.
    Fuse,
}

impl Backend {
    pub const ALL: &[Self] = &[Self::Cuse, Self::Fuse];

    pub fn word(self) -> &'static str {
        match self {
            Self::Cuse => "cuse",
            Self::Fuse => "fuse",
        }
    }

    /// Why there can be no device of this kind here.
    pub fn obstacle(self) -> Option<String> {
        let path = match self {
            Self::Cuse => "/dev/cuse",
            Self::Fuse => "/dev/fuse",
        };
        let opened = std::fs::OpenOptions::new().read(true).write(true).open(path);
        opened.err().map(|error| format!("{path}: {error}"))
    }

    /// Options of `serve` for a device of that name, and where clients find it.
    pub fn options(self, name: &str) -> ([OsString; 2], PathBuf) {
        match self {
            Self::Cuse => (["--cuse".into(), name.into()], Path::new("/dev").join(name)),
            Self::Fuse => {
                let file = std::env::temp_dir().join(name);
                (["--fuse".into(), file.clone().into()], file)
            }
        }
    }
}

/// The program under test.
pub const MEMTUN: &str = env!("CARGO_BIN_EXE_memtun");

/// A running daemon. It is stopped when dropped; its log is printed if the test failed.
pub struct Daemon {
    child: Child,
    pub device: PathBuf,
    pub control: PathBuf,
    log: Arc<Mutex<String>>,
    ended: bool,
    /// Holds the control socket, if it is this daemon's own.
    folder: Option<TempDir>,
}

impl Daemon {
    pub fn start(backend: Backend) -> Self {
        Self::start_with(backend, &[])
    }

    /// A daemon with more options.
    pub fn start_with(backend: Backend, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the socket");
        let control = folder.path().join("control");
        let mut daemon = Self::start_at(backend, &control, options);
        daemon.folder = Some(folder);
        daemon
    }

    /// A daemon that has a place where a thread panics, or several: see `src/planted.rs`.
    pub fn planted(backend: Backend, options: &[&str], places: &str) -> Self {
        Self::with_environment(backend, options, &[("MEMTUN_PLANTED_PANIC", places.as_ref())])
    }

    /// A daemon with some environment variables.
    pub fn with_environment(
        backend: Backend,
        options: &[&str],
        environment: &[(&str, &OsStr)],
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the socket");
        let control = folder.path().join("control");
        let (device_options, device) = backend.options(&unused_name());
        let mut daemon =
            Self::launch(&[MEMTUN], &device_options, &device, &control, options, environment);
        daemon.folder = Some(folder);
        daemon
    }

    /// A daemon that may have so many file descriptors.
    pub fn within(backend: Backend, options: &[&str], descriptors: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the socket");
        let control = folder.path().join("control");
        let (device_options, device) = backend.options(&unused_name());
        let limit = format!("--nofile={descriptors}:{descriptors}");
        let program = ["prlimit", &limit, MEMTUN];
        let mut daemon = Self::launch(&program, &device_options, &device, &control, options, &[]);
        daemon.folder = Some(folder);
        daemon
    }

    /// A daemon with its control socket at a path. It is ready.
    pub fn start_at(backend: Backend, control: &Path, options: &[&str]) -> Self {
        let (device_options, device) = backend.options(&unused_name());
        Self::start_device(&device_options, &device, control, options)
    }

    /// A daemon with the device that these options make at a path. It is ready.
    pub fn start_device(
        device_options: &[OsString],
        device: &Path,
        control: &Path,
        options: &[&str],
    ) -> Self {
        Self::launch(&[MEMTUN], device_options, device, control, options, &[])
    }

    fn launch(
        program: &[&str],
        device_options: &[OsString],
        device: &Path,
        control: &Path,
        options: &[&str],
        environment: &[(&str, &OsStr)],
    ) -> Self {
        let mut child = Command::new(program[0])
            .args(&program[1..])
            .arg("serve")
            .args(device_options)
            .args(["--mode", "0666", "--control"])
            .arg(control)
            .args(options)
            .env("MEMTUN_LOG", "debug")
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .expect("memtun serve can be run");
        let log = Arc::default();
        let ready = collect(BufReader::new(child.stderr.take().expect("it is piped")), &log);
        let (device, control) = (device.to_owned(), control.to_owned());
        let daemon = Self { child, device, control, log, ended: false, folder: None };
        if ready.recv_timeout(DEADLINE).is_err() {
            panic!("the daemon did not become ready");
        }
        daemon
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// How much of a resource users have.
    pub fn shared(&self, resource: &str) -> SharedView {
        let LimitsView { shared, .. } = self.client().call(&Limits {}).expect("it answers");
        shared.into_iter().find(|shared| shared.resource == resource).expect("it is limited")
    }

    /// `VmRSS` in KiB.
    pub fn resident(&self) -> usize {
        resident(self.pid())
    }

    /// How many file descriptors it has.
    pub fn descriptors(&self) -> usize {
        self.count("fd")
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        self.count("task")
    }

    fn count(&self, what: &str) -> usize {
        std::fs::read_dir(format!("/proc/{}/{what}", self.pid())).expect("it runs").count()
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the daemon is running");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.ended = true;
        self.child.wait().expect("it can be waited for")
    }

    pub fn log(&self) -> String {
        self.log.lock().expect("nobody panics while logging").clone()
    }

    /// A connection to its control socket.
    pub fn client(&self) -> Client {
        Client::connect(&self.control).expect("the control socket takes connections")
    }

    pub fn list(&self) -> Listing {
        self.client().call(&List {}).expect("list")
    }

    /// Closes a file, and waits until the daemon knows. On FUSE `close` does not wait for that; and until a program that another test
    /// starts has been executed, its process has the file open too.
    #[track_caller]
    pub fn close(&self, file: TunFile) {
        let count = || {
            let Listing { tunnels, unattached_files } = self.list();
            tunnels.iter().map(|tunnel| tunnel.files.len()).sum::<usize>() + unattached_files.len()
        };
        let before = count();
        drop(file);
        until(|| count() < before);
    }

    /// Waits until something is the case.
    #[track_caller]
    pub fn wait_until(&self, tunnel: &str, until: Until) {
        let tunnel: Address = tunnel.parse().expect("a tunnel's address");
        let timeout_ms = u64::try_from(DEADLINE.as_millis()).expect("a short time");
        self.client()
            .call(&Wait { tunnel, until, timeout_ms })
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// The program as a user would run it, against this daemon.
    pub fn memtun(&self, arguments: &[&str]) -> Run {
        self.memtun_with_input(arguments, b"")
    }

    pub fn memtun_with_input(&self, arguments: &[&str], input: &[u8]) -> Run {
        let mut command = Command::new(MEMTUN);
        command.args(arguments).env("MEMTUN_CONTROL", &self.control);
        run(&mut command, input)
    }
}

/// A name for a device that no other of these tests has.
fn unused_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("memtun-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.ended {
            self.signal(Signal::SIGTERM);
            // Reaped, so that the next test's daemon does not meet its remains.
            let _status = self.child.wait();
        }
        if self.device.starts_with(std::env::temp_dir()) {
            // A killed daemon's mount stays, and gives ENOTCONN; an orderly one has left nothing to remove.
            let _gone = umount2(&self.device, MntFlags::MNT_DETACH);
            let _gone = std::fs::remove_file(&self.device);
        }
        if thread::panicking() {
            eprintln!("--- log of the daemon\n{}---", self.log());
        }
    }
}

/// Keeps what the daemon logs, and says when it is ready. The channel closes if it ends before.
fn collect(stderr: impl BufRead + Send + 'static, log: &Arc<Mutex<String>>) -> mpsc::Receiver<()> {
    let (ready, receiver) = mpsc::channel();
    let log = Arc::clone(log);
    thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            let is_ready = line.contains(" ready ");
            let mut log = log.lock().expect("nobody panics while logging");
            log.push_str(&line);
            log.push('\n');
            drop(log);
            if is_ready {
                // The test is gone if nobody listens.
                let _gone = ready.send(());
            }
        }
    });
    receiver
}

/// How a program ended.
#[derive(Debug)]
pub struct Run {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// It succeeded, and said nothing but output.
    #[track_caller]
    pub fn succeeded(self) -> String {
        assert_eq!((self.status, self.stderr.as_str()), (0, ""), "{self:?}");
        self.stdout
    }

    /// It failed with one line, which is returned.
    #[track_caller]
    pub fn failed(self, status: i32) -> String {
        assert_eq!((self.status, self.stdout.as_str()), (status, ""), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "one line: {self:?}");
        self.stderr.trim_end().to_owned()
    }
}

/// Runs a program to its end.
#[track_caller]
pub fn run(command: &mut Command, input: &[u8]) -> Run {
    let shown = format!("{command:?}");
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    // A program that does not read its input may have closed it.
    let _closed = stdin.write_all(input);
    drop(stdin);
    let Output { status, stdout, stderr } =
        within_deadline(&shown, move || child.wait_with_output()).expect("it can be waited for");
    Run {
        status: status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

/// `VmRSS` of a process, in KiB.
pub fn resident(pid: Pid) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it is shown");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
