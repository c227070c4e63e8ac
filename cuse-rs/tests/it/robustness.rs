//! What a device and a kernel can do wrong, and that no client hangs for it.

use cuse_rs::codec::Request;
use cuse_rs::fake::{self, FakeKernel};
use cuse_rs::{
    Caller, Device, Errno, FileHandle, Ioctl, IoctlFlags, Open, Poll, PollHandle, Read, ReplyOpen,
    ReplyPoll, ReplyRead, Write,
};

use crate::device::Queue;

fn one_of_each_kind() -> [Request<'static>; 6] {
    let file = FileHandle(1);
    let mut ioctl = Ioctl::new(file, 1, 2);
    (ioctl.flags, ioctl.input, ioctl.output_size) = (IoctlFlags::UNRESTRICTED, b"input", 9);
    [
        Request::Open(Open::new(2)),
        Request::Read(Read::new(file, 64)),
        Request::Write(Write::new(file, b"data")),
        Request::Ioctl(ioctl),
        Request::Poll(Poll::new(file, 1, Some(PollHandle(2)))),
        Request::Release(file),
    ]
}

/// Sends bytes that begin with the header of a request, and expects EIO for it.
fn expect_eio(kernel: &mut FakeKernel, bytes: &[u8]) {
    let id = kernel.next_id();
    kernel.expect_error(id);
    kernel.send_bytes(bytes);
    assert_eq!(kernel.wait(id), Err(Errno::EIO), "{bytes:?}");
    // Moves on to the next id.
    assert!(kernel.open(2).is_ok());
}

#[test]
fn truncated_messages_are_answered_with_eio() {
    fake::run(1, Queue::new, |kernel| {
        for request in one_of_each_kind() {
            let length = kernel.bytes_of(kernel.next_id(), request).len();
            for cut in 40..length {
                let mut bytes = kernel.bytes_of(kernel.next_id(), request);
                bytes.truncate(cut);
                expect_eio(kernel, &bytes);
                let mut bytes = kernel.bytes_of(kernel.next_id(), request);
                bytes.truncate(cut);
                bytes[..4].copy_from_slice(&u32::try_from(cut).unwrap().to_ne_bytes());
                expect_eio(kernel, &bytes);
            }
        }
    });
}

#[test]
fn pieces_of_a_header_are_dropped() {
    fake::run(1, Queue::new, |kernel| {
        for length in 1..40 {
            kernel.send_bytes(&vec![0xff; length]);
        }
        assert_eq!(kernel.open(2), Ok(FileHandle(1)));
    });
}

#[test]
fn a_malformed_interrupt_gets_no_reply() {
    fake::run(1, Queue::new, |kernel| {
        let target = kernel.next_id();
        let mut bytes = kernel.bytes_of(target, Request::Interrupt(target));
        bytes.truncate(44);
        kernel.send_bytes(&bytes);
        assert_eq!(kernel.open(2), Ok(FileHandle(1)));
    });
}

#[test]
fn requests_that_are_not_for_devices() {
    fake::run(1, Queue::new, |kernel| {
        let unknown = kernel.send(Request::Unknown);
        assert_eq!(kernel.wait(unknown), Err(Errno::ENOSYS));
        let init = kernel.send_init(7, 38);
        assert_eq!(kernel.wait(init), Err(Errno::ENOSYS));
        kernel.send(Request::Silent);
        let destroy = kernel.send(Request::Destroy);
        assert_eq!(kernel.wait(destroy), Ok(Vec::new()));
    });
}

#[test]
fn a_request_that_is_dropped_fails() {
    struct Careless;
    impl Device for Careless {
        fn read(&self, _: Caller, _: Read, reply: ReplyRead<'_>) {
            drop(reply);
        }
    }
    fake::run(
        1,
        |_| Careless,
        |kernel| {
            assert_eq!(kernel.read(FileHandle(0), 64, 0), Err(Errno::EIO));
        },
    );
}

#[test]
fn a_device_that_panics_leaves_no_client_waiting() {
    struct Panicking;
    impl Device for Panicking {
        fn read(&self, _: Caller, _: Read, _reply: ReplyRead<'_>) {
            panic!("as the test wants");
        }
    }
    let (mut kernel, channel) =
        FakeKernel::connect(&cuse_rs::cuse::DeviceOptions::new("fake".parse().unwrap()));
    let read = kernel.send_read(FileHandle(0), 64, 0);
    std::thread::scope(|scope| {
        assert!(scope.spawn(|| channel.serve(&Panicking)).join().is_err());
    });
    assert_eq!(kernel.wait(read), Err(Errno::EIO));
}

#[test]
fn errors_that_would_switch_an_operation_off_are_not_sent() {
    struct Unable;
    impl Device for Unable {
        fn open(&self, _: Caller, _: Open, reply: ReplyOpen<'_>) {
            reply.error(Errno::ENOSYS);
        }
        fn read(&self, _: Caller, _: Read, reply: ReplyRead<'_>) {
            reply.error(Errno::ENOSYS);
        }
        fn poll(&self, _: Caller, _: Poll, reply: ReplyPoll<'_>) {
            reply.error(Errno::ENOSYS);
        }
    }
    fake::run(
        1,
        |_| Unable,
        |kernel| {
            assert_eq!(kernel.open(0), Err(Errno::EIO));
            assert_eq!(kernel.poll(FileHandle(0), 1, None), Err(Errno::EIO));
            assert_eq!(kernel.read(FileHandle(0), 1, 0), Err(Errno::ENOSYS));
        },
    );
}

#[test]
fn an_answer_after_the_end_is_reported() {
    let name = "fake".parse().unwrap();
    let (kernel, channel) = FakeKernel::connect(&cuse_rs::cuse::DeviceOptions::new(name));
    drop(kernel);
    assert!(!channel.reply_read(cuse_rs::RequestId(4)).bytes(b"late"));
    assert!(!channel.notify_poll(PollHandle(1)));
    assert!(channel.serve(&Queue::new(&std::sync::Arc::new(channel_of_nothing()))).is_ok());
}

fn channel_of_nothing() -> cuse_rs::Channel {
    let (_, server) = FakeKernel::new();
    cuse_rs::Channel::from_fd(server, 4096)
}

#[test]
fn a_descriptor_that_is_no_channel_is_an_error() {
    let folder = std::fs::File::open("/").unwrap();
    let channel = cuse_rs::Channel::from_fd(folder.into(), 4096);
    struct Nothing;
    impl Device for Nothing {}
    let error = channel.serve(&Nothing).unwrap_err();
    assert_eq!(error.errno, Errno::EISDIR);
    assert_eq!(error.to_string(), "reading requests of the device: Is a directory");
}
