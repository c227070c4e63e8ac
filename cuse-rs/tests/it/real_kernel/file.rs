//! What only a file has: a mount, attributes, positions, and ioctls that the kernel restricts.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use std::{env, thread};

use cuse_rs::fuse_file::{FileOptions, MountError, UnmountError};
use cuse_rs::{
    Caller, Channel, Device, Errno, Ioctl, IoctlFlags, Read, ReplyIoctl, ReplyRead, ReplyWrite,
    RequestId, UserRange, Write,
};
use nix::fcntl::OFlag;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use super::{BLOCKING, Backend, bodies, errno, file_options, file_path, mount, open, read, skip};
use crate::device::Queue;

bodies::on!(Backend::File);

/// Takes and gives nothing.
struct Nothing;
impl Device for Nothing {}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.contains(&format!(" {} ", path.display()))
}

#[test]
fn a_file_comes_and_goes() {
    let Some(mount) = mount(file_options("comes").name("the-name")) else { return };
    let path = mount.path().to_owned();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(mounts.contains(&format!("the-name {} fuse.the-name ", path.display())));
    mount.unmount().unwrap();
    assert!(!is_mounted(&path));
    assert!(!path.exists());
}

#[test]
fn a_file_that_was_there_is_covered_and_comes_back() {
    let path = file_path("covers");
    fs::write(&path, "covered").unwrap();
    if let Some(mount) = mount(file_options("covers")) {
        assert!(is_mounted(&path));
        drop(mount);
        assert!(!is_mounted(&path));
        assert_eq!(fs::read(&path).unwrap(), b"covered");
    }
    fs::remove_file(&path).unwrap();
}

#[test]
fn places_where_no_file_can_be() {
    if mount(file_options("places")).is_none() {
        return;
    }
    let error = FileOptions::mount_at("/").mount();
    let error = match error {
        Err(MountError::Open { .. }) => return,
        other => other.unwrap_err(),
    };
    assert_eq!(
        error.to_string(),
        "mounting at /: it is a folder; name a file, which need not exist"
    );
    let error = FileOptions::mount_at("/nowhere/tun").mount().unwrap_err();
    assert_eq!(
        error.to_string(),
        "preparing the mount point /nowhere/tun: No such file or directory (os error 2)"
    );
}

#[test]
fn stop_leaves_other_mounts_alone() {
    let Some(below) = mount(file_options("stack")) else { return };
    // A server that is not served yet: only its attributes would have to wait for it.
    let channel = Arc::clone(below.channel());
    thread::scope(|scope| {
        scope.spawn(|| channel.serve(&Nothing));
        let above = mount(file_options("stack")).expect("there is /dev/fuse");
        let error = below.stop().unwrap_err();
        assert!(matches!(error, UnmountError::Covered { .. }), "{error}");
        above.stop().unwrap();
        assert!(is_mounted(below.path()));
        below.stop().unwrap();
        below.stop().unwrap();
    });
}

#[test]
fn attributes_are_remembered() {
    Backend::File.with(
        "attributes",
        |_| Nothing,
        |_, _, path| {
            let metadata = fs::metadata(path).unwrap();
            assert_eq!((metadata.mode(), metadata.nlink()), (0o100_666, 1));
            assert_eq!(metadata.len(), 0x7fff_f000);
            fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap();
            // In a namespace with one user there is no other.
            chown(path, Some(0), Some(0)).unwrap();
            let file = open(path, OFlag::O_TRUNC.bits());
            file.set_len(5).unwrap();
            let modified = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 5);
            file.set_modified(modified).unwrap();
            let metadata = fs::metadata(path).unwrap();
            assert_eq!(metadata.mode(), 0o100_640);
            assert_eq!((metadata.uid(), metadata.gid()), (0, 0));
            assert_eq!(metadata.modified().unwrap(), modified);
            assert_eq!(metadata.len(), 0x7fff_f000);
            assert_eq!(errno(file.sync_all()), Some(Errno::EINVAL));
        },
    );
}

/// Of a program that ends with files open. It is one of its own: what this one has open, children of other tests hold for a moment.
#[test]
fn closes_are_known_to_one_who_has_caught_up() {
    let Some(mount) = mount(file_options("catch-up").mode(0o666)) else { return };
    let queue = Queue::new(mount.channel());
    let channel = Arc::clone(mount.channel());
    thread::scope(|scope| {
        // A failed assertion drops it, which ends the server.
        let mount = mount;
        let server = scope.spawn(|| channel.serve(&queue));
        for round in 0..20 {
            let open = r#"exec 3<>"$0" 4<>"$0" 5<>"$0" 6<>"$0" 7<>"$0" 8<>"$0" 9<>"$0""#;
            let opened = Command::new("sh").args(["-c", open]).arg(mount.path()).status();
            assert!(opened.unwrap().success());
            assert!(channel.catch_up(Duration::from_secs(10)));
            assert_eq!(queue.files().len(), 0, "round {round}");
        }
        mount.stop().unwrap();
        server.join().unwrap().unwrap();
        assert!(!channel.catch_up(Duration::from_secs(10)), "nobody serves it");
    });
}

