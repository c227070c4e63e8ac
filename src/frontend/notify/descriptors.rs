//! Calls that make, duplicate, change or close descriptors, and those that ask what one is.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each function treats few of the calls apart from the others"
)]

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use nix::{errno::Errno, fcntl::OFlag, libc, sys::epoll::EpollTimeout, unistd::Pid};
use tracing::warn;

use super::{
    FileState, NotifyFrontEnd, OpenFile, What,
    abi::Call,
    calls::{self, Next, Noted, fault},
    client, nonblocking,
    path::{self, Found},
    pipe::Pipe,
    status::{Form, Status},
};
use crate::{
    abi::tun::POLL_ERROR,
    core::{FileId, Op, UserRange},
    frontend::{memory, opener},
    sys::{self, seccomp::Place},
};

/// `PATH_MAX`, without the end.
const MAX_PATH: usize = 4095;
/// `FASYNC`, which libc names `O_ASYNC`.
const ASYNC: OFlag = OFlag::O_ASYNC;
/// The flags that stay with an open file.
const KEPT: OFlag =
    OFlag::O_NONBLOCK.union(OFlag::O_APPEND).union(OFlag::O_SYNC).union(OFlag::O_DSYNC);

/// A path in a call's arguments.
struct PathArgument {
    folder: Option<u32>,
    address: u64,
    follows: bool,
    resolve: u64,
}

impl NotifyFrontEnd {
    /// `open` and its relatives.
    pub(super) fn open(&self, noted: &Noted<'_>) -> Next {
        let (path, folder, flags, resolve) = match noted.call {
            Call::Open => (noted.args[0], None, noted.int(1), 0),
            Call::Creat => (noted.args[0], None, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, 0),
            Call::Openat => (noted.args[1], folder(noted.int(0)), noted.int(2), 0),
            _ => match how(noted) {
                Some((flags, resolve)) => (noted.args[1], folder(noted.int(0)), flags, resolve),
                None => return Next::Continue,
            },
        };
        let follows = flags & libc::O_NOFOLLOW == 0
            && flags & (libc::O_CREAT | libc::O_EXCL) != libc::O_CREAT | libc::O_EXCL;
        let argument = PathArgument { folder, address: path, follows, resolve };
        match self.find(noted, &argument) {
            Found::Device if flags & libc::O_PATH == 0 => self.open_device(noted, flags),
            Found::Device | Found::Opened(_) | Found::Other => Next::Continue,
        }
    }

    fn open_device(&self, noted: &Noted<'_>, flags: i32) -> Next {
        let has = |wanted| flags & wanted == wanted;
        let refused = if has(libc::O_CREAT | libc::O_EXCL) {
            Some(Errno::EEXIST)
        } else if has(libc::O_DIRECTORY) {
            Some(Errno::ENOTDIR)
        } else if has(libc::O_DIRECT) {
            Some(Errno::EINVAL)
        } else {
            None
        };
        if let Some(errno) = refused {
            return Next::Result(Err(errno));
        }
        // Names and places that are free by now are given again.
        let _known = self.close_left(EpollTimeout::ZERO);
        let (uid, gid) = opener::ids_of(noted.tid).unwrap_or((u32::MAX, u32::MAX));
        let opener = opener::look_up(noted.tid, uid, gid);
        if !noted.listener.is_waiting(noted.id) {
            return Next::Answered;
        }
        self.hub.networks().enter(opener.scope, noted.tid);
        let what = What::Open { flags };
        let op = Op::Open { flags: flags.cast_unsigned(), opener };
        self.submit(super::Asked { notification: noted.id, tid: noted.tid, what }, op);
        Next::Answered
    }

    /// The core has opened a file: its client gets a descriptor.
    pub(super) fn opened(&self, unique: u64, notification: u64, tid: u32, id: FileId, flags: i32) {
        let refused = match self.give(notification, tid, id, OFlag::from_bits_retain(flags)) {
            Ok(()) => {
                self.answered(unique, true);
                return;
            }
            Err(errno) => errno,
        };
        self.answered(unique, false);
        self.result(notification, Err(refused));
    }

