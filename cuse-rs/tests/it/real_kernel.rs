//! The same device on a real kernel. Needs access to `/dev/cuse`; each test says `SKIP: why` without it.
#![allow(unsafe_code, reason = "ioctl(2) is called as a client calls it")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::{process, thread};

use cuse_rs::cuse::{DeviceOptions, RegisterError, Registration};
use cuse_rs::{Caller, Device, Errno, Read, ReplyRead};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{major, minor};
use nix::unistd::Pid;

use crate::device::{INCREMENT, PLUS_ONE, Queue};

nix::ioctl_write_int_bad!(plus_one, PLUS_ONE);
nix::ioctl_write_int_bad!(increment_at, INCREMENT);
nix::ioctl_readwrite_bad!(increment, INCREMENT, [u8; 8]);

const BLOCKING: i32 = 0;
const O_NONBLOCK: i32 = 0o4000;

fn options(what: &str) -> DeviceOptions {
    DeviceOptions::new(format!("cuse-rs-{what}-{}", process::id()).parse().expect("a valid name"))
}

/// Registers a device, or says why the test cannot run.
fn register(options: DeviceOptions) -> Option<Registration> {
    match options.register() {
        Err(error @ RegisterError::Open { .. }) => {
            // Past the capture of the test runner, since a test that is skipped passes.
            writeln!(io::stdout(), "SKIP: {error}").expect("standard output is open");
            None
        }
        registration => Some(registration.expect("the device registers")),
    }
}

/// Serves a queue on two threads while `script` acts as its clients.
fn with_queue(what: &str, script: impl FnOnce(&Queue, &Registration, &Path)) {
    let Some(registration) = register(options(what).mode(0o666)) else { return };
    let channel = Arc::clone(registration.channel());
    let queue = Queue::new(&channel);
    thread::scope(|scope| {
        // The registration moves in here: a script that panics drops it, which ends the servers.
        let registration = registration;
        let serve = || channel.serve(&queue);
        let servers = [scope.spawn(serve), scope.spawn(serve)];
        let node = registration.node().expect("a node with a name of its own").to_owned();
        script(&queue, &registration, &node);
        registration.stop().expect("an orderly end");
        for server in servers {
            server.join().expect("no panic").expect("serve ends in order");
        }
    });
}

fn open(node: &Path, flags: i32) -> File {
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(node);
    file.expect("the device opens")
}

fn read(mut file: &File, size: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; size];
    let size = file.read(&mut buffer)?;
    buffer.truncate(size);
    Ok(buffer)
}

fn errno<T>(result: io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw)
}

#[test]
fn a_device_comes_and_goes() {
    let options = options("node").mode(0o640).owner(Some(1), Some(2));
    let sysfs = options.name().sysfs_path();
    let Some(registration) = register(options) else { return };
    let node = registration.node().unwrap().to_owned();
    let metadata = fs::metadata(&node).unwrap();
    assert!(metadata.file_type().is_char_device());
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    assert_eq!((metadata.uid(), metadata.gid()), (1, 2));
    let number = registration.device_number();
    assert_eq!(
        (major(metadata.rdev()), minor(metadata.rdev())),
        (number.0.into(), number.1.into())
    );
    assert!(sysfs.exists());
    registration.unregister().unwrap();
    assert!(!node.exists());
    assert!(!sysfs.exists());
}

#[test]
fn a_name_may_have_a_slash() {
    let name = format!("cuse-rs-{}/tunx", process::id());
    let options = DeviceOptions::new(name.parse().unwrap());
    let Some(registration) = register(options) else { return };
    assert_eq!(registration.node(), Some(Path::new("/dev").join(&name).as_path()));
    drop(registration);
    assert!(!Path::new("/dev").join(&name).exists());
}

#[test]
fn names_and_numbers_that_are_taken() {
    let Some(registration) = register(options("taken")) else { return };
    let error = options("taken").register().unwrap_err();
    assert!(matches!(error, RegisterError::NameTaken { .. }), "{error}");
    let (major, minor) = registration.device_number();
    for (major, minor) in [(major, minor), (10, 200)] {
        let error = options("number").number(major, minor).register().unwrap_err();
        assert!(matches!(error, RegisterError::NumberTaken { .. }), "{error}");
    }
}

