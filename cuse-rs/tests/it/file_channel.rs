//! A file's channel, from `FakeKernel`'s side: handshake, attributes, and ioctls of this process itself.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::sync::Arc;
use std::thread;

use cuse_rs::abi::{Attr, InitFlags, Opcode, SetattrFlags};
use cuse_rs::codec::{FileRequest, Init, Request, Setattr};
use cuse_rs::fake::FakeKernel;
use cuse_rs::fuse_file::{FileOptions, MountError};
use cuse_rs::{
    Caller, Channel, Device, Errno, FileHandle, HandshakeError, Ioctl, IoctlFlags, Open, Write,
};
use nix::unistd::gettid;

use crate::device::{INCREMENT, Queue, REVERSE};

const O_APPEND: u32 = 0o2000;

fn options() -> FileOptions {
    FileOptions::mount_at("/nowhere").mode(0o640).owner(Some(1), Some(2))
}

/// Runs a device on a file's channel against a kernel that follows a script.
fn run<D: Device>(device: impl FnOnce(&Arc<Channel>) -> D, script: impl FnOnce(&mut FakeKernel)) {
    let (kernel, channel) = FakeKernel::connect_file(&options());
    let channel = Arc::new(channel);
    let device = device(&channel);
    thread::scope(|scope| {
        let mut kernel = kernel;
        let server = scope.spawn(|| channel.serve(&device));
        script(&mut kernel);
        kernel.hang_up();
        server.join().expect("no panic").expect("serve ends in order");
        kernel.finish();
    });
}

#[test]
fn the_reply_to_init() {
    let (mut kernel, server) = FakeKernel::new();
    let id = kernel.send_file_init(7, 45);
    let channel = options().handshake(server).unwrap();
    let init = kernel.wait_file_init(id);
    assert_eq!((init.major, init.minor), (7, 36));
    assert_eq!(init.flags, (InitFlags::MAX_PAGES | InitFlags::BIG_WRITES).bits());
    assert_eq!((init.max_write, init.max_pages), (1 << 20, 256));
    assert_eq!(channel.max_write(), 1 << 20);
}

#[test]
fn a_kernel_that_offers_less() {
    let (mut kernel, server) = FakeKernel::new();
    let init = Init::new(7, 31, InitFlags::empty());
    let id = kernel.send(Request::Init(init));
    let channel = options().handshake(server).unwrap();
    let init = kernel.wait_file_init(id);
    assert_eq!((init.minor, init.flags, init.max_write), (31, 0, 131_072));
    assert_eq!(channel.max_write(), 131_072);
}

#[test]
fn handshakes_that_fail() {
    for version in [(7, 30), (6, 38), (8, 0)] {
        let (mut kernel, server) = FakeKernel::new();
        kernel.send_file_init(version.0, version.1);
        let error = options().handshake(server).unwrap_err();
        assert!(
            matches!(error, HandshakeError::Version { major, minor, .. } if (major, minor) == version)
        );
    }
    let error = MountError::from(HandshakeError::Version { major: 7, minor: 30, minimum: 31 });
    assert_eq!(
        error.to_string(),
        "mounting a file by /dev/fuse: the kernel speaks FUSE protocol 7.30; 7.31 or later is needed (Linux 5.2)"
    );
    let (mut kernel, server) = FakeKernel::new();
    kernel.send_init(7, 38);
    let error = options().handshake(server).unwrap_err();
    assert!(matches!(error, HandshakeError::NotInit { opcode: Opcode::CUSE_INIT, .. }), "{error}");
    let (kernel, server) = FakeKernel::new();
    drop(kernel);
    assert!(matches!(options().handshake(server).unwrap_err(), HandshakeError::Ended));
}