    fn give(&self, notification: u64, tid: u32, id: FileId, flags: OFlag) -> Result<(), Errno> {
        let (pipe, theirs) = Pipe::new(flags & KEPT)?;
        let is_nonblocking = flags.contains(OFlag::O_NONBLOCK);
        let file = Arc::new(OpenFile {
            id,
            pipe,
            mode: (flags & OFlag::O_ACCMODE).bits(),
            nonblocking: AtomicU8::new(if is_nonblocking {
                nonblocking::ON
            } else {
                nonblocking::OFF
            }),
            turn: AtomicU64::new(0),
            state: Mutex::new(FileState::default()),
        });
        self.add(&file)?;
        // As it is before TUNSETIFF; it is looked at again when the client has it.
        file.pipe.show(POLL_ERROR, 0, false);
        self.settle(&file, false, None);
        let put = self.put(notification, tid, &theirs, 0, flags.contains(OFlag::O_CLOEXEC));
        if put.is_err() {
            self.remove(&file);
        }
        put.map(|_| ())
    }

    /// Gives a caller a descriptor at a free number of ours from one on, and answers its call with that number.
    fn put(
        &self,
        notification: u64,
        tid: u32,
        descriptor: &OwnedFd,
        least: u32,
        close_on_exec: bool,
    ) -> Result<(), Errno> {
        let listener = self.listener.get().ok_or(Errno::EIO)?;
        for number in self.numbers.from(least) {
            if self.descriptors.kind(tid, number) != Err(Errno::EBADF) {
                continue;
            }
            let place = Place { number, close_on_exec };
            match listener.put_and_answer(notification, descriptor.as_fd(), place) {
                // Its limit is lower than it was.
                Err(Errno::EBADF) => {}
                put => return put,
            }
        }
        self.told.numbers.call_once(|| {
            warn!(
                "a client has as many descriptors of the device as there are numbers for; more get EMFILE. Raise its limit ('ulimit -n'), \
                 or use --front-end fuse"
            );
        });
        Err(Errno::EMFILE)
    }

    /// What a path of a call leads to.
    fn find(&self, noted: &Noted<'_>, argument: &PathArgument) -> Found {
        let Ok(path) = memory::read_string(noted.tid, argument.address, MAX_PATH) else {
            return Found::Other;
        };
        let PathArgument { folder, follows, resolve, .. } = *argument;
        let path = OsStr::from_bytes(&path);
        match self.place.find(&path::Asked { tid: noted.tid, folder, path, follows, resolve }) {
            Found::Opened(kind) if self.file_at(kind).is_some() => Found::Device,
            found => found,
        }
    }

    /// `stat` and its relatives.
    pub(super) fn look(&self, noted: &Noted<'_>) -> Next {
        let at = |follows| (folder(noted.int(0)), noted.args[1], follows);
        let has = |argument, flag: i32| noted.int(argument) & flag != 0;
        let (folder, address, follows) = match noted.call {
            Call::Stat | Call::Stat64 | Call::Access => (None, noted.args[0], true),
            Call::Lstat | Call::Lstat64 | Call::Readlink => (None, noted.args[0], false),
            Call::Fstatat | Call::Fstatat64 => at(!has(3, libc::AT_SYMLINK_NOFOLLOW)),
            Call::Statx => at(!has(2, libc::AT_SYMLINK_NOFOLLOW)),
            Call::Faccessat2 => at(!has(3, libc::AT_SYMLINK_NOFOLLOW)),
            Call::Faccessat => at(true),
            _ => at(false),
        };
        let is_stat = matches!(noted.call, Call::Fstatat | Call::Fstatat64 | Call::Statx);
        if is_stat
            && let Some(number) = folder
            && self.is_empty_path(noted, address)
        {
            return match self.file_of(noted, number) {
                Ok(_) => self.tell(noted, if noted.call == Call::Statx { 4 } else { 2 }),
                Err(next) => next,
            };
        }
        let argument = PathArgument { folder, address, follows, resolve: 0 };
        let is_link = matches!(noted.call, Call::Readlink | Call::Readlinkat);
        let follows = follows || is_link;
        match self.find(noted, &PathArgument { follows, ..argument }) {
            Found::Device if is_link => self.read_link(noted, address, folder),
            Found::Device => match noted.call {
                Call::Access => access(noted.low(1)),
                Call::Faccessat | Call::Faccessat2 => access(noted.low(2)),
                Call::Stat | Call::Lstat | Call::Stat64 | Call::Lstat64 => self.tell(noted, 1),
                Call::Statx => self.tell(noted, 4),
                _ => self.tell(noted, 2),
            },
            Found::Opened(_) | Found::Other => Next::Continue,
        }
    }

