//! Each operation of a device, from the kernel's message to its reply.

use std::io::IoSlice;
use std::sync::Arc;
use std::thread;

use cuse_rs::codec::Request;
use cuse_rs::fake::{self, ClientMemory};
use cuse_rs::{
    Caller, Channel, Device, Errno, FileHandle, Ioctl, IoctlFlags, Open, PollHandle, Read,
    ReplyRead, ReplyRelease, RequestId, Write,
};

use crate::device::{CREEP, INCREMENT, O_NONBLOCK, PLUS_ONE, POLLIN, POLLOUT, Queue, REVERSE};

#[test]
fn open_names_files_and_release_forgets_them() {
    fake::run(1, Queue::new, |kernel| {
        assert_eq!(kernel.open(2), Ok(FileHandle(1)));
        assert_eq!(kernel.open(2), Ok(FileHandle(2)));
        kernel.set_caller(Caller::new(0, 13, 13));
        assert_eq!(kernel.open(O_NONBLOCK), Err(Errno::EACCES));
        kernel.release(FileHandle(1));
        kernel.release(FileHandle(2));
    });
}

#[test]
fn the_device_learns_who_calls() {
    let seen = std::sync::Mutex::new(None);
    struct Witness<'a>(&'a std::sync::Mutex<Option<(Caller, Open)>>);
    impl Device for Witness<'_> {
        fn open(&self, caller: Caller, open: Open, reply: cuse_rs::ReplyOpen<'_>) {
            *self.0.lock().unwrap() = Some((caller, open));
            reply.opened(FileHandle(u64::MAX));
        }
    }
    let caller = Caller::new(77, 5, u32::MAX - 1);
    fake::run(
        1,
        |_| Witness(&seen),
        |kernel| {
            kernel.set_caller(caller);
            assert_eq!(kernel.open(0x8802), Ok(FileHandle(u64::MAX)));
        },
    );
    assert_eq!(*seen.lock().unwrap(), Some((caller, Open::new(0x8802))));
}

#[test]
fn written_messages_are_read_one_by_one() {
    fake::run(1, Queue::new, |kernel| {
        let file = kernel.open(2).unwrap();
        assert_eq!(kernel.write(file, b"one", 0), Ok(3));
        assert_eq!(kernel.write(file, b"another", 0), Ok(7));
        assert_eq!(kernel.read(file, 100, 0), Ok(b"one".to_vec()));
        assert_eq!(kernel.read(file, 2, 0), Ok(b"an".to_vec()));
        assert_eq!(kernel.read(file, 100, O_NONBLOCK), Err(Errno::EAGAIN));
    });
}

#[test]
fn the_largest_messages_pass() {
    fake::run(1, Queue::new, |kernel| {
        let file = kernel.open(2).unwrap();
        let data: Vec<u8> = (0..131072_u32).map(|at| at.to_le_bytes()[1]).collect();
        assert_eq!(kernel.write(file, &data, 0), Ok(131072));
        assert!(kernel.read(file, 131072, 0) == Ok(data));
    });
}

#[test]
fn the_next_piece_of_a_call_is_told_from_a_new_call() {
    fake::run(1, Queue::new, |kernel| {
        let file = kernel.open(2).unwrap();
        kernel.write(file, b"next", 0).unwrap();
        let mut read = Read::new(file, 64);
        read.offset = 131072;
        let id = kernel.send(Request::Read(read));
        assert_eq!(kernel.wait(id), Ok(Vec::new()));
        let mut write = Write::new(file, b"rest");
        write.offset = 131072;
        let id = kernel.send(Request::Write(write));
        kernel.wait(id).unwrap();
    });
}

#[test]
fn a_deferred_read_is_answered_by_a_later_write() {
    fake::run(1, Queue::new, |kernel| {
        let file = kernel.open(2).unwrap();
        let first = kernel.send_read(file, 64, 0);
        let second = kernel.send_read(file, 2, 0);
        assert_eq!(kernel.write(file, b"for the first", 0), Ok(13));
        assert_eq!(kernel.wait(first), Ok(b"for the first".to_vec()));
        assert!(kernel.is_open(second));
        assert_eq!(kernel.write(file, b"for the second", 0), Ok(14));
        assert_eq!(kernel.wait(second), Ok(b"fo".to_vec()));
    });
}

