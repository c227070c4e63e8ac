//! `/dev/cuse`: how a device comes into being and how it ends. Follows `fs/fuse/cuse.c`.
//!
//! Owns the CUSE_INIT handshake, the device's node and its orderly end. Leaves all that is between to
//! [`Channel`].
//!
//! # How the kernel registers a device
//!
//! `cuse_process_init_reply` runs *inside* the server's write of the reply to CUSE_INIT: when that returns, the
//! device, its entry in `/sys/class/cuse` and its node in devtmpfs exist, or the connection is dead. The write
//! succeeds either way; a dead connection shows as POLLERR (`fuse_dev_poll`), and the reason only in the
//! kernel's log. So the reason is found out by looking.
//!
//! # Caveats
//!
//! * If another device has the node's path (`net/tun` with tun loaded), the device registers without a node. Then
//!   [`Registration::node`] is `None`, and `mknod` with the device's number makes a node.
//! * The node belongs to root and has mode 0600 until it is changed here; a udev rule may change it again.

mod error;
mod name;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::stat::{major, minor};

use crate::abi::{self, CuseInitFlags, Opcode};
use crate::channel::Channel;
use crate::codec::{CuseInit, Message, Reply, Request};
use crate::errno::Errno;
use crate::handshake::{HandshakeError, check_version, first_message};
use crate::request::RequestId;

pub use self::error::{RegisterError, StopError};
pub use self::name::{DeviceName, NameError};

const CUSE: &str = "/dev/cuse";

/// A device to be registered.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    name: DeviceName,
    major: u32,
    minor: u32,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    max_read: u32,
    max_write: u32,
    flags: CuseInitFlags,
}

impl DeviceOptions {
    /// A device with a free number, a node of mode 0600 owned by root, unrestricted ioctl, and the largest
    /// reads and writes that CUSE carries.
    pub fn new(name: DeviceName) -> Self {
        Self {
            name,
            major: 0,
            minor: 0,
            mode: None,
            uid: None,
            gid: None,
            max_read: abi::MAX_DATA,
            max_write: abi::MAX_DATA,
            flags: CuseInitFlags::UNRESTRICTED_IOCTL,
        }
    }

    /// Asks for a device number. Major 0: any free one.
    #[must_use]
    pub fn number(mut self, major: u32, minor: u32) -> Self {
        (self.major, self.minor) = (major, minor);
        self
    }

