//! The only unsafe code of this package.
#![allow(unsafe_code, reason = "this is its one place")]

mod guard;
pub(crate) mod inherited;
pub(crate) mod rights;
pub(crate) mod seccomp;
mod status;
pub(crate) mod tun;

use std::{
    fs,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Child, Command},
    sync::OnceLock,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FdFlag, OFlag},
    libc,
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, dup2_stdin, fork, setsid, write},
};

pub(crate) use self::guard::Guard;
pub(crate) use self::status::FileKind;
use crate::core::ioctl::OWN_TYPE;

/// Takes over a descriptor that the kernel has just given this process, or that it was started with. To be called once with each;
/// that is why only the modules of this folder can.
fn own_received(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the callers, all of this folder, got the number from the kernel for a descriptor of this process's own, and hand it on
    // once. So nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Makes the allocator keep what is freed until [`return_freed_memory`], and take memory in larger pieces. Datagrams come and
/// go by the thousand, and returning their pages to the kernel only to have them filled with zeros again costs more than a call.
pub(crate) fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        // A thread's own arena grows by a system call for each page (grow_heap of glibc's arena.c).
        (libc::M_ARENA_MAX, 1),
        (libc::M_TRIM_THRESHOLD, i32::MAX),
        (libc::M_TOP_PAD, 1 << 20),
        // What is larger, as the buffer of each device thread, takes only the pages that are used.
        (libc::M_MMAP_THRESHOLD, 256 << 10),
    ] {
        // SAFETY: sets a number of the allocator's; it refuses what it does not like.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Returns to the kernel what has been freed, wherever it lies between what is in use. Threads that allocate meanwhile may wait.
/// Measured on a busy machine: 0.3 to 1 ms for each MiB.
pub(crate) fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: returns pages that the allocator knows to be free. What it leaves at the end is for what comes next.
    unsafe {
        libc::malloc_trim(1 << 20);
    }
}

/// How many file descriptors this process could have before [`raise_descriptors`]: the soft and the hard limit.
static DESCRIPTORS: OnceLock<(u64, u64)> = OnceLock::new();

/// Raises the limit of file descriptors as far as it goes, and returns it. Programs that are started get what was.
pub(crate) fn raise_descriptors() -> Result<u64, Errno> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Whoever comes first knows what was.
    let (_, hard) = *DESCRIPTORS.get_or_init(|| (soft, hard));
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// The soft limit of file descriptors that programs get which are started.
pub(crate) fn descriptors_of_programs() -> Result<u64, Errno> {
    match DESCRIPTORS.get() {
        Some((soft, _)) => Ok(*soft),
        None => getrlimit(Resource::RLIMIT_NOFILE).map(|(soft, _)| soft),
    }
}

/// Starts a program, with no signal blocked, that is killed when this thread ends, however it ends. Just before it begins, its process does
/// something more, which must not allocate.
pub(crate) fn spawn_dying_with_us(
    command: &mut Command,
    last: impl Fn() -> Result<(), Errno> + Send + Sync + 'static,
) -> io::Result<Child> {
    let before = DESCRIPTORS.get().copied();
    let prepare = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if let Some((soft, hard)) = before {
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        }
        SigSet::empty().thread_set_mask()?;
        Ok(last()?)
    };
    // SAFETY: between fork and exec the closure makes system calls, and touches no memory but its own stack and what `last` has. That
    // allocates nothing, by the caller's word.
    let command = unsafe { command.pre_exec(prepare) };
    command.spawn()
}

/// Forks a process that has one thread; fails if this one has several.
fn fork_alone() -> io::Result<ForkResult> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("this process has several threads"));
    }
    // SAFETY: the process has one thread, this one, so the child may do whatever this process could.
    Ok(unsafe { fork() }?)
}

/// Starts a process that is nobody's child and may outlive this one, with one descriptor, no signals and nothing else. It fails if
/// there are several threads.
pub(crate) fn detach(keep: OwnedFd, live: impl FnOnce(BorrowedFd<'_>)) -> io::Result<()> {
    let forked = fork_alone()?;
    let ForkResult::Child = forked else {
        if let ForkResult::Parent { child } = forked {
            waitpid(child, None)?;
        }
        return Ok(());
    };
    // The child's end makes its own child nobody's.
    if let Ok(ForkResult::Child) = fork_alone() {
        let _masked = SigSet::all().thread_block();
        let keep = leave_all_but(keep.as_fd());
        // It must not return into what the parent goes on with.
        let _panicked = catch_unwind(AssertUnwindSafe(|| live(keep.as_fd())));
    }
    exit_at_once()
}

/// A child leaves its session and closes every descriptor but one, which becomes its standard input. So nobody waits for the end of
/// our output, or of a channel, because of the child.
fn leave_all_but(keep: BorrowedFd<'_>) -> io::Stdin {
    let _session = setsid();
    let _stdin = dup2_stdin(keep);
    // SAFETY: closing descriptors that nothing in this process uses any more.
    unsafe { libc::close_range(1, libc::c_uint::MAX, 0) };
    io::stdin()
}

/// Has a child do what may never come to its end; `None`: it did not within this time, and is given up. It fails if there are several
/// threads.
pub(crate) fn ask_in_a_child(
    patience: Duration,
    ask: impl FnOnce() -> u8,
) -> io::Result<Option<u8>> {
    let (to_parent, to_child) = UnixStream::pair()?;
    let child = match fork_alone()? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let _killed_with_us = prctl::set_pdeathsig(Signal::SIGKILL);
            // Who waits for the end of our output is not to wait for a child that was given up.
            let to_parent = leave_all_but(to_parent.as_fd());
            // It must not return into what the parent goes on with.
            if let Ok(answer) = catch_unwind(AssertUnwindSafe(ask)) {
                let _told = write(to_parent, &[answer]);
            }
            exit_at_once()
        }
    };
    drop(to_parent);
    to_child.set_read_timeout(Some(patience))?;
    let mut answer = [0];
    match (&to_child).read_exact(&mut answer) {
        Ok(()) => {
            waitpid(child, None)?;
            Ok(Some(answer[0]))
        }
        Err(error) => {
            // It ends when it can; its remains go with this process.
            let _ended = kill(child, Signal::SIGKILL);
            if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) }
        }
    }
}