#[test]
fn a_deferred_request_of_each_kind_is_answered_from_another_thread() {
    struct Deferring(std::sync::mpsc::Sender<(&'static str, RequestId)>);
    impl Device for Deferring {
        fn open(&self, _: Caller, _: Open, reply: cuse_rs::ReplyOpen<'_>) {
            self.0.send(("open", reply.defer())).unwrap();
        }
        fn read(&self, _: Caller, _: Read, reply: ReplyRead<'_>) {
            self.0.send(("read", reply.defer())).unwrap();
        }
        fn write(&self, _: Caller, _: Write<'_>, reply: cuse_rs::ReplyWrite<'_>) {
            self.0.send(("write", reply.defer())).unwrap();
        }
        fn ioctl(&self, _: Caller, _: Ioctl<'_>, reply: cuse_rs::ReplyIoctl<'_>) {
            self.0.send(("ioctl", reply.defer())).unwrap();
        }
        fn poll(&self, _: Caller, _: cuse_rs::Poll, reply: cuse_rs::ReplyPoll<'_>) {
            self.0.send(("poll", reply.defer())).unwrap();
        }
        fn release(&self, _: FileHandle, reply: ReplyRelease<'_>) {
            self.0.send(("release", reply.defer())).unwrap();
        }
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let answer = |channel: Arc<Channel>| {
        thread::spawn(move || {
            for (kind, id) in receiver {
                assert!(match kind {
                    "open" => channel.reply_open(id).opened(FileHandle(7)),
                    "read" => channel.reply_read(id).bytes(b"read"),
                    "write" => channel.reply_write(id).written(2),
                    "ioctl" => channel.reply_ioctl(id).done(4, &[]),
                    "poll" => channel.reply_poll(id).ready(POLLIN),
                    _ => channel.reply_release(id).done(),
                });
            }
        })
    };
    let mut answerer = None;
    let device = |channel: &Arc<Channel>| {
        answerer = Some(answer(Arc::clone(channel)));
        Deferring(sender)
    };
    fake::run(2, device, |kernel| {
        assert_eq!(kernel.open(2), Ok(FileHandle(7)));
        assert_eq!(kernel.read(FileHandle(7), 64, 0), Ok(b"read".to_vec()));
        assert_eq!(kernel.write(FileHandle(7), b"abc", 0), Ok(2));
        assert_eq!(kernel.ioctl(FileHandle(7), 1, 2, &mut ClientMemory::new()), Ok(4));
        assert_eq!(kernel.poll(FileHandle(7), POLLIN, None), Ok(POLLIN));
        kernel.release(FileHandle(7));
    });
    answerer.unwrap().join().unwrap();
}

#[test]
fn a_read_in_pieces_is_one_reply() {
    struct Scattered;
    impl Device for Scattered {
        fn read(&self, _: Caller, read: Read, reply: ReplyRead<'_>) {
            let pieces = [IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"c")];
            match read.size {
                3 => reply.data(&pieces),
                _ => reply.data(&[IoSlice::new(b"x"); 2000]),
            };
        }
    }
    fake::run(
        1,
        |_| Scattered,
        |kernel| {
            assert_eq!(kernel.read(FileHandle(0), 3, 0), Ok(b"abc".to_vec()));
            assert_eq!(kernel.read(FileHandle(0), 4096, 0), Ok(vec![b'x'; 2000]));
        },
    );
}

#[test]
fn an_ioctl_by_value_takes_one_round() {
    fake::run(1, Queue::new, |kernel| {
        let file = kernel.open(2).unwrap();
        let memory = &mut ClientMemory::new();
        assert_eq!(kernel.ioctl(file, PLUS_ONE, 41, memory), Ok(42));
        assert_eq!(kernel.ioctl(file, PLUS_ONE, u64::MAX, memory), Err(Errno::EINVAL));
        assert_eq!(kernel.ioctl(file, 0x1234, 0, memory), Err(Errno::ENOTTY));
    });
}

#[test]
fn an_ioctl_reads_and_writes_the_memory_of_its_caller() {
    fake::run(1, Queue::new, |kernel| {
        let file = kernel.open(2).unwrap();
        let mut memory = ClientMemory::new().with(0x7000, &[1, 2, 3, 4, 5, 6, 7, 255, 9]);
        assert_eq!(kernel.ioctl(file, INCREMENT, 0x7000, &mut memory), Ok(0));
        assert_eq!(memory.at(0x7000), [2, 3, 4, 5, 6, 7, 8, 0, 9]);
        for address in [0, 0x6fff, 0x7002, u64::MAX] {
            let result = kernel.ioctl(file, INCREMENT, address, &mut memory);
            assert_eq!(result, Err(Errno::EFAULT), "{address:#x}");
        }
    });
}

#[test]
fn an_ioctl_follows_pointers() {
    fake::run(1, Queue::new, |kernel| {
        let file = kernel.open(2).unwrap();
        let pointer = |length: u64| [0x9000_u64.to_ne_bytes(), length.to_ne_bytes()].concat();
        let mut memory = ClientMemory::new().with(0x7000, &pointer(5)).with(0x9000, b"hello");
        assert_eq!(kernel.ioctl(file, REVERSE, 0x7000, &mut memory), Ok(5));
        assert_eq!(memory.at(0x9000), b"olleh");
        let mut memory = memory.with(0x7000, &pointer(6));
        assert_eq!(kernel.ioctl(file, REVERSE, 0x7000, &mut memory), Err(Errno::EFAULT));
        let mut memory = memory.with(0x7000, &pointer(131072));
        assert_eq!(kernel.ioctl(file, REVERSE, 0x7000, &mut memory), Err(Errno::ENOMEM));
    });
}

#[test]
fn an_ioctl_may_take_any_number_of_rounds() {
    fake::run(1, Queue::new, |kernel| {
        let file = kernel.open(2).unwrap();
        let mut memory = ClientMemory::new().with(0x1000, &[0; 100]);
        assert_eq!(kernel.ioctl(file, CREEP, 100, &mut memory), Ok(100));
        assert_eq!(kernel.ioctl(file, CREEP, 101, &mut memory), Err(Errno::EFAULT));
    });
}

#[test]
fn an_ioctl_of_the_largest_size_passes() {
    struct Length;
    impl Device for Length {
        fn ioctl(&self, _: Caller, ioctl: Ioctl<'_>, reply: cuse_rs::ReplyIoctl<'_>) {
            assert!(ioctl.flags.contains(IoctlFlags::BITS_32));
            reply.done(i32::try_from(ioctl.input.len()).unwrap(), ioctl.input);
        }
    }
    fake::run(
        1,
        |_| Length,
        |kernel| {
            let input = &[7; 131072];
            let flags = IoctlFlags::UNRESTRICTED | IoctlFlags::COMPAT | IoctlFlags::BITS_32;
            let (file, command, argument, output_size) = (FileHandle(0), 1, 2, 131072);
            let mut ioctl = Ioctl::new(file, command, argument);
            (ioctl.flags, ioctl.input, ioctl.output_size) = (flags, input, output_size);
            let id = kernel.send(Request::Ioctl(ioctl));
            assert_eq!(kernel.wait(id).unwrap().len(), 16 + 131072);
        },
    );
}

#[test]
fn poll_tells_what_is_ready_and_notifies_of_every_event() {
    fake::run(1, Queue::new, |kernel| {
        let file = kernel.open(2).unwrap();
        assert_eq!(kernel.poll(file, POLLIN, None), Ok(POLLOUT));
        assert_eq!(kernel.poll(file, POLLIN, Some(PollHandle(9))), Ok(POLLOUT));
        for _ in 0..3 {
            kernel.write(file, b"event", 0).unwrap();
            assert_eq!(kernel.wait_notification(), PollHandle(9));
        }
        assert_eq!(kernel.poll(file, POLLIN, None), Ok(POLLIN | POLLOUT));
    });
}

#[test]
fn a_device_without_methods_is_a_driver_without_methods() {
    struct Nothing;
    impl Device for Nothing {}
    fake::run(
        1,
        |_| Nothing,
        |kernel| {
            let file = kernel.open(2).unwrap();
            assert_eq!(kernel.read(file, 1, 0), Err(Errno::EINVAL));
            assert_eq!(kernel.write(file, b"x", 0), Err(Errno::EINVAL));
            assert_eq!(kernel.ioctl(file, 1, 0, &mut ClientMemory::new()), Err(Errno::ENOTTY));
            assert_eq!(kernel.poll(file, POLLIN, None), Ok(0x145));
            kernel.release(file);
        },
    );
}

#[test]
fn many_blocked_readers_on_several_threads_lose_nothing() {
    const READERS: u32 = 200;
    fake::run(8, Queue::new, |kernel| {
        let file = kernel.open(2).unwrap();
        let reads: Vec<RequestId> = (0..READERS).map(|_| kernel.send_read(file, 8, 0)).collect();
        for number in 0..READERS {
            assert_eq!(kernel.write(file, &number.to_le_bytes(), 0), Ok(4));
        }
        let mut numbers: Vec<u32> = reads
            .into_iter()
            .map(|id| u32::from_le_bytes(kernel.wait(id).unwrap().try_into().unwrap()))
            .collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..READERS));
    });
}
