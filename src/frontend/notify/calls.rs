//! What a notification asks, and the calls that move data.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each function treats few of the calls apart from the others"
)]

use std::{
    os::fd::AsFd,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use nix::{errno::Errno, fcntl::OFlag, libc};

use super::{
    Asked, NotifyFrontEnd, OpenFile, Ranges, Then, What,
    abi::{Abi, Call},
    client, nonblocking,
};
use crate::{
    abi::tun::{
        POLL_WRITABLE,
        ioctl::{SIOCGSKNS, TUNGETDEVNETNS, TUNSETIFF, TUNSETQUEUE, TUNSETSNDBUF},
    },
    core::{FileId, IoctlCall, Op, Outcome, ReadCall, Reply, Scope, UserRange, WriteCall},
    frontend::{memory, opener},
    netns::Network,
    sys::seccomp::{Answer, Listener, Notification},
};

/// `MAX_RW_COUNT`: what the kernel moves at most in one call.
const MAX_COUNT: usize = 0x7fff_f000;
/// The kernel takes a datagram in one piece of memory (`KMALLOC_MAX_SIZE`), beside what it adds.
const LARGEST: usize = (4 << 20) - 512;
/// `UIO_MAXIOV`.
const MAX_PIECES: u64 = 1024;

/// A call that is being looked at.
#[derive(Clone, Copy)]
pub(super) struct Noted<'a> {
    pub(super) listener: &'a Listener,
    pub(super) id: u64,
    pub(super) tid: u32,
    pub(super) abi: &'a Abi,
    pub(super) call: Call,
    pub(super) args: &'a [u64; 6],
}

impl Noted<'_> {
    /// An argument that the kernel takes the low half of.
    pub(super) fn low(&self, argument: usize) -> u32 {
        let [a, b, c, d, ..] = self.args[argument].to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    pub(super) fn int(&self, argument: usize) -> i32 {
        self.low(argument).cast_signed()
    }
}

/// How a transfer is asked for.
#[derive(Clone, Copy)]
struct Transfer {
    reads: bool,
    is_vector: bool,
    has_offset: bool,
    has_flags: bool,
}

impl Transfer {
    fn of(call: Call) -> Option<Self> {
        let of = |reads, is_vector, has_offset, has_flags| {
            Some(Self { reads, is_vector, has_offset, has_flags })
        };
        match call {
            Call::Read => of(true, false, false, false),
            Call::Write => of(false, false, false, false),
            Call::Readv => of(true, true, false, false),
            Call::Writev => of(false, true, false, false),
            Call::Pread => of(true, false, true, false),
            Call::Pwrite => of(false, false, true, false),
            Call::Preadv => of(true, true, true, false),
            Call::Pwritev => of(false, true, true, false),
            Call::Preadv2 => of(true, true, true, true),
            Call::Pwritev2 => of(false, true, true, true),
            _ => None,
        }
    }
}

impl NotifyFrontEnd {
    /// Answers a call, now or later.
    pub(super) fn take(&self, listener: &Listener, notification: &Notification) {
        let Notification { id, tid, call: data } = notification;
        let abi = Abi::of(data.arch);
        let call = abi.and_then(|abi| Some((abi, abi.call(data.nr)?)));
        let Some((abi, call)) = call else {
            self.answer(*id, &Answer::Continue);
            return;
        };
        self.forget_earlier(*tid);
        let noted = Noted { listener, id: *id, tid: *tid, abi, call, args: &data.args };
        let result = match call {
            Call::Open | Call::Openat | Call::Openat2 | Call::Creat => self.open(&noted),
            Call::Stat
            | Call::Lstat
            | Call::Stat64
            | Call::Lstat64
            | Call::Fstatat
            | Call::Fstatat64
            | Call::Statx
            | Call::Access
            | Call::Faccessat
            | Call::Faccessat2
            | Call::Readlink
            | Call::Readlinkat => self.look(&noted),
            Call::CloseRange => self.close_range(&noted),
            Call::Dup2 | Call::Dup3 => self.duplicate_to(&noted),
            Call::Splice | Call::Tee | Call::Sendfile | Call::CopyFileRange => self.splice(&noted),
            _ => self.on_file(&noted),
        };
        match result {
            Next::Answered => {}
            Next::Continue => drop(self.answer(*id, &Answer::Continue)),
            Next::Result(result) => drop(self.result(*id, result)),
        }
    }

