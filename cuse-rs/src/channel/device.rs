//! The trait a device implements.
//!
//! Leaves threads, bytes and the kernel to [`Channel`](crate::Channel). A method that is left out behaves as
//! the kernel does with a driver whose `struct file_operations` lacks it.

use super::reply::{ReplyIoctl, ReplyOpen, ReplyPoll, ReplyRead, ReplyRelease, ReplyWrite};
use crate::errno::Errno;
use crate::request::{Caller, FileHandle, Ioctl, Open, Poll, Read, RequestId, Write};

/// `DEFAULT_POLLMASK` of `include/linux/poll.h`: POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM.
const DEFAULT_POLLMASK: u32 = 0x0001 | 0x0004 | 0x0040 | 0x0100;

/// A character device.
///
/// Each request comes with a token that answers it. The methods run on the threads in
/// [`Channel::serve`](crate::Channel::serve) and must not block there: a request that has to wait is
/// deferred, and answered later from wherever it can be.
pub trait Device: Send + Sync {
    /// A client opens the device. The handle of the answer names the open file from then on; `dup` and
    /// `fork` share it.
    fn open(&self, caller: Caller, open: Open, reply: ReplyOpen<'_>) {
        let _ = (caller, open);
        reply.opened(FileHandle(0));
    }

    /// A client reads. Without this method: EINVAL.
    fn read(&self, caller: Caller, read: Read, reply: ReplyRead<'_>) {
        let _ = (caller, read);
        reply.error(Errno::EINVAL);
    }

    /// A client writes. Without this method: EINVAL.
    fn write(&self, caller: Caller, write: Write<'_>, reply: ReplyWrite<'_>) {
        let _ = (caller, write);
        reply.error(Errno::EINVAL);
    }

    /// A client calls `ioctl`. Without this method: ENOTTY.
    fn ioctl(&self, caller: Caller, ioctl: Ioctl<'_>, reply: ReplyIoctl<'_>) {
        let _ = (caller, ioctl);
        reply.error(Errno::ENOTTY);
    }

    /// A client asks for readiness. Without this method the device is always ready.
    fn poll(&self, caller: Caller, poll: Poll, reply: ReplyPoll<'_>) {
        let _ = (caller, poll);
        reply.ready(DEFAULT_POLLMASK);
    }

    /// The last descriptor of an open file was closed; `close` waits for the answer, and cannot be killed
    /// meanwhile.
    fn release(&self, file: FileHandle, reply: ReplyRelease<'_>) {
        let _ = file;
        reply.done();
    }

    /// The caller of the request `target` got a signal while it waits for the answer.
    ///
    /// The device answers a deferred request at once then, with [`Errno::EINTR`] if it has nothing better;
    /// until that the caller cannot even be killed. A request that does not wait is just answered.
    ///
    /// While another thread is in the method that got the request, the channel remembers the signal, and calls this when that
    /// method has returned.
    ///
    /// Returns whether `target` is known: it has been or will be answered. With several threads in
    /// [`Channel::serve`](crate::Channel::serve) the interrupt may overtake its request; on `false` the kernel
    /// delivers it again at once, unless the request has been answered meanwhile.
    fn interrupt(&self, target: RequestId) -> bool {
        let _ = target;
        true
    }
}
