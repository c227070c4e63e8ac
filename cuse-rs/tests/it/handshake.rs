//! CUSE_INIT, from `FakeKernel`'s side.

use cuse_rs::abi::{CuseInitFlags, Opcode};
use cuse_rs::codec::Request;
use cuse_rs::cuse::{DeviceOptions, RegisterError};
use cuse_rs::fake::{FakeKernel, InitReply};
use cuse_rs::{Errno, HandshakeError, Open};

fn options() -> DeviceOptions {
    DeviceOptions::new("net/tunx".parse().expect("a valid name"))
}

#[test]
fn the_reply_tells_what_was_asked_for() {
    let (mut kernel, server) = FakeKernel::new();
    let id = kernel.send_init(7, 45);
    let options = options().number(240, 5).max_read(65536).max_write(4096);
    let channel = options.handshake(server).unwrap();
    assert_eq!(channel.max_write(), 4096);
    let expected = InitReply {
        version: (7, 36),
        flags: CuseInitFlags::UNRESTRICTED_IOCTL,
        max_read: 65536,
        max_write: 4096,
        device_number: (240, 5),
        info: b"DEVNAME=net/tunx\0".to_vec(),
    };
    assert_eq!(kernel.wait_init(id), expected);
}

#[test]
fn the_defaults() {
    let (mut kernel, server) = FakeKernel::new();
    let id = kernel.send_init(7, 21);
    options().unrestricted_ioctl(false).handshake(server).unwrap();
    let reply = kernel.wait_init(id);
    assert_eq!(reply.version, (7, 21));
    assert_eq!(reply.flags, CuseInitFlags::empty());
    assert_eq!((reply.max_read, reply.max_write), (131072, 131072));
    assert_eq!(reply.device_number, (0, 0));
}

#[test]
fn kernels_that_speak_another_version() {
    for version in [(7, 20), (6, 38), (8, 0)] {
        let (mut kernel, server) = FakeKernel::new();
        kernel.send_init(version.0, version.1);
        let error = options().handshake(server).unwrap_err();
        assert!(
            matches!(error, HandshakeError::Version { major, minor, .. } if (major, minor) == version)
        );
    }
}

#[test]
fn the_message_for_an_old_kernel() {
    let error = RegisterError::from(HandshakeError::Version { major: 7, minor: 20, minimum: 21 });
    assert_eq!(
        error.to_string(),
        "registering a device at /dev/cuse: the kernel speaks FUSE protocol 7.20; 7.21 or later is \
         needed (Linux 3.10)"
    );
}

#[test]
fn channels_that_do_not_begin_with_cuse_init() {
    let (mut kernel, server) = FakeKernel::new();
    kernel.send(Request::Open(Open::new(0)));
    let error = options().handshake(server).unwrap_err();
    assert!(matches!(error, HandshakeError::NotInit { opcode: Opcode::OPEN, .. }), "{error}");

    let (mut kernel, server) = FakeKernel::new();
    kernel.send_bytes(&[0; 39]);
    let error = options().handshake(server).unwrap_err();
    assert!(matches!(error, HandshakeError::Malformed(_)), "{error}");
}

#[test]
fn a_kernel_that_goes_away() {
    let (kernel, server) = FakeKernel::new();
    drop(kernel);
    let error = options().handshake(server).unwrap_err();
    assert!(matches!(error, HandshakeError::Ended), "{error}");

    let (mut kernel, server) = FakeKernel::new();
    kernel.send_init(7, 38);
    drop(kernel);
    let error = options().handshake(server).unwrap_err();
    assert!(matches!(error, HandshakeError::Reply { errno: Errno::EPIPE }), "{error}");
}

#[test]
fn what_to_do_when_dev_cuse_cannot_be_opened() {
    let message = |errno| RegisterError::Open { errno }.to_string();
    assert_eq!(
        message(Errno::ENOENT),
        "opening /dev/cuse: No such file or directory; try 'modprobe cuse'"
    );
    assert_eq!(
        message(Errno::EACCES),
        "opening /dev/cuse: Permission denied; run as root, or give this user access to it"
    );
    assert_eq!(message(Errno::EMFILE), "opening /dev/cuse: Too many open files");
}
