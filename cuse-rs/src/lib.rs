//! Character devices in user space: the kernel's CUSE protocol, and a FUSE file that acts as one where there is no CUSE.
//!
//! # Theory of operation
//!
//! A server opens `/dev/cuse`. The kernel puts one message into that file, CUSE_INIT. The answer names the device, and the kernel
//! creates the character device during the write of that answer. From then on every `open`, `read`, `write`, `ioctl`, `poll` and last
//! `close` of the device node is a message that the server reads from the same file. The client sleeps in its system call until the
//! server has written the answer. Closing the file removes the device.
//!
//! ```text
//!   client            kernel (fs/fuse/cuse.c, dev.c)             server (this crate)
//!   read(fd, b, 64) ─▶ FUSE_READ {unique 42, fh 7, size 64} ─▶ Channel::serve ─▶ Device::read
//!     (sleeps)                                                    ReplyRead 42 ◀─ defer(): id 42
//!     (sleeps)         ...                                        later, from any thread:
//!   returns 5       ◀─ {len 21, error 0, unique 42} "hello"  ◀─ channel.reply_read(42).bytes(b"hello")
//! ```
//!
//! A device that cannot answer yet does not block: it takes [`ReplyRead::defer`]'s id, returns, and
//! answers when it can. So one thread serves any number of blocked clients. A client that gets a signal
//! meanwhile is announced by [`Device::interrupt`]; the device then answers that call with
//! [`Errno::EINTR`]. Until it does the client cannot even be killed.
//!
//! Where the kernel has no CUSE, [`fuse_file`] mounts a single regular file through `/dev/fuse`. Nearly every kernel has that, and in a
//! user namespace it takes no privilege. The same [`Device`] serves the file. The messages are the same, with three differences: there
//! is another handshake; some messages ask for the file's attributes, and the crate answers them; and the crate itself moves the
//! memory of ioctls (`process_vm_readv`). What clients notice is in the README.
//!
//! # Layers
//!
//! | module | owns | does I/O |
//! | --- | --- | --- |
//! | [`abi`] | `linux/fuse.h`: layouts and numbers | no |
//! | [`codec`] | bytes to typed requests, typed replies to bytes | no |
//! | `request` | what a device is asked | no |
//! | `errno` | the error of a request | no |
//! | `channel` | [`Channel`]: the file, the read loop, one `writev` per reply; the trait [`Device`], and one token per open call; what a FUSE file has beyond a device: attributes, the memory of ioctls | yes |
//! | `pace` | how long that loop looks for a message before it sleeps | no |
//! | `crew` | threads that take the loop over from each other | threads |
//! | `desk` | which requests are being handed to the device, for signals that come meanwhile | no |
//! | `handshake` | what the two handshakes have in common | yes |
//! | [`cuse`] | the CUSE_INIT handshake, the device's name, node and end | yes |
//! | [`fuse_file`] | the FUSE_INIT handshake, the mount and its end | yes |
//! | `fake` (feature `fake-kernel`) | a strict kernel on a socket pair, for tests | yes |
//!
//! Only [`cuse`] and [`fuse_file`] know which channel it is: everything above the handshake is the FUSE protocol as
//! it is.
//!
//! # Example
//!
//! ```no_run
//! use cuse_rs::{Caller, Device, Read, ReplyRead, cuse::DeviceOptions};
//!
//! /// `/dev/hello`: every read says hello.
//! struct Hello;
//!
//! impl Device for Hello {
//!     fn read(&self, _caller: Caller, read: Read, reply: ReplyRead<'_>) {
//!         let text = b"hello\n";
//!         reply.bytes(&text[..text.len().min(read.size as usize)]);
//!     }
//! }
//!
//! let registration = DeviceOptions::new("hello".parse()?).mode(0o444).register()?;
//! registration.channel().serve(&Hello)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The same as a file, for any user in a namespace of their own:
//!
//! ```no_run
//! # use cuse_rs::{Device, fuse_file::FileOptions};
//! # struct Hello;
//! # impl Device for Hello {}
//! let mount = FileOptions::mount_at("/tmp/hello").mode(0o444).mount()?;
//! mount.channel().serve(&Hello)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub mod abi;
mod channel;
pub mod codec;
mod crew;
pub mod cuse;
mod desk;
mod errno;
#[cfg(feature = "fake-kernel")]
pub mod fake;
pub mod fuse_file;
mod handshake;
mod intake;
mod pace;
mod request;

pub use crate::channel::{
    Channel, Device, ReplyIoctl, ReplyOpen, ReplyPoll, ReplyRead, ReplyRelease, ReplyWrite,
    ServeError,
};

pub use crate::{errno::Errno, handshake::HandshakeError};

pub use crate::request::{
    Caller, FileHandle, Ioctl, IoctlFlags, Open, Payload, Poll, PollHandle, Read, RequestId,
    UserRange, Write,
};

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