/// Remembers where reads and writes began.
#[derive(Default)]
struct Positions(Mutex<Vec<u64>>);

impl Device for Positions {
    fn read(&self, _: Caller, read: Read, reply: ReplyRead<'_>) {
        self.0.lock().unwrap().push(read.offset);
        reply.bytes(b"message");
    }

    fn write(&self, _: Caller, write: Write<'_>, reply: ReplyWrite<'_>) {
        self.0.lock().unwrap().push(write.offset);
        reply.written(u32::try_from(write.data.len()).unwrap());
    }
}

#[test]
fn a_call_begins_at_zero() {
    Backend::File.with(
        "positions",
        |_| Positions::default(),
        |positions, _, path| {
            let file = open(path, BLOCKING);
            let append = open(path, OFlag::O_APPEND.bits());
            for _ in 0..3 {
                read(&file, 64).unwrap();
                (&file).write_all(b"message").unwrap();
                (&append).write_all(b"message").unwrap();
            }
            assert_eq!(positions.0.lock().unwrap()[..], [0; 9]);
            for result in [file.read_at(&mut [0], 100), file.write_at(b"x", 100)] {
                assert_eq!(errno(result), Some(Errno::ESPIPE));
            }
        },
    );
}

#[test]
fn a_mapping_takes_no_message() {
    Backend::File.with(
        "mapping",
        |_| Positions::default(),
        |positions, _, path| {
            let file = open(path, BLOCKING);
            let length = NonZeroUsize::new(4096).unwrap();
            // SAFETY: a mapping of its own, which nobody reads but the kernel.
            let start = unsafe {
                mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, &file, 0)
            };
            let start = start.unwrap().cast::<u8>();
            // SAFETY: the mapping has this length; the kernel finds out that it has no content.
            let content = unsafe { std::slice::from_raw_parts(start.as_ptr(), 4096) };
            let (_reader, writer) = std::io::pipe().unwrap();
            assert_eq!(nix::unistd::write(&writer, content), Err(nix::errno::Errno::EFAULT));
            assert_eq!(positions.0.lock().unwrap()[..], []);
        },
    );
}

/// `_IOW('T', 203, int)`: TUNSETPERSIST, whose argument is a number.
const BY_VALUE: u32 = 0x4004_54cb;
/// `_IOW('T', 202, int)`: TUNSETIFF, whose argument points to 40 bytes.
const FORTY_BYTES: u32 = 0x4004_54ca;
/// SIOCGIFHWADDR, which says nothing about its argument.
const UNSAID: u32 = 0x8927;
/// Answered by another thread.
const LATER: u32 = 0x5105;
/// Answered by another thread, which wants a retry.
const RETRY_LATER: u32 = 0x5106;

nix::ioctl_write_int_bad!(by_value, BY_VALUE);
nix::ioctl_readwrite_bad!(forty_bytes, FORTY_BYTES, [u8; 40]);
nix::ioctl_readwrite_bad!(unsaid, UNSAID, [u8; 40]);
nix::ioctl_readwrite_bad!(later, LATER, [u8; 40]);
nix::ioctl_readwrite_bad!(retry_later, RETRY_LATER, [u8; 40]);

/// Adds one to each of 40 bytes.
struct Forty {
    channel: Arc<Channel>,
    deferred: Mutex<Vec<RequestId>>,
}

impl Device for Forty {
    fn ioctl(&self, _: Caller, ioctl: Ioctl<'_>, reply: ReplyIoctl<'_>) {
        assert!(ioctl.flags.contains(IoctlFlags::UNRESTRICTED));
        let range = UserRange { address: ioctl.argument, length: 40 };
        match ioctl.command {
            RETRY_LATER => self.deferred.lock().unwrap().push(reply.defer()),
            _ if ioctl.input.is_empty() => {
                assert_eq!(ioctl.output_size, 0);
                reply.retry(&[range], &[range]);
            }
            LATER => self.deferred.lock().unwrap().push(reply.defer()),
            _ => {
                assert_eq!((ioctl.input.len(), ioctl.output_size), (40, 40));
                let output: Vec<u8> = ioctl.input.iter().map(|byte| byte + 1).collect();
                reply.done(7, &output);
            }
        }
    }

    fn read(&self, _: Caller, _: Read, reply: ReplyRead<'_>) {
        // A read is the signal for the deferred ioctls.
        let deferred = std::mem::take(&mut *self.deferred.lock().unwrap());
        for &id in &deferred {
            let range = UserRange { address: 0x1000, length: 4 };
            if self.channel.reply_ioctl(id).retry(&[range], &[]) {
                panic!("too late for a retry");
            }
        }
        reply.bytes(&vec![b'x'; deferred.len()]);
    }

    fn write(&self, _: Caller, _: Write<'_>, reply: ReplyWrite<'_>) {
        let deferred = std::mem::take(&mut *self.deferred.lock().unwrap());
        for &id in &deferred {
            assert!(self.channel.reply_ioctl(id).done(8, &[9; 40]));
        }
        reply.written(u32::from(!deferred.is_empty()));
    }
}