    /// The device is no link; a link of `/proc` to it leads to its path.
    fn read_link(&self, noted: &Noted<'_>, address: u64, folder: Option<u32>) -> Next {
        let argument = PathArgument { folder, address, follows: false, resolve: 0 };
        if self.find(noted, &argument) == Found::Device {
            return Next::Result(Err(Errno::EINVAL));
        }
        let Ok(path) = memory::read_string(noted.tid, address, MAX_PATH) else {
            return Next::Continue;
        };
        let asked = path::Asked {
            tid: noted.tid,
            folder,
            path: OsStr::from_bytes(&path),
            follows: true,
            resolve: 0,
        };
        if !matches!(self.place.find(&asked), Found::Opened(_)) {
            return Next::Continue;
        }
        let to = if noted.call == Call::Readlink { 1 } else { 2 };
        let target = self.at.as_os_str().as_bytes();
        let length = target.len().min(usize::try_from(noted.int(to + 1)).unwrap_or(0));
        let range = UserRange { address: noted.args[to], length };
        let stored = memory::write(noted.tid, &[range], &[&target[..length]]);
        Next::Result(stored.map(|stored| i64::try_from(stored).unwrap_or(i64::MAX)).map_err(fault))
    }

    fn is_empty_path(&self, noted: &Noted<'_>, address: u64) -> bool {
        let flags = noted.int(if noted.call == Call::Statx { 2 } else { 3 });
        flags & libc::AT_EMPTY_PATH != 0
            && (address == 0
                || memory::read_string(noted.tid, address, MAX_PATH)
                    .is_ok_and(|path| path.is_empty()))
    }

    /// Stores what the device is at an argument.
    pub(super) fn tell(&self, noted: &Noted<'_>, argument: usize) -> Next {
        let form = match noted.call {
            Call::Fstat64 | Call::Stat64 | Call::Lstat64 | Call::Fstatat64 => Form::Stat64,
            Call::Statx => Form::Statx,
            _ => Form::Stat,
        };
        let bytes = Status::at(&self.at).bytes(form);
        let range = UserRange { address: noted.args[argument], length: bytes.len() };
        if !noted.listener.is_waiting(noted.id) {
            return Next::Answered;
        }
        match memory::write(noted.tid, &[range], &[&bytes]) {
            Ok(stored) if stored == bytes.len() => Next::Result(Ok(0)),
            Ok(_) | Err(_) => Next::Result(Err(Errno::EFAULT)),
        }
    }

    pub(super) fn of_every_file(
        &self,
        noted: &Noted<'_>,
        file: &OpenFile,
        command: u32,
        argument: u64,
    ) -> Option<Next> {
        if !calls::is_of_every_file(command) {
            return None;
        }
        let (sets_nonblocking, sets_async) =
            (u64::from(command) == libc::FIONBIO, u64::from(command) == libc::FIOASYNC);
        if sets_nonblocking || sets_async {
            let range = UserRange { address: argument, length: 4 };
            let on =
                memory::fetch(noted.tid, &[range]).map(|bytes| bytes.iter().any(|byte| *byte != 0));
            match on {
                Ok(on) if sets_nonblocking => self.set_nonblocking(file, on),
                Ok(on) => self.set_async(noted, file, on),
                Err(_) => {}
            }
        }
        Some(Next::Continue)
    }