#[test]
fn the_device_is_not_asked_about_attributes() {
    run(Queue::new, |kernel| {
        let before = kernel.attributes(None);
        let fields = |attr: Attr| (attr.mode, attr.uid, attr.gid, attr.nlink, attr.size);
        assert_eq!(fields(before), (0o100_640, 1, 2, 1, 0x7fff_f000));
        let (atime, mtime) = ((10, 1), (11, 2));
        let valid = SetattrFlags::MODE | SetattrFlags::GID | SetattrFlags::MTIME;
        let mut setattr = Setattr::new(valid);
        (setattr.mode, setattr.uid, setattr.gid) = (0o107_604, 8, 9);
        (setattr.atime, setattr.mtime) = (atime, mtime);
        let set = kernel.attributes(Some(setattr));
        assert_eq!(fields(set), (0o107_604, 1, 9, 1, 0x7fff_f000));
        setattr.valid = SetattrFlags::SIZE | SetattrFlags::UID;
        kernel.attributes(Some(setattr));
        let after = kernel.attributes(None);
        assert_eq!(fields(after), (0o107_604, 8, 9, 1, 0x7fff_f000));
        assert_eq!((after.mtime, after.mtimensec), mtime);
        assert_eq!((after.atime, after.atimensec), (before.atime, before.atimensec));
        let statfs = kernel.send(Request::File(FileRequest::Statfs));
        assert_eq!(kernel.wait(statfs).map(|reply| reply.len()), Ok(80));
        for (request, errno) in [
            (Request::File(FileRequest::Fsync), Errno::EINVAL),
            (Request::File(FileRequest::Optional), Errno::ENOSYS),
        ] {
            let id = kernel.send(request);
            assert_eq!(kernel.wait(id), Err(errno));
        }
    });
}

#[test]
fn open_files_are_streams() {
    run(Queue::new, |kernel| {
        let open = kernel.send(Request::Open(Open::new(2)));
        let reply = kernel.wait(open).unwrap();
        assert_eq!(reply[8..12], 0x71_u32.to_ne_bytes());
    });
}

#[test]
fn an_appending_write_begins_at_zero() {
    struct Offsets;
    impl Device for Offsets {
        fn write(&self, _: Caller, write: Write<'_>, reply: cuse_rs::ReplyWrite<'_>) {
            reply.written(u32::try_from(write.offset).unwrap().min(4));
        }
    }
    run(
        |_| Offsets,
        |kernel| {
            for (flags, written) in [(0, 4), (O_APPEND, 0)] {
                let file = FileHandle(1);
                let mut write = Write::new(file, b"data");
                (write.offset, write.flags) = (0x7fff_f000, flags);
                let id = kernel.send(Request::Write(write));
                assert_eq!(kernel.wait(id).unwrap()[0], written);
            }
        },
    );
}

/// An ioctl of the thread that runs the test, as the kernel restricts it: result and data of the reply.
fn ioctl(
    kernel: &mut FakeKernel,
    command: u32,
    argument: u64,
    (input, output_size): (&[u8], u32),
) -> Result<(i32, Vec<u8>), Errno> {
    let (file, flags) = (FileHandle(1), IoctlFlags::empty());
    let tid = u32::try_from(gettid().as_raw()).unwrap();
    kernel.set_caller(Caller::new(tid, 0, 0));
    let mut ioctl = Ioctl::new(file, command, argument);
    (ioctl.flags, ioctl.input, ioctl.output_size) = (flags, input, output_size);
    let id = kernel.send(Request::Ioctl(ioctl));
    let reply = kernel.wait(id)?;
    Ok((i32::from_ne_bytes(reply[..4].try_into().unwrap()), reply[16..].to_vec()))
}

#[test]
fn ioctls_reach_the_memory_of_the_caller() {
    run(Queue::new, |kernel| {
        // Leaked, so that only addresses of it are left, which the server writes to.
        let bytes = Box::into_raw(Box::new([1_u8, 2, 3, 4, 5, 6, 7, 255]));
        assert_eq!(ioctl(kernel, INCREMENT, bytes as u64, (&[], 0)), Ok((0, Vec::new())));
        let bytes = std::hint::black_box(bytes);
        assert_eq!(ioctl(kernel, REVERSE, 8, (&[], 0)), Err(Errno::EFAULT));
        let pointer = Box::into_raw(Box::new([bytes as u64, 8]));
        assert_eq!(ioctl(kernel, REVERSE, pointer as u64, (&[], 0)), Ok((8, Vec::new())));
    });
}

#[test]
fn what_the_kernel_copies_need_not_be_fetched() {
    run(Queue::new, |kernel| {
        // Nothing is at address 8.
        let reply = ioctl(kernel, INCREMENT, 8, (&[1, 2, 3, 4, 5, 6, 7, 8], 8));
        assert_eq!(reply, Ok((0, vec![2, 3, 4, 5, 6, 7, 8, 9])));
    });
}

#[test]
fn callers_that_cannot_be_seen() {
    run(Queue::new, |kernel| {
        kernel.set_caller(Caller::new(0, 0, 0));
        let id = kernel.send(Request::Ioctl(Ioctl::new(FileHandle(1), INCREMENT, 8)));
        assert_eq!(kernel.wait(id), Err(Errno::EPERM));
    });
}
