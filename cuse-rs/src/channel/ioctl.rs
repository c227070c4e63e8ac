//! Ioctls of a file: the retry protocol of CUSE, played here.
//!
//! Owns the calls that are open, and the way to the memory of their callers. A device sees what it would see on
//! `/dev/cuse`.
//!
//! # Theory of operation
//!
//! On a file the kernel copies only what the command's number encodes, and allows no retry (`fuse_do_ioctl` without
//! FUSE_IOCTL_UNRESTRICTED). But the caller sleeps until the reply has come, and the message names the caller's thread. So this
//! module can read and write the caller's memory (`process_vm_rw`) as the kernel would.
//!
//! ```text
//!   run:    device.ioctl(no input) ─▶ retry(ranges) ─▶ fetch ─▶ device.ioctl(input) ─▶ ... ─▶ done or defer
//!   answer: done(result, output) ─▶ store in the ranges of the last retry ─▶ IOCTL reply without data
//! ```
//!
//! Where the kernel has copied enough, that copy is used. Then the call works even if the server may not read the caller's
//! memory.
//!
//! A caller's memory may be a mapping of this very file, or of a file whose server hangs. A thread that touches it waits until
//! that server has filled it. So another thread serves the file meanwhile ([`crew::step_aside`]).
//!
//! # Caveats
//!
//! * The kernel copies first. If a command's number says that there is input, but its argument is not an address of the caller
//!   (TUNSETPERSIST with argument 1), the caller gets EFAULT and no message comes.
//! * Memory of another user's process, or of one that is not dumpable, is closed (`__ptrace_may_access`), unless the
//!   server has CAP_SYS_PTRACE; so is that of processes which are no descendants under Yama's `ptrace_scope` 1. The caller
//!   gets EPERM then.
//! * Each caller whose memory never arrives keeps one thread. A user may keep 8, and the user's next such call gets ENOMEM. Everybody's
//!   gets it when the callers of many users have left no thread.
//! * A signal ends a call with EINTR while it waits for its input. A call that waits to store its output has had its effect already,
//!   so it waits until it can store it or the connection ends.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use super::device::Device;
use super::reply::ReplyIoctl;
use crate::abi::{self, IoctlFlags};
use crate::channel::{Channel, Report};
use crate::codec::Reply;
use crate::crew;
use crate::errno::Errno;
use crate::request::{Caller, Ioctl, RequestId, UserRange};

/// The ioctls that have no answer yet.
///
/// Invariant: a call is here from its arrival until its reply is being sent, so that it has one reply.
#[derive(Debug, Default)]
pub(super) struct Calls {
    open: Mutex<BTreeMap<RequestId, Call>>,
}

/// One ioctl.
#[derive(Debug)]
struct Call {
    caller: Caller,
    /// Where the kernel itself stores data of the reply, and how much.
    stored_by_kernel: UserRange,
    /// The output ranges of the last retry.
    output: Vec<UserRange>,
    phase: Phase,
    /// The caller got a signal while the device was being asked.
    interrupted: bool,
}

#[derive(Debug)]
enum Phase {
    /// The device is being asked; it may want a retry.
    Asked,
    /// It wants one: input and output.
    Retry(Vec<UserRange>, Vec<UserRange>),
    /// The input is being fetched for it.
    Fetching,
    /// It has answered, and the output is being stored.
    Storing,
    /// It answers later.
    Deferred,
}

impl Calls {
    /// Asks the device, round after round, until it has answered or deferred.
    pub(super) fn run<D: Device + ?Sized>(
        &self,
        channel: &Channel,
        device: &D,
        id: RequestId,
        caller: Caller,
        ioctl: Ioctl<'_>,
    ) {
        let stored_by_kernel =
            UserRange { address: ioctl.argument, length: ioctl.output_size as usize };
        let call = Call {
            caller,
            stored_by_kernel,
            output: Vec::new(),
            phase: Phase::Asked,
            interrupted: false,
        };
        self.open().insert(id, call);
        let flags = ioctl.flags | IoctlFlags::UNRESTRICTED;
        let (mut input, mut output_size) = (Vec::new(), 0);
        loop {
            let round = Ioctl { flags, input: &input, output_size, ..ioctl };
            device.ioctl(caller, round, ReplyIoctl::new(channel, id));
            let Some((from, to)) = self.take_retry(channel, id) else { return };
            let fetched =
                check(&from, &to, flags).and_then(|size| Ok((fetch(caller, &from, &ioctl)?, size)));
            match fetched {
                Ok((bytes, size)) => {
                    (input, output_size) = (bytes, size);
                    // The caller has been told of a signal meanwhile.
                    let mut open = self.open();
                    let Some(call) = open.get_mut(&id) else { return };
                    (call.phase, call.output) = (Phase::Asked, to);
                }
                Err(errno) => {
                    if self.open().remove(&id).is_some() {
                        channel.answer(id, &Reply::Error(explain(channel, caller.tid, errno)));
                    }
                    return;
                }
            }
        }
    }