    /// What the thread asked before has no caller any more.
    fn forget_earlier(&self, tid: u32) {
        let earlier = self.lock_pending().by_thread.get(&tid).copied();
        if let Some(unique) = earlier {
            self.cancel(unique);
        }
    }

    /// The file that a descriptor of the caller refers to. `Err`: what becomes of the call otherwise.
    pub(super) fn file_of(&self, noted: &Noted<'_>, number: u32) -> Result<Arc<OpenFile>, Next> {
        if !self.numbers.contains(number) {
            return Err(Next::Continue);
        }
        match self.descriptors.kind(noted.tid, number) {
            Ok(kind) => self.file_at(kind).ok_or(Next::Continue),
            Err(Errno::EACCES | Errno::EPERM) if self.has_files() => {
                self.told.memory.call_once(|| {
                    tracing::warn!(
                        tid = noted.tid,
                        "a client may not be looked at (another user's, or not dumpable): its calls on the device get EPERM; \
                         use --front-end fuse for it"
                    );
                });
                Err(Next::Result(Err(Errno::EPERM)))
            }
            Err(_) => Err(Next::Continue),
        }
    }

    fn has_files(&self) -> bool {
        !self.lock_files().by_id.is_empty()
    }

    /// A call on one descriptor.
    fn on_file(&self, noted: &Noted<'_>) -> Next {
        let file = match self.file_of(noted, noted.low(0)) {
            Ok(file) => file,
            Err(next) => return next,
        };
        match noted.call {
            Call::Ioctl => self.ioctl(noted, &file),
            Call::Fcntl => self.fcntl(noted, &file),
            Call::Close => self.close(noted, &file),
            Call::Dup => self.duplicate_from(noted, &file, 0, false),
            Call::Fstat | Call::Fstat64 => self.tell(noted, 1),
            Call::Fallocate => Next::Result(Err(fallocate(noted, &file))),
            Call::Vmsplice => Next::Result(Err(Errno::EBADF)),
            _ => match Transfer::of(noted.call) {
                Some(transfer) => self.transfer(noted, &file, transfer),
                None => Next::Continue,
            },
        }
    }

    fn transfer(&self, noted: &Noted<'_>, file: &Arc<OpenFile>, transfer: Transfer) -> Next {
        match self.try_transfer(noted, file, transfer) {
            Ok(next) => next,
            Err(errno) => Next::Result(Err(errno)),
        }
    }

    fn try_transfer(
        &self,
        noted: &Noted<'_>,
        file: &Arc<OpenFile>,
        transfer: Transfer,
    ) -> Result<Next, Errno> {
        if transfer.has_offset && !has_good_offset(noted, transfer) {
            return Err(Errno::EINVAL);
        }
        if !(if transfer.reads { file.may_read() } else { file.may_write() }) {
            return Err(Errno::EBADF);
        }
        let ranges = if transfer.is_vector {
            let ranges = vector(noted)?;
            if ranges.length() == 0 {
                // The kernel does not ask the driver then.
                return Ok(Next::Result(Ok(0)));
            }
            ranges
        } else {
            let length = usize::try_from(noted.args[2]).map_err(|_| Errno::EFAULT)?;
            check(noted, noted.args[1], length)?;
            let length = length.min(MAX_COUNT);
            Ranges::One([UserRange { address: noted.args[1], length }])
        };
        let mut nonblock = self.is_nonblocking(noted, file);
        if transfer.has_flags {
            nonblock |= nonblocking_by(noted.abi.flags_after_offset(noted.args))?;
        }
        let length = ranges.length();
        if !transfer.reads {
            if length > LARGEST {
                return Err(Errno::ENOBUFS);
            }
            let data = Bytes::from(memory::fetch(noted.tid, ranges.as_slice()).map_err(fault)?);
            if !noted.listener.is_waiting(noted.id) {
                return Ok(Next::Answered);
            }
            let what = What::Write { file: Arc::clone(file) };
            let call = WriteCall { data, offset: 0, nonblock };
            self.submit(noted.asked(what), Op::Write(file.id, call));
            return Ok(Next::Answered);
        }
        if !noted.listener.is_waiting(noted.id) {
            return Ok(Next::Answered);
        }
        file.lock().reads += 1;
        let what = What::Read { file: Arc::clone(file), ranges };
        let call = ReadCall { limit: length, offset: 0, nonblock };
        self.submit(noted.asked(what), Op::Read(file.id, call));
        Ok(Next::Answered)
    }

