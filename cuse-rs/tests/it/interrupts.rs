//! FUSE_INTERRUPT in every order that the kernel can bring it.

use cuse_rs::codec::Request;
use cuse_rs::fake;
use cuse_rs::{Errno, FileHandle};

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
