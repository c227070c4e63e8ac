//! `run`: a program that finds the device at `/dev/net/tun`, and nobody else does.
//!
//! With `--use` the device belongs to a running daemon, and the program replaces this process. Otherwise this process is the daemon,
//! and the program is its child. It passes signals on to the program, and ends with the program's exit status.

pub(super) mod choice;
mod left;

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    num::NonZero,
    os::{
        fd::RawFd,
        unix::{
            fs::MetadataExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus},
    sync::{Arc, Mutex, PoisonError},
};

use clap::ValueEnum;
use cuse_rs::{cuse::DeviceOptions, fuse_file::FileOptions};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    libc,
    sched::{CpuSet, sched_setaffinity},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill, raise},
        signalfd::{SfdFlags, SignalFd, siginfo},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::{Pid, getegid, geteuid, getpgrp, tcgetpgrp},
};
use tracing::{info, warn};

use self::{choice::NoFile, left::Left};
use super::{
    Scene,
    interface::{Devices, Kind as Links},
    usage_error,
};
use crate::{
    control::server::{BindError, Server, SocketOptions},
    core::Event,
    daemon::{DEVICE_LOST, Daemon, DaemonError, Options},
    frontend::{
        Registered, cuse,
        device::Identity,
        fuse,
        intercept::{InterceptError, Interceptor},
        notify::{self, Entrance},
        probe,
    },
    hub::{Happened, Observer},
    input_log::{self, InputLog},
    log, namespace, panics, sys,
};

/// memtun itself failed.
const FAILED: u8 = 125;
/// The program could not be executed.
const NOT_EXECUTABLE: u8 = 126;
/// The program was not found.
const NOT_FOUND: u8 = 127;

/// Runs a program that finds the device at /dev/net/tun, in a mount namespace of its own. It needs no root.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The program may leave processes behind that have the device open. memtun waits for them. It passes SIGINT and \
    SIGTERM on to them, and then waits for two seconds more.\n\nExit status: the program's, or 128+N if signal N ended it. 125: memtun \
    failed. 126: the program could not be executed. 127: it was not found."
)]
pub(super) struct Args {
    /// Use the device of a running daemon, such as /dev/memtun. Without this option memtun serves a device for the program alone,
    /// until the program has ended and none of its processes has the device open. The program finds --control in MEMTUN_CONTROL, so
    /// give the path of the same daemon's socket.
    #[arg(long = "use", value_name = "DEVICE", conflicts_with_all = ["front_end", "ready_fd", "wait_attached", "require_net_admin", "allow_unprivileged", "names", "interface", "interface_optional", "memory", "memory_per_user"])]
    device: Option<PathBuf>,
    /// The path at which the program finds the device.
    #[arg(long, value_name = "PATH", default_value = "/dev/net/tun", value_parser = absolute)]
    at: PathBuf,
    /// How the program's calls reach memtun.
    #[arg(long, value_enum, value_name = "KIND", default_value_t = Kind::Auto)]
    front_end: Kind,
    /// Whether the program may use io_uring. On a file the kernel merges the datagrams that io_uring reads. With --front-end notify
    /// its reads and writes do not reach memtun. Most programs do without io_uring if it is refused.
    #[arg(long, value_enum, default_value_t = IoUring::Refuse, value_name = "WHETHER")]
    io_uring: IoUring,
    /// Let the program see itself as root. This matters only for ordinary users: memtun runs their program in a user namespace.
    #[arg(long)]
    map_root: bool,
    /// Give the program a network namespace of its own, which it may configure. It has only a loopback interface, which is up.
    #[arg(long)]
    net: bool,
    #[command(flatten)]
    interface: Devices,
    #[command(flatten)]
    admission: super::Admission,
    #[command(flatten)]
    memory: super::Memory,
    /// Keep the program and memtun on CPU number N. A call is cheapest when it wakes nobody on another CPU.
    #[arg(long, value_name = "N", conflicts_with = "device", allow_negative_numbers = true, value_parser = cpu)]
    cpu: Option<usize>,
    /// Sleep at once when the program makes no call. Without this option, memtun looks for the next call for up to 100 us before
    /// it sleeps. It does so only if calls are frequent and the CPU is idle.
    #[arg(long, conflicts_with = "device")]
    no_spin: bool,
    /// Do not catch system calls of the program with a seccomp filter. The kernel does not pass all calls on a file to memtun. It
    /// keeps ioctls that pass a value (TUNSETPERSIST, TUNSETOWNER and so on), and reads and writes of zero bytes. The filter
    /// catches these. It costs each system call a little. It also uses the only seccomp listener that the kernel allows, which a
    /// debugger or a sandbox may need.
    #[arg(long)]
    no_intercept: bool,
    /// Write a line to file descriptor N when the device and the control socket are ready, just before the program starts.
    #[arg(long, value_name = "N", value_parser = inherited, allow_negative_numbers = true)]
    ready_fd: Option<RawFd>,
    /// Write the line of --ready-fd later: when the program has attached to a tunnel.
    #[arg(long, requires = "ready_fd")]
    wait_attached: bool,
    /// The program and its arguments.
    #[arg(trailing_var_arg = true, required = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// CUSE for root where the kernel has it, else FUSE, else notifications.
    Auto,
    /// A character device.
    Cuse,
    /// A file that behaves as one.
    Fuse,
    /// Seccomp notifications. They need no /dev/fuse, no mount and no namespace, and work in most containers.
    Notify,
}

