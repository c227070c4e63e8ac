//! FUSE_INTERRUPT in every order that the kernel can bring it.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use cuse_rs::codec::Request;
use cuse_rs::fake;
use cuse_rs::{
    Caller, Channel, Device, Errno, FileHandle, Ioctl, IoctlFlags, Read, ReplyIoctl, ReplyRead,
    ReplyWrite, RequestId, Write,
};

use crate::device::Queue;

#[test]
fn an_interrupted_read_ends() {
    fake::run(1, Queue::new, |kernel| {
        let file = kernel.open(2).unwrap();
        let read = kernel.send_read(file, 64, 0);
        kernel.interrupt(read);
        assert_eq!(kernel.wait(read), Err(Errno::EINTR));
        // Nothing is left behind that would take the next message.
        kernel.write(file, b"kept", 0).unwrap();
        assert_eq!(kernel.read(file, 64, 0), Ok(b"kept".to_vec()));
    });
}

#[test]
fn an_interrupt_that_overtakes_its_request_comes_again() {
    fake::run(1, Queue::new, |kernel| {
        let file = kernel.open(2).unwrap();
        let read = kernel.next_id();
        kernel.interrupt(read);
        kernel.wait_postponed(read);
        assert_eq!(kernel.send_read(file, 64, 0), read);
        kernel.interrupt(read);
        assert_eq!(kernel.wait(read), Err(Errno::EINTR));
    });
}

#[test]
fn an_interrupt_that_overtakes_an_open_request_is_redelivered_by_the_kernel() {
    fake::run(1, Queue::new, |kernel| {
        let file = kernel.open(2).unwrap();
        let read = kernel.next_id();
        kernel.interrupt(read);
        kernel.send_read(file, 64, 0);
        assert_eq!(kernel.wait(read), Err(Errno::EINTR));
    });
}

#[test]
fn an_interrupt_after_the_reply_changes_nothing() {
    fake::run(1, Queue::new, |kernel| {
        let file = kernel.open(2).unwrap();
        let read = kernel.send_read(file, 64, 0);
        kernel.write(file, b"in time", 0).unwrap();
        kernel.interrupt(read);
        assert_eq!(kernel.wait(read), Ok(b"in time".to_vec()));
        kernel.release(file);
    });
}

#[test]
fn an_interrupt_of_a_call_that_does_not_wait_is_no_matter() {
    fake::run(1, Queue::new, |kernel| {
        let id = kernel.next_id();
        kernel.interrupt(id);
        assert_eq!(kernel.open(2), Ok(FileHandle(1)));
        let release = kernel.send(Request::Release(FileHandle(1)));
        kernel.interrupt(release);
        assert_eq!(kernel.wait(release), Ok(Vec::new()));
    });
}

#[test]
fn interrupts_race_with_requests_on_several_threads() {
    fake::run(4, Queue::new, |kernel| {
        let file = kernel.open(2).unwrap();
        for _ in 0..500 {
            let read = kernel.send_read(file, 64, 0);
            kernel.interrupt(read);
            assert_eq!(kernel.wait(read), Err(Errno::EINTR));
        }
    });
}

/// A device that is long about its reads and ioctls, then parks them. Nothing else ends them than a signal.
struct Slow {
    channel: Arc<Channel>,
    begun: Sender<()>,
    go_on: Mutex<Receiver<()>>,
    parked: Mutex<Vec<RequestId>>,
}

impl Slow {
    fn park(&self, defer: impl FnOnce() -> RequestId) {
        self.begun.send(()).expect("the test waits");
        self.go_on.lock().expect("no panic").recv().expect("the test goes on");
        self.parked.lock().expect("no panic").push(defer());
    }
}

impl Device for Slow {
    fn read(&self, _: Caller, _: Read, reply: ReplyRead<'_>) {
        self.park(|| reply.defer());
    }

    fn write(&self, _: Caller, write: Write<'_>, reply: ReplyWrite<'_>) {
        reply.written(u32::try_from(write.data.len()).expect("a short write"));
    }

    fn ioctl(&self, _: Caller, _: Ioctl<'_>, reply: ReplyIoctl<'_>) {
        self.park(|| reply.defer());
    }

    fn interrupt(&self, target: RequestId) -> bool {
        let mut parked = self.parked.lock().expect("no panic");
        let Some(at) = parked.iter().position(|id| *id == target) else { return false };
        parked.remove(at);
        self.channel.reply_read(target).error(Errno::EINTR)
    }
}

#[test]
fn an_interrupt_of_a_request_in_progress_is_remembered() {
    let mut ioctl = Ioctl::new(FileHandle(1), 7, 0);
    ioctl.flags = IoctlFlags::UNRESTRICTED;
    let ioctl = Request::Ioctl(ioctl);
    let read = Request::Read(Read::new(FileHandle(1), 64));
    for request in [read, ioctl] {
        let (begun, has_begun) = mpsc::channel();
        let (go_on, gone_on) = mpsc::channel();
        let device = |channel: &Arc<Channel>| Slow {
            channel: Arc::clone(channel),
            begun,
            go_on: Mutex::new(gone_on),
            parked: Mutex::default(),
        };
        fake::run(2, device, |kernel| {
            let slow = kernel.send(request);
            has_begun.recv().expect("a thread has the request");
            kernel.interrupt(slow);
            // Only the other thread can answer: by now it has had the interrupt, and would have had it again.
            for _ in 0..3 {
                kernel.write(FileHandle(2), b"served", 0).expect("the other thread serves");
            }
            assert_eq!(kernel.times_postponed(slow), 0);
            assert!(kernel.is_open(slow));
            go_on.send(()).expect("the device waits");
            assert_eq!(kernel.wait(slow), Err(Errno::EINTR));
        });
    }
}
