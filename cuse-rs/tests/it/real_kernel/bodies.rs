//! What a client sees the same way, however the device comes to it.
#![allow(clippy::unwrap_used, reason = "these are tests, but for their attribute")]

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use cuse_rs::{Caller, Device, Errno, Read, ReplyRead};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{BLOCKING, Backend, O_NONBLOCK, errno, open, read};
use crate::device::{CREEP, INCREMENT, PLUS_ONE, Queue, REVERSE};

/// What the client gets, from the kernel.
const EFAULT: nix::errno::Errno = nix::errno::Errno::EFAULT;

nix::ioctl_write_int_bad!(plus_one, PLUS_ONE);
nix::ioctl_write_int_bad!(increment_at, INCREMENT);
nix::ioctl_readwrite_bad!(increment, INCREMENT, [u8; 8]);
nix::ioctl_read_bad!(reverse, REVERSE, [u64; 2]);
nix::ioctl_write_int_bad!(creep, CREEP);

/// One test for each body.
macro_rules! on {
    ($backend:expr) => {
        $crate::real_kernel::bodies::on! { $backend;
            messages_pass_and_empty_reads_wait
            a_large_write_comes_in_pieces_and_one_message_is_never_glued_to_the_next
            ioctls_with_retry
            poll_sleeps_until_there_is_something
            an_edge_triggered_epoll_sees_every_event
            signals_end_a_waiting_read
            stop_ends_servers_and_waiting_clients
            mistakes_of_a_device_leave_no_client_waiting
            threads_share_an_open_file
            a_forked_child_shares_an_open_file
            readers_and_writers_lose_nothing
            pieces_of_a_call_are_one_message
            ioctls_at_the_edge_of_memory
        }
    };
    ($backend:expr; $($body:ident)*) => {$(
        #[test]
        fn $body() {
            bodies::$body($backend);
        }
    )*};
}
pub(super) use on;

