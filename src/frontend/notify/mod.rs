//! The device by seccomp notifications: a filter stops the program's system calls on the device, and this process answers them. It takes
//! no `/dev/fuse`, no mount and no user namespace.
//!
//! Follows `seccomp_unotify(2)`. Leaves what a call does to the core, and the waiting (`poll`, SIGIO) to the kernel ([`pipe`]).
//!
//! # Theory of operation
//!
//! ```text
//!   client  --open("/dev/net/tun")-->  filter  --notification-->  front end --> core
//!   client  <--descriptor 1023, which is a pipe--  ADDFD  <-----  front end
//!   client  --write(1023, datagram)-->  filter  --notification-->  front end: process_vm_readv --> core
//!   client  --read(1023)------------->  filter  --notification-->  front end --> core: parked
//!   harness --inject--> core --> front end: process_vm_writev, answer --> client
//! ```
//!
//! A filter sees numbers, no memory. So each `open` is notified, and its path is resolved here ([`path`]). What the client gets is put at a
//! high number ([`numbers`]), and calls are notified for those numbers alone ([`filter`]). What such a number refers to is looked at on
//! each call ([`client`]): if it is one of our pipes, the call is ours, else it goes on in the kernel.
//!
//! One thread receives notifications, another takes over when that one is held up ([`turns`]). A call that waits costs no thread: the core
//! answers it later. A third thread sees when the last client has closed a file.
//!
//! A signal ends a call that waits, and the kernel makes it again under SA_RESTART, as for the kernel's tun. This process is not told. It
//! finds out at the next call of that thread, or when it answers.
//!
//! DIFFERS: under `--front-end notify`, the device's descriptors have high numbers, not the lowest ones that are free. `/proc/PID/fd`
//! shows them as pipes. A descriptor that `dup2` moves to another number, or that a process receives by `SCM_RIGHTS` at another number, is
//! that pipe: calls on it do not reach memtun.
//!
//! # Caveats
//!
//! * The kernel allows one listener for a program and all that it starts. So `memtun run` within `memtun run` has none.
//! * To look at a client takes the right to trace it. Calls of a client that may not be looked at get EPERM on the device's numbers, and
//!   its `open` goes on in the kernel. Such is a program that is not dumpable, as after it took another user's id.
//! * Without CAP_SYS_ADMIN the program has no_new_privs: a setuid program that it starts gains nothing.

mod abi;
mod calls;
mod client;
mod descriptors;
mod filter;
mod numbers;
mod path;
mod pipe;
mod status;
mod turns;

use std::{
    collections::BTreeMap,
    error, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError, Weak,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    libc::sock_filter,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use tracing::{debug, warn};

use self::{
    client::Descriptors,
    filter::Wanted,
    numbers::Numbers,
    path::Place,
    pipe::Pipe,
    turns::{Seat, Turns},
};
use super::Registered;
use crate::{
    core::{
        FileId, IoctlCall, Op, Origin, Outcome, Reply, Request, RequestId, UserRange, WakeHandle,
        input,
    },
    frontend::memory,
    hub::{Ended, FileKind, FrontEnd, Hub},
    sys::{
        self,
        seccomp::{self, Answer, Listener, Signals},
    },
};

/// How the program is to find the device.
#[derive(Debug)]
pub(crate) struct Options {
    /// At which path.
    pub(crate) at: PathBuf,
    /// Its soft limit of descriptors.
    pub(crate) limit: u64,
    /// It may make rings (`io_uring_setup`), through which it reads and writes the pipe, not the device.
    pub(crate) allows_rings: bool,
}

/// Why there can be no notifications.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum NotifyError {
    /// The numbers of this machine's system calls are not known here.
    #[error(
        "system calls of {} are not known to memtun; use --front-end fuse",
        std::env::consts::ARCH
    )]
    Machine,
    /// Another listener is there.
    #[error(
        "the kernel allows one seccomp listener for a program, and there is one already, as within 'memtun run'; use --front-end fuse"
    )]
    Listened,
    /// The kernel has none, or a rule forbids it.
    #[error("seccomp notifications: {}; they take Linux 5.9 or later, and a container's rules may forbid them; use --front-end fuse", .0.desc())]
    Unavailable(Errno),
    /// The kernel cannot read another process's memory.
    #[error("process_vm_readv: {}; the kernel needs CONFIG_CROSS_MEMORY_ATTACH, and a container's rules may forbid it; use --front-end fuse", .0.desc())]
    Memory(Errno),
    /// No `/proc`.
    #[error("/proc/self/fd: {0}; mount /proc, or use --front-end fuse")]
    Proc(io::Error),
    /// A child, a socket.
    #[error("preparing notifications: {0}")]
    System(#[from] io::Error),
}