    fn is_nonblocking(&self, noted: &Noted<'_>, file: &OpenFile) -> bool {
        match file.nonblocking.load(Ordering::Relaxed) {
            nonblocking::UNKNOWN => client::flags_of(noted.tid, noted.low(0))
                .is_some_and(|flags| flags.contains(OFlag::O_NONBLOCK)),
            known => known == nonblocking::ON,
        }
    }

    pub(super) fn complete_read(&self, file: &Arc<OpenFile>, then: Then) {
        if file.pipe.is_readable() {
            self.settle(file, false, Some(then));
        } else if !self.finish(then) {
            self.settle(file, false, None);
        }
        self.end_read(file);
    }

    fn ioctl(&self, noted: &Noted<'_>, file: &Arc<OpenFile>) -> Next {
        let command = noted.low(1);
        let argument =
            if noted.abi.is_compat { noted.args[2] & 0xffff_ffff } else { noted.args[2] };
        if let Some(next) = self.of_every_file(noted, file, command, argument) {
            return next;
        }
        if command == SIOCGSKNS || command == TUNGETDEVNETNS {
            return self.network(noted, file, command);
        }
        let call = IoctlCall {
            command,
            argument,
            compat: noted.abi.is_compat,
            credentials: None,
            input: Bytes::new(),
            output_room: 0,
        };
        self.ask_ioctl(noted.id, noted.tid, Arc::clone(file), Box::new(call), UserRange::default());
        Next::Answered
    }

    fn ask_ioctl(
        &self,
        notification: u64,
        tid: u32,
        file: Arc<OpenFile>,
        mut call: Box<IoctlCall>,
        stores: UserRange,
    ) {
        if call.command == TUNSETIFF && !call.input.is_empty() {
            // A name that is free by now is given.
            let _known = self.close_left(nix::sys::epoll::EpollTimeout::ZERO);
            let scope = self.hub.view(|core| core.asks_who_attaches(file.id));
            call.credentials = scope.map(|scope| {
                let (uid, gid) = opener::ids_of(tid).unwrap_or((u32::MAX, u32::MAX));
                let network = self.hub.networks().find(scope);
                Box::new(opener::credentials(tid, uid, gid, network.as_deref()))
            });
        }
        let (id, op) = (file.id, (*call).clone());
        let what = What::Ioctl { file, call, stores };
        self.submit(Asked { notification, tid, what }, Op::Ioctl(id, op));
    }