pub(super) fn messages_pass_and_empty_reads_wait(backend: Backend) {
    backend.with_queue("messages", |queue, _, node| {
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

pub(super) fn a_large_write_comes_in_pieces_and_one_message_is_never_glued_to_the_next(
    backend: Backend,
) {
    let limit = match backend {
        Backend::Cuse => 131_072,
        Backend::File => 1 << 20,
    };
    // A buffer that begins within a page uses the first in part.
    let full = limit - 4095..=limit;
    backend.with_queue("pieces", |queue, _, node| {
        let file = open(node, BLOCKING);
        let data = vec![7; limit * 3 / 2];
        assert_eq!((&file).write(&data).unwrap(), data.len());
        queue.wait_until("both pieces have come", |state| {
            let lengths: Vec<_> = state.messages.iter().map(Vec::len).collect();
            matches!(lengths[..], [first, rest]
                if full.contains(&first) && first + rest == data.len())
        });
        (&file).write_all(b"next").unwrap();
        // Where a piece fills its READ the kernel asks for more, and gets nothing.
        let first = read(&file, data.len()).unwrap().len();
        assert!(full.contains(&first));
        assert_eq!(first + read(&file, data.len()).unwrap().len(), data.len());
        assert_eq!(read(&file, data.len()).unwrap(), b"next");
    });
}

pub(super) fn ioctls_with_retry(backend: Backend) {
    backend.with_queue("ioctl", |_, _, node| {
        let file = open(node, BLOCKING);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        // SAFETY: the device takes the argument as a number.
        assert_eq!(unsafe { plus_one(fd, 41) }, Ok(42));
        let mut bytes = [1, 2, 3, 4, 5, 6, 7, 255];
        // SAFETY: the device reads and writes eight bytes.
        assert_eq!(unsafe { increment(fd, &raw mut bytes) }, Ok(0));
        assert_eq!(bytes, [2, 3, 4, 5, 6, 7, 8, 0]);
        // SAFETY: the device is refused memory that is not mapped.
        assert_eq!(unsafe { increment_at(fd, 8) }, Err(EFAULT));
    });
}

pub(super) fn poll_sleeps_until_there_is_something(backend: Backend) {
    backend.with_queue("poll", |queue, _, node| {
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

pub(super) fn an_edge_triggered_epoll_sees_every_event(backend: Backend) {
    backend.with_queue("epoll", |queue, _, node| {
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

pub(super) fn signals_end_a_waiting_read(backend: Backend) {
    backend.with_queue("signals", |queue, _, node| {
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

pub(super) fn stop_ends_servers_and_waiting_clients(backend: Backend) {
    backend.with_queue("stop", |queue, server, node| {
        let file = open(node, BLOCKING);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..3).map(|_| scope.spawn(|| read(&file, 64))).collect();
            queue.wait_until("all wait", |state| state.parked.len() == readers.len());
            server.stop();
            for reader in readers {
                assert_eq!(errno(reader.join().unwrap()), Some(Errno::ECONNABORTED));
            }
        });
        assert_eq!(errno(read(&file, 64)), Some(Errno::ENOTCONN));
        queue.push(b"too late");
    });
}

pub(super) fn mistakes_of_a_device_leave_no_client_waiting(backend: Backend) {
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
    backend.with(
        "clumsy",
        |_| Clumsy,
        |_, _, node| {
            let file = open(node, BLOCKING);
            assert_eq!(errno(read(&file, 1)), Some(Errno::EIO));
            assert_eq!(errno(read(&file, 8)), Some(Errno::EIO));
        },
    );
}

pub(super) fn threads_share_an_open_file(backend: Backend) {
    backend.with_queue("threads", |queue, _, node| {
        let file = open(node, BLOCKING);
        for round in 0..100_u8 {
            thread::scope(|scope| {
                let reader = scope.spawn(|| read(&file, 64));
                queue.wait_until("the read is parked", |state| state.parked.len() == 1);
                (&file).write_all(&[round]).unwrap();
                assert_eq!(reader.join().unwrap().unwrap(), [round]);
            });
        }
    });
}

pub(super) fn a_forked_child_shares_an_open_file(backend: Backend) {
    backend.with_queue("fork", |queue, _, node| {
        let file = open(node, BLOCKING);
        for _ in 0..10 {
            let (input, output) = (file.try_clone().unwrap(), file.try_clone().unwrap());
            let mut reader = Command::new("head");
            let reader = reader.arg("-c4").stdin(input).stdout(Stdio::piped()).spawn().unwrap();
            queue.wait_until("the child waits", |state| state.parked.len() == 1);
            let writer = Command::new("printf").arg("text").stdout(output).status().unwrap();
            assert!(writer.success());
            assert_eq!(reader.wait_with_output().unwrap().stdout, b"text");
        }
    });
}

pub(super) fn readers_and_writers_lose_nothing(backend: Backend) {
    const THREADS: u32 = 8;
    const EACH: u32 = 100;
    backend.with_queue("many", |_, _, node| {
        let file = open(node, BLOCKING);
        let mut got = thread::scope(|scope| {
            let read_all = || (0..EACH).map(|_| read(&file, 64).unwrap()).collect::<Vec<_>>();
            let readers: Vec<_> = (0..THREADS).map(|_| scope.spawn(read_all)).collect();
            for number in 0..THREADS {
                let file = &file;
                scope.spawn(move || {
                    for round in 0..EACH {
                        let message = (number * EACH + round).to_ne_bytes();
                        assert_eq!({ file }.write(&message).unwrap(), 4);
                    }
                });
            }
            readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect::<Vec<_>>()
        });
        let mut sent: Vec<_> = (0..THREADS * EACH).map(|n| n.to_ne_bytes().to_vec()).collect();
        sent.sort();
        got.sort();
        assert_eq!(got, sent);
    });
}

pub(super) fn pieces_of_a_call_are_one_message(backend: Backend) {
    use std::io::{IoSlice, IoSliceMut, Read as _};
    backend.with_queue("gather", |queue, _, node| {
        let mut file = open(node, BLOCKING);
        let largest = vec![9; 65_535];
        assert_eq!(file.write(&largest).unwrap(), largest.len());
        queue.wait_until("it is one message", |state| state.messages.len() == 1);
        assert_eq!(read(&file, largest.len()).unwrap(), largest);
        let pieces = [IoSlice::new(b"head"), IoSlice::new(b"and "), IoSlice::new(b"body")];
        assert_eq!(file.write_vectored(&pieces).unwrap(), 12);
        let (mut head, mut rest) = ([0; 4], [0; 64]);
        let mut room = [IoSliceMut::new(&mut head), IoSliceMut::new(&mut rest)];
        assert_eq!(file.read_vectored(&mut room).unwrap(), 12);
        assert_eq!((&head, &rest[..8]), (b"head", &b"and body"[..]));
    });
}

pub(super) fn ioctls_at_the_edge_of_memory(backend: Backend) {
    backend.with_queue("edge", |_, _, node| {
        let file = open(node, BLOCKING);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        let mut bytes = *b"reverse me";
        let mut pointer = [bytes.as_mut_ptr() as u64, bytes.len() as u64];
        // SAFETY: the device reads the two numbers, and reads and writes the bytes.
        assert_eq!(unsafe { reverse(fd, &raw mut pointer) }, Ok(10));
        assert_eq!(&bytes, b"em esrever");
        let fixed = b"read only!";
        let mut pointer = [fixed.as_ptr() as u64, fixed.len() as u64];
        // SAFETY: the device is refused memory that cannot be written.
        assert_eq!(unsafe { reverse(fd, &raw mut pointer) }, Err(EFAULT));
        assert_eq!(fixed, b"read only!");
        // SAFETY: the device is refused memory that is not mapped.
        assert_eq!(unsafe { creep(fd, 5) }, Err(EFAULT));
        let edge = end_of_a_mapping();
        // SAFETY: the device is refused the eight bytes, of which only four can be read.
        assert_eq!(unsafe { increment(fd, edge.wrapping_byte_sub(4)) }, Err(EFAULT));
        // SAFETY: the device reads and writes eight bytes that nobody else uses.
        assert_eq!(unsafe { increment(fd, edge.wrapping_byte_sub(8)) }, Ok(0));
    });
}

/// The end of memory that nothing readable follows.
fn end_of_a_mapping() -> *mut [u8; 8] {
    const PAGES: usize = 1 << 16;
    let length = NonZeroUsize::new(2 * PAGES).unwrap();
    // SAFETY: memory of its own.
    let start = unsafe {
        mmap_anonymous(
            None,
            length,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_PRIVATE,
        )
    };
    // SAFETY: the second half of the mapping is in the mapping.
    let edge = unsafe { start.unwrap().byte_add(PAGES) };
    // SAFETY: nobody uses it.
    unsafe { mprotect(edge, PAGES, ProtFlags::PROT_NONE) }.unwrap();
    edge.as_ptr().cast()
}