    /// Asks for permission bits of the node, such as `0o666`.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode & 0o7777);
        self
    }

    /// Asks for an owner and a group of the node; `None` leaves root's.
    #[must_use]
    pub fn owner(mut self, uid: Option<u32>, gid: Option<u32>) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Limits the room of a READ in bytes; longer calls come in pieces. The kernel raises it to 4096, and never
    /// carries more than [`abi::MAX_DATA`].
    #[must_use]
    pub fn max_read(mut self, size: u32) -> Self {
        self.max_read = size;
        self
    }

    /// Limits the data of a WRITE, as [`max_read`](Self::max_read) does for READ.
    #[must_use]
    pub fn max_write(mut self, size: u32) -> Self {
        self.max_write = size;
        self
    }

    /// Switches unrestricted ioctl on (the default) or off. Without it the kernel copies what the command's number
    /// encodes, and there is no retry.
    #[must_use]
    pub fn unrestricted_ioctl(mut self, on: bool) -> Self {
        self.flags.set(CuseInitFlags::UNRESTRICTED_IOCTL, on);
        self
    }

    /// The device's name.
    pub fn name(&self) -> &DeviceName {
        &self.name
    }

    /// Registers the device: opens `/dev/cuse`, does the handshake, and sets the node's mode and owner.
    ///
    /// # Errors
    ///
    /// A [`RegisterError`] whose message names the obstacle and says what to do. No device is left behind.
    pub fn register(self) -> Result<Registration, RegisterError> {
        let cuse = OpenOptions::new().read(true).write(true).open(CUSE);
        let cuse = cuse.map_err(RegisterError::open)?;
        if self.name.sysfs_path().exists() {
            return Err(RegisterError::NameTaken { name: self.name });
        }
        let channel = match self.handshake(cuse.into()) {
            Err(HandshakeError::Refused) => return Err(self.refusal()),
            other => other?,
        };
        let device_number = self.read_device_number()?;
        let node = self.find_node(device_number);
        if let Some(node) = &node {
            self.set_permissions(node)?;
        }
        let abort = self.name.sysfs_path().join("abort");
        // Opened now, so that an orderly end needs no privilege and no path later.
        let abort = OpenOptions::new().write(true).open(&abort).map_err(|error| {
            tracing::warn!(path = %abort.display(), %error, "the device cannot be stopped in order, ignoring");
            error.kind()
        });
        let (channel, name) = (Arc::new(channel), self.name);
        Ok(Registration { channel, name, device_number, node, abort })
    }

    /// Does the CUSE_INIT handshake on an open channel and registers nothing else: for [`register`](Self::register),
    /// for a descriptor that another process opened, and for a fake kernel.
    ///
    /// # Errors
    ///
    /// [`HandshakeError`]: the channel ended or failed, its first message is not CUSE_INIT, the kernel speaks another
    /// version, or it refused the device.
    pub fn handshake(&self, fd: OwnedFd) -> Result<Channel, HandshakeError> {
        let channel = Channel::from_fd(fd, self.max_write);
        let mut buffer = vec![0; channel.buffer_size()];
        let (id, offer) = match first_message(&channel, &mut buffer)? {
            Message { id, request: Request::CuseInit(offer), .. } => (id, offer),
            Message { opcode, .. } => {
                return Err(HandshakeError::NotInit { opcode, wanted: Opcode::CUSE_INIT });
            }
        };
        self.accept(&channel, id, offer)?;
        if is_dead(&channel) {
            return Err(HandshakeError::Refused);
        }
        Ok(channel)
    }

    fn accept(
        &self,
        channel: &Channel,
        id: RequestId,
        offer: CuseInit,
    ) -> Result<(), HandshakeError> {
        let CuseInit { major, minor, flags } = offer;
        tracing::debug!(major, minor, ?flags, "handshake");
        check_version(major, minor, abi::MINIMUM_MINOR_VERSION)?;
        let init = abi::CuseInitOut {
            major: abi::KERNEL_VERSION,
            minor: minor.min(abi::KERNEL_MINOR_VERSION),
            flags: (self.flags & flags).bits(),
            max_read: self.max_read,
            max_write: self.max_write,
            dev_major: self.major,
            dev_minor: self.minor,
            ..Default::default()
        };
        let info = format!("DEVNAME={}\0", self.name);
        let reply = Reply::CuseInit(&init, info.as_bytes());
        channel.send(id, &reply).map_err(|errno| HandshakeError::Reply { errno })
    }

    /// Finds out why the kernel refused the device: it says so in its log only.
    fn refusal(self) -> RegisterError {
        let Self { name, major, minor, .. } = self;
        if name.sysfs_path().exists() {
            RegisterError::NameTaken { name }
        } else if major != 0 && is_number_taken(major, minor) {
            RegisterError::NumberTaken { name, major, minor }
        } else {
            RegisterError::Refused { name }
        }
    }

    fn read_device_number(&self) -> Result<(u32, u32), RegisterError> {
        let path = self.name.sysfs_path().join("dev");
        let parse = |text: String| {
            let (major, minor) = text.trim_end().split_once(':')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        };
        fs::read_to_string(&path)
            .and_then(|text| parse(text).ok_or(io::ErrorKind::InvalidData.into()))
            .map_err(|error| RegisterError::Sysfs { path, error })
    }

    /// The node, if what is at its path is this device.
    fn find_node(&self, (major_number, minor_number): (u32, u32)) -> Option<PathBuf> {
        let path = self.name.node_path();
        let metadata = fs::symlink_metadata(&path).ok()?;
        let is_ours = metadata.file_type().is_char_device()
            && major(metadata.rdev()) == u64::from(major_number)
            && minor(metadata.rdev()) == u64::from(minor_number);
        is_ours.then_some(path)
    }

    /// Owner before mode: `chown` clears the set-id bits.
    fn set_permissions(&self, node: &Path) -> Result<(), RegisterError> {
        let chown = || match (self.uid, self.gid) {
            (None, None) => Ok(()),
            (uid, gid) => std::os::unix::fs::lchown(node, uid, gid),
        };
        let chmod = || match self.mode {
            None => Ok(()),
            Some(mode) => fs::set_permissions(node, fs::Permissions::from_mode(mode)),
        };
        chown()
            .and_then(|()| chmod())
            .map_err(|error| RegisterError::Node { path: node.to_owned(), error })
    }
}