    /// Sends the answer to an ioctl, from any thread; a retry is left to [`run`](Self::run).
    pub(super) fn answer(&self, channel: &Channel, id: RequestId, reply: &Reply<'_>) -> bool {
        if let Reply::Retry { input, output } = *reply {
            return self.retry(channel, id, input, output);
        }
        let Reply::Ioctl { result, output } = *reply else { return self.close(channel, id, reply) };
        if output.is_empty() {
            return self.close(channel, id, reply);
        }
        let mut open = self.open();
        let Some(call) = open.get_mut(&id) else {
            drop(open);
            return self.close(channel, id, reply);
        };
        let room: usize = call.output.iter().map(|range| range.length).sum();
        if output.len() > room {
            drop(open);
            // As fuse_do_ioctl has it.
            self.close(channel, id, &Reply::Error(Errno::EIO));
            return false;
        }
        if let [range] = call.output[..]
            && range.address == call.stored_by_kernel.address
            && output.len() <= call.stored_by_kernel.length
        {
            drop(open);
            return self.close(channel, id, reply);
        }
        call.phase = Phase::Storing;
        let (caller, ranges) = (call.caller, std::mem::take(&mut call.output));
        drop(open);
        match store(caller, &ranges, output) {
            Ok(()) => self.close(channel, id, &Reply::Ioctl { result, output: &[] }),
            Err(errno) => {
                self.close(channel, id, &Reply::Error(explain(channel, caller.tid, errno)));
                false
            }
        }
    }

    /// The caller of a call got a signal; true if that is all there is to do.
    pub(super) fn interrupt(&self, channel: &Channel, id: RequestId) -> bool {
        let mut open = self.open();
        let Some(call) = open.get_mut(&id) else { return false };
        match call.phase {
            Phase::Fetching => {
                open.remove(&id);
                drop(open);
                channel.answer(id, &Reply::Error(Errno::EINTR));
                true
            }
            Phase::Storing => true,
            // If it wants memory next it is not to wait for that; else the device may wait, and is told.
            Phase::Asked | Phase::Retry(..) => {
                call.interrupted = true;
                false
            }
            Phase::Deferred => false,
        }
    }

    /// Sends the one reply to a call.
    fn close(&self, channel: &Channel, id: RequestId, reply: &Reply<'_>) -> bool {
        let is_open = self.open().remove(&id).is_some();
        channel.answer(id, if is_open { reply } else { &Reply::Error(Errno::EIO) })
    }

    fn retry(
        &self,
        channel: &Channel,
        id: RequestId,
        input: &[UserRange],
        output: &[UserRange],
    ) -> bool {
        let mut open = self.open();
        if let Some(call) = open.get_mut(&id)
            && matches!(call.phase, Phase::Asked)
        {
            call.phase = Phase::Retry(input.to_vec(), output.to_vec());
            return true;
        }
        open.remove(&id);
        drop(open);
        tracing::warn!(id = id.0, "retry of a deferred ioctl, answering EIO");
        channel.answer(id, &Reply::Error(Errno::EIO));
        false
    }