    #[expect(clippy::too_many_arguments, reason = "all that is known of the call")]
    pub(super) fn complete_ioctl(
        &self,
        request: u64,
        file: Arc<OpenFile>,
        notification: u64,
        tid: u32,
        mut call: Box<IoctlCall>,
        stores: UserRange,
        outcome: Outcome,
    ) {
        let result = match outcome {
            Ok(Reply::Fetch { input, output }) => match memory::fetch(tid, &input) {
                Ok(bytes) => {
                    call.input = bytes.into();
                    call.output_room = output.length;
                    self.ask_ioctl(notification, tid, file, call, output);
                    return;
                }
                Err(errno) => Err(fault(errno)),
            },
            Ok(Reply::Ioctl { result, output }) => {
                let bytes = output.as_bytes();
                memory::store(tid, stores.address, bytes).map(|()| result.into()).map_err(fault)
            }
            outcome => Err(super::errno_of(outcome)),
        };
        if call.command == TUNSETSNDBUF && result.is_ok() {
            file.lock().is_limited = true;
        }
        let then = Then { request, notification, result };
        if call.command != TUNSETIFF && call.command != TUNSETQUEUE {
            self.settle(&file, false, Some(then));
            return;
        }
        // The file is attached when the client has the answer, and may look at once.
        if result.is_ok() {
            let turn = file.turn.fetch_add(1, Ordering::Relaxed) + 1;
            file.pipe.show(POLL_WRITABLE, turn, false);
        }
        self.finish(then);
        self.settle(&file, false, None);
    }

    /// A descriptor of a network namespace, for whoever has CAP_NET_ADMIN there.
    fn network(&self, noted: &Noted<'_>, file: &OpenFile, command: u32) -> Next {
        let wanted = self.hub.view(|core| network_of(core, file.id, command));
        let scope = match wanted {
            Ok(scope) => scope,
            Err(errno) => return Next::Result(Err(errno)),
        };
        let network = self.hub.networks().find(scope);
        let is_admin =
            |network: &Network| opener::credentials(noted.tid, 0, 0, Some(network)).net_admin;
        match network
            .filter(|network| is_admin(network))
            .and_then(|network| network.as_fd().try_clone_to_owned().ok())
        {
            Some(descriptor) => {
                self.answer(noted.id, &Answer::Descriptor(descriptor));
                Next::Answered
            }
            None => Next::Result(Err(Errno::EPERM)),
        }
    }
}

fn network_of(core: &crate::core::Core, file: FileId, command: u32) -> Result<Scope, Errno> {
    let file = core.file(file).ok_or(Errno::EBADF)?;
    if command == SIOCGSKNS {
        return Ok(file.opener().scope);
    }
    let tunnel = file.tunnel().and_then(|tunnel| core.tunnel(tunnel));
    tunnel.map(|tunnel| tunnel.scope()).ok_or(Errno::EBADFD)
}

impl Noted<'_> {
    fn asked(&self, what: What) -> Asked {
        Asked { notification: self.id, tid: self.tid, what }
    }
}

/// What becomes of a call.
pub(super) enum Next {
    /// It has an answer, or will have one.
    Answered,
    /// The kernel goes on.
    Continue,
    /// It is over.
    Result(Result<i64, Errno>),
}

/// Stores what was read, as `tun_put_user` does: the headers must be stored, of the datagram what can be.
pub(super) fn store_read(tid: u32, ranges: &Ranges, outcome: Outcome) -> Result<i64, Errno> {
    let (head, body) = match outcome {
        Ok(Reply::Read { head, body }) => (head, body),
        outcome => return Err(super::errno_of(outcome)),
    };
    let (head, length) = (head.as_bytes(), head.as_bytes().len() + body.len());
    match memory::write(tid, ranges.as_slice(), &[head, &body]) {
        Ok(stored) if stored < head.len() => Err(Errno::EFAULT),
        Err(_) if !head.is_empty() => Err(Errno::EFAULT),
        Ok(_) | Err(_) => Ok(i64::try_from(length).unwrap_or(i64::MAX)),
    }
}

/// What the client gets for an error of looking at its memory.
pub(super) fn fault(_: Errno) -> Errno {
    Errno::EFAULT
}

