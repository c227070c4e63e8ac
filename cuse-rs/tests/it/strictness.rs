//! The fake kernel itself: it fails a test for what the real one refuses.

use std::os::fd::OwnedFd;

use cuse_rs::RequestId;
use cuse_rs::fake::FakeKernel;

/// A kernel with one read of 4 bytes on its way, and the server's descriptor.
fn reading() -> (FakeKernel, OwnedFd, RequestId) {
    let (mut kernel, server) = FakeKernel::new();
    let read = kernel.send_read(cuse_rs::FileHandle(0), 4, 0);
    (kernel, server, read)
}

/// A server's message.
fn reply(server: &OwnedFd, length: u32, error: i32, id: u64, body: &[u8]) {
    let header =
        [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &id.to_ne_bytes(), body].concat();
    nix::unistd::write(server, &header).expect("the kernel takes a message");
}

#[test]
fn a_proper_reply_passes() {
    let (mut kernel, server, read) = reading();
    reply(&server, 20, 0, read.0, b"data");
    assert_eq!(kernel.wait(read), Ok(b"data".to_vec()));
    kernel.finish();
}

#[test]
#[should_panic(expected = "is not the length of the message")]
fn a_wrong_length() {
    let (mut kernel, server, read) = reading();
    reply(&server, 21, 0, read.0, b"data");
    let _ = kernel.wait(read);
}

#[test]
#[should_panic(expected = "5 bytes, 4 were asked for")]
fn too_much_data() {
    let (mut kernel, server, read) = reading();
    reply(&server, 21, 0, read.0, b"data+");
    let _ = kernel.wait(read);
}

#[test]
#[should_panic(expected = "a second reply to RequestId(2)")]
fn a_second_reply() {
    let (kernel, server, read) = reading();
    reply(&server, 16, 0, read.0, b"");
    reply(&server, 16, 0, read.0, b"");
    kernel.finish();
}

#[test]
#[should_panic(expected = "a reply to unknown RequestId(4)")]
fn a_reply_to_nothing() {
    let (kernel, server, read) = reading();
    reply(&server, 16, 0, read.0 + 2, b"");
    kernel.finish();
}

#[test]
#[should_panic(expected = "a reply to unknown")]
fn a_reply_before_the_handshake() {
    let (kernel, server) = FakeKernel::new();
    reply(&server, 16, 0, 2, b"");
    kernel.finish();
}

#[test]
#[should_panic(expected = "error -512 is outside -511..=0")]
fn an_error_out_of_range() {
    let (mut kernel, server, read) = reading();
    reply(&server, 16, -512, read.0, b"");
    let _ = kernel.wait(read);
}

#[test]
#[should_panic(expected = "error 5 is outside -511..=0")]
fn an_error_that_is_positive() {
    let (mut kernel, server, read) = reading();
    reply(&server, 16, 5, read.0, b"");
    let _ = kernel.wait(read);
}

#[test]
#[should_panic(expected = "data after error -5")]
fn an_error_with_data() {
    let (mut kernel, server, read) = reading();
    reply(&server, 17, -5, read.0, b"x");
    let _ = kernel.wait(read);
}

#[test]
#[should_panic(expected = "would switch interrupts off")]
fn interrupts_not_supported() {
    let (mut kernel, server, read) = reading();
    reply(&server, 16, -38, read.0 | 1, b"");
    let _ = kernel.wait(read);
}

#[test]
#[should_panic(expected = "never answered")]
fn a_request_that_is_not_answered() {
    let (kernel, _server, _) = reading();
    kernel.finish();
}

#[test]
#[should_panic(expected = "no message while waiting for a reply to READ 2")]
fn a_deadline() {
    let (mut kernel, _server, read) = reading();
    kernel.set_deadline(std::time::Duration::from_millis(1));
    let _ = kernel.wait(read);
}
