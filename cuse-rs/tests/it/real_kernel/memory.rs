//! Ioctls of a file whose caller's memory is a file itself: this one, or one whose server does not answer.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs::File;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use cuse_rs::{Caller, Device, ReplyWrite, Write};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{Uid, geteuid, setfsuid};

use super::{BLOCKING, file_options, mount, open, read};
use crate::device::{INCREMENT, Queue, REVERSE};

nix::ioctl_write_int_bad!(increment_at, INCREMENT);

const DEADLINE: Duration = Duration::from_secs(10);

/// The address of a private mapping of a file.
fn mapped(file: &File) -> i32 {
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // In the low 2 GiB, so that it fits the type that nix takes for a number.
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_32BIT;
    let length = NonZeroUsize::new(4096).unwrap();
    // SAFETY: a mapping of its own, which only ioctls touch.
    let start = unsafe { mmap(None, length, protection, flags, file, 0) };
    i32::try_from(start.unwrap().as_ptr().addr()).unwrap()
}

#[test]
fn a_mapping_of_the_file_itself_is_a_bad_address() {
    let Some(mount) = mount(file_options("own-memory").mode(0o666)) else { return };
    let queue = Queue::new(mount.channel());
    let channel = mount.channel().clone();
    thread::scope(|scope| {
        // A failed assertion drops it, which ends the server.
        let mount = mount;
        let server = scope.spawn(|| channel.serve(&queue));
        let file = open(mount.path(), BLOCKING);
        let (fd, address) = (file.as_raw_fd(), mapped(&file));
        let (done, results) = mpsc::channel();
        scope.spawn(move || {
            // SAFETY: the address is that of a mapping without content.
            (0..3).try_for_each(|_| done.send(unsafe { increment_at(fd, address) }))
        });
        for _ in 0..3 {
            let result = results.recv_timeout(DEADLINE).expect("the server waits for itself");
            assert_eq!(result, Err(nix::errno::Errno::EFAULT));
        }
        (&file).write_all(b"still there").unwrap();
        assert_eq!(read(&file, 64).unwrap(), b"still there");
        mount.stop().unwrap();
        server.join().unwrap().unwrap();
    });
}

/// Does not answer anybody while it holds up a write, of which it tells.
struct Stalling {
    holding: mpsc::Sender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl Device for Stalling {
    fn write(&self, _: Caller, write: Write<'_>, reply: ReplyWrite<'_>) {
        self.holding.send(()).unwrap();
        self.go_on.lock().unwrap().recv().unwrap();
        reply.written(u32::try_from(write.data.len()).unwrap());
    }
}

extern "C" fn nothing(_: libc::c_int) {}

#[test]
fn a_caller_whose_memory_does_not_come_holds_up_nobody() {
    let Some(mount) = mount(file_options("others-memory").mode(0o666)) else { return };
    let stalled = super::mount(file_options("stalled").mode(0o666)).expect("a second file");
    let queue = Queue::new(mount.channel());
    let ((go_on, stall), (holding, held)) = (mpsc::channel(), mpsc::channel());
    let stalling = Stalling { holding, go_on: Mutex::new(stall) };
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR2, &action) }.unwrap();

    let channels = [mount.channel().clone(), stalled.channel().clone()];
    thread::scope(|scope| {
        // A failed assertion drops them, which ends the servers.
        let (stalled, mount, go_on) = (stalled, mount, go_on);
        let servers = (
            scope.spawn(|| channels[0].serve(&queue)),
            scope.spawn(|| channels[1].serve(&stalling)),
        );
        let (file, content) = (open(mount.path(), BLOCKING), open(stalled.path(), BLOCKING));
        let address = mapped(&content);
        // Its server is busy from now on, and what the kernel asks it for stays in its channel.
        let mut writing = content.try_clone().unwrap();
        let writer = scope.spawn(move || writing.write_all(b"message"));
        held.recv_timeout(DEADLINE).expect("the write arrives");
        let asked_for_content = || {
            let mut fds = [PollFd::new(channels[1].as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::from(10_000_u16)), Ok(1));
        };

        let (name, named) = mpsc::channel();
        let fd = file.as_raw_fd();
        let caller = scope.spawn(move || {
            name.send(pthread_self()).unwrap();
            // SAFETY: the address is that of a mapping without content.
            unsafe { increment_at(fd, address) }
        });
        asked_for_content();
        let (done, others) = mpsc::channel();
        scope.spawn(move || {
            (&file).write_all(b"meanwhile").unwrap();
            let message = read(&file, 64).unwrap();
            let mut bytes = *b"abcdefgh";
            let range = [bytes.as_mut_ptr().expose_provenance() as u64, 8];
            // SAFETY: the device reverses eight bytes.
            let length = unsafe { libc::ioctl(fd, REVERSE.into(), &raw const range) };
            done.send((message, length, bytes))
        });
        let (message, length, bytes) = others.recv_timeout(DEADLINE).expect("others are served");
        assert_eq!((&message[..], length, &bytes), (&b"meanwhile"[..], 8, b"hgfedcba"));

        pthread_kill(named.recv().unwrap(), Signal::SIGUSR2).unwrap();
        assert_eq!(caller.join().unwrap(), Err(nix::errno::Errno::EINTR));

        go_on.send(()).unwrap();
        writer.join().unwrap().unwrap();
        mount.stop().unwrap();
        stalled.stop().unwrap();
        servers.0.join().unwrap().unwrap();
        servers.1.join().unwrap().unwrap();
    });
}

