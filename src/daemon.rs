//! The daemon: from devices and a socket to threads, and an orderly end.
//!
//! | thread | does | ends |
//! | --- | --- | --- |
//! | main | waits for a signal | by it |
//! | `device` (one for each device, or as many as asked for; on a file a few more, which stand by) | reads messages and answers them | when the device is taken away |
//! | `netdev`, `netdev-remove` | own the network devices beside tunnels, from the first one on | when the daemon stops |
//! | `netdev-make`, `rights` | make one of them, and ask the kernel with a client's rights | when that is done |
//! | `store` | one for each answer that is stored in a client's memory and had to wait | when that is done |
//! | `memory` | returns freed memory to the system | when the hub stops |
//! | `timer` | ends waits at their deadlines | when the hub stops |
//! | `observers` | tells observers, such as watches, what happens | when the hub stops |
//! | `log` | writes the log | with the process |
//! | `input-log` | writes the log of inputs, if one is asked for | when the daemon stops, or the log ends before |
//! | `control` | accepts harnesses | with the process |
//! | `harness`, `outbox` | one pair for each connection | with it |
//! | `attach-in`, `attach-out` | one pair for each attached socket | with it, or its tunnel |
//! | `host` | one for each host | with its tunnel, or by `part` |
//!
//! [`panics`] says what a panic costs in each of them.