#[test]
fn ioctls_that_the_kernel_restricts() {
    let forty =
        |channel: &Arc<Channel>| Forty { channel: Arc::clone(channel), deferred: Mutex::default() };
    Backend::File.with("forty", forty, |_, _, path| {
        let file = open(path, BLOCKING);
        let fd = file.as_raw_fd();
        let mut bytes = [1; 40];
        // SAFETY: the device reads and writes 40 bytes.
        assert_eq!(unsafe { forty_bytes(fd, &raw mut bytes) }, Ok(7));
        // SAFETY: as above.
        assert_eq!(unsafe { unsaid(fd, &raw mut bytes) }, Ok(7));
        assert_eq!(bytes, [3; 40]);
        // SAFETY: the kernel refuses memory that is not mapped.
        assert_eq!(unsafe { by_value(fd, 1) }, Err(nix::errno::Errno::EFAULT));
        let until_done = |mut step: Box<dyn FnMut() -> usize>| while step() == 0 {};
        thread::scope(|scope| {
            let client = scope.spawn(|| {
                let mut bytes = [1; 40];
                // SAFETY: the device reads and writes 40 bytes.
                (unsafe { later(fd, &raw mut bytes) }, bytes)
            });
            until_done(Box::new(|| (&file).write(b"go").unwrap()));
            assert_eq!(client.join().unwrap(), (Ok(8), [9; 40]));
            let client = scope.spawn(|| {
                let mut bytes = [1; 40];
                // SAFETY: as above.
                unsafe { retry_later(fd, &raw mut bytes) }
            });
            until_done(Box::new(|| (&file).read(&mut [0; 9]).unwrap()));
            assert_eq!(client.join().unwrap(), Err(nix::errno::Errno::EIO));
        });
    });
}

/// The server that [`a_server_that_is_killed`] kills.
#[test]
#[ignore = "runs until it is killed"]
fn server_to_be_killed() {
    let path = env::var_os("CUSE_RS_TEST_PATH").expect("started by another test");
    let mount = FileOptions::mount_at(path).name("victim").mount().unwrap();
    let queue = Queue::new(mount.channel());
    mount.channel().serve(&queue).unwrap();
}

#[test]
fn a_server_that_is_killed() {
    if env::var_os(super::FUSE_NODE).is_some() {
        return skip(&"the server opens /dev/fuse itself").unwrap_or_default();
    }
    let Some(probe) = mount(file_options("killed")) else { return };
    let path = probe.path().to_owned();
    drop(probe);
    let server = Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "real_kernel::file::server_to_be_killed"])
        .env("CUSE_RS_TEST_PATH", &path)
        .stdout(Stdio::null())
        .spawn();
    let mut server = server.unwrap();
    while !is_mounted(&path) {
        assert!(server.try_wait().unwrap().is_none(), "the server failed");
        thread::yield_now();
    }
    let mut file = open(&path, BLOCKING);
    file.write_all(b"message").unwrap();
    assert_eq!(file.read(&mut [0; 64]).unwrap(), 7);
    thread::scope(|scope| {
        let reader = scope.spawn(|| read(&file, 64));
        // Answered after the reader's request, or before: either way the server dies with it.
        assert_eq!(fs::metadata(&path).unwrap().nlink(), 1);
        server.kill().unwrap();
        server.wait().unwrap();
        let error = errno(reader.join().unwrap());
        assert!(matches!(error, Some(Errno::ECONNABORTED | Errno::ENOTCONN)), "{error:?}");
    });
    assert_eq!(errno(read(&file, 64)), Some(Errno::ENOTCONN));
    assert_eq!(errno(fs::metadata(&path)), Some(Errno::ENOTCONN));
    let again = FileOptions::mount_at(&path).mount().unwrap();
    let channel = Arc::clone(again.channel());
    thread::scope(|scope| {
        let again = again;
        scope.spawn(|| channel.serve(&Nothing));
        assert!(fs::metadata(&path).is_ok());
        again.stop().unwrap();
    });
    assert!(!is_mounted(&path));
    fs::remove_file(&path).unwrap();
}

#[test]
fn modes_are_those_of_a_node() {
    if env::var_os(super::FUSE_NODE).is_some() {
        return skip(&"there is no other user here").unwrap_or_default();
    }
    let Some(mount) = mount(file_options("modes").mode(0o600).allow_other(true)) else { return };
    let channel = Arc::clone(mount.channel());
    thread::scope(|scope| {
        let mount = mount;
        scope.spawn(|| channel.serve(&Positions::default()));
        let as_nobody = |path: &Path| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "head", "-c7"]);
            let output = command.arg(path).stderr(Stdio::null()).output();
            output.unwrap().stdout
        };
        assert_eq!(as_nobody(mount.path()), b"");
        fs::set_permissions(mount.path(), fs::Permissions::from_mode(0o604)).unwrap();
        assert_eq!(as_nobody(mount.path()), b"message");
        mount.stop().unwrap();
    });
}