fn exit_at_once() -> ! {
    // SAFETY: ends the process without running what the parent registered to be run at its own end.
    unsafe { libc::_exit(0) }
}

/// Whether there is `close_range(2)`.
pub(crate) fn probe_close_range() -> Result<(), Errno> {
    // SAFETY: there is no such descriptor.
    let result = unsafe { libc::close_range(libc::c_uint::MAX, libc::c_uint::MAX, 0) };
    Errno::result(result).map(|_| ())
}

/// Whether there is `pidfd_getfd(2)`, and no rule against it.
pub(crate) fn probe_pidfd_getfd() -> Result<(), Errno> {
    match duplicate(-1, -1) {
        Err(errno @ (Errno::ENOSYS | Errno::EPERM)) => Err(errno),
        Err(_) | Ok(_) => Ok(()),
    }
}

/// A duplicate of a descriptor of another thread. `process`: what the thread belongs to, for kernels before 6.9 that know processes
/// alone.
pub(crate) fn duplicate_of_thread(
    tid: u32,
    process: impl FnOnce() -> Option<u32>,
    descriptor: RawFd,
) -> Result<OwnedFd, Errno> {
    // PIDFD_THREAD
    let opened = match pidfd_open(tid, OFlag::O_EXCL.bits()) {
        Err(Errno::EINVAL) => pidfd_open(process().ok_or(Errno::ESRCH)?, 0),
        opened => opened,
    };
    duplicate(opened?.as_raw_fd(), descriptor)
}

/// A descriptor of a process, which can be read once it has ended.
pub(crate) fn process_descriptor(pid: u32) -> Result<OwnedFd, Errno> {
    pidfd_open(pid, 0)
}

/// Says who gets the signals of an open file (`F_SETOWN`).
pub(crate) fn set_owner(file: BorrowedFd<'_>, process: Pid) -> Result<(), Errno> {
    // SAFETY: it takes a number.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETOWN, process.as_raw()) };
    Errno::result(result).map(|_| ())
}

/// The flags of a descriptor and of its open file; EBADF: there is none of this number.
pub(crate) fn descriptor_flags(number: RawFd) -> Result<(FdFlag, OFlag), Errno> {
    // SAFETY: it takes a number, and changes nothing.
    let flags = Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: as before.
    let status = Errno::result(unsafe { libc::fcntl(number, libc::F_GETFL) })?;
    Ok((FdFlag::from_bits_retain(flags), OFlag::from_bits_retain(status)))
}

fn pidfd_open(id: u32, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: two numbers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, id, flags) };
    received(result)
}

fn duplicate(pidfd: RawFd, descriptor: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: three numbers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, descriptor, 0) };
    received(result)
}

/// The descriptor that a system call returns.
fn received(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let descriptor = Errno::result(result)?;
    Ok(own_received(RawFd::try_from(descriptor).map_err(|_| Errno::EBADF)?))
}

/// `ioctl(2)` with a command of memtun's own, whose argument is a value.
///
/// # Panics
///
/// If the command is another.
pub(crate) fn own_ioctl(file: BorrowedFd<'_>, command: u32, value: u64) -> Result<i32, Errno> {
    assert_eq!(command >> 8, OWN_TYPE, "{command:#x} is no command of memtun's");
    // SAFETY: no driver of Linux has commands of this type (Documentation/userspace-api/ioctl/ioctl-number.rst), and memtun takes a
    // value with them, no address.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), command.into(), value) };
    Errno::result(result)
}

/// The user namespace that another namespace belongs to. `EPERM`: one that is not this process's, nor below it.
pub(crate) fn users_of_namespace(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    related_namespace(namespace, libc::NS_GET_USERNS)
}

/// The user namespace above another. `EPERM`, likewise.
pub(crate) fn parent_of_namespace(users: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    related_namespace(users, libc::NS_GET_PARENT)
}

/// The user who made a user namespace, as this process's namespace knows them; the overflow id if it does not.
pub(crate) fn owner_of_namespace(users: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut uid = u32::MAX;
    // SAFETY: the command writes a `uid_t`, and `uid` is one.
    let result = unsafe { libc::ioctl(users.as_raw_fd(), libc::NS_GET_OWNER_UID, &raw mut uid) };
    Errno::result(result).map(|_| uid)
}

fn related_namespace(namespace: BorrowedFd<'_>, command: libc::Ioctl) -> Result<OwnedFd, Errno> {
    // SAFETY: the command takes no argument.
    let result = unsafe { libc::ioctl(namespace.as_raw_fd(), command) };
    received(result.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_with_several_threads_does_not_fork() {
        std::thread::scope(|scope| {
            let (go_on, gone_on) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || gone_on.recv());
            let asked = ask_in_a_child(Duration::from_secs(1), || 7);
            assert!(asked.unwrap_err().to_string().contains("several threads"));
            drop(go_on);
        });
    }
}
