//! The same device on a real kernel. Needs access to `/dev/cuse` or `/dev/fuse`; each test says `SKIP: why` without it.
#![allow(unsafe_code, reason = "ioctl(2) is called as a client calls it")]

mod bodies;
mod cuse;
mod file;
mod memory;
mod namespace;

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{env, process, thread};

use cuse_rs::cuse::{DeviceOptions, RegisterError, Registration};
use cuse_rs::fuse_file::{FileOptions, Mount, MountError};
use cuse_rs::{Channel, Device, Errno};

use crate::device::Queue;

const BLOCKING: i32 = 0;
const O_NONBLOCK: i32 = 0o4000;

/// Another node of `/dev/fuse`, for an ordinary user.
const FUSE_NODE: &str = "CUSE_RS_TEST_FUSE_NODE";

/// How a device comes to its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Cuse,
    File,
}

/// A device that clients can open.
enum Server {
    Cuse(Registration),
    File(Mount),
}

impl Backend {
    /// Brings a device into being, or says why the test cannot run.
    fn start(self, what: &str) -> Option<Server> {
        match self {
            Self::Cuse => register(cuse_options(what).mode(0o666)).map(Server::Cuse),
            Self::File => mount(file_options(what).mode(0o666).allow_other(true)).map(Server::File),
        }
    }

    /// Serves a device on two threads while `script` acts as its clients.
    fn with<D: Device>(
        self,
        what: &str,
        device: impl FnOnce(&Arc<Channel>) -> D,
        script: impl FnOnce(&D, &Server, &Path),
    ) {
        let Some(server) = self.start(what) else { return };
        let channel = Arc::clone(server.channel());
        let device = device(&channel);
        thread::scope(|scope| {
            // The server moves in here: a script that panics drops it, which ends the threads.
            let server = server;
            let serve = || channel.serve(&device);
            let threads = [scope.spawn(serve), scope.spawn(serve)];
            let path = server.path().to_owned();
            script(&device, &server, &path);
            server.stop();
            for thread in threads {
                thread.join().expect("no panic").expect("serve ends in order");
            }
        });
    }

    fn with_queue(self, what: &str, script: impl FnOnce(&Queue, &Server, &Path)) {
        self.with(what, Queue::new, script);
    }
}

impl Server {
    fn channel(&self) -> &Arc<Channel> {
        match self {
            Self::Cuse(registration) => registration.channel(),
            Self::File(mount) => mount.channel(),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Cuse(registration) => registration.node().expect("a node with a name of its own"),
            Self::File(mount) => mount.path(),
        }
    }

    fn stop(&self) {
        match self {
            Self::Cuse(registration) => registration.stop().expect("an orderly end"),
            Self::File(mount) => mount.stop().expect("an orderly end"),
        }
    }
}

fn cuse_options(what: &str) -> DeviceOptions {
    DeviceOptions::new(format!("cuse-rs-{what}-{}", process::id()).parse().expect("a valid name"))
}

fn register(options: DeviceOptions) -> Option<Registration> {
    match options.register() {
        Err(error @ RegisterError::Open { .. }) => skip(&error),
        registration => Some(registration.expect("the device registers")),
    }
}

fn file_path(what: &str) -> PathBuf {
    env::temp_dir().join(format!("cuse-rs-{what}-{}", process::id()))
}

fn file_options(what: &str) -> FileOptions {
    let options = FileOptions::mount_at(file_path(what));
    match env::var_os(FUSE_NODE) {
        None => options,
        Some(node) => {
            let fuse = OpenOptions::new().read(true).write(true).open(node);
            options.device(fuse.expect("the node opens").into())
        }
    }
}

fn mount(options: FileOptions) -> Option<Mount> {
    match options.mount() {
        Err(error @ (MountError::Open { .. } | MountError::Mount { errno: Errno::EPERM, .. })) => {
            skip(&error)
        }
        mount => Some(mount.expect("the file is mounted")),
    }
}

/// Past the capture of the test runner, since a test that is skipped passes.
fn skip<T>(why: &dyn std::fmt::Display) -> Option<T> {
    writeln!(io::stdout(), "SKIP: {why}").expect("standard output is open");
    None
}

fn open(node: &Path, flags: i32) -> File {
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(node);
    file.expect("the device opens")
}

fn read(mut file: &File, size: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; size];
    let size = file.read(&mut buffer)?;
    buffer.truncate(size);
    Ok(buffer)
}

fn errno<T>(result: io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| error.raw_os_error()).map(Errno::from_number)
}