/// How often the harness looks whether the front end has taken all calls, before it goes on without that.
const MAX_ROUNDS: u32 = 100_000;

/// How long a child may take to try.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why there can be no notifications here. To be called while there is one thread.
///
/// # Errors
///
/// As [`NotifyError`] says.
pub(crate) fn probe() -> Result<(), NotifyError> {
    let wanted = Wanted { numbers: Numbers::below(1024), paths: true, refuses_rings: true };
    let filter = wanted.program().ok_or(NotifyError::Machine)?;
    std::fs::metadata("/proc/self/fd").map_err(NotifyError::Proc)?;
    let byte = [7_u8];
    let own = UserRange { address: byte.as_ptr() as u64, length: 1 };
    memory::fetch(std::process::id(), &[own]).map_err(NotifyError::Memory)?;
    let tried = sys::ask_in_a_child(PATIENCE, || {
        let installed = seccomp::install_without_privilege(&filter, Signals::Interrupt);
        installed.err().map_or(0, |errno| u8::try_from(errno as i32).unwrap_or(u8::MAX))
    })?;
    match tried.map(|number| Errno::from_raw(number.into())) {
        Some(Errno::UnknownErrno) => Ok(()),
        Some(Errno::EBUSY) => Err(NotifyError::Listened),
        Some(errno) => Err(NotifyError::Unavailable(errno)),
        None => Err(NotifyError::Unavailable(Errno::ETIMEDOUT)),
    }
}

/// What the program does before it begins.
#[derive(Debug)]
pub(crate) struct Entrance {
    filter: Vec<sock_filter>,
    socket: OwnedFd,
}

impl Entrance {
    /// From here on the calls of this thread, and of what it starts, are notified. Allocates nothing.
    pub(crate) fn enter(&self) -> Result<(), Errno> {
        let listener = seccomp::install_without_privilege(&self.filter, Signals::Interrupt)?;
        seccomp::send(self.socket.as_fd(), listener.as_fd())
    }
}

/// Makes the device, and what lets a program in.
///
/// # Errors
///
/// [`NotifyError::Machine`] and [`NotifyError::System`].
pub(crate) fn prepare(options: Options) -> Result<(Registered, Entrance), NotifyError> {
    let numbers = Numbers::below(options.limit);
    let has_node = FileKind::at(&options.at).is_ok_and(path::is_node);
    let wanted =
        Wanted { numbers: numbers.clone(), paths: !has_node, refuses_rings: !options.allows_rings };
    let filter = wanted.program().ok_or(NotifyError::Machine)?;
    let (ours, theirs) = UnixStream::pair()?;
    let name = options.at.display().to_string();
    let enter = move |hub: &Arc<Hub>| {
        let front_end = NotifyFrontEnd::new(hub, &options.at, numbers, ours)?;
        Some(front_end as Arc<dyn FrontEnd>)
    };
    let registered = Registered { name, path: None, identity: None, enter: Box::new(enter) };
    Ok((registered, Entrance { filter, socket: theirs.into() }))
}

/// The front end.
struct NotifyFrontEnd {
    this: Weak<Self>,
    hub: Arc<Hub>,
    origin: Origin,
    place: Place,
    at: PathBuf,
    numbers: Numbers,
    /// From which the listener comes.
    socket: Mutex<Option<UnixStream>>,
    listener: OnceLock<Listener>,
    descriptors: Descriptors,
    files: Mutex<Files>,
    /// Where pipes show that their last client has left.
    left: Option<Epoll>,
    /// Held from when a pipe loses its last client until the core knows: one thread at a time sees to that.
    closing: Mutex<()>,
    pending: Mutex<Pending>,
    last_request: AtomicU64,
    turns: Turns,
    told: Told,
}

