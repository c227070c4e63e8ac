//! What the kernel accepts as a reply: `fuse_dev_do_write`, `copy_out_args` and `fuse_do_ioctl`.
//!
//! Each function fails the test for a message that the kernel would refuse, or that breaks the caller.

use zerocopy::FromBytes;

use crate::abi::{self, IoctlFlags, Opcode};
use crate::errno::Errno;
use crate::request::PollHandle;

/// The kernel keeps a page for the ranges of a retry, even where the ioctl has no output.
const PAGE: usize = 4096;

/// What the reply to a request has to look like.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expected {
    Init,
    Open,
    Read { size: u32 },
    Write { size: u32 },
    Ioctl { output_size: u32, unrestricted: bool },
    Poll,
    Exactly(usize),
    Empty,
    Error,
}

/// The error of a reply, within the range the kernel takes and without data.
#[track_caller]
pub(super) fn error(header: &abi::OutHeader, body: &[u8]) -> Option<Errno> {
    let error = header.error;
    assert!(
        (-511..=0).contains(&error),
        "fake kernel: error {error} is outside -511..=0, the caller would wait for ever"
    );
    assert!(error == 0 || body.is_empty(), "fake kernel: data after error {error}");
    (error != 0).then(|| Errno::from_number(-error))
}

/// A message without a request.
#[track_caller]
pub(super) fn notification(header: &abi::OutHeader, body: &[u8]) -> PollHandle {
    assert_eq!(
        header.error,
        abi::NOTIFY_POLL,
        "fake kernel: notification of an unknown kind, or a reply to id 0"
    );
    let wakeup = exact::<abi::NotifyPollWakeupOut>(Opcode::POLL, body);
    PollHandle(wakeup.kh)
}

/// The data of a reply to a request of the kind `opcode`.
#[track_caller]
pub(super) fn reply(opcode: Opcode, expected: Expected, error: Option<Errno>, body: &[u8]) {
    if let Some(errno) = error {
        let switches_off =
            errno == Errno::ENOSYS && matches!(expected, Expected::Open | Expected::Poll);
        assert!(!switches_off, "fake kernel: ENOSYS would switch {opcode:?} off for good");
        return;
    }
    match expected {
        Expected::Init => {
            let (init, info) = prefix::<abi::CuseInitOut>(opcode, body);
            assert_eq!(init.spare, [0; 10], "fake kernel: reserved fields of CUSE_INIT are used");
            assert!(info.len() <= abi::CUSE_INIT_INFO_MAX, "fake kernel: CUSE_INIT: info too long");
            assert_eq!(info.last(), Some(&0), "fake kernel: CUSE_INIT: info has no final NUL");
        }
        Expected::Open => {
            exact::<abi::OpenOut>(opcode, body);
        }
        Expected::Read { size } => at_most(opcode, body.len(), size),
        Expected::Write { size } => {
            let written = exact::<abi::WriteOut>(opcode, body).size;
            assert!(written <= size, "fake kernel: {written} of {size} bytes written");
        }
        Expected::Ioctl { output_size, unrestricted } => {
            let (ioctl, output) = prefix::<abi::IoctlOut>(opcode, body);
            if ioctl.flags & IoctlFlags::RETRY.bits() == 0 {
                return at_most(opcode, output.len(), output_size);
            }
            assert!(unrestricted, "fake kernel: retry of a restricted ioctl");
            let count = ioctl.in_iovs as usize + ioctl.out_iovs as usize;
            assert!(count <= abi::IOCTL_MAX_IOV, "fake kernel: retry with {count} ranges");
            assert_eq!(
                output.len(),
                count * size_of::<abi::IoctlIovec>(),
                "fake kernel: the ranges of a retry are not as many as it says"
            );
            assert!(output.len() <= PAGE.max(output_size as usize), "fake kernel: retry too long");
        }
        Expected::Poll => {
            exact::<abi::PollOut>(opcode, body);
        }
        Expected::Exactly(size) => {
            assert_eq!(body.len(), size, "fake kernel: {opcode:?}: wrong length of the reply");
        }
        Expected::Empty => at_most(opcode, body.len(), 0),
        Expected::Error => panic!("fake kernel: {opcode:?} should have failed"),
    }
}

#[track_caller]
fn at_most(opcode: Opcode, length: usize, size: u32) {
    assert!(
        length <= size as usize,
        "fake kernel: {opcode:?}: {length} bytes, {size} were asked for"
    );
}

#[track_caller]
fn exact<T: FromBytes>(opcode: Opcode, body: &[u8]) -> T {
    let (value, rest) = prefix(opcode, body);
    assert!(rest.is_empty(), "fake kernel: {opcode:?}: {} bytes too many", rest.len());
    value
}

#[track_caller]
fn prefix<T: FromBytes>(opcode: Opcode, body: &[u8]) -> (T, &[u8]) {
    T::read_from_prefix(body).unwrap_or_else(|_| {
        panic!("fake kernel: {opcode:?}: {} bytes, needs {}", body.len(), size_of::<T>())
    })
}
