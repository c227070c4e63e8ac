//! The daemon: from options to threads, and an orderly end.
//!
//! | thread | does | ends |
//! | --- | --- | --- |
//! | main | waits for a signal | by it |
//! | `device` (one, or as many as asked for) | reads messages of the device and answers them | when the device is unregistered |
//! | `timer` | ends waits at their deadlines | when the hub stops |
//! | `control` | accepts harnesses | with the process |
//! | `harness`, `outbox` | one pair for each connection | with it |

use std::{
    io,
    num::NonZero,
    os::unix::net::UnixListener,
    sync::Arc,
    thread::{self, JoinHandle},
};

use cuse_rs::cuse::{DeviceName, DeviceOptions, RegisterError, Registration};
use nix::{
    errno::Errno,
    sys::signal::{SigSet, Signal},
};
use tracing::{error, info, warn};

use crate::{
    control::server::{BindError, Server, SocketOptions},
    core::{Core, Limits},
    frontend::cuse::CuseFrontEnd,
    hub::Hub,
};

/// What the daemon is to serve.
#[derive(Debug)]
pub struct Config {
    /// The device.
    pub device: DeviceOptions,
    /// The control socket.
    pub socket: SocketOptions,
    /// Threads that read the device.
    pub device_threads: NonZero<u8>,
}

/// Why the daemon did not start, or ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// The control socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The device.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The device is no more, though nobody asked for its end.
    #[error("device {0} was taken away by the kernel")]
    DeviceLost(DeviceName),
}

/// Runs the daemon until SIGTERM, SIGINT or SIGHUP.
///
/// # Errors
///
/// As [`DaemonError`] says. Nothing is left behind in any case.
pub fn run(config: Config) -> Result<(), DaemonError> {
    let system = |what| move |source: io::Error| DaemonError::System { what, source };
    // Before there are threads, so that all inherit it and only the wait below gets these.
    let signals =
        SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1]);
    signals.thread_block().map_err(io::Error::from).map_err(system("blocking signals"))?;

    // The socket comes first: two daemons by mistake would else both make a device.
    let server = match inherited_socket() {
        Some(listener) => Server::inherited(listener),
        None => Server::bind(&config.socket)?,
    };
    let server = Arc::new(server);
    let served = serve(config, &server, &signals);
    server.remove();
    served
}

fn serve(config: Config, server: &Arc<Server>, signals: &SigSet) -> Result<(), DaemonError> {
    let system = |what| move |source: io::Error| DaemonError::System { what, source };
    let name = config.device.name().clone();
    let registration = config.device.register()?;
    let hub = Hub::new(Core::new(Limits::default(), fastrand::u64(..)));
    let Some(front_end) =
        CuseFrontEnd::new(&hub, Arc::clone(registration.channel()), registration.device_number())
    else {
        return Err(system("adding the device")(io::Error::other("there are too many front ends")));
    };

    let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(system("starting a thread"))
    };
    let mut devices: Vec<JoinHandle<()>> = Vec::new();
    for _ in 0..config.device_threads.get() {
        let front_end = Arc::clone(&front_end);
        devices.push(spawn("device", Box::new(move || serve_device(&front_end)))?);
    }
    let timer = spawn("timer", {
        let hub = Arc::clone(&hub);
        Box::new(move || hub.run_timer())
    })?;
    spawn("control", {
        let (server, hub) = (Arc::clone(server), Arc::clone(&hub));
        Box::new(move || server.run(&hub))
    })?;

    announce(&registration);
    tell_service_manager(&[sd_notify::NotifyState::Ready]);
    let signal = wait_for(signals).map_err(system("waiting for a signal"))?;
    tell_service_manager(&[sd_notify::NotifyState::Stopping]);
    let lost = signal == Signal::SIGUSR1;
    if !lost {
        info!(%signal, "stopping");
    }
    stop(registration, devices);
    hub.stop();
    if timer.join().is_err() {
        warn!("the timer thread had panicked, ignoring");
    }
    if lost { Err(DaemonError::DeviceLost(name)) } else { Ok(()) }
}

/// When the loop ends by itself the main thread must know: SIGUSR1 to the process ends its wait.
fn serve_device(front_end: &CuseFrontEnd) {
    if let Err(error) = front_end.serve() {
        error!(%error, "reading the device failed");
    }
    if let Err(errno) = nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGUSR1) {
        warn!(%errno, "telling the main thread of the device's end failed, ignoring");
    }
}

/// Unregisters the device: blocked clients get an error, and the loops of the device threads end.
fn stop(registration: Registration, devices: Vec<JoinHandle<()>>) {
    match registration.stop() {
        Ok(()) => {
            for device in devices {
                if device.join().is_err() {
                    warn!("a device thread had panicked, ignoring");
                }
            }
        }
        // The end of the process closes the device just as well.
        Err(error) => warn!(%error, "ending the device's connection failed, ignoring"),
    }
}

fn announce(registration: &Registration) {
    let (major, minor) = registration.device_number();
    let name = registration.name();
    match registration.node() {
        Some(node) => info!(device = %node.display(), major, minor, "ready"),
        None => warn!(
            %name, major, minor,
            "ready, but the device has no node: its path is taken by another device. Make one with \
             'mknod PATH c {major} {minor}', or serve under another name, ignoring"
        ),
    }
}

/// The socket that `memtun.socket` passes.
fn inherited_socket() -> Option<UnixListener> {
    let descriptor = sd_notify::listen_fds().ok()?.next()?;
    Some(UnixListener::from(crate::sys::own_received(descriptor)))
}

fn tell_service_manager(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        warn!(%error, "telling the service manager failed, ignoring");
    }
}

fn wait_for(signals: &SigSet) -> io::Result<Signal> {
    loop {
        match signals.wait() {
            Err(Errno::EINTR) => {}
            signal => return signal.map_err(io::Error::from),
        }
    }
}