/// A registered device.
///
/// Dropping it ends the connection. The device is gone when the last owner of its channel is, too.
#[derive(Debug)]
pub struct Registration {
    channel: Arc<Channel>,
    name: DeviceName,
    device_number: (u32, u32),
    node: Option<PathBuf>,
    abort: Result<File, io::ErrorKind>,
}

impl Registration {
    /// Where the device's requests come from.
    pub fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// The device's name.
    pub fn name(&self) -> &DeviceName {
        &self.name
    }

    /// The device's major and minor number.
    pub fn device_number(&self) -> (u32, u32) {
        self.device_number
    }

    /// The device node; `None` where its path belongs to another device or `/dev` is not devtmpfs.
    pub fn node(&self) -> Option<&Path> {
        self.node.as_deref()
    }

    /// Ends the connection: open calls of clients fail with ECONNABORTED, later ones with ENOTCONN, and every
    /// [`Channel::serve`] returns. May be called from any thread, and more than once.
    ///
    /// # Errors
    ///
    /// [`StopError`] where `/sys/class/cuse/NAME/abort` cannot be written, as in a container with a read-only
    /// `/sys`; the connection then ends with the process.
    pub fn stop(&self) -> Result<(), StopError> {
        let abort = match &self.abort {
            Ok(file) => file,
            Err(kind) => return Err(StopError::new(&self.name, (*kind).into())),
        };
        let mut abort: &File = abort;
        match abort.write_all(b"1") {
            // The entry went with the device.
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV.number()) => Ok(()),
            result => result.map_err(|error| StopError::new(&self.name, error)),
        }
    }

    /// Ends the connection and closes the channel. The node is gone when this returns, unless somebody else holds the
    /// channel still: join the threads in [`Channel::serve`] and drop their [`Arc`]s for that.
    ///
    /// # Errors
    ///
    /// As [`stop`](Self::stop).
    pub fn unregister(self) -> Result<(), StopError> {
        self.stop()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::debug!(%error, "the device ends with its channel, ignoring");
        }
    }
}

/// Whether the kernel has given the connection up (`fuse_dev_poll`: POLLERR), or the socket's other end is closed.
fn is_dead(channel: &Channel) -> bool {
    let mut fds = [PollFd::new(channel.as_fd(), PollFlags::empty())];
    let polled = nix::poll::poll(&mut fds, PollTimeout::ZERO);
    polled.is_ok_and(|ready| ready > 0)
}

/// Whether a device has the number, or a driver has the whole major (as misc has 10).
fn is_number_taken(major: u32, minor: u32) -> bool {
    let is_driver = |line: &str| {
        line.split_whitespace().next().is_some_and(|number| number.parse() == Ok(major))
    };
    Path::new(&format!("/sys/dev/char/{major}:{minor}")).exists()
        || fs::read_to_string("/proc/devices").is_ok_and(|devices| {
            devices.lines().take_while(|line| !line.starts_with("Block")).any(is_driver)
        })
}
