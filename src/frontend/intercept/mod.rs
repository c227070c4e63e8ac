//! Calls on a file that the kernel does not pass to the file's server. A seccomp filter catches them first (`seccomp(2)`).
//!
//! Owns the filter, the process that handles what the filter catches, and the form in which a caught call reaches the device.
//! Leaves the answer to the core, as for every other call.
//!
//! # Theory of operation
//!
//! Two kinds of calls never reach the server of a FUSE file. The first are ioctls that pass a value although their number says
//! that they pass an address: `fuse_do_ioctl` reads from that address, and answers EFAULT. The second are reads and writes of
//! zero bytes: `fuse_direct_io` returns 0. A third kind reaches the server, but its answer is a file descriptor, and only the
//! interceptor can give one to the client (`network`).
//!
//! ```text
//!   client    --ioctl(fd, TUNSETPERSIST, 1)-->  seccomp filter  --notification-->  interceptor
//!   interceptor: a duplicate of the client's fd, by pidfd_getfd; is it our file?
//!             --ioctl(duplicate, carried TUNSETPERSIST, 1)-->  FUSE  -->  front end  -->  core
//!   client    <----------------- result ------------------  seccomp  <----- result -----  interceptor
//! ```
//!
//! A carried call is an ioctl whose number claims no argument, so the kernel passes on the value (`Carried`). The duplicate
//! tells the front end which open file is meant. A caught call that is not for our file goes on in the kernel unchanged. So does
//! a call whose file descriptor the interceptor may not duplicate.
//!
//! The interceptor is a process of its own, and nobody's child. It cannot be a thread of the daemon. If the daemon were killed
//! while that thread waits for its own file, the thread would keep the channel open from which its answer has to come. And the
//! interceptor must outlive the daemon: programs that stay behind keep the filter, and the kernel fails their caught calls with
//! ENOSYS once nobody listens. It ends with the last of these programs.
//!
//! DIFFERS: a read or write of zero bytes returns 0 on a character device, and on a file outside `memtun run`. The kernel does
//! not pass it to the server. The kernel's tun answers EBADFD or EINVAL.
//!
//! # Caveats
//!
//! * The kernel allows one listener for a program and all that it starts. A second one gets EBUSY: within a program under
//!   `memtun run`, or under another user of seccomp notifications.
//! * The interceptor asks the device about one call at a time. While a daemon hangs, the caught calls of all programs hang too.
//! * On a kernel without SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (before 5.19) a signal makes the client repeat a
//!   call, which does no harm with any of these.

mod filter;
mod interceptor;
mod network;

pub(crate) use self::interceptor::{InterceptError, Interceptor};
use crate::{
    abi::tun::{O_NONBLOCK, ioctl},
    core::{
        FileId, IoctlCall, Op, ReadCall, WriteCall,
        ioctl::{OWN_TYPE, disguised_values},
    },
};

/// The numbers of carried calls, where they are no ioctls; those of the tun driver begin at 200. Anybody may make them, and gets
/// what the call that they stand for gets from the kernel's own device.
const READ: u32 = 0;
const WRITE: u32 = 1;
// 2 is that of `probe`.

/// A call that is carried to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    /// `read` of zero bytes, and the `O_*` flags of the file at that time.
    Read { flags: u32 },
    /// `write` of zero bytes, likewise.
    Write { flags: u32 },
    /// `ioctl` with a value.
    Ioctl { command: u32, value: u64 },
}

impl Carried {
    /// The call that an ioctl stands for; `None`: it is an ordinary one.
    pub(super) fn decode(command: u32, argument: u64) -> Option<Self> {
        let number = ioctl::number_of(command);
        if command != encode(number) {
            return None;
        }
        let flags = filter::low(argument);
        match number {
            READ => Some(Self::Read { flags }),
            WRITE => Some(Self::Write { flags }),
            number => disguised_values()
                .find(|command| ioctl::number_of(*command) == number)
                .map(|command| Self::Ioctl { command, value: argument }),
        }
    }

    /// The ioctl that stands for it: command and argument.
    fn encode(self) -> (u32, u64) {
        match self {
            Self::Read { flags } => (encode(READ), flags.into()),
            Self::Write { flags } => (encode(WRITE), flags.into()),
            Self::Ioctl { command, value } => (encode(ioctl::number_of(command)), value),
        }
    }

    /// What the core is asked.
    pub(super) fn op(self, file: FileId) -> Op {
        let nonblock = |flags| flags & O_NONBLOCK != 0;
        match self {
            Self::Read { flags } => {
                Op::Read(file, ReadCall { limit: 0, offset: 0, nonblock: nonblock(flags) })
            }
            Self::Write { flags } => {
                let data = bytes::Bytes::new();
                Op::Write(file, WriteCall { data, offset: 0, nonblock: nonblock(flags) })
            }
            Self::Ioctl { command, value } => {
                // The width of the caller matters to structures alone; its value is extended by zeros.
                let call = IoctlCall {
                    command,
                    argument: value,
                    credentials: None,
                    compat: false,
                    input: bytes::Bytes::new(),
                    output_room: 0,
                };
                Op::Ioctl(file, call)
            }
        }
    }
}

/// `_IO`: no argument that the kernel would copy.
fn encode(number: u32) -> u32 {
    OWN_TYPE << 8 | number
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::tun::ioctl::{TUNSETIFF, TUNSETPERSIST};

    #[test]
    fn carried_calls_come_back_as_they_were() {
        let ioctls = disguised_values().map(|command| Carried::Ioctl { command, value: u64::MAX });
        let others = [Carried::Read { flags: 0x802 }, Carried::Write { flags: 2 }];
        for carried in others.into_iter().chain(ioctls) {
            let (command, argument) = carried.encode();
            assert_eq!(Carried::decode(command, argument), Some(carried));
            assert!(!ioctl::claims_input(command));
        }
    }

    #[test]
    fn other_ioctls_are_ordinary() {
        for command in
            [TUNSETPERSIST, TUNSETIFF, 0x5401, encode(2), encode(0xca), 1 << 16 | OWN_TYPE << 8]
        {
            assert_eq!(Carried::decode(command, 0), None, "{command:#x}");
        }
    }
}