/// `access_ok`, and what the kernel says of a length that is negative.
fn check(noted: &Noted<'_>, address: u64, length: usize) -> Result<(), Errno> {
    if noted.abi.is_compat {
        // The length has 32 bits, and so has its sign.
        return if length > 0x7fff_ffff { Err(Errno::EINVAL) } else { Ok(()) };
    }
    if length > isize::MAX.unsigned_abs() {
        return Err(Errno::EINVAL);
    }
    let end = address.checked_add(length as u64);
    if end.is_none_or(|end| end > 1 << 63) { Err(Errno::EFAULT) } else { Ok(()) }
}

/// The pieces of a vector (`import_iovec`).
fn vector(noted: &Noted<'_>) -> Result<Ranges, Errno> {
    let count = noted.args[2];
    if count > MAX_PIECES {
        return Err(Errno::EINVAL);
    }
    let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
    let word = if noted.abi.is_compat { 4 } else { 8 };
    let whole = UserRange { address: noted.args[1], length: count * 2 * word };
    let bytes = memory::fetch(noted.tid, &[whole]).map_err(fault)?;
    let number = |bytes: &[u8]| {
        let mut number = [0; 8];
        number[..word].copy_from_slice(bytes);
        u64::from_le_bytes(number)
    };
    let mut left = MAX_COUNT;
    let mut ranges = Vec::with_capacity(count);
    for piece in bytes.chunks_exact(2 * word) {
        let (address, length) = (number(&piece[..word]), number(&piece[word..]));
        let length = usize::try_from(length).map_err(|_| Errno::EINVAL)?;
        check(noted, address, length)?;
        let length = length.min(left);
        left -= length;
        if length > 0 {
            ranges.push(UserRange { address, length });
        }
    }
    Ok(Ranges::Many(ranges))
}

/// Whether the offset is one that the kernel takes; the device has no use for it.
fn has_good_offset(noted: &Noted<'_>, transfer: Transfer) -> bool {
    let offset = noted.abi.offset(noted.args);
    // The second versions take -1 for the file's own.
    offset >= 0 || transfer.has_flags && offset == -1
}

/// Whether flags of `preadv2` say that the call must not wait (`kiocb_set_rw_flags`).
fn nonblocking_by(flags: u64) -> Result<bool, Errno> {
    /// `RWF_HIPRI`, `RWF_DSYNC`, `RWF_SYNC`, `RWF_NOWAIT`, `RWF_APPEND`, `RWF_NOAPPEND`.
    const KNOWN: u64 = 0x3f;
    const NOWAIT: u64 = 8;
    if flags & 0xffff_ffff & !KNOWN != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(flags & NOWAIT != 0)
}

/// `vfs_fallocate` on a character device.
fn fallocate(noted: &Noted<'_>, file: &OpenFile) -> Errno {
    /// `FALLOC_FL_SUPPORTED_MASK`.
    const KNOWN: u32 = 0xfb;
    let (offset, length) = if noted.abi.is_compat {
        (noted.args[2] | noted.args[3] << 32, noted.args[4] | noted.args[5] << 32)
    } else {
        (noted.args[2], noted.args[3])
    };
    if offset.cast_signed() < 0 || length.cast_signed() <= 0 {
        Errno::EINVAL
    } else if noted.low(1) & !KNOWN != 0 {
        Errno::EOPNOTSUPP
    } else if file.may_write() {
        Errno::ENODEV
    } else {
        Errno::EBADF
    }
}

/// What each file knows (`do_vfs_ioctl`): the kernel does it on the pipe as on the device.
pub(super) fn is_of_every_file(command: u32) -> bool {
    // FIFREEZE, FITHAW, FS_IOC_FIEMAP, FIGETBSZ, FICLONE, FICLONERANGE, FIDEDUPERANGE
    [0xc004_5877, 0xc004_5878, 0xc020_660b, 2, 0x4004_9409, 0x4020_940d, 0xc018_9436]
        .contains(&command)
        || [libc::FIOCLEX, libc::FIONCLEX, libc::FIONBIO, libc::FIOASYNC, libc::FIOQSIZE]
            .contains(&command.into())
}