/// Whether the program may make rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IoUring {
    /// io_uring_setup gets ENOSYS.
    Refuse,
    /// The program may use them, but not on the device.
    Allow,
}

impl Args {
    /// Whether the options have an effect together.
    ///
    /// # Errors
    ///
    /// A usage error.
    pub(super) fn check(&self) -> Result<(), clap::Error> {
        if self.no_intercept && self.front_end == Kind::Cuse {
            return Err(usage_error(
                "--no-intercept is for a file; a character device needs no filter",
            ));
        }
        if self.no_intercept && self.front_end == Kind::Notify {
            return Err(usage_error("--front-end notify is a filter; leave out --no-intercept"));
        }
        self.interface.check(self.links())?;
        self.memory.check()
    }

    /// Runs the program.
    pub(super) fn run(self, scene: &mut Scene<'_>) -> anyhow::Result<ExitCode> {
        let control = scene.control.as_deref();
        let status = match &self.device {
            Some(device) => self.replace_process(device, control),
            None => self.run_beside(control, scene.is_control_said),
        };
        Ok(status.unwrap_or_else(|error| fail(FAILED, &error)))
    }

    /// The program takes the place of this process, so signals, terminal and exit status are its own.
    fn replace_process(&self, device: &Path, control: Option<&Path>) -> anyhow::Result<ExitCode> {
        // Absolute, for the program may look for it from another folder.
        let control = control.map(std::path::absolute).transpose()?;
        probe::probe(device)?;
        self.enter_namespace()?;
        namespace::provide(&self.at)?;
        namespace::cover(device, &self.at)?;
        let file = fs::metadata(&self.at).ok().filter(fs::Metadata::is_file);
        intercept(self.interceptor(file.map(|file| file.dev())))?;
        log::finish();
        let error = self.command(control.as_deref()).exec();
        Ok(self.not_started(&error))
    }