    fn set_nonblocking(&self, file: &OpenFile, on: bool) {
        let to = if on { nonblocking::ON } else { nonblocking::OFF };
        let _unknown = file.nonblocking.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            (now != nonblocking::UNKNOWN).then_some(to)
        });
    }

    /// The process gets the signals of its file, as `tun_chr_fasync` does it.
    fn set_async(&self, noted: &Noted<'_>, file: &OpenFile, on: bool) {
        let was_on = std::mem::replace(&mut file.lock().is_async, on);
        if was_on || !on {
            return;
        }
        let process = opener::process_of(noted.tid);
        if let Some(pid) = process
            && let Ok(file) = sys::duplicate_of_thread(noted.tid, || process, noted.int(0))
        {
            let pid = Pid::from_raw(pid.cast_signed());
            let _owned = sys::set_owner(file.as_fd(), pid);
        }
    }

    pub(super) fn fcntl(&self, noted: &Noted<'_>, file: &Arc<OpenFile>) -> Next {
        let (command, argument) = (noted.int(1), noted.int(2));
        match command {
            libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => match u32::try_from(argument) {
                Ok(least) => {
                    self.duplicate_from(noted, file, least, command == libc::F_DUPFD_CLOEXEC)
                }
                Err(_) => Next::Result(Err(Errno::EINVAL)),
            },
            libc::F_GETFL => match client::flags_of(noted.tid, noted.low(0)) {
                Some(flags) => {
                    let kept = flags & !(OFlag::O_ACCMODE | OFlag::O_CLOEXEC);
                    Next::Result(Ok((kept.bits() | file.mode).into()))
                }
                None => Next::Continue,
            },
            libc::F_SETFL => {
                let flags = OFlag::from_bits_retain(argument);
                if flags.contains(OFlag::O_DIRECT) {
                    return Next::Result(Err(Errno::EINVAL));
                }
                self.set_nonblocking(file, flags.contains(OFlag::O_NONBLOCK));
                self.set_async(noted, file, flags.contains(ASYNC));
                Next::Continue
            }
            libc::F_SETPIPE_SZ | libc::F_GETPIPE_SZ => Next::Result(Err(Errno::EBADF)),
            _ => Next::Continue,
        }
    }

    /// Another descriptor of the open file behind a number: the same open file where that can be had, else one of the same pipe.
    ///
    /// DIFFERS: under `--front-end notify`, a duplicate has status flags of its own (`O_NONBLOCK`, `O_ASYNC`) where `pidfd_getfd` is
    /// forbidden, as in a container without CAP_SYS_PTRACE.
    fn duplicate(&self, noted: &Noted<'_>, number: u32, file: &OpenFile) -> Result<OwnedFd, Errno> {
        let process = || opener::process_of(noted.tid);
        if let Ok(same) = sys::duplicate_of_thread(noted.tid, process, number.cast_signed()) {
            return Ok(same);
        }
        file.nonblocking.store(nonblocking::UNKNOWN, Ordering::Relaxed);
        let flags = client::flags_of(noted.tid, number).unwrap_or(OFlag::empty());
        file.pipe.open_again(flags & KEPT)
    }

    /// `dup`, `fcntl` with F_DUPFD.
    pub(super) fn duplicate_from(
        &self,
        noted: &Noted<'_>,
        file: &Arc<OpenFile>,
        least: u32,
        close_on_exec: bool,
    ) -> Next {
        let put = self
            .duplicate(noted, noted.low(0), file)
            .and_then(|copy| self.put(noted.id, noted.tid, &copy, least, close_on_exec));
        match put {
            Ok(()) | Err(Errno::ENOENT) => Next::Answered,
            Err(errno) => Next::Result(Err(errno)),
        }
    }

    /// `dup2`, `dup3`.
    pub(super) fn duplicate_to(&self, noted: &Noted<'_>) -> Next {
        let (from, to) = (noted.low(0), noted.low(1));
        let close_on_exec = noted.call == Call::Dup3 && noted.int(2) & libc::O_CLOEXEC != 0;
        if from == to {
            return Next::Continue;
        }
        let file = match self.file_of(noted, from) {
            Ok(file) => file,
            Err(Next::Continue) => {
                // What is closed by it may be ours.
                return match self.file_of(noted, to) {
                    Ok(file) => self.close_at(noted, to, &file),
                    Err(next) => next,
                };
            }
            Err(next) => return next,
        };
        if !self.numbers.contains(to) {
            file.nonblocking.store(nonblocking::UNKNOWN, Ordering::Relaxed);
            self.told.escape.call_once(|| {
                warn!(
                    "a client has moved the device to descriptor {to}, where its calls do not reach memtun; \
                     use --front-end fuse for it, ignoring"
                );
            });
            return Next::Continue;
        }
        let copy = match self.duplicate(noted, from, &file) {
            Ok(copy) => copy,
            Err(errno) => return Next::Result(Err(errno)),
        };
        let place = Place { number: to, close_on_exec };
        match noted.listener.put_and_answer(noted.id, copy.as_fd(), place) {
            Ok(()) | Err(Errno::ENOENT) => Next::Answered,
            Err(errno) => Next::Result(Err(errno)),
        }
    }

    /// `close`: it returns when the file is closed, and what goes with it is gone.
    pub(super) fn close(&self, noted: &Noted<'_>, file: &Arc<OpenFile>) -> Next {
        self.close_at(noted, noted.low(0), file)
    }

    /// Takes the pipe from a number, which the call is about to close. So it is known whether it was the last one.
    fn close_at(&self, noted: &Noted<'_>, number: u32, file: &Arc<OpenFile>) -> Next {
        let _turn = self.lock_closing();
        if self.empty(noted, number).is_err() || !file.pipe.is_left() {
            return Next::Continue;
        }
        self.leave(file, noted.id);
        Next::Answered
    }

    /// Puts something else at a number.
    fn empty(&self, noted: &Noted<'_>, number: u32) -> Result<(), Errno> {
        let nothing = File::open("/dev/null").map_err(|_| Errno::ENOENT)?;
        noted.listener.put(noted.id, nothing.as_fd(), Place { number, close_on_exec: true })
    }

    pub(super) fn close_range(&self, noted: &Noted<'_>) -> Next {
        /// `CLOSE_RANGE_UNSHARE`, `CLOSE_RANGE_CLOEXEC`: nothing of ours is closed, or not in this table.
        const OTHERS: u32 = 6;
        if noted.low(2) & OTHERS != 0 {
            return Next::Continue;
        }
        let entries =
            fs::read_dir(format!("/proc/{}/fd", noted.tid)).into_iter().flatten().flatten();
        let numbers: Vec<u32> = entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|number| (noted.low(0)..=noted.low(1)).contains(number))
            .collect();
        for number in numbers {
            let _turn = self.lock_closing();
            if let Ok(file) = self.file_of(noted, number)
                && self.empty(noted, number).is_ok()
                && file.pipe.is_left()
            {
                self.leave(&file, 0);
            }
        }
        Next::Continue
    }

    /// What moves data between descriptors: the device can do none of it.
    pub(super) fn splice(&self, noted: &Noted<'_>) -> Next {
        let second = if matches!(noted.call, Call::Splice | Call::CopyFileRange) { 2 } else { 1 };
        let mut next = Next::Continue;
        for argument in [0, second] {
            match self.file_of(noted, noted.low(argument)) {
                Ok(_) => return Next::Result(Err(Errno::EINVAL)),
                Err(Next::Continue) => {}
                Err(other) => next = other,
            }
        }
        next
    }
}

/// `AT_FDCWD` is the working directory.
fn folder(number: i32) -> Option<u32> {
    u32::try_from(number).ok()
}

/// The arguments of `openat2`: flags, and how to resolve.
fn how(noted: &Noted<'_>) -> Option<(i32, u64)> {
    let range = UserRange { address: noted.args[2], length: 24 };
    let bytes = memory::fetch(noted.tid, &[range]).ok()?;
    let word = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    Some((i32::try_from(word(0)?).ok()?, word(16)?))
}

/// The device may be read and written, and not executed.
fn access(mode: u32) -> Next {
    let wants_execution = mode & libc::X_OK.cast_unsigned() != 0;
    Next::Result(if wants_execution { Err(Errno::EACCES) } else { Ok(0) })
}