#[test]
fn a_number_that_is_asked_for() {
    let Some(registration) = register(options("number-240").number(240, 77)) else { return };
    assert_eq!(registration.device_number(), (240, 77));
}

#[test]
fn a_path_that_is_taken_gives_no_node() {
    let full = fs::metadata("/dev/full").map(|metadata| metadata.rdev()).unwrap();
    let options = DeviceOptions::new("full".parse().unwrap()).mode(0o600);
    let Some(registration) = register(options) else { return };
    assert_eq!(registration.node(), None);
    assert!(registration.device_number().0 > 0);
    registration.unregister().unwrap();
    assert_eq!(fs::metadata("/dev/full").unwrap().rdev(), full);
}

#[test]
fn messages_pass_and_empty_reads_wait() {
    with_queue("messages", |queue, _, node| {
        let file = open(node, BLOCKING);
        (&file).write_all(b"one").unwrap();
        (&file).write_all(b"two").unwrap();
        assert_eq!(read(&file, 64).unwrap(), b"one");
        assert_eq!(read(&file, 2).unwrap(), b"tw");
        thread::scope(|scope| {
            let reader = scope.spawn(|| read(&file, 64));
            queue.wait_until("the read is parked", |state| state.parked.len() == 1);
            (&file).write_all(b"three").unwrap();
            assert_eq!(reader.join().unwrap().unwrap(), b"three");
        });
        let nonblocking = open(node, O_NONBLOCK);
        assert_eq!(read(&nonblocking, 64).unwrap_err().kind(), ErrorKind::WouldBlock);
        queue.wait_until("two files are open", |state| state.files.len() == 2);
        let caller = queue.files()[0];
        assert_eq!((caller.uid, caller.gid), (0, 0));
        assert!(caller.tid > 0);
        drop(file);
        queue.wait_until("one file is open", |state| state.files.len() == 1);
    });
}

#[test]
fn a_large_write_comes_in_pieces_and_one_message_is_never_glued_to_the_next() {
    with_queue("pieces", |queue, _, node| {
        let file = open(node, BLOCKING);
        let data = vec![7; 200_000];
        assert_eq!((&file).write(&data).unwrap(), data.len());
        // 32 pages each, of which a buffer that begins within a page uses the first in part.
        queue.wait_until("both pieces have come", |state| {
            let lengths: Vec<_> = state.messages.iter().map(Vec::len).collect();
            matches!(lengths[..], [first @ 126_977..=131_072, rest] if first + rest == data.len())
        });
        (&file).write_all(b"next").unwrap();
        // Where a piece fills its READ the kernel asks for more, and gets nothing.
        assert!((126_977..=131_072).contains(&read(&file, 200_000).unwrap().len()));
        assert!((68_928..=73_023).contains(&read(&file, 200_000).unwrap().len()));
        assert_eq!(read(&file, 200_000).unwrap(), b"next");
    });
}

#[test]
fn ioctls_with_retry() {
    with_queue("ioctl", |_, _, node| {
        let file = open(node, BLOCKING);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        // SAFETY: the device takes the argument as a number.
        assert_eq!(unsafe { plus_one(fd, 41) }, Ok(42));
        let mut bytes = [1, 2, 3, 4, 5, 6, 7, 255];
        // SAFETY: the device reads and writes eight bytes.
        assert_eq!(unsafe { increment(fd, &raw mut bytes) }, Ok(0));
        assert_eq!(bytes, [2, 3, 4, 5, 6, 7, 8, 0]);
        // SAFETY: the device is refused memory that is not mapped.
        assert_eq!(unsafe { increment_at(fd, 8) }, Err(Errno::EFAULT));
    });
}