    fn run_beside(&self, control: Option<&Path>, is_said: bool) -> anyhow::Result<ExitCode> {
        let signals = SigSet::all();
        // Before there are threads, so that all inherit it.
        signals.thread_block()?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;

        self.stay_on_cpu()?;
        let input_log = InputLog::from_environment()?;
        let socket = Socket::bind(control, is_said)?;
        let netdevs = self.interface.options(self.links());
        let (device, entrance) = self.register(&socket.path)?;
        let left = if entrance.is_some() { Left::Descendants } else { Left::Namespace };
        match left {
            Left::Namespace => socket.guard.watch_namespace(),
            // They become children of this process: so it may look at them, and finds them.
            Left::Descendants => prctl::set_child_subreaper(true)?,
        }
        let file_system = match device.identity() {
            Some(Identity::FileSystem(number)) => Some(number),
            Some(Identity::Number(_)) | None => None,
        };
        let interceptor = self.interceptor(file_system);
        let options = Options {
            threads: NonZero::<u8>::MIN,
            spin: !self.no_spin,
            // The program is its user's own, with the rights of this process or less.
            admission: self.admission.clone().resolve(false),
            memory: self.memory.into(),
            netdevs,
            input_log,
        };
        let daemon = Daemon::start(vec![device], socket.server, options)?;
        self.announce(&daemon)?;

        intercept(interceptor)?;
        let mut command = self.command(Some(&socket.path));
        // The log is this daemon's, not that of one in the program.
        command.env_remove(input_log::VARIABLE);
        let enter = move || entrance.as_ref().map_or(Ok(()), Entrance::enter);
        let started = sys::spawn_dying_with_us(&mut command, enter);
        // With it goes this process's copy of what the program sends its listener by.
        drop(command);
        let status = match started {
            Ok(program) => supervise(program, &signals, &daemon).and_then(|(status, ended_by)| {
                left.wait_for(&daemon, &signals, &self.at, ended_by)?;
                Ok(exit_code(status))
            }),
            Err(error) => Ok(self.not_started(&error)),
        };
        daemon.abandon();
        socket.guard.dismiss();
        status
    }

    /// What stands beside tunnels unless that is said.
    fn links(&self) -> Links {
        if self.net { Links::Shadow } else { Links::None }
    }

    /// Threads and the program inherit it.
    fn stay_on_cpu(&self) -> anyhow::Result<()> {
        let Some(cpu) = self.cpu else { return Ok(()) };
        let mut only = CpuSet::new();
        let set = only.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &only));
        set.map_err(|errno| {
            anyhow::anyhow!(
                "--cpu {cpu}: {}; 'nproc' prints how many CPUs there are; the first is 0",
                errno.desc()
            )
        })
    }

    fn enter_namespace(&self) -> anyhow::Result<()> {
        Ok(namespace::enter(self.namespaces())?)
    }

    fn namespaces(&self) -> namespace::Options {
        namespace::Options { map_root: self.map_root, net: self.net }
    }

    /// Makes the device and puts it where the program finds it.
    fn register(&self, control: &Path) -> anyhow::Result<(Registered, Option<Entrance>)> {
        let kind = match self.front_end {
            Kind::Auto => {
                let kind = self.choose()?;
                info!(front_end = ?kind, control = %control.display(), "chosen");
                kind
            }
            kind @ (Kind::Cuse | Kind::Fuse | Kind::Notify) => kind,
        };
        if kind == Kind::Notify {
            self.prepare_notifications()
        } else if kind == Kind::Cuse {
            let name = format!("memtun-run-{}", std::process::id());
            let device = cuse::register(DeviceOptions::new(name.parse()?))?;
            self.enter_namespace()?;
            namespace::provide(&self.at)?;
            if let Some(Identity::Number(number)) = device.identity() {
                namespace::cover_with_node(number, &self.at)?;
            }
            Ok((device, None))
        } else {
            self.enter_namespace()?;
            namespace::provide(&self.at)?;
            // An owner that the namespace does not know could not be written to by anybody.
            let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
            let file = FileOptions::mount_at(&self.at).mode(0o666).owner(Some(uid), Some(gid));
            Ok((fuse::mount(file.allow_other(true))?, None))
        }
    }

    /// A file where there can be one, since notifications lose descriptors that a program moves.
    fn choose(&self) -> anyhow::Result<Kind> {
        if choice::character_device().is_ok() {
            return Ok(Kind::Cuse);
        }
        let Err(why) = choice::file(self.namespaces())? else { return Ok(Kind::Fuse) };
        // Without a file there may be no namespace for --net either.
        if choice::notifications().is_err() || self.net && matches!(why, NoFile::Namespace(_)) {
            return Ok(Kind::Fuse);
        }
        info!(%why, "no file");
        Ok(Kind::Notify)
    }

    /// The program's calls are notified. Namespaces are made only if they are asked for.
    fn prepare_notifications(&self) -> anyhow::Result<(Registered, Option<Entrance>)> {
        notify::probe()?;
        if self.net || self.map_root {
            self.enter_namespace()?;
        }
        let (registered, entrance) = notify::prepare(notify::Options {
            at: self.at.clone(),
            limit: sys::descriptors_of_programs()?,
            allows_rings: self.io_uring == IoUring::Allow,
        })?;
        Ok((registered, Some(entrance)))
    }

    /// What carries calls to a file that the kernel does not bring there, ready to begin. `None`: the device is no file, or
    /// the program goes without.
    fn interceptor(&self, file_system: Option<u64>) -> Option<Interceptor> {
        let started = Interceptor::start(
            file_system.filter(|_| !self.no_intercept)?,
            self.io_uring == IoUring::Refuse,
        );
        started.inspect_err(warn_of_lost_calls).ok()
    }

    /// Says that everything is ready, now or when a client has attached.
    fn announce(&self, daemon: &Daemon) -> anyhow::Result<()> {
        let Some(number) = self.ready_fd else { return Ok(()) };
        let descriptor = sys::inherited::take(number)
            .ok_or_else(|| anyhow::anyhow!("--ready-fd {number}: it is used otherwise"))?;
        // The program must not hold it open: its reader may wait for the end.
        fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
            .map_err(|errno| anyhow::anyhow!("--ready-fd {number}: {}", errno.desc()))?;
        let ready = Ready(Mutex::new(Some(File::from(descriptor))));
        if self.wait_attached {
            daemon.hub().observe(Arc::new(ready));
        } else {
            ready.tell();
        }
        Ok(())
    }

    fn command(&self, control: Option<&Path>) -> Command {
        let (program, arguments) =
            self.program.split_first().unwrap_or_else(|| unreachable!("clap requires a program"));
        let mut command = Command::new(program);
        command.args(arguments);
        if let Some(control) = control {
            command.env("MEMTUN_CONTROL", control);
        }
        command
    }

    fn not_started(&self, error: &io::Error) -> ExitCode {
        let status =
            if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
        fail(status, &anyhow::anyhow!("running {}: {error}", self.program[0].display()))
    }
}