    /// What the device wants in the next round; `None`: it has answered, or will, or the caller is not to wait for more.
    fn take_retry(
        &self,
        channel: &Channel,
        id: RequestId,
    ) -> Option<(Vec<UserRange>, Vec<UserRange>)> {
        let mut open = self.open();
        let call = open.get_mut(&id)?;
        match std::mem::replace(&mut call.phase, Phase::Deferred) {
            Phase::Retry(..) if call.interrupted => {
                open.remove(&id);
                drop(open);
                channel.answer(id, &Reply::Error(Errno::EINTR));
                None
            }
            Phase::Retry(input, output) => {
                call.phase = Phase::Fetching;
                Some((input, output))
            }
            // Answered by another thread already, which stores what is to be stored.
            Phase::Storing => {
                call.phase = Phase::Storing;
                None
            }
            Phase::Asked | Phase::Fetching | Phase::Deferred => None,
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<RequestId, Call>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `fuse_do_ioctl` wants of the ranges of a retry; returns the room for output.
fn check(input: &[UserRange], output: &[UserRange], flags: IoctlFlags) -> Result<u32, Errno> {
    if input.len().saturating_add(output.len()) > abi::IOCTL_MAX_IOV {
        return Err(Errno::ENOMEM);
    }
    let is_32_bit = |range: &UserRange| {
        u32::try_from(range.address).is_ok() && u32::try_from(range.length).is_ok()
    };
    let mut ranges = input.iter().chain(output);
    if flags.contains(IoctlFlags::COMPAT) && !ranges.all(is_32_bit) {
        return Err(Errno::EIO);
    }
    total(input)?;
    total(output)
}

/// The bytes of all ranges (`fuse_verify_ioctl_iov`).
fn total(ranges: &[UserRange]) -> Result<u32, Errno> {
    let total = ranges.iter().fold(0_usize, |sum, range| sum.saturating_add(range.length));
    let total = u32::try_from(total).map_err(|_| Errno::ENOMEM)?;
    if total > abi::MAX_DATA { Err(Errno::ENOMEM) } else { Ok(total) }
}

/// The bytes of the ranges, joined. EFAULT: not all of them can be read.
fn fetch(caller: Caller, ranges: &[UserRange], ioctl: &Ioctl<'_>) -> Result<Vec<u8>, Errno> {
    if let Some(bytes) = copied_by_kernel(ranges, ioctl) {
        return Ok(bytes);
    }
    let mut bytes = vec![0; ranges.iter().map(|range| range.length).sum()];
    if bytes.is_empty() {
        return Ok(bytes);
    }
    let remote = remote(ranges, bytes.len())?;
    may_wait(caller)?;
    let moved = process_vm_readv(thread(caller.tid)?, &mut [IoSliceMut::new(&mut bytes)], &remote)
        .map_err(Errno::of)?;
    if moved == bytes.len() { Ok(bytes) } else { Err(Errno::EFAULT) }
}

/// The bytes of the ranges, if they all lie in what came with the message.
fn copied_by_kernel(ranges: &[UserRange], ioctl: &Ioctl<'_>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for range in ranges {
        let from = usize::try_from(range.address.checked_sub(ioctl.argument)?).ok()?;
        bytes.extend_from_slice(ioctl.input.get(from..from.checked_add(range.length)?)?);
    }
    Some(bytes)
}

/// Stores `bytes` in the ranges, as far as they go. EFAULT: not all of that can be written.
fn store(caller: Caller, ranges: &[UserRange], bytes: &[u8]) -> Result<(), Errno> {
    let remote = remote(ranges, bytes.len())?;
    may_wait(caller)?;
    let moved = process_vm_writev(thread(caller.tid)?, &[IoSlice::new(bytes)], &remote)
        .map_err(Errno::of)?;
    if moved == bytes.len() { Ok(()) } else { Err(Errno::EFAULT) }
}

/// This thread may wait for whoever fills the caller's memory, while another serves. ENOMEM: there is no other, or none for this user.
fn may_wait(caller: Caller) -> Result<(), Errno> {
    if crew::step_aside(caller.uid) { Ok(()) } else { Err(Errno::ENOMEM) }
}

/// The first `length` bytes of the ranges.
fn remote(ranges: &[UserRange], mut length: usize) -> Result<Vec<RemoteIoVec>, Errno> {
    let mut remote = Vec::with_capacity(ranges.len());
    for range in ranges {
        let len = range.length.min(length);
        let base = usize::try_from(range.address).map_err(|_| Errno::EFAULT)?;
        remote.push(RemoteIoVec { base, len });
        length -= len;
    }
    Ok(remote)
}

/// The caller, if it is visible: a thread of another pid namespace has number 0.
fn thread(tid: u32) -> Result<Pid, Errno> {
    match i32::try_from(tid) {
        Ok(tid) if tid > 0 => Ok(Pid::from_raw(tid)),
        _ => Err(Errno::ESRCH),
    }
}

/// What the caller gets for an error of `process_vm_readv` or `process_vm_writev`. A reason that is none of the caller's is
/// logged once.
fn explain(channel: &Channel, tid: u32, errno: Errno) -> Errno {
    let reason = if errno == Errno::EPERM {
        "it has another user, is not dumpable, or is not a descendant under Yama's ptrace_scope; \
         run the server as that user or with CAP_SYS_PTRACE"
    } else if errno == Errno::ESRCH {
        "it is in another pid namespace"
    } else if errno == Errno::ENOSYS {
        "this kernel has no process_vm_readv (CONFIG_CROSS_MEMORY_ATTACH)"
    } else {
        return errno;
    };
    if channel.is_first(Report::Memory) {
        tracing::warn!(tid, %errno, "reading the memory of a caller of ioctl is not permitted: {reason}; answering EPERM");
    }
    Errno::EPERM
}
