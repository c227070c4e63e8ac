//! Random messages: the codec neither panics nor misreads, and a channel survives them.

use std::os::fd::AsRawFd;

use cuse_rs::codec::{self, Request};
use cuse_rs::fake::FakeKernel;
use cuse_rs::fuse_file::FileOptions;
use cuse_rs::{
    Channel, Device, FileHandle, Ioctl, IoctlFlags, Poll, PollHandle, Read, RequestId, Write,
};
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

struct Nothing;

impl Device for Nothing {}

/// A header with a length that fits and one of the known numbers, then anything.
fn almost_a_message() -> impl Strategy<Value = Vec<u8>> {
    let opcodes = select(vec![
        1_u32, 2, 3, 4, 14, 15, 16, 17, 18, 20, 22, 25, 26, 34, 36, 38, 39, 40, 41, 42, 43, 46, 52,
        4096,
    ]);
    (opcodes, vec(any::<u8>(), 32..200)).prop_map(|(opcode, rest)| {
        let length = u32::try_from(rest.len() + 8).expect("a short message");
        [&length.to_ne_bytes()[..], &opcode.to_ne_bytes(), &rest].concat()
    })
}

fn requests(data: &[u8], [a, b, c]: [u32; 3], [d, e, f]: [u64; 3]) -> [Request<'_>; 5] {
    let file = FileHandle(d);
    let flags = IoctlFlags::from_bits_retain(b);
    let mut ioctl = Ioctl::new(file, a, e);
    (ioctl.flags, ioctl.input, ioctl.output_size) = (flags, data, c);
    let mut read = Read::new(file, a);
    (read.offset, read.flags) = (e, b);
    let mut write = Write::new(file, data);
    (write.offset, write.flags) = (e, c);
    [
        Request::Read(read),
        Request::Write(write),
        Request::Ioctl(ioctl),
        Request::Poll(Poll::new(file, a, (f % 2 == 0).then_some(PollHandle(e)))),
        Request::Release(file),
    ]
}

proptest! {
    #[test]
    fn any_bytes_decode_or_fail(bytes in vec(any::<u8>(), 0..300)) {
        let _ = codec::decode(&bytes);
    }

    #[test]
    fn anything_behind_a_header_decodes_or_fails(bytes in almost_a_message()) {
        if let Err(error) = codec::decode(&bytes) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn what_the_kernel_encodes_is_what_the_device_gets(
        data in vec(any::<u8>(), 0..100), words: [u32; 3], longs: [u64; 3], id: u64,
    ) {
        let (kernel, _server) = FakeKernel::new();
        for request in requests(&data, words, longs) {
            let bytes = kernel.bytes_of(RequestId(id), request);
            let message = codec::decode(&bytes).unwrap();
            prop_assert_eq!(message.id, RequestId(id));
            prop_assert_eq!(message.request, request);
        }
    }

    #[test]
    fn a_channel_survives_any_messages(messages in vec(almost_a_message(), 0..8)) {
        let (kernel, server) = socketpair(
            AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty(),
        ).unwrap();
        for message in messages {
            nix::unistd::write(&kernel, &message).unwrap();
        }
        shutdown(kernel.as_raw_fd(), Shutdown::Write).unwrap();
        let channel = Channel::from_fd(server, 131072);
        prop_assert!(channel.serve(&Nothing).is_ok());
    }

    #[test]
    fn the_channel_of_a_file_survives_any_messages(messages in vec(almost_a_message(), 0..8)) {
        let (mut kernel, server) = FakeKernel::new();
        kernel.send_file_init(7, 45);
        let channel = FileOptions::mount_at("/nowhere").handshake(server).unwrap();
        for message in &messages {
            kernel.send_bytes(message);
        }
        kernel.hang_up();
        prop_assert!(channel.serve(&Nothing).is_ok());
        // It would fail the test for replies that have no request.
        std::mem::forget(kernel);
    }
}