/// A number that a set of CPUs can hold; whether there is such a CPU, the kernel says.
fn cpu(text: &str) -> Result<usize, String> {
    let last = CpuSet::count() - 1;
    text.parse().ok().filter(|number| *number <= last).ok_or_else(|| {
        format!("give a number from 0 to {last}; 'nproc' prints how many CPUs there are")
    })
}

fn absolute(text: &str) -> Result<PathBuf, &'static str> {
    Some(PathBuf::from(text))
        .filter(|path| path.is_absolute())
        .ok_or("give an absolute path, such as /dev/net/tun")
}

/// A descriptor that was inherited to be written to.
fn inherited(text: &str) -> Result<RawFd, String> {
    let number: Option<RawFd> = text.parse().ok().filter(|number| *number >= 3);
    let number = number.ok_or("give the number of a descriptor, 3 or more")?;
    let flags = sys::descriptor_flags(number);
    let flags = flags.ok().filter(|_| sys::inherited::has(number));
    let Some((_, status)) = flags else {
        return Err(format!(
            "this descriptor was not inherited; open it for memtun, as '{number}>FILE' does in a shell"
        ));
    };
    if status & OFlag::O_ACCMODE == OFlag::O_RDONLY {
        return Err("this descriptor is not open for writing".to_owned());
    }
    Ok(number)
}