/// What is said once.
#[derive(Debug)]
struct Told {
    escape: Once,
    numbers: Once,
    memory: Once,
}

impl Default for Told {
    fn default() -> Self {
        Self { escape: Once::new(), numbers: Once::new(), memory: Once::new() }
    }
}

/// The open files, by their pipes and by their numbers in the core.
#[derive(Debug, Default)]
struct Files {
    by_pipe: BTreeMap<(u64, u64), Arc<OpenFile>>,
    by_id: BTreeMap<FileId, Arc<OpenFile>>,
}

/// An open file of the device.
#[derive(Debug)]
struct OpenFile {
    id: FileId,
    pipe: Pipe,
    /// `O_RDONLY`, `O_WRONLY`, `O_RDWR`, or 3, which permits ioctls alone.
    mode: i32,
    nonblocking: AtomicU8,
    /// When it was last found out what is ready.
    turn: AtomicU64,
    state: Mutex<FileState>,
}

#[derive(Debug, Default)]
struct FileState {
    /// The reads that wait.
    reads: usize,
    /// No client has it open.
    is_left: bool,
    /// Room to send may change by other calls than ioctls.
    is_limited: bool,
    /// A client gets SIGIO.
    is_async: bool,
}

/// What is known of O_NONBLOCK.
mod nonblocking {
    pub(super) const OFF: u8 = 0;
    pub(super) const ON: u8 = 1;
    /// There may be several open files, or a number that is not ours.
    pub(super) const UNKNOWN: u8 = 2;
}

impl OpenFile {
    fn may_read(&self) -> bool {
        self.mode == nix::libc::O_RDONLY || self.mode == nix::libc::O_RDWR
    }

    fn may_write(&self) -> bool {
        self.mode == nix::libc::O_WRONLY || self.mode == nix::libc::O_RDWR
    }

    fn lock(&self) -> MutexGuard<'_, FileState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests that the core has not answered.
#[derive(Debug, Default)]
struct Pending {
    asked: BTreeMap<u64, Asked>,
    /// By the thread that waits: it has one call at a time.
    by_thread: BTreeMap<u32, u64>,
}

/// A request of ours.
#[derive(Debug)]
struct Asked {
    /// The call that it is for; 0: none.
    notification: u64,
    tid: u32,
    what: What,
}

/// What is done with its outcome.
#[derive(Debug)]
enum What {
    /// A client gets a descriptor.
    Open { flags: i32 },
    /// A client gets a datagram.
    Read { file: Arc<OpenFile>, ranges: Ranges },
    /// A client gets a number.
    Write { file: Arc<OpenFile> },
    /// A client gets what an ioctl stores.
    Ioctl { file: Arc<OpenFile>, call: Box<IoctlCall>, stores: UserRange },
    /// What is ready is shown; then a client gets an answer.
    Ready { file: Arc<OpenFile>, turn: u64, event: bool, then: Option<Then> },
    /// A client's `close` goes on.
    Close,
}

/// What a client gets for a request of ours.
#[derive(Clone, Copy, Debug)]
struct Then {
    request: u64,
    notification: u64,
    result: Result<i64, Errno>,
}

/// Where a client's memory is: mostly one range.
#[derive(Debug)]
enum Ranges {
    One([UserRange; 1]),
    Many(Vec<UserRange>),
}

impl Ranges {
    fn as_slice(&self) -> &[UserRange] {
        match self {
            Self::One(range) => range,
            Self::Many(ranges) => ranges,
        }
    }