#[test]
fn a_user_whose_memory_does_not_come_leaves_others_their_ioctls() {
    /// As many calls of one user as may wait, and as many again.
    const SHARE: usize = 8;
    if !geteuid().is_root() {
        return super::skip(&"a thread of another user takes root").unwrap_or_default();
    }
    let Some(mount) = mount(file_options("shares").mode(0o666)) else { return };
    let stalled = super::mount(file_options("stalled-share").mode(0o666)).expect("a second file");
    let queue = Queue::new(mount.channel());
    let ((go_on, stall), (holding, held)) = (mpsc::channel(), mpsc::channel());
    let stalling = Stalling { holding, go_on: Mutex::new(stall) };
    let channels = [mount.channel().clone(), stalled.channel().clone()];
    thread::scope(|scope| {
        // A failed assertion drops them, which ends the servers.
        let (stalled, mount, go_on) = (stalled, mount, go_on);
        let servers = (
            scope.spawn(|| channels[0].serve(&queue)),
            scope.spawn(|| channels[1].serve(&stalling)),
        );
        let (file, content) = (open(mount.path(), BLOCKING), open(stalled.path(), BLOCKING));
        let (fd, address) = (file.as_raw_fd(), mapped(&content));
        let mut writing = content.try_clone().unwrap();
        let writer = scope.spawn(move || writing.write_all(b"message"));
        held.recv_timeout(DEADLINE).expect("the write arrives");

        let (done, results) = mpsc::channel();
        for _ in 0..2 * SHARE {
            let done = done.clone();
            scope.spawn(move || {
                // Of this thread alone.
                setfsuid(Uid::from_raw(65_534));
                // SAFETY: the address is that of a mapping without content.
                done.send(unsafe { increment_at(fd, address) })
            });
        }
        for _ in 0..SHARE {
            let result =
                results.recv_timeout(DEADLINE).expect("those beyond the share are answered");
            assert_eq!(result, Err(nix::errno::Errno::ENOMEM));
        }
        let (done, others) = mpsc::channel();
        scope.spawn(move || {
            let mut bytes = *b"abcdefgh";
            let range = [bytes.as_mut_ptr().expose_provenance() as u64, 8];
            // SAFETY: the device reverses eight bytes.
            let length = unsafe { libc::ioctl(fd, REVERSE.into(), &raw const range) };
            done.send((length, bytes))
        });
        let answer = others.recv_timeout(DEADLINE).expect("others are served");
        assert_eq!(answer, (8, *b"hgfedcba"));
        assert_eq!(results.try_recv(), Err(mpsc::TryRecvError::Empty), "the others wait");

        go_on.send(()).unwrap();
        writer.join().unwrap().unwrap();
        stalled.stop().unwrap();
        for _ in 0..SHARE {
            results.recv_timeout(DEADLINE).expect("they end with the server").unwrap_err();
        }
        mount.stop().unwrap();
        servers.0.join().unwrap().unwrap();
        servers.1.join().unwrap().unwrap();
    });
}