/// Begins to intercept calls of this thread and of the program that it will start.
fn intercept(interceptor: Option<Interceptor>) -> Result<(), InterceptError> {
    match interceptor.map_or(Ok(()), Interceptor::intercept) {
        Err(error @ InterceptError::Lost(_)) => Err(error),
        Err(error) => {
            warn_of_lost_calls(&error);
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn warn_of_lost_calls(error: &InterceptError) {
    warn!(
        %error,
        "ioctls that pass a value, such as TUNSETPERSIST, get EFAULT, and reads and writes of zero bytes return 0, ignoring"
    );
}

/// The control socket, and what removes it if this process is killed.
struct Socket {
    server: Server,
    path: PathBuf,
    guard: sys::Guard,
}

impl Socket {
    /// A path that was said is this one, or an error: whoever said it looks for the socket there.
    fn bind(control: Option<&Path>, is_said: bool) -> anyhow::Result<Self> {
        let own = || std::env::temp_dir().join(format!("memtun-{}.sock", std::process::id()));
        // Absolute, for the program may look for it from another folder.
        let path = control.map_or_else(|| Ok(own()), std::path::absolute)?;
        let bind = |path: &Path| {
            Server::bind(&SocketOptions { path: path.to_owned(), mode: 0o600, group: None })
        };
        let (server, path) = match bind(&path) {
            // A variable names the socket of another daemon, for verbs: in a program that is run by us, or in the shell of
            // somebody who exported it.
            Err(BindError::InUse(_)) if !is_said && control.is_some() => (bind(&own())?, own()),
            bound => (bound?, path),
        };
        let guard = sys::Guard::of(&path)?;
        Ok(Self { server, path, guard })
    }
}

/// Writes the line of `--ready-fd`, once.
struct Ready(Mutex<Option<File>>);

impl Ready {
    fn tell(&self) {
        let file = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut file) = file
            && let Err(error) = file.write_all(b"ready\n")
        {
            warn!(%error, "writing to the descriptor of --ready-fd failed, ignoring");
        }
    }
}

impl Observer for Ready {
    fn observe(&self, happened: &Happened) {
        if matches!(happened.event, Event::Attached { .. }) {
            self.tell();
        }
    }
}

/// Passes signals on to the program until it ends. Beside its status, the last signal that was to end it.
fn supervise(
    mut program: Child,
    signals: &SignalFd,
    daemon: &Daemon,
) -> anyhow::Result<(ExitStatus, Option<Signal>)> {
    let pid = Pid::from_raw(program.id().cast_signed());
    let mut ended_by = None;
    loop {
        let Some(info) = signals.read_signal()? else { continue };
        let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed()) else { continue };
        refuse_loss(signal, &info, daemon)?;
        if signal == Signal::SIGCHLD {
            if let Some(status) = program.try_wait()? {
                return Ok((status, ended_by));
            }
            left::reap_others(pid);
            stop_with(pid)?;
            continue;
        }
        if left::is_an_end(signal) {
            ended_by = Some(signal);
        }
        if info.ssi_code != libc::SI_KERNEL {
            // What the terminal sends, it has sent to the program too.
            match kill(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => warn!(%signal, %errno, "passing a signal on failed, ignoring"),
            }
        }
    }
}

/// The device may be taken away, or a thread has panicked; a signal tells.
fn refuse_loss(signal: Signal, info: &siginfo, daemon: &Daemon) -> anyhow::Result<()> {
    if signal == DEVICE_LOST && info.ssi_pid == std::process::id() {
        if let Some(panicked) = panics::ending() {
            return Err(DaemonError::Panicked(panicked.clone()).into());
        }
        let name = daemon.lost_device().unwrap_or("of this program");
        anyhow::bail!("device {name} was taken away by the kernel");
    }
    Ok(())
}

/// A program that the terminal's user has stopped stops us too, or the shell would not notice.
fn stop_with(pid: Pid) -> Result<(), Errno> {
    // Stops alone: the program's end is for whoever looks at its status.
    match waitid(Id::Pid(pid), WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG) {
        Ok(WaitStatus::Stopped(_, Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU))
            if has_terminal() =>
        {
            raise(Signal::SIGSTOP)
        }
        Ok(_) | Err(Errno::ECHILD) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// We are in the foreground of a terminal, so somebody can continue us.
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok_and(|terminal| tcgetpgrp(&terminal) == Ok(getpgrp()))
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let number = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(FAILED.into());
    ExitCode::from(u8::try_from(number).unwrap_or(FAILED))
}

fn fail(status: u8, error: &anyhow::Error) -> ExitCode {
    log::complain(error);
    ExitCode::from(status)
}