    fn length(&self) -> usize {
        self.as_slice().iter().map(|range| range.length).sum()
    }
}

impl NotifyFrontEnd {
    fn new(hub: &Arc<Hub>, at: &Path, numbers: Numbers, socket: UnixStream) -> Option<Arc<Self>> {
        let left = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        let left = left.inspect_err(|errno| warn!(%errno, "no epoll, ignoring")).ok();
        let front_end = hub.add_front_end(|origin| {
            Arc::new_cyclic(|this| Self {
                this: Weak::clone(this),
                hub: Arc::clone(hub),
                origin,
                place: Place::new(at),
                at: at.to_owned(),
                numbers,
                socket: Mutex::new(Some(socket)),
                listener: OnceLock::new(),
                descriptors: Descriptors::default(),
                files: Mutex::default(),
                left,
                closing: Mutex::default(),
                pending: Mutex::default(),
                last_request: AtomicU64::new(0),
                turns: Turns::default(),
                told: Told::default(),
            })
        })?;
        hub.handle(input::ReportAnswers { origin: front_end.origin });
        Some(front_end)
    }

    /// Asks the core.
    fn submit(&self, asked: Asked, op: Op) {
        let unique = self.last_request.fetch_add(1, Ordering::Relaxed) + 1;
        self.lock_pending().add(unique, asked);
        self.hub.handle(Request { id: RequestId { origin: self.origin, unique }, op });
    }

    /// What is ready is found out and shown, then a client gets an answer.
    fn settle(&self, file: &Arc<OpenFile>, event: bool, then: Option<Then>) {
        let mut then = then;
        if file.lock().is_async
            && let Some(then) = then.take()
        {
            // The signal would interrupt the call.
            self.finish(then);
        }
        let turn = file.turn.fetch_add(1, Ordering::Relaxed) + 1;
        let what = What::Ready { file: Arc::clone(file), turn, event, then };
        // It stays armed: the kernel does not tell who waits at the pipe.
        let arm = Some(WakeHandle(file.id.0));
        let asked = Asked { notification: 0, tid: 0, what };
        self.submit(asked, Op::Poll { file: file.id, arm });
    }

    /// Answers a call, and tells the core whether its caller got that; if not, the call was never made.
    fn finish(&self, then: Then) -> bool {
        let delivered = self.result(then.notification, then.result);
        self.answered(then.request, delivered);
        delivered
    }

    fn answered(&self, unique: u64, delivered: bool) {
        let request = RequestId { origin: self.origin, unique };
        self.hub.handle(input::Answered { request, delivered });
    }

    /// Answers a call. That its caller has left meanwhile is no error.
    fn answer(&self, notification: u64, answer: &Answer) -> bool {
        if notification == 0 {
            return true;
        }
        let answered = self.listener.get().map(|listener| listener.answer(notification, answer));
        match answered {
            Some(Ok(())) => true,
            Some(Err(errno)) => {
                debug!(%errno, "a caller has left");
                false
            }
            None => false,
        }
    }

    fn result(&self, notification: u64, result: Result<i64, Errno>) -> bool {
        self.answer(notification, &Answer::Result(result))
    }

    fn file_at(&self, kind: FileKind) -> Option<Arc<OpenFile>> {
        self.lock_files().by_pipe.get(&(kind.file_system, kind.inode)).cloned()
    }

    /// Adds a file; the epoll set tells when it is left.
    fn add(&self, file: &Arc<OpenFile>) -> Result<(), Errno> {
        let left = self.left.as_ref().ok_or(Errno::EMFILE)?;
        left.add(file.pipe.as_fd(), EpollEvent::new(EpollFlags::empty(), file.id.0))?;
        let kind = file.pipe.kind;
        let mut files = self.lock_files();
        files.by_pipe.insert((kind.file_system, kind.inode), Arc::clone(file));
        files.by_id.insert(file.id, Arc::clone(file));
        Ok(())
    }

    /// Forgets a file, and says whether it was there.
    fn remove(&self, file: &OpenFile) -> bool {
        let kind = file.pipe.kind;
        let mut files = self.lock_files();
        files.by_pipe.remove(&(kind.file_system, kind.inode));
        files.by_id.remove(&file.id).is_some()
    }

    /// Closes the files that no client has open any more. Waits for such for as long as `patience` says.
    fn close_left(&self, patience: EpollTimeout) -> Result<(), Errno> {
        let Some(left) = &self.left else { return Ok(()) };
        let mut events = [EpollEvent::empty(); 32];
        loop {
            let count = match left.wait(&mut events, patience) {
                Err(Errno::EINTR) => continue,
                count => count?,
            };
            for event in &events[..count] {
                let _turn = self.lock_closing();
                let file = self.lock_files().by_id.get(&FileId(event.data())).cloned();
                if let Some(file) = file.filter(|file| file.pipe.is_left()) {
                    self.leave(&file, 0);
                }
            }
            if count < events.len() {
                // Another thread may be about to tell the core of one.
                drop(self.lock_closing());
                return Ok(());
            }
        }
    }