#[test]
fn poll_sleeps_until_there_is_something() {
    with_queue("poll", |queue, _, node| {
        let file = open(node, BLOCKING);
        let ready = |timeout| {
            let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, timeout).expect("poll succeeds")
        };
        assert_eq!(ready(PollTimeout::ZERO), 0);
        thread::scope(|scope| {
            let sleeper = scope.spawn(|| ready(PollTimeout::from(10_000_u16)));
            queue.wait_until("somebody sleeps", |state| state.sleepers.len() == 1);
            queue.push(b"event");
            assert_eq!(sleeper.join().unwrap(), 1);
        });
        assert_eq!(ready(PollTimeout::ZERO), 1);
    });
}

#[test]
fn an_edge_triggered_epoll_sees_every_event() {
    with_queue("epoll", |queue, _, node| {
        let file = open(node, BLOCKING);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        epoll.add(&file, event).unwrap();
        let wait = |timeout: PollTimeout| {
            let mut events = [EpollEvent::empty()];
            epoll.wait(&mut events, timeout).expect("epoll_wait succeeds")
        };
        assert_eq!(wait(PollTimeout::ZERO), 0);
        for _ in 0..3 {
            queue.push(b"event");
            assert_eq!(wait(PollTimeout::from(10_000_u16)), 1);
            assert_eq!(wait(PollTimeout::ZERO), 0);
        }
    });
}

/// A shell that waits in `read` of the device.
fn blocked_shell(queue: &Queue, node: &Path, script: &str) -> Child {
    let input = Stdio::from(File::open(node).expect("the device opens"));
    let mut command = Command::new("sh");
    let child = command.args(["-c", script]).stdin(input).stdout(Stdio::piped()).spawn();
    queue.wait_until("the shell waits", |state| state.parked.len() == 1);
    child.expect("there is a shell")
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id().try_into().expect("a process id"));
    kill(pid, signal).expect("the process lives");
}

#[test]
fn signals_end_a_waiting_read() {
    with_queue("signals", |queue, _, node| {
        for deadly in [Signal::SIGTERM, Signal::SIGKILL] {
            let mut child = blocked_shell(queue, node, "read line");
            signal(&child, deadly);
            assert_eq!(child.wait().unwrap().signal(), Some(deadly as i32));
            queue.wait_until("nothing waits or is open", |state| {
                state.parked.is_empty() && state.files.is_empty()
            });
        }
        let child = blocked_shell(queue, node, "trap 'echo caught; exit 7' USR1; read line");
        signal(&child, Signal::SIGUSR1);
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(7), &b"caught\n"[..]));
    });
}

#[test]
fn stop_ends_servers_and_waiting_clients() {
    with_queue("stop", |queue, registration, node| {
        let file = open(node, BLOCKING);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..3).map(|_| scope.spawn(|| read(&file, 64))).collect();
            queue.wait_until("all wait", |state| state.parked.len() == readers.len());
            registration.stop().unwrap();
            for reader in readers {
                assert_eq!(errno(reader.join().unwrap()), Some(Errno::ECONNABORTED));
            }
        });
        assert_eq!(errno(read(&file, 64)), Some(Errno::ENOTCONN));
        queue.push(b"too late");
    });
}

#[test]
fn mistakes_of_a_device_leave_no_client_waiting() {
    struct Clumsy;
    impl Device for Clumsy {
        fn read(&self, _: Caller, read: Read, reply: ReplyRead<'_>) {
            if read.size == 1 {
                drop(reply);
            } else {
                assert!(!reply.bytes(&vec![0; read.size as usize + 1]), "the kernel refuses it");
            }
        }
    }
    let Some(registration) = register(options("clumsy")) else { return };
    let channel = Arc::clone(registration.channel());
    thread::scope(|scope| {
        let registration = registration;
        let server = scope.spawn(|| channel.serve(&Clumsy));
        let file = open(registration.node().unwrap(), BLOCKING);
        assert_eq!(errno(read(&file, 1)), Some(Errno::EIO));
        assert_eq!(errno(read(&file, 8)), Some(Errno::EIO));
        drop(file);
        registration.stop().unwrap();
        server.join().unwrap().unwrap();
    });
}