use std::{
    convert::Infallible,
    fs, io,
    num::NonZero,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use cuse_rs::{cuse::RegisterError, fuse_file::MountError};
use nix::sys::signal::{SigSet, Signal};
use tracing::{error, info, warn};

use crate::{
    control::server::{BindError, Server},
    core::{Admission, Bound, Core, Limits, input},
    frontend::{Registered, fuse::Occupied},
    hub::{Ended, FrontEnd, Hub, NetdevOwner},
    input_log::{BeginError, InputLog},
    log, netdev,
    panics::{self, Panicked},
    planted, sys,
};

/// Why the daemon did not start, or ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DaemonError {
    /// The control socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The character device.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The file that behaves as the device.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Another daemon's file is there.
    #[error(transparent)]
    Occupied(#[from] Occupied),
    /// The log of inputs.
    #[error(transparent)]
    InputLog(#[from] BeginError),
    /// The system.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// A device is no more, though nobody asked for its end.
    #[error("device {0} was taken away by the kernel")]
    DeviceLost(String),
    /// A thread panicked.
    #[error("thread '{}' panicked, and the daemon has ended: {}; please report this", .0.thread, .0.message)]
    Panicked(Panicked),
}

/// What the process is told when a device's loop ends by itself, or a thread panics, so that its main thread stops waiting for signals.
pub(crate) const DEVICE_LOST: Signal = Signal::SIGUSR1;

/// How a daemon serves its devices.
#[derive(Debug)]
pub(crate) struct Options {
    /// Threads that read each device.
    pub threads: NonZero<u8>,
    /// A single one may look for the next call for a moment before it sleeps.
    pub spin: bool,
    /// Who may make tunnels.
    pub admission: Admission,
    /// Bytes that tunnels, their datagrams and what waits for harnesses may take.
    pub memory: Bound,
    /// The network devices beside tunnels.
    pub netdevs: netdev::Options,
    /// Where all that goes into the core is logged.
    pub input_log: Option<InputLog>,
}

/// Threads that serve devices and a control socket.
pub(crate) struct Daemon {
    hub: Arc<Hub>,
    netdevs: Arc<dyn NetdevOwner>,
    server: Arc<Server>,
    served: Vec<Served>,
    timer: JoinHandle<()>,
    memory: JoinHandle<()>,
    observers: JoinHandle<()>,
    input_log: Option<LoggingInputs>,
    stopping: Arc<AtomicBool>,
    lost: Arc<OnceLock<String>>,
}

struct Served {
    front_end: Arc<dyn FrontEnd>,
    threads: Vec<JoinHandle<()>>,
    /// Disconnected when the threads have ended.
    ended: mpsc::Receiver<Infallible>,
}

/// The thread that logs inputs.
struct LoggingInputs {
    thread: JoinHandle<()>,
    /// Disconnected when it has ended.
    ended: mpsc::Receiver<Infallible>,
}

/// How long the end of a device may take: one of its threads may be in the memory of a client, which need not come.
const PATIENCE: Duration = Duration::from_secs(2);

impl Daemon {
    /// Starts to serve; clients and harnesses are answered when this returns.
    ///
    /// Signals that the main thread is to wait for must be blocked before, since all threads inherit that.
    ///
    /// # Errors
    ///
    /// [`DaemonError::System`] if there is no thread for it.
    pub(crate) fn start(
        devices: Vec<Registered>,
        server: Server,
        options: Options,
    ) -> Result<Self, DaemonError> {
        sys::keep_freed_memory();
        panics::end_the_daemon(DEVICE_LOST);
        if let Err(error) = log::start_thread() {
            warn!(%error, "starting the log's thread failed, ignoring");
        }
        let limits = Limits { memory: options.memory, ..limits_by_descriptors() };
        let seed = fastrand::u64(..);
        let hub = Hub::new(Core::new(limits, seed));
        let input_log = options.input_log.map(|file| log_inputs(&hub, file, seed, limits));
        let input_log = input_log.transpose()?;
        hub.handle(input::SetAdmission { admission: options.admission });
        let netdevs = netdev::start(&hub, options.netdevs);
        let stopping = Arc::new(AtomicBool::new(false));
        let lost = Arc::new(OnceLock::new());
        let mut served = Vec::new();
        for device in devices {
            let (name, path) = (device.name().to_owned(), device.path().map(Path::to_owned));
            let front_end = device.enter(&hub).ok_or_else(|| {
                system("adding the device")(io::Error::other("the daemon has too many devices"))
            })?;
            let briskly = options.spin && options.threads.get() == 1;
            let (alive, ended) = mpsc::channel();
            let threads = (0..options.threads.get()).map(|_| {
                let alive = alive.clone();
                let (front_end, stopping) = (Arc::clone(&front_end), Arc::clone(&stopping));
                let (name, lost) = (name.clone(), Arc::clone(&lost));
                spawn("device", move || {
                    let _until_the_end = alive;
                    let ended = serve_device(front_end.as_ref(), briskly);
                    if ended == Ended::Taken && !stopping.load(Ordering::Relaxed) {
                        tell_of_loss(&lost, name);
                    }
                })
            });
            let threads = threads.collect::<Result<_, _>>()?;
            // The kernel asks for a file's owner only when somebody looks, and takes it for root until then. In a user namespace
            // without root it refuses to open a file whose owner it cannot name (HAS_UNMAPPED_ID).
            let _looked = path.map(fs::metadata);
            served.push(Served { front_end, threads, ended });
        }
        let timer = spawn("timer", {
            let hub = Arc::clone(&hub);
            move || hub.run_timer()
        })?;
        let memory = spawn("memory", {
            let hub = Arc::clone(&hub);
            move || hub.return_memory(sys::return_freed_memory)
        })?;
        let observers = spawn("observers", {
            let hub = Arc::clone(&hub);
            move || hub.run_observers()
        })?;
        let server = Arc::new(server);
        spawn("control", {
            let (server, hub) = (Arc::clone(&server), Arc::clone(&hub));
            move || server.run(&hub)
        })?;
        Ok(Self {
            hub,
            netdevs,
            server,
            served,
            timer,
            memory,
            observers,
            input_log,
            stopping,
            lost,
        })
    }

    /// The hub.
    #[must_use]
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// A device that was taken away by the kernel, though nobody stopped it.
    #[must_use]
    pub(crate) fn lost_device(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    /// Removes the socket and leaves the devices to the end of the process, which must come now. Clients get an error then,
    /// and what covers a path goes on to cover it.
    pub(crate) fn abandon(self) {
        self.server.remove();
        self.netdevs.stop();
        end_input_log(&self.hub, self.input_log);
        std::mem::forget(self.served);
    }

    /// Takes the devices away, so that blocked clients get an error, and removes the socket.
    pub(crate) fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        planted::panic_at("stop");
        for Served { front_end, threads, ended } in self.served {
            // If it cannot be taken away, the end of the process does it.
            if !front_end.stop() {
                continue;
            }
            if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                warn!("a thread still waits for the memory of a client, leaving it behind");
                continue;
            }
            threads.into_iter().for_each(join);
        }
        self.netdevs.stop();
        self.hub.stop();
        join(self.timer);
        join(self.memory);
        join(self.observers);
        end_input_log(&self.hub, self.input_log);
        self.server.remove();
        info!("stopped");
    }
}

/// File descriptors that are kept for the daemon itself and for connections to the control socket, two for each.
const RESERVED_DESCRIPTORS: usize = 512;

/// What clients may make the daemon open is so much that the control socket still answers.
fn limits_by_descriptors() -> Limits {
    let most = match sys::raise_descriptors() {
        Ok(most) => usize::try_from(most).unwrap_or(usize::MAX),
        Err(errno) => {
            warn!(%errno, "raising the limit of file descriptors failed, ignoring");
            1024
        }
    };
    limits_within(most)
}

fn limits_within(most: usize) -> Limits {
    let usual = Limits::default();
    let spare = most.saturating_sub(RESERVED_DESCRIPTORS.min(most / 2));
    // A namespace from which files are open takes one. What network devices take there is among the descriptors.
    let namespaces = usual.namespaces.all.min(spare / 4);
    let descriptors = usual.descriptors.all.min(spare - namespaces);
    Limits {
        namespaces: Bound::shared(namespaces),
        descriptors: Bound::shared(descriptors),
        ..usual
    }
}

fn serve_device(front_end: &dyn FrontEnd, briskly: bool) -> Ended {
    front_end.serve(briskly).unwrap_or_else(|error| {
        error!(%error, "reading the device failed");
        Ended::Taken
    })
}

/// Begins to log inputs; there must have been none yet.
fn log_inputs(
    hub: &Arc<Hub>,
    mut file: InputLog,
    seed: u64,
    limits: Limits,
) -> Result<LoggingInputs, DaemonError> {
    file.begin(seed, limits).map_err(system("writing the log of inputs"))?;
    hub.log_inputs();
    let (alive, ended) = mpsc::channel();
    let thread = spawn("input-log", {
        let hub = Arc::clone(hub);
        move || {
            let _until_the_end = alive;
            // A file that reaches RLIMIT_FSIZE is an error like others here, not the end of the daemon.
            if let Err(errno) = SigSet::from(Signal::SIGXFSZ).thread_block() {
                warn!(%errno, "blocking SIGXFSZ failed, ignoring");
            }
            hub.run_input_log(file);
        }
    })?;
    Ok(LoggingInputs { thread, ended })
}

fn end_input_log(hub: &Hub, logging: Option<LoggingInputs>) {
    let Some(LoggingInputs { thread, ended }) = logging else { return };
    hub.end_input_log();
    if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
        warn!("the log of inputs is still being written, leaving the rest out");
    } else {
        join(thread);
    }
}

/// The main thread waits for signals, so it gets one.
fn tell_of_loss(lost: &OnceLock<String>, name: String) {
    // The first of its threads to end has said the same.
    let _known = lost.set(name);
    if let Err(errno) = nix::sys::signal::kill(nix::unistd::getpid(), DEVICE_LOST) {
        warn!(%errno, "telling the main thread of the device's end failed, ignoring");
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        warn!("a thread had panicked, ignoring");
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, DaemonError> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map_err(system("starting a thread"))
}

pub(crate) fn system(what: &'static str) -> impl Fn(io::Error) -> DaemonError {
    move |error| DaemonError::System { what, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_descriptors_to_the_control_socket() {
        for most in [256, 1_024, 4_096, 20_000, 524_288, usize::MAX] {
            let Limits { namespaces, descriptors, connections, .. } = limits_within(most);
            let left = most - namespaces.all - descriptors.all;
            assert!(left >= (2 * connections.all).min(most / 2), "of {most}, {left} are left");
            assert!(namespaces.user >= 4 && descriptors.user >= 6, "of {most}");
        }
        let (usual, many) = (Limits::default(), limits_within(524_288));
        assert_eq!((many.namespaces, many.descriptors), (usual.namespaces, usual.descriptors));
    }
}