    /// No client has the file open: it is closed, unless reads of it still wait, as the kernel does. Then the `close` that was notified,
    /// if any, goes on.
    fn leave(&self, file: &Arc<OpenFile>, notification: u64) {
        self.forget_dead_reads(|other| other.id == file.id);
        let mut state = file.lock();
        if !std::mem::replace(&mut state.is_left, true)
            && let Some(left) = &self.left
        {
            let _forgotten = left.delete(file.pipe.as_fd());
        }
        let waits = state.reads > 0;
        drop(state);
        if waits || !self.remove(file) {
            self.answer(notification, &Answer::Continue);
            return;
        }
        self.submit(Asked { notification, tid: 0, what: What::Close }, Op::Close(file.id));
    }

    /// Cancels the reads of files whose callers have left.
    fn forget_dead_reads(&self, is_meant: impl Fn(&OpenFile) -> bool) {
        let Some(listener) = self.listener.get() else { return };
        let reads: Vec<(u64, u64)> = self
            .lock_pending()
            .asked
            .iter()
            .filter(|(_, asked)| matches!(&asked.what, What::Read { file, .. } if is_meant(file)))
            .map(|(unique, asked)| (*unique, asked.notification))
            .collect();
        for (unique, notification) in reads {
            if !listener.is_waiting(notification) {
                self.cancel(unique);
            }
        }
    }

    fn cancel(&self, unique: u64) {
        let request = RequestId { origin: self.origin, unique };
        self.hub.handle(input::Cancel { request });
    }

    /// A read has ended.
    fn end_read(&self, file: &Arc<OpenFile>) {
        let mut state = file.lock();
        state.reads = state.reads.saturating_sub(1);
        let is_over = state.is_left && state.reads == 0;
        drop(state);
        if is_over && self.remove(file) {
            self.submit(Asked { notification: 0, tid: 0, what: What::Close }, Op::Close(file.id));
        }
    }

    /// Receives notifications while it is this thread's turn.
    fn work(&self, seat: Seat) -> Result<Ended, Errno> {
        let Some(listener) = self.listener.get() else { return Ok(Ended::Left) };
        loop {
            let notification = match listener.receive() {
                Ok(notification) => notification,
                Err(Errno::ENOENT) if listener.is_left() => return Ok(Ended::Left),
                Err(Errno::EINTR | Errno::ENOENT) => continue,
                Err(errno) => return Err(errno),
            };
            if !self.turns.begin(notification.tid) {
                self.result(notification.id, Err(Errno::ENOMEM));
                continue;
            }
            self.take(listener, &notification);
            if !self.turns.end(seat) {
                return Ok(Ended::Taken);
            }
        }
    }

    /// Works until there will be no more calls, whatever thread does.
    fn work_in_turns(&self) -> Result<Ended, Errno> {
        let (told, ends) = std::sync::mpsc::channel();
        let start = |seat| {
            let (this, told) = (Weak::clone(&self.this), told.clone());
            let name = "notify".to_owned();
            let started = thread::Builder::new().name(name).spawn(move || {
                if let Some(this) = this.upgrade() {
                    let ended = this.work(seat);
                    if this.turns.has_turn(seat) {
                        this.turns.stop();
                        let _heard = told.send(ended);
                    }
                }
            });
            started.inspect_err(|error| warn!(%error, "starting a thread failed, ignoring")).is_ok()
        };
        if !start(Seat::default()) {
            return Err(Errno::EAGAIN);
        }
        self.turns.watch(start);
        ends.recv().unwrap_or(Ok(Ended::Left))
    }

    fn lock_closing(&self) -> MutexGuard<'_, ()> {
        self.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    fn add(&mut self, unique: u64, asked: Asked) {
        if asked.tid != 0 {
            self.by_thread.insert(asked.tid, unique);
        }
        self.asked.insert(unique, asked);
    }

    fn take(&mut self, unique: u64) -> Option<Asked> {
        let asked = self.asked.remove(&unique)?;
        if self.by_thread.get(&asked.tid) == Some(&unique) {
            self.by_thread.remove(&asked.tid);
        }
        Some(asked)
    }
}

impl FrontEnd for NotifyFrontEnd {
    fn serve(&self, _briskly: bool) -> Result<Ended, Box<dyn error::Error + Send + Sync>> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(socket) = socket else { return Ok(Ended::Left) };
        // The program may never begin.
        let Some(listener) = seccomp::receive_descriptor(socket.as_fd())? else {
            return Ok(Ended::Left);
        };
        let listener = Listener::new(listener);
        if !listener.wake_in_turn() {
            debug!(
                "this kernel does not let caller and answerer take turns on one CPU (Linux 6.6), ignoring"
            );
        }
        let _first = self.listener.set(listener);
        let this = Weak::clone(&self.this);
        thread::Builder::new().name("notify-left".to_owned()).spawn(move || {
            while let Some(this) = this.upgrade() {
                if let Err(errno) = this.close_left(EpollTimeout::NONE) {
                    warn!(%errno, "waiting for clients to leave failed, ignoring");
                    return;
                }
            }
        })?;
        Ok(self.work_in_turns()?)
    }

    fn complete(&self, unique: u64, outcome: Outcome) {
        let Some(asked) = self.lock_pending().take(unique) else { return };
        let Asked { notification, tid, what } = asked;
        match what {
            What::Open { flags } => match outcome {
                Ok(Reply::Opened(id)) => self.opened(unique, notification, tid, id, flags),
                outcome => {
                    let result = Err(errno_of(outcome));
                    self.finish(Then { request: unique, notification, result });
                }
            },
            What::Read { file, ranges } => {
                let result = calls::store_read(tid, &ranges, outcome);
                self.complete_read(&file, Then { request: unique, notification, result });
            }
            What::Write { file } => {
                let result = match outcome {
                    Ok(Reply::Written(count)) => Ok(i64::try_from(count).unwrap_or(i64::MAX)),
                    outcome => Err(errno_of(outcome)),
                };
                let then = Then { request: unique, notification, result };
                if file.lock().is_limited {
                    self.settle(&file, false, Some(then));
                } else {
                    self.finish(then);
                }
            }
            What::Ioctl { file, call, stores } => {
                self.complete_ioctl(unique, file, notification, tid, call, stores, outcome);
            }
            What::Ready { file, turn, event, then } => {
                if let Ok(Reply::Ready(ready)) = outcome {
                    file.pipe.show(ready, turn, event);
                }
                if let Some(then) = then
                    && !self.finish(then)
                {
                    // What it took is there again.
                    self.settle(&file, false, None);
                }
            }
            What::Close => drop(self.answer(notification, &Answer::Continue)),
        }
    }

    fn wake(&self, handle: WakeHandle) {
        let file = self.lock_files().by_id.get(&FileId(handle.0)).cloned();
        if let Some(file) = file {
            self.settle(&file, true, None);
        }
    }

    fn owns(&self, file: FileKind) -> bool {
        self.file_at(file).is_some()
    }

    /// Also what clients are asking now.
    fn catch_up(&self) -> bool {
        let mut rounds = 0_u32;
        let is_asked = |listener: &Listener| listener.is_asked() || self.turns.is_at_a_call();
        while self.listener.get().is_some_and(is_asked) && rounds < MAX_ROUNDS {
            rounds += 1;
            thread::yield_now();
        }
        self.forget_dead_reads(|_| true);
        rounds < MAX_ROUNDS && self.close_left(EpollTimeout::ZERO).is_ok()
    }

    /// The kernel answers for a listener that is gone: ENOSYS. That comes with the end of the process.
    fn stop(&self) -> bool {
        false
    }
}

/// The error of an outcome that has one; EIO for one that no such request has.
fn errno_of(outcome: Outcome) -> Errno {
    outcome.err().map_or(Errno::EIO, |errno| Errno::from_raw(errno.number()))
}
